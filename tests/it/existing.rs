//! What stands at the destination already: left where that is asked for, otherwise replaced whole and at once.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chown, mkfifo};

use crate::support::copy::{Copied, assert_exact, copy};
use crate::support::launch::{Job, NOBODY};
use crate::support::listing::{Listing, assert_untouched, listing};
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::skip::{self, need};
use crate::support::told;
use crate::support::tree::{self, MIB, chmod, noise, noise_file, raw, set_times, temp, write};

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

fn slashed(path: &Path) -> PathBuf {
    path.join("")
}

/// The entries that are kept in the manifest, all for `reason`, none of them with a digest.
#[track_caller]
fn kept(copied: &Copied, reason: &str) -> Vec<String> {
    let kept = copied.manifest().entries.iter().filter_map(|(path, entry)| {
        let told = entry.get("kept")?;
        assert_eq!(told, reason, "{entry}");
        assert!(entry.get("blake3").is_none(), "{entry}");
        Some(oracle::show(path))
    });
    kept.collect()
}

/// What stat tells of these paths only.
fn of(paths: &[&str], root: &Path) -> Listing {
    let all = listing(root);
    paths.iter().map(|path| (path.as_bytes().to_vec(), all[path.as_bytes()].clone())).collect()
}

#[test]
fn no_clobber_leaves_all_that_exists_and_fills_in_the_rest() {
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 << 10, 16 << 10);
    noise_file(&src.join("a-fifo-there"), 10);
    noise_file(&src.join("a-link-there"), 10);
    tree::age(&src);
    let left = [
        "a-fifo-there",
        "a-link-there",
        "dangling",
        "deep/er/and/deeper/file",
        "mode-640",
        "sizes/327679.bin",
        "sizes/512.bin",
    ];
    for ranks in [1, 2, 4] {
        let dst = dir.path().join(format!("np{ranks}"));
        for path in &left[3..] {
            write(&dst.join(path), b"mine");
            chmod(&dst.join(path), 0o604);
        }
        // One that is older than its source, one that is newer, one of the same size and time.
        set_times(&dst.join("mode-640"), (5, 0), (5, 0));
        let same = fs::metadata(src.join("sizes/512.bin")).unwrap();
        write(&dst.join("sizes/512.bin"), &noise(512, 99));
        set_times(&dst.join("sizes/512.bin"), (5, 0), (same.mtime(), same.mtime_nsec()));
        mkfifo(&dst.join("a-fifo-there"), Mode::S_IRWXU).unwrap();
        symlink("nowhere", dst.join("a-link-there")).unwrap();
        symlink("elsewhere", dst.join("dangling")).unwrap();
        chmod(&dst.join("deep"), 0o700);
        let before = of(&left, &dst);
        let copied = copy(&job(ranks).options(["--no-clobber", "--json"]), &[&slashed(&src)], &dst);
        copied.outcome.assert_code(0);
        assert_untouched(&before, &of(&left, &dst), &copied.outcome.told());
        assert_eq!(kept(&copied, "exists"), left);
        assert_eq!(told::json(&copied.outcome)["kept"], left.len());
        assert_eq!(copied.manifest().entries[b"dangling".as_slice()]["target"], "elsewhere");
        assert_eq!(copied.manifest().entries[b"a-fifo-there".as_slice()]["type"], "fifo");
        let others = |words: &String| !left.iter().any(|path| words.starts_with(&format!("{path}: ")));
        let found = oracle::differences(&src, &dst, Aspects::ALL).into_iter().filter(others).collect::<Vec<_>>();
        oracle::assert_none(&found, &copied.outcome.told());
    }
}

#[test]
fn a_name_that_is_kept_is_no_hard_link_of_new_ones() {
    let dir = temp();
    for (number, len) in [100, 300_000].into_iter().enumerate() {
        for ranks in [1, 4] {
            let at = dir.path().join(format!("{number}-{ranks}"));
            let (src, dst) = (at.join("src"), at.join("dst"));
            noise_file(&src.join("b"), len);
            ["a", "c", "d"].iter().for_each(|name| fs::hard_link(src.join("b"), src.join(name)).unwrap());
            for name in ["a", "c"] {
                write(&dst.join(name), b"other content");
            }
            let copied = copy(&job(ranks).options(["--no-clobber"]), &[&slashed(&src)], &dst);
            copied.outcome.assert_code(0);
            assert_eq!(kept(&copied, "exists"), ["a", "c"]);
            for name in ["a", "b", "c", "d"] {
                let expected = if ["a", "c"].contains(&name) {
                    b"other content".to_vec()
                } else {
                    fs::read(src.join(name)).unwrap()
                };
                assert!(fs::read(dst.join(name)).unwrap() == expected, "{name}: {}", copied.outcome.told());
            }
            let inode = |name: &str| dst.join(name).metadata().unwrap().ino();
            assert_eq!(inode("b"), inode("d"));
        }
    }
}

#[test]
fn update_replaces_what_is_older_to_the_nanosecond_and_leaves_the_rest() {
    let dir = temp();
    let src = dir.path().join("src");
    let cases = [
        ("same", (1_600_000_000, 500), true),
        ("newer-by-a-nanosecond", (1_600_000_000, 501), true),
        ("newer", (1_700_000_000, 0), true),
        ("older-by-a-nanosecond", (1_600_000_000, 499), false),
        ("older", (1_500_000_000, 999_999_999), false),
        ("before-1970", (-5, 0), false),
    ];
    for ranks in [1, 2, 4] {
        let dst = dir.path().join(format!("np{ranks}"));
        for (name, time, _) in cases {
            for (size, len) in [("small", 100), ("large", 300_000)] {
                noise_file(&src.join(name).join(size), len);
                set_times(&src.join(name).join(size), (1_600_000_000, 500), (1_600_000_000, 500));
                write(&dst.join(name).join(size), b"what was there");
                set_times(&dst.join(name).join(size), time, time);
            }
        }
        noise_file(&src.join("new"), 100);
        let option = if ranks == 1 { "-u" } else { "--update" };
        let copied = copy(&job(ranks).options([option]), &[&slashed(&src)], &dst);
        copied.outcome.assert_code(0);
        let left = cases.iter().filter(|(_, _, left)| *left);
        let mut left: Vec<_> = left.flat_map(|(name, ..)| [format!("{name}/large"), format!("{name}/small")]).collect();
        left.sort();
        assert_eq!(kept(&copied, "newer"), left);
        assert_eq!(told::count(&copied.outcome, "Kept"), Some(6), "{}", copied.outcome.told());
        for path in &left {
            assert_eq!(fs::read(dst.join(path)).unwrap(), b"what was there", "{path}");
        }
        let others = |words: &String| !left.iter().any(|path| words.starts_with(path));
        let found = oracle::differences(&src, &dst, Aspects::ALL).into_iter().filter(others).collect::<Vec<_>>();
        oracle::assert_none(&found, &copied.outcome.told());
    }
}

#[test]
fn a_second_copy_with_update_writes_no_file_again() {
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 << 10, 16 << 10);
    let dst = dir.path().join("dst");
    copy(&job(2), &[&src], &dst).outcome.assert_code(0);
    let files = |root: &Path| -> Vec<_> {
        let files = oracle::walk(root).into_iter().filter(|(_, node)| node.kind == Kind::File);
        files
            .map(|(path, _)| raw(root, &path).metadata().unwrap())
            .map(|m| (m.ino(), m.ctime(), m.ctime_nsec()))
            .collect()
    };
    let before = files(&dst);
    let copied = copy(&job(2).options(["-u", "--json"]), &[&slashed(&src)], &dst);
    copied.outcome.assert_code(0);
    assert_eq!(files(&dst), before, "{}", copied.outcome.told());
    oracle::assert_same(&src, &dst, Aspects::ALL);
    let told = told::json(&copied.outcome);
    assert_eq!(told["bytes"], 0);
    // Whether a symbolic link of the same time is left too is left open.
    assert!(told["kept"].as_u64() >= u64::try_from(before.len()).ok(), "{told}");
}

#[test]
fn an_ordinary_user_replaces_read_only_files_and_those_of_others_in_his_own_directory() {
    need!(skip::root());
    let (dir, kit) = (temp(), temp());
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    let names = ["read-only", "of-another", "large-read-only", "large-of-another"];
    let nobody = (Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)));
    for name in names {
        noise_file(&src.join(name), if name.starts_with("large") { 300_000 } else { 100 });
        chmod(&src.join(name), 0o444);
        write(&home.join(name), b"what was there");
        if !name.ends_with("another") {
            chown(&home.join(name), nobody.0, nobody.1).unwrap();
        }
        chmod(&home.join(name), if name.ends_with("another") { 0o600 } else { 0o444 });
    }
    [src.clone(), home.clone()].iter().for_each(|dir| chown(dir, nobody.0, nobody.1).unwrap());
    names.iter().for_each(|name| chown(&src.join(name), nobody.0, nobody.1).unwrap());
    tree::age(&src);
    for ranks in [1, 2] {
        let copied = copy(&job(ranks).by_nobody(kit.path()), &[&slashed(&src)], &home);
        copied.outcome.assert_code(0);
        assert_exact(&copied, &src);
    }
}

#[test]
fn a_directory_in_the_way_fails_its_entry_whatever_is_asked_for_and_stays() {
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("small"), 100);
    noise_file(&src.join("large"), 300_000);
    symlink("nowhere", src.join("link")).unwrap();
    noise_file(&src.join("dir/inner/file"), 100);
    noise_file(&src.join("z/last"), 100);
    tree::age(&src);
    for (number, options) in [&[] as &[&str], &["-u"]].into_iter().enumerate() {
        let dst = dir.path().join(format!("{number}"));
        for name in ["small", "large", "link"] {
            write(&dst.join(name).join("mine"), b"in the way");
        }
        write(&dst.join("dir"), b"a file in the way");
        let copied = copy(&job(number + 1).options(options), &[&slashed(&src)], &dst);
        copied.outcome.assert_code(1);
        let failed = copied.manifest().failed().map(|(path, _)| oracle::show(path));
        let failed: Vec<_> = failed.filter(|path| !path.starts_with("dir/")).collect();
        assert_eq!(failed, ["dir", "large", "link", "small"], "{}", copied.outcome.told());
        assert_eq!(fs::read(dst.join("large/mine")).unwrap(), b"in the way");
        assert_eq!(fs::read(dst.join("dir")).unwrap(), b"a file in the way");
        assert!(copied.manifest().is_done(b"z/last") && oracle::same_content(&src, &dst, b"z/last"));
        let left = oracle::walk(&dst).keys().any(|path| oracle::show(path).contains(".pcopy-"));
        assert!(!left, "something temporary stays: {}", copied.outcome.told());
    }
}

#[test]
fn a_reader_meanwhile_sees_the_old_file_or_the_new_one_and_never_a_part() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    let large = ["large0", "large1"].map(|name| (name.to_owned(), 24 * MIB, 5 * MIB));
    let small = (0..300).map(|n| (format!("small{n:03}"), 1000 + n, 7000 - n));
    let files: Vec<_> = large.into_iter().chain(small).collect();
    let content = |len: &usize, seed| noise(*len, seed);
    for (name, new, _) in &files {
        write(&src.join(name), &content(new, 1));
    }
    for ranks in [1, 4] {
        files.iter().for_each(|(name, _, old)| write(&dst.join(name), &content(old, 2)));
        let (end, olds) = (AtomicBool::new(false), AtomicUsize::new(0));
        let read_all = |some: &[(String, usize, usize)]| {
            while !end.load(Ordering::Relaxed) {
                for (name, new, old) in some {
                    let bytes = fs::read(dst.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
                    let is_old = bytes.len() == *old;
                    assert!(is_old || bytes.len() == *new, "{name} has {} bytes", bytes.len());
                    let expected = if is_old { content(old, 2) } else { content(new, 1) };
                    assert!(bytes == expected, "{name} is {} but has other bytes", if is_old { "old" } else { "new" });
                    olds.fetch_add(usize::from(is_old), Ordering::Relaxed);
                }
            }
        };
        let outcome = thread::scope(|scope| {
            let readers = [&files[..1], &files[1..]].map(|some| scope.spawn(move || read_all(some)));
            let outcome = Job::ranks(ranks).options(["-k", "256K", "-b", "64K"]).run([&slashed(&src), &dst]);
            end.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            outcome
        });
        outcome.assert_code(0);
        assert!(olds.into_inner() > 0, "the copy was over before a file was read");
        assert_eq!(fs::read(dst.join("small299")).unwrap(), content(&1299, 1));
    }
}
