//! A call to a file system does not return: the copy can be stopped, reports the call, and can be resumed (issue 16, item 1).

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::faulty::{Scene, Side};
use crate::support::fuse::{Call, Faults, FuseMount};
use crate::support::interrupted::wait_for;
use crate::support::launch::{Job, Outcome, Running, all_gone};
use crate::support::parallel;
use crate::support::skip::{Missing, need};
use crate::support::sys;
use crate::support::tree::{self, KIB, MIB, noise_file};

/// From the first signal to the end of all ranks, at most: the grace period of these runs, and time for the launcher.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// A copy of a tree with entries for calls to hang at.
fn scene(side: Side, ranks: usize, options: &[&str]) -> Result<Scene, Missing> {
    let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--threads", "2", "--json"]).options(options);
    Scene::new(side, job, |src| {
        tree::small_files(src, 3, 20);
        noise_file(&src.join("d000/hung"), 20 * KIB);
        noise_file(&src.join("d000/hung-large"), 2 * MIB);
        noise_file(&src.join("hung-dir/file"), 20 * KIB);
    })
}

/// Starts the copy, and waits until the call hangs.
fn start(scene: &Scene, call: Call, name: &str) -> Running {
    scene.control().hang(call, name);
    let mut running = scene.task.start();
    wait_for(&mut running, &format!("{call:?} of {name}"), || scene.control().hung() > 0);
    running
}

/// Sends a signal to a rank, and waits for the end of the launcher, and of all ranks but for threads in state D.
fn stop(mut running: Running, ranks: usize, rank: usize, signal: i32) -> (Outcome, Vec<i32>) {
    let pids = running.ranks(ranks);
    sys::signal(pids[rank], signal);
    let since = Instant::now();
    let outcome = running.wait();
    while !pids.iter().all(|pid| is_over(*pid)) {
        assert!(since.elapsed() < ENDS_WITHIN, "ranks go on after {}", outcome.told());
        thread::sleep(Duration::from_millis(20));
    }
    let took = since.elapsed();
    assert!(took < ENDS_WITHIN, "{took:?} until the end of {}", outcome.told());
    (outcome, pids)
}

/// The copy was stopped. The same command completes it when the file system answers again.
fn assert_goes_on(scene: &Scene, outcome: &Outcome, pids: &[i32]) {
    outcome.assert_code(75);
    assert!(!scene.task.state().join("manifest.jsonl").exists(), "{}", outcome.told());
    scene.control().lift();
    assert!(all_gone(pids), "ranks do not end though their calls returned: {}", outcome.told());
    scene.task.assert_completes();
}

/// Whether all threads of a process have ended or are in state D.
fn is_over(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |stat: String| stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    threads
        .filter_map(|thread| state(fs::read_to_string(thread.path().join("stat")).ok()?))
        .all(|state| "DZX".contains(state))
}

type Case = (Side, Call, &'static str, &'static str);

/// What hangs, and the line that tells of it.
const CASES: [Case; 14] = [
    (Side::Source, Call::Lookup, "hung", "/hung has not returned"),
    (Side::Source, Call::Open, "hung", "open of "),
    (Side::Source, Call::Read, "hung", "read of "),
    (Side::Source, Call::Read, "hung-large", "read of "),
    (Side::Source, Call::Flush, "hung", "close of "),
    (Side::Source, Call::OpenDir, "hung-dir", "open of "),
    (Side::Source, Call::ReadDir, "hung-dir", "list of "),
    (Side::Destination, Call::Create, "hung", "open of "),
    (Side::Destination, Call::Write, "hung", "write of "),
    (Side::Destination, Call::SetAttr, "hung", "/hung has not returned"),
    (Side::Destination, Call::Fsync, "hung", "fsync of "),
    (Side::Destination, Call::Flush, "hung", "close of "),
    (Side::Destination, Call::Rename, "hung-large", "rename of "),
    (Side::Destination, Call::MakeDir, "hung-dir", "mkdir of "),
];

#[test]
fn a_copy_stops_whatever_call_does_not_return_and_goes_on_when_it_does() {
    drop(need!(FuseMount::new(Faults::default())));
    parallel::for_each(&CASES, |number, (side, call, name, line)| {
        let ranks = 1 + number % 3;
        let scene = scene(*side, ranks, &["--grace", "4s", "--time-limit", "1h"]).unwrap();
        let running = start(&scene, *call, name);
        let (outcome, pids) =
            stop(running, ranks, number % ranks, [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1][number % 3]);
        outcome.assert_says(line);
        assert_goes_on(&scene, &outcome, &pids);
    });
}

/// Where rank 0 itself hangs: it sees neither signals nor messages then.
#[test]
fn a_copy_stops_where_the_rank_that_leads_hangs_in_the_first_or_last_calls() {
    drop(need!(FuseMount::new(Faults::default())));
    let cases = [
        (Side::Source, Call::Lookup, "src"),
        (Side::Source, Call::OpenDir, "src"),
        (Side::Destination, Call::Lookup, "dst"),
        (Side::Destination, Call::MakeDir, "dst"),
        (Side::Destination, Call::MakeDir, ".pcopy"),
        (Side::Destination, Call::Create, "lock"),
        (Side::Destination, Call::Write, "lock"),
        (Side::Destination, Call::Rename, "job.json"),
        (Side::Destination, Call::Fsync, "manifest.jsonl.new"),
        (Side::Destination, Call::Rename, "manifest.jsonl"),
        (Side::Destination, Call::Remove, "lock"),
    ];
    parallel::for_each(&cases, |number, (side, call, name)| {
        let ranks = 1 + number % 2;
        let scene = scene(*side, ranks, &["--grace", "4s"]).unwrap();
        let running = start(&scene, *call, name);
        let (outcome, pids) = stop(running, ranks, 0, libc::SIGTERM);
        outcome.assert_code(75).assert_says("pcopy: rank 0 (").assert_says("has not returned for");
        scene.control().lift();
        assert!(all_gone(&pids), "ranks do not end though their calls returned: {}", outcome.told());
        scene.task.assert_completes();
    });
}

#[test]
fn a_time_limit_ends_a_copy_that_hangs_within_its_grace_period() {
    let scene = need!(scene(Side::Source, 2, &["--time-limit", "6s", "--grace", "3s"]));
    let since = Instant::now();
    let mut running = start(&scene, Call::Read, "hung");
    let pids = running.ranks(2);
    let outcome = running.wait();
    let took = since.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(12), "{took:?}: {}", outcome.told());
    outcome.assert_says("read of ").assert_says("d000/hung has not returned");
    assert_goes_on(&scene, &outcome, &pids);
}

#[test]
fn a_second_signal_waits_for_nothing_that_hangs() {
    let scene = need!(scene(Side::Destination, 2, &["--grace", "10m"]));
    let mut running = start(&scene, Call::Write, "hung");
    let pids = running.ranks(2);
    sys::signal(pids[0], libc::SIGTERM);
    thread::sleep(Duration::from_secs(3));
    let (outcome, pids) = stop(running, 2, 0, libc::SIGTERM);
    outcome.assert_says("write of ");
    // The call may still change the copy.
    scene.task.run().assert_code(75).assert_says("a call to a file system that does not return");
    assert_goes_on(&scene, &outcome, &pids);
}

#[test]
fn what_does_not_return_is_named_while_the_copy_goes_on() {
    let scene = need!(scene(Side::Source, 2, &["--progress", "5", "--grace", "4s"]));
    let mut running = start(&scene, Call::Read, "hung");
    let since = Instant::now();
    let is_named = |running: &mut Running| running.stderr_so_far().contains("d000/hung has not returned for 3");
    while running.goes_on() && !is_named(&mut running) {
        assert!(since.elapsed() < Duration::from_secs(60), "it is not named: {}", running.stderr_so_far());
        thread::sleep(Duration::from_millis(100));
    }
    scene.control().lift();
    let outcome = running.wait();
    outcome.assert_code(0);
    scene.task.assert_complete(&outcome);
}
