//! Metadata of a copied entry: owner, attributes, mode, times, in the order in which they last.
//!
//! Changing the owner clears setuid, setgid and capabilities; an ACL changes the mode; all of it,
//! and the data, changes the times.

use std::os::fd::BorrowedFd;

use super::entry::facts;
use super::{At, DEST, Mover, SOURCE};
use crate::sys::{
    Call, CopiedXattrs, Errno, Handle, Meta, Owner, Stripped, XattrError, copy_xattrs, drop_other_xattrs,
    has_default_acl, strip_acls, sync_file, sync_open_dir,
};
use crate::types::{Facts, Failure, Kind, Op, RelPath, Timestamp, Unkept};

const SETUID_SETGID: u32 = 0o6000;
const STICKY: u32 = 0o1000;

/// What became of an entry's metadata.
pub(super) struct Kept {
    /// The source's, with the owner and the mode that the copy is to have.
    pub(super) meta: Meta,
    pub(super) unkept: Unkept,
    /// The copy's times of last access and of modification.
    times: (Timestamp, Timestamp),
    /// The copy's modification time, where it is not the source's.
    mtime_there: Option<Timestamp>,
}

impl Kept {
    /// What is recorded of the entry; of a symbolic link with its target.
    pub(super) fn facts(&self, target: Option<Vec<u8>>) -> Facts {
        Facts { mtime_there: self.mtime_there, ..facts(&self.meta, self.unkept, target) }
    }
}

/// What became of an entry's owner.
struct Ownership {
    uid: u32,
    gid: u32,
    /// It had to be set, and was.
    set: bool,
    /// The copy has another owner than its source.
    differs: bool,
}

impl Mover {
    /// The permission bits that a new file is created with: the final ones where that shows it to no one whom
    /// the source is hidden from, and otherwise the owner's alone until it is finished.
    pub(super) fn creation_mode(&self, meta: &Meta) -> u32 {
        let policy = &self.job.policy;
        // writable while it is written: user attributes want that of an ordinary owner
        let mode = meta.mode & 0o777 & !(if policy.preserve.mode { 0 } else { policy.umask }) | 0o200;
        // between creation and chown the group is this process's own
        let group_sees_no_more_than_all = (mode >> 3 & 7) & !(mode & 7) == 0;
        if meta.uid == self.node.euid && group_sees_no_more_than_all { mode } else { 0o600 }
    }

    /// Whether what is made in this directory gets an ACL from it that is not to stay.
    pub(super) fn inherits_acl(&self, dir: BorrowedFd<'_>) -> Result<bool, Failure> {
        // what this job has made hands no ACL down before it is finished
        if self.job.fresh || !self.job.policy.strips_inherited_acls() {
            return Ok(false);
        }
        has_default_acl(dir).at(Op::Xattr, DEST)
    }

    /// Gives the copy of an entry the metadata of its source.
    pub(super) fn set_metadata(
        &self,
        from: Handle<'_>,
        to: Handle<'_>,
        source: &Meta,
        inherits_acl: bool,
    ) -> Result<Kept, Failure> {
        let policy = &self.job.policy;
        let have = to.meta().at(Op::Stat, DEST)?;
        if source.kind == Some(Kind::File) && have.size != source.size {
            return Err(Errno::EIO).at(Op::Write, DEST);
        }
        let is_link = source.kind == Some(Kind::Symlink);
        let mut unkept = Unkept::default();
        let owner = self.keep_owner(source, &have, &mut unkept, to)?;
        let stripped = if inherits_acl && !is_link { strip_acls(to).at(Op::Xattr, DEST)? } else { Stripped::default() };
        if stripped.left {
            unkept.add(Unkept::ACL);
        }
        let xattrs = self.keep_xattrs(from, to, &mut unkept)?;
        let mut mode = source.mode;
        if !is_link {
            mode = self.allowed_mode(source, &owner, &mut unkept, xattrs.group_without_acl);
            if owner.set || stripped.any || xattrs.set > 0 || have.mode != mode {
                keep_mode(to, mode, &mut unkept)?;
                // chmod(2) drops setgid without an error for who is not in the group
                if mode & SETUID_SETGID != 0 && to.meta().at(Op::Stat, DEST)?.mode != mode {
                    unkept.add(Unkept::MODE);
                }
            }
        }
        if policy.preserve.timestamps {
            self.keep_times(to, source, &mut unkept)?;
        }
        let times = match policy.preserve.timestamps && !unkept.has(Unkept::TIMES) {
            true => (source.atime, source.mtime),
            false => to.meta().map(|there| (there.atime, there.mtime)).at(Op::Stat, DEST)?,
        };
        let mtime_there = Some(times.1).filter(|mtime| *mtime != source.mtime);
        let mode = if policy.preserve.mode { source.mode } else { mode };
        let meta = Meta { mode, uid: owner.uid, gid: owner.gid, ..*source };
        Ok(Kept { meta, unkept, times, mtime_there })
    }

    /// Sets the owner where it differs and may be set.
    fn keep_owner(
        &self,
        source: &Meta,
        have: &Meta,
        unkept: &mut Unkept,
        to: Handle<'_>,
    ) -> Result<Ownership, Failure> {
        let preserved = |id| self.job.policy.preserve.ownership.then_some(id);
        let wants_uid = self.node.users.get(source.uid).or(preserved(source.uid)).unwrap_or(have.uid);
        let wants_gid = self.node.groups.get(source.gid).or(preserved(source.gid)).unwrap_or(have.gid);
        let uid = (have.uid != wants_uid).then_some(wants_uid);
        let gid = (have.gid != wants_gid).then_some(wants_gid);
        if uid.is_some() && !self.node.privileged {
            unkept.add(Unkept::OWNER);
        }
        let owner = Owner { uid: uid.filter(|_| self.node.privileged), gid };
        let set = owner != (Owner { uid: None, gid: None })
            && match to.set_owner(owner) {
                Ok(()) => true,
                // an ordinary user outside the group, a user namespace, a file system without owners
                Err(err) if Call::Chown.allows(err) => {
                    unkept.add(Unkept::OWNER);
                    false
                }
                Err(err) => return Err(err).at(Op::Chown, DEST),
            };
        let differs = unkept.has(Unkept::OWNER) || (wants_uid, wants_gid) != (source.uid, source.gid);
        Ok(Ownership { uid: wants_uid, gid: wants_gid, set, differs })
    }

    fn keep_xattrs(&self, from: Handle<'_>, to: Handle<'_>, unkept: &mut Unkept) -> Result<CopiedXattrs, Failure> {
        let copied = match copy_xattrs(from, to, |name, is_acl| self.node.attributes.wants(name, is_acl)) {
            Ok(copied) => copied,
            // no /proc to reach the entry by
            Err(XattrError::Reading(Errno::ENOENT)) if !matches!(from, Handle::Open(_)) => {
                CopiedXattrs { unkept: 1, ..CopiedXattrs::default() }
            }
            Err(XattrError::Reading(err)) => return Err(err).at(Op::Xattr, SOURCE),
            Err(XattrError::Writing(err)) => return Err(err).at(Op::Xattr, DEST),
        };
        for (count, kind) in [(copied.unkept, Unkept::XATTR), (copied.unkept_acls, Unkept::ACL)] {
            if count > 0 {
                unkept.add(kind);
            }
        }
        Ok(copied)
    }

    /// The mode that the copy may have. Without setuid and setgid where it has another owner than its source: a user's
    /// setuid program must never become root's, nor the other way round. Where an ACL is not there its mask stands in
    /// the group's bits, and would give the group more than it had.
    fn allowed_mode(
        &self,
        source: &Meta,
        owner: &Ownership,
        unkept: &mut Unkept,
        group_without_acl: Option<u32>,
    ) -> u32 {
        let policy = &self.job.policy;
        let wanted = if policy.preserve.mode { source.mode } else { source.mode & 0o777 & !policy.umask };
        // of a directory whose owner was chosen, setgid says only whose group new entries get
        let drops = owner.differs && (source.kind != Some(Kind::Dir) || unkept.has(Unkept::OWNER));
        let mode = if drops { wanted & !SETUID_SETGID } else { wanted };
        let mode = group_without_acl.map_or(mode, |group| mode & (!0o070 | group << 3));
        if mode != wanted && policy.preserve.mode {
            unkept.add(Unkept::MODE);
        }
        mode
    }

    fn keep_times(&self, to: Handle<'_>, source: &Meta, unkept: &mut Unkept) -> Result<(), Failure> {
        match to.set_times(source.atime, source.mtime) {
            Ok(()) => {}
            Err(err) if Call::Utimens.allows(err) => {
                unkept.add(Unkept::TIMES);
                return Ok(());
            }
            Err(err) => return Err(err).at(Op::Utimes, DEST),
        }
        // a time that the file system cannot hold is rounded or clamped without an error
        let usual = 0..=i64::from(i32::MAX);
        if (self.node.coarse_times || !usual.contains(&source.mtime.sec))
            && to.meta().at(Op::Stat, DEST)?.mtime != source.mtime
        {
            unkept.add(Unkept::TIMES);
        }
        Ok(())
    }

    /// Sets the times once more, after a rename: dfuse and encfs set them to now then, and what stat says right after it may
    /// be what the kernel remembers.
    pub(super) fn keep_times_again(&self, to: Handle<'_>, kept: &mut Kept) -> Result<(), Failure> {
        match to.set_times(kept.times.0, kept.times.1) {
            Err(err) if Call::Utimens.allows(err) => {
                if self.job.policy.preserve.timestamps {
                    kept.unkept.add(Unkept::TIMES);
                }
                let there = to.meta().at(Op::Stat, DEST)?.mtime;
                kept.mtime_there = Some(there).filter(|mtime| *mtime != kept.meta.mtime);
                Ok(())
            }
            set => set.at(Op::Utimes, DEST),
        }
    }

    /// Removes the attributes of a copy that its source does not have any more; whether all could be.
    pub(super) fn drop_other_xattrs(&self, from: Handle<'_>, to: Handle<'_>) -> Result<bool, Failure> {
        match drop_other_xattrs(from, to, |name, is_acl| self.node.attributes.wants(name, is_acl)) {
            Ok(left) => Ok(left == 0),
            Err(XattrError::Reading(err)) => Err(err).at(Op::Xattr, SOURCE),
            Err(XattrError::Writing(err)) => Err(err).at(Op::Xattr, DEST),
        }
    }

    /// Makes a file durable where syncfs would not.
    pub(super) fn sync_if_needed(&self, to: BorrowedFd<'_>) -> Result<(), Failure> {
        if self.node.unsynced().is_some() { sync_file(to).at(Op::Fsync, DEST) } else { Ok(()) }
    }

    /// Makes a directory, its names and its metadata, durable at once, where syncfs would not.
    pub(super) fn sync_finished_dir(&self, path: &RelPath, dir: BorrowedFd<'_>) -> Result<(), Failure> {
        let Some(unsynced) = self.node.unsynced() else { return Ok(()) };
        sync_open_dir(dir).at(Op::Fsync, DEST)?;
        unsynced.forget(path);
        Ok(())
    }

    /// Has a directory, its names and its metadata, made durable with the next checkpoint, where syncfs would not.
    pub(super) fn sync_dir_later(&self, dir: &RelPath) {
        if let Some(unsynced) = self.node.unsynced() {
            unsynced.add(dir);
        }
    }
}

/// Sets the mode, or, where the sticky bit alone is refused (dfuse), the mode without it.
fn keep_mode(to: Handle<'_>, mode: u32, unkept: &mut Unkept) -> Result<(), Failure> {
    match to.set_mode(mode) {
        Err(err) if Call::Chmod.allows(err) => {
            unkept.add(Unkept::MODE);
            if mode & STICKY != 0 { keep_mode(to, mode & !STICKY, unkept) } else { Ok(()) }
        }
        set => set.at(Op::Chmod, DEST),
    }
}
