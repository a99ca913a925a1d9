//! Holes: wherever they are in a file, the copy has the same bytes, the same digest and about the same blocks
//! (issue 2, item 6).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::support::copy::{assert_exact, copy, copy_exactly};
use crate::support::launch::Job;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Kind};
use crate::support::skip::need;
use crate::support::tree::{self, KIB, MIB, noise, raw, temp};

/// The range length of most runs here.
const RANGE: usize = 64 * KIB;

/// Where a file has data: offsets and lengths.
type Data<'a> = &'a [(usize, usize)];

/// Makes a file of `len` bytes that are a hole except for `data`.
fn sparse_file(path: &Path, len: usize, data: Data<'_>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(path).unwrap();
    file.set_len(u64::try_from(len).unwrap()).unwrap();
    for (offset, data_len) in data {
        let at = u64::try_from(*offset).unwrap();
        // Without zeros: a block that was left out would be no difference.
        let bytes: Vec<_> = noise(*data_len, at).into_iter().map(|byte| byte | 1).collect();
        file.write_all_at(&bytes, at).unwrap();
    }
    file.sync_all().unwrap();
}

/// Holes and data at every place where a copy in ranges of `RANGE` could go wrong.
fn holes(root: &Path) -> PathBuf {
    let len = 3 * MIB;
    let alternating: Vec<_> = (0..6).map(|n| (n * 4 * RANGE, 2 * RANGE)).collect();
    let one_a_range: Vec<_> = (0..6).map(|n| (n * 8 * RANGE + n, 1)).collect();
    let shapes: [(&str, usize, Data<'_>); 20] = [
        ("only-a-hole", len, &[]),
        ("only-a-hole-of-odd-length", len + 777, &[]),
        ("small-hole", 40_000, &[]),
        ("a-hole-of-one-byte", 1, &[]),
        ("a-hole-of-one-range", RANGE, &[]),
        ("a-hole-of-one-range-and-a-byte", RANGE + 1, &[]),
        ("small-with-a-byte-at-the-start", 60_000, &[(0, 1)]),
        ("small-with-a-byte-at-the-end", 60_000, &[(59_999, 1)]),
        ("hole-at-the-start", len, &[(2 * MIB, MIB)]),
        ("hole-in-the-middle", len, &[(0, 100_000), (2 * MIB + 5000, MIB - 5000)]),
        ("hole-at-the-end", len, &[(0, 100_001)]),
        ("byte-at-the-start", len, &[(0, 1)]),
        ("byte-at-the-end", len + 1, &[(len, 1)]),
        ("byte-before-a-range", len, &[(17 * RANGE - 1, 1)]),
        ("byte-behind-a-range's-start", len, &[(17 * RANGE, 1)]),
        ("two-bytes-across-ranges", len, &[(17 * RANGE - 1, 2)]),
        ("a-range-exactly", len, &[(17 * RANGE, RANGE)]),
        ("ranges-cut-in-holes", len, &alternating),
        ("a-byte-in-some-ranges", len, &one_a_range),
        ("odd-everything", len + 4097, &[(MIB + 511, 70_001), (2 * MIB + 4095, 3)]),
    ];
    for (name, len, data) in shapes {
        sparse_file(&root.join(name), len, data);
    }
    tree::age(root);
    root.to_path_buf()
}

fn allocated_bytes(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().blocks() * 512
}

/// The files of a copy that occupy more than their sources and a range.
fn lost_holes(src: &Path, dst: &Path) -> Vec<String> {
    let files = oracle::walk(src).into_iter().filter(|(_, node)| node.kind == Kind::File);
    let lost = files.filter_map(|(path, _)| {
        let (old, new) = (raw(src, &path), raw(dst, &path));
        // Blocks are counted when they are on disk.
        File::open(&new).unwrap().sync_all().unwrap();
        let (old, new) = (allocated_bytes(&old), allocated_bytes(&new));
        let words = format!("{}: {new} bytes allocated, its source has {old}", oracle::show(&path));
        (new > old + 64 * 1024).then_some(words)
    });
    lost.collect()
}

#[test]
fn a_copy_that_has_lost_its_holes_is_noticed() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    for name in ["kept", "lost"] {
        sparse_file(&src.join(name), MIB, &[(500_000, 100)]);
        sparse_file(&dst.join(name), MIB, &[(500_000, 100)]);
    }
    assert_eq!(lost_holes(&src, &dst), [""; 0]);
    fs::write(dst.join("lost"), vec![0; MIB]).unwrap();
    let lost = lost_holes(&src, &dst);
    assert!(lost.len() == 1 && lost[0].starts_with("lost: "), "{lost:?}");
}

/// Copies `holes` within one file system, by each of the jobs: ranks and --direct.
fn holes_are_kept_on(kind: FileSystem, size_mib: u64, jobs: &[(usize, &str)]) {
    let mount = need!(Mount::new(kind, size_mib));
    let src = holes(&mount.path().join("src"));
    let sizes: u64 = oracle::walk(&src).keys().map(|path| raw(&src, path).symlink_metadata().unwrap().len()).sum();
    let allocated: u64 = oracle::walk(&src).keys().map(|path| allocated_bytes(&raw(&src, path))).sum();
    assert!(allocated < sizes / 2, "the sources have holes on {kind:?}: {allocated} of {sizes} bytes allocated");
    for (ranks, direct) in jobs {
        let dst = mount.path().join(format!("{ranks}-{direct}"));
        let reflink = if *direct == "auto" { "auto" } else { "never" };
        let job = Job::ranks(*ranks).options(["-k", "64K", "-b", "16K", "--reflink", reflink]);
        let copied = copy_exactly(&job.options([format!("--direct={direct}")]), &src, &dst);
        oracle::assert_none(&lost_holes(&src, &dst), &format!("{kind:?}, {}", copied.outcome.told()));
        fs::remove_dir_all(&dst).unwrap();
    }
}

#[test]
fn holes_are_kept_wherever_they_are_on_ext4() {
    holes_are_kept_on(FileSystem::Ext4, 100, &[(1, "auto"), (4, "always"), (4, "never")]);
}

#[test]
fn holes_are_kept_wherever_they_are_on_xfs() {
    holes_are_kept_on(FileSystem::Xfs, 320, &[(4, "auto"), (1, "always"), (1, "never")]);
}

#[test]
fn holes_are_kept_wherever_they_are_on_btrfs() {
    holes_are_kept_on(FileSystem::Btrfs, 200, &[(1, "auto"), (4, "always"), (4, "never")]);
}

#[test]
fn holes_are_kept_wherever_they_are_on_tmpfs() {
    holes_are_kept_on(FileSystem::Tmpfs, 100, &[(4, "auto"), (1, "always"), (1, "never")]);
}

#[test]
fn a_sparse_gibibyte_with_a_mebibyte_of_data_stays_sparse() {
    let dir = temp();
    let src = dir.path().join("src");
    // Spread over the ranges, not aligned to anything, and up to the last byte.
    let data: Vec<_> = (0..16).map(|n| (64 * MIB * n + n * 12_345, 64 * KIB)).collect();
    sparse_file(&src.join("sparse"), 1024 * MIB, &data);
    sparse_file(&src.join("end"), 1024 * MIB + 1, &[(1024 * MIB, 1)]);
    let dst = dir.path().join("dst");
    let copied = copy_exactly(&Job::ranks(4), &src, &dst);
    oracle::assert_none(&lost_holes(&src, &dst), &copied.outcome.told());
    assert_eq!(copied.manifest().entries[b"sparse".as_slice()]["size"], 1 << 30);
}

#[test]
fn holes_replace_what_stood_there_and_nothing_of_it_shows_through() {
    let dir = temp();
    let src = holes(&dir.path().join("src"));
    for (ranks, direct) in [(1, "never"), (2, "auto")] {
        let dst = dir.path().join(format!("np{ranks}"));
        for (path, node) in oracle::walk(&src).iter().filter(|(_, node)| node.kind == Kind::File) {
            tree::write(&raw(&dst, path), &noise(usize::try_from(node.size).unwrap() + 5, 3));
        }
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]).options([format!("--direct={direct}")]);
        let copied = copy(&job, &[&dir.path().join("src/")], &dst);
        copied.outcome.assert_code(0);
        assert_exact(&copied, &src);
        oracle::assert_none(&lost_holes(&src, &dst), &copied.outcome.told());
    }
}

/// Zeros that were written, in runs with and without edges of blocks, between noise: no holes in the source.
fn written_zeros(root: &Path) -> PathBuf {
    let shapes: [(&str, &[(usize, usize)]); 5] = [
        ("only-zeros", &[(0, 2 * MIB)]),
        ("small-zeros", &[(0, 40 * KIB)]),
        ("zeros-in-the-middle", &[(100_001, 0), (300_000, MIB), (2 * MIB, 0)]),
        ("zeros-at-the-end", &[(5000, 0), (5000, MIB)]),
        ("a-byte-in-zeros", &[(0, MIB), (MIB, 0), (MIB + 1, MIB)]),
    ];
    fs::create_dir_all(root).unwrap();
    for (name, runs) in shapes {
        // Noise up to a run's start, then its zeros.
        let mut bytes = Vec::new();
        for (start, len) in runs {
            let more = start.saturating_sub(bytes.len()).max(usize::from(*len == 0));
            bytes.extend(noise(more, 7).into_iter().map(|byte| byte | 1));
            bytes.resize(bytes.len() + len, 0);
        }
        fs::write(root.join(name), bytes).unwrap();
        File::open(root.join(name)).unwrap().sync_all().unwrap();
    }
    let every_other: Vec<_> =
        noise(MIB, 3).chunks(8 * KIB).flat_map(|c| [&c[..4 * KIB], &[0; 4 * KIB]].concat()).collect();
    fs::write(root.join("every-other-block"), every_other).unwrap();
    File::open(root.join("every-other-block")).unwrap().sync_all().unwrap();
    tree::age(root);
    root.to_path_buf()
}

/// Bytes in the 4 KiB blocks that hold something else than zeros.
fn needed(root: &Path) -> u64 {
    let files = oracle::walk(root).into_iter().filter(|(_, node)| node.kind == Kind::File);
    let blocks = files.map(|(path, _)| {
        let bytes = fs::read(raw(root, &path)).unwrap();
        bytes.chunks(4 * KIB).filter(|block| block.iter().any(|byte| *byte != 0)).count()
    });
    u64::try_from(blocks.sum::<usize>() * 4096).unwrap()
}

/// Bytes that the files below `root` occupy when they are on disk, and their lengths.
fn occupied(root: &Path) -> (u64, u64) {
    let files = oracle::walk(root).into_iter().filter(|(_, node)| node.kind == Kind::File);
    let sizes = files.map(|(path, node)| {
        File::open(raw(root, &path)).unwrap().sync_all().unwrap();
        (allocated_bytes(&raw(root, &path)), node.size)
    });
    sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
}

#[test]
fn zeros_that_were_written_become_holes_only_when_asked_for() {
    let dir = temp();
    let src = written_zeros(&dir.path().join("src"));
    let (allocated, len) = occupied(&src);
    assert!(allocated >= len, "no holes in the source: {allocated} of {len} bytes");
    let cases = [(&[] as &[&str], false), (&["--sparse=auto"], false), (&["--sparse=never"], false)];
    // Without a value it is always; what follows is no value.
    let holes = [(&["--sparse=always"] as &[&str], true), (&["--sparse"], true), (&["-S"], true)];
    for (number, (options, holes)) in cases.into_iter().chain(holes).enumerate() {
        for ranks in [1, 4] {
            let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]).options(options);
            let copied = copy_exactly(&job, &src, &dir.path().join(format!("{number}-{ranks}")));
            let (allocated, _) = occupied(&copied.root);
            let told = format!("{allocated} of {len} bytes: {}", copied.outcome.told());
            // Some blocks more for the lists of blocks.
            let most = needed(&src) + 16 * 4096;
            assert!(if holes { allocated <= most } else { allocated >= len }, "{told}, {most} needed");
        }
    }
}

#[test]
fn without_holes_every_block_of_the_copy_is_there() {
    let dir = temp();
    let src = holes(&dir.path().join("src"));
    for (ranks, direct) in [(1, "auto"), (4, "always"), (2, "never")] {
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--sparse=never"]);
        let job = job.options([format!("--direct={direct}")]);
        let copied = copy_exactly(&job, &src, &dir.path().join(direct));
        for (path, node) in oracle::walk(&copied.root).iter().filter(|(_, node)| node.kind == Kind::File) {
            File::open(raw(&copied.root, path)).unwrap().sync_all().unwrap();
            let allocated = allocated_bytes(&raw(&copied.root, path));
            let (name, told) = (oracle::show(path), copied.outcome.told());
            assert!(allocated >= node.size, "{name}: {allocated} of {} bytes, {told}", node.size);
        }
    }
}
