//! Counters of the job. They add up: the sum over the ranks is the job's.

use serde::{Deserialize, Serialize};

use super::{Kind, Loss, Outcome, Record};

/// What a rank has finished. An entry is counted once, by its outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Regular files that are there, hard links among them.
    pub files: u64,
    pub dirs: u64,
    pub symlinks: u64,
    /// Fifos, sockets and devices.
    pub others: u64,
    /// Of `files`, `symlinks` and `others`: further names of one that was copied.
    pub hardlinks: u64,
    /// Bytes in the regular files, hard links and what was left not counted.
    pub bytes: u64,
    /// Entries that failed.
    pub errors: u64,
    /// Entries of which the destination could not hold everything.
    pub unkept: u64,
    /// The same entries counted by what they lack, in the order of [`Loss::KINDS`].
    pub unkept_kinds: [u64; Loss::KINDS.len()],
    /// Files that were copied again because they changed while they were read.
    pub recopied: u64,
    /// Of `files`, `symlinks` and `others`: those that were there, and left.
    pub kept: u64,
    /// Entries that were there from earlier runs of the job, and the bytes of their files.
    pub resumed: u64,
    pub resumed_bytes: u64,
    /// Operations that failed, and were tried again.
    pub retries: u64,
}

impl Stats {
    /// How many counters there are.
    pub const LEN: usize = 13 + Loss::KINDS.len();

    /// The counters as numbers, to be reduced over the ranks.
    pub fn to_array(self) -> [u64; Self::LEN] {
        let Self { files, dirs, symlinks, others, hardlinks, bytes, errors, unkept, unkept_kinds, .. } = self;
        let Self { recopied, kept, resumed, resumed_bytes, retries, .. } = self;
        let [a, b, c, d, e, f, g, h] = unkept_kinds;
        let entries = [files, dirs, symlinks, others, hardlinks, bytes, errors, unkept, a, b, c, d, e, f, g, h];
        let mut counters = [0; Self::LEN];
        counters[..entries.len()].copy_from_slice(&entries);
        counters[entries.len()..].copy_from_slice(&[recopied, kept, resumed, resumed_bytes, retries]);
        counters
    }

    /// The inverse of [`Stats::to_array`].
    pub fn from_array(counters: [u64; Self::LEN]) -> Self {
        let [files, dirs, symlinks, others, hardlinks, bytes, errors, unkept, a, b, c, d, e, f, g, h, rest @ ..] =
            counters;
        let [recopied, kept, resumed, resumed_bytes, retries] = rest;
        let unkept_kinds = [a, b, c, d, e, f, g, h];
        let left = Self { recopied, kept, resumed, resumed_bytes, retries, ..Self::default() };
        Self { files, dirs, symlinks, others, hardlinks, bytes, errors, unkept, unkept_kinds, ..left }
    }

    /// Entries that ended, in one way or the other.
    pub fn entries(self) -> u64 {
        self.checked_entries().unwrap_or(u64::MAX)
    }

    /// The same; `None` where the counters, which may be another rank's word, are no counters.
    pub fn checked_entries(self) -> Option<u64> {
        let Self { files, dirs, symlinks, others, errors, .. } = self;
        [dirs, symlinks, others, errors].into_iter().try_fold(files, u64::checked_add)
    }

    /// Counts an entry.
    pub fn count(&mut self, record: &Record) {
        let facts = match &record.outcome {
            Outcome::Failed(_) => {
                self.errors += 1;
                return;
            }
            Outcome::Done(facts) => facts,
        };
        match record.kind {
            Kind::File => self.files += 1,
            Kind::Dir => self.dirs += 1,
            Kind::Symlink => self.symlinks += 1,
            Kind::Fifo | Kind::Socket | Kind::CharDev | Kind::BlockDev => self.others += 1,
        }
        if facts.fate.kept().is_some() {
            self.kept += 1;
        } else if facts.hardlink.is_some() {
            self.hardlinks += 1;
        } else if record.kind == Kind::File {
            // a record may be another rank's word
            self.bytes = self.bytes.saturating_add(facts.size);
        }
        self.unkept += u64::from(facts.unkept.any());
        for (count, (kind, _)) in self.unkept_kinds.iter_mut().zip(Loss::KINDS) {
            *count += u64::from(facts.unkept.has(kind));
        }
    }

    /// Adds another rank's, or another task's, counters.
    pub fn add(&mut self, other: &Self) {
        let mut sum = self.to_array();
        for (mine, theirs) in sum.iter_mut().zip(other.to_array()) {
            *mine = mine.saturating_add(theirs);
        }
        *self = Self::from_array(sum);
    }
}
