//! A large file goes on at its ranges, as long as it is the same file (issue 4).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::fuse::{Faults, FuseMount};
use crate::support::journal::{self, kill_at};
use crate::support::launch::Job;
use crate::support::oracle::{self, Aspects};
use crate::support::resumed::{bytes_of, number};
use crate::support::skip::{Missing, need};
use crate::support::told;
use crate::support::tree::{self, MIB, noise, noise_file, set_times, sparse_file, temp, write};
use crate::support::whole::{Place, names, unfinished};

/// Reads of whole ranges, as the slow source takes its time for each.
fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "64K", "--threads", "1", "--checkpoint-interval", "10ms", "--json"])
}

/// A source that takes its time.
fn slow() -> Result<FuseMount, Missing> {
    FuseMount::new(Faults { delay_ms: 4, attributes_and_holes: true, ..Faults::default() })
}

const RANGE: u64 = 64 << 10;

/// A large file of a slow source, and where it is copied to: in part, by a run that was killed.
struct LargeCase {
    fuse: FuseMount,
    place: Place,
    _dir: TempDir,
}

impl LargeCase {
    fn new(make: impl FnOnce(&Path)) -> Result<LargeCase, Missing> {
        LargeCase::killed_at(24, make)
    }

    /// Killed when the journals have so many items.
    fn killed_at(items: u64, make: impl FnOnce(&Path)) -> Result<LargeCase, Missing> {
        let fuse = slow()?;
        let src = fuse.backing().join("src");
        make(&src.join("large"));
        noise_file(&src.join("small"), 300);
        tree::age(&src);
        let dir = temp();
        let case = LargeCase { place: Place::new(&src, &dir.path().join("dst")), fuse, _dir: dir };
        kill_at(&job(2), case.operands(), &case.place.state, items);
        Ok(case)
    }

    /// What the large file is copied to, in the private directory.
    fn temporary(&self) -> PathBuf {
        let only = |dir: &Path, end: &str| {
            let found: Vec<_> =
                names(dir).into_iter().filter(|n| n.starts_with(".pcopy-") && n.ends_with(end)).collect();
            assert_eq!(found.len(), 1, "{:?}", names(dir));
            dir.join(&found[0])
        };
        only(&only(&self.place.root, ".d"), ".tmp")
    }

    /// As the mount shows it: what is changed behind its back, it may not see.
    fn source(&self) -> PathBuf {
        self.fuse.path().join("src")
    }

    fn operands(&self) -> [PathBuf; 2] {
        [self.source(), self.place.root.clone()]
    }

    /// Ranges of the file that the journals have.
    fn recorded(&self) -> u64 {
        let recorded = journal::ranges(&self.place.state).get(b"large".as_slice()).copied();
        u64::try_from(recorded.unwrap_or_default()).unwrap()
    }

    fn completes(&self, ranks: usize) -> Value {
        told::json(&self.place.complete(&job(ranks), self.operands()))
    }
}

/// So that the change time of a file, of which FUSE tells seconds, is another one than any before.
fn wait_for_the_next_second() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let began = now();
    while now() < began + 1 {
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_large_file_goes_on_at_its_ranges() {
    for ranks in [1, 3] {
        let case = need!(LargeCase::new(|large| noise_file(large, 20 * MIB + 4097)));
        let recorded = case.recorded();
        assert!(recorded >= 10, "{recorded} ranges");
        assert!(!case.place.root.join("large").exists(), "what is half copied has no final name");
        let told = case.completes(ranks);
        let all = bytes_of(&case.place.src);
        let moved = number(&told, "bytes_moved");
        assert!(moved > 0 && moved <= all - (recorded - 1) * RANGE, "{recorded} ranges were recorded: {told}");
        assert_eq!((number(&told, "bytes"), number(&told, "runs")), (all, 2));
    }
}

#[test]
fn a_large_file_that_is_killed_many_times_loses_no_recorded_range() {
    let case = need!(LargeCase::new(|large| noise_file(large, 24 * MIB)));
    for ranks in [3, 1] {
        kill_at(&job(ranks), case.operands(), &case.place.state, 40);
    }
    let told = case.completes(2);
    // One or two of the items are no ranges.
    assert!(number(&told, "bytes_moved") < (24 << 20) - 70 * RANGE, "{told}");
}

#[test]
fn a_large_file_that_changed_after_some_ranges_is_copied_anew() {
    // With its old times, too: then the change time alone tells.
    for old_times in [false, true] {
        let case = need!(LargeCase::new(|large| noise_file(large, 12 * MIB)));
        assert!(case.recorded() >= 10);
        println!("with its old times: {old_times}");
        let large = case.source().join("large");
        let before = large.metadata().unwrap();
        wait_for_the_next_second();
        write(&large, &noise(12 * MIB, 4711));
        let mtime = if old_times { (before.mtime(), before.mtime_nsec()) } else { (1_700_000_000, 5) };
        set_times(&large, mtime, mtime);
        let told = case.completes(2);
        assert!(number(&told, "bytes_moved") >= 12 << 20, "{told}");
    }
}

#[test]
fn a_large_file_that_is_shorter_or_longer_now_is_copied_anew() {
    for len in [3 * MIB + 1, 13 * MIB, 100] {
        let case = need!(LargeCase::new(|large| noise_file(large, 8 * MIB)));
        write(&case.source().join("large"), &noise(len, 12));
        tree::age(&case.source());
        case.completes(2);
    }
}

#[test]
fn what_is_left_of_a_large_file_that_is_gone_now_is_removed() {
    let case = need!(LargeCase::new(|large| noise_file(large, 8 * MIB)));
    assert!(case.temporary().exists());
    fs::remove_file(case.source().join("large")).unwrap();
    tree::age(&case.source());
    case.completes(1);
    assert_eq!(names(&case.place.root), [".pcopy", "small"]);
}

#[test]
fn what_is_left_of_a_large_file_is_removed_by_another_job_and_a_restart() {
    for option in ["--restart", "--no-digest"] {
        let case = need!(LargeCase::new(|large| noise_file(large, 8 * MIB)));
        let other = job(2).options([option]);
        let told = told::json(&case.place.complete(&other, case.operands()));
        assert_eq!(number(&told, "bytes_moved"), bytes_of(&case.place.src), "{told}");
    }
}

#[test]
fn a_temporary_file_that_is_damaged_or_gone_is_not_trusted() {
    for damage in ["gone", "short", "a link"] {
        let case = need!(LargeCase::new(|large| noise_file(large, 8 * MIB)));
        let temporary = case.temporary();
        match damage {
            "short" => OpenOptions::new().write(true).open(&temporary).unwrap().set_len(100_000).unwrap(),
            _ => fs::remove_file(&temporary).unwrap(),
        }
        if damage == "a link" {
            symlink("nowhere", &temporary).unwrap();
        }
        println!("the temporary file is {damage}");
        case.completes(2);
    }
}

#[test]
fn a_sparse_file_goes_on_and_keeps_its_holes() {
    // Its ranges have 64 MiB at least: four pieces of data in each.
    let data: Vec<_> = (0..128).map(|n| (n * (16 << 20) + 5000 * n, 64 << 10)).collect();
    let case = need!(LargeCase::killed_at(7, |large| sparse_file(large, (2 << 30) + 77, &data)));
    let recorded = case.recorded();
    assert!(recorded >= 3, "{recorded} ranges");
    let told = case.completes(3);
    let moved = number(&told, "bytes_moved");
    assert!(moved > 0 && moved < (128 * 64) << 10, "{told}");
    oracle::assert_same(&case.place.src, &case.place.root, Aspects { blocks: true, content: false, ..Aspects::ALL });
}

#[test]
fn a_single_file_goes_on_with_a_state_directory() {
    let fuse = need!(slow());
    noise_file(&fuse.backing().join("file"), 12 * MIB + 77);
    tree::age(&fuse.backing().join("file"));
    let dir = temp();
    let (state, dst) = (dir.path().join("state"), dir.path().join("copy"));
    let job = |ranks| self::job(ranks).options(["--state-dir"]).options([&state]);
    let operands = [&fuse.path().join("file"), &dst];
    kill_at(&job(1), operands, &state, 20);
    let outcome = job(2).run(operands);
    outcome.assert_code(0);
    assert_eq!(fs::read(&dst).unwrap(), fs::read(fuse.backing().join("file")).unwrap());
    let moved = number(&told::json(&outcome), "bytes_moved");
    assert!(moved > 0 && moved < 12 << 20, "{}", outcome.told());
    oracle::assert_none(&unfinished(&state), &outcome.told());
    assert_eq!(names(dir.path()), ["copy", "state"]);
    assert_eq!(number(&told::json(&job(1).run(operands)), "bytes_moved"), 0);
}
