//! `--reflink`: the copy shares the blocks of its source where the file system can, and is proved all the same (issue 5).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::support::copy::{copy, copy_exactly};
use crate::support::launch::Job;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle;
use crate::support::skip::need;
use crate::support::tree::{self, MIB, noise_file, temp, write};

/// Small files, files of one range and of many, one with holes, a name of two.
fn source(at: &Path) {
    tree::small_files(at, 2, 5);
    write(&at.join("empty"), b"");
    noise_file(&at.join("one-range"), 200_001);
    noise_file(&at.join("many-ranges"), 3 * MIB + 4097);
    noise_file(&at.join("whole-blocks"), 2 * MIB);
    let holes = OpenOptions::new().write(true).create(true).truncate(true).open(at.join("holes")).unwrap();
    holes.set_len(4 << 20).unwrap();
    holes.write_all_at(&[7; 100_000], 1 << 20).unwrap();
    fs::hard_link(at.join("one-range"), at.join("another-name")).unwrap();
    tree::age(at);
}

/// Whether blocks of the file are those of another one too, as e2fsprogs' filefrag tells it.
fn shares(file: &Path) -> bool {
    let told = Command::new("filefrag").arg("-v").arg(file).output().unwrap();
    assert!(told.status.success(), "filefrag {}: {}", file.display(), String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).unwrap().contains("shared")
}

fn sharing(root: &Path) -> Vec<&'static str> {
    let names = ["d000/f0001", "one-range", "another-name", "many-ranges", "whole-blocks", "holes"];
    names.into_iter().filter(|name| shares(&root.join(name))).collect()
}

fn blocks_are_shared_on(kind: FileSystem, size_mib: u64) {
    let mount = need!(Mount::new(kind, size_mib));
    let src = mount.path().join("src");
    source(&src);
    assert_eq!(sharing(&src), [""; 0], "before any copy");
    let large = ["one-range", "another-name", "many-ranges", "whole-blocks", "holes"];
    let all = [&["d000/f0001"][..], &large].concat();
    for (ranks, options, shared) in [
        (2, &["--reflink=never"][..], &[][..]),
        (3, &[], &large),
        (1, &["--reflink=auto", "--direct=never"], &large),
        (2, &["--no-digest"], &large),
        // holes are made of zeros: no blocks are shared
        (2, &["--reflink=auto", "--sparse"], &[]),
        (2, &["--reflink=always"], &all),
    ] {
        let dst = mount.path().join("dst");
        let job = Job::ranks(ranks).options(["-k", "1M", "-b", "64K"]).options(options);
        copy_exactly(&job, &src, &dst);
        // btrfs keeps a file of a few bytes beside its name, where there are no blocks
        let told: Vec<_> = sharing(&dst).into_iter().filter(|name| all.contains(name)).collect();
        let due: Vec<_> =
            shared.iter().copied().filter(|name| *name != "d000/f0001" || shares(&src.join(name))).collect();
        assert_eq!(told, due, "{kind:?} {options:?}");
        // What is written to the source afterwards does not show in the copy.
        if shared.contains(&"whole-blocks") {
            let before = fs::read(dst.join("whole-blocks")).unwrap();
            let file = OpenOptions::new().write(true).open(src.join("whole-blocks")).unwrap();
            file.write_all_at(b"changed", 70_000).unwrap();
            assert!(fs::read(dst.join("whole-blocks")).unwrap() == before, "the copy is its own file");
            tree::age(&src);
        }
        fs::remove_dir_all(&dst).unwrap();
    }
}

#[test]
fn blocks_are_shared_on_xfs() {
    blocks_are_shared_on(FileSystem::Xfs, 320);
}

#[test]
fn blocks_are_shared_on_btrfs() {
    blocks_are_shared_on(FileSystem::Btrfs, 200);
}

#[test]
fn where_blocks_cannot_be_shared_they_are_copied_or_it_is_an_error() {
    let mount = need!(Mount::new(FileSystem::Xfs, 320));
    let (src, dir) = (mount.path().join("src"), temp());
    source(&src);
    copy_exactly(&Job::ranks(2).options(["-k", "1M", "-b", "64K"]), &src, &dir.path().join("auto"));
    let dst = dir.path().join("always");
    let job = Job::ranks(2).options(["-k", "1M", "-b", "64K", "--reflink=always"]);
    let copied = copy(&job, &[&src], &dst);
    copied.outcome.assert_code(1);
    let manifest = copied.manifest();
    let files = oracle::walk(&src).values().filter(|node| node.kind == oracle::Kind::File && node.size > 0).count();
    assert_eq!(manifest.failed().count(), files, "every file that has data");
    for (path, entry) in manifest.failed() {
        let shown = String::from_utf8_lossy(path);
        assert_eq!(
            (&entry["error"]["op"], manifest.errno(&shown)),
            (&"clone".into(), i64::from(libc::EXDEV)),
            "{shown}"
        );
        assert!(!tree::raw(&dst, path).exists(), "{shown} is there");
    }
    assert!(copied.outcome.stderr.contains("clone destination"), "{}", copied.outcome.told());
    assert!(manifest.is_done(b"empty"));
}
