//! Copies that end before they are complete, judged: what is there under a finished name is finished, the records are
//! those of a job that is not complete, and the same command completes it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::launch::{Job, Outcome, Running};
use super::oracle::{self, Aspects, Kind};
use super::told;

/// Looks for a moment of a run.
///
/// # Panics
/// Where the run ends before it.
pub fn wait_for(running: &mut Running, moment: &str, is_now: impl Fn() -> bool) {
    while !is_now() {
        assert!(running.goes_on(), "the run ended before {moment}: {}", running.stderr_so_far());
        thread::sleep(Duration::from_millis(1));
    }
}

fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(b".pcopy-") && name.ends_with(b".tmp")
}

/// Every regular file of the source's that is at the destination and not as the source has it.
pub fn half_written(src: &Path, dst: &Path) -> Vec<String> {
    if !dst.exists() {
        return Vec::new();
    }
    let after = oracle::walk(dst);
    let mut found = Vec::new();
    for (path, old) in oracle::walk(src).iter().filter(|(_, node)| node.kind == Kind::File) {
        let Some(new) = after.get(path) else { continue };
        let is_same = (new.kind, new.size, new.mtime_ns) == (old.kind, old.size, old.mtime_ns);
        if !is_same || !oracle::same_content(src, dst, path) {
            found.push(format!("{}: half-written", oracle::show(path)));
        }
    }
    found
}

/// Files that look finished at the destination, by their mtime, and are not as in the source.
pub fn half_written_as_finished(src: &Path, dst: &Path) -> Vec<String> {
    let (before, after) = (oracle::walk(src), if dst.exists() { oracle::walk(dst) } else { oracle::Tree::new() });
    let found = half_written(src, dst).into_iter().filter(|words| {
        let name = words.trim_end_matches(": half-written").as_bytes();
        before.get(name).map(|node| node.mtime_ns) == after.get(name).map(|node| node.mtime_ns)
    });
    found.collect()
}

/// How many files stand under their final names.
pub fn finished_files(dst: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dst) else { return 0 };
    let entries = entries.filter_map(|entry| Some((entry.as_ref().ok()?.file_type().ok()?, entry.ok()?)));
    let count = |(kind, entry): (fs::FileType, fs::DirEntry)| match kind.is_dir() {
        true if entry.file_name().as_bytes() != oracle::STATE => finished_files(&entry.path()),
        true => 0,
        false => usize::from(kind.is_file() && !is_temporary(entry.file_name().as_bytes())),
    };
    entries.map(count).sum()
}

/// The names in a state directory.
pub fn records(state: &Path) -> Vec<String> {
    let entries = fs::read_dir(state).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// What a complete job leaves behind and must not: temporaries in the tree, and records of work.
pub fn leftovers(dst: &Path, state: &Path) -> Vec<String> {
    let name = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next().is_some_and(is_temporary);
    let tree = oracle::walk(dst);
    let mut found: Vec<_> = tree.keys().filter(|path| name(path)).map(|path| oracle::show(path)).collect();
    let kept = ["base", "job.json", "manifest.jsonl", "manifest.jsonl.previous"];
    found.extend(records(state).into_iter().filter(|record| !kept.contains(&record.as_str())));
    found.extend(kept[..3].iter().filter(|record| !state.join(record).exists()).map(|record| format!("no {record}")));
    found
}

/// A copy of one tree: the same command, as often as it takes. Its options have `--json`, where it is asked what was
/// told.
pub struct Task {
    pub job: Job,
    /// The source as the program sees it, and past what makes it slow or faulty.
    pub src: PathBuf,
    pub real_src: PathBuf,
    /// The destination likewise.
    pub dst: PathBuf,
    pub real_dst: PathBuf,
}

impl Task {
    pub fn new(job: Job, src: &Path, dst: &Path) -> Task {
        let (src, dst) = (src.to_path_buf(), dst.to_path_buf());
        Task { job, real_src: src.clone(), src, real_dst: dst.clone(), dst }
    }

    /// The source is read past the mount that the program sees.
    pub fn really_from(self, src: &Path) -> Task {
        Task { real_src: src.to_path_buf(), ..self }
    }

    pub fn really_to(self, dst: &Path) -> Task {
        Task { real_dst: dst.to_path_buf(), ..self }
    }

    pub fn state(&self) -> PathBuf {
        self.real_dst.join(".pcopy")
    }

    pub fn start(&self) -> Running {
        self.job.start([&self.src, &self.dst])
    }

    pub fn run(&self) -> Outcome {
        self.job.run([&self.src, &self.dst])
    }

    /// Nothing is half-written, nothing says that the copy is complete, and nobody holds it.
    #[track_caller]
    pub fn assert_incomplete(&self, outcome: &Outcome) {
        let told = outcome.told();
        oracle::assert_none(&half_written(&self.real_src, &self.real_dst), &told);
        let records = records(&self.state());
        assert!(!records.iter().any(|name| name == "manifest.jsonl" || name == "lock"), "{records:?} after {told}");
    }

    /// It stopped in order, for one of these reasons; what it told.
    #[track_caller]
    pub fn assert_stopped(&self, outcome: &Outcome, reasons: &[&str]) -> Value {
        outcome.assert_code(75);
        let told = told::json(outcome);
        assert_eq!(told["exit_code"], 75, "{told}");
        let reason = told["stopped"].as_str();
        assert!(reason.is_some_and(|reason| reasons.contains(&reason)), "not one of {reasons:?}: {told}");
        self.assert_incomplete(outcome);
        told
    }

    /// The same command again completes; what it told (`--json`).
    #[track_caller]
    pub fn assert_completes(&self) -> Value {
        let outcome = self.run();
        outcome.assert_code(0);
        self.assert_complete(&outcome);
        told::json(&outcome)
    }

    #[track_caller]
    pub fn assert_complete(&self, outcome: &Outcome) {
        let found = oracle::differences(&self.real_src, &self.real_dst, Aspects::ALL);
        oracle::assert_none(&found, &outcome.told());
        oracle::assert_none(&leftovers(&self.real_dst, &self.state()), &outcome.told());
    }
}
