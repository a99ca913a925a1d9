//! The faults that come and go do so, and the judges of interrupted copies see what they judge.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::support::fuse::{Call, Faults, FuseMount, Trouble};
use crate::support::interrupted::{Task, finished_files, half_written, leftovers, records};
use crate::support::launch::Job;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::skip::need;
use crate::support::tree::{self, noise, noise_file, set_times, temp, write};

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

/// What one operation says four times, and what the faults counted.
fn four(fuse: &FuseMount, act: impl Fn(&Path) -> io::Result<()>) -> ([Option<i32>; 4], u64) {
    let before = fuse.control().struck();
    let told = [(); 4].map(|()| errno(act(fuse.path())));
    (told, fuse.control().struck() - before)
}

#[test]
fn the_first_calls_of_a_kind_fail_and_the_next_do_not() {
    type Act = fn(&Path) -> io::Result<()>;
    let acts: [(Call, Act); 11] = [
        (Call::Open, |at| File::open(at.join("f")).map(drop)),
        (Call::OpenToWrite, |at| OpenOptions::new().write(true).open(at.join("f")).map(drop)),
        // Past the page cache, which asks twice for what it cannot get.
        (Call::Read, |at| {
            let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(at.join("f"));
            direct?.read_exact(&mut [0; 100])
        }),
        (Call::Write, |at| OpenOptions::new().write(true).open(at.join("f"))?.write_all_at(b"x", 0)),
        (Call::Create, |at| {
            File::create_new(at.join("g"))?;
            fs::remove_file(at.join("g"))
        }),
        (Call::MakeDir, |at| fs::create_dir(at.join("d")).and_then(|()| fs::remove_dir(at.join("d")))),
        (Call::Rename, |at| {
            fs::rename(at.join("f"), at.join("h")).and_then(|()| fs::rename(at.join("h"), at.join("f")))
        }),
        (Call::SetAttr, |at| fs::set_permissions(at.join("f"), fs::metadata(at.join("f"))?.permissions())),
        (Call::Fsync, |at| OpenOptions::new().write(true).open(at.join("f"))?.sync_all()),
        (Call::OpenDir, |at| fs::read_dir(at.join("dir")).map(drop)),
        (Call::ReadDir, |at| fs::read_dir(at.join("dir"))?.try_for_each(|entry| entry.map(drop))),
    ];
    for (call, act) in acts {
        let fuse = need!(FuseMount::new(Faults::default()));
        fs::write(fuse.backing().join("f"), noise(1000, 1)).unwrap();
        fs::create_dir(fuse.backing().join("dir")).unwrap();
        fuse.control().add(Trouble::new(calls(call), libc::EIO).first(2));
        let eio = Some(libc::EIO);
        assert_eq!(four(&fuse, act), ([eio, eio, None, None], 2), "{call:?}");
        fuse.control().add(Trouble::new(calls(call), libc::EDQUOT));
        assert_eq!(four(&fuse, act), ([Some(libc::EDQUOT); 4], 4), "{call:?}");
        fuse.control().lift();
        assert_eq!(four(&fuse, act), ([None; 4], 0), "{call:?}");
    }
}

/// One kind, as the faults take them.
fn calls(call: Call) -> &'static [Call] {
    Box::leak(Box::new([call]))
}

#[test]
fn lookups_and_attributes_fail_where_told() {
    let fuse = need!(FuseMount::new(Faults::default()));
    noise_file(&fuse.backing().join("f"), 10);
    fuse.control().add(Trouble::new(&[Call::Lookup], libc::ETIMEDOUT).first(1));
    assert_eq!(errno(fs::symlink_metadata(fuse.path().join("f"))), Some(libc::ETIMEDOUT));
    let mut file = File::open(fuse.path().join("f")).unwrap();
    // A read makes the attributes that the kernel holds old.
    file.read_exact(&mut [0; 10]).unwrap();
    fuse.control().add(Trouble::new(&[Call::GetAttr], libc::EIO).first(1));
    assert_eq!(errno(file.metadata()), Some(libc::EIO));
    file.metadata().unwrap();
}

#[test]
fn troubles_strike_by_name_after_a_while_and_each_name_anew() {
    let fuse = need!(FuseMount::new(Faults::default()));
    for name in ["a", "b", "job.json", "lock", ".pcopy-1.here", ".pcopy-1.tmp"] {
        noise_file(&fuse.backing().join(name), 10);
    }
    let open = |name: &str| errno(File::open(fuse.path().join(name)));
    let eio = Some(libc::EIO);
    fuse.control().add(Trouble::new(&[Call::Open], libc::EIO).named("b"));
    assert_eq!([open("a"), open("b"), open("b")], [None, eio, eio]);
    fuse.control().lift();
    fuse.control().add(Trouble::new(&[Call::Open], libc::EIO).entries().first_of_each(1));
    assert_eq!([open("a"), open("a"), open("b"), open("b")], [eio, None, eio, None]);
    assert_eq!([open("job.json"), open("lock"), open(".pcopy-1.here"), open(".pcopy-1.tmp")], [None, None, None, eio]);
    fuse.control().lift();
    fuse.control().add(Trouble::new(&[Call::Open], libc::EIO).after(2));
    assert_eq!([open("a"), open("b"), open("a"), open("b")], [None, None, eio, eio]);
}

#[test]
fn a_close_fails_where_told_and_lost_data_is_lost() {
    let fuse = need!(FuseMount::new(Faults::default()));
    for (call, sync) in [(Call::Flush, false), (Call::Fsync, true)] {
        fuse.control().add(Trouble::new(calls(call), libc::EIO).loses_data());
        let mut file = File::create(fuse.path().join("f")).unwrap();
        file.write_all(&noise(1000, 1)).unwrap();
        let failed = if sync { errno(file.sync_data()) } else { close(file) };
        assert_eq!(failed, Some(libc::EIO), "{call:?}");
        fuse.control().lift();
        assert_eq!(fs::read(fuse.backing().join("f")).unwrap(), vec![0; 1000], "{call:?}");
    }
}

fn close(file: File) -> Option<i32> {
    nix::unistd::close(file).err().map(|errno| errno as i32)
}

#[test]
fn room_ends_and_is_made_again() {
    let fuse = need!(FuseMount::new(Faults::default()));
    fuse.control().leave_room(10_000, libc::EDQUOT);
    fs::write(fuse.path().join("f"), noise(8000, 1)).unwrap();
    assert_eq!(errno(fs::write(fuse.path().join("g"), noise(8000, 1))), Some(libc::EDQUOT));
    fuse.control().lift();
    fs::write(fuse.path().join("g"), noise(8000, 1)).unwrap();
}

#[test]
fn a_mount_that_broke_off_is_not_connected_and_comes_back_with_what_it_held() {
    let mut fuse = need!(FuseMount::new(Faults::default()));
    noise_file(&fuse.path().join("f"), 1000);
    let held = File::open(fuse.path().join("f")).unwrap();
    fuse.break_off();
    assert_eq!(errno(fs::read_dir(fuse.path())), Some(libc::ENOTCONN));
    assert_eq!(errno(held.read_at(&mut [0; 10], 500)), Some(libc::ENOTCONN));
    fuse.mount_again();
    assert_eq!(fs::read(fuse.path().join("f")).unwrap().len(), 1000);
}

#[test]
fn an_ext4_turns_read_only_under_open_files_and_is_writable_again() {
    let mount = need!(Mount::new(FileSystem::Ext4, 20));
    let file = mount.path().join("f");
    noise_file(&file, 1000);
    let held = OpenOptions::new().write(true).open(&file).unwrap();
    need!(mount.turn_read_only());
    let refused = errno(File::create(mount.path().join("g")));
    assert!(matches!(refused, Some(libc::EROFS | libc::EIO | libc::ESHUTDOWN)), "{refused:?}");
    drop(held);
    mount.turn_writable().unwrap();
    noise_file(&mount.path().join("g"), 1000);
}

#[test]
fn what_is_half_written_under_a_finished_name_is_found() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 2, 3);
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("short", |file| write(file, b"")),
        ("other content", |file| {
            let (bytes, meta) = (fs::read(file).unwrap(), fs::metadata(file).unwrap());
            write(file, &bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>());
            File::open(file).unwrap().set_modified(meta.modified().unwrap()).unwrap();
        }),
        ("other time", |file| set_times(file, (5, 0), (5, 0))),
        ("a directory", |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
    ];
    for (words, damage) in damages {
        let dst = dir.path().join("dst");
        let copied = std::process::Command::new("cp").arg("-a").args([&src, &dst]).status().unwrap();
        assert!(copied.success() && half_written(&src, &dst).is_empty());
        // What is not there, and what is there under no finished name, is not half-written.
        fs::remove_file(dst.join("d000/f0001")).unwrap();
        write(&dst.join("d000/.pcopy-0123456789abcdef-0123456789abcdef.tmp"), b"half");
        assert!(half_written(&src, &dst).is_empty());
        assert_eq!(finished_files(&dst), 5);
        damage(&dst.join("d001/f0002"));
        assert_eq!(half_written(&src, &dst), ["d001/f0002: half-written"], "{words}");
        fs::remove_dir_all(&dst).unwrap();
    }
}

#[test]
fn what_a_complete_copy_must_not_leave_is_found() {
    let dir = temp();
    let state = dir.path().join(".pcopy");
    ["base", "job.json", "manifest.jsonl"].iter().for_each(|name| write(&state.join(name), b""));
    write(&state.join("manifest.jsonl.previous"), b"");
    assert_eq!(leftovers(dir.path(), &state), [] as [&str; 0]);
    write(&dir.path().join("d/.pcopy-0123456789abcdef-0123456789abcdef.tmp"), b"");
    write(&state.join("journal-1.0"), b"");
    write(&state.join("lock"), b"");
    fs::remove_file(state.join("base")).unwrap();
    let found = leftovers(dir.path(), &state);
    assert_eq!(found[0], "d/.pcopy-0123456789abcdef-0123456789abcdef.tmp");
    assert_eq!(found[1..], ["journal-1.0", "lock", "no base"]);
    assert_eq!(records(&dir.path().join("nowhere")), [] as [&str; 0]);
}

/// Whether a run that tells this and exits so passes for one that stopped in order.
fn passes_as_stopped(code: i32, told: &str, records: &[&str]) -> bool {
    let dir = temp();
    let stand_in = dir.path().join("stand-in");
    write(&stand_in, format!("#!/bin/sh\necho '{told}'\nexit {code}\n").as_bytes());
    tree::chmod(&stand_in, 0o755);
    let src = tree::small_files(&dir.path().join("src"), 1, 2);
    let task = Task::new(Job::alone().program(&stand_in), &src, &dir.path().join("dst"));
    records.iter().for_each(|name| write(&task.state().join(name), b""));
    let outcome = task.run();
    catch_unwind(AssertUnwindSafe(|| task.assert_stopped(&outcome, &["SIGTERM"]))).is_ok()
}

#[test]
fn a_run_that_did_not_stop_in_order_does_not_pass_as_stopped() {
    let told = r#"{"exit_code": 75, "stopped": "SIGTERM"}"#;
    assert!(passes_as_stopped(75, told, &["job.json", "journal-1.0"]));
    assert!(!passes_as_stopped(0, told, &[]));
    assert!(!passes_as_stopped(75, r#"{"exit_code": 0, "stopped": "SIGTERM"}"#, &[]));
    assert!(!passes_as_stopped(75, r#"{"exit_code": 75, "stopped": "SIGINT"}"#, &[]));
    assert!(!passes_as_stopped(75, r#"{"exit_code": 75, "stopped": null}"#, &[]));
    assert!(!passes_as_stopped(75, told, &["manifest.jsonl"]));
    assert!(!passes_as_stopped(75, told, &["lock"]));
}
