//! The first writes and the last removals of a copy: its root, the state directory, the lock, the marker, the older manifest.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp as Clock;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::recall::{Recalled, recall};
use super::refusal::{Unprepared, is_for_space, shown};
use super::resolve::Plan;
use crate::cli::Config;
use crate::journal::{BaseWriter, Header, LoadError, remove_journals};
use crate::manifest::Place;
use crate::proto::{Job, Source, StatePlace};
use crate::scan::Recorded;
use crate::state::{self, Lock, LockError, is_marker, marker_name, previous_name, private_name, remove_temporaries};
use crate::sys::{
    DirCache, Errno, Handle, Meta, Mounts, UNFINISHED_DIR_MODE, close, create_new, open_root, remove_dir, remove_file,
    rename, strip_acls, sync_dir,
};
use crate::types::{Maker, RelPath, Timestamp, escaped};
use crate::watch;

/// What of the copy is held open on rank 0.
pub(super) struct Prepared {
    /// `None` in a dry run.
    root: Option<OwnedFd>,
    /// What the root was before.
    before: Option<Meta>,
    state: Option<State>,
    /// Where the manifest goes, if there is one.
    pub(super) manifest: Option<Place>,
    /// To be said before the copy.
    pub(super) notes: Vec<String>,
}

/// The state directory: held, locked, and what it says.
struct State {
    dir: OwnedFd,
    lock: Lock,
    recalled: Recalled,
}

/// A call that failed, and on what.
pub(super) type Trouble = (String, std::io::Error);

/// Makes the copy's root, the state directory and the marker, unless nothing is to be written; and the job out of what the
/// state directory knows of it. `job` is what it is without that.
///
/// # Errors
/// One line; what was made is gone again.
pub(super) fn prepare(plan: &Plan, config: &Config, job: Job, started: Clock) -> Result<(Prepared, Job), Unprepared> {
    if job.policy.dry_run {
        let manifest = manifest_place(plan, None)?;
        return Ok((Prepared { root: None, before: None, state: None, manifest, notes: Vec::new() }, job));
    }
    if !plan.root_exists {
        DirBuilder::new()
            .mode(UNFINISHED_DIR_MODE)
            .create(&plan.root)
            .map_err(|err| Unprepared::at(&plan.root, err))?;
    }
    watch::begin_in(plan.root.as_os_str().as_bytes());
    let failed = |err: Errno| Unprepared::at(&plan.root, err);
    let root = open_root(&plan.root).map_err(failed)?;
    let before = Meta::of(&root).map_err(failed)?;
    // its end takes it back
    if lends(&before) {
        Handle::Open(root.as_fd()).set_mode(before.mode | 0o700).map_err(failed)?;
    }
    match prepare_in(plan, config, &root, job, started) {
        Ok((prepared, job)) => Ok((Prepared { root: Some(root), before: Some(before), ..prepared }, job)),
        Err(err) => {
            take_back_dirs((&root, &before), plan);
            Err(err)
        }
    }
}

/// Whether an ordinary user has to lend himself permissions in the copy's root, which is his own.
pub(super) fn lends(root: &Meta) -> bool {
    let euid = geteuid();
    !euid.is_root() && root.uid == euid.as_raw() && root.mode & 0o700 != 0o700
}

fn line(path: &Path, err: impl std::fmt::Display) -> String {
    format!("{}: {err}", shown(path))
}

fn prepare_in(
    plan: &Plan,
    config: &Config,
    root: &OwnedFd,
    job: Job,
    started: Clock,
) -> Result<(Prepared, Job), Unprepared> {
    if !plan.root_exists && job.policy.strips_inherited_acls() {
        strip_acls(Handle::Open(root.as_fd()), false).map_err(|err| Unprepared::at(&plan.root, err))?;
    }
    let mut notes = Vec::new();
    let mut state = match plan.state_dir() {
        None => None,
        Some(path) => Some(take_state((plan, config), root, &path, (&job, started), &mut notes)?),
    };
    let mut job = job;
    if let Some(State { recalled: Recalled { file, unfinished, .. }, .. }) = &state {
        job.id = file.id;
        job.secret = file.secret.expect("a job that was taken up has one");
        job.abandoned.clone_from(&file.abandoned);
        job.generation = file.runs + 1;
        job.began = unfinished.then_some(file.began);
    }
    let dir = state.as_ref().map(|state| &state.dir);
    let made = make_markers(plan, root, dir, job.id).and_then(|marker| {
        check_sources(plan, &marker_name(job.id), marker.maker)?;
        Ok((marker, manifest_place(plan, dir)?))
    });
    let (marker, manifest) = match made {
        Ok(made) => made,
        Err(err) => {
            let _ = remove_markers(root, dir, job.id);
            state.into_iter().for_each(State::release);
            return Err(err);
        }
    };
    job.coarse_times = marker.coarse_times;
    job.maker = marker.maker;
    if let Some(State { recalled: Recalled { file, unfinished, notes: more, .. }, .. }) = &mut state {
        notes.append(more);
        if !*unfinished {
            file.began = marker.ctime;
        }
        file.runs += 1;
        file.complete = false;
    }
    Ok((Prepared { root: None, before: None, state, manifest, notes }, job))
}

/// Makes and locks the state directory, and takes up its job, or begins a `new` one.
fn take_state(
    (plan, config): (&Plan, &Config),
    root: &OwnedFd,
    path: &Path,
    (new, started): (&Job, Clock),
    notes: &mut Vec<String>,
) -> Result<State, Unprepared> {
    let dir = match &plan.state {
        Some(StatePlace::At(_)) => state::make_at(path),
        _ => state::make(root.as_fd()),
    };
    let dir = dir.map_err(|err| Unprepared::at(path, err))?;
    let waiting =
        |host: &str| notes.push(format!("{}: a run on {host} had the lock; it gave no sign of life", shown(path)));
    let copy = dir.try_clone().map_err(|err| Unprepared::at(path, err))?;
    // a job's first run has the job's number, and was killed before it could write that down if its marker is there
    let bury = |run| remove_markers(root, Some(&dir), run);
    // the new number is of this run, whichever job it takes up: unlike any other
    let lock = Lock::take(copy, new.id, waiting, bury).map_err(|err| {
        let works_later = match &err {
            LockError::Io(err) => is_for_space(err),
            LockError::Ending(_) => true,
            LockError::Held(_) => false,
        };
        Unprepared { line: line(path, err), works_later }
    })?;
    match recall(&dir, plan, config, (new.id, new.secret), started) {
        Ok(recalled) => Ok(State { dir, lock, recalled }),
        Err(err) => {
            let _ = lock.release();
            Err(err.into())
        }
    }
}

impl State {
    /// Gives the lock back; should that fail the next run finds that its process is gone.
    fn release(self) {
        let _ = self.lock.release();
    }
}

fn manifest_place(plan: &Plan, state: Option<&OwnedFd>) -> Result<Option<Place>, Unprepared> {
    let Some(path) = &plan.manifest else {
        let in_state = state.map(|dir| dir.try_clone().map(|dir| Place { dir, name: state::MANIFEST_NAME.to_vec() }));
        return in_state.transpose().map_err(|err| Unprepared::at(&plan.root, err));
    };
    let parent = path.parent().expect("a manifest's path was resolved");
    let dir = open_root(parent).map_err(|err| Unprepared::at(parent, err))?;
    Ok(Some(Place { dir, name: path.file_name().expect("a manifest has a name").as_bytes().to_vec() }))
}

/// What the marker shows of the destination's file system.
struct Marker {
    /// It does not keep times as they are set.
    coarse_times: bool,
    /// What its clock says now.
    ctime: Timestamp,
    maker: Maker,
}

/// Makes the marker in the copy's root and in the state directory: others may exchange the names of both.
fn make_markers(plan: &Plan, root: &OwnedFd, state: Option<&OwnedFd>, job_id: u64) -> Result<Marker, Unprepared> {
    let name = marker_name(job_id);
    let marker =
        make_marker(root.as_fd(), &name).map_err(|err| Unprepared::at(&plan.root.join(state::os_name(&name)), err))?;
    if let (Some(dir), Some(path)) = (state, plan.state_dir()) {
        make_marker(dir.as_fd(), &name).map_err(|err| Unprepared::at(&path, err))?;
    }
    Ok(marker)
}

/// Checks that no source shows the marker that was made in the copy's root: through another mount of the same file system
/// directories have other device and inode numbers (DAOS, CephFS, FUSE, the upper directory of an overlay).
///
/// The marker's name is no secret: only one of this user's own counts.
fn check_sources(plan: &Plan, marker: &[u8], maker: Maker) -> Result<(), String> {
    let marker = state::os_name(marker);
    let is_there = |dir: &Path| Meta::of_path(&dir.join(&marker), false).is_ok_and(|there| is_marker(&there, maker));
    let mounts = Mounts::current();
    // where the copy would be in a mount, if that shows the same tree: all of it, or a part
    let names: Vec<_> = plan.root.iter().collect();
    let parts: Vec<PathBuf> = (1..=names.len()).map(|from| names[from..].iter().collect()).collect();
    for source in plan.sources.iter().filter(|source| source.single.is_none()) {
        let dir = Path::new(OsStr::from_bytes(&source.dir));
        if is_there(dir) {
            return Err(line(dir, format_args!("and {} are the same directory, on two mounts", shown(&plan.root))));
        }
        let is_entered = |below: &Path| {
            let mut dirs = below.ancestors().filter(|dir| !dir.as_os_str().is_empty());
            !dirs.any(|dir| plan.choice.filter.excludes(&[b"/", dir.as_os_str().as_bytes()].concat(), true))
        };
        let shows_copy = |below: &Path| is_entered(below) && is_there(&dir.join(below));
        let points = mounts.points_below(dir).filter(|_| !plan.choice.one_file_system);
        let mut tops = points.filter_map(|point| point.strip_prefix(dir).ok()).chain([Path::new("")]);
        if tops.any(|top| is_entered(top) && parts.iter().any(|part| shows_copy(&top.join(part)))) {
            let source = shown(dir);
            return Err(line(
                &plan.root,
                format_args!("the destination is inside its source {source}, on another mount"),
            ));
        }
    }
    Ok(())
}

fn make_marker(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Marker, Errno> {
    let made = match create_new(dir, name, 0o600) {
        // of a run that was killed
        Err(Errno::EEXIST) => remove_file(dir, name).and_then(|()| create_new(dir, name, 0o600)),
        made => made,
    }?;
    let time = Timestamp { sec: 1_000_000_001, nsec: 123_456_789 };
    let Meta { ctime, uid, mode, .. } = Meta::of(&made)?;
    let set = Handle::Open(made.as_fd()).set_times(time, time).and_then(|()| Meta::of(&made));
    close(made)?;
    Ok(Marker { coarse_times: set.is_ok_and(|meta| meta.mtime != time), ctime, maker: Maker::of(uid, mode) })
}

fn remove_markers(root: &OwnedFd, state: Option<&OwnedFd>, job_id: u64) -> Result<(), Errno> {
    let name = marker_name(job_id);
    [Some(root), state].into_iter().flatten().try_for_each(|dir| match remove_file(dir.as_fd(), &name) {
        Err(Errno::ENOENT) => Ok(()),
        removed => removed,
    })
}

/// Takes back the directories that [`prepare`] made; what was there before is not empty, and is as it was.
fn take_back_dirs((root, before): (&OwnedFd, &Meta), plan: &Plan) {
    match &plan.state {
        Some(StatePlace::InCopy) => {
            let _ = unlinkat(root, state::DIR_NAME, UnlinkatFlags::RemoveDir);
        }
        Some(StatePlace::At(_)) => {
            let _ = plan.state_dir().map(std::fs::remove_dir);
        }
        None => {}
    }
    if !plan.root_exists {
        let _ = std::fs::remove_dir(&plan.root);
        return;
    }
    // an error is told already
    let handle = Handle::Open(root.as_fd());
    let Ok(now) = Meta::of(root) else { return };
    if now.mode != before.mode {
        let _ = handle.set_mode(before.mode);
    }
    if now.mtime != before.mtime {
        let _ = handle.set_times(before.atime, before.mtime);
    }
}

impl Prepared {
    /// What earlier runs of the job have recorded.
    pub(super) fn recorded(&self) -> Recorded {
        self.state.as_ref().map(|state| state.recalled.recorded.clone()).unwrap_or_default()
    }

    /// How many runs of the job there are, this one too.
    pub(super) fn runs(&self) -> u32 {
        self.state.as_ref().map_or(1, |state| state.recalled.file.runs)
    }

    /// The state directory, if there is one.
    pub(super) fn state_dir(&self) -> std::io::Result<Option<OwnedFd>> {
        self.state.as_ref().map(|state| state.dir.try_clone()).transpose()
    }

    /// Whether another run has taken the copy over.
    pub(super) fn is_lost(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.lock.is_lost())
    }

    /// The same, looked at now: this process may have been frozen.
    pub(super) fn is_held(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.lock.is_held())
    }

    /// Takes back what was made.
    pub(super) fn undo(self, plan: &Plan, job: &Job) {
        let (Some(root), Some(before)) = (&self.root, &self.before) else { return };
        let _ = remove_markers(root, self.state.as_ref().map(|state| &state.dir), job.id);
        self.state.into_iter().for_each(State::release);
        take_back_dirs((root, before), plan);
    }

    /// All ranks have seen the marker. An older manifest must not make this copy look complete while it is not: it is
    /// kept under another name, also the one in the copy when the new one goes elsewhere. Then the job is written down, so
    /// that whatever happens the same command goes on with it.
    ///
    /// # Errors
    /// What failed, and why.
    pub(super) fn begin(&self, plan: &Plan, job: &Job) -> Result<(), Trouble> {
        let Some(root) = &self.root else { return Ok(()) };
        let state = self.state.as_ref().map(|state| &state.dir);
        remove_markers(root, state, job.id).map_err(|err| (escaped(&marker_name(job.id)), err.into()))?;
        let own = self.state.as_ref().map(|state| (&state.dir, state::MANIFEST_NAME));
        let new = self.manifest.as_ref().map(|place| (&place.dir, place.name.as_slice()));
        for (dir, name) in own.into_iter().chain(new) {
            match rename(dir.as_fd(), name, &previous_name(name)) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(err) => return Err((escaped(name), err.into())),
            }
        }
        let Some(state) = &self.state else { return Ok(()) };
        if state.recalled.forgets {
            remove_journals(&state.dir, true).map_err(LoadError::into_parts)?;
        }
        state.recalled.file.write(&state.dir).map_err(|err| (shown(Path::new(state::JOB_NAME)), err))?;
        // the names on the way to it
        let state_dir = plan.state_dir();
        let above = [plan.root.parent(), state_dir.as_deref().and_then(Path::parent)];
        for dir in above.into_iter().flatten() {
            open_root(dir).and_then(|dir| sync_dir(dir.as_fd())).map_err(|err| (shown(dir), err.into()))?;
        }
        Ok(())
    }

    /// Begins the base of what this run will have recorded; `None` where nothing is kept.
    ///
    /// # Errors
    /// Those of [`BaseWriter::create`].
    pub(super) fn new_base(&self, job: &Job) -> std::io::Result<Option<BaseWriter>> {
        let Some(state) = &self.state else { return Ok(None) };
        let header = Header { job_id: job.id, generation: job.generation, rank: 0, ranks: 1 };
        BaseWriter::create(state.dir.try_clone()?, header).map(Some)
    }

    /// The manifest has its name, and the base too if `has_base`: the journals have served; `errors` entries failed. Removes what earlier runs have
    /// left where no directory's end does it.
    ///
    /// # Errors
    /// What failed, and why.
    pub(super) fn complete(self, job: &Job, has_base: bool, errors: u64) -> Result<(), Trouble> {
        self.remove_private_dir(job);
        if let (Some(root), Some(before)) = (&self.root, &self.before)
            && lends(before)
            && !job.policy.preserve.mode
        {
            Handle::Open(root.as_fd()).set_mode(before.mode).map_err(|err| ("the copy's root".into(), err.into()))?;
        }
        let Some(state) = self.state else { return Ok(()) };
        if !state.lock.is_held() {
            return Err(("lock".into(), std::io::Error::other("another run has taken the copy over")));
        }
        // where the root is no entry of the copy nobody else looks at what earlier runs have left in it
        let is_entry = |source: &Source| source.single.is_none() && source.target.is_root();
        if let Some(root) = self.root.as_ref().filter(|_| job.generation > 1 || !job.abandoned.is_empty())
            && (job.sources.len() > 1 || !job.sources.iter().any(is_entry))
        {
            remove_temporaries(root.as_fd(), job).map_err(|err| ("temporary files in the copy".into(), err.into()))?;
        }
        // of files that are not in the source any more, in directories that may not be either
        let mut dirs = DirCache::new(self.root.into_iter().map(Arc::new).collect(), 16);
        for (dir, _) in state.recalled.recorded.partials.keys().filter_map(RelPath::split) {
            if let Ok(dir) = dirs.open(0, &dir) {
                remove_temporaries(dir.as_fd(), job)
                    .map_err(|err| ("temporary files in the copy".into(), err.into()))?;
            }
        }
        let mut job = state.recalled.file;
        (job.complete, job.errors) = (true, errors);
        job.abandoned.clear();
        job.write(&state.dir).map_err(|err| (shown(Path::new(state::JOB_NAME)), err))?;
        if has_base {
            remove_journals(&state.dir, false).map_err(LoadError::into_parts)?;
        }
        state.lock.release().map_err(|err| ("lock".into(), err.into()))
    }

    /// Removes the private directory in the copy's root, if a source is a single entry: then no task finishes the root, which
    /// would remove it. A private directory that holds an unfinished large file is not empty and stays.
    fn remove_private_dir(&self, job: &Job) {
        let has_single = job.sources.iter().any(|source| source.single.is_some());
        if let Some(root) = self.root.as_ref().filter(|_| has_single) {
            let _ = remove_dir(root.as_fd(), &private_name(job, &RelPath::root()));
        }
    }

    /// The job stopped before its end: everything stays for the next run. With `keep_lock` the lock stays too, until this
    /// process has ended: it has threads in calls that may still change the copy.
    pub(super) fn leave(self, job: &Job, keep_lock: bool) {
        self.remove_private_dir(job);
        if !keep_lock {
            self.state.into_iter().for_each(State::release);
        }
    }
}
