//! The end of a directory: its metadata, once nothing in it changes any more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::known::Earlier;
use super::metadata::{Age, Setting};
use super::probe::LinkCalls;
use super::{At, DEST, MAX_ATTEMPTS, Mover, SOURCE};
use crate::policy::Flags;
use crate::proto::{DirBefore, FinishedDir, TaskResult};
use crate::scan::names_in;
use crate::state::{private_name, remove_private_dir, remove_temporaries};
use crate::sys::{Errno, Handle, Meta, Reading, open_dir_at, remove_dir};
use crate::types::{Facts, Failure, Identity, Kind, Op, Outcome, RelPath};
use crate::watch;

impl Mover {
    /// Ends directories, in the order given.
    pub(super) fn finish_dirs(&mut self, source: u16, dirs: Vec<FinishedDir>) -> TaskResult {
        let mut confirmed = Vec::new();
        for dir in dirs {
            if self.is_halting() {
                self.task.broken_off = true;
                break;
            }
            watch::begin(dir.path.as_bytes(), b"");
            let earlier = dir.recorded.as_ref().and_then(Earlier::of);
            if let Some(earlier) = earlier.filter(|earlier| self.is_as_recorded(source, &dir, earlier)) {
                confirmed.push(earlier.number);
                self.confirm(dir.path, earlier);
                continue;
            }
            // one that could not be made, or not be opened at the source, has nothing to be finished
            if let (Some(failure), None) = (&dir.failure, &dir.before) {
                self.fail(dir.path, Kind::Dir, failure.clone());
                continue;
            }
            let finished = self.retried(|me, _| me.finish_dir(source, &dir));
            // now, and not with the next checkpoint: its mode may not let it be opened any more; and never twice: a second
            // fsync does not tell what the first one lost
            let finished =
                finished.and_then(|(facts, to)| self.sync_finished_dir(&dir.path, to.as_fd()).map(|()| facts));
            // a directory that was not listed to its end has failed, whatever its metadata
            match (dir.failure, finished) {
                (Some(failure), _) | (None, Err(failure)) => {
                    self.fail(dir.path, Kind::Dir, failure);
                }
                (None, Ok(facts)) => self.end(dir.path, Kind::Dir, Outcome::Done(facts)),
            }
        }
        TaskResult::Dirs { confirmed }
    }

    /// Whether nothing is to be done for a directory that an earlier run has ended.
    fn is_as_recorded(&mut self, source: u16, dir: &FinishedDir, earlier: &Earlier) -> bool {
        // their flags may have been taken off for this run
        let has_flags = self.job.policy.preserve.flags == Flags::Copied;
        // another node's cache may still have the mode from before
        if has_flags || dir.private || dir.before.is_some_and(|before| before.lent) {
            return false;
        }
        // looked at from above, where its neighbours are too; what fails here, who sets the metadata will tell
        let Some((above, name)) = dir.path.split() else { return false };
        let (Ok(from), Ok(to)) = (self.source_dir(source, &above), self.dest_dir(source, &above)) else { return false };
        let Ok(from) = self.source_meta((from.as_fd(), name)) else { return false };
        let Ok(there) = Meta::at(to.as_fd(), name) else { return false };
        !self.has_changed(dir.before, &from) && self.is_recorded_dir(&from, &there, earlier)
    }

    fn finish_dir(
        &mut self,
        source: u16,
        FinishedDir { path, before, private, .. }: &FinishedDir,
    ) -> Result<(Facts, OwnedFd), Failure> {
        let (from, to) = (self.source_dir(source, path)?, self.dest_dir(source, path)?);
        let to = open_dir_at(to.as_fd(), b".", Reading::default()).at(Op::Open, DEST)?;
        let now = Meta::of_now(from.as_fd()).at(Op::Stat, SOURCE)?;
        let settled = self.settled(from.as_fd(), *before, now)?;
        let meta = settled.unwrap_or(now);
        let atime = before.map_or(meta.atime, |before| before.atime);
        // one that was there has its own ACLs; one that this run has made got none, or has lost it
        let strips = !self.job.fresh && self.job.policy.strips_inherited_acls();
        let handle = Handle::Open(to.as_fd());
        let once_owned = || {
            self.remove_left_behind(path, *private, to.as_fd())?;
            self.node.guard().remove_mark(to.as_fd(), path)
        };
        let mut kept = self.set_metadata(&Setting {
            from: Handle::Held(from.as_fd()),
            to: handle,
            source: &Meta { atime, ..meta },
            inherits_acl: strips,
            of: Age::Dir(&once_owned),
            link: LinkCalls::ALL,
            made: None,
        })?;
        // as cp has it: a directory that was there keeps its own mode, unless the source's is wanted
        if let Some(mode) = before.and_then(|before| before.mode_there).filter(|_| !self.job.policy.preserve.mode) {
            handle.set_mode(mode).at(Op::Chmod, DEST)?;
        }
        if settled.is_none() {
            return Err(Failure::CHANGED);
        }
        // of two sources that meet here the other one may still copy into it
        let alone = !path.is_root() && self.node.targets.meeting_at(path) == 1;
        self.keep_flags(handle, &mut kept, alone);
        Ok((kept.facts(None), to))
    }

    /// What a source's directory is, if all that is in it was seen when it was listed: its times have not changed since then,
    /// or it has the same entries still and holds still while they are listed again. The times alone may change without
    /// a reason: a kernel that had cached them gets those of the file system.
    fn settled(&self, dir: BorrowedFd<'_>, before: Option<DirBefore>, mut now: Meta) -> Result<Option<Meta>, Failure> {
        let Some(before) = before.filter(|before| self.has_changed(Some(*before), &now)) else { return Ok(Some(now)) };
        for _ in 0..MAX_ATTEMPTS {
            let names = names_in(dir, self.reading).at(Op::List, SOURCE)?;
            let after = Meta::of_now(dir).at(Op::Stat, SOURCE)?;
            // the listing has made the kernel or the server forget an old time
            if !self.has_changed(Some(before), &after) {
                return Ok(Some(after));
            }
            if before.names.is_some_and(|seen| seen != names) {
                return Ok(None);
            }
            if (after.mtime, after.ctime) == (now.mtime, now.ctime) {
                return Ok(Some(after));
            }
            now = after;
        }
        Ok(None)
    }

    /// Whether a directory is another one than before it was listed: what came or went meanwhile may not be in the copy.
    fn has_changed(&self, before: Option<DirBefore>, now: &Meta) -> bool {
        let identity = |mtime, ctime| Identity { size: 0, mtime, ctime };
        let changes = self.job.policy.changes;
        before.is_some_and(|before| {
            changes.show_another(&identity(before.mtime, before.ctime), &identity(now.mtime, now.ctime))
        })
    }

    /// Removes the private directory, if there is one, and what earlier runs have left. Everything in the directory has ended;
    /// but of two sources that meet here the other one may still use some.
    fn remove_left_behind(&self, path: &RelPath, private: bool, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let is_shared = self.node.targets.meeting_at(path) > 1;
        let has_earlier = self.job.generation > 1 || !self.job.abandoned.is_empty();
        match (is_shared, has_earlier) {
            (true, _) if private => match remove_dir(dir, &private_name(&self.job, path)) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
                removed => removed,
            },
            (false, true) => remove_temporaries(dir, &self.job),
            (false, false) if private => remove_private_dir(dir, &private_name(&self.job, path), &self.job),
            _ => Ok(()),
        }
    }
}
