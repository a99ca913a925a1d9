//! The consequence of a failed call: one table for all calls on a tree and in the state directory, on every kind of entry
//! and on the copy's top directory. docs/errors.md says the same to administrators. `tests/it/outcomes.rs` lets each call
//! fail.
//!
//! Lustre, GPFS, BeeGFS, CephFS, GlusterFS and overlayfs answer as local file systems do; what a FUSE server does not
//! implement the kernel answers with `ENOSYS` or `EOPNOTSUPP`.

use nix::errno::Errno;

use super::Side;

/// The calls that the table distinguishes.
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
    /// ioctl(2) on inode flags and project ids.
    InodeFlags,
    /// Sharing the source's blocks, ioctl(2) `FICLONERANGE`.
    Clone,
    /// Any other call on an entry. Failures of all calls on entries are judged by it once they are errors ([`Failure`]).
    ///
    /// [`Failure`]: super::Failure
    OnEntry,
    /// Any call on the job's own files (state directory, journal, manifest), and calls that make the whole copy durable.
    OnRecord,
}

/// The consequence of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No error: the attribute that was read or removed does not exist.
    Absent,
    /// No error: the file system cannot do it, or cannot hold this value. The caller takes another way; if there is none, the
    /// loss is counted as not kept.
    Unsupported,
    /// As [`Self::Unsupported`]: this user may not do it here.
    NotPermitted,
    /// The failure may pass by itself. The operation is tried again; when the attempts are used up, the entry fails.
    Again,
    /// The entry fails, and the job goes on.
    Entry,
    /// The whole job is affected: it stops, and the same command goes on with it.
    Halt(Halt),
    /// The job ends at once.
    Broken,
}

/// What an administrator has to mend before the job can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    NoSpace,
    FileSystemGone,
}

/// The calls of a row.
#[derive(Clone, Copy, Debug)]
enum Calls {
    These(&'static [Call]),
    /// All calls that a file system need not have: all but [`Call::OnEntry`] and [`Call::OnRecord`].
    Optional,
    /// All calls on entries: all but [`Call::OnRecord`].
    OnEntries,
    All,
}

impl Calls {
    fn has(self, call: Call) -> bool {
        match self {
            Self::These(calls) => calls.contains(&call),
            Self::Optional => !matches!(call, Call::OnEntry | Call::OnRecord),
            Self::OnEntries => call != Call::OnRecord,
            Self::All => true,
        }
    }
}

/// One rule: these errnos of these calls have this verdict. A rule with a `side` is of that side alone.
struct Row {
    calls: Calls,
    side: Option<Side>,
    errnos: &'static [Errno],
    verdict: Verdict,
}

const fn of(calls: &'static [Call], errnos: &'static [Errno], verdict: Verdict) -> Row {
    Row { calls: Calls::These(calls), side: None, errnos, verdict }
}

const fn row(calls: Calls, side: Option<Side>, errnos: &'static [Errno], verdict: Verdict) -> Row {
    Row { calls, side, errnos, verdict }
}

/// The first row that fits decides. If none fits: [`Verdict::Entry`], for the job's own files [`Verdict::Broken`].
const TABLE: &[Row] = {
    use Call::{
        Chmod, Chown, Clone, GetXattr, InodeFlags, Link, Lock, Mknod, OnRecord, OpenNoAtime, RemoveXattr, RenameFlags,
        SeekHoles, SetXattr, SyncDir, Utimens,
    };
    use Calls::{All, OnEntries, Optional};
    use Verdict::{Absent, Again, NotPermitted, Unsupported};
    const NO_SPACE: Verdict = Verdict::Halt(Halt::NoSpace);
    const GONE: Verdict = Verdict::Halt(Halt::FileSystemGone);
    const DEST: Option<Side> = Some(Side::Destination);
    &[
        row(Optional, None, &[Errno::EOPNOTSUPP, Errno::ENOSYS], Unsupported),
        of(&[GetXattr, RemoveXattr], &[Errno::ENODATA], Absent),
        // dfuse (DAOS 2.4 to 2.8)
        of(&[RemoveXattr], &[Errno::ENOENT], Absent),
        // ACLs on ramfs, vfat, FUSE without attributes
        of(&[GetXattr, RemoveXattr], &[Errno::EINVAL], Unsupported),
        // DAOS (long names, user.daos), btrfs properties, CIFS
        of(&[SetXattr], &[Errno::EINVAL], Unsupported),
        // ext4 (one block), NFSv4.2, NTFS, XFS
        of(&[SetXattr], &[Errno::E2BIG, Errno::ERANGE, Errno::ENOSPC], Unsupported),
        // security.* and trusted.* for an ordinary user, SELinux; NFS with root squash
        of(&[SetXattr, RemoveXattr], &[Errno::EPERM, Errno::EACCES], NotPermitted),
        // an ordinary user; vfat, exFAT, NTFS; NFS with root squash; SMB, sshfs
        of(&[Chown, Chmod, Utimens], &[Errno::EPERM, Errno::EACCES], NotPermitted),
        // ids that a user namespace or an id map lacks; some of the bits only; times that a server cannot hold (NFSv3)
        of(&[Chown, Chmod, Utimens], &[Errno::EINVAL], Unsupported),
        // an ordinary user's devices; vfat, exFAT; rclone
        of(&[Mknod], &[Errno::EPERM], NotPermitted),
        // dfuse (DAOS 2.4 to 2.8), s3fs
        of(&[Mknod], &[Errno::EINVAL], Unsupported),
        // vfat, exFAT, dfuse, s3fs; ext4 (65,000 links), btrfs (one directory), NFS servers; project quotas, mergerfs
        of(&[Link], &[Errno::EPERM, Errno::EMLINK, Errno::EXDEV], Unsupported),
        // CIFS, some FUSE file systems: they keep names on their own
        of(&[SyncDir], &[Errno::EINVAL, Errno::EBADF], Unsupported),
        // NFS, most of FUSE, old kernels; file systems before it was there
        of(&[RenameFlags, SeekHoles], &[Errno::EINVAL], Unsupported),
        // NFS without a lock daemon, Lustre without `-o flock`
        of(&[Lock], &[Errno::ENOLCK, Errno::EINVAL], Unsupported),
        // for the owner and root only
        of(&[OpenNoAtime], &[Errno::EPERM], NotPermitted),
        // file systems without flags, or of which a type has none
        of(&[InodeFlags], &[Errno::ENOTTY, Errno::EINVAL], Unsupported),
        // two file systems, or one without shared blocks
        of(&[Clone], &[Errno::EXDEV, Errno::ENOTTY], Unsupported),
        // nothing more can be copied before somebody has made space, or mounted the file system again
        row(OnEntries, DEST, &[Errno::ENOSPC, Errno::EDQUOT], NO_SPACE),
        of(&[OnRecord], &[Errno::ENOSPC, Errno::EDQUOT], NO_SPACE),
        of(&[OnRecord], &[Errno::EROFS], GONE),
        row(All, None, &[Errno::ENOTCONN, Errno::ESHUTDOWN, Errno::ECONNABORTED], GONE),
        // another node's cache that does not know a new name yet
        row(OnEntries, DEST, &[Errno::ENOENT], Again),
        // a server that restarts; a signal
        row(OnEntries, None, &[Errno::EIO, Errno::ESTALE, Errno::ETIMEDOUT, Errno::EAGAIN, Errno::EINTR], Again),
    ]
};

impl Row {
    fn fits(&self, call: Call, side: Side, errno: Errno) -> bool {
        self.calls.has(call) && self.side.is_none_or(|of| of == side) && self.errnos.contains(&errno)
    }
}

impl Call {
    /// The consequence if this call fails on this side with this errno.
    pub fn verdict(self, side: Side, errno: Errno) -> Verdict {
        let other = if self == Self::OnRecord { Verdict::Broken } else { Verdict::Entry };
        TABLE.iter().find(|row| row.fits(self, side, errno)).map_or(other, |row| row.verdict)
    }

    /// Whether this errno of this call is not an error. Such rows hold for both sides.
    pub fn allows(self, errno: Errno) -> bool {
        matches!(self.verdict(Side::Destination, errno), Verdict::Absent | Verdict::Unsupported | Verdict::NotPermitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: [Call; 19] = [
        Call::ListXattr,
        Call::GetXattr,
        Call::SetXattr,
        Call::RemoveXattr,
        Call::Chown,
        Call::Chmod,
        Call::Utimens,
        Call::Mknod,
        Call::Link,
        Call::SyncDir,
        Call::RenameFlags,
        Call::Lock,
        Call::SeekHoles,
        Call::OpenNoAtime,
        Call::Statx,
        Call::InodeFlags,
        Call::Clone,
        Call::OnEntry,
        Call::OnRecord,
    ];

    #[test]
    fn what_means_that_data_or_names_may_be_lost_is_always_an_error() {
        for row in TABLE.iter().filter(|row| matches!(row.verdict, Verdict::Unsupported | Verdict::NotPermitted)) {
            for errno in [Errno::EIO, Errno::ESTALE, Errno::EDQUOT, Errno::EROFS, Errno::ENOTCONN, Errno::ETIMEDOUT] {
                assert!(!row.errnos.contains(&errno), "{:?} {errno}", row.calls);
            }
            // `allows` does not ask for the side.
            assert!(row.side.is_none() && !row.calls.has(Call::OnEntry), "{:?}", row.calls);
        }
        assert_eq!(Call::RemoveXattr.verdict(Side::Destination, Errno::ENOENT), Verdict::Absent);
        assert_eq!(Call::Chown.verdict(Side::Destination, Errno::ENOENT), Verdict::Again);
        assert_eq!(Call::GetXattr.verdict(Side::Source, Errno::ENOENT), Verdict::Entry);
    }

    #[test]
    fn no_row_is_hidden_by_those_above_it() {
        for (number, row) in TABLE.iter().enumerate() {
            let side = row.side.unwrap_or(Side::Source);
            let is_first = |call: Call, errno| TABLE.iter().position(|row| row.fits(call, side, errno)) == Some(number);
            for errno in row.errnos {
                assert!(EACH.iter().any(|call| is_first(*call, *errno)), "{:?} {errno}", row.calls);
            }
        }
    }
}
