//! The hard tree on real file systems in user space (issue 15): whatever they do with names, metadata and times, the copy is
//! right, or the manifest tells what is not; a rerun moves nothing; and what arrived comes out again.

mod rare;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::chance;
use crate::support::hard_tree::{By, HardTree};
use crate::support::journal::kill_at;
use crate::support::launch::{Job, Outcome};
use crate::support::losses;
use crate::support::manifest::{self, Expect, Manifest, is_unkept};
use crate::support::mounts::{FileSystem, Mount, Over, over, sshfs};
use crate::support::oracle;
use crate::support::skip::{Missing, need};
use crate::support::told;
use crate::support::tree::temp;
use crate::support::whole::temporaries;

/// What holds the copy.
struct Mounted {
    path: PathBuf,
    /// Where the copy is judged: below the file system where that can be, which may tell less than it keeps (links).
    judged: PathBuf,
    /// After a kill it may show names of its own. Seen twice in some 30 runs on NTFS: the first 18 bytes of a name of 255.
    strays: bool,
    /// It shows times before 1970 as 1970 now and then: such files are copied again, and the judge looks several times.
    flaps: bool,
    /// Entries of the hard tree that it cannot be tried with.
    left_out: &'static [&'static str],
    _mount: Box<dyn std::any::Any>,
}

fn image(kind: FileSystem) -> impl Fn(&Path) -> Result<Mounted, Missing> {
    move |_| {
        let mount = Mount::new(kind, 256)?;
        let path = mount.path().to_path_buf();
        let strays = [FileSystem::NtfsIgnoringCase, FileSystem::Ntfs].contains(&kind);
        Ok(Mounted { judged: path.clone(), path, strays, flaps: false, left_out: &[], _mount: Box::new(mount) })
    }
}

fn layered(kind: Over) -> impl Fn(&Path) -> Result<Mounted, Missing> {
    move |home| {
        let path = home.join("mnt");
        let mount = over(kind, home, &path)?;
        let judged = if kind.shows_store() { home.join("store") } else { path.clone() };
        // To make a whiteout, fuse-overlayfs makes its directory unusable for a second.
        let left_out: &[&str] = if kind == Over::FuseOverlayfs { &["special/whiteout"] } else { &[] };
        Ok(Mounted { path, judged, strays: false, flaps: false, left_out, _mount: Box::new(mount) })
    }
}

/// A row of the table in docs/file-systems.md: how many entries of the copy lack what, and how many failed.
fn row(name: &str, manifest: &Manifest) -> String {
    let mut counts = BTreeMap::new();
    for kind in told::KINDS {
        let count = manifest.entries.values().filter(|entry| is_unkept(entry, kind)).count();
        counts.insert(kind, count);
    }
    let failed = manifest.failed().filter_map(|(_, entry)| entry["error"]["op"].as_str());
    let mut operations = BTreeMap::<_, usize>::new();
    failed.for_each(|operation| *operations.entry(operation).or_default() += 1);
    let told = |counts: Vec<(&str, usize)>| {
        let some: Vec<_> =
            counts.iter().filter(|(_, count)| *count > 0).map(|(kind, count)| format!("{kind} {count}")).collect();
        if some.is_empty() { "-".to_owned() } else { some.join(", ") }
    };
    format!("| {name} | {} | {} |", told(counts.into_iter().collect()), told(operations.into_iter().collect()))
}

/// Copies the hard tree in, again, killed and completed, and out; each time nothing is lost but what is told.
fn try_file_system(name: &str, mount: impl Fn(&Path) -> Result<Mounted, Missing>) {
    let dir = temp();
    let mut tree = need!(HardTree::new(&dir.path().join("src"), By::Root));
    let mounted = need!(mount(&dir.path().join("home")));
    // Paths of more than 4096 bytes other tests try.
    for left_out in ["deep"].iter().chain(mounted.left_out) {
        let path = tree.root.join(left_out);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    tree.before = oracle::snapshot(&tree.root);
    let (dst, state) = (mounted.path.join("dst"), dir.path().join("state"));
    let options = [format!("--state-dir={}", state.display()), "--json".into()];
    let job = |ranks: usize| Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]).options(&options);
    let untold = |tree: &HardTree, dst: &Path, manifest: &Manifest| {
        let mut untold = losses::untold(tree, dst, manifest);
        untold.retain(|line| !(mounted.flaps && line.contains(": mtime ")));
        untold
    };
    let judge = |outcome: &Outcome, ranks: usize, name: &str| -> Manifest {
        let dst = &mounted.judged.join(name);
        let strangers = mounted.strays && name == "killed";
        let expect = Expect { root: dst, ranks, digests: true, strangers };
        let file = state.join("manifest.jsonl");
        let mut checked = manifest::check(&file, &expect);
        let flapped = |found: &Vec<String>| mounted.flaps && found.iter().all(|line| line.contains(": mtime is "));
        for _ in 0..10 {
            if checked.as_ref().is_err_and(flapped) {
                checked = manifest::check(&file, &expect);
            }
        }
        let manifest = checked.unwrap_or_else(|found| {
            panic!("{} objections to the manifest:\n  {}\n{}", found.len(), found.join("\n  "), outcome.told())
        });
        oracle::assert_none(&untold(&tree, dst, &manifest), &outcome.told());
        oracle::assert_none(&temporaries(dst), &outcome.told());
        let failed = manifest.failed().count();
        outcome.assert_code(i32::from(failed > 0));
        manifest
    };
    let first = job(2).run([&tree.root, &dst]);
    let manifest = judge(&first, 2, "dst");
    let again = job(1).run([&tree.root, &dst]);
    judge(&again, 1, "dst");
    let told = told::json(&again);
    // what has failed is tried again
    let tried: u64 = manifest.failed().map(|(path, _)| tree.before[path].size).sum();
    let old = tree.before.values().filter(|node| mounted.flaps && node.mtime_ns < 0).map(|node| node.size);
    let tried = tried + old.sum::<u64>();
    assert!(told["bytes_moved"].as_u64().unwrap() <= tried, "{}", again.told());
    assert_eq!(told["errors"], manifest.failed().count(), "{}", again.told());
    chance::say(&row(name, &manifest));

    // What arrived comes out as it is there.
    let (from, out) = (mounted.path.join("dst"), dir.path().join("out"));
    let shown = HardTree { before: oracle::walk(&from), root: from };
    let outcome = Job::ranks(2).run([&shown.root, &out]);
    outcome.assert_code(0);
    let expect = Expect { root: &out, ranks: 2, digests: true, strangers: false };
    let came = manifest::check(&out.join(".pcopy/manifest.jsonl"), &expect).unwrap();
    oracle::assert_none(&untold(&shown, &out, &came), &outcome.told());

    fs::remove_dir_all(&state).unwrap();
    let killed = mounted.path.join("killed");
    kill_at(&job(2), [&tree.root, &killed], &state, 60);
    judge(&job(4).run([&tree.root, &killed]), 4, "killed");
}

#[test]
fn sshfs_keeps_what_is_not_told_to_be_lost() {
    try_file_system("sshfs", |home| {
        let (store, at) = (home.join("store"), home.join("mnt"));
        fs::create_dir_all(&store).unwrap();
        let mount = sshfs(&store, &at)?;
        Ok(Mounted { path: at, judged: store, strays: false, flaps: false, left_out: &[], _mount: Box::new(mount) })
    });
}

#[test]
fn gocryptfs_keeps_what_is_not_told_to_be_lost() {
    try_file_system("gocryptfs", layered(Over::Gocryptfs));
}

#[test]
fn fuse_overlayfs_keeps_what_is_not_told_to_be_lost() {
    try_file_system("fuse-overlayfs", layered(Over::FuseOverlayfs));
}

#[test]
fn mergerfs_with_a_write_back_cache_keeps_what_is_not_told_to_be_lost() {
    try_file_system("mergerfs, write-back", layered(Over::Mergerfs));
}

#[test]
fn ntfs_that_ignores_case_keeps_what_is_not_told_to_be_lost() {
    try_file_system("lowntfs-3g, `ignore_case`", image(FileSystem::NtfsIgnoringCase));
}
