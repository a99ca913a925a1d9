//! Entries without data: symbolic links, fifos, sockets, devices.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::beside::Made;
use super::entry::{Attempt, Links, facts};
use super::metadata::{Age, Setting};
use super::probe::LinkCalls;
use super::{At, DEST, Mover, Place, SOURCE};
use crate::collision::COLLISION;
use crate::guard::EXCHANGED;
use crate::sys::{Errno, Handle, Meta, close, create_new, hold, make_node, make_symlink, read_link, remove_file};
use crate::types::{Call, Failure, Kind, Loss, Op, Temporary};

impl Mover {
    pub(super) fn copy_special(
        &mut self,
        source: u16,
        place: &Place,
        kind: Kind,
        links: Links,
    ) -> Result<Attempt, Failure> {
        let (dir, name) = place.source();
        let from = hold(dir, name, self.reading.follow).at(Op::Open, SOURCE)?;
        let meta = Meta::of(&from).at(Op::Stat, SOURCE)?;
        if meta.kind != Some(kind) {
            return Ok(Attempt::Changed);
        }
        if links == Links::Return
            && let Some(attempt) = self.without_copying(source, place, kind, &meta)?
        {
            return Ok(attempt);
        }
        if self.is_another(source, links, &meta) {
            return Ok(Attempt::Changed);
        }
        let target = match kind {
            Kind::Symlink => Some(read_link(from.as_fd(), b"").at(Op::ReadLink, SOURCE)?),
            _ => None,
        };
        let link = if kind == Kind::Symlink { self.link_calls(source, place)? } else { LinkCalls::ALL };
        let op = if kind == Kind::Symlink { Op::Symlink } else { Op::Mknod };
        let uid = self.job.maker.uid;
        let make = |(dir, name): (BorrowedFd<'_>, &[u8])| match &target {
            Some(target) => make_symlink(target, dir, name),
            None => make_node(dir, name, kind, meta.rdev).inspect_err(|err| {
                if *err != Errno::EEXIST {
                    remove_stray(dir, name, uid);
                }
            }),
        };
        let unmade = || Ok(Attempt::Done(facts(&meta, Loss::SPECIAL.into(), None)));
        let made = match self.make_beside(source, place, make) {
            Ok(((), made)) => made,
            Err(err) if kind == Kind::Symlink || [Errno::EEXIST, COLLISION].contains(&err) => {
                return Err(err).at(op, DEST);
            }
            // an ordinary user's device, a file system without special files
            Err(err) if Call::Mknod.allows(err) => return unmade(),
            // ERANGE of cryfs, EIO of rclone: whether the type is the reason, a plain file tells
            Err(err) if !self.can_make_file(source, place) => return Err(err).at(op, DEST),
            Err(_) => match self.make_beside(source, place, make) {
                Ok(((), made)) => made,
                Err(_) => return unmade(),
            },
        };
        let Some(to) = self.held(&made, &meta, target.as_deref()).inspect_err(|_| made.discard())? else {
            made.discard();
            return unmade();
        };
        let finished = (|| {
            let mut kept = self.set_metadata(&Setting {
                from: Handle::Held(from.as_fd()),
                to: Handle::Held(to.as_fd()),
                source: &meta,
                inherits_acl: place.inherits_acl,
                of: Age::New,
                link,
                made: None,
            })?;
            if !made.is_final {
                let named = self.give_name(source, place, &made)?;
                let again = self.retried(|me, _| me.keep_times_again(Handle::Held(to.as_fd()), &mut kept));
                again.inspect_err(|_| named.discard())?;
            }
            Ok(kept)
        })();
        let kept = finished.inspect_err(|_| made.discard())?;
        Ok(Attempt::Done(kept.facts(target)))
    }

    /// Whether a plain file can be made where an entry cannot.
    fn can_make_file(&mut self, source: u16, place: &Place) -> bool {
        // Attempts at entries never reach this number.
        let temporary = Temporary { generation: self.job.generation, attempt: u8::MAX - 2 };
        let made = self.make_temporary(source, place, temporary, |(dir, name)| create_new(dir, name, 0o600));
        made.is_ok_and(|(file, made)| {
            made.discard();
            close(file).is_ok()
        })
    }

    /// Takes hold of an entry that was just made and is not opened: of the same type, target and device, and this user's own.
    /// `None`: the file system has made a plain file instead.
    fn held(&self, made: &Made, source: &Meta, target: Option<&[u8]>) -> Result<Option<OwnedFd>, Failure> {
        let (dir, name) = made.place();
        let held = hold(dir, name, false).at(Op::Open, DEST)?;
        let there = Meta::of(&held).at(Op::Stat, DEST)?;
        let same_target = match target {
            Some(target) => read_link(held.as_fd(), b"").at(Op::ReadLink, DEST)? == target,
            None => true,
        };
        let is_device = matches!(there.kind, Some(Kind::CharDev | Kind::BlockDev));
        let same_device = !is_device || there.rdev == source.rdev;
        let own = there.uid == self.job.maker.uid && there.nlink == 1;
        if own && there.kind == source.kind && same_target && same_device {
            return Ok(Some(held));
        }
        let is_plain = there.kind == Some(Kind::File) && there.size == 0;
        if own && is_plain && target.is_none() { Ok(None) } else { Err(EXCHANGED).at(Op::Open, DEST) }
    }
}

/// Removes the plain file that a file system has made instead of a special file before it answered with an error (exFAT).
fn remove_stray(dir: BorrowedFd<'_>, name: &[u8], uid: u32) {
    let is_stray = |there: Meta| there.kind == Some(Kind::File) && (there.size, there.nlink, there.uid) == (0, 1, uid);
    if Meta::at(dir, name).is_ok_and(is_stray) {
        let _ = remove_file(dir, name);
    }
}
