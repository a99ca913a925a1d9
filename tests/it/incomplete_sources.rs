//! A copy that is not complete is not taken for the source that it is of: refused, with the command that finishes it and the
//! option that copies what is there. Nobody can make root's copies fail by that (issue 14, item 5).

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::interrupted::wait_for;
use crate::support::journal::kill_at;
use crate::support::launch::{Job, NOBODY, Outcome};
use crate::support::oracle::{self, Aspects};
use crate::support::resumed::{Case, job};
use crate::support::skip::{self, need};
use crate::support::tree::{self, chmod, noise_file, temp, write};
use crate::support::whole::{Place, temporaries};

const OPTION: &str = "--incomplete-source";

fn beside(case: &Case, name: &str) -> PathBuf {
    case.place.root.with_file_name(name)
}

/// Copies these to `new`, which must be refused without a trace there; the line.
#[track_caller]
fn is_refused(job: &Job, sources: &[&Path], new: &Path) -> String {
    let outcome = job.run(sources.iter().copied().chain([new]));
    let line = outcome.assert_refused();
    assert!(!new.exists(), "{}", outcome.told());
    assert!(line.contains("incomplete copy") && line.contains(OPTION), "{line:?}");
    line.to_owned()
}

/// Copies one source to `new`, which must work.
#[track_caller]
fn is_copied(job: &Job, source: &Path, new: &Path) -> Outcome {
    let outcome = job.run([source, new]);
    outcome.assert_code(0);
    outcome
}

fn notes_of(outcome: &Outcome) -> Vec<String> {
    outcome.stderr.lines().filter_map(|line| line.strip_prefix("pcopy: note: ")).map(str::to_owned).collect()
}

/// Changes what a job file says.
fn say(state: &Path, change: impl FnOnce(&mut Value)) {
    let file = state.join("job.json");
    let mut job: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut job);
    write(&file, job.to_string().as_bytes());
}

#[test]
fn a_killed_copy_is_no_source_until_the_command_that_is_told_has_finished_it() {
    let case = Case::killed(2);
    let Place { src, root, .. } = &case.place;
    let new = beside(&case, "new");
    let file = root.join(oracle::show(&case.files()[0]));
    let command = format!("pcopy {} {}", src.display(), root.display());
    for ranks in [1, 2] {
        for source in [root.clone(), root.join(""), root.join("d000"), file.clone()] {
            let line = is_refused(&job(ranks), &[&source], &new);
            assert!(line.contains(&command), "no {command:?} in {line:?}");
        }
    }
    let other = beside(&case, "other");
    noise_file(&other.join("f"), 10);
    fs::create_dir(&new).unwrap();
    job(1).run([&other, root, &new]).assert_refused();
    assert_eq!(fs::read_dir(&new).unwrap().count(), 0);
    fs::remove_dir(&new).unwrap();
    is_refused(&Job::ranks(1).options(["--dry-run"]), &[root], &new);
    // What is not of the copy is a source as before.
    is_copied(&job(1), &root.join(".pcopy"), &beside(&case, "state"));
    case.completes(&job(2));
    is_copied(&job(1), root, &new);
    oracle::assert_same(src, &new, Aspects::ALL);
}

#[test]
fn with_the_option_what_is_there_is_copied_without_what_the_job_has_left() {
    let dir = temp();
    let [src, dst] = ["src", "dst"].map(|name| dir.path().join(name));
    noise_file(&src.join("sub/large"), 60_000_000);
    noise_file(&src.join("a"), 1000);
    kill_at(&job(2), [&src, &dst], &dst.join(".pcopy"), 20);
    assert!(!temporaries(&dst).is_empty());
    // of a user, or of another job: an entry like others
    noise_file(&dst.join("sub/.pcopy-0123456789abcdef-0123456789abcdef.tmp"), 100);
    for ranks in [1, 3] {
        let new = dir.path().join(format!("new{ranks}"));
        is_refused(&job(ranks), &[&dst], &new);
        is_copied(&job(ranks).options([OPTION]), &dst, &new);
        assert_eq!(temporaries(&new), ["sub/.pcopy-0123456789abcdef-0123456789abcdef.tmp: a temporary name is left"]);
        assert_eq!(fs::read(new.join("a")).unwrap(), fs::read(src.join("a")).unwrap());
        assert!(!new.join("sub/large").exists());
        // and goes on, when it is run again
        is_copied(&job(ranks).options([OPTION]), &dst, &new);
    }
}

#[test]
fn a_second_run_that_was_killed_makes_a_complete_copy_incomplete_again() {
    let case = Case::complete(1);
    let Place { src, root, state } = &case.place;
    is_copied(&job(1), root, &beside(&case, "first"));
    kill_at(&job(1).options(["--restart"]), [src, root], state, 100);
    is_refused(&job(1), &[root], &beside(&case, "new"));
}

#[test]
fn a_copy_that_is_being_made_is_no_source() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 10, 60);
    let (dst, new) = (dir.path().join("dst"), dir.path().join("new"));
    let mut running = job(1).options(["--limit-rate", "1M"]).start([&src, &dst]);
    wait_for(&mut running, "its job file", || dst.join(".pcopy/job.json").exists());
    let line = is_refused(&job(1), &[&dst], &new);
    let pid = running.rank_pids()[0];
    assert!(line.contains(&format!("process {pid}")), "no process {pid} in {line:?}");
    assert!(running.goes_on(), "the run ended before the other one was refused");
    running.wait().assert_code(0);
    is_copied(&job(1), &dst, &new);
}

#[test]
fn a_copy_that_another_host_makes_is_no_source_and_nobody_waits_for_it() {
    let case = Case::killed(1);
    let lock = case.place.state.join("lock");
    let mut holder: Value = serde_json::from_slice(&fs::read(&lock).unwrap()).unwrap();
    (holder["host"], holder["boot_id"]) = ("far\u{1b}away".into(), "00000000-0000-4000-8000-000000000000".into());
    write(&lock, format!("{holder}\n").as_bytes());
    let line = is_refused(&job(1).limit(8), &[&case.place.root], &beside(&case, "new"));
    assert!(line.contains("host far?away"), "{line:?}");
}

#[test]
fn a_copy_of_which_entries_failed_is_a_source_and_that_is_said() {
    let dir = temp();
    let [src, dst, new] = ["src", "dst", "new"].map(|name| dir.path().join(name));
    noise_file(&src.join("a"), 100);
    noise_file(&src.join("b"), 100);
    noise_file(&dst.join("b/in-the-way"), 100);
    job(1).run([&src.join(""), &dst]).assert_code(1);
    let notes = notes_of(&is_copied(&job(1), &dst, &new));
    assert!(notes.iter().any(|note| note.contains("1 entries are missing")), "{notes:?}");
}

#[test]
fn what_was_killed_before_its_job_was_written_or_says_nothing_is_no_source() {
    for content in [None, Some(b"".as_slice()), Some(b"garbage")] {
        let case = Case::killed(1);
        let (root, file) = (&case.place.root, case.place.state.join("job.json"));
        match content {
            None => fs::remove_file(file).unwrap(),
            Some(content) => write(&file, content),
        }
        is_refused(&job(1), &[root], &beside(&case, "new"));
        let new = beside(&case, "with-option");
        is_copied(&job(1).options([OPTION]), root, &new);
        assert_eq!(temporaries(&new), [""; 0]);
    }
}

#[test]
fn of_several_sources_only_their_own_places_are_an_incomplete_copy() {
    let dir = temp();
    let [a, b, dst] = ["a", "b", "dst"].map(|name| dir.path().join(name));
    tree::small_files(&a, 10, 60);
    tree::small_files(&b, 10, 60);
    noise_file(&dst.join("mine/f"), 100);
    kill_at(&job(1), [&a, &b, &dst], &dst.join(".pcopy"), 100);
    is_refused(&job(1), &[&dst.join("a")], &dir.path().join("new"));
    is_refused(&job(1), &[&dst], &dir.path().join("new"));
    is_copied(&job(1), &dst.join("mine"), &dir.path().join("new"));
}

#[test]
fn a_source_that_holds_an_incomplete_copy_is_copied_with_its_state_and_stays_one() {
    for ranks in [1, 3] {
        let case = Case::killed(1);
        let (above, new) = (case.place.root.parent().unwrap(), temp());
        let new = new.path().join("new");
        let outcome = is_copied(&job(ranks), above, &new);
        let notes = notes_of(&outcome);
        assert!(notes.iter().any(|note| note.contains("dst/.pcopy: of an incomplete copy")), "{notes:?}");
        is_refused(&job(1), &[&new.join("dst")], &new.with_extension("again"));
    }
}

#[test]
fn a_killed_copy_whose_state_is_elsewhere_is_known_by_its_root() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 20, 60);
    let [dst, state, new] = ["dst", "state", "new"].map(|name| dir.path().join(name));
    let job = job(1).options(["--state-dir".as_ref(), state.as_os_str()]);
    kill_at(&job, [&src, &dst], &state, 100);
    let plain = crate::support::resumed::job(1);
    let outcome = plain.run([&dst, &new]);
    let line = outcome.assert_refused();
    assert!(line.contains("until it is complete") && line.contains(OPTION), "{line:?}");
    is_copied(&plain.clone().options([OPTION]), &dst, &new);
    assert_eq!(temporaries(&new), [""; 0]);
    job.run([&src, &dst]).assert_code(0);
    is_copied(&plain, &dst, &dir.path().join("whole"));
}

#[test]
fn what_a_job_file_says_is_shown_without_control_characters_and_in_one_line() {
    let case = Case::killed(1);
    for given in ["/\u{1b}[2J\nfoo\u{202e}".to_owned(), "/x".repeat(100_000)] {
        say(&case.place.state, |job| job["sources"][0]["given"] = given.into());
        let line = is_refused(&job(1), &[&case.place.root], &beside(&case, "new"));
        assert!(line.len() < 1000 && !line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
    }
}

/// The home of a user, which holds what looks like an incomplete copy.
fn home_with_forgery() -> (TempDir, PathBuf) {
    let case = Case::killed(1);
    let dir = temp();
    let home = dir.path().join("home/user");
    noise_file(&home.join("data/f"), 1000);
    fs::create_dir(home.join(".pcopy")).unwrap();
    for name in ["job.json", "lock"] {
        fs::copy(case.place.state.join(name), home.join(".pcopy").join(name)).unwrap();
    }
    say(&home.join(".pcopy"), |job| job["sources"][0]["given"] = format!("/\u{1b}[2J{}", "x".repeat(50_000)).into());
    for path in ["", "data", "data/f", ".pcopy", ".pcopy/job.json", ".pcopy/lock"] {
        chown(home.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    (dir, home)
}

#[test]
fn what_a_user_forges_in_his_home_stops_no_copy_by_root_and_leaves_nothing_out() {
    need!(skip::root());
    let (dir, home) = home_with_forgery();
    // named as temporary files of the job that he claims
    let id = fs::read_to_string(home.join(".pcopy/job.json")).unwrap();
    let id = serde_json::from_str::<Value>(&id).unwrap()["id"].as_str().unwrap().to_owned();
    for name in [format!(".pcopy-{id}-0123456789abcdef.tmp"), format!(".pcopy-{id}.here")] {
        noise_file(&home.join("data").join(name), 100);
    }
    let sources = [home.clone(), home.join("data"), home.join("data/f"), home.parent().unwrap().to_path_buf()];
    for (number, source) in sources.iter().enumerate() {
        let new = dir.path().join(format!("new{number}"));
        let outcome = is_copied(&job(1), source, &new);
        // all but the top's own .pcopy
        oracle::assert_none(&oracle::differences(source, &new, Aspects::ALL), &outcome.told());
        let notes = notes_of(&outcome);
        let told = notes.iter().any(|note| note.contains(&format!("belongs to user {NOBODY}")));
        assert_eq!(told, number < 3, "{notes:?}");
        let is_plain = |note: &String| note.len() < 1000 && !note.chars().any(char::is_control);
        assert!(notes.iter().all(is_plain), "{notes:?}");
    }
}

#[test]
fn a_link_or_a_directory_that_anybody_can_write_to_is_no_state_that_could_stop_a_copy() {
    need!(skip::root());
    let case = Case::killed(1);
    for (number, mode) in [None, Some(0o777), Some(0o720)].into_iter().enumerate() {
        let home = beside(&case, &format!("home{number}"));
        noise_file(&home.join("f"), 1000);
        match mode {
            None => symlink(&case.place.state, home.join(".pcopy")).unwrap(),
            Some(mode) => {
                fs::create_dir(home.join(".pcopy")).unwrap();
                fs::copy(case.place.state.join("job.json"), home.join(".pcopy/job.json")).unwrap();
                chmod(&home.join(".pcopy"), mode);
            }
        }
        is_copied(&job(1), &home, &beside(&case, &format!("new{number}")));
    }
}

#[test]
fn a_state_that_cannot_be_read_is_a_note() {
    need!(skip::root());
    let dir = temp();
    chmod(dir.path(), 0o777);
    let src = dir.path().join("src");
    noise_file(&src.join("d/f"), 1000);
    fs::create_dir(src.join(".pcopy")).unwrap();
    chmod(&src.join(".pcopy"), 0o700);
    for (number, source) in [src.clone(), src.join("d")].iter().enumerate() {
        let job = Job::ranks(1).by_nobody(dir.path());
        let outcome = is_copied(&job, source, &dir.path().join(format!("new{number}")));
        let notes = notes_of(&outcome);
        assert!(notes.iter().any(|note| note.contains("its .pcopy cannot be read")), "{notes:?}");
    }
}

#[test]
fn a_job_file_of_a_version_without_the_option_goes_on_as_before() {
    let case = Case::killed(1);
    say(&case.place.state, |job| assert!(job["options"].get("incomplete_source").is_none(), "{job}"));
    let outcome = case.completes(&job(1));
    assert!(!outcome.stderr.contains("another job"), "{}", outcome.told());
}
