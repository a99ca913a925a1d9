//! --include, --exclude, --exclude-from and -x select what rsync selects by the same words.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::support::copy::{assert_exact, copy, copy_exactly};
use crate::support::launch::Job;
use crate::support::mounts::{FileSystem, Mount, bind};
use crate::support::oracle::{self, Aspects};
use crate::support::parallel;
use crate::support::rsync::rsync;
use crate::support::skip::{self, need};
use crate::support::told;
use crate::support::tree::{self, noise_file, raw, temp, write};

/// A tree of names that patterns could get wrong.
fn named(root: &Path) -> PathBuf {
    let files = [
        "Makefile",
        "a.o",
        "b.c",
        "main.c",
        "x[1].c",
        "star*name",
        "back\\slash",
        "quest?",
        "-dash",
        "with space",
        "line\nbreak",
        "src/main.c",
        "src/main.o",
        "src/lib/a.o",
        "src/lib/b.c",
        "src/lib/deep/er/c.o",
        "src/lib/deep/er/d.c",
        "build/out/x.o",
        "build/log",
        "lib/build/y",
        "foo/bar",
        "x/foo/bar",
        "x/y/foo/bar/baz",
        "x/foo/barren",
        "foobar/f",
        ".snapshot/hourly.0/f",
        "src/.snapshot/g",
        "x/y/.snapshot/deep/h",
        ".snapshot-not",
        "x/snapshot",
        "x/tmp",
        "tmp/f",
        "src/tmp/g",
        ".hidden",
        "src/.hidden/f",
        "abc",
        "aXc",
        "a.c",
        "abbc",
        "x/abc",
        "file1",
        "file2",
        "fileA",
        "file10",
        "UPPER",
        "\u{e9}t\u{e9}",
    ];
    files.iter().for_each(|name| noise_file(&root.join(name), 20 + name.len()));
    noise_file(&raw(root, b"latin-\xe9.o"), 20);
    noise_file(&root.join("src/large.o"), 300_000);
    noise_file(&root.join("src/large.c"), 300_000);
    fs::hard_link(root.join("main.c"), root.join("src/linked.o")).unwrap();
    fs::create_dir_all(root.join("empty/tmp")).unwrap();
    symlink("build", root.join("src/tmp-link")).unwrap();
    symlink("foo", root.join("x/build")).unwrap();
    tree::age(root);
    root.to_path_buf()
}

/// Sets of options; `@` stands for the file that is written of the lines beside it.
const SETS: &[(&[&str], &str)] = &[
    (&["--exclude=*.o"], ""),
    (&["--exclude", "*.o", "--exclude", "*.c"], ""),
    (&["--exclude=/a.o", "--exclude=/main.c"], ""),
    (&["--exclude=/src"], ""),
    (&["--exclude=src/lib"], ""),
    (&["--exclude=/src/*.c"], ""),
    (&["--exclude=foo/bar"], ""),
    (&["--exclude=/foo/bar"], ""),
    (&["--exclude=foo/*"], ""),
    (&["--exclude=foo/**"], ""),
    (&["--exclude=foo/***"], ""),
    (&["--exclude=/x/***"], ""),
    (&["--exclude=x/**/bar"], ""),
    (&["--exclude=/x/**/bar"], ""),
    (&["--exclude=**/bar"], ""),
    (&["--exclude=/**/bar"], ""),
    (&["--exclude=**.o"], ""),
    (&["--exclude=lib**.c"], ""),
    (&["--exclude=**"], ""),
    (&["--exclude=*"], ""),
    (&["--exclude=/*"], ""),
    (&["--exclude=/*/"], ""),
    (&["--exclude=*/"], ""),
    (&["--exclude=tmp/"], ""),
    (&["--exclude=tmp"], ""),
    (&["--exclude=/tmp/"], ""),
    (&["--exclude=tmp-link/"], ""),
    (&["--exclude=build/"], ""),
    (&["--exclude=.snapshot"], ""),
    (&["--exclude=.snapshot/"], ""),
    (&["--exclude=.*"], ""),
    (&["--exclude=a?c"], ""),
    (&["--exclude=a??c"], ""),
    (&["--exclude=?"], ""),
    (&["--exclude=src?lib"], ""),
    (&["--exclude=/src/lib/deep?er"], ""),
    (&["--exclude=file[0-9]"], ""),
    (&["--exclude=file[!0-9]"], ""),
    (&["--exclude=file[^A]*"], ""),
    (&["--exclude=[A-Z]*"], ""),
    (&["--exclude=[[:upper:]]*"], ""),
    (&["--exclude=*[]\\[]*"], ""),
    (&["--exclude=x\\[1\\].*"], ""),
    (&["--exclude=star\\*name"], ""),
    (&["--exclude=quest\\?"], ""),
    (&["--exclude=back\\\\sl*"], ""),
    (&["--exclude=-dash"], ""),
    (&["--exclude=with space"], ""),
    (&["--exclude=line*"], ""),
    (&["--exclude=latin*"], ""),
    (&["--exclude=\u{e9}t\u{e9}"], ""),
    (&["--exclude=foo*r"], ""),
    // The order decides.
    (&["--include=main.o", "--exclude=*.o"], ""),
    (&["--exclude=*.o", "--include=main.o"], ""),
    (&["--include=*/", "--include=*.c", "--exclude=*"], ""),
    (&["--include=/src/", "--include=/src/lib/***", "--exclude=*"], ""),
    (&["--include=/src/lib/***", "--exclude=*"], ""),
    (&["--include=src/**", "--include=src", "--exclude=*"], ""),
    (&["--exclude=/src/lib/", "--include=**.c", "--exclude=*.o"], ""),
    (&["--include=.snapshot/hourly.0", "--exclude=.snapshot/*"], ""),
    (&["--exclude-from=@"], "*.o\n\n# *.c\n; Makefile\n/build/\n"),
    (&["--exclude-from", "@"], "+ main.o\n- *.o\n+ */\n+ *.c\n- *\n"),
    (&["--include=a.o", "--exclude-from=@", "--include=src/main.o"], "*.o"),
    (&["--exclude-from=@", "--exclude=*.c"], "+ main.c\n"),
    (&["--exclude-from=@", "--exclude-from=@"], "foo/\nwith space\n"),
];

#[test]
fn patterns_select_what_rsync_selects_by_them() {
    need!(skip::program("rsync"));
    let dir = temp();
    let src = named(&dir.path().join("src"));
    let all = oracle::walk(&src).len();
    let idle = Mutex::new(Vec::new());
    parallel::for_each(SETS, |number, (options, lines)| {
        let list = dir.path().join(format!("patterns{number}"));
        fs::write(&list, lines).unwrap();
        let options: Vec<_> = options.iter().map(|word| word.replace('@', list.to_str().unwrap())).collect();
        let (expected, dst) = (dir.path().join(format!("rsync{number}")), dir.path().join(format!("dst{number}")));
        let words = ["-aHAX".to_owned()].into_iter().chain(options.iter().cloned());
        rsync(words, &src, &expected);
        // With and without the slash a pattern is anchored at the same directory.
        let from = if number % 2 == 0 { src.clone() } else { src.join("") };
        let copied = copy(&Job::alone().options(&options), &[&from], &dst);
        copied.outcome.assert_code(0);
        let found = oracle::differences(&expected, &dst, Aspects::ALL);
        oracle::assert_none(&found, &format!("rsync and {}", copied.outcome.told()));
        let selected: Vec<_> = oracle::walk(&expected).into_keys().collect();
        assert_eq!(copied.manifest().entries.keys().cloned().collect::<Vec<_>>(), selected);
        if selected.len() == all {
            idle.lock().unwrap().push(options);
        }
        fs::remove_dir_all(&expected).unwrap();
        fs::remove_dir_all(&dst).unwrap();
    });
    // A table that excludes nothing would prove nothing.
    let idle = idle.into_inner().unwrap();
    assert!(idle.len() <= 4, "{idle:?}");
}

#[test]
fn filters_hold_for_any_number_of_ranks_and_excluded_entries_are_counted() {
    let dir = temp();
    let src = named(&dir.path().join("src"));
    for ranks in [1, 2, 4] {
        let job = Job::ranks(ranks).options(["--exclude=.snapshot/", "--exclude=*.o", "-k", "64K", "-b", "16K"]);
        let (text, json) = (dir.path().join(format!("np{ranks}")), dir.path().join(format!("json{ranks}")));
        let copied = copy(&job, &[&src], &text);
        copied.outcome.assert_code(0);
        let excluded =
            |path: &[u8]| path.ends_with(b".o") || path.split(|b| *b == b'/').any(|name| name == b".snapshot");
        let expected: Vec<_> = oracle::walk(&src).into_keys().filter(|path| !excluded(path)).collect();
        assert_eq!(oracle::walk(&text).into_keys().collect::<Vec<_>>(), expected, "{}", copied.outcome.told());
        // A directory counts once, whatever is in it.
        let count =
            oracle::walk(&src).keys().filter(|path| path.ends_with(b".o") || path.ends_with(b".snapshot")).count();
        let count = u64::try_from(count).unwrap();
        assert_eq!(told::count(&copied.outcome, "Excluded"), Some(count), "{}", copied.outcome.told());
        let machine = copy(&job.options(["--json"]), &[&src], &json);
        assert_eq!(told::json(&machine.outcome)["excluded"], count);
    }
    let machine = copy(&Job::alone().options(["--json"]), &[&src], &dir.path().join("all"));
    assert_eq!(told::json(&machine.outcome)["excluded"], 0);
}

#[test]
fn named_sources_are_never_excluded_and_patterns_are_anchored_at_each() {
    let dir = temp();
    for source in ["a", "b"] {
        ["x", "d/x", "a", "keep"].iter().for_each(|name| noise_file(&dir.path().join(source).join(name), 10));
    }
    noise_file(&dir.path().join("x"), 10);
    let dst = dir.path().join("dst");
    fs::create_dir(&dst).unwrap();
    let sources = ["a", "b", "x"].map(|name| dir.path().join(name));
    let job = Job::ranks(2).options(["--exclude=/x", "--exclude=a", "--exclude=b"]);
    let copied = copy(&job, &sources.each_ref().map(PathBuf::as_path), &dst);
    copied.outcome.assert_code(0);
    let there: Vec<_> = oracle::walk(&dst).into_keys().map(|path| oracle::show(&path)).collect();
    assert_eq!(there, ["(root)", "a", "a/d", "a/d/x", "a/keep", "b", "b/d", "b/d/x", "b/keep", "x"]);
    let file = dir.path().join("file");
    let copied = copy(&Job::alone().options(["--exclude=*"]), &[&dir.path().join("x")], &file);
    copied.outcome.assert_code(0);
    assert!(file.exists());
}

#[test]
fn another_file_system_below_the_source_is_made_as_a_directory_and_not_entered() {
    need!(skip::program("rsync"));
    let dir = temp();
    let src = dir.path().join("src");
    let (mount, other) = (need!(Mount::new(FileSystem::Tmpfs, 10)), need!(Mount::new(FileSystem::Tmpfs, 10)));
    ["f", "d/f", "z"].iter().for_each(|name| noise_file(&src.join(name), 100));
    [&mount, &other].iter().for_each(|mount| noise_file(&mount.path().join("inside/f"), 100));
    let points = ["d/mounted", "mounted-too"];
    let _first = need!(bind(mount.path(), &src.join(points[0])));
    let _second = need!(bind(other.path(), &src.join(points[1])));
    tree::age(&src);
    let expected = dir.path().join("expected");
    rsync(["-aHAXx"], &src, &expected);
    assert!(expected.join("d/mounted").is_dir() && !expected.join("d/mounted/inside").exists());
    for (ranks, option) in [(1, "-x"), (4, "--one-file-system")] {
        let copied = copy(&Job::ranks(ranks).options([option]), &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        oracle::assert_same(&expected, &copied.root, Aspects::ALL);
        for point in points {
            let notes = copied.outcome.lines_of_pcopy().into_iter().filter(|line| line.contains(point));
            assert_eq!(notes.count(), 1, "notes on {point}: {}", copied.outcome.told());
        }
        // A source that is such a file system itself is copied.
        let own = copy(&Job::ranks(ranks).options([option]), &[mount.path()], &dir.path().join(format!("own{ranks}")));
        own.outcome.assert_code(0);
        assert_exact(&own, mount.path());
    }
    copy_exactly(&Job::ranks(2), &src, &dir.path().join("all"));
}

#[test]
fn bad_patterns_and_missing_lists_are_refused_before_anything_is_written() {
    let dir = temp();
    let src = named(&dir.path().join("src"));
    let list = dir.path().join("list");
    write(&list, b"*.o\nfine\n[bad\n");
    let (missing, list) = (dir.path().join("no-such-list"), list.to_str().unwrap().to_owned());
    let before = oracle::walk(dir.path());
    let cases = [
        (vec!["--exclude=[a-".to_owned()], "[a-"),
        (vec!["--include".to_owned(), "x/[".to_owned()], "x/["),
        (vec![format!("--exclude-from={list}")], "[bad"),
        (vec!["--exclude-from".to_owned(), missing.to_str().unwrap().to_owned()], "no-such-list"),
        (vec![format!("--exclude-from={}", src.display())], "src"),
    ];
    for (options, named) in cases {
        for ranks in [1, 2] {
            let outcome = Job::ranks(ranks).options(&options).run([&src, &dir.path().join("dst")]);
            let line = outcome.assert_refused();
            assert!(line.contains(named), "{line}");
            assert_eq!(before, oracle::walk(dir.path()), "{}", outcome.told());
        }
    }
}
