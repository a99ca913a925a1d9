//! A tree and its copy, in part or complete, from which a job goes on.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::journal::{copied_paths, journals, kill_at};
use super::launch::{Job, Outcome};
use super::listing::{Listing, listing};
use super::oracle;
use super::tree::{self, raw, temp};
use super::whole::Place;

/// Short checkpoints and one thread, so that a run can be killed in its middle.
pub fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--threads", "1", "--checkpoint-interval", "10ms", "--json"])
}

/// A tree of small files, and where it is copied to.
pub struct Case {
    pub place: Place,
    /// The paths that the journals of the killed run have.
    pub recorded: Vec<Vec<u8>>,
    _dir: TempDir,
}

impl Case {
    pub fn new() -> Case {
        let dir = temp();
        let src = tree::small_files(&dir.path().join("src"), 25, 60);
        symlink("d000/f0001", src.join("link")).unwrap();
        fs::create_dir(src.join("empty")).unwrap();
        tree::age(&src);
        Case { place: Place::new(&src, &dir.path().join("dst")), recorded: Vec::new(), _dir: dir }
    }

    /// Copied in part, by a run that was killed.
    pub fn killed(ranks: usize) -> Case {
        let mut case = Case::new();
        kill_at(&job(ranks), [&case.place.src, &case.place.root], &case.place.state, 150);
        case.recorded = journals(&case.place.state).iter().flat_map(|journal| copied_paths(journal)).collect();
        assert!(case.recorded.len() >= 100, "{} entries in the journals", case.recorded.len());
        case
    }

    /// Copied to the end.
    pub fn complete(ranks: usize) -> Case {
        let mut case = Case::new();
        case.place.complete(&job(ranks), [&case.place.src, &case.place.root]);
        case.recorded = oracle::walk(&case.place.src).into_keys().collect();
        case
    }

    pub fn again(&self, job: &Job) -> Outcome {
        job.run([&self.place.src, &self.place.root])
    }

    /// Runs to the end, which must be the whole copy.
    #[track_caller]
    pub fn completes(&self, job: &Job) -> Outcome {
        self.place.complete(job, [&self.place.src, &self.place.root])
    }

    /// Files of some bytes that are recorded.
    pub fn files(&self) -> Vec<Vec<u8>> {
        let is_file = |path: &&Vec<u8>| {
            let meta = raw(&self.place.src, path).symlink_metadata().unwrap();
            meta.is_file() && meta.len() > 20
        };
        self.recorded.iter().filter(is_file).cloned().collect()
    }

    /// What stat tells of the recorded entries that are no directories.
    pub fn recorded_listing(&self) -> Listing {
        let recorded: BTreeSet<_> = self.recorded.iter().collect();
        let is_dir = |path: &Vec<u8>| raw(&self.place.root, path).symlink_metadata().unwrap().is_dir();
        let all = listing(&self.place.root).into_iter();
        all.filter(|(path, _)| recorded.contains(path) && !is_dir(path)).collect()
    }
}

#[track_caller]
pub fn number(told: &Value, name: &str) -> u64 {
    told[name].as_u64().unwrap_or_else(|| panic!("{name} is no number in {told}"))
}

/// The one line of pcopy's that has all the words.
#[track_caller]
pub fn assert_notes<'a>(outcome: &'a Outcome, words: &[&str]) -> &'a str {
    let lines = outcome.lines_of_pcopy().into_iter();
    let found: Vec<_> = lines.filter(|line| words.iter().all(|word| line.contains(word))).collect();
    assert_eq!(found.len(), 1, "lines with {words:?} in {}", outcome.told());
    assert!(found[0].starts_with("pcopy: note: "), "{}", found[0]);
    found[0]
}

pub fn bytes_of(src: &Path) -> u64 {
    oracle::walk(src).values().map(|node| node.size).sum()
}

/// Both sorts of earlier runs.
pub fn both() -> [(bool, Case); 2] {
    [(true, Case::complete(2)), (false, Case::killed(2))]
}
