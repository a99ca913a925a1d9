//! Trees as they are: the machine's own gigabyte, many small files, many ranks, nothing at all.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::copy::copy_exactly;
use crate::support::launch::Job;
use crate::support::oracle;
use crate::support::skip::{Missing, need};
use crate::support::tree::{self, KIB, noise_file, temp};

/// A tree of this machine with a gigabyte at least.
fn gigabyte() -> Result<PathBuf, Missing> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = Command::new(rustc).args(["--print", "sysroot"]).output();
    let sysroot = sysroot.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let candidates = [sysroot.unwrap_or_default(), "/usr/lib".to_owned(), "/usr".to_owned()];
    let large = candidates.into_iter().map(PathBuf::from).find(|tree| {
        let bytes: u64 = if tree.is_dir() { oracle::walk(tree).values().map(|n| n.size).sum() } else { 0 };
        bytes >= 1 << 30
    });
    large.ok_or_else(|| Missing::new("neither the Rust toolchain nor /usr has 1 GiB"))
}

#[test]
fn a_real_tree_of_a_gigabyte_is_exact_with_four_ranks() {
    let src = need!(gigabyte());
    let dir = temp();
    let copied = copy_exactly(&Job::ranks(4).limit(400), &src, &dir.path().join("copy"));
    let bytes = copied.manifest().trailer["bytes"].as_u64().unwrap();
    assert!(bytes >= 1 << 30, "{bytes}");
}

#[test]
fn many_small_files_are_exact_with_one_two_and_four_ranks() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 20, 100);
    for ranks in [1, 2, 4] {
        copy_exactly(&Job::ranks(ranks), &src, &dir.path().join(format!("np{ranks}")));
    }
}

#[test]
fn one_directory_with_thousands_of_files_is_exact() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 1, 5000);
    copy_exactly(&Job::ranks(2), &src, &dir.path().join("dst"));
}

#[test]
fn sixteen_ranks_copy_a_small_tree_exactly() {
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 16 * KIB);
    let job = Job::ranks(16).options(["-k", "64K", "-b", "16K"]);
    copy_exactly(&job, &src, &dir.path().join("dst"));
}

#[test]
fn sixty_four_ranks_copy_a_small_tree_exactly() {
    let dir = temp();
    let src = dir.path().join("src");
    tree::small_files(&src.join("small"), 8, 50);
    noise_file(&src.join("large"), 8 * tree::MIB + 1);
    tree::age(&src);
    let job = Job::ranks(64).options(["-k", "64K", "-b", "16K"]);
    let copied = copy_exactly(&job, &src, &dir.path().join("dst"));
    assert_eq!(copied.manifest().header["ranks"], 64);
}

#[test]
fn more_ranks_than_entries_is_no_problem() {
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("only"), 10);
    copy_exactly(&Job::ranks(16), &src, &dir.path().join("dst"));
}

#[test]
fn an_empty_tree_and_a_deep_narrow_one_are_exact() {
    let dir = temp();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let narrow = dir.path().join("narrow");
    noise_file(&narrow.join("d/".repeat(300)).join("leaf"), 5);
    tree::age(&narrow);
    for (number, src) in [empty, narrow].iter().enumerate() {
        copy_exactly(&Job::ranks(2), src, &dir.path().join(format!("dst{number}")));
    }
}
