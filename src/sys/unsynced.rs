//! Directories whose names are not durable yet, where syncfs would not make them so.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use super::{DirCache, sync_dir, sync_file_system};
use crate::types::RelPath;

/// The directories below one root in which this rank has made, renamed or finished something since they were last synced.
/// Shared by its threads. Each is synced once a checkpoint, however much was done in it.
#[derive(Debug, Default)]
pub struct Unsynced(Mutex<HashSet<RelPath>>);

impl Unsynced {
    /// Notes a change in a directory, or of its metadata. Before anybody may record what is in it.
    pub fn add(&self, dir: &RelPath) {
        let mut dirs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !dirs.contains(dir) {
            dirs.insert(dir.clone());
        }
    }

    /// A directory was made durable apart from this.
    pub fn forget(&self, dir: &RelPath) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(dir);
    }

    /// Makes all that was noted durable. A directory that is gone, or replaced, has nothing to be made durable; where one may
    /// be written to and not be opened, the whole file system is synced.
    ///
    /// # Errors
    /// Those of open(2) and fsync(2). What was noted is not noted any more then: a second fsync does not tell what the
    /// first one lost.
    pub fn sync(&self, below: &mut DirCache) -> Result<(), Errno> {
        let mut dirs: Vec<_> =
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect();
        // neighbours share the way to them
        dirs.sort_unstable();
        dirs.iter().try_for_each(|dir| match below.open(0, dir).and_then(|dir| sync_dir(dir.as_fd())) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE) => Ok(()),
            Err(Errno::EACCES) => sync_file_system(below.root(0)),
            synced => synced,
        })
    }
}
