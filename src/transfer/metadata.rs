//! Metadata of a copied entry: owner, attributes, mode, times, in the order in which they last.
//!
//! Changing the owner clears setuid, setgid and capabilities; an ACL changes the mode; all of it,
//! and the data, changes the times.

use std::os::fd::BorrowedFd;

use super::{At, DEST, Mover};
use crate::sys::{
    CopiedXattrs, Errno, Meta, Owner, XattrPlace, copy_xattrs, set_mode, set_mode_at, set_owner, set_owner_at,
    set_times, set_times_at, strip_acls, sync_file,
};
use crate::types::{Failure, Kind, Op, Unkept};

const SETUID_SETGID: u32 = 0o6000;

impl Mover {
    /// The permission bits that a new file is created with: the final ones where that shows it to no one whom
    /// the source is hidden from, and otherwise the owner's alone until it is finished.
    pub(super) fn creation_mode(&self, meta: &Meta) -> u32 {
        // writable while it is written: user attributes want that of an ordinary owner
        let mode = meta.mode & 0o777 | 0o200;
        // between creation and chown the group is this process's own
        let group_sees_no_more_than_all = (mode >> 3 & 7) & !(mode & 7) == 0;
        if meta.uid == self.node.euid && group_sees_no_more_than_all { mode } else { 0o600 }
    }

    /// Gives an open file or directory the metadata of its source.
    pub(super) fn set_metadata(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        want: &Meta,
        inherits_acl: bool,
    ) -> Result<Unkept, Failure> {
        let have = Meta::of(to).at(Op::Stat, DEST)?;
        if want.kind == Some(Kind::File) && have.size != want.size {
            return Err(Errno::EIO).at(Op::Write, DEST);
        }
        let mut unkept = Unkept::default();
        let owner_set = self.keep_owner(want, &have, &mut unkept, |owner| set_owner(to, owner))?;
        let stripped = inherits_acl && strip_acls(XattrPlace::Fd(to)).at(Op::Xattr, DEST)?;
        let xattrs = copy_xattrs(XattrPlace::Fd(from), XattrPlace::Fd(to)).at(Op::Xattr, DEST)?;
        if xattrs.unkept > 0 {
            unkept.add(Unkept::XATTR);
        }
        let mode = allowed_mode(want, &mut unkept, xattrs.group_without_acl);
        if owner_set || stripped || xattrs.set > 0 || have.mode != mode {
            keep_mode(set_mode(to, mode), &mut unkept)?;
            // chmod(2) drops setgid without an error for who is not in the group
            if mode & SETUID_SETGID != 0 && Meta::of(to).at(Op::Stat, DEST)?.mode != mode {
                unkept.add(Unkept::MODE);
            }
        }
        set_times(to, want.atime, want.mtime).at(Op::Utimes, DEST)?;
        Ok(unkept)
    }

    /// Gives a symbolic link or a special file the metadata of its source.
    pub(super) fn set_metadata_at(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        (dir, name): (BorrowedFd<'_>, &[u8]),
        want: &Meta,
        inherits_acl: bool,
    ) -> Result<Unkept, Failure> {
        let have = Meta::at(dir, name).at(Op::Stat, DEST)?;
        let mut unkept = Unkept::default();
        self.keep_owner(want, &have, &mut unkept, |owner| set_owner_at(dir, name, owner))?;
        if inherits_acl && want.kind != Some(Kind::Symlink) {
            strip_acls(XattrPlace::At(dir, name)).at(Op::Xattr, DEST)?;
        }
        let xattrs = match copy_xattrs(XattrPlace::At(from.0, from.1), XattrPlace::At(dir, name)) {
            // no /proc to reach the entry by
            Err(Errno::ENOENT) => CopiedXattrs { unkept: 1, ..CopiedXattrs::default() },
            copied => copied.at(Op::Xattr, DEST)?,
        };
        if xattrs.unkept > 0 {
            unkept.add(Unkept::XATTR);
        }
        if want.kind != Some(Kind::Symlink) {
            let mode = allowed_mode(want, &mut unkept, xattrs.group_without_acl);
            keep_mode(set_mode_at(dir, name, mode), &mut unkept)?;
        }
        set_times_at(dir, name, want.atime, want.mtime).at(Op::Utimes, DEST)?;
        Ok(unkept)
    }

    /// Sets the owner where it differs and may be set; whether it was.
    fn keep_owner(
        &self,
        want: &Meta,
        have: &Meta,
        unkept: &mut Unkept,
        set: impl FnOnce(Owner) -> Result<(), Errno>,
    ) -> Result<bool, Failure> {
        let uid = (have.uid != want.uid).then_some(want.uid);
        let gid = (have.gid != want.gid).then_some(want.gid);
        if uid.is_some() && !self.node.privileged {
            unkept.add(Unkept::OWNER);
        }
        let owner = Owner { uid: uid.filter(|_| self.node.privileged), gid };
        if owner == (Owner { uid: None, gid: None }) {
            return Ok(false);
        }
        match set(owner) {
            Ok(()) => Ok(true),
            // an ordinary user outside the group, a user namespace, a file system without owners
            Err(Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                unkept.add(Unkept::OWNER);
                Ok(false)
            }
            Err(err) => Err(err).at(Op::Chown, DEST),
        }
    }

    /// Makes a file durable where syncfs would not.
    pub(super) fn sync_if_needed(&self, to: BorrowedFd<'_>) -> Result<(), Failure> {
        if self.node.sync_each { sync_file(to).at(Op::Fsync, DEST) } else { Ok(()) }
    }

    /// The same for a directory's names. Not every FUSE file system can sync a directory.
    pub(super) fn sync_dir_if_needed(&self, dir: BorrowedFd<'_>) -> Result<(), Failure> {
        match self.sync_if_needed(dir) {
            Err(Failure { errno: libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EBADF, .. }) => Ok(()),
            synced => synced,
        }
    }
}

/// The source's mode. Without setuid and setgid where the file has another owner than its source: a user's setuid
/// program must never become root's, nor the other way round. Where an ACL is lost its mask stands in the group's
/// bits, and would give the group more than it had.
fn allowed_mode(want: &Meta, unkept: &mut Unkept, group_without_acl: Option<u32>) -> u32 {
    let mode = if unkept.has(Unkept::OWNER) { want.mode & !SETUID_SETGID } else { want.mode };
    let Some(group) = group_without_acl else { return mode };
    let narrowed = mode & !0o070 | group << 3;
    if narrowed != mode {
        unkept.add(Unkept::MODE);
    }
    narrowed
}

fn keep_mode(set: Result<(), Errno>, unkept: &mut Unkept) -> Result<(), Failure> {
    match set {
        Ok(()) => Ok(()),
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            unkept.add(Unkept::MODE);
            Ok(())
        }
        Err(err) => Err(err).at(Op::Chmod, DEST),
    }
}
