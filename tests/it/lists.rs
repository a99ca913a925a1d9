//! --files-from copies what a list names, with the directories on the way, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::copy::{Copied, copy};
use crate::support::launch::Job;
use crate::support::oracle::{self, Aspects, Kind, Tree};
use crate::support::rsync::rsync;
use crate::support::skip::{self, need};
use crate::support::tree::{self, chmod, noise_file, raw, temp, write};

/// A tree with odd names and directories of their own modes and times.
fn source(at: &Path) -> PathBuf {
    let src = at.join("src");
    let files = [
        "a/one",
        "a/two",
        "a/b/three",
        "a/b/c/four",
        "d/five",
        "d/six",
        "d/sub/seven",
        "top",
        " lead",
        "line\nbreak",
        "-x",
        "e/f/g/eight",
    ];
    files.iter().for_each(|name| noise_file(&src.join(name), 100 + name.len()));
    noise_file(&raw(&src, b"e/latin-\xe9"), 20);
    noise_file(&src.join("e/large"), 300_000);
    fs::create_dir(src.join("a/empty")).unwrap();
    symlink("one", src.join("a/link")).unwrap();
    for (number, dir) in ["a", "a/b", "a/b/c", "d", "e", "e/f"].into_iter().enumerate() {
        chmod(&src.join(dir), [0o711, 0o750, 0o701][number % 3]);
    }
    tree::age(&src);
    src
}

/// What of `tree` a list of these entries selects.
fn selected(tree: &Tree, listed: &[&[u8]]) -> BTreeSet<Vec<u8>> {
    let holds =
        |dir: &[u8], path: &[u8]| dir.is_empty() || path.starts_with(dir) && path[dir.len()..].starts_with(b"/");
    let wanted = |path: &&Vec<u8>| listed.iter().any(|l| path == l || holds(l, path) || holds(path, l));
    tree.keys().filter(wanted).cloned().collect()
}

/// The copy holds exactly what the list selects, as it is in the source, and the manifest says so.
#[track_caller]
fn holds_exactly(copied: &Copied, src: &Path, listed: &[&[u8]]) {
    let mut before = oracle::walk(src);
    let wanted = selected(&before, listed);
    before.retain(|path, _| wanted.contains(path));
    let found = oracle::compare(&before, &oracle::walk(&copied.root), Aspects { hard_links: false, ..Aspects::ALL });
    oracle::assert_none(&found, &copied.outcome.told());
    for (path, _) in before.iter().filter(|(_, node)| node.kind == Kind::File) {
        assert!(oracle::same_content(src, &copied.root, path), "{}", oracle::show(path));
    }
    let done: BTreeSet<_> =
        copied.manifest().entries.keys().filter(|path| copied.manifest().is_done(path)).cloned().collect();
    assert_eq!(done, wanted, "{}", copied.outcome.told());
}

fn job(ranks: usize, option: &str, list: &Path) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]).options([option.as_ref(), list.as_os_str()])
}

#[test]
fn files_and_directories_of_the_list_are_copied_with_the_directories_on_the_way() {
    let dir = temp();
    let src = source(dir.path());
    let list = dir.path().join("list");
    // Twice, below a directory that is listed too, with ./ before and slashes behind, empty lines.
    let lines = [
        "e/f/g/eight",
        "",
        "d/",
        "./a/b/three",
        "d/sub/seven",
        "a/empty",
        "top",
        "a/link",
        " lead",
        "-x",
        "./top",
        "a/b/three",
        "",
        "e/large",
    ];
    let listed: [&[u8]; 9] =
        [b"e/f/g/eight", b"d", b"a/b/three", b"a/empty", b"top", b"a/link", b" lead", b"-x", b"e/large"];
    let text = [lines.join("\n").as_bytes(), b"\ne/latin-\xe9"].concat();
    let listed = [&listed[..], &[b"e/latin-\xe9"]].concat();
    for (ranks, option) in [(1, "--files-from"), (4, "-i"), (1, "--input"), (4, "--files-from")] {
        // The last line may end or not.
        let end: &[u8] = if ranks == 1 { b"" } else { b"\n" };
        fs::write(&list, [&text, end].concat()).unwrap();
        let dst = dir.path().join(format!("np{ranks}{option}"));
        let from = if option == "-i" { src.join("") } else { src.clone() };
        let copied = copy(&job(ranks, option, &list), &[&from], &dst);
        copied.outcome.assert_code(0);
        holds_exactly(&copied, &src, &listed);
    }
    // rsync agrees, but for the top, which it does not count as on the way.
    need!(skip::program("rsync"));
    let (expected, option) = (dir.path().join("expected"), format!("--files-from={}", list.display()));
    rsync(["-aHAXr", &option], &src, &expected);
    let found = oracle::differences(&expected, &dir.path().join("np4-i"), Aspects::ALL);
    let below: Vec<_> = found.into_iter().filter(|words| !words.starts_with("(root): ")).collect();
    oracle::assert_none(&below, "rsync and pcopy");
}

#[test]
fn names_that_end_with_nul_may_hold_line_breaks() {
    let dir = temp();
    let src = source(dir.path());
    let list = dir.path().join("list");
    for (ranks, option, end) in [(1, "-0", ""), (4, "--from0", "\0")] {
        fs::write(&list, format!("line\nbreak\0\0a/b\0./top{end}")).unwrap();
        let job = job(ranks, "--files-from", &list).options([option]);
        let copied = copy(&job, &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        holds_exactly(&copied, &src, &[b"line\nbreak", b"a/b", b"top"]);
    }
}

#[test]
fn a_dash_reads_the_list_from_standard_input() {
    let dir = temp();
    let src = source(dir.path());
    let list = dir.path().join("list");
    // Longer than a pipe's buffer.
    let names: Vec<_> = (0..4000).map(|n| format!("many/file-with-a-long-name-{n:05}")).collect();
    names.iter().step_by(2).for_each(|name| write(&src.join(name), b""));
    let listed: Vec<_> = names.iter().step_by(4).map(String::as_str).collect();
    fs::write(&list, listed.join("\n")).unwrap();
    let wanted: Vec<_> = listed.iter().map(|name| name.as_bytes()).collect();
    for job in [Job::alone(), Job::ranks(1), Job::ranks(4)] {
        let (number, option) =
            (fs::read_dir(dir.path()).unwrap().count(), if job.rank_count() == 4 { "-i" } else { "--files-from" });
        let job = job.options([option, "-"]).stdin(&list);
        let copied = copy(&job, &[&src], &dir.path().join(format!("dst{number}")));
        copied.outcome.assert_code(0);
        holds_exactly(&copied, &src, &wanted);
    }
}

#[test]
fn absolute_paths_below_the_source_count_from_its_top() {
    let dir = temp();
    let src = source(dir.path());
    let list = dir.path().join("list");
    fs::write(&list, format!("{0}/a/b/three\nd/five\n{0}/e/f\n", src.display())).unwrap();
    for ranks in [1, 4] {
        let copied = copy(&job(ranks, "--files-from", &list), &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        holds_exactly(&copied, &src, &[b"a/b/three", b"d/five", b"e/f"]);
    }
}

#[test]
fn entries_that_do_not_exist_fail_alone() {
    let dir = temp();
    let src = source(dir.path());
    let list = dir.path().join("list");
    fs::write(&list, "a/one\nno-such\na/missing\nno/such/dir/file\nd\n").unwrap();
    for ranks in [1, 4] {
        let copied = copy(&job(ranks, "--files-from", &list), &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(1);
        let failed = copied.manifest().failed().map(|(path, entry)| {
            let error = &entry["error"];
            (oracle::show(path), error["op"].as_str().unwrap().to_owned(), error["errno"].as_i64().unwrap())
        });
        let expected = ["a/missing", "no-such", "no/such/dir/file"].map(|path| (path.to_owned(), "open".to_owned(), 2));
        assert_eq!(failed.collect::<Vec<_>>(), expected, "{}", copied.outcome.told());
        assert!(!copied.root.join("no").exists());
        holds_exactly(&copied, &src, &[b"a/one", b"d"]);
    }
}

#[test]
fn nothing_is_reached_through_links_that_lead_out_of_the_source() {
    let dir = temp();
    let src = source(dir.path());
    noise_file(&dir.path().join("outside/secret"), 100);
    symlink("../outside", src.join("out")).unwrap();
    symlink("a", src.join("in")).unwrap();
    let list = dir.path().join("list");
    fs::write(&list, "out/secret\nin/one\ntop\n").unwrap();
    for ranks in [1, 4] {
        let copied = copy(&job(ranks, "-i", &list), &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(1);
        assert!(!copied.manifest().is_done(b"out/secret"), "{}", copied.outcome.told());
        assert!(!copied.root.join("out").is_dir(), "{}", copied.outcome.told());
        assert!(copied.manifest().is_done(b"top"));
    }
}

/// Refused with a line that holds `named`, and nothing was written.
#[track_caller]
fn is_refused(at: &Path, options: &[&str], operands: &[&str], named: &str) {
    let before = oracle::walk(at);
    for job in [Job::alone(), Job::ranks(4)] {
        let outcome = job.options(options).run(operands.iter().map(|name| at.join(name)));
        let line = outcome.assert_refused();
        assert!(line.contains(named), "{named} is not in {line}");
        oracle::assert_none(&oracle::compare(&before, &oracle::walk(at), Aspects::ALL), &outcome.told());
    }
}

#[test]
fn entries_that_lead_out_of_the_source_are_refused_by_name() {
    let dir = temp();
    let src = source(dir.path());
    noise_file(&dir.path().join("src-too/file"), 10);
    let list = dir.path().join("list");
    let beside = format!("{}-too/file", src.display());
    for entry in ["../src-too/file", "a/../top", "a/b/..", "..", "./../x", "/etc/passwd", &beside] {
        fs::write(&list, format!("top\n{entry}\nd/five\n")).unwrap();
        is_refused(dir.path(), &["--files-from", list.to_str().unwrap()], &["src", "dst"], entry);
    }
    // Two dots within a name are a name.
    noise_file(&src.join("..dots../a..b"), 10);
    fs::write(&list, "..dots../a..b\n").unwrap();
    let copied = copy(&job(1, "-i", &list), &[&src], &dir.path().join("dst"));
    copied.outcome.assert_code(0);
    holds_exactly(&copied, &src, &[b"..dots../a..b"]);
}

#[test]
fn a_list_needs_to_exist_and_to_have_one_source_that_is_a_directory() {
    let dir = temp();
    source(dir.path());
    write(&dir.path().join("list"), b"top\n");
    for name in ["other/file", "dst/before", "file"] {
        noise_file(&dir.path().join(name), 10);
    }
    let list = dir.path().join("list");
    let list = list.to_str().unwrap();
    is_refused(dir.path(), &["--files-from", &list.replace("list", "no-list")], &["src", "new"], "no-list");
    is_refused(dir.path(), &["-i", list], &["src", "other", "dst"], "");
    is_refused(dir.path(), &["-i", list], &["file", "new"], "");
}
