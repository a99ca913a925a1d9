//! Trees that are made to fill the memory of a rank (issue 14, item 6): very long paths and names, and very many entries that
//! wait for something. `PCOPY_ENTRIES` says how many, `PCOPY_LEVELS` how deep; tests/README.md.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::chance;
use crate::support::launch::Job;
use crate::support::memory::run_watched;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::skip::{Missing, need};
use crate::support::tree;

/// What a rank may hold, whatever the tree is: 200 MB, with all that MPI takes.
const MOST_KIB: u64 = 200_000_000 / 1024;
/// Bytes of the name of each directory on the way down.
const NAME_LEN: usize = 250;
/// For a million of everything. No more than what is written is taken from the machine.
const MOUNT_MIB: u64 = 12 << 10;

/// Entries of a tree; `usual` unless the environment asks for others.
fn entries(usual: usize) -> usize {
    chance::from_environment("PCOPY_ENTRIES").map_or(usual, |count| usize::try_from(count).unwrap())
}

/// Directories in each other above them. 240 make a path of 60,240 bytes.
fn levels() -> usize {
    chance::from_environment("PCOPY_LEVELS").map_or(240, |count| usize::try_from(count).unwrap())
}

/// Where the trees are, the source and the destination: on tmpfs, because ext4 has at most 65,000 names of a file.
fn trees() -> Result<(Mount, PathBuf, PathBuf), Missing> {
    let mount = Mount::new(FileSystem::Tmpfs, MOUNT_MIB)?;
    let (src, dst) = (mount.path().join("src"), mount.path().join("dst"));
    Ok((mount, src, dst))
}

/// A directory that is open, as a path that is short enough for any call.
fn reached(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// Copies `src` twice: the second run has all of it recorded. No rank may hold much memory.
fn copy_in_little_memory(job: &Job, src: &Path, dst: &Path) {
    let is_usual = std::env::var_os("PCOPY_ENTRIES").is_none();
    let job = job.clone().limit(if is_usual { 120 } else { 3600 });
    for run in ["the first run", "a run with all of it recorded"] {
        let (outcome, most_kib) = run_watched(&job, [src, dst]);
        outcome.assert_code(0);
        println!("{run}: {most_kib} KiB");
        assert!((1..MOST_KIB).contains(&most_kib), "{run}: a rank held {most_kib} KiB, {}", outcome.told());
    }
}

/// The names in the last of some directories in each other, and how many inodes they have.
fn names_and_inodes(root: &Path) -> (usize, usize) {
    let end = tree::end_of_chain(root, levels(), NAME_LEN);
    let found = fs::read_dir(reached(&end)).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ino());
    let mut inodes: Vec<_> = found.collect();
    let names = inodes.len();
    inodes.sort_unstable();
    inodes.dedup();
    (names, inodes.len())
}

#[test]
fn names_of_one_file_below_a_long_path_take_little_memory() {
    let count = entries(1_500);
    let (_mount, src, dst) = need!(trees());
    let end = tree::chain(&src, levels(), NAME_LEN);
    fs::write(reached(&end).join("0"), b"one file").unwrap();
    for number in 1..count {
        fs::hard_link(reached(&end).join("0"), reached(&end).join(number.to_string())).unwrap();
    }
    copy_in_little_memory(&Job::ranks(2), &src, &dst);
    assert_eq!(names_and_inodes(&dst), (count, 1));
}

#[test]
fn empty_directories_below_a_long_path_take_little_memory() {
    let count = entries(3_000);
    let (_mount, src, dst) = need!(trees());
    let end = tree::chain(&src, levels(), NAME_LEN);
    (0..count).for_each(|number| fs::create_dir(reached(&end).join(number.to_string())).unwrap());
    copy_in_little_memory(&Job::ranks(2), &src, &dst);
    assert_eq!(names_and_inodes(&dst), (count, count));
}

#[test]
fn files_that_need_several_tasks_below_a_long_path_take_little_memory() {
    let count = entries(2_000);
    let (_mount, src, dst) = need!(trees());
    let end = tree::chain(&src, levels(), NAME_LEN);
    for number in 0..count {
        let at = reached(&end).join(format!("{number:05}"));
        // two ranges, or two names
        fs::write(&at, vec![b'x'; if number % 2 == 0 { 5_000 } else { 5 }]).unwrap();
        if number % 2 == 1 {
            fs::hard_link(&at, reached(&end).join(format!("{number:05}-again"))).unwrap();
        }
    }
    copy_in_little_memory(&Job::ranks(2).options(["-k", "4K", "-b", "4K"]), &src, &dst);
    assert_eq!(names_and_inodes(&dst), (count + count / 2, count));
}

#[test]
fn names_of_255_bytes_take_little_memory() {
    let count = entries(20_000);
    let (_mount, src, dst) = need!(trees());
    let name = |number: usize| format!("{number:0255}");
    for dir in ["files", "directories", "lone files"] {
        fs::create_dir_all(src.join(dir)).unwrap();
    }
    for number in 0..count {
        File::create(src.join("files").join(name(number))).unwrap();
        fs::create_dir(src.join("directories").join(name(number))).unwrap();
    }
    for number in 0..count / 4 {
        let dir = src.join("lone files").join(name(number));
        fs::create_dir(&dir).unwrap();
        File::create(dir.join(name(number))).unwrap();
    }
    copy_in_little_memory(&Job::ranks(2), &src, &dst);
    for (dir, count) in [("files", count), ("directories", count), ("lone files", count / 4)] {
        assert_eq!(fs::read_dir(dst.join(dir)).unwrap().count(), count);
    }
}
