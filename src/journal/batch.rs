//! Encoded items in one piece of memory, in the order in which they came.
//!
//! A record as a value is several small allocations, made by one thread and freed by another: a million of them
//! left the heap of a rank at three times their size.

use super::Item;
use super::encoded::{encode_item, path_of};
use crate::types::{Kind, Outcome, Record, Stats};

/// Bytes of a piece: enough to be hashed and written fast.
const PIECE_LEN: usize = 256 << 10;

/// Items of one task, or of all tasks since the last checkpoint.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    stats: Stats,
}

/// Where in a batch an item is, and where its path.
#[derive(Clone, Copy)]
struct Slot {
    start: usize,
    path_start: usize,
    path_len: usize,
}

impl Batch {
    /// Adds an item, and counts an entry.
    pub fn push(&mut self, item: &Item) {
        if let Item::Entry(record) = item {
            self.stats.count(record);
        }
        let start = self.bytes.len();
        encode_item(item, &mut self.bytes);
        let path = path_of(&self.bytes[start..]).expect("it was just encoded");
        self.slots.push(Slot { start, path_start: start + path.start, path_len: path.len() });
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Counts an entry that an earlier run has recorded.
    pub fn count_resumed(&mut self, record: &Record) {
        self.stats.count(record);
        self.count_left(record);
    }

    /// Counts an entry whose data was there from an earlier run.
    pub fn count_left(&mut self, record: &Record) {
        self.stats.resumed += 1;
        if let (Kind::File, Outcome::Done(facts)) = (record.kind, &record.outcome)
            && facts.hardlink.is_none()
        {
            self.stats.resumed_bytes += facts.size;
        }
    }

    /// Counts an operation that is tried once more.
    pub fn count_retry(&mut self) {
        self.stats.retries += 1;
    }

    /// Counts a file that was copied once more.
    pub fn count_recopied(&mut self, times: u64) {
        self.stats.recopied += times;
    }

    /// The counters of the entries.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Adds another batch.
    pub fn append(&mut self, other: &Self) {
        let base = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        let moved = |slot: &Slot| Slot { start: slot.start + base, path_start: slot.path_start + base, ..*slot };
        self.slots.extend(other.slots.iter().map(moved));
        self.stats.add(&other.stats);
    }

    /// Bytes of memory.
    pub fn byte_len(&self) -> usize {
        self.bytes.len() + self.slots.len() * size_of::<Slot>()
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let path = |slot: &Slot| &bytes[slot.path_start..slot.path_start + slot.path_len];
        // stable: of one path the later item is the newer one
        self.slots.sort_by(|a, b| path(a).cmp(path(b)));
    }

    /// Bytes of the items as a journal holds them.
    pub(super) fn items_len(&self) -> usize {
        self.bytes.len()
    }

    /// The items as a journal holds them, sorted by path, in pieces of about the same length.
    pub(super) fn sorted_pieces(&mut self) -> impl Iterator<Item = Vec<u8>> {
        self.sort();
        let (bytes, mut slots) = (&self.bytes, self.slots.iter());
        std::iter::from_fn(move || {
            let mut piece = Vec::new();
            while piece.len() < PIECE_LEN
                && let Some(slot) = slots.next()
            {
                let item = &bytes[slot.start..];
                let len = u32::from_le_bytes(item[..4].try_into().expect("four bytes"));
                piece.extend_from_slice(&item[..4 + len as usize]);
            }
            (!piece.is_empty()).then_some(piece)
        })
    }
}
