//! Both sides of a directory: the source's is opened, the destination's made.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::loops::{Ancestor, is_inside};
use super::{Lister, MAX_PATH_LEN, failure};
use crate::proto::DirBefore;
use crate::sys::{DirThere, Errno, Meta, make_dir, mode_before, strip_dir_acls, use_dir};
use crate::types::{Failure, Op, RelPath, Side};

impl Lister {
    /// A path is walked, sent and recorded as a whole: a tree that is made endlessly deep must not stop the job.
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
        // what the kernel remembers may be older than what the listing will show
        let meta = Meta::of_now(dir.as_fd()).map_err(|err| failure(Op::Stat, Side::Source, err))?;
        // the destination may be mounted in the source
        let destination = &rooms.destination_meta;
        let in_destination = if linked { is_inside(dir.as_fd(), destination) } else { Ok(meta.is_same(destination)) };
        let in_destination = in_destination.map_err(|err| failure(Op::Stat, Side::Source, err))?;
        let holds_itself = in_destination || Ancestor::has(ancestors, &meta);
        if holds_itself && !rooms.leaves_alone(source, &meta) {
            return Err(Failure::LOOP);
        }
        Ok((dir, meta))
    }

    /// Makes the directory at the destination, or uses the one that is there already. When it is tried `again` the first
    /// time may have made it.
    pub(super) fn make_dir(&mut self, path: &RelPath, again: bool) -> Result<DirThere, Failure> {
        let job = Arc::clone(&self.rooms.job);
        let Some((above, name)) = path.split().filter(|_| !job.policy.dry_run) else {
            let mode = mode_before(&self.rooms.destination_meta).filter(|_| !job.fresh);
            return Ok(DirThere { mode, lent: false });
        };
        let parent = self.destination.open(0, &above).map_err(|err| failure(Op::Open, Side::Destination, err))?;
        let make = || make_dir(parent.as_fd(), name, job.fresh && !again);
        // most are there when the job goes on, and a look is cheaper than an attempt
        let there = if job.generation > 1 && !job.fresh {
            match use_dir(parent.as_fd(), name) {
                Err(Errno::ENOENT) => make(),
                there => there,
            }
        } else {
            make()
        };
        let there = there.map_err(|err| failure(Op::Mkdir, Side::Destination, err))?;
        let is_new = there.mode.is_none();
        if job.fresh && !is_new {
            return Err(failure(Op::Mkdir, Side::Destination, Errno::EEXIST));
        }
        // what this job has made hands no ACL down before it is finished
        if is_new && !job.fresh && job.policy.strips_inherited_acls() {
            strip_dir_acls(parent.as_fd(), name).map_err(|err| failure(Op::Xattr, Side::Destination, err))?;
        }
        if let Some(unsynced) = self.rooms.unsynced.as_ref().filter(|_| is_new) {
            unsynced.add(&above);
        }
        Ok(there)
    }
}

impl DirBefore {
    /// Takes down a source's directory, whose names are still to be listed, and how the destination's was found.
    pub(super) fn new(meta: &Meta, there: DirThere) -> Self {
        let Meta { atime, mtime, ctime, .. } = *meta;
        Self { atime, mtime, ctime, mode_there: there.mode, lent: there.lent, names: None }
    }
}
