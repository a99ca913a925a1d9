//! Writing: what a rank has finished, in memory, and its journal.

use std::fs::File;
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::merge::{Entries, Merged, Span, Stream};
use super::{Batch, DIGEST_LEN, GROUP_HEADER_LEN, GROUP_MAGIC, Header};
use crate::sys::{Reading, create_new, open_read, remove_file, sync_data, sync_dir, sync_file};
use crate::types::Stats;

/// What a rank has finished and not yet written down. Shared by its threads.
#[derive(Default)]
pub struct Recorder {
    open: Batch,
    /// Waits for its data to be durable.
    sealed: Batch,
    /// Bytes of the records that the keeper is writing.
    writing_len: usize,
    stats: Stats,
}

impl Recorder {
    /// Bytes of items in memory from which on a checkpoint is worth while.
    pub const FULL_LEN: usize = 8 << 20;
    /// Bytes of records in memory at which the I/O threads wait. Records of long paths are a hundred times as long as others,
    /// and a checkpoint takes as long as the storage needs.
    const MAX_LEN: usize = 32 << 20;

    /// Adds what a task has finished.
    pub fn append(&mut self, items: &Batch) {
        self.stats.add(items.stats());
        self.open.append(items);
    }

    /// The counters of everything that was finished.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether there is enough for a checkpoint of its own.
    pub fn is_full(&self) -> bool {
        self.open.byte_len() >= Self::FULL_LEN
    }

    /// Whether there is memory for the records of further work.
    pub fn has_room(&self) -> bool {
        self.open.byte_len() + self.sealed.byte_len() + self.writing_len < Self::MAX_LEN
    }

    /// Begins a checkpoint: what was finished so far belongs to it. Whether that is anything.
    pub fn seal(&mut self) -> bool {
        let open = std::mem::take(&mut self.open);
        if self.sealed.is_empty() {
            self.sealed = open;
        } else {
            self.sealed.append(&open);
        }
        !self.sealed.is_empty()
    }

    /// The checkpoint's data is durable: what is to be written down.
    pub fn take_sealed(&mut self) -> Batch {
        self.writing_len = self.sealed.byte_len();
        std::mem::take(&mut self.sealed)
    }

    /// The records that were taken are written, or the job ends without them.
    pub fn written(&mut self) {
        self.writing_len = 0;
    }
}

/// The journal of one rank in one run of the job.
pub struct Journal {
    /// `None` keeps everything in memory.
    place: Option<Place>,
    memory: Vec<Batch>,
    /// Offset and length of each group's items, in bytes.
    spans: Vec<(u64, u64)>,
}

struct Place {
    /// `None`: the journal is a file without a name, which the kernel removes when the process ends.
    dir: Option<Arc<OwnedFd>>,
    header: Header,
    /// Made with the first group: a run that is refused leaves nothing.
    file: Option<File>,
    /// Bytes that are written and whole.
    end: u64,
    /// Each group is made durable.
    durable: bool,
}

impl Journal {
    /// Of a rank whose journal is to be in a directory; or in memory, for few items.
    pub fn new(dir: Option<Arc<OwnedFd>>, header: Header, durable: bool) -> Self {
        let place = dir.map(|dir| Place { dir: Some(dir), header, file: None, end: 0, durable });
        Self { place, memory: Vec::new(), spans: Vec::new() }
    }

    /// A journal that no later run reads: a file without a name in the directory for temporary files (`TMPDIR`).
    pub fn nameless(header: Header) -> Self {
        let place = Place { dir: None, header, file: None, end: 0, durable: false };
        Self { place: Some(place), memory: Vec::new(), spans: Vec::new() }
    }

    /// Appends a group, whose data is durable, and makes it durable too.
    ///
    /// # Errors
    /// It cannot be written or made durable; the journal is as it was before.
    pub fn commit(&mut self, mut items: Batch) -> io::Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let Some(place) = &mut self.place else {
            self.memory.push(items);
            return Ok(());
        };
        match place.append(&mut items) {
            Ok(span) => self.spans.push(span),
            Err(err) => {
                place.take_back()?;
                return Err(err);
            }
        }
        Ok(())
    }

    /// All entries, sorted by path.
    ///
    /// # Errors
    /// The journal cannot be read, or what is merged on the way not be written.
    pub fn into_sorted(mut self) -> io::Result<Entries> {
        let memory = std::mem::take(&mut self.memory);
        let sorted = |mut items: Batch| items.sorted_pieces().collect::<Vec<_>>().concat();
        let mut streams: Vec<Stream> =
            memory.into_iter().map(|items| Stream::Memory(Cursor::new(sorted(items)))).collect();
        let Some(place) = self.place.as_ref().filter(|_| !self.spans.is_empty()) else {
            return Entries::new(Merged::new(streams)?);
        };
        let name = place.header.name();
        let file = match (&place.dir, &place.file) {
            (Some(dir), _) => File::from(open_read(dir.as_fd(), &name, Reading::default())?),
            (None, file) => file.as_ref().expect("it has a group").try_clone()?,
        };
        let file = Arc::new(file);
        streams.extend(self.spans.iter().map(|&(offset, len)| Stream::File(Span::new(&file, offset, len))));
        Entries::new(Merged::of_many(streams, place.dir.as_deref(), &name)?)
    }
}

impl Place {
    fn open(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let (header, name) = (self.header.encode(), self.header.name());
            let mut file = match &self.dir {
                Some(dir) => File::from(create_new(dir.as_fd(), &name, 0o600)?),
                None => tempfile::tempfile()?,
            };
            let synced = |file: &File| match self.dir.as_ref().filter(|_| self.durable) {
                Some(dir) => sync_file(file.as_fd()).and_then(|()| sync_dir(dir.as_fd())).map_err(io::Error::from),
                None => Ok(()),
            };
            if let Err(err) = file.write_all(&header).and_then(|()| synced(&file)) {
                self.dir.as_ref().map_or(Ok(()), |dir| remove_file(dir.as_fd(), &name))?;
                return Err(err);
            }
            self.end = header.len() as u64;
            self.file = Some(file);
        }
        Ok(self.file.as_ref().expect("made above"))
    }

    fn append(&mut self, items: &mut Batch) -> io::Result<(u64, u64)> {
        let durable = self.durable;
        let (count, items_len) = (items.len() as u64, items.items_len() as u64);
        let mut file = self.open()?;
        // Written in pieces: one buffer for all would hold the records in memory twice.
        let mut group = GroupWriter::begin(&mut file, count, items_len)?;
        for piece in items.sorted_pieces() {
            group.write(&piece)?;
        }
        let len = group.end()?;
        if durable {
            sync_data(file.as_fd())?;
        }
        let span = (self.end + GROUP_HEADER_LEN as u64, items_len);
        self.end += len;
        Ok(span)
    }

    /// Cuts off what was not written whole.
    fn take_back(&mut self) -> io::Result<()> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        file.set_len(self.end)?;
        file.seek(SeekFrom::Start(self.end)).map(drop)
    }
}

/// Writes `count` encoded items as one group; returns its length in bytes.
pub(super) fn write_group(into: &mut impl Write, count: u64, items: &[u8]) -> io::Result<u64> {
    let mut group = GroupWriter::begin(into, count, items.len() as u64)?;
    group.write(items)?;
    group.end()
}

/// One group, written in pieces.
struct GroupWriter<'a, W> {
    into: &'a mut W,
    hasher: blake3::Hasher,
}

impl<'a, W: Write> GroupWriter<'a, W> {
    /// Of `count` items, which have `len` bytes.
    fn begin(into: &'a mut W, count: u64, len: u64) -> io::Result<Self> {
        let mut header = [0; GROUP_HEADER_LEN];
        header[..8].copy_from_slice(GROUP_MAGIC);
        header[8..16].copy_from_slice(&count.to_le_bytes());
        header[16..24].copy_from_slice(&len.to_le_bytes());
        let mut group = Self { into, hasher: blake3::Hasher::new() };
        group.write(&header)?;
        Ok(group)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.into.write_all(bytes)
    }

    /// Returns the length of the group in bytes.
    fn end(self) -> io::Result<u64> {
        self.into.write_all(self.hasher.finalize().as_bytes())?;
        Ok(self.hasher.count() + DIGEST_LEN as u64)
    }
}
