//! The end of a directory: its metadata, once nothing in it changes any more.

use std::os::fd::AsFd;

use super::{At, DEST, Mover, SOURCE};
use crate::proto::{DirBefore, FinishedDir, TaskResult};
use crate::sys::{Handle, Meta};
use crate::types::{Facts, Failure, Kind, Op, Outcome, RelPath};

use super::entry::facts;

impl Mover {
    /// Ends directories, in the order given.
    pub(super) fn finish_dirs(&mut self, source: u16, dirs: Vec<FinishedDir>) -> TaskResult {
        for dir in dirs {
            let finished = self.finish_dir(source, &dir.path, dir.before);
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

    fn finish_dir(&mut self, source: u16, path: &RelPath, before: Option<DirBefore>) -> Result<Facts, Failure> {
        let from = self.source_dir(source, path)?;
        let to = self.dest_dir(path)?;
        let meta = Meta::of(&from).at(Op::Stat, SOURCE)?;
        let atime = before.map_or(meta.atime, |before| before.atime);
        let strips = self.job.policy.strips_inherited_acls();
        let (source_handle, handle) = (Handle::Open(from.as_fd()), Handle::Open(to.as_fd()));
        let kept = self.set_metadata(source_handle, handle, &Meta { atime, ..meta }, strips)?;
        // as cp has it: a directory that was there keeps its own mode, unless the source's is wanted
        if let Some(mode) = before.and_then(|before| before.mode_there).filter(|_| !self.job.policy.preserve.mode) {
            handle.set_mode(mode).at(Op::Chmod, DEST)?;
        }
        self.sync_dir_if_needed(to.as_fd())?;
        // what came or went since it was listed may not be in the copy
        if before.is_some_and(|before| (before.mtime, before.ctime) != (meta.mtime, meta.ctime)) {
            return Err(Failure::CHANGED);
        }
        Ok(facts(&kept.meta, kept.unkept, None))
    }
}
