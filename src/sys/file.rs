//! Files: opening, creating, moving bytes directly or through the page cache.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, RenameFlags, fcntl, open, openat, renameat, renameat2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
    fstatfs,
};
use nix::sys::statvfs::{Statvfs, fstatvfs, statvfs};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{SysconfVar, UnlinkatFlags, Whence, fdatasync, fsync, ftruncate, lseek64, syncfs, sysconf, unlinkat};

use super::meta::{path_of, statx};
use super::{Buffer, Meta, open_dir_at};
use crate::types::Call;

/// Never through a symbolic link, never waiting for a fifo's other end, never a terminal.
const FILE_FLAGS: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// How sources are opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Through symbolic links.
    pub follow: bool,
    /// Without a trace in the access time, where this user may.
    pub noatime: bool,
}

impl Reading {
    /// Opens `name` in `dir` with these flags and those of this reading.
    pub(super) fn open(self, dir: BorrowedFd<'_>, name: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = if self.follow { flags.difference(OFlag::O_NOFOLLOW) } else { flags };
        if self.noatime {
            match openat(dir, name, flags | OFlag::O_NOATIME, Mode::empty()) {
                Err(err) if Call::OpenNoAtime.allows(err) => {}
                opened => return opened,
            }
        }
        openat(dir, name, flags, Mode::empty())
    }
}

/// Opens a file for reading.
///
/// # Errors
/// Those of open(2); a symbolic link that is not followed is `ELOOP`.
pub fn open_read(dir: BorrowedFd<'_>, name: &[u8], how: Reading) -> Result<OwnedFd, Errno> {
    how.open(dir, name, OFlag::O_RDONLY | FILE_FLAGS)
}

/// Opens a file that is held for reading.
///
/// # Errors
/// Those of open(2); `ENOENT` where there is no /proc to reach it by.
pub fn reopen(held: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open(path_of(held).as_c_str(), OFlag::O_RDONLY | FILE_FLAGS.difference(OFlag::O_NOFOLLOW), Mode::empty())
}

/// Opens a file that is there for writing.
///
/// # Errors
/// Those of open(2); a symbolic link is `ELOOP`.
pub fn open_write(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlag::O_WRONLY | FILE_FLAGS, Mode::empty())
}

/// Creates a file with these permission bits; `EEXIST` when the name is taken.
///
/// # Errors
/// Those of open(2).
pub fn create_new(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | FILE_FLAGS, Mode::from_bits_truncate(mode))
}

/// Sets the length in bytes; what is beyond the old one is a hole.
///
/// # Errors
/// Those of ftruncate(2).
pub fn set_len(fd: BorrowedFd<'_>, len: u64) -> Result<(), Errno> {
    ftruncate(fd, i64::try_from(len).map_err(|_| Errno::EFBIG)?)
}

/// Removes a name that is not a directory.
///
/// # Errors
/// Those of unlinkat(2).
pub fn remove_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)
}

/// Gives a name in `dir` another name there, in place of what has it.
///
/// # Errors
/// Those of renameat(2).
pub fn rename(dir: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> Result<(), Errno> {
    renameat(dir, from, dir, to)
}

/// Gives a name in one directory another name in a second one, in place of what has it there.
///
/// # Errors
/// Those of renameat(2).
pub fn move_entry(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    renameat(from.0, from.1, to.0, to.1)
}

/// The same where the name is not taken; `EEXIST` when it is.
///
/// # Errors
/// Those of renameat2(2).
pub fn rename_new(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    if try_rename_new(from, to)? {
        return Ok(());
    }
    // a file system without it: somebody may take the name between the two calls
    match Meta::at(to.0, to.1) {
        Ok(_) => Err(Errno::EEXIST),
        Err(Errno::ENOENT) => move_entry(from, to),
        Err(err) => Err(err),
    }
}

/// [`rename_new`] for a name that nobody may take meanwhile: on a file system without such a rename, an empty file takes it
/// first.
///
/// # Errors
/// Those of renameat2(2) and of creating the file; `EEXIST` when the name is taken.
pub fn rename_reserving(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    if try_rename_new(from, to)? {
        return Ok(());
    }
    close(create_new(to.0, to.1, 0o600)?)?;
    move_entry(from, to).inspect_err(|_| {
        let _ = remove_file(to.0, to.1);
    })
}

/// `false`: the file system cannot do it.
fn try_rename_new(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<bool, Errno> {
    match renameat2(from.0, from.1, to.0, to.1, RenameFlags::RENAME_NOREPLACE) {
        Err(err) if Call::RenameFlags.allows(err) => Ok(false),
        renamed => renamed.map(|()| true),
    }
}

/// What became of locking a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    Yes,
    ByOther,
    /// The file system has no locks.
    CannotTell,
}

/// Locks a file against other processes, as long as the descriptor is open.
///
/// # Errors
/// Those of fcntl(2) that do not mean that there are no locks.
pub fn lock_file(fd: BorrowedFd<'_>) -> Result<Locked, Errno> {
    let whole = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).expect("a small constant"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("a small constant"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(Locked::Yes),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(Locked::ByOther),
        Err(err) if Call::Lock.allows(err) => Ok(Locked::CannotTell),
        Err(err) => Err(err),
    }
}

/// Closes, and says what closing brought to light (NFS, FUSE and quotas report here).
///
/// # Errors
/// Those of close(2).
pub fn close(fd: OwnedFd) -> Result<(), Errno> {
    match nix::unistd::close(fd) {
        // Linux has closed the descriptor all the same
        Err(Errno::EINTR) => Ok(()),
        closed => closed,
    }
}

/// Makes the data and metadata of one file durable.
///
/// # Errors
/// Those of fsync(2).
pub fn sync_file(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    fsync(fd)
}

/// Makes the names in a directory and its own metadata durable. Not every FUSE file system can sync a directory; those that
/// cannot keep names on their own.
///
/// # Errors
/// Those of open(2), and those of fsync(2) that do not mean this.
pub fn sync_dir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    // the given one may be good for reaching entries only
    sync_open_dir(open_dir_at(dir, b".", Reading::default())?.as_fd())
}

/// The same for a directory that is open to be changed.
///
/// # Errors
/// Those of fsync(2) that do not mean this.
pub fn sync_open_dir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    match fsync(dir) {
        Err(err) if Call::SyncDir.allows(err) => Ok(()),
        synced => synced,
    }
}

/// Makes the data of one file durable, and of its metadata what is needed to read it.
///
/// # Errors
/// Those of fdatasync(2).
pub fn sync_data(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    fdatasync(fd)
}

/// Makes all that this node wrote to the file system of `fd` durable. Errors of writing back since
/// `fd` was opened are reported.
///
/// # Errors
/// Those of syncfs(2).
pub fn sync_file_system(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    syncfs(fd)
}

/// Bytes of the file system of `path` that an ordinary user may still write, and that are in use.
///
/// # Errors
/// Those of statvfs(3).
pub fn space(path: &Path) -> Result<(u64, u64), Errno> {
    let found = statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok((bytes(found.blocks_available()), bytes(found.blocks().saturating_sub(found.blocks_free()))))
}

/// What a write failed with whose error nobody has seen: want of space, where the file system has less than its `len` bytes,
/// else `EIO`.
pub fn errno_of_lost_write(fd: BorrowedFd<'_>, len: u64) -> Errno {
    let left = |found: Statvfs| found.blocks_available().saturating_mul(found.fragment_size());
    if fstatvfs(fd).is_ok_and(|found| left(found) < len) { Errno::ENOSPC } else { Errno::EIO }
}

/// statfs(2): FUSE, NFS, CIFS, SMB, SMB2, 9P, Ceph.
const REMOTE: [i64; 7] = [0x6573_5546, 0x6969, 0xff53_4d42, 0x517b, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400];

/// statfs(2): ext2 to ext4, XFS, btrfs, tmpfs, ramfs, F2FS, ZFS, bcachefs.
const KEEPING: [i64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x8584_58f6, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// Whether a file system is known to keep owner, mode, times and attributes, or to answer with an error. Others take some
/// without an error, and have something else afterwards (exFAT, NTFS, rclone).
///
/// # Errors
/// Those of fstatfs(2).
pub fn keeps_metadata(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(KEEPING.contains(&fstatfs(fd)?.filesystem_type().0))
}

/// Whether [`sync_file_system`] reaches the storage: not over FUSE and network file systems,
/// where only fsync of each file does.
///
/// # Errors
/// Those of fstatfs(2).
pub fn syncfs_reaches(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(!REMOTE.contains(&fstatfs(fd)?.filesystem_type().0))
}

/// The next bytes that are not a hole, from `from` to below `end`: offset and end, rounded outwards to
/// 4096. Both are `end` when the rest is a hole; everything counts as data where the file system cannot tell.
///
/// # Errors
/// Those of lseek(2).
pub fn next_data(fd: BorrowedFd<'_>, from: u64, end: u64) -> Result<(u64, u64), Errno> {
    const PAGE: u64 = 4096;
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EFBIG)?;
        lseek64(fd, at, whence).map(|found| u64::try_from(found).unwrap_or(0))
    };
    let start = match seek(from, Whence::SeekData) {
        Ok(start) if start >= end => return Ok((end, end)),
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok((end, end)),
        Err(err) if Call::SeekHoles.allows(err) => return Ok((from, end)),
        Err(err) => return Err(err),
    };
    let stop = match seek(start, Whence::SeekHole) {
        Ok(stop) => stop,
        // the file has shrunk meanwhile: reading will show it
        Err(Errno::ENXIO) => end,
        Err(err) => return Err(err),
    };
    // a file system that answers with no progress must not hold the rank
    let stop = if stop <= start { end } else { stop };
    let start = (start / PAGE * PAGE).max(from);
    Ok((start, stop.div_ceil(PAGE).saturating_mul(PAGE).min(end)))
}

/// Whether all of these bytes, from the start of a page, are in the page cache. No where the kernel cannot tell (before Linux 6.5), or does not tell
/// this user.
fn is_cached(fd: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
    // no function of the C library, but it says nothing of file systems that interception libraries know of; the number is
    // the same on every architecture
    const SYS_CACHESTAT: libc::c_long = 451;
    // cachestat(2): offset and length; pages in the cache, dirty, being written back, evicted, evicted lately
    let (range, mut found) = ([offset, len as u64], [0_u64; 5]);
    // SAFETY: the kernel reads two and writes five numbers, which live until it returns
    let told = unsafe { libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) };
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|len| u64::try_from(len).ok());
    told == 0 && page.is_some_and(|page| found[0] >= (len as u64).div_ceil(page))
}

/// One side of a copy: a file, moved with `O_DIRECT` where that works and through the page cache
/// for the rest.
pub struct End {
    plain: OwnedFd,
    direct: Option<Direct>,
    /// `plain` goes past the page cache too, and takes any offset and length.
    plain_is_direct: bool,
}

struct Direct {
    fd: OwnedFd,
    /// Bytes; offsets and lengths are multiples of it.
    align: usize,
    /// What the page cache has is read from there.
    prefers_cache: bool,
}

impl End {
    /// Through the page cache only.
    pub fn buffered(plain: OwnedFd) -> Self {
        Self { plain, direct: None, plain_is_direct: false }
    }

    /// Opens a source for direct I/O: by one descriptor where that takes any offset and length, as FUSE does, else by two.
    ///
    /// # Errors
    /// Those of open(2) without `O_DIRECT`.
    pub fn open_source(dir: BorrowedFd<'_>, name: &[u8], how: Reading) -> Result<Self, Errno> {
        let direct = how.open(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECT | FILE_FLAGS);
        Self::one_or_two(direct, || open_read(dir, name, how))
    }

    /// The same for a destination that is there.
    ///
    /// # Errors
    /// As [`Self::open_source`].
    pub fn open_destination(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        let flags = OFlag::O_WRONLY | OFlag::O_DIRECT | FILE_FLAGS;
        Self::one_or_two(openat(dir, name, flags, Mode::empty()), || open_write(dir, name))
    }

    fn one_or_two(
        direct: Result<OwnedFd, Errno>,
        open_plain: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<Self, Errno> {
        match direct {
            // the bytes go to the server as they are, aligned or not
            Ok(fd) if is_on_fuse(fd.as_fd()) => Ok(Self { plain: fd, direct: None, plain_is_direct: true }),
            direct => Ok(Self::direct(open_plain()?, direct)),
        }
    }

    /// A source, with a second, direct descriptor of the same file, opened by its name: DAOS's interception
    /// gives up on a descriptor whose flags are changed. A file system that refuses, or a name
    /// that leads elsewhere by now, leaves the page cache.
    pub fn direct_source(plain: OwnedFd, dir: BorrowedFd<'_>, name: &[u8], how: Reading) -> Self {
        Self::direct(plain, how.open(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECT | FILE_FLAGS))
    }

    /// The same for a destination.
    pub fn direct_destination(plain: OwnedFd, dir: BorrowedFd<'_>, name: &[u8]) -> Self {
        Self::direct(plain, openat(dir, name, OFlag::O_WRONLY | OFlag::O_DIRECT | FILE_FLAGS, Mode::empty()))
    }

    fn direct(plain: OwnedFd, direct: Result<OwnedFd, Errno>) -> Self {
        let direct = direct.ok().and_then(|fd| {
            let align = direct_alignment(fd.as_fd())?;
            let (a, b) = (super::Meta::of(&plain).ok()?, super::Meta::of(&fd).ok()?);
            ((a.dev, a.ino) == (b.dev, b.ino)).then_some(Direct { fd, align, prefers_cache: false })
        });
        Self { plain, direct, plain_is_direct: false }
    }

    /// Reads blocks that are in memory from there and not from the disk, nor makes the kernel write them there first: on
    /// file systems of this node alone, where what is in memory is what is in the file. Shows nothing of the disk.
    pub fn preferring_cache(mut self) -> Self {
        const LOCAL: [FsType; 3] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];
        if let Some(direct) = &mut self.direct {
            direct.prefers_cache = file_system_of(direct.fd.as_fd()).is_ok_and(|fs| LOCAL.contains(&fs));
        }
        self
    }

    /// Whether whole blocks go past the page cache, as far as is known by now.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() || self.plain_is_direct
    }

    /// The descriptor that takes any offset and length; through the page cache, unless it is the only one.
    pub fn plain(&self) -> BorrowedFd<'_> {
        self.plain.as_fd()
    }

    /// Reads `len` bytes at `offset`, or fewer where the file ends. `buffer` has room for `len`
    /// rounded up to [`Buffer::ALIGN`].
    ///
    /// # Errors
    /// Those of pread(2); interruptions and short reads are handled here.
    pub fn read(&mut self, buffer: &mut Buffer, len: usize, offset: u64) -> Result<usize, Errno> {
        let mut got = 0;
        let from_memory = |direct: &Direct| direct.prefers_cache && is_cached(self.plain.as_fd(), offset, len);
        let usable = |direct: &&Direct| is_aligned(offset, direct.align) && !from_memory(direct);
        if let Some(direct) = self.direct.as_ref().filter(usable) {
            let (fd, align) = (&direct.fd, direct.align);
            let whole = len.next_multiple_of(align);
            while got < len && got.is_multiple_of(align) {
                match retry(|| pread(fd, &mut buffer[got..whole], file_offset(offset, got)?)) {
                    Ok(0) => return Ok(got),
                    Ok(n) => got += n,
                    Err(Errno::EINVAL) => {
                        self.direct = None;
                        break;
                    }
                    Err(err) => return Err(err),
                }
            }
            got = got.min(len);
        }
        while got < len {
            match retry(|| pread(&self.plain, &mut buffer[got..len], file_offset(offset, got)?)) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(Errno::EINVAL) if self.plain_is_direct => self.open_plain(OFlag::O_RDONLY)?,
                Err(err) => return Err(err),
            }
        }
        Ok(got)
    }

    /// Writes `bytes`, whose memory is aligned to [`Buffer::ALIGN`], at `offset`.
    ///
    /// # Errors
    /// Those of pwrite(2); interruptions and short writes are handled here.
    pub fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        let len = bytes.len();
        let mut done = 0;
        if let Some(direct) = self.direct.as_ref().filter(|direct| is_aligned(offset, direct.align)) {
            let (fd, align) = (&direct.fd, direct.align);
            let whole = len - len % align;
            while done < whole && done.is_multiple_of(align) {
                match retry(|| pwrite(fd, &bytes[done..whole], file_offset(offset, done)?)) {
                    Ok(0) => return Err(Errno::EIO),
                    Ok(n) => done += n,
                    Err(Errno::EINVAL) => {
                        self.direct = None;
                        break;
                    }
                    Err(err) => return Err(err),
                }
            }
        }
        while done < len {
            match retry(|| pwrite(&self.plain, &bytes[done..len], file_offset(offset, done)?)) {
                Ok(0) => return Err(Errno::EIO),
                Ok(n) => done += n,
                Err(Errno::EINVAL) if self.plain_is_direct => self.open_plain(OFlag::O_WRONLY)?,
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Opens the file again without `O_DIRECT`: a server that hands the flag on takes only what its own storage takes.
    fn open_plain(&mut self, access: OFlag) -> Result<(), Errno> {
        let flags = FILE_FLAGS.difference(OFlag::O_NOFOLLOW) | access;
        let plain = open(path_of(self.plain.as_fd()).as_c_str(), flags, Mode::empty())?;
        self.plain_is_direct = false;
        close(std::mem::replace(&mut self.plain, plain))
    }

    /// Brings to light what closing would (NFS, FUSE and quotas report there), and leaves the file open: to be asked before
    /// it gets its name.
    ///
    /// # Errors
    /// Those of close(2).
    pub fn flush(&self) -> Result<(), Errno> {
        let direct = self.direct.as_ref().map(|direct| direct.fd.as_fd());
        direct.into_iter().chain([self.plain.as_fd()]).try_for_each(|fd| {
            let again =
                fd.try_clone_to_owned().map_err(|err| err.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
            close(again)
        })
    }

    /// Closes the second descriptor, if there is one.
    ///
    /// # Errors
    /// Those of close(2).
    pub fn close_direct(&mut self) -> Result<(), Errno> {
        self.direct.take().map_or(Ok(()), |direct| close(direct.fd))
    }

    /// Closes both descriptors.
    ///
    /// # Errors
    /// Those of close(2).
    pub fn close(self) -> Result<(), Errno> {
        let direct = self.direct.map_or(Ok(()), |direct| close(direct.fd));
        close(self.plain).and(direct)
    }
}

/// What `O_DIRECT` wants of this file in bytes; `None` where it cannot be had. File systems that do not
/// say (only ext4, XFS and few others do) get 4096, the buffers' own alignment.
fn direct_alignment(fd: BorrowedFd<'_>) -> Option<usize> {
    let asked = statx(fd, 0, libc::STATX_DIOALIGN).ok();
    let Some(st) = asked.filter(|st| st.stx_mask & libc::STATX_DIOALIGN != 0) else {
        // tmpfs takes the flag, and is a page cache all the same
        let in_memory = file_system_of(fd).is_ok_and(|fs| fs == TMPFS_MAGIC);
        return (!in_memory).then_some(Buffer::ALIGN);
    };
    let align = usize::try_from(st.stx_dio_offset_align.max(st.stx_dio_mem_align)).ok()?;
    (st.stx_dio_offset_align > 0 && Buffer::ALIGN.is_multiple_of(align)).then_some(align)
}

/// Whether a file is on a file system in user space, as far as is known.
pub fn is_on_fuse(fd: BorrowedFd<'_>) -> bool {
    file_system_of(fd).is_ok_and(|fs| fs == FUSE_SUPER_MAGIC)
}

/// Whether a file is on a file system whose calls a server carries out, as far as is known: over FUSE or a network.
pub fn is_on_server(fd: BorrowedFd<'_>) -> bool {
    file_system_of(fd).is_ok_and(|fs| REMOTE.contains(&fs.0))
}

/// Whether an open file is on overlayfs or FUSE, which may show entries of several file systems.
pub(super) fn is_in_union(fd: BorrowedFd<'_>) -> bool {
    file_system_of(fd).is_ok_and(|fs| [OVERLAYFS_SUPER_MAGIC, FUSE_SUPER_MAGIC].contains(&fs))
}

/// Whether the file system of an open file may have project ids: not tmpfs and btrfs.
pub(super) fn may_have_projects(fd: BorrowedFd<'_>) -> bool {
    file_system_of(fd).is_ok_and(|fs| ![TMPFS_MAGIC, BTRFS_SUPER_MAGIC].contains(&fs))
}

/// The type of the file system that an open file is on. Asked once a device: for some it is a request to a server.
fn file_system_of(fd: BorrowedFd<'_>) -> Result<FsType, Errno> {
    static KNOWN: Mutex<BTreeMap<(u32, u32), FsType>> = Mutex::new(BTreeMap::new());
    // the device is known without asking a server
    let st = statx(fd, libc::AT_STATX_DONT_SYNC, 0)?;
    let dev = (st.stx_dev_major, st.stx_dev_minor);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known().get(&dev) {
        return Ok(*found);
    }
    let found = fstatfs(fd)?.filesystem_type();
    known().insert(dev, found);
    Ok(found)
}

fn is_aligned(offset: u64, align: usize) -> bool {
    offset.is_multiple_of(align as u64)
}

fn file_offset(offset: u64, done: usize) -> Result<i64, Errno> {
    i64::try_from(offset + done as u64).map_err(|_| Errno::EFBIG)
}

/// Repeats a call that a signal interrupted. Bounded, so that a stream of signals cannot hold a rank.
fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    for _ in 0..1000 {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
    Err(Errno::EINTR)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::open_root;

    #[test]
    fn what_is_in_the_page_cache_is_told_from_what_is_not() {
        // on a disk: a file system in memory is nothing but page cache
        let base = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let dir = open_root(base.path()).expect("opens");
        fs::write(base.path().join("a"), [1; 3 * 4096 + 1]).expect("written");
        let file = open_read(dir.as_fd(), b"a", Reading::default()).expect("opens");
        if direct_alignment(file.as_fd()).is_none() || !is_cached(file.as_fd(), 0, 3 * 4096 + 1) {
            println!("SKIP: no disk here, or a kernel that does not tell what is in the page cache");
            return;
        }
        assert!(is_cached(file.as_fd(), 4096, 4096) && !is_cached(file.as_fd(), 4096, 5 * 4096));
        sync_file(file.as_fd()).expect("synced");
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("dropped");
        assert!(!is_cached(file.as_fd(), 0, 3 * 4096 + 1));
    }

    #[test]
    fn every_length_around_a_page_is_exact_directly_and_buffered() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = open_root(base.path()).expect("opens");
        let mut buffer = Buffer::new(16384);
        for len in [0usize, 1, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193] {
            for direct in [false, true] {
                let data: Vec<u8> = (0..len).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
                fs::write(base.path().join("a"), &data).expect("written");
                let _ = fs::remove_file(base.path().join("b"));
                let from = open_read(dir.as_fd(), b"a", Reading::default()).expect("opens");
                let to = create_new(dir.as_fd(), b"b", 0o600).expect("created");
                let (mut from, mut to) = if direct {
                    let from = End::direct_source(from, dir.as_fd(), b"a", Reading::default());
                    (from, End::direct_destination(to, dir.as_fd(), b"b"))
                } else {
                    (End::buffered(from), End::buffered(to))
                };
                assert_eq!(from.read(&mut buffer, len, 0), Ok(len));
                to.write(&buffer[..len], 0).expect("written");
                to.close().expect("closed");
                assert_eq!(fs::read(base.path().join("b")).expect("read"), data, "{len} direct {direct}");
            }
        }
    }

    #[test]
    fn a_read_beyond_the_end_is_short_and_not_an_error() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = open_root(base.path()).expect("opens");
        fs::write(base.path().join("a"), vec![1; 5000]).expect("written");
        let mut buffer = Buffer::new(16384);
        let how = Reading::default();
        let from = open_read(dir.as_fd(), b"a", how).expect("opens");
        assert_eq!(End::buffered(from).read(&mut buffer, 9000, 0), Ok(5000));
        let from = open_read(dir.as_fd(), b"a", how).expect("opens");
        assert_eq!(End::direct_source(from, dir.as_fd(), b"a", how).read(&mut buffer, 9000, 4096), Ok(904));
    }

    #[test]
    fn holes_are_found_and_data_is_never_one() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(10 << 20).expect("sized");
        file.write_all_at(&[1; 10], (5 << 20) + 7).expect("written");
        let (start, stop) = next_data(file.as_fd(), 0, 10 << 20).expect("sought");
        assert!(start <= (5 << 20) + 7 && stop >= (5 << 20) + 17, "{start} {stop}");
        assert_eq!(next_data(file.as_fd(), 0, 4096).expect("sought").1, 4096);
    }

    #[test]
    fn a_fifo_does_not_wait_and_a_link_is_not_followed() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = open_root(base.path()).expect("opens");
        nix::unistd::mkfifo(&base.path().join("fifo"), Mode::S_IRUSR).expect("made");
        std::os::unix::fs::symlink("fifo", base.path().join("link")).expect("linked");
        let how = Reading { follow: false, noatime: true };
        assert!(open_read(dir.as_fd(), b"fifo", how).is_ok());
        assert_eq!(open_read(dir.as_fd(), b"link", how).map(drop), Err(Errno::ELOOP));
        assert!(open_read(dir.as_fd(), b"link", Reading { follow: true, ..how }).is_ok());
        assert_eq!(create_new(dir.as_fd(), b"link", 0o600).map(drop), Err(Errno::EEXIST));
    }
}
