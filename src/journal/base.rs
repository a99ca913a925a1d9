//! What all earlier runs of a job have finished: their journals, merged into one sorted file, the base, and a table to look
//! paths up in it.
//!
//! The base has the format of a journal, of rank 0; its generation is the last one that it holds. Journals up to that
//! generation have nothing to add. Only what a later run can leave as it is stands in it: no directories, no failures.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::merge::{Merged, Stream};
use super::reader::{self, Groups, Trouble};
use super::writer::write_group;
use super::{Encoded, GROUP_HEADER_LEN, HEADER_LEN, Header, Item, PREFIX};
use crate::sys::{Reading, close, create_new, names_in, open_read, remove_file, rename, sync_dir};
use crate::types::{Loss, Outcome, Partial, Record, RelPath, escaped};
use crate::watch;

const NAME: &[u8] = b"base";
const NEW_NAME: &[u8] = b"base.new";
/// Bytes of items in one group of a base.
const GROUP_LEN: usize = 1 << 20;

/// Large files of which only some ranges are there.
pub type Partials = HashMap<RelPath, Unfinished>;

/// The ranges of a large file that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    pub partial: Partial,
    /// Number and chaining value of each; in any order, maybe more than once.
    pub done: Vec<(u64, Option<[u8; 32]>)>,
}

/// What is known of a job when a run of it begins.
pub struct Loaded {
    pub base: Base,
    pub partials: Partials,
    /// The last one that left anything; 0 when there is none.
    pub generation: u32,
    /// To be said: what was left out.
    pub notes: Vec<String>,
}

/// A state directory whose journals cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}: {1}")]
    Newer(String, Trouble),
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

impl LoadError {
    /// What failed, and why.
    pub fn into_parts(self) -> (String, io::Error) {
        match self {
            Self::Newer(name, trouble) => (name, io::Error::new(io::ErrorKind::InvalidData, trouble)),
            Self::Io(name, err) => (name, err),
        }
    }
}

/// The entries that earlier runs have recorded.
pub struct Base {
    file: Option<File>,
    table: Vec<Slot>,
    keys: RandomState,
}

/// 16 bytes an entry.
struct Slot {
    hash: u64,
    /// Offset of the item in the file, and above it whether this run has found the entry as it is recorded.
    at: AtomicU64,
}

const CONFIRMED: u64 = 1 << 62;
/// Two sources have the same path.
const TWICE: u64 = 1 << 63;
const OFFSET: u64 = CONFIRMED - 1;

impl Default for Base {
    fn default() -> Self {
        Self { file: None, table: Vec::new(), keys: RandomState::new() }
    }
}

impl Base {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The record of a path, and its number.
    ///
    /// # Errors
    /// The base cannot be read.
    pub fn find(&self, path: &RelPath, block: &mut Block) -> io::Result<Option<(u64, Encoded)>> {
        let Some(file) = &self.file else { return Ok(None) };
        for (number, slot) in self.candidates(path.as_bytes()) {
            let mut item = Encoded::default();
            block.at = slot.at.load(Ordering::Relaxed) & OFFSET;
            if item.read(&mut BlockReader { file, block })? && item.path() == path.as_bytes() {
                return Ok(Some((number as u64, item)));
            }
        }
        Ok(None)
    }

    /// The slots that a path may have, by their numbers; nearly always one at most.
    fn candidates(&self, path: &[u8]) -> impl Iterator<Item = (usize, &Slot)> {
        let hash = self.keys.hash_one(path);
        let first = first_of(&self.table, hash, |slot| slot.hash);
        self.table.iter().enumerate().skip(first).take_while(move |(_, slot)| slot.hash == hash)
    }

    /// The entry of this number is there as it is recorded. `None` when there is no such entry.
    pub fn confirm(&self, number: u64) -> Option<()> {
        let slot = self.table.get(usize::try_from(number).ok()?)?;
        if slot.at.fetch_or(CONFIRMED, Ordering::Relaxed) & CONFIRMED != 0 {
            slot.at.fetch_or(TWICE, Ordering::Relaxed);
        }
        Some(())
    }

    /// The entries that were confirmed, sorted by path.
    ///
    /// # Errors
    /// The base cannot be read.
    pub fn confirmed(&self) -> io::Result<Confirmed<'_>> {
        let any = self.table.iter().any(|slot| slot.at.load(Ordering::Relaxed) & CONFIRMED != 0);
        let streams = match &self.file {
            Some(file) if any => match reader::read(file.try_clone()?)? {
                Ok(found) => found.groups.into_streams().collect(),
                Err(trouble) => return Err(io::Error::new(io::ErrorKind::InvalidData, trouble)),
            },
            _ => Vec::new(),
        };
        Ok(Confirmed { base: self, streams: streams.into() })
    }

    /// Whether an item of the base is an entry that was confirmed, and whether twice.
    fn is_confirmed(&self, item: &Encoded, block: &mut Block) -> io::Result<(bool, bool)> {
        let slots: Vec<_> = self.candidates(item.path()).map(|(_, slot)| slot).take(2).collect();
        let slot = match slots.as_slice() {
            [] => return Ok((false, false)),
            // every entry of the base has a slot: the only one is its own
            [slot] => *slot,
            _ => {
                let Item::Entry(record) = item.decode()? else { return Ok((false, false)) };
                let Some((number, _)) = self.find(&record.path, block)? else { return Ok((false, false)) };
                &self.table[usize::try_from(number).expect("from the table")]
            }
        };
        let flags = slot.at.load(Ordering::Relaxed);
        Ok((flags & CONFIRMED != 0, flags & TWICE != 0))
    }
}

/// The entries of a base that were confirmed.
pub struct Confirmed<'a> {
    base: &'a Base,
    /// One after the other: they are sorted among themselves.
    streams: VecDeque<Stream>,
}

impl Confirmed<'_> {
    /// Puts the next entry in place of `item`; whether it was confirmed twice. `None` at the end.
    ///
    /// # Errors
    /// The base cannot be read.
    pub fn next(&mut self, item: &mut Encoded) -> io::Result<Option<bool>> {
        while let Some(stream) = self.streams.front_mut() {
            if !item.read(stream)? {
                self.streams.pop_front();
                continue;
            }
            if !item.is_entry() {
                continue;
            }
            if let (true, twice) = self.base.is_confirmed(item, &mut Block::default())? {
                return Ok(Some(twice));
            }
        }
        Ok(None)
    }
}

/// A part of a base in memory: the entries of one directory stand near each other.
#[derive(Default)]
pub struct Block {
    bytes: Vec<u8>,
    /// Offset of the bytes in the file.
    start: u64,
    /// Offset of what is read next.
    at: u64,
}

/// Bytes of a block.
const BLOCK_LEN: usize = 64 << 10;

struct BlockReader<'a> {
    file: &'a File,
    block: &'a mut Block,
}

impl io::Read for BlockReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Self { file, block } = self;
        let holds = |block: &Block| (block.start..block.start + block.bytes.len() as u64).contains(&block.at);
        if !holds(block) {
            block.bytes.resize(BLOCK_LEN, 0);
            // what comes a little before is as likely to be wanted next as what follows
            block.start = block.at.saturating_sub(BLOCK_LEN as u64 / 4);
            let got = file.read_at(&mut block.bytes, block.start).inspect_err(|_| block.bytes.clear())?;
            block.bytes.truncate(got);
            if !holds(block) {
                return Ok(0);
            }
        }
        let from = usize::try_from(block.at - block.start).expect("within a block");
        let len = into.len().min(block.bytes.len() - from);
        into[..len].copy_from_slice(&block.bytes[from..from + len]);
        block.at += len as u64;
        Ok(len)
    }
}

/// Writes a base.
pub struct BaseWriter {
    dir: OwnedFd,
    file: BufWriter<File>,
    /// Of the group that is not written yet.
    items: Vec<u8>,
    count: u64,
    /// Bytes written.
    at: u64,
}

impl BaseWriter {
    /// Begins the base of a job's runs up to the header's generation, under another name.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub fn create(dir: OwnedFd, header: Header) -> io::Result<Self> {
        let file = File::from(create_new(dir.as_fd(), NEW_NAME, 0o600)?);
        let mut file = BufWriter::with_capacity(256 << 10, file);
        let header = Header { rank: 0, ..header }.encode();
        file.write_all(&header)?;
        Ok(Self { dir, file, items: Vec::new(), count: 0, at: header.len() as u64 })
    }

    /// Adds an item; they come sorted by path. Returns its offset.
    fn push(&mut self, item: &[u8]) -> io::Result<u64> {
        let offset = self.at + (GROUP_HEADER_LEN + self.items.len()) as u64;
        self.items.extend_from_slice(item);
        self.count += 1;
        if self.items.len() >= GROUP_LEN {
            self.end_group()?;
        }
        Ok(offset)
    }

    /// Adds so many encoded entries, which a later run [can leave](can_be_left) as they are; they come sorted by path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn entries(&mut self, items: &[u8], count: u64) -> io::Result<()> {
        self.items.extend_from_slice(items);
        self.count += count;
        if self.items.len() >= GROUP_LEN { self.end_group() } else { Ok(()) }
    }

    fn end_group(&mut self) -> io::Result<()> {
        if self.count > 0 {
            self.at += write_group(&mut self.file, self.count, &self.items)?;
            self.items.clear();
            self.count = 0;
        }
        Ok(())
    }

    /// Makes the base durable and gives it its name.
    ///
    /// # Errors
    /// The file cannot be written, made durable or renamed.
    pub fn finish(mut self) -> io::Result<()> {
        self.end_group()?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        close(file.into())?;
        rename(self.dir.as_fd(), NEW_NAME, NAME)?;
        Ok(sync_dir(self.dir.as_fd())?)
    }

    /// Takes back what was written.
    pub fn abandon(self) {
        // nobody reads it under this name, and the next run removes it
        let _ = remove_file(self.dir.as_fd(), NEW_NAME);
    }
}

/// Whether a later run can leave an entry as it is: what failed or was not pcopy's is done again.
pub fn can_be_left(record: &Record) -> bool {
    match &record.outcome {
        Outcome::Done(facts) => facts.fate.kept().is_none() && !facts.unkept.has(Loss::SPECIAL),
        Outcome::Failed(_) => false,
    }
}

/// Where the slots of a hash begin, or would. Hashes are evenly spread: the place is guessed, and looked for around the
/// guess, where halving the whole table would miss the cache at every step.
pub(super) fn first_of<T>(sorted: &[T], hash: u64, hash_of: impl Fn(&T) -> u64) -> usize {
    let len = sorted.len();
    let guess = usize::try_from((u128::from(hash) * len as u128) >> 64).expect("below the length");
    // of random hashes the guess is rarely farther off
    let mut step = len.isqrt().max(1);
    let mut low = guess.saturating_sub(step);
    let mut high = (guess + step).min(len);
    while low > 0 && hash_of(&sorted[low]) >= hash {
        step *= 2;
        low = guess.saturating_sub(step);
    }
    while high < len && hash_of(&sorted[high]) < hash {
        step *= 2;
        high = (guess + step).min(len);
    }
    low + sorted[low..high].partition_point(|slot| hash_of(slot) < hash)
}

fn is_journal(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes()) && !is_left_behind(name)
}

/// Files that a killed run was still writing, and nobody will read.
fn is_left_behind(name: &[u8]) -> bool {
    name == NEW_NAME || (name.starts_with(PREFIX.as_bytes()) && name.windows(4).any(|part| part == b".run"))
}

/// Whether a name in the state directory is that of a journal, of the base, or of a file that becomes one.
pub fn is_own_name(name: &[u8]) -> bool {
    is_journal(name) || is_left_behind(name) || name == NAME
}

/// The jobs whose journals or base are in a state directory, as far as they can be read.
///
/// # Errors
/// The directory cannot be listed.
pub fn jobs_in(dir: &OwnedFd) -> io::Result<BTreeSet<u64>> {
    let names = names_in(dir.as_fd())?;
    let headers = names.iter().filter(|name| is_own_name(name)).filter_map(|name| {
        let mut header = [0; HEADER_LEN];
        let file = File::from(open_read(dir.as_fd(), name, Reading::default()).ok()?);
        file.read_exact_at(&mut header, 0).ok()?;
        Header::decode(&header).ok()
    });
    Ok(headers.map(|header| header.job_id).collect())
}

/// Removes all journals and the base: what the manifest or a base holds, or what is not to be used.
///
/// # Errors
/// A name, and why it cannot be removed.
pub fn remove_journals(dir: &OwnedFd, and_base: bool) -> Result<(), LoadError> {
    let all = names_in(dir.as_fd()).map_err(|err| LoadError::Io(".".into(), err.into()))?;
    let old = all.iter().filter(|name| is_journal(name) || is_left_behind(name) || (and_base && *name == NAME));
    for name in old {
        remove_file(dir.as_fd(), name).map_err(|err| LoadError::Io(escaped(name), err.into()))?;
    }
    Ok(())
}

/// Reads what earlier runs of the job have left in its state directory, and merges it into one base.
///
/// # Errors
/// A file that was written by a newer pcopy, or cannot be read; a base that cannot be written.
pub fn load(dir: &OwnedFd, job_id: u64) -> Result<Loaded, LoadError> {
    let mut notes = Vec::new();
    let mut base = None;
    let mut journals = Vec::new();
    for name in names_in(dir.as_fd()).map_err(|err| LoadError::Io(".".into(), err.into()))? {
        let shown = escaped(&name);
        let failed = |err: io::Error| LoadError::Io(escaped(&name), err);
        if is_left_behind(&name) {
            remove_file(dir.as_fd(), &name).map_err(|err| failed(err.into()))?;
        }
        if name != NAME && !is_journal(&name) {
            continue;
        }
        let file = File::from(open_read(dir.as_fd(), &name, Reading::default()).map_err(|err| failed(err.into()))?);
        match reader::read(file).map_err(failed)? {
            Ok(found) if found.header.job_id == job_id => {
                if found.damaged > 0 || (found.torn && name == NAME) {
                    notes.push(format!("{shown} is damaged: what stood there is copied again"));
                }
                if name == NAME { base = Some(found) } else { journals.push(found) }
            }
            Ok(_) | Err(Trouble::Foreign) => notes.push(format!("{shown} is not one of this job's journals: not used")),
            Err(trouble @ Trouble::Newer(_)) => return Err(LoadError::Newer(shown, trouble)),
        }
    }
    journals.sort_by_key(|found| found.header.generation);
    let merged_to = base.as_ref().map_or(0, |base| base.header.generation);
    let last = journals.last().map_or(0, |found| found.header.generation).max(merged_to);
    journals.retain(|found| found.header.generation > merged_to);
    let name = escaped(NAME);
    let failed = |err| LoadError::Io(name.clone(), err);
    let mut loader = Loader::default();
    if journals.is_empty() {
        if let Some(found) = base {
            loader.read(found.groups).map_err(failed)?;
        }
    } else {
        let groups = base.into_iter().chain(journals).map(|found| found.groups).collect();
        let header = Header { job_id, generation: last, rank: 0, ranks: 1 };
        loader.merge(dir, groups, header).map_err(failed)?;
    }
    remove_journals(dir, false)?;
    let file = match open_read(dir.as_fd(), NAME, Reading::default()) {
        Ok(file) => Some(File::from(file)),
        Err(crate::sys::Errno::ENOENT) => None,
        Err(err) => return Err(failed(err.into())),
    };
    loader.table.sort_unstable_by_key(|slot| slot.hash);
    let base = Base { file, table: loader.table, keys: loader.keys };
    Ok(Loaded { base, partials: loader.partials, generation: last, notes })
}

#[derive(Default)]
struct Loader {
    table: Vec<Slot>,
    keys: RandomState,
    partials: Partials,
}

impl Loader {
    /// Enters an item that stands at `offset` of the base.
    fn enter(&mut self, item: &Encoded, offset: u64) -> io::Result<()> {
        if item.is_entry() {
            self.table.push(Slot { hash: self.keys.hash_one(item.path()), at: AtomicU64::new(offset) });
        } else if let Item::Range(range) = item.decode()? {
            let new = || Unfinished { partial: range.partial, done: Vec::new() };
            self.partials.entry(range.path).or_insert_with(new).done.push((range.index, range.value));
        }
        Ok(())
    }

    fn reserve(&mut self, items: u64) {
        self.table.reserve_exact(usize::try_from(items).unwrap_or(0));
    }

    /// Takes the base as it is.
    fn read(&mut self, groups: Groups) -> io::Result<()> {
        self.reserve(groups.item_count());
        groups.for_each(|item, offset| self.enter(item, offset))
    }

    /// Writes the base of everything, oldest first.
    fn merge(&mut self, dir: &OwnedFd, groups: Vec<Groups>, header: Header) -> io::Result<()> {
        self.reserve(groups.iter().map(Groups::item_count).sum());
        let streams = groups.into_iter().flat_map(Groups::into_streams).collect();
        let mut writer = BaseWriter::create(dir.try_clone()?, header)?;
        let mut of_path = OfPath::default();
        let merged = Merged::of_many(streams, Some(dir), format!("{PREFIX}merge").as_bytes());
        let written = merged.and_then(|mut merged| {
            let mut item = Encoded::default();
            while merged.next(&mut item)? {
                if of_path.path.as_bytes() != item.path() {
                    self.write(&mut writer, &mut of_path)?;
                }
                of_path.push(item.decode()?);
            }
            self.write(&mut writer, &mut of_path)
        });
        match written {
            Ok(()) => writer.finish(),
            Err(err) => {
                writer.abandon();
                Err(err)
            }
        }
    }

    /// Writes what counts of all that is recorded of one path, and forgets it.
    fn write(&mut self, writer: &mut BaseWriter, of_path: &mut OfPath) -> io::Result<()> {
        let OfPath { path, items } = std::mem::take(of_path);
        for mut item in what_counts(items) {
            *item.path_mut() = path.clone();
            let item = Encoded::of(&item);
            let offset = writer.push(item.bytes())?;
            self.enter(&item, offset)?;
        }
        Ok(())
    }
}

/// The records of one path, oldest first. The items do not hold the path: one file may have a million names.
#[derive(Default)]
struct OfPath {
    path: RelPath,
    items: Vec<Item>,
}

impl OfPath {
    fn push(&mut self, mut item: Item) {
        self.path = std::mem::take(item.path_mut());
        self.items.push(item);
    }
}

/// Of the items of one path, oldest first: the last entry, and the ranges after it that are of one copy with the last.
fn what_counts(items: Vec<Item>) -> impl Iterator<Item = Item> {
    let last_entry = items.iter().rposition(|item| matches!(item, Item::Entry(_)));
    let last_partial = items.last().and_then(|item| match item {
        Item::Range(range) => Some(range.partial),
        Item::Entry(_) => None,
    });
    items.into_iter().enumerate().filter_map(move |(index, item)| {
        let counts = match &item {
            Item::Entry(record) => Some(index) == last_entry && can_be_left(record),
            Item::Range(range) => Some(range.partial) == last_partial && last_entry.is_none_or(|entry| index > entry),
        };
        counts.then_some(item)
    })
}

impl Groups {
    /// Calls `each` with every item and its offset, group after group.
    ///
    /// # Errors
    /// The file cannot be read; those of `each`.
    pub(super) fn for_each(self, mut each: impl FnMut(&Encoded, u64) -> io::Result<()>) -> io::Result<()> {
        let (mut file, spans) = self.into_spans();
        let mut item = Encoded::default();
        for (offset, len) in spans {
            watch::goes_on();
            file.seek(SeekFrom::Start(offset))?;
            let mut items = BufReader::with_capacity(256 << 10, &file);
            let (mut at, end) = (offset, offset + len);
            while at < end {
                if !item.read(&mut items)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                each(&item, at)?;
                at += item.bytes().len() as u64;
            }
        }
        Ok(())
    }
}

const _: () = assert!(size_of::<Slot>() == 16);
