//! A crash of a rank between two steps that change a directory: a preloaded library (`crash.c`) numbers the calls that
//! change something there or make it durable, and kills the process just before one of them.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::launch::Job;
use super::preload;
use super::tree::temp;

/// One call that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub number: usize,
    /// open, write, ftruncate, fsync, fdatasync, syncfs, rename, link, symlink, unlink, mkdir.
    pub call: String,
    /// The name within the directory; empty for the directory itself.
    pub name: String,
    /// The new name, of renames and links.
    pub to: Option<String>,
}

impl Step {
    /// Whether it is this call, and about a name that begins so; of a rename the new name must be this one.
    pub fn is(&self, call: &str, name: &str) -> bool {
        let calls = call.split('|').any(|one| one == self.call);
        calls && self.to.as_ref().map_or_else(|| self.name.starts_with(name), |to| to == name)
    }
}

/// The compiled library.
pub struct Crash {
    home: TempDir,
    library: PathBuf,
}

impl Crash {
    pub fn build() -> Crash {
        let home = temp();
        let library = preload::compile("crash.c", home.path());
        Crash { home, library }
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The job with the library in its ranks, of which rank 0 counts, and crashes before step `at`; for 0 it does not.
    pub fn within(&self, job: &Job, dir: &Path, at: usize) -> Job {
        let job = job.clone().rank_env("LD_PRELOAD", &self.library).rank_env("PCOPY_CRASH_DIR", dir);
        job.rank_env("PCOPY_CRASH_AT", at.to_string()).rank_env("PCOPY_CRASH_RANK", "0")
    }

    /// The same without a crash; `steps` tells what happened.
    pub fn logged(&self, job: &Job, dir: &Path) -> Job {
        // of the run before
        let _ = fs::remove_file(self.log());
        self.within(job, dir, 0).rank_env("PCOPY_CRASH_LOG", self.log())
    }

    /// What the run that was logged did below `dir`.
    pub fn steps(&self, dir: &Path) -> Vec<Step> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let dir = dir.to_str().unwrap();
        let below = |path: &str| path.strip_prefix(dir).map_or("..", |name| name.trim_start_matches('/')).to_owned();
        let step = |line: &str| {
            let (number, rest) = line.split_once(' ').unwrap();
            let (call, paths) = rest.split_once(' ').unwrap();
            let (path, to) = paths.split_once(" -> ").map_or((paths, None), |(path, to)| (path, Some(to)));
            Step { number: number.parse().unwrap(), call: call.to_owned(), name: below(path), to: to.map(below) }
        };
        log.lines().map(step).collect()
    }
}
