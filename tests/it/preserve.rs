//! What `--preserve`, `--no-preserve` and `--xattrs` say is preserved, that and no more.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid, chown};

use crate::support::copy::{assert_exact, copy};
use crate::support::launch::{Job, program};
use crate::support::oracle::{self, Aspects};
use crate::support::parallel;
use crate::support::rsync::rsync;
use crate::support::skip::{self, Missing, need};
use crate::support::tree::{self, chmod, noise_file, temp};
use crate::support::{sys, told};

const WORDS: [&str; 6] = ["mode", "ownership", "timestamps", "xattr", "acl", "links"];

pub fn tools() -> Result<(), Missing> {
    skip::root()?;
    ["setfacl", "getfacl", "rsync"].iter().try_for_each(|name| skip::program(name))
}

pub fn setfacl(acl: &str, path: &Path) {
    assert!(Command::new("setfacl").args(["-m", acl]).arg(path).status().unwrap().success());
}

/// Whether `getfacl` shows the user 1234 in an ACL of `path`.
pub fn has_acl(path: &Path) -> bool {
    let shown = Command::new("getfacl").args(["-n", "-p"]).arg(path).output().unwrap();
    assert!(shown.status.success());
    String::from_utf8(shown.stdout).unwrap().contains("user:1234:")
}

/// A tree in which each of the words shows; files of one range and of several.
pub fn telling(root: &Path) -> PathBuf {
    for name in ["mode", "owned", "note", "acl", "links/a"] {
        noise_file(&root.join(name), 1000);
        noise_file(&root.join(format!("{name}-large")), 200_000);
    }
    for dir in ["mode-dir", "note-dir", "acl-dir"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for size in ["", "-large"] {
        let at = |name: &str| root.join(format!("{name}{size}"));
        chmod(&at("mode"), 0o707);
        chown(&at("owned"), Some(Uid::from_raw(1001)), Some(Gid::from_raw(1002))).unwrap();
        sys::set_xattr(&at("note"), "user.note", b"value").unwrap();
        setfacl("u:1234:r", &at("acl"));
        fs::hard_link(at("links/a"), at("links/b")).unwrap();
    }
    chmod(&root.join("mode-dir"), 0o1777);
    sys::set_xattr(&root.join("note-dir"), "user.note", b"value").unwrap();
    setfacl("d:u:1234:rx", &root.join("acl-dir"));
    symlink("mode", root.join("link")).unwrap();
    tree::age(root);
    root.to_path_buf()
}

/// The words that hold for a copy of `telling`. Each holds for all entries that show it, or for none.
fn preserved(src: &Path, dst: &Path) -> BTreeSet<&'static str> {
    let look = |root: &Path, name: &str| root.join(name).symlink_metadata().unwrap();
    let both = |name: &str| (look(src, name), look(dst, name));
    let mode = |name: &&str| both(name).0.mode() == both(name).1.mode();
    let owner = |name: &&str| (both(name).0.uid(), both(name).0.gid()) == (both(name).1.uid(), both(name).1.gid());
    let time = |name: &&str| both(name).0.modified().unwrap() == both(name).1.modified().unwrap();
    let note = |name: &&str| sys::get_xattr(&dst.join(name), b"user.note").is_ok_and(|value| value == b"value");
    let acl = |name: &&str| has_acl(&dst.join(name));
    let link = |name: &&str| look(dst, name).ino() == look(dst, &name.replace("/a", "/b")).ino();
    type Shows<'a> = (&'a dyn Fn(&&str) -> bool, &'a [&'a str]);
    let shows: [Shows; 6] = [
        (&mode, &["mode", "mode-large", "mode-dir"]),
        (&owner, &["owned", "owned-large"]),
        (&time, &["", "mode", "mode-large", "mode-dir", "link"]),
        (&note, &["note", "note-large", "note-dir"]),
        (&acl, &["acl", "acl-large", "acl-dir"]),
        (&link, &["links/a", "links/a-large"]),
    ];
    let holds = WORDS.iter().zip(shows).filter(|(word, (holds, names))| {
        let held = names.iter().filter(|name| holds(name)).count();
        assert!(held == 0 || held == names.len(), "{word} holds for {held} of {names:?}");
        held > 0
    });
    holds.map(|(word, _)| *word).collect()
}

#[test]
fn each_word_shows_in_what_rsync_preserves_by_its_own_option() {
    need!(tools());
    let dir = temp();
    let src = telling(&dir.path().join("src"));
    // rsync's -A sets the mode too.
    let cases: [(&str, &[&str]); 7] = [
        ("-rl", &[]),
        ("-rlp", &["mode"]),
        ("-rlog", &["ownership"]),
        ("-rlt", &["timestamps"]),
        ("-rlX", &["xattr"]),
        ("-rlA", &["mode", "acl"]),
        ("-rlH", &["links"]),
    ];
    for (options, words) in cases {
        let dst = dir.path().join(options);
        rsync([options], &src, &dst);
        assert_eq!(preserved(&src, &dst), words.iter().copied().collect(), "rsync {options}");
    }
}

/// A program that sets this umask first.
pub fn under_umask(umask: &str, home: &Path) -> PathBuf {
    let script = home.join(format!("umask-{umask}"));
    let body = format!("#!/bin/sh\numask {umask}\nexec '{}' \"$@\"\n", program().display());
    tree::write(&script, body.as_bytes());
    chmod(&script, 0o755);
    script
}

#[test]
fn exactly_the_named_words_are_preserved_and_nothing_is_marked() {
    need!(tools());
    let dir = temp();
    let src = telling(&dir.path().join("src"));
    let job = Job::alone().program(&under_umask("022", dir.path())).options(["-k", "64K", "-b", "16K"]);
    let all: BTreeSet<_> = WORDS.into_iter().collect();
    let mut cases: Vec<(Vec<String>, BTreeSet<&str>)> = Vec::new();
    for word in WORDS {
        cases.push((vec![format!("--preserve={word}")], BTreeSet::from([word])));
        let others = all.iter().copied().filter(|other| *other != word).collect();
        cases.push((vec![format!("--no-preserve={word}")], others));
    }
    let several: [(&[&str], &[&str]); 9] = [
        (&[], &WORDS),
        (&["-p"], &WORDS),
        (&["--preserve"], &WORDS),
        (&["--preserve=all"], &WORDS),
        (&["--preserve=mode,links"], &["mode", "links"]),
        (&["--preserve=mode", "--preserve=xattr,links"], &["mode", "xattr", "links"]),
        (&["--preserve=mode,acl", "--no-preserve=mode"], &["acl"]),
        (&["--no-preserve=ownership,timestamps", "-p"], &["mode", "xattr", "acl", "links"]),
        (&["--no-preserve=all"], &[]),
    ];
    cases.extend(several.map(|(o, w)| (o.iter().map(ToString::to_string).collect(), w.iter().copied().collect())));
    parallel::for_each(&cases, |number, (options, words)| {
        let copied = copy(&job.clone().options(options), &[&src], &dir.path().join(format!("{number}")));
        copied.outcome.assert_code(0);
        let same =
            Aspects { mode: false, owner: false, mtime: false, xattrs: false, hard_links: false, ..Aspects::ALL };
        oracle::assert_same(&src, &copied.root, same);
        assert_eq!(preserved(&src, &copied.root), *words, "{}", copied.outcome.told());
        assert_eq!(told::marks(copied.manifest()), told::Counts::new(), "{}", copied.outcome.told());
    });
}

#[test]
fn xattrs_are_those_that_the_option_says() {
    need!(tools());
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("f"), 100);
    fs::create_dir(src.join("d")).unwrap();
    let names = ["user.note", "user.Beagle.x", "trusted.lov", "trusted.mine"];
    for entry in ["f", "d"] {
        names.iter().for_each(|name| sys::set_xattr(&src.join(entry), name, name.as_bytes()).unwrap());
        setfacl("u:1234:r", &src.join(entry));
    }
    tree::age(&src);
    let cases: [(&[&str], &[&str]); 6] = [
        (&[], &["user.note", "user.Beagle.x", "trusted.mine", "acl"]),
        (&["-X", "non-lustre"], &["user.note", "user.Beagle.x", "trusted.mine", "acl"]),
        (&["--xattrs", "all"], &["user.note", "user.Beagle.x", "trusted.lov", "trusted.mine", "acl"]),
        (&["--xattrs=libattr"], &["user.note", "trusted.lov", "trusted.mine", "acl"]),
        (&["-X", "none"], &[]),
        (&["-X", "all", "--no-preserve=xattr"], &["acl"]),
    ];
    for (number, (options, expected)) in cases.iter().enumerate() {
        let copied = copy(&Job::ranks(2).options(*options), &[&src], &dir.path().join(format!("{number}")));
        copied.outcome.assert_code(0);
        for entry in ["f", "d"] {
            let path = copied.root.join(entry);
            let arrived = names.iter().filter(|n| sys::get_xattr(&path, n.as_bytes()).is_ok_and(|v| v == n.as_bytes()));
            let arrived: Vec<_> = arrived.copied().chain(has_acl(&path).then_some("acl")).collect();
            assert_eq!(arrived, *expected, "{entry}: {}", copied.outcome.told());
        }
        assert_eq!(told::marks(copied.manifest()), told::Counts::new(), "{}", copied.outcome.told());
        if options.contains(&"all") && options.len() == 2 {
            assert_exact(&copied, &src);
        }
    }
}
