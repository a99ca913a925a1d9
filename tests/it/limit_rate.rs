//! `--limit-rate`: an upper limit for reading and writing, which can be changed while the copy runs (issue 5).

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::interrupted::wait_for;
use crate::support::launch::Job;
use crate::support::oracle::{self, Aspects};
use crate::support::sys;
use crate::support::tree::{self, MIB, noise_file, temp};

/// Three megabytes in two large files and many small ones.
fn source(at: &Path) {
    tree::small_files(at, 5, 20);
    noise_file(&at.join("large"), MIB);
    noise_file(&at.join("d001/large"), MIB + 12_345);
    tree::age(at);
}

fn bytes(tree: &Path) -> u64 {
    oracle::walk(tree).values().map(|node| node.size).sum()
}

#[test]
fn a_copy_is_no_faster_than_its_limit() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    source(&src);
    for (ranks, rate) in [(1, 1_500_000u64), (3, 2_000_000)] {
        let job = Job::ranks(ranks).options(["-b", "64K", &format!("--limit-rate={rate}")]);
        let started = Instant::now();
        job.run([&src, &dst]).assert_code(0);
        let took = started.elapsed();
        // each thread may be a block ahead, and a rank that had nothing to do has credit
        let due = Duration::from_secs_f64(bytes(&src).saturating_sub(16 * 64 * 1024) as f64 / rate as f64 - 0.2);
        assert!(took >= due, "{ranks} ranks took {took:?}, at least {due:?} were due");
        oracle::assert_none(&oracle::differences(&src, &dst, Aspects::ALL), "with a limit");
        fs::remove_dir_all(&dst).unwrap();
    }
}

#[test]
fn the_limit_is_changed_while_the_copy_runs() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    source(&src);
    // At this rate it would take the whole day.
    let mut running = Job::ranks(2).options(["-b", "64K", "--limit-rate", "40/s"]).start([&src, &dst]);
    let file = dst.join(".pcopy/limit-rate");
    wait_for(&mut running, "the state directory is there", || dst.join(".pcopy/job.json").exists());
    fs::write(&file, "fast\n").unwrap();
    while !running.stderr_so_far().contains("limit-rate") {
        assert!(running.goes_on(), "it ended at a limit of 40 bytes a second: {}", running.stderr_so_far());
        thread::sleep(Duration::from_millis(10));
    }
    fs::write(&file, "64M\n").unwrap();
    let outcome = running.wait();
    outcome.assert_code(0);
    assert!(outcome.stderr.contains("limit-rate: \"fast\": not a size"), "{}", outcome.told());
    assert!(outcome.stderr.contains("limit-rate: 64.00 MiB/s"), "{}", outcome.told());
    oracle::assert_none(&oracle::differences(&src, &dst, Aspects::ALL), "with a limit that was changed");
    // It stays for the next run, which says so; without the file the command line counts again.
    let outcome = Job::ranks(2).run([&src, &dst]);
    outcome.assert_code(0);
    assert!(outcome.stderr.contains("limit-rate: 64.00 MiB/s"), "{}", outcome.told());
    fs::write(&file, "none").unwrap();
    let outcome = Job::ranks(1).options(["--limit-rate=1", "--restart"]).run([&src, &dst]);
    outcome.assert_code(0);
    assert!(outcome.stderr.contains("limit-rate: none"), "{}", outcome.told());
}

#[test]
fn a_copy_that_waits_for_its_limit_stops_at_once() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    source(&src);
    let mut running = Job::ranks(2).options(["-b", "64K", "--limit-rate=1"]).start([&src, &dst]);
    // The records and some of the tree: names only, since what a run is at work on may be gone at the next look.
    let entries = || fs::read_dir(&dst).map_or(0, Iterator::count);
    wait_for(&mut running, "something is copied", || entries() > 4);
    let started = Instant::now();
    sys::signal(running.rank_pids()[0], libc::SIGTERM);
    let outcome = running.wait();
    outcome.assert_code(75);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    Job::ranks(3).run([&src, &dst]).assert_code(0);
    oracle::assert_none(&oracle::differences(&src, &dst, Aspects::ALL), "after a stop within a limit");
}

#[test]
fn a_limit_that_is_no_rate_is_refused() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    source(&src);
    for word in ["0", "fast", "-1", "1X", ""] {
        let outcome = Job::ranks(1).options([format!("--limit-rate={word}")]).run([&src, &dst]);
        outcome.assert_code(2);
        assert!(outcome.stderr.contains("--limit-rate"), "{}", outcome.told());
        assert!(!dst.exists());
    }
}
