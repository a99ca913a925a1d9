//! Entries that earlier runs of the job have recorded: left where both sides still are as the record says.

use std::os::fd::AsFd;

use super::entry::Attempt;
use super::{At, DEST, Mover, Place};
use crate::journal::{Encoded, Item};
use crate::proto::KnownEntry;
use crate::sys::{Errno, Handle, Meta, Reading, open_read, read_link};
use crate::types::{Facts, Failure, Kind, Op, Outcome, Record, RelPath, Unkept};

/// What a look at both sides of a known entry has shown.
pub(super) enum Checked {
    /// Its data is there.
    There(Attempt),
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
    /// `None` when the bytes are not such a record: the entry is copied again.
    pub(super) fn of(entry: &KnownEntry) -> Option<Self> {
        let mut item = Encoded::default();
        match item.read(&mut entry.record.as_slice()).and_then(|_| item.decode()) {
            Ok(Item::Entry(Record { kind, outcome: Outcome::Done(mut facts), .. })) => {
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
        // what is wrong with it, who copies it will tell
        let Ok(from) = self.source_handle(place.source()).meta() else { return Ok(Checked::Copy { ours: false }) };
        let there = match Meta::at(place.dest(), &place.dest_name) {
            Err(Errno::ENOENT) => return Ok(Checked::Copy { ours: false }),
            there => there.at(Op::Stat, DEST)?,
        };
        let ours = self.is_recorded_copy(place, &there, entry)?;
        if !ours || !is_recorded_source(&from, entry) {
            return Ok(Checked::Copy { ours });
        }
        let facts = &entry.facts;
        let as_recorded = has_recorded_metadata(&from, &there, entry);
        // what is changed in place is changed under all of its names: some may be another file's by now, or somebody's snapshot
        if !as_recorded && there.nlink > 1 {
            return Ok(Checked::Copy { ours });
        }
        let facts = if as_recorded { None } else { Some(self.refresh(place, &from, facts)?) };
        if from.nlink > 1 && self.job.policy.preserve.links && !entry.facts.unkept.has(Unkept::LINK) {
            let facts = facts.unwrap_or_else(|| entry.facts.clone());
            let returned = self.linked(source, place, entry.kind, &from, Some(Box::new(facts)));
            return Ok(Checked::There(Attempt::Returned(returned)));
        }
        Ok(Checked::There(match facts {
            Some(facts) => Attempt::There(facts),
            None if entry.was_link => Attempt::There(entry.facts.clone()),
            None => Attempt::Confirmed,
        }))
    }

    /// Whether what is at the destination is what was recorded.
    fn is_recorded_copy(&self, place: &Place, there: &Meta, entry: &Earlier) -> Result<bool, Failure> {
        let Earlier { kind, facts, .. } = entry;
        Ok(has_recorded_times(there, entry)
            && match kind {
                Kind::File => there.size == facts.size,
                Kind::Symlink => {
                    let target = read_link(place.dest(), &place.dest_name).at(Op::ReadLink, DEST)?;
                    facts.target.as_deref() == Some(target.as_slice())
                }
                Kind::CharDev | Kind::BlockDev => facts.rdev == Some(there.rdev_numbers()),
                Kind::Fifo | Kind::Socket | Kind::Dir => true,
            })
    }

    /// Gives a copy whose data is as it should be its metadata again.
    fn refresh(&mut self, place: &Place, from: &Meta, facts: &Facts) -> Result<Facts, Failure> {
        let (source, dest) = (self.source_handle(place.source()), Handle::Named(place.dest(), &place.dest_name));
        let all_dropped = self.drop_other_xattrs(source, dest)?;
        let mut kept = self.set_metadata(source, dest, from, place.inherits_acl)?;
        if !all_dropped {
            kept.unkept.add(Unkept::XATTR);
        }
        if self.node.unsynced().is_some() && from.kind == Some(Kind::File) {
            let to = open_read(place.dest(), &place.dest_name, Reading::default()).at(Op::Open, DEST)?;
            self.sync_if_needed(to.as_fd())?;
        }
        let (target, digest) = (facts.target.clone(), facts.digest);
        let unlinkable = facts.unkept.has(Unkept::LINK);
        let mut facts = Facts { digest, ..kept.facts(target) };
        if unlinkable {
            facts.unkept.add(Unkept::LINK);
        }
        Ok(facts)
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

/// Whether nothing of the source's metadata was changed since it was copied, and owner and mode of the copy neither.
fn has_recorded_metadata(from: &Meta, there: &Meta, entry: &Earlier) -> bool {
    let facts = &entry.facts;
    let keeps = |kind, same: bool| same || facts.unkept.has(kind);
    from.ctime == facts.ctime
        && keeps(Unkept::OWNER, (there.uid, there.gid) == (facts.uid, facts.gid))
        && keeps(Unkept::MODE, entry.kind == Kind::Symlink || there.mode == facts.mode)
}

/// Whether a directory is on both sides as its record says: nothing in it came, went or has another name.
pub(super) fn is_recorded_dir(from: &Meta, there: &Meta, entry: &Earlier) -> bool {
    is_recorded_source(from, entry) && has_recorded_times(there, entry) && has_recorded_metadata(from, there, entry)
}

/// Whether the copy is of the kind that was recorded, and was not written since.
fn has_recorded_times(there: &Meta, Earlier { kind, facts, .. }: &Earlier) -> bool {
    there.kind == Some(*kind) && there.mtime == facts.mtime_there.unwrap_or(facts.mtime)
}

/// Whether the source has the data that was copied.
fn is_recorded_source(from: &Meta, entry: &Earlier) -> bool {
    let facts = &entry.facts;
    // the length of a symbolic link is that of its target; others have none that counts
    let same_size = !matches!(entry.kind, Kind::File | Kind::Symlink) || from.size == facts.size;
    let same_device = facts.rdev.is_none_or(|rdev| rdev == from.rdev_numbers());
    from.kind == Some(entry.kind) && same_size && same_device && from.mtime == facts.mtime
}
