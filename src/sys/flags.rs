//! Inode flags, those of chattr(1), and project ids.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{Handle, Reading, open_dir_at, reopen};
use crate::types::{Call, Kind};

/// The inode flags of a file or directory that mean something for its copy, and its project id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InodeFlags {
    /// `FS_*_FL` of linux/fs.h.
    flags: u32,
    project: u32,
}

/// `FS_IMMUTABLE_FL`, `FS_APPEND_FL`: nothing can be changed while one of them is set.
const FIXING: u32 = 0x10 | 0x20;
/// Those that say how data is stored: compressed (c), not compressed (m), journaled (j), no copy-on-write (C; only of an
/// empty file), direct access (x).
const STORING: u32 = 0x4 | 0x400 | 0x4000 | 0x80_0000 | 0x200_0000;
/// Those that can be set: the ones above, synchronous (S), not dumped (d), access time not noted (A), tails not merged (t),
/// synchronous directory (D), top of a hierarchy (T), project handed down (P), names without case (F);
/// erased (s), kept when removed (u).
const SETTABLE: u32 =
    FIXING | STORING | 0x1 | 0x2 | 0x8 | 0x40 | 0x80 | 0x8000 | 0x1_0000 | 0x2_0000 | PROJECT | 0x4000_0000;
/// The project is handed down.
const PROJECT: u32 = 0x2000_0000;
/// Those that a call of another kind sets: encrypted (E), verity (V). A copy lacks them, unless it inherits them.
const OTHERS: u32 = 0x800 | 0x10_0000;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(put_flags, b'f', 2, libc::c_long);
nix::ioctl_read!(get_fsxattr, b'X', 31, FsXattr);
nix::ioctl_write_ptr!(put_fsxattr, b'X', 32, FsXattr);

impl InodeFlags {
    /// Those of an entry; `None` where the file system has none. Of a project id only if it `has_projects`.
    ///
    /// # Errors
    /// Those of ioctl(2) that do not mean that there are none, and of opening an entry that is held.
    pub fn of(entry: Handle<'_>, kind: Option<Kind>, has_projects: bool) -> Result<Option<Self>, Errno> {
        match entry {
            Handle::Open(fd) => Self::of_open(fd, has_projects),
            Handle::Held(fd) => Self::of_open(open(fd, kind)?.as_fd(), has_projects),
        }
    }

    fn of_open(fd: BorrowedFd<'_>, has_projects: bool) -> Result<Option<Self>, Errno> {
        // asked twice: after one wrong "not supported" the flags of all other entries would be lost without a mark
        let flags = read_flags(fd).or_else(|err| if Call::InodeFlags.allows(err) { read_flags(fd) } else { Err(err) });
        let flags = match flags {
            Err(err) if Call::InodeFlags.allows(err) => return Ok(None),
            flags => flags? & (SETTABLE | OTHERS),
        };
        let project = match if has_projects { read_fsxattr(fd) } else { Ok(FsXattr::default()) } {
            Err(err) if Call::InodeFlags.allows(err) => 0,
            read => read?.project,
        };
        Ok(Some(Self { flags, project }))
    }

    /// Whether there are any.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// Whether it has some that [`take_flags_off`] takes.
    pub fn is_set(self) -> bool {
        self.flags & SETTABLE & !(STORING | PROJECT) != 0
    }

    /// Those of them that say how data is stored: to be set before there is any.
    #[must_use]
    pub fn storing(self) -> Self {
        Self { flags: self.flags & STORING, project: 0 }
    }

    /// Without those that keep an entry from being changed, and its links from being made.
    #[must_use]
    pub fn changeable(self) -> Self {
        Self { flags: self.flags & !FIXING, ..self }
    }

    /// Whether an entry with these has all that `wanted` has.
    pub fn has(self, wanted: Self) -> bool {
        wanted.flags & !self.flags == 0 && (wanted.project == 0 || wanted.project == self.project)
    }

    /// Sets what an entry lacks of these, as far as it takes them: one by one if not all at once, those that fix it last.
    /// What cannot be set shows in a later [`InodeFlags::of`].
    pub fn add_to(self, entry: Handle<'_>, kind: Option<Kind>) {
        match entry {
            Handle::Open(fd) => self.add_to_open(fd),
            Handle::Held(fd) => _ = open(fd, kind).map(|open| self.add_to_open(open.as_fd())),
        }
    }

    fn add_to_open(self, fd: BorrowedFd<'_>) {
        if self.project != 0
            && let Ok(there) = read_fsxattr(fd)
            && there.project != self.project
        {
            // the copy may be without it: the caller looks
            let _ = write_fsxattr(fd, &FsXattr { project: self.project, ..there });
        }
        let groups = [self.flags & SETTABLE & !FIXING, self.flags & FIXING];
        for group in groups.into_iter().filter(|group| *group != 0) {
            let Ok(there) = read_flags(fd) else { return };
            if group & !there == 0 || write_flags(fd, there | group).is_ok() {
                continue;
            }
            for flag in (0..u32::BITS).map(|bit| 1 << bit).filter(|flag| group & flag != 0) {
                let _ = read_flags(fd).and_then(|there| write_flags(fd, there | flag));
            }
        }
    }
}

/// Takes the flags from an entry that is held, but for those that say how its data is stored. Then it can be changed.
///
/// # Errors
/// Those of ioctl(2) that do not mean that there are none, and of opening it.
pub fn take_flags_off(held: BorrowedFd<'_>, kind: Option<Kind>) -> Result<(), Errno> {
    const KEPT: u32 = !SETTABLE | STORING | PROJECT;
    let taken = open(held, kind).and_then(|fd| {
        let flags = read_flags(fd.as_fd())?;
        if flags & !KEPT == 0 { Ok(()) } else { write_flags(fd.as_fd(), flags & KEPT) }
    });
    match taken {
        Err(err) if Call::InodeFlags.allows(err) => Ok(()),
        taken => taken,
    }
}

/// Opens an entry that is held, to ask for its flags; `EOPNOTSUPP` of one that acts when it is opened.
fn open(held: BorrowedFd<'_>, kind: Option<Kind>) -> Result<std::os::fd::OwnedFd, Errno> {
    match kind {
        Some(Kind::File) => reopen(held),
        Some(Kind::Dir) => open_dir_at(held, b".", Reading::default()),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn read_flags(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes an int, whatever the number of the call says; a long has room for it.
    unsafe { get_flags(fd.as_raw_fd(), &raw mut flags) }?;
    let [a, b, c, d, ..] = flags.to_ne_bytes();
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

fn write_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    let mut bytes = [0; size_of::<libc::c_long>()];
    bytes[..4].copy_from_slice(&flags.to_ne_bytes());
    let flags = libc::c_long::from_ne_bytes(bytes);
    // SAFETY: the kernel reads an int from the beginning of the long.
    unsafe { put_flags(fd.as_raw_fd(), &raw const flags) }.map(drop)
}

fn read_fsxattr(fd: BorrowedFd<'_>) -> Result<FsXattr, Errno> {
    let mut there = FsXattr::default();
    // SAFETY: the struct has the kernel's layout, and is writable.
    unsafe { get_fsxattr(fd.as_raw_fd(), &raw mut there) }.map(|_| there)
}

fn write_fsxattr(fd: BorrowedFd<'_>, wanted: &FsXattr) -> Result<(), Errno> {
    // SAFETY: the struct has the kernel's layout.
    unsafe { put_fsxattr(fd.as_raw_fd(), std::ptr::from_ref(wanted)) }.map(drop)
}
