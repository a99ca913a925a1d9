//! The launching itself: a run that hangs is killed with all that it started, and fails the test.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::launch::{Job, is_gone, mpi};
use crate::support::tree::{chmod, temp, write};

/// A stand-in for the program: a script, run by mpirun or alone.
fn script(at: &Path, body: &str) -> std::path::PathBuf {
    let path = at.join("script");
    write(&path, format!("#!/bin/sh\n{body}\n").as_bytes());
    chmod(&path, 0o755);
    path
}

#[test]
fn a_run_that_hangs_fails_the_test_with_its_output_and_leaves_no_process() {
    for job in [Job::alone(), Job::ranks(2)] {
        let dir = temp();
        // A rank and its child, both of which would outlive a kill of the launcher only.
        let body =
            format!("echo the-last-words; sleep 600 & echo $! > {0}/$$; echo $$ > {0}/$!; wait", dir.path().display());
        let hangs = script(dir.path(), &body);
        let started = Instant::now();
        let job = job.program(&hangs).limit(4);
        let failure = catch_unwind(AssertUnwindSafe(|| job.run([] as [&str; 0])));
        let message = *failure.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("no end within the time limit"), "{message}");
        assert!(message.contains("the-last-words"), "{message}");
        assert!(message.contains("State:"), "{message}");
        assert!(started.elapsed() < Duration::from_secs(60));
        let pids = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
        let pids: Vec<_> = pids.filter_map(|n| n.into_string().ok()).filter(|n| n != "script").collect();
        assert!(pids.len() >= 2, "{pids:?}");
        assert!(pids.iter().all(|pid| is_gone(pid.parse().unwrap())), "{pids:?}");
    }
}

#[test]
fn a_process_that_runs_is_not_gone_and_one_that_ended_is() {
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    assert!(!is_gone(pid));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(is_gone(pid));
}

#[test]
fn exit_codes_and_both_outputs_come_back_through_the_launcher() {
    for job in [Job::alone(), Job::ranks(1), Job::ranks(2)] {
        let dir = temp();
        let program = script(dir.path(), "echo out; echo 'pcopy: err' >&2; exit 3");
        let outcome = job.program(&program).run(["ignored"]);
        outcome.assert_code(3).assert_says("pcopy: err");
        assert_eq!(outcome.stdout.matches("out\n").count(), job.rank_count());
        assert_eq!(outcome.lines_of_pcopy().len(), job.rank_count());
    }
}

#[test]
fn variables_for_the_ranks_do_not_reach_the_launcher() {
    let dir = temp();
    let body = "echo \"rank has $PCOPY_IT_PROBE\"; tr '\\0' '\\n' < /proc/$PPID/environ | grep PCOPY_IT";
    let program = script(dir.path(), &format!("{body}; exit 0"));
    let outcome = Job::ranks(2).program(&program).rank_env("PCOPY_IT_PROBE", "it").run([] as [&str; 0]);
    outcome.assert_code(0);
    assert_eq!(outcome.stdout.matches("rank has it").count(), 2, "{}", outcome.told());
    assert_eq!(outcome.stdout.matches("PCOPY_IT_PROBE=it").count(), 0, "{}", outcome.told());
}

#[test]
fn a_file_as_standard_input_reaches_the_first_rank_and_without_one_there_is_none() {
    for job in [Job::alone(), Job::ranks(3)] {
        let dir = temp();
        let input = dir.path().join("input");
        write(&input, b"one\0line\n");
        // MPICH never closes the input of the other ranks.
        let first = "test ${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}} = 0 || exit 0";
        let program = script(dir.path(), &format!("{first}; printf '[%s]\\n' \"$(od -An -c | tr -d ' ')\""));
        let told = |job: Job| job.program(&program).run([] as [&str; 0]).stdout;
        assert_eq!(told(job.clone().stdin(&input)), "[one\\0line\\n]\n");
        assert_eq!(told(job), "[]\n");
    }
}

#[test]
fn the_programs_mpi_has_its_launcher_here() {
    let version = Command::new(mpi().launcher()).arg("--version").output().unwrap();
    assert!(version.status.success());
}
