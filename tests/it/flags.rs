//! Inode flags (chattr) and project ids: a copy that lacks them says so, and `--preserve=all,flags` keeps them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::copy::{Copied, copy};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::Job;
use crate::support::manifest::is_unkept;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, Missing, need};
use crate::support::told;
use crate::support::tree::{self, noise_file};

const KEPT: &str = "--preserve=all,flags";
/// Names, flags. `alone` has a project id, `first` and `second` are one file.
const FLAGGED: [(&str, &str); 9] = [
    ("d", "+i"),
    ("d/open", "+A"),
    ("immutable", "+i"),
    ("log", "+a"),
    ("large", "+i"),
    ("large-log", "+a"),
    ("nodump", "+d"),
    ("first", "+i"),
    ("noatime", "+dA"),
];

pub fn chattr(flags: &str, path: &Path) {
    let done = Command::new("chattr").args([flags, "--"]).arg(path).status().unwrap();
    assert!(done.success(), "chattr {flags} {}", path.display());
}

fn tools() -> Result<(), Missing> {
    skip::root()?;
    ["chattr", "lsattr"].iter().try_for_each(|name| skip::program(name))
}

/// The flags that a user can set, in letters.
pub fn flags(path: &Path) -> String {
    let out = Command::new("lsattr").args(["-d", "--"]).arg(path).output().unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    out.split_whitespace().next().unwrap_or_default().chars().filter(|c| "ASDacdijtuC".contains(*c)).collect()
}

fn project(path: &Path) -> u64 {
    let out = Command::new("lsattr").args(["-d", "-p", "--"]).arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn source(root: &Path) -> PathBuf {
    for (name, flags) in FLAGGED {
        match name {
            "d" => fs::create_dir_all(root.join(name)).unwrap(),
            _ => noise_file(&root.join(name), if name.starts_with("large") { 200_000 } else { 1000 }),
        }
        assert!(!flags.is_empty());
    }
    fs::hard_link(root.join("first"), root.join("second")).unwrap();
    noise_file(&root.join("plain"), 100);
    symlink("plain", root.join("link")).unwrap();
    tree::age(root);
    FLAGGED.iter().rev().for_each(|(name, flags)| chattr(flags, &root.join(name)));
    root.to_path_buf()
}

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

fn marked(copied: &Copied) -> Vec<String> {
    let entries = copied.manifest().entries.iter();
    entries.filter(|(_, entry)| is_unkept(entry, "flags")).map(|(path, _)| oracle::show(path)).collect()
}

/// On each local file system that has flags: the mount, and a tree in it with flags.
fn on_each(test: impl Fn(FileSystem, &Path, &Path)) {
    need!(tools());
    for file_system in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs, FileSystem::Tmpfs] {
        let mount = need!(Mount::new(file_system, 400));
        test(file_system, mount.path(), &source(&mount.path().join("src")));
    }
}

/// Where the flags of two trees differ.
fn differences(src: &Path, dst: &Path) -> Vec<String> {
    let names = FLAGGED.iter().map(|(name, _)| *name).chain(["second", "plain", "."]);
    let both = names.map(|name| (name, flags(&src.join(name)), flags(&dst.join(name))));
    both.filter(|(_, from, to)| from != to).map(|(name, from, to)| format!("{name}: {from:?} became {to:?}")).collect()
}

#[test]
fn flags_that_a_copy_lacks_are_counted_and_marked() {
    on_each(|file_system, mount, src| {
        for ranks in [1, 2] {
            let copied = copy(&job(ranks).options(["--json"]), &[src], &mount.join(format!("np{ranks}")));
            copied.outcome.assert_code(0);
            let mut expected: Vec<_> =
                FLAGGED.iter().map(|(name, _)| (*name).to_owned()).chain(["second".into()]).collect();
            expected.sort();
            assert_eq!(marked(&copied), expected, "{file_system:?}");
            let counts = told::unkept_in_json(&copied.outcome);
            assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("flags".to_owned(), 10)], "{file_system:?}");
            assert_eq!(oracle::differences(src, &copied.root, Aspects::ALL), [""; 0]);
        }
        copy(&job(1).options(["--strict"]), &[src], &mount.join("strict")).outcome.assert_code(1);
        let ignored = copy(&job(1).options(["--strict", "--no-preserve=flags"]), &[src], &mount.join("ignored"));
        ignored.outcome.assert_code(0);
        assert_eq!(marked(&ignored), [""; 0]);
    });
}

#[test]
fn flags_arrive_and_a_later_run_keeps_up_with_them() {
    on_each(|file_system, mount, src| {
        // With a slash: each run lands in the same place.
        let (into, dst) = (src.join(""), mount.join("dst"));
        let job = job(2).options([KEPT]);
        let first = copy(&job, &[&into], &dst);
        first.outcome.assert_code(0);
        // An immutable file can have no second name: it is told.
        let links = ["first: \"i\" became \"\"", "second: \"i\" became \"\""];
        assert_eq!(differences(src, &first.root), links, "{file_system:?}");
        assert_eq!(marked(&first), ["first", "second"]);
        assert_eq!(oracle::differences(src, &first.root, Aspects::ALL), [""; 0]);

        let again = copy(&job.clone().options(["--json"]), &[&into], &dst);
        again.outcome.assert_code(0);
        assert_eq!(told::json(&again.outcome)["bytes_moved"], 0, "{}", again.outcome.told());
        assert_eq!(differences(src, &again.root), links);

        for name in ["immutable", "d", "log", "large"] {
            chattr("-ia", &src.join(name));
        }
        noise_file(&src.join("immutable"), 2000);
        noise_file(&src.join("d/more"), 10);
        noise_file(&src.join("large"), 300_000);
        tree::age(&src.join("d"));
        chattr("+i", &src.join("immutable"));
        chattr("+ia", &src.join("d"));
        chattr("+A", &src.join("log"));
        let changed = copy(&job, &[&into], &dst);
        changed.outcome.assert_code(0);
        assert_eq!(differences(src, &changed.root), links, "{file_system:?}");
        assert_eq!(oracle::differences(src, &changed.root, Aspects::ALL), [""; 0]);
    });
}

#[test]
fn a_file_that_is_not_to_be_copied_on_write_is_made_so() {
    need!(tools());
    let mount = need!(Mount::new(FileSystem::Btrfs, 400));
    let src = mount.path().join("src");
    for (name, len) in [("small", 10_000), ("large", 200_000)] {
        noise_file(&src.join(name), 0);
        chattr("+C", &src.join(name));
        noise_file(&src.join(name), len);
    }
    assert_eq!([flags(&src.join("small")), flags(&src.join("large"))], ["C", "C"]);
    let copied = copy(&job(2).options([KEPT]), &[&src], &mount.path().join("dst"));
    copied.outcome.assert_code(0);
    assert_eq!([flags(&copied.root.join("small")), flags(&copied.root.join("large"))], ["C", "C"]);
    let counted = copy(&job(2), &[&src], &mount.path().join("counted"));
    assert_eq!(marked(&counted), ["large", "small"]);
}

#[test]
fn project_ids_are_counted_or_kept() {
    need!(tools());
    let mount = need!(Mount::new(FileSystem::Xfs, 400));
    let src = mount.path().join("src");
    for (name, len) in [("d/small", 10), ("d/large", 200_000)] {
        noise_file(&src.join(name), len);
    }
    for name in ["d", "d/small", "d/large"] {
        let done = Command::new("chattr").args(["-p", "77"]).arg(src.join(name)).status().unwrap();
        assert!(done.success());
    }
    let counted = copy(&job(2), &[&src], &mount.path().join("counted"));
    counted.outcome.assert_code(0);
    assert_eq!(marked(&counted), ["d", "d/large", "d/small"]);
    let kept = copy(&job(2).options([KEPT]), &[&src], &mount.path().join("kept"));
    kept.outcome.assert_code(0);
    assert_eq!(marked(&kept), [""; 0]);
    assert_eq!(["d", "d/small", "d/large"].map(|name| project(&kept.root.join(name))), [77; 3]);
    assert_eq!(project(&kept.root), 0);
}

#[test]
fn a_destination_in_user_space_is_not_asked_and_all_is_counted() {
    need!(tools());
    let mount = need!(Mount::new(FileSystem::Ext4, 200));
    let src = source(&mount.path().join("src"));
    let fuse = need!(FuseMount::new(Faults::default()));
    for (name, options) in [("counted", &[] as &[&str]), ("kept", &[KEPT])] {
        let copied = copy(&job(2).options(options), &[&src], &fuse.path().join(name));
        copied.outcome.assert_code(0);
        assert_eq!(marked(&copied).len(), 10, "{name}: {}", copied.outcome.told());
        // From there nothing is known of flags: nothing is counted.
        let back = copy(&job(2), &[&copied.root], &mount.path().join(format!("back-{name}")));
        back.outcome.assert_code(0);
        assert_eq!(marked(&back), [""; 0]);
    }
}

#[test]
fn entries_of_a_layer_without_flags_do_not_hide_those_of_another() {
    need!(tools());
    let (lower, upper) = (need!(Mount::new(FileSystem::Ramfs, 64)), need!(Mount::new(FileSystem::Tmpfs, 64)));
    let (dir, at) = (tree::temp(), |base: &Path, name: &str| base.join(name));
    (0..20).for_each(|n| noise_file(&at(lower.path(), &format!("low/d/a{n}")), 10));
    for name in ["up", "work"] {
        fs::create_dir(at(upper.path(), name)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},xino=on",
        at(lower.path(), "low").display(),
        at(upper.path(), "up").display(),
        at(upper.path(), "work").display()
    );
    let src = dir.path().join("src");
    fs::create_dir(&src).unwrap();
    let mounted = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&src).status().unwrap();
    assert!(mounted.success());
    for n in 0..20 {
        noise_file(&src.join(format!("d/t{n}")), 10);
        chattr("+i", &src.join(format!("d/t{n}")));
    }
    let copied = copy(&job(1).options(["--strict"]), &[&src], &dir.path().join("dst"));
    let found = marked(&copied);
    let unmounted = Command::new("umount").arg(&src).status().unwrap();
    assert!(unmounted.success());
    copied.outcome.assert_code(1);
    assert_eq!(found.len(), 20, "{found:?}");
}

#[test]
fn a_directory_that_two_sources_meet_in_stays_open_for_both() {
    need!(tools());
    let mount = need!(Mount::new(FileSystem::Tmpfs, 64));
    let at = |name: &str| mount.path().join(name);
    noise_file(&at("a/d/one"), 10);
    (0..100).for_each(|n| noise_file(&at(&format!("b/d/f{n}")), 10));
    fs::create_dir(at("dst")).unwrap();
    // Directories of both sources that meet have the times of one of them, whichever ends last: all times are equal here.
    ["a/d", "a", "b/d", "b"].iter().for_each(|name| tree::set_times(&at(name), (1_000_000_000, 0), (1_000_000_000, 0)));
    chattr("+i", &at("a/d"));
    for _ in 0..2 {
        let (a, b) = (at("a").join(""), at("b").join(""));
        let copied = copy(&job(2).options([KEPT]), &[&a, &b], &at("dst"));
        copied.outcome.assert_code(0);
        assert!(marked(&copied).contains(&"d".to_owned()));
    }
}

/// She puts a file of her own in the place of the copy's that an administrator has locked elsewhere, and one of root's.
#[test]
fn what_others_can_exchange_keeps_its_flags() {
    need!(tools());
    let mount = need!(Mount::new(FileSystem::Ext4, 64));
    let at = |name: &str| mount.path().join(name);
    for name in ["src/home/keys", "src/home/sub/f", "locked/keys", "locked/sub/f"] {
        noise_file(&at(name), 10);
    }
    for name in ["src/home", "src/home/keys", "src/home/sub", "src/home/sub/f", "locked", "locked/keys", "locked/sub"] {
        std::os::unix::fs::chown(at(name), Some(1234), Some(1234)).unwrap();
    }
    let job = job(2).options([KEPT]);
    copy(&job, &[&at("src").join("")], &at("dst")).outcome.assert_code(0);
    ["locked/keys", "locked/sub"].iter().for_each(|name| chattr("+i", &at(name)));
    fs::rename(at("dst/home"), at("away")).unwrap();
    fs::rename(at("locked"), at("dst/home")).unwrap();
    noise_file(&at("src/home/keys"), 20);
    noise_file(&at("src/home/sub/g"), 20);
    copy(&job, &[&at("src").join("")], &at("dst")).outcome.assert_code(1);
    assert_eq!([flags(&at("dst/home/keys")), flags(&at("dst/home/sub"))], ["i", "i"]);
    assert_eq!(fs::metadata(at("dst/home/keys")).unwrap().len(), 10);
}
