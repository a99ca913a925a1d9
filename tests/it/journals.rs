//! What a killed run leaves: journals whose every group is whole, and names only what is at the destination, complete
//! (issue 4, item 1). They are read by the byte table of the format, not by the product's code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::launch::{Job, Running};
use crate::support::oracle;
use crate::support::sys;
use crate::support::tree::{self, noise_file, raw, temp};

/// The paths of the entries that a journal says were copied.
fn copied_paths(journal: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(journal).unwrap();
    let number = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[at..at + len]);
        usize::try_from(u64::from_le_bytes(word)).unwrap()
    };
    assert_eq!((&bytes[..8], number(8, 4)), (b"pcopyjnl".as_slice(), 1));
    assert_eq!(b3sum(&bytes[..64]), hex(&bytes[64..96]), "the header's digest");
    let mut paths = Vec::new();
    let mut at = 96;
    while at < bytes.len() {
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
        paths.extend(group.into_iter().filter(|(_, done)| *done).map(|(path, _)| path));
        at = end + 32;
    }
    paths
}

/// Path, and whether it is an entry that was copied, of each item.
fn items_of(mut items: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let mut found = Vec::new();
    while !items.is_empty() {
        let len = usize::try_from(u32::from_le_bytes(items[..4].try_into().unwrap())).unwrap();
        let item = &items[4..4 + len];
        // variant, length of the path (one byte below 128), path, then of an entry its kind and its outcome
        let path_len = usize::from(item[1]);
        assert!(path_len < 128, "the paths of this test are short");
        let done = item[0] == 0 && item[2 + path_len + 1] == 0;
        found.push((item[2..2 + path_len].to_vec(), done));
        items = &items[4 + len..];
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn b3sum(bytes: &[u8]) -> String {
    let dir = temp();
    tree::write(&dir.path().join("bytes"), bytes);
    let output = Command::new("b3sum").arg("--no-names").arg(dir.path().join("bytes")).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn journals(dst: &Path) -> Vec<PathBuf> {
    let Ok(state) = fs::read_dir(dst.join(".pcopy")) else { return Vec::new() };
    let paths = state.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("journal-")).collect()
}

/// Kills every rank once the journals hold this many bytes.
fn kill_at(mut running: Running, dst: &Path, bytes: u64) {
    let written = || journals(dst).iter().map(|path| path.metadata().map_or(0, |meta| meta.len())).sum::<u64>();
    while written() < bytes {
        assert!(running.goes_on(), "the run ended before {bytes} bytes were in its journals");
        thread::sleep(Duration::from_millis(2));
    }
    running.rank_pids().into_iter().for_each(sys::kill);
    assert_ne!(running.wait().code(), Some(0));
}

#[test]
fn the_journals_of_a_killed_run_name_only_what_is_there_complete() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 150, 100);
    noise_file(&src.join("large"), 3_000_000);
    for (ranks, bytes) in [(1, 5_000), (3, 200_000), (2, 600_000)] {
        let dst = dir.path().join(format!("np{ranks}"));
        let job = Job::ranks(ranks).options(["-k", "64K", "--checkpoint-interval", "20ms", "--threads", "1"]);
        kill_at(job.start([&src, &dst]), &dst, bytes);
        assert!(!dst.join(".pcopy/manifest.jsonl").exists());
        let files = journals(&dst);
        assert!((1..=ranks).contains(&files.len()), "{files:?}");
        let paths: Vec<_> = files.iter().flat_map(|journal| copied_paths(journal)).collect();
        assert!(paths.len() >= 50, "{} entries in the journals", paths.len());
        assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), paths.len(), "each entry ended once");
        let (before, after) = (oracle::walk(&src), oracle::walk(&dst));
        for path in &paths {
            let (old, new) =
                (&before[path], after.get(path).unwrap_or_else(|| panic!("{}: missing", oracle::show(path))));
            assert_eq!(
                (old.kind, old.size, old.mtime_ns),
                (new.kind, new.size, new.mtime_ns),
                "{}",
                oracle::show(path)
            );
            let is_file = raw(&src, path).is_file();
            assert!(!is_file || oracle::same_content(&src, &dst, path), "{}", oracle::show(path));
        }
        // What is under its final name without a record may be there, but what is half is not.
        fs::remove_dir_all(&dst).unwrap();
    }
}

#[test]
fn a_copy_that_ended_leaves_what_a_later_run_needs_and_no_journal() {
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 10, 10);
    for options in [&["--checkpoint-interval", "1ms"][..], &["--durability=none"], &["--checkpoint-interval", "1h"]] {
        let dst = dir.path().join("dst");
        Job::ranks(3).options(options).run([&src, &dst]).assert_code(0);
        let names = fs::read_dir(dst.join(".pcopy")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<BTreeSet<_>>(), ["base", "job.json", "manifest.jsonl"].map(Into::into).into());
        fs::remove_dir_all(&dst).unwrap();
    }
}
