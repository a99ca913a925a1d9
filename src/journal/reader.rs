//! Reading a journal that a run of the job left, whatever state it is in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use super::merge::{Span, Stream};
use super::{DIGEST_LEN, GROUP_HEADER_LEN, GROUP_MAGIC, HEADER_LEN, Header};

/// Why a file is no journal of this job that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Another file, or a header that was not written whole.
    #[error("is not a journal")]
    Foreign,
    #[error("was written by a newer pcopy (format version {0})")]
    Newer(u32),
}

/// What a journal holds.
#[derive(Debug)]
pub(super) struct Found {
    pub header: Header,
    pub groups: Groups,
    /// Groups that do not match their digest, and are not the last: left out.
    pub damaged: u64,
    /// The crash came within the last group: left out.
    pub torn: bool,
}

/// The groups of a journal that are whole.
#[derive(Debug)]
pub(super) struct Groups {
    file: File,
    /// Offset and length of each one's items, in bytes.
    spans: Vec<(u64, u64)>,
    item_count: u64,
}

/// Finds the whole groups of a journal; reads all of it once.
///
/// # Errors
/// The file cannot be read. What is in it may be [`Trouble`].
pub(super) fn read(mut file: File) -> io::Result<Result<Found, Trouble>> {
    let len = file.metadata()?.len();
    let mut header = [0; HEADER_LEN];
    if len < HEADER_LEN as u64 {
        return Ok(Err(Trouble::Foreign));
    }
    file.read_exact(&mut header)?;
    let header = match Header::decode(&header) {
        Ok(header) => header,
        Err(trouble) => return Ok(Err(trouble)),
    };
    let (mut spans, mut item_count, mut damaged, mut torn) = (Vec::new(), 0, 0, false);
    let mut at = HEADER_LEN as u64;
    while at < len {
        if let Some((span, count)) = whole_group(&file, at, len)? {
            spans.push(span);
            item_count += count;
            at = span.0 + span.1 + DIGEST_LEN as u64;
            continue;
        }
        // its length cannot be trusted: the next one is looked for
        match find_group(&file, at + 1)? {
            Some(next) => (damaged, at) = (damaged + 1, next),
            None => {
                torn = true;
                break;
            }
        }
    }
    Ok(Ok(Found { header, groups: Groups { file, spans, item_count }, damaged, torn }))
}

/// Offset and length of the items of the group at `at`, and how many they are, if it is whole.
fn whole_group(mut file: &File, at: u64, len: u64) -> io::Result<Option<((u64, u64), u64)>> {
    let around = (GROUP_HEADER_LEN + DIGEST_LEN) as u64;
    if len - at < around {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(at))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; GROUP_HEADER_LEN];
    reader.read_exact(&mut header)?;
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (count, items_len) = (number(8), number(16));
    if &header[..8] != GROUP_MAGIC || items_len > len - at - around {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header);
    io::copy(&mut (&mut reader).take(items_len), &mut hasher)?;
    let mut digest = [0; DIGEST_LEN];
    reader.read_exact(&mut digest)?;
    Ok((hasher.finalize() == digest).then_some(((at + GROUP_HEADER_LEN as u64, items_len), count)))
}

/// Where the next bytes stand that begin a group, from `from` on.
fn find_group(mut file: &File, from: u64) -> io::Result<Option<u64>> {
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut at, mut matched) = (from, 0);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        for &byte in bytes {
            at += 1;
            // no part of the magic begins like it but its first byte
            matched = if byte == GROUP_MAGIC[matched] { matched + 1 } else { usize::from(byte == GROUP_MAGIC[0]) };
            if matched == GROUP_MAGIC.len() {
                return Ok(Some(at - GROUP_MAGIC.len() as u64));
            }
        }
        let len = bytes.len();
        reader.consume(len);
    }
}

impl Groups {
    /// How many items there are.
    pub(super) fn item_count(&self) -> u64 {
        self.item_count
    }

    /// The file; offset and length of each group's items.
    pub(super) fn into_spans(self) -> (File, Vec<(u64, u64)>) {
        (self.file, self.spans)
    }

    /// Each group's items.
    pub(super) fn into_streams(self) -> impl Iterator<Item = Stream> {
        let file = Arc::new(self.file);
        self.spans.into_iter().map(move |(offset, len)| Stream::File(Span::new(&file, offset, len)))
    }
}
