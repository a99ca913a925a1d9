//! A directory that the scan has left to this rank: listed, and some of it copied at once.

use super::Mover;
use crate::proto::{Listing, TaskResult};
use crate::scan::{Found, Listed};
use crate::types::RelPath;

impl Mover {
    /// Lists a directory, makes it at the destination, and copies at most `keep` of its entries.
    pub(super) fn list_dir(&mut self, source: u16, dir: &RelPath, keep: usize) -> TaskResult {
        let found = match self.lister.list(source, dir) {
            Listed::Whole(found) => *found,
            Listed::TooLong => return TaskResult::TooLong,
        };
        let Found { mut names, subdirs, excluded, before, failure, left_alone, retries } = found;
        if let Some(failure) = failure.as_ref().filter(|failure| failure.halts()) {
            return self.break_off(dir, failure.clone());
        }
        let kept = names.take(keep);
        let returned = match kept.is_empty() {
            true => Vec::new(),
            false if self.job.policy.dry_run => self.foresee_entries(source, dir, &kept),
            false => self.copy_entries(source, dir, &kept),
        };
        let kept = kept.len() as u64;
        let listing = Listing { subdirs, kept, returned, rest: names, excluded, before, failure, left_alone, retries };
        TaskResult::Listed(Box::new(listing))
    }
}
