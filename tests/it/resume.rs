//! A job that ended before it was complete goes on where it was, and one that is complete has nothing to do (issue 4):
//! whatever the number of ranks, and at the same place.

use std::fs;

use crate::interception::Shim;
use crate::support::journal::kill_at;
use crate::support::launch::Job;
use crate::support::listing::assert_untouched;
use crate::support::manifest::{self, Expect};
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::resumed::{Case, assert_notes, bytes_of, job, number};
use crate::support::told;
use crate::support::tree::{self, noise_file, raw, temp, write};
use crate::support::whole::{Place, names, unfinished};

// ---- going on

#[test]
fn a_killed_copy_goes_on_with_any_number_of_ranks() {
    for (before, after) in [(1, 3), (4, 2), (2, 1)] {
        let case = Case::killed(before);
        let outcome = case.completes(&job(after));
        assert_notes(&outcome, &["going on with the job that began ", "(run 2)", "entries are recorded"]);
        let told = told::json(&outcome);
        assert_eq!((number(&told, "runs"), number(&told, "exit_code")), (2, 0));
        let files = u64::try_from(case.files().len()).unwrap();
        assert!(number(&told, "resumed") >= files, "{files} files are recorded: {told}");
        assert_eq!(number(&told, "resumed_bytes") + number(&told, "bytes_moved"), number(&told, "bytes"), "{told}");
        assert_eq!(number(&told, "bytes"), bytes_of(&case.place.src));
    }
}

#[test]
fn the_summary_for_people_tells_what_was_there_from_earlier_runs() {
    let case = Case::killed(2);
    let as_text = Job::ranks(2).options(["-k", "64K", "-b", "16K"]);
    let outcome = case.completes(&as_text);
    let resumed = told::count(&outcome, "Resumed").unwrap_or_default();
    assert!(resumed >= 100 && outcome.stdout.contains("entries were there from earlier runs"), "{}", outcome.told());
    let first = Case::new();
    assert_eq!(told::count(&first.completes(&as_text), "Resumed"), None);
}

#[test]
fn what_was_recorded_is_neither_read_nor_written_again() {
    for ranks in [1, 2] {
        let case = Case::killed(2);
        let shim = Shim::build();
        let variables = shim.variables(&case.place.src, &case.place.root);
        let job = variables.iter().fold(job(ranks), |job, (name, value)| job.rank_env(name, value));
        let before = case.recorded_listing();
        let outcome = case.again(&job);
        assert_untouched(&before, &case.recorded_listing(), &outcome.told());
        case.place.assert_whole(&job, &outcome);
        let (moved, counted) = (number(&told::json(&outcome), "bytes_moved"), shim.counted().0);
        let recorded: u64 = case.files().iter().map(|path| raw(&case.place.src, path).metadata().unwrap().len()).sum();
        assert_eq!(counted["source_bytes_read"], moved, "{}", outcome.told());
        assert!(recorded > 0 && moved <= bytes_of(&case.place.src) - recorded, "{recorded} recorded, {moved} moved");
    }
}

#[test]
fn a_complete_copy_that_is_run_again_reads_and_writes_nothing() {
    for ranks in [1, 3] {
        let case = Case::complete(2);
        let shim = Shim::build();
        let variables = shim.variables(&case.place.src, &case.place.root);
        let job = variables.iter().fold(job(ranks), |job, (name, value)| job.rank_env(name, value));
        let before = case.recorded_listing();
        let outcome = case.again(&job);
        assert_untouched(&before, &case.recorded_listing(), &outcome.told());
        case.place.assert_whole(&job, &outcome);
        assert_notes(&outcome, &["the copy was complete; what is unchanged by size and mtime is left"]);
        let (told, counted) = (told::json(&outcome), shim.counted().0);
        assert_eq!(number(&told, "bytes_moved"), 0);
        assert_eq!((counted["source_bytes_read"], counted["destination_bytes_written"]), (0, 0), "{counted:?}");
        assert!(number(&told, "resumed") >= number(&told, "files"), "{told}");
        assert_eq!(number(&told, "bytes"), bytes_of(&case.place.src));
        // And once more, from what that run left.
        let third = case.completes(&self::job(2));
        assert_eq!(number(&told::json(&third), "bytes_moved"), 0);
        assert_untouched(&before, &case.recorded_listing(), &third.told());
    }
}

#[test]
fn a_copy_that_is_killed_many_times_moves_on_each_time() {
    let case = Case::killed(1);
    for ranks in [2, 1, 3] {
        kill_at(&job(ranks), [&case.place.src, &case.place.root], &case.place.state, 60);
        assert!(!case.place.state.join("manifest.jsonl").exists());
    }
    let outcome = case.completes(&job(2));
    assert_notes(&outcome, &["going on with the job that began ", "(run 5)"]);
    let told = told::json(&outcome);
    assert_eq!(number(&told, "runs"), 5);
    assert!(number(&told, "resumed") >= 300, "{told}");
}

// ---- where it lands

/// How a command line names the copy.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// `SRC DST`, DST absent.
    Absent,
    /// `SRC/ DST`, DST absent.
    SlashAbsent,
    /// `SRC/ DST`, DST a directory.
    SlashExists,
    /// `SRC DST`, DST a directory.
    Exists,
    /// `SRC DST/`, DST absent.
    AbsentSlash,
}

#[test]
fn a_copy_that_is_run_again_lands_where_it_did() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 15, 60);
    for form in [Form::Absent, Form::SlashAbsent, Form::SlashExists, Form::Exists, Form::AbsentSlash] {
        for killed in [true, false] {
            let dst = dir.path().join(format!("{form:?}-{killed}"));
            if matches!(form, Form::SlashExists | Form::Exists) {
                fs::create_dir(&dst).unwrap();
            }
            let operands = match form {
                Form::Absent | Form::Exists => [src.clone(), dst.clone()],
                Form::SlashAbsent | Form::SlashExists => [src.join(""), dst.clone()],
                Form::AbsentSlash => [src.clone(), dst.join("")],
            };
            let place = Place::new(&src, &if matches!(form, Form::Exists) { dst.join("src") } else { dst });
            if killed {
                kill_at(&job(2), &operands, &place.state, 40);
            } else {
                place.complete(&job(2), &operands);
            }
            for ranks in [1, 2] {
                println!("{form:?}, {killed}, {ranks} ranks");
                place.complete(&job(ranks), &operands);
            }
        }
    }
}

#[test]
fn the_other_form_of_the_command_line_means_what_cp_means() {
    // A lone directory goes to the same place with a slash behind it, and is the same job.
    for case in [Case::complete(2), Case::killed(2)] {
        let without = [case.place.src.clone(), case.place.root.clone()];
        let with_slash = [case.place.src.join(""), case.place.root.clone()];
        let told = told::json(&case.place.complete(&job(1), &with_slash));
        assert!(number(&told, "resumed") > 0 && number(&told, "runs") == 2, "{told}");
        // and the first form goes on being one of this copy
        for operands in [&without, &with_slash] {
            let told = told::json(&case.place.complete(&job(2), operands));
            assert_eq!(number(&told, "bytes_moved"), 0, "{told}");
        }
    }
}

#[test]
fn with_into_a_copy_goes_below_an_earlier_one() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 3, 10);
    let dst = dir.path().join("dst");
    let (upper, lower) = (Place::new(&src, &dst), Place::new(&src, &dst.join("src")));
    upper.complete(&job(1), [&src, &dst]);
    for ranks in [1, 2] {
        lower.complete(&job(ranks).options(["--into"]), [&src, &dst]);
    }
    let outside = |words: &String| words != "src: not in the source" && !words.starts_with("src/");
    let found = oracle::differences(&src, &dst, Aspects { mtime: false, ..Aspects::ALL });
    let found: Vec<_> = found.into_iter().filter(outside).collect();
    oracle::assert_none(&found, "the upper copy");
}

#[test]
fn several_sources_go_on_side_by_side() {
    for killed in [true, false] {
        let dir = temp();
        let sources = ["a", "b", "c"].map(|name| tree::small_files(&dir.path().join(name), 8, 50));
        let single = dir.path().join("single");
        noise_file(&single, 200_000);
        tree::age(&single);
        let dst = dir.path().join("dst");
        fs::create_dir(&dst).unwrap();
        let operands = || sources.iter().chain([&single, &dst]);
        let state = dst.join(".pcopy");
        if killed {
            kill_at(&job(2), operands(), &state, 40);
        } else {
            job(2).run(operands()).assert_code(0);
        }
        for ranks in [3, 1] {
            let outcome = job(ranks).run(operands());
            outcome.assert_code(0);
            assert!(number(&told::json(&outcome), "resumed") > 0, "{}", outcome.told());
            for (src, name) in sources.iter().zip(["a", "b", "c"]) {
                oracle::assert_same(src, &dst.join(name), Aspects::ALL);
            }
            oracle::assert_same(&single, &dst.join("single"), Aspects::ALL);
            assert_eq!(names(&dst), [".pcopy", "a", "b", "c", "single"]);
            oracle::assert_none(&unfinished(&state), &outcome.told());
            manifest::checked(
                &state.join("manifest.jsonl"),
                &Expect { root: &dst, ranks, digests: true, strangers: false },
            );
        }
    }
}

// ---- the state elsewhere

#[test]
fn with_a_state_directory_elsewhere_nothing_but_the_copy_is_in_the_copy() {
    let case = Case::new();
    let elsewhere = case.place.src.with_file_name("state");
    let place = Place { state: elsewhere.clone(), ..case.place.clone() };
    let job = |ranks| self::job(ranks).options(["--state-dir"]).options([&elsewhere]);
    let operands = [&place.src, &place.root];
    kill_at(&job(2), operands, &place.state, 150);
    assert!(!place.root.join(".pcopy").exists());
    for ranks in [3, 1] {
        let outcome = place.complete(&job(ranks), operands);
        assert!(number(&told::json(&outcome), "resumed") >= 100, "{}", outcome.told());
        assert!(!place.root.join(".pcopy").exists());
        assert!(elsewhere.join("manifest.jsonl").exists());
    }
}

#[test]
fn a_manifest_elsewhere_leaves_the_state_where_it_was() {
    let case = Case::new();
    let file = case.place.src.with_file_name("m.jsonl");
    let job = |ranks| self::job(ranks).options(["--manifest"]).options([&file]);
    kill_at(&job(2), [&case.place.src, &case.place.root], &case.place.state, 150);
    let outcome = case.again(&job(3));
    outcome.assert_code(0);
    oracle::assert_same(&case.place.src, &case.place.root, Aspects::ALL);
    assert_eq!(names(&case.place.state), ["base", "job.json"], "{}", outcome.told());
    let expect = Expect { root: &case.place.root, ranks: 3, digests: true, strangers: false };
    manifest::checked(&file, &expect);
}

// ---- what is told in the end

/// The lines of the entries, as they are.
fn entry_lines(place: &Place) -> Vec<String> {
    let text = fs::read_to_string(place.state.join("manifest.jsonl")).unwrap();
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[1..lines.len() - 1].to_vec()
}

#[test]
fn manifest_and_totals_after_kills_are_those_of_a_run_that_was_not_disturbed() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 25, 50);
    tree::odd_tree(&src.join("odd"), 64 << 10, 16 << 10);
    for number in 0..4 {
        noise_file(&src.join(format!("d00{number}/large")), 1_000_000 + number);
    }
    (0..10).for_each(|number| noise_file(&src.join(format!("d01{number}/left.out")), 100));
    tree::age(&src);
    let job = |ranks| self::job(ranks).options(["--exclude=*.out"]);
    let run = |place: &Place, ranks| {
        let outcome = job(ranks).run([&place.src, &place.root]);
        outcome.assert_code(0);
        told::json(&outcome)
    };
    let undisturbed = Place::new(&src, &dir.path().join("undisturbed"));
    let expected = run(&undisturbed, 2);
    let killed = Place::new(&src, &dir.path().join("killed"));
    for (ranks, items) in [(2, 130), (1, 90), (4, 180)] {
        kill_at(&job(ranks), [&killed.src, &killed.root], &killed.state, items);
    }
    // To the end, and once more when it is complete.
    for ranks in [3, 2] {
        let told = run(&killed, ranks);
        for name in [
            "entries",
            "files",
            "dirs",
            "symlinks",
            "others",
            "hardlinks",
            "bytes",
            "errors",
            "unkept",
            "kept",
            "excluded",
        ] {
            assert_eq!(told[name], expected[name], "{name}");
        }
        assert_eq!(told["unkept_kinds"], expected["unkept_kinds"]);
        assert!(entry_lines(&killed) == entry_lines(&undisturbed), "the entries' lines");
        assert_eq!(number(&expected, "excluded"), 10);
    }
}

#[test]
fn an_entry_that_failed_is_tried_again() {
    let case = Case::new();
    let files: Vec<_> = oracle::walk(&case.place.src).into_iter().filter(|(_, n)| n.kind == Kind::File).collect();
    // Directories in the way of files fail these, whoever runs it.
    let in_the_way: Vec<_> = [5, 500].iter().map(|at| raw(&case.place.root, &files[*at].0)).collect();
    in_the_way.iter().for_each(|path| write(&path.join("mine"), b""));
    let operands = [case.place.src.join(""), case.place.root.clone()];
    job(2).run(&operands).assert_code(1);
    oracle::assert_none(&unfinished(&case.place.state), "after a run with failed entries");
    let again = job(1).run(&operands);
    again.assert_says("the copy came to its end with 2 errors, which are tried again");
    assert_eq!(number(&told::json(again.assert_code(1)), "errors"), 2);
    in_the_way.iter().for_each(|path| fs::remove_dir_all(path).unwrap());
    let outcome = case.place.complete(&job(2), &operands);
    let expected: u64 = [5, 500].iter().map(|at: &usize| files[*at].1.size).sum();
    assert_eq!(number(&told::json(&outcome), "bytes_moved"), expected, "{}", outcome.told());
}
