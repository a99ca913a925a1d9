//! Chaining values of holes, which need not be hashed.
//!
//! BLAKE3 numbers its chunks, so that the same zeros hash to another value at every offset: a hole of 1 TiB costs as
//! much as a TiB of data. `zeros.bin` holds the chaining value of each [`PIECE_LEN`] bytes of zeros at a multiple of
//! that, up to [`TABLE_LEN`], 32 bytes each; larger ones are merged from them (BLAKE3 paper, section 2.1). An entry is what
//! `hashed` below gives for its offset. The tests hold some against it, and tests/it/limits.rs nearly all: the digest of a
//! sparse file of 1 TiB is merged from them, and was computed there by hashing every zero.

use blake3::hazmat::{ChainingValue, Mode, merge_subtrees_non_root};

/// Bytes; one entry of the table.
pub const PIECE_LEN: u64 = 64 << 20;
/// Bytes; beyond it holes are hashed.
pub const TABLE_LEN: u64 = 1 << 40;

static TABLE: &[u8] = include_bytes!("zeros.bin");

/// The chaining value of `len` zeros at `offset` of a longer file, where the table has it: `len` is a power of two of
/// at least [`PIECE_LEN`], and `offset` a multiple of it.
pub fn chaining_value(offset: u64, len: u64) -> Option<ChainingValue> {
    if !len.is_power_of_two() || len < PIECE_LEN || !offset.is_multiple_of(len) || offset.checked_add(len)? > TABLE_LEN
    {
        return None;
    }
    Some(merged(usize::try_from(offset / PIECE_LEN).ok()?, usize::try_from(len / PIECE_LEN).ok()?))
}

/// Of `count` entries, a power of two, from `first` on.
fn merged(first: usize, count: usize) -> ChainingValue {
    if count == 1 {
        return TABLE.as_chunks().0[first];
    }
    let half = count / 2;
    merge_subtrees_non_root(&merged(first, half), &merged(first + half, half), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use blake3::hazmat::HasherExt;

    use super::*;

    fn hashed(offset: u64, len: u64) -> ChainingValue {
        let zeros = vec![0; 1 << 20];
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        for _ in 0..len >> 20 {
            hasher.update(&zeros);
        }
        hasher.finalize_non_root()
    }

    #[test]
    fn the_table_holds_what_hashing_zeros_gives() {
        assert_eq!(TABLE.len() as u64, TABLE_LEN / PIECE_LEN * 32);
        let last = TABLE_LEN / PIECE_LEN - 1;
        for index in [0, 1, 2, 3, 255, 256, 4095, 8192, 10_007, last - 1, last] {
            let offset = index * PIECE_LEN;
            assert_eq!(chaining_value(offset, PIECE_LEN), Some(hashed(offset, PIECE_LEN)), "{index}");
        }
        let offset = 12 * PIECE_LEN;
        assert_eq!(chaining_value(offset, 4 * PIECE_LEN), Some(hashed(offset, 4 * PIECE_LEN)));
    }

    #[test]
    fn what_is_no_subtree_of_the_table_is_not_answered() {
        for (offset, len) in [
            (0, PIECE_LEN / 2),
            (PIECE_LEN / 2, PIECE_LEN),
            (PIECE_LEN, 2 * PIECE_LEN),
            (0, 3 * PIECE_LEN),
            (TABLE_LEN, PIECE_LEN),
            (u64::MAX - PIECE_LEN + 1, PIECE_LEN),
        ] {
            assert_eq!(chaining_value(offset, len), None, "{offset} {len}");
        }
        assert!(chaining_value(0, TABLE_LEN).is_some());
    }
}
