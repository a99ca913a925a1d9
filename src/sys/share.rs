//! Blocks that two files share: data that is never read or written.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

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
