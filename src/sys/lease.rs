//! Write leases, fcntl(2) `F_SETLEASE`: proof that no other process has a file open.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// A write lease. While it lives, no other process has the file open, and open(2) by another process waits. The kernel sends
/// SIGIO when another process waits; [`ignore_signals`](super::ignore_signals) ignores it.
pub struct Lease<'a>(BorrowedFd<'a>);

impl<'a> Lease<'a> {
    /// Takes a lease on a file. `fd` must be the only descriptor of it in this process, and open for writing. `None` if another
    /// process has the file open, or the file system has no leases.
    pub fn take(fd: BorrowedFd<'a>) -> Option<Self> {
        set(fd, libc::F_WRLCK).then_some(Self(fd))
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Released here and not by close(2), because the descriptor is used further.
        set(self.0, libc::F_UNLCK);
    }
}

fn set(fd: BorrowedFd<'_>, kind: libc::c_int) -> bool {
    // SAFETY: the descriptor is open, and the call takes a number.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
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
