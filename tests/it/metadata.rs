//! Mode, owner and times in nanoseconds arrive (issue 2, item 6); what a copy does not preserve is
//! an error, never a silence.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown, mkfifo};

use crate::support::copy::{copy, copy_exactly};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::{Job, NOBODY, program};
use crate::support::listing::{assert_untouched, listing};
use crate::support::manifest::is_unkept;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::tree::{self, chmod, noise_file, set_times, temp};

#[test]
fn every_mode_arrives_the_special_bits_too() {
    let dir = temp();
    let src = dir.path().join("src");
    for mode in [0o000, 0o001, 0o200, 0o400, 0o777, 0o1644, 0o2755, 0o4755, 0o6711] {
        noise_file(&src.join(format!("file-{mode:o}")), 200_000);
        chmod(&src.join(format!("file-{mode:o}")), mode);
        fs::create_dir(src.join(format!("dir-{mode:o}"))).unwrap();
        chmod(&src.join(format!("dir-{mode:o}")), mode);
    }
    tree::age(&src);
    for ranks in [1, 2] {
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]);
        copy_exactly(&job, &src, &dir.path().join(format!("np{ranks}")));
    }
}

#[test]
fn the_umask_has_no_say() {
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 << 10, 16 << 10);
    for umask in ["000", "077", "777"] {
        let script = dir.path().join(format!("umask-{umask}"));
        let body = format!("#!/bin/sh\numask {umask}\nexec '{}' \"$@\"\n", program().display());
        tree::write(&script, body.as_bytes());
        chmod(&script, 0o755);
        copy_exactly(&Job::alone().program(&script), &src, &dir.path().join(umask));
    }
}

#[test]
fn owners_arrive_those_of_links_too() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("dir/file"), 100);
    noise_file(&src.join("set-user-id"), 100_000);
    symlink("dir", src.join("link")).unwrap();
    let owners = [("dir", 1001, 2002), ("dir/file", NOBODY, 0), ("set-user-id", 1002, 5)];
    for (path, uid, gid) in owners {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chown(&src.join(path), uid, gid).unwrap();
    }
    std::os::unix::fs::lchown(src.join("link"), Some(77), Some(78)).unwrap();
    // After chown, which clears it: a copy that sets the mode first loses it too.
    chmod(&src.join("set-user-id"), 0o6755);
    tree::age(&src);
    let job = Job::ranks(2).options(["-k", "64K", "-b", "16K"]);
    copy_exactly(&job, &src, &dir.path().join("dst"));
}

/// Files and links below `src` with times at which clocks and casts go wrong.
fn odd_times(src: &Path) {
    let times = [(-1, 999_999_999), (-1_000_000_000, 1), (0, 0), (0, 1), (4_294_967_296, 7)];
    for (number, time) in times.into_iter().enumerate() {
        let at = src.join(format!("{number}"));
        noise_file(&at.join("small"), 10);
        noise_file(&at.join("large"), 200_000);
        symlink("small", at.join("link")).unwrap();
        for name in ["small", "large", "link", ""] {
            set_times(&at.join(name), (time.0 + 5, 123_456_789), time);
        }
    }
}

#[test]
fn times_arrive_to_the_nanosecond_before_1970_and_after_2038_too() {
    let dir = temp();
    let src = dir.path().join("src");
    odd_times(&src);
    let job = Job::ranks(2).options(["-k", "64K", "-b", "16K"]);
    copy_exactly(&job, &src, &dir.path().join("dst"));
}

#[test]
fn the_time_of_last_access_is_the_one_from_before_the_copy_read_the_file() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    odd_times(&src);
    let atimes = |root: &Path| {
        let paths = (0..5).flat_map(|n| [format!("{n}/small"), format!("{n}/large")]);
        let atimes = paths.map(|path| {
            let meta = root.join(&path).symlink_metadata().unwrap();
            (path, meta.atime(), meta.atime_nsec())
        });
        atimes.collect::<Vec<_>>()
    };
    let before = atimes(&src);
    // Without the checks of the manifest, which read the copy and so change it.
    let job = Job::ranks(2).options(["-k", "64K", "-b", "16K"]);
    job.run([&src, &dst]).assert_code(0);
    assert_eq!(before, atimes(&dst));
}

#[test]
fn with_open_noatime_the_source_does_not_show_that_it_was_read() {
    let mount = need!(Mount::new(FileSystem::Ext4, 60));
    let src = tree::odd_tree(&mount.path().join("src"), 64 << 10, 16 << 10);
    for (ranks, options) in [(1, &["--open-noatime"] as &[&str]), (2, &["--open-noatime", "-s"]), (2, &[])] {
        tree::age(&src);
        let before = listing(&src);
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]).options(options);
        let dst = mount.path().join(format!("dst{ranks}{}", options.len()));
        let outcome = job.run([&src, &dst]);
        outcome.assert_code(0);
        if options.is_empty() {
            assert_ne!(before, listing(&src), "reading shows without the option");
        } else {
            assert_untouched(&before, &listing(&src), &outcome.told());
        }
    }
}

#[test]
fn an_ordinary_user_copies_files_of_others_with_open_noatime_too() {
    need!(skip::root());
    let (dir, kit) = (temp(), temp());
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    noise_file(&src.join("d/small"), 100);
    noise_file(&src.join("d/large"), 200_000);
    fs::create_dir(&home).unwrap();
    chmod(&home, 0o777);
    let job = Job::ranks(2).by_nobody(kit.path()).options(["-k", "64K", "-b", "16K", "--open-noatime"]);
    let copied = copy(&job, &[&src], &home.join("dst"));
    copied.outcome.assert_code(0);
    oracle::assert_same(&src, &copied.root, Aspects { owner: false, ..Aspects::ALL });
}

#[test]
fn a_read_only_tree_is_copied_by_an_ordinary_user() {
    need!(skip::root());
    let dir = temp();
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    noise_file(&src.join("a/b/file"), 200_000);
    noise_file(&src.join("a/other"), 10);
    fs::create_dir(&home).unwrap();
    let nobody = Some(Uid::from_raw(NOBODY));
    for path in ["a/b/file", "a/other", "a/b", "a", ""] {
        chown(&src.join(path), nobody, Some(Gid::from_raw(NOBODY))).unwrap();
        let mode = if src.join(path).is_dir() { 0o555 } else { 0o444 };
        chmod(&src.join(path), mode);
    }
    chown(&home, nobody, None).unwrap();
    for job in [Job::alone(), Job::ranks(2)] {
        let dst = home.join(format!("np{}", job.rank_count()));
        let job = job.by_nobody(dir.path()).options(["-k", "64K", "-b", "16K"]);
        copy_exactly(&job, &src, &dst);
    }
}

#[test]
fn files_of_others_become_those_of_the_ordinary_user_who_copies_them_without_an_error() {
    need!(skip::root());
    let dir = temp();
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    tree::odd_tree(&src, 64 << 10, 16 << 10);
    for unreadable in ["mode-600", "mode-640"] {
        fs::remove_file(src.join(unreadable)).unwrap();
    }
    chmod(&src.join("empty"), 0o755);
    tree::age(&src);
    fs::create_dir(&home).unwrap();
    chown(&home, Some(Uid::from_raw(NOBODY)), None).unwrap();
    let job = Job::ranks(2).by_nobody(dir.path()).options(["-k", "64K", "-b", "16K"]);
    let copied = copy(&job, &[&src], &home.join("dst"));
    copied.outcome.assert_code(0);
    oracle::assert_same(&src, &copied.root, Aspects { owner: false, ..Aspects::ALL });
}

/// Everything is preserved, or the manifest tells what is not: an entry that failed makes the exit
/// code 1, one that is there without something tells what.
fn is_preserved_or_told(src: &Path, dst: &Path) {
    let copied = copy(&Job::ranks(2), &[src], dst);
    let manifest = copied.manifest();
    let is_told = |words: &String| {
        let (path, words) = words.split_once(": ").unwrap();
        let entry = manifest.entries.iter().find(|(known, _)| oracle::show(known) == path);
        entry.is_some_and(|(_, entry)| {
            let unkept: &[&str] = match words.split(" is ").next().unwrap() {
                "owner" => &["ownership"],
                "mode" => &["mode"],
                "mtime" => &["timestamps"],
                "xattrs" => &["xattr", "acl"],
                "first hard link" => &["links"],
                "missing" => &["special"],
                _ => &[],
            };
            entry.get("error").is_some() || unkept.iter().any(|what| is_unkept(entry, what))
        })
    };
    let found = oracle::differences(src, dst, Aspects::ALL);
    let silent: Vec<_> = found.into_iter().filter(|words| !is_told(words)).collect();
    oracle::assert_none(&silent, &format!("and untold: {}", copied.outcome.told()));
    copied.outcome.assert_code(i32::from(manifest.failed().count() > 0));
}

#[test]
fn hard_links_are_preserved_or_told() {
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("a/first"), 300);
    noise_file(&src.join("large"), 3 << 20);
    fs::create_dir(src.join("z")).unwrap();
    for (name, other) in [("a/first", "a/second"), ("a/first", "z/third"), ("large", "z/large")] {
        fs::hard_link(src.join(name), src.join(other)).unwrap();
    }
    symlink("nowhere", src.join("link")).unwrap();
    fs::hard_link(src.join("link"), src.join("link2")).unwrap();
    tree::age(&src);
    is_preserved_or_told(&src, &dir.path().join("dst"));
}

#[test]
fn special_files_are_preserved_or_told() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("plain"), 10);
    mkfifo(&src.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    let _socket = UnixListener::bind(src.join("socket")).unwrap();
    let mode = Mode::from_bits_truncate(0o620);
    mknod(&src.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
    mknod(&src.join("block"), SFlag::S_IFBLK, mode, makedev(7, 200)).unwrap();
    tree::age(&src);
    is_preserved_or_told(&src, &dir.path().join("dst"));
}

#[test]
fn extended_attributes_are_preserved_or_told() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("small"), 10);
    noise_file(&src.join("large"), 3 << 20);
    fs::create_dir(src.join("d")).unwrap();
    for name in ["small", "large", "d"] {
        sys::set_xattr(&src.join(name), "user.note", b"a \0 value").unwrap();
        sys::set_xattr(&src.join(name), "trusted.of-root", &[7; 500]).unwrap();
    }
    tree::age(&src);
    is_preserved_or_told(&src, &dir.path().join("dst"));
}

#[test]
fn what_the_destination_refuses_is_told() {
    let fuse = need!(FuseMount::new(Faults::refusing()));
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("plain"), 10);
    noise_file(&src.join("foreign"), 10);
    chown(&src.join("foreign"), Some(Uid::from_raw(1234)), None).unwrap();
    mkfifo(&src.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    tree::age(&src);
    is_preserved_or_told(&src, &fuse.path().join("dst"));
}
