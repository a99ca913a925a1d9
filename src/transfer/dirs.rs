//! The end of a directory: its metadata, once nothing in it changes any more.

use std::os::fd::AsFd;

use super::{At, Mover, SOURCE};
use crate::proto::{FinishedDir, TaskResult};
use crate::sys::Meta;
use crate::types::{Facts, Failure, Kind, Op, Outcome, RelPath, Timestamp};

use super::entry::facts;

impl Mover {
    /// Ends directories, in the order given.
    pub(super) fn finish_dirs(&mut self, source: u16, dirs: Vec<FinishedDir>) -> TaskResult {
        for dir in dirs {
            let finished = self.finish_dir(source, &dir.path, dir.atime);
            // a directory that was not listed to its end has failed, whatever its metadata
            match (dir.failure, finished) {
                (Some(failure), _) | (None, Err(failure)) => {
                    self.fail(dir.path, Kind::Dir, failure);
                }
                (None, Ok(facts)) => self.end(dir.path, Kind::Dir, Outcome::Done(facts)),
            }
        }
        TaskResult::Ended
    }

    fn finish_dir(&mut self, source: u16, path: &RelPath, atime: Option<Timestamp>) -> Result<Facts, Failure> {
        let from = self.source_dir(source, path)?;
        let to = self.dest_dir(path)?;
        let meta = Meta::of(&from).at(Op::Stat, SOURCE)?;
        let unkept =
            self.set_metadata(from.as_fd(), to.as_fd(), &Meta { atime: atime.unwrap_or(meta.atime), ..meta }, true)?;
        self.sync_dir_if_needed(to.as_fd())?;
        Ok(facts(&meta, unkept))
    }
}
