//! One entry, whole: what becomes of it, and the copying of a file up to the range length (entries without data: `special`).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::data::{Pair, Span};
use super::known::{Checked, Earlier};
use super::metadata::{Age, Kept, Setting};
use super::probe::LinkCalls;
use super::syncer::{Syncer, make_durable};
use super::{At, DEST, MAX_ATTEMPTS, Mover, Place, SOURCE};
use crate::digest::PieceHasher;
use crate::plan::Range;
use crate::policy::Existing;
use crate::proto::{Known, Names, Owned, Returned, Sparse, TaskResult};
use crate::sys::{End, Errno, Handle, Meta, create_new, open_read, read_link, remove_file, set_len};
use crate::types::{Digest, Facts, Failure, Fate, Kind, LinkId, Loss, Op, Outcome, Partial, RelPath, Unkept};
use crate::watch;

/// How an attempt at an entry went.
pub(super) enum Attempt {
    Done(Facts),
    /// Whole under its final name, but for what [`make_durable`] does.
    Written(Facts, Box<End>),
    /// What is at the destination was to be left.
    Left(Kind, Facts),
    /// Its data is there from an earlier run; these are its new facts.
    There(Facts),
    /// It is as an earlier run has recorded it.
    Confirmed,
    /// Someone else's task: it is large, or it has several names.
    Returned(Returned),
    /// The source changed while it was read; what was written is gone.
    Changed,
    /// The source did not, and has not the length that its size says; what was written is gone.
    NotItsSize,
}

impl Attempt {
    /// Makes what was written durable, and ends the attempt so.
    fn durable(self, place: &Place) -> Result<Self, Failure> {
        match self {
            Self::Written(facts, file) => {
                let synced = make_durable(*file).inspect_err(|_| discard(place));
                synced.map(|()| Self::Done(facts))
            }
            ended => Ok(ended),
        }
    }
}

/// A small file that has its data and its metadata.
struct Filled {
    kept: Kept,
    to: End,
    digest: Option<Digest>,
}

/// Whether an entry with several names is copied here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// Handed back, so that one rank copies it.
    Return,
    /// This is that rank; with a number, only if the name still is the file of that number.
    Own(Option<LinkId>),
}

/// The directories of entries in both trees, once they are open.
struct Dirs<'a> {
    source: u16,
    dir: &'a RelPath,
    open: Option<(Arc<OwnedFd>, Arc<OwnedFd>)>,
    inherits_acl: bool,
}

impl<'a> Dirs<'a> {
    fn new(source: u16, dir: &'a RelPath) -> Self {
        Self { source, dir, open: None, inherits_acl: false }
    }
}

impl Mover {
    /// Copies entries of one directory; returns those that need another task.
    pub(super) fn copy_entries(&mut self, source: u16, dir: &RelPath, names: &Names) -> Vec<Returned> {
        let mut dirs = Dirs::new(source, dir);
        let (mut returned, mut written) = (Vec::new(), HashMap::new());
        for (number, (name, kind)) in names.iter().enumerate() {
            if self.is_halting() {
                self.task.broken_off = true;
                break;
            }
            watch::begin(dir.as_bytes(), name);
            let attempt = self.retried(|me, again| {
                let place = me.place_in(&mut dirs, name, again)?;
                let attempt = me.copy_entry(source, &place, kind, (Links::Return, None), 0)?;
                if me.syncer.is_some() { Ok(attempt) } else { attempt.durable(&place) }
            });
            match (attempt, &self.syncer) {
                (Ok(Attempt::Written(facts, file)), Some(syncer)) => {
                    syncer.add(number, dir.join(name), *file);
                    written.insert(number, (name, facts));
                }
                (attempt, _) => returned.extend(self.end_attempt(dir.join(name), kind, attempt)),
            }
            if written.len() == Syncer::AT_ONCE {
                returned.extend(self.end_written(&mut dirs, &mut written));
            }
        }
        while !written.is_empty() {
            returned.extend(self.end_written(&mut dirs, &mut written));
        }
        self.sync_dir_later(dir);
        returned
    }

    /// Ends one of the files that are being made durable. What fails then may have lost its data: it is copied again as
    /// whatever fails is.
    fn end_written(&mut self, dirs: &mut Dirs<'_>, written: &mut HashMap<usize, (&[u8], Facts)>) -> Option<Returned> {
        let (number, synced) = self.syncer.as_ref().expect("there is one where something was written").wait();
        let (name, facts) = written.remove(&number).expect("it was handed over once");
        let attempt = match synced {
            Ok(()) => Ok(Attempt::Done(facts)),
            Err(failure) => {
                let mut failed = Some(failure);
                self.retried(|me, again| {
                    let place = me.place_in(dirs, name, again)?;
                    if let Some(failure) = failed.take() {
                        discard(&place);
                        return Err(failure);
                    }
                    me.copy_entry(dirs.source, &place, Kind::File, (Links::Return, None), 0)?.durable(&place)
                })
            }
        };
        self.end_attempt(dirs.dir.join(name), Kind::File, attempt)
    }

    /// Looks at entries of one directory that earlier runs have recorded or begun, and copies what is not as recorded.
    pub(super) fn copy_known(&mut self, source: u16, dir: &RelPath, entries: Vec<Known>) -> TaskResult {
        let mut dirs = Dirs::new(source, dir);
        let (mut confirmed, mut returned, count) = (Vec::new(), Vec::new(), entries.len());
        for known in entries {
            if self.is_halting() {
                self.task.broken_off = true;
                break;
            }
            watch::begin(dir.as_bytes(), &known.name);
            let path = dir.join(&known.name);
            let earlier = known.entry.as_ref().and_then(Earlier::of);
            let attempt = self.retried(|me, again| {
                let mut place = me.place_in(&mut dirs, &known.name, again)?;
                let checked = earlier.as_ref().map(|earlier| me.check_known(source, &place, earlier)).transpose()?;
                match checked.unwrap_or(Checked::Copy { ours: false }) {
                    Checked::There(attempt) => Ok(*attempt),
                    Checked::Copy { ours } => {
                        // of a copy that was complete the user's word counts: what is there is left
                        place.ours |= ours && me.job.began.is_some();
                        me.copy_entry(source, &place, known.kind, (Links::Return, known.partial), 0)?.durable(&place)
                    }
                }
            });
            match (attempt, earlier) {
                (Ok(Attempt::Confirmed), Some(earlier)) => {
                    confirmed.push(earlier.number);
                    self.confirm(path, earlier);
                }
                (attempt, _) => returned.extend(self.end_attempt(path, known.kind, attempt)),
            }
        }
        if confirmed.len() < count {
            self.sync_dir_later(dir);
        }
        TaskResult::Known { confirmed, returned }
    }

    /// Ends an entry, unless it is handed back.
    fn end_attempt(&mut self, path: RelPath, kind: Kind, attempt: Result<Attempt, Failure>) -> Option<Returned> {
        match attempt {
            Ok(Attempt::Done(facts)) => self.end(path, kind, Outcome::Done(facts)),
            Ok(Attempt::Left(kind, facts)) => self.end(path, kind, Outcome::Done(facts)),
            Ok(Attempt::There(facts)) => self.end_there(path, kind, facts),
            Ok(Attempt::Returned(entry)) => return Some(entry),
            Ok(Attempt::Confirmed | Attempt::Written(..)) => unreachable!("confirmed or made durable before"),
            Ok(Attempt::Changed) => {
                self.fail(path, kind, Failure::CHANGED);
            }
            Ok(Attempt::NotItsSize) => {
                self.fail(path, kind, Failure::SIZE);
            }
            Err(failure) => {
                self.fail(path, kind, failure);
            }
        }
        None
    }

    /// An entry's place in directories that are opened once for many entries; anew when it is tried `again`.
    fn place_in(&mut self, dirs: &mut Dirs<'_>, name: &[u8], again: bool) -> Result<Place, Failure> {
        if again || dirs.open.is_none() {
            let open = (self.source_dir(dirs.source, dirs.dir)?, self.dest_dir(dirs.source, dirs.dir)?);
            dirs.inherits_acl = self.inherits_acl(open.1.as_fd())?;
            dirs.open = Some(open);
        }
        let (source_dir, dest_dir) = dirs.open.clone().expect("opened above");
        let single = &self.job.sources[usize::from(dirs.source)].single;
        let mut place = Place {
            path: dirs.dir.join(name),
            source_dir,
            source_name: single.clone().unwrap_or_else(|| name.to_vec()),
            dest_dir,
            dest_name: name.to_vec(),
            inherits_acl: dirs.inherits_acl,
            ours: false,
        };
        place.ours = self.is_ours(&place);
        Ok(place)
    }

    /// Copies the one name of an entry that the others will be linked to; or, `unlinkable`, a name that the
    /// destination cannot link.
    pub(super) fn copy_owner(
        &mut self,
        source: u16,
        path: RelPath,
        kind: Kind,
        (links, partial, attempts): (Links, Option<Partial>, u8),
        unlinkable: bool,
    ) -> TaskResult {
        let attempt = self.retried(|me, _| {
            let place = me.place(source, &path)?;
            let attempt = me.copy_entry(source, &place, kind, (links, partial), attempts);
            me.sync_dir_later(&place.dir());
            attempt?.durable(&place)
        });
        let owned = match attempt {
            Ok(Attempt::Done(mut facts)) => {
                if unlinkable {
                    facts.unkept.add(Loss::LINK);
                }
                self.end(path, kind, Outcome::Done(facts.clone()));
                Owned::Copied(facts)
            }
            Ok(Attempt::Returned(Returned::Large(file))) => Owned::Large(file),
            Ok(Attempt::Returned(_) | Attempt::Left(..) | Attempt::There(_)) => {
                unreachable!("an owner is handed back for its size only")
            }
            Ok(Attempt::Confirmed | Attempt::Written(..)) => unreachable!("confirmed or made durable before"),
            Ok(ended @ (Attempt::Changed | Attempt::NotItsSize)) => {
                let is_size = matches!(ended, Attempt::NotItsSize);
                self.fail(path, kind, if is_size { Failure::SIZE } else { Failure::CHANGED });
                Owned::Failed
            }
            Err(failure) => {
                self.fail(path, kind, failure);
                Owned::Failed
            }
        };
        TaskResult::Owned(Box::new(owned))
    }

    /// Copies one entry, again while it changes, a bounded number of times.
    pub(super) fn copy_entry(
        &mut self,
        source: u16,
        place: &Place,
        kind: Kind,
        (links, partial): (Links, Option<Partial>),
        attempts_before: u8,
    ) -> Result<Attempt, Failure> {
        let mut last = Attempt::Changed;
        for attempt in attempts_before..MAX_ATTEMPTS {
            self.task.records.count_recopied(u64::from(attempt > attempts_before));
            let outcome = match kind {
                Kind::File => self.copy_file(source, place, (links, partial), attempt)?,
                _ => self.copy_special(source, place, kind, links)?,
            };
            if !matches!(outcome, Attempt::Changed | Attempt::NotItsSize) {
                return Ok(outcome);
            }
            last = outcome;
        }
        Ok(last)
    }

    fn copy_file(
        &mut self,
        source: u16,
        place: &Place,
        (links, partial): (Links, Option<Partial>),
        attempt: u8,
    ) -> Result<Attempt, Failure> {
        let (dir, name) = place.source();
        let from = open_read(dir, name, self.reading).at(Op::Open, SOURCE)?;
        let meta = Meta::of(&from).at(Op::Stat, SOURCE)?;
        if meta.kind != Some(Kind::File) {
            return Ok(Attempt::Changed);
        }
        if links == Links::Return
            && let Some(attempt) = self.without_copying(source, place, Kind::File, &meta)?
        {
            return Ok(attempt);
        }
        if self.is_another(source, links, &meta) {
            return Ok(Attempt::Changed);
        }
        if meta.size > self.job.tuning.range_len {
            let first = self.flags_first(from.as_fd(), &meta);
            let file = self.prepare_large(source, place, (&meta, first), (attempt, partial))?;
            return Ok(Attempt::Returned(Returned::Large(file)));
        }
        let mode = self.first_mode(&meta);
        let (to, made) =
            self.make_beside(source, place, |(dir, name)| create_new(dir, name, mode)).at(Op::Create, DEST)?;
        self.flags_first(from.as_fd(), &meta).add_to(Handle::Open(to.as_fd()), meta.kind);
        let known = if self.node.asks_server() { Meta::known(to.as_fd()).ok() } else { None };
        let copied = self.fill((place, made.place()), from, (to, known), &meta).and_then(|filled| match filled {
            Ok(Filled { mut kept, to, digest }) => {
                if !made.is_final {
                    self.sync_if_needed(to.plain())?;
                    // nothing may come to light once it has taken another file's place
                    to.flush().at(Op::Close, DEST)?;
                    let named = self.give_name(source, place, &made)?;
                    let again = self.retried(|me, _| me.keep_times_again(Handle::Open(to.plain()), &mut kept));
                    again.inspect_err(|_| named.discard())?;
                    self.keep_flags(Handle::Open(to.plain()), &mut kept, meta.nlink == 1);
                    to.close().at(Op::Close, DEST).inspect_err(|_| named.discard())?;
                    return Ok(Attempt::Done(Facts { digest, ..kept.facts(None) }));
                }
                self.keep_flags(Handle::Open(to.plain()), &mut kept, meta.nlink == 1);
                if self.node.unsynced().is_some() {
                    return Ok(Attempt::Written(Facts { digest, ..kept.facts(None) }, Box::new(to)));
                }
                to.close().at(Op::Close, DEST)?;
                Ok(Attempt::Done(Facts { digest, ..kept.facts(None) }))
            }
            Err(why) => {
                let (dir, name) = made.place();
                remove_file(dir, name).at(Op::Create, DEST).map(|()| why)
            }
        });
        copied.inspect_err(|_| made.discard())
    }

    /// Data and metadata of a small file; or why it is not whole. The destination is still to be made durable where it has to
    /// be by itself, and to be closed.
    fn fill(
        &mut self,
        (place, made): (&Place, (BorrowedFd<'_>, &[u8])),
        from: OwnedFd,
        file: (OwnedFd, Option<Meta>),
        meta: &Meta,
    ) -> Result<Result<Filled, Attempt>, Failure> {
        let (to, known) = file;
        let sparse = self.keeps_holes(meta);
        let has_length = sparse || self.job.tuning.sparse == Sparse::Always;
        if has_length {
            set_len(to.as_fd(), meta.size).at(Op::Truncate, DEST)?;
        }
        let mut pair = Pair::small(self, (place, made), (from, to), meta, (sparse, has_length));
        let whole = Range { offset: 0, len: meta.size };
        let (span, digest) = self.copy_piece(&mut pair, whole, || PieceHasher::whole(meta.size))?;
        let after = self.node.meta_now(pair.from.plain(), meta.dev).at(Op::Stat, SOURCE)?;
        let changes = self.job.policy.changes;
        if changes.show_another(&meta.identity(), &after.identity()) {
            return Ok(Err(Attempt::Changed));
        }
        if span == Span::NotItsLength {
            return Ok(Err(Attempt::NotItsSize));
        }
        pair.to.close_direct().at(Op::Close, DEST)?;
        let kept = self.set_metadata(&Setting {
            from: Handle::Open(pair.from.plain()),
            to: Handle::Open(pair.to.plain()),
            source: meta,
            inherits_acl: place.inherits_acl,
            of: Age::New,
            link: LinkCalls::ALL,
            made: known,
        })?;
        Ok(Ok(Filled { kept, to: pair.to, digest }))
    }

    /// What becomes of an entry that is not to be copied here: what is there is left, or it has several names.
    pub(super) fn without_copying(
        &mut self,
        source: u16,
        place: &Place,
        kind: Kind,
        meta: &Meta,
    ) -> Result<Option<Attempt>, Failure> {
        if let Some((kind, facts)) = self.left_there(source, place, meta)? {
            return Ok(Some(Attempt::Left(kind, facts)));
        }
        let linked = meta.nlink > 1 && self.job.policy.preserve.links;
        Ok(linked.then(|| Attempt::Returned(self.linked(source, place, kind, meta, None))))
    }

    /// What is at the destination, if it is to be left.
    fn left_there(&mut self, number: u16, place: &Place, source: &Meta) -> Result<Option<(Kind, Facts)>, Failure> {
        if self.job.policy.existing == Existing::Replace || place.ours {
            return Ok(None);
        }
        let there = match Meta::at(place.dest(), &place.dest_name) {
            Err(Errno::ENOENT) => return Ok(None),
            there => there.at(Op::Stat, DEST)?,
        };
        // making the entry will tell what is wrong with a directory there
        let Some(kind) = there.kind.filter(|kind| *kind != Kind::Dir) else { return Ok(None) };
        let Some(fate) = self.job.policy.keeps(there.mtime, source.mtime) else { return Ok(None) };
        if self.has_other_name(number, place).at(Op::Stat, DEST)? {
            return Err(Failure::COLLISION);
        }
        let target = match kind {
            Kind::Symlink => Some(read_link(place.dest(), &place.dest_name).at(Op::ReadLink, DEST)?),
            _ => None,
        };
        Ok(Some((kind, Facts { fate, ..facts(&there, Unkept::default(), target) })))
    }

    /// Whether the name leads to another file by now than the one that others will be linked to.
    pub(super) fn is_another(&self, source: u16, links: Links, meta: &Meta) -> bool {
        matches!(links, Links::Own(Some(id)) if self.node.link_id(source, meta) != id)
    }

    /// Whether what is at the destination was made by an earlier run of this job that was killed before it could record
    /// it. Asked only where what is there would be left: that must not be half a file.
    pub(super) fn is_ours(&self, place: &Place) -> bool {
        let Some(began) = self.job.began.filter(|_| self.job.policy.existing != Existing::Replace) else {
            return false;
        };
        let (Ok(source), Ok(there)) = (self.source_meta(place.source()), Meta::at(place.dest(), &place.dest_name))
        else {
            return false;
        };
        // without times nothing tells it from a file that somebody else has made since
        there.ctime >= began && there.mtime == source.mtime && self.job.policy.preserve.timestamps
    }

    /// An entry with several names, handed back.
    pub(super) fn linked(
        &self,
        source: u16,
        place: &Place,
        kind: Kind,
        meta: &Meta,
        there: Option<Box<Facts>>,
    ) -> Returned {
        let id = self.node.link_id(source, meta);
        Returned::Linked {
            path: place.path.clone(),
            kind,
            id,
            identity: meta.identity(),
            // through symbolic links it may be met more often than it has names
            names: if self.reading.follow { u64::MAX } else { meta.nlink },
            there,
        }
    }
}

/// What the manifest says of an entry with this metadata, and of a symbolic link with this target.
pub(super) fn facts(meta: &Meta, unkept: Unkept, target: Option<Vec<u8>>) -> Facts {
    let device = matches!(meta.kind, Some(Kind::CharDev | Kind::BlockDev));
    let file_len = if meta.kind == Some(Kind::File) { meta.size } else { 0 };
    Facts {
        size: target.as_ref().map_or(file_len, |target| target.len() as u64),
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: meta.mtime,
        ctime: meta.ctime,
        mtime_there: None,
        target,
        digest: None,
        rdev: device.then(|| meta.rdev_numbers()),
        hardlink: None,
        unkept,
        fate: Fate::Made,
    }
}

/// Removes what a failed attempt made under its final name. That it failed is recorded already; a name that stays
/// behind has neither the final times nor a record.
fn discard(place: &Place) {
    let _ = remove_file(place.dest(), &place.dest_name);
}
