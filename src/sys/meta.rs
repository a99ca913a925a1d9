//! Metadata: reading and setting it, on descriptors and on names.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens, lstat, major,
    makedev, minor, mknodat, stat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

use super::file::{is_in_union, is_on_server, may_have_projects};
use crate::types::{Call, Identity, Kind, Timestamp};

/// What stat(2) says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// `None` for a type that Linux does not have today.
    pub kind: Option<Kind>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub nlink: u64,
    pub dev: u64,
    pub ino: u64,
    pub rdev: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
}

impl Meta {
    /// Of an open descriptor.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of(fd: impl AsFd) -> Result<Self, Errno> {
        Ok(Self::from(fstat(fd)?))
    }

    /// Asks the file system about an open descriptor, not the kernel's cache: network file systems and FUSE keep attributes
    /// for a second or more. Data that an interception library reads does not tell the kernel that they
    /// may be old.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of_now(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        match statx(fd, libc::AT_STATX_FORCE_SYNC, libc::STATX_BASIC_STATS) {
            // a kernel or a sandbox without it
            Err(err) if Call::Statx.allows(err) => Self::of(fd),
            asked => asked.map(|st| Self::from(&st)),
        }
    }

    /// What the kernel knows of the type, the links, the owner, the mode and the modification time of a descriptor, without
    /// asking a server. The rest does not count.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn known(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        const OWNER: u32 = libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_NLINK | libc::STATX_UID | libc::STATX_GID;
        match statx(fd, libc::AT_STATX_DONT_SYNC, OWNER | libc::STATX_MTIME) {
            // a kernel or a sandbox without it
            Err(err) if Call::Statx.allows(err) => Self::of(fd),
            asked => asked.map(|st| Self::from(&st)),
        }
    }

    /// Of a name in a directory; of a symbolic link itself.
    ///
    /// # Errors
    /// Those of fstatat(2).
    pub fn at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        Ok(Self::from(fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?))
    }

    /// Of what a name in a directory leads to, through symbolic links.
    ///
    /// # Errors
    /// Those of fstatat(2).
    pub fn reached(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        Ok(Self::from(fstatat(dir, name, AtFlags::empty())?))
    }

    /// Of a path that the user named; of what a symbolic link leads to, if `follow`.
    ///
    /// # Errors
    /// Those of stat(2) and lstat(2).
    pub fn of_path(path: &std::path::Path, follow: bool) -> Result<Self, Errno> {
        Ok(Self::from(if follow { stat(path)? } else { lstat(path)? }))
    }

    /// Whether two entries are one file or directory.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// What must not change while the file is read.
    pub fn identity(&self) -> Identity {
        Identity { size: self.size, mtime: self.mtime, ctime: self.ctime }
    }

    /// Whether it occupies fewer blocks than its length needs.
    pub fn is_sparse(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }

    /// Major and minor number of the device that the entry is.
    pub fn rdev_numbers(&self) -> (u32, u32) {
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        (number(major(self.rdev)), number(minor(self.rdev)))
    }
}

impl From<FileStat> for Meta {
    fn from(st: FileStat) -> Self {
        let time = |sec, nsec: i64| Timestamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
        Self {
            kind: kind_of_mode(st.st_mode),
            mode: st.st_mode & 0o7777,
            uid: st.st_uid,
            gid: st.st_gid,
            size: u64::try_from(st.st_size).unwrap_or(0),
            atime: time(st.st_atime, st.st_atime_nsec),
            mtime: time(st.st_mtime, st.st_mtime_nsec),
            ctime: time(st.st_ctime, st.st_ctime_nsec),
            nlink: st.st_nlink,
            dev: st.st_dev,
            ino: st.st_ino,
            rdev: st.st_rdev,
            blocks: u64::try_from(st.st_blocks).unwrap_or(0),
        }
    }
}

impl From<&libc::statx> for Meta {
    fn from(st: &libc::statx) -> Self {
        let time = |time: libc::statx_timestamp| Timestamp { sec: time.tv_sec, nsec: time.tv_nsec };
        let device = |major: u32, minor: u32| makedev(major.into(), minor.into());
        Self {
            kind: kind_of_mode(st.stx_mode.into()),
            mode: u32::from(st.stx_mode) & 0o7777,
            uid: st.stx_uid,
            gid: st.stx_gid,
            size: st.stx_size,
            atime: time(st.stx_atime),
            mtime: time(st.stx_mtime),
            ctime: time(st.stx_ctime),
            nlink: st.stx_nlink.into(),
            dev: device(st.stx_dev_major, st.stx_dev_minor),
            ino: st.stx_ino,
            rdev: device(st.stx_rdev_major, st.stx_rdev_minor),
            blocks: st.stx_blocks,
        }
    }
}

/// What statx(2) says of an open descriptor: at least what `mask` asks for, if the file system has it.
///
/// # Errors
/// Those of statx(2).
pub(super) fn statx(fd: BorrowedFd<'_>, flags: i32, mask: u32) -> Result<libc::statx, Errno> {
    // SAFETY: an all-zero statx is a valid value of the plain C struct.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty string ended by NUL, `st` is writable, the descriptor is open.
    let asked = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags | libc::AT_EMPTY_PATH, mask, &raw mut st) };
    Errno::result(asked).map(|_| st)
}

/// Why an entry can be neither replaced nor removed, whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// chattr(1) `+i`.
    Immutable,
    /// chattr(1) `+a`.
    AppendOnly,
    MountPoint,
}

/// What keeps an entry from being replaced; `None` where nothing does, or the file system has no word for it. The entry is
/// not opened.
///
/// # Errors
/// Those of open(2) with `O_PATH`, and of statx(2).
pub fn fixed(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Fixed>, Errno> {
    let st = match statx(hold(dir, name, false)?.as_fd(), 0, libc::STATX_TYPE) {
        // a kernel or a sandbox without it
        Err(Errno::ENOSYS) => return Ok(None),
        st => st?,
    };
    let has = |attribute: i32| u64::try_from(attribute).is_ok_and(|bit| st.stx_attributes & bit != 0);
    let all = [
        (libc::STATX_ATTR_IMMUTABLE, Fixed::Immutable),
        (libc::STATX_ATTR_APPEND, Fixed::AppendOnly),
        (libc::STATX_ATTR_MOUNT_ROOT, Fixed::MountPoint),
    ];
    Ok(all.into_iter().find(|(attribute, _)| has(*attribute)).map(|(_, fixed)| fixed))
}

fn kind_of_mode(mode: u32) -> Option<Kind> {
    match SFlag::from_bits_truncate(mode & libc::S_IFMT) {
        SFlag::S_IFREG => Some(Kind::File),
        SFlag::S_IFDIR => Some(Kind::Dir),
        SFlag::S_IFLNK => Some(Kind::Symlink),
        SFlag::S_IFIFO => Some(Kind::Fifo),
        SFlag::S_IFSOCK => Some(Kind::Socket),
        SFlag::S_IFCHR => Some(Kind::CharDev),
        SFlag::S_IFBLK => Some(Kind::BlockDev),
        _ => None,
    }
}

/// An owner to set; `None` leaves that half as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// An entry to look at and to change: by a descriptor only, so that every call is about the same one, whatever its name
/// leads to by then.
#[derive(Clone, Copy)]
pub enum Handle<'a> {
    /// Open for reading or writing.
    Open(BorrowedFd<'a>),
    /// One of [`hold`], which is not open: of a symbolic link itself.
    Held(BorrowedFd<'a>),
}

impl Handle<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        let (Self::Open(fd) | Self::Held(fd)) = self;
        *fd
    }

    /// Whether a look at it is a request to a server: see [`is_on_server`].
    pub fn is_on_server(self) -> bool {
        is_on_server(self.fd())
    }

    /// Whether its file system is made of others, and answers for one of them: overlayfs, FUSE.
    pub fn is_in_union(self) -> bool {
        is_in_union(self.fd())
    }

    /// Whether its file system may have project ids.
    pub fn may_have_project(self) -> bool {
        may_have_projects(self.fd())
    }

    /// What stat(2) says of it.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn meta(self) -> Result<Meta, Errno> {
        Meta::of(self.fd())
    }

    /// What the kernel knows of it: see [`Meta::known`].
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn meta_known(self) -> Result<Meta, Errno> {
        Meta::known(self.fd())
    }

    /// The same as [`Self::meta`], asked of the file system: see [`Meta::of_now`].
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn meta_now(self) -> Result<Meta, Errno> {
        Meta::of_now(self.fd())
    }

    /// Sets the owner. Clears setuid, setgid and capabilities.
    ///
    /// # Errors
    /// Those of fchown(2) and fchownat(2).
    pub fn set_owner(self, owner: Owner) -> Result<(), Errno> {
        let (uid, gid) = (owner.uid.map(Uid::from_raw), owner.gid.map(Gid::from_raw));
        match self {
            Self::Open(fd) => fchown(fd, uid, gid),
            Self::Held(fd) => fchownat(fd, c"", uid, gid, AtFlags::AT_EMPTY_PATH),
        }
    }

    /// Sets permission bits (below 0o10000). A symbolic link has none.
    ///
    /// # Errors
    /// Those of fchmod(2) and chmod(2); `ENOENT` where an entry that is only held cannot be reached, for want of /proc.
    pub fn set_mode(self, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_bits_truncate(mode);
        match self {
            Self::Open(fd) => fchmod(fd, mode),
            Self::Held(fd) => fchmodat(AT_FDCWD, path_of(fd).as_c_str(), mode, FchmodatFlags::FollowSymlink),
        }
    }

    /// Sets access and modification time.
    ///
    /// # Errors
    /// Those of futimens(3) and utimensat(2); `ENOENT` as of [`Self::set_mode`]; `EINVAL` for a second of more than 10^9 ns.
    /// Two such numbers, which a server or a message may hold, would mean something else to the kernel: now, and not at all.
    pub fn set_times(self, atime: Timestamp, mtime: Timestamp) -> Result<(), Errno> {
        if atime.nsec.max(mtime.nsec) >= 1_000_000_000 {
            return Err(Errno::EINVAL);
        }
        let (atime, mtime) = (time_spec(atime), time_spec(mtime));
        match self {
            Self::Open(fd) => futimens(fd, &atime, &mtime),
            // the kernel takes an empty path here since 5.8 only
            Self::Held(fd) => {
                utimensat(AT_FDCWD, path_of(fd).as_c_str(), &atime, &mtime, UtimensatFlags::FollowSymlink)
            }
        }
    }
}

/// A path that leads to what a descriptor is of, for calls that take no descriptor of this kind: proc(5). Of a symbolic link
/// it leads to the link itself.
pub(super) fn path_of(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits and slashes")
}

/// Takes hold of what has a name in a directory, or of what a symbolic link there leads to if `follow`, without opening it:
/// no file system is asked for it, no fifo waits, no device acts.
///
/// # Errors
/// Those of open(2).
pub fn hold(dir: BorrowedFd<'_>, name: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
    let follow = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    openat(dir, name, OFlag::O_PATH | OFlag::O_CLOEXEC | follow, Mode::empty())
}

/// Whether /proc is there, by which [`path_of`] reaches entries that are held.
pub fn reaches_held() -> bool {
    stat("/proc/self/fd").is_ok()
}

fn time_spec(time: Timestamp) -> TimeSpec {
    TimeSpec::new(time.sec, i64::from(time.nsec))
}

/// The target of a symbolic link; of one that is held, with an empty name.
///
/// # Errors
/// Those of readlinkat(2).
pub fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    use std::os::unix::ffi::OsStringExt;
    readlinkat(dir, name).map(OsStringExt::into_vec)
}

/// Makes a symbolic link; `EEXIST` when the name is taken.
///
/// # Errors
/// Those of symlinkat(2).
pub fn make_symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    symlinkat(target, dir, name)
}

/// Makes a fifo, a socket or a device, for its owner alone; `EEXIST` when the name is taken.
///
/// # Errors
/// Those of mknodat(2).
pub fn make_node(dir: BorrowedFd<'_>, name: &[u8], kind: Kind, rdev: u64) -> Result<(), Errno> {
    let (flag, rdev) = match kind {
        Kind::Fifo => (SFlag::S_IFIFO, 0),
        Kind::Socket => (SFlag::S_IFSOCK, 0),
        Kind::CharDev => (SFlag::S_IFCHR, rdev),
        Kind::BlockDev => (SFlag::S_IFBLK, rdev),
        Kind::File | Kind::Dir | Kind::Symlink => return Err(Errno::EINVAL),
    };
    mknodat(dir, name, flag, Mode::S_IRUSR | Mode::S_IWUSR, rdev)
}

/// Gives a second name to an entry that is held; of a symbolic link, to the link itself.
///
/// # Errors
/// Those of linkat(2); `ENOENT` as of [`Handle::set_mode`].
pub fn link(from: BorrowedFd<'_>, to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    // an empty path wants a capability
    linkat(AT_FDCWD, path_of(from).as_c_str(), to.0, to.1, AtFlags::AT_SYMLINK_FOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_ask_tell_the_same() {
        let base = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(base.path().join("f"), [7; 5000]).expect("written");
        for path in [base.path().to_path_buf(), base.path().join("f"), "/dev/null".into()] {
            let file = std::fs::File::open(path).expect("opens");
            assert_eq!(Meta::of_now(file.as_fd()), Meta::of(&file));
        }
    }
}
