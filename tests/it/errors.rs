//! Errors of single entries: recorded with path, operation and errno, shown on stderr, exit code 1,
//! and the rest is copied (issue 2, item 8).

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use nix::unistd::{Gid, Uid, chown};

use crate::support::copy::{Copied, copy};
use crate::support::fuse::{BadByte, Faults, FuseMount};
use crate::support::launch::{Job, NOBODY};
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::skip::{self, need};
use crate::support::tree::{self, KIB, MIB, chmod, noise_file, temp};

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

/// Exit code 1; exactly `failed` failed, with `errno`, and each has its line on stderr.
#[track_caller]
fn failed_only(copied: &Copied, failed: &[&str], errno: i64) {
    copied.outcome.assert_code(1);
    let manifest = copied.manifest();
    let told: Vec<_> = manifest.failed().map(|(path, _)| oracle::show(path)).collect();
    assert_eq!(told, failed, "failed entries in {}", copied.outcome.told());
    for path in failed {
        assert_eq!(manifest.errno(path), errno, "{path}");
        let entry = &manifest.entries[path.as_bytes()]["error"];
        assert!(entry["op"].as_str().is_some_and(|op| !op.is_empty()), "{entry}");
        assert!(entry["text"].as_str().is_some_and(|text| !text.is_empty()), "{entry}");
        let lines = copied.outcome.lines_of_pcopy();
        let with_path = lines.iter().filter(|line| line.contains(path));
        let with_errno = with_path.filter(|line| line.contains(&format!("os error {errno})")));
        assert_eq!(with_errno.count(), 1, "lines about {path} in {}", copied.outcome.told());
    }
}

/// No difference outside of `failed`, and none of `failed` looks like a finished copy.
#[track_caller]
fn rest_is_there(copied: &Copied, src: &Path, failed: &[&str]) {
    let found = oracle::differences(src, &copied.root, Aspects::ALL);
    let of_failed = |words: &str| failed.iter().any(|path| words.starts_with(&format!("{path}: ")));
    let silent: Vec<_> = found.into_iter().filter(|words| !of_failed(words)).collect();
    oracle::assert_none(&silent, &copied.outcome.told());
    nothing_half_written_looks_finished(src, &copied.root);
}

/// A file whose content is not the source's does not carry the source's mtime.
#[track_caller]
pub fn nothing_half_written_looks_finished(src: &Path, dst: &Path) {
    let before = oracle::walk(src);
    for (path, node) in oracle::walk(dst) {
        let Some(old) = before.get(&path).filter(|old| old.kind == Kind::File) else {
            continue;
        };
        let finished = node.kind == Kind::File && node.mtime_ns == old.mtime_ns;
        let whole = || oracle::same_content(src, dst, &path);
        assert!(!finished || whole(), "{} looks finished", oracle::show(&path));
    }
}

#[test]
fn a_byte_that_cannot_be_read_fails_its_file_only() {
    for (ranks, mode) in [(1, "auto"), (2, "always"), (4, "never"), (2, "auto")] {
        let bad = BadByte { name: Some("bad.bin".into()), offset: 300_000 };
        let faults = Faults { eio_read_at: Some(bad), ..Faults::default() };
        let fuse = need!(FuseMount::new(faults));
        let dir = temp();
        let src = tree::odd_tree(&fuse.backing().join("src"), 64 * KIB, 16 * KIB);
        noise_file(&src.join("deep/bad.bin"), MIB);
        tree::age(&src);
        let job = job(ranks).options([format!("--direct={mode}")]);
        let copied = copy(&job, &[&fuse.path().join("src")], &dir.path().join("dst"));
        failed_only(&copied, &["deep/bad.bin"], 5);
        rest_is_there(&copied, &src, &["deep/bad.bin"]);
    }
}

#[test]
fn small_files_that_cannot_be_read_fail_alone() {
    let bad = BadByte { name: Some("bad.bin".into()), offset: 10 };
    let fuse = need!(FuseMount::new(Faults { eio_read_at: Some(bad), ..Faults::default() }));
    let dir = temp();
    let src = tree::small_files(&fuse.backing().join("src"), 3, 30);
    let failed = ["d000/bad.bin", "d001/bad.bin", "d002/bad.bin"];
    failed.iter().for_each(|path| noise_file(&src.join(path), 100));
    tree::age(&src);
    let copied = copy(&job(2), &[&fuse.path().join("src")], &dir.path().join("dst"));
    failed_only(&copied, &failed, 5);
    rest_is_there(&copied, &src, &failed);
}

#[test]
fn a_byte_that_cannot_be_written_fails_its_file_only() {
    for (ranks, mode) in [(1, "auto"), (2, "always"), (4, "never")] {
        // Only one file is so long.
        let bad = BadByte { name: None, offset: 900_000 };
        let fuse = need!(FuseMount::new(Faults { eio_write_at: Some(bad), ..Faults::default() }));
        let dir = temp();
        let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 16 * KIB);
        noise_file(&src.join("long.bin"), MIB);
        tree::age(&src);
        let job = job(ranks).options([format!("--direct={mode}")]);
        let copied = copy(&job, &[&src], &fuse.path().join("dst"));
        failed_only(&copied, &["long.bin"], 5);
        rest_is_there(&copied, &src, &["long.bin"]);
    }
}

#[test]
fn what_an_ordinary_user_may_not_read_fails_and_the_rest_is_copied() {
    need!(skip::root());
    let (dir, kit) = (temp(), temp());
    let src = dir.path().join("src");
    for path in ["open/file", "closed-file", "closed-dir/inside", "line\nbreak", "z/last"] {
        noise_file(&src.join(path), 100);
    }
    let closed = ["closed-dir", "closed-file", "line\nbreak"];
    closed.iter().for_each(|path| chmod(&src.join(path), 0));
    for path in ["", "open", "open/file", "z", "z/last", "closed-dir", "closed-file", "line\nbreak"] {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        chown(&src.join(path), Some(uid), Some(gid)).unwrap();
    }
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(Uid::from_raw(NOBODY)), None).unwrap();
    for job in [Job::alone(), Job::ranks(2)] {
        let dst = home.join(format!("np{}", job.rank_count()));
        let copied = copy(&job.by_nobody(kit.path()), &[&src], &dst);
        copied.outcome.assert_code(1);
        let manifest = copied.manifest();
        let failed: Vec<_> = manifest.failed().map(|(path, _)| path.clone()).collect();
        assert_eq!(failed, closed.map(|path| path.as_bytes().to_vec()));
        for path in closed {
            assert_eq!(manifest.errno(path), 13);
        }
        assert!(manifest.is_done(b"z/last") && manifest.is_done(b"open/file"));
        let lines = copied.outcome.lines_of_pcopy();
        let errors = lines.iter().filter(|line| line.contains("os error 13"));
        // One line an entry, also for the name with a line break in it.
        assert_eq!(errors.count(), 3, "{}", copied.outcome.told());
    }
}

/// Sixty files and a large one, 40 MB: more than the destination holds.
fn too_much(at: &Path) -> std::path::PathBuf {
    for number in 0..60 {
        noise_file(&at.join(format!("d{}/f{number:02}", number % 5)), 500_000 + number);
    }
    noise_file(&at.join("large.bin"), 10 * MIB);
    tree::age(at);
    at.to_path_buf()
}

#[test]
fn a_full_file_system_stops_the_job_and_leaves_nothing_half_written_under_a_finished_name() {
    let dir = temp();
    let src = too_much(&dir.path().join("src"));
    for (ranks, mode) in [(1, "auto"), (2, "never"), (2, "always")] {
        let mount = need!(Mount::new(FileSystem::Ext4, 20));
        let job = Job::ranks(ranks).options(["-k", "1M", "-b", "64K"]).options([format!("--direct={mode}")]);
        stops_for_want_of_space(&job, &src, &mount.path().join("dst"));
    }
}

#[test]
fn space_that_ends_behind_fuse_stops_the_job() {
    let faults = Faults { enospc_after: Some(15 << 20), ..Faults::refusing() };
    let fuse = need!(FuseMount::new(faults));
    let dir = temp();
    let src = too_much(&dir.path().join("src"));
    stops_for_want_of_space(&Job::ranks(2).options(["-k", "1M", "-b", "64K"]), &src, &fuse.path().join("dst"));
}

fn stops_for_want_of_space(job: &Job, src: &Path, dst: &Path) {
    let outcome = job.run([src, dst]);
    outcome.assert_code(75).assert_says("No space left on device").assert_says("make space there");
    assert!(!dst.join(".pcopy/manifest.jsonl").exists());
    nothing_half_written_looks_finished(src, dst);
}

#[test]
fn a_file_whose_size_says_nothing_is_an_error_that_says_so() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    noise_file(&src.join("file"), 100);
    tree::age(&src);
    // Both have more than their size says, or less: none in procfs, a page in sysfs.
    for (number, from) in ["/proc/sys/kernel/ostype", "/sys/kernel/uevent_seqnum"].into_iter().enumerate() {
        let to = dst.join(number.to_string());
        fs::create_dir_all(&to).unwrap();
        let outcome = job(1).run([OsStr::new(from), src.as_os_str(), to.as_os_str()]);
        outcome.assert_code(1).assert_says("holds more or less than its size says");
        assert!(!to.join(Path::new(from).file_name().unwrap()).exists());
        assert!(to.join("src/file").exists());
    }
}
