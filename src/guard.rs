//! Whose the directories of the destination are: what proves that one is the copy's, where others can exchange names.
//!
//! Root copies while users work in directories of theirs that are there already. Such a user can give a directory another
//! name at any moment. Three things must not follow from that: that he gets a directory of root's, that what is hidden from
//! him lands in one that he can read, and that his own lands in root's. So, where somebody else can change the directory that
//! it is in, a directory of the copy is used only if
//!
//! - it belongs to whom the source's belongs to, and is open to nobody to whom that one is closed; or
//! - it is root's, for root alone, and holds the mark of its path: an empty file whose name the job's secret makes. Only root
//!   can have put it there, and it moves with the directory.
//!
//! What the job makes in such a place, and what it takes because it is too open or of another owner, gets the mark. It goes
//! when the directory is finished. An ordinary user's copy gives nothing away, so that nothing of this is done there.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::policy::{GlobError, IdMap};
use crate::proto::Job;
use crate::state::{is_temporary_file, mark_name};
use crate::sys::{
    Call, DirThere, Errno, Handle, Meta, Owner, Reading, UNFINISHED_DIR_MODE, close, create_new, has_access_acl, list,
    make_dir, mode_before, open_dir_at, remove_file,
};
use crate::types::{Kind, RelPath};

/// What [`Guard::check`] says of a directory that is not known to be the copy's. No file system answers so.
pub const EXCHANGED: Errno = Errno::EREMCHG;

/// Looks up the name of a user, or of a group.
pub type NameOf = fn(u32) -> Option<String>;

/// What a rank knows of owners.
pub struct Guard {
    job: Arc<Job>,
    /// Whether this process may give files away.
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
    /// A pattern of owners that is none.
    pub fn new(job: &Arc<Job>, privileged: bool, (user_name, group_name): (NameOf, NameOf)) -> Result<Self, GlobError> {
        Ok(Self {
            job: Arc::clone(job),
            privileged,
            users: IdMap::new(&job.policy.users, user_name)?,
            groups: IdMap::new(&job.policy.groups, group_name)?,
        })
    }

    /// The user and the group that the copy of an entry is to have; `have` are those that it has without being given any.
    pub fn wanted(&self, source: &Meta, have: &Meta) -> (u32, u32) {
        let preserved = |id| self.job.policy.preserve.ownership.then_some(id);
        let uid = self.users.get(source.uid).or(preserved(source.uid)).unwrap_or(have.uid);
        let gid = self.groups.get(source.gid).or(preserved(source.gid)).unwrap_or(have.gid);
        (uid, gid)
    }

    /// Whether the walk to a directory has to be looked at on its way.
    pub fn watches(&self) -> bool {
        // in a tree that the job made nobody else can do anything before it is finished
        self.privileged && !self.job.fresh && self.job.policy.preserve.ownership
    }

    /// Whether somebody else can exchange the names in a directory.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn is_shared(&self, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
        let meta = Meta::known(dir)?;
        let (sticky, writable) = (meta.mode & 0o1000 != 0, meta.mode & 0o022 & !self.job.maker.forced != 0);
        Ok(meta.uid != self.job.maker.uid || (writable && !sticky))
    }

    /// Whether the source's directory is closed to somebody to whom the copy's one is open.
    fn is_too_open(&self, there: &Meta, source: &Meta) -> bool {
        let other_group = there.gid != self.wanted(source, there).1;
        let group_gains = other_group && (there.mode >> 3 & 7) & !(source.mode & 7) != 0;
        let opens = there.mode & 0o077 & !source.mode != 0 || group_gains;
        opens && self.job.policy.preserve.mode && self.job.maker.forced == 0
    }

    /// Demands that a directory is the copy's: see above. `source` looks at the source's one.
    ///
    /// # Errors
    /// Those of looking at it; [`EXCHANGED`].
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
        // what the kernel remembers of it may be from before it was taken
        for look in [Meta::known, Meta::of_now] {
            let there = look(dir)?;
            let ours = there.uid == self.job.maker.uid;
            // one of this user's that is not finished may be that of another path
            let is_finished = mode_before(&there).is_some();
            let is_as_closed = !ours || (is_finished && !self.is_too_open(&there, &source));
            let as_source = there.uid == self.wanted(&source, &there).0 && is_as_closed;
            if as_source || (self.is_unfinished(&there) && self.has_mark(dir, at.path)?) {
                return Ok(());
            }
        }
        Err(EXCHANGED)
    }

    /// This user's, and for him alone: in a shared directory the mark tells the rest.
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

    /// Removes the mark of a directory that is about to be finished.
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

    /// Makes a directory of the copy; [`Errno::EEXIST`] where the name is taken.
    ///
    /// # Errors
    /// Those of mkdir(2), and of marking it; [`EXCHANGED`].
    pub fn make(&self, at: Position<'_>) -> Result<DirThere, Errno> {
        make_dir(at.above, at.name)?;
        if self.watches() && self.is_shared(at.above)? {
            let dir = open_dir_at(at.above, at.name, Reading::default())?;
            self.mark(dir.as_fd(), at.path, false)?;
        }
        Ok(DirThere::default())
    }

    /// Marks a directory that is this user's, for him alone, and empty: whichever it is, it serves. One that `stays` his may
    /// hold anything but a mark.
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
            // an ordinary user cannot take a directory of somebody else's, but can close his own
            let opens = ours && self.is_too_open(&there, source_meta);
            return if opens { close_dir(dir).map(|()| DirThere::default()) } else { as_it_is() };
        }
        let is_wanted = there.uid == self.wanted(source_meta, &there).0;
        if self.is_unfinished(&there) && mode_before(&there).is_none() {
            // a run was killed between making it and marking it, or its copy is to be like this
            if let Some(path) = shared
                && !self.has_mark(dir, path)?
            {
                self.mark(dir, path, is_wanted)?;
            }
            return Ok(DirThere::default());
        }
        if is_wanted && !self.is_too_open(&there, source_meta) && !self.hides_by_acl(source.as_fd()) {
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

    /// Whether a source's directory has an ACL, which may close it to somebody. Asked in a first run only: later ones find
    /// it copied.
    fn hides_by_acl(&self, source: BorrowedFd<'_>) -> bool {
        self.job.generation == 1 && self.job.policy.preserve.acl && has_access_acl(Handle::Held(source))
    }
}

/// Closes a directory to everybody but its owner, as one that is not finished.
fn close_dir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    match Handle::Held(dir).set_mode(UNFINISHED_DIR_MODE) {
        // dfuse refuses the sticky bit
        Err(err) if Call::Chmod.allows(err) => match Handle::Held(dir).set_mode(0o700) {
            Err(err) if Call::Chmod.allows(err) => Ok(()),
            closed => closed,
        },
        closed => closed,
    }
}
