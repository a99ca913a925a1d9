//! Limits of the system and of pcopy: few open files, many sources, trees that are endlessly deep or wide, files that
//! are endlessly long, and memory that does not grow with them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::support::copy::{copy, copy_exactly};
use crate::support::extents;
use crate::support::launch::{Job, program};
use crate::support::memory::run_watched;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::need;
use crate::support::tree::{self, MIB, noise_file, temp};

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
fn a_file_beyond_the_limit_of_file_sizes_is_an_error_of_that_file() {
    let (dir, home) = (temp(), temp());
    let src = tree::small_files(&dir.path().join("src"), 2, 3);
    noise_file(&src.join("small-and-too-long"), 9 * MIB);
    noise_file(&src.join("in-ranges"), 17 * MIB);
    for ranks in [1, 2] {
        let dst = dir.path().join(format!("dst-{ranks}"));
        let job = Job::ranks(ranks).program(&under_limit("-f 8192", home.path())).options(["-k", "16M"]);
        let outcome = job.run([&src, &dst]);
        outcome
            .assert_code(1)
            .assert_says("small-and-too-long: ")
            .assert_says("in-ranges: ")
            .assert_says("File too large");
        let found = oracle::differences(&src, &dst, Aspects::ALL);
        let missing = |name: &str| found.iter().any(|words| words.starts_with(name));
        assert!(found.len() == 2 && missing("small-and-too-long") && missing("in-ranges"), "{found:?}");
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

const TIB: u64 = 1 << 40;

/// What a rank may hold in memory, however large the tree is.
const MOST_KIB: u64 = 256 << 10;

#[test]
fn a_file_of_20_tib_keeps_its_holes_and_its_data_beyond_16_tib_too() {
    let mount = need!(Mount::new(FileSystem::Xfs, 600));
    let (src, dst) = (mount.path().join("src"), mount.path().join("dst"));
    let data = [
        (0, MIB),
        (5 * TIB + 12_345, 300_000),
        (16 * TIB - 100_000, 200_000),
        (18 * TIB, MIB + 1),
        (20 * TIB - 70_000, 70_000),
    ];
    tree::sparse_file(&src.join("long"), 20 * TIB, &data);
    tree::age(&src);
    let copied = copy(&Job::ranks(4).options(["--no-digest"]), &[&src], &dst);
    copied.outcome.assert_code(0);
    let aspects = Aspects { content: false, atime: false, ..Aspects::EVERYTHING };
    oracle::assert_none(&oracle::differences(&src, &dst, aspects), &copied.outcome.told());
    assert_eq!(extents::data_difference(&src.join("long"), &dst.join("long")), None, "{}", copied.outcome.told());
    assert_eq!(copied.manifest().trailer["bytes"], 20 * TIB);
}

#[test]
fn a_sparse_tebibyte_is_copied_in_seconds_with_its_digest() {
    // What `blake3::Hasher` gives for all of these bytes in their order, zeros too; that takes it four minutes.
    const DIGEST: &str = "1a6ca69e29473852db3a26a043273e2add003d8762a030efc00f2439659ab3f6";
    let dir = temp();
    let (src, dst) = (dir.path().join("sparse"), dir.path().join("dst"));
    let last = (TIB - 65_536, 65_536);
    let data: Vec<_> = (0..15).map(|n| (n * (64 << 30) + n * 12_345, 65_536)).chain([last]).collect();
    tree::sparse_file(&src, TIB, &data);
    let manifest = dir.path().join("manifest");
    let job = Job::ranks(4).options(["--manifest".as_ref(), manifest.as_os_str()]);
    let outcome = job.run([&src, &dst]);
    outcome.assert_code(0);
    let copied = OpenOptions::new().write(true).open(&dst).unwrap();
    copied.sync_all().unwrap();
    let meta = copied.metadata().unwrap();
    let allocated = meta.blocks() * 512;
    assert!(meta.len() == TIB && allocated < 4 << 20, "{allocated} bytes on disk, {}", outcome.told());
    assert_eq!(extents::data_difference(&src, &dst), None, "{}", outcome.told());
    let lines = fs::read_to_string(manifest).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let digests: Vec<_> = lines.filter_map(|line| line["blake3"].as_str().map(str::to_owned)).collect();
    assert_eq!(digests, [DIGEST], "{}", outcome.told());
}

#[test]
fn sixty_four_ranks_copy_one_file_exactly() {
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("one"), 32 * MIB + 4097);
    tree::age(&src);
    let job = Job::ranks(64).options(["-k", "64K", "-b", "16K"]);
    copy_exactly(&job, &src, &dir.path().join("dst"));
}

#[test]
fn a_million_entries_of_one_directory_are_copied_in_little_memory() {
    const COUNT: u32 = 1_000_000;
    let mount = need!(Mount::new(FileSystem::Tmpfs, 4096));
    let (src, dst) = (mount.path().join("src"), mount.path().join("dst"));
    fs::create_dir(&src).unwrap();
    for number in 0..COUNT {
        OpenOptions::new().write(true).create_new(true).open(src.join(number.to_string())).unwrap();
    }
    let (outcome, most_kib) = run_watched(&Job::ranks(2).limit(120), [&src, &dst]);
    outcome.assert_code(0);
    assert!((1..MOST_KIB).contains(&most_kib), "a rank held {most_kib} KiB, {}", outcome.told());
    let names = fs::read_dir(&dst).unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u32> = names.collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..COUNT), "{} files, {}", numbers.len(), outcome.told());
    let manifest = fs::read_to_string(dst.join(".pcopy/manifest.jsonl")).unwrap();
    // The root, a header and the closing line too.
    assert_eq!(manifest.lines().count(), numbers.len() + 3);
    let trailer: Value = serde_json::from_str(manifest.lines().last().unwrap()).unwrap();
    assert_eq!((&trailer["files"], &trailer["errors"]), (&COUNT.into(), &0.into()));
}

#[test]
fn two_hundred_thousand_directories_are_exact() {
    let mount = need!(Mount::new(FileSystem::Tmpfs, 2048));
    let (src, dst) = (mount.path().join("src"), mount.path().join("dst"));
    for (a, b) in (0..20).flat_map(|a| (0..100).map(move |b| (a, b))) {
        let dir = src.join(format!("{a}/{b}"));
        fs::create_dir_all(&dir).unwrap();
        (0..100).for_each(|c| fs::create_dir(dir.join(c.to_string())).unwrap());
        fs::write(dir.join("17/file"), b"in one of a hundred").unwrap();
    }
    tree::age(&src);
    let (outcome, most_kib) = run_watched(&Job::ranks(2), [&src, &dst]);
    outcome.assert_code(0);
    assert!((1..MOST_KIB).contains(&most_kib), "a rank held {most_kib} KiB, {}", outcome.told());
    oracle::assert_none(&oracle::differences(&src, &dst, Aspects::ALL), &outcome.told());
}

#[test]
fn ten_thousand_names_of_one_file_are_links_of_one_copy() {
    let dir = temp();
    let src = dir.path().join("src");
    for (name, len) in [("small", 1000), ("large", 300_000)] {
        noise_file(&src.join(name), len);
        for number in 1..10_000 {
            let at = src.join(format!("{}/{name}-{number}", number % 100));
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::hard_link(src.join(name), at).unwrap();
        }
    }
    tree::age(&src);
    let job = Job::ranks(4).options(["-k", "64K", "-b", "16K"]);
    let copied = copy_exactly(&job, &src, &dir.path().join("dst"));
    assert_eq!(copied.manifest().trailer["hardlinks"], 2 * 9_999);
}

#[test]
fn five_thousand_directories_in_each_other_are_exact() {
    // A tmpfs is gone at once; removing such a tree would take a descriptor a level.
    let mount = need!(Mount::new(FileSystem::Tmpfs, 512));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let (src, dst) = (mount.path().join("src"), mount.path().join("dst"));
    tree::deep_chain(&src, 5000, 3);
    // The oracle goes down a frame a level.
    let copying = thread::Builder::new().stack_size(256 << 20);
    let copying = copying.spawn(move || drop(copy_exactly(&Job::ranks(2), &src, &dst))).unwrap();
    copying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
