//! Checkpoints: when all ranks make what they have finished durable, and in which order. A state machine without clock
//! and messages of its own.
//!
//! Every rank seals what it has finished; when all have, one rank a node makes the node's data durable; when all have,
//! every rank appends what it sealed to its journal. So no journal ever names what is not durable. Copying goes on
//! meanwhile.

use std::time::Duration;

use crate::proto::{Checkpoint, Durability};

/// Bytes of data after which a checkpoint is made before its time.
const MAX_BYTES: u64 = 4 << 30;

/// The state of the current checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoints {
    /// One rank a node.
    leaders: Vec<usize>,
    /// For each rank: its answer to the current step has not come yet.
    asked: Vec<bool>,
    interval: Duration,
    state: State,
    seq: u64,
    /// When the last one ended, since the job's start.
    ended: Duration,
    /// Bytes that had been moved when it began.
    bytes: u64,
    /// A rank has much in memory to write down that does not belong to it.
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Sealing { waiting: usize, any: bool },
    Syncing { waiting: usize },
    Committing { waiting: usize },
}

/// A rank answers something that it was not asked, or twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an answer to another checkpoint")]
pub struct OutOfOrder;

/// What to send next, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) ranks: Vec<usize>,
    pub(super) order: Checkpoint,
}

impl Checkpoints {
    pub(super) fn new(ranks: usize, leaders: Vec<usize>, interval: Duration, durability: Durability) -> Self {
        let leaders = if durability == Durability::Checkpoint { leaders } else { Vec::new() };
        Self {
            leaders,
            asked: vec![false; ranks],
            interval,
            state: State::Idle,
            seq: 0,
            ended: Duration::ZERO,
            bytes: 0,
            full: false,
        }
    }

    /// Whether none is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// A rank has much in memory to write down. It counts for the next checkpoint if this one is too late for it: the rank
    /// may wait for that.
    pub(super) fn note_full(&mut self, rank: usize) {
        let belongs_to_this = matches!(self.state, State::Sealing { .. }) && self.asked[rank];
        self.full |= !belongs_to_this;
    }

    /// Whether it is time for one: `now` is since the job's start.
    pub(super) fn is_due(&self, now: Duration, bytes_moved: u64) -> bool {
        self.is_idle() && (self.full || now - self.ended >= self.interval || bytes_moved - self.bytes >= MAX_BYTES)
    }

    /// Begins one.
    pub(super) fn begin(&mut self, bytes_moved: u64) -> Orders {
        self.seq += 1;
        self.bytes = bytes_moved;
        self.full = false;
        self.state = State::Sealing { waiting: self.asked.len(), any: false };
        self.order_all(Checkpoint::Seal(self.seq))
    }

    fn order_all(&mut self, order: Checkpoint) -> Orders {
        self.order((0..self.asked.len()).collect(), order)
    }

    fn order(&mut self, ranks: Vec<usize>, order: Checkpoint) -> Orders {
        ranks.iter().for_each(|&rank| self.asked[rank] = true);
        Orders { ranks, order }
    }

    /// Takes a rank's answer.
    ///
    /// # Errors
    /// It is not one to what was asked.
    pub(super) fn take(
        &mut self,
        from: usize,
        answer: &Checkpoint,
        now: Duration,
    ) -> Result<Option<Orders>, OutOfOrder> {
        // A second answer of one rank must not count for another rank.
        if answer.seq() != self.seq || self.asked.get(from) != Some(&true) {
            return Err(OutOfOrder);
        }
        let ranks = self.asked.len();
        let next = match (self.state, answer) {
            (State::Sealing { waiting, any }, Checkpoint::Sealed(_, some)) => {
                let any = any || *some;
                match waiting - 1 {
                    0 if !any => State::Idle,
                    0 if self.leaders.is_empty() => State::Committing { waiting: ranks },
                    0 => State::Syncing { waiting: self.leaders.len() },
                    waiting => State::Sealing { waiting, any },
                }
            }
            (State::Syncing { waiting: 1 }, Checkpoint::Synced(..)) => State::Committing { waiting: ranks },
            (State::Syncing { waiting }, Checkpoint::Synced(..)) => State::Syncing { waiting: waiting - 1 },
            (State::Committing { waiting: 1 }, Checkpoint::Committed(..)) => State::Idle,
            (State::Committing { waiting }, Checkpoint::Committed(..)) => State::Committing { waiting: waiting - 1 },
            _ => return Err(OutOfOrder),
        };
        self.asked[from] = false;
        let changed = std::mem::discriminant(&next) != std::mem::discriminant(&self.state);
        self.state = next;
        Ok(match next {
            _ if !changed => None,
            State::Idle => {
                self.ended = now;
                None
            }
            State::Syncing { .. } => Some(self.order(self.leaders.clone(), Checkpoint::Sync(self.seq))),
            State::Committing { .. } => Some(self.order_all(Checkpoint::Commit(self.seq))),
            State::Sealing { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(7);

    fn checkpoints(durability: Durability) -> Checkpoints {
        Checkpoints::new(3, vec![0, 2], Duration::from_secs(5), durability)
    }

    #[test]
    fn nothing_is_written_down_before_all_is_sealed_and_synced() {
        let mut state = checkpoints(Durability::Checkpoint);
        assert_eq!(state.begin(0), Orders { ranks: vec![0, 1, 2], order: Checkpoint::Seal(1) });
        assert_eq!(state.take(0, &Checkpoint::Committed(1, Ok(())), NOW), Err(OutOfOrder));
        assert_eq!(state.take(0, &Checkpoint::Sealed(1, false), NOW), Ok(None));
        assert_eq!(state.take(1, &Checkpoint::Sealed(1, true), NOW), Ok(None));
        let sync = Orders { ranks: vec![0, 2], order: Checkpoint::Sync(1) };
        assert_eq!(state.take(2, &Checkpoint::Sealed(1, false), NOW), Ok(Some(sync)));
        assert_eq!(state.take(0, &Checkpoint::Synced(1, Ok(())), NOW), Ok(None));
        let commit = Orders { ranks: vec![0, 1, 2], order: Checkpoint::Commit(1) };
        assert_eq!(state.take(2, &Checkpoint::Synced(1, Ok(())), NOW), Ok(Some(commit)));
        for rank in 0..3 {
            assert!(!state.is_idle());
            assert_eq!(state.take(rank, &Checkpoint::Committed(1, Ok(())), NOW), Ok(None));
        }
        assert!(state.is_idle() && !state.is_due(NOW, 0));
        assert_eq!(state.take(0, &Checkpoint::Sealed(2, true), NOW), Err(OutOfOrder));
    }

    #[test]
    fn where_nothing_was_finished_nothing_is_synced() {
        let mut state = checkpoints(Durability::Checkpoint);
        state.begin(0);
        (0..3).for_each(|rank| assert_eq!(state.take(rank, &Checkpoint::Sealed(1, false), NOW), Ok(None)));
        assert!(state.is_idle());
    }

    #[test]
    fn without_durability_only_the_journals_are_written() {
        let mut state = checkpoints(Durability::None);
        state.begin(0);
        state.take(0, &Checkpoint::Sealed(1, true), NOW).expect("in order");
        state.take(1, &Checkpoint::Sealed(1, true), NOW).expect("in order");
        let orders = state.take(2, &Checkpoint::Sealed(1, true), NOW).expect("in order");
        assert_eq!(orders.map(|orders| orders.order), Some(Checkpoint::Commit(1)));
    }

    #[test]
    fn a_rank_that_answers_twice_or_was_not_asked_stands_for_no_other() {
        let mut state = checkpoints(Durability::Checkpoint);
        state.begin(0);
        assert_eq!(state.take(1, &Checkpoint::Sealed(1, true), NOW), Ok(None));
        for rank in [1, 3, usize::MAX] {
            assert_eq!(state.take(rank, &Checkpoint::Sealed(1, true), NOW), Err(OutOfOrder), "{rank}");
        }
        assert_eq!(state.take(0, &Checkpoint::Sealed(1, true), NOW), Ok(None));
        let sync = state.take(2, &Checkpoint::Sealed(1, true), NOW).expect("in order").map(|orders| orders.ranks);
        assert_eq!(sync, Some(vec![0, 2]));
        assert_eq!(state.take(1, &Checkpoint::Synced(1, Ok(())), NOW), Err(OutOfOrder), "it does not sync");
        assert_eq!(state.take(0, &Checkpoint::Synced(1, Ok(())), NOW), Ok(None));
        assert_eq!(state.take(0, &Checkpoint::Synced(1, Ok(())), NOW), Err(OutOfOrder));
    }

    #[test]
    fn time_bytes_and_full_memory_make_one_due() {
        let mut state = checkpoints(Durability::Checkpoint);
        let second = Duration::from_secs(1);
        assert!(!state.is_due(second, 1 << 30) && state.is_due(5 * second, 0) && state.is_due(second, 4 << 30));
        state.note_full(1);
        assert!(state.is_due(second, 0));
        state.begin(4 << 30);
        assert!(!state.is_due(5 * second, 9 << 30), "one at a time");
    }

    #[test]
    fn a_rank_that_fills_its_memory_after_it_has_sealed_makes_the_next_one_due() {
        for (full_rank, is_due) in [(0, true), (1, false)] {
            let mut state = checkpoints(Durability::None);
            state.begin(0);
            state.take(0, &Checkpoint::Sealed(1, true), NOW).expect("in order");
            state.note_full(full_rank);
            (1..3).for_each(|rank| drop(state.take(rank, &Checkpoint::Sealed(1, true), NOW).expect("in order")));
            (0..3).for_each(|rank| drop(state.take(rank, &Checkpoint::Committed(1, Ok(())), NOW).expect("in order")));
            assert_eq!(state.is_due(NOW, 0), is_due, "rank {full_rank}");
        }
    }
}
