//! The real coordinator against simulated ranks, in virtual time: one event queue, one seed, no threads, no MPI.
//!
//! Simulated are the scan ([`tree`]), the ranks with their threads and the storage ([`storage`], [`world`]). Real are the
//! coordinator, the frames of all messages, the scan's channel; and the loop ([`lead`]) does for each message what
//! `op::lead` does. What rank 0 does takes virtual time too: a fixed cost, so that a run is the same everywhere, or what
//! it takes on this machine. The tests in `tests/simulation` and the benchmark `ci/benches/scale.rs` share this.
#![allow(dead_code)] // each of the two uses a part

mod lead;
pub mod memory;
pub mod storage;
pub mod tree;
pub mod world;

pub use lead::{Costs, Lead, Steps};
use storage::Storage;
use tree::Tree;

/// Nanoseconds of virtual time.
pub type Nanos = u64;
pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;

/// A job to simulate.
#[derive(Clone, Debug)]
pub struct Setup {
    pub ranks: usize,
    /// I/O threads of each.
    pub threads: u32,
    pub tree: Tree,
    pub storage: Storage,
    /// Names that the scan finds in a second.
    pub scan_rate: u64,
    /// To list one directory, besides its names.
    pub scan_dir: Nanos,
    /// From the sending of a message to its taking.
    pub latency: Nanos,
    pub costs: Costs,
    /// Ranks that have nothing to do list directories.
    pub lends: bool,
    pub seed: u64,
}

impl Setup {
    /// A tree, copied by ranks of one thread each; a scan that is never the limit; a network of today.
    pub fn new(ranks: usize, tree: Tree, storage: Storage) -> Self {
        Self {
            ranks,
            threads: 1,
            tree,
            storage,
            scan_rate: 1_000_000_000,
            scan_dir: 0,
            latency: 20 * US,
            costs: Costs::typical(),
            lends: true,
            seed: 1,
        }
    }

    /// Runs the job to its end.
    ///
    /// # Panics
    /// When an entry or a range does not end exactly once, or the job does not come to an end.
    pub fn run(&self) -> Figures {
        Lead::new(self).run()
    }
}

/// What became of a simulated job.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub end: Nanos,
    /// From when on some thread had nothing more to do until the end.
    pub first_idle: Nanos,
    /// How much of their time the ranks' threads worked, from 0 to 1.
    pub utilisation: f64,
    /// Assignments given out; each is answered by one report.
    pub assignments: u64,
    /// Entries (no directories) and ranges that they held.
    pub items: u64,
    pub entries: u64,
    pub failed: u64,
    /// What rank 0's one thread spent.
    pub steps: Steps,
    /// The most memory that rank 0 had at once in the coordinator, messages and the scan's channel, in bytes; 0 without
    /// the counting allocator.
    pub peak_bytes: u64,
    /// The longest frame, in bytes.
    pub longest_frame: usize,
}

impl Figures {
    /// The part of the run in which not all threads had work any more.
    pub fn tail(&self) -> f64 {
        ratio(self.end - self.first_idle, self.end)
    }

    pub fn seconds(&self) -> f64 {
        ratio(self.end, SECOND)
    }

    /// Assignments a second that rank 0 sustains on one core.
    pub fn sustained_assignments(&self) -> f64 {
        ratio(self.assignments * SECOND, self.steps.total())
    }

    /// Entries and ranges a second that rank 0 sustains on one core.
    pub fn sustained_items(&self) -> f64 {
        ratio(self.items * 1000, self.steps.total()) * 1e6
    }

    pub fn items_an_assignment(&self) -> f64 {
        ratio(self.items, self.assignments)
    }
}

/// A quotient of counters, for display and for limits of a few percent.
#[allow(clippy::cast_precision_loss)]
pub fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / (whole.max(1)) as f64
}
