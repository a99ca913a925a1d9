//! What a killed run leaves: journals whose every group is whole, and names only what is at the destination, complete
//! (issue 4, item 1).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::journal::{self, copied_paths, kill_at};
use crate::support::launch::Job;
use crate::support::oracle;
use crate::support::tree::{self, noise_file, raw, temp};

fn journals(dst: &Path) -> Vec<PathBuf> {
    journal::journals(&dst.join(".pcopy"))
}

#[test]
fn the_journals_of_a_killed_run_name_only_what_is_there_complete() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 150, 100);
    noise_file(&src.join("large"), 3_000_000);
    for (ranks, items) in [(1, 50), (3, 1_800), (2, 5_400)] {
        let dst = dir.path().join(format!("np{ranks}"));
        let job = Job::ranks(ranks).options(["-k", "64K", "--checkpoint-interval", "20ms", "--threads", "1"]);
        kill_at(&job, [&src, &dst], &dst.join(".pcopy"), items);
        assert!(!dst.join(".pcopy/manifest.jsonl").exists());
        let files = journals(&dst);
        assert!((1..=ranks).contains(&files.len()), "{files:?}");
        let paths: Vec<_> = files.iter().flat_map(|journal| copied_paths(journal)).collect();
        assert!(paths.len() >= 50, "{} entries in the journals", paths.len());
        assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), paths.len(), "each entry ended once");
        let (before, after) = (oracle::walk(&src), oracle::walk(&dst));
        for path in &paths {
            let (old, new) =
                (&before[path], after.get(path).unwrap_or_else(|| panic!("{}: missing", oracle::show(path))));
            assert_eq!(
                (old.kind, old.size, old.mtime_ns),
                (new.kind, new.size, new.mtime_ns),
                "{}",
                oracle::show(path)
            );
            let is_file = raw(&src, path).is_file();
            assert!(!is_file || oracle::same_content(&src, &dst, path), "{}", oracle::show(path));
        }
        // What is under its final name without a record may be there, but what is half is not.
        fs::remove_dir_all(&dst).unwrap();
    }
}

#[test]
fn a_copy_that_ended_leaves_what_a_later_run_needs_and_no_journal() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 10, 10);
    for options in [&["--checkpoint-interval", "1ms"][..], &["--durability=none"], &["--checkpoint-interval", "1h"]] {
        let dst = dir.path().join("dst");
        Job::ranks(3).options(options).run([&src, &dst]).assert_code(0);
        let names = fs::read_dir(dst.join(".pcopy")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<BTreeSet<_>>(), ["base", "job.json", "manifest.jsonl"].map(Into::into).into());
        fs::remove_dir_all(&dst).unwrap();
    }
}
