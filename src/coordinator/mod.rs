//! Who does what: the state machine of rank 0, without I/O, clock and threads.
//!
//! Takes what the scan finds and what ranks report ([`Coordinator::scan`], [`Coordinator::report`]), and
//! gives out work on demand ([`Coordinator::next_work`]). Every entry that the scan saw is in exactly one place:
//! queued, assigned, waiting for its file's ranges or its owner, or ended. The loop around it is `op::lead`.

mod checks;
mod large;
mod links;
mod queue;
mod ranks;
mod reports;
mod shelf;
mod work;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use large::LargeFiles;
use links::{Links, Member};
use queue::{Batch, Queue};
use ranks::Ranks;
pub use shelf::Store;

use crate::journal::Partials;
use crate::proto::{DirBefore, KnownEntry, Task};
use crate::scan::{DirId, Lent, ScanEvent};
use crate::types::{DirPath, Failure, RelPath, Stats};

/// Names that wait for a rank, at most, before the scan has to wait: so many, or for many threads so many a thread.
const MAX_QUEUED_NAMES: usize = 128 << 10;
const MAX_QUEUED_NAMES_A_THREAD: usize = 128;
/// Bytes of them, at most; and, apart from these, of names that wait for another name of their file.
const MAX_QUEUED_LEN: usize = 8 << 20;
const MAX_QUEUED_LEN_A_THREAD: usize = 8 << 10;
/// Other tasks that wait, at most, before the scan has to wait.
const MAX_QUEUED_TASKS: usize = 16 << 10;
const MAX_QUEUED_TASKS_A_THREAD: usize = 2;

/// The state of the job on rank 0.
pub struct Coordinator {
    dirs: HashMap<DirId, Dir>,
    queue: Queue,
    finished_dirs: VecDeque<DirId>,
    /// Entries to be copied without regard to their other names, which others wait for.
    alone: VecDeque<Member>,
    large: LargeFiles,
    /// What earlier runs have copied of large files.
    partials: Arc<Partials>,
    links: Links,
    ranks: Ranks,
    halted: bool,
    assigned: HashMap<u64, Assigned>,
    /// Directories that ranks have listed, which the scan has to hear of.
    listed: Vec<Elsewhere>,
    /// Directories that ranks list now, and all that they were ever given.
    lent: usize,
    lent_ever: u64,
    next_id: u64,
    scan_ended: bool,
    seen: u64,
    excluded: u64,
    retries: u64,
    ended: Stats,
    bytes_moved: u64,
}

/// A directory between its listing and its end.
struct Dir {
    parent: Option<DirId>,
    source: u16,
    path: DirPath,
    /// Not an entry of the copy: it only holds a source that is one.
    is_holder: bool,
    /// Entries seen minus entries ended; below zero when a subdirectory ends before its listing is reported.
    open_entries: i64,
    listed: bool,
    before: Option<DirBefore>,
    recorded: Option<KnownEntry>,
    failure: Option<Failure>,
    /// A private directory was made in it.
    private: bool,
}

/// What an assignment is for, and who has it.
struct Assigned {
    rank: usize,
    purposes: Vec<Purpose>,
}

/// What an assigned task is for: what its result means.
enum Purpose {
    /// `known` are the numbers of those that earlier runs have recorded.
    Entries {
        dir: DirId,
        source: u16,
        count: u64,
        known: Vec<u64>,
    },
    Owner(Member),
    Range {
        file: u64,
        index: u64,
    },
    Finish {
        file: u64,
    },
    Abandon {
        file: u64,
    },
    Links(Vec<Member>),
    /// Directories, and the numbers of those that earlier runs have recorded.
    Dirs(Vec<DirId>, Vec<u64>),
    List {
        lent: Lent,
        keep: u32,
    },
}

impl Purpose {
    /// How much the rank has done, in names, about.
    fn size(&self) -> usize {
        match self {
            Self::Entries { count, .. } => usize::try_from(*count).unwrap_or(usize::MAX),
            // 16 MiB at 1 GiB/s, against 1 ms
            Self::Range { .. } => 16,
            Self::Owner(_) | Self::Finish { .. } | Self::Abandon { .. } => 1,
            Self::List { keep, .. } => 1 + *keep as usize,
            Self::Links(members) => members.len(),
            Self::Dirs(ids, _) => ids.len(),
        }
    }
}

/// What became of a directory that a rank was to list.
#[derive(Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// It was listed; these are the directories in it, with its number and source. If it was not entered, its path.
    Listed { below: Vec<(DirId, u16, DirPath)>, left_alone: Option<RelPath> },
    /// The scan has to list it.
    TooLong(Lent),
}

/// Work for a rank.
#[derive(Debug, PartialEq, Eq)]
pub struct Assignment {
    pub rank: usize,
    pub id: u64,
    pub tasks: Vec<Task>,
}

/// How far the job is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Entries that the scan has seen.
    pub seen: u64,
    pub scan_ended: bool,
    /// Entries that the user left out.
    pub excluded: u64,
    /// Operations of the scan that were tried again.
    pub retries: u64,
    /// Entries that have ended.
    pub ended: Stats,
    /// Bytes of file data moved, of unfinished files too.
    pub bytes_moved: u64,
    /// Assignments that ranks work on.
    pub in_flight: usize,
    /// Directories that ranks were given to list.
    pub lent: u64,
}

/// A message that this state cannot have led to: a defect, or a foreign rank.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CoordinatorError {
    #[error("rank {rank} reported assignment {id}, which it does not have")]
    UnknownAssignment { rank: usize, id: u64 },
    #[error("rank {rank} reported assignment {id} with results that do not fit its tasks")]
    WrongResult { rank: usize, id: u64 },
}

impl Coordinator {
    /// For ranks with this many I/O threads each; of large files there may be ranges already.
    pub fn new(threads: &[u32], digest: bool, partials: Arc<Partials>) -> Self {
        Self {
            dirs: HashMap::new(),
            queue: Queue::default(),
            finished_dirs: VecDeque::new(),
            alone: VecDeque::new(),
            large: LargeFiles::new(digest),
            partials,
            halted: false,
            links: Links::default(),
            ranks: Ranks::new(threads),
            assigned: HashMap::new(),
            listed: Vec::new(),
            lent: 0,
            lent_ever: 0,
            next_id: 0,
            scan_ended: false,
            seen: 0,
            excluded: 0,
            retries: 0,
            ended: Stats::default(),
            bytes_moved: 0,
        }
    }

    /// Files that wait for another name of theirs are kept in this store when they are many.
    pub fn keep_in(&mut self, store: Box<dyn Store>) {
        self.links.keep_in(store);
    }

    /// Whether there is room for what the scan finds. While not, its events are left in the channel.
    pub fn wants_scan(&self) -> bool {
        let threads = self.ranks.threads();
        let max_len = MAX_QUEUED_LEN.max(MAX_QUEUED_LEN_A_THREAD * threads);
        self.queue.len() < self.max_queued_names()
            && self.queue.byte_len() < max_len
            && self.links.waiting_len() < max_len
            && self.finished_dirs.len() + self.alone.len() + self.large.len()
                < MAX_QUEUED_TASKS.max(MAX_QUEUED_TASKS_A_THREAD * threads)
    }

    fn max_queued_names(&self) -> usize {
        MAX_QUEUED_NAMES.max(MAX_QUEUED_NAMES_A_THREAD * self.ranks.threads())
    }

    /// Takes what the scan found.
    pub fn scan(&mut self, event: ScanEvent) {
        match event {
            ScanEvent::Dir { id, parent, source, path } => {
                self.seen += 1;
                self.add_dir(id, Dir { parent, ..Dir::new(source, path) });
            }
            ScanEvent::Single { id, source, path } => {
                self.add_dir(id, Dir { is_holder: true, ..Dir::new(source, path) })
            }
            ScanEvent::Names { dir, names } => {
                self.seen += names.len() as u64;
                self.dir_mut(dir).open_entries += signed(names.len() as u64);
                self.queue.push(dir, Batch::Names(names));
            }
            ScanEvent::Known { dir, entries } => {
                self.seen += entries.len() as u64;
                self.dir_mut(dir).open_entries += signed(entries.len() as u64);
                self.queue.push(dir, Batch::Known(entries));
            }
            ScanEvent::Listed { dir, subdirs, excluded, before, recorded, failure, retries } => {
                self.excluded = self.excluded.saturating_add(excluded);
                self.retries = self.retries.saturating_add(retries);
                let state = self.dir_mut(dir);
                state.listed = true;
                state.before = before;
                state.recorded = recorded;
                state.failure = failure;
                state.open_entries += signed(subdirs);
                self.finish_if_empty(dir);
            }
            ScanEvent::StateSkipped { .. } | ScanEvent::IncompleteBelow { .. } | ScanEvent::NotEntered { .. } => {}
        }
    }

    /// The scan's channel has ended.
    pub fn scan_ended(&mut self) {
        self.scan_ended = true;
        self.ranks.ends_soon();
    }

    /// The path of a directory that has not ended.
    pub fn dir_path(&self, id: DirId) -> Option<RelPath> {
        self.dirs.get(&id).map(|dir| dir.path.to_path())
    }

    /// Gives out no more work: what is assigned ends, or is broken off.
    pub fn halt(&mut self) {
        self.halted = true;
    }

    /// Whether no rank has anything of what was given out before the halt.
    pub fn is_halted(&self) -> bool {
        self.halted && self.assigned.is_empty()
    }

    fn add_dir(&mut self, id: DirId, dir: Dir) {
        let before = self.dirs.insert(id, dir);
        debug_assert!(before.is_none());
    }

    fn dir_mut(&mut self, id: DirId) -> &mut Dir {
        self.dirs.get_mut(&id).expect("a directory stays until all in it has ended")
    }

    fn entries_ended(&mut self, dir: DirId, count: u64) {
        self.dir_mut(dir).open_entries -= signed(count);
        self.finish_if_empty(dir);
    }

    fn finish_if_empty(&mut self, id: DirId) {
        let dir = self.dir_mut(id);
        if !dir.listed || dir.open_entries != 0 {
            return;
        }
        if dir.is_holder {
            self.dirs.remove(&id);
        } else {
            self.finished_dirs.push_back(id);
        }
    }

    /// Whether every entry has ended.
    pub fn is_finished(&self) -> bool {
        self.scan_ended
            && self.dirs.is_empty()
            && self.assigned.is_empty()
            && self.alone.is_empty()
            && self.large.len() == 0
    }

    /// For the display.
    pub fn progress(&self) -> Progress {
        Progress {
            seen: self.seen,
            scan_ended: self.scan_ended,
            excluded: self.excluded,
            retries: self.retries,
            ended: self.ended,
            bytes_moved: self.bytes_moved,
            in_flight: self.assigned.len(),
            lent: self.lent_ever,
        }
    }
}

impl Dir {
    fn new(source: u16, path: DirPath) -> Self {
        Self {
            parent: None,
            source,
            path,
            is_holder: false,
            open_entries: 0,
            listed: false,
            before: None,
            recorded: None,
            failure: None,
            private: false,
        }
    }
}

/// The whole path of a name, whose directory has not ended.
fn path_of(dirs: &HashMap<DirId, Dir>, member: &Member) -> RelPath {
    dirs[&member.dir].path.path_of(&member.name)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).expect("fewer than 2^63 entries")
}

#[cfg(test)]
mod tests;
