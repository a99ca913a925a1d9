//! The loop of rank 0 as `op::lead` has it, in virtual time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use pcopy::coordinator::{Assignment, Coordinator, Elsewhere};
use pcopy::proto::Message;
use pcopy::scan::{Lent, ScanEvent};

use super::tree::{Scanner, Tree};
use super::world::World;
use super::{Figures, Nanos, Setup, memory, ratio};

/// What rank 0's work takes in virtual time.
#[derive(Clone, Copy, Debug)]
pub enum Costs {
    /// What it takes on this machine, and for each message that is sent or received, what MPI takes.
    Measured { mpi: Nanos },
    /// Always the same: for a message or an event of the scan, and for each name in it.
    Fixed { message: Nanos, event: Nanos, name: Nanos },
}

impl Costs {
    /// About what was measured, with 500 ns for MPI.
    pub const fn typical() -> Self {
        Self::Fixed { message: 1000, event: 400, name: 10 }
    }
}

/// Nanoseconds that rank 0 has spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    /// Taking events of the scan.
    pub scan: Nanos,
    /// Choosing the next work.
    pub next: Nanos,
    pub encode: Nanos,
    pub decode: Nanos,
    /// Taking reports.
    pub report: Nanos,
    pub mpi: Nanos,
}

impl Steps {
    pub fn total(&self) -> Nanos {
        self.scan + self.next + self.encode + self.decode + self.report + self.mpi
    }
}

/// Events that wait in the scan's channel, at most: as many as `scan` has.
const CHANNEL_LEN: usize = 128;
/// A step that takes longer was interrupted: the machine is not ours alone. Nearly all take less than 10 us.
const INTERRUPTED: Duration = Duration::from_micros(50);

/// Measures one step after the other.
struct Stopwatch {
    last: Instant,
    /// What reading the clock takes.
    own: Duration,
}

impl Stopwatch {
    fn new() -> Self {
        let (start, rounds) = (Instant::now(), 10_000);
        for _ in 0..rounds {
            std::hint::black_box(Instant::now());
        }
        Self { last: Instant::now(), own: start.elapsed() / rounds }
    }

    fn start(&mut self) {
        self.last = Instant::now();
    }

    fn lap(&mut self) -> Nanos {
        let now = Instant::now();
        let took = (now - self.last).saturating_sub(self.own);
        self.last = now;
        Nanos::try_from(took.min(INTERRUPTED).as_nanos()).expect("short")
    }
}

/// Rank 0.
pub struct Lead {
    coordinator: Coordinator,
    world: World,
    scanner: Option<Scanner>,
    /// What the scan has found and not yet put into the channel, and when it is there.
    found: Option<(Nanos, ScanEvent)>,
    sender: Option<Sender<ScanEvent>>,
    events: Receiver<ScanEvent>,
    now: Nanos,
    costs: Costs,
    steps: Steps,
    assignments: u64,
    longest_frame: usize,
    watch: Stopwatch,
    entries: u64,
    threads: u64,
    /// Ranks list directories too; so many do now.
    lends: bool,
    lent: u64,
    parents: Tree,
}

impl Lead {
    pub fn new(setup: &Setup) -> Self {
        memory::reset();
        let world = World::new(setup);
        let (sender, events) = memory::inside(|| bounded(CHANNEL_LEN));
        let threads = vec![setup.threads; setup.ranks];
        Self {
            coordinator: memory::inside(|| Coordinator::new(&threads, true, Arc::default())),
            world,
            scanner: Some(Scanner::new(&setup.tree, setup.scan_rate, setup.scan_dir)),
            found: None,
            sender: Some(sender),
            events,
            now: 0,
            costs: setup.costs,
            steps: Steps::default(),
            assignments: 0,
            longest_frame: 0,
            watch: Stopwatch::new(),
            entries: setup.tree.entries(),
            threads: u64::from(setup.threads) * setup.ranks as u64,
            lends: setup.lends,
            lent: 0,
            parents: setup.tree.clone(),
        }
    }

    /// Runs the job to its end.
    pub fn run(mut self) -> Figures {
        while !self.coordinator.is_finished() {
            let before = (self.now, self.assignments, self.events.len());
            while let Some((rank, frame)) = self.world.arrived(self.now) {
                self.take_report(rank, &frame);
            }
            self.read_scan();
            self.give_work();
            self.lend();
            if before == (self.now, self.assignments, self.events.len()) && !self.coordinator.is_finished() {
                self.sleep();
            }
        }
        self.world.check();
        let progress = self.coordinator.progress();
        assert_eq!((progress.seen, progress.ended.entries()), (self.entries, self.entries));
        assert_eq!(progress.ended.errors, self.world.failed);
        memory::inside(|| assert!(self.coordinator.next_work().is_none()));
        Figures {
            end: self.now,
            first_idle: self.world.first_idle(),
            utilisation: ratio(self.world.worked, self.now * self.threads),
            assignments: self.assignments,
            items: self.world.items,
            entries: self.entries,
            failed: self.world.failed,
            steps: self.steps,
            peak_bytes: memory::peak(),
            longest_frame: self.longest_frame,
        }
    }

    /// Until something arrives.
    fn sleep(&mut self) {
        let found = self.found.as_ref().filter(|_| self.coordinator.wants_scan()).map(|(at, _)| *at);
        let next = [self.world.next_arrival(), found].into_iter().flatten().min();
        let next = next.expect("stuck: nothing is under way, and the job is not finished");
        self.now = self.now.max(next);
    }

    /// The time of one step: what it took, or `fixed`.
    fn lap(&mut self, fixed: impl FnOnce(Nanos, Nanos, Nanos) -> Nanos) -> Nanos {
        let took = match self.costs {
            Costs::Measured { .. } => self.watch.lap(),
            Costs::Fixed { message, event, name } => fixed(message, event, name),
        };
        self.now += took;
        took
    }

    fn start(&mut self) {
        if let Costs::Measured { mpi } = self.costs {
            self.now += mpi;
            self.steps.mpi += mpi;
            self.watch.start();
        }
    }

    /// What `Comm::receive` and `Lead::take` do.
    fn take_report(&mut self, rank: usize, frame: &[u8]) {
        self.longest_frame = self.longest_frame.max(frame.len());
        let frame = memory::inside(|| frame.to_vec().into_boxed_slice());
        self.start();
        let message = memory::inside(|| Message::decode(&frame));
        self.steps.decode += self.lap(|message, _, _| message / 2);
        memory::inside(|| {
            let Ok(Message::Report(report)) = message else { panic!("not a report") };
            self.coordinator.report(rank, &report).expect("simulated ranks are in order");
            drop((frame, report));
        });
        self.steps.report += self.lap(|_, _, _| 0);
    }

    /// The scan's threads up to now.
    fn scan(&mut self) {
        loop {
            if self.found.is_none() {
                let Some(scanner) = &mut self.scanner else { return };
                match memory::inside(|| scanner.next()) {
                    Some((event, took)) => self.found = Some((self.now + took, event)),
                    // what is lent may hold more
                    None if self.lent > 0 => return,
                    None => {
                        self.scanner = None;
                        self.sender = None;
                        return;
                    }
                }
            }
            if self.events.is_full() || self.found.as_ref().is_some_and(|(at, _)| *at > self.now) {
                return;
            }
            let (at, event) = self.found.take().expect("found above");
            memory::inside(|| self.sender.as_ref().expect("the scan goes on").send(event).expect("there is room"));
            // it goes on from where it was, unless it had to wait for room
            let next = self.scanner.as_mut().and_then(|scanner| memory::inside(|| scanner.next()));
            if let Some((event, took)) = next {
                self.found = Some((at + took, event));
            } else if self.lent == 0 {
                self.scanner = None;
                self.sender = None;
                return;
            }
        }
    }

    /// What `Lead::read_scan` does.
    fn read_scan(&mut self) {
        self.scan();
        let had_to_wait = self.events.is_full();
        while self.coordinator.wants_scan() {
            self.start_local();
            let event = memory::inside(|| self.events.try_recv());
            let names = match &event {
                Ok(ScanEvent::Names { names, .. }) => names.len() as u64,
                Ok(ScanEvent::Known { entries, .. }) => entries.len() as u64,
                _ => 0,
            };
            match event {
                Ok(event) => memory::inside(|| self.coordinator.scan(event)),
                Err(crossbeam_channel::TryRecvError::Empty) => break,
                Err(crossbeam_channel::TryRecvError::Disconnected) => {
                    self.coordinator.scan_ended();
                    break;
                }
            }
            self.steps.scan += self.lap(|_, event, name| event + names * name / 2);
            if had_to_wait && let Some((at, _)) = &mut self.found {
                *at = (*at).max(self.now);
            }
            self.scan();
        }
    }

    fn start_local(&mut self) {
        if let Costs::Measured { .. } = self.costs {
            self.watch.start();
        }
    }

    fn give_work(&mut self) {
        loop {
            self.start_local();
            let work = memory::inside(|| self.coordinator.next_work());
            let Some(work) = work else { break };
            self.steps.next += self.lap(|message, _, _| message / 2);
            self.give(work);
        }
    }

    fn give(&mut self, Assignment { rank, id, tasks }: Assignment) {
        self.start();
        let frame = memory::inside(|| Message::Work { id, tasks }.encode()).expect("work fits a frame");
        let names = frame.len() as u64 / 24;
        self.steps.encode += self.lap(|message, _, name| message / 2 + names * name / 2);
        self.assignments += 1;
        self.longest_frame = self.longest_frame.max(frame.len());
        self.world.send(self.now, rank, &frame);
        memory::inside(|| drop(frame));
    }

    /// What `Lead::lend` does.
    fn lend(&mut self) {
        let listed = memory::inside(|| self.coordinator.take_listed());
        let Some(scanner) = self.scanner.as_mut().filter(|_| self.lends) else { return };
        for listed in listed {
            let Elsewhere::Listed { below, .. } = listed else { panic!("none is too long") };
            self.lent -= 1;
            memory::inside(|| below.into_iter().for_each(|(_, _, path)| scanner.take_back(path)));
        }
        while self.coordinator.can_lend()
            && let Some(scanner) = &mut self.scanner
            && let Some((dir, path, waiting)) = memory::inside(|| scanner.lend())
        {
            self.start_local();
            let lent = Lent { id: dir, parent: self.parents.parent(dir), source: 0, path };
            let Some(work) = memory::inside(|| self.coordinator.lend(lent, waiting)) else { panic!("a rank is idle") };
            self.steps.next += self.lap(|message, _, _| message / 2);
            self.lent += 1;
            self.give(work);
        }
    }
}
