//! Files of every awkward size are exact, with the digests of `b3sum`, on every file system, in
//! every mode of direct I/O (issue 2, items 3 and 4).

use std::fs::{self, File};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::support::copy::{Copied, copy_exactly};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::Job;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::skip::{Missing, need};
use crate::support::tree::{self, KIB, noise_file, temp};

const MODES: [&str; 3] = ["--direct=auto", "--direct=always", "--direct=never"];

/// Small ranges and blocks, so that a file of some KiB has many.
const SMALL: [&str; 4] = ["-k", "64K", "-b", "16K"];

fn small(job: Job, mode: &str) -> Job {
    // shared blocks would be read only
    let reflink = if mode == "--direct=auto" { "--reflink=auto" } else { "--reflink=never" };
    job.options(SMALL).options([mode, reflink])
}

/// Copies a tree of odd sizes inside one file system, once for each mode.
fn odd_sizes_are_exact_in(at: &Path, ranks: [usize; 3]) {
    let src = tree::odd_tree(&at.join("src"), 64 * KIB, 16 * KIB);
    for (mode, ranks) in MODES.into_iter().zip(ranks) {
        let copied = copy_exactly(&small(Job::ranks(ranks), mode), &src, &at.join(mode));
        has_a_digest_for_every_file(&copied);
    }
}

fn has_a_digest_for_every_file(copied: &Copied) {
    let files = copied.manifest().entries.values().filter(|e| e["type"] == "file");
    let without: Vec<_> = files.filter(|e| !e["blake3"].is_string()).collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn odd_sizes_are_exact_with_one_rank_without_a_launcher() {
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 16 * KIB);
    for mode in MODES {
        copy_exactly(&small(Job::alone(), mode), &src, &dir.path().join(mode));
    }
}

#[test]
fn odd_sizes_are_exact_with_one_two_and_four_ranks() {
    for ranks in [1, 2, 4] {
        let dir = temp();
        odd_sizes_are_exact_in(dir.path(), [ranks; 3]);
    }
}

#[test]
fn odd_sizes_are_exact_with_blocks_as_large_as_ranges_and_with_one_thread() {
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 64 * KIB);
    let options = ["-k", "64K", "-b", "64K", "--threads", "1"];
    copy_exactly(&Job::ranks(2).options(options), &src, &dir.path().join("one"));
    let options = ["-k", "64K", "-b", "1M", "--threads", "4"];
    copy_exactly(&Job::ranks(2).options(options), &src, &dir.path().join("block-above-range"));
}

#[test]
fn odd_sizes_are_exact_on_ext4() {
    let mount = need!(Mount::new(FileSystem::Ext4, 128));
    odd_sizes_are_exact_in(mount.path(), [2, 4, 1]);
}

#[test]
fn odd_sizes_are_exact_on_xfs() {
    let mount = need!(Mount::new(FileSystem::Xfs, 320));
    odd_sizes_are_exact_in(mount.path(), [4, 1, 2]);
}

#[test]
fn odd_sizes_are_exact_on_btrfs() {
    let mount = need!(Mount::new(FileSystem::Btrfs, 256));
    odd_sizes_are_exact_in(mount.path(), [1, 2, 4]);
}

#[test]
fn odd_sizes_are_exact_on_tmpfs() {
    let mount = need!(Mount::new(FileSystem::Tmpfs, 64));
    odd_sizes_are_exact_in(mount.path(), [2, 1, 4]);
    let job = Job::ranks(2).options(SMALL).options(["--no-digest"]);
    copy_exactly(&job, &mount.path().join("src"), &mount.path().join("without-digests"));
}

#[test]
fn odd_sizes_are_exact_on_ramfs_which_refuses_direct_io() {
    let mount = need!(Mount::new(FileSystem::Ramfs, 64));
    odd_sizes_are_exact_in(mount.path(), [2, 4, 1]);
}

#[test]
fn odd_sizes_are_exact_on_fuse_that_refuses_what_dfuse_refuses() {
    let fuse = need!(FuseMount::new(Faults::refusing()));
    odd_sizes_are_exact_in(fuse.path(), [2, 4, 1]);
}

#[test]
fn odd_sizes_are_exact_on_fuse_that_refuses_direct_io_at_open() {
    let fuse = need!(FuseMount::new(Faults { no_odirect: true, ..Faults::refusing() }));
    odd_sizes_are_exact_in(fuse.path(), [2, 1, 4]);
}

#[test]
fn odd_sizes_are_exact_on_fuse_that_takes_direct_io_only_aligned() {
    let fuse = need!(FuseMount::new(Faults { aligned_odirect: true, ..Faults::refusing() }));
    odd_sizes_are_exact_in(fuse.path(), [2, 1, 4]);
}

#[test]
fn odd_sizes_are_exact_where_reads_and_writes_are_short_at_unaligned_lengths() {
    let faults = Faults { short_read: Some(10_007), short_write: Some(5_003), ..Faults::default() };
    let fuse = need!(FuseMount::new(faults));
    odd_sizes_are_exact_in(fuse.path(), [2, 1, 4]);
}

#[test]
fn one_side_may_refuse_direct_io() {
    let ramfs = need!(Mount::new(FileSystem::Ramfs, 64));
    let ext4 = need!(Mount::new(FileSystem::Ext4, 128));
    let always = small(Job::ranks(2), "-s");
    for (from, to) in [(&ramfs, &ext4), (&ext4, &ramfs)] {
        let src = tree::odd_tree(&from.path().join("src"), 64 * KIB, 16 * KIB);
        copy_exactly(&always, &src, &to.path().join("dst"));
    }
}

#[test]
fn a_file_of_many_ranges_is_exact_with_the_default_block_size() {
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("large"), 20 * tree::MIB + 12_345);
    tree::age(&src);
    copy_exactly(&Job::ranks(4).options(["-k", "1M"]), &src, &dir.path().join("ranges"));
    copy_exactly(&Job::ranks(2), &src, &dir.path().join("defaults"));
}

/// Sectors of 512 bytes that were read from the device of a mounted file system.
fn sectors_read(at: &Path) -> u64 {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == at.to_str()).unwrap();
    let device = Path::new(line.split(' ').next().unwrap()).file_name().unwrap().to_str().unwrap();
    // Documentation/block/stat.rst: the third field
    let stat = fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap();
    stat.split_whitespace().nth(2).unwrap().parse().unwrap()
}

fn tells_what_is_in_memory() -> Result<(), Missing> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|word| word.parse::<u32>().ok());
    let told = (numbers.next(), numbers.next()) >= (Some(6), Some(5));
    if told { Ok(()) } else { Err(Missing::new(format!("Linux {} has no cachestat", release.trim()))) }
}

#[test]
fn what_a_local_file_system_has_in_memory_is_not_read_from_its_disk() {
    need!(tells_what_is_in_memory());
    let (mount, dir) = (need!(Mount::new(FileSystem::Ext4, 128)), temp());
    let (src, len) = (mount.path().join("src"), 8 << 20);
    noise_file(&src.join("file"), len);
    tree::age(&src);
    let sectors = u64::try_from(len).unwrap() / 512;
    let read_by = |mode: &str, to: &str| {
        let before = sectors_read(mount.path());
        copy_exactly(&Job::ranks(2).options(["-k", "2M", "-b", "1M", mode]), &src, &dir.path().join(to));
        sectors_read(mount.path()) - before
    };
    // a directory's block or two may be
    let warm = read_by("--direct=auto", "warm");
    assert!(warm < sectors / 16, "{warm} of {sectors} sectors were read");
    let always = read_by("--direct=always", "always");
    assert!(always >= sectors, "{always} of {sectors} sectors were read");
    let file = File::open(src.join("file")).unwrap();
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let cold = read_by("--direct=auto", "cold");
    assert!(cold >= sectors, "{cold} of {sectors} sectors were read");
}
