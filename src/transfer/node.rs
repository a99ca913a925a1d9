//! What a rank's node knows of the job: open roots, who runs it, what its file systems can do.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use nix::unistd::geteuid;

use super::owners::IdMap;
use crate::policy::XattrChoice;
use crate::proto::Job;
use crate::state::marker_name;
use crate::sys::{Errno, Meta, Mounts, group_name, open_root, sync_dir, sync_file_system, syncfs_reaches, user_name};
use crate::types::{LinkId, escaped};

/// Opened once a rank, before anything is written, shared by its threads.
pub struct Node {
    pub(super) sources: Vec<NodeSource>,
    /// Opened before the first write, so that a later syncfs reports every error of writing back.
    pub(super) destination: Arc<OwnedFd>,
    /// Whether this process may give files away.
    pub(super) privileged: bool,
    pub(super) euid: u32,
    /// Whether each file needs its own fsync, because syncfs does not reach the storage.
    pub(super) sync_each: bool,
    /// Whether a time that was set may be another one afterwards.
    pub(super) coarse_times: bool,
    pub(super) attributes: XattrChoice,
    pub(super) users: IdMap,
    pub(super) groups: IdMap,
    /// Devices of sources whose blocks the destination cannot share.
    unshared: Mutex<HashSet<u64>>,
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
    pub fn open(job: &Job) -> Result<Self, String> {
        let open = |path: &[u8]| {
            let shown = escaped(path);
            open_root(Path::new(OsStr::from_bytes(path))).map_err(|err| format!("{shown}: open: {}", err.desc()))
        };
        let mut sources = Vec::new();
        for source in &job.sources {
            let dir = open(&source.dir)?;
            let dev = Meta::of(&dir).map_err(|err| format!("{}: stat: {}", escaped(&source.dir), err.desc()))?.dev;
            sources.push(NodeSource { dir: Arc::new(dir), dev, file_system: source.file_system });
        }
        let destination = open(&job.destination)?;
        if !job.policy.dry_run {
            wait_for_marker(&destination, &job.destination, job.id)?;
        }
        let reaches = syncfs_reaches(destination.as_fd())
            .map_err(|err| format!("{}: statfs: {}", escaped(&job.destination), err.desc()))?;
        // a file system mounted below the root is another one: syncfs of the root does not reach it
        let path = Path::new(OsStr::from_bytes(&job.destination));
        let other_mounts = Mounts::current().below(path).next().is_some();
        let euid = geteuid();
        Ok(Self {
            sources,
            destination: Arc::new(destination),
            privileged: euid.is_root(),
            euid: euid.as_raw(),
            sync_each: !reaches || other_mounts,
            coarse_times: job.coarse_times || other_mounts,
            attributes: XattrChoice::new(&job.policy).map_err(|err| err.to_string())?,
            users: IdMap::new(&job.policy.users, user_name).map_err(|err| err.to_string())?,
            groups: IdMap::new(&job.policy.groups, group_name).map_err(|err| err.to_string())?,
            unshared: Mutex::default(),
        })
    }

    /// The open roots of the sources, by their numbers.
    pub fn source_dirs(&self) -> Vec<Arc<OwnedFd>> {
        self.sources.iter().map(|source| Arc::clone(&source.dir)).collect()
    }

    /// The destination's root.
    pub fn destination(&self) -> &Arc<OwnedFd> {
        &self.destination
    }

    /// Makes durable what this node has written to the destination. Where each file and directory was synced on its own
    /// only the root is left.
    ///
    /// # Errors
    /// Those of syncfs(2), also of what was written back since the root was opened.
    pub fn sync(&self) -> Result<(), Errno> {
        let root = self.destination.as_fd();
        if self.sync_each { sync_dir(root) } else { sync_file_system(root) }
    }

    /// Whether each file and directory has to be made durable on its own.
    pub fn syncs_each(&self) -> bool {
        self.sync_each
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

/// Waits until the marker of a job can be seen in a directory: it is the one that rank 0 sees.
///
/// # Errors
/// A sentence that names the path.
pub fn wait_for_marker(dir: &OwnedFd, path: &[u8], job_id: u64) -> Result<(), String> {
    // other nodes' caches may take a few seconds to show it
    for _ in 0..80 {
        match Meta::at(dir.as_fd(), &marker_name(job_id)) {
            Ok(_) => return Ok(()),
            Err(Errno::ENOENT) => sleep(Duration::from_millis(100)),
            Err(err) => {
                return Err(format!("{}: stat: {}", escaped(path), err.desc()));
            }
        }
    }
    Err(format!("{}: not the directory that rank 0 sees; is the file system mounted on this node?", escaped(path)))
}
