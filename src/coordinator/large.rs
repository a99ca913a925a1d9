//! Files that are copied in ranges: which ranges are left, what they hashed to, what comes next.

use std::collections::{HashMap, HashSet, VecDeque};

use super::links::Member;
use crate::digest::Merge;
use crate::plan::Ranges;
use crate::proto::{LargeFile, Task};
use crate::scan::DirId;
use crate::transfer::MAX_ATTEMPTS;
use crate::types::{Failure, RelPath};

/// All large files that have not ended.
pub(super) struct LargeFiles {
    digest: bool,
    files: HashMap<u64, Large>,
    /// Files with ranges to give out, first come first served.
    dealing: VecDeque<u64>,
    /// Files whose last range has come.
    ready: VecDeque<u64>,
    next_id: u64,
    ranges_left: usize,
}

struct Large {
    /// Its path is left empty and made when it is needed: thousands may stand below one long path.
    file: LargeFile,
    member: Member,
    next: u64,
    count: u64,
    /// Ranges that earlier runs have copied, from `next` on.
    there: HashSet<u64>,
    outstanding: u64,
    merge: Option<Merge>,
    trouble: Option<Trouble>,
}

/// Why a file does not end well.
pub(super) enum Trouble {
    /// Its source changed while it was read.
    Changed,
    /// What was written of it may be lost.
    Lost(Failure),
    Failed(Failure),
}

impl Large {
    fn file_at(&self, path: RelPath) -> LargeFile {
        LargeFile { path, ..self.file.clone() }
    }

    fn skip_what_is_there(&mut self) {
        while self.there.remove(&self.next) {
            self.next += 1;
        }
    }
}

/// What becomes of a file whose destination was removed.
pub(super) enum Abandoned {
    Failed(Member),
    /// It changed while it was read: once more.
    Again(Member),
}

impl LargeFiles {
    pub(super) fn new(digest: bool) -> Self {
        Self {
            digest,
            files: HashMap::new(),
            dealing: VecDeque::new(),
            ready: VecDeque::new(),
            next_id: 0,
            ranges_left: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Ranges that no rank has yet; as many as matter.
    pub(super) fn ranges_left(&self) -> usize {
        self.ranges_left
    }

    /// Files that have to be finished, or abandoned, next.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// A file whose ranges are to be copied, but for those that are there: number and chaining value.
    pub(super) fn add(&mut self, file: LargeFile, member: Member, done: &[(u64, Option<[u8; 32]>)]) {
        let id = self.next_id;
        self.next_id += 1;
        let count = Ranges::new(file.identity.size, file.range_len).count();
        let mut merge = (self.digest && count > 1).then(|| Merge::new(count));
        let mut there = HashSet::new();
        for &(index, value) in done.iter().filter(|(index, _)| *index < count) {
            // a range is recorded twice when a run was killed between two ranks' records of it
            if value.is_some() == merge.is_some()
                && there.insert(index)
                && let (Some(merge), Some(value)) = (&mut merge, value)
            {
                merge.insert(index, value);
            }
        }
        self.ranges_left += usize::try_from(count - there.len() as u64).unwrap_or(usize::MAX);
        let file = LargeFile { path: RelPath::root(), ..file };
        let mut large = Large { file, member, next: 0, count, there, outstanding: 0, merge, trouble: None };
        large.skip_what_is_there();
        if large.next == large.count {
            self.ready.push_back(id);
        } else {
            self.dealing.push_back(id);
        }
        self.files.insert(id, large);
    }

    /// The next range of the first file that has one: file, range, task. `path_of` makes the path of a name.
    pub(super) fn next_range(&mut self, path_of: impl Fn(&Member) -> RelPath) -> Option<(u64, u64, Task)> {
        let &id = self.dealing.front()?;
        let large = self.files.get_mut(&id).expect("a file that deals is there");
        let index = large.next;
        large.next += 1;
        large.skip_what_is_there();
        large.outstanding += 1;
        self.ranges_left -= 1;
        if large.next == large.count {
            self.dealing.pop_front();
        }
        Some((id, index, Task::Range { file: large.file_at(path_of(&large.member)), index }))
    }

    pub(super) fn range_done(&mut self, id: u64, index: u64, value: Option<[u8; 32]>) -> Option<()> {
        let large = self.files.get_mut(&id)?;
        match (&mut large.merge, value) {
            (Some(merge), Some(value)) => merge.insert(index, value),
            (None, None) => {}
            _ => return None,
        }
        self.range_ended(id)
    }

    pub(super) fn range_failed(&mut self, id: u64, trouble: Trouble) -> Option<()> {
        let large = self.files.get_mut(&id)?;
        // a failure outweighs what can be tried again: it would be met again
        match (&trouble, &large.trouble) {
            (_, None) | (Trouble::Failed(_), Some(Trouble::Changed | Trouble::Lost(_))) => {
                large.trouble = Some(trouble)
            }
            _ => {}
        }
        if large.next < large.count {
            let left = large.count - large.next - large.there.len() as u64;
            self.ranges_left -= usize::try_from(left).unwrap_or(usize::MAX);
            large.next = large.count;
            self.dealing.retain(|&dealing| dealing != id);
        }
        self.range_ended(id)
    }

    /// It was found at the end only.
    pub(super) fn finish_failed(&mut self, id: u64, trouble: Trouble) -> Option<()> {
        self.files.get_mut(&id)?.trouble = Some(trouble);
        self.ready.push_back(id);
        Some(())
    }

    fn range_ended(&mut self, id: u64) -> Option<()> {
        let large = self.files.get_mut(&id)?;
        large.outstanding = large.outstanding.checked_sub(1)?;
        if large.outstanding == 0 && large.next == large.count {
            self.ready.push_back(id);
        }
        Some(())
    }

    /// The next task for a file whose ranges have all been reported: its end. `path_of` makes the path of a name.
    pub(super) fn next_step(&mut self, path_of: impl Fn(&Member) -> RelPath) -> Option<(u64, Task)> {
        let id = self.ready.pop_front()?;
        let large = self.files.get(&id).expect("a file that is ready is there");
        let file = large.file_at(path_of(&large.member));
        let task = match &large.trouble {
            None => {
                let digest = large.merge.as_ref().map(|merge| merge.digest().expect("every range has come"));
                Task::FinishFile { file, digest, unlinkable: large.member.unlinkable }
            }
            Some(Trouble::Failed(failure)) => Task::Abandon { file, failure: Some(failure.clone()) },
            Some(Trouble::Changed | Trouble::Lost(_)) if large.member.attempt + 1 < MAX_ATTEMPTS => {
                Task::Abandon { file, failure: None }
            }
            Some(Trouble::Lost(failure)) => Task::Abandon { file, failure: Some(failure.clone()) },
            Some(Trouble::Changed) => Task::Abandon { file, failure: Some(Failure::CHANGED) },
        };
        Some((id, task))
    }

    /// The directory that a file is in.
    pub(super) fn dir_of(&self, id: u64) -> Option<DirId> {
        self.files.get(&id).map(|large| large.member.dir)
    }

    /// The file has ended, well or not.
    pub(super) fn remove(&mut self, id: u64) -> Option<Member> {
        self.files.remove(&id).map(|large| large.member)
    }

    /// What was written of the file is gone.
    pub(super) fn abandoned(&mut self, id: u64) -> Option<Abandoned> {
        let large = self.files.remove(&id)?;
        let attempt = large.member.attempt + 1;
        Some(match large.trouble? {
            Trouble::Changed | Trouble::Lost(_) if attempt < MAX_ATTEMPTS => {
                Abandoned::Again(Member { attempt, ..large.member })
            }
            _ => Abandoned::Failed(large.member),
        })
    }
}
