//! The FUSE requests, each a few lines over the passthrough.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::{AT_FDCWD, AtFlags, readlinkat, renameat2};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::statvfs::statvfs;
use nix::unistd::linkat;

use super::passthrough::{Change, Passthrough};
use super::trouble::Call;
use crate::support::sys;

/// What is told of a name that is not there.
const MISSING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

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

impl Passthrough {
    fn entry(&self, reply: ReplyEntry, result: io::Result<FileAttr>) {
        match result {
            Ok(attr) => {
                reply.entry_with_ttls(&self.attributes_ttl(attr.ino), &self.names_ttl(), &attr, Generation(0));
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn attr(&self, reply: ReplyAttr, result: io::Result<FileAttr>) {
        match result {
            Ok(attr) => reply.attr(&self.attributes_ttl(attr.ino), &self.shown(attr)),
            Err(error) => reply.error(Errno::from(error)),
        }
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.dfuse.is_some() {
            // what a kernel does not have it does not ask for
            let wanted =
                InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO | InitFlags::FUSE_HAS_IOCTL_DIR;
            let _ = config.add_capabilities(wanted);
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(req, "lookup");
        if let Some(errno) = self.trouble(Call::Lookup, name) {
            return reply.error(errno);
        }
        let found = self.look_up(parent, name);
        match (&found, self.missing_ttl()) {
            (Err(error), Some(ttl)) if error.kind() == io::ErrorKind::NotFound => {
                // inode number 0: the kernel remembers that there is nothing
                let nothing = FileAttr { ino: INodeNo(0), ..MISSING };
                reply.entry(&ttl, &nothing, Generation(0));
            }
            _ => self.entry(reply, found),
        }
    }

    fn forget(&self, req: &Request, ino: INodeNo, lookups: u64) {
        self.count(req, "forget");
        self.inodes.forget(ino, lookups);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(req, "getattr");
        if let Some(errno) = self.trouble_with(Call::GetAttr, ino) {
            return reply.error(errno);
        }
        self.attr(reply, self.inodes.attributes(ino));
    }

    fn setattr(
        &self,
        req: &Request,
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
        self.count(req, "setattr");
        if let Some(errno) = self.trouble_with(Call::SetAttr, ino) {
            return reply.error(errno);
        }
        self.attr(reply, self.change(ino, &Change { mode, uid, gid, size, atime, mtime }));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(req, "readlink");
        let target = self.inodes.get(ino).and_then(|inode| Ok(readlinkat(&inode.file, "")?));
        match target {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        self.count(req, "mknod");
        if let Some(errno) = self.trouble(Call::MakeOther, name) {
            return reply.error(errno);
        }
        if self.faults.refuse_mknod {
            return reply.error(Errno::ENOSYS);
        }
        if self.dfuse.is_some() && mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EINVAL);
        }
        self.changing(parent);
        let (kind, perm) = (mode & libc::S_IFMT, mode & !libc::S_IFMT & !umask);
        let made = self.inodes.child(parent, name).and_then(|path| {
            let (kind, perm) = (SFlag::from_bits_truncate(kind), Mode::from_bits_truncate(perm));
            self.renaming(Some(&path), || Ok(mknod(&path, kind, perm, u64::from(rdev))?))
        });
        self.entry(reply, made.and_then(|()| self.adopt(req, parent, name)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.count(req, "mkdir");
        if let Some(errno) = self.trouble(Call::MakeDir, name) {
            return reply.error(errno);
        }
        self.changing(parent);
        let mode = self.created_mode(req, parent, mode & !umask & 0o7777);
        let made = self.inodes.child(parent, name).and_then(|path| {
            self.renaming(Some(&path), || fs::DirBuilder::new().mode(mode).create(&path))?;
            if self.dfuse.is_some() { fs::set_permissions(&path, fs::Permissions::from_mode(mode)) } else { Ok(()) }
        });
        self.entry(reply, made.and_then(|()| self.adopt(req, parent, name)));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(req, "unlink");
        if let Some(errno) = self.trouble(Call::Remove, name) {
            return reply.error(errno);
        }
        self.changing(parent);
        let path = self.inodes.child(parent, name);
        empty(reply, path.and_then(|path| self.renaming(None, || fs::remove_file(path))));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(req, "rmdir");
        if let Some(errno) = self.trouble(Call::Remove, name) {
            return reply.error(errno);
        }
        self.changing(parent);
        let path = self.inodes.child(parent, name);
        empty(reply, path.and_then(|path| self.renaming(None, || fs::remove_dir(path))));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.count(req, "symlink");
        if let Some(errno) = self.trouble(Call::MakeOther, name) {
            return reply.error(errno);
        }
        self.changing(parent);
        let path = self.inodes.child(parent, name);
        let made = path.and_then(|path| self.renaming(Some(&path), || symlink(target, &path)));
        self.entry(reply, made.and_then(|()| self.adopt(req, parent, name)));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(req, "rename");
        if let Some(errno) = self.trouble(Call::Rename, newname) {
            return reply.error(errno);
        }
        let noreplace = self.dfuse.is_some() && flags == RenameFlags::RENAME_NOREPLACE;
        if !flags.is_empty() && !noreplace {
            return reply.error(if self.dfuse.is_some() { Errno::ENOTSUP } else { Errno::EINVAL });
        }
        [parent, newparent].into_iter().for_each(|dir| self.changing(dir));
        let to = self.inodes.child(newparent, newname);
        let from = self.inodes.child(parent, name);
        let renamed = from.and_then(|from| {
            let flags =
                if noreplace { nix::fcntl::RenameFlags::RENAME_NOREPLACE } else { nix::fcntl::RenameFlags::empty() };
            self.renaming(None, || Ok(renameat2(AT_FDCWD, &from, AT_FDCWD, &to?, flags)?))
        });
        empty(reply, renamed.and_then(|()| self.was_renamed(newparent, newname)));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.count(req, "link");
        if let Some(errno) = self.trouble(Call::MakeOther, newname) {
            return reply.error(errno);
        }
        if self.faults.refuse_link {
            return reply.error(Errno::ENOSYS);
        }
        if self.dfuse.is_some() {
            return reply.error(Errno::EPERM);
        }
        let made = self.inodes.child(newparent, newname).and_then(|to| {
            let from = self.inodes.get(ino)?.path();
            self.renaming(None, || Ok(linkat(AT_FDCWD, &from, AT_FDCWD, &to, AtFlags::AT_SYMLINK_FOLLOW)?))
        });
        self.entry(reply, made.and_then(|()| self.look_up(newparent, newname)));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(req, "open");
        let call = if flags.acc_mode() == OpenAccMode::O_RDONLY { Call::Open } else { Call::OpenToWrite };
        if let Some(errno) = self.trouble_with(call, ino) {
            return reply.error(errno);
        }
        match self.try_open(ino, flags) {
            Ok(handle) => reply.opened(handle, self.fopen_flags(flags.0)),
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
        self.count(req, "create");
        if let Some(errno) = self.trouble(Call::Create, name) {
            return reply.error(errno);
        }
        let made = self.refuse_direct(flags).and_then(|()| {
            let path = self.inodes.child(parent, name)?;
            self.changing(parent);
            let mode = self.created_mode(req, parent, mode & !umask & 0o7777);
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(mode);
            if flags & libc::O_EXCL != 0 {
                options.create_new(true);
            } else {
                options.create(true).truncate(flags & libc::O_TRUNC != 0);
            }
            let file = self.renaming(Some(&path), || options.open(&path))?;
            if self.dfuse.is_some() && flags & libc::O_EXCL != 0 {
                // the mode as it was asked for, whatever this process's umask
                file.set_permissions(fs::Permissions::from_mode(mode))?;
            }
            let attr = self.adopt(req, parent, name)?;
            if flags & libc::O_TRUNC != 0 {
                self.noted(|ledger| ledger.map(|ledger| ledger.resized(attr.ino.0, 0)));
            }
            Ok((attr, self.handle(file, name, true, flags)))
        });
        match made {
            Ok((attr, handle)) => {
                reply.created(&self.names_ttl(), &attr, Generation(0), handle, self.fopen_flags(flags));
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(req, "read");
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
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(req, "write");
        if let Some(errno) = self.trouble_writing(fh, data.len()) {
            if self.loses_write_errors() {
                return reply.written(u32::try_from(data.len()).unwrap());
            }
            return reply.error(errno);
        }
        match self.try_write(ino, fh, offset, data) {
            Ok(written) => reply.written(written),
            Err(_) if self.loses_write_errors() => reply.written(u32::try_from(data.len()).unwrap()),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.count(req, "flush");
        if let Some(errno) = self.trouble_at(Call::Flush, fh) {
            return reply.error(errno);
        }
        reply.ok();
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(req, "release");
        self.files.lock().unwrap().remove(&fh.0);
        self.released(fh);
        reply.ok();
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(req, "fsync");
        if let Some(errno) = self.trouble_at(Call::Fsync, fh) {
            return reply.error(errno);
        }
        empty(reply, self.sync(ino, fh, datasync));
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.count(req, "fsyncdir");
        empty(reply, self.sync_dir(ino));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(req, "opendir");
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

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(req, "readdir");
        if let Some(errno) = self.trouble_with(Call::ReadDir, ino) {
            return reply.error(errno);
        }
        let entries = match self.listing(ino, fh, offset) {
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

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.count(req, "readdirplus");
        if let Some(errno) = self.trouble_with(Call::ReadDir, ino) {
            return reply.error(errno);
        }
        let entries = match self.listing(ino, fh, offset) {
            Ok(entries) => entries,
            Err(error) => return reply.error(Errno::from(error)),
        };
        let skipped = usize::try_from(offset).unwrap();
        for (next, (number, kind, name)) in (offset + 1..).zip(entries.iter().skip(skipped)) {
            let is_dots = name == "." || name == "..";
            // inode number 0: the kernel has to look the name up itself
            let nothing = FileAttr { ino: INodeNo(0), kind: *kind, ..MISSING };
            let attr =
                if is_dots { FileAttr { ino: *number, ..nothing } } else { self.look_up(ino, name).unwrap_or(nothing) };
            if reply.add(attr.ino, next, name, &self.names_ttl(), &attr, Generation(0)) {
                if !is_dots && attr.ino.0 != 0 {
                    self.inodes.forget(attr.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        _in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(req, "ioctl");
        match self.ioctl(ino, fh, cmd, out_size) {
            Ok(answer) => reply.ioctl(0, &answer),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn releasedir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.count(req, "releasedir");
        self.listings.lock().unwrap().remove(&fh.0);
        reply.ok();
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(req, "setxattr");
        if let Some(errno) = self.trouble_with(Call::SetXattr, ino) {
            return reply.error(errno);
        }
        let path = self.refuse_attribute(ino, name, value).and_then(|()| self.attributed(ino, Some(name)));
        empty(reply, path.and_then(|path| sys::set_xattr_through(&path, name, value, flags)));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(req, "getxattr");
        if let Some(own) = self.own_attribute(ino, name) {
            return sized(reply, size, own);
        }
        let path = self.attributed(ino, Some(name));
        sized(reply, size, path.and_then(|path| sys::get_xattr_through(&path, name)));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(req, "listxattr");
        let path = self.attributed(ino, None);
        let names = path.and_then(|path| sys::list_xattrs_through(&path));
        sized(reply, size, names.map(|names| self.listed_attributes(ino, names)));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(req, "removexattr");
        let path = self.attributed(ino, Some(name));
        let removed = match self.own_attribute(ino, name) {
            Some(own) => own.map(drop),
            None => path.and_then(|path| sys::remove_xattr_through(&path, name)),
        };
        empty(reply, self.of_removal(removed));
    }

    fn lseek(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.count(req, "lseek");
        match self.seek(fh, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(req, "statfs");
        let Ok(s) = statvfs(&self.root) else {
            return reply.error(Errno::EIO);
        };
        let block = u32::try_from(s.block_size()).unwrap_or(4096);
        let left = self.faults.control.room().map_or(u64::MAX, |bytes| bytes / u64::from(block));
        let free = (s.blocks_free().min(left), s.blocks_available().min(left));
        reply.statfs(s.blocks(), free.0, free.1, s.files(), s.files_free(), block, 255, block);
    }
}
