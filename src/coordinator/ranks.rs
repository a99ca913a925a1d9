//! Which rank is free, and how much it is given.

use std::collections::{BTreeSet, HashSet};

/// The ranks and what each has. Work goes to the one that has the least for its threads.
pub(super) struct Ranks {
    ranks: Vec<Rank>,
    by_load: BTreeSet<(u64, usize)>,
    threads: usize,
}

struct Rank {
    threads: u32,
    assigned: HashSet<u64>,
}

impl Rank {
    /// Assignments a thread, in units of 1/65536.
    fn load(&self) -> u64 {
        ((self.assigned.len() as u64) << 16) / u64::from(self.threads)
    }
}

impl Ranks {
    /// Names or directories that one assignment holds at least, if there are as many.
    const MIN_SHARE: usize = 4;

    pub(super) fn new(threads: &[u32]) -> Self {
        let ranks: Vec<Rank> = threads.iter().map(|&n| Rank { threads: n.max(1), assigned: HashSet::new() }).collect();
        Self {
            by_load: (0..ranks.len()).map(|rank| (0, rank)).collect(),
            threads: threads.iter().map(|&n| n.max(1) as usize).sum(),
            ranks,
        }
    }

    /// The rank to give work to, if any has room: one assignment a thread, and while more than that waits for
    /// all, a second one, so that no thread waits for rank 0's answer.
    pub(super) fn freest(&self, backlog: usize) -> Option<usize> {
        let credits = if backlog > self.threads { 2 } else { 1 };
        let &(load, rank) = self.by_load.first()?;
        (load < credits << 16).then_some(rank)
    }

    /// How many of `queued` pieces one assignment takes: a half of an equal share.
    pub(super) fn share_of(&self, queued: usize) -> usize {
        (queued / (2 * self.threads)).max(Self::MIN_SHARE)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ranks.len()
    }

    pub(super) fn assign(&mut self, rank: usize, id: u64) {
        self.update(rank, |assigned| assigned.insert(id));
    }

    /// Whether the rank had this assignment; it has it no more.
    pub(super) fn release(&mut self, rank: usize, id: u64) -> bool {
        rank < self.ranks.len() && self.update(rank, |assigned| assigned.remove(&id))
    }

    fn update(&mut self, rank: usize, change: impl FnOnce(&mut HashSet<u64>) -> bool) -> bool {
        let state = &mut self.ranks[rank];
        self.by_load.remove(&(state.load(), rank));
        let changed = change(&mut state.assigned);
        self.by_load.insert((state.load(), rank));
        changed
    }
}
