//! File systems of which a call does not return: the copy stops all the same, says what hangs, and can be gone on with
//! (issue 16, item 1).

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::fuse::{Call, Faults, FuseMount};
use crate::support::interrupted::{Task, wait_for};
use crate::support::launch::{Job, Outcome, Running};
use crate::support::parallel;
use crate::support::skip::{Missing, need};
use crate::support::sys;
use crate::support::tree::{self, KIB, MIB, noise_file, temp};

/// From the first signal to the end of all ranks, at most: the grace period of these runs, and time for the launcher.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// A copy of which one side hangs at a name.
struct Scene {
    task: Task,
    fuse: FuseMount,
    _dir: TempDir,
}

impl Scene {
    fn new(side: Side, ranks: usize, options: &[&str]) -> Result<Scene, Missing> {
        let (fuse, dir) = (FuseMount::new(Faults::default())?, temp());
        let real_src = match side {
            Side::Source => fuse.backing().join("src"),
            Side::Destination => dir.path().join("src"),
        };
        tree::small_files(&real_src, 3, 20);
        noise_file(&real_src.join("d000/hung"), 20 * KIB);
        noise_file(&real_src.join("d000/hung-large"), 2 * MIB);
        noise_file(&real_src.join("hung-dir/file"), 20 * KIB);
        tree::age(&real_src);
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--threads", "2", "--json"]).options(options);
        let task = match side {
            Side::Source => Task::new(job, &fuse.path().join("src"), &dir.path().join("dst")).really_from(&real_src),
            Side::Destination => {
                Task::new(job, &real_src, &fuse.path().join("dst")).really_to(&fuse.backing().join("dst"))
            }
        };
        Ok(Scene { task, fuse, _dir: dir })
    }

    /// Starts it, and waits until the call hangs.
    fn start(&self, call: Call, name: &str) -> Running {
        self.fuse.control().hang(call, name);
        let mut running = self.task.start();
        wait_for(&mut running, &format!("{call:?} of {name}"), || self.fuse.control().hung() > 0);
        running
    }

    /// Sends a signal to a rank, and waits for the end: of the launcher, and of all ranks, but for what the kernel holds in
    /// the calls that hang.
    fn stop(mut running: Running, ranks: usize, rank: usize, signal: i32) -> Outcome {
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
        outcome
    }

    /// The stop, in order, and the run that completes the copy when the file system answers again.
    fn assert_goes_on(&self, outcome: &Outcome) {
        outcome.assert_code(75);
        assert!(!self.task.state().join("manifest.jsonl").exists(), "{}", outcome.told());
        self.fuse.control().lift();
        self.task.assert_completes();
    }
}

/// Whether all threads of a process have ended, but for those that the kernel does not let go.
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
        let scene = Scene::new(*side, ranks, &["--grace", "4s", "--time-limit", "1h"]).unwrap();
        let running = scene.start(*call, name);
        let outcome =
            Scene::stop(running, ranks, number % ranks, [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1][number % 3]);
        outcome.assert_says(line);
        scene.assert_goes_on(&outcome);
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
        let scene = Scene::new(*side, ranks, &["--grace", "4s"]).unwrap();
        let running = scene.start(*call, name);
        let outcome = Scene::stop(running, ranks, 0, libc::SIGTERM);
        outcome.assert_code(75).assert_says("pcopy: rank 0 (").assert_says("has not returned for");
        scene.fuse.control().lift();
        scene.task.assert_completes();
    });
}

#[test]
fn a_time_limit_ends_a_copy_that_hangs_within_its_grace_period() {
    let scene = need!(Scene::new(Side::Source, 2, &["--time-limit", "6s", "--grace", "3s"]));
    let since = Instant::now();
    let outcome = scene.start(Call::Read, "hung").wait();
    let took = since.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(12), "{took:?}: {}", outcome.told());
    outcome.assert_says("read of ").assert_says("d000/hung has not returned");
    scene.assert_goes_on(&outcome);
}

#[test]
fn a_second_signal_waits_for_nothing_that_hangs() {
    let scene = need!(Scene::new(Side::Destination, 2, &["--grace", "10m"]));
    let mut running = scene.start(Call::Write, "hung");
    let pids = running.ranks(2);
    sys::signal(pids[0], libc::SIGTERM);
    thread::sleep(Duration::from_secs(3));
    let outcome = Scene::stop(running, 2, 0, libc::SIGTERM);
    outcome.assert_says("write of ");
    scene.assert_goes_on(&outcome);
}

#[test]
fn what_does_not_return_is_named_while_the_copy_goes_on() {
    let scene = need!(Scene::new(Side::Source, 2, &["--progress", "5", "--grace", "4s"]));
    let mut running = scene.start(Call::Read, "hung");
    let since = Instant::now();
    let is_named = |running: &mut Running| running.stderr_so_far().contains("d000/hung has not returned for 3");
    while running.goes_on() && !is_named(&mut running) {
        assert!(since.elapsed() < Duration::from_secs(60), "it is not named: {}", running.stderr_so_far());
        thread::sleep(Duration::from_millis(100));
    }
    scene.fuse.control().lift();
    let outcome = running.wait();
    outcome.assert_code(0);
    scene.task.assert_complete(&outcome);
}
