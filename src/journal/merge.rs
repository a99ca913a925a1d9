//! Sorted streams of items, and one stream out of many.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Encoded;
use crate::sys::{Reading, create_new, open_read, remove_file};

/// Bytes of memory of one stream, of which a merge may have many.
const BUFFER_LEN: usize = 64 << 10;
/// Streams that are merged at once.
const FAN_IN: usize = 64;

/// Items of one origin, sorted by path.
pub(super) enum Stream {
    Memory(Cursor<Vec<u8>>),
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

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => bytes.read(into),
            Self::File(span) => span.read(into),
        }
    }
}

/// The next item of a stream, and the stream's number. The greatest of a heap is the first in the order of paths; of one path,
/// in the order of the streams.
pub struct Head {
    pub item: Encoded,
    pub stream: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.item.path(), other.stream).cmp(&(self.item.path(), self.stream))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

/// The k-way merge of streams, in the order of paths; of one path, in the order of the streams.
pub(super) struct Merged {
    streams: Vec<Stream>,
    heads: BinaryHeap<Head>,
}

impl Merged {
    /// Many streams are merged into files first, a few at a time, in `dir` under names that begin with `name`; without a
    /// `dir` into files without a name.
    ///
    /// # Errors
    /// A stream cannot be read, or a file not be written.
    pub(super) fn of_many(mut streams: Vec<Stream>, dir: Option<&OwnedFd>, name: &[u8]) -> io::Result<Self> {
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
    pub(super) fn new(mut streams: Vec<Stream>) -> io::Result<Self> {
        let mut heads = BinaryHeap::new();
        for (stream, items) in streams.iter_mut().enumerate() {
            let mut item = Encoded::default();
            if item.read(items)? {
                heads.push(Head { item, stream });
            }
        }
        Ok(Self { streams, heads })
    }

    /// Puts the next item in place of `item`; `false` at the end.
    ///
    /// # Errors
    /// A stream cannot be read.
    pub(super) fn next(&mut self, item: &mut Encoded) -> io::Result<bool> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(false) };
        let stream = head.stream;
        std::mem::swap(item, &mut head.item);
        if !head.item.read(&mut self.streams[stream])? {
            PeekMut::pop(head);
        }
        Ok(true)
    }
}

/// The entries among the items.
pub struct Entries {
    items: Merged,
    /// The next one, if there is one.
    next: Encoded,
    ended: bool,
}

impl Entries {
    pub(super) fn new(items: Merged) -> io::Result<Self> {
        let mut entries = Self { items, next: Encoded::default(), ended: false };
        entries.advance()?;
        Ok(entries)
    }

    fn advance(&mut self) -> io::Result<()> {
        loop {
            self.ended = !self.items.next(&mut self.next)?;
            if self.ended || self.next.is_entry() {
                return Ok(());
            }
        }
    }

    /// Appends entries, sorted by path, until `frame` holds `len` bytes or there are no more.
    ///
    /// # Errors
    /// A stream cannot be read.
    pub fn fill(&mut self, frame: &mut Vec<u8>, len: usize) -> io::Result<()> {
        while frame.len() < len && !self.ended {
            frame.extend_from_slice(self.next.bytes());
            self.advance()?;
        }
        Ok(())
    }

    /// Whether there are no more.
    pub fn is_at_end(&self) -> bool {
        self.ended
    }
}

/// Merges streams into a file that lives until it has been read.
fn write_run(dir: Option<&OwnedFd>, name: &[u8], mut items: Merged) -> io::Result<Stream> {
    let (file, read) = match dir {
        Some(dir) => {
            let file = File::from(create_new(dir.as_fd(), name, 0o600)?);
            let read = open_read(dir.as_fd(), name, Reading::default()).map(File::from);
            // it is read through the descriptor; nobody needs the name
            remove_file(dir.as_fd(), name)?;
            (file, read?)
        }
        None => {
            let file = tempfile::tempfile()?;
            (file.try_clone()?, file)
        }
    };
    let mut run = io::BufWriter::with_capacity(1 << 20, file);
    let mut item = Encoded::default();
    while items.next(&mut item)? {
        io::Write::write_all(&mut run, item.bytes())?;
    }
    run.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Stream::File(Span::new(&Arc::new(read), 0, u64::MAX)))
}
