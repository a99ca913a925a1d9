//! Proof that a directory at the destination is the copy's, in places where other users can exchange names.
//!
//! A user who owns a directory at the destination can rename directories in it at any moment, also while root copies. Three
//! results are prevented: the user gets a directory of root's; files that the user may not read are copied into a directory
//! that he can read; the user's own files are copied into a directory of root's. Where a user other than root can change the
//! names in the directory above, a directory is used only if one of these holds:
//!
//! - It has the owner that the copy is to have, and it is no more open than the source's directory.
//! - It belongs to root, is open to root alone, and holds the mark of its path. The mark is an empty file whose name is made
//!   with the job's secret. Only root can have created it there, and it stays in the directory when that is renamed.
//!
//! A directory gets the mark in such a place when the job makes it, and when the job takes it because it has another owner
//! than the source's or is more open. The mark is removed when the directory is finished. An ordinary user cannot give files
//! away, so a copy by an ordinary user does none of this.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::policy::{GlobError, IdMap};
use crate::proto::Job;
use crate::state::{is_temporary_file, mark_name};
use crate::sys::{
    DirThere, Errno, Handle, Meta, Owner, Reading, UNFINISHED_DIR_MODE, close, create_new, has_access_acl, list,
    make_dir, mode_before, open_dir_at, remove_file,
};
use crate::types::{Call, Kind, RelPath};

/// The error for an object at the destination that is not proved to be the copy's. No file system returns this errno.
pub const EXCHANGED: Errno = Errno::EREMCHG;

/// Looks up the name of a user, or of a group.
pub type NameOf = fn(u32) -> Option<String>;

/// What a rank needs to check directories: who makes the copy, and which owners the entries are to have.
pub struct Guard {
    job: Arc<Job>,
    /// This process may change owners (`CAP_CHOWN`).
    privileged: bool,
    users: IdMap,
    groups: IdMap,
}

/// A directory of the copy, and the one that it is in.
#[derive(Clone, Copy)]
pub struct Position<'a> {
    pub above: BorrowedFd<'a>,
    pub name: &'a [u8],
    pub path: &'a RelPath,
}

impl Guard {
    /// # Errors
    /// An invalid pattern in the mapping of owners.
    pub fn new(job: &Arc<Job>, privileged: bool, (user_name, group_name): (NameOf, NameOf)) -> Result<Self, GlobError> {
        Ok(Self {
            job: Arc::clone(job),
            privileged,
            users: IdMap::new(&job.policy.users, user_name)?,
            groups: IdMap::new(&job.policy.groups, group_name)?,
        })
    }

    /// The user and the group that the copy of an entry is to have. `have` holds those that the entry has before any is set.
    pub fn wanted(&self, source: &Meta, have: &Meta) -> (u32, u32) {
        let preserved = |id| self.job.policy.preserve.ownership.then_some(id);
        let uid = self.users.get(source.uid).or(preserved(source.uid)).unwrap_or(have.uid);
        let gid = self.groups.get(source.gid).or(preserved(source.gid)).unwrap_or(have.gid);
        (uid, gid)
    }

    /// Whether each directory on the way to an entry has to be checked.
    pub fn watches(&self) -> bool {
        // In a tree that this job has made, nobody else can change anything until it is finished.
        self.privileged && !self.job.fresh && self.job.policy.preserve.ownership
    }

    /// Whether another user can exchange the names in a directory.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn is_shared(&self, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
        let meta = Meta::known(dir)?;
        let (sticky, writable) = (meta.mode & 0o1000 != 0, meta.mode & 0o022 & !self.job.maker.forced != 0);
        Ok(meta.uid != self.job.maker.uid || (writable && !sticky))
    }

    /// Whether the mode of the copy's directory admits users whom the source's directory does not admit.
    fn is_too_open(&self, there: &Meta, source: &Meta) -> bool {
        let other_group = there.gid != self.wanted(source, there).1;
        let group_gains = other_group && (there.mode >> 3 & 7) & !(source.mode & 7) != 0;
        let opens = there.mode & 0o077 & !source.mode != 0 || group_gains;
        opens && self.job.policy.preserve.mode && self.job.maker.forced == 0
    }

    /// Checks that a directory is the copy's, by the rules of this module. `source` reads the metadata of the source's directory.
    ///
    /// # Errors
    /// Those of statx(2); [`EXCHANGED`] if it is not proved to be the copy's.
    pub fn check(
        &self,
        at: Position<'_>,
        dir: BorrowedFd<'_>,
        source: impl FnOnce() -> Result<Meta, Errno>,
    ) -> Result<(), Errno> {
        if !self.watches() || !self.is_shared(at.above)? {
            return Ok(());
        }
        let source = source()?;
        // The cached metadata may be older than a change of this directory by another node.
        for look in [Meta::known, Meta::of_now] {
            let there = look(dir)?;
            let ours = there.uid == self.job.maker.uid;
            // An unfinished directory of the maker's may be that of another path: only the mark tells.
            let is_finished = mode_before(&there).is_some();
            let is_as_closed = !ours || (is_finished && !self.is_too_open(&there, &source));
            let as_source = there.uid == self.wanted(&source, &there).0 && is_as_closed;
            if as_source || (self.is_unfinished(&there) && self.has_mark(dir, at.path)?) {
                return Ok(());
            }
        }
        Err(EXCHANGED)
    }

    /// Whether a directory belongs to who makes the copy, and is open to nobody else.
    fn is_unfinished(&self, there: &Meta) -> bool {
        self.job.maker.is_alone(there.uid, there.mode)
    }

    fn has_mark(&self, dir: BorrowedFd<'_>, path: &RelPath) -> Result<bool, Errno> {
        match Meta::at(dir, &mark_name(&self.job, path)) {
            Ok(mark) => Ok(mark.uid == self.job.maker.uid && mark.kind == Some(Kind::File)),
            Err(Errno::ENOENT) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Removes the mark of a directory whose entries have all ended.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn remove_mark(&self, dir: BorrowedFd<'_>, path: &RelPath) -> Result<(), Errno> {
        if !self.watches() {
            return Ok(());
        }
        match remove_file(dir, &mark_name(&self.job, path)) {
            Err(Errno::ENOENT) => Ok(()),
            removed => removed,
        }
    }

    /// Makes a directory of the copy, and its mark where others can exchange its name.
    ///
    /// # Errors
    /// Those of mkdir(2), such as `EEXIST`, and of creating the mark; [`EXCHANGED`].
    pub fn make(&self, at: Position<'_>) -> Result<DirThere, Errno> {
        make_dir(at.above, at.name)?;
        if self.watches() && self.is_shared(at.above)? {
            let dir = open_dir_at(at.above, at.name, Reading::default())?;
            self.mark(dir.as_fd(), at.path, false)?;
        }
        Ok(DirThere::default())
    }

    /// Marks an unfinished directory that belongs to who makes the copy. It must be empty: any empty directory will do, whatever
    /// its name was. If its owner is to stay (`stays`), it may hold anything but another mark.
    fn mark(&self, dir: BorrowedFd<'_>, path: &RelPath, stays: bool) -> Result<(), Errno> {
        let mut is_free = true;
        list(open_dir_at(dir, b".", Reading::default())?, |entry| {
            is_free &= stays && !is_temporary_file(entry.name, &self.job);
            if is_free { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !is_free || !self.is_unfinished(&Meta::of(dir)?) {
            return Err(EXCHANGED);
        }
        self.put_mark(dir, path)
    }

    fn put_mark(&self, dir: BorrowedFd<'_>, path: &RelPath) -> Result<(), Errno> {
        close(create_new(dir, &mark_name(&self.job, path), 0o600)?)
    }

    /// Uses a directory that is at the destination already; `dir` holds it, `source` is the source's. It is used as it is, or
    /// taken until it is finished: [`Self::take_top`].
    ///
    /// # Errors
    /// Those of looking at it and of changing it; [`EXCHANGED`] for a directory of root's that is to get another owner, where
    /// that owner can exchange it for another directory of root's.
    pub fn take(&self, at: Position<'_>, dir: BorrowedFd<'_>, source: (&OwnedFd, &Meta)) -> Result<DirThere, Errno> {
        let shared = self.watches() && self.is_shared(at.above)?;
        self.take_in(shared.then_some(at.path), dir, source)
    }

    /// Uses the top directory of the copy, which is at the destination already: as it is; or taken until it is finished (this
    /// user's, with [`UNFINISHED_DIR_MODE`]), if it has another owner than the source's or is more open.
    ///
    /// # Errors
    /// Those of looking at it and of changing it.
    pub fn take_top(&self, dir: BorrowedFd<'_>, source: (&OwnedFd, &Meta)) -> Result<DirThere, Errno> {
        self.take_in(None, dir, source)
    }

    /// `shared`: its path, where others can exchange its name.
    fn take_in(
        &self,
        shared: Option<&RelPath>,
        dir: BorrowedFd<'_>,
        (source, source_meta): (&OwnedFd, &Meta),
    ) -> Result<DirThere, Errno> {
        let there = Meta::of(dir)?;
        if there.kind != Some(Kind::Dir) {
            return Err(Errno::ENOTDIR);
        }
        let ours = there.uid == self.job.maker.uid;
        let as_it_is = || {
            let lent = ours && there.mode & 0o700 != 0o700;
            if lent {
                Handle::Held(dir).set_mode(there.mode | 0o700)?;
            }
            Ok(DirThere { mode: mode_before(&there), lent })
        };
        if !self.watches() {
            // Only the owner can close a directory.
            let opens = ours && self.is_too_open(&there, source_meta);
            return if opens { close_dir(dir).map(|()| DirThere::default()) } else { as_it_is() };
        }
        let is_wanted = there.uid == self.wanted(source_meta, &there).0;
        if self.is_unfinished(&there) && mode_before(&there).is_none() {
            // The run was killed between mkdir and the mark, or the source's directory has this mode too.
            if let Some(path) = shared
                && !self.has_mark(dir, path)?
            {
                self.mark(dir, path, is_wanted)?;
            }
            return Ok(DirThere::default());
        }
        if is_wanted && !self.is_too_open(&there, source_meta) && !self.hides_by_acl(source.as_fd())? {
            return as_it_is();
        }
        if let Some(path) = shared
            && ours
            && !is_wanted
        {
            return if self.has_mark(dir, path)? { Ok(DirThere::default()) } else { Err(EXCHANGED) };
        }
        if !is_wanted {
            match Handle::Held(dir).set_owner(Owner { uid: Some(self.job.maker.uid), gid: None }) {
                Err(err) if Call::Chown.allows(err) => return as_it_is(),
                owned => owned?,
            }
        }
        close_dir(dir)?;
        if let Some(path) = shared
            && (ours || !is_wanted)
        {
            match self.put_mark(dir, path) {
                Err(Errno::EEXIST) => {}
                marked => marked?,
            }
        }
        Ok(DirThere::default())
    }

    /// Whether a source's directory has an ACL, which may refuse somebody whom the mode admits. Only a first run asks: in
    /// later ones the copy has the ACL already.
    fn hides_by_acl(&self, source: BorrowedFd<'_>) -> Result<bool, Errno> {
        match self.job.generation == 1 && self.job.policy.preserve.acl {
            true => has_access_acl(Handle::Held(source)),
            false => Ok(false),
        }
    }
}

/// Sets the mode of an unfinished directory: open to its owner alone.
fn close_dir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    match Handle::Held(dir).set_mode(UNFINISHED_DIR_MODE) {
        // dfuse refuses chmod with the sticky bit.
        Err(err) if Call::Chmod.allows(err) => match Handle::Held(dir).set_mode(0o700) {
            Err(err) if Call::Chmod.allows(err) => Ok(()),
            closed => closed,
        },
        closed => closed,
    }
}
