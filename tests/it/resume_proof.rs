//! The judge of complete copies objects where something is missing, other, or left behind; choices repeat with their seed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::support::chance::Chance;
use crate::support::copy::copy;
use crate::support::journal;
use crate::support::launch::{Job, processes_naming};
use crate::support::tree::{self, noise_file, temp, write};
use crate::support::whole::{Place, names, temporaries, unfinished};

#[test]
fn a_state_directory_holds_the_three_files_of_a_complete_job_and_nothing_else() {
    let dir = temp();
    let state = dir.path().join("state");
    assert_eq!(unfinished(&state).len(), 3);
    for name in ["base", "job.json", "manifest.jsonl", "manifest.jsonl.previous"] {
        write(&state.join(name), b"");
    }
    assert_eq!(unfinished(&state), [] as [&str; 0]);
    for name in ["lock", "journal-000001.0", "base.new", "manifest.jsonl.0123456789abcdef.tmp", "journal-000001.0.run1"]
    {
        write(&state.join(name), b"");
        assert_eq!(unfinished(&state), [format!("state: {name}: left behind")]);
        fs::remove_file(state.join(name)).unwrap();
    }
    fs::remove_file(state.join("base")).unwrap();
    assert_eq!(unfinished(&state), ["state: base: missing"]);
    assert_eq!(names(&state), ["job.json", "manifest.jsonl", "manifest.jsonl.previous"]);
}

#[test]
fn temporary_names_are_found_wherever_they_are() {
    let dir = temp();
    write(&dir.path().join(".pcopy/job.json"), b"");
    write(&dir.path().join("a/.pcopy-like"), b"");
    write(&dir.path().join("b/c/.pcopy-0123456789abcdef-0123456789abcdef.tmp"), b"");
    write(&dir.path().join(".pcopyright"), b"");
    let found = temporaries(dir.path());
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[1].starts_with("b/c/.pcopy-0123456789abcdef"), "{found:?}");
}

#[test]
fn the_judge_of_complete_copies_objects_to_each_thing_that_is_wrong() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 2, 5);
    let place = Place::new(&src, &dir.path().join("dst"));
    let job = Job::ranks(2);
    copy(&job, &[&src], &place.root).outcome.assert_code(0);
    ["base", "job.json"].iter().for_each(|name| write(&place.state.join(name), b""));
    assert_eq!(place.objections(&job), [] as [&str; 0]);
    let objects_to = |wrong: &dyn Fn(), words: &str| {
        wrong();
        let found = place.objections(&job);
        assert!(found.iter().any(|objection| objection.contains(words)), "{words:?} is not in {found:?}");
    };
    assert!(place.objections(&Job::ranks(3)).iter().any(|words| words.contains("ranks")));
    objects_to(&|| write(&place.state.join("lock"), b""), "lock: left behind");
    objects_to(&|| noise_file(&src.join("new"), 10), "new: not in the manifest");
    objects_to(&|| fs::remove_file(src.join("d000/f0002")).unwrap(), "d000/f0002: in the manifest, not in the source");
    objects_to(&|| write(&place.root.join("d000/.pcopy-1.tmp"), b""), "d000/.pcopy-1.tmp: a temporary name is left");
    objects_to(&|| write(&place.root.join("d000/f0003"), b"?"), "d000/f0003: blake3");
    objects_to(&|| fs::remove_file(place.root.join("d001/f0001")).unwrap(), "d001/f0001: missing");
    objects_to(&|| fs::remove_file(place.state.join("manifest.jsonl")).unwrap(), "manifest.jsonl: missing");
}

#[test]
fn a_seed_repeats_its_choices_and_another_one_does_not() {
    let choices = |seed| -> Vec<u64> {
        let mut chance = Chance::new(seed);
        (0..100).map(|_| chance.of(5..=14)).collect()
    };
    assert_eq!(choices(1), choices(1));
    assert_ne!(choices(1), choices(2));
    let seen: BTreeSet<_> = choices(3).into_iter().collect();
    assert_eq!(seen, (5..=14).collect());
    let mut chance = Chance::new(4);
    let seen: BTreeSet<_> = (0..100).map(|_| *chance.one(&["a", "b", "c"])).collect();
    assert_eq!(seen.len(), 3);
}

#[test]
fn processes_are_found_by_a_path_in_their_command_lines() {
    let dir = temp();
    let mark = dir.path().join("a-mark-of-its-own");
    assert_eq!(processes_naming(&mark), [] as [i32; 0]);
    let mut command = Command::new("sh");
    command.args(["-c", "echo; read line", "sh"]).arg(&mark).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut sleeper = command.spawn().unwrap();
    // Its command line is there for sure when it has said something.
    sleeper.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    assert_eq!(processes_naming(&mark), [pid]);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(processes_naming(&mark), [] as [i32; 0]);
}

#[test]
fn journals_of_earlier_runs_are_not_counted() {
    let dir = temp();
    assert_eq!(journal::written(dir.path(), &BTreeSet::new()), 0);
    write(&dir.path().join("journal-000001.0"), &[0; 100]);
    let earlier = journal::journals(dir.path()).into_iter().collect();
    write(&dir.path().join("journal-000002.0"), &[0; 10]);
    write(&dir.path().join("journal-000002.1"), &[0; 7]);
    write(&dir.path().join("base"), &[0; 1000]);
    assert_eq!(journal::written(dir.path(), &earlier), 17);
}
