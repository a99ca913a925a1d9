//! A rank at work: its I/O threads, its records, and the messages that rank 0 sends it.
//!
//! Rank 0 has one too. Only the thread that speaks MPI calls this; the other threads are fed through channels.

mod keeper;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use keeper::Keeper;

use crate::comm::{self, Comm, Pause, ReceiveError};
use crate::journal::{Entries, Header, Journal, Recorder};
use crate::proto::{
    Checkpoint, Durability, Hello, Job, MAX_OVERDUE, MAX_RECORDS_LEN, Message, Overdue, Records, Report, StatePlace,
    Task, Trouble,
};
use crate::scan::{MAX_SCAN_THREADS, Rooms, Roots};
use crate::signals::{SignalError, Signals};
use crate::state;
use crate::sys::{DirCache, act_as, is_loaded};
use crate::transfer::{Mover, Node, Throttle, open_marked, reading};
use crate::types::Stats;
use crate::watch;

/// When threads are abandoned, operations that have not returned for this long are reported.
const SHORT: Duration = Duration::from_secs(1);

/// A rank that takes part in the job.
pub struct Worker {
    job: Arc<Job>,
    recorder: Arc<Mutex<Recorder>>,
    keeper: Option<Keeper>,
    /// Tells the I/O threads to leave what they have not begun.
    halt: Arc<AtomicBool>,
    throttle: Arc<Throttle>,
    tasks: Option<Sender<(u64, Vec<Task>)>>,
    events: Receiver<Event>,
    threads: Vec<JoinHandle<()>>,
    roots: Roots,
    sorted: Option<Entries>,
    /// I/O threads were abandoned. Their later reports are not sent.
    abandoned: bool,
    /// When this rank last looked for operations that have not returned for long, and whether it found any.
    overdue: (Instant, bool),
}

/// What this rank's other threads tell the one that speaks MPI.
pub enum Event {
    Report(Box<Report>),
    Synced(u64, Result<(), Trouble>),
    Committed(u64, Result<(), Trouble>),
}

/// Whether the job goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    More,
    Over,
}

/// This rank cannot go on; the job ends, with this line.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error("cannot keep the records of what was copied: {0}; the manifest would not be complete")]
    Records(io::Error),
    #[error("cannot catch signals: {0}")]
    Signals(#[from] SignalError),
    #[error("rank 0 sent {0}, which has no place here")]
    Unexpected(&'static str),
    #[error("rank {0} sent a message; only rank 0 may")]
    Foreign(usize),
    #[error("an I/O thread ended")]
    Thread,
}

/// The whole life of a rank other than 0.
///
/// # Errors
/// What ends the job from here.
pub fn serve(comm: &mut Comm) -> Result<(), WorkerError> {
    let mut pause = Pause::default();
    let mut signals = Signals::catch()?;
    let job = loop {
        match next_order(comm)? {
            Some(Message::Begin(Some(job))) => break job,
            Some(Message::Begin(None)) => return Ok(()),
            Some(_) => return Err(WorkerError::Unexpected("work before the job")),
            None => thread::sleep(pause.longer()),
        }
    };
    let (hello, mut worker) = match Worker::start(job, comm) {
        Ok((hello, worker)) => (hello, Some(worker)),
        Err(hello) => (hello, None),
    };
    comm.send(0, &Message::Hello(hello));
    pause.reset();
    loop {
        let mut idle = true;
        while let Some(message) = next_order(comm)? {
            idle = false;
            let next = match &mut worker {
                Some(worker) => worker.handle(comm, message)?,
                None => Next::Over,
            };
            if next == Next::Over {
                comm.flush();
                return Ok(());
            }
        }
        if let Some(worker) = &mut worker {
            idle &= !worker.send_events(comm);
        }
        while let Some(signal) = signals.take() {
            comm.send(0, &Message::Signalled(signal));
        }
        if !idle {
            pause.reset();
            continue;
        }
        match &mut worker {
            Some(worker) => worker.wait(comm, &mut pause)?,
            None => thread::sleep(pause.longer()),
        }
    }
}

/// The next message of rank 0: no other rank has anything to say to this one.
fn next_order(comm: &mut Comm) -> Result<Option<Message>, WorkerError> {
    match comm.receive()? {
        None => Ok(None),
        Some((0, message)) => Ok(Some(message)),
        Some((from, _)) => Err(WorkerError::Foreign(from)),
    }
}

impl Worker {
    /// Opens what the job needs and starts the I/O threads. What is to be told to rank 0 comes with it, also when
    /// this rank cannot take part.
    ///
    /// # Errors
    /// A greeting that says what is missing.
    pub fn start(job: Box<Job>, comm: &Comm) -> Result<(Hello, Self), Hello> {
        let job: Arc<Job> = Arc::from(job);
        let run_as = job.policy.run_as;
        let count = job.tuning.threads.unwrap_or_else(|| default_threads(comm.node_size()));
        let threads = u32::try_from(count).unwrap_or(u32::MAX);
        let refused = |trouble| hello(comm, threads, false, Some(trouble));
        // the I/O threads are started as whom they act
        let _acting = act_as(run_as).map_err(|err| refused(format!("--uid, --gid: {}", err.desc())))?;
        let node = Arc::new(Node::open(&job).map_err(refused)?);
        let dir =
            records_dir(&job, &node).map_err(|err| refused(format!("cannot keep records of what is copied: {err}")))?;
        let durable = job.tuning.durability == Durability::Checkpoint && !job.policy.dry_run;
        let number = |rank: usize| u32::try_from(rank).expect("MPI counts ranks in 31 bits");
        let (rank, ranks) = (number(comm.rank()), number(comm.size()));
        let header = Header { job_id: job.id, generation: job.generation, rank, ranks };
        let (events_sender, events) = unbounded();
        let journal = match job.policy.dry_run {
            true => Journal::nameless(header),
            false => Journal::new(dir.map(Arc::new), header, durable),
        };
        let recorder = Arc::new(Mutex::new(Recorder::default()));
        let keeper = Keeper::start(&node, journal, &recorder, events_sender.clone())
            .map_err(|err| refused(format!("cannot start the thread that keeps the journal: {err}")))?;
        let (tasks, task_receiver) = unbounded::<(u64, Vec<Task>)>();
        // two sides; besides the I/O threads there may be those of the scan, and each has a few files open, or made durable
        let caches = 2 * (2 * count + MAX_SCAN_THREADS);
        let roots = Roots {
            sources: node.source_dirs(),
            destination: Arc::clone(node.destination()),
            reading: reading(&job),
            guard: Arc::clone(node.guard()),
            unsynced: node.unsynced().cloned(),
            lag: node.lag(),
            cached_dirs: DirCache::share_of_limit(caches, 200 + job.sources.len() + 16 * count),
        };
        let syncs = comm.leads_node() || node.unsynced().is_some();
        let rooms = Rooms::new(&job, &roots).map_err(|err| refused(format!("stat of a root: {}", err.desc())))?;
        let rooms = Arc::new(rooms);
        let mut handles = Vec::new();
        let (halt, throttle) = (Arc::new(AtomicBool::new(false)), Arc::new(Throttle::default()));
        for index in 0..count {
            let mut mover = Mover::new(&job, &node, &recorder, (&rooms, &roots), (&halt, &throttle));
            let (tasks, events) = (task_receiver.clone(), events_sender.clone());
            let (recorder, halt) = (Arc::clone(&recorder), Arc::clone(&halt));
            let work = move || {
                for (id, tasks) in tasks {
                    wait_for_room(&recorder, &halt);
                    if events.send(Event::Report(Box::new(mover.run(id, tasks)))).is_err() {
                        return;
                    }
                }
            };
            let started = thread::Builder::new().name(format!("I/O {index}")).spawn(work);
            handles.push(started.map_err(|err| refused(format!("cannot start an I/O thread: {err}")))?);
        }
        let worker = Self {
            job,
            recorder,
            keeper: Some(keeper),
            halt,
            throttle,
            tasks: Some(tasks),
            events,
            threads: handles,
            roots,
            sorted: None,
            abandoned: false,
            overdue: (Instant::now(), false),
        };
        Ok((hello(comm, threads, syncs, None), worker))
    }

    /// Does what rank 0 says.
    ///
    /// # Errors
    /// What ends the job from here.
    pub fn handle(&mut self, comm: &mut Comm, message: Message) -> Result<Next, WorkerError> {
        match message {
            Message::Work { id, tasks } => {
                let sender = self.tasks.as_ref().ok_or(WorkerError::Unexpected("work after the end"))?;
                if !tasks.iter().all(|task| self.job.has(task)) {
                    return Err(WorkerError::Unexpected("work of another job"));
                }
                sender.send((id, tasks)).map_err(|_| WorkerError::Thread)?;
            }
            Message::Checkpoint(step) => self.checkpoint(comm, &step)?,
            Message::Limit(bytes_per_s) => self.throttle.set(bytes_per_s),
            Message::Halt => self.halt.store(true, Ordering::Relaxed),
            Message::Stop { .. } if self.tasks.is_none() => return Err(WorkerError::Unexpected("a second end")),
            Message::Stop { abandon } => {
                if abandon {
                    send_overdue(comm, watch::overdue(SHORT));
                }
                let stopped = self.stop(abandon);
                comm.send(0, &Message::Stopped(stopped));
                // rank 0 joins the sum when it has heard of all
                if comm.rank() != 0 {
                    comm.sum(&self.stats().to_array());
                }
            }
            Message::WantRecords(_) if self.tasks.is_some() => {
                return Err(WorkerError::Unexpected("a wish for records before the end"));
            }
            Message::WantRecords(len) => {
                let (records, last) = self.next_records(len.min(MAX_RECORDS_LEN) as usize)?;
                comm.send(0, &Message::Records { records, last });
            }
            Message::Bye => return Ok(Next::Over),
            Message::Begin(_) => return Err(WorkerError::Unexpected("a second job")),
            _ => return Err(WorkerError::Unexpected("a worker's message")),
        }
        Ok(Next::More)
    }

    fn checkpoint(&mut self, comm: &mut Comm, step: &Checkpoint) -> Result<(), WorkerError> {
        let keeper = self.keeper.as_ref().ok_or(WorkerError::Unexpected("a checkpoint after the last one"))?;
        let recorder = || self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Checkpoint::Seal(seq) => {
                let any = recorder().seal();
                comm.send(0, &Message::Checkpoint(Checkpoint::Sealed(*seq, any)));
            }
            Checkpoint::Sync(seq) => keeper.sync(*seq),
            Checkpoint::Commit(seq) => keeper.commit(*seq, recorder().take_sealed()),
            _ => return Err(WorkerError::Unexpected("an answer")),
        }
        Ok(())
    }

    /// Passes on what the other threads have finished; whether there was anything.
    pub fn send_events(&mut self, comm: &mut Comm) -> bool {
        let mut any = false;
        while let Ok(event) = self.events.try_recv() {
            self.send_event(comm, event);
            any = true;
        }
        self.tell_overdue(comm);
        any
    }

    fn send_event(&self, comm: &mut Comm, event: Event) {
        let message = match event {
            Event::Report(_) if self.abandoned => return,
            Event::Report(report) => Message::Report(report),
            Event::Synced(seq, result) => Message::Checkpoint(Checkpoint::Synced(seq, result)),
            Event::Committed(seq, result) => Message::Checkpoint(Checkpoint::Committed(seq, result)),
        };
        comm.send(0, &message);
    }

    /// Sends rank 0, every two seconds, the operations that have not returned for long; an empty list once when all have.
    fn tell_overdue(&mut self, comm: &mut Comm) {
        const INTERVAL: Duration = Duration::from_secs(2);
        let (looked, any) = self.overdue;
        if looked.elapsed() < INTERVAL || self.abandoned {
            return;
        }
        let overdue = watch::overdue(watch::LONG);
        self.overdue = (Instant::now(), !overdue.is_empty());
        if any || !overdue.is_empty() {
            send_overdue(comm, overdue);
        }
    }

    /// Waits for the other threads, as long as the pause says.
    ///
    /// # Errors
    /// Another thread has panicked.
    pub fn wait(&mut self, comm: &mut Comm, pause: &mut Pause) -> Result<(), WorkerError> {
        let event = self.events.recv_timeout(pause.longer());
        self.take_waited(comm, pause, event)
    }

    /// The channel that brings what the other threads have finished, to be waited on with others.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Passes on the outcome of a wait on [`Worker::events`].
    ///
    /// # Errors
    /// As [`Worker::wait`].
    pub fn take_waited(
        &mut self,
        comm: &mut Comm,
        pause: &mut Pause,
        event: Result<Event, RecvTimeoutError>,
    ) -> Result<(), WorkerError> {
        if comm::has_panicked() {
            return Err(WorkerError::Thread);
        }
        match event {
            Ok(event) => {
                pause.reset();
                self.send_event(comm, event);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // all threads have ended, as they do before the records are read
            Err(RecvTimeoutError::Disconnected) => thread::sleep(pause.longer().max(Duration::from_micros(50))),
        }
        Ok(())
    }

    /// Waits for the end of the I/O threads, which have nothing left to do; with `abandon` does not wait.
    fn stop(&mut self, abandon: bool) -> Result<(), String> {
        self.tasks = None;
        if abandon {
            self.abandoned = true;
            self.threads.clear();
        }
        let panicked = self.threads.drain(..).map(JoinHandle::join).filter(Result::is_err).count();
        if panicked > 0 { Err("an I/O thread panicked".into()) } else { Ok(()) }
    }

    /// The open roots, for the scan of rank 0.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The counters of all that this rank has ended.
    pub fn stats(&self) -> Stats {
        *self.recorder.lock().unwrap_or_else(PoisonError::into_inner).stats()
    }

    fn next_records(&mut self, len: usize) -> Result<(Records, bool), WorkerError> {
        let _acting = act_as(self.job.policy.run_as).map_err(|err| WorkerError::Records(err.into()))?;
        if let Some(keeper) = self.keeper.take() {
            let journal = keeper.into_journal().ok_or(WorkerError::Thread)?;
            self.sorted = Some(journal.into_sorted().map_err(WorkerError::Records)?);
        }
        let sorted = self.sorted.as_mut().expect("made above");
        let mut frame = Vec::with_capacity(len + 1024);
        sorted.fill(&mut frame, len).map_err(WorkerError::Records)?;
        Ok((Records(frame), sorted.is_at_end()))
    }
}

fn hello(comm: &Comm, threads: u32, syncs: bool, trouble: Option<String>) -> Hello {
    Hello { host: comm.host().to_string(), threads, syncs, trouble }
}

/// Waits while the records of this rank fill their memory. Reports before have asked for a checkpoint, which writes them.
fn wait_for_room(recorder: &Mutex<Recorder>, halt: &AtomicBool) {
    let has_room = || recorder.lock().unwrap_or_else(PoisonError::into_inner).has_room();
    while !has_room() && !halt.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(2));
    }
}

fn send_overdue(comm: &mut Comm, mut overdue: Vec<Overdue>) {
    overdue.truncate(MAX_OVERDUE);
    comm.send(0, &Message::Overdue(overdue));
}

/// Where this rank keeps its records; `None` for memory, and for a dry run, which has no state.
fn records_dir(job: &Job, node: &Node) -> io::Result<Option<OwnedFd>> {
    let dir = job.state.as_ref().map(|place| match place {
        StatePlace::InCopy => {
            let path = [&job.destination, b"/".as_slice(), state::DIR_NAME].concat();
            open_marked(&path, job.id, || state::open(node.destination().as_fd()))
        }
        StatePlace::At(path) => open_marked(path, job.id, || state::open_at(Path::new(OsStr::from_bytes(path)))),
    });
    dir.transpose().map_err(io::Error::other)
}

/// I/O threads of a rank: two a core of its share of the node, between 1 and 4. More than that gained nothing on local
/// disks and memory; a single one leaves the storage waiting while a block is hashed, where no other rank uses it.
///
/// libioil waits for the storage in a busy loop: there a thread takes a core, and dfuse, which still serves all metadata,
/// wants as many. On two cores, one taken by DAOS's engine, 1000 small files went in in 4.4, 5.4 and 6.6 s with 1, 2 and
/// 4 threads, and out in 2.6, 4.7 and 5.8 s.
fn default_threads(node_ranks: usize) -> usize {
    let cores = thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let wanted = if is_loaded(b"libioil.so") { cores / 2 } else { 2 * cores };
    (wanted / node_ranks.max(1)).clamp(1, 4)
}
