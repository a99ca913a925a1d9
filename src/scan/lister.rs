//! One directory, whoever lists it: a thread of the scan, or an I/O thread of any rank.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Roots, failure};
use crate::collision::Collisions;
use crate::guard::Guard;
use crate::proto::{DirBefore, Job, MAX_LISTED_LEN, MAX_LISTED_SUBDIRS, Names, Targets};
use crate::retry::Retry;
use crate::state;
use crate::sys::{DirCache, Errno, Meta, Reading, Unsynced, list, open_dir_at};
use crate::types::{Failure, Kind, NameSet, Op, RelPath, Side};

/// What a listing of an open directory shows.
///
/// # Errors
/// Those of opening it to be listed, and of readdir(3).
pub fn names_in(dir: BorrowedFd<'_>, how: Reading) -> Result<NameSet, Errno> {
    let mut names = NameSet::default();
    list(open_dir_at(dir, b".", how)?, |entry| {
        names.add(entry.name, entry.ino);
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

/// What all listers of a rank share.
pub struct Rooms {
    pub(super) job: Arc<Job>,
    pub(super) targets: Targets,
    pub(super) source_metas: Vec<Meta>,
    pub(super) destination_meta: Meta,
    pub(super) reading: Reading,
    pub(super) guard: Arc<Guard>,
    pub(super) unsynced: Option<Arc<Unsynced>>,
    /// The name of the copy's root.
    pub(super) copy_name: Vec<u8>,
}

impl Rooms {
    /// # Errors
    /// A root that cannot be looked at.
    pub fn new(job: &Arc<Job>, roots: &Roots) -> Result<Self, Errno> {
        Ok(Self {
            job: Arc::clone(job),
            targets: Targets::new(job),
            source_metas: roots.sources.iter().map(Meta::of).collect::<Result<_, _>>()?,
            destination_meta: Meta::of(&roots.destination)?,
            reading: roots.reading,
            guard: Arc::clone(&roots.guard),
            unsynced: roots.unsynced.clone(),
            copy_name: job.destination.rsplit(|&b| b == b'/').next().unwrap_or_default().to_vec(),
        })
    }

    /// Whether a directory is not entered, because it is on another file system than its source.
    pub(super) fn leaves_alone(&self, source: u16, meta: &Meta) -> bool {
        self.job.one_file_system && meta.dev != self.source_metas[usize::from(source)].dev
    }
}

/// A thread's own things: open directories, and how patient it is.
pub struct Lister {
    pub(super) rooms: Arc<Rooms>,
    pub(super) sources: DirCache,
    pub(super) destination: DirCache,
    pub(super) collisions: Collisions,
    pub(super) retry: Retry,
    source_lags: bool,
    /// Operations that were tried again in the directory that is being listed.
    pub(super) retries: u64,
    /// The job is to halt: nothing is tried again.
    halt: Arc<AtomicBool>,
}

/// All that a directory holds.
pub enum Listed {
    Whole(Box<Found>),
    /// There is more in it than a rank keeps.
    TooLong,
}

/// What a directory holds.
#[derive(Default)]
pub struct Found {
    /// Without directories.
    pub names: Names,
    pub subdirs: Names,
    pub excluded: u64,
    /// From before it was listed; `None` when it could not be opened.
    pub before: Option<DirBefore>,
    /// It could not be opened or made, or not be listed to its end.
    pub failure: Option<Failure>,
    /// It is on another file system than its source, and was to be left alone.
    pub left_alone: bool,
    pub retries: u64,
}

impl Lister {
    pub fn new(rooms: &Arc<Rooms>, roots: &Roots, halt: &Arc<AtomicBool>) -> Self {
        Self {
            sources: DirCache::new(roots.sources.clone(), roots.cached_dirs).reading(roots.reading),
            destination: DirCache::new(vec![Arc::clone(&roots.destination)], roots.cached_dirs),
            collisions: Collisions::default(),
            retry: Retry::new(rooms.job.tuning.retries, roots.lag),
            source_lags: roots.lag.source,
            retries: 0,
            rooms: Arc::clone(rooms),
            halt: Arc::clone(halt),
        }
    }

    /// Tries again what failed in a way that may pass; `what` is told whether it is tried again.
    pub(super) fn retried<T>(&mut self, what: impl FnMut(&mut Self, bool) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut retry = self.retry.clone();
        let result = retry.run(self, what, Self::tries_again);
        self.retry = retry;
        result
    }

    /// Whether there is to be another try.
    pub(super) fn tries_again(&mut self) -> bool {
        // a descriptor may be what is stale
        self.sources.clear();
        self.destination.clear();
        self.retries += 1;
        !self.halt.load(Ordering::Relaxed)
    }

    /// Whether the entry is left out: by the user's filter, or as what runs of pcopy have left in an incomplete copy.
    pub(super) fn is_excluded(&self, (source, dir): (u16, &RelPath), name: &[u8], is_dir: bool) -> bool {
        let spec = &self.rooms.job.sources[usize::from(source)];
        if state::is_leftover(name, &spec.leftovers) {
            return true;
        }
        let filter = &self.rooms.job.filter;
        if filter.is_empty() {
            return false;
        }
        let top = &spec.target;
        let dir = dir.strip(top).expect("the scan's paths are below their source's target");
        let slash: &[u8] = if dir.is_root() { b"" } else { b"/" };
        filter.excludes(&[slash, dir.as_bytes(), b"/", name].concat(), is_dir)
    }

    /// The type of an entry of which the listing does not tell it, or where links are followed.
    pub(super) fn kind_of(&self, dir: &OwnedFd, name: &[u8]) -> Result<Kind, Errno> {
        let meta =
            if self.rooms.reading.follow { Meta::reached(dir.as_fd(), name) } else { Meta::at(dir.as_fd(), name) };
        meta?.kind.ok_or(Errno::EOPNOTSUPP)
    }

    /// Lists a directory that no link leads to and that is no source itself, and makes it at the destination; not where it
    /// is too long.
    pub fn list(&mut self, source: u16, path: &RelPath) -> Listed {
        self.retries = 0;
        let mut found = Found::default();
        let opened = self.retried(|me, _| me.open_source(source, path, None, false));
        let made = opened.and_then(|(dir, meta)| {
            found.left_alone = self.rooms.leaves_alone(source, &meta);
            let mut seen = NameSet::default();
            if !found.left_alone && self.list_into((&mut found, &mut seen), source, path, &dir) == TooLong::Yes {
                return Ok(None);
            }
            let there = self.retried(|me, again| me.make_dir((source, path), (&dir, &meta), again))?;
            let names = (!found.left_alone).then_some(seen);
            let mut before = DirBefore { names, ..DirBefore::new(&meta, there) };
            self.take_later_times(&dir, &mut before);
            Ok(Some(before))
        });
        match made {
            Ok(None) => return Listed::TooLong,
            Ok(before) => found.before = before,
            // what is in it is not copied then
            Err(failure) => found = Found { failure: Some(failure), ..Found::default() },
        }
        found.retries = self.retries;
        Listed::Whole(Box::new(found))
    }

    /// Takes the times of a directory that was just listed from behind the listing, where they differ from those before it
    /// and the directory has the same entries when it is listed once more: what was cached has given way to what is. Only on
    /// file systems that other nodes change too; what fails here the directory's end will tell.
    pub(super) fn take_later_times(&self, dir: &OwnedFd, before: &mut DirBefore) {
        let times = |meta: &Meta| (meta.mtime, meta.ctime);
        let Some(Ok(now)) = self.source_lags.then(|| Meta::of_now(dir.as_fd())) else { return };
        if times(&now) == (before.mtime, before.ctime) {
            return;
        }
        let names = names_in(dir.as_fd(), self.rooms.reading).ok();
        let is_still = Meta::of_now(dir.as_fd()).is_ok_and(|after| times(&after) == times(&now));
        if names.is_some() && is_still && before.names == names {
            (before.mtime, before.ctime) = times(&now);
        }
    }

    /// The names of an open directory. What was seen of one that cannot be listed to its end counts.
    fn list_into(
        &mut self,
        (found, seen): (&mut Found, &mut NameSet),
        source: u16,
        path: &RelPath,
        dir: &OwnedFd,
    ) -> TooLong {
        let mut too_long = TooLong::No;
        let listed = self.retried(|me, _| {
            (found.names, found.subdirs, found.excluded, *seen) = Default::default();
            let failed = |err| failure(Op::List, Side::Source, err);
            let stream = open_dir_at(dir.as_fd(), b".", me.rooms.reading).map_err(failed)?;
            let mut unknown = None;
            let listed = list(stream, |entry| {
                seen.add(entry.name, entry.ino);
                match entry.kind.map_or_else(|| me.kind_of(dir, entry.name), Ok) {
                    Ok(kind) if me.is_excluded((source, path), entry.name, kind == Kind::Dir) => found.excluded += 1,
                    Ok(Kind::Dir) => found.subdirs.push(entry.name, Kind::Dir),
                    Ok(kind) => found.names.push(entry.name, kind),
                    // gone again since it was listed
                    Err(Errno::ENOENT) => {}
                    Err(err) => unknown = Some(err),
                }
                // rank 0 can hand it on in parts, and wait before it goes on
                if found.names.byte_len() > MAX_LISTED_LEN || found.subdirs.len() > MAX_LISTED_SUBDIRS {
                    too_long = TooLong::Yes;
                }
                let goes_on = unknown.is_none() && too_long == TooLong::No;
                if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            listed.map_err(failed)?;
            unknown.map_or(Ok(()), |err| Err(failed(err)))
        });
        found.failure = listed.err();
        too_long
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TooLong {
    Yes,
    No,
}
