//! Owners that are mapped (--chown, --usermap, --groupmap), and copies that are made as somebody else (-U, -G).

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chown, mkfifo};

use crate::support::copy::{copy, copy_exactly};
use crate::support::launch::{Job, NOBODY};
use crate::support::manifest::is_unkept;
use crate::support::oracle::{self, Aspects};
use crate::support::parallel;
use crate::support::rsync::rsync;
use crate::support::skip::{self, Missing, need};
use crate::support::tree::{self, chmod, noise_file, temp};

fn tools() -> Result<(), Missing> {
    skip::root()?;
    skip::program("rsync")
}

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

/// Entries of all kinds that belong to users and groups with and without names.
fn owned(root: &Path) -> PathBuf {
    // root, daemon, bin, games (whose group has another number), nobody, and numbers without names.
    for (number, id) in [0, 1, 2, 5, NOBODY, 1233, 1234, 5678].into_iter().enumerate() {
        let at = root.join(format!("{id}"));
        noise_file(&at.join("small"), 100);
        noise_file(&at.join("large"), 200_000);
        symlink("small", at.join("link")).unwrap();
        mkfifo(&at.join("fifo"), Mode::S_IRUSR).unwrap();
        fs::hard_link(at.join("small"), at.join("small-too")).unwrap();
        let group = [0, 60, 1, NOBODY, 5678, 1234, 2, 4321][number];
        ["small", "large", "link", "fifo", ""].iter().for_each(|e| lchown(at.join(e), Some(id), Some(group)).unwrap());
    }
    tree::age(root);
    root.to_path_buf()
}

#[test]
fn owners_are_mapped_as_rsync_maps_them() {
    need!(tools());
    let dir = temp();
    let src = owned(&dir.path().join("src"));
    let cases: [&[&str]; 18] = [
        &["--chown=daemon:games"],
        &["--chown=1234:5678"],
        &["--chown=nobody"],
        &["--chown=:nogroup"],
        &["--usermap=daemon:bin"],
        &["--usermap=1:7777"],
        &["--usermap=0-5:nobody"],
        &["--usermap=1000-1233:7,1234-1234:8"],
        &["--usermap=*:0"],
        &["--usermap=:nobody"],
        &["--usermap=d*:nobody,b?n:7"],
        &["--usermap=[a-d]*:7"],
        &["--usermap=1:5,*:6"],
        &["--usermap=*:6,1:5"],
        &["--usermap=root:1,daemon:0"],
        &["--groupmap=games:daemon,0-1:77"],
        &["--groupmap=:60,*:1"],
        &["--usermap=1233:daemon", "--groupmap=nogroup:0,2:bin"],
    ];
    parallel::for_each(&cases, |number, options| {
        let (expected, dst) = (dir.path().join(format!("rsync{number}")), dir.path().join(format!("dst{number}")));
        rsync([&["-aHAX"], *options].concat(), &src, &expected);
        assert_ne!(owners(&src), owners(&expected), "{options:?} maps nothing");
        let copied = copy(&job(1 + number % 2).options(*options), &[&src], &dst);
        copied.outcome.assert_code(0);
        let found = oracle::differences(&expected, &dst, Aspects::ALL);
        oracle::assert_none(&found, &format!("rsync and {}", copied.outcome.told()));
        // The checked manifest has the owners that are on disk, because none is excused.
        assert_eq!(copied.manifest().trailer["unkept"], 0);
    });
}

fn owners(root: &Path) -> Vec<(u32, u32)> {
    oracle::walk(root).values().map(|node| (node.uid, node.gid)).collect()
}

#[test]
fn halves_of_chown_may_be_empty() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("f"), 100);
    chown(&src.join("f"), Some(Uid::from_raw(1234)), Some(Gid::from_raw(5678))).unwrap();
    for (number, (words, expected)) in
        [("1:2", (1, 2)), ("bin", (2, 5678)), ("bin:", (2, 5678)), (":bin", (1234, 2))].into_iter().enumerate()
    {
        let copied = copy(&job(2).options(["--chown", words]), &[&src], &dir.path().join(format!("{number}")));
        copied.outcome.assert_code(0);
        let meta = copied.root.join("f").metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), expected, "{}", copied.outcome.told());
        let entry = &copied.manifest().entries[b"f".as_slice()];
        assert_eq!((&entry["uid"], &entry["gid"]), (&expected.0.into(), &expected.1.into()));
    }
}

#[test]
fn a_program_that_is_mapped_to_another_loses_its_setuid_bit_and_that_is_marked() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    for (name, uid, gid, mode) in [
        ("mapped", 1234, 0, 0o4755),
        ("large-mapped", 1234, 0, 0o4755),
        ("stays", 1235, 0, 0o6711),
        ("group", 1235, 55, 0o2755),
    ] {
        noise_file(&src.join(name), if name.starts_with("large") { 200_000 } else { 100 });
        chown(&src.join(name), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).unwrap();
        chmod(&src.join(name), mode);
    }
    tree::age(&src);
    for ranks in [1, 2] {
        let job = job(ranks).options(["--usermap=1234:root", "--groupmap=55:0"]);
        let copied = copy(&job, &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        for (name, mode) in [("mapped", 0o755), ("large-mapped", 0o755), ("group", 0o755), ("stays", 0o6711)] {
            let entry = &copied.manifest().entries[name.as_bytes()];
            assert_eq!(copied.root.join(name).metadata().unwrap().mode() & 0o7777, mode, "{name}");
            assert_eq!(is_unkept(entry, "mode"), mode == 0o755, "{entry}");
            assert!(!is_unkept(entry, "ownership"), "{entry}");
        }
    }
}

#[test]
fn what_an_ordinary_user_maps_to_others_stays_his_and_is_marked() {
    need!(skip::root());
    let (dir, kit) = (temp(), temp());
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    noise_file(&src.join("f"), 100);
    fs::create_dir(&home).unwrap();
    chmod(&home, 0o777);
    for name in ["f", ""] {
        chown(&src.join(name), Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY))).unwrap();
    }
    for (number, option) in ["--chown=daemon", "--usermap=*:0", "--groupmap=*:0"].into_iter().enumerate() {
        let job = job(2).by_nobody(kit.path()).options([option]);
        let copied = copy(&job, &[&src], &home.join(format!("{number}")));
        copied.outcome.assert_code(0);
        for path in [b"f".as_slice(), b""] {
            assert!(is_unkept(&copied.manifest().entries[path], "ownership"), "{}", copied.outcome.told());
        }
        let meta = copied.root.join("f").metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (NOBODY, NOBODY));
    }
    // What he may set is no matter for a mark.
    let job = job(2).by_nobody(kit.path()).options(["--usermap=0:nobody,*:nobody"]);
    copy_exactly(&job, &src, &home.join("own"));
}

#[test]
fn a_copy_as_another_user_reads_and_writes_with_his_rights() {
    need!(skip::root());
    let dir = temp();
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    for (name, mode) in [("open", 0o644), ("large", 0o644), ("closed", 0o600)] {
        noise_file(&src.join(name), if name == "large" { 200_000 } else { 100 });
        chmod(&src.join(name), mode);
    }
    fs::create_dir(&home).unwrap();
    chown(&home, Some(Uid::from_raw(NOBODY)), None).unwrap();
    tree::age(&src);
    for (ranks, options) in [(1, ["-U", "nobody", "-G", "nogroup"]), (2, ["--uid", "65534", "--gid", "65534"])] {
        let copied = copy(&job(ranks).options(options), &[&src], &home.join(format!("np{ranks}")));
        copied.outcome.assert_code(1);
        let failed: Vec<_> = copied.manifest().failed().map(|(path, _)| oracle::show(path)).collect();
        assert_eq!(failed, ["closed"], "{}", copied.outcome.told());
        assert_eq!(copied.manifest().errno("closed"), 13);
        for name in ["", "open", "large"] {
            let meta = copied.root.join(name).metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid()), (NOBODY, NOBODY), "{name}");
            assert!(is_unkept(&copied.manifest().entries[name.as_bytes()], "ownership"), "{name}");
        }
    }
    // Where he may not write nothing is written.
    let outcome = job(2).options(["-U", "nobody", "-G", "nogroup"]).run([&src, &dir.path().join("new")]);
    outcome.assert_refused();
    assert!(!dir.path().join("new").exists());
    copy_exactly(&job(2).options(["-U", "root", "-G", "0"]), &src, &dir.path().join("as-root"));
}

#[test]
fn maps_and_users_that_cannot_be_meant_are_refused_before_anything_is_written() {
    need!(skip::root());
    let (dir, kit) = (temp(), temp());
    let src = dir.path().join("src");
    noise_file(&src.join("f"), 100);
    fs::create_dir(dir.path().join("home")).unwrap();
    chmod(&dir.path().join("home"), 0o777);
    let dst = dir.path().join("home/dst");
    let refused = |job: Job, options: &[&str], named: &str| {
        let outcome = job.options(options).run([&src, &dst]);
        let line = outcome.assert_refused();
        assert!(line.contains(named), "{named} is not in {line}");
        assert!(!dst.exists(), "{}", outcome.told());
    };
    let cases: [(&[&str], &str); 9] = [
        (&["--chown=no-such-user"], "no-such-user"),
        (&["--chown=:no-such-group"], "no-such-group"),
        (&["--usermap=0:no-such-user"], "no-such-user"),
        (&["--groupmap=*:1,0:no-such-group"], "no-such-group"),
        (&["--usermap=nothing-behind"], "nothing-behind"),
        (&["--chown=daemon", "--usermap=0:1"], "--usermap"),
        (&["--groupmap=0:1", "--chown=:daemon"], "--groupmap"),
        (&["-U", "no-such-user"], "no-such-user"),
        (&["--gid", "no-such-group"], "no-such-group"),
    ];
    for (number, (options, named)) in cases.into_iter().enumerate() {
        refused(Job::ranks(1 + number % 2), options, named);
    }
    for (options, named) in [(["-U", "root"], ""), (["-U", "daemon"], ""), (["-G", "0"], "")] {
        refused(Job::alone().by_nobody(kit.path()), &options, named);
        refused(Job::ranks(2).by_nobody(kit.path()), &options, named);
    }
}
