//! The oracle is worth something only if it notices: each kind of difference, made on purpose.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Uid, chown, mkfifo};

use crate::support::oracle::{self, Aspects, Kind};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::tree::{self, chmod, noise_file, temp};

fn pair() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let dir = temp();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    for root in [&old, &new] {
        tree::odd_tree(root, 8192, 4096);
    }
    // Made in the same order, so the same times; what the directories' order changed is set again.
    for (path, node) in oracle::walk(&old) {
        let ns = (node.mtime_ns / 1_000_000_000, node.mtime_ns % 1_000_000_000);
        let then = (i64::try_from(ns.0).unwrap(), i64::try_from(ns.1).unwrap());
        tree::set_times(&tree::raw(&new, &path), then, then);
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
        use std::os::unix::fs::MetadataExt;
        let then = (meta.mtime(), meta.mtime_nsec());
        tree::set_times(&new.join(changed), then, then);
    }
    oracle::differences(&old, &new, Aspects::ALL)
}

#[test]
fn the_oracle_finds_nothing_between_equal_trees_and_sees_every_entry() {
    let (_dir, old, new) = pair();
    assert_eq!(oracle::differences(&old, &new, Aspects::ALL), Vec::<String>::new());
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
    use std::os::unix::fs::MetadataExt;
    let meta = path.metadata().unwrap();
    let then = (meta.mtime(), meta.mtime_nsec() + 1);
    tree::set_times(&path, then, then);
    let found = oracle::differences(&old, &new, Aspects::ALL);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("deep/er: mtime is"), "{found:?}");
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

fn longest_file(root: &Path) -> Vec<u8> {
    let walked = oracle::walk(root).into_iter();
    let files = walked.filter(|(_, node)| node.kind == Kind::File);
    files.map(|(path, _)| path).max_by_key(Vec::len).unwrap()
}
