//! The scan: rank 0's threads list the source directories and make the destination's, names and types
//! only, and hand what they find to the coordinator through a bounded channel.
//!
//! The channel is the back-pressure: when the coordinator does not read, the threads wait. Pending
//! directories are a stack, so that the scan goes deep before it goes wide; when the stack is long, a
//! thread lists a new directory at once instead of adding it.

mod loops;

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use loops::{Ancestor, is_inside};

use crate::journal::{Base, Partials};
use crate::policy::{Filter, Selection};
use crate::proto::{DirBefore, Job, Known, KnownEntry, MAX_BATCH_KNOWN, MAX_BATCH_LEN, MAX_BATCH_NAMES, Names};
use crate::retry::Retry;
use crate::state;
use crate::sys::{DirCache, Errno, Meta, Reading, list, make_dir, mode_before, open_dir_at, strip_dir_acls, sync_dir};
use crate::types::{Failure, Kind, Op, Outcome, RelPath, Side};

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

/// What earlier runs of the job have recorded.
#[derive(Clone, Default)]
pub struct Recorded {
    pub base: Arc<Base>,
    pub partials: Arc<Partials>,
}

impl Recorded {
    fn is_empty(&self) -> bool {
        self.base.is_empty() && self.partials.is_empty()
    }

    /// What is recorded of an entry. One whose record cannot be read is copied again.
    fn find(&self, path: &RelPath, name: &[u8], kind: Kind) -> Option<Known> {
        let entry = self.base.find(path).ok().flatten().and_then(|(number, record)| match record.outcome {
            Outcome::Done(mut facts) => {
                let was_link = facts.hardlink.take().is_some();
                Some(KnownEntry { number, kind: record.kind, facts, was_link })
            }
            Outcome::Failed(_) => None,
        });
        let partial = self.partials.get(path).map(|there| there.partial);
        (entry.is_some() || partial.is_some()).then(|| Known { name: name.to_vec(), kind, entry, partial })
    }
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
        let event = match shared.recorded.find(target, name, kind) {
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

    /// All names. The outer failure may be tried again; the inner one comes after names that were seen, which must not be
    /// seen twice.
    fn list_all(&mut self, listing: &mut Listing<'_>) -> Result<Result<(), Failure>, Failure> {
        let failed = |err| failure(Op::List, Side::Source, err);
        let stream = open_dir_at(listing.dir.as_fd(), b".", self.shared.reading).map_err(failed)?;
        let (mut unknown, mut seen) = (None, false);
        let listed = list(stream, |entry| {
            seen = true;
            if listing.gone || unknown.is_some() {
                return;
            }
            let linked = self.shared.reading.follow && entry.kind.is_none_or(|kind| kind == Kind::Symlink);
            match entry.kind.filter(|_| !linked).map_or_else(|| self.kind_of(listing.dir, entry.name), Ok) {
                Ok(kind) => self.found(listing, entry.name, kind, Below { linked, selected: None }),
                // gone again since it was listed, or a link that leads nowhere: who opens it will tell
                Err(_) if linked => self.found(listing, entry.name, Kind::File, Below::default()),
                Err(Errno::ENOENT) => {}
                Err(err) => unknown = Some(err),
            }
        });
        match (listed, unknown) {
            (Err(err), _) if !seen => Err(failed(err)),
            (Err(err), _) | (Ok(()), Some(err)) => Ok(Err(failed(err))),
            (Ok(()), None) => Ok(Ok(())),
        }
    }

    /// The names that a list asks for. What is not there is handed on as a file: who opens it will tell.
    fn list_selected(
        &mut self,
        listing: &mut Listing<'_>,
        selection: &Selection,
        below: &RelPath,
        range: Range<usize>,
    ) {
        for selected in selection.names_in(below, range) {
            let kind = self.kind_of(listing.dir, selected.name).unwrap_or(Kind::File);
            let linked = self.shared.reading.follow;
            if selected.whole {
                self.found(listing, selected.name, kind, Below { linked, selected: None });
            } else if kind == Kind::Dir {
                let below = Below { linked, selected: Some(selected.below.clone()) };
                self.found(listing, selected.name, kind, below);
            }
            if kind != Kind::Dir && !selected.below.is_empty() && !listing.gone {
                listing.gone = selection.paths(selected.below).any(|path| self.missing(listing.source, path).is_err());
            }
        }
    }

    /// An entry of a list below what is no directory: it has no parent that could wait for it.
    fn missing(&mut self, source: u16, below: &RelPath) -> Result<(), Gone> {
        let path = self.shared.job.sources[usize::from(source)].target.append(below);
        let (path, name) = path.split().expect("the source itself is there");
        let id = self.new_id();
        self.send(ScanEvent::Single { id, source, path })?;
        self.send(ScanEvent::Names { dir: id, names: Names::one(name, Kind::File) })?;
        self.send(ScanEvent::Listed { dir: id, subdirs: 0, excluded: 0, before: None, failure: None, retries: 0 })
    }

    /// One entry of a directory; of a directory in it, what is to be listed there.
    fn found(&mut self, listing: &mut Listing<'_>, name: &[u8], kind: Kind, below: Below) {
        if listing.gone {
            return;
        }
        if listing.is_top && name == state::DIR_NAME {
            listing.gone = self.send(ScanEvent::StateSkipped { source: listing.source }).is_err();
            return;
        }
        if self.is_excluded(listing, name, kind == Kind::Dir) {
            listing.excluded += 1;
            return;
        }
        if kind == Kind::Dir {
            listing.subdirs += 1;
            let (parent, source, path) = (Some(listing.id), listing.source, listing.path.join(name));
            let pending = Pending { parent, source, path, ancestors: listing.ancestors.clone(), below };
            if let Some(pending) = self.push(pending, listing.nested) {
                listing.gone = self.list(pending, listing.nested + 1).is_err();
            }
            return;
        }
        let recorded = &self.shared.recorded;
        if !recorded.is_empty()
            && let Some(known) = recorded.find(&listing.path.join(name), name, kind)
        {
            listing.known.push(known);
            if listing.known.len() >= MAX_BATCH_KNOWN {
                let entries = std::mem::take(&mut listing.known);
                listing.gone = self.send(ScanEvent::Known { dir: listing.id, entries }).is_err();
            }
            return;
        }
        listing.names.push(name, kind);
        if listing.names.len() >= MAX_BATCH_NAMES || listing.names.byte_len() >= MAX_BATCH_LEN {
            let names = std::mem::take(&mut listing.names);
            listing.gone = self.send(ScanEvent::Names { dir: listing.id, names }).is_err();
        }
    }

    fn is_excluded(&self, listing: &Listing<'_>, name: &[u8], is_dir: bool) -> bool {
        let filter = &self.shared.choice.filter;
        if filter.is_empty() {
            return false;
        }
        let top = &self.shared.job.sources[usize::from(listing.source)].target;
        let dir = listing.path.strip(top).expect("the scan's paths are below their source's target");
        let slash: &[u8] = if dir.is_root() { b"" } else { b"/" };
        filter.excludes(&[slash, dir.as_bytes(), b"/", name].concat(), is_dir)
    }

    fn kind_of(&self, dir: &OwnedFd, name: &[u8]) -> Result<Kind, Errno> {
        let meta =
            if self.shared.reading.follow { Meta::reached(dir.as_fd(), name) } else { Meta::at(dir.as_fd(), name) };
        meta?.kind.ok_or(Errno::EOPNOTSUPP)
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

    /// Opens a directory of the source, unless it holds itself, or is the destination.
    fn open_source(
        &mut self,
        source: u16,
        path: &RelPath,
        ancestors: Option<&Arc<Ancestor>>,
        linked: bool,
    ) -> Result<(Arc<OwnedFd>, Meta), Failure> {
        self.check_len(path)?;
        let shared = Arc::clone(&self.shared);
        let below = path.strip(&shared.job.sources[usize::from(source)].target);
        let below = below.expect("the scan's paths are below their source's target");
        let dir = self.sources.open(usize::from(source), &below);
        let dir = dir.map_err(|err| failure(Op::Open, Side::Source, err))?;
        let meta = Meta::of(&dir).map_err(|err| failure(Op::Stat, Side::Source, err))?;
        // the destination may be mounted in the source
        let destination = &shared.destination_meta;
        let in_destination = if linked { is_inside(dir.as_fd(), destination) } else { Ok(meta.is_same(destination)) };
        let in_destination = in_destination.map_err(|err| failure(Op::Stat, Side::Source, err))?;
        let holds_itself = in_destination || Ancestor::has(ancestors, &meta);
        if holds_itself && !shared.leaves_alone(source, &meta) {
            return Err(Failure::LOOP);
        }
        Ok((dir, meta))
    }

    /// Makes the directory at the destination; the mode of one that is there already. When it is tried `again` the first
    /// time may have made it.
    fn make_dir(&mut self, path: &RelPath, again: bool) -> Result<Option<u32>, Failure> {
        let job = Arc::clone(&self.shared.job);
        let Some((parent, name)) = path.split().filter(|_| !job.policy.dry_run) else {
            return Ok(mode_before(&self.shared.destination_meta).filter(|_| !job.fresh));
        };
        let parent = self.destination.open(0, &parent).map_err(|err| failure(Op::Open, Side::Destination, err))?;
        let there = make_dir(parent.as_fd(), name, job.fresh && !again)
            .map_err(|err| failure(Op::Mkdir, Side::Destination, err))?;
        if job.fresh && there.is_some() {
            return Err(failure(Op::Mkdir, Side::Destination, Errno::EEXIST));
        }
        if there.is_none() && job.policy.strips_inherited_acls() {
            strip_dir_acls(parent.as_fd(), name).map_err(|err| failure(Op::Xattr, Side::Destination, err))?;
        }
        if there.is_none() && self.shared.sync_dirs {
            sync_dir(parent.as_fd()).map_err(|err| failure(Op::Fsync, Side::Destination, err))?;
        }
        Ok(there)
    }
}

/// A directory that is being listed.
struct Listing<'a> {
    id: DirId,
    source: u16,
    is_top: bool,
    /// Below the root of the copy.
    path: &'a RelPath,
    dir: &'a Arc<OwnedFd>,
    /// It, and those that hold it, where symbolic links are followed.
    ancestors: Option<Arc<Ancestor>>,
    nested: usize,
    /// Names that were not sent yet.
    names: Names,
    known: Vec<Known>,
    subdirs: u64,
    excluded: u64,
    gone: bool,
}

fn failure(op: Op, side: Side, err: Errno) -> Failure {
    Failure { op, side, errno: err as i32 }
}
