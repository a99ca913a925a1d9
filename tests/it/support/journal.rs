//! The journals of a run, read by the byte table of their format, not by the product's code; and kills at a moment that
//! they tell.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::launch::{Job, is_gone};
use super::sys;
use super::tree;

/// Bytes before the first group.
pub const HEADER_LEN: usize = 96;

/// What a journal says of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Copied,
    /// It failed.
    Failed,
    /// One of its ranges is in its temporary file.
    Range,
}

/// All items of the groups that are whole.
///
/// # Panics
/// Where the file is no journal, or a group that is not the last does not match its digest.
pub fn items(journal: &Path) -> Vec<(Vec<u8>, Said)> {
    let bytes = fs::read(journal).unwrap();
    let number = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[at..at + len]);
        usize::try_from(u64::from_le_bytes(word)).unwrap()
    };
    if bytes.len() < HEADER_LEN {
        // The kill came within the header.
        return Vec::new();
    }
    assert_eq!((&bytes[..8], number(8, 4)), (b"pcopyjnl".as_slice(), 2));
    assert_eq!(b3sum(&bytes[..64]), hex(&bytes[64..96]), "the header's digest");
    let mut all = Vec::new();
    let mut at = HEADER_LEN;
    while at + 24 <= bytes.len() {
        assert_eq!(&bytes[at..at + 8], b"JnlGroup", "at {at} of {}", bytes.len());
        let (count, len) = (number(at + 8, 8), number(at + 16, 8));
        let (items, end) = (at + 24, at + 24 + len);
        if end + 32 > bytes.len() {
            // The kill came within it.
            break;
        }
        assert_eq!(b3sum(&bytes[at..end]), hex(&bytes[end..end + 32]), "the digest of the group at {at}");
        let group = items_of(&bytes[items..end]);
        assert_eq!(group.len(), count, "items of the group at {at}");
        assert!(group.is_sorted_by_key(|(path, _)| path), "the group at {at} is sorted");
        all.extend(group);
        at = end + 32;
    }
    all
}

fn items_of(mut items: &[u8]) -> Vec<(Vec<u8>, Said)> {
    let mut found = Vec::new();
    while !items.is_empty() {
        let len = usize::try_from(u32::from_le_bytes(items[..4].try_into().unwrap())).unwrap();
        let item = &items[4..4 + len];
        // variant, length of the path (one byte below 128), path, then of an entry its kind and its outcome
        let path_len = usize::from(item[1]);
        assert!(path_len < 128, "the paths of these tests are short");
        let said = match (item[0], item[2 + path_len + 1]) {
            (0, 0) => Said::Copied,
            (0, _) => Said::Failed,
            _ => Said::Range,
        };
        found.push((item[2..2 + path_len].to_vec(), said));
        items = &items[4 + len..];
    }
    found
}

/// The paths of the entries that a journal says were copied.
pub fn copied_paths(journal: &Path) -> Vec<Vec<u8>> {
    items(journal).into_iter().filter(|(_, said)| *said == Said::Copied).map(|(path, _)| path).collect()
}

/// How many ranges of each large file the journals of a state directory say are there.
pub fn ranges(state: &Path) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    for (path, said) in journals(state).iter().flat_map(|journal| items(journal)) {
        *counts.entry(path).or_default() += usize::from(said == Said::Range);
    }
    counts
}

/// The journals in a state directory, sorted; none where there is no such directory.
pub fn journals(state: &Path) -> Vec<PathBuf> {
    let Ok(state) = fs::read_dir(state) else { return Vec::new() };
    let paths = state.map(|entry| entry.unwrap().path());
    let is_journal = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("journal-");
    let mut found: Vec<_> = paths.filter(is_journal).collect();
    found.sort();
    found
}

/// How many bytes the journals hold, those of earlier runs left out.
pub fn written(state: &Path, earlier: &BTreeSet<PathBuf>) -> u64 {
    own(state, earlier).map(|path| path.metadata().map_or(0, |meta| meta.len())).sum()
}

/// How many items are in whole groups of them, as the groups tell it: they may be written meanwhile.
fn recorded(state: &Path, earlier: &BTreeSet<PathBuf>) -> u64 {
    let of_one = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (mut count, mut at) = (0, HEADER_LEN);
        while at + 24 <= bytes.len() {
            let end = at + 24 + usize::try_from(number(at + 16)).unwrap() + 32;
            count += if end <= bytes.len() { number(at + 8) } else { 0 };
            at = end;
        }
        count
    };
    own(state, earlier).map(of_one).sum()
}

fn own(state: &Path, earlier: &BTreeSet<PathBuf>) -> impl Iterator<Item = PathBuf> {
    journals(state).into_iter().filter(|path| !earlier.contains(path))
}

/// Starts the job and kills every rank once whole groups of its own journals hold this many items.
#[track_caller]
pub fn kill_at<S: AsRef<OsStr>>(job: &Job, operands: impl IntoIterator<Item = S>, state: &Path, items: u64) {
    let earlier = journals(state).into_iter().collect();
    // so slow that there is a middle, whatever the machine does beside it
    let mut running = job.clone().options(["--limit-rate", "4M"]).start(operands);
    while recorded(state, &earlier) < items {
        if !running.goes_on() {
            panic!("the run ended before {items} items were in its journals: {}", running.wait().told());
        }
        thread::sleep(Duration::from_millis(2));
    }
    let ranks = running.rank_pids();
    ranks.iter().for_each(|pid| sys::kill(*pid));
    let outcome = running.wait();
    // One that is killed in the middle of a call takes a moment, and its launcher does not wait for it.
    while !ranks.iter().all(|pid| is_gone(*pid)) {
        thread::sleep(Duration::from_millis(2));
    }
    assert_ne!(outcome.code(), Some(0), "killed too late: {}", outcome.told());
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `b3sum` says of these bytes.
pub fn b3sum(bytes: &[u8]) -> String {
    let dir = tree::temp();
    tree::write(&dir.path().join("bytes"), bytes);
    let output = Command::new("b3sum").arg("--no-names").arg(dir.path().join("bytes")).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
