//! One run at a time works on a copy (issue 4): a second one is refused while the first is alive, and never longer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::fuse::{Faults, FuseMount};
use crate::support::journal::kill_at;
use crate::support::launch::{Job, Outcome, Running, is_gone};
use crate::support::listing::{Listing, assert_untouched, listing};
use crate::support::parallel;
use crate::support::skip::need;
use crate::support::tree::{self, temp, write};
use crate::support::whole::Place;

fn job(ranks: usize) -> Job {
    let options = ["--threads", "1", "--checkpoint-interval", "10ms", "--progress", "0"];
    if ranks == 1 { Job::alone().options(options) } else { Job::ranks(ranks).options(options) }
}

/// A copy whose run was killed, and left its lock.
fn killed() -> (TempDir, Place) {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 20, 60);
    let place = Place::new(&src, &dir.path().join("dst"));
    kill_at(&job(2), [&place.src, &place.root], &place.state, 40);
    assert!(lock(&place).exists(), "a killed run leaves its lock");
    (dir, place)
}

fn lock(place: &Place) -> PathBuf {
    place.state.join("lock")
}

fn read_lock(place: &Place) -> Option<Value> {
    serde_json::from_slice(&fs::read(lock(place)).ok()?).ok()
}

/// Puts other content in the lock's place, at once.
fn put_lock(place: &Place, content: &str) {
    let new = place.root.with_extension("lock");
    write(&new, content.as_bytes());
    fs::rename(new, lock(place)).unwrap();
}

/// The lock that was left, as a process of another host would have written it.
fn foreign(place: &Place) -> Value {
    let mut content = read_lock(place).unwrap();
    content["host"] = "far-away".into();
    content["boot_id"] = "00000000-0000-4000-8000-000000000000".into();
    content
}

/// The copy without its state.
fn copied(root: &Path) -> Listing {
    listing(root).into_iter().filter(|(path, _)| !path.starts_with(b".pcopy")).collect()
}

/// The run watched the lock for signs of life, which takes seconds, before it took it.
fn took_over(outcome: &Outcome) -> bool {
    outcome.lines_of_pcopy().iter().any(|line| line.contains("it gave no sign of life"))
}

/// Waits until the run has its lock.
fn wait_for_lock(running: &mut Running, place: &Place) -> Value {
    loop {
        if let Some(content) = read_lock(place) {
            return content;
        }
        assert!(running.goes_on(), "the run ended, or took too long, without a lock");
        thread::sleep(Duration::from_millis(5));
    }
}

// Runs that wait for others to end are few and small: they hold their share of the machine meanwhile.
#[test]
fn a_second_run_is_refused_while_the_first_works_and_does_not_disturb_it() {
    let fuse = need!(FuseMount::new(Faults::default()));
    tree::small_files(&fuse.backing().join("src"), 4, 100);
    let dir = temp();
    let src = fuse.path().join("src");
    let place = Place::new(&fuse.backing().join("src"), &dir.path().join("dst"));
    for first in [job(2), job(1)] {
        // Long enough for second runs that have to wait for their share of the machine.
        fuse.control().delay(500);
        let mut running = first.start([&src, &place.root]);
        let holder = wait_for_lock(&mut running, &place);
        let ranks = running.rank_pids();
        let pid = holder["pid"].as_i64().unwrap();
        assert!(first.rank_count() == 1 || ranks.iter().any(|rank| i64::from(*rank) == pid), "{holder}: {ranks:?}");
        // The same, with a slash, and another source.
        let other = tree::small_files(&dir.path().join("other"), 1, 1).join("");
        for sources in [src.clone(), src.join(""), other] {
            let second = job(1).run([&sources, &place.root]);
            let message = second.assert_refused();
            for word in
                ["another pcopy works on this copy", holder["host"].as_str().unwrap(), &format!("process {pid}")]
            {
                assert!(message.contains(word), "{word:?} is not in {message:?}");
            }
            assert!(message.contains(place.state.to_str().unwrap()), "{message:?}");
        }
        assert!(running.goes_on(), "the first run ended before the second was refused");
        fuse.control().lift();
        let outcome = running.wait();
        place.assert_whole(&first, &outcome);
        fs::remove_dir_all(&place.root).unwrap();
    }
}

#[test]
fn after_a_run_was_killed_the_next_one_starts_at_once() {
    for ranks in [1, 2] {
        let (_dir, place) = killed();
        let outcome = place.complete(&job(ranks), [&place.src, &place.root]);
        assert!(!took_over(&outcome), "{}", outcome.told());
    }
}

#[test]
fn a_process_that_is_another_one_by_now_holds_no_lock() {
    let (_dir, place) = killed();
    // This process is alive, but did not begin when the lock says.
    let mut content = read_lock(&place).unwrap();
    content["pid"] = std::process::id().into();
    put_lock(&place, &format!("{content}\n"));
    let outcome = place.complete(&job(1), [&place.src, &place.root]);
    assert!(!took_over(&outcome), "{}", outcome.told());
}

#[test]
fn a_process_that_has_ended_and_was_not_waited_for_holds_no_lock() {
    let (_dir, place) = killed();
    let mut ended = Command::new("true").spawn().unwrap();
    while !is_gone(i32::try_from(ended.id()).unwrap()) {
        thread::sleep(Duration::from_millis(2));
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", ended.id())).unwrap();
    let start_time: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let mut content = read_lock(&place).unwrap();
    content["pid"] = ended.id().into();
    content["start_time"] = start_time.into();
    put_lock(&place, &format!("{content}\n"));
    place.complete(&job(1), [&place.src, &place.root]);
    ended.wait().unwrap();
}

#[test]
fn a_lock_of_another_host_without_a_sign_of_life_is_taken_over() {
    let (_dir, place) = killed();
    put_lock(&place, &format!("{}\n", foreign(&place)));
    let outcome = place.complete(&job(1), [&place.src, &place.root]);
    assert!(took_over(&outcome), "{}", outcome.told());
    assert!(outcome.lines_of_pcopy().iter().any(|line| line.contains("far-away")), "{}", outcome.told());
}

#[test]
fn a_lock_of_another_host_with_signs_of_life_is_respected() {
    let (_dir, place) = killed();
    let mut content = foreign(&place);
    // The thread that writes the lock goes on until the end.
    let (end, mut beat) = (AtomicBool::new(false), 0_u64);
    put_lock(&place, &format!("{content}\n"));
    let before = copied(&place.root);
    let outcome = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (began, mut next) = (Instant::now(), Instant::now());
            // It ends by itself where the run below fails the test.
            while !end.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(60) {
                if Instant::now() >= next {
                    beat += 1;
                    content["beat"] = beat.into();
                    put_lock(&place, &format!("{content}\n"));
                    next += Duration::from_secs(1);
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let outcome = job(1).run([&place.src, &place.root]);
        end.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        outcome
    });
    let message = outcome.assert_code(2).lines_of_pcopy().pop().unwrap_or_default();
    assert!(message.contains("another pcopy works on this copy") && message.contains("far-away"), "{}", outcome.told());
    assert_untouched(&before, &copied(&place.root), &outcome.told());
    assert_eq!(read_lock(&place).unwrap()["host"], "far-away", "the lock of the other one is still there");
}

#[test]
fn a_lock_that_says_nothing_holds_no_run_up_for_ever() {
    parallel::for_each(&["", "garbage\n", "{\"host\":5}\n"], |_, content| {
        let (_dir, place) = killed();
        put_lock(&place, content);
        place.complete(&job(1).limit(40), [&place.src, &place.root]);
    });
}
