//! Signals and time limits stop a copy in order, and the same command goes on (issue 4, item 3).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libc::{SIGHUP, SIGINT, SIGIO, SIGPIPE, SIGPWR, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use tempfile::TempDir;

use crate::support::fuse::{Faults, FuseMount};
use crate::support::interrupted::{Task, finished_files, half_written, records, wait_for};
use crate::support::launch::{Job, Mpi, Outcome, Running, all_gone, mpi};
use crate::support::oracle;
use crate::support::parallel;
use crate::support::skip::{Missing, need};
use crate::support::sys;
use crate::support::tree::{self, MIB, noise_file, temp};

/// From the first signal to the end of all ranks, at most.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

const LARGE: usize = 8 * MIB;

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--threads", "1", "--json"])
}

fn name(signal: i32) -> &'static str {
    match signal {
        SIGTERM => "SIGTERM",
        SIGINT => "SIGINT",
        SIGUSR1 => "SIGUSR1",
        SIGHUP => "SIGHUP",
        SIGXCPU => "SIGXCPU",
        SIGPWR => "SIGPWR",
        _ => unreachable!("stops no copy"),
    }
}

/// Where in a copy a signal comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Before the first entry ended.
    Early,
    SmallFiles,
    /// In the middle of a file in many ranges.
    LargeFile,
}

/// A copy from a file system whose every read takes as long as it is told.
struct Scene {
    task: Task,
    fuse: FuseMount,
    _dir: TempDir,
}

impl Scene {
    fn new(job: Job, fill: impl Fn(&Path)) -> Result<Scene, Missing> {
        let fuse = FuseMount::new(Faults::default())?;
        let real_src = fuse.backing().join("src");
        fill(&real_src);
        tree::age(&real_src);
        let dir = temp();
        let task = Task::new(job, &fuse.path().join("src"), &dir.path().join("dst")).really_from(&real_src);
        Ok(Scene { task, fuse, _dir: dir })
    }

    /// Starts the copy, slow enough for the moment, and waits for that.
    fn start_until(&self, moment: Moment) -> Running {
        let (delay_ms, reads) = match moment {
            Moment::Early => (500, 1),
            Moment::SmallFiles => (20, 40),
            Moment::LargeFile => (15, 80),
        };
        let control = self.fuse.control();
        control.delay(delay_ms);
        let before = control.reads();
        let mut running = self.task.start();
        let lock = self.task.state().join("lock");
        wait_for(&mut running, &format!("{moment:?}"), || lock.exists() && control.reads() >= before + reads);
        running
    }
}

fn small_files(at: &Path) {
    tree::small_files(at, 6, 40);
    std::fs::hard_link(at.join("d000/f0001"), at.join("d005/second-name")).unwrap();
    std::os::unix::fs::symlink("d000", at.join("link")).unwrap();
}

fn scene_of(moment: Moment, job: Job) -> Result<Scene, Missing> {
    Scene::new(job, |at| match moment {
        Moment::LargeFile => noise_file(&at.join("large"), LARGE),
        Moment::Early | Moment::SmallFiles => small_files(at),
    })
}

/// The end of a run that was sent a signal at `since`, with all of its ranks.
fn ended(running: Running, ranks: &[i32], since: Instant, what: &str) -> Outcome {
    let outcome = running.wait();
    assert!(all_gone(ranks), "ranks go on after {}", outcome.told());
    let took = since.elapsed();
    eprintln!("{what}: ended {} ms after the first signal", took.as_millis());
    assert!(took < ENDS_WITHIN, "{took:?} until the end of {}", outcome.told());
    outcome
}

/// Sends the signals to these ranks, one after the other.
fn send(mut running: Running, count: usize, signals: &[(usize, i32)], what: &str) -> Outcome {
    let ranks = running.ranks(count);
    let since = Instant::now();
    signals.iter().for_each(|(rank, signal)| sys::signal(ranks[*rank], *signal));
    ended(running, &ranks, since, what)
}

type Case = (usize, &'static [(usize, i32)], Moment);

const CASES: [Case; 13] = [
    (1, &[(0, SIGTERM)], Moment::Early),
    (1, &[(0, SIGINT)], Moment::SmallFiles),
    (1, &[(0, SIGUSR1)], Moment::LargeFile),
    (3, &[(0, SIGUSR1)], Moment::Early),
    (3, &[(0, SIGTERM)], Moment::SmallFiles),
    (3, &[(0, SIGINT)], Moment::LargeFile),
    (3, &[(1, SIGINT)], Moment::Early),
    (3, &[(2, SIGXCPU)], Moment::SmallFiles),
    (3, &[(1, SIGHUP)], Moment::LargeFile),
    (2, &[(1, SIGTERM), (1, SIGTERM), (1, SIGTERM)], Moment::SmallFiles),
    (3, &[(0, SIGTERM), (1, SIGTERM), (2, SIGTERM)], Moment::SmallFiles),
    (3, &[(2, SIGUSR1), (1, SIGINT), (0, SIGTERM), (0, SIGINT), (2, SIGTERM), (1, SIGUSR1)], Moment::LargeFile),
    (3, &[(0, SIGINT), (0, SIGTERM), (0, SIGUSR1), (1, SIGUSR1), (2, SIGUSR1)], Moment::Early),
];

#[test]
fn any_signal_to_any_rank_at_any_moment_stops_the_copy_and_the_same_command_completes_it() {
    drop(need!(FuseMount::new(Faults::default())));
    parallel::for_each(&CASES, |_, (ranks, signals, moment)| {
        let scene = scene_of(*moment, job(*ranks)).unwrap();
        let running = scene.start_until(*moment);
        let outcome = send(running, *ranks, signals, &format!("np {ranks}, {signals:?}, {moment:?}"));
        let reasons: Vec<_> = signals.iter().map(|(_, signal)| name(*signal)).collect();
        scene.task.assert_stopped(&outcome, &reasons);
        let records = records(&scene.task.state());
        let journals = records.iter().filter(|name| name.starts_with("journal-")).count();
        // A journal is made with its first group.
        assert!(*moment == Moment::Early || journals > 0, "{records:?} after {}", outcome.told());
        scene.fuse.control().lift();
        let told = scene.task.assert_completes();
        assert_eq!(told["runs"], 2, "{told}");
        let resumed = told["resumed"].as_u64().unwrap();
        assert!(*moment != Moment::SmallFiles || resumed > 0, "nothing was recorded: {told}");
        let moved = usize::try_from(told["bytes_moved"].as_u64().unwrap()).unwrap();
        assert!(*moment != Moment::LargeFile || moved < LARGE, "all ranges were copied again: {told}");
    });
}

#[test]
fn without_a_launcher_a_signal_stops_the_copy_too() {
    for signal in [SIGINT, SIGTERM, SIGUSR1, SIGHUP, SIGXCPU, SIGPWR] {
        let options = ["-k", "64K", "-b", "16K", "--threads", "1", "--json"];
        let scene = need!(scene_of(Moment::SmallFiles, Job::alone().options(options)));
        let outcome = send(scene.start_until(Moment::SmallFiles), 1, &[(0, signal)], "alone");
        scene.task.assert_stopped(&outcome, &[name(signal)]);
        scene.fuse.control().lift();
        scene.task.assert_completes();
    }
}

#[test]
fn signals_that_say_nothing_of_the_job_change_nothing() {
    let scene = need!(scene_of(Moment::SmallFiles, job(2)));
    let mut running = scene.start_until(Moment::SmallFiles);
    let ranks = running.ranks(2);
    for signal in [SIGPIPE, SIGXFSZ, SIGIO] {
        ranks.iter().for_each(|rank| sys::signal(*rank, signal));
    }
    scene.fuse.control().lift();
    let outcome = running.wait();
    outcome.assert_code(0);
    scene.task.assert_complete(&outcome);
}

#[test]
fn who_asks_for_progress_from_the_beginning_does_not_end_the_job() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 4, 20);
    let mut running = Job::alone().start([&src, &dir.path().join("dst")]);
    let pid = running.launcher_pid();
    let is_heard = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let mask = |line: &str| Some(u64::from_str_radix(line.split_whitespace().last()?, 16).unwrap());
        let masks = status.lines().filter(|line| line.starts_with("SigIgn") || line.starts_with("SigCgt"));
        masks.filter_map(mask).any(|mask| mask >> (SIGUSR2 - 1) & 1 == 1)
    };
    let mut sent = 0;
    while running.goes_on() {
        if is_heard() {
            sys::signal(pid, SIGUSR2);
            sent += 1;
        }
    }
    assert!(sent > 10, "{sent} signals were sent");
    running.wait().assert_code(0);
    oracle::assert_same(&src, &dir.path().join("dst"), oracle::Aspects::ALL);
}

#[test]
fn the_summary_for_people_says_that_the_same_command_goes_on() {
    let plain = Job::ranks(2).options(["--threads", "1"]);
    let scene = need!(scene_of(Moment::SmallFiles, plain));
    let outcome = send(scene.start_until(Moment::SmallFiles), 2, &[(1, SIGTERM)], "np 2");
    outcome.assert_code(75);
    let line = outcome.stdout.lines().find(|line| line.starts_with("Result:"));
    let line = line.unwrap_or_else(|| panic!("no result: {}", outcome.told()));
    assert!(line.contains("stopped by SIGTERM; ") && line.ends_with("the same command goes on"), "{line}");
    scene.task.assert_incomplete(&outcome);
    scene.fuse.control().lift();
    let outcome = scene.task.run();
    outcome.assert_code(0).assert_says("going on with the job that began");
    scene.task.assert_complete(&outcome);
    assert!(outcome.stdout.lines().any(|line| line.starts_with("Resumed:")), "{}", outcome.told());
}

/// Something that a copy shows near its end.
type Sign = (&'static str, fn(&Task) -> bool);

const SIGNS_OF_THE_END: [Sign; 3] = [
    ("all files are there", |task| finished_files(&task.dst) >= 241),
    ("a manifest is begun", |task| records(&task.state()).iter().any(|name| name.starts_with("manifest"))),
    ("the manifest is there", |task| task.state().join("manifest.jsonl").exists()),
];

#[test]
fn a_signal_near_the_end_leaves_a_complete_copy_or_one_that_goes_on() {
    let dir = temp();
    let src = dir.path().join("src");
    small_files(&src);
    tree::age(&src);
    let cases: Vec<_> = SIGNS_OF_THE_END.iter().flat_map(|sign| [(1, sign), (3, sign), (3, sign)]).collect();
    parallel::for_each(&cases, |number, (ranks, (words, is_now))| {
        let task = Task::new(job(*ranks), &src, &dir.path().join(format!("{number}")));
        let mut running = task.start();
        let pids = running.ranks(*ranks);
        while running.goes_on() && !is_now(&task) {
            std::thread::yield_now();
        }
        let since = Instant::now();
        sys::signal(pids[number % ranks], [SIGTERM, SIGUSR1, SIGINT][number % 3]);
        let outcome = ended(running, &pids, since, words);
        if outcome.code() == Some(0) {
            task.assert_complete(&outcome);
            return;
        }
        task.assert_stopped(&outcome, &["SIGTERM", "SIGUSR1", "SIGINT"]);
        task.assert_completes();
    });
}

#[test]
fn a_copy_that_is_stopped_again_and_again_goes_on_each_time_from_where_it_was() {
    let scene = need!(scene_of(Moment::SmallFiles, job(2)));
    let moved = |told: &serde_json::Value| told["bytes_moved"].as_u64().unwrap_or_else(|| panic!("{told}"));
    let mut moved_bytes = 0;
    for (run, (rank, signal)) in (1..).zip([(0, SIGTERM), (1, SIGUSR1), (1, SIGINT), (0, SIGUSR1)]) {
        let running = scene.start_until(Moment::SmallFiles);
        let outcome = send(running, 2, &[(rank, signal)], &format!("run {run}"));
        let told = scene.task.assert_stopped(&outcome, &[name(signal)]);
        assert_eq!(told["runs"], run, "{told}");
        moved_bytes += moved(&told);
    }
    scene.fuse.control().lift();
    let told = scene.task.assert_completes();
    assert_eq!(told["runs"], 5, "{told}");
    let tree = oracle::walk(&scene.task.real_src);
    assert_eq!(told["entries"], tree.len(), "{told}");
    // One of two names is copied. What was in flight at a stop is copied again: a file or two a rank.
    let second_name = |path: &[u8]| path == b"d005/second-name";
    let once: u64 = tree.iter().filter(|(path, _)| !second_name(path)).map(|(_, node)| node.size).sum();
    moved_bytes += moved(&told);
    assert!(moved_bytes <= once + 4 * 2 * 2 * 9000, "{moved_bytes} bytes were moved for {once}: {told}");
}

#[test]
fn sigusr2_to_any_rank_prints_a_line_of_progress_and_the_copy_goes_on() {
    // No line comes by itself meanwhile.
    let scene = need!(scene_of(Moment::SmallFiles, job(2).options(["--progress", "3600"])));
    let mut running = scene.start_until(Moment::SmallFiles);
    let ranks = running.ranks(2);
    let is_progress = |line: &&str| line.starts_with("pcopy: ") && line.contains(" s: ") && line.contains(" entries");
    for (lines, rank) in [(1, 0), (2, 1)] {
        sys::signal(ranks[rank], SIGUSR2);
        while running.stderr_so_far().lines().filter(is_progress).count() < lines {
            assert!(running.goes_on(), "no line {lines}: {}", running.stderr_so_far());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    scene.fuse.control().lift();
    let outcome = running.wait();
    outcome.assert_code(0);
    assert_eq!(outcome.stderr.lines().filter(is_progress).count(), 2, "{}", outcome.told());
    scene.task.assert_complete(&outcome);
}

#[test]
fn a_signal_to_the_launcher_ends_the_copy_somehow_and_the_same_command_completes_it() {
    for signal in [SIGTERM, SIGINT] {
        let scene = need!(scene_of(Moment::SmallFiles, job(3)));
        let mut running = scene.start_until(Moment::SmallFiles);
        let ranks = running.ranks(3);
        let since = Instant::now();
        sys::signal(running.launcher_pid(), signal);
        let outcome = ended(running, &ranks, since, "signal to the launcher");
        // MPICH's launcher may say 0 after a signal: the records on disk must not.
        assert!(mpi() == Mpi::Mpich || outcome.code() != Some(0), "{}", outcome.told());
        assert!(!scene.task.state().join("manifest.jsonl").exists(), "{}", outcome.told());
        let half = half_written(&scene.task.real_src, &scene.task.real_dst);
        oracle::assert_none(&half, &outcome.told());
        scene.fuse.control().lift();
        scene.task.assert_completes();
    }
}

/// A copy that would take a minute.
fn long_scene(job: Job) -> Result<Scene, Missing> {
    let scene = scene_of(Moment::SmallFiles, job)?;
    scene.fuse.control().delay(250);
    Ok(scene)
}

#[test]
fn a_time_limit_stops_the_copy_its_grace_before_and_the_same_command_goes_on() {
    for (ranks, options) in [(1, &["--time-limit", "4s"][..]), (3, &["--time-limit", "6s", "--grace", "3s"])] {
        let scene = need!(long_scene(job(ranks).options(options)));
        let outcome = scene.task.run();
        let told = scene.task.assert_stopped(&outcome, &["time limit"]);
        // The launcher's own time before and after is not counted.
        let took = told["seconds"].as_f64().unwrap();
        eprintln!("np {ranks}, {options:?}: ended after {took} s");
        assert!((2.5..7.0).contains(&took), "with {options:?}: {told}");
        scene.fuse.control().lift();
        let told = scene.task.assert_completes();
        assert_eq!(told["runs"], 2, "{told}");
    }
}

#[test]
fn the_end_of_a_slurm_job_is_a_time_limit_too() {
    let mut scene = need!(long_scene(job(2)));
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 10;
    let in_slurm = job(2).rank_env("SLURM_JOB_ID", "1").rank_env("SLURM_JOB_END_TIME", end.to_string());
    scene.task = Task { job: in_slurm, ..scene.task };
    let outcome = scene.task.run();
    scene.task.assert_stopped(&outcome, &["time limit"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now <= end + 10, "{} s after the job's end: {}", now - end, outcome.told());
    scene.fuse.control().lift();
    // Not in that job: its end has passed.
    let again = Task { job: job(2), ..scene.task };
    again.assert_completes();
}

#[test]
fn a_grace_that_is_no_shorter_than_its_time_limit_is_refused() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 1, 2);
    let dst: PathBuf = dir.path().join("dst");
    for limits in [
        &["--time-limit", "5s", "--grace", "5s"][..],
        &["--time-limit", "1m", "--grace", "2m"],
        &["--time-limit=90s", "--grace=1h"],
        &["--time-limit", "soon"],
        &["--time-limit", "10s", "--grace", "some"],
    ] {
        for job in [Job::alone(), Job::ranks(2)] {
            job.options(limits).run([&src, &dst]).assert_refused();
            assert!(!dst.exists(), "{limits:?}");
        }
    }
}
