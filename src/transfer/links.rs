//! Further names of an entry that was copied.

use std::os::fd::AsFd;

use super::{At, DEST, Mover, Place};
use crate::proto::{Returned, TaskResult};
use crate::sys::{Errno, Meta, link, remove_file, rename};
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
            // what could not be made has no other names either
            if facts.unkept.has(Unkept::SPECIAL) {
                self.end(path, kind, Outcome::Done(facts.clone()));
                continue;
            }
            match self.make_link(source, owner, &path) {
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
        match self.make_beside(source, &place, |name| link(from, (place.dest(), name))) {
            Ok(((), temporary)) => {
                temporary.map_or(Ok(()), |temporary| replace(&place, &temporary))?;
                self.sync_names(place.dest());
                Ok(true)
            }
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK | Errno::EXDEV) => Ok(false),
            Err(err) => Err(err).at(Op::Link, DEST),
        }
    }
}

fn replace(place: &Place, temporary: &[u8]) -> Result<(), Failure> {
    rename(place.dest(), temporary, &place.dest_name)
        .inspect_err(|_| {
            // that it failed is recorded; a temporary name that stays behind claims nothing
            let _ = remove_file(place.dest(), temporary);
        })
        .at(Op::Rename, DEST)?;
    // renaming one name of a file onto another name of it does nothing, rename(2): the first one is left
    if Meta::at(place.dest(), temporary).is_ok() {
        remove_file(place.dest(), temporary).at(Op::Rename, DEST)?;
    }
    Ok(())
}
