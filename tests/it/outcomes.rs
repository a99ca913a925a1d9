//! Every call on a tree or on the state directory fails once, with each errno, on each kind of entry. What follows is what
//! `TABLE` says, or nothing: never exit code 0 with something lost that is not counted (issue 4, item 8; the table of the
//! program is `src/types/verdict.rs`, this one is written from docs/errors.md).
//!
//! strace injects the errors. What it struck is read from its trace; one run strikes several calls where that ends no job.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;

use crate::flags::{chattr, flags};
use crate::preserve::setfacl;
use crate::support::chance::{self, Chance};
use crate::support::launch::{Job, Outcome};
use crate::support::manifest::{self, Expect, Manifest, is_unkept};
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects, Tree};
use crate::support::skip::{self, need};
use crate::support::strace::{self, Call, Strikes};
use crate::support::tree::{self, chmod, noise_file, temp};
use crate::support::{parallel, sys};

const ERRNOS: [&str; 11] =
    ["ENOSYS", "EOPNOTSUPP", "EPERM", "EACCES", "EINVAL", "EIO", "ENOSPC", "EDQUOT", "ENOENT", "ESTALE", "EINTR"];

/// Everything but the transfer of data, which `faults` lets fail.
#[rustfmt::skip]
const CALLS: [&str; 39] = [
    "close", "fallocate", "fchmod", "fchmodat", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr",
    "flock", "fremovexattr", "fsetxattr", "fstatfs", "fsync", "ftruncate", "getdents64", "getxattr", "ioctl", "linkat",
    "listxattr", "lseek", "mkdir", "mkdirat", "mknodat", "newfstatat", "openat", "readlink", "readlinkat", "removexattr",
    "renameat", "renameat2", "setxattr", "statfs", "statx", "symlinkat", "syncfs", "unlinkat", "utimensat",
];

/// What may follow at most; that all is as it should be is always good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Most {
    /// It is tried again.
    Nothing,
    /// The entry lacks something, which is counted as one of these kinds.
    Unkept(&'static [&'static str]),
    /// The entry fails: exit code 1.
    Entry,
    /// The job stops, and goes on with the same command: exit code 75.
    Stop,
    /// The job ends: before it begins with exit code 2, later with 70, for want of space with 75.
    End,
}

const NOT_SUPPORTED: &[&str] = &["ENOSYS", "EOPNOTSUPP"];
const NOT_ALLOWED: &[&str] = &["EPERM", "EACCES"];
const NO_SPACE: &[&str] = &["ENOSPC", "EDQUOT"];
const PASSES: &[&str] = &["EIO", "ESTALE", "EINTR"];

/// Calls, errnos, kinds of what is counted.
type Unkept = (&'static [&'static str], &'static [&'static [&'static str]], &'static [&'static str]);

const ALL: &[&[&str]] = &[NOT_SUPPORTED, NOT_ALLOWED, NO_SPACE, PASSES, &["EINVAL", "ENOENT"]];

/// At the destination: what is not kept and counted. The first row that fits.
#[rustfmt::skip]
const UNKEPT: &[Unkept] = &[
    (&["fchmod", "fchmodat"], &[NOT_SUPPORTED, NOT_ALLOWED, &["EINVAL"]], &["mode"]),
    (&["fchown", "fchownat"], &[NOT_SUPPORTED, NOT_ALLOWED, &["EINVAL"]], &["ownership", "mode"]),
    (&["utimensat"], &[NOT_SUPPORTED, NOT_ALLOWED, &["EINVAL"]], &["timestamps"]),
    (&["fsetxattr", "setxattr"], ALL, &["xattr", "acl", "mode"]),
    (&["fremovexattr", "removexattr"], ALL, &["xattr", "acl"]),
    (&["mknodat"], ALL, &["special"]),
    (&["linkat"], ALL, &["links"]),
    // A lease that is refused: nobody but the owner gets rights.
    (&["fcntl"], &[NOT_SUPPORTED, NOT_ALLOWED, NO_SPACE, &["EINVAL", "ENOENT", "EIO", "ESTALE", "EINTR"]], &["mode", "xattr"]),
];

/// Attributes never cost an entry its data, on neither side.
const READING: &[&str] = &["fgetxattr", "flistxattr", "getxattr", "listxattr"];

/// The first that fits is what follows; of a call that is made for several reasons the second may.
fn most(call: &str, kind: &Kind, errno: &str) -> [Most; 2] {
    let is = |group: &[&str]| group.contains(&errno);
    if kind.side == Side::State || ["syncfs", "fsync", "mkdir", "statfs", "fstatfs"].contains(&call) {
        return [Most::End; 2];
    }
    let usual = match kind.side {
        // Names were seen before: they must not be seen twice.
        Side::Source if call == "getdents64" => Most::Entry,
        _ if is(PASSES) => Most::Nothing,
        Side::Destination if errno == "ENOENT" => Most::Nothing,
        Side::Destination if is(NO_SPACE) => Most::Stop,
        _ => Most::Entry,
    };
    let fits = |(calls, errnos, _): &&Unkept| calls.contains(&call) && errnos.iter().any(|group| is(group));
    match UNKEPT.iter().find(fits).filter(|_| kind.side == Side::Destination) {
        // A directory of the source is opened once more to read its inode flags.
        None if call == "openat" && kind.side == Side::Source => [usual, Most::Unkept(&["flags"])],
        // A name that cannot be linked to is copied.
        None if ["openat", "newfstatat"].contains(&call) && kind.side == Side::Destination => {
            [usual, Most::Unkept(&["links"])]
        }
        // ioctl(2) reads and sets inode flags, and shares blocks.
        None if call == "ioctl" => [Most::Unkept(&["flags"]), usual],
        // Attributes of a directory tell who may enter it: without them it is not made.
        None if READING.contains(&call) => [Most::Unkept(&["xattr", "acl", "mode"]), usual],
        Some((_, _, kinds)) if call == "fcntl" => [Most::Unkept(kinds), usual],
        Some((_, _, kinds)) => [Most::Unkept(kinds); 2],
        None => [usual; 2],
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Source,
    Destination,
    /// The state directory, and the job's marker.
    State,
}

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    side: Side,
    entry: &'static str,
}

/// The place of a call in the trees: its side, its path below the root.
fn place(call: &Call, src: &Path, dst: &Path) -> Option<(Side, String)> {
    let path = Path::new(call.path.as_deref()?);
    let below = |root: &Path| path.strip_prefix(root).ok().map(|below| below.to_str().unwrap().to_owned());
    if let Some(below) = below(src) {
        return Some((Side::Source, below));
    }
    // The directories above are made durable before the job begins, for they name the copy.
    if dst.ancestors().skip(1).any(|above| above == path) {
        return Some((Side::State, String::new()));
    }
    let below = below(dst)?;
    let is_state = below == ".pcopy" || below.starts_with(".pcopy/") || below.ends_with(".here");
    Some((if is_state { Side::State } else { Side::Destination }, below))
}

fn kind(side: Side, path: &str) -> Kind {
    let entry = match path {
        _ if side == Side::State => "record",
        "" => "top",
        "dir" | "dir/sub" | "dir/sub/a" | "dir/sub/b" => "directory",
        "link" => "link",
        "fifo" | "null" | "dir/fifo-too" => "special",
        _ if path.contains(".pcopy-") => "temporary",
        _ => "file",
    };
    Kind { side, entry }
}

/// Something of everything, in two directories.
fn source(root: &Path) {
    let at = |name: &str| root.join(name);
    for (name, len) in [("file", 5000), ("empty", 0)] {
        noise_file(&at(name), len);
    }
    // A private directory in each: the thread that makes them makes more calls than those that begin the job.
    for dir in ["", "dir", "dir/sub", "dir/sub/a", "dir/sub/b"] {
        noise_file(&at(dir).join("ranges"), 70_000);
    }
    for name in ["setuid", "capable", "noted", "acl", "sub/plain"] {
        noise_file(&at("dir").join(name), 500 + name.len());
    }
    tree::sparse_file(&at("sparse"), 1_000_000, &[(500_000, 10)]);
    tree::sparse_file(&at("sparse-small"), 50_000, &[(20_000, 10)]);
    // To nowhere: strace selects what a path leads to as well.
    symlink("nowhere", at("link")).unwrap();
    mkfifo(&at("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    mknod(&at("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    fs::hard_link(at("file"), at("dir/file-too")).unwrap();
    fs::hard_link(at("fifo"), at("dir/fifo-too")).unwrap();
    let owners = [("", 1000, 1000), ("dir", 77, 88), ("dir/setuid", 1234, 55), ("link", 1234, 4), ("fifo", 3, 4)];
    owners.iter().for_each(|(name, uid, gid)| lchown(at(name), Some(*uid), Some(*gid)).unwrap());
    let modes = [("", 0o1751), ("dir", 0o2750), ("dir/setuid", 0o6755), ("file", 0o604)];
    modes.iter().for_each(|(name, mode)| chmod(&at(name), *mode));
    ["", "dir", "dir/noted", "ranges"]
        .iter()
        .for_each(|name| sys::set_xattr(&at(name), "user.note", b"value").unwrap());
    ["dir", "dir/acl"].iter().for_each(|name| setfacl("u:1234:rwx", &at(name)));
    let set = Command::new("setcap").arg("cap_net_raw+ep").arg(at("dir/capable")).status().unwrap();
    assert!(set.success());
    tree::age(root);
    ["empty", "ranges", "dir"].iter().for_each(|name| chattr("+d", &at(name)));
}

/// A call of a run without faults, on a kind of entry, and what it is to fail with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    call: String,
    kind: Kind,
    errno: &'static str,
}

/// Where the copies are made: in memory, where everything is durable at once.
struct Scene {
    src: PathBuf,
    before: Tree,
    job: Job,
    home: PathBuf,
    numbers: Mutex<usize>,
    _mount: Option<Mount>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Result<Scene, skip::Missing> {
        strace::available()?;
        ["setfacl", "setcap", "chattr", "lsattr"].iter().try_for_each(|name| skip::program(name))?;
        let (dir, mount) = (temp(), Mount::new(FileSystem::Tmpfs, 1024)?);
        // Linux before 6.6 has no attributes of users there.
        let in_memory = sys::set_xattr(mount.path(), "user.note", b"value").is_ok();
        let home = if in_memory { mount.path() } else { dir.path() }.to_path_buf();
        let src = home.join("src");
        source(&src);
        let job = Job::alone().options(["-k", "64K", "-b", "16K", "--threads", "1", "--json", "--preserve=all,flags"]);
        let before = oracle::walk(&src);
        Ok(Scene { src, before, job, home, numbers: Mutex::new(0), _mount: in_memory.then_some(mount), _dir: dir })
    }

    /// One copy with these calls failing: the calls, and every objection to what became of it.
    fn run(&self, strikes: impl FnOnce(&Path) -> Strikes) -> (Vec<(Call, Side, String)>, Vec<String>) {
        let number = {
            let mut numbers = self.numbers.lock().unwrap();
            *numbers += 1;
            *numbers
        };
        let dir = self.home.join(format!("run-{number}"));
        fs::create_dir(&dir).unwrap();
        let dst = dir.join("dst");
        let (outcome, calls) = strace::run(&self.job, &CALLS, &strikes(&dst), &dir, [&self.src, &dst]);
        let calls: Vec<_> = calls
            .into_iter()
            .filter_map(|call| place(&call, &self.src, &dst).map(|(side, path)| (call, side, path)))
            .collect();
        let struck: Vec<_> = calls.iter().filter(|(call, ..)| call.struck.is_some()).collect();
        let found = self.objections(&outcome, &dst, &struck);
        let words: Vec<_> = struck
            .iter()
            .map(|(call, side, path)| {
                format!("{} {} {side:?} {path:?}", call.name, call.struck.as_deref().unwrap_or_default())
            })
            .collect();
        let code = outcome.code();
        let found =
            found.into_iter().map(|found| format!("{words:?}: code {code:?}: {found}: {}", outcome.stderr.trim()));
        let found = found.collect();
        fs::remove_dir_all(&dir).unwrap();
        (calls, found)
    }

    fn objections(&self, outcome: &Outcome, dst: &Path, struck: &[&(Call, Side, String)]) -> Vec<String> {
        let explained: Vec<_> = struck
            .iter()
            .flat_map(|(call, side, path)| {
                most(&call.name, &kind(*side, path), call.struck.as_deref().unwrap()).map(|most| (most, path))
            })
            .collect();
        let any = |of: &[Most]| explained.iter().any(|(most, _)| of.contains(most));
        let code = outcome.code();
        let mut found = Vec::new();
        let is_explained = match code {
            Some(0) => true,
            Some(1) => any(&[Most::Entry]),
            // Before the first entry is copied nothing but the two tops was looked at.
            // What was struck is outside of both trees: before the job begins.
            Some(2) if struck.is_empty() => true,
            Some(2 | 70) => any(&[Most::End]) || struck.iter().any(|(_, side, path)| kind(*side, path).entry == "top"),
            Some(75) => {
                let for_space = |call: &Call| matches!(call.struck.as_deref(), Some("ENOSPC" | "EDQUOT"));
                any(&[Most::Stop, Most::End])
                    || struck.iter().any(|(call, side, path)| for_space(call) && kind(*side, path).entry == "top")
            }
            _ => false,
        };
        if !is_explained {
            found.push("the exit code is not what the table says".to_owned());
        }
        if !matches!(code, Some(0 | 1)) {
            return found;
        }
        let file = dst.join(".pcopy/manifest.jsonl");
        let expect = Expect { root: dst, ranks: 1, digests: true, strangers: true };
        match manifest::check(&file, &expect) {
            Err(objections) => found.extend(objections),
            Ok(manifest) => self.judge(&manifest, dst, code == Some(0), &explained, &mut found),
        }
        found
    }

    /// Each difference between the trees is an error of the entry, or counted; and each of these the table allows.
    fn judge(&self, manifest: &Manifest, dst: &Path, zero: bool, struck: &[(Most, &String)], found: &mut Vec<String>) {
        let failed: Vec<_> = manifest.failed().map(|(path, _)| path.clone()).collect();
        if zero && !failed.is_empty() {
            found.push(format!("exit code 0 with {} errors", failed.len()));
        }
        let after = oracle::walk(dst);
        let below_failed =
            |path: &[u8]| failed.iter().any(|top| top.is_empty() || path.starts_with(&[top, b"/".as_slice()].concat()));
        for (path, old) in &self.before {
            let shown = oracle::show(path);
            let Some(entry) = manifest.entries.get(path) else {
                if !below_failed(path) {
                    found.push(format!("{shown}: not in the manifest"));
                }
                continue;
            };
            if entry.get("error").is_some() {
                if !struck.iter().any(|(most, at)| *most == Most::Entry && self.concerns(at, path)) {
                    found.push(format!("{shown}: the table knows no such error: {}", entry["error"]));
                }
                continue;
            }
            for unkept in crate::support::told::KINDS.into_iter().filter(|kind| is_unkept(entry, kind)) {
                let allows = |most: &Most| matches!(most, Most::Unkept(kinds) if kinds.contains(&unkept));
                if !struck.iter().any(|(most, at)| allows(most) && self.concerns(at, path)) {
                    found.push(format!("{shown}: the table does not say that {unkept} is not kept"));
                }
            }
            let lost = match after.get(path) {
                None => vec![("special", "missing".to_owned())],
                Some(new) => self.lost(path, (old, new), dst),
            };
            let others_failed = !failed.is_empty();
            let is_counted = |kind: &str| {
                is_unkept(entry, kind)
                    || kind == "links"
                        && (others_failed || manifest.entries.values().any(|entry| is_unkept(entry, kind)))
            };
            found.extend(
                lost.iter()
                    .filter(|(kind, _)| !is_counted(kind))
                    .map(|(_, words)| format!("{shown}: {words}, not counted")),
            );
        }
        for name in ["empty", "ranges", "dir"] {
            let entry = manifest.entries.get(name.as_bytes()).filter(|entry| entry.get("error").is_none());
            if entry.is_some_and(|entry| !is_unkept(entry, "flags")) && flags(&dst.join(name)) != "d" {
                found.push(format!("{name}: its flags, not counted"));
            }
        }
        let strangers = after.keys().filter(|path| !self.before.contains_key(*path)).map(|path| oracle::show(path));
        found.extend(
            strangers.filter(|path| !path.contains(".pcopy-")).map(|path| format!("{path}: not in the source")),
        );
    }

    /// What a copy lacks, each with the kind that it is counted as.
    fn lost(&self, path: &[u8], (old, new): (&oracle::Node, &oracle::Node), dst: &Path) -> Vec<(&'static str, String)> {
        let aspects = Aspects { xattrs: false, ..Aspects::ALL };
        let mut lost: Vec<_> = oracle::node_differences(old, new, aspects)
            .into_iter()
            .map(|words| {
                let kinds =
                    [("mode", "mode"), ("owner", "ownership"), ("mtime", "timestamps"), ("first hard link", "links")];
                let kind =
                    kinds.iter().find(|(aspect, _)| words.starts_with(aspect)).map_or("nothing", |(_, kind)| kind);
                (kind, words)
            })
            .collect();
        let names: BTreeSet<_> = old.xattrs.keys().chain(new.xattrs.keys()).collect();
        for name in names.into_iter().filter(|name| old.xattrs.get(*name) != new.xattrs.get(*name)) {
            let name = oracle::show(name);
            lost.push((if name.contains("posix_acl") { "acl" } else { "xattr" }, name));
        }
        if old.kind == oracle::Kind::File && !oracle::same_content(&self.src, dst, path) {
            lost.push(("nothing", "another content".to_owned()));
        }
        lost
    }

    /// Whether a call at one path may change what becomes of the entry at another: it is that one, another name of it, above
    /// it, or a temporary file.
    fn concerns(&self, at: &str, path: &[u8]) -> bool {
        let at = at.as_bytes();
        let is_above = at.is_empty() || path.starts_with(&[at, b"/"].concat());
        let is_same =
            at == path || self.before.get(at).is_some_and(|node| node.first_name == self.before[path].first_name);
        is_above || is_same || oracle::show(at).contains(".pcopy-")
    }
}

/// The calls of a run without faults.
struct Model {
    dst: PathBuf,
    calls: Vec<(Call, Side, String)>,
}

impl Model {
    fn new(scene: &Scene) -> Model {
        let mut at = PathBuf::new();
        let (calls, found) = scene.run(|dst| {
            at = dst.to_path_buf();
            Strikes::default()
        });
        oracle::assert_none(&found, "a copy without faults");
        Model { dst: at, calls }
    }

    fn cases(&self) -> BTreeSet<Case> {
        let kinds: BTreeSet<_> =
            self.calls.iter().map(|(call, side, path)| (call.name.clone(), kind(*side, path))).collect();
        let case =
            |(call, kind): &(String, Kind)| ERRNOS.map(|errno| Case { call: call.clone(), kind: kind.clone(), errno });
        kinds.iter().flat_map(case).collect()
    }

    /// The number of the call that is to strike a case: for each turn another one. Calls that nothing but their numbers
    /// select are taken from the end, where the threads that begin the job have made fewer; directories too, where less
    /// is below them.
    fn meant(&self, case: &Case, turn: usize) -> usize {
        let fits = |(_, (call, side, path)): &(usize, &(Call, Side, String))| {
            call.name == case.call && kind(*side, path) == case.kind
        };
        let all: Vec<_> = self.calls.iter().enumerate().filter(fits).collect();
        let turn = turn % all.len();
        let (number, call) = all[turn];
        let from_end = !is_selectable(call) || case.kind.entry == "directory";
        if from_end { all[all.len() - 1 - turn].0 } else { number }
    }

    /// Whether what is tried again after the first strike has calls that the second one would count.
    fn shifts(&self, (case, first): (&Case, usize), second: usize) -> bool {
        let is_tried_again = most(&case.call, &case.kind, case.errno)[1] == Most::Nothing;
        let (path, name) = (&self.calls[first].2, &self.calls[second].0.name);
        is_tried_again && first < second && self.calls.iter().any(|(call, _, of)| of == path && call.name == *name)
    }

    /// Cases that are tried in one run: each may strike without ending the job, hiding the others, or moving their numbers.
    /// Calls that words select are among themselves.
    fn batches<'a>(&self, cases: &'a BTreeSet<Case>, turn: usize) -> Vec<Vec<&'a Case>> {
        // How many fit, whether words select them; each with its call.
        let mut begun = Vec::<((usize, bool), Vec<_>)>::new();
        for case in cases {
            let number = self.meant(case, turn);
            let room = match most(&case.call, &case.kind, case.errno)[1] {
                Most::Nothing | Most::Unkept(_) => 8,
                Most::Entry if case.kind.entry != "top" => 5,
                _ => 1,
            };
            let sort = (room, is_selectable(&self.calls[number]));
            let goes_with = |other: &(&Case, usize)| {
                let shifts = self.shifts(*other, number) || self.shifts((case, number), other.1);
                other.0.call != case.call && !shifts
            };
            let fits =
                |(of, batch): &&mut (_, Vec<_>)| *of == sort && batch.len() < room && batch.iter().all(goes_with);
            match begun.iter_mut().find(fits) {
                Some((_, batch)) => batch.push((case, number)),
                None => begun.push((sort, vec![(case, number)])),
            }
        }
        begun.into_iter().map(|(_, batch)| batch.into_iter().map(|(case, _)| case).collect()).collect()
    }

    /// What strikes these cases in a copy to `dst`.
    fn strikes(&self, cases: &[&Case], turn: usize, dst: &Path) -> Strikes {
        let meant: Vec<_> = cases.iter().map(|case| &self.calls[self.meant(case, turn)]).collect();
        let words = if meant.iter().all(|call| is_selectable(call)) { words_of(&meant) } else { Vec::new() };
        let number = |meant: &Call| {
            let counts = |(call, ..): &&(Call, Side, String)| {
                let is_traced = words.is_empty() || call.words.iter().any(|word| words.contains(word));
                (&call.name, &call.thread) == (&meant.name, &meant.thread) && call.number <= meant.number && is_traced
            };
            if words.is_empty() { meant.number } else { self.calls.iter().filter(counts).count() }
        };
        let calls =
            cases.iter().zip(&meant).map(|(case, (call, ..))| (call.name.clone(), number(call), case.errno)).collect();
        let (old, new) = (self.dst.to_str().unwrap(), dst.to_str().unwrap());
        Strikes { calls, words: words.iter().map(|word| word.replace(old, new)).collect() }
    }
}

/// Whether the words of a call are the same in each run, and say what it is about.
fn is_selectable((call, _, path): &(Call, Side, String)) -> bool {
    !path.contains(".pcopy-") && !call.words.iter().any(|word| word.starts_with("/proc/"))
}

/// The path of each call, and its name in its directory.
fn words_of(calls: &[&(Call, Side, String)]) -> Vec<String> {
    let paths = calls.iter().filter_map(|(call, ..)| call.path.clone());
    let words: BTreeSet<_> = paths
        .flat_map(|path| {
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            [path, name]
        })
        .collect();
    words.into_iter().collect()
}

#[test]
fn what_follows_a_failed_call_is_what_the_table_says_and_nothing_is_lost_without_being_counted() {
    /// Times that each case is tried, and at most, while too many were not struck: which call a number leads to may differ
    /// from run to run, on a busy machine more.
    const TRIES: [usize; 2] = [3, 9];
    let scene = need!(Scene::new());
    let started = Instant::now();
    let model = Model::new(&scene);
    let mut left = model.cases();
    let (cases, found, mut runs) = (left.len(), Mutex::new(Vec::new()), 0);
    let too_many = |left: &BTreeSet<Case>| left.len() * 12 > cases;
    for turn in 0..TRIES[1] {
        if turn >= TRIES[0] && !too_many(&left) {
            break;
        }
        let batches = model.batches(&left, turn);
        runs += batches.len();
        let done = Mutex::new(BTreeSet::new());
        parallel::for_each(&batches, |_, batch| {
            let (calls, objections) = scene.run(|dst| model.strikes(batch, turn, dst));
            let errno = |name: &str| ERRNOS.into_iter().find(|errno| *errno == name);
            let struck = calls.into_iter().filter_map(|(call, side, path)| {
                Some(Case { errno: errno(call.struck.as_deref()?)?, kind: kind(side, &path), call: call.name })
            });
            done.lock().unwrap().extend(struck);
            found.lock().unwrap().extend(objections);
        });
        let done = done.into_inner().unwrap();
        left.retain(|case| !done.contains(case));
    }
    let seconds = started.elapsed().as_secs_f64();
    chance::say(&format!("{cases} cases in {runs} runs, {} not struck, {seconds:.1} s", left.len()));
    let found = found.into_inner().unwrap();
    oracle::assert_none(&found, "calls that failed once");
    assert!(!too_many(&left), "not struck: {left:?}");
}

/// Rank 0 waited for the records that it could not read itself, and the job never ended.
#[test]
fn a_journal_that_cannot_be_opened_or_read_again_ends_the_job() {
    let scene = need!(Scene::new());
    let mut codes = BTreeSet::new();
    for number in 1..=3 {
        let strikes =
            Strikes { calls: vec![("openat".into(), number, "EACCES")], words: vec!["journal-000001.0".into()] };
        let dir = scene.home.join(format!("journal-{number}"));
        fs::create_dir(&dir).unwrap();
        let (outcome, calls) = strace::run(&scene.job, &["openat"], &strikes, &dir, [&scene.src, &dir.join("dst")]);
        let struck = calls.iter().any(|call| call.struck.is_some());
        assert_eq!(outcome.code() == Some(0), !struck, "{}", outcome.told());
        codes.extend(outcome.code());
    }
    assert!(codes.contains(&70), "{codes:?}: none was struck when the records were read");
}

/// How many calls and errnos are taken at random, unless each of some thousands is (`PCOPY_EVERY_CALL`).
const SAMPLE: usize = 60;

#[test]
fn every_single_call_may_fail_once() {
    let some = chance::from_environment("PCOPY_EVERY_CALL").is_none().then(|| Chance::new(chance::seed("every call")));
    let scene = need!(Scene::new());
    let model = Model::new(&scene);
    let all: BTreeSet<_> = model.calls.iter().map(|(call, ..)| (&call.name, call.number)).collect();
    let all: Vec<_> = all.into_iter().flat_map(|(call, number)| ERRNOS.map(|errno| (call, number, errno))).collect();
    let all = match some {
        Some(mut chance) => (0..SAMPLE).map(|_| *chance.one(&all)).collect(),
        None => all,
    };
    let (found, struck) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    parallel::for_each(&all, |_, (call, number, errno)| {
        let strikes = Strikes { calls: vec![((*call).clone(), *number, errno)], words: Vec::new() };
        let (calls, objections) = scene.run(|_| strikes);
        struck.fetch_add(usize::from(calls.iter().any(|(call, ..)| call.struck.is_some())), Ordering::Relaxed);
        let named = objections.into_iter().map(|objection| format!("{call} {number} {errno}: {objection}"));
        found.lock().unwrap().extend(named);
    });
    let struck = struck.into_inner();
    chance::say(&format!("{} runs, {struck} of them struck", all.len()));
    oracle::assert_none(&found.into_inner().unwrap(), "calls that failed once");
    assert!(struck * 2 > all.len(), "too few were struck");
}
