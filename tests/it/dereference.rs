//! Symbolic links: copied as links, or followed (-L), or followed where they are named (-H); loops end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::copy::{Copied, assert_exact, copy, copy_exactly};
use crate::support::launch::Job;
use crate::support::manifest::{self, Expect};
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::rsync::rsync;
use crate::support::skip::{self, need};
use crate::support::tree::{self, noise_file, raw, temp, write};

/// What a followed link shares with its target is shared by no copy of it.
const FOLLOWED: Aspects = Aspects { hard_links: false, ..Aspects::ALL };

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

/// `src` with links to files, directories, links and a fifo, inside and outside of it; none dangles, none loops.
fn linked(at: &Path) -> PathBuf {
    let (src, outside) = (at.join("src"), at.join("outside"));
    tree::odd_tree(&src.join("tree"), 64 << 10, 16 << 10);
    ["dangling", "link-to-dir"].iter().for_each(|name| fs::remove_file(src.join("tree").join(name)).unwrap());
    noise_file(&outside.join("d/deep/file"), 300);
    noise_file(&outside.join("large"), 300_000);
    mkfifo(&outside.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    symlink("deep", outside.join("d/inner")).unwrap();
    let links = [
        ("to-file", "tree/mode-640"),
        ("to-large", "../outside/large"),
        ("to-dir", "tree/deep"),
        ("to-dir-again", "tree/deep/er"),
        ("to-link", "to-dir/er"),
        ("to-outside", "../outside/d"),
        ("to-fifo", "../outside/fifo"),
        ("tree/empty/up-and-down", "../../../outside"),
    ];
    links.iter().for_each(|(name, target)| symlink(target, src.join(name)).unwrap());
    symlink(outside.join("d/deep/file"), src.join("absolute")).unwrap();
    tree::age(&outside);
    tree::age(&src);
    src
}

fn links_in(root: &Path) -> usize {
    oracle::walk(root).values().filter(|node| node.kind == Kind::Symlink).count()
}

#[test]
fn every_link_is_followed_as_rsync_follows_it() {
    need!(skip::program("rsync"));
    let dir = temp();
    let src = linked(dir.path());
    let expected = dir.path().join("expected");
    rsync(["-aAXL"], &src, &expected);
    assert_eq!(links_in(&expected), 0);
    assert!(expected.join("tree/empty/up-and-down/d/inner/file").is_file());
    let outside = oracle::walk(&dir.path().join("outside"));
    for (ranks, option) in [(1, "-L"), (2, "--dereference"), (4, "-L")] {
        let copied = copy(&job(ranks).options([option]), &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        oracle::assert_same(&expected, &copied.root, FOLLOWED);
        let listed: Vec<_> = copied.manifest().entries.keys().cloned().collect();
        assert_eq!(listed, oracle::walk(&expected).into_keys().collect::<Vec<_>>());
        assert_eq!(outside, oracle::walk(&dir.path().join("outside")));
    }
}

#[test]
fn the_last_of_the_three_options_wins() {
    let dir = temp();
    let src = linked(dir.path());
    symlink("src", dir.path().join("named")).unwrap();
    let named = dir.path().join("named");
    let cases: [(&[&str], bool, bool); 8] = [
        // Whether the named link is followed, and those below it.
        (&[], false, false),
        (&["-P"], false, false),
        (&["-H"], true, false),
        (&["-L"], true, true),
        (&["-L", "--no-dereference"], false, false),
        (&["-P", "-L"], true, true),
        (&["-L", "-H"], true, false),
        (&["-H", "-L", "-P"], false, false),
    ];
    for (number, (options, follows_named, follows_all)) in cases.into_iter().enumerate() {
        let dst = dir.path().join(format!("dst{number}"));
        fs::create_dir(&dst).unwrap();
        let copied = copy(&job(2).options(options), &[&named], &dst);
        copied.outcome.assert_code(0);
        assert_eq!(copied.root, dst.join("named"));
        let is_link = copied.root.symlink_metadata().unwrap().is_symlink();
        assert_eq!(is_link, !follows_named, "{}", copied.outcome.told());
        if !is_link {
            assert_eq!(links_in(&copied.root) == 0, follows_all, "{}", copied.outcome.told());
        }
        if follows_named && !follows_all {
            assert_exact(&copied, &src);
        }
    }
    copy_exactly(&job(2).options(["-P"]), &src, &dir.path().join("plain"));
}

#[test]
fn a_named_link_to_a_file_is_followed_by_h_and_named_as_the_link() {
    let dir = temp();
    let (dst, target) = (dir.path().join("dst"), dir.path().join("large.bin"));
    noise_file(&target, 300_000);
    tree::age(&target);
    symlink("large.bin", dir.path().join("current")).unwrap();
    fs::create_dir(&dst).unwrap();
    for options in ["-H", "-L"] {
        let copied = copy(&job(2).options([options]), &[&dir.path().join("current")], &dst);
        copied.outcome.assert_code(0);
        oracle::assert_same(&target, &dst.join("current"), Aspects::ALL);
        fs::remove_file(dst.join("current")).unwrap();
    }
}

/// Exit code 1, and exactly these entries failed, with the operation and (where one counts) the errno.
#[track_caller]
fn failed_only(copied: &Copied, expected: &[(&str, &str, i64)]) {
    copied.outcome.assert_code(1);
    let failed = copied.manifest().failed().map(|(path, entry)| {
        let (op, errno) = (entry["error"]["op"].as_str().unwrap(), entry["error"]["errno"].as_i64().unwrap());
        (oracle::show(path), op.to_owned(), if op == "loop" { 0 } else { errno })
    });
    let expected = expected.iter().map(|(path, op, errno)| ((*path).to_owned(), (*op).to_owned(), *errno));
    assert_eq!(failed.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{}", copied.outcome.told());
    for (path, _) in copied.manifest().failed() {
        copied.outcome.assert_says(&oracle::show(path));
        let left = raw(&copied.root, path).symlink_metadata();
        // A directory that is not entered may have been made.
        assert!(left.is_err() || left.is_ok_and(|meta| meta.is_dir()), "{} is there", oracle::show(path));
    }
}

#[test]
fn links_that_dangle_or_lead_to_themselves_fail_alone_when_followed() {
    let dir = temp();
    let src = linked(dir.path());
    let expected: Vec<_> = oracle::walk(&src).into_keys().collect();
    symlink("nowhere", src.join("dangling")).unwrap();
    symlink("dangling", src.join("tree/empty/to-dangling")).unwrap();
    symlink("../dangling", src.join("tree/dangling-too")).unwrap();
    symlink("self", src.join("self")).unwrap();
    symlink("pong", src.join("ping")).unwrap();
    symlink("ping", src.join("pong")).unwrap();
    for ranks in [1, 4] {
        let copied = copy(&job(ranks).options(["-L"]), &[&src], &dir.path().join(format!("np{ranks}")));
        failed_only(
            &copied,
            &[
                ("dangling", "open", 2),
                ("ping", "open", 40),
                ("pong", "open", 40),
                ("self", "open", 40),
                ("tree/dangling-too", "open", 2),
                ("tree/empty/to-dangling", "open", 2),
            ],
        );
        let there: BTreeSet<_> = oracle::walk(&copied.root).into_keys().collect();
        assert!(expected.iter().all(|path| there.contains(path)), "{}", copied.outcome.told());
    }
}

#[test]
fn directories_that_lead_back_to_themselves_are_not_entered_again() {
    let dir = temp();
    let src = dir.path().join("src");
    for name in ["x/file", "y/file", "z/deep/file"] {
        noise_file(&src.join(name), 100);
    }
    let loops =
        [("x/up", ".."), ("x/here", "."), ("x/to-y", "../y"), ("y/to-x", "../x"), ("z/deep/root", "../../../src")];
    loops.iter().for_each(|(name, target)| symlink(target, src.join(name)).unwrap());
    tree::age(&src);
    for ranks in [1, 2, 4] {
        let copied = copy(&job(ranks).options(["-L"]), &[&src], &dir.path().join(format!("np{ranks}")));
        let failed = ["x/here", "x/to-y/to-x", "x/up", "y/to-x/here", "y/to-x/to-y", "y/to-x/up", "z/deep/root"];
        failed_only(&copied, &failed.map(|path| (path, "loop", 0)));
        for name in ["x/file", "x/to-y/file", "y/file", "y/to-x/file", "z/deep/file"] {
            assert_eq!(fs::read(copied.root.join(name)).unwrap(), fs::read(src.join(name)).unwrap(), "{name}");
            assert!(copied.manifest().is_done(name.as_bytes()), "{name}: {}", copied.outcome.told());
        }
    }
    // As links they are nothing special.
    copy_exactly(&job(2), &src, &dir.path().join("as-links"));
}

#[test]
fn a_link_that_leads_to_the_copy_itself_comes_to_an_end() {
    let dir = temp();
    for (number, exists) in [(1, false), (2, true)] {
        let at = dir.path().join(format!("{number}"));
        let (src, dst) = (at.join("src"), at.join("dst"));
        noise_file(&src.join("a/file"), 100);
        noise_file(&src.join("z"), 100);
        if exists {
            noise_file(&dst.join("before/file"), 100);
        }
        symlink("../dst", src.join("to-copy")).unwrap();
        symlink("../../dst/a", src.join("a/into-copy")).unwrap();
        let outcome = job(number).options(["-L"]).limit(30).run([&src.join(""), &dst]);
        // Looked at first: a walk of what never ends would not either.
        let nested = ["to-copy/to-copy", "to-copy/a", "a/into-copy/into-copy"].map(|path| dst.join(path).exists());
        let first_lines = outcome.stderr.get(..2000).unwrap_or(&outcome.stderr);
        assert_eq!(nested, [false; 3], "{:?}: {first_lines}", outcome.code());
        // Refused, or failed where it would have come back to itself.
        assert!(matches!(outcome.code(), Some(1 | 2)), "{}", outcome.told());
        if outcome.code() == Some(1) {
            let expect = Expect { root: &dst, ranks: number, digests: true, strangers: true };
            let manifest = manifest::checked(&dst.join(".pcopy/manifest.jsonl"), &expect);
            assert!(!manifest.is_done(b"to-copy"), "{}", outcome.told());
            assert!(manifest.is_done(b"z") && manifest.is_done(b"a/file"));
        }
    }
}

#[test]
fn a_link_to_the_very_file_that_it_would_replace_loses_nothing() {
    let dir = temp();
    for len in [100, 300_000] {
        let (src, dst) = (dir.path().join(format!("src{len}")), dir.path().join(format!("dst{len}")));
        noise_file(&src.join("plain"), 10);
        noise_file(&dst.join("f"), len);
        let before = fs::read(dst.join("f")).unwrap();
        symlink(dst.join("f"), src.join("f")).unwrap();
        let mut slashed = src.into_os_string();
        slashed.push("/");
        let copied = copy(&job(2).options(["-L"]), &[Path::new(&slashed)], &dst);
        assert!(matches!(copied.outcome.code(), Some(0..=2)), "{}", copied.outcome.told());
        assert_eq!(fs::read(dst.join("f")).unwrap(), before, "{}", copied.outcome.told());
        assert!(!dst.join("f").symlink_metadata().unwrap().is_symlink());
    }
}

#[test]
fn hard_links_that_are_reached_through_links_too_are_whole_files_under_every_name() {
    let dir = temp();
    let (src, outside) = (dir.path().join("src"), dir.path().join("outside"));
    for (name, len) in [("small", 100), ("large", 300_000)] {
        noise_file(&src.join("d").join(name), len);
        fs::hard_link(src.join("d").join(name), src.join(name)).unwrap();
        // More names than the link count says, and names outside of the tree.
        symlink(name, src.join(format!("l-{name}"))).unwrap();
        symlink(format!("d/{name}"), src.join(format!("a-{name}"))).unwrap();
        write(&outside.join(name), &tree::noise(len, 77));
        fs::hard_link(outside.join(name), outside.join(format!("{name}-too"))).unwrap();
        symlink(outside.join(name), src.join(format!("o-{name}"))).unwrap();
    }
    symlink("d", src.join("d-again")).unwrap();
    tree::age(&outside);
    tree::age(&src);
    let expected = dir.path().join("expected");
    rsync(["-aAXL"], &src, &expected);
    for ranks in [1, 2, 4] {
        let copied = copy(&job(ranks).options(["-L"]), &[&src], &dir.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        oracle::assert_same(&expected, &copied.root, FOLLOWED);
        for name in ["small", "large"] {
            let inode = |path: &str| copied.root.join(path).metadata().unwrap().ino();
            assert_eq!(inode(name), inode(&format!("d/{name}")), "{}", copied.outcome.told());
        }
    }
}
