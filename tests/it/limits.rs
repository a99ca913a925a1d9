//! Limits of the system and of pcopy: few open files, many sources, trees that are endlessly deep.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::copy::copy_exactly;
use crate::support::launch::{Job, program};
use crate::support::oracle::{self, Aspects};
use crate::support::tree::{self, temp};

/// The program in a shell that sets a limit before it.
fn under_limit(limit: &str, home: &Path) -> PathBuf {
    let script = home.join("limited");
    let text = format!("#!/bin/bash\nulimit {limit} && exec '{}' \"$@\"\n", program().display());
    fs::write(&script, text).unwrap();
    tree::chmod(&script, 0o755);
    script
}

#[test]
fn a_few_hundred_open_files_are_enough_for_any_number_of_directories() {
    let (dir, home) = (temp(), temp());
    let src = tree::small_files(&dir.path().join("src"), 1500, 2);
    for (ranks, threads) in [(1, "12"), (2, "4")] {
        // hard and soft: pcopy cannot raise it
        let job = Job::ranks(ranks).program(&under_limit("-n 1024", home.path())).options(["--threads", threads]);
        copy_exactly(&job, &src, &dir.path().join(format!("dst-{ranks}")));
    }
}

#[test]
fn hundreds_of_sources_are_copied_under_a_limit_of_open_files() {
    let (dir, home) = (temp(), temp());
    let src = tree::small_files(&dir.path().join("src"), 400, 2);
    let dst = dir.path().join("dst");
    fs::create_dir(&dst).unwrap();
    let sources = fs::read_dir(&src).unwrap().map(|entry| entry.unwrap().path());
    let operands: Vec<_> = sources.chain([dst.clone()]).collect();
    let job = Job::ranks(2).program(&under_limit("-n 1024", home.path()));
    job.run(operands).assert_code(0);
    let found = oracle::differences(&src, &dst, Aspects::ALL);
    let of_children: Vec<_> = found.into_iter().filter(|words| !words.starts_with("(root):")).collect();
    oracle::assert_none(&of_children, "four hundred sources");
}

#[test]
fn a_tree_that_is_too_deep_fails_at_its_depth_and_not_the_job() {
    let dir = temp();
    let src = dir.path().join("src");
    tree::small_files(&src, 2, 2);
    // 400 levels of 200 bytes: more than the 64 KiB that pcopy takes
    tree::deep_chain(&src.join("deep"), 400, 200);
    let outcome = Job::ranks(2).limit(120).options(["-k", "64K"]).run([&src, &dir.path().join("dst")]);
    outcome.assert_code(1);
    let lines = outcome.lines_of_pcopy();
    let errors: Vec<_> = lines.iter().filter(|line| line.contains("File name too long")).collect();
    assert_eq!(errors.len(), 1, "{}", outcome.told());
    let (before, after) = (src.join("d001/f0001"), dir.path().join("dst/d001/f0001"));
    assert_eq!(fs::read(after).unwrap(), fs::read(before).unwrap(), "the rest is copied");
}
