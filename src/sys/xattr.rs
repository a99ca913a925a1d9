//! Extended attributes, ACLs and capabilities among them. An entry that cannot be opened (a symbolic link, a device) is
//! reached through /proc/self/fd, because Linux has no call for attributes that takes a directory.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{Answer, Call, Handle, Reading, open_dir_at};

/// What became of an entry's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopiedXattrs {
    /// How many are there now.
    pub set: usize,
    /// How many the destination cannot hold, or this user may not set; ACLs apart.
    pub unkept: usize,
    pub unkept_acls: usize,
    /// Where the access ACL was not copied: what the owning group may do, three bits.
    pub group_without_acl: Option<u32>,
}

/// Which side of the copying of attributes failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrError {
    Reading(Errno),
    Writing(Errno),
}

/// Copies the attributes that `wants` says, given the name and whether it is an ACL.
///
/// # Errors
/// Those of listxattr(2), getxattr(2) and setxattr(2) that do not mean that the destination cannot hold them.
pub fn copy_xattrs(
    from: Handle<'_>,
    to: Handle<'_>,
    wants: impl Fn(&[u8], bool) -> bool,
) -> Result<CopiedXattrs, XattrError> {
    let mut copied = CopiedXattrs::default();
    let from = Target::new(from).map_err(XattrError::Reading)?;
    let names = match from.list() {
        Ok(names) if names.is_empty() => return Ok(copied),
        Ok(names) => names,
        Err(err) if Call::ListXattr.allows(err) => return Ok(copied),
        Err(err) => return Err(XattrError::Reading(err)),
    };
    let to = Target::new(to).map_err(XattrError::Writing)?;
    for name in names.split_inclusive(|&b| b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let is_acl = is_acl(name);
        let wanted = wants(name.to_bytes(), is_acl);
        if !wanted && name != ACCESS_ACL {
            continue;
        }
        let value = match from.get(name) {
            Ok(value) => value,
            // removed since it was listed
            Err(err) if Call::GetXattr.answer(err) == Some(Answer::Absent) => continue,
            Err(err) => return Err(XattrError::Reading(err)),
        };
        if !wanted {
            copied.group_without_acl = group_of_acl(&value);
            continue;
        }
        match to.set(name, &value) {
            Ok(()) => copied.set += 1,
            Err(err) if Call::SetXattr.allows(err) => {
                *(if is_acl { &mut copied.unkept_acls } else { &mut copied.unkept }) += 1;
                if name == ACCESS_ACL {
                    copied.group_without_acl = group_of_acl(&value);
                }
            }
            Err(err) => return Err(XattrError::Writing(err)),
        }
    }
    Ok(copied)
}

/// Removes the attributes of `to` that `from` does not have, as far as `wants` says; how many have to stay.
///
/// # Errors
/// Those of listxattr(2) and removexattr(2).
pub fn drop_other_xattrs(
    from: Handle<'_>,
    to: Handle<'_>,
    wants: impl Fn(&[u8], bool) -> bool,
) -> Result<usize, XattrError> {
    let list = |target: &Target| match target.list() {
        Err(err) if Call::ListXattr.allows(err) => Ok(Vec::new()),
        listed => listed,
    };
    let (from, to) = (Target::new(from).map_err(XattrError::Reading)?, Target::new(to).map_err(XattrError::Writing)?);
    let there = list(&to).map_err(XattrError::Writing)?;
    let mut left = 0;
    if there.is_empty() {
        return Ok(left);
    }
    let stays = list(&from).map_err(XattrError::Reading)?;
    for name in
        there.split_inclusive(|&b| b == 0).filter(|name| !stays.split_inclusive(|&b| b == 0).any(|n| n == *name))
    {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if wants(name.to_bytes(), is_acl(name)) {
            match to.remove(name).map_err(|err| (Call::RemoveXattr.answer(err), err)) {
                Ok(()) | Err((Some(Answer::Absent), _)) => {}
                Err((Some(_), _)) => left += 1,
                Err((None, err)) => return Err(XattrError::Writing(err)),
            }
        }
    }
    Ok(left)
}

/// What the owning group may do by an access ACL: its entry, limited by the mask. The format is the kernel's
/// (linux/posix_acl_xattr.h): a version in four bytes, then tag, permissions (two bytes each) and id (four).
fn group_of_acl(acl: &[u8]) -> Option<u32> {
    const GROUP_OBJ: u16 = 0x04;
    const MASK: u16 = 0x10;
    let (entries, _) = acl.get(4..)?.as_chunks::<8>();
    let of = |tag: u16| {
        let entry = entries.iter().find(|entry| u16::from_le_bytes([entry[0], entry[1]]) == tag)?;
        Some(u32::from(u16::from_le_bytes([entry[2], entry[3]])) & 0o7)
    };
    Some(of(GROUP_OBJ)? & of(MASK).unwrap_or(0o7))
}

/// The ACL that new entries of the directory get.
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
const ACCESS_ACL: &CStr = c"system.posix_acl_access";
/// That of NFSv4, which no other file system takes.
const NFS4_ACL: &CStr = c"system.nfs4_acl";

fn is_acl(name: &CStr) -> bool {
    [ACCESS_ACL, DEFAULT_ACL, NFS4_ACL].contains(&name)
}

/// Whether what is made in this directory gets an ACL from it.
///
/// # Errors
/// Those of open(2).
pub fn has_default_acl(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    // the given one may be good for reaching entries only
    let dir = open_dir_at(dir, b".", Reading::default())?;
    Ok(Target::Fd(dir.as_raw_fd()).get(DEFAULT_ACL).is_ok())
}

/// What became of the ACLs that were to be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stripped {
    /// There were some, and are no more.
    pub any: bool,
    /// There are some that this user may not remove.
    pub left: bool,
}

/// Removes the ACLs that an entry got from its directory.
///
/// # Errors
/// Those of removexattr(2) that do not mean that there is none, or that it has to stay.
pub fn strip_acls(place: Handle<'_>) -> Result<Stripped, Errno> {
    let target = Target::new(place)?;
    let mut stripped = Stripped::default();
    for name in [ACCESS_ACL, DEFAULT_ACL] {
        match target.remove(name) {
            Ok(()) => stripped.any = true,
            Err(err) => match Call::RemoveXattr.answer(err) {
                Some(Answer::NotPermitted) => stripped.left |= target.get(name).is_ok(),
                Some(Answer::Absent | Answer::Unsupported) => {}
                None => return Err(err),
            },
        }
    }
    Ok(stripped)
}

enum Target {
    Fd(libc::c_int),
    /// Of a symbolic link itself.
    Path(CString),
    Followed(CString),
}

impl Target {
    fn new(place: Handle<'_>) -> Result<Self, Errno> {
        let path = |dir: BorrowedFd<'_>, name: &[u8]| {
            let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
            CString::new(path).map_err(|_| Errno::EINVAL)
        };
        Ok(match place {
            Handle::Open(fd) => Self::Fd(fd.as_raw_fd()),
            Handle::Named(dir, name) => Self::Path(path(dir, name)?),
            Handle::Reached(dir, name) => Self::Followed(path(dir, name)?),
        })
    }

    /// All names, each ended by NUL.
    fn list(&self) -> Result<Vec<u8>, Errno> {
        read_all(|into, len| match self {
            // SAFETY: `into` has room for `len` bytes; the descriptor is borrowed by the caller.
            Self::Fd(fd) => unsafe { libc::flistxattr(*fd, into.cast(), len) },
            // SAFETY: as above, and the path ends in NUL.
            Self::Path(path) => unsafe { libc::llistxattr(path.as_ptr(), into.cast(), len) },
            // SAFETY: as above.
            Self::Followed(path) => unsafe { libc::listxattr(path.as_ptr(), into.cast(), len) },
        })
    }

    fn get(&self, name: &CStr) -> Result<Vec<u8>, Errno> {
        read_all(|into, len| match self {
            // SAFETY: `into` has room for `len` bytes, the name ends in NUL.
            Self::Fd(fd) => unsafe { libc::fgetxattr(*fd, name.as_ptr(), into.cast(), len) },
            // SAFETY: as above, and the path ends in NUL.
            Self::Path(path) => unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), into.cast(), len) },
            // SAFETY: as above.
            Self::Followed(path) => unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), into.cast(), len) },
        })
    }

    fn remove(&self, name: &CStr) -> Result<(), Errno> {
        let result = match self {
            // SAFETY: the name ends in NUL; the descriptor is borrowed by the caller.
            Self::Fd(fd) => unsafe { libc::fremovexattr(*fd, name.as_ptr()) },
            // SAFETY: both strings end in NUL.
            Self::Path(path) => unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) },
            // SAFETY: as above.
            Self::Followed(path) => unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) },
        };
        Errno::result(result).map(drop)
    }

    fn set(&self, name: &CStr, value: &[u8]) -> Result<(), Errno> {
        let (at, len) = (value.as_ptr().cast(), value.len());
        let result = match self {
            // SAFETY: `at` points to `len` bytes, the name ends in NUL.
            Self::Fd(fd) => unsafe { libc::fsetxattr(*fd, name.as_ptr(), at, len, 0) },
            // SAFETY: as above, and the path ends in NUL.
            Self::Path(path) => unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), at, len, 0) },
            // SAFETY: as above.
            Self::Followed(path) => unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), at, len, 0) },
        };
        Errno::result(result).map(drop)
    }
}

/// Calls with a buffer on the stack first, then with one of the length that the kernel names. A list or a
/// value may grow between the two calls; 64 KiB is the kernel's limit, so a few tries are enough.
fn read_all(call: impl Fn(*mut u8, usize) -> isize) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 512];
    match Errno::result(call(small.as_mut_ptr(), small.len())) {
        Ok(len) => return Ok(small[..usize::try_from(len).unwrap_or(0)].to_vec()),
        Err(Errno::ERANGE) => {}
        Err(err) => return Err(err),
    }
    let mut large = vec![0u8; 64 << 10];
    let len = Errno::result(call(large.as_mut_ptr(), large.len()))?;
    large.truncate(usize::try_from(len).unwrap_or(0));
    Ok(large)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn attributes_are_copied_whatever_their_length() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let (a, b) = (tempfile::tempfile_in(&base).expect("made"), tempfile::tempfile_in(&base).expect("made"));
        let from = Target::new(Handle::Open(a.as_fd())).expect("a descriptor");
        let long = vec![7; 2000];
        if from.set(c"user.short", b"x").is_err() {
            eprintln!("SKIP: no user attributes on this file system");
            return;
        }
        from.set(c"user.long", &long).expect("set");
        from.set(c"user.unwanted", b"x").expect("set");
        let wants = |name: &[u8], _| name != b"user.unwanted";
        let copied = copy_xattrs(Handle::Open(a.as_fd()), Handle::Open(b.as_fd()), wants);
        assert_eq!(copied, Ok(CopiedXattrs { set: 2, ..CopiedXattrs::default() }));
        let to = Target::new(Handle::Open(b.as_fd())).expect("a descriptor");
        assert_eq!(to.get(c"user.short"), Ok(b"x".to_vec()));
        assert_eq!(to.get(c"user.long"), Ok(long));
        assert_eq!(to.get(c"user.unwanted"), Err(Errno::ENODATA));
    }
}
