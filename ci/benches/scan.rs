//! The scan alone: how long rank 0's threads take to list a tree, names and types, as they do in a copy.
//!
//!     MPICC=mpicc.openmpi cargo bench --target-dir target/openmpi --bench scan -- DIR [THREADS]
//!
//! Prints the entries, the seconds and the rate. No directory is made, as in a dry run. THREADS: one a core, at most 4.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pcopy::guard::Guard;
use pcopy::policy::{Filter, Leftovers, Policy};
use pcopy::proto::{Direct, Durability, Job, Reflink, Source, Sparse, Tuning};
use pcopy::scan::{MAX_SCAN_THREADS, Recorded, Roots, Scan, ScanEvent};
use pcopy::sys::Reading;
use pcopy::types::{Maker, RelPath, Secret};

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    // `cargo bench` starts this one too, without a tree
    let Some(dir) = args.next() else { return };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.next().map_or(cores.min(MAX_SCAN_THREADS), |n| n.parse().expect("THREADS is a number"));
    let open =
        |path: &Path| Arc::new(File::open(path).unwrap_or_else(|err| panic!("{}: {err}", path.display())).into());
    // nothing is written there
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let reading = Reading { follow: false, noatime: true };
    let job = Arc::new(job(&dir));
    let roots = Roots {
        sources: vec![open(Path::new(&dir))],
        destination: open(elsewhere.path()),
        reading,
        guard: Arc::new(Guard::new(&job, false, (|_| None, |_| None)).expect("no patterns")),
        unsynced: None,
        lag: Default::default(),
        cached_dirs: 100,
    };
    let start = Instant::now();
    let scan = Scan::start(&job, &roots, (None, Recorded::default()), threads, &[]).expect("it starts");
    let entries: usize = scan.events.iter().flatten().map(|event| entries_of(&event)).sum();
    let seconds = start.elapsed().as_secs_f64();
    scan.join();
    println!("{entries} entries, {threads} threads: {seconds:.3} s, {:.0} a second", entries as f64 / seconds);
}

fn entries_of(event: &ScanEvent) -> usize {
    match event {
        ScanEvent::Dir { .. } => 1,
        ScanEvent::Names { names, .. } => names.len(),
        ScanEvent::Listed { failure: Some(failure), .. } => panic!("{failure}"),
        _ => 0,
    }
}

fn job(dir: &str) -> Job {
    let target = RelPath::root();
    Job {
        id: 1,
        secret: Secret::default(),
        maker: Maker::default(),
        abandoned: Vec::new(),
        sources: vec![Source { dir: dir.into(), single: None, target, file_system: 0, leftovers: Leftovers::Copied }],
        destination: b"/nowhere".to_vec(),
        generation: 1,
        began: None,
        state: None,
        fresh: true,
        coarse_times: false,
        tuning: Tuning {
            range_len: 16 << 20,
            block_len: 4 << 20,
            threads: None,
            direct: Direct::Auto,
            digest: true,
            sparse: Sparse::Auto,
            durability: Durability::None,
            retries: 0,
            reflink: Reflink::Never,
        },
        policy: Policy { dry_run: true, ..Policy::default() },
        filter: Filter::default(),
        one_file_system: false,
    }
}
