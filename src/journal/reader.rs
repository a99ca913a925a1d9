//! Reading a journal that a run of the job left, whatever state it is in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use super::writer::decode_item;
use super::{DIGEST_LEN, GROUP_HEADER_LEN, GROUP_MAGIC, HEADER_LEN, Header, Item};

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
pub struct Found {
    pub header: Header,
    pub groups: Groups,
    /// Groups that do not match their digest, and are not the last: left out.
    pub damaged: u64,
    /// The crash came within the last group: left out.
    pub torn: bool,
}

/// The groups of a journal that are whole.
#[derive(Debug)]
pub struct Groups {
    file: File,
    /// Offset and length of each one's items, in bytes.
    spans: Vec<(u64, u64)>,
}

/// Finds the whole groups of a journal; reads all of it once.
///
/// # Errors
/// The file cannot be read. What is in it may be [`Trouble`].
pub fn read(mut file: File) -> io::Result<Result<Found, Trouble>> {
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
    let (mut spans, mut damaged, mut torn) = (Vec::new(), 0, false);
    let mut at = HEADER_LEN as u64;
    while at < len {
        if let Some(span) = whole_group(&file, at, len)? {
            spans.push(span);
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
    Ok(Ok(Found { header, groups: Groups { file, spans }, damaged, torn }))
}

/// Offset and length of the items of the group at `at`, if it is whole.
fn whole_group(mut file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let around = (GROUP_HEADER_LEN + DIGEST_LEN) as u64;
    if len - at < around {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(at))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; GROUP_HEADER_LEN];
    reader.read_exact(&mut header)?;
    let items_len = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
    if &header[..8] != GROUP_MAGIC || items_len > len - at - around {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header);
    io::copy(&mut (&mut reader).take(items_len), &mut hasher)?;
    let mut digest = [0; DIGEST_LEN];
    reader.read_exact(&mut digest)?;
    Ok((hasher.finalize() == digest).then_some((at + GROUP_HEADER_LEN as u64, items_len)))
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
    /// How many there are.
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// Calls `each` with every item, group after group.
    ///
    /// # Errors
    /// The file cannot be read, or `each` fails.
    pub fn for_each(&mut self, mut each: impl FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        for &(offset, len) in &self.spans {
            self.file.seek(SeekFrom::Start(offset))?;
            let mut items = BufReader::with_capacity(256 << 10, &self.file).take(len);
            while let Some(item) = decode_item(&mut items)? {
                each(item)?;
            }
        }
        Ok(())
    }
}
