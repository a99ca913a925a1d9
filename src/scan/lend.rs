//! Directories that other ranks list, when they have nothing else to do: listing is as slow as the file system answers, and
//! rank 0 has a few threads for it.

use super::{Below, DirId, Pending, Scan};
use crate::state;
use crate::types::DirPath;

/// Directories that are left for the scan's own threads, each.
const KEPT_A_THREAD: usize = 2;
/// Times as many directories wait to be listed as a thread adds to, at most, while ranks list: they may add many before they
/// are heard of.
const MAX_WAITING: usize = 3;

/// A directory that a rank is to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lent {
    pub id: DirId,
    pub parent: Option<DirId>,
    pub source: u16,
    /// Below the root of the copy.
    pub path: DirPath,
}

impl Scan {
    /// Whether ranks can list: not where an entry has to be looked up in what only rank 0 has.
    pub fn can_lend(&self) -> bool {
        let shared = &self.shared;
        let plain = shared.selection.is_none() && shared.recorded.is_empty() && !shared.rooms.reading.follow;
        plain && shared.rooms.job.filter.travels()
    }

    /// Takes a directory from the scan, if there are more than its own threads will soon have listed. It is to come back,
    /// by [`Scan::take_back`] or [`Scan::list_here`]. Also returns how many there are left.
    pub fn lend(&self) -> Option<(Lent, usize)> {
        let mut stack = self.shared.lock();
        if stack.pending.len() <= KEPT_A_THREAD * self.threads.len() || stack.is_full(MAX_WAITING) {
            return None;
        }
        // from where the threads take them: the deeper a directory is the less it may add
        // Rank 0 reads the state of a copy that the source holds.
        let is_plain = |pending: &mut Pending| {
            pending.parent.is_some() && pending.id.is_none() && pending.path.name() != state::DIR_NAME
        };
        let Pending { parent, source, path, .. } = stack.pop_if(is_plain)?;
        stack.busy += 1;
        Some((Lent { id: self.shared.new_id(), parent, source, path }, stack.pending.len()))
    }

    /// Takes the directories that were found in one that was lent.
    pub fn take_back(&self, found: Vec<(DirId, u16, DirPath)>) {
        let pending = found.into_iter().map(|(parent, source, path)| Pending {
            id: None,
            parent: Some(parent),
            source,
            path,
            ancestors: None,
            below: Below::default(),
        });
        self.end_loan(pending);
    }

    /// Takes back a directory that was too long to be listed elsewhere.
    pub fn list_here(&self, lent: Lent) {
        let Lent { id, parent, source, path } = lent;
        let pending = Pending { id: Some(id), parent, source, path, ancestors: None, below: Below::default() };
        self.end_loan([pending]);
    }

    fn end_loan(&self, pending: impl IntoIterator<Item = Pending>) {
        let mut stack = self.shared.lock();
        pending.into_iter().for_each(|pending| stack.push(pending));
        stack.busy -= 1;
        drop(stack);
        self.shared.changed.notify_all();
    }
}
