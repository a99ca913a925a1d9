//! The scan: rank 0's threads list the source directories and make the destination's, names and types
//! only, and hand what they find to the coordinator through a bounded channel.
//!
//! The channel is the back-pressure: when the coordinator does not read, the threads wait. Pending
//! directories are a stack, so that the scan goes deep before it goes wide; when the stack is long, a
//! thread lists a new directory at once instead of adding it. Ranks with nothing to do take directories
//! from the stack too ([`Scan::lend`]).

mod lend;
mod lister;
mod listing;
mod loops;
mod open;
mod recorded;

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
pub use lend::Lent;
pub use lister::{Found, Listed, Lister, Rooms, names_in};
use listing::Listing;
use loops::Ancestor;
pub use open::open_destination;
pub use recorded::Recorded;

use crate::collision::COLLISION;
use crate::guard::{EXCHANGED, Guard};
use crate::journal::Block;
use crate::policy::Selection;
use crate::proto::{DirBefore, Job, Known, KnownEntry, MAX_BATCH_LEN, Names};
use crate::retry::Lag;
use crate::state::{self, Standing};
use crate::sys::{Errno, Reading, Unsynced};
use crate::types::{DirPath, Failure, Kind, NameSet, Op, RelPath, Side};
use crate::watch;

/// The number of a directory in this job.
pub type DirId = u64;

/// Threads of a scan, at most; listing names scales to about four.
pub const MAX_SCAN_THREADS: usize = 4;
/// Messages that wait in the channel, at most; each holds two batches at most.
const CHANNEL_LEN: usize = 128;
/// How long a thread keeps what it has found to itself, while it goes on.
const MAX_KEPT: Duration = Duration::from_millis(1);
/// Events that it keeps, at most.
const MAX_KEPT_EVENTS: usize = 32;
/// Directories that wait to be listed, at most, before new ones are listed at once; and bytes of memory that they take.
const MAX_PENDING: usize = 100_000;
const MAX_PENDING_LEN: usize = 24 << 20;
/// How deep a thread goes with that.
const MAX_NESTED: usize = 32;
/// Bytes of a directory's path below the copy's root: sixteen times what the system takes in one call.
const MAX_PATH_LEN: usize = 64 << 10;

/// What the scan found. Events of one directory come in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanEvent {
    /// A directory, whose own entry ends when everything in it has.
    Dir { id: DirId, parent: Option<DirId>, source: u16, path: DirPath },
    /// The place of a source that is a single entry; it is no entry itself.
    Single { id: DirId, source: u16, path: DirPath },
    /// Some of a directory's entries, without its directories.
    Names { dir: DirId, names: Names },
    /// Some of a directory's entries, which earlier runs have recorded or begun.
    Known { dir: DirId, entries: Vec<Known> },
    /// All of a directory has been seen; `failure` if it could not be. Its times are those from before; `recorded` is what
    /// earlier runs have recorded of it, where it may be left as it is. Operations were tried again so many times.
    Listed {
        dir: DirId,
        subdirs: u64,
        excluded: u64,
        before: Option<DirBefore>,
        recorded: Option<KnownEntry>,
        failure: Option<Failure>,
        retries: u64,
    },
    /// A source's own `.pcopy`, which is not copied.
    StateSkipped { source: u16 },
    /// The state directory of a copy below the source that is not complete; it is copied like any other.
    IncompleteBelow { path: RelPath },
    /// A directory on another file system than its source, where the user wants one only.
    NotEntered { path: RelPath },
}

impl ScanEvent {
    /// The place of a single entry holds nothing else.
    fn of_single(dir: DirId) -> Self {
        Self::Listed { dir, subdirs: 0, excluded: 0, before: None, recorded: None, failure: None, retries: 0 }
    }

    /// Bytes of memory beside those of every event, about.
    fn byte_len(&self) -> usize {
        match self {
            Self::Dir { path, .. } | Self::Single { path, .. } => path.own_len(),
            Self::NotEntered { path } | Self::IncompleteBelow { path } => path.as_bytes().len(),
            Self::Names { names, .. } => names.byte_len(),
            Self::Known { entries, .. } => entries.iter().map(Known::byte_len).sum(),
            Self::Listed { recorded, .. } => recorded.as_ref().map_or(0, |entry| entry.record.len()),
            Self::StateSkipped { .. } => 0,
        }
    }
}

/// The scan's threads. They end when everything was listed, and the channel with them.
pub struct Scan {
    /// In the order in which a thread found them; of several threads, each event after what it follows from.
    pub events: Receiver<Vec<ScanEvent>>,
    shared: Arc<Shared>,
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
    pub guard: Arc<Guard>,
    /// Directories that have to be made durable on their own, if that has to be.
    pub unsynced: Option<Arc<Unsynced>>,
    /// Where a name may not be known yet.
    pub lag: Lag,
    /// Directories that a thread may keep open on each side.
    pub cached_dirs: usize,
}

struct Pending {
    /// Of one that the coordinator knows: a rank had begun to list it.
    id: Option<DirId>,
    parent: Option<DirId>,
    source: u16,
    /// Below the root of the copy.
    path: DirPath,
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
    rooms: Arc<Rooms>,
    selection: Option<Selection>,
    recorded: Recorded,
    stack: Mutex<Stack>,
    changed: Condvar,
    next_id: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_id(&self) -> DirId {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Stack {
    pending: Vec<Pending>,
    /// Bytes of memory that they take, about.
    pending_len: usize,
    /// Who may still add to it: threads, and directories that ranks list.
    busy: usize,
    /// Nobody is to wait for more.
    over: bool,
}

impl Pending {
    /// Bytes of memory, about.
    fn byte_len(&self) -> usize {
        size_of::<Self>() + self.path.own_len()
    }
}

impl Stack {
    fn push(&mut self, pending: Pending) {
        self.pending_len += pending.byte_len();
        self.pending.push(pending);
    }

    /// The directory that was found last, if it is one that is asked for.
    fn pop_if(&mut self, is_asked_for: impl FnOnce(&mut Pending) -> bool) -> Option<Pending> {
        let pending = self.pending.pop_if(is_asked_for)?;
        self.pending_len -= pending.byte_len();
        Some(pending)
    }

    /// Whether `times` as many directories wait, or bytes of them, as the limit at which a thread lists new ones at once.
    fn is_full(&self, times: usize) -> bool {
        self.pending.len() >= times * MAX_PENDING || self.pending_len >= times * MAX_PENDING_LEN
    }
}

impl Scan {
    /// Starts to list what is chosen of the job's sources with `threads` threads.
    ///
    /// # Errors
    /// A root that cannot be looked at, a thread that cannot be started.
    pub fn start(
        job: &Arc<Job>,
        roots: &Roots,
        (selection, recorded): (Option<Selection>, Recorded),
        threads: usize,
        singles: &[(u16, Kind)],
    ) -> std::io::Result<Self> {
        let (sender, events) = bounded(CHANNEL_LEN);
        let tops = job.sources.iter().zip(0u16..).filter(|(source, _)| source.single.is_none());
        let selected = selection.as_ref().filter(|list| !list.has_root()).map(Selection::all);
        let pending = tops.map(|(source, index)| Pending {
            id: None,
            parent: None,
            source: index,
            path: source.target.clone().into(),
            ancestors: None,
            below: Below { selected: selected.clone(), linked: false },
        });
        let mut stack = Stack::default();
        pending.for_each(|pending| stack.push(pending));
        let shared = Arc::new(Shared {
            rooms: Arc::new(Rooms::new(job, roots)?),
            selection,
            recorded,
            stack: Mutex::new(stack),
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
        Ok(Self { events, shared, threads: handles })
    }

    /// Waits for the threads, which end when everything was listed.
    pub fn join(self) {
        for thread in self.halt().0 {
            // a panic has ended the job before
            let _ = thread.join();
        }
    }

    /// Tells the threads to end, and does not wait for them.
    pub fn halt(self) -> Halting {
        let Self { events, shared, threads } = self;
        drop(events);
        shared.lock().over = true;
        shared.changed.notify_all();
        Halting(threads)
    }
}

/// The threads of a scan that was told to end.
#[derive(Default)]
pub struct Halting(Vec<JoinHandle<()>>);

impl Halting {
    /// Whether all of them have ended.
    pub fn has_ended(&self) -> bool {
        self.0.iter().all(JoinHandle::is_finished)
    }
}

struct Scanner {
    shared: Arc<Shared>,
    events: Sender<Vec<ScanEvent>>,
    /// Events that were not sent yet, how many bytes they have, about, and since when.
    kept: Vec<ScanEvent>,
    kept_len: usize,
    kept_since: Instant,
    lister: Lister,
    /// Of what is recorded, the part that was looked at last.
    block: Block,
}

/// The coordinator is gone: the job is over.
struct Gone;

impl Scanner {
    fn new(shared: &Arc<Shared>, roots: &Roots, events: Sender<Vec<ScanEvent>>) -> Self {
        // a scan that is to halt finds that nobody listens any more
        let lister = Lister::new(&shared.rooms, roots, &Arc::default());
        Self {
            shared: Arc::clone(shared),
            events,
            kept: Vec::new(),
            kept_len: 0,
            kept_since: Instant::now(),
            lister,
            block: Block::default(),
        }
    }

    fn run(&mut self, singles: &[(u16, Kind)]) {
        let listed = singles.iter().try_for_each(|&(source, kind)| self.single(source, kind));
        if listed.is_err() {
            return;
        }
        while let Some(pending) = self.next() {
            let listed = self.list(pending, 0).and_then(|()| self.send_if_late());
            watch::end();
            self.shared.lock().busy -= 1;
            self.shared.changed.notify_all();
            if listed.is_err() {
                return;
            }
        }
    }

    /// As [`Lister::retried`].
    fn retried<T>(&mut self, what: impl FnMut(&mut Self, bool) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut retry = self.lister.retry.clone();
        let result = retry.run(self, what, |me| me.lister.tries_again());
        self.lister.retry = retry;
        result
    }

    /// The next directory; waits while other threads may still find some.
    fn next(&mut self) -> Option<Pending> {
        let shared = Arc::clone(&self.shared);
        let mut stack = shared.lock();
        loop {
            if let Some(pending) = stack.pop_if(|_| true) {
                stack.busy += 1;
                return Some(pending);
            }
            if !self.kept.is_empty() {
                // before a wait, which may be long
                drop(stack);
                self.send_kept().ok()?;
                stack = shared.lock();
                continue;
            }
            if stack.busy == 0 || stack.over {
                return None;
            }
            stack = shared.changed.wait(stack).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn keep(&mut self, event: ScanEvent) {
        watch::goes_on();
        if self.kept.is_empty() {
            self.kept_since = Instant::now();
        }
        self.kept_len += event.byte_len();
        self.kept.push(event);
    }

    /// Sends an event, and what was kept before it.
    fn send(&mut self, event: ScanEvent) -> Result<(), Gone> {
        self.keep(event);
        self.send_kept()
    }

    fn send_kept(&mut self) -> Result<(), Gone> {
        if self.kept.is_empty() {
            return Ok(());
        }
        self.kept_len = 0;
        self.events.send(std::mem::take(&mut self.kept)).map_err(|_| Gone)
    }

    /// Sends what was kept, if it is much or was kept for long.
    fn send_if_late(&mut self) -> Result<(), Gone> {
        let few = self.kept.len() < MAX_KEPT_EVENTS && self.kept_len < MAX_BATCH_LEN;
        if few && self.kept_since.elapsed() < MAX_KEPT { Ok(()) } else { self.send_kept() }
    }

    fn single(&mut self, source: u16, kind: Kind) -> Result<(), Gone> {
        let shared = Arc::clone(&self.shared);
        let target = &shared.rooms.job.sources[usize::from(source)].target;
        let (path, name) = target.split().expect("a single entry has a name of its own in the copy");
        let id = shared.new_id();
        let event = match shared.recorded.find(target, name, kind, &mut self.block) {
            Some(known) => ScanEvent::Known { dir: id, entries: vec![known] },
            None => ScanEvent::Names { dir: id, names: Names::one(name, kind) },
        };
        self.keep(ScanEvent::Single { id, source, path: path.into() });
        self.keep(event);
        self.send(ScanEvent::of_single(id))
    }

    fn list(&mut self, pending: Pending, nested: usize) -> Result<(), Gone> {
        let Pending { id, parent, source, path: dir_path, ancestors, below: Below { selected, linked } } = pending;
        let path = dir_path.to_path();
        watch::begin(path.as_bytes(), b"");
        let id = match id {
            Some(known) => known,
            None => {
                let id = self.shared.new_id();
                self.keep(ScanEvent::Dir { id, parent, source, path: dir_path.clone() });
                id
            }
        };
        let opened = self.lister.retried(|me, again| {
            let (dir, meta) = me.open_source(source, &path, ancestors.as_ref(), linked)?;
            let there = me.make_dir((source, &path), (&dir, &meta), again)?;
            Ok((dir, meta, there))
        });
        let (dir, meta, there) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                self.listed(id, (0, 0), None, None, Some(failure));
                return Ok(());
            }
        };
        let mut before = DirBefore::new(&meta, there);
        let shared = Arc::clone(&self.shared);
        if shared.rooms.leaves_alone(source, &meta) {
            self.keep(ScanEvent::NotEntered { path });
            self.listed(id, (0, 0), Some(before), None, None);
            return Ok(());
        }
        let is_state = dir_path.name() == state::DIR_NAME;
        // A state that another user wrote is not reported.
        if is_state
            && state::is_trusted(&meta)
            && matches!(state::standing_of_state(dir.as_fd()), Standing::Incomplete(_))
        {
            self.keep(ScanEvent::IncompleteBelow { path: path.clone() });
        }
        let top = &shared.rooms.job.sources[usize::from(source)].target;
        let below = path.strip(top).expect("the scan's paths are below their source's target");
        let follows = shared.rooms.reading.follow;
        let mut listing = Listing {
            id,
            source,
            is_top: below.is_root(),
            path: &path,
            dir_path: &dir_path,
            dir: &dir,
            ancestors: follows.then(|| Arc::new(Ancestor { meta, parent: ancestors })),
            nested,
            names: Names::default(),
            seen: NameSet::default(),
            known: Vec::new(),
            known_len: 0,
            subdirs: 0,
            excluded: 0,
            gone: false,
        };
        let ended = match (selected, &shared.selection) {
            (Some(range), Some(selection)) => {
                self.list_selected(&mut listing, selection, &below, range);
                Ok(())
            }
            _ => {
                let listed = self.retried(|me, _| me.list_all(&mut listing)).and_then(|listed| listed);
                before.names = Some(listing.seen);
                self.lister.take_later_times(&dir, &mut before);
                listed
            }
        };
        let Listing { names, known, subdirs, excluded, gone, .. } = listing;
        if gone {
            return Err(Gone);
        }
        if !names.is_empty() {
            self.keep(ScanEvent::Names { dir: id, names });
        }
        if !known.is_empty() {
            self.keep(ScanEvent::Known { dir: id, entries: known });
        }
        // a run that did not come to its end may have left something in a directory that another one had ended
        let job = &shared.rooms.job;
        let can_be_left = ended.is_ok() && job.began.is_none() && job.abandoned.is_empty();
        let recorded = can_be_left.then(|| shared.recorded.record(&path, &mut self.block)).flatten();
        self.listed(id, (subdirs, excluded), Some(before), recorded, ended.err());
        Ok(())
    }

    fn listed(
        &mut self,
        dir: DirId,
        (subdirs, excluded): (u64, u64),
        before: Option<DirBefore>,
        recorded: Option<KnownEntry>,
        failure: Option<Failure>,
    ) {
        let retries = std::mem::take(&mut self.lister.retries);
        self.keep(ScanEvent::Listed { dir, subdirs, excluded, before, recorded, failure, retries });
    }

    /// Adds a directory to the stack, or gives it back to be listed at once.
    fn push(&self, pending: Pending, nested: usize) -> Option<Pending> {
        let mut stack = self.shared.lock();
        if stack.is_full(1) && nested < MAX_NESTED {
            return Some(pending);
        }
        stack.push(pending);
        drop(stack);
        self.shared.changed.notify_one();
        None
    }
}

fn failure(op: Op, side: Side, err: Errno) -> Failure {
    match err {
        EXCHANGED => Failure::EXCHANGED,
        COLLISION => Failure::COLLISION,
        err => Failure { op, side, errno: err as i32 },
    }
}
