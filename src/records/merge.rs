//! Sorted streams of records, and one stream out of many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{RunReader, decode};
use crate::sys::{Reading, open_read, remove_file};
use crate::types::{Record, RelPath};

/// Records of one origin, sorted by path.
pub enum Stream {
    Memory(Box<dyn Iterator<Item = io::Result<Record>> + Send>),
    Run(RunReader, Arc<OwnedFd>, Vec<u8>),
}

impl Stream {
    /// Over a run, which is removed when it has been read.
    pub(super) fn run(dir: &Arc<OwnedFd>, name: &[u8]) -> io::Result<Self> {
        let file = File::from(open_read(dir.as_fd(), name, Reading::default())?);
        Ok(Self::Run(RunReader::with_capacity(256 << 10, file), Arc::clone(dir), name.to_vec()))
    }

    /// The next record.
    ///
    /// # Errors
    /// A run that cannot be read, or ends early.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        match self {
            Self::Memory(records) => records.next().transpose(),
            Self::Run(reader, dir, name) => {
                let record = decode(reader)?;
                if record.is_none() {
                    remove_file(dir.as_fd(), name)?;
                }
                Ok(record)
            }
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
