//! The oracle is worth something only if it notices: each kind of difference, made on purpose.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Uid, chown, mkfifo};

use crate::support::extents;
use crate::support::hard_tree::{By, HardTree};
use crate::support::losses;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::tree::{self, MIB, chmod, noise_file, temp};

fn pair() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let dir = temp();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    for root in [&old, &new] {
        tree::odd_tree(root, 8192, 4096);
    }
    // Made in the same order, so the same times; what the directories' order changed is set again.
    let before = oracle::walk(&old);
    for (path, node) in before.iter().rev() {
        let ns = (node.mtime_ns / 1_000_000_000, node.mtime_ns % 1_000_000_000);
        let then = (i64::try_from(ns.0).unwrap(), i64::try_from(ns.1).unwrap());
        tree::set_times(&tree::raw(&old, path), then, then);
        tree::set_times(&tree::raw(&new, path), then, then);
    }
    (dir, old, new)
}

/// Makes a difference in `new`, keeping `path`'s times, and returns what the oracle says.
fn after(path: &str, change: impl Fn(&Path)) -> Vec<String> {
    let (_dir, old, new) = pair();
    let parent = Path::new(path).parent().unwrap();
    change(&new.join(path));
    for changed in [Path::new(path), parent] {
        let from = old.join(changed);
        let (Ok(meta), Ok(_)) = (from.symlink_metadata(), new.join(changed).symlink_metadata()) else {
            continue;
        };
        let (atime, mtime) = ((meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()));
        tree::set_times(&new.join(changed), atime, mtime);
    }
    oracle::differences(&old, &new, Aspects::EVERYTHING)
}

#[test]
fn the_oracle_finds_nothing_between_equal_trees_and_sees_every_entry() {
    let (_dir, old, new) = pair();
    assert_eq!(oracle::differences(&old, &new, Aspects::EVERYTHING), Vec::<String>::new());
    let walked = oracle::walk(&old);
    let files = walked.values().filter(|n| n.kind == Kind::File).count();
    let links = walked.values().filter(|n| n.kind == Kind::Symlink).count();
    assert_eq!((files, links), (tree::odd_sizes(8192, 4096).len() + 5, 2));
}

#[test]
fn the_oracle_notices_content_even_with_the_same_size_and_time() {
    let found = after("sizes/4097.bin", |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[4096] ^= 1;
        fs::write(path, bytes).unwrap();
    });
    assert_eq!(found, ["sizes/4097.bin: content differs at byte 4096"]);
}

#[test]
fn the_oracle_notices_a_file_cut_short() {
    let found = after("sizes/513.bin", |path| {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(512).unwrap();
    });
    let told = ["sizes/513.bin: size is 512, was 513", "sizes/513.bin: content differs at byte 512"];
    assert_eq!(found, told);
}

#[test]
fn the_oracle_notices_a_missing_and_an_extra_entry() {
    let found = after("sizes/1.bin", |path| fs::remove_file(path).unwrap());
    assert_eq!(found, ["sizes/1.bin: missing"]);
    let found = after("empty/inner/new\n", |path| noise_file(path, 1));
    assert_eq!(found, ["empty/inner/new\\n: not in the source"]);
}

#[test]
fn the_oracle_notices_another_type() {
    let found = after("mode-755", |path| {
        fs::remove_file(path).unwrap();
        symlink("mode-600", path).unwrap();
    });
    assert_eq!(found, ["mode-755: type is Symlink, was File"]);
}

#[test]
fn the_oracle_notices_a_mode() {
    let found = after("mode-640", |path| chmod(path, 0o641));
    assert_eq!(found, ["mode-640: mode is 0641, was 0640"]);
    let found = after("empty", |path| chmod(path, 0o1711));
    assert_eq!(found, ["empty: mode is 1711, was 0711"]);
}

#[test]
fn the_oracle_notices_one_nanosecond() {
    let (_dir, old, new) = pair();
    let path = new.join("deep/er");
    let meta = path.metadata().unwrap();
    let then = (meta.mtime(), meta.mtime_nsec() + 1);
    tree::set_times(&path, then, then);
    let found = oracle::differences(&old, &new, Aspects::ALL);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("deep/er: mtime is"), "{found:?}");
}

#[test]
fn the_oracle_notices_a_nanosecond_of_the_last_access_where_asked() {
    for path in ["sizes/4096.bin", "deep/er", "dangling", "empty", ""] {
        let (_dir, old, new) = pair();
        let meta = new.join(path).symlink_metadata().unwrap();
        let atime = (meta.atime(), meta.atime_nsec() + 1);
        tree::set_times(&new.join(path), atime, (meta.mtime(), meta.mtime_nsec()));
        let found = oracle::differences(&old, &new, Aspects::EVERYTHING);
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        assert!(found[0].contains(": atime is"), "{path}: {found:?}");
        assert_eq!(oracle::differences(&old, &new, Aspects::ALL), Vec::<String>::new());
    }
}

#[test]
fn a_snapshot_is_what_was_there_and_changes_nothing_of_it() {
    let (_dir, old, _new) = pair();
    tree::deep_chain(&old.join("deepest"), 20, 240);
    // Of two names of a link, reading the first one changes what the other one tells.
    fs::hard_link(old.join("link-to-dir"), old.join("deepest/again")).unwrap();
    let times = |path: &str| {
        let meta = old.join(path).symlink_metadata().unwrap();
        (meta.atime(), meta.atime_nsec(), meta.mtime())
    };
    let some = ["", "link-to-dir", "deepest", "sizes/4096.bin"];
    let before = some.map(times);
    let first = oracle::snapshot(&old);
    assert_eq!(before, some.map(times));
    let atime = |path: &str| first[path.as_bytes()].atime_ns;
    let link = before[1];
    let seen = i128::from(link.0) * 1_000_000_000 + i128::from(link.1);
    assert_eq!((atime("deepest/again"), atime("link-to-dir")), (seen, seen));
    assert_eq!(oracle::compare(&first, &oracle::snapshot(&old), Aspects::EVERYTHING), Vec::<String>::new());
    let mtime = old.join("link-to-dir").symlink_metadata().unwrap();
    tree::set_times(&old.join("link-to-dir"), (5, 5), (mtime.mtime(), mtime.mtime_nsec()));
    let found = oracle::compare(&first, &oracle::walk(&old), Aspects::EVERYTHING);
    assert!(found.len() == 2 && found[1].starts_with("link-to-dir: atime is"), "{found:?}");
    oracle::rewind(&old, &first);
    assert_eq!(oracle::compare(&first, &oracle::walk(&old), Aspects::EVERYTHING), Vec::<String>::new());
}

#[test]
fn the_oracle_notices_a_lost_hole_where_asked() {
    let (_dir, old, new) = pair();
    for root in [&old, &new] {
        let file = fs::File::create(root.join("holes")).unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(b"data", 3 << 20).unwrap();
    }
    let without_times = Aspects { mtime: false, atime: false, ..Aspects::EVERYTHING };
    assert_eq!(oracle::differences(&old, &new, without_times), Vec::<String>::new());
    let file = fs::OpenOptions::new().write(true).open(new.join("holes")).unwrap();
    file.write_all_at(&vec![0; MIB], MIB as u64).unwrap();
    let found = oracle::differences(&old, &new, without_times);
    assert!(found.len() == 1 && found[0].starts_with("holes: bytes on disk is"), "{found:?}");
    assert_eq!(oracle::differences(&old, &new, Aspects { blocks: false, ..without_times }), Vec::<String>::new());
}

#[test]
fn the_oracle_notices_a_links_target_and_does_not_follow_it() {
    let found = after("dangling", |path| {
        fs::remove_file(path).unwrap();
        symlink("/nonexistent/other", path).unwrap();
    });
    assert_eq!(found, ["dangling: target is /nonexistent/other, was /nonexistent/target"]);
}

#[test]
fn the_oracle_notices_a_hard_link_turned_into_a_copy() {
    let (_dir, old, new) = pair();
    fs::hard_link(old.join("mode-600"), old.join("second")).unwrap();
    fs::copy(new.join("mode-600"), new.join("second")).unwrap();
    let without_times = Aspects { mtime: false, ..Aspects::ALL };
    let found = oracle::differences(&old, &new, without_times);
    assert_eq!(found, ["second: first hard link is second, was mode-600"]);
}

#[test]
fn the_oracle_notices_hard_links_of_links_and_fifos_turned_into_copies() {
    let (_dir, old, new) = pair();
    for root in [&old, &new] {
        symlink("nowhere", root.join("s1")).unwrap();
        mkfifo(&root.join("p1"), Mode::S_IRUSR).unwrap();
    }
    fs::hard_link(old.join("s1"), old.join("s2")).unwrap();
    fs::hard_link(old.join("p1"), old.join("p2")).unwrap();
    symlink("nowhere", new.join("s2")).unwrap();
    mkfifo(&new.join("p2"), Mode::S_IRUSR).unwrap();
    let without_times = Aspects { mtime: false, ..Aspects::ALL };
    let found = oracle::differences(&old, &new, without_times);
    assert_eq!(found, ["p2: first hard link is p2, was p1", "s2: first hard link is s2, was s1"]);
}

#[test]
fn the_oracle_notices_an_acl_and_a_capability() {
    need!(skip::root());
    need!(["setfacl", "setcap"].iter().try_for_each(|name| skip::program(name)));
    let changes: [(&str, &[&str], &str, &str); 4] = [
        // With the group's rights as they are: the mode stays.
        ("setfacl", &["-m", "u:1234:r"], "mode-640", "system.posix_acl_access"),
        ("setfacl", &["-m", "u:1234:x"], "empty", "system.posix_acl_access"),
        ("setfacl", &["-m", "d:u:1234:rwx"], "empty", "system.posix_acl_default"),
        ("setcap", &["cap_net_raw+ep"], "mode-755", "security.capability"),
    ];
    for (program, args, path, attribute) in changes {
        let found = after(path, |at| {
            let status = Command::new(program).args(args).arg(at).status().unwrap();
            assert!(status.success(), "{program} {args:?}");
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{path}: xattrs is [(\"{attribute}\"")), "{found:?}");
    }
    // The same attribute with another value.
    let (_dir, old, new) = pair();
    for (root, user) in [(&old, "u:1234:r"), (&new, "u:1235:r")] {
        let status = Command::new("setfacl").args(["-m", user]).arg(root.join("mode-640")).status().unwrap();
        assert!(status.success());
    }
    let found = oracle::differences(&old, &new, Aspects::EVERYTHING);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn the_oracle_notices_an_owner_a_device_and_an_extended_attribute() {
    need!(skip::root());
    let found = after("mode-600", |path| chown(path, Some(Uid::from_raw(12)), None).unwrap());
    assert_eq!(found, ["mode-600: owner is 12:0, was 0:0"]);
    let found = after("mode-600", |path| sys::set_xattr(path, "user.k", b"v").unwrap());
    assert_eq!(found, ["mode-600: xattrs is [(\"user.k\", \"v\")], was []"]);
    let (_dir, old, new) = pair();
    for (root, minor) in [(&old, 3), (&new, 5)] {
        let device = makedev(1, minor);
        mknod(&root.join("dev"), SFlag::S_IFCHR, Mode::S_IRUSR, device).unwrap();
        mkfifo(&root.join("fifo"), Mode::S_IRUSR).unwrap();
    }
    let without_times = Aspects { mtime: false, ..Aspects::ALL };
    let found = oracle::differences(&old, &new, without_times);
    assert_eq!(found, ["dev: device is 261, was 259"]);
}

#[test]
fn the_oracle_ignores_the_programs_records_at_the_top_only() {
    let (_dir, old, new) = pair();
    noise_file(&new.join(".pcopy/manifest.jsonl"), 10);
    noise_file(&new.join("empty/.pcopy"), 10);
    let without_times = Aspects { mtime: false, ..Aspects::ALL };
    let found = oracle::differences(&old, &new, without_times);
    assert_eq!(found, ["empty/.pcopy: not in the source"]);
}

#[test]
fn the_oracle_walks_paths_longer_than_the_system_takes() {
    let dir = temp();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    tree::deep_chain(&old, 30, 240);
    tree::deep_chain(&new, 30, 240);
    let without_times = Aspects { mtime: false, ..Aspects::ALL };
    assert_eq!(oracle::differences(&old, &new, without_times), Vec::<String>::new());
    let longest = oracle::walk(&old).into_keys().map(|p| p.len()).max().unwrap();
    assert!(longest > 4096, "{longest}");
    assert!(oracle::same_content(&old, &new, &longest_file(&old)));
}

#[test]
fn the_table_of_losses_counts_what_a_plain_cp_loses() {
    let mount = need!(Mount::new(FileSystem::Tmpfs, 600));
    let tree = need!(HardTree::new(&mount.path().join("src"), By::Root));
    let dst = mount.path().join("dst");
    // Its exit code tells of the deep path.
    Command::new("cp").args(["-r", "--sparse=never"]).args([&tree.root, &dst]).output().unwrap();
    for name in ["links/a/small", "links/a/fifo", "names/files/-rf"] {
        fs::remove_file(dst.join(name)).unwrap();
    }
    fs::write(dst.join("sizes/1"), "?").unwrap();
    let (lost, at_stake) = (losses::losses(&tree, &dst), losses::at_stake(&tree));
    for column in losses::COLUMNS {
        let expected = match column {
            "content" | "entries" | "names" => lost[column] == 1,
            _ => (1..=at_stake[column]).contains(&lost[column]),
        };
        assert!(expected, "{column}: {} of {}", lost[column], at_stake[column]);
    }
}

#[test]
fn a_byte_that_differs_in_a_sparse_file_is_found_in_data_and_in_holes() {
    let dir = temp();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let data = [(3 << 30, MIB), (9 << 30, 10)];
    tree::sparse_file(&old, 10 << 30, &data);
    for (offset, expected) in [(None, None), (Some((3 << 30) + 12_345), Some((3 << 30) + 12_345)), (Some(7), Some(7))] {
        tree::sparse_file(&new, 10 << 30, &data);
        if let Some(offset) = offset {
            // No byte of the noise is 2.
            fs::OpenOptions::new().write(true).open(&new).unwrap().write_all_at(&[2], offset).unwrap();
        }
        assert_eq!(extents::data_difference(&old, &new), expected);
        assert_eq!(extents::data_difference(&new, &old), expected);
    }
}

fn longest_file(root: &Path) -> Vec<u8> {
    let walked = oracle::walk(root).into_iter();
    let files = walked.filter(|(_, node)| node.kind == Kind::File);
    files.map(|(path, _)| path).max_by_key(Vec::len).unwrap()
}
