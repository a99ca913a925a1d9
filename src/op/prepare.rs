//! The first writes and the last removals of a copy: its root, the state directory, the marker, the older manifest.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::unistd::{UnlinkatFlags, unlinkat};

use super::resolve::Plan;
use crate::journal::{Header, next_generation};
use crate::manifest::Place;
use crate::proto::Job;
use crate::state::{self, marker_name, previous_name};
use crate::sys::{Errno, Handle, Meta, close, create_new, open_root, remove_file, rename, strip_acls};
use crate::types::{Timestamp, escaped};

/// What of the copy is held open on rank 0.
pub(super) struct Prepared {
    /// `None` in a dry run.
    root: Option<OwnedFd>,
    state: Option<OwnedFd>,
    /// Where the manifest goes, if there is one.
    pub(super) manifest: Option<Place>,
    /// The root does not keep times to the nanosecond.
    pub(super) coarse_times: bool,
    /// Of the journals, from 1.
    pub(super) generation: u32,
}

/// Makes the copy's root, the state directory and the marker, unless nothing is to be written.
///
/// # Errors
/// One line; what was made is gone again.
pub(super) fn prepare(plan: &Plan, job: &Job) -> Result<Prepared, String> {
    let manifest = |state: Option<&OwnedFd>| manifest_place(plan, state);
    if job.policy.dry_run {
        let manifest = manifest(None)?;
        return Ok(Prepared { root: None, state: None, manifest, coarse_times: false, generation: 1 });
    }
    let failed = |name: &[u8], err: Errno| {
        let path = if name.is_empty() { plan.root.clone() } else { plan.root.join(state::os_name(name)) };
        format!("{}: {}", escaped(path.as_os_str().as_bytes()), err.desc())
    };
    if !plan.root_exists {
        DirBuilder::new().mode(0o700).create(&plan.root).map_err(|err| failed(b"", errno(&err)))?;
    }
    let made = open_root(&plan.root).map_err(|err| failed(b"", err)).and_then(|root| {
        if !plan.root_exists && job.policy.strips_inherited_acls() {
            strip_acls(Handle::Open(root.as_fd())).map_err(|err| failed(b"", err))?;
        }
        let state = if job.has_state { Some(state::make(root.as_fd())) } else { None };
        let state = state.transpose().map_err(|err| failed(state::DIR_NAME, err))?;
        let generation = state.as_ref().map_or(Ok(1), |state| next_generation(state.as_fd()));
        let generation = generation.map_err(|err| failed(state::DIR_NAME, err))?;
        let marker = marker_name(job.id);
        let coarse_times = make_marker(root.as_fd(), &marker).map_err(|err| failed(&marker, err))?;
        Ok(Prepared { manifest: manifest(state.as_ref())?, root: Some(root), state, coarse_times, generation })
    });
    made.inspect_err(|_| {
        if let Ok(root) = open_root(&plan.root) {
            take_back(&root, plan, job);
        }
    })
}

fn errno(err: &std::io::Error) -> Errno {
    Errno::from_raw(err.raw_os_error().unwrap_or(libc::EIO))
}

fn manifest_place(plan: &Plan, state: Option<&OwnedFd>) -> Result<Option<Place>, String> {
    let failed = |path: &Path, err: &dyn std::fmt::Display| format!("{}: {err}", escaped(path.as_os_str().as_bytes()));
    let Some(path) = &plan.manifest else {
        let in_state = state.map(|dir| dir.try_clone().map(|dir| Place { dir, name: state::MANIFEST_NAME.to_vec() }));
        return in_state.transpose().map_err(|err| failed(&plan.root, &err));
    };
    let parent = path.parent().expect("a manifest's path was resolved");
    let dir = open_root(parent).map_err(|err| failed(parent, &err.desc()))?;
    Ok(Some(Place { dir, name: path.file_name().expect("a manifest has a name").as_bytes().to_vec() }))
}

/// Makes the marker; whether the file system does not keep times as they are set.
fn make_marker(root: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let marker = create_new(root, name, 0o600)?;
    let time = Timestamp { sec: 1_000_000_001, nsec: 123_456_789 };
    let set = Handle::Open(marker.as_fd()).set_times(time, time).and_then(|()| Meta::of(&marker));
    close(marker)?;
    Ok(set.is_ok_and(|meta| meta.mtime != time))
}

/// Takes back what [`prepare`] made; what was there before is not empty and stays.
fn take_back(root: &OwnedFd, plan: &Plan, job: &Job) {
    let _ = remove_file(root.as_fd(), &marker_name(job.id));
    if job.has_state {
        let _ = unlinkat(root, state::DIR_NAME, UnlinkatFlags::RemoveDir);
    }
    if !plan.root_exists {
        let _ = std::fs::remove_dir(&plan.root);
    }
}

impl Prepared {
    /// Takes back what was made.
    pub(super) fn undo(self, plan: &Plan, job: &Job) {
        if let Some(root) = &self.root {
            take_back(root, plan, job);
        }
    }

    /// All ranks have seen the marker. An older manifest must not make this copy look complete while it is not: it is
    /// kept under another name, also the one in the copy when the new one goes elsewhere.
    ///
    /// # Errors
    /// The path, as far as it is known, and the errno.
    pub(super) fn begin(&self, job: &Job) -> Result<(), (Vec<u8>, Errno)> {
        if let Some(root) = &self.root {
            let marker = marker_name(job.id);
            remove_file(root.as_fd(), &marker).map_err(|err| (marker, err))?;
        }
        let own = self.state.as_ref().map(|state| (state, state::MANIFEST_NAME));
        let new = self.manifest.as_ref().map(|place| (&place.dir, place.name.as_slice()));
        for (dir, name) in own.into_iter().chain(new) {
            match rename(dir.as_fd(), name, &previous_name(name)) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(err) => return Err((name.to_vec(), err)),
            }
        }
        Ok(())
    }

    /// Removes the journals, of which the manifest holds everything. With the manifest elsewhere nothing of pcopy stays in
    /// the copy; its root keeps the source's times.
    ///
    /// # Errors
    /// The name that could not be removed, or the root's times not be set again.
    pub(super) fn clean_up(&self, plan: &Plan, job: &Job, ranks: usize) -> Result<(), (Vec<u8>, Errno)> {
        let (Some(root), Some(state)) = (&self.root, &self.state) else { return Ok(()) };
        for rank in 0..u32::try_from(ranks).unwrap_or(u32::MAX) {
            let name = Header { job_id: job.id, generation: job.generation, rank, ranks: 0 }.name();
            match remove_file(state.as_fd(), &name) {
                // a rank that finished nothing has none
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(err) => return Err((name, err)),
            }
        }
        if plan.manifest.is_none() {
            return Ok(());
        }
        let failed = |err| (Vec::new(), err);
        let before = Meta::of(root).map_err(failed)?;
        // an older manifest keeps it
        match unlinkat(root, state::DIR_NAME, UnlinkatFlags::RemoveDir) {
            Ok(()) => Handle::Open(root.as_fd()).set_times(before.atime, before.mtime).map_err(failed),
            Err(_) => Ok(()),
        }
    }
}
