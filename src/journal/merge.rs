//! Sorted streams of records, and one stream out of many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;

use super::Item;
use super::writer::{GroupReader, decode_item, open_span};
use crate::types::{Record, RelPath};

/// Bytes of memory of one stream, of which a merge may have many.
const BUFFER_LEN: usize = 64 << 10;

/// Entries of one origin, sorted by path.
pub enum Stream {
    Memory(Box<dyn Iterator<Item = io::Result<Record>> + Send>),
    File(GroupReader),
}

impl Stream {
    /// Over a group of a journal: `len` bytes of items at `offset`.
    pub(super) fn group(dir: &OwnedFd, name: &[u8], offset: u64, len: u64) -> io::Result<Self> {
        let file = open_span(dir, name, offset)?;
        Ok(Self::File(BufReader::with_capacity(BUFFER_LEN, file).take(len)))
    }

    /// Over a whole file of items.
    pub(super) fn run(dir: &OwnedFd, name: &[u8]) -> io::Result<Self> {
        Self::group(dir, name, 0, u64::MAX)
    }

    /// The next entry.
    ///
    /// # Errors
    /// A file that cannot be read, or ends early.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        match self {
            Self::Memory(records) => records.next().transpose(),
            Self::File(reader) => loop {
                match decode_item(reader)? {
                    Some(Item::Range(_)) => {}
                    Some(Item::Entry(record)) => return Ok(Some(record)),
                    None => return Ok(None),
                }
            },
        }
    }
}

/// The k-way merge of streams of one rank, in the order of paths.
pub struct Merged {
    streams: Vec<Stream>,
    heads: Vec<Option<Record>>,
    order: BinaryHeap<Reverse<(RelPath, usize)>>,
}

impl Merged {
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
        if let Some(record) = self.streams[index].next_record()? {
            self.order.push(Reverse((record.path.clone(), index)));
            self.heads[index] = Some(record);
        }
        Ok(())
    }
}

impl Iterator for Merged {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<io::Result<Record>> {
        let Reverse((_, index)) = self.order.pop()?;
        let record = self.heads[index].take().expect("a stream in the heap has a head");
        Some(self.advance(index).map(|()| record))
    }
}
