//! What an errno means, call by call: one table for every call on names and metadata whose failure is not always an error
//! of the entry.
//!
//! `EOPNOTSUPP` and `ENOSYS` mean "not supported" for all of them. Beyond that:
//!
//! | call | errno | means | seen on |
//! |---|---|---|---|
//! | getxattr | `ENODATA` | absent | all |
//! | removexattr | `ENODATA` | absent | all |
//! | | `ENOENT` | absent | dfuse (DAOS 2.4 to 2.8) |
//! | | `EINVAL` | not supported | ACLs on ramfs, vfat, FUSE without attributes |
//! | | `EACCES`, `EPERM` | not permitted | `security.*`, `trusted.*` for an ordinary user, SELinux |
//! | setxattr | `EPERM`, `EACCES` | not permitted | as above; NFS with root squash |
//! | | `E2BIG`, `ERANGE`, `ENOSPC` | does not fit | ext4 (one block), NFSv4.2, NTFS, XFS |
//! | | `EINVAL` | does not fit | DAOS (long names, `user.daos`), btrfs properties, CIFS |
//! | chown | `EPERM`, `EACCES` | not permitted | an ordinary user; vfat, exFAT, NTFS; NFS with root squash; SMB, sshfs |
//! | | `EINVAL` | not supported | ids that a user namespace or an id map lacks |
//! | chmod | `EPERM`, `EACCES` | not permitted | vfat, exFAT; SMB, sshfs |
//! | | `EINVAL` | not supported | file systems that know some of the bits only |
//! | utimensat | `EPERM`, `EACCES` | not permitted | vfat of another user; SMB, sshfs |
//! | | `EINVAL` | not supported | times that a server cannot hold (NFSv3) |
//! | mknodat | `EPERM` | not permitted | an ordinary user's devices; vfat, exFAT; rclone |
//! | | `EINVAL` | not supported | dfuse (DAOS 2.4 to 2.8), s3fs |
//! | linkat | `EPERM` | not supported | vfat, exFAT, dfuse, s3fs |
//! | | `EMLINK` | does not fit | ext4 (65,000), btrfs (one directory), NFS servers |
//! | | `EXDEV` | not supported | project quotas, mergerfs |
//! | fsync of a directory | `EINVAL`, `EBADF` | not supported | CIFS, some FUSE file systems: they keep names on their own |
//! | renameat2 with a flag | `EINVAL` | not supported | NFS, most of FUSE, old kernels |
//! | fcntl locks | `ENOLCK`, `EINVAL` | not supported | NFS without a lock daemon, Lustre without `-o flock` |
//! | lseek for holes | `EINVAL` | not supported | file systems before it was there |
//!
//! Lustre, GPFS, BeeGFS, CephFS, GlusterFS and overlayfs answer as local file systems do; what a FUSE server does not
//! implement the kernel answers with `ENOSYS` or `EOPNOTSUPP`.

use nix::errno::Errno;

/// A call whose failure may mean less than an error.
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
    RenameFlags,
    Lock,
    SeekHoles,
}

/// What such a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was asked for, or was to be removed, is not there.
    Absent,
    /// This file system cannot do it, or cannot hold this value.
    Unsupported,
    /// This user may not do it here.
    NotPermitted,
}

impl Call {
    /// What the errno of this call means; `None` for an error.
    pub fn answer(self, errno: Errno) -> Option<Answer> {
        use Answer::{Absent, NotPermitted, Unsupported};
        Some(match (self, errno) {
            (_, Errno::EOPNOTSUPP | Errno::ENOSYS) => Unsupported,
            (Self::GetXattr | Self::RemoveXattr, Errno::ENODATA) | (Self::RemoveXattr, Errno::ENOENT) => Absent,
            (
                Self::SetXattr | Self::RemoveXattr | Self::Chown | Self::Chmod | Self::Utimens,
                Errno::EPERM | Errno::EACCES,
            )
            | (Self::Mknod, Errno::EPERM) => NotPermitted,
            (Self::SetXattr, Errno::E2BIG | Errno::ERANGE | Errno::ENOSPC)
            | (Self::Link, Errno::EPERM | Errno::EMLINK | Errno::EXDEV)
            | (Self::SyncDir, Errno::EBADF)
            | (Self::Lock, Errno::ENOLCK)
            | (
                Self::SetXattr
                | Self::RemoveXattr
                | Self::Chown
                | Self::Chmod
                | Self::Utimens
                | Self::Mknod
                | Self::SyncDir
                | Self::RenameFlags
                | Self::Lock
                | Self::SeekHoles,
                Errno::EINVAL,
            ) => Unsupported,
            _ => return None,
        })
    }

    /// Whether the errno of this call is no error.
    pub fn allows(self, errno: Errno) -> bool {
        self.answer(errno).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_that_data_or_names_may_be_lost_is_always_an_error() {
        const ALL: [Call; 13] = [
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
        ];
        for call in ALL {
            for errno in [Errno::EIO, Errno::ESTALE, Errno::EDQUOT, Errno::EROFS, Errno::ENOTCONN, Errno::ETIMEDOUT] {
                assert_eq!(call.answer(errno), None, "{call:?} {errno}");
            }
            assert!(call.allows(Errno::EOPNOTSUPP) && call.allows(Errno::ENOSYS), "{call:?}");
        }
        assert_eq!(Call::RemoveXattr.answer(Errno::ENOENT), Some(Answer::Absent));
        assert_eq!(Call::Chown.answer(Errno::ENOENT), None);
        assert_eq!(Call::GetXattr.answer(Errno::ENOENT), None);
    }
}
