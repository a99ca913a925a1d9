//! A file that is copied in ranges, by many ranks: the beginning, one range, the finish, the end of a failed one.
//!
//! Its destination is made under a temporary name, at its final length, by the rank that finds it.

use std::os::fd::{AsFd, BorrowedFd};

use super::data::{Pair, Span};
use super::metadata::{Age, Setting};
use super::probe::LinkCalls;
use super::{At, DEST, Mover, Place, SOURCE};
use crate::digest::PieceHasher;
use crate::journal::{Item, RangeDone};
use crate::plan::{Ranges, range_len_of};
use crate::policy::Flags;
use crate::proto::{LargeFile, Owned, TaskResult};
use crate::sys::{
    End, Errno, Handle, InodeFlags, Meta, close, create_new, hold, open_read, open_write, rename_new, set_len,
};
use crate::types::{Digest, Facts, Failure, Kind, Loss, Op, Outcome, Partial, Temporary};

impl Mover {
    /// The destination of a file that is copied in ranges: the one that an earlier run has begun, or a new one.
    pub(super) fn prepare_large(
        &mut self,
        source: u16,
        place: &Place,
        (meta, first): (&Meta, InodeFlags),
        (attempt, partial): (u8, Option<Partial>),
    ) -> Result<LargeFile, Failure> {
        let sparse = self.keeps_holes(meta);
        let new = LargeFile {
            source,
            path: place.path.clone(),
            identity: meta.identity(),
            atime: meta.atime,
            sparse,
            range_len: range_len_of(meta.size, sparse, self.job.tuning.range_len),
            temporary: Temporary { generation: self.job.generation, attempt },
            found: false,
        };
        if let Some(partial) = partial {
            let begun = LargeFile { temporary: partial.temporary, found: true, ..new.clone() };
            if begun.partial() == partial && self.has_begun(place, &begun)? {
                return Ok(begun);
            }
        }
        self.begin_large(place, &new, first)?;
        Ok(new)
    }

    /// Whether the temporary file of a large one is there. A run that was killed after it gave the file its name, and before
    /// it could record that, left it under its final one: it is taken back.
    fn has_begun(&mut self, place: &Place, file: &LargeFile) -> Result<bool, Failure> {
        let is_whole = |there: &Meta| there.kind == Some(Kind::File) && there.size == file.identity.size;
        let found = self.beside(file.source, place, file.temporary);
        match found.and_then(|made| Meta::at(made.place().0, made.place().1)) {
            Ok(there) => return Ok(is_whole(&there)),
            Err(Errno::ENOENT) => {}
            Err(err) => return Err(err).at(Op::Stat, DEST),
        }
        let Some(began) = self.job.began.filter(|_| self.job.policy.preserve.timestamps) else { return Ok(false) };
        let finished = Meta::at(place.dest(), &place.dest_name).is_ok_and(|there| {
            let is_own = there.uid == self.job.maker.uid && there.nlink == 1;
            is_whole(&there) && is_own && there.mtime == file.identity.mtime && there.ctime >= began
        });
        if !finished || self.has_other_name(file.source, place).at(Op::Stat, DEST)? {
            return Ok(false);
        }
        self.take_back(place, file)
    }

    /// Gives a large file its temporary name again; whether it is this user's own, which nobody else can have written to.
    fn take_back(&mut self, place: &Place, file: &LargeFile) -> Result<bool, Failure> {
        let final_place = (place.dest(), place.dest_name.as_slice());
        let moved = self.make_temporary(file.source, place, file.temporary, |to| rename_new(final_place, to));
        let ((), made) = match moved {
            // it has got the source's flags: it is copied again
            Err(Errno::EPERM) if self.job.policy.preserve.flags == Flags::Copied => return Ok(false),
            moved => moved.at(Op::Rename, DEST)?,
        };
        let (dir, name) = made.place();
        let held = hold(dir, name, false).at(Op::Open, DEST)?;
        let there = Meta::of(&held).at(Op::Stat, DEST)?;
        if there.kind == Some(Kind::File) && there.nlink == 1 && there.uid == self.job.maker.uid {
            return Ok(true);
        }
        made.discard();
        Ok(false)
    }

    /// Makes the destination of a file that is copied in ranges: a temporary name, its final length, the flags that it has to
    /// have first.
    fn begin_large(&mut self, place: &Place, file: &LargeFile, first: InodeFlags) -> Result<(), Failure> {
        let create = |(dir, name): (BorrowedFd<'_>, &[u8])| create_new(dir, name, 0o600);
        let (to, made) = self.make_temporary(file.source, place, file.temporary, create).at(Op::Create, DEST)?;
        first.add_to(Handle::Open(to.as_fd()), Some(Kind::File));
        let sized =
            set_len(to.as_fd(), file.identity.size).at(Op::Truncate, DEST).and_then(|()| close(to).at(Op::Close, DEST));
        sized.inspect_err(|_| made.discard())
    }

    /// Copies one range.
    pub(super) fn copy_range(&mut self, file: &LargeFile, index: u64) -> TaskResult {
        match self.retried_in_place(|me| me.try_range(file, index)) {
            Ok(Ok(result)) => result,
            Ok(Err(failure)) if !failure.halts() => TaskResult::Lost(failure),
            Ok(Err(failure)) | Err(failure) if failure.halts() => self.break_off(&file.path, failure),
            Ok(Err(failure)) | Err(failure) => TaskResult::RangeFailed(failure),
        }
    }

    /// Tries again what may pass; what may have lost data is handed out: the whole file is to be copied again.
    fn retried_in_place<T>(
        &mut self,
        mut what: impl FnMut(&mut Self) -> Result<T, Failure>,
    ) -> Result<Result<T, Failure>, Failure> {
        self.retried(|me, _| match what(me) {
            Err(failure) if failure.loses_data() => Ok(Err(failure)),
            result => result.map(Ok),
        })
    }

    fn try_range(&mut self, file: &LargeFile, index: u64) -> Result<TaskResult, Failure> {
        let place = self.place(file.source, &file.path)?;
        let made = self.beside(file.source, &place, file.temporary).at(Op::Open, DEST)?;
        let (dir, name) = place.source();
        let from = if self.wants_direct(file.identity.size) {
            End::open_source(dir, name, self.reading).at(Op::Open, SOURCE)?
        } else {
            End::buffered(open_read(dir, name, self.reading).at(Op::Open, SOURCE)?)
        };
        let meta = Meta::of(from.plain()).at(Op::Stat, SOURCE)?;
        if !self.is_same(file, &meta) {
            return Ok(TaskResult::Changed);
        }
        let mut pair = Pair::large(self, made.place(), from, &meta, file.sparse)?;
        let ranges = Ranges::new(file.identity.size, file.range_len);
        let range = ranges.get(index);
        let (span, value) = self.copy_piece(&mut pair, range, || PieceHasher::range(range.offset))?;
        let after = self.node.meta_now(pair.from.plain(), meta.dev).at(Op::Stat, SOURCE)?;
        if span == Span::NotItsLength || !self.is_same(file, &after) {
            return Ok(TaskResult::Changed);
        }
        self.sync_if_needed(pair.to.plain())?;
        pair.to.close().at(Op::Close, DEST)?;
        if self.job.state.is_some() {
            let path = file.path.clone();
            self.task.records.push(&Item::Range(RangeDone { path, partial: file.partial(), index, value }));
        }
        Ok(TaskResult::Range(value))
    }

    /// Metadata and the final name, after the last range.
    pub(super) fn finish_large(&mut self, file: &LargeFile, digest: Option<Digest>, unlinkable: bool) -> TaskResult {
        self.task.records.count_recopied(u64::from(file.temporary.attempt));
        let owned = match self.retried_in_place(|me| me.try_finish(file)) {
            Ok(Ok(None)) => return TaskResult::Changed,
            Ok(Err(failure)) if !failure.halts() => return TaskResult::Lost(failure),
            Ok(Ok(Some(facts))) => {
                let mut facts = Facts { digest, ..facts };
                if unlinkable {
                    facts.unkept.add(Loss::LINK);
                }
                self.end(file.path.clone(), Kind::File, Outcome::Done(facts.clone()));
                Owned::Copied(facts)
            }
            // its ranges are there for another run
            Ok(Err(failure)) | Err(failure) if failure.halts() => return self.break_off(&file.path, failure),
            Ok(Err(failure)) | Err(failure) => {
                self.abandon(file, Some(failure));
                Owned::Failed
            }
        };
        TaskResult::Owned(Box::new(owned))
    }

    fn try_finish(&mut self, file: &LargeFile) -> Result<Option<Facts>, Failure> {
        let place = self.place(file.source, &file.path)?;
        let made = self.beside(file.source, &place, file.temporary).at(Op::Open, DEST)?;
        let (dir, name) = place.source();
        let from = open_read(dir, name, self.reading).at(Op::Open, SOURCE)?;
        let meta = Meta::of(&from).at(Op::Stat, SOURCE)?;
        if !self.is_same(file, &meta) {
            return Ok(None);
        }
        let (in_dir, temporary) = made.place();
        let to = open_write(in_dir, temporary).at(Op::Open, DEST)?;
        self.check_temporary(to.as_fd()).at(Op::Open, DEST)?;
        let mut kept = self.set_metadata(&Setting {
            from: Handle::Open(from.as_fd()),
            to: Handle::Open(to.as_fd()),
            source: &Meta { atime: file.atime, ..meta },
            inherits_acl: place.inherits_acl,
            of: Age::New,
            link: LinkCalls::ALL,
            made: None,
        })?;
        self.sync_if_needed(to.as_fd())?;
        let named = self.give_name(file.source, &place, &made)?;
        let again = self.retried(|me, _| me.keep_times_again(Handle::Open(to.as_fd()), &mut kept));
        again.inspect_err(|_| named.discard())?;
        self.keep_flags(Handle::Open(to.as_fd()), &mut kept, meta.nlink == 1);
        close(to).at(Op::Close, DEST).inspect_err(|_| named.discard())?;
        self.sync_dir_later(&place.dir());
        Ok(Some(kept.facts(None)))
    }

    /// Whether the source is the version of the file that was found at first.
    fn is_same(&self, file: &LargeFile, meta: &Meta) -> bool {
        meta.kind == Some(Kind::File) && !self.job.policy.changes.show_another(&file.identity, &meta.identity())
    }

    /// Removes what was written of the file; with a failure, that is how it ended.
    pub(super) fn abandon(&mut self, file: &LargeFile, failure: Option<Failure>) -> TaskResult {
        if let Ok(place) = self.place(file.source, &file.path)
            && let Ok(made) = self.beside(file.source, &place, file.temporary)
        {
            made.discard();
        }
        match failure {
            Some(failure) => self.fail(file.path.clone(), Kind::File, failure),
            None => TaskResult::Ended,
        }
    }
}
