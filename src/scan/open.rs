//! Opens a directory of the source, and makes or opens its counterpart at the destination.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::loops::{Ancestor, is_inside};
use super::{Lister, MAX_PATH_LEN, failure};
use crate::collision::COLLISION;
use crate::guard::{Guard, Position};
use crate::policy::Flags;
use crate::proto::{DirBefore, Job};
use crate::state::is_copy_of;
use crate::sys::{DirCache, DirThere, Errno, Meta, hold, mode_before, names_in, strip_dir_acls, take_flags_off};
use crate::types::{Failure, Kind, Op, RelPath, Side};

impl Lister {
    /// Refuses a path that is too long to be sent and recorded: a very deep tree must not stop the job.
    fn check_len(&self, path: &RelPath) -> Result<(), Failure> {
        if path.as_bytes().len() <= MAX_PATH_LEN {
            return Ok(());
        }
        Err(failure(Op::List, Side::Source, Errno::ENAMETOOLONG))
    }

    /// Opens a directory of the source, unless it holds itself, or is the destination.
    pub(super) fn open_source(
        &mut self,
        source: u16,
        path: &RelPath,
        ancestors: Option<&Arc<Ancestor>>,
        linked: bool,
    ) -> Result<(Arc<OwnedFd>, Meta), Failure> {
        self.check_len(path)?;
        let rooms = Arc::clone(&self.rooms);
        let below = path.strip(&rooms.job.sources[usize::from(source)].target);
        let below = below.expect("the scan's paths are below their source's target");
        let dir = self.sources.open(usize::from(source), &below);
        let dir = dir.map_err(|err| failure(Op::Open, Side::Source, err))?;
        // Cached metadata may be older than what the listing will show.
        let meta = Meta::of_now(dir.as_fd()).map_err(|err| failure(Op::Stat, Side::Source, err))?;
        // The destination may be mounted below the source.
        let destination = &rooms.destination_meta;
        let in_destination = if linked { is_inside(dir.as_fd(), destination) } else { Ok(meta.is_same(destination)) };
        let in_destination = in_destination.map_err(|err| failure(Op::Stat, Side::Source, err))?;
        // On another mount the numbers differ: its name, and then its state directory, tell the copy from other directories.
        let is_named_so = path.split().is_some_and(|(_, name)| name == rooms.copy_name);
        let in_destination =
            in_destination || (is_named_so && !rooms.job.policy.dry_run && is_copy_of(dir.as_fd(), rooms.job.id));
        let holds_itself = in_destination || Ancestor::has(ancestors, &meta);
        if holds_itself && !rooms.leaves_alone(source, &meta) {
            return Err(Failure::LOOP);
        }
        Ok((dir, meta))
    }

    /// Makes the directory at the destination, or uses the one that is there already; `from` is the source's. On a further
    /// attempt (`again`) the directory may be one that the first attempt has made.
    pub(super) fn make_dir(
        &mut self,
        (source, path): (u16, &RelPath),
        from: (&OwnedFd, &Meta),
        again: bool,
    ) -> Result<DirThere, Failure> {
        let rooms = Arc::clone(&self.rooms);
        let job = &rooms.job;
        let failed = |op| move |err| failure(op, Side::Destination, err);
        let Some((above, name)) = path.split().filter(|_| !job.policy.dry_run) else {
            if job.fresh || job.policy.dry_run {
                let mode = mode_before(&rooms.destination_meta).filter(|_| !job.fresh);
                return Ok(DirThere { mode, lent: false });
            }
            let top = self.destination.open(0, path).map_err(failed(Op::Open))?;
            return rooms.guard.take_top(top.as_fd(), from).map_err(failed(Op::Mkdir));
        };
        let parent = open_destination((&rooms.guard, job), (&mut self.destination, &mut self.sources), source, &above);
        let parent = parent.map_err(failed(Op::Open))?;
        let at = Position { above: parent.as_fd(), name, path };
        let use_it = |me: &mut Self| {
            let held = hold(at.above, name, false)?;
            if me.has_other_name(source, (&parent, &above), name)? {
                return Err(COLLISION);
            }
            if job.fresh && !again {
                return Err(Errno::EEXIST);
            }
            // an earlier run has set them, and this one will; where others can exchange names it may be anybody's
            let sets = job.generation > 1 && job.policy.preserve.flags == Flags::Copied;
            if sets && !rooms.guard.is_shared(at.above)? {
                take_flags_off(held.as_fd(), Some(Kind::Dir))?;
            }
            rooms.guard.take(at, held.as_fd(), from)
        };
        let make = |me: &mut Self| match rooms.guard.make(at) {
            Err(Errno::EEXIST) => use_it(me),
            made => made,
        };
        // In a further run most directories exist: a look costs less than mkdir.
        let there = if job.generation > 1 && !job.fresh {
            match use_it(self) {
                Err(Errno::ENOENT) => make(self),
                there => there,
            }
        } else {
            make(self)
        };
        let there = there.map_err(failed(Op::Mkdir))?;
        let is_new = there.mode.is_none();
        if job.fresh && !is_new {
            return Err(failure(Op::Mkdir, Side::Destination, Errno::EEXIST));
        }
        // In a tree that this job has made, no directory has a default ACL before it is finished.
        if is_new && !job.fresh && job.policy.strips_inherited_acls() {
            strip_dir_acls(parent.as_fd(), name).map_err(failed(Op::Xattr))?;
        }
        if let Some(unsynced) = rooms.unsynced.as_ref().filter(|_| is_new) {
            unsynced.add(&above);
        }
        Ok(there)
    }

    /// Whether what stands under the name of a directory has another name: that of another entry of the source.
    fn has_other_name(
        &mut self,
        source: u16,
        (dir, path): (&Arc<OwnedFd>, &RelPath),
        name: &[u8],
    ) -> Result<bool, Errno> {
        let Self { rooms, sources, collisions, .. } = self;
        collisions.has_other(dir, name, || {
            if rooms.targets.meeting_at(path) > 1 {
                return Ok(None);
            }
            match path.strip(&rooms.job.sources[usize::from(source)].target) {
                Some(below) => names_in(sources.open(usize::from(source), &below)?.as_fd()).map(Some),
                // the source itself, alone in this directory
                None => Ok(Some(Vec::new())),
            }
        })
    }
}

/// Opens a directory of the copy to reach its entries. Each directory on the way is checked by the guard.
///
/// # Errors
/// Those of open(2); [`EXCHANGED`](crate::guard::EXCHANGED).
pub fn open_destination(
    (guard, job): (&Guard, &Job),
    (destination, sources): (&mut DirCache, &mut DirCache),
    source: u16,
    path: &RelPath,
) -> Result<Arc<OwnedFd>, Errno> {
    if !guard.watches() {
        return destination.open(0, path);
    }
    let top = &job.sources[usize::from(source)].target;
    destination.open_checked(0, path, |above, path, dir| {
        let path = RelPath::new(path.to_vec()).map_err(|_| Errno::EINVAL)?;
        // Directories above the source's target have no counterpart in the source.
        let Some(below) = path.strip(top) else { return Ok(()) };
        let name = path.split().map(|(_, name)| name).unwrap_or_default();
        let source_meta = || Meta::known(sources.open(usize::from(source), &below)?.as_fd());
        guard.check(Position { above, name, path: &path }, dir, source_meta)
    })
}

impl DirBefore {
    /// A source's directory before it is listed, and how its counterpart was found.
    pub(super) fn new(meta: &Meta, there: DirThere) -> Self {
        let Meta { atime, mtime, ctime, .. } = *meta;
        Self { atime, mtime, ctime, mode_there: there.mode, lent: there.lent, names: None }
    }
}
