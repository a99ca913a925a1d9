//! Sorted streams of items, and one stream out of many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Item;
use super::writer::{decode_item, encode_item};
use crate::sys::{Reading, create_new, open_read, remove_file};
use crate::types::{Record, RelPath};

/// Bytes of memory of one stream, of which a merge may have many.
const BUFFER_LEN: usize = 64 << 10;
/// Streams that are merged at once.
const FAN_IN: usize = 64;

/// Items of one origin, sorted by path.
pub(super) enum Stream {
    Memory(Box<dyn Iterator<Item = io::Result<Item>> + Send>),
    File(Span),
}

/// A part of a file. The descriptor is shared, and the buffer made with the first read: a rank that worked for a day has
/// thousands of groups.
pub(super) struct Span {
    file: Arc<File>,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Span {
    pub(super) fn new(file: &Arc<File>, offset: u64, len: u64) -> Self {
        Self { file: Arc::clone(file), at: offset, end: offset.saturating_add(len), buffer: Vec::new(), used: 0 }
    }
}

impl Read for Span {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            let len = usize::try_from(self.end - self.at).map_or(BUFFER_LEN, |left| left.min(BUFFER_LEN));
            self.buffer.resize(len, 0);
            self.used = 0;
            let got = self.file.read_at(&mut self.buffer, self.at)?;
            self.buffer.truncate(got);
            self.at += got as u64;
            if got == 0 {
                self.buffer = Vec::new();
            }
        }
        let len = into.len().min(self.buffer.len() - self.used);
        into[..len].copy_from_slice(&self.buffer[self.used..self.used + len]);
        self.used += len;
        Ok(len)
    }
}

impl Stream {
    /// All items.
    pub(super) fn into_items(mut self) -> impl Iterator<Item = io::Result<Item>> {
        std::iter::from_fn(move || self.next_item().transpose())
    }

    /// The next item.
    ///
    /// # Errors
    /// A file that cannot be read, or ends early.
    fn next_item(&mut self) -> io::Result<Option<Item>> {
        match self {
            Self::Memory(items) => items.next().transpose(),
            Self::File(span) => decode_item(span),
        }
    }
}

/// The k-way merge of streams, in the order of paths; of one path, in the order of the streams.
pub(super) struct Merged {
    streams: Vec<Stream>,
    heads: Vec<Option<Item>>,
    order: BinaryHeap<Reverse<(RelPath, usize)>>,
}

impl Merged {
    /// Many streams are merged into files first, a few at a time, in `dir` under names that begin with `name`.
    ///
    /// # Errors
    /// A stream cannot be read, or a file not be written.
    pub(super) fn of_many(mut streams: Vec<Stream>, dir: &OwnedFd, name: &[u8]) -> io::Result<Self> {
        let mut runs_made = 0;
        while streams.len() > FAN_IN {
            let mut runs = Vec::new();
            let mut rest = streams.into_iter().peekable();
            while rest.peek().is_some() {
                let some = rest.by_ref().take(FAN_IN).collect();
                let name = [name, format!(".run{runs_made}").as_bytes()].concat();
                runs_made += 1;
                runs.push(write_run(dir, &name, Self::new(some)?)?);
            }
            streams = runs;
        }
        Self::new(streams)
    }

    /// # Errors
    /// A stream cannot be read.
    pub(super) fn new(streams: Vec<Stream>) -> io::Result<Self> {
        let heads = streams.iter().map(|_| None).collect();
        let mut merged = Self { streams, heads, order: BinaryHeap::new() };
        for index in 0..merged.streams.len() {
            merged.advance(index)?;
        }
        Ok(merged)
    }

    fn advance(&mut self, index: usize) -> io::Result<()> {
        if let Some(item) = self.streams[index].next_item()? {
            self.order.push(Reverse((item.path().clone(), index)));
            self.heads[index] = Some(item);
        }
        Ok(())
    }
}

impl Iterator for Merged {
    type Item = io::Result<Item>;

    fn next(&mut self) -> Option<io::Result<Item>> {
        let Reverse((_, index)) = self.order.pop()?;
        let item = self.heads[index].take().expect("a stream in the heap has a head");
        Some(self.advance(index).map(|()| item))
    }
}

/// The entries among the items.
pub struct Entries(pub(super) Merged);

impl Iterator for Entries {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<io::Result<Record>> {
        self.0.by_ref().find_map(|item| match item {
            Ok(Item::Entry(record)) => Some(Ok(record)),
            Ok(Item::Range(_)) => None,
            Err(err) => Some(Err(err)),
        })
    }
}

/// Merges streams into a file that lives until it has been read.
fn write_run(dir: &OwnedFd, name: &[u8], items: Merged) -> io::Result<Stream> {
    let file = File::from(create_new(dir.as_fd(), name, 0o600)?);
    let read = open_read(dir.as_fd(), name, Reading::default());
    // it is read through the descriptor; nobody needs the name
    remove_file(dir.as_fd(), name)?;
    let mut run = io::BufWriter::with_capacity(1 << 20, file);
    let mut encoded = Vec::new();
    for item in items {
        encoded.clear();
        encode_item(&item?, &mut encoded);
        io::Write::write_all(&mut run, &encoded)?;
    }
    run.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Stream::File(Span::new(&Arc::new(File::from(read?)), 0, u64::MAX)))
}
