//! The source changes, or a rank dies, while the copy runs: nothing hangs, and every entry is
//! accounted for (issue 2, item 8).

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::errors::nothing_half_written_looks_finished;
use crate::support::fuse::{Faults, FuseMount};
use crate::support::interrupted::finished_files;
use crate::support::launch::{Job, Running};
use crate::support::manifest::{self, Expect, Manifest};
use crate::support::oracle::{self, Kind};
use crate::support::skip::need;
use crate::support::sys;
use crate::support::tree::{self, MIB, noise, noise_file, raw, temp};

fn wait_for_start(running: &mut Running, dst: &Path) {
    while running.goes_on() && !dst.exists() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn finished(running: Running, ranks: usize, dst: &Path) -> Manifest {
    let outcome = running.wait();
    let expect = Expect { root: dst, ranks, digests: true, strangers: false };
    let manifest = manifest::checked(&dst.join(".pcopy/manifest.jsonl"), &expect);
    outcome.assert_code(i32::from(manifest.failed().count() > 0));
    manifest
}

#[test]
fn files_that_vanish_are_errors_or_absent_and_all_others_are_copied() {
    for ranks in [1, 2, 4] {
        let dir = temp();
        let src = tree::small_files(&dir.path().join("src"), 30, 100);
        let dst = dir.path().join("dst");
        let before = oracle::walk(&src);
        let mut running = Job::ranks(ranks).start([&src, &dst]);
        wait_for_start(&mut running, &dst);
        // From the end, where the copy has not been yet.
        let files = before.iter().filter(|(_, node)| node.kind == Kind::File).rev();
        for (number, (path, _)) in files.step_by(2).enumerate() {
            fs::remove_file(raw(&src, path)).unwrap();
            if number % 16 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        fs::remove_dir_all(src.join("d029")).unwrap();
        let manifest = finished(running, ranks, &dst);
        for path in before.keys() {
            let still_there = raw(&src, path).symlink_metadata().is_ok();
            let listed = manifest.entries.contains_key(path);
            assert!(listed || !still_there, "{} is in no record", oracle::show(path));
            // A directory's own failure (its listing changed) is a record too.
            let file = before[path].kind == Kind::File;
            let done = manifest.is_done(path);
            assert!(done || !still_there || !file, "{} failed", oracle::show(path));
        }
    }
}

#[test]
fn files_that_grow_and_shrink_while_they_are_read_have_the_digest_of_their_copy_or_fail() {
    let fuse = need!(FuseMount::new(Faults { delay_ms: 4, ..Faults::default() }));
    let dir = temp();
    let src = fuse.backing().join("src");
    for name in ["grows", "shrinks", "stays"] {
        noise_file(&src.join(name), 8 * MIB);
    }
    tree::small_files(&src.join("small"), 2, 20);
    let dst = dir.path().join("dst");
    let job = Job::ranks(2).options(["-k", "256K", "-b", "64K"]);
    let mut running = job.start([&fuse.path().join("src"), &dst]);
    wait_for_start(&mut running, &dst);
    let mut len: u64 = 8 << 20;
    while running.goes_on() {
        let mut grows = OpenOptions::new().append(true).open(src.join("grows")).unwrap();
        grows.write_all(&noise(5000, 1)).unwrap();
        len = len.saturating_sub(50_000).max(100);
        OpenOptions::new().write(true).open(src.join("shrinks")).unwrap().set_len(len).unwrap();
        thread::sleep(Duration::from_millis(10));
    }
    let manifest = finished(running, 2, &dst);
    assert!(manifest.is_done(b"stays"));
    for name in ["grows", "shrinks"] {
        assert!(manifest.entries.contains_key(name.as_bytes()), "{name} is in no record");
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_job_which_is_then_no_success() {
    let fuse = need!(FuseMount::new(Faults { delay_ms: 50, ..Faults::default() }));
    let src = tree::small_files(&fuse.backing().join("src"), 4, 100);
    noise_file(&src.join("large"), 8 * MIB);
    for victim in [0, 1, 2] {
        let dir = temp();
        let dst = dir.path().join("dst");
        let job = Job::ranks(3).options(["-k", "256K", "-b", "64K", "--threads", "1"]);
        let mut running = job.start([&fuse.path().join("src"), &dst]);
        while running.goes_on() && (!dst.exists() || fs::read_dir(&dst).unwrap().count() < 2) {
            thread::sleep(Duration::from_millis(1));
        }
        let mut ranks = running.rank_pids();
        ranks.sort_unstable();
        assert_eq!(ranks.len(), 3, "ranks of a run that should still go on");
        sys::kill(ranks[victim]);
        let outcome = running.wait();
        assert_ne!(outcome.code(), Some(0), "{}", outcome.told());
        assert!(!dst.join(".pcopy/manifest.jsonl").exists(), "a manifest: {}", outcome.told());
        nothing_half_written_looks_finished(&src, &dst);
    }
}

#[test]
fn a_directory_that_gains_or_loses_an_entry_while_it_is_copied_fails_as_changed() {
    type Change = fn(&Path);
    let changes: [Change; 3] = [
        |dir| fs::write(dir.join("added"), b"late").unwrap(),
        |dir| fs::remove_file(dir.join("victim")).unwrap(),
        |dir| fs::rename(dir.join("victim"), dir.join("renamed")).unwrap(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let fuse = need!(FuseMount::new(Faults { delay_ms: 10, ..Faults::default() }));
        let dir = temp();
        let (src, ranks) = (fuse.path().join("src"), 1 + number);
        noise_file(&fuse.backing().join("src/d/large"), 6 * MIB);
        noise_file(&fuse.backing().join("src/d/victim"), 10);
        tree::small_files(&fuse.backing().join("src/others"), 2, 5);
        tree::age(&fuse.backing().join("src"));
        let dst = dir.path().join("dst");
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--threads", "1"]);
        let mut running = job.start([&src, &dst]);
        // The large file is on its way, so its directory has been listed, and it is not at its end.
        let under_way = |at: &Path| {
            let names = fs::read_dir(at).into_iter().flatten().map(|entry| entry.unwrap().file_name());
            names.into_iter().any(|name| name.to_string_lossy().starts_with(".pcopy-"))
        };
        while running.goes_on() && !under_way(&dst.join("d")) {
            thread::sleep(Duration::from_millis(1));
        }
        change(&src.join("d"));
        assert!(running.goes_on(), "the copy was over before the change");
        let manifest = finished(running, ranks, &dst);
        let failed: Vec<_> = manifest.failed().map(|(path, _)| oracle::show(path)).collect();
        let meant = |path: &String| ["d", "d/victim"].contains(&path.as_str());
        assert!(failed.contains(&"d".to_owned()) && failed.iter().all(meant), "{failed:?}");
        assert_eq!(manifest.entries[b"d".as_slice()]["error"]["op"], "changed");
        assert!(manifest.is_done(b"d/large") && manifest.is_done(b"others/d001/f0004") && manifest.is_done(b""));
    }
}

/// A rotation of logs: the same names afterwards, each of another file. What was copied under its old name before, and is
/// copied under a new one, hides that another file was never copied.
#[test]
fn entries_that_exchange_their_names_are_no_success_unless_all_are_there() {
    for ranks in [1, 2] {
        let dir = temp();
        let src = dir.path().join("src");
        for number in 0..120 {
            tree::write(&src.join(format!("log.{number}")), &noise(60_000, number));
        }
        tree::age(&src);
        let dst = dir.path().join("dst");
        let mut running = Job::ranks(ranks).options(["--limit-rate", "4M", "--threads", "1"]).start([&src, &dst]);
        while running.goes_on() && finished_files(&dst) < 40 {
            thread::sleep(Duration::from_millis(1));
        }
        let name = |number: u64| src.join(format!("log.{number}"));
        fs::rename(name(119), src.join("last")).unwrap();
        (0..119).rev().for_each(|number| fs::rename(name(number), name(number + 1)).unwrap());
        fs::rename(src.join("last"), name(0)).unwrap();
        let outcome = running.wait();
        let contents = |root: &Path| -> BTreeSet<Vec<u8>> {
            let files = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
            files.map(|path| fs::read(path).unwrap()).collect()
        };
        let all_there = contents(&src).is_subset(&contents(&dst));
        assert!(all_there || outcome.code() == Some(1), "{}", outcome.told());
        let again = Job::ranks(ranks).run([&src, &dst]);
        again.assert_code(0);
        oracle::assert_same(&src, &dst, oracle::Aspects::ALL);
    }
}

/// Over FUSE each directory is synced by itself, also one that its owner may not open once it is finished.
#[test]
fn a_directory_that_its_owner_may_not_open_is_copied_over_fuse() {
    let fuse = need!(FuseMount::new(Faults { attributes_and_holes: true, ..Faults::default() }));
    let (dir, kit) = (temp(), temp());
    let src = dir.path().join("src");
    noise_file(&src.join("others/f"), 100);
    noise_file(&src.join("f"), 100);
    tree::chmod(&src.join("others"), 0o055);
    tree::age(&src);
    let home = fuse.path().join("home");
    fs::create_dir(&home).unwrap();
    tree::chmod(&home, 0o777);
    for _ in 0..2 {
        let job = Job::ranks(2).by_nobody(kit.path());
        job.run([&src, &home.join("copy")]).assert_code(0);
    }
    let mode = home.join("copy/others").metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o055);
}
