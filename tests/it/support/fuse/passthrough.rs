//! What the passthrough does on the backing directory, and where the faults happen.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fuser::{FileAttr, FileHandle, FileType, FopenFlags, INodeNo, OpenAccMode, OpenFlags, Request, TimeOrNow};
use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, Whence, fchownat, lseek};

use super::dfuse::Mounted;
use super::durable::Ledger;
use super::inodes::{Inodes, timespec};
use super::{BadByte, Durable, Faults};
use crate::support::sys;

impl BadByte {
    fn is_in(&self, handle: &Handle, offset: u64, len: u64) -> bool {
        let named = self.name.as_ref().is_none_or(|name| *name == handle.name);
        named && (offset..offset + len).contains(&self.offset)
    }
}

pub struct Handle {
    pub file: File,
    pub name: OsString,
    /// It was opened for writing.
    pub writes: bool,
    /// With O_DIRECT.
    pub direct: bool,
}

pub type Listing = Arc<Vec<(INodeNo, FileType, OsString)>>;

pub struct Passthrough {
    pub inodes: Inodes,
    pub faults: Faults,
    pub files: Mutex<HashMap<u64, Arc<Handle>>>,
    pub listings: Mutex<HashMap<u64, Listing>>,
    pub next_handle: AtomicU64,
    pub written_bytes: AtomicU64,
    pub root: PathBuf,
    /// Where it is a dfuse.
    pub dfuse: Option<Mounted>,
    durable: Durable,
}

pub fn not_supported(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Passthrough {
    pub fn new(backing: &Path, faults: Faults, durable: Durable) -> io::Result<Passthrough> {
        let dfuse = faults.dfuse.clone().map(Mounted::new);
        Ok(Passthrough {
            inodes: Inodes::new(backing, dfuse.as_ref().map_or(0, Mounted::salt))?,
            dfuse,
            faults,
            files: Mutex::default(),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            written_bytes: AtomicU64::new(0),
            root: backing.to_path_buf(),
            durable,
        })
    }

    /// Hands on the ledger where there is one. Meanwhile no name is made or removed, and nothing becomes durable.
    pub fn noted<T>(&self, act: impl FnOnce(Option<&mut Ledger>) -> T) -> T {
        if !self.faults.forgets_at_power_cut {
            return act(None);
        }
        act(self.durable.lock().unwrap().as_mut())
    }

    /// Does what changes names in a directory; `made` is a name that it makes.
    pub fn renaming<T>(&self, made: Option<&Path>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.noted(|ledger| {
            let done = act()?;
            match (ledger, made) {
                (Some(ledger), Some(path)) => ledger.made(path).map(|()| done),
                _ => Ok(done),
            }
        })
    }

    pub fn sync(&self, ino: INodeNo, fh: FileHandle, datasync: bool) -> io::Result<()> {
        let handle = self.file(fh)?;
        self.noted(|ledger| match ledger {
            Some(ledger) => ledger.synced(ino.0, !datasync),
            None => handle.file.sync_data(),
        })
    }

    /// `ENOSYS` where a directory needs no sync: the kernel then asks no more.
    pub fn sync_dir(&self, ino: INodeNo) -> io::Result<()> {
        self.noted(|ledger| {
            ledger.map_or_else(|| Err(not_supported(libc::ENOSYS)), |ledger| ledger.names_synced(self.number(ino)?))
        })
    }

    /// The number of an inode behind the mount, where the root has another one.
    fn number(&self, ino: INodeNo) -> io::Result<u64> {
        Ok(self.inodes.get(ino)?.file.metadata()?.ino())
    }

    pub fn file(&self, fh: FileHandle) -> io::Result<Arc<Handle>> {
        let found = self.files.lock().unwrap().get(&fh.0).cloned();
        found.ok_or_else(|| not_supported(libc::EBADF))
    }

    pub fn handle(&self, file: File, name: &OsStr, writes: bool, flags: i32) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let direct = flags & libc::O_DIRECT != 0;
        let handle = Handle { file, name: name.to_owned(), writes, direct };
        self.files.lock().unwrap().insert(number, Arc::new(handle));
        FileHandle(number)
    }

    pub fn fopen_flags(&self, flags: i32) -> FopenFlags {
        let short = self.faults.short_read.is_some() || self.faults.short_write.is_some();
        let past_the_cache = |dfuse: &Mounted| !dfuse.options.caching || flags & libc::O_DIRECT != 0;
        if short || self.dfuse.as_ref().is_some_and(past_the_cache) {
            FopenFlags::FOPEN_DIRECT_IO
        } else {
            FopenFlags::empty()
        }
    }

    fn refuse_unaligned(&self, handle: &Handle, offset: u64, len: u64) -> io::Result<()> {
        let is_refused =
            self.faults.aligned_odirect && handle.direct && (!offset.is_multiple_of(512) || !len.is_multiple_of(512));
        if is_refused { Err(not_supported(libc::EINVAL)) } else { Ok(()) }
    }

    pub fn refuse_direct(&self, flags: i32) -> io::Result<()> {
        if self.faults.no_odirect && flags & libc::O_DIRECT != 0 {
            return Err(not_supported(libc::EINVAL));
        }
        Ok(())
    }

    pub fn try_open(&self, ino: INodeNo, flags: OpenFlags) -> io::Result<FileHandle> {
        self.refuse_direct(flags.0)?;
        let inode = self.inodes.get(ino)?;
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let truncates = flags.0 & libc::O_TRUNC != 0;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(writes).truncate(truncates).open(inode.path())?;
        if truncates {
            self.noted(|ledger| ledger.map(|ledger| ledger.resized(ino.0, 0)));
        }
        Ok(self.handle(file, &inode.name, writes, flags.0))
    }

    /// Gives what a request made to the one who asked, and looks it up.
    pub fn adopt(&self, req: &Request, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        if req.uid() != 0 || req.gid() != 0 {
            let path = self.inodes.child(parent, name)?;
            std::os::unix::fs::lchown(path, Some(req.uid()), Some(req.gid()))?;
        }
        self.look_up(parent, name)
    }

    /// Looks a name up; a directory may lead to another container.
    pub fn look_up(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let file = match self.linked_container(&self.inodes.child(parent, name)?)? {
            Some(container) => File::open(container)?,
            None => self.inodes.opened(parent, name)?,
        };
        Ok(self.shown(self.inodes.adopt(file, name)?))
    }

    pub fn try_read(&self, fh: FileHandle, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        thread::sleep(Duration::from_millis(self.faults.delay_ms));
        let handle = self.file(fh)?;
        self.refuse_unaligned(&handle, offset, u64::from(size))?;
        let size = size.min(self.faults.short_read.unwrap_or(u32::MAX));
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        let mut filled = 0;
        while filled < bytes.len() {
            let at = offset + u64::try_from(filled).unwrap();
            match handle.file.read_at(&mut bytes[filled..], at)? {
                0 => break,
                n => filled += n,
            }
        }
        bytes.truncate(filled);
        let len = u64::try_from(filled).unwrap();
        if self.faults.eio_read_at.as_ref().is_some_and(|bad| bad.is_in(&handle, offset, len)) {
            return Err(not_supported(libc::EIO));
        }
        Ok(bytes)
    }

    pub fn try_write(&self, ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8]) -> io::Result<u32> {
        thread::sleep(Duration::from_millis(self.faults.delay_ms));
        let handle = self.file(fh)?;
        let most = self.faults.short_write.map_or(usize::MAX, |n| usize::try_from(n).unwrap());
        let data = &data[..data.len().min(most)];
        let len = u64::try_from(data.len()).unwrap();
        self.refuse_unaligned(&handle, offset, len)?;
        if self.faults.eio_write_at.as_ref().is_some_and(|bad| bad.is_in(&handle, offset, len)) {
            return Err(not_supported(libc::EIO));
        }
        let before = self.written_bytes.fetch_add(len, Ordering::Relaxed);
        if self.faults.enospc_after.is_some_and(|most| before + len > most) {
            return Err(not_supported(libc::ENOSPC));
        }
        handle.file.write_all_at(data, offset)?;
        // Noted when it is there: what is synced meanwhile need not have it.
        self.noted(|ledger| ledger.map(|ledger| ledger.wrote(ino.0, offset, len)));
        Ok(u32::try_from(data.len()).unwrap())
    }

    /// A directory's entries, as they were when they were first asked for: opening it alone does not read it.
    pub fn listing(&self, ino: INodeNo, fh: FileHandle, offset: u64) -> io::Result<Listing> {
        if offset == 0 {
            thread::sleep(Duration::from_millis(self.faults.list_delay_ms));
            self.listed(ino);
        }
        if let Some(entries) = self.listings.lock().unwrap().get(&fh.0) {
            return Ok(entries.clone());
        }
        let entries = Arc::new(self.inodes.list(ino)?);
        self.listings.lock().unwrap().insert(fh.0, entries.clone());
        Ok(entries)
    }

    /// Where data or a hole begins at or behind `offset`.
    pub fn seek(&self, fh: FileHandle, offset: i64, whence: i32) -> io::Result<i64> {
        let whence = match whence {
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(not_supported(libc::EINVAL)),
        };
        if !self.faults.attributes_and_holes || self.dfuse.is_some() {
            return Err(not_supported(libc::ENOSYS));
        }
        Ok(lseek(&self.file(fh)?.file, offset, whence)?)
    }

    pub fn change(&self, ino: INodeNo, change: &Change) -> io::Result<FileAttr> {
        let inode = self.inodes.get(ino)?;
        self.refuse_mode(change.mode)?;
        if let Some(mode) = change.mode {
            fs::set_permissions(inode.path(), fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            if self.faults.refuse_chown {
                return Err(not_supported(libc::EOPNOTSUPP));
            }
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            fchownat(&inode.file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        if let Some(size) = change.size {
            OpenOptions::new().write(true).open(inode.path())?.set_len(size)?;
            self.noted(|ledger| ledger.map(|ledger| ledger.resized(ino.0, size)));
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = [change.atime, change.mtime].map(|time| self.rounded(timespec(time)));
            sys::set_times(inode.file.as_fd(), times)?;
        }
        self.attributes_set(ino);
        self.inodes.attributes(ino)
    }
}

impl Passthrough {
    /// What a clock of few ticks makes of a time.
    fn rounded(&self, time: libc::timespec) -> libc::timespec {
        match self.faults.clock_step_s {
            Some(step) if time.tv_nsec < 1_000_000_000 => {
                libc::timespec { tv_sec: time.tv_sec.div_euclid(step) * step, tv_nsec: 0 }
            }
            _ => time,
        }
    }

    /// The path of an inode of which the attribute `name` may be set.
    pub fn attributed(&self, ino: INodeNo, name: Option<&OsStr>) -> io::Result<PathBuf> {
        let is_acl = name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"system.posix_acl_"));
        let all = self.faults.attributes_and_holes || self.dfuse.is_some();
        let holds = all || self.faults.xattrs_without_acls && !is_acl;
        if !holds {
            return Err(not_supported(libc::EOPNOTSUPP));
        }
        Ok(self.inodes.get(ino)?.path())
    }
}

pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeOrNow>,
    pub mtime: Option<TimeOrNow>,
}
