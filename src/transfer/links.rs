//! Further names of an entry that was copied.

use std::os::fd::AsFd;

use super::{At, DEST, Mover, Place};
use crate::proto::{Returned, TaskResult};
use crate::sys::{Call, Errno, Meta, link, remove_file};
use crate::types::{Facts, Failure, Kind, Op, Outcome, RelPath, Unkept};

impl Mover {
    /// Links each path to the owner; what cannot be linked is handed back, to be copied.
    pub(super) fn make_links(
        &mut self,
        source: u16,
        owner: &RelPath,
        kind: Kind,
        facts: &Facts,
        paths: Vec<RelPath>,
    ) -> TaskResult {
        let mut unlinkable = Vec::new();
        for path in paths {
            if self.is_halting() {
                self.task.broken_off = true;
                break;
            }
            // what could not be made has no other names either
            if facts.unkept.has(Unkept::SPECIAL) {
                self.end(path, kind, Outcome::Done(facts.clone()));
                continue;
            }
            match self.retried(|me, _| me.make_link(source, owner, &path)) {
                // that one was there already
                Ok(_) if path == *owner => self.end_there(path, kind, facts.clone()),
                Ok(true) => {
                    let facts = Facts { hardlink: Some(owner.clone()), ..facts.clone() };
                    self.end(path, kind, Outcome::Done(facts));
                }
                Ok(false) => unlinkable.push(Returned::Unlinkable { path, kind }),
                Err(failure) => {
                    self.fail(path, kind, failure);
                }
            }
        }
        TaskResult::Returned(unlinkable)
    }

    /// Whether the destination has links at all, and this one now.
    fn make_link(&mut self, source: u16, owner: &RelPath, path: &RelPath) -> Result<bool, Failure> {
        let (owner_dir, owner_name) = owner.split().ok_or(Errno::EISDIR).at(Op::Link, DEST)?;
        let owner_dir = self.dest_dir(&owner_dir)?;
        let place = self.place(source, path)?;
        let from = (owner_dir.as_fd(), owner_name);
        if self.job.generation > 1
            && let (Ok(owner), Ok(there)) = (Meta::at(from.0, from.1), Meta::at(place.dest(), &place.dest_name))
            && owner.is_same(&there)
        {
            return Ok(true);
        }
        match self.make_beside(source, &place, |name| link(from, (place.dest(), name))) {
            Ok(((), temporary)) => {
                temporary.map_or(Ok(()), |temporary| self.replace(&place, &temporary))?;
                self.sync_dir_later(&place.dir());
                Ok(true)
            }
            Err(err) if Call::Link.allows(err) => Ok(false),
            Err(err) => Err(err).at(Op::Link, DEST),
        }
    }

    fn replace(&self, place: &Place, temporary: &[u8]) -> Result<(), Failure> {
        self.give_name(place, temporary).inspect_err(|_| {
            // that it failed is recorded; a temporary name that stays behind claims nothing
            let _ = remove_file(place.dest(), temporary);
        })?;
        // renaming one name of a file onto another name of it does nothing, rename(2): the first one is left
        if Meta::at(place.dest(), temporary).is_ok() {
            remove_file(place.dest(), temporary).at(Op::Rename, DEST)?;
        }
        Ok(())
    }
}
