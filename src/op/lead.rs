//! The loop of rank 0: feeds the coordinator with what the scan finds and ranks report, and sends its work out.
//!
//! One thread, which also speaks MPI; it never waits for one rank while another could go on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, never, select};

use super::checkpoint::{Checkpoints, Orders, OutOfOrder};
use super::limit::{self, Change, Limit};
use crate::comm::{Comm, Pause};
use crate::coordinator::{Assignment, Coordinator, CoordinatorError, Elsewhere};
use crate::journal::Base;
use crate::policy::Changes;
use crate::progress::Display;
use crate::proto::{Checkpoint, Hello, Message, Overdue, Records, Signal, TaskResult, Trouble};
use crate::scan::{Halting, Scan, ScanEvent};
use crate::signals::{SignalError, Signals};
use crate::sys::Errno;
use crate::types::{Call, Failure, Halt, Op, RelPath, Side, Stats, Verdict, escaped, one_line};
use crate::watch;
use crate::worker::{Worker, WorkerError};

/// What ends the job on rank 0.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    #[error("rank {0} sent {1}, which has no place here")]
    Unexpected(usize, &'static str),
    #[error("cannot start the thread that watches: {0}")]
    Watchdog(std::io::Error),
    #[error("cannot start the scan: {0}")]
    Scan(std::io::Error),
    #[error("internal error: {0}")]
    Counts(String),
    #[error("rank {0}: making the copy durable failed: {1}")]
    NotDurable(usize, Trouble),
    #[error("rank {0}: cannot write or read the journal: {1}")]
    Journal(usize, Trouble),
    #[error(transparent)]
    Signals(#[from] SignalError),
    #[error("another run has taken the copy over")]
    LockLost,
    /// Not an error of the job: it was told to stop.
    #[error("stopped")]
    Halted,
    #[error(transparent)]
    Checkpoint(#[from] OutOfOrder),
    #[error("--uid, --gid: acting as another user: {0}")]
    Acting(Errno),
    #[error("{0}: {1}")]
    State(String, std::io::Error),
    #[error("the manifest {0}: {1}")]
    Manifest(String, std::io::Error),
    #[error("told to stop, and this does not end: {phase}{awaited}")]
    GaveUp { stop: Stop, phase: &'static str, awaited: String },
}

/// Why a job stops before its end; the same command goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Signal(Signal),
    TimeLimit,
    NoSpace,
    FileSystemGone,
}

impl Stop {
    /// Why an operation failed, if nothing more can be done before somebody has seen to it.
    pub fn of_errno(errno: i32) -> Option<Self> {
        match Call::OnRecord.verdict(Side::Destination, Errno::from_raw(errno)) {
            Verdict::Halt(Halt::NoSpace) => Some(Self::NoSpace),
            Verdict::Halt(Halt::FileSystemGone) => Some(Self::FileSystemGone),
            _ => None,
        }
    }

    /// In a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Self::Signal(Signal::Terminate) => "SIGTERM",
            Self::Signal(Signal::Interrupt) => "SIGINT",
            Self::Signal(Signal::User1) => "SIGUSR1",
            Self::Signal(Signal::HangUp) => "SIGHUP",
            Self::Signal(Signal::CpuTime) => "SIGXCPU",
            Self::Signal(Signal::PowerFails) => "SIGPWR",
            Self::Signal(Signal::Progress) => "SIGUSR2",
            Self::TimeLimit => "time limit",
            Self::NoSpace => "no space",
            Self::FileSystemGone => "file system gone",
        }
    }
}

impl LeadError {
    /// Whether the job can go on once somebody has seen to the destination.
    pub fn stop(&self) -> Option<Stop> {
        match self {
            Self::NotDurable(_, trouble) | Self::Journal(_, trouble) => Stop::of_errno(trouble.errno),
            Self::Manifest(_, err) | Self::State(_, err) => Stop::of_errno(err.raw_os_error()?),
            Self::GaveUp { stop, .. } => Some(*stop),
            _ => None,
        }
    }
}

/// After a stop, threads whose call does not return are abandoned after half of the grace period, at most after this time.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The grace period of a stop without `--grace`, where no time limit gives another one.
pub const GRACE: Duration = Duration::from_secs(300);
/// They are abandoned after this time at the earliest, however short the grace period is.
const MIN_PATIENCE: Duration = Duration::from_secs(2);
/// Signals within this time count as one. Launchers send one to every rank.
pub const ONE_SIGNAL: Duration = Duration::from_secs(2);
/// Operations that are printed at a time, at most.
const MAX_TOLD: usize = 16;

/// Rank 0: its messages, its own share of the work, what it says.
pub struct Lead<'a> {
    pub comm: &'a mut Comm,
    pub worker: Option<Worker>,
    pub display: Display,
    /// What is waited for outside of the copy itself, in words.
    pub phase: &'static str,
    pause: Pause,
    signals: Signals,
    /// When to stop by itself, since the job's start.
    pub deadline: Option<Duration>,
    /// The job is to stop, or has stopped.
    pub stop: Option<Stop>,
    /// When the stop began, since the start of the job.
    stopped_at: Option<Duration>,
    /// When the last signal came that asks for a stop, since the start of the job; not SIGXCPU and SIGPWR.
    signalled_at: Option<Duration>,
    /// Further signals that ask for a stop.
    urged: u32,
    /// The longest time from the beginning of a stop to the end of the job.
    pub grace: Duration,
    /// Threads whose call does not return are abandoned.
    pub abandons: bool,
    /// Operations that have not returned for 30 s, by rank.
    overdue: BTreeMap<usize, Vec<Overdue>>,
    /// Rank and path of the operations that were printed when they were new.
    told_overdue: BTreeSet<(usize, Vec<u8>)>,
    /// Ranks that were asked for something and have not answered.
    pub awaited: BTreeSet<usize>,
    /// The host of each rank, once all have greeted.
    pub hosts: Vec<String>,
    /// Since the last checkpoint nothing could be written down.
    pub unrecorded: bool,
    /// Somebody wants to know how far the job is.
    asked: bool,
    /// How fast the ranks may read and write.
    pub limit: Limit,
    /// Failures that were shown, and those of them that are changes of the source.
    shown: (u64, u64),
}

/// A message to rank 0 as such.
pub enum Incoming {
    Hello(Hello),
    Report(Box<crate::proto::Report>),
    Checkpoint(Checkpoint),
    Stopped(Result<(), String>),
    Records(Records, bool),
}

impl<'a> Lead<'a> {
    pub fn new(comm: &'a mut Comm, worker: Option<Worker>, display: Display, signals: Signals) -> Self {
        Self {
            comm,
            worker,
            display,
            phase: "waiting for all ranks",
            pause: Pause::default(),
            signals,
            deadline: None,
            stop: None,
            stopped_at: None,
            signalled_at: None,
            urged: 0,
            grace: GRACE,
            abandons: false,
            overdue: BTreeMap::new(),
            told_overdue: BTreeSet::new(),
            awaited: BTreeSet::new(),
            hosts: Vec::new(),
            unrecorded: false,
            asked: false,
            limit: Limit::default(),
            shown: (0, 0),
        }
    }

    fn take_signal(&mut self, signal: Signal) {
        match signal {
            Signal::Progress => self.asked = true,
            // the first one is the reason
            signal => {
                let now = self.display.elapsed();
                // the kernel sends SIGXCPU again each second
                let is_wish = !matches!(signal, Signal::CpuTime | Signal::PowerFails);
                if is_wish && self.signalled_at.replace(now).is_some_and(|last| now - last > ONE_SIGNAL) {
                    self.urged += 1;
                }
                self.stop.get_or_insert(Stop::Signal(signal));
            }
        }
    }

    /// Whether threads whose call does not return are to be abandoned now.
    fn has_given_up(&self) -> bool {
        let since = self.stopped_at.map(|at| self.display.elapsed().saturating_sub(at));
        self.urged > 0 || since.is_some_and(|since| since >= (self.grace / 2).clamp(MIN_PATIENCE, PATIENCE))
    }

    /// Whether the grace period is over, or two more signals have come: the job ends without a checkpoint.
    fn is_out_of_time(&self) -> bool {
        let since = self.stopped_at.map(|at| self.display.elapsed().saturating_sub(at));
        self.urged > 1 || since.is_some_and(|since| since >= self.grace.max(PATIENCE))
    }

    fn take_overdue(&mut self, from: usize, overdue: Vec<Overdue>) {
        for operation in &overdue {
            // in a stop they are printed all at once
            let is_new = !self.abandons && self.told_overdue.len() < MAX_TOLD;
            if is_new && self.told_overdue.insert((from, operation.path.clone())) {
                self.tell(from, operation);
            }
        }
        match overdue.is_empty() {
            true => drop(self.overdue.remove(&from)),
            false => drop(self.overdue.insert(from, overdue)),
        }
    }

    fn tell(&self, rank: usize, operation: &Overdue) {
        let host = self.hosts.get(rank).map_or("", String::as_str);
        self.display.print(&told(rank, host, operation));
    }

    /// The ranks that have not answered, for a line.
    fn awaited(&self) -> String {
        let ranks: Vec<_> = self.awaited.iter().take(MAX_TOLD).map(ToString::to_string).collect();
        match (ranks.is_empty(), self.awaited.len() > MAX_TOLD) {
            (true, _) => String::new(),
            (false, false) => format!("; no answer of rank {}", ranks.join(", ")),
            (false, true) => format!("; no answer of rank {} and others", ranks.join(", ")),
        }
    }

    /// Prints the operations of all ranks that have not returned.
    fn tell_overdue(&self) {
        let all = || self.overdue.iter().flat_map(|(rank, overdue)| overdue.iter().map(|operation| (*rank, operation)));
        all().take(MAX_TOLD).for_each(|(rank, operation)| self.tell(rank, operation));
        let more = all().count().saturating_sub(MAX_TOLD);
        if more > 0 {
            self.display.print(&format!("pcopy: and {more} more operations have not returned"));
        }
    }

    /// Looks whether this process was signalled, and at the clock.
    fn look_around(&mut self) {
        while let Some(signal) = self.signals.take() {
            self.take_signal(signal);
        }
        if self.deadline.is_some_and(|deadline| self.display.elapsed() >= deadline) {
            self.stop.get_or_insert(Stop::TimeLimit);
        }
        if self.stop.is_some() && self.stopped_at.is_none() {
            self.stopped_at = Some(self.display.elapsed());
        }
        watch::looks_around();
    }

    /// Tells each rank its share of the limit, by its I/O threads.
    pub fn share_limit(&mut self, threads: &[u32]) {
        let all: u64 = threads.iter().copied().map(u64::from).sum();
        for (rank, &threads) in threads.iter().enumerate() {
            let share = |rate: u64| u128::from(rate) * u128::from(threads) / u128::from(all.max(1));
            let share = self.limit.rate().map(|rate| u64::try_from(share(rate)).expect("a part of it").max(1));
            self.comm.send(rank, &Message::Limit(share));
        }
    }

    /// Looks whether the limit was changed.
    fn look_at_limit(&mut self, threads: &[u32]) {
        match self.limit.look(self.display.elapsed()) {
            Some(Change::Rate(rate)) => {
                self.display.note(&format!("{}: {}", limit::FILE_NAME, limit::shown(rate)));
                self.share_limit(threads);
            }
            Some(Change::NotUnderstood(complaint)) => self.display.note(&complaint),
            None => {}
        }
    }

    /// Sends a message to every rank, this one too.
    pub fn send_to_all(&mut self, message: &Message) {
        for rank in 0..self.comm.size() {
            self.comm.send(rank, message);
        }
    }

    /// The next message to rank 0; messages to its worker are done on the way. `None` when there is none now.
    ///
    /// # Errors
    /// What ends the job.
    pub fn poll(&mut self) -> Result<Option<(usize, Incoming)>, LeadError> {
        if let Some(worker) = &mut self.worker {
            worker.send_events(self.comm);
        }
        self.look_around();
        while let Some((from, message)) = self.comm.receive().map_err(WorkerError::from)? {
            self.pause.reset();
            let incoming = match message {
                Message::Hello(hello) => Incoming::Hello(hello),
                // from a thread that was abandoned
                Message::Report(_) if self.abandons => continue,
                Message::Report(report) => Incoming::Report(report),
                Message::Checkpoint(
                    step @ (Checkpoint::Sealed(..) | Checkpoint::Synced(..) | Checkpoint::Committed(..)),
                ) => Incoming::Checkpoint(step),
                Message::Stopped(stopped) => Incoming::Stopped(stopped),
                Message::Signalled(signal) => {
                    self.take_signal(signal);
                    continue;
                }
                Message::Records { records, last } => Incoming::Records(records, last),
                Message::Overdue(overdue) => {
                    self.take_overdue(from, overdue);
                    continue;
                }
                other => {
                    match &mut self.worker {
                        Some(worker) if from == self.comm.rank() => worker.handle(self.comm, other)?,
                        _ => return Err(LeadError::Unexpected(from, "a message to a worker")),
                    };
                    continue;
                }
            };
            return Ok(Some((from, incoming)));
        }
        Ok(None)
    }

    /// The next message to rank 0, waited for; unless the job is to stop.
    ///
    /// # Errors
    /// What ends the job; [`LeadError::Halted`].
    pub fn next(&mut self) -> Result<(usize, Incoming), LeadError> {
        if self.stop.is_some() { Err(LeadError::Halted) } else { self.next_of_any() }
    }

    /// The next message to rank 0, waited for.
    ///
    /// # Errors
    /// What ends the job.
    pub fn next_of_any(&mut self) -> Result<(usize, Incoming), LeadError> {
        loop {
            if let Some(incoming) = self.poll()? {
                return Ok(incoming);
            }
            if let Some(stop) = self.stop.filter(|_| self.is_out_of_time()) {
                self.tell_overdue();
                return Err(LeadError::GaveUp { stop, phase: self.phase, awaited: self.awaited() });
            }
            self.display.tick_phase(self.phase, std::mem::take(&mut self.asked));
            match &mut self.worker {
                Some(worker) => worker.wait(self.comm, &mut self.pause)?,
                None => std::thread::sleep(self.pause.longer()),
            }
        }
    }

    /// Copies everything that the scan finds, or as much as can be before the job has to stop. `base` holds what earlier
    /// runs have recorded; `threads` is how many each rank has; `is_lost` says whether the lock is.
    ///
    /// # Errors
    /// What ends the job.
    pub fn run(
        &mut self,
        (coordinator, checkpoints): (&mut Coordinator, &mut Checkpoints),
        scan: Scan,
        (base, threads): (&Base, &[u32]),
        is_lost: impl Fn() -> bool,
    ) -> Result<(), LeadError> {
        let mut scan = Some(scan);
        let mut halting: Option<Halting> = None;
        let has_halted = |halting: &Option<Halting>| halting.as_ref().is_some_and(Halting::has_ended);
        while !(coordinator.is_finished() || coordinator.is_halted() && has_halted(&halting)) {
            if is_lost() {
                return Err(LeadError::LockLost);
            }
            if self.stop.is_some() && halting.is_none() {
                coordinator.halt();
                self.send_to_all(&Message::Halt);
                halting = Some(scan.take().map(Scan::halt).unwrap_or_default());
            }
            if self.has_given_up() {
                self.abandons = true;
                return Ok(());
            }
            while let Some((from, incoming)) = self.poll()? {
                self.take(coordinator, checkpoints, base, (from, incoming))?;
            }
            let moved = coordinator.progress().bytes_moved;
            if checkpoints.is_due(self.display.elapsed(), moved) {
                let orders = checkpoints.begin(moved);
                self.order(&orders);
            }
            self.read_scan(coordinator, &mut scan);
            while let Some(work) = coordinator.next_work() {
                self.give(work);
            }
            self.lend(coordinator, scan.as_ref());
            self.look_at_limit(threads);
            if self.display.tick(std::mem::take(&mut self.asked), || coordinator.progress()) {
                self.tell_overdue();
            }
            self.wait(coordinator, &mut scan)?;
        }
        if let Some(scan) = scan {
            scan.join();
        }
        Ok(())
    }

    fn order(&mut self, orders: &Orders) {
        for &rank in &orders.ranks {
            self.comm.send(rank, &Message::Checkpoint(orders.order.clone()));
        }
    }

    fn take_checkpoint(
        &mut self,
        checkpoints: &mut Checkpoints,
        from: usize,
        answer: &Checkpoint,
    ) -> Result<(), LeadError> {
        let orders = checkpoints.take(from, answer, self.display.elapsed())?;
        match answer {
            // what was lost may be of entries that are not sealed yet: nothing more may be written down
            Checkpoint::Synced(_, Err(trouble)) => return Err(LeadError::NotDurable(from, trouble.clone())),
            Checkpoint::Committed(_, Err(trouble)) => match Stop::of_errno(trouble.errno) {
                Some(stop) => {
                    self.unrecorded = true;
                    if self.stop.is_none() {
                        self.display.print(&format!("pcopy: error: the journal of rank {from}: {trouble}"));
                        self.stop = Some(stop);
                    }
                }
                None => return Err(LeadError::Journal(from, trouble.clone())),
            },
            _ => {}
        }
        if let Some(orders) = orders {
            self.order(&orders);
        }
        Ok(())
    }

    fn take(
        &mut self,
        coordinator: &mut Coordinator,
        checkpoints: &mut Checkpoints,
        base: &Base,
        (from, incoming): (usize, Incoming),
    ) -> Result<(), LeadError> {
        let report = match incoming {
            Incoming::Report(report) => report,
            Incoming::Checkpoint(answer) => return self.take_checkpoint(checkpoints, from, &answer),
            _ => return Err(LeadError::Unexpected(from, "a message that is no report")),
        };
        if let Some((path, failure)) = &report.halting {
            self.halt_for(coordinator, path, failure);
        }
        coordinator.report(from, &report)?;
        for result in &report.results {
            let (TaskResult::Known { confirmed, .. } | TaskResult::Dirs { confirmed }) = result else { continue };
            let all_there = confirmed.iter().all(|number| base.confirm(*number).is_some());
            if !all_there {
                return Err(LeadError::Unexpected(from, "an entry that nobody has recorded"));
            }
        }
        if report.full {
            checkpoints.note_full(from);
        }
        for (path, failure) in &report.failures {
            self.display.failure(path, failure);
            self.shown = (self.shown.0 + 1, self.shown.1 + u64::from(failure.op == Op::Changed));
        }
        let more = report.ended.errors.saturating_sub(report.failures.len() as u64);
        if more > 0 {
            self.display.print(&format!("pcopy: error: and {more} more entries beside them; the manifest has each"));
        }
        Ok(())
    }

    /// Tells what may be the reason when most entries have failed because their source changed.
    pub fn explain_changes(&mut self, stats: &Stats, changes: Changes) {
        let (shown, changed) = self.shown;
        if changes == Changes::Ctime && 2 * changed > shown && 2 * stats.errors > stats.entries() {
            self.display.note(
                "most sources changed while they were read: if their file system shows another ctime at each look, \
                 --changes=mtime copies them",
            );
        }
    }

    /// The job cannot go on: no space, no file system. What ranks report from here on may be broken off.
    fn halt_for(&mut self, coordinator: &mut Coordinator, path: &RelPath, failure: &Failure) {
        if self.stop.is_none() {
            self.display.failure(path, failure);
        }
        let stop = Stop::of_errno(failure.errno).unwrap_or(Stop::FileSystemGone);
        self.stop.get_or_insert(stop);
        coordinator.halt();
    }

    fn give(&mut self, work: Assignment) {
        self.comm.send(work.rank, &Message::Work { id: work.id, tasks: work.tasks });
        self.pause.reset();
    }

    /// Lets ranks that have nothing to do list what the scan has not come to.
    fn lend(&mut self, coordinator: &mut Coordinator, scan: Option<&Scan>) {
        let Some(scan) = scan.filter(|scan| scan.can_lend()) else { return };
        for listed in coordinator.take_listed() {
            match listed {
                Elsewhere::TooLong(lent) => scan.list_here(lent),
                Elsewhere::Listed { below, left_alone } => {
                    if let Some(path) = left_alone {
                        self.display.not_entered(&path);
                    }
                    scan.take_back(below);
                }
            }
        }
        while coordinator.can_lend()
            && let Some((lent, waiting)) = scan.lend()
            && let Some(work) = coordinator.lend(lent, waiting)
        {
            self.give(work);
        }
    }

    fn read_scan(&mut self, coordinator: &mut Coordinator, scan: &mut Option<Scan>) {
        while coordinator.wants_scan()
            && let Some(events) = scan.as_ref().map(|scan| &scan.events)
        {
            match events.try_recv() {
                Ok(events) => self.take_scan(coordinator, events),
                Err(crossbeam_channel::TryRecvError::Empty) => return,
                Err(crossbeam_channel::TryRecvError::Disconnected) => end_scan(coordinator, scan),
            }
        }
    }

    fn take_scan(&mut self, coordinator: &mut Coordinator, events: Vec<ScanEvent>) {
        self.pause.reset();
        events.into_iter().for_each(|event| self.take_found(coordinator, event));
    }

    fn take_found(&mut self, coordinator: &mut Coordinator, event: ScanEvent) {
        if let ScanEvent::StateSkipped { .. } = event {
            self.display.note("a source's own .pcopy (pcopy's state and manifest) is not copied");
        }
        if let ScanEvent::IncompleteBelow { path } = &event {
            self.display.incomplete_below(path);
        }
        if let ScanEvent::NotEntered { path } = &event {
            self.display.not_entered(path);
        }
        if let ScanEvent::Listed { dir, failure: Some(failure), .. } = &event
            && failure.halts()
        {
            let path = coordinator.dir_path(*dir).unwrap_or_default();
            self.halt_for(coordinator, &path, failure);
        }
        coordinator.scan(event);
    }

    /// Sleeps until something local happens, or it is time to look for messages.
    fn wait(&mut self, coordinator: &mut Coordinator, scan: &mut Option<Scan>) -> Result<(), LeadError> {
        let worker = self.worker.as_mut().expect("rank 0 works while it leads");
        let idle = never();
        let events = match scan {
            Some(scan) if coordinator.wants_scan() => &scan.events,
            _ => &idle,
        };
        let event = select! {
            recv(worker.events()) -> event => {
                let event = event.map_err(|_| RecvTimeoutError::Disconnected);
                return Ok(worker.take_waited(self.comm, &mut self.pause, event)?);
            }
            recv(events) -> event => event,
            default(self.pause.longer()) => {
                return Ok(worker.take_waited(self.comm, &mut self.pause, Err(RecvTimeoutError::Timeout))?);
            }
        };
        match event {
            Ok(events) => self.take_scan(coordinator, events),
            Err(_) => end_scan(coordinator, scan),
        }
        Ok(())
    }

    /// Ends the work of all ranks, and makes it durable. Returns the sum of their counters.
    ///
    /// # Errors
    /// What ends the job: also when what was copied could not be made durable.
    pub fn stop(&mut self, checkpoints: &mut Checkpoints) -> Result<Stats, LeadError> {
        self.phase = "making what was copied durable";
        self.send_to_all(&Message::Stop { abandon: self.abandons });
        self.awaited = (0..self.comm.size()).collect();
        while !self.awaited.is_empty() {
            match self.next_of_any()? {
                (from, Incoming::Stopped(Ok(()))) if self.awaited.remove(&from) => {}
                (_, Incoming::Stopped(Err(_))) => return Err(WorkerError::Thread.into()),
                (from, Incoming::Checkpoint(answer)) => self.take_checkpoint(checkpoints, from, &answer)?,
                (from, _) => return Err(LeadError::Unexpected(from, "a message after the end")),
            }
        }
        if self.abandons {
            self.tell_overdue();
        }
        let own = self.worker.as_ref().map(Worker::stats).unwrap_or_default();
        let sums = self.comm.sum(&own.to_array());
        self.await_checkpoint(checkpoints)?;
        let orders = checkpoints.begin(0);
        self.order(&orders);
        self.await_checkpoint(checkpoints)?;
        let sums = <[u64; Stats::LEN]>::try_from(sums).expect("as many sums as counters");
        Ok(Stats::from_array(sums))
    }

    fn await_checkpoint(&mut self, checkpoints: &mut Checkpoints) -> Result<(), LeadError> {
        while !checkpoints.is_idle() {
            match self.next_of_any()? {
                (from, Incoming::Checkpoint(answer)) => self.take_checkpoint(checkpoints, from, &answer)?,
                (from, _) => return Err(LeadError::Unexpected(from, "a message after the end")),
            }
        }
        Ok(())
    }
}

/// The line about an operation that has not returned.
pub(super) fn told(rank: usize, host: &str, Overdue { call, path, seconds }: &Overdue) -> String {
    let (call, path, host) = (one_line(call), escaped(path), one_line(host));
    format!("pcopy: rank {rank} ({host}): {call} of {path} has not returned for {seconds} s")
}

fn end_scan(coordinator: &mut Coordinator, scan: &mut Option<Scan>) {
    if let Some(scan) = scan.take() {
        scan.join();
    }
    coordinator.scan_ended();
}
