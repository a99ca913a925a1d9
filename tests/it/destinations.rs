//! Where a copy lands, and what is replaced there (issue 2, item 7).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::copy::{Copied, assert_exact, copy};
use crate::support::launch::Job;
use crate::support::oracle::{self, Aspects};
use crate::support::tree::{self, KIB, chmod, noise, noise_file, temp, write};

fn source(at: &Path) -> std::path::PathBuf {
    tree::odd_tree(at, 64 * KIB, 16 * KIB)
}

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

/// Copies `src`, which must come out at `landing`, whole.
#[track_caller]
fn lands(job: &Job, src: &Path, dst: &Path, landing: &Path) -> Copied {
    let copied = copy(job, &[src], dst);
    copied.outcome.assert_code(0);
    assert_eq!(copied.root, landing, "the rules as the tests have them");
    assert_exact(&copied, src);
    copied
}

#[test]
fn a_missing_destination_becomes_the_copy() {
    for ranks in [1, 2, 4] {
        let dir = temp();
        let src = source(&dir.path().join("src"));
        let dst = dir.path().join("dst");
        lands(&job(ranks), &src, &dst, &dst);
    }
}

#[test]
fn a_copy_into_a_directory_lands_under_the_sources_name() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let dst = dir.path().join("dst");
    noise_file(&dst.join("before"), 10);
    symlink("dst", dir.path().join("link")).unwrap();
    lands(&job(2), &src, &dst, &dst.join("src"));
    assert!(dst.join("before").exists());
    assert!(!dst.join(".pcopy").exists(), "the manifest is in the copy, not beside it");
    fs::remove_dir_all(dst.join("src")).unwrap();
    let link = dir.path().join("link");
    lands(&job(2), &src, &link, &link.join("src"));
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn with_a_trailing_slash_the_contents_go_straight_into_the_directory() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let slashed = dir.path().join("src/");
    let (fresh, there) = (dir.path().join("fresh"), dir.path().join("there"));
    fs::create_dir(&there).unwrap();
    symlink("src", dir.path().join("link")).unwrap();
    lands(&job(2), &slashed, &fresh, &fresh);
    lands(&job(2), &slashed, &there, &there);
    assert!(!there.join("src").exists());
    let through = dir.path().join("through");
    let copied = copy(&job(2), &[&dir.path().join("link/")], &through);
    copied.outcome.assert_code(0);
    assert_exact(&copied, &src);
}

#[test]
fn several_sources_land_side_by_side_even_where_one_name_begins_another() {
    let dir = temp();
    let dst = dir.path().join("dst");
    fs::create_dir(&dst).unwrap();
    let sources = ["run", "run2", "ru", "file"].map(|name| dir.path().join(name));
    for (number, src) in sources[..3].iter().enumerate() {
        tree::small_files(src, 2, 10 + number);
    }
    noise_file(&sources[3], 100_000);
    for ranks in [1, 4] {
        let operands = sources.each_ref().map(|src| src.as_path());
        let copied = copy(&job(ranks), &operands, &dst);
        copied.outcome.assert_code(0);
        for src in &sources {
            oracle::assert_same(src, &dst.join(src.file_name().unwrap()), Aspects::ALL);
        }
        assert!(copied.manifest().is_done(b"run2/d000/f0003"));
        assert!(copied.manifest().is_done(b"file"));
        assert!(dst.join(".pcopy/manifest.jsonl").exists());
        fs::remove_dir_all(&dst).unwrap();
        fs::create_dir(&dst).unwrap();
    }
}

#[test]
fn a_single_file_is_copied_to_a_file_or_into_a_directory_and_leaves_no_records() {
    let dir = temp();
    let src = dir.path().join("src.bin");
    noise_file(&src, 200_001);
    chmod(&src, 0o640);
    tree::age(&src);
    let (new, old, into) = (dir.path().join("new"), dir.path().join("old"), dir.path().join("d"));
    write(&old, &noise(500_000, 3));
    fs::create_dir(&into).unwrap();
    for ranks in [1, 2] {
        for (dst, landing) in [(&new, &new), (&old, &old), (&into, &into.join("src.bin"))] {
            let copied = copy(&job(ranks), &[&src], dst);
            copied.outcome.assert_code(0);
            oracle::assert_same(&src, landing, Aspects::ALL);
        }
        assert!(!dir.path().join(".pcopy").exists() && !into.join(".pcopy").exists());
        fs::remove_file(&new).unwrap();
    }
    let left = oracle::walk(dir.path()).len();
    assert_eq!(left, 5, "a temporary file is left: {:?}", oracle::walk(dir.path()).keys());
}

#[test]
fn a_single_file_with_a_manifest_elsewhere_is_in_it() {
    let dir = temp();
    let src = dir.path().join("src.bin");
    noise_file(&src, 200_001);
    let file = dir.path().join("m.jsonl");
    let job = job(2).options(["--manifest".as_ref(), file.as_os_str()]);
    let copied = copy(&job, &[&src], &dir.path().join("new"));
    copied.outcome.assert_code(0);
    assert_eq!(copied.manifest().trailer["files"], 1);
    assert!(copied.manifest().is_done(b"new"), "{:?}", copied.manifest());
    assert!(!dir.path().join(".pcopy").exists());
}

#[test]
fn a_symbolic_link_as_the_source_is_copied_as_a_link_or_as_what_it_leads_to() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let link = dir.path().join("link");
    symlink("src", &link).unwrap();
    let dst = dir.path().join("dst");
    let copied = copy(&job(2), &[&link], &dst);
    copied.outcome.assert_code(0);
    if dst.symlink_metadata().unwrap().is_symlink() {
        assert_eq!(fs::read_link(&dst).unwrap(), Path::new("src"));
    } else {
        assert_exact(&copied, &src);
    }
}

#[test]
fn what_stood_at_the_destination_is_replaced_and_nothing_of_it_shows_through() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let dst = dir.path().join("dst");
    for (path, node) in oracle::walk(&src) {
        if node.kind == oracle::Kind::File {
            // Longer, shorter, and read-only, with other contents.
            let len = usize::try_from(node.size).unwrap();
            let len = if len.is_multiple_of(2) { len + 70_000 } else { len / 2 };
            write(&tree::raw(&dst, &path), &noise(len, 99));
            chmod(&tree::raw(&dst, &path), 0o400);
        }
    }
    symlink("/elsewhere", dst.join("link-to-dir")).unwrap();
    write(&dst.join("dangling"), b"a file where a link comes");
    for ranks in [1, 2, 4] {
        let copied = copy(&job(ranks), &[&dir.path().join("src/")], &dst);
        copied.outcome.assert_code(0);
        assert_exact(&copied, &src);
    }
}

#[test]
fn entries_that_only_the_destination_has_stay() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let dst = dir.path().join("dst");
    noise_file(&dst.join("sizes/stranger"), 10);
    noise_file(&dst.join("strange/r"), 10);
    let copied = copy(&job(2), &[&dir.path().join("src/")], &dst);
    copied.outcome.assert_code(0);
    let found = oracle::differences(&src, &dst, Aspects::ALL);
    let told = ["sizes/stranger: not", "strange: not", "strange/r: not"];
    let expected = told.map(|path| format!("{path} in the source"));
    assert_eq!(found, expected);
}

#[test]
fn other_names_of_a_replaced_file_and_targets_of_links_are_left_alone() {
    let dir = temp();
    let src = dir.path().join("src");
    let (dst, outside) = (dir.path().join("dst"), dir.path().join("outside"));
    for name in ["linked", "pointed", "large-pointed"] {
        let len = if name == "large-pointed" { 300_000 } else { 100 };
        noise_file(&src.join(name), len);
        write(&outside.join(name), b"not yours");
    }
    noise_file(&src.join("dir/inner"), 10);
    fs::create_dir(outside.join("dir")).unwrap();
    fs::create_dir(&dst).unwrap();
    fs::hard_link(outside.join("linked"), dst.join("linked")).unwrap();
    for name in ["pointed", "large-pointed", "dir"] {
        symlink(outside.join(name), dst.join(name)).unwrap();
    }
    let before = oracle::walk(&outside);
    let copied = copy(&job(2), &[&dir.path().join("src/")], &dst);
    oracle::assert_none(&oracle::compare(&before, &oracle::walk(&outside), Aspects::ALL), &copied.outcome.told());
    for name in ["linked", "pointed", "large-pointed"] {
        assert_eq!(fs::read(outside.join(name)).unwrap(), b"not yours", "{name}");
    }
    // A directory's link may be replaced or refused; it isn't followed.
    let failed = copied.manifest().failed().count();
    copied.outcome.assert_code(i32::from(failed > 0));
    assert!(copied.manifest().is_done(b"large-pointed"), "{}", copied.outcome.told());
}

#[test]
fn a_directory_in_a_files_place_and_a_file_in_a_directorys_are_errors_of_those_entries_only() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let dst = dir.path().join("dst");
    noise_file(&dst.join("mode-600/in-the-way"), 10);
    write(&dst.join("deep"), b"in the way");
    let copied = copy(&job(2), &[&dir.path().join("src/")], &dst);
    copied.outcome.assert_code(1);
    let manifest = copied.manifest();
    assert!(manifest.errno("mode-600") > 0);
    let failed: Vec<_> = manifest.failed().map(|(path, _)| oracle::show(path)).collect();
    let meant = |path: &String| path == "mode-600" || path.starts_with("deep");
    assert!(failed.iter().all(meant), "{failed:?}");
    assert!(failed.iter().any(|path| path.starts_with("deep")), "{failed:?}");
    assert!(dst.join("mode-600/in-the-way").exists());
    let found = oracle::differences(&src, &dst, Aspects::ALL);
    let silent: Vec<_> = found.into_iter().filter(|words| !meant(words) && !words.starts_with("mode-600")).collect();
    oracle::assert_none(&silent, &copied.outcome.told());
}

#[test]
fn the_records_of_an_earlier_copy_are_no_part_of_a_copy_of_it_and_that_is_said() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    copy(&job(2), &[&src], &first).outcome.assert_code(0);
    write(&first.join(".pcopy/mine"), b"a file that a copy would take along");
    let copied = copy(&job(2), &[&first], &second);
    copied.outcome.assert_code(0).assert_says(".pcopy");
    assert_exact(&copied, &src);
    assert!(!second.join(".pcopy/mine").exists());
}
