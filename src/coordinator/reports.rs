//! Takes the ranks' reports: what a result means for the entries of its task.

use std::collections::hash_map::Entry;

use super::large::{Abandoned, Trouble};
use super::links::{Member, Next};
use super::{Coordinator, CoordinatorError, Elsewhere, Purpose, path_of, signed};
use crate::proto::{LargeFile, Listing, MAX_BATCH_NAMES, Owned, Report, Returned, TaskResult};
use crate::scan::{DirId, Lent, ScanEvent};
use crate::types::Kind;

impl Coordinator {
    /// Takes a rank's report.
    ///
    /// # Errors
    /// It does not fit what the rank was given: the job cannot go on.
    pub fn report(&mut self, rank: usize, report: &Report) -> Result<(), CoordinatorError> {
        let id = report.id;
        let Entry::Occupied(assigned) = self.assigned.entry(id) else {
            return Err(CoordinatorError::UnknownAssignment { rank, id });
        };
        if assigned.get().rank != rank {
            return Err(CoordinatorError::UnknownAssignment { rank, id });
        }
        let purposes = assigned.remove().purposes;
        self.ranks.release(rank, purposes.iter().map(Purpose::size).sum());
        let wrong = CoordinatorError::WrongResult { rank, id };
        if purposes.len() != report.results.len() {
            return Err(wrong);
        }
        for index in &report.private {
            let Some(purpose) = purposes.get(*index as usize) else { return Err(wrong) };
            self.has_private_dir(purpose);
        }
        // For the display only: the summary uses the ranks' own counters.
        self.ended.add(&report.ended);
        self.bytes_moved = self.bytes_moved.saturating_add(report.bytes_moved);
        if self.halted {
            // The next run looks at these entries again.
            return Ok(());
        }
        let mut ended = 0;
        for (purpose, result) in purposes.into_iter().zip(&report.results) {
            if !self.fits(&purpose, result) {
                return Err(wrong);
            }
            let Some(more) = self.take_result(purpose, result) else { return Err(wrong) };
            ended += more;
        }
        if report.ended.entries() == ended { Ok(()) } else { Err(wrong) }
    }

    /// Notes that a private directory was made in the directory of a task's entries.
    fn has_private_dir(&mut self, purpose: &Purpose) {
        let dirs = match purpose {
            Purpose::Entries { dir, .. } => vec![*dir],
            Purpose::List { lent, .. } => vec![lent.id],
            Purpose::Owner(member) => vec![member.dir],
            Purpose::Range { file, .. } | Purpose::Finish { file } | Purpose::Abandon { file } => {
                self.large.dir_of(*file).into_iter().collect()
            }
            Purpose::Links(members) => members.iter().map(|member| member.dir).collect(),
            Purpose::Dirs(..) => Vec::new(),
        };
        for id in dirs {
            self.dir_mut(id).private = true;
        }
    }

    /// Takes a result. Returns the number of entries that ended; `None` if the result does not fit the purpose.
    fn take_result(&mut self, purpose: Purpose, result: &TaskResult) -> Option<u64> {
        match (purpose, result) {
            (
                Purpose::Entries { dir, source, count, .. },
                TaskResult::Returned(returned) | TaskResult::Known { returned, .. },
            ) => {
                let ended = count.checked_sub(returned.len() as u64)?;
                for entry in returned {
                    self.take_returned(dir, source, entry)?;
                }
                self.entries_ended(dir, ended);
                return Some(ended);
            }
            (Purpose::List { lent, .. }, TaskResult::Listed(listing)) => return self.take_listing(lent, listing),
            (Purpose::List { lent, .. }, TaskResult::TooLong) => {
                self.lent -= 1;
                self.listed.push(Elsewhere::TooLong(lent));
            }
            (Purpose::Links(members), TaskResult::Returned(unlinkable)) => {
                return self.links_ended(members, unlinkable);
            }
            (Purpose::Owner(member), TaskResult::Owned(owned)) => match &**owned {
                Owned::Large(file) => self.add_large(file, member),
                owned => {
                    self.owner_ended(&member, owned);
                    return Some(1);
                }
            },
            (Purpose::Range { file, index }, TaskResult::Range(value)) => self.large.range_done(file, index, *value)?,
            (Purpose::Range { file, .. }, TaskResult::RangeFailed(failure)) => {
                self.large.range_failed(file, Trouble::Failed(failure.clone()))?;
            }
            (Purpose::Range { file, .. }, TaskResult::Changed) => self.large.range_failed(file, Trouble::Changed)?,
            (Purpose::Range { file, .. }, TaskResult::Lost(failure)) => {
                self.large.range_failed(file, Trouble::Lost(failure.clone()))?;
            }
            (Purpose::Finish { file }, TaskResult::Owned(owned)) if !matches!(**owned, Owned::Large(_)) => {
                let member = self.large.remove(file)?;
                self.owner_ended(&member, owned);
                return Some(1);
            }
            (Purpose::Finish { file }, TaskResult::Changed) => self.large.finish_failed(file, Trouble::Changed)?,
            (Purpose::Finish { file }, TaskResult::Lost(failure)) => {
                self.large.finish_failed(file, Trouble::Lost(failure.clone()))?;
            }
            (Purpose::Abandon { file }, TaskResult::Ended) => match self.large.abandoned(file)? {
                Abandoned::Failed(member) => {
                    self.owner_ended(&member, &Owned::Failed);
                    return Some(1);
                }
                Abandoned::Again(member) => self.alone.push_back(member),
            },
            (Purpose::Dirs(ids, _), TaskResult::Dirs { .. }) => {
                let ended = ids.len() as u64;
                for id in ids {
                    let dir = self.dirs.remove(&id).expect("a directory stays until it has ended");
                    if let Some(parent) = dir.parent {
                        self.entries_ended(parent, 1);
                    }
                }
                return Some(ended);
            }
            _ => return None,
        }
        Some(0)
    }

    /// Takes what a rank has found in a directory, as if the scan had. Returns how many entries of it have ended.
    fn take_listing(&mut self, lent: Lent, listing: &Listing) -> Option<u64> {
        self.lent -= 1;
        let Lent { id, source, path, .. } = lent;
        let Listing { subdirs, kept, returned, excluded, before, failure, retries, .. } = listing;
        self.seen += kept;
        self.dir_mut(id).open_entries += signed(*kept);
        let ended = kept.checked_sub(returned.len() as u64)?;
        for entry in returned {
            self.take_returned(id, source, entry)?;
        }
        self.dir_mut(id).open_entries -= signed(ended);
        let mut rest = listing.rest.clone();
        while !rest.is_empty() {
            self.scan(ScanEvent::Names { dir: id, names: rest.take(MAX_BATCH_NAMES) });
        }
        let below = subdirs.iter().map(|(name, _)| (id, source, path.join(name))).collect();
        self.listed.push(Elsewhere::Listed { below, left_alone: listing.left_alone.then(|| path.to_path()) });
        let (failure, subdirs) = (failure.clone(), subdirs.len() as u64);
        let (before, excluded, retries) = (*before, *excluded, *retries);
        self.scan(ScanEvent::Listed { dir: id, subdirs, excluded, before, recorded: None, failure, retries });
        Some(ended)
    }

    /// Takes the results of lent directories since the last call.
    pub fn take_listed(&mut self) -> Vec<Elsewhere> {
        std::mem::take(&mut self.listed)
    }

    /// Takes an entry that a rank handed back. `None` if it is not in the directory.
    fn take_returned(&mut self, dir: DirId, source: u16, entry: &Returned) -> Option<()> {
        let (path, kind) = match entry {
            Returned::Large(file) => (&file.path, Kind::File),
            Returned::Linked { path, kind, .. } | Returned::Unlinkable { path, kind } => (path, *kind),
        };
        let dir_path = &self.dirs[&dir].path;
        let member = Member::new(dir, source, dir_path.name_in(path)?, kind);
        match entry {
            Returned::Large(file) => self.add_large(file, member),
            Returned::Linked { id, identity, names, there, .. } => {
                let next = self.links.add((*id, *identity), *names, member, dir_path, there.as_deref());
                if let Next::Copy(member) = next {
                    self.alone.push_back(member);
                }
            }
            Returned::Unlinkable { .. } => self.alone.push_back(Member { unlinkable: true, ..member }),
        }
        Some(())
    }

    fn add_large(&mut self, file: &LargeFile, member: Member) {
        let unfinished = self.partials.get(&file.path).filter(|there| file.found && there.partial == file.partial());
        let done = unfinished.map_or(&[][..], |there| &there.done);
        // The next attempt must use another temporary name than this one.
        let attempt = member.attempt.max(if file.found { 0 } else { file.temporary.attempt });
        self.large.add(file.clone(), Member { attempt, ..member }, done);
    }

    /// Takes the result of linking. Returns how many names were linked; `None` if a name that came back was not given.
    fn links_ended(&mut self, members: Vec<Member>, unlinkable: &[Returned]) -> Option<u64> {
        let ended = (members.len() as u64).checked_sub(unlinkable.len() as u64)?;
        // Names come back in the order in which they were given.
        let mut back = unlinkable.iter().peekable();
        for member in members {
            let is_back = |entry: &&Returned| match entry {
                Returned::Unlinkable { path, .. } => *path == path_of(&self.dirs, &member),
                _ => false,
            };
            if back.next_if(is_back).is_some() {
                self.alone.push_back(Member { unlinkable: true, ..member });
            } else {
                self.entries_ended(member.dir, 1);
            }
        }
        back.next().is_none().then_some(ended)
    }

    /// An entry that was copied alone, or in ranges, has ended: its links go on.
    fn owner_ended(&mut self, member: &Member, owned: &Owned) {
        if let Some(group) = member.group {
            let facts = if let Owned::Copied(facts) = owned { Some(facts) } else { None };
            let dir = &self.dirs[&member.dir].path;
            self.alone.extend(self.links.owner_ended(group, member, dir, facts));
        }
        self.entries_ended(member.dir, 1);
    }
}
