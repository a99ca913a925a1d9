//! Checks the places of pcopy's own files (state directory and manifest) before anything is written: they are outside of the
//! trees, nothing is in the way, and the copy that they belong to is known.

use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::limit;
use super::prepare;
use super::refusal::{Refusal, refuse, shown};
use super::resolve::{Plan, canonical, copy_of, name_of};
use crate::cli::{Config, Resume};
use crate::journal;
use crate::manifest::new_name;
use crate::state::{
    self, JOB_NAME, JobFile, JobFileError, Need, Obstacle, SourceName, is_owner, is_trusted, kind_name, marker_name,
    obstacle, previous_name, survey,
};
use crate::sys::{Errno, Meta, Reading, open_dir_at, open_read, open_root};
use crate::types::Kind;

const START_OVER: &str = "which copy it is of cannot be told: start over with --restart, or name another destination";

/// What pcopy does with a name in its state directory; `None` for a name that is not its own.
fn need(name: &[u8]) -> Option<Need> {
    if name == limit::FILE_NAME.as_bytes() {
        return Some(Need::Read);
    }
    let manifest = state::MANIFEST_NAME;
    let is_own = state::is_own_name(name) || journal::is_own_name(name);
    let is_manifest = name == manifest || name == new_name(manifest) || name == previous_name(manifest);
    (is_own || is_manifest).then_some(Need::Change)
}

/// Checks that the destination can be written to and the state directory can be used.
///
/// # Errors
/// Says what is in the way, and what to do.
pub(super) fn check(plan: &Plan, config: &Config) -> Result<(), Refusal> {
    let dir = if plan.root_exists { Some(plan.root.as_path()) } else { plan.root.parent() };
    let dir = dir.unwrap_or(Path::new("/"));
    let lends = plan.root_exists && Meta::of_path(dir, true).is_ok_and(|meta| prepare::lends(&meta));
    if let Err(err) = eaccess(dir, AccessFlags::W_OK | AccessFlags::X_OK)
        && !lends
    {
        return refuse(dir, format_args!("cannot write to the destination: {}", err.desc()));
    }
    let Some(path) = plan.state_dir() else { return Ok(()) };
    if !plan.has_state_in_copy() {
        check_outside(&path, "--state-dir", plan)?;
    }
    let meta = match Meta::of_path(&path, false) {
        Err(Errno::ENOENT) => return Ok(()),
        Err(err) => return refuse(&path, err.desc()),
        Ok(meta) => meta,
    };
    if meta.kind != Some(Kind::Dir) {
        let what = kind_name(meta.kind);
        let way = "move it away, or name another place with --state-dir";
        return refuse(&path, format_args!("is {what}, not a directory; pcopy keeps its state there: {way}"));
    }
    if !state::is_ours(&meta) {
        return refuse(&path, "belongs to, or can be written by, somebody else; pcopy keeps its state there");
    }
    match open_state(&plan.root, &path, !plan.has_state_in_copy()) {
        Ok(dir) => check_state(&dir, &path, plan, config),
        Err(err) => refuse(&path, err.desc()),
    }
}

/// Opens a state directory; the one in a copy is not reached through a link.
fn open_state(root: &Path, path: &Path, is_elsewhere: bool) -> Result<OwnedFd, Errno> {
    match is_elsewhere {
        true => open_root(path),
        false => open_dir_at(open_root(root)?.as_fd(), state::DIR_NAME, Reading::default()),
    }
}

/// Whether every name that the job will need in its state directory is free, or a file that can be changed; and whether it
/// is known which copy it is of.
fn check_state(dir: &OwnedFd, path: &Path, plan: &Plan, config: &Config) -> Result<(), Refusal> {
    let (names, found) = survey(dir, need).or_else(|err| refuse(path, err.desc()))?;
    if let Some((name, obstacle)) = found {
        let place = if name == b"." { path.to_path_buf() } else { path.join(name_of(&name)) };
        return refuse(&place, obstacle);
    }
    let starts_over = config.resume == Resume::Never;
    match JobFile::read(dir) {
        Ok(Some(job)) => check_marker(plan, job.id),
        Ok(None) if !starts_over && has_journals(&names) => {
            refuse(path, format_args!("holds journals, but no {JOB_NAME}; {START_OVER}"))
        }
        Ok(None) => Ok(()),
        Err(JobFileError::Garbage(_)) if starts_over => Ok(()),
        Err(err) => refuse(&path.join(JOB_NAME), job_file_advice(&err)),
    }
}

fn has_journals(names: &[Vec<u8>]) -> bool {
    names.iter().any(|name| journal::is_own_name(name))
}

/// Checks that the marker of a job can be made in the copy's root.
fn check_marker(plan: &Plan, job_id: u64) -> Result<(), Refusal> {
    if !plan.root_exists {
        return Ok(());
    }
    let name = marker_name(job_id);
    let path = plan.root.join(name_of(&name));
    match open_root(&plan.root).and_then(|root| obstacle(root.as_fd(), &name, Need::Change)) {
        Ok(None) => Ok(()),
        Ok(Some(obstacle)) => refuse(&path, obstacle),
        Err(err) => refuse(&path, err.desc()),
    }
}

/// What is wrong with a job file, and what to do.
pub(super) fn job_file_advice(err: &JobFileError) -> String {
    match err {
        JobFileError::Garbage(_) => format!("{err}; {START_OVER}"),
        JobFileError::Newer(_) => format!("{err}: use that one"),
        JobFileError::Obstacle(_) | JobFileError::Io(_) => err.to_string(),
    }
}

/// The job of the state directory of a destination that is there, which decides whether that is the copy of `source`.
/// `None` if there is no job, or a later check reports what is wrong with it.
///
/// # Errors
/// There is a job, but its sources are not known.
pub(super) fn job_there(
    root: &Path,
    path: &Path,
    is_elsewhere: bool,
    source: &SourceName,
) -> Result<Option<JobFile>, Refusal> {
    let Ok(meta) = Meta::of_path(path, false) else { return Ok(None) };
    // A state of another user decides nothing.
    if meta.kind != Some(Kind::Dir) {
        let what = format!("is {}, not pcopy's state", kind_name(meta.kind));
        return if is_owner(&meta) { unclear(path, what, root, source) } else { Ok(None) };
    }
    let Ok(dir) = open_state(root, path, is_elsewhere) else { return Ok(None) };
    let is_own = is_trusted(&meta);
    match JobFile::read(&dir) {
        Ok(Some(job)) => Ok(Some(job)),
        Ok(None) if is_own && survey(&dir, |_| None).is_ok_and(|(names, _)| has_journals(&names)) => {
            unclear(path, format!("holds journals, but no {JOB_NAME}"), root, source)
        }
        Ok(None) => Ok(None),
        Err(_) if !is_own => Ok(None),
        Err(err @ JobFileError::Garbage(_)) => unclear(&path.join(JOB_NAME), err, root, source),
        Err(err) => refuse(&path.join(JOB_NAME), job_file_advice(&err)),
    }
}

/// The refusal of a destination that may be the copy of the source, or a directory to copy into.
fn unclear<T>(path: &Path, what: impl Display, root: &Path, source: &SourceName) -> Result<T, Refusal> {
    let (given, root) = (&source.given, shown(root));
    let ways = format!("pcopy --restart {given}/ {root} makes it anew; --into copies into {root}");
    refuse(path, format_args!("{what}: which copy {root} is cannot be told: {ways}"))
}

/// The path of the manifest that `--manifest` names.
///
/// # Errors
/// Says what is in the way, and what to do.
pub(super) fn manifest_path(config: &Config, plan: &Plan) -> Result<Option<PathBuf>, Refusal> {
    let Some(wanted) = &config.manifest else {
        return Ok(None);
    };
    let (Some(name), Some(parent)) = (wanted.file_name(), wanted.parent()) else {
        return refuse(wanted, "--manifest needs the name of a file");
    };
    let parent = canonical(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    let path = parent.join(name);
    let dir = open_root(&parent).or_else(|err| refuse(&parent, err.desc()))?;
    check_manifest(&dir, &path, name.as_bytes())?;
    if !(plan.has_state_in_copy() && plan.state_dir().is_some_and(|dir| path.starts_with(dir))) {
        check_outside(&path, "--manifest", plan)?;
    }
    if let Err(err) = eaccess(&parent, AccessFlags::W_OK | AccessFlags::X_OK) {
        return refuse(&parent, format_args!("cannot write the manifest there: {}", err.desc()));
    }
    Ok(Some(path))
}

/// An older manifest is set aside and replaced, and what a killed run was writing goes; anything else is somebody's file.
fn check_manifest(dir: &OwnedFd, path: &Path, name: &[u8]) -> Result<(), Refusal> {
    let new = new_name(name);
    for name in [name.to_vec(), previous_name(name), new.clone()] {
        let there = path.with_file_name(name_of(&name));
        if Meta::at(dir.as_fd(), &name) == Err(Errno::ENOENT) {
            continue;
        }
        match obstacle(dir.as_fd(), &name, Need::Change) {
            Ok(Some(obstacle @ Obstacle::Fixed(_))) => return refuse(&there, obstacle),
            Ok(None) if is_manifest(dir, &name, name == new) => {}
            Ok(_) => return refuse(&there, "is there, and not a manifest; name another file with --manifest"),
            Err(err) => return refuse(&there, err.desc()),
        }
    }
    Ok(())
}

/// Whether a regular file begins as a manifest does; or has no content, if it may be one that was being written.
fn is_manifest(dir: &OwnedFd, name: &[u8], may_be_empty: bool) -> bool {
    const START: &[u8] = b"{\"pcopy_manifest\"";
    let mut start = Vec::new();
    let file = open_read(dir.as_fd(), name, Reading::default()).map_err(io::Error::from);
    let read = file.and_then(|file| fs::File::from(file).take(START.len() as u64).read_to_end(&mut start));
    read.is_ok() && (start == START || (may_be_empty && start.is_empty()))
}

/// Checks that a file of pcopy's own is neither in a source nor in the copy.
fn check_outside(path: &Path, option: &str, plan: &Plan) -> Result<(), Refusal> {
    let in_source = plan.sources.iter().any(|source| match &source.single {
        None => path.starts_with(name_of(&source.dir)),
        Some(name) => path == Path::new(name_of(&source.dir)).join(name_of(name)),
    });
    let has_dirs = plan.sources.len() > 1 || plan.sources[0].single.is_none();
    let in_copy = match has_dirs {
        true => path.starts_with(&plan.root),
        false => plan.sources.iter().any(|source| path == copy_of(plan, &source.target)),
    };
    if in_source || in_copy {
        return refuse(path, format_args!("{option} must name a place outside of the sources and of the copy"));
    }
    Ok(())
}
