//! Reads from the state directory of a copy whether the copy is complete.
//!
//! | found | the copy |
//! |---|---|
//! | a lock whose run lives, or may live on another host | is being made |
//! | a job file that says complete, or a manifest | is complete |
//! | anything else | is incomplete |
//!
//! The manifest is set aside before the first entry of a run is copied, and comes back after the last one; the job file
//! follows it. Each counts alone: `--manifest` puts the manifest elsewhere, and versions before the job file had only it.
//!
//! The directory may be anybody's, and hold anything: nothing is followed, only regular files are opened, and what is read
//! is bounded. Whether what it says may stop a job is for the caller to judge, by [`Unfinished::is_trusted`].

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::unistd::geteuid;
use serde::Deserialize;

use super::lock::{self, Holder};
use super::{DIR_NAME, JobFile, MANIFEST_NAME, Need, obstacle};
use crate::sys::{Errno, Meta, Reading, open_dir_at, open_read};
use crate::types::Kind;

/// Bytes of a manifest's closing line, at most.
const MAX_TRAILER_LEN: u64 = 4096;
/// Bytes of a job file that are read; of somebody else's a sixteenth, since it may be made to take many times as much memory.
const MAX_JOB_LEN: u64 = 16 << 20;

/// The state of a directory as a copy.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It has no state directory.
    NoCopy,
    /// Its state cannot be read: it is somebody else's.
    Unreadable(Errno),
    /// The copy is complete. `failed` entries of it failed, by the manifest; 0 without a manifest.
    Complete {
        failed: u64,
    },
    Incomplete(Box<Unfinished>),
}

/// A copy that is not complete.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// `None` if there is no job file yet, or it cannot be read.
    pub job: Option<JobFile>,
    /// The run that holds the lock now; `None` if there is no lock, or its process is known to be dead.
    pub holder: Option<Holder>,
    /// Only root or the user who runs pcopy can have written the state directory: its content is true.
    pub is_trusted: bool,
    /// The owner of the state directory.
    pub uid: u32,
}

/// Whether an entry belongs to root or to the user who runs pcopy.
pub fn is_owner(entry: &Meta) -> bool {
    [0, geteuid().as_raw()].contains(&entry.uid)
}

/// Whether only root and the user who runs pcopy can write to a directory: its content is theirs.
pub fn is_trusted(dir: &Meta) -> bool {
    is_owner(dir) && dir.mode & 0o022 == 0
}

/// Reads the state directory in a directory.
pub fn standing(root: BorrowedFd<'_>) -> Standing {
    let opened = Meta::at(root, DIR_NAME).and_then(|meta| match meta.kind {
        Some(Kind::Dir) => open_dir_at(root, DIR_NAME, Reading::default()),
        // A source may have a file of that name.
        _ => Err(Errno::ENOENT),
    });
    match opened {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Standing::NoCopy,
        Err(err) => Standing::Unreadable(err),
        // A file system that is mounted there, maybe by a user, is not the copy's state.
        Ok(dir) => standing_of(&dir, Meta::of(root).ok().map(|root| root.dev)),
    }
}

/// Reads a state directory that is open.
pub fn standing_of_state(dir: BorrowedFd<'_>) -> Standing {
    match open_dir_at(dir, b".", Reading::default()) {
        Ok(dir) => standing_of(&dir, None),
        Err(err) => Standing::Unreadable(err),
    }
}

/// Whether a directory is the copy of this job, by the state directory in it. What cannot be read tells nothing.
pub fn is_copy_of(dir: BorrowedFd<'_>, job_id: u64) -> bool {
    let state = open_dir_at(dir, super::DIR_NAME, Reading::default());
    state.is_ok_and(|state| matches!(JobFile::read_up_to(&state, MAX_JOB_LEN), Ok(Some(job)) if job.id == job_id))
}

fn standing_of(dir: &OwnedFd, dev: Option<u64>) -> Standing {
    let meta = match Meta::of(dir) {
        Ok(meta) => meta,
        Err(err) => return Standing::Unreadable(err),
    };
    let is_trusted = is_trusted(&meta) && dev.is_none_or(|dev| dev == meta.dev);
    let has_manifest = match Meta::at(dir.as_fd(), MANIFEST_NAME) {
        Err(Errno::ENOENT) => false,
        Err(err) => return Standing::Unreadable(err),
        Ok(meta) => meta.kind == Some(Kind::File),
    };
    // A job file that cannot be read counts as missing.
    let max_len = if is_trusted { MAX_JOB_LEN } else { MAX_JOB_LEN / 16 };
    let job = JobFile::read_up_to(dir, max_len).ok().flatten();
    let holder = match obstacle(dir.as_fd(), lock::NAME, Need::Read) {
        Ok(None) => lock::held_by(dir).ok().flatten(),
        _ => None,
    };
    if holder.is_none() && (has_manifest || job.as_ref().is_some_and(|job| job.complete)) {
        return Standing::Complete { failed: if has_manifest { failed_entries(dir).unwrap_or(0) } else { 0 } };
    }
    Standing::Incomplete(Box::new(Unfinished { job, holder, is_trusted, uid: meta.uid }))
}

/// How many entries failed, by the manifest's closing line; `None` where it has none that can be read.
fn failed_entries(dir: &OwnedFd) -> Option<u64> {
    #[derive(Deserialize)]
    struct Trailer {
        errors: u64,
    }
    let file = File::from(open_read(dir.as_fd(), MANIFEST_NAME, Reading::default()).ok()?);
    let len = file.metadata().ok()?.len();
    let mut end = vec![0; usize::try_from(len.min(MAX_TRAILER_LEN)).ok()?];
    file.read_exact_at(&mut end, len.saturating_sub(MAX_TRAILER_LEN)).ok()?;
    let line = end.strip_suffix(b"\n")?.rsplit(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(line).ok().map(|Trailer { errors }| errors)
}
