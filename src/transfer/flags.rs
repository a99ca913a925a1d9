//! Inode flags and project ids of a copy: set, or counted.

use std::os::fd::BorrowedFd;

use super::metadata::Kept;
use super::{At, DEST, Mover, SOURCE};
use crate::policy::Flags;
use crate::sys::{Errno, Handle, InodeFlags, Meta};
use crate::types::{Call, Failure, Kind, Loss, Op, Verdict};

/// What is looked at on a device: nothing where nobody wants it, where the file system has none, or where it would be a request
/// to a server and is only to be counted.
#[derive(Clone, Copy, Default)]
pub(super) struct LooksAt {
    pub(super) flags: bool,
    pub(super) projects: bool,
}

impl Mover {
    /// The inode flags of a file or directory on the device `dev`, as far as they are looked at.
    ///
    /// # Errors
    /// Those of [`InodeFlags::of`].
    fn inode_flags(&self, entry: Handle<'_>, (dev, kind): (u64, Option<Kind>)) -> Result<InodeFlags, Errno> {
        if !matches!(kind, Some(Kind::File | Kind::Dir)) {
            return Ok(InodeFlags::default());
        }
        // the same device again needs no look at what the threads share
        let looks = match self.flagged.get() {
            Some((last, looks)) if last == dev => looks,
            _ => self.node.looks_at_flags(entry, dev),
        };
        self.flagged.set(Some((dev, looks)));
        if !looks.flags {
            return Ok(InodeFlags::default());
        }
        let flags = InodeFlags::of(entry, kind, looks.projects)?;
        if flags.is_none() {
            self.flagged.set(None);
            // a union answers for the layer that an entry is in
            if !entry.is_in_union() {
                self.node.has_no_flags(dev);
            }
        }
        Ok(flags.unwrap_or_default())
    }

    /// The inode flags of a source, as far as they are wanted. `None` if they cannot be read.
    ///
    /// # Errors
    /// What may pass.
    pub(super) fn source_flags(&self, from: Handle<'_>, source: &Meta) -> Result<Option<InodeFlags>, Failure> {
        match self.inode_flags(from, (source.dev, source.kind)) {
            Err(err) if !self.leniently && Call::InodeFlags.verdict(SOURCE, err) == Verdict::Again => {
                Err(err).at(Op::Xattr, SOURCE)
            }
            read => Ok(read.ok()),
        }
    }

    /// Sets the inode flags of a copy, or counts what it lacks of them: the last step, because nothing can be changed behind
    /// it. What keeps a file from being changed also keeps it from being linked, and the copy's root from losing its marker:
    /// only `alone` does an entry get it.
    pub(super) fn keep_flags(&mut self, to: Handle<'_>, kept: &mut Kept, alone: bool) {
        let (wanted, kind, dev) = (kept.flags, kept.meta.kind, kept.dev);
        if wanted.is_some_and(|wanted| !wanted.any()) {
            return;
        }
        let has = wanted.is_some_and(|wanted| {
            let there = self.retried(|me, _| {
                if me.job.policy.preserve.flags == Flags::Copied {
                    let settable = if alone { wanted } else { wanted.changeable() };
                    settable.add_to(to, kind);
                }
                me.inode_flags(to, (dev, kind)).at(Op::Xattr, DEST)
            });
            there.is_ok_and(|there| there.has(wanted))
        });
        if !has {
            kept.unkept.add(Loss::FLAGS);
        }
    }

    /// The inode flags that a new file has to have before it has data: of its source, if flags are copied.
    pub(super) fn flags_first(&self, from: BorrowedFd<'_>, source: &Meta) -> InodeFlags {
        let wants = self.job.policy.preserve.flags == Flags::Copied;
        let flags = wants.then(|| self.inode_flags(Handle::Open(from), (source.dev, source.kind)).ok()).flatten();
        flags.unwrap_or_default().storing()
    }

    /// Whether a copy has inode flags that its source's would take the place of.
    pub(super) fn has_settable_flags(&self, to: Handle<'_>, there: &Meta) -> bool {
        let has = || self.inode_flags(to, (there.dev, there.kind)).is_ok_and(InodeFlags::is_set);
        self.job.policy.preserve.flags == Flags::Copied && has()
    }
}
