//! The scan: rank 0's threads list the source directories and make the destination's, names and types
//! only, and hand what they find to the coordinator through a bounded channel.
//!
//! The channel is the back-pressure: when the coordinator does not read, the threads wait. Pending
//! directories are a stack, so that the scan goes deep before it goes wide; when the stack is long, a
//! thread lists a new directory at once instead of adding it.

mod listing;
mod loops;
mod open;
mod recorded;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use listing::Listing;
use loops::Ancestor;
pub use recorded::Recorded;

use crate::journal::Block;
use crate::policy::{Filter, Selection};
use crate::proto::{DirBefore, Job, Known, Names};
use crate::retry::Retry;
use crate::sys::{DirCache, Errno, Meta, Reading};
use crate::types::{Failure, Kind, Op, RelPath, Side};

/// The number of a directory in this job.
pub type DirId = u64;

/// Threads of a scan, at most; listing names scales to about four.
pub const MAX_SCAN_THREADS: usize = 4;
/// Events that wait in the channel, at most; each holds a batch of names at most.
const CHANNEL_LEN: usize = 128;
/// Directories that wait to be listed, at most, before new ones are listed at once.
const MAX_PENDING: usize = 100_000;
/// How deep a thread goes with that.
const MAX_NESTED: usize = 32;
/// Bytes of a directory's path below the copy's root: sixteen times what the system takes in one call.
const MAX_PATH_LEN: usize = 64 << 10;

/// What the scan found. Events of one directory come in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanEvent {
    /// A directory, whose own entry ends when everything in it has.
    Dir { id: DirId, parent: Option<DirId>, source: u16, path: RelPath },
    /// The place of a source that is a single entry; it is no entry itself.
    Single { id: DirId, source: u16, path: RelPath },
    /// Some of a directory's entries, without its directories.
    Names { dir: DirId, names: Names },
    /// Some of a directory's entries, which earlier runs have recorded or begun.
    Known { dir: DirId, entries: Vec<Known> },
    /// All of a directory has been seen; `failure` if it could not be. Its times are those from before.
    /// Operations were tried again so many times.
    Listed {
        dir: DirId,
        subdirs: u64,
        excluded: u64,
        before: Option<DirBefore>,
        failure: Option<Failure>,
        retries: u64,
    },
    /// A source's own `.pcopy`, which is not copied.
    StateSkipped { source: u16 },
    /// A directory on another file system than its source, where the user wants one only.
    NotEntered { path: RelPath },
}

/// Which entries of the sources are to be copied.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub filter: Filter,
    /// Of the one source, if not everything.
    pub selection: Option<Selection>,
    pub one_file_system: bool,
}

/// The scan's threads. They end when everything was listed, and the channel with them.
pub struct Scan {
    pub events: Receiver<ScanEvent>,
    threads: Vec<JoinHandle<()>>,
}

/// The open roots of both trees.
pub struct Roots {
    /// One a source: the directory that it is, or that holds it.
    pub sources: Vec<Arc<OwnedFd>>,
    /// The copy's root.
    pub destination: Arc<OwnedFd>,
    /// How sources are opened.
    pub reading: Reading,
    /// Each new directory has to be made durable on its own.
    pub sync_dirs: bool,
    /// Directories that a thread may keep open on each side.
    pub cached_dirs: usize,
}

struct Pending {
    parent: Option<DirId>,
    source: u16,
    /// Below the root of the copy.
    path: RelPath,
    /// Those that hold it, where symbolic links are followed.
    ancestors: Option<Arc<Ancestor>>,
    below: Below,
}

/// What of a directory is to be listed.
#[derive(Clone, Default)]
struct Below {
    /// What the selection asks for in it; `None` for everything.
    selected: Option<Range<usize>>,
    /// A symbolic link leads to it.
    linked: bool,
}

struct Shared {
    job: Arc<Job>,
    choice: Choice,
    recorded: Recorded,
    source_metas: Vec<Meta>,
    destination_meta: Meta,
    reading: Reading,
    sync_dirs: bool,
    stack: Mutex<Stack>,
    changed: Condvar,
    next_id: AtomicU64,
}

impl Shared {
    /// Whether a directory is not entered, because it is on another file system than its source.
    fn leaves_alone(&self, source: u16, meta: &Meta) -> bool {
        self.choice.one_file_system && meta.dev != self.source_metas[usize::from(source)].dev
    }
}

#[derive(Default)]
struct Stack {
    pending: Vec<Pending>,
    /// Threads that may still add to it.
    busy: usize,
}

impl Scan {
    /// Starts to list what is chosen of the job's sources with `threads` threads.
    ///
    /// # Errors
    /// A root that cannot be looked at, a thread that cannot be started.
    pub fn start(
        job: &Arc<Job>,
        roots: &Roots,
        (choice, recorded): (Choice, Recorded),
        threads: usize,
        singles: &[(u16, Kind)],
    ) -> std::io::Result<Self> {
        let (sender, events) = bounded(CHANNEL_LEN);
        let tops = job.sources.iter().zip(0u16..).filter(|(source, _)| source.single.is_none());
        let selected = choice.selection.as_ref().filter(|list| !list.has_root()).map(Selection::all);
        let pending = tops.map(|(source, index)| Pending {
            parent: None,
            source: index,
            path: source.target.clone(),
            ancestors: None,
            below: Below { selected: selected.clone(), linked: false },
        });
        let shared = Arc::new(Shared {
            job: Arc::clone(job),
            source_metas: roots.sources.iter().map(Meta::of).collect::<Result<_, _>>()?,
            destination_meta: Meta::of(&roots.destination)?,
            reading: roots.reading,
            sync_dirs: roots.sync_dirs,
            choice,
            recorded,
            stack: Mutex::new(Stack { pending: pending.collect(), busy: 0 }),
            changed: Condvar::new(),
            next_id: AtomicU64::new(0),
        });
        let mut handles = Vec::new();
        let mut singles = singles.to_vec();
        for index in 0..threads {
            let mut scanner = Scanner::new(&shared, roots, sender.clone());
            let singles = std::mem::take(&mut singles);
            handles.push(thread::Builder::new().name(format!("scan {index}")).spawn(move || scanner.run(&singles))?);
        }
        Ok(Self { events, threads: handles })
    }

    /// Waits for the threads, which end when everything was listed, or when they find that nobody listens any more.
    pub fn join(self) {
        let Self { events, threads } = self;
        drop(events);
        for thread in threads {
            // a panic has ended the job before
            let _ = thread.join();
        }
    }
}

struct Scanner {
    shared: Arc<Shared>,
    events: Sender<ScanEvent>,
    sources: DirCache,
    destination: DirCache,
    retry: Retry,
    /// Operations that were tried again in the directory that is being listed.
    retries: u64,
    /// Of what is recorded, the part that was looked at last.
    block: Block,
}

/// The coordinator is gone: the job is over.
struct Gone;

impl Scanner {
    fn new(shared: &Arc<Shared>, roots: &Roots, events: Sender<ScanEvent>) -> Self {
        let destination = DirCache::new(vec![Arc::clone(&roots.destination)], roots.cached_dirs);
        Self {
            sources: DirCache::new(roots.sources.clone(), roots.cached_dirs).reading(roots.reading),
            destination,
            retry: Retry::new(shared.job.tuning.retries),
            retries: 0,
            block: Block::default(),
            shared: Arc::clone(shared),
            events,
        }
    }

    fn run(&mut self, singles: &[(u16, Kind)]) {
        let listed = singles.iter().try_for_each(|&(source, kind)| self.single(source, kind));
        if listed.is_err() {
            return;
        }
        while let Some(pending) = self.next() {
            let gone = self.list(pending, 0).is_err();
            self.lock().busy -= 1;
            self.shared.changed.notify_all();
            if gone {
                return;
            }
        }
    }

    /// Tries again what failed in a way that may pass; `what` is told whether it is tried again.
    fn retried<T>(&mut self, what: impl FnMut(&mut Self, bool) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut retry = self.retry.clone();
        let result = retry.run(self, what, |me| {
            me.sources.clear();
            me.destination.clear();
            me.retries += 1;
            true
        });
        self.retry = retry;
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stack> {
        self.shared.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next directory; waits while other threads may still find some.
    fn next(&self) -> Option<Pending> {
        let mut stack = self.lock();
        loop {
            if let Some(pending) = stack.pending.pop() {
                stack.busy += 1;
                return Some(pending);
            }
            if stack.busy == 0 {
                return None;
            }
            stack = self.shared.changed.wait(stack).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn new_id(&self) -> DirId {
        self.shared.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, event: ScanEvent) -> Result<(), Gone> {
        self.events.send(event).map_err(|_| Gone)
    }

    fn single(&mut self, source: u16, kind: Kind) -> Result<(), Gone> {
        let shared = Arc::clone(&self.shared);
        let target = &shared.job.sources[usize::from(source)].target;
        let (path, name) = target.split().expect("a single entry has a name of its own in the copy");
        let id = self.new_id();
        let event = match shared.recorded.find(target, name, kind, &mut self.block) {
            Some(known) => ScanEvent::Known { dir: id, entries: vec![known] },
            None => ScanEvent::Names { dir: id, names: Names::one(name, kind) },
        };
        self.send(ScanEvent::Single { id, source, path })?;
        self.send(event)?;
        self.send(ScanEvent::Listed { dir: id, subdirs: 0, excluded: 0, before: None, failure: None, retries: 0 })
    }

    fn list(&mut self, pending: Pending, nested: usize) -> Result<(), Gone> {
        let Pending { parent, source, path, ancestors, below: Below { selected, linked } } = pending;
        let id = self.new_id();
        self.send(ScanEvent::Dir { id, parent, source, path: path.clone() })?;
        let opened = self.retried(|me, again| {
            let (dir, meta) = me.open_source(source, &path, ancestors.as_ref(), linked)?;
            Ok((dir, meta, me.make_dir(&path, again)?))
        });
        let (dir, meta, mode_there) = match opened {
            Ok(opened) => opened,
            Err(failure) => return self.listed(id, (0, 0), None, Some(failure)),
        };
        let before = DirBefore { atime: meta.atime, mtime: meta.mtime, ctime: meta.ctime, mode_there };
        let before = Some(before);
        let shared = Arc::clone(&self.shared);
        if shared.leaves_alone(source, &meta) {
            self.send(ScanEvent::NotEntered { path })?;
            return self.listed(id, (0, 0), before, None);
        }
        let top = &shared.job.sources[usize::from(source)].target;
        let below = path.strip(top).expect("the scan's paths are below their source's target");
        let follows = self.shared.reading.follow;
        let mut listing = Listing {
            id,
            source,
            is_top: below.is_root(),
            path: &path,
            dir: &dir,
            ancestors: follows.then(|| Arc::new(Ancestor { meta, parent: ancestors })),
            nested,
            names: Names::default(),
            known: Vec::new(),
            subdirs: 0,
            excluded: 0,
            gone: false,
        };
        let ended = match (selected, &shared.choice.selection) {
            (Some(range), Some(selection)) => {
                self.list_selected(&mut listing, selection, &below, range);
                Ok(())
            }
            _ => self.retried(|me, _| me.list_all(&mut listing)).and_then(|listed| listed),
        };
        let Listing { names, known, subdirs, excluded, gone, .. } = listing;
        if gone {
            return Err(Gone);
        }
        if !names.is_empty() {
            self.send(ScanEvent::Names { dir: id, names })?;
        }
        if !known.is_empty() {
            self.send(ScanEvent::Known { dir: id, entries: known })?;
        }
        self.listed(id, (subdirs, excluded), before, ended.err())
    }

    fn listed(
        &mut self,
        dir: DirId,
        (subdirs, excluded): (u64, u64),
        before: Option<DirBefore>,
        failure: Option<Failure>,
    ) -> Result<(), Gone> {
        let retries = std::mem::take(&mut self.retries);
        self.send(ScanEvent::Listed { dir, subdirs, excluded, before, failure, retries })
    }

    /// Adds a directory to the stack, or gives it back to be listed at once.
    fn push(&self, pending: Pending, nested: usize) -> Option<Pending> {
        let mut stack = self.lock();
        if stack.pending.len() >= MAX_PENDING && nested < MAX_NESTED {
            return Some(pending);
        }
        stack.pending.push(pending);
        drop(stack);
        self.shared.changed.notify_one();
        None
    }
}

fn failure(op: Op, side: Side, err: Errno) -> Failure {
    Failure { op, side, errno: err as i32 }
}
