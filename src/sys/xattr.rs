//! Extended attributes, ACLs and capabilities among them. An entry that cannot be opened (a symbolic link, a device) is
//! reached through /proc/self/fd, because Linux has no call for attributes that takes a descriptor which is only held.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{PoisonError, RwLock};

use nix::errno::Errno;

use super::meta::path_of;
use super::{Handle, Reading, open_dir_at};
use crate::types::{Call, Kind, Side, Verdict};

/// Which side of the copying of attributes failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrError {
    Reading(Errno),
    Writing(Errno),
}

/// In which order attributes are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// While the entry is for nobody else.
    Plain,
    /// Once it has its owner: says who may do what to it.
    Acl,
    /// Last: file capabilities, which a change of the owner removes.
    Privilege,
}

/// The attributes of a source that its copy is to have.
#[derive(Debug, Default)]
pub struct Xattrs {
    all: Vec<(CString, Vec<u8>, Class)>,
    listed: bool,
    /// Some that are no ACLs, and some that are, could not be read; their names, where they are known.
    unread: (bool, bool),
    unread_names: Vec<(Class, CString)>,
    /// Where the access ACL is not copied.
    without_acl: Option<Narrowed>,
}

/// What the group and all others may do at most where an ACL is missing: three bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrowed {
    pub group: u32,
    pub others: u32,
}

/// What became of the attributes of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetXattrs {
    /// How many are there now.
    pub set: usize,
    /// Those that the destination cannot hold, or this user may not set.
    pub unkept: Vec<CString>,
    /// The access ACL is among those that are not there.
    pub without_acl: Option<Narrowed>,
}

/// How the attributes of an entry are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrReading {
    /// None are wanted: only the access ACL is looked at, because the mode's group bits are its mask.
    pub none: bool,
    /// The file system may not list ACLs and capabilities that it has (ntfs-3g): they are asked for by name.
    pub by_name: bool,
    /// What cannot be read is left out, and told by [`Xattrs::unread`].
    pub leniently: bool,
}

impl Xattrs {
    /// Reads those that `wants` says, given the name and whether it is an ACL.
    ///
    /// # Errors
    /// Those of listxattr(2) and getxattr(2) that do not mean that there are none; none of an entry that is read leniently.
    pub fn read(from: Handle<'_>, how: XattrReading, wants: impl Fn(&[u8], bool) -> bool) -> Result<Self, Errno> {
        let from = Target::new(from);
        let mut found = Self::default();
        let listed = match if how.none { Ok(Some(Vec::new())) } else { from.list() } {
            Err(_) if how.leniently => {
                found.unread = (true, true);
                None
            }
            listed => listed?,
        };
        found.listed = listed.is_some();
        let is_unlisted = listed.is_none() && found.unread == (false, false);
        let names = listed.unwrap_or_default();
        let listed = names.split_inclusive(|&b| b == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok());
        let mut all: Vec<&CStr> = listed.collect();
        let hidden: &[&CStr] = match how {
            XattrReading { none: true, .. } => &[ACCESS_ACL],
            _ if found.unread.1 || (how.by_name && !is_unlisted) => &[ACCESS_ACL, DEFAULT_ACL, CAPABILITY],
            _ => &[],
        };
        let listed = all.len();
        all.extend(hidden);
        for (at, name) in all.iter().enumerate() {
            let wanted = wants(name.to_bytes(), is_acl(name));
            if (!wanted && *name != ACCESS_ACL) || all[..at].contains(name) {
                continue;
            }
            let value = match from.get(name).map_err(|err| (Call::GetXattr.verdict(Side::Source, err), err)) {
                // removed since it was listed
                Err((Verdict::Absent, _)) => continue,
                Err((Verdict::Unsupported | Verdict::NotPermitted, _)) if at >= listed => continue,
                Err(_) if how.leniently => {
                    let unread = if is_acl(name) { &mut found.unread.1 } else { &mut found.unread.0 };
                    *unread = true;
                    if wanted {
                        found.unread_names.push((class_of(name), (*name).to_owned()));
                    }
                    if *name == ACCESS_ACL {
                        // nobody knows whom it refuses
                        found.without_acl = Some(Narrowed { group: 0, others: 0 });
                    }
                    continue;
                }
                value => value.map_err(|(_, err)| err)?,
            };
            if wanted {
                found.all.push(((*name).to_owned(), value, class_of(name)));
            } else {
                // who is named in an ACL that is not wanted is as all others are
                found.without_acl = Narrowed::by(&value, false);
            }
        }
        Ok(found)
    }

    /// Whether the names could be listed; otherwise the file system has no attributes for this entry.
    pub fn were_listed(&self) -> bool {
        self.listed
    }

    /// Whether attributes that are no ACLs, and whether ACLs, could not be read.
    pub fn unread(&self) -> (bool, bool) {
        self.unread
    }

    /// The names of those, as far as they could be listed.
    pub fn unread_names(&self) -> &[(Class, CString)] {
        &self.unread_names
    }

    /// The names of a class.
    pub fn names(&self, class: Class) -> impl Iterator<Item = &CStr> {
        self.all.iter().filter(move |(_, _, of)| *of == class).map(|(name, _, _)| name.as_c_str())
    }

    /// Whether there are any of a class.
    pub fn has(&self, class: Class) -> bool {
        self.names(class).next().is_some()
    }

    /// Sets those of a class, of an entry of this type. With `seen`, those of names that were not seen there yet are read back.
    /// `leniently`: what cannot be set is counted, whatever the reason is.
    ///
    /// # Errors
    /// Those of setxattr(2) that do not mean that the destination cannot hold them.
    pub fn set(
        &self,
        (to, kind): (Handle<'_>, Option<Kind>),
        class: Class,
        (seen, leniently): (Option<&SeenXattrs>, bool),
    ) -> Result<SetXattrs, Errno> {
        let mut result = SetXattrs::default();
        if class == Class::Acl {
            result.without_acl = self.without_acl;
        }
        for (name, value, _) in self.all.iter().filter(|(_, _, of)| *of == class) {
            let target = Target::new(to);
            let set = target.set(name, value);
            let is_there = set.is_ok() && seen.is_none_or(|seen| seen.has(&target, kind, (name, value)));
            match set {
                Ok(()) if is_there => result.set += 1,
                Err(err) if !Call::SetXattr.allows(err) && !leniently => return Err(err),
                _ => {
                    result.unkept.push(name.clone());
                    if name.as_c_str() == ACCESS_ACL {
                        result.without_acl = Narrowed::by(value, true);
                    }
                }
            }
        }
        Ok(result)
    }
}

/// The names of attributes that a file system was seen to keep, by the type of the entry.
#[derive(Debug, Default)]
pub struct SeenXattrs(RwLock<HashSet<(Option<Kind>, CString)>>);

impl SeenXattrs {
    /// Names that are remembered, at most; a hostile tree may have any number of them.
    const MAX: usize = 1 << 10;

    /// Whether an attribute that was set is there. Capabilities are read back each time, other names until they were seen.
    fn has(&self, target: &Target, kind: Option<Kind>, (name, value): (&CStr, &[u8])) -> bool {
        let once = class_of(name) != Class::Privilege;
        let key = (kind, name.to_owned());
        if once && self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            return true;
        }
        // a file system may store an ACL in another order
        let is_there = target.get(name).is_ok_and(|there| there == value || (is_acl(name) && !there.is_empty()));
        // what is not listed (trusted.* on NTFS) the next copy does not find; ACLs and capabilities are asked for by name
        let is_found = || {
            let names = target.list().ok().flatten().unwrap_or_default();
            class_of(name) != Class::Plain || names.split_inclusive(|&b| b == 0).any(|n| n == name.to_bytes_with_nul())
        };
        let is_there = is_there && is_found();
        if is_there && once {
            let mut seen = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if seen.len() < Self::MAX {
                seen.insert(key);
            }
        }
        is_there
    }
}

/// Whether an entry has file capabilities.
///
/// # Errors
/// Those of getxattr(2) that do not mean that there are none.
pub fn has_capability(entry: Handle<'_>) -> Result<bool, Errno> {
    Target::new(entry).has(CAPABILITY)
}

impl Narrowed {
    /// By an access ACL: the group may do what the mask has left it; and, if it `counts` who is named in it, nobody may do
    /// what he could not do with it, because without it he is of the group, or one of the others. The format is the kernel's (linux/posix_acl_xattr.h): a version in four bytes, then tag, permissions (two
    /// bytes each) and id (four).
    fn by(acl: &[u8], counts: bool) -> Option<Self> {
        const USER: u16 = 0x02;
        const GROUP_OBJ: u16 = 0x04;
        const GROUP: u16 = 0x08;
        const MASK: u16 = 0x10;
        const OTHER: u16 = 0x20;
        let (entries, _) = acl.get(4..)?.as_chunks::<8>();
        let entries = entries.iter().map(|entry| {
            (u16::from_le_bytes([entry[0], entry[1]]), u32::from(u16::from_le_bytes([entry[2], entry[3]])) & 0o7)
        });
        let of = |tag: u16| entries.clone().find(|(found, _)| *found == tag).map(|(_, bits)| bits);
        let mask = of(MASK).unwrap_or(0o7);
        let named = entries.clone().filter(|(tag, _)| counts && [USER, GROUP].contains(tag));
        let named = named.map(|(_, bits)| bits & mask);
        let named = named.fold(0o7, |all, bits| all & bits);
        Some(Self { group: of(GROUP_OBJ)? & mask & named, others: of(OTHER)? & named })
    }
}

/// Removes the attributes of `to` that `from` does not have, as far as `wants` says; how many have to stay.
///
/// # Errors
/// Those of listxattr(2) and removexattr(2).
pub fn drop_other_xattrs(
    from: Handle<'_>,
    to: Handle<'_>,
    wants: impl Fn(&[u8], bool) -> bool,
    leniently: bool,
) -> Result<usize, XattrError> {
    let (from, to) = (Target::new(from), Target::new(to));
    let there = match to.list() {
        Err(_) if leniently => return Ok(1),
        there => there.map_err(XattrError::Writing)?.unwrap_or_default(),
    };
    let mut left = 0;
    if there.is_empty() {
        return Ok(left);
    }
    let stays = match from.list() {
        Err(_) if leniently => return Ok(1),
        stays => stays.map_err(XattrError::Reading)?.unwrap_or_default(),
    };
    for name in
        there.split_inclusive(|&b| b == 0).filter(|name| !stays.split_inclusive(|&b| b == 0).any(|n| n == *name))
    {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if wants(name.to_bytes(), is_acl(name)) {
            match to.remove(name).map_err(|err| (Call::RemoveXattr.verdict(Side::Destination, err), err)) {
                Ok(()) | Err((Verdict::Absent, _)) => {}
                Err((Verdict::Unsupported | Verdict::NotPermitted, _)) => left += 1,
                Err(_) if leniently => left += 1,
                Err((_, err)) => return Err(XattrError::Writing(err)),
            }
        }
    }
    Ok(left)
}

/// The ACL that new entries of the directory get.
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
const ACCESS_ACL: &CStr = c"system.posix_acl_access";
/// That of NFSv4, which no other file system takes.
const NFS4_ACL: &CStr = c"system.nfs4_acl";
/// Those of a file, capabilities(7).
const CAPABILITY: &CStr = c"security.capability";

fn is_acl(name: &CStr) -> bool {
    [ACCESS_ACL, DEFAULT_ACL, NFS4_ACL].contains(&name)
}

fn class_of(name: &CStr) -> Class {
    match name {
        _ if is_acl(name) => Class::Acl,
        _ if name == CAPABILITY => Class::Privilege,
        _ => Class::Plain,
    }
}

/// Whether what is made in this directory gets an ACL from it.
///
/// # Errors
/// Those of open(2), and those of getxattr(2) that do not mean that there is none.
pub fn has_default_acl(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    // the given one may be good for reaching entries only
    let dir = open_dir_at(dir, b".", Reading::default())?;
    Target::Fd(dir.as_raw_fd()).has(DEFAULT_ACL)
}

/// Whether an entry has an access ACL.
///
/// # Errors
/// Those of getxattr(2) that do not mean that there is none.
pub fn has_access_acl(entry: Handle<'_>) -> Result<bool, Errno> {
    Target::new(entry).has(ACCESS_ACL)
}

/// What became of the ACLs that were to be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stripped {
    /// There were some, and are no more.
    pub any: bool,
    /// There are some that this user may not remove.
    pub left: bool,
}

/// Removes the ACLs that an entry got from its directory. `leniently`: those that cannot be removed are told, whatever the
/// reason is.
///
/// # Errors
/// Those of removexattr(2) that do not mean that there is none, or that it has to stay.
pub fn strip_acls(place: Handle<'_>, leniently: bool) -> Result<Stripped, Errno> {
    let target = Target::new(place);
    let mut stripped = Stripped::default();
    for name in [ACCESS_ACL, DEFAULT_ACL] {
        match target.remove(name) {
            Ok(()) => stripped.any = true,
            Err(err) => match Call::RemoveXattr.verdict(Side::Destination, err) {
                Verdict::Absent => {}
                _ if leniently => stripped.left |= target.has(name).unwrap_or(true),
                Verdict::NotPermitted | Verdict::Unsupported => stripped.left |= target.has(name)?,
                _ => return Err(err),
            },
        }
    }
    Ok(stripped)
}

enum Target {
    Fd(libc::c_int),
    /// Leads to an entry that is held.
    Path(CString),
}

impl Target {
    fn new(place: Handle<'_>) -> Self {
        match place {
            Handle::Open(fd) => Self::Fd(fd.as_raw_fd()),
            Handle::Held(fd) => Self::Path(path_of(fd)),
        }
    }

    /// All names, each ended by NUL; `None` where the file system has none.
    fn list(&self) -> Result<Option<Vec<u8>>, Errno> {
        let ask = || {
            read_all(|into, len| match self {
                // SAFETY: `into` has room for `len` bytes; the descriptor is borrowed by the caller.
                Self::Fd(fd) => unsafe { libc::flistxattr(*fd, into.cast(), len) },
                // SAFETY: as above, and the path ends in NUL.
                Self::Path(path) => unsafe { libc::listxattr(path.as_ptr(), into.cast(), len) },
            })
        };
        // Asked twice: after one wrong "not supported" all attributes would be lost without a mark.
        match ask().or_else(|err| if Call::ListXattr.allows(err) { ask() } else { Err(err) }) {
            Err(err) if Call::ListXattr.allows(err) => Ok(None),
            listed => listed.map(Some),
        }
    }

    fn has(&self, name: &CStr) -> Result<bool, Errno> {
        match self.get(name) {
            Err(err) if Call::GetXattr.allows(err) => Ok(false),
            got => got.map(|_| true),
        }
    }

    fn get(&self, name: &CStr) -> Result<Vec<u8>, Errno> {
        read_all(|into, len| match self {
            // SAFETY: `into` has room for `len` bytes, the name ends in NUL.
            Self::Fd(fd) => unsafe { libc::fgetxattr(*fd, name.as_ptr(), into.cast(), len) },
            // SAFETY: as above, and the path ends in NUL.
            Self::Path(path) => unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), into.cast(), len) },
        })
    }

    fn remove(&self, name: &CStr) -> Result<(), Errno> {
        let result = match self {
            // SAFETY: the name ends in NUL; the descriptor is borrowed by the caller.
            Self::Fd(fd) => unsafe { libc::fremovexattr(*fd, name.as_ptr()) },
            // SAFETY: both strings end in NUL.
            Self::Path(path) => unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) },
        };
        Errno::result(result).map(drop)
    }

    fn set(&self, name: &CStr, value: &[u8]) -> Result<(), Errno> {
        let (at, len) = (value.as_ptr().cast(), value.len());
        let result = match self {
            // SAFETY: `at` points to `len` bytes, the name ends in NUL.
            Self::Fd(fd) => unsafe { libc::fsetxattr(*fd, name.as_ptr(), at, len, 0) },
            // SAFETY: as above, and the path ends in NUL.
            Self::Path(path) => unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), at, len, 0) },
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
        let from = Target::new(Handle::Open(a.as_fd()));
        let long = vec![7; 2000];
        if from.set(c"user.short", b"x").is_err() {
            eprintln!("SKIP: no user attributes on this file system");
            return;
        }
        from.set(c"user.long", &long).expect("set");
        from.set(c"user.unwanted", b"x").expect("set");
        let wants = |name: &[u8], _| name != b"user.unwanted";
        let read = Xattrs::read(Handle::Open(a.as_fd()), XattrReading::default(), wants).expect("read");
        let set = |class| read.set((Handle::Open(b.as_fd()), None), class, (None, false)).expect("set").set;
        assert_eq!([Class::Acl, Class::Privilege, Class::Plain].map(set), [0, 0, 2]);
        let to = Target::new(Handle::Open(b.as_fd()));
        assert_eq!(to.get(c"user.short"), Ok(b"x".to_vec()));
        assert_eq!(to.get(c"user.long"), Ok(long));
        assert_eq!(to.get(c"user.unwanted"), Err(Errno::ENODATA));
    }

    #[test]
    fn nobody_may_do_more_without_an_acl_than_with_it() {
        let acl = |entries: &[(u8, u8)]| {
            let entries = entries.iter().flat_map(|&(tag, bits)| [tag, 0, bits, 0, 0, 0, 0, 0]);
            Narrowed::by(&[2, 0, 0, 0].into_iter().chain(entries).collect::<Vec<_>>(), true)
        };
        let narrowed = |group, others| Some(Narrowed { group, others });
        // u::rw-, g::r--, o::r--
        assert_eq!(acl(&[(1, 6), (4, 4), (0x20, 4)]), narrowed(4, 4));
        // u:bob:rwx, g::r-x, m::rwx, o::r-x
        assert_eq!(acl(&[(1, 7), (2, 7), (4, 5), (0x10, 7), (0x20, 5)]), narrowed(5, 5));
        // u:eve:---, g::r--, m::r--, o::r--
        assert_eq!(acl(&[(1, 6), (2, 0), (4, 4), (0x10, 4), (0x20, 4)]), narrowed(0, 0));
        // g:staff:r--, g::rw-, m::---, o::r--: who is in staff reads nothing
        assert_eq!(acl(&[(1, 6), (4, 6), (8, 4), (0x10, 0), (0x20, 4)]), narrowed(0, 0));
        assert_eq!(Narrowed::by(b"2", true), None);
    }
}
