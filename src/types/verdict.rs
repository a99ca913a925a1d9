//! What follows from a call that failed: one table for every call on a tree and in the state directory, whatever the entry,
//! the copy's top included. docs/errors.md is the same for administrators; `tests/it/outcomes.rs` lets each call fail.
//!
//! Lustre, GPFS, BeeGFS, CephFS, GlusterFS and overlayfs answer as local file systems do; what a FUSE server does not
//! implement the kernel answers with `ENOSYS` or `EOPNOTSUPP`.

use nix::errno::Errno;

use super::Side;

/// A call, as far as the table tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    ListXattr,
    GetXattr,
    SetXattr,
    RemoveXattr,
    Chown,
    Chmod,
    Utimens,
    Mknod,
    Link,
    SyncDir,
    /// renameat2(2) with a flag.
    RenameFlags,
    /// fcntl(2) locks.
    Lock,
    /// lseek(2) for data and holes.
    SeekHoles,
    /// open(2) with `O_NOATIME`.
    OpenNoAtime,
    Statx,
    /// Sharing the source's blocks, ioctl(2) `FICLONERANGE`.
    Clone,
    /// Any other call on an entry, and what the others are where their errno means an error.
    OnEntry,
    /// Any call on the job's own files: state directory, journal, manifest; and what makes the whole copy durable.
    OnRecord,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No error: what was asked for, or was to be removed, is not there.
    Absent,
    /// No error: this file system cannot do it, or cannot hold this value. Another way is taken; where there is none, it is
    /// counted as not kept.
    Unsupported,
    /// The same: this user may not do it here.
    NotPermitted,
    /// It may pass by itself: tried again, then as [`Self::Entry`].
    Again,
    /// The entry fails, and the job goes on.
    Entry,
    /// It is nothing of one entry: the job stops, and the same command goes on.
    Halt(Halt),
    /// The job ends at once.
    Broken,
}

/// What has to be seen to before a job can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    NoSpace,
    FileSystemGone,
}

/// These errnos of these calls mean this; `side` is where it matters.
struct Row {
    calls: &'static [Call],
    side: Option<Side>,
    errnos: &'static [Errno],
    verdict: Verdict,
}

const fn row(calls: &'static [Call], side: Option<Side>, errnos: &'static [Errno], verdict: Verdict) -> Row {
    Row { calls, side, errnos, verdict }
}

/// The first row that fits counts. What none fits is [`Verdict::Entry`], of the job's own files [`Verdict::Broken`].
const TABLE: &[Row] = {
    use Call::{
        Chmod, Chown, Clone, GetXattr, Link, ListXattr, Lock, Mknod, OnEntry, OnRecord, OpenNoAtime, RemoveXattr,
        RenameFlags, SeekHoles, SetXattr, Statx, SyncDir, Utimens,
    };
    use Verdict::{Absent, Again, NotPermitted, Unsupported};
    const OPTIONAL: &[Call] = &[
        ListXattr,
        GetXattr,
        SetXattr,
        RemoveXattr,
        Chown,
        Chmod,
        Utimens,
        Mknod,
        Link,
        SyncDir,
        RenameFlags,
        Lock,
        SeekHoles,
        OpenNoAtime,
        Statx,
        Clone,
    ];
    const ON_ENTRY: &[Call] = &[
        ListXattr,
        GetXattr,
        SetXattr,
        RemoveXattr,
        Chown,
        Chmod,
        Utimens,
        Mknod,
        Link,
        SyncDir,
        RenameFlags,
        Lock,
        SeekHoles,
        OpenNoAtime,
        Statx,
        Clone,
        OnEntry,
    ];
    const NO_SPACE: Verdict = Verdict::Halt(Halt::NoSpace);
    const GONE: Verdict = Verdict::Halt(Halt::FileSystemGone);
    const DEST: Option<Side> = Some(Side::Destination);
    &[
        row(OPTIONAL, None, &[Errno::EOPNOTSUPP, Errno::ENOSYS], Unsupported),
        row(&[GetXattr, RemoveXattr], None, &[Errno::ENODATA], Absent),
        // dfuse (DAOS 2.4 to 2.8)
        row(&[RemoveXattr], None, &[Errno::ENOENT], Absent),
        // ACLs on ramfs, vfat, FUSE without attributes
        row(&[GetXattr, RemoveXattr], None, &[Errno::EINVAL], Unsupported),
        // DAOS (long names, user.daos), btrfs properties, CIFS
        row(&[SetXattr], None, &[Errno::EINVAL], Unsupported),
        // ext4 (one block), NFSv4.2, NTFS, XFS
        row(&[SetXattr], None, &[Errno::E2BIG, Errno::ERANGE, Errno::ENOSPC], Unsupported),
        // security.* and trusted.* for an ordinary user, SELinux; NFS with root squash
        row(&[SetXattr, RemoveXattr], None, &[Errno::EPERM, Errno::EACCES], NotPermitted),
        // an ordinary user; vfat, exFAT, NTFS; NFS with root squash; SMB, sshfs
        row(&[Chown, Chmod, Utimens], None, &[Errno::EPERM, Errno::EACCES], NotPermitted),
        // ids that a user namespace or an id map lacks; some of the bits only; times that a server cannot hold (NFSv3)
        row(&[Chown, Chmod, Utimens], None, &[Errno::EINVAL], Unsupported),
        // an ordinary user's devices; vfat, exFAT; rclone
        row(&[Mknod], None, &[Errno::EPERM], NotPermitted),
        // dfuse (DAOS 2.4 to 2.8), s3fs
        row(&[Mknod], None, &[Errno::EINVAL], Unsupported),
        // vfat, exFAT, dfuse, s3fs; ext4 (65,000 links), btrfs (one directory), NFS servers; project quotas, mergerfs
        row(&[Link], None, &[Errno::EPERM, Errno::EMLINK, Errno::EXDEV], Unsupported),
        // CIFS, some FUSE file systems: they keep names on their own
        row(&[SyncDir], None, &[Errno::EINVAL, Errno::EBADF], Unsupported),
        // NFS, most of FUSE, old kernels; file systems before it was there
        row(&[RenameFlags, SeekHoles], None, &[Errno::EINVAL], Unsupported),
        // NFS without a lock daemon, Lustre without `-o flock`
        row(&[Lock], None, &[Errno::ENOLCK, Errno::EINVAL], Unsupported),
        // for the owner and root only
        row(&[OpenNoAtime], None, &[Errno::EPERM], NotPermitted),
        // two file systems, or one without shared blocks
        row(&[Clone], None, &[Errno::EXDEV, Errno::ENOTTY], Unsupported),
        // nothing more can be copied before somebody has made space, or mounted the file system again
        row(ON_ENTRY, DEST, &[Errno::ENOSPC, Errno::EDQUOT], NO_SPACE),
        row(&[OnRecord], None, &[Errno::ENOSPC, Errno::EDQUOT], NO_SPACE),
        row(&[OnRecord], None, &[Errno::EROFS], GONE),
        row(&[], None, &[Errno::ENOTCONN, Errno::ESHUTDOWN, Errno::ECONNABORTED], GONE),
        // another node's cache that does not know a new name yet
        row(ON_ENTRY, DEST, &[Errno::ENOENT], Again),
        // a server that restarts; a signal
        row(ON_ENTRY, None, &[Errno::EIO, Errno::ESTALE, Errno::ETIMEDOUT, Errno::EAGAIN, Errno::EINTR], Again),
    ]
};

impl Row {
    fn fits(&self, call: Call, side: Side, errno: Errno) -> bool {
        // no call stands for all
        let call_fits = self.calls.is_empty() || self.calls.contains(&call);
        call_fits && self.side.is_none_or(|of| of == side) && self.errnos.contains(&errno)
    }
}

impl Call {
    /// What follows when this call fails on this side with this errno.
    pub fn verdict(self, side: Side, errno: Errno) -> Verdict {
        let other = if self == Self::OnRecord { Verdict::Broken } else { Verdict::Entry };
        TABLE.iter().find(|row| row.fits(self, side, errno)).map_or(other, |row| row.verdict)
    }

    /// Whether the errno of this call is no error, on whichever side.
    pub fn allows(self, errno: Errno) -> bool {
        matches!(self.verdict(Side::Destination, errno), Verdict::Absent | Verdict::Unsupported | Verdict::NotPermitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_that_data_or_names_may_be_lost_is_always_an_error() {
        for row in TABLE.iter().filter(|row| matches!(row.verdict, Verdict::Unsupported | Verdict::NotPermitted)) {
            for errno in [Errno::EIO, Errno::ESTALE, Errno::EDQUOT, Errno::EROFS, Errno::ENOTCONN, Errno::ETIMEDOUT] {
                assert!(!row.errnos.contains(&errno), "{:?} {errno}", row.calls);
            }
            // what less than an error is said of has no side
            assert!(row.side.is_none() && !row.calls.is_empty(), "{:?}", row.calls);
        }
        assert_eq!(Call::RemoveXattr.verdict(Side::Destination, Errno::ENOENT), Verdict::Absent);
        assert_eq!(Call::Chown.verdict(Side::Destination, Errno::ENOENT), Verdict::Again);
        assert_eq!(Call::GetXattr.verdict(Side::Source, Errno::ENOENT), Verdict::Entry);
    }

    #[test]
    fn no_row_is_hidden_by_those_above_it() {
        for (number, row) in TABLE.iter().enumerate() {
            let calls = if row.calls.is_empty() { &[Call::OnEntry] } else { row.calls };
            let side = row.side.unwrap_or(Side::Source);
            let is_first = |call: Call, errno| TABLE.iter().position(|row| row.fits(call, side, errno)) == Some(number);
            for errno in row.errnos {
                assert!(calls.iter().any(|call| is_first(*call, *errno)), "{:?} {errno}", row.calls);
            }
        }
    }
}
