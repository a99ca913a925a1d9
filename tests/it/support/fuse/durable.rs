//! What a power cut leaves of the backing directory: everything that was made durable, and nothing else.
//!
//! | what | is durable after |
//! |---|---|
//! | bytes and length of a file | fsync or fdatasync of it |
//! | mode, owner, times of a file or directory | fsync of it |
//! | names in a directory (made, removed, renamed, linked) | fsync of the directory |
//! | symbolic links, fifos, devices, with their owner and times | fsync of the directory that has their name |
//!
//! A durable name of a file that was never synced itself leads to an empty file; one of a directory, to an empty directory.
//! A real file system keeps more than this by luck, never less by right.
//! Extended attributes are not kept, as the mount refuses them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::readlinkat;
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::support::tree::set_times;

/// The names of one directory, with their inodes.
type Names = BTreeMap<OsString, u64>;

/// What is durable of a backing directory that is served.
pub struct Ledger {
    root: u64,
    /// Durable bytes, a file an inode, named by its number.
    shadows: PathBuf,
    inodes: HashMap<u64, Inode>,
    /// Durable names, by the directory's inode.
    names: HashMap<u64, Names>,
}

struct Inode {
    /// Held, so that its number is not used again.
    file: File,
    /// As of the last sync, or of when it was first seen.
    meta: Metadata,
    /// Where bytes were written since the last sync.
    dirty: Vec<(u64, u64)>,
    /// The shortest that it was since the last sync.
    shortest: u64,
}

fn hold(path: &Path) -> io::Result<Inode> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    Ok(Inode { file, meta, dirty: Vec::new(), shortest: u64::MAX })
}

fn through(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

impl Ledger {
    /// Of a directory that is durable as it is; the bytes of files are kept in `shadows`.
    pub fn new(backing: &Path, shadows: &Path) -> io::Result<Ledger> {
        let top = hold(backing)?;
        let root = top.meta.ino();
        let mut ledger = Ledger { root, shadows: shadows.to_path_buf(), inodes: HashMap::new(), names: HashMap::new() };
        ledger.inodes.insert(root, top);
        ledger.adopt(root)?;
        Ok(ledger)
    }

    /// All that is in a directory is durable.
    fn adopt(&mut self, dir: u64) -> io::Result<()> {
        self.names_synced(dir)?;
        for inode in self.names[&dir].clone().into_values() {
            let kind = self.inodes[&inode].meta.file_type();
            if kind.is_file() {
                fs::copy(through(&self.inodes[&inode].file), self.shadow(inode))?;
            } else if kind.is_dir() {
                self.adopt(inode)?;
            }
        }
        Ok(())
    }

    fn shadow(&self, inode: u64) -> PathBuf {
        self.shadows.join(inode.to_string())
    }

    /// A name was made: its inode is known from now on, and not yet durable.
    pub fn made(&mut self, path: &Path) -> io::Result<()> {
        let inode = hold(path)?;
        self.inodes.entry(inode.meta.ino()).or_insert(inode);
        Ok(())
    }

    pub fn wrote(&mut self, inode: u64, offset: u64, len: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.dirty.push((offset, len));
        }
    }

    pub fn resized(&mut self, inode: u64, len: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.shortest = inode.shortest.min(len);
        }
    }

    /// The bytes and the length of a file become durable, and with `all` its metadata.
    pub fn synced(&mut self, number: u64, all: bool) -> io::Result<()> {
        let shadow = self.shadow(number);
        let Some(inode) = self.inodes.get_mut(&number) else { return Ok(()) };
        let live = File::open(through(&inode.file))?;
        let meta = live.metadata()?;
        let kept = OpenOptions::new().write(true).create(true).truncate(false).open(shadow)?;
        if kept.metadata()?.len() > inode.shortest {
            kept.set_len(inode.shortest)?;
        }
        kept.set_len(meta.len())?;
        for (offset, len) in inode.dirty.drain(..) {
            // What was cut off again has no bytes.
            let len = len.min(meta.len().saturating_sub(offset));
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            live.read_exact_at(&mut bytes, offset)?;
            kept.write_all_at(&bytes, offset)?;
        }
        inode.shortest = u64::MAX;
        if all {
            inode.meta = meta;
        }
        Ok(())
    }

    /// The names in a directory, and its metadata, become durable.
    pub fn names_synced(&mut self, dir: u64) -> io::Result<()> {
        let Some(inode) = self.inodes.get_mut(&dir) else { return Ok(()) };
        inode.meta = inode.file.metadata()?;
        let path = through(&inode.file);
        let mut names = Names::new();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if !self.inodes.contains_key(&entry.ino()) {
                self.made(&entry.path())?;
            }
            let child = self.inodes.get_mut(&entry.ino()).expect("known from now on");
            // These cannot be synced themselves.
            if !child.meta.is_file() && !child.meta.is_dir() {
                child.meta = child.file.metadata()?;
            }
            names.insert(entry.file_name(), entry.ino());
        }
        self.names.insert(dir, names);
        Ok(())
    }

    /// Builds what is durable as `to`, which must not exist. The ledger is used up.
    pub fn into_tree(self, to: &Path) -> io::Result<()> {
        self.build(self.root, to, &mut HashMap::new())
    }

    fn build(&self, number: u64, to: &Path, built: &mut HashMap<u64, PathBuf>) -> io::Result<()> {
        if let Some(first) = built.get(&number) {
            return fs::hard_link(first, to);
        }
        let inode = &self.inodes[&number];
        let kind = inode.meta.file_type();
        if kind.is_dir() {
            fs::create_dir(to)?;
            for (name, child) in self.names.get(&number).into_iter().flatten() {
                self.build(*child, &to.join(name), built)?;
            }
        } else if kind.is_file() {
            match fs::rename(self.shadow(number), to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(File::create_new(to)?),
                moved => moved?,
            }
        } else if kind.is_symlink() {
            symlink(readlinkat(&inode.file, "")?, to)?;
        } else {
            let kind = SFlag::from_bits_truncate(inode.meta.mode() & libc::S_IFMT);
            mknod(to, kind, Mode::empty(), inode.meta.rdev())?;
        }
        dress(to, &inode.meta)?;
        if !kind.is_dir() {
            built.insert(number, to.to_path_buf());
        }
        Ok(())
    }
}

fn dress(path: &Path, meta: &Metadata) -> io::Result<()> {
    lchown(path, Some(meta.uid()), Some(meta.gid()))?;
    if !meta.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    set_times(path, (meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()));
    Ok(())
}
