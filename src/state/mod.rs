//! The state directory of a copy: `.pcopy` in its root, or where the user wants it, for who runs pcopy alone. Held by
//! descriptor, so that nobody can put another one in its place.

mod job;
mod lock;

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use job::{JOB_NAME, JobFile, JobFileError, SourceName};
pub use lock::{Lock, LockError};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::geteuid;

use crate::proto::Job;
use crate::sys::{Errno, Meta, Reading, list, open_dir_at, open_root, remove_file};

/// Its name; a source's own one, from an earlier copy, is not copied.
pub const DIR_NAME: &[u8] = b".pcopy";
/// The manifest's name in it.
pub const MANIFEST_NAME: &[u8] = b"manifest.jsonl";

/// The file in the destination that shows every rank that it sees the directory which rank 0 sees, and
/// not the empty mount point of a file system that its node does not have.
pub fn marker_name(job_id: u64) -> Vec<u8> {
    format!(".pcopy-{job_id:016x}.here").into_bytes()
}

/// The name of a temporary file of a job, in the directory that its entry is to be in.
pub fn temporary_name(job_id: u64, hash: &[u8; 32]) -> Vec<u8> {
    let hash = u64::from_be_bytes(*hash.first_chunk().expect("32 bytes"));
    format!(".pcopy-{job_id:016x}-{hash:016x}.tmp").into_bytes()
}

/// Whether a name is that of a temporary file, or of the marker, of this job.
fn is_temporary(name: &[u8], job_id: u64) -> bool {
    // nearly every name that is asked about is not even like one
    let rest = name.strip_prefix(b".pcopy-").and_then(|rest| rest.strip_prefix(format!("{job_id:016x}").as_bytes()));
    rest.is_some_and(|rest| rest == b".here" || (rest.len() == 21 && rest.starts_with(b"-") && rest.ends_with(b".tmp")))
}

/// Removes from a directory what earlier runs of a job, and the jobs that it took the place of, have left.
///
/// # Errors
/// Those of open(2), readdir(3) and unlinkat(2).
pub fn remove_temporaries(dir: BorrowedFd<'_>, job: &Job) -> Result<(), Errno> {
    let mut left = Vec::new();
    list(open_dir_at(dir, b".", Reading::default())?, |entry| {
        if is_temporary(entry.name, job.id) || job.abandoned.iter().any(|id| is_temporary(entry.name, *id)) {
            left.push(entry.name.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    left.iter().try_for_each(|name| remove_file(dir, name))
}

/// The name under which an older manifest is kept.
pub fn previous_name(manifest: &[u8]) -> Vec<u8> {
    [manifest, b".previous"].concat()
}

/// A name as the standard library has it.
pub fn os_name(name: &[u8]) -> OsString {
    OsString::from_vec(name.to_vec())
}

/// Makes the state directory where there is none, and opens it.
///
/// # Errors
/// Those of mkdir(2), and of [`open`].
pub fn make(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    match mkdirat(root, DIR_NAME, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => open(root),
        Err(err) => Err(err),
    }
}

/// Opens the state directory.
///
/// # Errors
/// Those of open(2); `EPERM` where it belongs to, or can be written by, somebody else.
pub fn open(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    checked(open_dir_at(root, DIR_NAME, Reading::default())?)
}

/// Makes a state directory elsewhere, where there is none, and opens it.
///
/// # Errors
/// Those of mkdir(2), and of [`open`].
pub fn make_at(path: &Path) -> Result<OwnedFd, Errno> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
            Err(Errno::from_raw(err.raw_os_error().unwrap_or(libc::EIO)))
        }
        _ => open_at(path),
    }
}

/// Opens a state directory elsewhere.
///
/// # Errors
/// As [`open`].
pub fn open_at(path: &Path) -> Result<OwnedFd, Errno> {
    checked(open_root(path)?)
}

fn checked(dir: OwnedFd) -> Result<OwnedFd, Errno> {
    let meta = Meta::of(&dir)?;
    if meta.uid == geteuid().as_raw() && meta.mode & 0o022 == 0 { Ok(dir) } else { Err(Errno::EPERM) }
}

/// A directory on this node for what a dry run has to keep. Dropped, it is removed.
pub struct Scratch {
    path: PathBuf,
    dir: OwnedFd,
}

impl Scratch {
    /// In the directory for temporary files.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2).
    pub fn new(job_id: u64, rank: usize) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("pcopy-{job_id:016x}.{rank}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        let dir = open_root(&path)?;
        Ok(Self { path, dir })
    }

    pub fn dir(&self) -> io::Result<OwnedFd> {
        self.dir.as_fd().try_clone_to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // of no use to anybody, whatever stays
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
