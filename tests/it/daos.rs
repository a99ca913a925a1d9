//! The case that pcopy is for: into and out of DAOS containers, through dfuse, with its interception library. Each test
//! runs on the stand-ins, and on real mounts where `PCOPY_TEST_DFUSE` names them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::support::daos::{Container, Storage, held, marks_of, settle};
use crate::support::interrupted::half_written_as_finished;
use crate::support::journal::kill_at;
use crate::support::launch::{Job, Outcome};
use crate::support::manifest::{self, Expect, Manifest};
use crate::support::oracle::{self, Aspects, Kind, Node, Tree};
use crate::support::preload;
use crate::support::resumed::number;
use crate::support::skip::{self, Missing, need};
use crate::support::sys;
use crate::support::told;
use crate::support::tree::{self, KIB, chmod, noise_file, temp};
use crate::unkept;

/// What is compared: a container has no hard links.
const HELD: Aspects = Aspects { hard_links: false, ..Aspects::ALL };

fn job_of(storage: &Storage, ranks: usize, preloaded: bool) -> Job {
    let job = storage.job(ranks).options(["-k", "64K", "-b", "16K", "--json"]);
    if preloaded { storage.preloaded(job) } else { job }
}

/// Something of everything that a container cannot hold, and much that it can.
fn a_tree(root: &Path) -> PathBuf {
    unkept::everything(root);
    tree::odd_tree(&root.join("odd"), 64 * KIB, 16 * KIB);
    tree::small_files(&root.join("small"), 4, 30);
    for (name, mode) in [("sticky", 0o1777), ("setgid", 0o2775), ("closed", 0o555), ("open", 0o777)] {
        noise_file(&root.join(name).join("inside"), 1000);
        chmod(&root.join(name), mode);
    }
    noise_file(&root.join("sticky-file"), 100);
    chmod(&root.join("sticky-file"), 0o1644);
    noise_file(&root.join("labelled"), 100);
    sys::set_xattr(&root.join("labelled"), "security.pcopy-it", b"label").unwrap();
    sys::set_xattr(&root.join("labelled"), "trusted.note", b"value").unwrap();
    sys::set_xattr(&root.join("setgid"), "user.note", b"value").unwrap();
    tree::age(root);
    root.to_path_buf()
}

/// Everything is at `dst` that could be held of `src`, in contents and metadata.
#[track_caller]
fn assert_held(expected: &Tree, src: &Path, dst: &Path, outcome: &Outcome) {
    let found = oracle::differences_since(expected, src, dst, HELD);
    oracle::assert_none(&found, &outcome.told());
}

/// Copies, and checks the manifest against what is there once the mounts' caches have given way.
#[track_caller]
fn copied(job: &Job, src: &Path, dst: &Path) -> (Outcome, Manifest) {
    let outcome = job.run([src, dst]);
    outcome.assert_code(0);
    settle();
    let expect = Expect { root: dst, ranks: job.rank_count(), digests: true, strangers: false };
    let manifest = manifest::checked(&dst.join(".pcopy/manifest.jsonl"), &expect);
    (outcome, manifest)
}

/// The same command again, twice: nothing is copied, and of no entry anything is set again but of those that every run
/// touches: the root, in which the marker is made, directories that their owner may not write to, and what is not there.
#[track_caller]
fn assert_nothing_to_do(job: &Job, src: &Path, dst: &Path) {
    let is_touched = |(path, node): &(&Vec<u8>, &Node)| match node.kind {
        Kind::Dir => path.is_empty() || node.mode & 0o700 != 0o700,
        Kind::File | Kind::Symlink => false,
        _ => true,
    };
    let touched = oracle::walk(src).iter().filter(is_touched).count();
    for run in 0..2 {
        let outcome = job.run([src, dst]);
        outcome.assert_code(0);
        let told = told::json(&outcome);
        assert_eq!(number(&told, "bytes_moved"), 0, "rerun {run}: {}", outcome.told());
        let left = number(&told, "entries") - number(&told, "resumed");
        assert!(left <= u64::try_from(touched).unwrap(), "rerun {run}: {left} of {touched}: {}", outcome.told());
    }
}

#[track_caller]
fn assert_taken(storage: &Storage, preloaded: bool) {
    let Some((counted, processes)) = storage.take_counted().filter(|_| preloaded) else { return };
    assert!(processes > 0);
    assert_eq!((counted["unseen_closes"], counted["misdirected"]), (0, 0), "{counted:?}");
    assert_eq!(counted["given_back"], 0, "{counted:?}");
    assert!(counted["bytes_read"] + counted["bytes_written"] > 0, "{counted:?}");
}

/// Out of a plain directory into a container, again, and out of it to another plain directory, again.
fn goes_in_and_comes_out(ranks: usize, preloaded: bool) {
    for storage in need!(Storage::all()) {
        let dir = temp();
        let src = a_tree(&dir.path().join("src"));
        let (inside, back) = (storage.one.dir().join("copy"), dir.path().join("back"));
        let before = oracle::walk(&src);
        let job = job_of(&storage, ranks, preloaded);
        let (outcome, manifest) = copied(&job, &src, &inside);
        assert_eq!(told::marks(&manifest), marks_of(&before), "{}", outcome.told());
        assert_eq!(told::unkept_in_json(&outcome), marks_of(&before));
        assert_held(&held(&before), &src, &storage.one.through_the_other(&inside), &outcome);
        assert_taken(&storage, preloaded);
        assert_nothing_to_do(&job, &src, &inside);
        let (outcome, manifest) = copied(&job, &inside.join(""), &back);
        assert!(told::marks(&manifest).is_empty(), "{}", outcome.told());
        assert_held(&held(&before), &src, &back, &outcome);
        assert_taken(&storage, preloaded);
        assert_nothing_to_do(&job, &inside.join(""), &back);
    }
}

#[test]
fn a_tree_goes_in_and_comes_out_np_1() {
    goes_in_and_comes_out(1, false);
}

#[test]
fn a_tree_goes_in_and_comes_out_np_4() {
    goes_in_and_comes_out(4, false);
}

#[test]
fn a_tree_goes_in_and_comes_out_with_the_library_np_1() {
    goes_in_and_comes_out(1, true);
}

#[test]
fn a_tree_goes_in_and_comes_out_with_the_library_np_4() {
    goes_in_and_comes_out(4, true);
}

#[test]
fn a_tree_goes_in_and_comes_out_with_the_library_np_16() {
    goes_in_and_comes_out(16, true);
}

#[test]
fn replaced_files_and_files_in_ranges_keep_their_times() {
    for storage in need!(Storage::all()) {
        let dir = temp();
        let src = dir.path().join("src");
        let inside = storage.one.dir().join("copy");
        let job = job_of(&storage, 2, true);
        for round in 0..2 {
            for (name, len) in [("small", 100), ("large", 300_000)] {
                noise_file(&src.join(name), len + round);
                noise_file(&src.join("dir").join(name), len + round);
            }
            tree::age(&src);
            let outcome = job.run([&src, &inside]);
            outcome.assert_code(0);
            assert!(told::unkept_in_json(&outcome).is_empty(), "{}", outcome.told());
            settle();
            assert_held(&oracle::walk(&src), &src, &storage.one.through_the_other(&inside), &outcome);
            assert_nothing_to_do(&job, &src, &inside);
        }
    }
}

#[test]
fn a_containers_root_stays_bound_to_its_own_container() {
    for storage in need!(Storage::all()) {
        let (dir, job) = (temp(), job_of(&storage, 2, false).options(["--xattrs=all"]));
        let (root, elsewhere) = (&storage.one.mounts[0], storage.other.dir().join("copy"));
        let filter = format!("--include=/{0}", storage.one.dir().file_name().unwrap().to_str().unwrap());
        let job = job.options([&filter, "--exclude=/*"]);
        noise_file(&storage.one.dir().join("f"), 1000);
        let plain = dir.path().join("plain");
        for dst in [&plain, &elsewhere] {
            // out of one container, twice: the second time it is there
            for _ in 0..2 {
                let outcome = job.run([root.join(""), dst.clone()]);
                outcome.assert_code(0);
                assert!(told::unkept_in_json(&outcome).is_empty(), "{}", outcome.told());
            }
            let names = sys::list_xattrs(dst).unwrap();
            assert!(!names.contains(&b"user.daos".to_vec()), "{names:?}");
        }
        sleep(Duration::from_millis(5100));
        noise_file(&storage.one.dir().join("later"), 10);
        let own = storage.one.dir();
        assert!(!elsewhere.join(own.file_name().unwrap()).join("later").exists(), "it leads to the source");
    }
}

#[test]
fn a_directory_that_was_changed_just_now_is_no_error() {
    for storage in need!(Storage::all()) {
        let dir = temp();
        let src = storage.one.dir().join("src");
        for round in 0..4 {
            for number in 0..10 {
                noise_file(&src.join(format!("d{number}/f{round}")), 100);
            }
            let dst = dir.path().join(format!("{round}"));
            // the ranks of this one see the mount through which it was changed
            let outcome = Job::ranks(1).options(["--json"]).run([&src, &dst]);
            outcome.assert_code(0);
            let found = oracle::differences(&src, &dst, HELD);
            oracle::assert_none(&found, &outcome.told());
        }
    }
}

#[test]
fn an_ordinary_user_copies_his_own() {
    for storage in need!(Storage::all()) {
        let (dir, kit) = (temp(), temp());
        let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 16 * KIB);
        for path in oracle::walk(&src).keys() {
            let nobody = crate::support::launch::NOBODY;
            oracle::at_below(&src, path, |at| std::os::unix::fs::lchown(at, Some(nobody), Some(nobody)).unwrap());
        }
        tree::age(&src);
        let home = storage.one.dir().join("home");
        fs::create_dir(&home).unwrap();
        chmod(&home, 0o777);
        let back = dir.path().join("back");
        fs::create_dir(&back).unwrap();
        chmod(&back, 0o777);
        for ranks in [1, 4] {
            let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--json"]).by_nobody(kit.path());
            let job = storage.preloaded_directly(job);
            let (inside, out) = (home.join(format!("np{ranks}")), back.join(format!("np{ranks}")));
            for (from, to) in [(&src, &inside), (&inside, &out)] {
                let outcome = job.run([from, to]);
                outcome.assert_code(0);
                assert!(told::unkept_in_json(&outcome).is_empty(), "{}", outcome.told());
                settle();
                assert_held(&oracle::walk(&src), &src, to, &outcome);
                assert_nothing_to_do(&job, from, to);
            }
            assert_taken(&storage, true);
        }
    }
}

#[test]
fn a_sticky_directory_is_made_without_the_bit_and_marked() {
    for storage in need!(Storage::all()) {
        let dir = temp();
        let src = dir.path().join("src");
        noise_file(&src.join("shared/f"), 100);
        chmod(&src.join("shared"), 0o1777);
        chmod(&src, 0o1755);
        tree::age(&src);
        let inside = storage.one.dir().join("copy");
        let (_, manifest) = copied(&job_of(&storage, 2, true), &src, &inside);
        assert_eq!(told::marks(&manifest), [("mode".to_owned(), 2)].into());
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode(&inside), mode(&inside.join("shared"))), (0o755, 0o777));
    }
}

/// The whole of DAOS's guide to upgrades: a container is copied out, destroyed, made anew, and everything is brought back,
/// both ways with the library preloaded.
#[test]
fn a_container_is_copied_out_destroyed_made_anew_and_brought_back() {
    for storage in need!(Storage::all()) {
        let dir = temp();
        let made = a_tree(&dir.path().join("made"));
        let project = storage.one.dir().join("project");
        let job = job_of(&storage, 4, true);
        copied(&job, &made, &project);
        let before = oracle::walk(&project);
        let digests = digests_below(&project);
        let backup = dir.path().join("backup");
        let (outcome, manifest) = copied(&job, &project, &backup);
        assert!(told::marks(&manifest).is_empty(), "{}", outcome.told());
        assert_taken(&storage, true);
        let storage = storage.made_anew();
        let restored = storage.one.dir().join("project");
        assert!(!restored.exists(), "the store is another one");
        let job = job_of(&storage, 4, true);
        let (outcome, manifest) = copied(&job, &backup.join(""), &restored);
        assert!(told::marks(&manifest).is_empty(), "{}", outcome.told());
        assert_taken(&storage, true);
        let found = oracle::compare(&before, &oracle::walk(&storage.one.through_the_other(&restored)), HELD);
        oracle::assert_none(&found, &outcome.told());
        assert_eq!(digests_below(&storage.one.through_the_other(&restored)), digests);
        assert_nothing_to_do(&job, &backup.join(""), &restored);
    }
}

/// What b3sum says of each file, by its path.
fn digests_below(root: &Path) -> String {
    let script = "find . -path ./.pcopy -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 b3sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(root).output().unwrap();
    assert!(output.status.success() && !output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_killed_copy_goes_on_in_both_directions() {
    for storage in need!(Storage::all()) {
        let dir = temp();
        let src = tree::small_files(&dir.path().join("src"), 25, 60);
        noise_file(&src.join("large"), 3 << 20);
        tree::age(&src);
        let (inside, back) = (storage.one.dir().join("copy"), dir.path().join("back"));
        let slow = ["--threads", "1", "--checkpoint-interval", "10ms", "--limit-rate", "3M"];
        for (from, to) in [(&src, &inside), (&inside, &back)] {
            // directories and ranges are items too
            kill_at(&job_of(&storage, 4, true).options(slow), [from, to], &to.join(".pcopy"), 200);
            let outcome = job_of(&storage, 2, true).run([from, to]);
            outcome.assert_code(0);
            assert!(number(&told::json(&outcome), "resumed") >= 100, "{}", outcome.told());
            settle();
            assert_held(&oracle::walk(&src), &src, to, &outcome);
            assert_nothing_to_do(&job_of(&storage, 1, false), from, to);
        }
    }
}

/// What a mount is asked for, by kind.
type Requests = BTreeMap<&'static str, u64>;

/// The requests of a tree's copy into a container, and out of it again.
fn requests_of(preloaded: bool, make: impl Fn(&Path)) -> Result<[Requests; 2], Missing> {
    let storage = Storage::stand_in()?;
    let dir = temp();
    let src = dir.path().join("src");
    make(&src);
    tree::age(&src);
    let inside = storage.one.dir().join("copy");
    let job = Job::ranks(1).options(["--json", "--threads", "1", "-k", "1M", "-b", "1M"]);
    let job = if preloaded { storage.preloaded_directly(job) } else { job };
    storage.one.take_requests();
    job.run([&src, &inside]).assert_code(0);
    let into = storage.one.take_requests();
    settle();
    storage.one.take_requests();
    job.run([&inside, &dir.path().join("back")]).assert_code(0);
    Ok([into, storage.one.take_requests()])
}

/// What 40 more of something cost, each.
fn each_of_40(many: &Requests, few: &Requests) -> BTreeMap<&'static str, f64> {
    let each = |(name, count): (&&'static str, &u64)| {
        let more = count.saturating_sub(few.get(name).copied().unwrap_or(0));
        #[allow(clippy::cast_precision_loss)]
        let each = more as f64 / 40.0;
        (*name, each)
    };
    many.iter().map(each).filter(|(_, each)| *each > 0.1).collect()
}

/// Each costs at most what stands in the table, and nothing that does not. `release`, `releasedir` and `forget` are not waited
/// for; `getxattr` is the kernel's own before a write (security.capability), and its are the `getattr` of a directory in
/// which something was made, and what it asks again when a second is over.
#[track_caller]
fn assert_costs(what: &str, [many, few]: [&Requests; 2], expected: &[(&str, f64)]) {
    let mut costs = each_of_40(many, few);
    costs.retain(|name, _| !["release", "releasedir", "forget", "getxattr"].contains(name));
    let most = |name: &str| expected.iter().find(|(other, _)| *other == name).map_or(0.0, |(_, most)| *most);
    assert!(costs.iter().all(|(name, cost)| *cost < most(name) + 0.5), "{what}: {costs:?}, expected {expected:?}");
    assert!(!costs.is_empty(), "{what} costs nothing");
}

#[test]
fn a_small_file_a_directory_and_a_range_cost_few_requests() {
    let small = |files: usize| {
        move |root: &Path| {
            (0..files).for_each(|number| noise_file(&root.join(format!("d/f{number}")), 1000 + number));
        }
    };
    let dirs = |dirs: usize| {
        move |root: &Path| {
            (0..dirs).for_each(|number| fs::create_dir_all(root.join(format!("d{number}"))).unwrap());
        }
    };
    let ranges = |ranges: usize| move |root: &Path| noise_file(&root.join("f"), ranges << 20);
    let pair = |preloaded, few: &dyn Fn(&Path), many: &dyn Fn(&Path)| -> Result<_, Missing> {
        Ok((requests_of(preloaded, few)?, requests_of(preloaded, many)?))
    };
    for preloaded in [false, true] {
        let ioctls = if preloaded { &[("ioctl", 3.0)] as &[_] } else { &[] };
        let data = |read_or_write| if preloaded { vec![] } else { vec![(read_or_write, 1.0)] };
        let costs = |fixed: &[(&'static str, f64)], data: Vec<(&'static str, f64)>| [fixed, ioctls, &data].concat();
        let (few, many) = need!(pair(preloaded, &small(5), &small(45)));
        // the answer of the last setattr serves the last look, unless the library's ioctl makes the kernel forget it
        let looks = if preloaded { 2.0 } else { 1.0 };
        let into = [("lookup", 1.0), ("create", 1.0), ("getattr", looks), ("setattr", 2.0), ("flush", 1.0)];
        assert_costs("a small file, into", [&many[0], &few[0]], &costs(&into, data("write")));
        let out = [("open", 1.0), ("getattr", 1.0), ("listxattr", 1.0), ("flush", 1.0)];
        assert_costs("a small file, out", [&many[1], &few[1]], &costs(&out, data("read")));
        let (few, many) = need!(pair(preloaded, &dirs(5), &dirs(45)));
        let into = [("lookup", 2.0), ("mkdir", 1.0), ("opendir", 1.0), ("getattr", 2.0), ("setattr", 2.0)];
        assert_costs("a directory, into", [&many[0], &few[0]], &into);
        let out = [("opendir", 1.0), ("readdirplus", 1.0), ("readdir", 1.0), ("getattr", 3.0), ("listxattr", 1.0)];
        assert_costs("a directory, out", [&many[1], &few[1]], &out);
        let (few, many) = need!(pair(preloaded, &ranges(3), &ranges(43)));
        // without the library what was written is read back; with it the kernel asks for permissions at each open
        let back = if preloaded { vec![("getattr", 1.0)] } else { vec![("read", 1.0), ("fsync", 1.0)] };
        let opens = if preloaded { 1.0 } else { 2.0 };
        let into = [("open", opens), ("flush", opens)];
        assert_costs("a range, into", [&many[0], &few[0]], &costs(&into, [data("write"), back].concat()));
        let out = [("open", 1.0), ("flush", 1.0), ("getattr", 1.0)];
        assert_costs("a range, out", [&many[1], &few[1]], &costs(&out, data("read")));
    }
}

/// A container that is full answers writes that it loses; with it the copy stops, and goes on once there is room.
#[test]
fn what_a_full_container_has_lost_without_a_word_is_noticed() {
    let container = need!(Container::writing_back());
    let dir = temp();
    let src = dir.path().join("src");
    for number in 0..6 {
        noise_file(&src.join(format!("small{number}")), 50_000 + number);
        // the last range of 256 KiB is short
        noise_file(&src.join(format!("large{number}")), 530_000 + number);
        tree::sparse_file(&src.join(format!("sparse{number}")), 100_000, &[(50_000, 4000)]);
    }
    tree::age(&src);
    for (options, room) in [(["-k", "256K", "-b", "128K"], 2_000_000), (["-k", "16M", "-b", "4M"], 2_000_000)] {
        for ranks in [1, 2] {
            let dst = container.dir().join(format!("np{ranks}-{}", options[1]));
            let job = Job::ranks(ranks).options(options).options(["--json", "--retries", "1"]);
            container.control().leave_room(room, libc::ENOSPC);
            let outcome = job.run([&src, &dst]);
            assert!(matches!(outcome.code(), Some(1 | 75)), "{}", outcome.told());
            oracle::assert_none(&half_written_as_finished(&src, &dst), &outcome.told());
            container.control().lift();
            let outcome = job.run([&src, &dst]);
            outcome.assert_code(0);
            settle();
            assert_held(&oracle::walk(&src), &src, &container.through_the_other(&dst), &outcome);
        }
    }
}

#[test]
fn libpil4dfs_is_refused_in_one_line_before_it_crashes() {
    let home = temp();
    let library = preload::compile("libpil4dfs.c", home.path());
    // what happens to any other program in Rust
    need!(skip::program("b3sum"));
    let crashed = Command::new("b3sum").arg(&library).env("LD_PRELOAD", &library).output().unwrap();
    assert_eq!(crashed.status.signal(), Some(libc::SIGSEGV));
    let src = tree::small_files(&home.path().join("src"), 1, 1);
    let dst = home.path().join("dst");
    for job in [Job::alone(), Job::ranks(4)] {
        let outcome = job.rank_env("LD_PRELOAD", &library).run([&src, &dst]);
        outcome.assert_code(2);
        assert_eq!(outcome.lines_of_pcopy().len(), 1, "{}", outcome.told());
        assert!(outcome.lines_of_pcopy()[0].contains("libioil.so"), "{}", outcome.told());
        assert!(!dst.exists());
    }
}
