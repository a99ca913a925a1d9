//! The mount that forgets at a power cut really loses what was not made durable, and keeps what was.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::fuse::{Faults, FuseMount};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{Missing, need};
use crate::support::tree::{self, KIB, chmod, noise, set_times, write};
use crate::support::whole::names;

fn mount() -> Result<FuseMount, Missing> {
    FuseMount::new(Faults { forgets_at_power_cut: true, ..Faults::default() })
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

/// A file whose bytes and name are durable.
fn durable(path: &Path, bytes: &[u8]) {
    write(path, bytes);
    sync(path);
    sync(path.parent().unwrap());
}

#[test]
fn bytes_that_were_not_synced_are_lost_and_others_stay() {
    let mut fuse = need!(mount());
    let at = fuse.path().to_path_buf();
    durable(&at.join("appended"), b"durable");
    OpenOptions::new().append(true).open(at.join("appended")).unwrap().write_all(b" and not").unwrap();
    durable(&at.join("changed"), &noise(300_000, 1));
    let changed = OpenOptions::new().write(true).open(at.join("changed")).unwrap();
    changed.write_all_at(b"synced", 5).unwrap();
    changed.sync_data().unwrap();
    changed.write_all_at(b"not synced", 200_000).unwrap();
    durable(&at.join("cut"), &noise(100_000, 2));
    let cut = OpenOptions::new().write(true).open(at.join("cut")).unwrap();
    cut.set_len(10).unwrap();
    durable(&at.join("cut-and-grown"), &noise(100_000, 3));
    let grown = OpenOptions::new().write(true).open(at.join("cut-and-grown")).unwrap();
    grown.set_len(10).unwrap();
    grown.set_len(50_000).unwrap();
    grown.sync_all().unwrap();
    write(&at.join("never-synced"), b"lost");
    sync(&at);
    // Whoever looks before sees it all.
    assert_eq!(fs::read(at.join("appended")).unwrap(), b"durable and not");
    drop((changed, cut, grown));
    fuse.cut_power();
    assert_eq!(fs::read(at.join("appended")).unwrap(), b"durable");
    let mut expected = noise(300_000, 1);
    expected[5..11].copy_from_slice(b"synced");
    assert!(fs::read(at.join("changed")).unwrap() == expected);
    assert!(fs::read(at.join("cut")).unwrap() == noise(100_000, 2));
    let mut expected = noise(10, 3);
    expected.resize(50_000, 0);
    assert!(fs::read(at.join("cut-and-grown")).unwrap() == expected);
    assert_eq!(fs::read(at.join("never-synced")).unwrap(), b"");
}

#[test]
fn names_that_were_not_synced_vanish_and_removed_ones_are_back() {
    let mut fuse = need!(mount());
    let at = fuse.path().to_path_buf();
    durable(&at.join("removed"), b"back");
    durable(&at.join("removed-for-good"), b"gone");
    durable(&at.join("dir/stays"), b"stays");
    sync(&at);
    fs::remove_file(at.join("removed-for-good")).unwrap();
    sync(&at);
    fs::remove_file(at.join("removed")).unwrap();
    write(&at.join("dir/new"), b"its bytes alone are durable");
    sync(&at.join("dir/new"));
    fs::create_dir(at.join("new-dir")).unwrap();
    symlink("target", at.join("dir/new-link")).unwrap();
    fs::hard_link(at.join("dir/stays"), at.join("dir/new-name")).unwrap();
    fuse.cut_power();
    assert_eq!(names(&at), ["dir", "removed"]);
    assert_eq!(names(&at.join("dir")), ["stays"]);
    assert_eq!(fs::read(at.join("removed")).unwrap(), b"back");
}

#[test]
fn renames_that_were_not_synced_are_undone() {
    let mut fuse = need!(mount());
    let at = fuse.path().to_path_buf();
    for case in ["undone", "done"] {
        durable(&at.join(case).join("final"), b"old");
        durable(&at.join(case).join("temporary"), b"new");
        fs::rename(at.join(case).join("temporary"), at.join(case).join("final")).unwrap();
    }
    sync(&at.join("done"));
    sync(&at);
    assert_eq!(fs::read(at.join("undone/final")).unwrap(), b"new");
    fuse.cut_power();
    assert_eq!(names(&at.join("undone")), ["final", "temporary"]);
    assert_eq!(fs::read(at.join("undone/final")).unwrap(), b"old");
    assert_eq!(fs::read(at.join("undone/temporary")).unwrap(), b"new");
    assert_eq!(names(&at.join("done")), ["final"]);
    assert_eq!(fs::read(at.join("done/final")).unwrap(), b"new");
}

#[test]
fn metadata_that_was_not_synced_is_as_before() {
    let mut fuse = need!(mount());
    let at = fuse.path().to_path_buf();
    let (old, new) = ((1_500_000_000, 7), (1_600_000_000, 8));
    for name in ["forgotten", "of-data-only", "kept"] {
        write(&at.join(name), b"bytes");
        chmod(&at.join(name), 0o640);
        set_times(&at.join(name), old, old);
        sync(&at.join(name));
        chmod(&at.join(name), 0o600);
        set_times(&at.join(name), new, new);
    }
    File::open(at.join("of-data-only")).unwrap().sync_data().unwrap();
    sync(&at.join("kept"));
    sync(&at);
    fuse.cut_power();
    for (name, mode, time) in [("forgotten", 0o640, old), ("of-data-only", 0o640, old), ("kept", 0o600, new)] {
        let meta = at.join(name).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, (meta.mtime(), meta.mtime_nsec())), (mode, time), "{name}");
    }
}

/// Makes everything durable, from the top.
fn sync_all(at: &Path) {
    let kind = at.symlink_metadata().unwrap().file_type();
    if kind.is_dir() {
        fs::read_dir(at).unwrap().for_each(|entry| sync_all(&entry.unwrap().path()));
    }
    if kind.is_dir() || kind.is_file() {
        sync(at);
    }
}

#[test]
fn a_tree_that_was_synced_is_there_after_every_power_cut() {
    let mut fuse = need!(mount());
    let dir = tree::temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 16 * KIB);
    fs::hard_link(src.join("mode-640"), src.join("deep/er/second-name")).unwrap();
    mkfifo(&src.join("fifo"), Mode::S_IRWXU).unwrap();
    tree::age(&src);
    let copy = fuse.path().join("copy");
    let cp = Command::new("cp").arg("-a").arg(&src).arg(&copy).status().unwrap();
    assert!(cp.success());
    sync_all(fuse.path());
    for _ in 0..2 {
        fuse.cut_power();
        oracle::assert_same(&src, &copy, Aspects::ALL);
        need!(fuse.restore_power());
        oracle::assert_same(&src, &copy, Aspects::ALL);
        write(&copy.join("lost"), b"lost");
    }
    fuse.cut_power();
    assert!(!copy.join("lost").exists());
    oracle::assert_same(&src, &copy, Aspects::ALL);
}

#[test]
fn a_tree_that_was_not_synced_is_lost() {
    let mut fuse = need!(mount());
    let src = tree::small_files(&fuse.path().join("src"), 2, 5);
    assert_eq!(fs::read_dir(&src).unwrap().count(), 2);
    fuse.cut_power();
    assert_eq!(fs::read_dir(fuse.path()).unwrap().count(), 0);
}
