//! Eve tries to read, at every moment of a copy and after a kill, what she cannot read in the source (issue 14, item 3).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::attacker::{
    Attack, CLUB, EVE, LARGE, Scene, Step, THEN, attack_time, dir, file, marked, temporaries, while_eve, withstand,
};
use crate::support::chance::{Chance, seed};
use crate::support::harm::SECRET;
use crate::support::oracle::{self, Aspects, Kind, Tree};
use crate::support::skip::{self, Missing, need};
use crate::support::tree::{chmod, set_times};

const FILES: usize = 4;
const LEN: usize = 20_000;
/// A second or so for the whole tree, in steps of a page.
const SLOWLY: [&str; 6] = ["-b", "4K", "--limit-rate", "2M", "--threads", "2"];

fn tools() -> Result<(), Missing> {
    skip::root()?;
    skip::program("setfacl")
}

fn setfacl(options: &[&str], at: &Path) {
    let output = Command::new("setfacl").args(options).arg(at).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Directories of the source, each with the mode of its files; and whose group they are of.
const DIRS: [(&str, u32, u32, u32); 7] = [
    // Eve is in the group, which may not read what all others may
    ("denied-to-group", 0o755, 0o604, CLUB),
    // an ACL denies her what all others may read
    ("denied-by-acl", 0o755, 0o644, 0),
    // what is in it could be read by all who could enter
    ("hidden", 0o700, 0o644, 0),
    ("eves-before", 0o700, 0o644, 0),
    // the destination's default ACL would let her in
    ("default-acl", 0o755, 0o640, 0),
    // the destination's group is hers
    ("setgid", 0o755, 0o640, 0),
    ("new", 0o700, 0o644, 0),
];

fn name(dir: &str, number: usize) -> String {
    format!("{dir}/secret-{number}")
}

fn build(src: &Path, turn: u64) {
    for (at, mode, file_mode, group) in DIRS {
        dir(&src.join(at), 0, mode);
        for number in 0..=FILES {
            let len = if number == FILES { LARGE } else { LEN };
            let path = src.join(name(at, number));
            file(&path, &marked(SECRET, len, turn), 0, file_mode);
            lchown(&path, Some(0), Some(group)).unwrap();
            let then = (THEN.0 + i64::try_from(turn).unwrap(), THEN.1);
            set_times(&path, then, then);
            if at == "denied-by-acl" {
                setfacl(&["-m", &format!("u:{EVE}:---")], &path);
            }
        }
    }
}

/// Directories that are at the destination already, open to Eve.
fn open_dirs(dst: &Path) {
    for (at, ..) in DIRS.iter().filter(|(at, ..)| *at != "new") {
        dir(&dst.join(at), if *at == "eves-before" { EVE } else { 0 }, 0o755);
    }
    setfacl(&["-d", "-m", &format!("u:{EVE}:r-x")], &dst.join("default-acl"));
    lchown(dst.join("setgid"), Some(0), Some(CLUB)).unwrap();
    chmod(&dst.join("setgid"), 0o2755);
}

fn nobodys(_: &[u8]) -> bool {
    false
}

/// Eve opens all that is in the directories, by its names and by those that pcopy makes for a while.
fn spy<'a>(dst: &Path, dirs: impl Iterator<Item = &'a str>) -> Step {
    let named = |at: &str| (0..=FILES).map(|number| dst.join(name(at, number))).collect::<Vec<_>>();
    let in_dir = |at: &str| named(at).into_iter().chain(temporaries(&dst.join(at)));
    let all: Vec<PathBuf> = dirs.flat_map(in_dir).collect();
    let (mut denied, mut opened) = (false, Vec::new());
    for path in all {
        match File::open(&path) {
            // what she has opened she reads later, whatever its mode is by then
            Ok(_) => opened.push(format!("Eve opens {}", told(dst, &path))),
            Err(error) => denied |= error.kind() == ErrorKind::PermissionDenied,
        }
    }
    if opened.is_empty() { Step::done(denied) } else { Step::Harm(opened) }
}

/// A path of the copy; of a temporary name the start, which is always the same.
fn told(dst: &Path, path: &Path) -> String {
    let path = path.strip_prefix(dst).unwrap().to_str().unwrap();
    path.split_inclusive(".pcopy-").next().unwrap().to_owned()
}

fn spy_everywhere(scene: &Scene) -> Step {
    spy(&scene.dst, DIRS.iter().map(|(at, ..)| *at))
}

fn attack<'a>(name: &str, scene: &'a Scene, options: &[&'static str], prepare: impl Fn() + 'a) -> Attack<'a> {
    Attack {
        name: name.into(),
        scene,
        options: SLOWLY.iter().chain(options).copied().collect(),
        prepare: Box::new(prepare),
        act: Box::new(|| spy_everywhere(scene)),
        hers: nobodys,
    }
}

/// The directories of the copy are open, as somebody left them; nothing else of them is there.
fn opened(scene: &Scene) {
    DIRS.iter().for_each(|(at, ..)| drop(fs::remove_dir_all(scene.dst.join(at))));
    open_dirs(&scene.dst);
}

#[test]
fn what_eve_may_not_read_in_the_source_she_never_reads_in_the_copy_while_it_is_made() {
    need!(tools());
    let begun = &Scene::new(|src| build(src, 0)).begun();
    let copied = &Scene::new(|src| build(src, 0)).copied(&[]);
    let updated = &Scene::new(|src| build(src, 0)).copied(&["--update"]);
    withstand(&[
        attack("first run", begun, &[], || open_dirs(&begun.dst)),
        attack("files are made anew in directories that are there", copied, &[], || opened(copied)),
        attack("--update", begun, &["--update"], || open_dirs(&begun.dst)),
        attack("files are replaced", copied, &[], || build(&copied.src, 1)),
        attack("files are replaced with --update", updated, &["--update"], || build(&updated.src, 1)),
    ]);
}

#[test]
fn the_top_directory_of_the_copy_is_closed_while_the_copy_is_made() {
    need!(tools());
    let scene = &Scene::new(|src| {
        for number in 0..=FILES {
            file(&src.join(name(".", number)), &marked(SECRET, LEN, 40 + number as u64), 0, 0o644);
        }
        chmod(src, 0o700);
    })
    .begun();
    let attack = |name: &str, options, owner| Attack {
        act: Box::new(|| spy(&scene.dst, ["."].into_iter())),
        ..attack(name, scene, options, move || dir(&scene.dst, owner, 0o755))
    };
    withstand(&[
        attack("root's", &[], 0),
        attack("Eve's", &[], EVE),
        attack("root's, with --update", &["--update"], 0),
        attack("Eve's, with --no-clobber", &["--no-clobber"], EVE),
    ]);
}

/// What is at the destination as neither the source nor the saved destination have it, and not for its owner alone.
fn open_and_unfinished(scene: &Scene, before: &Tree) -> Vec<String> {
    let (source, after) = (oracle::walk(&scene.src), oracle::walk(&scene.dst));
    // times come last, and let nobody in
    let aspects = Aspects { hard_links: false, mtime: false, atime: false, ..Aspects::ALL };
    let mut found = Vec::new();
    for (path, new) in after.iter().filter(|(path, new)| new.kind != Kind::Symlink && !path.is_empty()) {
        let is = |old: &oracle::Node| oracle::node_differences(old, new, aspects).is_empty();
        let is_finished = source.get(path).is_some_and(is)
            && (new.kind != Kind::File || oracle::same_content(&scene.src, &scene.dst, path));
        // a directory that was there is still as open as it was, or less
        let was_there = before.get(path).is_some_and(|old| new.kind == Kind::Dir && new.mode & !old.mode & 0o777 == 0);
        let is_old = before.get(path).is_some_and(is);
        // setgid of a directory hands its group on, and lets nobody in
        let bits = if new.kind == Kind::Dir { 0o4077 } else { 0o6077 };
        if !is_finished && !was_there && !is_old && new.mode & bits != 0 {
            found.push(format!("{}: {:?} with mode {:04o}", oracle::show(path), new.kind, new.mode));
        }
    }
    found
}

#[test]
fn what_a_killed_run_leaves_unfinished_is_for_its_owner_alone_and_eve_never_reads_it() {
    need!(tools());
    let scene = &Scene::new(|src| build(src, 0)).begun();
    let plain = &Scene::new(|src| {
        for number in 0..300 {
            file(&src.join(format!("shared/d{}/f{number}", number % 7)), &marked(b"plain", 9000, number), 0, 0o644);
        }
        chmod(&src.join("shared"), 0o755);
    })
    .begun();
    let mut chance = Chance::new(seed("what_a_killed_run_leaves"));
    let until = Instant::now() + attack_time();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    let mut kills = 0;
    while kills < 6 || Instant::now() < until {
        let (scene, ranks) = ([scene, plain][kills % 2], [1, 2, 4][kills % 3]);
        scene.reset();
        if kills % 2 == 0 {
            open_dirs(&scene.dst);
        }
        let (before, watch) = (oracle::walk(&scene.dst), scene.watch());
        let run = || {
            let mut running = Scene::job(ranks, &SLOWLY).start([scene.source(), scene.dst.clone()]);
            while running.goes_on() && !scene.dst.join(".pcopy/job.json").exists() {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(chance.of(0..=400)));
            drop(running);
        };
        let ((), _, mut harm) = while_eve(&|| spy_everywhere(scene), run);
        harm.extend(open_and_unfinished(scene, &before));
        harm.extend(watch.harm_by_then(nobodys));
        harm.into_iter().for_each(|words| *found.entry(words).or_default() += 1);
        kills += 1;
    }
    let told: Vec<_> = found.iter().map(|(words, count)| format!("{words} ({count} times)")).collect();
    oracle::assert_none(&told, &format!("{kills} kills"));
}
