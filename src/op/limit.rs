//! The upper limit of the job's reading and writing: that of the command line, or the one that stands in the state
//! directory, which is looked at while the job runs.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::policy::RunAs;
use crate::state::DIR_NAME;
use crate::sys::{Errno, Reading, act_as, open_read};
use crate::types::{human_bytes, parse_rate};
use crate::watch;

/// In the state directory.
pub(super) const FILE_NAME: &str = "limit-rate";
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The limit, and where a change of it would stand.
#[derive(Default)]
pub struct Limit {
    dir: Option<OwnedFd>,
    /// The user as whom the file is read (`--uid`).
    reads_as: RunAs,
    /// Of the command line, in bytes a second.
    given: Option<u64>,
    /// What the file said last; `None` without a file.
    of_file: Option<Option<u64>>,
    /// What could not be understood, so that it is said once.
    complained: Option<String>,
    next_look: Duration,
}

/// What there is to be said.
pub(super) enum Change {
    /// Bytes a second, of all ranks together.
    Rate(Option<u64>),
    /// What the file says is no rate; the limit stays as it is.
    NotUnderstood(String),
}

impl Limit {
    /// With the limit of the command line, and the state directory if there is one.
    pub(super) fn new(given: Option<u64>, dir: Option<OwnedFd>, reads_as: RunAs) -> Self {
        Self { dir, reads_as, given, of_file: None, complained: None, next_look: Duration::ZERO }
    }

    /// Bytes a second, of all ranks together.
    pub(super) fn rate(&self) -> Option<u64> {
        self.of_file.unwrap_or(self.given)
    }

    /// Looks into the file, when it is time to; `elapsed` since the job's start.
    pub(super) fn look(&mut self, elapsed: Duration) -> Option<Change> {
        if elapsed < self.next_look {
            return None;
        }
        self.next_look = elapsed + INTERVAL;
        let text = match read(self.dir.as_ref()?, self.reads_as) {
            Ok(text) => text,
            // on what cannot be read now the next look may tell more
            Err(_) => return None,
        };
        let before = self.rate();
        match text.as_deref().map(str::trim) {
            None => self.of_file = None,
            // somebody is writing it
            Some("") => return None,
            Some("0" | "none") => self.of_file = Some(None),
            Some(text) => match parse_rate(text) {
                Ok(rate) => self.of_file = Some(Some(rate)),
                Err(err) => {
                    let complaint = format!("{FILE_NAME}: {text:?}: {err}; the limit stays as it is");
                    let is_new = self.complained.as_ref() != Some(&complaint);
                    self.complained = Some(complaint.clone());
                    return is_new.then_some(Change::NotUnderstood(complaint));
                }
            },
        }
        self.complained = None;
        (self.rate() != before).then(|| Change::Rate(self.rate()))
    }
}

/// For a reader.
pub(super) fn shown(rate: Option<u64>) -> String {
    rate.map_or_else(|| "none".into(), |rate| format!("{}/s", human_bytes(rate)))
}

/// What the file says; `None` without a file.
fn read(dir: &OwnedFd, reads_as: RunAs) -> std::io::Result<Option<String>> {
    let _acting = act_as(reads_as)?;
    watch::begin(DIR_NAME, FILE_NAME.as_bytes());
    let text = read_as(dir);
    watch::end();
    text
}

fn read_as(dir: &OwnedFd) -> std::io::Result<Option<String>> {
    let file = match open_read(dir.as_fd(), FILE_NAME.as_bytes(), Reading::default()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(None),
        Err(err) => return Err(err.into()),
    };
    let mut text = Vec::new();
    file.take(100).read_to_end(&mut text)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}
