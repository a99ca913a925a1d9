//! --dry-run tells what a copy would do, entry by entry, and touches nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::copy::copy;
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::{Job, NOBODY, Outcome};
use crate::support::listing::{assert_untouched, listing, unread};
use crate::support::manifest::{self, Expect, How};
use crate::support::oracle;
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::told;
use crate::support::tree::{self, chmod, noise_file, set_times, temp, write};

/// Its lists are files without a name, which the kernel removes when the process ends.
#[test]
fn a_dry_run_that_is_killed_leaves_nothing_behind() {
    let fuse = need!(FuseMount::new(Faults { list_delay_ms: 20, ..Faults::default() }));
    let (dir, home) = (temp(), temp());
    tree::small_files(&fuse.backing().join("src"), 400, 20);
    let mut running = Job::alone()
        .rank_env("TMPDIR", home.path())
        .options(["--dry-run", "--checkpoint-interval", "1s"])
        .start([&fuse.path().join("src"), &dir.path().join("dst")]);
    let pid = running.launcher_pid();
    let has_list = || {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| to.starts_with(home.path()))
    };
    while running.goes_on() && !has_list() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(has_list(), "it has written nothing down");
    sys::kill(pid);
    running.wait();
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty() && !dir.path().join("dst").exists(), "{left:?}");
}

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--dry-run"])
}

/// A source of all kinds, with hard links, and beside it a destination that has some of it already.
fn scene(at: &Path) -> (PathBuf, PathBuf) {
    let (src, dst) = (at.join("src"), at.join("dst"));
    for name in ["new", "there", "newer", "dir/inner", "fresh-dir/f", "z-blocked"] {
        noise_file(&src.join(name), 100);
    }
    noise_file(&src.join("dir/large"), 300_000);
    noise_file(&src.join("large-new"), 300_000);
    fs::hard_link(src.join("new"), src.join("second-name")).unwrap();
    fs::hard_link(src.join("dir/large"), src.join("third-name")).unwrap();
    symlink("new", src.join("link")).unwrap();
    symlink("nowhere", src.join("link-there")).unwrap();
    mkfifo(&src.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    for name in ["there", "newer", "dir/inner", "dir/stranger"] {
        write(&dst.join(name), b"mine");
    }
    symlink("elsewhere", dst.join("link-there")).unwrap();
    tree::age(&src);
    for name in ["there", "dir/inner", "dir/stranger", "link-there", "dir", "newer", ""] {
        let time = (if name == "newer" { 1_700_000_000 } else { 1_500_000_000 }, 0);
        set_times(&dst.join(name), time, time);
    }
    (src, dst)
}

const LINES: [&str; 15] = [
    "merge dir",
    "replace dir/inner",
    "new dir/large",
    "new fifo",
    "new fresh-dir",
    "new fresh-dir/f",
    "new large-new",
    "new link",
    "replace link-there",
    "new new",
    "replace newer",
    "link second-name",
    "replace there",
    "link third-name",
    "new z-blocked",
];

/// The lines about entries, but for the top's own.
fn lines(outcome: &Outcome) -> Vec<&str> {
    let verbs = ["new ", "replace ", "kept ", "merge ", "link ", "FAIL "];
    let lines = outcome.stdout.lines().take_while(|line| verbs.iter().any(|verb| line.starts_with(verb)));
    let mut lines: Vec<_> = lines.filter(|line| !line.ends_with(" .")).collect();
    // Which of two names is linked to the other is left open.
    let swaps = [
        (["link dir/large", "new third-name"], ["new dir/large", "link third-name"]),
        (["link new", "new second-name"], ["new new", "link second-name"]),
    ];
    for (other_way, this_way) in swaps {
        let at = other_way.map(|other| lines.iter().position(|line| *line == other));
        if let [Some(first), Some(second)] = at {
            (lines[first], lines[second]) = (this_way[0], this_way[1]);
        }
    }
    lines
}

#[track_caller]
fn says_that_nothing_was_written(outcome: &Outcome) {
    let result = outcome.stdout.lines().find(|line| line.starts_with("Result:"));
    let result = result.unwrap_or_else(|| panic!("no result in {}", outcome.told()));
    assert!(result.contains("dry run, nothing was written"), "{result}");
}

#[test]
fn each_entry_has_its_line_and_nothing_is_touched() {
    for ranks in [1, 4] {
        let dir = temp();
        let (src, dst) = scene(dir.path());
        let before = listing(dir.path());
        let outcome = job(ranks).run([&src.join(""), &dst]);
        outcome.assert_code(0);
        assert_untouched(&before, &listing(dir.path()), &outcome.told());
        assert_eq!(lines(&outcome), LINES, "{}", outcome.told());
        says_that_nothing_was_written(&outcome);
    }
}

#[test]
fn a_destination_that_does_not_exist_is_not_made() {
    for ranks in [1, 4] {
        let dir = temp();
        let (src, _) = scene(dir.path());
        let before = listing(dir.path());
        let outcome = job(ranks).run([&src, &dir.path().join("absent")]);
        outcome.assert_code(0);
        assert_untouched(&before, &listing(dir.path()), &outcome.told());
        let new = LINES.map(|line| match line.split_once(' ').unwrap() {
            ("link", path) => format!("link {path}"),
            (_, path) => format!("new {path}"),
        });
        assert_eq!(lines(&outcome), new, "{}", outcome.told());
    }
}

#[test]
fn what_would_be_left_is_told_as_kept() {
    let dir = temp();
    let (src, dst) = scene(dir.path());
    let before = listing(dir.path());
    for (option, left) in
        [("--no-clobber", &["dir/inner", "link-there", "newer", "there"] as &[&str]), ("--update", &["newer"])]
    {
        let outcome = job(2).options([option]).run([&src.join(""), &dst]);
        outcome.assert_code(0);
        let kept: Vec<_> = lines(&outcome).into_iter().filter_map(|line| line.strip_prefix("kept ")).collect();
        assert_eq!(kept, left, "{}", outcome.told());
        assert_eq!(lines(&outcome).len(), LINES.len());
        assert_untouched(&before, &listing(dir.path()), &outcome.told());
    }
}

/// The numbers that both a dry run and the copy itself tell.
fn numbers(outcome: &Outcome) -> BTreeMap<&'static str, Value> {
    let told = told::json(outcome);
    let names = ["entries", "files", "dirs", "symlinks", "others", "hardlinks", "bytes", "errors", "kept", "excluded"];
    names.into_iter().map(|name| (name, told[name].clone())).collect()
}

#[test]
fn its_counts_and_its_manifest_are_those_of_the_copy_that_follows() {
    for (ranks, options) in [(1, &[] as &[&str]), (4, &["--exclude=fresh-dir", "-u"])] {
        let dir = temp();
        let (src, dst) = scene(dir.path());
        let kit = temp();
        let file = kit.path().join("dry.jsonl");
        let before = listing(dir.path());
        let job = job(ranks).options(options).options(["--json", "--manifest"]).options([&file]);
        let outcome = job.run([&src.join(""), &dst]);
        outcome.assert_code(0);
        // The summary is all that is on stdout: it parses.
        let dry = numbers(&outcome);
        assert_untouched(&before, &listing(dir.path()), &outcome.told());
        let expect = Expect { root: &src, ranks, digests: false, strangers: !options.is_empty() };
        let how = How { dry_run: true, unpreserved: &[] };
        let planned = manifest::check_as(&file, &expect, how).unwrap_or_else(|found| panic!("{found:#?}"));
        let real = Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--json"]).options(options);
        let copied = copy(&real, &[&src.join("")], &dst);
        copied.outcome.assert_code(0);
        assert_eq!(dry, numbers(&copied.outcome), "{}", copied.outcome.told());
        let paths =
            |manifest: &manifest::Manifest| manifest.entries.keys().map(|p| oracle::show(p)).collect::<Vec<_>>();
        assert_eq!(paths(&planned), paths(copied.manifest()));
    }
}

#[test]
fn what_would_fail_is_told_with_its_reason_and_is_the_exit_code_1() {
    need!(skip::root());
    let (dir, kit) = (temp(), temp());
    let (src, dst) = scene(dir.path());
    write(&dst.join("z-blocked/in-the-way"), b"mine");
    write(&dst.join("fresh-dir"), b"a file in the way");
    noise_file(&src.join("closed/f"), 10);
    chmod(&src.join("closed"), 0o700);
    oracle::walk(&dst).keys().for_each(|path| lchown(tree::raw(&dst, path), Some(NOBODY), Some(NOBODY)).unwrap());
    tree::age(&src);
    let before = listing(dir.path());
    for ranks in [1, 2] {
        let outcome = job(ranks).by_nobody(kit.path()).run([&src.join(""), &dst]);
        outcome.assert_code(1);
        let told: Vec<_> = lines(&outcome).into_iter().filter_map(|line| line.strip_prefix("FAIL ")).collect();
        let paths = ["closed", "fresh-dir", "z-blocked"];
        let about = |path: &str| told.iter().filter(|line| line.starts_with(&format!("{path}: "))).count();
        assert_eq!(paths.map(about), [1; 3], "{}", outcome.told());
        for path in paths {
            let below = format!("{path}/");
            let errors = outcome.lines_of_pcopy().into_iter().filter(|l| l.contains(path) && !l.contains(&below));
            assert_eq!(errors.count(), 1, "{path} on stderr: {}", outcome.told());
        }
        assert!(told.iter().any(|line| line.starts_with("closed: ") && line.contains("Permission denied")), "{told:?}");
        assert!(lines(&outcome).contains(&"new large-new"));
        assert_untouched(&unread(before.clone()), &unread(listing(dir.path())), &outcome.told());
    }
}

#[test]
fn quiet_and_json_have_no_lines_for_entries() {
    let dir = temp();
    let (src, dst) = scene(dir.path());
    let quiet = job(2).options(["-q"]).run([&src.join(""), &dst]);
    quiet.assert_code(0);
    assert_eq!((quiet.stdout.as_str(), quiet.lines_of_pcopy().len()), ("", 0), "{}", quiet.told());
    let json = job(2).options(["--json"]).run([&src.join(""), &dst]);
    json.assert_code(0);
    assert_eq!(told::json(&json)["entries"], LINES.len() + 1);
    assert!(lines(&json).is_empty());
}

#[test]
fn an_entry_has_one_line_whatever_its_name() {
    let dir = temp();
    let src = dir.path().join("src");
    for name in ["line\nbreak", "new x\nFAIL y", "\u{1b}[31m"] {
        noise_file(&src.join(name), 10);
    }
    noise_file(&tree::raw(&src, b"latin-\xe9"), 10);
    let outcome = job(2).run([&src, &dir.path().join("dst")]);
    outcome.assert_code(0);
    let told = lines(&outcome);
    assert_eq!(told.len(), 4, "{}", outcome.told());
    assert!(told.iter().all(|line| line.starts_with("new ")) && !outcome.stdout.contains('\u{1b}'), "{told:?}");
}
