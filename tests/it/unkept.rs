//! What a destination cannot hold is marked entry by entry, counted kind by kind, and no failure unless --strict.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown, mkfifo};

use crate::preserve::{setfacl, tools};
use crate::support::copy::{Copied, copy, copy_exactly};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::{Job, NOBODY};
use crate::support::manifest::is_unkept;
use crate::support::mounts::{FileSystem, Mount, bind};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::need;
use crate::support::sys;
use crate::support::told::{self, Counts};
use crate::support::tree::{self, chmod, noise_file, temp};

/// Something of everything, small and large.
pub fn everything(root: &Path) -> PathBuf {
    let at = |name: &str| root.join(name);
    for name in ["plain", "foreign", "setuid", "linked", "noted", "acl"] {
        noise_file(&at(name), 100);
        noise_file(&at(&format!("{name}-large")), 200_000);
    }
    symlink("plain", at("link")).unwrap();
    for size in ["", "-large"] {
        let at = |name: &str| root.join(format!("{name}{size}"));
        chown(&at("foreign"), Some(Uid::from_raw(1234)), Some(Gid::from_raw(55))).unwrap();
        chown(&at("setuid"), Some(Uid::from_raw(1234)), None).unwrap();
        chmod(&at("setuid"), 0o4755);
        fs::hard_link(at("linked"), at("linked-too")).unwrap();
        sys::set_xattr(&at("noted"), "user.note", b"value").unwrap();
        setfacl("u:1234:r", &at("acl"));
    }
    mkfifo(&at("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    mknod(&at("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    tree::age(root);
    root.to_path_buf()
}

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

fn counts(kinds: &[(&str, u64)]) -> Counts {
    kinds.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

fn only_unkept(job: &Job, src: &Path, dst: &Path, kinds: &[(&str, u64)]) -> Copied {
    only_unkept_of(&|| (), job, (src, dst), kinds)
}

/// Makes the source, copies it: exit code 0 and no error, in both summaries and in the manifest exactly these kinds, each so often.
fn only_unkept_of(make: &dyn Fn(), job: &Job, (src, dst): (&Path, &Path), kinds: &[(&str, u64)]) -> Copied {
    make();
    let machine = copy(&job.clone().options(["--json"]), &[src], &dst.join("json"));
    make();
    let copied = copy(job, &[src], &dst.join("text"));
    for run in [&machine, &copied] {
        run.outcome.assert_code(0);
        assert_eq!(told::marks(run.manifest()), counts(kinds), "marks after {}", run.outcome.told());
    }
    assert_eq!(told::unkept_in_json(&machine.outcome), counts(kinds), "{}", machine.outcome.told());
    assert_eq!(told::unkept_in_summary(&copied.outcome), counts(kinds), "{}", copied.outcome.told());
    let entries = copied.manifest().entries.values().filter(|entry| entry.get("unkept").is_some()).count();
    let told = told::json(&machine.outcome);
    assert_eq!((&told["unkept"], &told["errors"]), (&entries.into(), &0.into()), "{}", machine.outcome.told());
    copied
}

#[test]
fn a_copy_that_kept_everything_tells_of_no_kinds() {
    need!(tools());
    let dir = temp();
    let src = everything(&dir.path().join("src"));
    let copied = only_unkept(&job(2), &src, dir.path(), &[]);
    assert!(!copied.outcome.stdout.contains("Not kept"), "{}", copied.outcome.told());
    oracle::assert_same(&src, &copied.root, Aspects::ALL);
}

#[test]
fn what_a_file_system_refuses_is_marked_and_counted_by_kind() {
    need!(tools());
    let dir = temp();
    let src = everything(&dir.path().join("src"));
    for ranks in [1, 4] {
        let fuse = need!(FuseMount::new(Faults::refusing()));
        let kinds = [("ownership", 4), ("mode", 2), ("links", 2), ("special", 2), ("xattr", 2), ("acl", 2)];
        let copied = only_unkept(&job(ranks), &src, fuse.path(), &kinds);
        let manifest = copied.manifest();
        for (name, kinds) in [
            ("foreign-large", &["ownership"] as &[&str]),
            ("setuid", &["ownership", "mode"]),
            ("noted", &["xattr"]),
            ("acl-large", &["acl"]),
            ("fifo", &["special"]),
        ] {
            let entry = &manifest.entries[name.as_bytes()];
            let marked: Vec<_> = told::KINDS.into_iter().filter(|kind| is_unkept(entry, kind)).collect();
            assert_eq!(marked, kinds, "{name}");
        }
        let names = |name: &str| manifest.entries[name.as_bytes()]["unkept_xattrs"].clone();
        assert_eq!(names("noted"), serde_json::json!(["user.note"]));
        assert_eq!(names("acl-large"), serde_json::json!(["system.posix_acl_access"]));
        assert_eq!(names("foreign"), serde_json::Value::Null);
        assert_eq!(manifest.entries[b"null".as_slice()]["rdev"], "1:3");
        let expected = [
            "acl-large: xattrs is []",
            "acl: xattrs is []",
            "fifo: missing",
            "foreign-large: owner is 0:0, was 1234:55",
            "foreign: owner is 0:0, was 1234:55",
            "noted-large: xattrs is []",
            "noted: xattrs is []",
            "null: missing",
            "setuid-large: mode is 0755, was 4755",
            "setuid-large: owner is 0:0",
            "setuid: mode is 0755, was 4755",
            "setuid: owner is 0:0",
        ];
        let found = oracle::differences(&src, &copied.root, Aspects { hard_links: false, ..Aspects::ALL });
        let mut found: Vec<_> = found.iter().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(is, should)| is.starts_with(should)), "{found:?}");
    }
}

#[test]
fn strict_makes_what_is_not_kept_the_exit_code_1_and_all_is_copied_nevertheless() {
    need!(tools());
    let dir = temp();
    let src = everything(&dir.path().join("src"));
    let fuse = need!(FuseMount::new(Faults::refusing()));
    for (ranks, output) in [(1, "-v"), (2, "--json")] {
        let job = job(ranks).options(["--strict", output]);
        let copied = copy(&job, &[&src], &fuse.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(1);
        assert_eq!(copied.manifest().failed().count(), 0, "{}", copied.outcome.told());
        assert_eq!(copied.manifest().entries.len(), oracle::walk(&src).len());
        assert!(copied.root.join("setuid-large").exists() && !copied.root.join("fifo").exists());
        if output == "--json" {
            let told = told::json(&copied.outcome);
            assert_eq!((&told["exit_code"], &told["errors"]), (&1.into(), &0.into()));
        }
        // Where everything can be held, strict changes nothing.
        copy_exactly(&job, &src, &dir.path().join(format!("np{ranks}")));
    }
    // What is not wanted is not missed.
    let job = job(2).options(["--strict", "--no-preserve=ownership,xattr,acl"]);
    let plain = dir.path().join("plain");
    noise_file(&plain.join("f"), 10);
    sys::set_xattr(&plain.join("f"), "user.note", b"value").unwrap();
    chown(&plain.join("f"), Some(Uid::from_raw(1234)), None).unwrap();
    copy(&job, &[&plain], &fuse.path().join("plain")).outcome.assert_code(0);
}

#[test]
fn a_special_file_that_cannot_be_made_alone_decides_under_strict() {
    let fuse = need!(FuseMount::new(Faults { refuse_mknod: true, ..Faults::default() }));
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("plain"), 10);
    mkfifo(&src.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    for (number, (options, code)) in [(&[] as &[&str], 0), (&["--strict"], 1)].into_iter().enumerate() {
        let copied = copy(&job(2).options(options), &[&src], &fuse.path().join(format!("{number}")));
        copied.outcome.assert_code(code);
        assert_eq!(told::marks(copied.manifest()), counts(&[("special", 1)]));
        assert_eq!(oracle::differences(&src, &copied.root, Aspects::ALL), ["fifo: missing"]);
    }
}

#[test]
fn attributes_and_acls_are_told_apart_where_only_acls_are_refused() {
    need!(tools());
    let dir = temp();
    let src = everything(&dir.path().join("src"));
    // More in the mask than in the group's own entry: without the ACL the mode has to lose it.
    setfacl("u:1234:rwx,g::r", &src.join("acl"));
    let fuse = need!(FuseMount::new(Faults { xattrs_without_acls: true, ..Faults::default() }));
    let copied = only_unkept(&job(2), &src, fuse.path(), &[("acl", 2), ("mode", 1)]);
    let acls = copied.manifest().entries.iter().filter(|(_, entry)| is_unkept(entry, "acl"));
    assert_eq!(acls.map(|(path, _)| oracle::show(path)).collect::<Vec<_>>(), ["acl", "acl-large"]);
    assert_eq!(sys::get_xattr(&copied.root.join("noted-large"), b"user.note").unwrap(), b"value");
}

#[test]
fn times_that_a_coarse_clock_cuts_are_marked_and_those_that_fit_are_not() {
    let dir = temp();
    let src = dir.path().join("src");
    let times =
        [("even", (1_600_000_000, 0)), ("odd", (1_600_000_001, 0)), ("fine", (1_600_000_000, 5)), ("old", (-3, 0))];
    for (name, _) in times {
        noise_file(&src.join(name).join("small"), 100);
        noise_file(&src.join(name).join("large"), 200_000);
        symlink("small", src.join(name).join("link")).unwrap();
    }
    // A copy changes when its source was last read.
    let make = || {
        for (name, time) in times {
            ["small", "large", "link", ""].iter().for_each(|e| tree::set_times(&src.join(name).join(e), time, time));
        }
        tree::set_times(&src, times[0].1, times[0].1);
    };
    let fuse = need!(FuseMount::new(Faults { clock_step_s: Some(2), ..Faults::default() }));
    for ranks in [1, 4] {
        let at = fuse.path().join(format!("np{ranks}"));
        fs::create_dir(&at).unwrap();
        let copied = only_unkept_of(&make, &job(ranks), (&src, &at), &[("timestamps", 12)]);
        let even = copied.manifest().entries.iter().filter(|(path, _)| path.starts_with(b"even") || path.is_empty());
        assert_eq!(even.filter(|(_, entry)| entry.get("unkept").is_some()).count(), 0);
        let found = oracle::differences(&src, &copied.root, Aspects { mtime: false, ..Aspects::ALL });
        oracle::assert_none(&found, &copied.outcome.told());
    }
}

#[test]
fn a_coarse_clock_below_the_copys_root_is_noticed_too() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    for name in ["fine/f", "coarse/f"] {
        noise_file(&src.join(name), 100);
    }
    tree::age(&src);
    let fuse = need!(FuseMount::new(Faults { clock_step_s: Some(2), ..Faults::default() }));
    let _bound = need!(bind(fuse.path(), &dst.join("coarse")));
    let copied = copy(&job(2), &[&src.join("")], &dst);
    copied.outcome.assert_code(0);
    let marked = copied.manifest().entries.iter().filter(|(_, entry)| is_unkept(entry, "timestamps"));
    assert_eq!(marked.map(|(path, _)| oracle::show(path)).collect::<Vec<_>>(), ["coarse", "coarse/f"]);
}

#[test]
fn times_behind_the_end_of_a_file_systems_clock_are_marked() {
    let dir = temp();
    let src = dir.path().join("src");
    let times = [("whole", (1_600_000_000, 0)), ("fine", (1_600_000_000, 1)), ("late", (5_000_000_000, 0))];
    let make = || {
        times.iter().for_each(|(name, _)| noise_file(&src.join(name), 100));
        times.iter().for_each(|(name, time)| tree::set_times(&src.join(name), *time, *time));
        tree::set_times(&src, times[0].1, times[0].1);
    };
    let mount = need!(Mount::new(FileSystem::Ext4OfSeconds, 30));
    let copied = only_unkept_of(&make, &job(2), (&src, mount.path()), &[("timestamps", 2)]);
    assert!(copied.manifest().entries[b"whole".as_slice()].get("unkept").is_none());
}

#[test]
fn an_ordinary_user_gets_the_files_of_others_as_his_own_without_their_setuid_bits() {
    need!(tools());
    let (dir, kit) = (temp(), temp());
    let src = everything(&dir.path().join("src"));
    // A program of the group's, of which he is no member.
    noise_file(&src.join("setgid"), 10);
    chown(&src.join("setgid"), Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(55))).unwrap();
    chmod(&src.join("setgid"), 0o2755);
    // One of his own keeps its bit.
    noise_file(&src.join("own"), 10);
    chown(&src.join("own"), Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY))).unwrap();
    chmod(&src.join("own"), 0o4755);
    for name in ["null", "fifo"] {
        chmod(&src.join(name), 0o644);
    }
    tree::age(&src);
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    chmod(&home, 0o777);
    let entries = u64::try_from(oracle::walk(&src).len()).unwrap();
    // A device is root's to make; all but the device and his own file are another's.
    let kinds = [("ownership", entries - 2), ("mode", 3), ("special", 1)];
    for ranks in [1, 2] {
        let at = home.join(format!("np{ranks}"));
        fs::create_dir(&at).unwrap();
        chmod(&at, 0o777);
        let copied = only_unkept(&job(ranks).by_nobody(kit.path()), &src, &at, &kinds);
        let mode = |name: &str| oracle::walk(&copied.root)[name.as_bytes()].mode;
        assert_eq!(["setuid", "setuid-large", "setgid", "own"].map(mode), [0o755, 0o755, 0o755, 0o4755]);
        assert!(!copied.root.join("null").exists());
    }
}
