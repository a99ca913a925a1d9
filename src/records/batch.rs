//! Encoded records in one piece of memory, in the order in which they came.
//!
//! A record as a value is several small allocations, made by one thread and freed by another: a million of them
//! left the heap of a rank at three times their size.

use super::{decode, encode};
use crate::types::{Record, Stats};

/// Records of one task, or of all tasks since the last run.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    stats: Stats,
}

/// Where in a batch a record is, and where its path.
#[derive(Clone, Copy)]
struct Slot {
    start: usize,
    path_start: usize,
    path_len: usize,
}

impl Batch {
    /// Adds a record and counts it.
    pub fn push(&mut self, record: &Record) {
        self.stats.count(record);
        let start = self.bytes.len();
        encode(record, &mut self.bytes);
        // a record begins with its length in four bytes, then its path's as a varint
        let path_len = record.path.as_bytes().len();
        let varint_len = self.bytes[start + 4..].iter().take_while(|&&b| b & 0x80 != 0).count() + 1;
        self.slots.push(Slot { start, path_start: start + 4 + varint_len, path_len });
    }

    /// Counts a file that was copied once more.
    pub fn count_recopied(&mut self, times: u64) {
        self.stats.recopied += times;
    }

    /// The counters of the records.
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

    /// The records, sorted by path.
    pub(super) fn into_sorted(mut self) -> impl Iterator<Item = std::io::Result<Record>> {
        let bytes = self.bytes;
        let path = |slot: &Slot| &bytes[slot.path_start..slot.path_start + slot.path_len];
        self.slots.sort_unstable_by(|a, b| path(a).cmp(path(b)));
        let slots = self.slots;
        slots.into_iter().filter_map(move |slot| decode(&mut &bytes[slot.start..]).transpose())
    }
}
