//! The loop of rank 0: feeds the coordinator with what the scan finds and ranks report, and sends its work out.
//!
//! One thread, which also speaks MPI; it never waits for one rank while another could go on.

use crossbeam_channel::{RecvTimeoutError, never, select};

use crate::comm::{Comm, Pause};
use crate::coordinator::{Coordinator, CoordinatorError};
use crate::progress::Display;
use crate::proto::{Hello, Message, Records};
use crate::scan::{Scan, ScanEvent};
use crate::sys::Errno;
use crate::types::Stats;
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
    #[error("cannot start the scan: {0}")]
    Scan(std::io::Error),
    #[error("internal error: {0}")]
    Counts(String),
    #[error("--uid, --gid: acting as another user: {0}")]
    Acting(Errno),
    #[error("the manifest {0}: {1}")]
    Manifest(String, std::io::Error),
}

/// Rank 0: its messages, its own share of the work, what it says.
pub struct Lead<'a> {
    pub comm: &'a mut Comm,
    pub worker: Option<Worker>,
    pub display: Display,
    /// What is waited for outside of the copy itself, in words.
    pub phase: &'static str,
    pause: Pause,
}

/// A message to rank 0 as such.
pub enum Incoming {
    Hello(Hello),
    Report(crate::proto::Report),
    Stopped(Result<(), String>),
    Records(Records, bool),
}

impl<'a> Lead<'a> {
    pub fn new(comm: &'a mut Comm, worker: Option<Worker>, display: Display) -> Self {
        Self { comm, worker, display, phase: "waiting for all ranks", pause: Pause::default() }
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
            worker.send_reports(self.comm)?;
        }
        while let Some((from, message)) = self.comm.receive().map_err(WorkerError::from)? {
            self.pause.reset();
            let incoming = match message {
                Message::Hello(hello) => Incoming::Hello(hello),
                Message::Report(report) => Incoming::Report(report),
                Message::Stopped(durable) => Incoming::Stopped(durable),
                Message::Records { records, last } => Incoming::Records(records, last),
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

    /// The next message to rank 0, waited for.
    ///
    /// # Errors
    /// What ends the job.
    pub fn next(&mut self) -> Result<(usize, Incoming), LeadError> {
        loop {
            if let Some(incoming) = self.poll()? {
                return Ok(incoming);
            }
            self.display.tick_phase(self.phase);
            match &mut self.worker {
                Some(worker) => worker.wait(self.comm, &mut self.pause)?,
                None => std::thread::sleep(self.pause.longer()),
            }
        }
    }

    /// Copies everything that the scan finds.
    ///
    /// # Errors
    /// What ends the job.
    pub fn run(&mut self, coordinator: &mut Coordinator, scan: Scan) -> Result<(), LeadError> {
        let mut scan = Some(scan);
        while !coordinator.is_finished() {
            while let Some((from, incoming)) = self.poll()? {
                self.take(coordinator, from, incoming)?;
            }
            self.read_scan(coordinator, &mut scan);
            while let Some(work) = coordinator.next_work() {
                self.comm.send(work.rank, &Message::Work { id: work.id, tasks: work.tasks });
                self.pause.reset();
            }
            self.display.tick(|| coordinator.progress());
            self.wait(coordinator, &mut scan)?;
        }
        if let Some(scan) = scan {
            scan.join();
        }
        Ok(())
    }

    fn take(&mut self, coordinator: &mut Coordinator, from: usize, incoming: Incoming) -> Result<(), LeadError> {
        let Incoming::Report(report) = incoming else {
            return Err(LeadError::Unexpected(from, "a message that is no report"));
        };
        for (path, failure) in &report.failures {
            self.display.failure(path, failure);
        }
        let more = report.ended.errors.saturating_sub(report.failures.len() as u64);
        if more > 0 {
            self.display.print(&format!("pcopy: error: and {more} more entries beside them; the manifest has each"));
        }
        Ok(coordinator.report(from, &report)?)
    }

    fn read_scan(&mut self, coordinator: &mut Coordinator, scan: &mut Option<Scan>) {
        while coordinator.wants_scan()
            && let Some(events) = scan.as_ref().map(|scan| &scan.events)
        {
            match events.try_recv() {
                Ok(event) => self.take_scan(coordinator, event),
                Err(crossbeam_channel::TryRecvError::Empty) => return,
                Err(crossbeam_channel::TryRecvError::Disconnected) => end_scan(coordinator, scan),
            }
        }
    }

    fn take_scan(&mut self, coordinator: &mut Coordinator, event: ScanEvent) {
        self.pause.reset();
        if let ScanEvent::StateSkipped { .. } = event {
            self.display.note("a source's own .pcopy (pcopy's state and manifest) is not copied");
        }
        if let ScanEvent::NotEntered { path } = &event {
            self.display.not_entered(path);
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
            recv(worker.reports()) -> report => {
                let report = report.map_err(|_| RecvTimeoutError::Disconnected);
                return Ok(worker.take_waited(self.comm, &mut self.pause, report)?);
            }
            recv(events) -> event => event,
            default(self.pause.longer()) => {
                return Ok(worker.take_waited(self.comm, &mut self.pause, Err(RecvTimeoutError::Timeout))?);
            }
        };
        match event {
            Ok(event) => self.take_scan(coordinator, event),
            Err(_) => end_scan(coordinator, scan),
        }
        Ok(())
    }

    /// Ends the work of all ranks, and makes it durable. Returns the sum of their counters and what could not be made
    /// durable, in words.
    ///
    /// # Errors
    /// What ends the job.
    pub fn stop(&mut self) -> Result<(Stats, Vec<String>), LeadError> {
        self.phase = "all is copied; making it durable";
        self.send_to_all(&Message::Stop);
        let mut troubles = Vec::new();
        for _ in 0..self.comm.size() {
            match self.next()? {
                (_, Incoming::Stopped(Ok(()))) => {}
                (from, Incoming::Stopped(Err(trouble))) => troubles.push(format!("rank {from}: {trouble}")),
                (from, _) => return Err(LeadError::Unexpected(from, "a message after the end")),
            }
        }
        let own = self.worker.as_ref().map(Worker::stats).unwrap_or_default();
        let sums = self.comm.sum(&own.to_array());
        let sums = <[u64; Stats::LEN]>::try_from(sums).expect("as many sums as counters");
        Ok((Stats::from_array(sums), troubles))
    }
}

fn end_scan(coordinator: &mut Coordinator, scan: &mut Option<Scan>) {
    if let Some(scan) = scan.take() {
        scan.join();
    }
    coordinator.scan_ended();
}
