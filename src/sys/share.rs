//! Data that never passes through this process: blocks that two files share, and copies that the kernel makes.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::file::file_offset;

/// Lets `to` share the blocks of `from` at `offset`, for `len` bytes; a length that is not one of whole blocks must end with
/// the file. Both see the data as it was at this moment.
///
/// # Errors
/// Those of ioctl_ficlonerange(2).
pub fn share_blocks(from: BorrowedFd<'_>, to: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: both descriptors are open, and the request reads one struct of this type.
    Errno::result(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &range) }).map(drop)
}

/// Whether blocks can never be shared between these two file systems, whatever the file.
pub fn never_shares(err: Errno) -> bool {
    matches!(err, Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS)
}

/// Lets the kernel copy `len` bytes at `offset` of `from` to the same place of `to`, or fewer: returns how many; 0 at the end
/// of the file.
///
/// # Errors
/// Those of copy_file_range(2).
pub fn copy_in_kernel(from: BorrowedFd<'_>, to: BorrowedFd<'_>, offset: u64, len: usize) -> Result<usize, Errno> {
    let (mut at, mut to_at) = (file_offset(offset, 0)?, file_offset(offset, 0)?);
    copy_file_range(from, Some(&mut at), to, Some(&mut to_at), len)
}

/// Whether the file system is in memory.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_in_memory(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.filesystem_type() == TMPFS_MAGIC)
}
