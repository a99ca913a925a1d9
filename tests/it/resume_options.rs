//! Which options make another job, and those by which a job starts over or must go on (issue 4).

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::launch::Job;
use crate::support::listing::{Listing, assert_untouched, listing};
use crate::support::oracle::{self, Aspects};
use crate::support::resumed::{Case, assert_notes, both, bytes_of, job, number};
use crate::support::told;
use crate::support::tree::raw;
use crate::support::whole::unfinished;

#[test]
fn changed_options_make_another_job_which_says_so_and_uses_nothing() {
    for options in [&["--no-digest"][..], &["--no-preserve=timestamps"], &["--exclude=nothing-like-this"]] {
        let case = Case::killed(2);
        let other = job(2).options(options);
        let outcome = case.again(&other);
        outcome.assert_code(0);
        let line = assert_notes(&outcome, &["another job than the one recorded there (changed: "]);
        assert!(line.ends_with("nothing that it recorded is used"), "{line}");
        let names = line.split_once("(changed: ").unwrap().1.split_once(')').unwrap().0;
        assert!(!names.is_empty(), "{line}");
        let told = told::json(&outcome);
        assert_eq!((number(&told, "resumed"), number(&told, "runs")), (0, 1), "{told}");
        assert_eq!(number(&told, "bytes_moved"), bytes_of(&case.place.src));
        let aspects = Aspects { mtime: options[0] != "--no-preserve=timestamps", ..Aspects::ALL };
        oracle::assert_same(&case.place.src, &case.place.root, aspects);
        oracle::assert_none(&unfinished(&case.place.state), &outcome.told());
        // Of that job, what is complete is left.
        let again = told::json(&case.again(&other));
        assert_eq!(number(&again, "bytes_moved"), 0, "{again}");
    }
}

#[test]
fn options_that_change_no_byte_of_the_copy_make_no_other_job() {
    let case = Case::killed(1);
    let options =
        ["-k", "64K", "-b", "16K", "--threads", "2", "--progress", "0", "--checkpoint-interval", "1s", "--json"];
    let outcome = case.completes(&Job::ranks(2).options(options).options(["--verbose"]));
    assert!(number(&told::json(&outcome), "resumed") >= 100, "{}", outcome.told());
}

#[test]
fn with_restart_everything_is_copied_anew_to_the_same_place() {
    for option in ["--restart", "--resume=never"] {
        for (_, case) in both() {
            let files = case.files();
            let inodes =
                || -> Vec<_> { files.iter().map(|f| raw(&case.place.root, f).metadata().unwrap().ino()).collect() };
            let before = inodes();
            let outcome = case.completes(&job(2).options([option]));
            let told = told::json(&outcome);
            assert_eq!((number(&told, "resumed"), number(&told, "runs")), (0, 1), "{told}");
            assert_eq!(number(&told, "bytes_moved"), bytes_of(&case.place.src));
            assert!(before.iter().zip(inodes()).all(|(old, new)| *old != new), "{}", outcome.told());
            // The restarted job is one that goes on as any.
            assert_eq!(number(&told::json(&case.completes(&job(1))), "bytes_moved"), 0);
        }
    }
}

#[test]
fn a_resume_that_is_required_is_refused_where_there_is_nothing_to_resume() {
    let required = job(2).options(["--resume=require"]);
    let case = Case::new();
    case.again(&required).assert_refused();
    assert!(!case.place.root.exists(), "a run that is refused leaves nothing");
    case.completes(&job(1));
    case.completes(&required);
    let before = listing(&case.place.root);
    let state = || case.place.state.join("job.json");
    let recorded = fs::read(state()).unwrap();
    let outcome = case.again(&required.options(["--no-digest"]));
    outcome.assert_code(2);
    let copied =
        |listing: Listing| -> Listing { listing.into_iter().filter(|(p, _)| !p.starts_with(b".pcopy")).collect() };
    assert_untouched(&copied(before), &copied(listing(&case.place.root)), &outcome.told());
    assert_eq!(fs::read(state()).unwrap(), recorded);
    let killed = Case::killed(2);
    killed.completes(&job(1).options(["--resume=require"]));
}

#[test]
fn resume_auto_is_the_default() {
    let case = Case::killed(2);
    let outcome = case.completes(&job(2).options(["--resume=auto"]));
    assert!(number(&told::json(&outcome), "resumed") >= 100);
}
