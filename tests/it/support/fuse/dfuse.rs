//! What makes the passthrough a dfuse: how DAOS 2.6.5 answers where other file systems answer otherwise.
//!
//! | call | answer |
//! |---|---|
//! | removexattr of a missing attribute | `ENOENT` |
//! | mknod of anything but a file | `EINVAL` |
//! | link | `EPERM` |
//! | rename | sets the mtime of what is renamed to now; attributes asked for within a second show the old one |
//! | rename with `RENAME_EXCHANGE` | `ENOTSUP`; `RENAME_NOREPLACE` works |
//! | chmod with the sticky bit | `ENOTSUP`; mkdir takes it |
//! | setxattr of ACLs and `security.*` | `ENOTSUP` |
//! | `user.daos` | listed on a container's root; setting it there is `EINVAL`; a directory that gets it becomes that container's root, and `EINVAL` when the container is gone |
//! | utimens | no atime: it is the later one of mtime and ctime |
//! | stat | blocks as if no file had holes; inode numbers of the mount's own |
//! | a directory's mtime, after something in it was changed through the same mount | the one from before, for two seconds or until it is listed |
//! | lseek with `SEEK_DATA`, fsyncdir | `ENOSYS`, for which the kernel has its own answer |
//! | names and attributes | cached for a second, missing names for five |
//! | create as another user than the directory's owner, without `--multi-user` | the owner's permissions are the group's too |
//! | a write that fails, where writes are answered before they are done | success; fsync and close say nothing |
//! | three ioctls a descriptor | what the interception library asks; after them nothing of the file is cached |

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, Notifier, Request};
use nix::fcntl::readlink;

use super::passthrough::{Passthrough, not_supported};
use crate::support::sys;

const ATTRIBUTES: Duration = Duration::from_secs(1);
const MISSING: Duration = Duration::from_secs(5);
const CHANGED_DIR: Duration = Duration::from_secs(2);

/// The ioctls of the interception library's stand-in, `_IOC(_IOC_READ, 0xA3, ..)`; `tests/it/libioil.c` has them too.
const IOCTL_TYPE: u32 = 0xA3;
const IOCTL_WHOSE: u32 = 1;
const IOCTL_SIZE: u32 = 2;
const IOCTL_OBJECT: u32 = 3;

/// Where containers are, by their names.
static CONTAINERS: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);

/// Some directory was made a link to a container.
static LINKS: AtomicBool = AtomicBool::new(false);

/// A container and how it is mounted.
#[derive(Clone, Debug)]
pub struct Dfuse {
    pub container: String,
    /// Without it (`--disable-caching`) nothing is kept, and shared mappings are refused.
    pub caching: bool,
    /// `--multi-user`.
    pub multi_user: bool,
    /// A write is answered before it is done, and its error is lost: with caching, unless `--disable-wb-cache`, in a
    /// container that has an attribute of dfuse's (`daos container set-attr`).
    pub write_back: bool,
}

/// Registers a container, or says that it was destroyed.
pub fn set_container(name: &str, at: Option<&Path>) {
    let mut known = CONTAINERS.lock().unwrap();
    let known = known.get_or_insert_default();
    match at {
        Some(at) => known.insert(name.to_owned(), at.to_path_buf()),
        None => known.remove(name),
    };
}

fn link_value(container: &str) -> Vec<u8> {
    format!("DAOS.POSIX://pool/{container}").into_bytes()
}

/// What one mount remembers.
pub struct Mounted {
    pub options: Dfuse,
    /// Added to the store's inode numbers.
    salt: u64,
    /// By inode that was renamed: its mtime before, and when that was.
    renamed: Mutex<HashMap<u64, (SystemTime, Instant)>>,
    /// By directory in which something was changed: its mtime before, and when it was changed last.
    changed_dirs: Mutex<HashMap<u64, (SystemTime, Instant)>>,
    /// Open files that the interception library writes.
    intercepted: Mutex<HashMap<u64, u64>>,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Mounted {
    pub fn new(options: Dfuse) -> Mounted {
        static MOUNTS: AtomicU64 = AtomicU64::new(1);
        let salt = MOUNTS.fetch_add(1, Ordering::Relaxed) << 40;
        Mounted {
            options,
            salt,
            renamed: Mutex::default(),
            changed_dirs: Mutex::default(),
            intercepted: Mutex::default(),
            notifier: Arc::default(),
        }
    }

    pub fn salt(&self) -> u64 {
        self.salt
    }

    fn shown(&self, mut attr: FileAttr) -> FileAttr {
        attr.atime = attr.mtime.max(attr.ctime);
        attr.blocks = attr.size.div_ceil(512);
        if attr.kind == FileType::Directory {
            attr.nlink = 2;
        }
        for (stale, ttl) in [(&self.renamed, ATTRIBUTES), (&self.changed_dirs, CHANGED_DIR)] {
            let before = stale.lock().unwrap().get(&attr.ino.0).copied();
            attr.mtime = before.filter(|(_, when)| when.elapsed() < ttl).map_or(attr.mtime, |(mtime, _)| mtime);
        }
        attr
    }

    fn is_intercepted(&self, ino: INodeNo) -> bool {
        self.intercepted.lock().unwrap().values().any(|other| *other == ino.0)
    }
}

impl Passthrough {
    /// Where what tells the kernel to forget is to be put.
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        self.dfuse.as_ref().map(|dfuse| dfuse.notifier.clone()).unwrap_or_default()
    }

    /// Attributes as this mount shows them.
    pub fn shown(&self, attr: FileAttr) -> FileAttr {
        let attr = if self.faults.moving_ctime { FileAttr { ctime: SystemTime::now(), ..attr } } else { attr };
        self.dfuse.as_ref().map_or(attr, |dfuse| dfuse.shown(attr))
    }

    /// How long the kernel may keep the attributes of an inode.
    pub fn attributes_ttl(&self, ino: INodeNo) -> Duration {
        match &self.dfuse {
            Some(dfuse) if !dfuse.options.caching || dfuse.is_intercepted(ino) => Duration::ZERO,
            None if self.faults.moving_ctime => Duration::ZERO,
            _ => ATTRIBUTES,
        }
    }

    /// How long the kernel may keep a name.
    pub fn names_ttl(&self) -> Duration {
        if self.dfuse.as_ref().is_some_and(|dfuse| !dfuse.options.caching) { Duration::ZERO } else { ATTRIBUTES }
    }

    /// How long the kernel may keep that a name is missing.
    pub fn missing_ttl(&self) -> Option<Duration> {
        self.dfuse.as_ref().filter(|dfuse| dfuse.options.caching).map(|_| MISSING)
    }

    /// Something in a directory is about to be changed.
    pub fn changing(&self, dir: INodeNo) {
        let Some(dfuse) = self.dfuse.as_ref().filter(|dfuse| dfuse.options.caching) else { return };
        if let Ok(attr) = self.inodes.attributes(dir) {
            let mut changed = dfuse.changed_dirs.lock().unwrap();
            changed.retain(|_, (_, when)| when.elapsed() < CHANGED_DIR);
            changed.entry(dir.0).or_insert((attr.mtime, Instant::now())).1 = Instant::now();
        }
    }

    /// A directory is listed.
    pub fn listed(&self, dir: INodeNo) {
        if let Some(dfuse) = &self.dfuse {
            dfuse.changed_dirs.lock().unwrap().remove(&dir.0);
        }
    }

    /// Attributes were set: what was cached of them is gone.
    pub fn attributes_set(&self, ino: INodeNo) {
        if let Some(dfuse) = &self.dfuse {
            dfuse.changed_dirs.lock().unwrap().remove(&ino.0);
            dfuse.renamed.lock().unwrap().remove(&ino.0);
        }
    }

    /// What was renamed gets another mtime.
    pub fn was_renamed(&self, dir: INodeNo, name: &OsStr) -> io::Result<()> {
        let Some(dfuse) = &self.dfuse else { return Ok(()) };
        let file = self.inodes.opened(dir, name)?;
        let mtime = file.metadata()?.modified()?;
        let ino = self.inodes.exposed(file.metadata()?.ino());
        if dfuse.options.caching {
            dfuse.renamed.lock().unwrap().insert(ino.0, (mtime, Instant::now()));
        }
        let time = |tv_nsec| libc::timespec { tv_sec: 0, tv_nsec };
        sys::set_times(std::os::fd::AsFd::as_fd(&file), [time(libc::UTIME_OMIT), time(libc::UTIME_NOW)])
    }

    /// The errno of a chmod.
    pub fn refuse_mode(&self, mode: Option<u32>) -> io::Result<()> {
        let refused = self.dfuse.is_some() && mode.is_some_and(|mode| mode & libc::S_ISVTX != 0);
        if refused { Err(not_supported(libc::ENOTSUP)) } else { Ok(()) }
    }

    /// The permissions that a new entry really gets.
    pub fn created_mode(&self, req: &Request, parent: INodeNo, mode: u32) -> u32 {
        let single_user = self.dfuse.as_ref().is_some_and(|dfuse| !dfuse.options.multi_user);
        let Some(attr) = single_user.then(|| self.inodes.attributes(parent).ok()).flatten() else { return mode };
        let group = if req.uid() == attr.uid { 0 } else { mode >> 3 & 0o070 };
        let others = if req.gid() == attr.gid { 0 } else { mode >> 6 & 0o007 };
        mode | group | others
    }

    /// The errno of setting this attribute.
    pub fn refuse_attribute(&self, ino: INodeNo, name: &OsStr, value: &[u8]) -> io::Result<()> {
        if self.dfuse.is_none() {
            return Ok(());
        }
        let bytes = name.as_bytes();
        if bytes.starts_with(b"system.") || bytes.starts_with(b"security.") {
            return Err(not_supported(libc::ENOTSUP));
        }
        if bytes == b"user.daos" {
            if ino == INodeNo::ROOT || !value.starts_with(b"DAOS.POSIX://") {
                return Err(not_supported(libc::EINVAL));
            }
            LINKS.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The value of an attribute that the store does not have as such.
    pub fn own_attribute(&self, ino: INodeNo, name: &OsStr) -> Option<io::Result<Vec<u8>>> {
        let dfuse = self.dfuse.as_ref()?;
        match name.as_bytes() {
            b"user.daos" if ino == INodeNo::ROOT => Some(Ok(link_value(&dfuse.options.container))),
            bytes if bytes.starts_with(b"system.") || bytes.starts_with(b"security.") => {
                Some(Err(not_supported(libc::ENODATA)))
            }
            _ => None,
        }
    }

    /// The list of attributes as this mount shows it.
    pub fn listed_attributes(&self, ino: INodeNo, mut names: Vec<u8>) -> Vec<u8> {
        if self.dfuse.is_some() {
            let is_shown = |name: &&[u8]| !name.starts_with(b"system.") && !name.starts_with(b"security.");
            names = names.split_inclusive(|b| *b == 0).filter(is_shown).collect::<Vec<_>>().concat();
            if ino == INodeNo::ROOT {
                names.extend_from_slice(b"user.daos\0");
            }
        }
        names
    }

    /// The errno of removing an attribute.
    pub fn of_removal(&self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(err) if self.dfuse.is_some() && err.raw_os_error() == Some(libc::ENODATA) => {
                Err(not_supported(libc::ENOENT))
            }
            result => result,
        }
    }

    /// Where a directory leads that was made a link to a container.
    pub fn linked_container(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        if self.dfuse.is_none() || !LINKS.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Ok(value) = sys::get_xattr_through(path, OsStr::new("user.daos")) else { return Ok(None) };
        let known = CONTAINERS.lock().unwrap();
        let found = known.iter().flatten().find(|(name, _)| link_value(name) == value);
        found.map(|(_, at)| Some(at.clone())).ok_or_else(|| not_supported(libc::EINVAL))
    }

    /// What the interception library asks of a descriptor: whether it is one of DAOS, and of what type; the length of its
    /// object's name; and that name, which is inode number and path in the store.
    pub fn ioctl(&self, ino: INodeNo, fh: FileHandle, cmd: u32, out_size: u32) -> io::Result<Vec<u8>> {
        let number = cmd & 0xff;
        let Some(dfuse) = self.dfuse.as_ref().filter(|_| cmd >> 8 & 0xff == IOCTL_TYPE) else {
            return Err(not_supported(libc::ENOTTY));
        };
        let inode = self.inodes.get(ino)?;
        let object = || -> io::Result<Vec<u8>> {
            let path = readlink(inode.path().as_path())?;
            let mut bytes = inode.file.metadata()?.ino().to_ne_bytes().to_vec();
            bytes.extend_from_slice(path.as_bytes());
            bytes.push(0);
            Ok(bytes)
        };
        let answer = match number {
            IOCTL_WHOSE => {
                if self.files.lock().unwrap().get(&fh.0).is_some_and(|handle| handle.writes) {
                    dfuse.intercepted.lock().unwrap().insert(fh.0, ino.0);
                    if let Some(notifier) = dfuse.notifier.get() {
                        // ENOENT: the kernel has nothing of it
                        let _ = notifier.inval_inode(ino, 0, 0);
                    }
                }
                u64::from(inode.file.metadata()?.mode() & libc::S_IFMT).to_ne_bytes().to_vec()
            }
            IOCTL_SIZE => u64::try_from(object()?.len()).unwrap().to_ne_bytes().to_vec(),
            IOCTL_OBJECT => object()?,
            _ => return Err(not_supported(libc::ENOTSUP)),
        };
        if answer.len() > usize::try_from(out_size).unwrap() { Err(not_supported(libc::EAGAIN)) } else { Ok(answer) }
    }

    /// Whether a write that fails is answered as if it had not.
    pub fn loses_write_errors(&self) -> bool {
        self.dfuse.as_ref().is_some_and(|dfuse| dfuse.options.write_back)
    }

    /// A descriptor is gone.
    pub fn released(&self, fh: FileHandle) {
        if let Some(dfuse) = &self.dfuse {
            dfuse.intercepted.lock().unwrap().remove(&fh.0);
        }
    }
}
