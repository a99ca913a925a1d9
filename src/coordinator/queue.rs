//! Names that wait for a rank.

use std::collections::VecDeque;

use crate::proto::{Known, Names};
use crate::scan::DirId;

/// Bytes of memory that names of one directory take beside their own, with the state of the directory.
const BATCH_LEN: usize = 256;

/// Names that no rank has yet, by directories.
#[derive(Default)]
pub(super) struct Queue {
    names: VecDeque<(DirId, Names)>,
    /// Entries that earlier runs have recorded: they go first.
    known: VecDeque<(DirId, Vec<Known>)>,
    count: usize,
    byte_len: usize,
}

/// Some names of one directory.
pub(super) enum Batch {
    Names(Names),
    Known(Vec<Known>),
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Names(names) => names.len(),
            Self::Known(entries) => entries.len(),
        }
    }

    /// Bytes of memory and of a message, about.
    pub(super) fn byte_len(&self) -> usize {
        match self {
            Self::Names(names) => names.byte_len(),
            Self::Known(entries) => entries.iter().map(Known::byte_len).sum(),
        }
    }

    /// The numbers of those that earlier runs have recorded.
    pub(super) fn numbers(&self) -> Vec<u64> {
        match self {
            Self::Names(_) => Vec::new(),
            Self::Known(entries) => entries.iter().filter_map(|known| Some(known.entry.as_ref()?.number)).collect(),
        }
    }
}

impl Queue {
    /// How many names there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Bytes of memory that they take, about.
    pub(super) fn byte_len(&self) -> usize {
        self.byte_len
    }

    pub(super) fn push(&mut self, dir: DirId, batch: Batch) {
        self.count += batch.len();
        self.byte_len += batch.byte_len() + BATCH_LEN;
        match batch {
            Batch::Names(names) => self.names.push_back((dir, names)),
            Batch::Known(entries) => self.known.push_back((dir, entries)),
        }
    }

    /// The directory of the next names.
    pub(super) fn next_dir(&self) -> Option<DirId> {
        let known = self.known.front().map(|(dir, _)| *dir);
        known.or_else(|| self.names.front().map(|(dir, _)| *dir))
    }

    /// Names of [that directory](Self::next_dir), at most `most`.
    pub(super) fn take(&mut self, most: usize) -> Option<Batch> {
        let (batch, is_all) = if let Some((_, entries)) = self.known.front_mut() {
            let rest = if entries.len() > most { entries.split_off(most) } else { Vec::new() };
            let taken = std::mem::replace(entries, rest);
            (Batch::Known(taken), entries.is_empty())
        } else {
            let (_, names) = self.names.front_mut()?;
            let taken = names.take(most);
            (Batch::Names(taken), names.is_empty())
        };
        self.count -= batch.len();
        self.byte_len -= batch.byte_len();
        if is_all {
            self.byte_len -= BATCH_LEN;
            match batch {
                Batch::Names(_) => drop(self.names.pop_front()),
                Batch::Known(_) => drop(self.known.pop_front()),
            }
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Kind;

    #[test]
    fn what_is_taken_in_parts_leaves_nothing_behind() {
        let mut queue = Queue::default();
        let known = |n: u8| Known { name: vec![b'k', n], kind: Kind::File, entry: None, partial: None };
        let mut names = Names::default();
        (0..7).for_each(|n| names.push(format!("n{n}").as_bytes(), Kind::File));
        queue.push(1, Batch::Names(names));
        queue.push(2, Batch::Known((0..5).map(known).collect()));
        assert_eq!(queue.len(), 12);
        let mut taken = Vec::new();
        while let Some(dir) = queue.next_dir() {
            taken.push((dir, queue.take(3).expect("it has a directory").len()));
        }
        assert_eq!(taken, [(2, 3), (2, 2), (1, 3), (1, 3), (1, 1)]);
        assert_eq!((queue.len(), queue.byte_len()), (0, 0));
    }
}
