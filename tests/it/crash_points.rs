//! A crash of rank 0 between every two steps that change the copy or the state directory in it: whatever they are, the
//! same command then ends with the whole copy. The steps are not listed here: the run tells them, see `support/crash.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use crate::support::chance::{self, Chance};
use crate::support::crash::{Crash, Step};
use crate::support::launch::Job;
use crate::support::oracle;
use crate::support::tree::{self, noise_file, temp, write};
use crate::support::whole::Place;

/// How many crashes are tried at a time.
const LANES: usize = 2;

/// Options by which everything happens in one order: one checkpoint, at the end.
const STEADY: [&str; 8] = ["-k", "64K", "-b", "16K", "--threads", "1", "--checkpoint-interval", "1h"];

fn job() -> Job {
    Job::alone().options(STEADY)
}

/// A tree of a few entries of every sort; one file has ranges.
fn source(at: &Path) -> PathBuf {
    noise_file(&at.join("d/small"), 1000);
    noise_file(&at.join("d/large"), 200_000);
    noise_file(&at.join("first"), 3000);
    fs::hard_link(at.join("first"), at.join("second")).unwrap();
    std::os::unix::fs::symlink("first", at.join("link")).unwrap();
    tree::age(at);
    at.to_path_buf()
}

/// The steps of a run that does not crash, printed.
fn steps_of(crash: &Crash, job: &Job, place: &Place, dir: &Path) -> Vec<Step> {
    let outcome = crash.logged(job, dir).run([&place.src, &place.root]);
    place.assert_whole(job, &outcome);
    let steps = crash.steps(dir);
    for step in &steps {
        println!("{:3} {} {} {}", step.number, step.call, step.name, step.to.as_deref().unwrap_or_default());
    }
    steps
}

/// Does this for each number, some at a time, each in a lane of its own; fails with all that was found.
#[track_caller]
fn in_lanes(numbers: impl Iterator<Item = usize> + Send, act: impl Fn(usize, usize) -> Vec<String> + Sync) {
    let (numbers, found) = (Mutex::new(numbers), Mutex::new(Vec::new()));
    let work = |lane| {
        loop {
            let number = numbers.lock().unwrap().next();
            match number {
                Some(number) => {
                    let objections = act(lane, number);
                    found.lock().unwrap().extend(objections);
                }
                None => break,
            }
        }
    };
    thread::scope(|scope| {
        for lane in 0..LANES {
            let work = &work;
            scope.spawn(move || work(lane));
        }
    });
    oracle::assert_none(&found.into_inner().unwrap(), "after crashes");
}

/// Crashes before a step, which a run of fewer steps than the first does not come to; then runs to the end. Every
/// objection to what is there then.
fn crash_and_go_on(crash: &Crash, (first, then): (&Job, &Job), place: &Place, at: usize) -> Vec<String> {
    let crashed = crash.within(first, &place.root, at).run([&place.src, &place.root]);
    let mut found = Vec::new();
    if crashed.code() == Some(0) {
        println!("no step {at}: the run was complete before");
        found.extend(place.objections(first));
    }
    let outcome = then.run([&place.src, &place.root]);
    if outcome.code() != Some(0) {
        found.push(outcome.told());
    }
    found.extend(place.objections(then));
    found.into_iter().take(4).map(|words| format!("after a crash before step {at}: {words}")).collect()
}

/// Each happens, and in this order.
#[track_caller]
fn in_order(steps: &[Step], expected: &[(&str, &str)]) {
    let mut at = 0;
    for (call, name) in expected {
        let found = steps[at..].iter().position(|step| step.is(call, name));
        at += 1 + found.unwrap_or_else(|| panic!("no {call} of {name} behind step {at} of {steps:#?}"));
    }
}

#[test]
fn the_library_numbers_the_steps_of_a_program_and_kills_it_before_one() {
    let (crash, dir) = (Crash::build(), temp());
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let output = format!("of={}", state.join("synced").display());
    let words = ["if=/dev/zero", &output, "bs=10", "count=1", "conv=fsync", "status=none"];
    let dd = Job::alone().program(Path::new("/bin/dd"));
    crash.logged(&dd, &state).run(words).assert_code(0);
    let steps = crash.steps(&state);
    in_order(&steps, &[("open", "synced"), ("write", "synced"), ("fsync", "synced")]);
    let write = steps.iter().find(|step| step.call == "write").unwrap().number;
    fs::remove_file(state.join("synced")).unwrap();
    assert_eq!(crash.within(&dd, &state, write).run(words).code(), None);
    assert_eq!(state.join("synced").metadata().unwrap().len(), 0, "killed after the open, before the write");
    assert_eq!(crash.within(&dd, &state, 0).run(words).code(), Some(0));
}

#[test]
fn the_library_tells_renames_and_removals_and_nothing_of_other_directories() {
    let (crash, dir) = (Crash::build(), temp());
    let state = dir.path().join("state");
    let script = dir.path().join("script");
    let body = "#!/bin/sh\nset -e\ncd \"$1\"\necho > elsewhere\nmkdir state\nln -s a state/link\necho > state/new\n\
        mv -T state/new state/final\nln state/final state/second\nrm state/final elsewhere\nrmdir state 2> /dev/null || :\n";
    write(&script, body.as_bytes());
    tree::chmod(&script, 0o755);
    crash.logged(&Job::alone().program(&script), &state).run([dir.path()]).assert_code(0);
    let steps = crash.steps(&state);
    let expected = [
        ("mkdir", ""),
        ("symlink", "link"),
        ("open", "new"),
        ("write", "new"),
        ("rename", "final"),
        ("link", "second"),
        ("unlink", "final"),
        ("unlink", ""),
    ];
    in_order(&steps, &expected);
    assert!(steps.iter().all(|step| !step.name.contains("elsewhere")), "{steps:?}");
}

#[test]
fn after_a_crash_before_any_step_the_same_command_ends_with_the_whole_copy() {
    let (crash, dir) = (Crash::build(), temp());
    let src = source(&dir.path().join("src"));
    let place = |lane: usize| Place::new(&src, &dir.path().join(format!("dst{lane}")));
    // Those of the data too: the marker that all ranks must see, temporary names, ranges, links.
    let steps = steps_of(&crash, &job(), &place(0), &place(0).root);
    let (lock, job_file, journal) = (".pcopy/lock", ".pcopy/job.json", ".pcopy/journal-");
    in_order(&steps, &[("open|link|rename", lock), ("open", ".pcopy-"), ("unlink", ".pcopy-"), ("rename", job_file)]);
    let durable = [("write", job_file), ("fsync|fdatasync", job_file), ("rename", job_file), ("fsync", ".pcopy")];
    in_order(&steps, &durable);
    in_order(&steps, &[("rename", job_file), ("open", journal), ("write", journal), ("fdatasync", journal)]);
    let sealed = [".pcopy/manifest.jsonl", ".pcopy/base"];
    for name in sealed {
        in_order(&steps, &[("fdatasync", journal), ("write", name), ("fsync|fdatasync", name), ("rename", name)]);
        in_order(&steps, &[("rename", name), ("fsync", ".pcopy"), ("unlink", lock)]);
    }
    in_order(&steps, &[("rename", ".pcopy/base"), ("unlink", journal), ("unlink", lock)]);
    fs::remove_dir_all(&place(0).root).unwrap();
    // Two more than there were: the runs that do not come to them are whole at once.
    in_lanes(1..=steps.len() + 2, |lane, at| {
        let place = place(lane);
        let found = crash_and_go_on(&crash, (&job(), &job()), &place, at);
        fs::remove_dir_all(&place.root).unwrap();
        found
    });
}

#[test]
fn after_two_crashes_before_the_job_is_written_down_the_same_command_ends_with_the_whole_copy() {
    let (crash, dir) = (Crash::build(), temp());
    let src = source(&dir.path().join("src"));
    let place = |lane: usize| Place::new(&src, &dir.path().join(format!("dst{lane}")));
    let steps = steps_of(&crash, &job(), &place(0), &place(0).root);
    let written = steps.iter().position(|step| step.is("rename", ".pcopy/job.json")).unwrap();
    fs::remove_dir_all(&place(0).root).unwrap();
    // From the marker on: before that the lock may be cut off, which the next run waits ten seconds for.
    let marker = 1 + steps.iter().position(|step| step.is("open", ".pcopy-")).unwrap();
    let pairs = (marker..=written).flat_map(|first| (1..=written + 2).map(move |second| first * 100 + second));
    in_lanes(pairs, |lane, pair| {
        let place = place(lane);
        crash.within(&job(), &place.root, pair / 100).run([&place.src, &place.root]);
        let found = crash_and_go_on(&crash, (&job(), &job()), &place, pair % 100);
        fs::remove_dir_all(&place.root).unwrap();
        found.into_iter().map(|words| format!("after one before step {}: {words}", pair / 100)).collect()
    });
}

#[test]
fn after_a_crash_of_a_run_of_a_complete_job_the_same_command_ends_with_the_whole_copy() {
    let (crash, dir) = (Crash::build(), temp());
    let src = source(&dir.path().join("src"));
    // Each lane has its own complete copy, which is put back before each crash.
    let lanes: Vec<_> = (0..LANES).map(|lane| dir.path().join(format!("lane{lane}"))).collect();
    let place = |lane: usize| Place::new(&src, &lanes[lane].join("dst"));
    for (lane, home) in lanes.iter().enumerate() {
        fs::create_dir(home).unwrap();
        place(lane).complete(&job(), [&src, &place(lane).root]);
        fs::rename(&place(lane).root, home.join("kept")).unwrap();
    }
    let put_back = |lane: usize| {
        let _ = fs::remove_dir_all(&place(lane).root);
        let cp = Command::new("cp").arg("-a").arg(lanes[lane].join("kept")).arg(&place(lane).root).status();
        assert!(cp.unwrap().success());
        // There is something to do.
        fs::remove_file(place(lane).root.join("d/large")).unwrap();
    };
    put_back(0);
    let steps = steps_of(&crash, &job(), &place(0), &place(0).root);
    in_lanes(1..=steps.len() + 2, |lane, at| {
        put_back(lane);
        crash_and_go_on(&crash, (&job(), &job()), &place(lane), at)
    });
}

#[test]
fn after_crashes_while_going_on_after_a_crash_the_same_command_ends_with_the_whole_copy() {
    let mut chance = Chance::new(chance::seed("crashes after crashes"));
    let (crash, dir) = (Crash::build(), temp());
    let src = source(&dir.path().join("src"));
    let place = Place::new(&src, &dir.path().join("dst"));
    let steps = steps_of(&crash, &job(), &place, &place.root).len();
    for _ in 0..chance::from_environment("PCOPY_CRASHES").unwrap_or(8) {
        fs::remove_dir_all(&place.root).unwrap();
        for _ in 0..chance.of(1..=3) {
            let at = 1 + chance.index(steps);
            println!("a crash before step {at} of {steps}");
            let crashed = crash.within(&job(), &place.root, at).run([&src, &place.root]);
            if crashed.code() == Some(0) {
                place.assert_whole(&job(), &crashed);
            }
        }
        place.complete(&job(), [&src, &place.root]);
    }
}

#[test]
fn after_a_crash_of_rank_0_of_two_the_same_command_with_other_ranks_ends_with_the_whole_copy() {
    let mut chance = Chance::new(chance::seed("crashes of rank 0 of two"));
    let (crash, dir) = (Crash::build(), temp());
    let src = source(&dir.path().join("src"));
    let place = Place::new(&src, &dir.path().join("dst"));
    let two = Job::ranks(2).options(STEADY);
    let steps = steps_of(&crash, &two, &place, &place.root).len();
    let mut found = Vec::new();
    for at in (1 + chance.index(6)..=steps).step_by(6) {
        fs::remove_dir_all(&place.root).unwrap();
        let then = if chance.of(0..=1) == 0 { job() } else { two.clone() };
        found.extend(crash_and_go_on(&crash, (&two, &then), &place, at));
    }
    oracle::assert_none(&found, "after crashes");
}
