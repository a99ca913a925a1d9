//! The file systems that the tests stand on do what they are used for, and their faults happen.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, Whence, chown, lseek, mkfifo};

use crate::support::fuse::{BadByte, Faults, FuseMount};
use crate::support::mounts::{self, FileSystem, Mount};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::tree::{self, KIB, noise, noise_file, temp};

/// Copies by `cp -a` and compares.
fn cp_is_exact(src: &Path, dst: &Path) {
    let cp = Command::new("cp").arg("-a").arg(src).arg(dst).output().unwrap();
    assert!(cp.status.success(), "{}", String::from_utf8_lossy(&cp.stderr));
    oracle::assert_same(src, dst, Aspects::ALL);
}

fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn every_file_system_mounts_holds_a_tree_and_goes_away() {
    for kind in FileSystem::ALL {
        let mount = need!(Mount::new(kind, 320));
        let at = mount.path().to_path_buf();
        let src = tree::odd_tree(&at.join("src"), 64 * KIB, 16 * KIB);
        cp_is_exact(&src, &at.join("dst"));
        let direct = open_direct(&src.join("sizes/4096.bin"));
        assert_eq!(direct.is_err(), kind == FileSystem::Ramfs, "{kind:?}: O_DIRECT {direct:?}");
        drop(direct);
        drop(mount);
        assert!(!at.exists(), "{at:?} is still there");
    }
}

#[test]
fn a_bind_mount_shows_the_same_directory_under_another_name() {
    need!(skip::root());
    let dir = temp();
    noise_file(&dir.path().join("a/f"), 10);
    let at = dir.path().join("b");
    let bound = need!(mounts::bind(&dir.path().join("a"), &at));
    assert!(at.join("f").exists());
    drop(bound);
    assert!(!at.join("f").exists());
}

#[test]
fn the_fuse_passthrough_holds_a_tree_exactly() {
    let fuse = need!(FuseMount::new(Faults::default()));
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 16 * KIB);
    fs::hard_link(src.join("mode-600"), src.join("second")).unwrap();
    mkfifo(&src.join("fifo"), Mode::S_IRUSR).unwrap();
    chown(&src.join("fifo"), Some(Uid::from_raw(7)), None).unwrap();
    for time in [(-1, 999_999_999), (-1_000_000_000, 1), (12_000_000_000, 5)] {
        noise_file(&src.join(format!("time{}", time.0)), 10);
        tree::set_times(&src.join(format!("time{}", time.0)), time, time);
    }
    cp_is_exact(&src, &fuse.path().join("dst"));
    oracle::assert_same(&src, &fuse.backing().join("dst"), Aspects::ALL);
    open_direct(&fuse.path().join("dst/sizes/4097.bin")).unwrap();
    fs::rename(fuse.path().join("dst/sizes"), fuse.path().join("moved")).unwrap();
    assert_eq!(fs::read(fuse.path().join("moved/513.bin")).unwrap().len(), 513);
    let at = fuse.path().to_path_buf();
    drop(fuse);
    assert!(!at.exists());
}

#[test]
fn the_fuse_passthrough_refuses_what_it_is_told_to() {
    let fuse = need!(FuseMount::new(Faults::refusing()));
    let at = fuse.path();
    noise_file(&at.join("f"), 100);
    assert!(fs::hard_link(at.join("f"), at.join("g")).is_err());
    assert!(mkfifo(&at.join("fifo"), Mode::S_IRUSR).is_err());
    let refused = chown(&at.join("f"), Some(Uid::from_raw(7)), None);
    assert_eq!(refused, Err(nix::errno::Errno::EOPNOTSUPP));
    symlink("f", at.join("link")).unwrap();
    assert_eq!(fs::read(at.join("link")).unwrap().len(), 100);
}

#[test]
fn the_fuse_passthrough_keeps_attributes_only_where_told_and_acls_never() {
    for kept in [false, true] {
        let fuse = need!(FuseMount::new(Faults { xattrs_without_acls: kept, ..Faults::default() }));
        let file = fuse.path().join("f");
        noise_file(&file, 10);
        let set = sys::set_xattr(&file, "user.note", b"value");
        assert_eq!(set.is_ok(), kept, "{set:?}");
        let expected: &[&[u8]] = if kept { &[b"user.note"] } else { &[] };
        assert_eq!(sys::list_xattrs(&file).unwrap(), expected);
        if kept {
            assert_eq!(sys::get_xattr(&file, b"user.note").unwrap(), b"value");
        }
        // The mode 0644 as an ACL, with a named user: without one the kernel would make it a mode.
        let entries: [[u8; 8]; 5] = [
            [1, 0, 6, 0, 255, 255, 255, 255],
            [2, 0, 4, 0, 0xD2, 4, 0, 0],
            [4, 0, 4, 0, 255, 255, 255, 255],
            [16, 0, 4, 0, 255, 255, 255, 255],
            [32, 0, 4, 0, 255, 255, 255, 255],
        ];
        let acl = [&[2, 0, 0, 0], entries.as_flattened()].concat();
        assert_eq!(errno(sys::set_xattr(&file, "system.posix_acl_access", &acl)), Some(libc::EOPNOTSUPP));
        let elsewhere = temp();
        noise_file(&elsewhere.path().join("f"), 10);
        sys::set_xattr(&elsewhere.path().join("f"), "system.posix_acl_access", &acl).unwrap();
    }
}

#[test]
fn the_fuse_passthrough_shows_acls_and_holes_where_told() {
    let fuse = need!(FuseMount::new(Faults { attributes_and_holes: true, ..Faults::default() }));
    let file = fuse.path().join("f");
    File::create(&file).unwrap().set_len(4 << 20).unwrap();
    let made = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    made.write_all_at(b"data", 3 << 20).unwrap();
    assert_eq!(lseek(&made, 0, Whence::SeekData), Ok(3 << 20));
    let set = Command::new("setfacl").args(["-m", "u:1234:r"]).arg(&file).status().unwrap();
    assert!(set.success());
    sys::set_xattr(&file, "trusted.note", b"value").unwrap();
    let names = sys::list_xattrs(&fuse.backing().join("f")).unwrap();
    for name in [b"system.posix_acl_access".as_slice(), b"trusted.note"] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }
    assert_eq!(oracle::walk(fuse.path())[b"f".as_slice()].xattrs, oracle::walk(fuse.backing())[b"f".as_slice()].xattrs);
}

#[test]
fn the_fuse_passthrough_has_a_coarse_clock_where_told() {
    let fuse = need!(FuseMount::new(Faults { clock_step_s: Some(2), ..Faults::default() }));
    for (name, time, expected) in [("f", (1_600_000_003, 5), 1_600_000_002), ("g", (-1, 7), -2)] {
        let file = fuse.path().join(name);
        noise_file(&file, 10);
        tree::set_times(&file, time, time);
        let meta = file.symlink_metadata().unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (expected, 0), "{name}");
    }
}

#[test]
fn a_bad_byte_fails_the_reads_and_writes_that_cover_it_and_no_others() {
    let bad = |name: &str| Some(BadByte { name: Some(name.into()), offset: 200_000 });
    let faults = Faults { eio_read_at: bad("r"), eio_write_at: bad("w"), ..Faults::default() };
    let fuse = need!(FuseMount::new(faults));
    for name in ["r", "w", "ok"] {
        fs::write(fuse.backing().join(name), noise(300_000, 1)).unwrap();
    }
    assert_eq!(errno(fs::read(fuse.path().join("r"))), Some(libc::EIO));
    assert_eq!(fs::read(fuse.path().join("ok")).unwrap(), noise(300_000, 1));
    let file = File::open(fuse.path().join("r")).unwrap();
    let mut block = vec![0; 4096];
    file.read_exact_at(&mut block, 0).unwrap();
    let file = OpenOptions::new().write(true).open(fuse.path().join("w")).unwrap();
    file.write_all_at(&block, 0).unwrap();
    assert_eq!(errno(file.write_all_at(&block, 199_000)), Some(libc::EIO));
}

#[test]
fn the_fuse_passthrough_refuses_o_direct_where_told() {
    let fuse = need!(FuseMount::new(Faults { no_odirect: true, ..Faults::default() }));
    noise_file(&fuse.path().join("f"), 100);
    assert_eq!(errno(open_direct(&fuse.path().join("f"))), Some(libc::EINVAL));
    let create =
        OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(fuse.path().join("g"));
    assert_eq!(errno(create), Some(libc::EINVAL));
}

#[test]
fn reads_and_writes_are_short_where_told() {
    let faults = Faults { short_read: Some(1000), short_write: Some(700), ..Faults::default() };
    let fuse = need!(FuseMount::new(faults));
    fs::write(fuse.backing().join("f"), noise(5000, 1)).unwrap();
    for direct in [0, libc::O_DIRECT] {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(direct);
        let file = file.open(fuse.path().join("f")).unwrap();
        let mut block = vec![0; 4096];
        assert_eq!(file.read_at(&mut block, 0).unwrap(), 1000);
        assert_eq!(block[..1000], noise(5000, 1)[..1000]);
        assert_eq!(file.write_at(&noise(5000, 1)[..4096], 0).unwrap(), 700);
    }
}

#[test]
fn the_fuse_passthrough_is_full_and_slow_where_told() {
    let faults = Faults { enospc_after: Some(10_000), delay_ms: 30, ..Faults::default() };
    let fuse = need!(FuseMount::new(faults));
    let started = Instant::now();
    let mut file = File::create(fuse.path().join("f")).unwrap();
    file.write_all(&noise(8000, 1)).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(30));
    let full = file.write_all(&noise(8000, 1)).and_then(|()| file.sync_all());
    assert_eq!(errno(full), Some(libc::ENOSPC));
}
