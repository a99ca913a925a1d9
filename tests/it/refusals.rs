//! What can only be a mistake is refused with one line and exit code 2, before anything is
//! written: everything around is listed before and after (issue 2, item 7).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::Job;
use crate::support::mounts;
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, need};
use crate::support::tree::{self, chmod, noise_file, temp};

/// A directory with two small sources `a` and `b`, a file `f`, and a directory `d`.
fn scene() -> TempDir {
    let dir = temp();
    for path in ["a/one", "a/sub/two", "b/one", "f", "d/old"] {
        noise_file(&dir.path().join(path), 100);
    }
    dir
}

/// Runs in `at` (operands are relative to it) and demands a refusal that touched nothing.
#[track_caller]
fn is_refused(job: &Job, at: &Path, operands: &[&str]) -> String {
    let before = oracle::walk(at);
    // Joined as text: a trailing slash, a dot and `..` stay as they are written.
    let full = operands.iter().map(|name| format!("{}/{name}", at.display()));
    let outcome = job.run(full);
    outcome.assert_code(2);
    let lines = outcome.lines_of_pcopy();
    assert_eq!(lines.len(), 1, "lines of pcopy in {}", outcome.told());
    assert_eq!(outcome.stdout, "", "stdout of {}", outcome.told());
    let found = oracle::compare(&before, &oracle::walk(at), Aspects::ALL);
    oracle::assert_none(&found, &outcome.told());
    lines[0].to_owned()
}

#[track_caller]
fn all_are_refused(at: &Path, cases: &[&[&str]]) {
    for operands in cases {
        is_refused(&Job::alone(), at, operands);
    }
}

#[test]
fn a_missing_source_is_refused_also_one_among_several() {
    let dir = scene();
    for job in [Job::alone(), Job::ranks(2), Job::ranks(4)] {
        let line = is_refused(&job, dir.path(), &["missing", "new"]);
        assert!(line.contains("missing"), "{line}");
    }
    all_are_refused(
        dir.path(),
        &[&["missing", "d"], &["a", "missing", "d"], &["f", "a", "missing/", "d"], &["f/x", "d"]],
    );
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    all_are_refused(dir.path(), &[&["dangling/", "new"]]);
}

#[test]
fn several_sources_need_a_directory_that_exists() {
    let dir = scene();
    all_are_refused(dir.path(), &[&["a", "b", "new"], &["a", "b", "f"], &["f", "a/one", "b/one"]]);
    is_refused(&Job::ranks(4), dir.path(), &["a", "b", "new"]);
}

#[test]
fn a_directory_onto_a_file_is_refused() {
    let dir = scene();
    symlink("f", dir.path().join("link-to-file")).unwrap();
    all_are_refused(dir.path(), &[&["a", "f"], &["a/", "f"], &["a", "link-to-file"]]);
}

#[test]
fn a_dangling_link_and_a_special_file_are_no_destinations() {
    let dir = scene();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
    all_are_refused(dir.path(), &[&["a", "dangling"], &["f", "dangling"], &["a", "fifo"], &["f", "fifo"]]);
}

#[test]
fn two_sources_for_one_name_are_refused() {
    let dir = scene();
    noise_file(&dir.path().join("x/a/other"), 10);
    all_are_refused(dir.path(), &[&["a", "x/a", "d"], &["a/one", "b/one", "d"], &["a", "a", "d"], &["a", "./a", "d"]]);
    is_refused(&Job::ranks(2), dir.path(), &["a", "b", "x/a", "d"]);
}

#[test]
fn a_destination_inside_a_source_is_refused_also_through_links() {
    let dir = scene();
    symlink("a/sub", dir.path().join("into")).unwrap();
    symlink("a", dir.path().join("alias")).unwrap();
    all_are_refused(
        dir.path(),
        &[
            &["a", "a/sub"],
            &["a", "a/new"],
            &["a", "a/sub/new"],
            &["a/", "a/sub"],
            &["a", "into"],
            &["a", "into/new"],
            &["a/", "alias/sub"],
            &["alias/", "a/new"],
            &["a", "b/../a/new"],
            &["b", "a", "a/sub"],
            &["./a/.", "a/new"],
        ],
    );
    is_refused(&Job::ranks(4), dir.path(), &["a", "a/sub/new"]);
}

#[test]
fn the_same_directory_or_file_as_both_is_refused_also_through_links() {
    let dir = scene();
    symlink("a", dir.path().join("alias")).unwrap();
    symlink("f", dir.path().join("alias-of-f")).unwrap();
    fs::hard_link(dir.path().join("f"), dir.path().join("second-name")).unwrap();
    all_are_refused(
        dir.path(),
        &[
            &["a", "a"],
            &["a/", "a"],
            &["a/", "alias"],
            &["alias/", "a"],
            &["a", "."],
            &["a", "b/.."],
            &["f", "f"],
            &["f", "."],
            &["f", "alias-of-f"],
            &["f", "second-name"],
            &["a", "f", "."],
            &["a/sub", "a"],
        ],
    );
}

#[test]
fn bind_mounts_do_not_hide_that_source_and_destination_are_the_same() {
    let dir = scene();
    let bound = dir.path().join("bound");
    let _bind = need!(mounts::bind(&dir.path().join("a"), &bound));
    all_are_refused(
        dir.path(),
        &[
            &["a/", "bound"],
            &["bound/", "a"],
            &["a", "bound/sub"],
            &["a", "bound/new"],
            &["bound", "a/sub/new"],
            &["a/one", "bound/one"],
        ],
    );
}

#[test]
fn two_mounts_of_one_file_system_do_not_hide_it_either() {
    let fuse = need!(FuseMount::new(Faults::default()));
    let (below, above) = (fuse.backing(), fuse.path());
    noise_file(&below.join("src/sub/dst/there"), 100);
    noise_file(&below.join("src/file"), 100);
    fs::create_dir(below.join("src/empty")).unwrap();
    tree::age(below);
    let roots = [(below, above), (above, below)];
    for (one, other) in roots {
        for (src, dst) in [("src/", "src"), ("src/", "src/new"), ("src", "src/sub/dst"), ("src/", "src/sub/dst")] {
            for ranks in [1, 2] {
                // for so long the mount may show what the run before has removed
                thread::sleep(Duration::from_millis(1100));
                let before = oracle::walk(below);
                let outcome = Job::ranks(ranks).run([one.join(src), other.join(dst)]);
                let line = outcome.assert_refused();
                assert!(line.contains("mount") || line.contains("overwritten"), "{line}");
                // a directory that was made and removed again has changed the time of the one that it was in
                let was_there = src == "src/" && dst != "src/new";
                let aspects = Aspects { mtime: was_there, ..Aspects::ALL };
                let changed = oracle::compare(&before, &oracle::walk(below), aspects);
                oracle::assert_none(&changed, &outcome.told());
            }
        }
    }
}

/// The copy's root, or a directory that it is in, is mounted in the source, under another name and with other numbers, and
/// has its state elsewhere.
#[test]
fn a_copy_that_is_mounted_in_its_source_is_refused() {
    let dir = temp();
    let fuse = need!(FuseMount::new(Faults::default()));
    let (src, dst) = (dir.path().join("src"), fuse.backing().join("copy"));
    noise_file(&src.join("file"), 100);
    noise_file(&dst.join("old/there"), 100);
    tree::age(&dst);
    for (number, from) in ["copy", ""].into_iter().enumerate() {
        let at = src.join("sub/inner");
        let bound = need!(mounts::bind(&fuse.path().join(from), &at));
        let job = |more: &[&str]| {
            let state = dir.path().join(format!("state-{number}"));
            let job = Job::ranks(2).options([OsStr::new("--state-dir"), state.as_os_str()]);
            job.options(more).run([src.join(""), dst.clone()])
        };
        let before = oracle::walk(&dst);
        let outcome = job(&[]);
        assert!(outcome.assert_refused().contains("inside its source"), "{}", outcome.told());
        oracle::assert_none(&oracle::compare(&before, &oracle::walk(&dst), Aspects::ALL), &outcome.told());
        // What is not entered does no harm.
        job(&["--exclude=/sub/inner"]).assert_code(0);
        job(&["--one-file-system", "--restart"]).assert_code(0);
        assert!(dst.join("file").exists() && dst.join("old/there").exists() && !dst.join("sub/inner/old").exists());
        drop(bound);
        fs::remove_dir_all(&dst).unwrap();
        noise_file(&dst.join("old/there"), 100);
        tree::age(&dst);
        // for so long the mount may show what was removed
        thread::sleep(Duration::from_millis(1100));
    }
}

#[test]
fn a_destination_without_a_parent_is_refused() {
    let dir = scene();
    all_are_refused(dir.path(), &[&["a", "no/new"], &["f", "no/such/new"], &["a", "f/new"], &["f", "no/new/"]]);
}

#[test]
fn what_an_ordinary_user_can_neither_read_nor_write_is_refused() {
    need!(skip::root());
    let (dir, kit) = (scene(), temp());
    for name in ["closed", "closed-file"] {
        noise_file(&dir.path().join(name).join("x"), 10);
    }
    chmod(&dir.path().join("closed-file/x"), 0);
    chmod(&dir.path().join("closed"), 0);
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    chmod(&open, 0o777);
    for job in [Job::alone(), Job::ranks(2)] {
        let job = job.by_nobody(kit.path());
        // Unreadable sources, then places where nothing may be made.
        for operands in [
            ["closed", "open/new"],
            ["closed-file/x", "open/new"],
            ["closed/x", "open/new"],
            ["a", "new"],
            ["a", "d"],
            ["a/", "d"],
            ["f", "d"],
        ] {
            is_refused(&job, dir.path(), &operands);
        }
    }
}

#[test]
fn a_refusal_names_what_it_refuses_in_one_line_whatever_the_name() {
    let dir = temp();
    let odd = OsStr::new("missing\n\u{1b}[31m");
    let outcome = Job::ranks(2).run([dir.path().join(odd), dir.path().join("new")]);
    outcome.assert_code(2);
    assert_eq!(outcome.lines_of_pcopy().len(), 1, "{}", outcome.told());
    assert!(!outcome.stderr.contains('\u{1b}'), "{}", outcome.told());
    assert!(outcome.stderr.contains("missing"), "{}", outcome.told());
}

#[test]
fn a_manifest_replaces_nothing_but_an_older_manifest() {
    let dir = scene();
    for file in ["a/one", "a/new", "f", "d", "d/a", "new"] {
        let job = Job::ranks(2).options([OsStr::new("--manifest"), dir.path().join(file).as_os_str()]);
        is_refused(&job, dir.path(), if file == "new" { &["f", "new"] } else { &["a", "d"] });
    }
    let job = Job::alone().options(["--manifest", "/dev/null"]);
    is_refused(&job, dir.path(), &["a", "d"]);
    let file = dir.path().join("m.jsonl");
    let job = Job::alone().options([OsStr::new("--manifest"), file.as_os_str()]);
    for _ in 0..2 {
        job.run([dir.path().join("a/"), dir.path().join("b/")]).assert_code(0);
    }
    assert!(dir.path().join("m.jsonl.previous").exists());
}

#[test]
fn a_source_that_the_copy_would_overwrite_is_refused() {
    let dir = scene();
    noise_file(&dir.path().join("d/sub/sub/x"), 100);
    noise_file(&dir.path().join("other/.pcopy/x"), 100);
    all_are_refused(dir.path(), &[&["d/sub/", "d"], &["a", "other/.pcopy", "d"]]);
}
