//! Further names of an entry that was copied.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::beside::Made;
use super::{At, DEST, Mover, Place};
use crate::guard::EXCHANGED;
use crate::proto::{Returned, TaskResult};
use crate::sys::{Errno, Handle, Meta, hold, link, read_link};
use crate::types::{Call, Facts, Failure, Halt, Kind, Loss, Op, Outcome, RelPath, Verdict};
use crate::watch;

impl Mover {
    /// Links each path to the owner. Paths that the file system cannot link are handed back, to be copied.
    pub(super) fn make_links(
        &mut self,
        source: u16,
        owner: &RelPath,
        kind: Kind,
        facts: &Facts,
        paths: Vec<RelPath>,
    ) -> TaskResult {
        let (mut unlinkable, mut proven) = (Vec::new(), None);
        for path in paths {
            if self.is_halting() {
                self.task.broken_off = true;
                break;
            }
            // The owner is a special file that the destination cannot make: neither are its other names.
            if facts.unkept.has(Loss::SPECIAL) {
                self.end(path, kind, Outcome::Done(facts.clone()));
                continue;
            }
            watch::begin(path.as_bytes(), b"");
            match self.retried(|me, _| me.make_link((source, kind), (owner, facts, &mut proven), &path)) {
                // The owner itself was at the destination already.
                Ok(_) if path == *owner => self.end_there(path, kind, facts.clone()),
                Ok(true) => {
                    let facts = Facts { hardlink: Some(owner.clone()), ..facts.clone() };
                    self.end(path, kind, Outcome::Done(facts));
                }
                Ok(false) => unlinkable.push(Returned::Unlinkable { path, kind }),
                // Whatever the reason is: if it is not the link's alone, the copy meets it too.
                Err(failure) if is_of_the_link(&failure) => unlinkable.push(Returned::Unlinkable { path, kind }),
                Err(failure) => {
                    self.fail(path, kind, failure);
                }
            }
        }
        TaskResult::Returned(unlinkable)
    }

    /// Links one path to the owner. `false`: the destination has no hard links, or no more of this file.
    fn make_link(
        &mut self,
        (source, kind): (u16, Kind),
        (owner, facts, proven): (&RelPath, &Facts, &mut Option<OwnedFd>),
        path: &RelPath,
    ) -> Result<bool, Failure> {
        let (owner_dir, owner_name) = owner.split().ok_or(Errno::EISDIR).at(Op::Link, DEST)?;
        let owner_dir = self.dest_dir(source, &owner_dir)?;
        let place = self.place(source, path)?;
        // The owner of the directory may have put another entry under this name: it is held and checked.
        let held = hold(owner_dir.as_fd(), owner_name, false).at(Op::Link, DEST)?;
        let touches = kind == Kind::Symlink && self.link_calls(source, &place)?.utimens;
        // Another thread would take the access time that readlink(2) sets for the link's own.
        let alone = touches.then(|| self.node.alone_with_times());
        let meta = match is_copy(held.as_fd(), kind, facts, touches) {
            // Here metadata may change without a writer (GlusterFS, rclone). This name is copied from the source; nothing of
            // the first name is used. If it is the first name itself, it is an error: nothing has copied it.
            Err(EXCHANGED) if self.node.doubts_metadata() && path != owner => return Ok(false),
            found => found.at(Op::Link, DEST)?,
        };
        drop(alone);
        if self.job.generation > 1
            && let Ok(there) = Meta::at(place.dest(), &place.dest_name)
            && meta.is_same(&there)
            && !self.has_other_name(source, &place).at(Op::Link, DEST)?
        {
            return Ok(true);
        }
        let held = match proven {
            Some(proven) => proven,
            // With --no-digest only type, owner, size and times are compared.
            None if facts.digest.is_some() && !self.has_content((owner_dir.as_fd(), held.as_fd()), facts)? => {
                return Err(EXCHANGED).at(Op::Link, DEST);
            }
            None => proven.insert(held),
        };
        match self.make_beside(source, &place, |to| link(held.as_fd(), to)) {
            Ok(((), made)) => {
                if !made.is_final {
                    self.replace(source, &place, &made)?;
                }
                self.sync_dir_later(&place.dir());
                Ok(true)
            }
            Err(err) if Call::Link.allows(err) => Ok(false),
            Err(err) => Err(err).at(Op::Link, DEST),
        }
    }

    fn replace(&mut self, source: u16, place: &Place, made: &Made) -> Result<(), Failure> {
        self.give_name(source, place, made).inspect_err(|_| made.discard())?;
        // rename(2) of one name of a file onto another name of the same file does nothing: the first name is still there.
        made.discard();
        Ok(())
    }
}

/// Whether a plain copy of the entry may do where a link has failed: GlusterFS has `ENOSPC` for a file with many names, cryfs
/// `ERANGE`, rclone `EIO`.
fn is_of_the_link(failure: &Failure) -> bool {
    failure.op == Op::Link
        && failure.errno != Errno::EEXIST as i32
        && failure.verdict() != Verdict::Halt(Halt::FileSystemGone)
}

/// Checks that an entry of the copy is as its record says: type, owner, size or target or device, modification time. If
/// `touches` holds, the access time of a symbolic link is set back after readlink(2).
fn is_copy(held: BorrowedFd<'_>, kind: Kind, facts: &Facts, touches: bool) -> Result<Meta, Errno> {
    // The cached metadata may be older than the last change by another node.
    for look in [Meta::of, Meta::of_now] {
        let there = look(held)?;
        let same_uid = facts.unkept.has(Loss::OWNER) || there.uid == facts.uid;
        let same_data = match kind {
            Kind::File => there.size == facts.size,
            Kind::Symlink => {
                let target = read_link(held, b"")?;
                if touches {
                    let _ = Handle::Held(held).set_times(there.atime, there.mtime);
                }
                facts.target == Some(target)
            }
            Kind::CharDev | Kind::BlockDev => facts.rdev == Some(there.rdev_numbers()),
            _ => true,
        };
        if there.kind == Some(kind) && same_uid && same_data && facts.may_have_time(there.mtime) {
            return Ok(there);
        }
    }
    Err(EXCHANGED)
}
