//! Directories by descriptor: opening below a root, listing, making.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::Meta;
use crate::types::{Kind, RelPath};

const DIR_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// Opens a directory that the user named, through symbolic links.
///
/// # Errors
/// Those of open(2).
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, DIR_FLAGS, Mode::empty())
}

/// Opens the directory `name` in `dir`; a symbolic link is `ENOTDIR` or `ELOOP`.
///
/// # Errors
/// Those of open(2).
pub fn open_dir_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(dir, name, DIR_FLAGS | OFlag::O_NOFOLLOW, Mode::empty())
}

/// Makes the directory `name` in `dir`, for its owner alone until it is finished; one that is
/// already there will do, anything else there is `ENOTDIR`.
///
/// # Errors
/// Those of mkdir(2).
pub fn make_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match mkdirat(dir, name, Mode::S_IRWXU) {
        Err(Errno::EEXIST) if Meta::at(dir, name)?.kind == Some(Kind::Dir) => Ok(()),
        Err(Errno::EEXIST) => Err(Errno::ENOTDIR),
        made => made,
    }
}

/// Descriptors of the directories last used below a root, found by path.
///
/// A directory is opened name by name from the nearest one that is still open, so that paths have
/// no length limit and no symbolic link is followed. Bounded: the least recently used is closed.
pub struct DirCache {
    root: Arc<OwnedFd>,
    open: HashMap<RelPath, (Arc<OwnedFd>, u64)>,
    clock: u64,
}

impl DirCache {
    /// Descriptors that one cache holds besides the root's. With two caches a thread and four
    /// threads a rank this stays far below the usual limit of 1024.
    const CAPACITY: usize = 48;

    /// Paths will be relative to `root`.
    pub fn new(root: Arc<OwnedFd>) -> Self {
        Self { root, open: HashMap::new(), clock: 0 }
    }

    /// The directory at `path`.
    ///
    /// # Errors
    /// Those of open(2), of the first directory on the way that cannot be opened.
    pub fn open(&mut self, path: &RelPath) -> Result<Arc<OwnedFd>, Errno> {
        self.clock += 1;
        if path.is_root() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some((fd, used)) = self.open.get_mut(path) {
            *used = self.clock;
            return Ok(Arc::clone(fd));
        }
        // the nearest open ancestor, and the names from there down
        let mut missing = Vec::new();
        let mut at = path.clone();
        let mut fd = loop {
            let Some((parent, name)) = at.split() else {
                break Arc::clone(&self.root);
            };
            if let Some((fd, used)) = self.open.get_mut(&at) {
                *used = self.clock;
                break Arc::clone(fd);
            }
            missing.push(name.to_vec());
            at = parent;
        };
        for name in missing.iter().rev() {
            fd = Arc::new(open_dir_at(fd.as_fd(), name)?);
            at = at.join(name);
            self.keep(at.clone(), &fd);
        }
        Ok(fd)
    }

    fn keep(&mut self, path: RelPath, fd: &Arc<OwnedFd>) {
        if self.open.len() >= Self::CAPACITY {
            let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            if let Some(oldest) = oldest {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(path, (Arc::clone(fd), self.clock));
    }
}

/// An entry as a listing shows it.
pub struct Listed<'a> {
    pub name: &'a [u8],
    /// `None` where the file system does not tell in the listing.
    pub kind: Option<Kind>,
}

/// Lists a directory, without `.` and `..`, in the file system's order. Consumes the descriptor.
///
/// # Errors
/// Those of readdir(3); what `each` was given before is good.
pub fn list(dir: OwnedFd, mut each: impl FnMut(Listed<'_>)) -> Result<(), Errno> {
    let stream = Stream::new(dir)?;
    while let Some((name, d_type)) = stream.next()? {
        let name = name.to_bytes();
        if name != b"." && name != b".." {
            each(Listed { name, kind: kind_of_d_type(d_type) });
        }
    }
    Ok(())
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

/// A directory stream. nix's own reads with readdir64_r, which interception libraries do not take.
struct Stream(NonNull<libc::DIR>);

impl Stream {
    fn new(dir: OwnedFd) -> Result<Self, Errno> {
        let raw = dir.into_raw_fd();
        // SAFETY: `raw` is an open descriptor that this function owns; fdopendir takes it over.
        match NonNull::new(unsafe { libc::fdopendir(raw) }) {
            Some(stream) => Ok(Self(stream)),
            None => {
                let err = Errno::last();
                let _ = nix::unistd::close(raw);
                Err(err)
            }
        }
    }

    fn next(&self) -> Result<Option<(&CStr, u8)>, Errno> {
        Errno::clear();
        // SAFETY: the stream is open, and used by this thread alone.
        let entry = unsafe { libc::readdir64(self.0.as_ptr()) };
        if entry.is_null() {
            return match Errno::last() {
                Errno::UnknownErrno => Ok(None),
                err => Err(err),
            };
        }
        // SAFETY: readdir64 returned an entry, whose name ends in NUL and which lives until the
        // next call on this stream; the caller drops the name before that.
        Ok(Some(unsafe { (CStr::from_ptr((*entry).d_name.as_ptr()), (*entry).d_type) }))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: open until here. Reading has no error that closing could still bring.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_deep_directory_is_found_again_after_its_descriptor_was_closed() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let mut cache = DirCache::new(Arc::new(open_root(base.path()).expect("the root opens")));
        let mut path = RelPath::root();
        for depth in 0..200 {
            let name = format!("a-name-of-some-length-so-that-the-path-is-long-{depth}");
            let dir = cache.open(&path).expect("the parent opens");
            make_dir(dir.as_fd(), name.as_bytes()).expect("made");
            path = path.join(name.as_bytes());
        }
        assert!(path.as_bytes().len() > 4096 && cache.open(&path).is_ok());
        assert_eq!(cache.open.len(), DirCache::CAPACITY);
        let first = RelPath::root().join(b"a-name-of-some-length-so-that-the-path-is-long-0");
        assert!(cache.open(&first).is_ok());
    }

    #[test]
    fn a_symbolic_link_is_never_a_directory_on_the_way() {
        let base = tempfile::tempdir().expect("a temporary directory");
        std::os::unix::fs::symlink("/usr", base.path().join("link")).expect("linked");
        let mut cache = DirCache::new(Arc::new(open_root(base.path()).expect("the root opens")));
        let link = RelPath::root().join(b"link");
        assert!(cache.open(&link).is_err() && cache.open(&link.join(b"bin")).is_err());
        let root = open_root(base.path()).expect("the root opens");
        assert_eq!(make_dir(root.as_fd(), b"link"), Err(Errno::ENOTDIR));
    }

    #[test]
    fn a_listing_shows_every_name_and_its_type() {
        let base = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(base.path().join("file"), "x").expect("written");
        std::fs::create_dir(base.path().join("dir")).expect("made");
        std::fs::write(base.path().join(std::ffi::OsStr::from_bytes(b"\xff\n")), "x").expect("written");
        let mut seen = Vec::new();
        list(open_root(base.path()).expect("opens"), |entry| seen.push((entry.name.to_vec(), entry.kind)))
            .expect("lists");
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        let kinds = [Some(Kind::Dir), Some(Kind::File), Some(Kind::File)];
        assert_eq!(
            seen.iter().map(|(name, _)| name.as_slice()).collect::<Vec<_>>(),
            [b"dir".as_slice(), b"file", b"\xff\n"]
        );
        assert!(seen.iter().zip(kinds).all(|((_, kind), expected)| kind.is_none() || *kind == expected));
    }
}
