//! The FUSE passthrough's inodes: each one the kernel knows of is held by an O_PATH descriptor, and
//! everything is done below `/proc/self/fd`, so that renames and long paths don't matter.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

/// An inode of the backing directory.
#[derive(Clone)]
pub struct Inode {
    pub file: Arc<File>,
    /// The name that it was last looked up by; faults are aimed by it.
    pub name: OsString,
    lookups: u64,
}

impl Inode {
    /// The inode itself; not for symbolic links, which this would follow.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

pub struct Inodes {
    known: Mutex<HashMap<u64, Inode>>,
    /// Added to the backing directory's inode numbers.
    salt: u64,
}

impl Inodes {
    pub fn new(root: &Path, salt: u64) -> io::Result<Inodes> {
        let file = Arc::new(open_path(root)?);
        let root = Inode { file, name: OsString::new(), lookups: 1 };
        Ok(Inodes { known: Mutex::new(HashMap::from([(INodeNo::ROOT.0, root)])), salt })
    }

    /// The number that the kernel knows an inode of the backing directory by.
    pub fn exposed(&self, ino: u64) -> INodeNo {
        INodeNo(ino + self.salt)
    }

    fn seen(&self, meta: &Metadata) -> FileAttr {
        FileAttr { ino: self.exposed(meta.ino()), ..attributes(meta) }
    }

    /// What a name in a directory stands for, not followed.
    pub fn opened(&self, parent: INodeNo, name: &OsStr) -> io::Result<File> {
        open_path(&self.child(parent, name)?)
    }

    pub fn get(&self, id: INodeNo) -> io::Result<Inode> {
        let found = self.known.lock().unwrap().get(&id.0).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// A name in a directory, as a path for the calls that take one.
    pub fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.get(parent)?.path().join(name))
    }

    /// Counts the kernel's reference to what was opened by this name.
    pub fn adopt(&self, file: File, name: &OsStr) -> io::Result<FileAttr> {
        let attr = self.seen(&file.metadata()?);
        let mut inodes = self.known.lock().unwrap();
        let fresh = || Inode { file: Arc::new(file), name: OsString::new(), lookups: 0 };
        let inode = inodes.entry(attr.ino.0).or_insert_with(fresh);
        inode.lookups += 1;
        inode.name = name.to_owned();
        Ok(attr)
    }

    pub fn forget(&self, id: INodeNo, lookups: u64) {
        let mut inodes = self.known.lock().unwrap();
        if let Some(inode) = inodes.get_mut(&id.0) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
            if inode.lookups == 0 && id != INodeNo::ROOT {
                inodes.remove(&id.0);
            }
        }
    }

    pub fn attributes(&self, id: INodeNo) -> io::Result<FileAttr> {
        Ok(FileAttr { ino: id, ..attributes(&self.get(id)?.file.metadata()?) })
    }

    /// Names, inode numbers and types of a directory's entries.
    pub fn list(&self, id: INodeNo) -> io::Result<Vec<(INodeNo, FileType, OsString)>> {
        let mut entries = Vec::new();
        for name in [".", ".."] {
            entries.push((id, FileType::Directory, OsString::from(name)));
        }
        for entry in fs::read_dir(self.get(id)?.path())? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).expect("one of the seven types");
            let number = std::os::unix::fs::DirEntryExt::ino(&entry);
            entries.push((self.exposed(number), kind, entry.file_name()));
        }
        Ok(entries)
    }
}

fn open_path(path: &Path) -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn attributes(meta: &Metadata) -> FileAttr {
    let changed = u64::try_from(meta.ctime()).unwrap_or(0);
    FileAttr {
        ino: INodeNo(meta.ino()),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: meta.accessed().unwrap_or(UNIX_EPOCH),
        mtime: meta.modified().unwrap_or(UNIX_EPOCH),
        ctime: UNIX_EPOCH + Duration::from_secs(changed),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(meta.file_type()).expect("one of the seven types"),
        perm: u16::try_from(meta.mode() & 0o7777).expect("twelve bits"),
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: u32::try_from(meta.rdev()).unwrap_or(0),
        blksize: 4096,
        flags: 0,
    }
}

/// What utimensat takes for a time that FUSE hands over.
pub fn timespec(time: Option<TimeOrNow>) -> libc::timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, libc::UTIME_OMIT),
        Some(TimeOrNow::Now) => (0, libc::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => seconds(time),
    };
    libc::timespec { tv_sec, tv_nsec }
}

fn seconds(time: SystemTime) -> (i64, i64) {
    let whole = |d: Duration| i64::try_from(d.as_secs()).expect("a time that the kernel sent");
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (whole(since), i64::from(since.subsec_nanos())),
        // fuser 0.18 takes the seconds alone for negative (`system_time_from_time`), and this takes that back.
        Err(before) => (-whole(before.duration()), i64::from(before.duration().subsec_nanos())),
    }
}
