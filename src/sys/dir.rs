//! Directories by descriptor: opening below a root, listing, making.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Handle, Meta, Reading, strip_acls};
use crate::types::{Call, Kind, RelPath};

const DIR_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// Opens a directory that the user named, through symbolic links.
///
/// # Errors
/// Those of open(2).
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, DIR_FLAGS, Mode::empty())
}

/// Opens the directory `name` in `dir`, to list it, to change it or to make it durable; a symbolic link that is not followed
/// is `ENOTDIR` or `ELOOP`.
///
/// Not by a symbol of the C library: DAOS's libioil asks three things of each descriptor that it sees opened, registers
/// directories too, and does not see that closedir(3) closes them, which the C library does by an internal call. The next
/// file that gets the number would be taken for the directory.
///
/// # Errors
/// Those of open(2).
pub fn open_dir_at(dir: BorrowedFd<'_>, name: &[u8], how: Reading) -> Result<OwnedFd, Errno> {
    let follow = if how.follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    if how.noatime {
        match open_unseen(dir, name, DIR_FLAGS | follow | OFlag::O_NOATIME) {
            Err(err) if Call::OpenNoAtime.allows(err) => {}
            opened => return opened,
        }
    }
    open_unseen(dir, name, DIR_FLAGS | follow)
}

fn open_unseen(dir: BorrowedFd<'_>, name: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is open, the name ends in NUL, and the flags make no file.
    let fd = unsafe { libc::syscall(libc::SYS_openat, dir.as_raw_fd(), name.as_ptr(), flags.bits(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(|_| Errno::EMFILE)?) })
}

/// Opens the directory `name` in `dir` only to go on from it: its entries can be reached and its own stat asked for, nothing
/// else. A file system in user space is not asked for it, and interception libraries leave it alone.
///
/// # Errors
/// Those of open(2).
fn reach_dir_at(dir: BorrowedFd<'_>, name: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
    let follow = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    openat(dir, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | follow, Mode::empty())
}

/// Opens a directory by its path only to go on from it, as [`open_root`] does; it need not be readable.
///
/// # Errors
/// Those of open(2).
pub fn reach_root(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Of a directory that is not finished: for its owner alone, and sticky, which tells a later run that this one was made by a
/// run that was killed, and not there before.
pub const UNFINISHED_DIR_MODE: u32 = 0o1700;

/// A directory of the destination, as the job found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirThere {
    /// Permission bits; `None` when it was made just now, or by a run that was killed.
    pub mode: Option<u32>,
    /// Its owner, who is this process, got permissions that he did not have, until it is finished.
    pub lent: bool,
}

/// Makes the directory `name` in `dir`, for its owner alone until it is finished.
///
/// # Errors
/// Those of mkdir(2).
pub fn make_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    mkdirat(dir, name, Mode::from_bits_truncate(UNFINISHED_DIR_MODE))
}

/// The mode that a directory had before the job; `None` when it was made by a run that was killed.
pub fn mode_before(there: &Meta) -> Option<u32> {
    // setgid comes from the directory that it is in
    (there.mode & 0o1777 != UNFINISHED_DIR_MODE).then_some(there.mode)
}

/// Makes a directory for this user alone; one that is there will do, if it is one.
///
/// # Errors
/// Those of mkdir(2).
pub fn make_private_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match mkdirat(dir, name, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => Ok(()),
        made => made,
    }
}

/// Removes an empty directory.
///
/// # Errors
/// Those of rmdir(2).
pub fn remove_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}

/// Removes the ACLs that a new directory got from the one that it is in: they are not the source's, and would go on
/// to what is made in it.
///
/// # Errors
/// Those of open(2) and removexattr(2).
pub fn strip_dir_acls(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    strip_acls(Handle::Open(open_dir_at(dir, name, Reading::default())?.as_fd()), false).map(drop)
}

/// Descriptors of the directories last used below some roots, found by path: to reach their entries by, and no more (but
/// for the roots themselves).
///
/// A directory is opened name by name from the nearest one that is still open, so that paths have
/// no length limit and no symbolic link is followed unawares. Bounded: the least recently used is closed.
pub struct DirCache {
    roots: Vec<Arc<OwnedFd>>,
    follow: bool,
    open: Vec<OpenDir>,
    capacity: usize,
    /// Bytes of their paths.
    paths_len: usize,
    clock: u64,
}

/// Bytes of the paths in one cache, at most: a path may have 64 KiB, and a process has dozens of caches.
const MAX_PATHS_LEN: usize = 512 << 10;

struct OpenDir {
    root: usize,
    path: Vec<u8>,
    fd: Arc<OwnedFd>,
    used: u64,
}

impl DirCache {
    /// Paths will be relative to one of `roots`. Holds `capacity` descriptors besides those of the roots.
    pub fn new(roots: Vec<Arc<OwnedFd>>, capacity: usize) -> Self {
        Self { roots, follow: false, open: Vec::new(), capacity: capacity.max(1), paths_len: 0, clock: 0 }
    }

    /// Opens the directories of a source.
    pub fn reading(self, how: Reading) -> Self {
        Self { follow: how.follow, ..self }
    }

    /// What one of `caches` caches may hold, so that all of them and `others` descriptors stay below the limit of
    /// this process; few enough to be searched one by one.
    pub fn share_of_limit(caches: usize, others: usize) -> usize {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        (limit.saturating_sub(others) / caches.max(1)).clamp(2, 64)
    }

    /// The directory at `path` below the root of this number.
    ///
    /// # Errors
    /// Those of open(2), of the first directory on the way that cannot be opened.
    pub fn open(&mut self, root: usize, path: &RelPath) -> Result<Arc<OwnedFd>, Errno> {
        self.open_checked(root, path, |_, _, _| Ok(()))
    }

    /// The same; each directory on the way that is not open yet is given to `check`: the one that it is in, its path, itself.
    ///
    /// # Errors
    /// As [`Self::open`]; what `check` says.
    pub fn open_checked(
        &mut self,
        root: usize,
        path: &RelPath,
        mut check: impl FnMut(BorrowedFd<'_>, &[u8], BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<Arc<OwnedFd>, Errno> {
        let path = path.as_bytes();
        // the nearest open ancestor; further up than the cache is deep there can be none but by chance
        let ancestors = std::iter::successors((!path.is_empty()).then_some(path.len()), |&end| {
            path[..end].iter().rposition(|&b| b == b'/')
        });
        let found = ancestors.take(2 * self.capacity).find_map(|end| Some((end, self.find(root, &path[..end])?)));
        let (mut end, mut fd) = found.unwrap_or_else(|| (0, Arc::clone(&self.roots[root])));
        let rest = path[end..].split(|&b| b == b'/').filter(|name| !name.is_empty());
        let mut left = rest.clone().count();
        for name in rest {
            let above = fd;
            fd = Arc::new(reach_dir_at(above.as_fd(), name, self.follow)?);
            end += name.len() + usize::from(end > 0);
            check(above.as_fd(), &path[..end], fd.as_fd())?;
            // of a long way only its end is worth keeping
            if left <= self.capacity {
                self.keep(root, &path[..end], &fd);
            }
            left -= 1;
        }
        Ok(fd)
    }

    /// A root, by its number.
    pub fn root(&self, root: usize) -> BorrowedFd<'_> {
        self.roots[root].as_fd()
    }

    /// Closes all but the roots.
    pub fn clear(&mut self) {
        self.open.clear();
        self.paths_len = 0;
    }

    fn find(&mut self, root: usize, path: &[u8]) -> Option<Arc<OwnedFd>> {
        let found = self.open.iter_mut().find(|dir| dir.root == root && dir.path == path)?;
        self.clock += 1;
        found.used = self.clock;
        Some(Arc::clone(&found.fd))
    }

    fn keep(&mut self, root: usize, path: &[u8], fd: &Arc<OwnedFd>) {
        self.clock += 1;
        let is_full = |me: &Self| me.open.len() >= me.capacity || me.paths_len + path.len() > MAX_PATHS_LEN;
        while is_full(self)
            && let Some((oldest, _)) = self.open.iter().enumerate().min_by_key(|(_, dir)| dir.used)
        {
            self.paths_len -= self.open.swap_remove(oldest).path.len();
        }
        self.paths_len += path.len();
        self.open.push(OpenDir { root, path: path.to_vec(), fd: Arc::clone(fd), used: self.clock });
    }
}

/// An entry as a listing shows it.
pub struct Listed<'a> {
    pub name: &'a [u8],
    /// `None` where the file system does not tell in the listing.
    pub kind: Option<Kind>,
    /// The number of its inode, as the listing has it.
    pub ino: u64,
}

/// Lists a directory, without `.` and `..`, in the file system's order, to its end or until `each` breaks off. Consumes
/// the descriptor, which is one of [`open_dir_at`].
///
/// # Errors
/// Those of getdents64(2); what `each` was given before is good.
pub fn list(dir: OwnedFd, mut each: impl FnMut(Listed<'_>) -> ControlFlow<()>) -> Result<(), Errno> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let filled = read_entries(dir.as_fd(), &mut buffer)?;
        if filled == 0 {
            return Ok(());
        }
        let mut records = &buffer[..filled];
        while !records.is_empty() {
            let (entry, rest) = split_entry(records).ok_or(Errno::EIO)?;
            records = rest;
            if entry.name != b"." && entry.name != b".." && each(entry).is_break() {
                return Ok(());
            }
        }
    }
}

/// The names in a directory, sorted, without `.` and `..`.
///
/// # Errors
/// Those of open(2) and getdents64(2).
pub fn names_in(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    list(open_dir_at(dir, b".", Reading::default())?, |entry| {
        names.push(entry.name.to_vec());
        ControlFlow::Continue(())
    })?;
    names.sort_unstable();
    Ok(names)
}

/// Fills a buffer with the next entries. Returns the number of bytes, 0 at the end.
///
/// readdir(3) is not used: it reports `ENOENT` as the end of the directory, so that one failed call would hide the remaining
/// names.
fn read_entries(dir: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the descriptor is open, and the kernel writes at most as many bytes as there are.
    let filled = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), into.as_mut_ptr(), into.len()) };
    Errno::result(filled).map(|filled| usize::try_from(filled).unwrap_or(0))
}

/// Splits the first entry off the kernel's records. An entry is: inode (8 bytes), offset (8), length of the whole (2),
/// type (1), name, NUL. `None` for anything else.
fn split_entry(records: &[u8]) -> Option<(Listed<'_>, &[u8])> {
    const NAME_AT: usize = 19;
    let ino = u64::from_ne_bytes(*records.first_chunk()?);
    let len = u16::from_ne_bytes(*records.get(16..)?.first_chunk()?);
    let (entry, rest) = records.split_at_checked(usize::from(len))?;
    let name = CStr::from_bytes_until_nul(entry.get(NAME_AT..)?).ok()?.to_bytes();
    Some((Listed { name, kind: kind_of_d_type(entry[NAME_AT - 1]), ino }, rest))
}

fn kind_of_d_type(d_type: u8) -> Option<Kind> {
    Some(match d_type {
        libc::DT_REG => Kind::File,
        libc::DT_DIR => Kind::Dir,
        libc::DT_LNK => Kind::Symlink,
        libc::DT_FIFO => Kind::Fifo,
        libc::DT_SOCK => Kind::Socket,
        libc::DT_CHR => Kind::CharDev,
        libc::DT_BLK => Kind::BlockDev,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn what_is_no_entry_of_a_directory_is_not_read_as_one() {
        let mut record = [7_u64.to_ne_bytes(), 0_u64.to_ne_bytes()].concat();
        record.extend(24_u16.to_ne_bytes());
        record.extend(*b"\x08name\0");
        let (entry, rest) = split_entry(&record).expect("one entry");
        assert_eq!(
            (entry.name, entry.kind, entry.ino, rest),
            (b"name".as_slice(), Some(Kind::File), 7, b"".as_slice())
        );
        assert!((0..record.len()).all(|len| split_entry(&record[..len]).is_none()));
        record[16] = 0;
        assert!(split_entry(&record).is_none());
    }

    #[test]
    fn a_deep_directory_is_found_again_after_its_descriptor_was_closed() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let mut cache = DirCache::new(vec![Arc::new(open_root(base.path()).expect("the root opens"))], 40);
        let mut path = RelPath::root();
        for depth in 0..200 {
            let name = format!("a-name-of-some-length-so-that-the-path-is-long-{depth}");
            let dir = cache.open(0, &path).expect("the parent opens");
            make_dir(dir.as_fd(), name.as_bytes()).expect("made");
            path = path.join(name.as_bytes());
        }
        assert!(path.as_bytes().len() > 4096 && cache.open(0, &path).is_ok());
        assert_eq!(cache.open.len(), 40);
        let first = RelPath::root().join(b"a-name-of-some-length-so-that-the-path-is-long-0");
        assert!(cache.open(0, &first).is_ok());
    }

    #[test]
    fn long_paths_take_a_bounded_part_of_the_memory() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let mut cache = DirCache::new(vec![Arc::new(open_root(base.path()).expect("the root opens"))], 64);
        let mut path = RelPath::root();
        for depth in 0..200 {
            let name = format!("{depth:0250}");
            let dir = cache.open(0, &path).expect("the parent opens");
            make_dir(dir.as_fd(), name.as_bytes()).expect("made");
            path = path.join(name.as_bytes());
        }
        assert!(path.as_bytes().len() > 50_000 && cache.open(0, &path).is_ok());
        let len: usize = cache.open.iter().map(|dir| dir.path.len()).sum();
        assert!(len <= MAX_PATHS_LEN && len == cache.paths_len, "{len} bytes, {} counted", cache.paths_len);
    }

    #[test]
    fn a_symbolic_link_is_never_a_directory_on_the_way() {
        let base = tempfile::tempdir().expect("a temporary directory");
        std::os::unix::fs::symlink("/usr", base.path().join("link")).expect("linked");
        let mut cache = DirCache::new(vec![Arc::new(open_root(base.path()).expect("the root opens"))], 40);
        let link = RelPath::root().join(b"link");
        assert!(cache.open(0, &link).is_err() && cache.open(0, &link.join(b"bin")).is_err());
        let root = open_root(base.path()).expect("the root opens");
        assert_eq!(make_dir(root.as_fd(), b"link"), Err(Errno::EEXIST));
        let mut following = DirCache::new(vec![Arc::new(root)], 40).reading(Reading { follow: true, noatime: false });
        assert!(following.open(0, &link.join(b"bin")).is_ok());
    }

    #[test]
    fn a_listing_shows_every_name_and_its_type() {
        let base = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(base.path().join("file"), "x").expect("written");
        std::fs::create_dir(base.path().join("dir")).expect("made");
        std::fs::write(base.path().join(std::ffi::OsStr::from_bytes(b"\xff\n")), "x").expect("written");
        let mut seen = Vec::new();
        let take = |entry: Listed<'_>| {
            seen.push((entry.name.to_vec(), entry.kind));
            ControlFlow::Continue(())
        };
        list(open_root(base.path()).expect("opens"), take).expect("lists");
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        let kinds = [Some(Kind::Dir), Some(Kind::File), Some(Kind::File)];
        assert_eq!(
            seen.iter().map(|(name, _)| name.as_slice()).collect::<Vec<_>>(),
            [b"dir".as_slice(), b"file", b"\xff\n"]
        );
        assert!(seen.iter().zip(kinds).all(|((_, kind), expected)| kind.is_none() || *kind == expected));
    }
}
