//! What one I/O thread does: tasks in, reports out, files moved in between.
//!
//! Knows nothing of MPI and of other threads but the rank's [`Recorder`]. Called by `worker`.

mod beside;
mod data;
mod dirs;
mod entry;
mod flags;
mod foresee;
mod known;
mod large;
mod links;
mod list;
mod metadata;
mod node;
mod probe;
mod special;
mod syncer;
mod throttle;

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use entry::Links;
use flags::LooksAt;
pub use node::{Node, open_marked};
use syncer::Syncer;
pub use throttle::Throttle;

use crate::collision::{COLLISION, Collisions};
use crate::guard::EXCHANGED;
use crate::journal::{Batch, Item, Recorder};
use crate::proto::{Job, MAX_BATCH_PATHS_LEN, MAX_SHOWN_FAILURES, Report, Task, TaskResult};
use crate::retry::Retry;
use crate::scan::{Lister, Rooms, Roots, open_destination};
use crate::sys::{Buffer, DirCache, Errno, Meta, Reading};
use crate::types::{Failure, Kind, Op, Outcome, Record, RelPath, Side};
use crate::watch;

/// Times that a file is copied again because it changed while it was read.
pub const MAX_ATTEMPTS: u8 = 3;

/// An I/O thread's own things: descriptors, a buffer, what it ended in the current task.
pub struct Mover {
    job: Arc<Job>,
    node: Arc<Node>,
    recorder: Arc<Mutex<Recorder>>,
    sources: DirCache,
    destination: DirCache,
    collisions: Collisions,
    reading: Reading,
    buffer: Buffer,
    task: TaskLog,
    /// The job is to halt. Shared by the rank's threads.
    halt: Arc<AtomicBool>,
    /// Shared too.
    throttle: Arc<Throttle>,
    retry: Retry,
    lister: Lister,
    /// Where files are made durable one by one.
    syncer: Option<Syncer>,
    /// Attributes that cannot be read, set or removed are left out, and noted.
    leniently: bool,
    /// Device and type of the entry whose attributes were listed last.
    listed: Cell<Option<(u64, Option<Kind>)>>,
    /// The device of the entry whose inode flags were looked at last.
    flagged: Cell<Option<(u64, LooksAt)>>,
}

/// What the current task has ended so far.
#[derive(Default)]
struct TaskLog {
    records: Batch,
    failures: Vec<(RelPath, Failure)>,
    bytes_moved: u64,
    /// What the job has to halt for.
    halting: Option<(RelPath, Failure)>,
    /// The task was not done to its end.
    broken_off: bool,
    /// The current task has made a private directory.
    private: bool,
    /// Those that have.
    with_private: Vec<u32>,
}

/// The names of one entry in both trees.
struct Place {
    /// Below the root of the copy.
    path: RelPath,
    source_dir: Arc<OwnedFd>,
    source_name: Vec<u8>,
    dest_dir: Arc<OwnedFd>,
    dest_name: Vec<u8>,
    /// What is made in `dest_dir` gets an ACL from it.
    inherits_acl: bool,
    /// What is at the destination is the job's own, and may be replaced.
    ours: bool,
}

impl Place {
    fn source(&self) -> (BorrowedFd<'_>, &[u8]) {
        (self.source_dir.as_fd(), &self.source_name)
    }

    fn dest(&self) -> BorrowedFd<'_> {
        self.dest_dir.as_fd()
    }

    /// The directory of the copy that it is in.
    fn dir(&self) -> RelPath {
        self.path.split().map_or_else(RelPath::root, |(dir, _)| dir)
    }
}

/// Says on which operation and side a call failed.
trait At<T> {
    fn at(self, op: Op, side: Side) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, op: Op, side: Side) -> Result<T, Failure> {
        self.map_err(|errno| match errno {
            EXCHANGED => Failure::EXCHANGED,
            COLLISION => Failure::COLLISION,
            errno => Failure { op, side, errno: errno as i32 },
        })
    }
}

const SOURCE: Side = Side::Source;
const DEST: Side = Side::Destination;

impl Mover {
    /// A thread's state; `roots` are what it opens directories below; `halt` tells it to leave what it has not begun, `throttle` holds it to a limit.
    pub fn new(
        job: &Arc<Job>,
        node: &Arc<Node>,
        recorder: &Arc<Mutex<Recorder>>,
        (rooms, roots): (&Arc<Rooms>, &Roots),
        (halt, throttle): (&Arc<AtomicBool>, &Arc<Throttle>),
    ) -> Self {
        Self {
            reading: roots.reading,
            sources: DirCache::new(roots.sources.clone(), roots.cached_dirs).reading(roots.reading),
            destination: DirCache::new(vec![Arc::clone(&roots.destination)], roots.cached_dirs),
            collisions: Collisions::default(),
            buffer: Buffer::new(job.tuning.block_len),
            job: Arc::clone(job),
            node: Arc::clone(node),
            recorder: Arc::clone(recorder),
            task: TaskLog::default(),
            halt: Arc::clone(halt),
            throttle: Arc::clone(throttle),
            retry: Retry::new(job.tuning.retries, roots.lag),
            lister: Lister::new(rooms, roots, halt),
            // without its threads this one does it
            syncer: node.unsynced().and_then(|_| Syncer::start().ok()),
            leniently: false,
            listed: Cell::default(),
            flagged: Cell::default(),
        }
    }

    /// Does tasks to their end. Every entry of them is ended with a record, or handed back.
    pub fn run(&mut self, id: u64, tasks: Vec<Task>) -> Report {
        let mut results = Vec::with_capacity(tasks.len());
        for (index, task) in (0..).zip(tasks) {
            watch::begin(task.path().map_or(b"", RelPath::as_bytes), b"");
            results.push(self.run_unless_halted(task));
            if std::mem::take(&mut self.task.private) {
                self.task.with_private.push(index);
            }
        }
        watch::end();
        let log = std::mem::take(&mut self.task);
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.append(&log.records);
        let full = recorder.is_full();
        Report {
            id,
            results,
            bytes_moved: log.bytes_moved,
            ended: *log.records.stats(),
            full,
            halting: log.halting,
            failures: log.failures,
            private: log.with_private,
        }
    }

    fn run_unless_halted(&mut self, task: Task) -> TaskResult {
        if self.is_halting() {
            return TaskResult::Stopped;
        }
        let result = self.run_task(task);
        if self.task.broken_off { TaskResult::Stopped } else { result }
    }

    /// Whether what was not begun is to be left.
    fn is_halting(&self) -> bool {
        self.task.broken_off || self.halt.load(Ordering::Relaxed)
    }

    /// Leaves an entry as it is, for another run of the job.
    fn break_off(&mut self, path: &RelPath, failure: Failure) -> TaskResult {
        self.task.broken_off = true;
        if failure.op != Op::Stopped {
            self.task.halting.get_or_insert_with(|| (path.clone(), failure));
        }
        TaskResult::Stopped
    }

    /// Tries again what failed in a way that may pass; `what` is told whether it is tried again. Where attributes alone are
    /// the reason in the end, they are left out: they never cost an entry its data.
    fn retried<T>(&mut self, mut what: impl FnMut(&mut Self, bool) -> Result<T, Failure>) -> Result<T, Failure> {
        match self.kept_trying(&mut what) {
            Err(failure) if failure.is_of_attributes() && !self.leniently && !self.is_halting() => {
                self.leniently = true;
                let result = self.kept_trying(&mut |me: &mut Self, _| what(me, true));
                self.leniently = false;
                result
            }
            result => result,
        }
    }

    fn kept_trying<T>(&mut self, what: &mut impl FnMut(&mut Self, bool) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut retry = self.retry.clone();
        let result = retry.run(self, what, |me| {
            // a descriptor may be what is stale
            me.sources.clear();
            me.destination.clear();
            let goes_on = !me.is_halting();
            if goes_on {
                me.task.records.count_retry();
            }
            goes_on
        });
        self.retry = retry;
        result
    }

    fn run_task(&mut self, task: Task) -> TaskResult {
        if let Task::List { source, dir, keep } = task {
            return self.list_dir(source, &dir, keep as usize);
        }
        if self.job.policy.dry_run {
            return self.foresee(task);
        }
        match task {
            Task::Entries { source, dir, names } => TaskResult::Returned(self.copy_entries(source, &dir, &names)),
            Task::Known { source, dir, entries } => self.copy_known(source, &dir, entries),
            Task::Owner { source, path, kind, id, attempt, unlinkable, partial } => {
                self.copy_owner(source, path, kind, (Links::Own(id), partial, attempt), unlinkable)
            }
            Task::Range { file, index } => self.copy_range(&file, index),
            Task::FinishFile { file, digest, unlinkable } => self.finish_large(&file, digest, unlinkable),
            Task::Abandon { file, failure } => self.abandon(&file, failure),
            Task::Links { source, owner, kind, facts, paths } => self.make_links(source, &owner, kind, &facts, paths),
            Task::FinishDirs { source, dirs } => self.finish_dirs(source, dirs),
            Task::List { .. } => unreachable!("done above"),
        }
    }

    /// Ends an entry: its record, its counters.
    fn end(&mut self, path: RelPath, kind: Kind, outcome: Outcome) {
        if let Outcome::Failed(failure) = &outcome {
            let len: usize = self.task.failures.iter().map(|(path, _)| path.as_bytes().len()).sum();
            if self.task.failures.len() < MAX_SHOWN_FAILURES && len < MAX_BATCH_PATHS_LEN {
                self.task.failures.push((path.clone(), failure.clone()));
            }
        }
        self.task.records.push(&Item::Entry(Record { path, kind, outcome }));
    }

    fn fail(&mut self, path: RelPath, kind: Kind, failure: Failure) -> TaskResult {
        if failure.halts() {
            return self.break_off(&path, failure);
        }
        self.end(path, kind, Outcome::Failed(failure));
        TaskResult::Ended
    }

    /// The source's directory below its root that becomes `path` of the copy, or holds the single entry.
    fn source_dir(&mut self, source: u16, path: &RelPath) -> Result<Arc<OwnedFd>, Failure> {
        let spec = &self.job.sources[usize::from(source)];
        let below = match spec.single {
            Some(_) => RelPath::root(),
            None => path.strip(&spec.target).ok_or(Errno::ENOENT).at(Op::Open, SOURCE)?,
        };
        self.sources.open(usize::from(source), &below).at(Op::Open, SOURCE)
    }

    /// The directory of the copy at `path`, which the entries of a source are in.
    fn dest_dir(&mut self, source: u16, path: &RelPath) -> Result<Arc<OwnedFd>, Failure> {
        let caches = (&mut self.destination, &mut self.sources);
        open_destination((self.node.guard(), &self.job), caches, source, path).at(Op::Open, DEST)
    }

    /// What stat(2) says of an entry of a source that is not opened.
    fn source_meta(&self, (dir, name): (BorrowedFd<'_>, &[u8])) -> Result<Meta, Errno> {
        if self.reading.follow { Meta::reached(dir, name) } else { Meta::at(dir, name) }
    }

    /// Where an entry stands in both trees.
    fn place(&mut self, source: u16, path: &RelPath) -> Result<Place, Failure> {
        let (dir, name) = path.split().ok_or(Errno::EISDIR).at(Op::Open, SOURCE)?;
        let dest_dir = self.dest_dir(source, &dir)?;
        let mut place = Place {
            inherits_acl: self.inherits_acl(dest_dir.as_fd())?,
            source_dir: self.source_dir(source, &dir)?,
            source_name: self.job.sources[usize::from(source)].single.clone().unwrap_or_else(|| name.to_vec()),
            dest_dir,
            dest_name: name.to_vec(),
            path: path.clone(),
            ours: false,
        };
        place.ours = self.is_ours(&place);
        Ok(place)
    }
}

/// How a job's sources are opened: a dry run leaves no trace.
pub fn reading(job: &Job) -> Reading {
    Reading { follow: job.policy.follow_links, noatime: job.policy.noatime || job.policy.dry_run }
}
