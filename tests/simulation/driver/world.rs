//! The simulated ranks: when they are done with what they were given, what they report, and whether each entry and each
//! range ends exactly once.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use pcopy::proto::{FinishedDir, LargeFile, Listing, Message, Names, Owned, Report, Returned, Task, TaskResult};
use pcopy::types::{Failure, Kind, LinkId, Op, RelPath, Side, Temporary};

use super::storage::Latencies;
use super::tree::{Fate, NAMES_OF_LINKED, Tree, Trouble, dir_of, facts, identity, number_of};
use super::{Nanos, Setup};

pub struct World {
    tree: Tree,
    latencies: Latencies,
    storage: super::Storage,
    latency: Nanos,
    threads: usize,
    /// When each thread, rank by rank, will have done what it was given.
    free_at: Vec<Nanos>,
    slowness: Vec<u64>,
    /// Nanoseconds that all threads have worked.
    pub worked: u64,
    /// Reports on their way: when they arrive, in which order they were made, of which work.
    reports: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    running: Vec<Option<Running>>,
    unused: Vec<usize>,
    sent: u64,
    ended: Bits,
    ended_count: u64,
    pub failed: u64,
    /// Entries of each directory that have not ended; its own end takes it to `None`.
    open: Vec<Option<u64>>,
    large: HashMap<u64, LargeState>,
    pub items: u64,
}

struct Running {
    rank: usize,
    id: u64,
    tasks: Vec<Task>,
}

/// One attempt to copy a large file.
struct LargeState {
    attempt: u8,
    done: Bits,
    left: u64,
    spoilt: bool,
}

struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u64) -> Self {
        Self(vec![0; usize::try_from(count.div_ceil(64)).expect("fits memory")])
    }

    /// Whether it was not set before.
    fn set(&mut self, index: u64) -> bool {
        let word = &mut self.0[usize::try_from(index / 64).expect("fits memory")];
        let bit = 1 << (index % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

fn failure(op: Op, side: Side) -> Failure {
    Failure { op, side, errno: libc::EIO }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("fits memory")
}

impl World {
    pub fn new(setup: &Setup) -> Self {
        let threads = setup.threads as usize;
        let tree = &setup.tree;
        let open = |dir| Some(tree.files_per_dir + tree.subdirs(dir).count() as u64);
        Self {
            latencies: Latencies::new(&setup.storage, setup.seed),
            storage: setup.storage.clone(),
            latency: setup.latency,
            threads,
            free_at: vec![0; setup.ranks * threads],
            slowness: (0..setup.ranks).map(|rank| setup.storage.slowness_of(rank)).collect(),
            worked: 0,
            reports: BinaryHeap::new(),
            running: Vec::new(),
            unused: Vec::new(),
            sent: 0,
            ended: Bits::new(tree.files()),
            ended_count: 0,
            failed: 0,
            open: (0..tree.dirs).map(open).collect(),
            large: HashMap::new(),
            items: 0,
            tree: tree.clone(),
        }
    }

    /// A message leaves rank 0 for a rank.
    pub fn send(&mut self, now: Nanos, rank: usize, frame: &[u8]) {
        let Ok(Message::Work { id, tasks }) = Message::decode(frame) else { panic!("not work") };
        let duration = tasks.iter().map(|task| self.duration(task)).sum::<Nanos>() * self.slowness[rank];
        let threads = &mut self.free_at[rank * self.threads..(rank + 1) * self.threads];
        let thread = threads.iter_mut().min().expect("a rank has a thread");
        let start = (*thread).max(now + self.latency);
        *thread = start + duration;
        self.worked += duration;
        let done = *thread;
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.running.push(None);
            self.running.len() - 1
        });
        self.running[slot] = Some(Running { rank, id, tasks });
        self.reports.push(Reverse((done + self.latency, self.sent, slot)));
        self.sent += 1;
    }

    /// When the next report arrives.
    pub fn next_arrival(&self) -> Option<Nanos> {
        self.reports.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next report that has arrived by now: its rank and its frame.
    pub fn arrived(&mut self, now: Nanos) -> Option<(usize, Vec<u8>)> {
        let Reverse((at, _, slot)) = *self.reports.peek()?;
        if at > now {
            return None;
        }
        self.reports.pop();
        self.unused.push(slot);
        let Running { rank, id, tasks } = self.running[slot].take().expect("a report is of running work");
        let mut report = Report { id, ..Report::default() };
        for task in tasks {
            let result = self.execute(task, &mut report);
            report.results.push(result);
        }
        report.failures.truncate(pcopy::proto::MAX_SHOWN_FAILURES);
        Some((rank, Message::Report(Box::new(report)).encode().expect("a report fits a frame")))
    }

    /// From when on some thread has nothing more to do.
    pub fn first_idle(&self) -> Nanos {
        self.free_at.iter().copied().min().unwrap_or(0)
    }

    fn draw(&mut self, count: usize) -> Nanos {
        (0..count).map(|_| self.latencies.draw()).sum()
    }

    fn duration(&mut self, task: &Task) -> Nanos {
        match task {
            Task::List { keep, .. } => {
                let kept = self.tree.files_per_dir.min(u64::from(*keep));
                self.draw(1 + index(kept)) + self.storage.transfer(kept * self.tree.size)
            }
            Task::Entries { dir, names, .. } => {
                let first = dir_of(dir) * self.tree.files_per_dir;
                let bytes = |name| {
                    let size = self.tree.size_of(first + number_of(name));
                    if size > self.tree.range_len { 0 } else { size }
                };
                let transfer = match self.tree.huge {
                    None => bytes(b"file-00000001.dat") * names.len() as u64,
                    Some(_) => names.iter().map(|(name, _)| bytes(name)).sum(),
                };
                self.draw(names.len()) + self.storage.transfer(transfer)
            }
            Task::Known { entries, .. } => self.draw(entries.len()) / 4,
            Task::Range { file, .. } => self.draw(1) + self.storage.transfer(file.range_len),
            Task::Links { paths, .. } => self.draw(paths.len()),
            Task::FinishDirs { dirs, .. } => self.draw(dirs.len()),
            Task::Owner { .. } | Task::FinishFile { .. } | Task::Abandon { .. } => self.draw(1),
        }
    }

    fn entry_of(&self, path: &RelPath) -> u64 {
        let (dir, name) = path.split().expect("not the root");
        dir_of(&dir) * self.tree.files_per_dir + number_of(name)
    }

    fn end(&mut self, entry: u64, report: &mut Report, failed: bool) {
        assert!(self.ended.set(entry), "entry {entry} ended twice");
        self.ended_count += 1;
        if failed {
            self.failed += 1;
            report.ended.errors += 1;
            report.failures.push((RelPath::root(), failure(Op::Open, Side::Source)));
        } else {
            report.ended.files += 1;
            report.bytes_moved += self.tree.size_of(entry);
        }
        let dir = entry / self.tree.files_per_dir;
        *self.open[index(dir)].as_mut().expect("a directory ends after its entries") -= 1;
    }

    /// Lists a directory, and copies the last `keep` entries of it.
    fn list(&mut self, path: &RelPath, keep: u64, report: &mut Report) -> TaskResult {
        let (dir, all) = (dir_of(path), self.tree.files_per_dir);
        let kept = keep.min(all);
        self.items += kept;
        let tried: Vec<_> = super::tree::names(all - kept..all)
            .iter()
            .filter_map(|(name, _)| self.try_entry((path, name), dir * all + number_of(name), report))
            .collect();
        let mut subdirs = Names::default();
        self.tree.subdirs(dir).for_each(|sub| subdirs.push(&super::tree::name_of_dir(sub), Kind::Dir));
        let rest = super::tree::names(0..all - kept);
        TaskResult::Listed(Box::new(Listing { subdirs, kept, returned: tried, rest, ..Listing::default() }))
    }

    fn execute(&mut self, task: Task, report: &mut Report) -> TaskResult {
        match task {
            Task::List { dir, keep, .. } => self.list(&dir, keep.into(), report),
            Task::Entries { dir, names, .. } => {
                self.items += names.len() as u64;
                let first = dir_of(&dir) * self.tree.files_per_dir;
                let names = names.iter();
                let tried = names.filter_map(|(name, _)| self.try_entry((&dir, name), first + number_of(name), report));
                TaskResult::Returned(tried.collect())
            }
            Task::Known { dir, entries, .. } => {
                self.items += entries.len() as u64;
                let first = dir_of(&dir) * self.tree.files_per_dir;
                let mut confirmed = Vec::new();
                for known in entries {
                    let entry = first + number_of(&known.name);
                    confirmed.push(known.entry.expect("all are recorded").number);
                    self.end(entry, report, false);
                }
                TaskResult::Known { confirmed, returned: Vec::new() }
            }
            Task::Owner { path, attempt, .. } => {
                let entry = self.entry_of(&path);
                TaskResult::Owned(Box::new(match self.tree.fate(entry) {
                    Fate::Large(size, _) => Owned::Large(self.begin_large(entry, path, size, attempt)),
                    _ => {
                        self.end(entry, report, false);
                        Owned::Copied(facts(self.tree.size_of(entry)))
                    }
                }))
            }
            Task::Range { file, index } => {
                self.items += 1;
                self.copy_range(&file, index, report)
            }
            Task::FinishFile { file, digest, .. } => {
                assert!(digest.is_some(), "digests are on");
                self.finish_file(&file, report)
            }
            Task::Abandon { file, failure } => {
                let entry = self.entry_of(&file.path);
                assert!(self.large.remove(&entry).is_some_and(|state| state.spoilt));
                if failure.is_some() {
                    self.end(entry, report, true);
                }
                TaskResult::Ended
            }
            Task::Links { owner, paths, .. } => self.make_links(&owner, paths, report),
            Task::FinishDirs { dirs, .. } => {
                for dir in &dirs {
                    self.finish_dir(dir, report);
                }
                TaskResult::Dirs { confirmed: Vec::new() }
            }
        }
    }

    fn try_entry(&mut self, (dir, name): (&RelPath, &[u8]), entry: u64, report: &mut Report) -> Option<Returned> {
        match self.tree.fate(entry) {
            Fate::Small => self.end(entry, report, false),
            Fate::Fails => self.end(entry, report, true),
            Fate::Large(size, _) => return Some(Returned::Large(self.begin_large(entry, dir.join(name), size, 0))),
            Fate::Linked(group) => {
                return Some(Returned::Linked {
                    path: dir.join(name),
                    kind: Kind::File,
                    id: LinkId { dev: 1, ino: group },
                    identity: identity(self.tree.size_of(entry)),
                    names: NAMES_OF_LINKED,
                    there: None,
                });
            }
        }
        None
    }

    fn begin_large(&mut self, entry: u64, path: RelPath, size: u64, attempt: u8) -> LargeFile {
        let range_len = self.tree.range_len_of(size);
        let count = size.div_ceil(range_len);
        let state = LargeState { attempt, done: Bits::new(count), left: count, spoilt: false };
        assert!(self.large.insert(entry, state).is_none(), "entry {entry} is begun twice");
        LargeFile {
            source: 0,
            path,
            identity: identity(size),
            atime: identity(size).mtime,
            sparse: false,
            range_len,
            temporary: Temporary { generation: 1, attempt },
            found: false,
        }
    }

    fn copy_range(&mut self, file: &LargeFile, range: u64, report: &mut Report) -> TaskResult {
        let entry = self.entry_of(&file.path);
        let state = self.large.get_mut(&entry).expect("ranges are of files that were begun");
        let attempt = state.attempt;
        assert_eq!(attempt, file.temporary.attempt, "a range of an attempt that is over");
        assert!(state.done.set(range), "range {range} of entry {entry} is copied twice");
        state.left -= 1;
        let Fate::Large(_, trouble) = self.tree.fate(entry) else { panic!("entry {entry} is not large") };
        let result = match trouble {
            Trouble::Changes(times) if range == 0 && attempt < times => TaskResult::Changed,
            Trouble::Lost(times) if range == 3 && attempt < times => {
                TaskResult::Lost(failure(Op::Fsync, Side::Destination))
            }
            Trouble::RangeFails if range == 1 => TaskResult::RangeFailed(failure(Op::Read, Side::Source)),
            _ => {
                report.bytes_moved += file.range_len;
                let mut value = [0; 32];
                value[..8].copy_from_slice(&(entry ^ (range << 40)).to_le_bytes());
                return TaskResult::Range(Some(value));
            }
        };
        state.spoilt = true;
        result
    }

    fn finish_file(&mut self, file: &LargeFile, report: &mut Report) -> TaskResult {
        let entry = self.entry_of(&file.path);
        let state = self.large.get_mut(&entry).expect("a file was begun");
        assert!(state.left == 0 && !state.spoilt, "entry {entry} is finished without all of its ranges");
        match self.tree.fate(entry) {
            Fate::Large(_, Trouble::ChangesLate(times)) if state.attempt < times => {
                state.spoilt = true;
                TaskResult::Changed
            }
            _ => {
                self.large.remove(&entry);
                self.end(entry, report, false);
                TaskResult::Owned(Box::new(Owned::Copied(facts(file.identity.size))))
            }
        }
    }

    fn make_links(&mut self, owner: &RelPath, paths: Vec<RelPath>, report: &mut Report) -> TaskResult {
        let owner = self.entry_of(owner);
        assert!(!self.ended.set(owner), "links follow their owner");
        let mut back = Vec::new();
        for path in paths {
            let entry = self.entry_of(&path);
            assert_eq!(self.tree.fate(entry), self.tree.fate(owner), "a name of another file");
            if self.tree.is_unlinkable(entry) {
                back.push(Returned::Unlinkable { path, kind: Kind::File });
            } else {
                self.end(entry, report, false);
            }
        }
        TaskResult::Returned(back)
    }

    fn finish_dir(&mut self, dir: &FinishedDir, report: &mut Report) {
        let number = dir_of(&dir.path);
        assert_eq!(self.open[index(number)].take(), Some(0), "directory {number} ends before what is in it");
        report.ended.dirs += 1;
        self.ended_count += 1;
        if let Some(parent) = self.tree.parent(number) {
            *self.open[index(parent)].as_mut().expect("a directory ends after what is in it") -= 1;
        }
    }

    /// That everything has ended, each once.
    pub fn check(&self) {
        let tree = &self.tree;
        assert_eq!(self.ended_count, tree.entries(), "entries that ended");
        assert!(self.large.is_empty() && self.reports.is_empty(), "something is under way");
        assert!(self.open.iter().all(Option::is_none), "a directory has not ended");
        let is_all_fine = tree.faults.fail + tree.faults.large + tree.faults.trouble == 0;
        let failing = if is_all_fine { 0 } else { (0..tree.files()).filter(|&entry| tree.fails(entry)).count() as u64 };
        assert_eq!(self.failed, failing, "entries that failed");
    }
}
