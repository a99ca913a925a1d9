//! What a copy is like where `--no-preserve` leaves something out: made by who runs it, now, for himself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use nix::unistd::{Uid, chown};

use crate::preserve::{has_acl, setfacl, telling, tools, under_umask};
use crate::support::copy::copy;
use crate::support::launch::Job;
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, need};
use crate::support::told;
use crate::support::tree::{self, chmod, noise_file, temp};

#[test]
fn without_mode_new_entries_have_the_permissions_of_the_source_less_the_umask() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    for mode in [0o777, 0o666, 0o640, 0o4755, 0o2711, 0o000] {
        noise_file(&src.join(format!("{mode:o}/{mode:o}")), 200_000);
        noise_file(&src.join(format!("{mode:o}/small")), 10);
        ["", "small", &format!("{mode:o}")]
            .iter()
            .for_each(|name| chmod(&src.join(format!("{mode:o}")).join(name), mode));
    }
    tree::age(&src);
    for (ranks, umask) in [(1, 0o027), (2, 0o077), (1, 0o000)] {
        let job = Job::ranks(ranks).program(&under_umask(&format!("{umask:03o}"), dir.path()));
        let job = job.options(["-k", "64K", "-b", "16K", "--no-preserve=mode"]);
        let dst = dir.path().join(format!("{umask:o}"));
        let copied = copy(&job, &[&src], &dst);
        copied.outcome.assert_code(0);
        oracle::assert_same(&src, &copied.root, Aspects { mode: false, ..Aspects::ALL });
        let after = oracle::walk(&dst);
        for (path, node) in oracle::walk(&src) {
            assert_eq!(after[&path].mode, node.mode & 0o777 & !umask, "{}, umask {umask:o}", oracle::show(&path));
        }
    }
}

#[test]
fn without_mode_a_directory_that_is_there_already_keeps_its_own() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    noise_file(&src.join("d/f"), 10);
    chmod(&src.join("d"), 0o700);
    for mode in [0o715, 0o1777] {
        fs::create_dir_all(dst.join("d")).unwrap();
        chmod(&dst.join("d"), mode);
        let copied = copy(&Job::alone().options(["--no-preserve=mode"]), &[&src.join("")], &dst);
        copied.outcome.assert_code(0);
        let now = dst.join("d").symlink_metadata().unwrap().mode() & 0o7777;
        assert_eq!(now, mode, "the mode is {now:o}: {}", copied.outcome.told());
    }
}

#[test]
fn without_mode_and_acl_new_entries_inherit_the_default_acl_of_their_directory() {
    need!(tools());
    let dir = temp();
    let src = dir.path().join("src");
    ["small", "d/large"].iter().for_each(|name| noise_file(&src.join(name), name.len().pow(6)));
    tree::age(&src);
    let above = dir.path().join("above");
    fs::create_dir(&above).unwrap();
    setfacl("d:u:1234:rwx", &above);
    for (options, inherited) in [("--no-preserve=mode,acl", true), ("--no-preserve=mode", false)] {
        let job = Job::ranks(2).options([options, "-k", "64K", "-b", "16K"]);
        let copied = copy(&job, &[&src], &above.join(options));
        copied.outcome.assert_code(0);
        for name in ["", "small", "d", "d/large"] {
            assert_eq!(has_acl(&copied.root.join(name)), inherited, "{name}: {}", copied.outcome.told());
        }
    }
}

#[test]
fn without_acls_a_group_has_no_more_rights_than_its_acl_gave() {
    need!(tools());
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("f"), 100);
    // The mask, which stands in the group's place in the mode, is rwx.
    setfacl("u:1234:rwx,g::r", &src.join("f"));
    assert_eq!(src.join("f").symlink_metadata().unwrap().mode() & 0o777, 0o674);
    for options in ["--no-preserve=acl", "--no-preserve=acl,mode", "--xattrs=none"] {
        let copied = copy(&Job::alone().options([options]), &[&src], &dir.path().join(options));
        copied.outcome.assert_code(0);
        let file = copied.root.join("f");
        assert!(!has_acl(&file), "{options}");
        assert_eq!(file.symlink_metadata().unwrap().mode() & 0o030, 0, "{options}: {}", copied.outcome.told());
    }
}

#[test]
fn without_timestamps_times_are_those_of_the_copy_and_without_ownership_files_are_the_users() {
    need!(tools());
    let dir = temp();
    let src = telling(&dir.path().join("src"));
    chown(&src.join("mode"), Some(Uid::from_raw(1001)), None).unwrap();
    chmod(&src.join("mode"), 0o6755);
    tree::age(&src);
    let before = SystemTime::now() - Duration::from_secs(1);
    let job = Job::ranks(2).options(["--no-preserve=timestamps,ownership", "-k", "64K", "-b", "16K"]);
    let copied = copy(&job, &[&src], &dir.path().join("dst"));
    copied.outcome.assert_code(0);
    let found = oracle::differences(&src, &copied.root, Aspects { owner: false, mtime: false, ..Aspects::ALL });
    assert_eq!(found, ["mode: mode is 0755, was 6755"], "a program of another never becomes one of root's");
    for path in oracle::walk(&src).keys() {
        let meta = tree::raw(&copied.root, path).symlink_metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{}", oracle::show(path));
        assert!(meta.modified().unwrap() > before, "{} is of {:?}", oracle::show(path), meta.modified());
    }
}

#[test]
fn names_that_are_not_to_be_linked_are_files_of_their_own_with_their_digests() {
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("a"), 100);
    noise_file(&src.join("large-a"), 300_000);
    for (name, other) in [("a", "b"), ("a", "c"), ("large-a", "large-b")] {
        fs::hard_link(src.join(name), src.join(other)).unwrap();
    }
    tree::age(&src);
    for ranks in [1, 4] {
        let job = Job::ranks(ranks).options(["--no-preserve=links", "-k", "64K", "-b", "16K", "--json"]);
        let copied = copy(&job, &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        oracle::assert_same(&src, &copied.root, Aspects { hard_links: false, ..Aspects::ALL });
        for path in oracle::walk(&src).keys().filter(|path| !path.is_empty()) {
            assert_eq!(tree::raw(&copied.root, path).metadata().unwrap().nlink(), 1, "{}", oracle::show(path));
            let entry = &copied.manifest().entries[path];
            assert!(entry.get("hardlink").is_none() && entry.get("unkept").is_none(), "{entry}");
        }
        let told = told::json(&copied.outcome);
        assert_eq!((&told["hardlinks"], &told["bytes"]), (&0.into(), &600_300.into()));
    }
}
