//! Leases: whether somebody else has a file open.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// As long as it lives, nobody else has the file open, and whoever opens it waits. The kernel tells this process of that by
/// SIGIO, which [`ignore_breaks`] makes harmless.
pub struct Lease<'a>(BorrowedFd<'a>);

impl<'a> Lease<'a> {
    /// Takes a lease on a file by the only descriptor that this process has of it, which is open for writing. `None` where
    /// somebody has it open, and on file systems without leases: fcntl(2).
    pub fn take(fd: BorrowedFd<'a>) -> Option<Self> {
        set(fd, libc::F_WRLCK).then_some(Self(fd))
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // closing the descriptor would end it too
        set(self.0, libc::F_UNLCK);
    }
}

fn set(fd: BorrowedFd<'_>, kind: libc::c_int) -> bool {
    // SAFETY: the descriptor is open, and the call takes a number.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
}

/// Has the process ignore the signal that tells of somebody who waits for a leased file: by default it would end it.
pub fn ignore_breaks() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_that_somebody_has_open_gets_no_lease() {
        let file = tempfile::NamedTempFile::new().expect("made");
        let Some(lease) = Lease::take(file.as_file().as_fd()) else {
            println!("SKIP: a file system without leases");
            return;
        };
        drop(lease);
        let other = std::fs::File::open(file.path()).expect("opens");
        assert!(Lease::take(file.as_file().as_fd()).is_none());
        drop(other);
        assert!(Lease::take(file.as_file().as_fd()).is_some());
    }
}
