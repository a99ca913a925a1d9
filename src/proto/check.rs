//! Checks of messages that their encoding alone does not make. Checks against the state of the job are made by the receivers:
//! `coordinator`, `worker`, `op`.

use super::{
    Hello, Job, Known, LargeFile, Listing, MAX_LISTED_LEN, MAX_LISTED_SUBDIRS, MAX_THREADS, Message, Names, Owned,
    Report, Returned, Source, Task, TaskResult, Tuning,
};
use crate::plan::{MAX_RANGE_LEN, MIN_RANGE_LEN, Ranges};
use crate::types::{Kind, MAX_NAME_LEN, RelPath, is_name};

/// Ranges of one file, at most: 2^63 bytes in ranges of the greatest length.
const MAX_RANGES_EVER: u64 = 1 << 23;
/// Bytes of one read or write.
const BLOCK_ALIGN: usize = 4096;
const MAX_BLOCK_LEN: usize = 1 << 30;
/// Bytes of a host's name.
const MAX_HOST_LEN: usize = 1024;

/// What is wrong with a message.
type Checked = Result<(), &'static str>;

fn must(holds: bool, otherwise: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl Message {
    /// Whether it can be one that a rank sends.
    pub(super) fn check(&self) -> Checked {
        match self {
            Self::Begin(Some(job)) => check_job(job),
            Self::Hello(hello) => check_hello(hello),
            Self::Work { tasks, .. } => tasks.iter().try_for_each(check_task),
            Self::Report(report) => check_report(report),
            Self::Overdue(overdue) => overdue.iter().try_for_each(|operation| {
                let is_short = operation.call.len() <= MAX_HOST_LEN && operation.path.len() <= MAX_NAME_LEN;
                must(is_short, "an operation that is too long")
            }),
            _ => Ok(()),
        }
    }
}

fn check_job(job: &Job) -> Checked {
    must(!job.sources.is_empty(), "a job without a source")?;
    must(job.generation > 0, "a job without a run")?;
    for Source { single, target, .. } in &job.sources {
        let is_entry = |name: &Vec<u8>| is_name(name) && !target.is_root();
        must(single.as_ref().is_none_or(is_entry), "a source whose name is none")?;
    }
    let Tuning { range_len, block_len, threads, .. } = job.tuning;
    must(is_range_len(range_len), "a length of ranges that is none")?;
    let is_block_len = block_len > 0 && block_len <= MAX_BLOCK_LEN && block_len.is_multiple_of(BLOCK_ALIGN);
    must(is_block_len, "a length of blocks that is none")?;
    must(
        threads.is_none_or(|threads| (1..=MAX_THREADS as usize).contains(&threads)),
        "a number of threads that is none",
    )
}

fn check_hello(hello: &Hello) -> Checked {
    must((1..=MAX_THREADS).contains(&hello.threads), "a number of threads that is none")?;
    must(hello.host.len() <= MAX_HOST_LEN, "a host's name that is too long")
}

fn check_task(task: &Task) -> Checked {
    match task {
        Task::List { .. } => Ok(()),
        Task::Entries { names, .. } => check_names(names),
        Task::Known { entries, .. } => entries.iter().try_for_each(|Known { name, kind, .. }| {
            must(is_name(name) && name.len() <= MAX_NAME_LEN, "a name that is none")?;
            check_entry_kind(*kind)
        }),
        Task::Owner { path, kind, .. } => check_entry(path, *kind),
        Task::Range { file, index } => {
            check_large(file)?;
            must(file.ranges().is_some_and(|ranges| *index < ranges.count()), "a range outside of its file")
        }
        Task::FinishFile { file, .. } | Task::Abandon { file, .. } => check_large(file),
        Task::Links { owner, kind, paths, .. } => {
            [owner].into_iter().chain(paths).try_for_each(|path| check_entry(path, *kind))
        }
        Task::FinishDirs { .. } => Ok(()),
    }
}

fn check_report(report: &Report) -> Checked {
    for result in &report.results {
        match result {
            TaskResult::Returned(returned) | TaskResult::Known { returned, .. } => check_returned(returned)?,
            TaskResult::Listed(listing) => check_listing(listing)?,
            TaskResult::Owned(owned) => match &**owned {
                Owned::Large(file) => check_large(file)?,
                Owned::Copied(_) | Owned::Failed => {}
            },
            _ => {}
        }
    }
    must(report.ended.checked_entries().is_some(), "counters beyond all numbers")
}

fn check_listing(listing: &Listing) -> Checked {
    let Listing { subdirs, rest, returned, .. } = listing;
    must(subdirs.iter().all(|(_, kind)| kind == Kind::Dir), "a directory that is none")?;
    check_names(rest)?;
    let is_short = subdirs.len() <= MAX_LISTED_SUBDIRS + 1 && rest.byte_len() <= MAX_LISTED_LEN + MAX_NAME_LEN + 8;
    must(is_short, "a listing that is too long")?;
    check_returned(returned)
}

fn check_returned(returned: &[Returned]) -> Checked {
    returned.iter().try_for_each(|entry| match entry {
        Returned::Large(file) => check_large(file),
        Returned::Linked { path, kind, .. } | Returned::Unlinkable { path, kind } => check_entry(path, *kind),
    })
}

fn check_names(names: &Names) -> Checked {
    names.iter().try_for_each(|(_, kind)| check_entry_kind(kind))
}

fn check_entry(path: &RelPath, kind: Kind) -> Checked {
    must(!path.is_root(), "an entry without a name")?;
    check_entry_kind(kind)
}

/// Checks that an entry is not a directory: directories have tasks of their own.
fn check_entry_kind(kind: Kind) -> Checked {
    must(kind != Kind::Dir, "a directory among the entries")
}

fn check_large(file: &LargeFile) -> Checked {
    must(!file.path.is_root(), "an entry without a name")?;
    must(file.ranges().is_some(), "a large file that has no ranges")
}

fn is_range_len(len: u64) -> bool {
    len.is_power_of_two() && (MIN_RANGE_LEN..=MAX_RANGE_LEN).contains(&len)
}

impl LargeFile {
    /// Its ranges; `None` where its size and their length cannot be those of a file in ranges.
    pub fn ranges(&self) -> Option<Ranges> {
        if !is_range_len(self.range_len) || i64::try_from(self.identity.size).is_err() {
            return None;
        }
        let ranges = Ranges::new(self.identity.size, self.range_len);
        (2..=MAX_RANGES_EVER).contains(&ranges.count()).then_some(ranges)
    }
}

impl Job {
    /// Whether a task is one of this job: of a source that it has, and of what is in that source.
    pub fn has(&self, task: &Task) -> bool {
        match task {
            Task::List { source, dir, .. } => self.has_dir(*source, dir),
            Task::Entries { source, dir, names } => names.iter().all(|(name, _)| self.has_in(*source, dir, name)),
            Task::Known { source, dir, entries } => {
                !self.policy.dry_run && entries.iter().all(|known| self.has_in(*source, dir, &known.name))
            }
            Task::Owner { source, path, .. } => self.has_entry(*source, path),
            Task::Range { file, .. } | Task::FinishFile { file, .. } | Task::Abandon { file, .. } => {
                !self.policy.dry_run && self.has_entry(file.source, &file.path)
            }
            Task::Links { source, paths, .. } => paths.iter().all(|path| self.has_entry(*source, path)),
            Task::FinishDirs { source, dirs } => dirs.iter().all(|dir| self.has_dir(*source, &dir.path)),
        }
    }

    fn has_dir(&self, source: u16, dir: &RelPath) -> bool {
        let source = self.sources.get(usize::from(source));
        source.is_some_and(|source| source.single.is_none() && dir.is_at_or_below(&source.target))
    }

    fn has_in(&self, source: u16, dir: &RelPath, name: &[u8]) -> bool {
        match self.sources.get(usize::from(source)) {
            Some(Source { single: Some(_), target, .. }) => {
                target.split().is_some_and(|(above, last)| above == *dir && last == name)
            }
            _ => self.has_dir(source, dir),
        }
    }

    fn has_entry(&self, source: u16, path: &RelPath) -> bool {
        match self.sources.get(usize::from(source)) {
            Some(Source { single: Some(_), target, .. }) => path == target,
            _ => self.has_dir(source, path),
        }
    }
}
