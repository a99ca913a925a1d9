//! The stand-ins of DAOS answer as the real ones do: dfuse, call by call, and its interception library.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, chown, lseek, mkfifo};

use crate::support::daos::{Container, Storage};
use crate::support::skip::need;
use crate::support::sys;
use crate::support::tree::{chmod, noise_file, set_times, temp};

const OLD: (i64, i64) = (1_600_000_000, 123_456_789);

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw)
}

/// Each container of [`Storage::all`].
fn each(act: impl Fn(&Container)) {
    for storage in need!(Storage::all()) {
        act(&storage.one);
    }
}

#[test]
fn dfuse_refuses_what_it_cannot_hold_with_its_own_errnos() {
    each(|container| {
        let file = container.dir().join("f");
        noise_file(&file, 10);
        let dir = container.dir().join("d");
        fs::create_dir(&dir).unwrap();
        assert_eq!(errno(fs::hard_link(&file, dir.join("g"))), Some(Errno::EPERM));
        let fifo = mkfifo(&dir.join("fifo"), Mode::S_IRUSR);
        assert!(matches!(fifo, Err(Errno::EINVAL | Errno::ENOSYS)), "{fifo:?}");
        assert_eq!(errno(fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777))), Some(Errno::EOPNOTSUPP));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2755)).unwrap();
        for name in ["security.pcopy-it", "system.posix_acl_access"] {
            let acl = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255];
            let set = sys::set_xattr(&file, name, &acl);
            assert!(matches!(errno(set), Some(Errno::EOPNOTSUPP | Errno::EINVAL)), "{name}");
        }
        for name in ["user.note", "trusted.note"] {
            sys::set_xattr(&file, name, b"value").unwrap();
            assert_eq!(sys::get_xattr(&file, name.as_bytes()).unwrap(), b"value");
            assert_eq!(errno(sys::get_xattr(&file, b"user.none")), Some(Errno::ENODATA));
        }
        for name in ["user.none", "system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(errno(sys::remove_xattr_through(&dir, name.as_ref())), Some(Errno::ENOENT), "{name}");
        }
        let exchanged = renameat2(AT_FDCWD, &file, AT_FDCWD, &dir, RenameFlags::RENAME_EXCHANGE);
        assert_eq!(exchanged, Err(Errno::EOPNOTSUPP));
        let taken = renameat2(AT_FDCWD, &file, AT_FDCWD, &dir, RenameFlags::RENAME_NOREPLACE);
        assert_eq!(taken, Err(Errno::EEXIST));
    });
}

#[test]
fn dfuse_sets_the_mtime_of_what_is_renamed_and_may_show_the_old_one() {
    each(|container| {
        let (from, to) = (container.dir().join("from"), container.dir().join("to"));
        noise_file(&from, 10);
        set_times(&from, OLD, OLD);
        fs::rename(&from, &to).unwrap();
        sleep(Duration::from_millis(1100));
        let seen = container.through_the_other(&to).metadata().unwrap();
        assert_ne!(seen.mtime(), OLD.0, "another mount");
        set_times(&to, OLD, OLD);
        sleep(Duration::from_millis(1100));
        let seen = container.through_the_other(&to).metadata().unwrap();
        assert_eq!((seen.mtime(), seen.mtime_nsec()), OLD);
    });
    // What the kernel still has of the mount that renamed: only the stand-in shows it every time.
    let container = need!(Container::stand_in(true, true));
    let (from, to) = (container.dir().join("from"), container.dir().join("to"));
    noise_file(&from, 10);
    set_times(&from, OLD, OLD);
    fs::rename(&from, &to).unwrap();
    assert_eq!(to.metadata().unwrap().mtime(), OLD.0, "the mount that renamed");
}

#[test]
fn dfuse_shows_neither_holes_nor_access_times_and_each_mount_its_own_inode_numbers() {
    each(|container| {
        let file = container.dir().join("f");
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(&file).unwrap();
        made.set_len(4 << 20).unwrap();
        made.write_all_at(b"data", 3 << 20).unwrap();
        made.sync_all().unwrap();
        let meta = made.metadata().unwrap();
        assert!(meta.blocks() * 512 >= meta.len(), "{} blocks", meta.blocks());
        assert_eq!(lseek(&made, 0, Whence::SeekData), Ok(0));
        set_times(&file, (1_700_000_000, 0), OLD);
        assert_ne!(file.metadata().unwrap().atime(), 1_700_000_000);
    });
    let container = need!(Container::stand_in(true, true));
    let file = container.dir().join("f");
    noise_file(&file, 10);
    let other = container.through_the_other(&file);
    assert_ne!(file.metadata().unwrap().ino(), other.metadata().unwrap().ino());
}

#[test]
fn a_containers_root_is_bound_to_it_by_an_attribute_that_makes_links_of_directories() {
    let storage = need!(Storage::stand_in());
    let (one, other) = (&storage.one, &storage.other);
    noise_file(&one.mounts[0].join("in-one"), 10);
    let names = sys::list_xattrs(&one.mounts[0]).unwrap();
    assert!(names.contains(&b"user.daos".to_vec()), "{names:?}");
    let value = sys::get_xattr(&one.mounts[0], b"user.daos").unwrap();
    assert_eq!(errno(sys::set_xattr(&one.mounts[0], "user.daos", &value)), Some(Errno::EINVAL));
    let dir = other.dir().join("link");
    fs::create_dir(&dir).unwrap();
    assert_eq!(errno(sys::set_xattr(&dir, "user.daos", b"nonsense")), Some(Errno::EINVAL));
    sys::set_xattr(&dir, "user.daos", &value).unwrap();
    sleep(Duration::from_millis(1100));
    assert!(dir.join("in-one").exists(), "the directory is the other container");
    drop(storage.one);
    sleep(Duration::from_millis(1100));
    assert_eq!(errno(dir.symlink_metadata()), Some(Errno::EINVAL));
}

#[test]
fn dfuse_keeps_names_and_attributes_and_a_changed_directorys_old_time() {
    let container = need!(Container::stand_in(true, true));
    let dir = container.dir().join("d");
    fs::create_dir(&dir).unwrap();
    set_times(&dir, OLD, OLD);
    let missing = container.through_the_other(&dir.join("f"));
    assert!(!missing.exists());
    noise_file(&dir.join("f"), 10);
    assert!(!missing.exists(), "another mount remembers that it is missing");
    assert_eq!(dir.metadata().unwrap().mtime(), OLD.0, "before it is listed");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    sleep(Duration::from_millis(1100));
    assert_ne!(dir.metadata().unwrap().mtime(), OLD.0, "after it was listed");
    let uncached = need!(Container::stand_in(false, true));
    let missing = uncached.through_the_other(&uncached.dir().join("f"));
    assert!(!missing.exists());
    noise_file(&uncached.dir().join("f"), 10);
    assert!(missing.exists());
}

#[test]
fn a_mount_without_cache_refuses_shared_mappings() {
    for (caching, expected) in [(true, Ok(())), (false, Err(Errno::ENODEV))] {
        let container = need!(Container::stand_in(caching, true));
        let file = container.dir().join("f");
        noise_file(&file, 5000);
        let file = File::open(&file).unwrap();
        assert_eq!(sys::map_shared(&file, 4096), expected, "caching {caching}");
    }
}

#[test]
fn a_mount_for_one_user_gives_the_group_what_the_owner_has() {
    for (multi_user, expected) in [(false, 0o660), (true, 0o600)] {
        let container = need!(Container::stand_in(true, multi_user));
        let dir = container.dir().join("d");
        fs::create_dir(&dir).unwrap();
        chown(&dir, Some(1234.into()), Some(0.into())).unwrap();
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join("f")).unwrap();
        assert_eq!(dir.join("f").metadata().unwrap().mode() & 0o7777, expected, "multi-user {multi_user}");
    }
}

/// A program that lists a directory, and then reads and writes files elsewhere, as the words say.
const LISTER: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int n, char **a) {
    char byte;
    (void)n;
    int fd = open(a[2], O_RDONLY | O_DIRECTORY);
    if (!strcmp(a[1], "hidden")) {
        int hidden = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0);
        close(fd);
        fd = hidden;
    }
    DIR *dir = fdopendir(fd);
    while (readdir(dir))
        ;
    closedir(dir);
    for (int i = 0; i < 4; i++) {
        fd = open(a[3], O_RDONLY);
        if (pread(fd, &byte, 1, 0) != 1)
            return errno;
        if (fcntl(fd, F_SETFL, O_NONBLOCK))
            return 77;
        close(fd);
    }
    fd = open(a[4], O_RDWR);
    if (pread(fd, &byte, 1, 0) != 1 || pwrite(fd, &byte, 1, 5) != 1 || lseek(fd, 0, SEEK_END) != 10)
        return 78;
    close(fd);
    return 0;
}
"#;

fn list_and_read(storage: &Storage, how: &str) -> Option<i32> {
    let home = temp();
    let (code, program) = (home.path().join("lister.c"), home.path().join("lister"));
    fs::write(&code, LISTER).unwrap();
    assert!(Command::new("cc").arg("-o").args([&program, &code]).status().unwrap().success());
    let (outside, inside) = (home.path().join("outside"), storage.one.dir().join("inside"));
    noise_file(&outside, 10);
    noise_file(&inside, 10);
    let mut command = Command::new(&program);
    command.arg(how).args([&storage.one.dir(), &outside, &inside]);
    storage.preloaded_into(&mut command);
    command.status().unwrap().code()
}

#[test]
fn the_library_takes_the_next_file_for_the_directory_that_closedir_closed() {
    for storage in need!(Storage::all()) {
        assert_eq!(list_and_read(&storage, "plain"), Some(libc::EINVAL));
        if let Some((counted, _)) = storage.take_counted() {
            assert!(counted["misdirected"] == 1 && counted["unseen_closes"] == 1, "{counted:?}");
        }
        assert_eq!(list_and_read(&storage, "hidden"), Some(0));
        if let Some((counted, _)) = storage.take_counted() {
            assert_eq!((counted["misdirected"], counted["unseen_closes"]), (0, 0), "{counted:?}");
            assert_eq!((counted["bytes_read"], counted["bytes_written"]), (1, 1), "{counted:?}");
        }
    }
}

#[test]
fn what_the_library_writes_goes_past_fuse_and_is_seen_at_once() {
    let storage = need!(Storage::stand_in());
    let (from, to) = (temp(), storage.one.dir().join("f"));
    noise_file(&from.path().join("f"), 300_000);
    storage.one.take_requests();
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", from.path().join("f").display())).arg(format!("of={}", to.display())).arg("bs=64K");
    storage.preloaded_into(&mut dd);
    assert!(dd.output().unwrap().status.success());
    let requests = storage.one.take_requests();
    assert!(!requests.contains_key("write") && requests["ioctl"] >= 3, "{requests:?}");
    assert_eq!(to.metadata().unwrap().len(), 300_000);
    assert_eq!(fs::read(&to).unwrap(), fs::read(from.path().join("f")).unwrap());
    let (counted, _) = storage.take_counted().unwrap();
    assert_eq!(counted["bytes_written"], 300_000, "{counted:?}");
}

#[test]
fn links_and_modes_are_the_same_through_both_mounts() {
    each(|container| {
        let dir = container.dir();
        symlink("nowhere", dir.join("link")).unwrap();
        noise_file(&dir.join("f"), 10);
        chmod(&dir.join("f"), 0o4750);
        let other = container.through_the_other(&dir);
        assert_eq!(fs::read_link(other.join("link")).unwrap(), Path::new("nowhere"));
        assert_eq!(other.join("f").metadata().unwrap().mode() & 0o7777, 0o4750);
    });
}
