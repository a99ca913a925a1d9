//! Somebody swaps directories for symbolic links while a copy runs: nothing outside of the two trees is read or
//! written (issue 2, item 8).

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::support::launch::{Job, Outcome};
use crate::support::manifest::{self, Expect};
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::skip::{Missing, need};
use crate::support::tree::{self, noise, raw, temp, write};

/// At the start of every file that no copy may have.
const OUTSIDE: &[u8] = b"this file is outside of the source";
const DIRS: usize = 24;
const FILES: usize = 25;

fn dir_names() -> impl Iterator<Item = String> + Clone {
    (0..DIRS).map(|dir| format!("d{dir:02}"))
}

/// Directories with small files, one that is copied in ranges, and a directory below. `mark` begins every file.
fn build(root: &Path, mark: &[u8]) -> PathBuf {
    for dir in dir_names() {
        let at = root.join(dir);
        for file in 0..FILES {
            write(&at.join(format!("f{file:02}")), &[mark, &noise(file * 100, 5)].concat());
            write(&at.join(format!("below/f{file:02}")), &[mark, &noise(file * 10, 6)].concat());
        }
        write(&at.join("large"), &[mark, &noise(300_000, 7)].concat());
    }
    tree::age(root);
    root.to_path_buf()
}

fn exchange(a: &Path, b: &Path) -> Result<(), Errno> {
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)
}

fn exchange_works(at: &Path) -> Result<(), Missing> {
    let (a, b) = (at.join("probe-a"), at.join("probe-b"));
    fs::create_dir(&a).unwrap();
    fs::create_dir(&b).unwrap();
    let done = exchange(&a, &b).map_err(|e| Missing::new(format!("RENAME_EXCHANGE: {e}")));
    fs::remove_dir(&a).unwrap();
    fs::remove_dir(&b).unwrap();
    done
}

/// Swaps the directories of `root` in turn with links to their namesakes of `outside`, until told to end; then every
/// directory is back. Returns how often.
fn swap(root: &Path, outside: &Path, spare: &Path, end: &AtomicBool) -> usize {
    let mut swaps = 0;
    for dir in dir_names().cycle() {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let (inside, link) = (root.join(&dir), spare.join(&dir));
        if !link.is_symlink() {
            symlink(outside.join(&dir), &link).unwrap();
        }
        // There may be no such directory yet in a copy that has only begun.
        if exchange(&inside, &link).is_ok() {
            thread::sleep(Duration::from_micros(300 * (swaps as u64 % 5)));
            exchange(&inside, &link).unwrap();
            swaps += 1;
        }
    }
    swaps
}

/// Copies again and again for some seconds, while directories of `swapped` are swapped with links that lead
/// `outside`; `judge` looks after each run, when every directory is back.
fn copy_while_swapping(src: &Path, dst: &Path, swapped: &Path, outside: &Path, mut judge: impl FnMut(&Outcome)) {
    let spare = outside.with_file_name("spare");
    fs::create_dir(&spare).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    let mut swaps = 0;
    for ranks in [2, 2, 1, 4, 2, 2, 4, 1] {
        let end = AtomicBool::new(false);
        let (outcome, more) = thread::scope(|scope| {
            let swapper = scope.spawn(|| swap(swapped, outside, &spare, &end));
            let outcome = Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]).run([src, dst]);
            end.store(true, Ordering::Relaxed);
            (outcome, swapper.join().unwrap())
        });
        if swapped == dst {
            // The last swaps came after the copy had set this.
            let times = src.metadata().unwrap();
            let mtime = (times.mtime(), times.mtime_nsec());
            tree::set_times(dst, mtime, mtime);
        }
        // An entry that is not there when it is wanted fails; the job goes on.
        assert!(matches!(outcome.code(), Some(0 | 1)), "{}", outcome.told());
        let expect = Expect { root: dst, ranks, digests: true, strangers: true };
        let manifest = manifest::checked(&dst.join(".pcopy/manifest.jsonl"), &expect);
        outcome.assert_code(i32::from(manifest.failed().count() > 0));
        judge(&outcome);
        swaps += more;
        if Instant::now() > until {
            break;
        }
    }
    assert!(swaps > 0, "nothing was swapped");
}

/// The files below `root` that begin as those outside do.
fn strangers(root: &Path) -> Vec<String> {
    let is_file = |node: &oracle::Node| node.kind == Kind::File;
    let files = oracle::walk(root).into_iter().filter(|(_, node)| is_file(node));
    let strange = files.filter(|(path, _)| fs::read(raw(root, path)).unwrap().starts_with(OUTSIDE));
    strange.map(|(path, _)| oracle::show(&path)).collect()
}

#[test]
fn files_outside_are_recognised() {
    let dir = temp();
    write(&dir.path().join("d/inside"), b"inside");
    assert!(strangers(dir.path()).is_empty());
    write(&dir.path().join("d/stranger"), &[OUTSIDE, b" and more"].concat());
    assert_eq!(strangers(dir.path()), ["d/stranger"]);
}

#[test]
fn a_copy_that_opens_files_by_their_full_paths_would_bring_some_from_outside() {
    let dir = temp();
    need!(exchange_works(dir.path()));
    let (src, outside) = (build(&dir.path().join("src"), b"inside"), build(&dir.path().join("outside"), OUTSIDE));
    let spare = dir.path().join("spare");
    fs::create_dir(&spare).unwrap();
    let end = AtomicBool::new(false);
    let found = thread::scope(|scope| {
        scope.spawn(|| swap(&src, &outside, &spare, &end));
        let read = |dir| fs::read(src.join(dir).join("f00")).is_ok_and(|bytes| bytes.starts_with(OUTSIDE));
        let found = (0..1000).any(|_| dir_names().any(read));
        end.store(true, Ordering::Relaxed);
        found
    });
    assert!(found, "the swaps never show");
}

#[test]
fn source_directories_that_become_links_never_bring_anything_from_outside_into_the_copy() {
    let dir = temp();
    need!(exchange_works(dir.path()));
    let (src, dst) = (build(&dir.path().join("src"), b"inside"), dir.path().join("dst"));
    let outside = build(&dir.path().join("outside"), OUTSIDE);
    copy_while_swapping(&src, &dst, &src, &outside, |outcome| {
        assert_eq!(strangers(&dst), [""; 0], "{}", outcome.told());
        fs::remove_dir_all(&dst).unwrap();
    });
}

#[test]
fn destination_directories_that_become_links_never_have_anything_written_outside() {
    let dir = temp();
    need!(exchange_works(dir.path()));
    build(&dir.path().join("src"), b"inside");
    let dst = dir.path().join("dst");
    let outside = build(&dir.path().join("outside"), OUTSIDE);
    let before = oracle::walk(&outside);
    // Directories that are there already are swapped from the first moment on.
    build(&dst, b"older");
    copy_while_swapping(&dir.path().join("src/"), &dst, &dst, &outside, |outcome| {
        let found = oracle::compare(&before, &oracle::walk(&outside), Aspects::ALL);
        oracle::assert_none(&found, &outcome.told());
        for (path, node) in oracle::walk(&outside).iter().filter(|(_, node)| node.kind == Kind::File) {
            let bytes = fs::read(raw(&outside, path)).unwrap();
            assert!(
                node.size == 0 || bytes.starts_with(OUTSIDE),
                "{} was written: {}",
                oracle::show(path),
                outcome.told()
            );
        }
    });
}
