//! The few system calls that neither std nor nix wraps. One call a function.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("names of files and attributes hold no NUL")
}

/// The names of the extended attributes of `path` itself; none where the file system has none.
pub fn list_xattrs(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let path = c_string(path.as_os_str().as_bytes());
    let list = |names: &mut [u8]| {
        // SAFETY: `path` ends in NUL, and the buffer is writable for the length that is passed.
        let len = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    };
    let mut names = match list(&mut []) {
        Ok(len) => vec![0; len],
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let len = if names.is_empty() { 0 } else { list(&mut names)? };
    let names = names[..len].split(|b| *b == 0);
    Ok(names.filter(|n| !n.is_empty()).map(Vec::from).collect())
}

/// One extended attribute of `path` itself.
pub fn get_xattr(path: &Path, name: &[u8]) -> io::Result<Vec<u8>> {
    let path = c_string(path.as_os_str().as_bytes());
    let name = c_string(name);
    let mut value = vec![0_u8; 64 << 10];
    let (at, room) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: both strings end in NUL, and the buffer is writable for the length that is passed.
    let len = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), at, room) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    value.truncate(len);
    Ok(value)
}

/// Sets one extended attribute of `path` itself.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let path = c_string(path.as_os_str().as_bytes());
    let name = c_string(name.as_bytes());
    let (at, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings end in NUL, and `value` is readable for its own length.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), at, len, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One extended attribute of what `path` leads to, for paths below /proc/self/fd; nothing where it has none.
pub fn get_xattr_through(path: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    let (path, name) = (c_string(path.as_os_str().as_bytes()), c_string(name.as_bytes()));
    let mut value = vec![0_u8; 64 << 10];
    // SAFETY: both strings end in NUL, and the buffer is writable for the length that is passed.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// The names of the extended attributes of what `path` leads to, each ended by NUL.
pub fn list_xattrs_through(path: &Path) -> io::Result<Vec<u8>> {
    let path = c_string(path.as_os_str().as_bytes());
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: `path` ends in NUL, and the buffer is writable for the length that is passed.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(names)
}

/// Sets one extended attribute of what `path` leads to.
pub fn set_xattr_through(path: &Path, name: &OsStr, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c_string(path.as_os_str().as_bytes()), c_string(name.as_bytes()));
    let (at, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings end in NUL, and `value` is readable for its own length.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), at, len, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Removes one extended attribute of what `path` leads to.
pub fn remove_xattr_through(path: &Path, name: &OsStr) -> io::Result<()> {
    let (path, name) = (c_string(path.as_os_str().as_bytes()), c_string(name.as_bytes()));
    // SAFETY: both strings end in NUL.
    let done = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets atime and mtime of what an O_PATH descriptor names, a symbolic link too.
pub fn set_times(fd: BorrowedFd<'_>, times: [libc::timespec; 2]) -> io::Result<()> {
    let empty = OsStr::new("");
    let empty = c_string(empty.as_bytes());
    let (at, flags) = (times.as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: `times` holds the two timespecs that the call reads, and the path ends in NUL.
    let done = unsafe { libc::utimensat(fd.as_raw_fd(), empty.as_ptr(), at, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// This thread alone becomes another user, with these groups and the first of them as his own. There is no way back.
pub fn become_user(uid: u32, groups: &[libc::gid_t]) -> io::Result<()> {
    let checked = |done: libc::c_long| if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the kernel reads as many numbers as it is told. By system calls: those of the C library change all threads.
    checked(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, groups[0], groups[0], groups[0]) })?;
    // SAFETY: plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// SIGKILL to one process, or (a negative number) to a process group. One that is gone is fine.
pub fn kill(pid_or_group: i32) {
    assert!(pid_or_group.unsigned_abs() > 1, "never init, never everybody");
    // SAFETY: the call takes plain numbers; the caller passes processes that it started.
    unsafe { libc::kill(pid_or_group, libc::SIGKILL) };
}

/// A signal to one process. One that is gone is fine.
pub fn signal(pid: i32, signal: i32) {
    assert!(pid > 1, "one process, never init");
    // SAFETY: the call takes plain numbers; the caller passes processes that it started.
    unsafe { libc::kill(pid, signal) };
}

/// Maps the start of a file for all to see, and takes that back.
pub fn map_shared(file: &std::fs::File, len: usize) -> Result<(), nix::errno::Errno> {
    // SAFETY: a new mapping, at an address that the kernel chooses, which nobody looks into.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(nix::errno::Errno::last());
    }
    // SAFETY: it was mapped just now with this length.
    unsafe { libc::munmap(at, len) };
    Ok(())
}
