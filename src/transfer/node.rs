//! What a rank's node knows of the job: open roots, who runs it, what its file systems can do.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::sleep;
use std::time::Duration;

use nix::unistd::geteuid;

use super::flags::LooksAt;
use super::probe::LinkCalls;
use crate::guard::Guard;
use crate::policy::{Flags, XattrChoice};
use crate::proto::{Durability, Job, Source, Targets};
use crate::retry::Lag;
use crate::state::{is_marker, marker_name};
use crate::sys::{
    DirCache, Errno, Handle, Meta, Mounts, SeenXattrs, Unsynced, group_name, is_loaded, is_on_fuse, keeps_metadata,
    open_root, sync_file_system, syncfs_reaches, user_name,
};
use crate::types::{Kind, LinkId, Timestamp, escaped};

/// Opened once a rank, before anything is written, shared by its threads.
pub struct Node {
    pub(super) sources: Vec<NodeSource>,
    /// Devices of sources on local file systems: the kernel's cached metadata are current.
    local: HashSet<u64>,
    /// Devices of sources on which ACLs and capabilities may be there that are not listed.
    hiding_xattrs: HashSet<u64>,
    pub(super) targets: Targets,
    /// Opened before the first write, so that a later syncfs reports every error of writing back.
    pub(super) destination: Arc<OwnedFd>,
    /// Whether this process may give files away.
    pub(super) privileged: bool,
    synced_by: SyncedBy,
    /// What is longer than one request has to be read back: nobody hears of a write that fails late.
    may_lose_writes: bool,
    lag: Lag,
    /// Whether a time that was set may be another one afterwards.
    pub(super) coarse_times: bool,
    /// Where metadata that was set may not be kept: the attributes that were seen to be.
    doubted: Option<SeenXattrs>,
    pub(super) attributes: XattrChoice,
    guard: Arc<Guard>,
    /// Held by a thread that sets an access time back which it has changed.
    times: Mutex<()>,
    /// By the devices of the destination that were tried.
    link_calls: Mutex<HashMap<u64, LinkCalls>>,
    /// By device, for directories and others: the time that entries from before 1970 have, if it is not their own.
    old_times: Mutex<HashMap<(u64, bool), Option<Timestamp>>>,
    /// By device: whether its inode flags are looked at, and its project ids.
    flagged: RwLock<HashMap<u64, LooksAt>>,
    flags: Flags,
    /// Device and type of source entries whose attributes could be listed.
    have_xattrs: RwLock<HashSet<(u64, Option<Kind>)>>,
    /// Devices of sources whose blocks the destination cannot share.
    unshared: Mutex<HashSet<u64>>,
}

/// What makes durable what was written to the destination.
enum SyncedBy {
    /// syncfs, once a checkpoint and node.
    FileSystem,
    /// fsync of each file; of each directory once a checkpoint and rank.
    Each(Arc<Unsynced>),
    /// The file system itself: what it has taken is durable, at the latest when the file is closed.
    Itself,
}

pub(super) struct NodeSource {
    pub(super) dir: Arc<OwnedFd>,
    dev: u64,
    file_system: u64,
}

impl Node {
    /// Opens the job's directories as this node sees them.
    ///
    /// # Errors
    /// A sentence that names the path and the operation.
    pub fn open(job: &Arc<Job>) -> Result<Self, String> {
        let open = |path: &[u8]| {
            let shown = escaped(path);
            open_root(as_path(path)).map_err(|err| format!("{shown}: open: {}", err.desc()))
        };
        let mounts = Mounts::current();
        let (mut lag, mut from_dfuse) = (Lag::default(), false);
        let (mut sources, mut local, mut hiding_xattrs) = (Vec::new(), HashSet::new(), HashSet::new());
        for source in &job.sources {
            let dir = open(&source.dir)?;
            let is_local = is_local(&dir, &source.dir)?;
            lag.source |= !is_local;
            from_dfuse |= mounts.has_dfuse(as_path(&source.dir));
            let dev = Meta::of(&dir).map_err(|err| format!("{}: stat: {}", escaped(&source.dir), err.desc()))?.dev;
            let hides_xattrs = is_on_fuse(dir.as_fd()) && !mounts.is_dfuse(as_path(&source.dir));
            local.extend(is_local.then_some(dev));
            hiding_xattrs.extend(hides_xattrs.then_some(dev));
            sources.push(NodeSource { dir: Arc::new(dir), dev, file_system: source.file_system });
        }
        let destination = if job.policy.dry_run {
            open(&job.destination)?
        } else {
            open_marked(&job.destination, job.id, || open_root(as_path(&job.destination)))?
        };
        let shows_marker = |(source, root): (&Source, &NodeSource)| {
            let marker = || Meta::at(root.dir.as_fd(), &marker_name(job.id));
            source.single.is_none() && marker().is_ok_and(|there| is_marker(&there, job.maker))
        };
        if let Some((source, _)) = job.sources.iter().zip(&sources).find(|pair| shows_marker(*pair)) {
            let (source, copy) = (escaped(&source.dir), escaped(&job.destination));
            return Err(format!("{source}: and {copy} are the same directory on this node"));
        }
        let reaches = is_local(&destination, &job.destination)?;
        lag.destination = !reaches;
        let keeps = keeps_metadata(destination.as_fd());
        let keeps = keeps.map_err(|err| format!("{}: statfs: {}", escaped(&job.destination), err.desc()))?;
        // a file system mounted below the root is another one: syncfs of the root does not reach it
        let path = as_path(&job.destination);
        let other_mounts = mounts.below(path).next().is_some();
        let synced_by = match other_mounts {
            _ if job.tuning.durability == Durability::None => SyncedBy::Itself,
            // a write has reached the engine when it is answered, and dfuse waits for its own at close as it does at fsync
            false if mounts.is_dfuse(path) => SyncedBy::Itself,
            false if reaches => SyncedBy::FileSystem,
            _ => SyncedBy::Each(Arc::default()),
        };
        let euid = geteuid();
        let guard = Guard::new(job, euid.is_root(), (user_name, group_name));
        Ok(Self {
            sources,
            local,
            hiding_xattrs,
            targets: Targets::new(job),
            destination: Arc::new(destination),
            privileged: euid.is_root(),
            synced_by,
            // libioil writes past dfuse, and hears of errors; but of two containers in one job it takes one only
            may_lose_writes: mounts.has_dfuse(path) && (from_dfuse || !is_loaded(b"libioil.so")),
            lag,
            coarse_times: job.coarse_times || other_mounts,
            doubted: (other_mounts || !keeps).then(SeenXattrs::default),
            attributes: XattrChoice::new(&job.policy).map_err(|err| err.to_string())?,
            guard: Arc::new(guard.map_err(|err| err.to_string())?),
            times: Mutex::default(),
            link_calls: Mutex::default(),
            old_times: Mutex::default(),
            flagged: RwLock::default(),
            flags: job.policy.preserve.flags,
            have_xattrs: RwLock::default(),
            unshared: Mutex::default(),
        })
    }

    /// The open roots of the sources, by their numbers.
    pub fn source_dirs(&self) -> Vec<Arc<OwnedFd>> {
        self.sources.iter().map(|source| Arc::clone(&source.dir)).collect()
    }

    /// The current metadata of an open file of a source on the device `dev`. On a local file system fstat(2) gives them, which
    /// costs less than statx(2).
    ///
    /// # Errors
    /// Those of fstat(2) and statx(2).
    pub(super) fn meta_now(&self, file: BorrowedFd<'_>, dev: u64) -> Result<Meta, Errno> {
        if self.local.contains(&dev) { Meta::of(file) } else { Meta::of_now(file) }
    }

    /// Whether entries on this device may have ACLs and capabilities that are not listed.
    pub(super) fn hides_xattrs(&self, dev: u64) -> bool {
        self.hiding_xattrs.contains(&dev)
    }

    /// The destination's root.
    pub fn destination(&self) -> &Arc<OwnedFd> {
        &self.destination
    }

    /// What it knows of owners.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// Makes durable what this node has written to the destination; where files are synced one by one, what this rank has
    /// changed in directories.
    ///
    /// # Errors
    /// Those of syncfs(2), also of what was written back since the root was opened; those of [`Unsynced::sync`].
    pub fn sync(&self) -> Result<(), Errno> {
        match &self.synced_by {
            SyncedBy::FileSystem => sync_file_system(self.destination.as_fd()),
            SyncedBy::Each(unsynced) => unsynced.sync(&mut DirCache::new(vec![Arc::clone(&self.destination)], 16)),
            SyncedBy::Itself => Ok(()),
        }
    }

    /// Whether a piece of this many bytes has to be read back after it was written. dfuse with its write-back cache answers
    /// a write before it is done; when it fails then, for want of space for one, fsync and close say nothing (seen on
    /// DAOS 2.6.5). The length of a file tells of its last write, unless it `has_length` without; of others nothing does.
    pub(super) fn reads_back(&self, len: u64, has_length: bool) -> bool {
        /// Bytes that one request to a FUSE server holds, at least.
        const ONE_WRITE: u64 = 128 << 10;
        self.may_lose_writes && len > 0 && (len > ONE_WRITE || has_length)
    }

    /// Whether a look at the destination is a request to a server.
    pub(super) fn asks_server(&self) -> bool {
        self.lag.destination
    }

    /// Whether metadata that was set may not be kept, though no call has failed.
    pub(super) fn doubts_metadata(&self) -> bool {
        self.doubted.is_some()
    }

    /// Where that is so: the attributes that were seen to be kept.
    pub(super) fn doubted_xattrs(&self) -> Option<&SeenXattrs> {
        self.doubted.as_ref()
    }

    /// Where a name that another node has made may not be known yet.
    pub fn lag(&self) -> Lag {
        self.lag
    }

    /// The directories that are yet to be made durable, where that is done one by one.
    pub fn unsynced(&self) -> Option<&Arc<Unsynced>> {
        match &self.synced_by {
            SyncedBy::Each(unsynced) => Some(unsynced),
            _ => None,
        }
    }

    /// Keeps the other threads of the rank from looking at the access time of a symbolic link of the copy meanwhile.
    pub(super) fn alone_with_times(&self) -> MutexGuard<'_, ()> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be set of a link on a device of the destination, if that was tried.
    pub(super) fn known_link_calls(&self, dev: u64) -> Option<LinkCalls> {
        self.link_calls.lock().unwrap_or_else(PoisonError::into_inner).get(&dev).copied()
    }

    /// What entries from before 1970 have instead of their time; found by one thread, while the others wait.
    pub(super) fn learned_mtime(
        &self,
        of: (u64, bool),
        find: impl FnOnce() -> Result<Option<Timestamp>, Errno>,
    ) -> Result<Option<Timestamp>, Errno> {
        let mut known = self.old_times.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&of) {
            return Ok(*known);
        }
        let found = find()?;
        known.insert(of, found);
        Ok(found)
    }

    pub(super) fn learn_link_calls(&self, dev: u64, found: LinkCalls) {
        self.link_calls.lock().unwrap_or_else(PoisonError::into_inner).insert(dev, found);
    }

    /// Whether the attributes of a source entry of this device and type are lost: they could not be listed, and those of
    /// another such entry could.
    pub(super) fn loses_xattrs(&self, such: (u64, Option<Kind>), were_listed: bool) -> bool {
        let have = self.have_xattrs.read().unwrap_or_else(PoisonError::into_inner).contains(&such);
        if were_listed && !have {
            self.have_xattrs.write().unwrap_or_else(PoisonError::into_inner).insert(such);
        }
        have && !were_listed
    }

    /// Whether inode flags, and project ids, are looked at on the device that an entry is on.
    pub(super) fn looks_at_flags(&self, entry: Handle<'_>, dev: u64) -> LooksAt {
        let known = self.flagged.read().unwrap_or_else(PoisonError::into_inner).get(&dev).copied();
        known.unwrap_or_else(|| {
            let flags = match self.flags {
                Flags::Ignored => false,
                Flags::Counted => !entry.is_on_server(),
                Flags::Copied => true,
            };
            let looks = LooksAt { flags, projects: flags && entry.may_have_project() };
            self.flagged.write().unwrap_or_else(PoisonError::into_inner).insert(dev, looks);
            looks
        })
    }

    /// Notes that a device has no inode flags.
    pub(super) fn has_no_flags(&self, dev: u64) {
        self.flagged.write().unwrap_or_else(PoisonError::into_inner).insert(dev, LooksAt::default());
    }

    /// Whether the destination may share blocks of files on this device, as far as is known.
    pub(super) fn may_share(&self, dev: u64) -> bool {
        !self.unshared.lock().unwrap_or_else(PoisonError::into_inner).contains(&dev)
    }

    /// Notes that the destination cannot share blocks of files on this device.
    pub(super) fn never_shares(&self, dev: u64) {
        self.unshared.lock().unwrap_or_else(PoisonError::into_inner).insert(dev);
    }

    /// What names the file that `meta` describes, the same on every node.
    pub(super) fn link_id(&self, source: u16, meta: &Meta) -> LinkId {
        let source = &self.sources[usize::from(source)];
        // a small number for the sources' file systems; others keep their device number, above them
        let dev = if meta.dev == source.dev { source.file_system } else { meta.dev | 1 << 63 };
        LinkId { dev, ino: meta.ino }
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Whether a file system is this node's own, so that syncfs makes it durable and no other node changes it.
fn is_local(dir: &OwnedFd, path: &[u8]) -> Result<bool, String> {
    syncfs_reaches(dir.as_fd()).map_err(|err| format!("{}: statfs: {}", escaped(path), err.desc()))
}

/// Opens a directory that holds the marker of a job: the one that rank 0 sees. It is opened anew until it does, for some
/// seconds: other nodes' caches may show the marker late, and others may exchange the directory's name.
///
/// # Errors
/// A sentence that names the path.
pub fn open_marked(path: &[u8], job_id: u64, open: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, String> {
    let failed = |call: &str, err: Errno| format!("{}: {call}: {}", escaped(path), err.desc());
    for _ in 0..80 {
        let dir = open().map_err(|err| failed("open", err))?;
        match Meta::at(dir.as_fd(), &marker_name(job_id)) {
            Ok(_) => return Ok(dir),
            Err(Errno::ENOENT) => sleep(Duration::from_millis(100)),
            Err(err) => return Err(failed("stat", err)),
        }
    }
    Err(format!("{}: not the directory that rank 0 sees; is the file system mounted on this node?", escaped(path)))
}
