//! Entries that earlier runs of the job have recorded: left where both sides still are as the record says.

use std::os::fd::{AsFd, BorrowedFd};

use super::data::Span;
use super::entry::Attempt;
use super::metadata::{Age, SETUID_SETGID, Setting};
use super::probe::LinkCalls;
use super::{At, DEST, Mover, Place, SOURCE};
use crate::digest::PieceHasher;
use crate::journal::{Encoded, Item};
use crate::plan::Range;
use crate::policy::Changes;
use crate::proto::KnownEntry;
use crate::sys::{Class, End, Errno, Handle, Meta, Reading, hold, open_read, read_link, reopen};
use crate::types::{Facts, Failure, Kind, Loss, Op, Outcome, Record, RelPath, Unkept};

/// What a look at both sides of a known entry has shown.
pub(super) enum Checked {
    /// Its data is there.
    There(Box<Attempt>),
    /// It has to be copied; `ours` when what is at the destination is still what was copied there.
    Copy { ours: bool },
}

/// The record of an entry that an earlier run has copied.
pub(super) struct Earlier {
    /// Names it on rank 0.
    pub(super) number: u64,
    kind: Kind,
    /// Without the name that it was linked to.
    facts: Facts,
    was_link: bool,
}

impl Earlier {
    /// `None` when the bytes are not such a record, without its path: the entry is copied again.
    pub(super) fn of(entry: &KnownEntry) -> Option<Self> {
        let mut item = Encoded::default();
        match item.read(&mut entry.record.as_slice()).and_then(|_| item.decode()) {
            Ok(Item::Entry(Record { path, kind, outcome: Outcome::Done(mut facts) })) if path.is_root() => {
                let was_link = facts.hardlink.take().is_some();
                Some(Self { number: entry.number, kind, facts, was_link })
            }
            _ => None,
        }
    }
}

impl Mover {
    /// Looks at both sides of an entry with a record.
    pub(super) fn check_known(&mut self, source: u16, place: &Place, entry: &Earlier) -> Result<Checked, Failure> {
        // if the source cannot be read, the copy path reports the error
        let Ok(from) = self.source_meta(place.source()) else { return Ok(Checked::Copy { ours: false }) };
        let there = match Meta::at(place.dest(), &place.dest_name) {
            Err(Errno::ENOENT) => return Ok(Checked::Copy { ours: false }),
            there => there.at(Op::Stat, DEST)?,
        };
        let ours = is_recorded_copy((place.dest(), &place.dest_name), &there, entry)?;
        let (dir, name) = place.source();
        // another target of the same length may have the same time
        let same_target = from.kind != Some(Kind::Symlink)
            || read_link(dir, name).is_ok_and(|target| entry.facts.target.as_deref() == Some(target.as_slice()));
        if !ours || !same_target || !is_recorded_source(&from, entry) {
            return Ok(Checked::Copy { ours });
        }
        let facts = match self.has_recorded_metadata(&from, &there, entry) {
            true => None,
            false => match self.refresh(source, place, entry)? {
                None => return Ok(Checked::Copy { ours }),
                refreshed => refreshed,
            },
        };
        if from.nlink > 1 && self.job.policy.preserve.links && !entry.facts.unkept.has(Loss::LINK) {
            let facts = facts.unwrap_or_else(|| entry.facts.clone());
            let returned = self.linked(source, place, entry.kind, &from, Some(Box::new(facts)));
            return Ok(Checked::There(Box::new(Attempt::Returned(returned))));
        }
        Ok(Checked::There(Box::new(match facts {
            Some(facts) => Attempt::There(facts),
            None if entry.was_link => Attempt::There(entry.facts.clone()),
            None => Attempt::Confirmed,
        })))
    }

    /// Sets the metadata of a copy again whose data is as recorded. `None` if the entry has to be copied again.
    ///
    /// Metadata is set in place only if the entry keeps its user, has one name, gets neither setuid nor setgid nor
    /// capabilities, and has the recorded content. A change in place would reach all names of the file, and its owner may have
    /// written to it and set its times back, or put another file of his in its place.
    fn refresh(&mut self, number: u16, place: &Place, entry: &Earlier) -> Result<Option<Facts>, Failure> {
        let Earlier { kind, facts, .. } = entry;
        let ((dir, name), reading) = (place.source(), self.reading);
        let from = hold(dir, name, reading.follow).at(Op::Open, SOURCE)?;
        let source = Meta::of(&from).at(Op::Stat, SOURCE)?;
        let to = hold(place.dest(), &place.dest_name, false).at(Op::Open, DEST)?;
        let there = Meta::of(&to).at(Op::Stat, DEST)?;
        let keeps_owner = self.node.guard().wanted(&source, &there).0 == there.uid || facts.unkept.has(Loss::OWNER);
        let (source_handle, handle) = (Handle::Held(from.as_fd()), Handle::Held(to.as_fd()));
        let gives_rights = *kind == Kind::File
            && (source.mode & SETUID_SETGID != 0
                || self.read_xattrs((source_handle, &source), &mut Unkept::default())?.has(Class::Privilege));
        let is_same = is_recorded_source(&source, entry) && is_recorded_copy((to.as_fd(), b""), &there, entry)?;
        // a new copy gets its flags at once: a kill leaves none without them that has all else
        if !is_same || !keeps_owner || gives_rights || there.nlink > 1 || self.has_settable_flags(handle, &there) {
            return Ok(None);
        }
        if *kind == Kind::File
            && (!self.has_content((place.dest(), to.as_fd()), facts)? || !self.is_unchanged(place, &source, facts)?)
        {
            return Ok(None);
        }
        // attributes of the user's own read-only file: the mode is set again below
        if *kind == Kind::File && !self.node.privileged && there.mode & 0o200 == 0 {
            handle.set_mode(there.mode | 0o200).at(Op::Chmod, DEST)?;
        }
        let all_dropped = self.drop_other_xattrs(source_handle, handle)?;
        let inherits_acl = place.inherits_acl;
        let link = if *kind == Kind::Symlink { self.link_calls(number, place)? } else { LinkCalls::ALL };
        let setting =
            Setting { from: source_handle, to: handle, source: &source, inherits_acl, of: Age::Old, link, made: None };
        let mut kept = self.set_metadata(&setting)?;
        if !all_dropped {
            kept.unkept.add(Loss::XATTR);
        }
        self.keep_flags(handle, &mut kept, source.nlink == 1);
        if self.node.unsynced().is_some() && *kind == Kind::File {
            let to = open_read(place.dest(), &place.dest_name, Reading::default()).at(Op::Open, DEST)?;
            self.sync_if_needed(to.as_fd())?;
        }
        let (target, digest) = (facts.target.clone(), facts.digest);
        let mut new = Facts { digest, ..kept.facts(target) };
        if facts.unkept.has(Loss::LINK) {
            new.unkept.add(Loss::LINK);
        }
        Ok(Some(new))
    }

    /// Whether a file has the recorded content. It is read only where others can exchange the names in its directory; elsewhere
    /// size and times, which the caller has compared, are enough. The owner of a file can set both.
    pub(super) fn has_content(
        &mut self,
        (dir, held): (BorrowedFd<'_>, BorrowedFd<'_>),
        facts: &Facts,
    ) -> Result<bool, Failure> {
        if !self.node.guard().watches() || !self.node.guard().is_shared(dir).at(Op::Stat, DEST)? {
            return Ok(true);
        }
        self.reads_as(&mut End::buffered(reopen(held).at(Op::Open, DEST)?), facts)
    }

    /// Whether the source still has the recorded content although its ctime is another one. It is read: size and modification
    /// time can be the same in spite of another content. A file that several ranks would copy is copied again instead.
    fn is_unchanged(&mut self, place: &Place, source: &Meta, facts: &Facts) -> Result<bool, Failure> {
        if source.ctime == facts.ctime || self.job.policy.changes != Changes::Ctime {
            return Ok(true);
        }
        if source.size > self.job.tuning.range_len {
            return Ok(false);
        }
        let (dir, name) = place.source();
        let mut from = End::buffered(open_read(dir, name, self.reading).at(Op::Open, SOURCE)?);
        let reads_as = self.reads_as(&mut from, facts).map_err(|failure| Failure { side: SOURCE, ..failure })?;
        let after = self.node.meta_now(from.plain(), source.dev).at(Op::Stat, SOURCE)?;
        Ok(reads_as && !Changes::Ctime.show_another(&source.identity(), &after.identity()))
    }

    /// Whether an open file has the recorded content.
    fn reads_as(&mut self, file: &mut End, facts: &Facts) -> Result<bool, Failure> {
        let Some(digest) = facts.digest else { return Ok(false) };
        let (moved, mut hasher) = (self.task.bytes_moved, PieceHasher::whole(facts.size));
        let range = Range { offset: 0, len: facts.size };
        let span = self.copy_span(file, None, range, false, Some(&mut hasher))?;
        self.task.bytes_moved = moved;
        Ok(span == Span::Copied && hasher.finish() == digest)
    }

    /// Whether nothing of the source's metadata was changed since it was copied, and owner and mode of the copy neither. Without
    /// ctime a change of owner and mode alone is noticed.
    fn has_recorded_metadata(&self, from: &Meta, there: &Meta, entry: &Earlier) -> bool {
        let facts = &entry.facts;
        let keeps = |kind, same: bool| same || facts.unkept.has(kind);
        let mode_counts = entry.kind != Kind::Symlink && self.job.policy.preserve.mode;
        let is_unchanged = match self.job.policy.changes {
            Changes::Ctime => from.ctime == facts.ctime,
            Changes::Mtime | Changes::None => {
                let wanted = self.node.guard().wanted(from, there);
                (!mode_counts || from.mode == facts.mode) && keeps(Loss::OWNER, wanted == (facts.uid, facts.gid))
            }
        };
        is_unchanged
            && keeps(Loss::OWNER, (there.uid, there.gid) == (facts.uid, facts.gid))
            && keeps(Loss::MODE, entry.kind == Kind::Symlink || there.mode == facts.mode)
    }

    /// Whether a directory is on both sides as its record says: nothing in it came, went or has another name.
    pub(super) fn is_recorded_dir(&self, from: &Meta, there: &Meta, entry: &Earlier) -> bool {
        is_recorded_source(from, entry)
            && has_recorded_times(there, entry)
            && self.has_recorded_metadata(from, there, entry)
    }

    /// Ends an entry whose data is there from an earlier run.
    pub(super) fn end_there(&mut self, path: RelPath, kind: Kind, facts: Facts) {
        let outcome = Outcome::Done(facts);
        self.task.records.count_left(&Record { path: path.clone(), kind, outcome: outcome.clone() });
        self.end(path, kind, outcome);
    }

    /// Counts an entry that is as its record says.
    pub(super) fn confirm(&mut self, path: RelPath, entry: Earlier) {
        let outcome = Outcome::Done(entry.facts);
        self.task.records.count_resumed(&Record { path, kind: entry.kind, outcome });
    }
}

/// Whether the copy is of the kind that was recorded, and was not written since.
fn has_recorded_times(there: &Meta, Earlier { kind, facts, .. }: &Earlier) -> bool {
    there.kind == Some(*kind) && facts.may_have_time(there.mtime)
}

/// Whether the source has the data that was copied.
fn is_recorded_source(from: &Meta, entry: &Earlier) -> bool {
    let facts = &entry.facts;
    // the length of a symbolic link is that of its target; others have none that counts
    let same_size = !matches!(entry.kind, Kind::File | Kind::Symlink) || from.size == facts.size;
    let same_device = facts.rdev.is_none_or(|rdev| rdev == from.rdev_numbers());
    from.kind == Some(entry.kind) && same_size && same_device && from.mtime == facts.mtime
}

/// Whether what is at the destination, by its name or held, is what was recorded.
fn is_recorded_copy((dir, name): (BorrowedFd<'_>, &[u8]), there: &Meta, entry: &Earlier) -> Result<bool, Failure> {
    let Earlier { kind, facts, .. } = entry;
    Ok(has_recorded_times(there, entry)
        && match kind {
            Kind::File => there.size == facts.size,
            Kind::Symlink => {
                let target = read_link(dir, name).at(Op::ReadLink, DEST)?;
                facts.target.as_deref() == Some(target.as_slice())
            }
            Kind::CharDev | Kind::BlockDev => facts.rdev == Some(there.rdev_numbers()),
            Kind::Fifo | Kind::Socket | Kind::Dir => true,
        })
}
