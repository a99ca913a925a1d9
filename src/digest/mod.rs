//! The BLAKE3 digest of a file from the digests of its ranges, in whatever order they come.
//!
//! A file of two ranges or more is a tree whose lowest level here is one chaining value a range.
//! Two neighbours merge into a node of the next level; a last node without a neighbour moves up
//! as it is, which is BLAKE3's rule that the left subtree is the largest power of two below the
//! whole (BLAKE3 paper, section 2.1). Memory is that of the nodes that wait for a neighbour.

mod zeros;

use std::collections::HashMap;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::types::Digest;

/// The hash of one piece: of a whole file, or of one range of a larger one.
pub struct PieceHasher {
    hasher: blake3::Hasher,
    place: Place,
    /// Zeros at the end that were not hashed yet.
    zeros: u64,
    hashed: bool,
}

/// What a piece is of its file.
enum Place {
    /// All of it, in this many bytes.
    Whole(u64),
    /// All of it, which came at once: hashed like that more lanes are filled.
    AtOnce(Digest),
    /// A part, that many bytes from the start.
    Range(u64),
}

impl PieceHasher {
    /// For a file of this length that is hashed in one piece.
    pub fn whole(len: u64) -> Self {
        Self { hasher: blake3::Hasher::new(), place: Place::Whole(len), zeros: 0, hashed: false }
    }

    /// For a range at `offset` bytes of a file that has other ranges too. The offset is a
    /// multiple of the range length, a power of two of at least 1 KiB, and only the last range
    /// may be shorter.
    pub fn range(offset: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        Self { hasher, place: Place::Range(offset), zeros: 0, hashed: false }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        if matches!(self.place, Place::Whole(len) if len == bytes.len() as u64) {
            self.place = Place::AtOnce(blake3::hash(bytes).into());
            return;
        }
        self.hash_zeros();
        self.hashed = true;
        self.hasher.update(bytes);
    }

    /// Takes `len` zero bytes: a hole. Nothing is hashed yet: of a range that is all hole the value may be known.
    pub fn update_zeros(&mut self, len: u64) {
        self.zeros += len;
    }

    fn hash_zeros(&mut self) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while self.zeros > 0 {
            let now = usize::try_from(self.zeros).map_or(ZEROS.len(), |len| len.min(ZEROS.len()));
            self.hasher.update(&ZEROS[..now]);
            self.zeros -= now as u64;
        }
    }

    /// The digest of the file, or the chaining value of the range.
    pub fn finish(mut self) -> [u8; 32] {
        match self.place {
            Place::AtOnce(digest) => digest,
            Place::Whole(_) => {
                self.hash_zeros();
                self.hasher.finalize().into()
            }
            Place::Range(offset) => {
                if let Some(value) = zeros::chaining_value(offset, self.zeros).filter(|_| !self.hashed) {
                    return value;
                }
                self.hash_zeros();
                self.hasher.finalize_non_root()
            }
        }
    }
}

/// The digest of a file of two ranges or more, growing as chaining values arrive.
#[derive(Debug)]
pub struct Merge {
    ranges: u64,
    /// Nodes whose neighbour has not come yet, by level (0: ranges) and index in the level.
    waiting: HashMap<(u32, u64), ChainingValue>,
    root: Option<Digest>,
}

impl Merge {
    /// For a file of `ranges` ranges.
    ///
    /// # Panics
    /// Below two: the chaining value of a lone range can never become a digest.
    pub fn new(ranges: u64) -> Self {
        assert!(ranges >= 2, "a file of {ranges} ranges is hashed in one piece");
        Self { ranges, waiting: HashMap::new(), root: None }
    }

    /// Takes the chaining value of the range `index`, each exactly once.
    pub fn insert(&mut self, index: u64, value: ChainingValue) {
        debug_assert!(index < self.ranges && self.root.is_none());
        let (mut level, mut index, mut value) = (0, index, value);
        let mut nodes = self.ranges;
        loop {
            let neighbour = index ^ 1;
            if neighbour < nodes {
                let Some(other) = self.waiting.remove(&(level, neighbour)) else {
                    self.waiting.insert((level, index), value);
                    return;
                };
                let (left, right) = if index < neighbour { (value, other) } else { (other, value) };
                if nodes == 2 {
                    self.root = Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes());
                    return;
                }
                value = merge_subtrees_non_root(&left, &right, Mode::Hash);
            }
            (level, index, nodes) = (level + 1, index / 2, nodes.div_ceil(2));
        }
    }

    /// The digest, once every range has come.
    pub fn digest(&self) -> Option<Digest> {
        self.root
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::plan::Ranges;

    fn merged(data: &[u8], range_len: u64, order: &[u64]) -> Option<Digest> {
        let ranges = Ranges::new(data.len() as u64, range_len);
        let mut merge = Merge::new(ranges.count());
        for &index in order {
            assert_eq!(merge.digest(), None, "a digest before the last range");
            let range = ranges.get(index);
            let start = usize::try_from(range.offset).expect("a small test");
            let mut piece = PieceHasher::range(range.offset);
            piece.update(&data[start..start + usize::try_from(range.len).expect("a small test")]);
            merge.insert(index, piece.finish());
        }
        merge.digest()
    }

    #[test]
    fn a_digest_is_the_one_of_the_whole_for_every_number_of_ranges() {
        let data: Vec<u8> = (0..40 * 4096 + 1).map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        for count in 2..=40 {
            for len in [(count - 1) * 4096 + 1, count * 4096 - 1, count * 4096] {
                let data = &data[..len];
                let order: Vec<u64> = (0..count as u64).collect();
                assert_eq!(merged(data, 4096, &order), Some(*blake3::hash(data).as_bytes()), "{len}");
            }
        }
    }

    #[test]
    fn a_range_of_zeros_has_the_same_value_with_and_without_the_table() {
        let (offset, len) = (3 * zeros::PIECE_LEN, zeros::PIECE_LEN);
        for data_at in [None, Some(0), Some(len - 1)] {
            let (mut holes, mut plain) = (PieceHasher::range(offset), PieceHasher::range(offset));
            let at = data_at.unwrap_or(len);
            holes.update_zeros(at);
            plain.update(&vec![0; usize::try_from(at).expect("small")]);
            if data_at.is_some() {
                holes.update(b"x");
                plain.update(b"x");
                holes.update_zeros(len - at - 1);
                plain.update(&vec![0; usize::try_from(len - at - 1).expect("small")]);
            }
            assert_eq!(holes.finish(), plain.finish(), "{data_at:?}");
        }
    }

    #[test]
    fn zeros_hash_as_zeros() {
        let mut piece = PieceHasher::whole(200_001);
        piece.update(b"a");
        piece.update_zeros(200_000);
        let mut plain = vec![0; 200_001];
        plain[0] = b'a';
        assert_eq!(piece.finish(), *blake3::hash(&plain).as_bytes());
    }

    #[test]
    fn a_whole_file_has_its_digest_however_it_comes() {
        let data: Vec<u8> = (0..20_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        for len in [1usize, 64, 1023, 1024, 1025, 4096, 16_384, 20_000] {
            for first in [len, len.div_ceil(2), 1] {
                let mut piece = PieceHasher::whole(len as u64);
                data[..len].chunks(first).for_each(|bytes| piece.update(bytes));
                assert_eq!(piece.finish(), *blake3::hash(&data[..len]).as_bytes(), "{len} by {first}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_order_of_ranges_does_not_matter(
            len in 4097usize..600_000, seed in any::<u8>(), swaps in prop::collection::vec(any::<(Index, Index)>(), 0..200),
        ) {
            let data: Vec<u8> = (0..len).map(|i| i.to_le_bytes()[0].wrapping_mul(seed | 1) ^ i.to_le_bytes()[1]).collect();
            let mut order: Vec<u64> = (0..Ranges::new(len as u64, 4096).count()).collect();
            for (a, b) in swaps {
                let (a, b) = (a.index(order.len()), b.index(order.len()));
                order.swap(a, b);
            }
            prop_assert_eq!(merged(&data, 4096, &order), Some(*blake3::hash(&data).as_bytes()));
        }
    }
}
