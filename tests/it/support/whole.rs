//! A copy whose job is complete, however many runs that took: the trees, the manifest and what may be left beside them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::launch::{Job, Outcome};
use super::manifest::{self, Expect, Manifest};
use super::oracle::{self, Aspects, show};

/// What a complete job leaves in its state directory, and what it may leave there besides.
const LEFT: [&str; 3] = ["base", "job.json", "manifest.jsonl"];
const OLDER: &str = "manifest.jsonl.previous";

/// A copy: of what, where it is, and where its state is.
#[derive(Clone, Debug)]
pub struct Place {
    pub src: PathBuf,
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Place {
    /// With its state in the copy.
    pub fn new(src: &Path, root: &Path) -> Place {
        Place { src: src.to_path_buf(), root: root.to_path_buf(), state: root.join(".pcopy") }
    }

    /// The manifest, and every objection to it.
    fn manifest(&self, job: &Job, strangers: bool) -> Result<Manifest, Vec<String>> {
        let digests = !job.has_option("--no-digest");
        let expect = Expect { root: &self.root, ranks: job.rank_count(), digests, strangers };
        manifest::check(&self.state.join("manifest.jsonl"), &expect)
    }

    /// Every objection to this being the complete copy that `job`, the last of the runs, ended with.
    pub fn objections(&self, job: &Job) -> Vec<String> {
        let mut found = oracle::differences(&self.src, &self.root, Aspects::ALL);
        match self.manifest(job, false) {
            Ok(manifest) => {
                let walked = oracle::walk(&self.src);
                let unlisted = walked.keys().filter(|path| !manifest.entries.contains_key(*path));
                found.extend(unlisted.map(|path| format!("{}: not in the manifest", show(path))));
                let unknown = manifest.entries.keys().filter(|path| !walked.contains_key(*path));
                found.extend(unknown.map(|path| format!("{}: in the manifest, not in the source", show(path))));
            }
            Err(objections) => found.extend(objections),
        }
        found.extend(unfinished(&self.state));
        found.extend(temporaries(&self.root));
        found
    }

    /// Fails where this is not the complete copy that a run of `job` ended with.
    #[track_caller]
    pub fn assert_whole(&self, job: &Job, outcome: &Outcome) {
        outcome.assert_code(0);
        oracle::assert_none(&self.objections(job), &outcome.told());
    }

    /// Runs the job, which must end with the complete copy.
    #[track_caller]
    pub fn complete<S: AsRef<OsStr>>(&self, job: &Job, operands: impl IntoIterator<Item = S>) -> Outcome {
        let outcome = job.run(operands);
        self.assert_whole(job, &outcome);
        outcome
    }

    /// The manifest of a copy in which something stands that is not in the source.
    #[track_caller]
    pub fn manifest_among_strangers(&self, job: &Job) -> Manifest {
        self.manifest(job, true).unwrap_or_else(|found| panic!("manifest:\n  {}", found.join("\n  ")))
    }
}

/// The names in a directory, sorted; none where there is no directory.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| show(entry.unwrap().file_name().as_encoded_bytes())).collect();
    names.sort();
    names
}

/// What is missing in the state directory of a complete job, and what should not be there.
pub fn unfinished(state: &Path) -> Vec<String> {
    let names = names(state);
    let missing = LEFT.iter().filter(|name| !names.iter().any(|there| there == *name));
    let extra = names.iter().filter(|name| !LEFT.contains(&name.as_str()) && *name != OLDER);
    let missing = missing.map(|name| format!("state: {name}: missing"));
    missing.chain(extra.map(|name| format!("state: {name}: left behind"))).collect()
}

/// What of pcopy's own is in a copy, beside its state.
pub fn temporaries(root: &Path) -> Vec<String> {
    let is_own =
        |path: &Vec<u8>| path.split(|b| *b == b'/').next_back().is_some_and(|name| name.starts_with(b".pcopy-"));
    let paths = oracle::walk(root).into_keys().filter(is_own);
    paths.map(|path| format!("{}: a temporary name is left", show(&path))).collect()
}
