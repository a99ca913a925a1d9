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

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use large::{LargeFiles, Trouble};
use links::{Links, MAX_LINKS, Member, ToLink};
use queue::{Batch, Queue};
use ranks::Ranks;

use crate::journal::Partials;
use crate::proto::{
    DirBefore, FinishedDir, KnownEntry, LargeFile, Listing, MAX_BATCH_LEN, MAX_BATCH_NAMES, MAX_BATCH_PATHS_LEN, Owned,
    Report, Returned, Task, TaskResult,
};
use crate::scan::{DirId, Lent, ScanEvent};
use crate::types::{DirPath, Failure, Kind, RelPath, Stats};

/// Names that wait for a rank, at most, before the scan has to wait: so many, or for many threads so many a thread.
const MAX_QUEUED_NAMES: usize = 128 << 10;
const MAX_QUEUED_NAMES_A_THREAD: usize = 128;
/// Bytes of them, at most; and, apart from these, of names that wait for another name of their file.
const MAX_QUEUED_LEN: usize = 8 << 20;
const MAX_QUEUED_LEN_A_THREAD: usize = 8 << 10;
/// Other tasks that wait, at most, before the scan has to wait.
const MAX_QUEUED_TASKS: usize = 16 << 10;
const MAX_QUEUED_TASKS_A_THREAD: usize = 2;
/// Names that a rank copies at once of a directory that it has listed, at most.
const MAX_KEPT: usize = 128;
/// Names of a directory that is being listed, at a guess.
const NAMES_A_DIR: usize = 512;
/// Directories that one task finishes, at most.
const MAX_DIRS: usize = 128;

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

    /// Takes a rank's report.
    ///
    /// # Errors
    /// It does not fit what the rank was given: the job cannot go on.
    pub fn report(&mut self, rank: usize, report: &Report) -> Result<(), CoordinatorError> {
        let id = report.id;
        let Entry::Occupied(assigned) = self.assigned.entry(id) else {
            return Err(CoordinatorError::UnknownAssignment { rank, id });
        };
        if assigned.get().rank != rank {
            return Err(CoordinatorError::UnknownAssignment { rank, id });
        }
        let purposes = assigned.remove().purposes;
        self.ranks.release(rank, purposes.iter().map(Purpose::size).sum());
        let wrong = CoordinatorError::WrongResult { rank, id };
        if purposes.len() != report.results.len() {
            return Err(wrong);
        }
        for index in &report.private {
            let Some(purpose) = purposes.get(*index as usize) else { return Err(wrong) };
            self.has_private_dir(purpose);
        }
        // for the display, before the halt too; what counts in the end is the sum of what the ranks have counted
        self.ended.add(&report.ended);
        self.bytes_moved = self.bytes_moved.saturating_add(report.bytes_moved);
        if self.halted {
            // another run will see what is left of them
            return Ok(());
        }
        let mut ended = 0;
        for (purpose, result) in purposes.into_iter().zip(&report.results) {
            if !self.fits(&purpose, result) {
                return Err(wrong);
            }
            let Some(more) = self.take_result(purpose, result) else { return Err(wrong) };
            ended += more;
        }
        if report.ended.entries() == ended { Ok(()) } else { Err(wrong) }
    }

    /// In the directory of a task's entries, or in each of them, a private one was made.
    fn has_private_dir(&mut self, purpose: &Purpose) {
        let dirs = match purpose {
            Purpose::Entries { dir, .. } => vec![*dir],
            Purpose::List { lent, .. } => vec![lent.id],
            Purpose::Owner(member) => vec![member.dir],
            Purpose::Range { file, .. } | Purpose::Finish { file } | Purpose::Abandon { file } => {
                self.large.dir_of(*file).into_iter().collect()
            }
            Purpose::Links(members) => members.iter().map(|member| member.dir).collect(),
            Purpose::Dirs(..) => Vec::new(),
        };
        for id in dirs {
            self.dir_mut(id).private = true;
        }
    }

    /// How many entries the task has ended; `None` when the result is not one of this purpose.
    fn take_result(&mut self, purpose: Purpose, result: &TaskResult) -> Option<u64> {
        match (purpose, result) {
            (
                Purpose::Entries { dir, source, count, .. },
                TaskResult::Returned(returned) | TaskResult::Known { returned, .. },
            ) => {
                let ended = count.checked_sub(returned.len() as u64)?;
                for entry in returned {
                    self.take_returned(dir, source, entry)?;
                }
                self.entries_ended(dir, ended);
                return Some(ended);
            }
            (Purpose::List { lent, .. }, TaskResult::Listed(listing)) => return self.take_listing(lent, listing),
            (Purpose::List { lent, .. }, TaskResult::TooLong) => {
                self.lent -= 1;
                self.listed.push(Elsewhere::TooLong(lent));
            }
            (Purpose::Links(members), TaskResult::Returned(unlinkable)) => {
                return self.links_ended(members, unlinkable);
            }
            (Purpose::Owner(member), TaskResult::Owned(owned)) => match &**owned {
                Owned::Large(file) => self.add_large(file, member),
                owned => {
                    self.owner_ended(&member, owned);
                    return Some(1);
                }
            },
            (Purpose::Range { file, index }, TaskResult::Range(value)) => self.large.range_done(file, index, *value)?,
            (Purpose::Range { file, .. }, TaskResult::RangeFailed(failure)) => {
                self.large.range_failed(file, Trouble::Failed(failure.clone()))?;
            }
            (Purpose::Range { file, .. }, TaskResult::Changed) => self.large.range_failed(file, Trouble::Changed)?,
            (Purpose::Range { file, .. }, TaskResult::Lost(failure)) => {
                self.large.range_failed(file, Trouble::Lost(failure.clone()))?;
            }
            (Purpose::Finish { file }, TaskResult::Owned(owned)) if !matches!(**owned, Owned::Large(_)) => {
                let member = self.large.remove(file)?;
                self.owner_ended(&member, owned);
                return Some(1);
            }
            (Purpose::Finish { file }, TaskResult::Changed) => self.large.finish_failed(file, Trouble::Changed)?,
            (Purpose::Finish { file }, TaskResult::Lost(failure)) => {
                self.large.finish_failed(file, Trouble::Lost(failure.clone()))?;
            }
            (Purpose::Abandon { file }, TaskResult::Ended) => match self.large.abandoned(file)? {
                large::Abandoned::Failed(member) => {
                    self.owner_ended(&member, &Owned::Failed);
                    return Some(1);
                }
                large::Abandoned::Again(member) => self.alone.push_back(member),
            },
            (Purpose::Dirs(ids, _), TaskResult::Dirs { .. }) => {
                let ended = ids.len() as u64;
                for id in ids {
                    let dir = self.dirs.remove(&id).expect("a directory stays until it has ended");
                    if let Some(parent) = dir.parent {
                        self.entries_ended(parent, 1);
                    }
                }
                return Some(ended);
            }
            _ => return None,
        }
        Some(0)
    }

    /// Takes what a rank has found in a directory, as if the scan had. Returns how many entries of it have ended.
    fn take_listing(&mut self, lent: Lent, listing: &Listing) -> Option<u64> {
        self.lent -= 1;
        let Lent { id, source, path, .. } = lent;
        let Listing { subdirs, kept, returned, excluded, before, failure, retries, .. } = listing;
        self.seen += kept;
        self.dir_mut(id).open_entries += signed(*kept);
        let ended = kept.checked_sub(returned.len() as u64)?;
        for entry in returned {
            self.take_returned(id, source, entry)?;
        }
        self.dir_mut(id).open_entries -= signed(ended);
        let mut rest = listing.rest.clone();
        while !rest.is_empty() {
            self.scan(ScanEvent::Names { dir: id, names: rest.take(MAX_BATCH_NAMES) });
        }
        let below = subdirs.iter().map(|(name, _)| (id, source, path.join(name))).collect();
        self.listed.push(Elsewhere::Listed { below, left_alone: listing.left_alone.then(|| path.to_path()) });
        let (failure, subdirs) = (failure.clone(), subdirs.len() as u64);
        let (before, excluded, retries) = (*before, *excluded, *retries);
        self.scan(ScanEvent::Listed { dir: id, subdirs, excluded, before, recorded: None, failure, retries });
        Some(ended)
    }

    /// Whether a rank has nothing to do, and may list a directory: there is room for what it will find.
    pub fn can_lend(&self) -> bool {
        let expected = self.queue.len() + NAMES_A_DIR * self.lent;
        !self.halted && self.wants_scan() && expected < self.max_queued_names() && self.ranks.freest(0).is_some()
    }

    /// Gives a directory of the scan to a rank that is free, to be listed there; `waiting` is how many more there are.
    pub fn lend(&mut self, lent: Lent, waiting: usize) -> Option<Assignment> {
        let rank = self.ranks.freest(0)?;
        let Lent { id, parent, source, path } = lent.clone();
        // others have nothing to do either, unless there are directories for all
        let queued = if waiting < self.ranks.threads() { 0 } else { usize::MAX };
        // each of them may come back with its whole path
        let most = MAX_KEPT.min(MAX_BATCH_PATHS_LEN / (path.len() + 256)).max(1);
        let keep = u32::try_from(self.ranks.share_of(rank, queued, most)).expect("few");
        self.lent += 1;
        self.lent_ever += 1;
        let task = Task::List { source, dir: path.to_path(), keep };
        self.scan(ScanEvent::Dir { id, parent, source, path });
        Some(self.assign(rank, vec![task], vec![Purpose::List { lent, keep }]))
    }

    /// What has become of directories that were lent, since it was last asked.
    pub fn take_listed(&mut self) -> Vec<Elsewhere> {
        std::mem::take(&mut self.listed)
    }

    /// `None` when the entry is not in the directory.
    fn take_returned(&mut self, dir: DirId, source: u16, entry: &Returned) -> Option<()> {
        let (path, kind) = match entry {
            Returned::Large(file) => (&file.path, Kind::File),
            Returned::Linked { path, kind, .. } | Returned::Unlinkable { path, kind } => (path, *kind),
        };
        let dir_path = &self.dirs[&dir].path;
        let member = Member::new(dir, source, dir_path.name_in(path)?, kind);
        match entry {
            Returned::Large(file) => self.add_large(file, member),
            Returned::Linked { id, identity, names, there, .. } => {
                let next = self.links.add((*id, *identity), *names, member, dir_path, there.as_deref());
                if let links::Next::Copy(member) = next {
                    self.alone.push_back(member);
                }
            }
            Returned::Unlinkable { .. } => self.alone.push_back(Member { unlinkable: true, ..member }),
        }
        Some(())
    }

    fn add_large(&mut self, file: &LargeFile, member: Member) {
        let unfinished = self.partials.get(&file.path).filter(|there| file.found && there.partial == file.partial());
        let done = unfinished.map_or(&[][..], |there| &there.done);
        // the next attempt must make another temporary file than this one
        let attempt = member.attempt.max(if file.found { 0 } else { file.temporary.attempt });
        self.large.add(file.clone(), Member { attempt, ..member }, done);
    }

    /// How many of the names were linked. `None` when what could not be linked is not of these.
    fn links_ended(&mut self, members: Vec<Member>, unlinkable: &[Returned]) -> Option<u64> {
        let ended = (members.len() as u64).checked_sub(unlinkable.len() as u64)?;
        // those that come back are in the order in which they were given
        let mut back = unlinkable.iter().peekable();
        for member in members {
            let is_back = |entry: &&Returned| match entry {
                Returned::Unlinkable { path, .. } => *path == path_of(&self.dirs, &member),
                _ => false,
            };
            if back.next_if(is_back).is_some() {
                self.alone.push_back(Member { unlinkable: true, ..member });
            } else {
                self.entries_ended(member.dir, 1);
            }
        }
        back.next().is_none().then_some(ended)
    }

    /// The task that copies an entry without regard to its other names.
    fn owner_task(&self, member: &Member) -> Task {
        let path = path_of(&self.dirs, member);
        Task::Owner {
            source: member.source,
            kind: member.kind,
            id: member.group,
            attempt: member.attempt,
            unlinkable: member.unlinkable,
            // what was abandoned once is not gone on with
            partial: self.partials.get(&path).filter(|_| member.attempt == 0).map(|there| there.partial),
            path,
        }
    }

    /// An entry that was copied alone, or in ranges, has ended: its links go on.
    fn owner_ended(&mut self, member: &Member, owned: &Owned) {
        if let Some(group) = member.group {
            let facts = if let Owned::Copied(facts) = owned { Some(facts) } else { None };
            let dir = &self.dirs[&member.dir].path;
            self.alone.extend(self.links.owner_ended(group, member, dir, facts));
        }
        self.entries_ended(member.dir, 1);
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

    /// Work for a rank that is free, as long as there is both.
    pub fn next_work(&mut self) -> Option<Assignment> {
        if self.halted {
            return None;
        }
        let rank = self.ranks.freest(self.backlog())?;
        let (tasks, purposes) = self.next_tasks(rank)?;
        Some(self.assign(rank, tasks, purposes))
    }

    fn assign(&mut self, rank: usize, tasks: Vec<Task>, purposes: Vec<Purpose>) -> Assignment {
        let id = self.next_id;
        self.next_id += 1;
        self.ranks.assign(rank);
        self.assigned.insert(id, Assigned { rank, purposes });
        Assignment { rank, id, tasks }
    }

    /// About how many assignments wait.
    fn backlog(&self) -> usize {
        self.large.ready()
            + self.alone.len()
            + self.links.linkable() / MAX_LINKS
            + self.large.ranges_left()
            + self.queue.len() / self.ranks.full_share(self.max_queued_names())
            + self.finished_dirs.len() / MAX_DIRS
    }

    fn next_tasks(&mut self, rank: usize) -> Option<(Vec<Task>, Vec<Purpose>)> {
        // first what frees memory, or lets others go on
        if let Some((file, task)) = self.large.next_step(|member| path_of(&self.dirs, member)) {
            let is_end = matches!(task, Task::FinishFile { .. });
            return Some((vec![task], vec![if is_end { Purpose::Finish { file } } else { Purpose::Abandon { file } }]));
        }
        if let Some(member) = self.alone.pop_front() {
            return Some((vec![self.owner_task(&member)], vec![Purpose::Owner(member)]));
        }
        let (mut tasks, mut purposes) = (Vec::new(), Vec::new());
        self.take_links(rank, &mut tasks, &mut purposes);
        if !tasks.is_empty() {
            return Some((tasks, purposes));
        }
        let ranges = self.ranks.ranges_of(rank, self.large.ranges_left());
        while tasks.len() < ranges
            && let Some((file, index, task)) = self.large.next_range(|member| path_of(&self.dirs, member))
        {
            tasks.push(task);
            purposes.push(Purpose::Range { file, index });
        }
        if !tasks.is_empty() {
            return Some((tasks, purposes));
        }
        self.take_dirs(rank, &mut tasks, &mut purposes);
        self.take_names(rank, &mut tasks, &mut purposes);
        (!tasks.is_empty()).then_some((tasks, purposes))
    }

    fn take_links(&mut self, rank: usize, tasks: &mut Vec<Task>, purposes: &mut Vec<Purpose>) {
        let mut left = self.ranks.share_of(rank, self.links.linkable(), MAX_LINKS);
        let mut paths_len = 0;
        while left > 0
            && paths_len < MAX_BATCH_PATHS_LEN
            && let Some(ToLink { task, members, len }) =
                self.links.next_task(left, |member| path_of(&self.dirs, member))
        {
            left -= members.len();
            paths_len += len;
            tasks.push(task);
            purposes.push(Purpose::Links(members));
        }
    }

    fn take_dirs(&mut self, rank: usize, tasks: &mut Vec<Task>, purposes: &mut Vec<Purpose>) {
        let share = self.ranks.share_of(rank, self.finished_dirs.len(), MAX_DIRS);
        let (mut ids, mut dirs, mut known) = (Vec::new(), Vec::new(), Vec::new());
        let Some(source) = self.finished_dirs.front().map(|id| self.dirs[id].source) else {
            return;
        };
        let mut len = 0;
        while ids.len() < share
            && len < MAX_BATCH_PATHS_LEN
            && self.finished_dirs.front().is_some_and(|id| self.dirs[id].source == source)
        {
            let id = self.finished_dirs.pop_front().expect("there is a front");
            let dir = self.dir_mut(id);
            len += dir.path.len() + dir.recorded.as_ref().map_or(0, |entry| entry.record.len());
            let (recorded, failure) = (dir.recorded.take(), dir.failure.take());
            let (before, private) = (dir.before, dir.private);
            known.extend(recorded.as_ref().map(|entry| entry.number));
            dirs.push(FinishedDir { path: dir.path.to_path(), before, recorded, failure, private });
            ids.push(id);
        }
        tasks.push(Task::FinishDirs { source, dirs });
        purposes.push(Purpose::Dirs(ids, known));
    }

    /// Fewer names the shorter the queue is, so that all ranks end together; several directories in one
    /// assignment when each has few.
    fn take_names(&mut self, rank: usize, tasks: &mut Vec<Task>, purposes: &mut Vec<Purpose>) {
        let share = self.ranks.share_of(rank, self.queue.len(), MAX_BATCH_NAMES);
        let (mut count, mut len, mut paths_len) = (0, 0, 0);
        while count < share
            && len < MAX_BATCH_LEN
            && paths_len < MAX_BATCH_PATHS_LEN
            && let Some(dir) = self.queue.next_dir()
        {
            let state = &self.dirs[&dir];
            let path_len = state.path.len() + 32;
            let most = (share - count).min(((MAX_BATCH_PATHS_LEN - paths_len) / path_len).max(1));
            let Some(batch) = self.queue.take(most) else { break };
            count += batch.len();
            len += batch.byte_len();
            paths_len += batch.len() * path_len;
            let source = state.source;
            purposes.push(Purpose::Entries { dir, source, count: batch.len() as u64, known: batch.numbers() });
            let dir = state.path.to_path();
            tasks.push(match batch {
                Batch::Names(names) => Task::Entries { source, dir, names },
                Batch::Known(entries) => Task::Known { source, dir, entries },
            });
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
