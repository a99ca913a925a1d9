//! The FUSE requests, each a few lines over the passthrough.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenAccMode,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::{AT_FDCWD, AtFlags, readlinkat};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::statvfs::statvfs;
use nix::unistd::linkat;

use super::passthrough::{Change, Passthrough};
use super::trouble::Call;
use crate::support::sys;

/// Attributes and names are kept for a second, as dfuse has it.
const TTL: Duration = Duration::from_secs(1);

fn entry(reply: ReplyEntry, result: io::Result<FileAttr>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(Errno::from(error)),
    }
}

fn empty(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(Errno::from(error)),
    }
}

/// Bytes, or how many they would be where `room` is 0.
fn sized(reply: ReplyXattr, room: u32, result: io::Result<Vec<u8>>) {
    let result = result.map(|bytes| (u32::try_from(bytes.len()).expect("64 KiB at most"), bytes));
    match result {
        Ok((len, _)) if room == 0 => reply.size(len),
        Ok((len, _)) if len > room => reply.error(Errno::ERANGE),
        Ok((_, bytes)) => reply.data(&bytes),
        Err(error) => reply.error(Errno::from(error)),
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if let Some(errno) = self.trouble(Call::Lookup, name) {
            return reply.error(errno);
        }
        entry(reply, self.inodes.look_up(parent, name));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        self.inodes.forget(ino, lookups);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(errno) = self.trouble_with(Call::GetAttr, ino) {
            return reply.error(errno);
        }
        match self.inodes.attributes(ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(errno) = self.trouble_with(Call::SetAttr, ino) {
            return reply.error(errno);
        }
        match self.change(ino, &Change { mode, uid, gid, size, atime, mtime }) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.inodes.get(ino).and_then(|inode| Ok(readlinkat(&inode.file, "")?));
        match target {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        if let Some(errno) = self.trouble(Call::MakeOther, name) {
            return reply.error(errno);
        }
        if self.faults.refuse_mknod {
            return reply.error(Errno::ENOSYS);
        }
        let (kind, perm) = (mode & libc::S_IFMT, mode & !libc::S_IFMT & !umask);
        let made = self.inodes.child(parent, name).and_then(|path| {
            let (kind, perm) = (SFlag::from_bits_truncate(kind), Mode::from_bits_truncate(perm));
            self.renaming(Some(&path), || Ok(mknod(&path, kind, perm, u64::from(rdev))?))
        });
        entry(reply, made.and_then(|()| self.adopt(req, parent, name)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        if let Some(errno) = self.trouble(Call::MakeDir, name) {
            return reply.error(errno);
        }
        let made = self.inodes.child(parent, name).and_then(|path| {
            self.renaming(Some(&path), || fs::DirBuilder::new().mode(mode & !umask & 0o7777).create(&path))
        });
        entry(reply, made.and_then(|()| self.adopt(req, parent, name)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if let Some(errno) = self.trouble(Call::Remove, name) {
            return reply.error(errno);
        }
        let path = self.inodes.child(parent, name);
        empty(reply, path.and_then(|path| self.renaming(None, || fs::remove_file(path))));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if let Some(errno) = self.trouble(Call::Remove, name) {
            return reply.error(errno);
        }
        let path = self.inodes.child(parent, name);
        empty(reply, path.and_then(|path| self.renaming(None, || fs::remove_dir(path))));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        if let Some(errno) = self.trouble(Call::MakeOther, name) {
            return reply.error(errno);
        }
        let path = self.inodes.child(parent, name);
        let made = path.and_then(|path| self.renaming(Some(&path), || symlink(target, &path)));
        entry(reply, made.and_then(|()| self.adopt(req, parent, name)));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if let Some(errno) = self.trouble(Call::Rename, newname) {
            return reply.error(errno);
        }
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let to = self.inodes.child(newparent, newname);
        let from = self.inodes.child(parent, name);
        empty(reply, from.and_then(|from| self.renaming(None, || fs::rename(from, to?))));
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        if let Some(errno) = self.trouble(Call::MakeOther, newname) {
            return reply.error(errno);
        }
        if self.faults.refuse_link {
            return reply.error(Errno::ENOSYS);
        }
        let made = self.inodes.child(newparent, newname).and_then(|to| {
            let from = self.inodes.get(ino)?.path();
            self.renaming(None, || Ok(linkat(AT_FDCWD, &from, AT_FDCWD, &to, AtFlags::AT_SYMLINK_FOLLOW)?))
        });
        entry(reply, made.and_then(|()| self.inodes.look_up(newparent, newname)));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = if flags.acc_mode() == OpenAccMode::O_RDONLY { Call::Open } else { Call::OpenToWrite };
        if let Some(errno) = self.trouble_with(call, ino) {
            return reply.error(errno);
        }
        match self.try_open(ino, flags) {
            Ok(handle) => reply.opened(handle, self.fopen_flags()),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        if let Some(errno) = self.trouble(Call::Create, name) {
            return reply.error(errno);
        }
        let made = self.refuse_direct(flags).and_then(|()| {
            let path = self.inodes.child(parent, name)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(mode & !umask & 0o7777);
            if flags & libc::O_EXCL != 0 {
                options.create_new(true);
            } else {
                options.create(true).truncate(flags & libc::O_TRUNC != 0);
            }
            let file = self.renaming(Some(&path), || options.open(&path))?;
            let attr = self.adopt(req, parent, name)?;
            if flags & libc::O_TRUNC != 0 {
                self.noted(|ledger| ledger.map(|ledger| ledger.resized(attr.ino.0, 0)));
            }
            Ok((attr, self.handle(file, name)))
        });
        match made {
            Ok((attr, handle)) => {
                reply.created(&TTL, &attr, Generation(0), handle, self.fopen_flags());
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(errno) = self.trouble_at(Call::Read, fh) {
            return reply.error(errno);
        }
        match self.try_read(fh, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some(errno) = self.trouble_writing(fh, data.len()) {
            return reply.error(errno);
        }
        match self.try_write(ino, fh, offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        if let Some(errno) = self.trouble_at(Call::Flush, fh) {
            return reply.error(errno);
        }
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.lock().unwrap().remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        if let Some(errno) = self.trouble_at(Call::Fsync, fh) {
            return reply.error(errno);
        }
        empty(reply, self.sync(ino, fh, datasync));
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync_dir(ino));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if let Some(errno) = self.trouble_with(Call::OpenDir, ino) {
            return reply.error(errno);
        }
        match self.inodes.get(ino) {
            Ok(_) => {
                let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
                reply.opened(FileHandle(number), FopenFlags::empty());
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if let Some(errno) = self.trouble_with(Call::ReadDir, ino) {
            return reply.error(errno);
        }
        if offset == 0 {
            thread::sleep(Duration::from_millis(self.faults.list_delay_ms));
        }
        let entries = match self.listing(ino, fh) {
            Ok(entries) => entries,
            Err(error) => return reply.error(Errno::from(error)),
        };
        let skipped = usize::try_from(offset).unwrap();
        for (next, (ino, kind, name)) in (offset + 1..).zip(entries.iter().skip(skipped)) {
            if reply.add(*ino, next, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().unwrap().remove(&fh.0);
        reply.ok();
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if let Some(errno) = self.trouble_with(Call::SetXattr, ino) {
            return reply.error(errno);
        }
        let path = self.attributed(ino, Some(name));
        empty(reply, path.and_then(|path| sys::set_xattr_through(&path, name, value, flags)));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let path = self.attributed(ino, Some(name));
        sized(reply, size, path.and_then(|path| sys::get_xattr_through(&path, name)));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let path = self.attributed(ino, None);
        sized(reply, size, path.and_then(|path| sys::list_xattrs_through(&path)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let path = self.attributed(ino, Some(name));
        empty(reply, path.and_then(|path| sys::remove_xattr_through(&path, name)));
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.seek(fh, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let Ok(s) = statvfs(&self.root) else {
            return reply.error(Errno::EIO);
        };
        let block = u32::try_from(s.block_size()).unwrap_or(4096);
        let free = (s.blocks_free(), s.blocks_available());
        reply.statfs(s.blocks(), free.0, free.1, s.files(), s.files_free(), block, 255, block);
    }
}
