//! The scan: rank 0's threads list the source directories and make the destination's, names and types
//! only, and hand what they find to the coordinator through a bounded channel.
//!
//! The channel is the back-pressure: when the coordinator does not read, the threads wait. Pending
//! directories are a stack, so that the scan goes deep before it goes wide; when the stack is long, a
//! thread lists a new directory at once instead of adding it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::proto::{Job, MAX_BATCH_LEN, MAX_BATCH_NAMES, Names};
use crate::sys::{DirCache, Errno, Meta, list, make_dir, open_dir_at};
use crate::types::{Failure, Kind, Op, RelPath, Side, Timestamp};

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
/// A source's own state from an earlier copy, at its top.
pub const STATE_DIR_NAME: &[u8] = b".pcopy";

/// What the scan found. Events of one directory come in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanEvent {
    /// A directory, whose own entry ends when everything in it has.
    Dir { id: DirId, parent: Option<DirId>, source: u16, path: RelPath },
    /// The place of a source that is a single entry; it is no entry itself.
    Single { id: DirId, source: u16, path: RelPath },
    /// Some of a directory's entries, without its directories.
    Names { dir: DirId, names: Names },
    /// All of a directory has been seen; `failure` if it could not be. Its atime is the one from before.
    Listed { dir: DirId, subdirs: u64, atime: Option<Timestamp>, failure: Option<Failure> },
    /// A source's own `.pcopy`, which is not copied.
    StateSkipped { source: u16 },
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
    /// Directories that a thread may keep open on each side.
    pub cached_dirs: usize,
}

struct Pending {
    parent: Option<DirId>,
    source: u16,
    /// Below the root of the copy.
    path: RelPath,
}

struct Shared {
    job: Arc<Job>,
    stack: Mutex<Stack>,
    changed: Condvar,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Stack {
    pending: Vec<Pending>,
    /// Threads that may still add to it.
    busy: usize,
}

impl Scan {
    /// Starts to list the job's sources with `threads` threads.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(job: &Arc<Job>, roots: &Roots, threads: usize, singles: &[(u16, Kind)]) -> std::io::Result<Self> {
        let (sender, events) = bounded(CHANNEL_LEN);
        let tops = job.sources.iter().zip(0u16..).filter(|(source, _)| source.single.is_none());
        let pending = tops.map(|(source, index)| Pending { parent: None, source: index, path: source.target.clone() });
        let shared = Arc::new(Shared {
            job: Arc::clone(job),
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

    /// Waits for the threads, after the channel has ended.
    pub fn join(self) {
        for thread in self.threads {
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
}

/// The coordinator is gone: the job is over.
struct Gone;

impl Scanner {
    fn new(shared: &Arc<Shared>, roots: &Roots, events: Sender<ScanEvent>) -> Self {
        let destination = DirCache::new(vec![Arc::clone(&roots.destination)], roots.cached_dirs);
        Self {
            sources: DirCache::new(roots.sources.clone(), roots.cached_dirs),
            destination,
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
        self.send(ScanEvent::Single { id, source, path })?;
        self.send(ScanEvent::Names { dir: id, names: Names::one(name, kind) })?;
        self.send(ScanEvent::Listed { dir: id, subdirs: 0, atime: None, failure: None })
    }

    fn list(&mut self, pending: Pending, nested: usize) -> Result<(), Gone> {
        let Pending { parent, source, path } = pending;
        let id = self.new_id();
        self.send(ScanEvent::Dir { id, parent, source, path: path.clone() })?;
        let opened = self.check_len(&path).and_then(|()| self.open_both(source, &path)).and_then(|dir| {
            let meta = Meta::of(&dir).map_err(|err| failure(Op::Stat, Side::Source, err))?;
            Ok((dir, meta.atime))
        });
        let (dir, atime) = match opened {
            Ok((dir, atime)) => (dir, Some(atime)),
            Err(failure) => {
                return self.send(ScanEvent::Listed { dir: id, subdirs: 0, atime: None, failure: Some(failure) });
            }
        };
        let (subdirs, failure) = match self.list_entries((id, source), &path, &dir, nested) {
            Ok(subdirs) => (subdirs, None),
            Err(Trouble::Gone) => return Err(Gone),
            Err(Trouble::Failed(failure, subdirs)) => (subdirs, Some(failure)),
        };
        self.send(ScanEvent::Listed { dir: id, subdirs, atime, failure })
    }

    fn list_entries(
        &mut self,
        (id, source): (DirId, u16),
        path: &RelPath,
        dir: &OwnedFd,
        nested: usize,
    ) -> Result<u64, Trouble> {
        let is_top = self.shared.job.sources[usize::from(source)].target == *path;
        let listing_fd = open_dir_at(dir.as_fd(), b".").map_err(|err| Trouble::listing(err, 0))?;
        let mut batch = Names::default();
        let (mut subdirs, mut gone) = (0, false);
        let mut unknown = None;
        let listed = list(listing_fd, |entry| {
            if gone || unknown.is_some() {
                return;
            }
            if is_top && entry.name == STATE_DIR_NAME {
                gone = self.send(ScanEvent::StateSkipped { source }).is_err();
                return;
            }
            let kind = match entry.kind.map_or_else(|| kind_of(dir, entry.name), Ok) {
                // gone again since it was listed
                Err(Errno::ENOENT) => return,
                Err(err) => {
                    unknown = Some(err);
                    return;
                }
                Ok(kind) => kind,
            };
            if kind == Kind::Dir {
                subdirs += 1;
                let pending = Pending { parent: Some(id), source, path: path.join(entry.name) };
                if let Some(pending) = self.push(pending, nested) {
                    gone = self.list(pending, nested + 1).is_err();
                }
                return;
            }
            batch.push(entry.name, kind);
            if batch.len() >= MAX_BATCH_NAMES || batch.byte_len() >= MAX_BATCH_LEN {
                let names = std::mem::take(&mut batch);
                gone = self.send(ScanEvent::Names { dir: id, names }).is_err();
            }
        });
        if !gone && !batch.is_empty() {
            gone = self.send(ScanEvent::Names { dir: id, names: batch }).is_err();
        }
        match listed.err().or(unknown) {
            _ if gone => Err(Trouble::Gone),
            Some(err) => Err(Trouble::listing(err, subdirs)),
            None => Ok(subdirs),
        }
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

    /// A path is walked, sent and recorded as a whole: a tree that is made endlessly deep must not stop the job.
    fn check_len(&self, path: &RelPath) -> Result<(), Failure> {
        if path.as_bytes().len() <= MAX_PATH_LEN {
            return Ok(());
        }
        Err(failure(Op::List, Side::Source, Errno::ENAMETOOLONG))
    }

    /// Opens a directory of the source and makes the destination's.
    fn open_both(&mut self, source: u16, path: &RelPath) -> Result<Arc<OwnedFd>, Failure> {
        let below = path.strip(&self.shared.job.sources[usize::from(source)].target);
        let below = below.expect("the scan's paths are below their source's target");
        if let Some((parent, name)) = path.split() {
            let parent = self.destination.open(0, &parent).map_err(|err| failure(Op::Open, Side::Destination, err))?;
            make_dir(parent.as_fd(), name, self.shared.job.fresh)
                .map_err(|err| failure(Op::Mkdir, Side::Destination, err))?;
        }
        self.sources.open(usize::from(source), &below).map_err(|err| failure(Op::Open, Side::Source, err))
    }
}

enum Trouble {
    Gone,
    /// And how many subdirectories were handed out before.
    Failed(Failure, u64),
}

impl Trouble {
    fn listing(err: Errno, subdirs: u64) -> Self {
        Self::Failed(failure(Op::List, Side::Source, err), subdirs)
    }
}

fn failure(op: Op, side: Side, err: Errno) -> Failure {
    Failure { op, side, errno: err as i32 }
}

fn kind_of(dir: &OwnedFd, name: &[u8]) -> Result<Kind, Errno> {
    Meta::at(dir.as_fd(), name)?.kind.ok_or(Errno::EOPNOTSUPP)
}
