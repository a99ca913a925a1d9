//! Which rank is free, and how much it is given.

use crate::proto::MAX_BATCH_NAMES;

/// The ranks and how much each has. Work goes to the one that has least for its threads; of equals, to the one that has
/// waited longest: when there is little to do, no node does all of it.
pub(super) struct Ranks {
    ranks: Vec<Rank>,
    /// Ranks by their load, each a list.
    levels: [Level; Self::LEVELS],
    threads: usize,
    /// The sum of what the ranks have done lately.
    done: usize,
    /// Nothing new is found any more.
    at_last: bool,
}

/// The number of a rank, or [`NONE`].
type Link = usize;
const NONE: Link = usize::MAX;

#[derive(Clone, Copy)]
struct Level {
    first: Link,
    last: Link,
}

struct Rank {
    threads: usize,
    assigned: usize,
    /// What it has done of late, in names: how fast it is, among others.
    done: usize,
    /// Its neighbours in the list of its level.
    before: Link,
    after: Link,
}

impl Rank {
    /// Assignments a thread, in units of 1/12: exact for up to four threads, and for six.
    fn level(&self) -> usize {
        (self.assigned * Ranks::LEVELS_A_CREDIT / self.threads).min(Ranks::LEVELS - 1)
    }
}

impl Ranks {
    /// Names or directories that one assignment holds at least, if there are as many.
    const MIN_SHARE: usize = 4;
    /// So many threads make it one more. Rank 0 takes about 4 us for an assignment and its report: with all threads at 1 ms
    /// a name, what it gives out lasts longer than giving it out. When nothing new is found any more, all have to end
    /// together.
    const THREADS_A_NAME: usize = 150;
    const THREADS_A_NAME_AT_LAST: usize = 1000;
    /// The same of ranges, which take 16 ms at 1 GiB/s.
    const THREADS_A_RANGE: usize = 2000;
    /// Ranges in one assignment, at most: they are recorded together.
    const MAX_RANGES: usize = 8;
    /// What counts as late: so much a thread, then all counts are halved.
    const DONE_A_THREAD: usize = 8 * MAX_BATCH_NAMES;
    const LEVELS_A_CREDIT: usize = 12;
    const LEVELS: usize = 2 * Self::LEVELS_A_CREDIT + 1;

    pub(super) fn new(threads: &[u32]) -> Self {
        let rank = |&n: &u32| {
            let threads = n.max(1) as usize;
            Rank { threads, assigned: 0, done: threads * MAX_BATCH_NAMES / 4, before: NONE, after: NONE }
        };
        let ranks: Vec<Rank> = threads.iter().map(rank).collect();
        let levels = [Level { first: NONE, last: NONE }; Self::LEVELS];
        let (threads, done) = ranks.iter().fold((0, 0), |(n, done), rank| (n + rank.threads, done + rank.done));
        let mut ranks = Self { ranks, levels, threads, done, at_last: false };
        (0..ranks.ranks.len()).for_each(|rank| ranks.enter(rank));
        ranks
    }

    /// I/O threads of all ranks.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// The rank to give work to, if any has room: one assignment a thread, and while more than that waits for
    /// all, a second one, so that no thread waits for rank 0's answer.
    pub(super) fn freest(&self, backlog: usize) -> Option<usize> {
        let credits = if backlog > self.threads { 2 } else { 1 };
        let with_room = &self.levels[..credits * Self::LEVELS_A_CREDIT];
        with_room.iter().map(|level| level.first).find(|&rank| rank != NONE)
    }

    /// How many of `queued` names or directories one assignment takes, at most `most`: a half of an equal share, but not so
    /// few that rank 0 could not answer all threads as fast as they ask.
    pub(super) fn share_of(&self, rank: usize, queued: usize, most: usize) -> usize {
        self.slowed(rank, self.equal_share(queued).min(most))
    }

    /// The same of ranges, which take longer.
    pub(super) fn ranges_of(&self, rank: usize, queued: usize) -> usize {
        let most = (1 + self.threads / Self::THREADS_A_RANGE).min(Self::MAX_RANGES);
        self.slowed(rank, (queued / (2 * self.threads)).clamp(1, most))
    }

    /// Names in one assignment while the queue of at most `most` is full.
    pub(super) fn full_share(&self, most: usize) -> usize {
        self.equal_share(most).min(MAX_BATCH_NAMES)
    }

    fn equal_share(&self, queued: usize) -> usize {
        let a_name = if self.at_last { Self::THREADS_A_NAME_AT_LAST } else { Self::THREADS_A_NAME };
        (queued / (2 * self.threads)).max(Self::MIN_SHARE).max(self.threads / a_name)
    }

    /// Less for a rank that is less than half as fast as all are on average: else all would wait for it in the end.
    fn slowed(&self, rank: usize, share: usize) -> usize {
        let Rank { done, threads, .. } = self.ranks[rank];
        let (own, average) = (done * self.threads, self.done * threads);
        if 2 * own >= average { share } else { (share * own / average).max(share / 16).max(1) }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ranks.len()
    }

    pub(super) fn assign(&mut self, rank: usize) {
        self.leave(rank);
        self.ranks[rank].assigned += 1;
        self.enter(rank);
    }

    /// The rank has one assignment less, in which it has `done` so much.
    pub(super) fn release(&mut self, rank: usize, done: usize) {
        self.leave(rank);
        self.ranks[rank].assigned -= 1;
        self.ranks[rank].done += done;
        self.enter(rank);
        self.done += done;
        if self.done > self.threads * Self::DONE_A_THREAD {
            self.ranks.iter_mut().for_each(|rank| rank.done /= 2);
            self.done = self.ranks.iter().map(|rank| rank.done).sum();
        }
    }

    /// Nothing new is found any more.
    pub(super) fn ends_soon(&mut self) {
        self.at_last = true;
    }

    /// Takes the rank out of the list of its level.
    fn leave(&mut self, rank: usize) {
        let Rank { before, after, .. } = self.ranks[rank];
        let level = self.ranks[rank].level();
        match before {
            NONE => self.levels[level].first = after,
            before => self.ranks[before].after = after,
        }
        match after {
            NONE => self.levels[level].last = before,
            after => self.ranks[after].before = before,
        }
    }

    /// Puts it at the end of the list of its level.
    fn enter(&mut self, rank: usize) {
        let level = self.ranks[rank].level();
        let last = std::mem::replace(&mut self.levels[level].last, rank);
        match last {
            NONE => self.levels[level].first = rank,
            last => self.ranks[last].after = rank,
        }
        (self.ranks[rank].before, self.ranks[rank].after) = (last, NONE);
    }
}
