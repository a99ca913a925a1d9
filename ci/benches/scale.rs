//! How many ranks rank 0 can feed, by simulation of the real coordinator; what its steps cost is measured here and now.
//!
//!     MPICC=mpicc.openmpi cargo bench --target-dir target/openmpi --bench scale -- [--mpi-ns N] [--quick]
//!
//! The first table: storage that takes no time, so that rank 0 is the limit; beside it what ranks would ask for at 1 ms a
//! file, and at 17 ms for a range of 16 MiB (1 GiB/s). The second: storage with these times, latencies that vary, one rank
//! in 100 five times slower. In both the scan is never the limit, and MPI takes N ns for each message that is sent or
//! received (1000). What preempts the benchmark is left out, but other work on the machine makes all of it slower.

#[path = "../../tests/simulation/driver/mod.rs"]
mod driver;

use driver::storage::Storage;
use driver::tree::Tree;
use driver::{Costs, Figures, MS, SECOND, Setup, ratio};

#[global_allocator]
static ALLOCATOR: driver::memory::Counting = driver::memory::Counting;

const RANKS: [usize; 7] = [64, 256, 1000, 4000, 10_000, 20_000, 40_000];
const WORKS: [(&str, u64); 3] = [("4 KiB", 4 << 10), ("1 MiB", 1 << 20), ("1 TiB", 1 << 40)];
/// In a file of 1 TiB.
const RANGES: u64 = 1 << 16;
/// A file or a range a millisecond.
const STORAGE: Storage = Storage { entry: MS, worst: 10, ..Storage::TYPICAL };

/// Whether such files are copied in ranges.
fn is_large(size: u64) -> bool {
    size > 16 << 20
}

/// What the command line says.
struct Options {
    mpi: u64,
    quick: bool,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self { mpi: 1000, quick: false };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--mpi-ns" => options.mpi = args.next().and_then(|n| n.parse().ok()).expect("--mpi-ns takes a number"),
                "--quick" => options.quick = true,
                // from cargo
                "--bench" => {}
                other => panic!("unknown option {other}"),
            }
        }
        options
    }

    /// `items` entries or ranges; at most a tenth of them to be quick.
    fn run(&self, (size, items): (u64, u64), setup: (usize, u32), storage: Storage) -> Figures {
        let items = if self.quick { items / 10 } else { items };
        let files = if is_large(size) { items.div_ceil(RANGES) } else { items };
        let (ranks, threads) = setup;
        let costs = Costs::Measured { mpi: self.mpi };
        Setup { threads, costs, scan_rate: 100_000_000, ..Setup::new(ranks, Tree::of(files, size), storage) }.run()
    }
}

fn main() {
    let options = Options::parse();
    println!("MPI takes {} ns a message.\n\nRank 0 is the limit:\n", options.mpi);
    println!(
        "{:6} {:>7} {:>7} {:>8} {:>12} {:>12} | {:^41} | {:>6} | {:>12} {:>8}",
        "", "", "", "items an", "assignments", "items", "us an assignment", "rank 0", "ranks want", "at most"
    );
    println!(
        "{:6} {:>7} {:>7} {:>8} {:>12} {:>12} | {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} | {:>6} | {:>12} {:>8}",
        "files",
        "ranks",
        "threads",
        "assignm.",
        "a second",
        "a second",
        "scan",
        "next",
        "encode",
        "decode",
        "report",
        "MPI",
        "MiB",
        "items/s",
        "ranks"
    );
    for (name, size) in WORKS {
        for threads in [1, 4] {
            saturated(&options, (name, size), threads);
        }
    }
    println!("\nStorage is the limit, as long as rank 0 is not:\n");
    println!(
        "{:6} {:>7} {:>7} {:>8} {:>12} {:>12} {:>9} {:>9} {:>6}",
        "files", "ranks", "threads", "seconds", "items/s", "items an a.", "rank 0 %", "threads %", "tail %"
    );
    for (name, size) in WORKS {
        for threads in [1, 4] {
            timed(&options, (name, size), threads);
        }
    }
}

/// One line for each number of ranks, and how many rank 0 can feed.
fn saturated(options: &Options, (name, size): (&str, u64), threads: u32) {
    let mut limit = None;
    for ranks in RANKS {
        let items = if is_large(size) { 2_000_000 } else { 10_000_000 };
        let figures = options.run((size, items), (ranks, threads), Storage::INFINITE);
        let item = MS + if is_large(size) { STORAGE.transfer(16 << 20) } else { 0 };
        let wanted = ranks as u64 * u64::from(threads) * SECOND / item;
        let sustained = figures.sustained_items();
        let steps = figures.steps;
        let us = |nanos| ratio(nanos, figures.assignments * 1000);
        // the most ranks whose threads all have work, at this number's cost
        let at_most = sustained * ratio(item, SECOND) / f64::from(threads);
        if sustained < ratio(wanted, 1) {
            limit.get_or_insert(ranks);
        }
        println!(
            "{name:6} {ranks:>7} {threads:>7} {:>8.1} {:>12.0} {sustained:>12.0} | {:>6.2} {:>6.2} {:>6.2} {:>6.2} {:>6.2} \
             {:>6.2} | {:>6} | {wanted:>12} {at_most:>8.0}",
            figures.items_an_assignment(),
            figures.sustained_assignments(),
            us(steps.scan),
            us(steps.next),
            us(steps.encode),
            us(steps.decode),
            us(steps.report),
            us(steps.mpi),
            figures.peak_bytes >> 20,
        );
    }
    match limit {
        Some(ranks) => println!("{name}, {threads} a rank: somewhere below {ranks} ranks rank 0 becomes the limit\n"),
        None => println!("{name}, {threads} a rank: rank 0 is never the limit\n"),
    }
}

fn timed(options: &Options, (name, size): (&str, u64), threads: u32) {
    for ranks in RANKS {
        let all = ranks as u64 * u64::from(threads);
        if !(1000..=40_000).contains(&all) {
            continue;
        }
        // long enough that the beginning and the end matter little
        let items = if is_large(size) { (all * 400).min(8_000_000) } else { all * 4000 };
        let figures = options.run((size, items), (ranks, threads), STORAGE);
        println!(
            "{name:6} {ranks:>7} {threads:>7} {:>8.2} {:>12.0} {:>12.1} {:>9.1} {:>9.1} {:>6.2}",
            figures.seconds(),
            ratio(figures.items, 1) / figures.seconds(),
            figures.items_an_assignment(),
            100.0 * ratio(figures.steps.total(), figures.end),
            100.0 * figures.utilisation,
            100.0 * figures.tail(),
        );
    }
}
