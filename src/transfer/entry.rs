//! One entry, whole: a file up to the range length, a symbolic link, a special file.

use std::os::fd::{AsFd, OwnedFd};

use super::data::Span;
use super::{At, DEST, MAX_ATTEMPTS, Mover, Place, SOURCE};
use crate::digest::PieceHasher;
use crate::plan::{Range, range_len_of};
use crate::policy::Existing;
use crate::proto::{LargeFile, Names, Owned, Returned, Sparse, TaskResult};
use crate::sys::{
    End, Errno, Handle, Meta, close, create_new, make_node, make_symlink, open_read, read_link, remove_file, rename,
    set_len,
};
use crate::types::{Facts, Failure, Fate, Kind, LinkId, Op, Outcome, RelPath, Unkept};

/// How an attempt at an entry went.
pub(super) enum Attempt {
    Done(Facts),
    /// What is at the destination was to be left.
    Left(Kind, Facts),
    /// Someone else's task: it is large, or it has several names.
    Returned(Returned),
    /// The source changed while it was read; what was written is gone.
    Changed,
}

/// Whether an entry with several names is copied here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// Handed back, so that one rank copies it.
    Return,
    /// This is that rank; with a number, only if the name still is the file of that number.
    Own(Option<LinkId>),
}

impl Mover {
    /// Copies entries of one directory.
    pub(super) fn copy_entries(&mut self, source: u16, dir: &RelPath, names: &Names) -> TaskResult {
        let dirs = self.source_dir(source, dir).and_then(|from| Ok((from, self.dest_dir(dir)?)));
        let inherits_acl = dirs.as_ref().is_ok_and(|(_, to)| self.inherits_acl(to.as_fd()));
        let mut returned = Vec::new();
        for (name, kind) in names.iter() {
            let path = dir.join(name);
            let (source_dir, dest_dir) = match &dirs {
                Ok((from, to)) => (from.clone(), to.clone()),
                Err(failure) => {
                    self.fail(path, kind, failure.clone());
                    continue;
                }
            };
            let source_name = self.job.sources[usize::from(source)].single.clone().unwrap_or_else(|| name.to_vec());
            let place = Place { path, source_dir, source_name, dest_dir, dest_name: name.to_vec(), inherits_acl };
            match self.copy_entry(source, &place, kind, Links::Return, 0) {
                Ok(Attempt::Done(facts)) => self.end(place.path, kind, Outcome::Done(facts)),
                Ok(Attempt::Left(kind, facts)) => self.end(place.path, kind, Outcome::Done(facts)),
                Ok(Attempt::Returned(entry)) => returned.push(entry),
                Ok(Attempt::Changed) => {
                    self.fail(place.path, kind, Failure::CHANGED);
                }
                Err(failure) => {
                    self.fail(place.path, kind, failure);
                }
            }
        }
        if let Ok((_, to)) = &dirs {
            self.sync_names(to.as_fd());
        }
        TaskResult::Returned(returned)
    }

    /// Copies the one name of an entry that the others will be linked to; or, `unlinkable`, a name that the
    /// destination cannot link.
    pub(super) fn copy_owner(
        &mut self,
        source: u16,
        path: RelPath,
        kind: Kind,
        (links, attempts): (Links, u8),
        unlinkable: bool,
    ) -> TaskResult {
        let attempt = self.place(source, &path).and_then(|place| {
            let attempt = self.copy_entry(source, &place, kind, links, attempts);
            self.sync_names(place.dest());
            attempt
        });
        let owned = match attempt {
            Ok(Attempt::Done(mut facts)) => {
                if unlinkable {
                    facts.unkept.add(Unkept::LINK);
                }
                self.end(path, kind, Outcome::Done(facts.clone()));
                Owned::Copied(facts)
            }
            Ok(Attempt::Returned(Returned::Large(file))) => Owned::Large(file),
            Ok(Attempt::Returned(_) | Attempt::Left(..)) => unreachable!("an owner is handed back for its size only"),
            Ok(Attempt::Changed) => {
                self.fail(path, kind, Failure::CHANGED);
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
        links: Links,
        attempts_before: u8,
    ) -> Result<Attempt, Failure> {
        for attempt in attempts_before..MAX_ATTEMPTS {
            self.task.records.count_recopied(u64::from(attempt > attempts_before));
            let outcome = match kind {
                Kind::File => self.copy_file(source, place, links, attempt)?,
                _ => self.copy_special(source, place, kind, links)?,
            };
            if !matches!(outcome, Attempt::Changed) {
                return Ok(outcome);
            }
        }
        Ok(Attempt::Changed)
    }

    fn copy_file(&mut self, source: u16, place: &Place, links: Links, attempt: u8) -> Result<Attempt, Failure> {
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
            let file = self.prepare_large(source, place, &meta, attempt)?;
            return Ok(Attempt::Returned(Returned::Large(file)));
        }
        let (to, temporary) = self
            .make_beside(source, place, |name| create_new(place.dest(), name, self.creation_mode(&meta)))
            .at(Op::Create, DEST)?;
        let made = temporary.as_deref().unwrap_or(&place.dest_name);
        let copied = self.fill(place, from, to, made, &meta);
        match &copied {
            Ok(Some(_)) if temporary.is_some() => rename(place.dest(), made, &place.dest_name).at(Op::Rename, DEST),
            Ok(Some(_)) => Ok(()),
            Ok(None) => remove_file(place.dest(), made).at(Op::Create, DEST),
            Err(failure) => Err(failure.clone()),
        }
        .inspect_err(|_| discard(place, made))?;
        Ok(copied?.map_or(Attempt::Changed, Attempt::Done))
    }

    /// Data, metadata and close of a small file; `None` when the source changed meanwhile.
    fn fill(
        &mut self,
        place: &Place,
        from: OwnedFd,
        to: OwnedFd,
        made: &[u8],
        meta: &Meta,
    ) -> Result<Option<Facts>, Failure> {
        let sparse = self.keeps_holes(meta);
        if sparse || self.job.tuning.sparse == Sparse::Always {
            set_len(to.as_fd(), meta.size).at(Op::Truncate, DEST)?;
        }
        let mut ends = if self.wants_direct(meta.size) {
            let (dir, name) = place.source();
            let from = End::direct_source(from, dir, name, self.reading);
            (from, End::direct_destination(to, place.dest(), made))
        } else {
            (End::buffered(from), End::buffered(to))
        };
        let mut hasher = self.job.tuning.digest.then(PieceHasher::whole);
        let whole = Range { offset: 0, len: meta.size };
        let span = self.copy_span((&mut ends.0, &mut ends.1), whole, sparse, hasher.as_mut())?;
        let after = Meta::of(ends.0.plain()).at(Op::Stat, SOURCE)?;
        if span == Span::NotItsLength || after.identity() != meta.identity() {
            return Ok(None);
        }
        let (from, to) = (Handle::Open(ends.0.plain()), Handle::Open(ends.1.plain()));
        let kept = self.set_metadata(from, to, meta, place.inherits_acl)?;
        self.sync_if_needed(ends.1.plain())?;
        ends.1.close().at(Op::Close, DEST)?;
        let digest = hasher.map(|hasher| hasher.finish());
        Ok(Some(Facts { digest, ..facts(&kept.meta, kept.unkept, None) }))
    }

    fn copy_special(&mut self, source: u16, place: &Place, kind: Kind, links: Links) -> Result<Attempt, Failure> {
        let (dir, name) = place.source();
        let from = self.source_handle(place.source());
        let meta = from.meta().at(Op::Stat, SOURCE)?;
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
            Kind::Symlink => Some(read_link(dir, name).at(Op::ReadLink, SOURCE)?),
            _ => None,
        };
        let op = if kind == Kind::Symlink { Op::Symlink } else { Op::Mknod };
        let make = |name: &[u8]| match &target {
            Some(target) => make_symlink(target, place.dest(), name),
            None => make_node(place.dest(), name, kind, meta.rdev),
        };
        let temporary = match self.make_beside(source, place, make) {
            Ok(((), temporary)) => temporary,
            // an ordinary user's device, a file system without special files
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) if kind != Kind::Symlink => {
                return Ok(Attempt::Done(facts(&meta, Unkept::SPECIAL, None)));
            }
            Err(err) => return Err(err).at(op, DEST),
        };
        let made = temporary.as_deref().unwrap_or(&place.dest_name);
        let to = Handle::Named(place.dest(), made);
        let finished = self.set_metadata(from, to, &meta, place.inherits_acl).and_then(|kept| {
            if temporary.is_some() {
                rename(place.dest(), made, &place.dest_name).at(Op::Rename, DEST)?;
            }
            Ok(kept)
        });
        let kept = finished.inspect_err(|_| discard(place, made))?;
        Ok(Attempt::Done(facts(&kept.meta, kept.unkept, target)))
    }

    /// What becomes of an entry that is not to be copied here: what is there is left, or it has several names.
    fn without_copying(&self, source: u16, place: &Place, kind: Kind, meta: &Meta) -> Result<Option<Attempt>, Failure> {
        if let Some((kind, facts)) = self.left_there(place, meta)? {
            return Ok(Some(Attempt::Left(kind, facts)));
        }
        let linked = meta.nlink > 1 && self.job.policy.preserve.links;
        Ok(linked.then(|| self.linked(source, place, kind, meta)))
    }

    /// What is at the destination, if it is to be left.
    fn left_there(&self, place: &Place, source: &Meta) -> Result<Option<(Kind, Facts)>, Failure> {
        if self.job.policy.existing == Existing::Replace {
            return Ok(None);
        }
        let there = match Meta::at(place.dest(), &place.dest_name) {
            Err(Errno::ENOENT) => return Ok(None),
            there => there.at(Op::Stat, DEST)?,
        };
        // making the entry will tell what is wrong with a directory there
        let Some(kind) = there.kind.filter(|kind| *kind != Kind::Dir) else { return Ok(None) };
        let Some(fate) = self.job.policy.keeps(there.mtime, source.mtime) else { return Ok(None) };
        let target = match kind {
            Kind::Symlink => Some(read_link(place.dest(), &place.dest_name).at(Op::ReadLink, DEST)?),
            _ => None,
        };
        Ok(Some((kind, Facts { fate, ..facts(&there, Unkept::default(), target) })))
    }

    /// Whether the name leads to another file by now than the one that others will be linked to.
    fn is_another(&self, source: u16, links: Links, meta: &Meta) -> bool {
        matches!(links, Links::Own(Some(id)) if self.node.link_id(source, meta) != id)
    }

    fn linked(&self, source: u16, place: &Place, kind: Kind, meta: &Meta) -> Attempt {
        let id = self.node.link_id(source, meta);
        Attempt::Returned(Returned::Linked {
            path: place.path.clone(),
            kind,
            id,
            identity: meta.identity(),
            // through symbolic links it may be met more often than it has names
            names: if self.reading.follow { u64::MAX } else { meta.nlink },
        })
    }

    /// Makes the destination of a file that is copied in ranges: a temporary name, its final length.
    fn prepare_large(&mut self, source: u16, place: &Place, meta: &Meta, attempt: u8) -> Result<LargeFile, Failure> {
        let temporary = self.temporary_name(source, &place.path, attempt);
        let to = match create_new(place.dest(), &temporary, 0o600) {
            // of an earlier attempt of this job: no one else has the name
            Err(Errno::EEXIST) => {
                remove_file(place.dest(), &temporary).at(Op::Create, DEST)?;
                create_new(place.dest(), &temporary, 0o600)
            }
            created => created,
        }
        .at(Op::Create, DEST)?;
        let sized = set_len(to.as_fd(), meta.size).at(Op::Truncate, DEST).and_then(|()| close(to).at(Op::Close, DEST));
        sized.inspect_err(|_| discard(place, &temporary))?;
        Ok(LargeFile {
            source,
            path: place.path.clone(),
            identity: meta.identity(),
            atime: meta.atime,
            attempt,
            sparse: self.keeps_holes(meta),
            range_len: range_len_of(meta.size, self.keeps_holes(meta), self.job.tuning.range_len),
        })
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
        target,
        digest: None,
        rdev: device.then(|| meta.rdev_numbers()),
        hardlink: None,
        unkept,
        fate: Fate::Made,
    }
}

/// Removes what a failed attempt made. That it failed is recorded already; a name that stays
/// behind has neither the final times nor a record.
fn discard(place: &Place, made: &[u8]) {
    let _ = remove_file(place.dest(), made);
}
