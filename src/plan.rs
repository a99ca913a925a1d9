//! How a large file is cut into ranges. Pure arithmetic.

/// The smallest range: direct and buffered writes of different ranks never share a page.
pub const MIN_RANGE_LEN: u64 = 4096;
/// The largest range. Its digest is one BLAKE3 subtree, and its offsets stay in 63 bits.
pub const MAX_RANGE_LEN: u64 = 1 << 40;

/// Ranges of one file, about: enough for tens of thousands of ranks, each is a message and some 100 bytes in a journal.
pub const MAX_RANGES: u64 = 1 << 20;
/// Of a sparse file, most of whose ranges may hold nothing.
const MAX_SPARSE_RANGES: u64 = 1 << 16;
/// Of a sparse file, at least, in bytes.
const SPARSE_RANGE_LEN: u64 = 64 << 20;

/// A file's size cut into ranges of equal length, the last one shorter where it does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    file_len: u64,
    range_len: u64,
}

/// One range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Bytes from the start of the file; a multiple of the range length.
    pub offset: u64,
    /// Bytes; zero for the one range of an empty file only.
    pub len: u64,
}

impl Ranges {
    /// Cuts `file_len` bytes into ranges of `range_len`, as [`round_range_len`] gives it.
    ///
    /// # Panics
    /// When `range_len` is not a power of two of at least [`MIN_RANGE_LEN`].
    pub fn new(file_len: u64, range_len: u64) -> Self {
        assert!(range_len.is_power_of_two() && range_len >= MIN_RANGE_LEN, "range length {range_len}");
        Self { file_len, range_len }
    }

    /// How many ranges there are; at least one.
    pub fn count(self) -> u64 {
        self.file_len.div_ceil(self.range_len).max(1)
    }

    /// The range of this number, counted from zero.
    pub fn get(self, index: u64) -> Range {
        debug_assert!(index < self.count());
        let offset = index * self.range_len;
        Range { offset, len: self.range_len.min(self.file_len - offset) }
    }
}

/// The range length of one file: `range_len`, more where a file would have more than [`MAX_RANGES`] ranges; of a sparse
/// one more yet, where holes are known by their digests. At least two ranges are left: the digest of a lone one would not
/// be a subtree's.
pub fn range_len_of(file_len: u64, sparse: bool, range_len: u64) -> u64 {
    let (most, least) = if sparse { (MAX_SPARSE_RANGES, SPARSE_RANGE_LEN) } else { (MAX_RANGES, 0) };
    let wanted = (file_len / most).next_power_of_two().max(least);
    let two_left = if file_len < 2 { range_len } else { 1 << (file_len - 1).ilog2() };
    range_len.max(wanted.min(two_left)).min(MAX_RANGE_LEN)
}

/// The range length that is used for a wish of `wanted` bytes: the next power of two, because only
/// then is the digest of a range a subtree of the file's BLAKE3 tree.
pub fn round_range_len(wanted: u64) -> u64 {
    wanted.clamp(MIN_RANGE_LEN, MAX_RANGE_LEN).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_edges_are_exact() {
        let count = |len| Ranges::new(len, 4096).count();
        assert_eq!([0, 1, 4095, 4096, 4097, 8192, 8193].map(count), [1, 1, 1, 1, 2, 2, 3]);
        assert_eq!(Ranges::new(4097, 4096).get(1), Range { offset: 4096, len: 1 });
        assert_eq!(Ranges::new(0, 4096).get(0), Range { offset: 0, len: 0 });
        assert_eq!(round_range_len(1), 4096);
        assert_eq!(round_range_len(4 << 20), 4 << 20);
        assert_eq!(round_range_len((4 << 20) + 1), 8 << 20);
        assert_eq!(round_range_len(u64::MAX), MAX_RANGE_LEN);
    }

    #[test]
    fn huge_and_sparse_files_have_longer_ranges() {
        let (mib, tib) = (1 << 20, 1 << 40);
        for (file_len, sparse, expected) in [
            (17 * mib, false, 16 * mib),
            (tib, false, 16 * mib),
            (16 * tib, false, 16 * mib),
            (100 * tib, false, 128 * mib),
            (u64::MAX >> 1, false, MAX_RANGE_LEN),
            (17 * mib, true, 16 * mib),
            (64 * mib, true, 32 * mib),
            (64 * mib + 1, true, 64 * mib),
            (tib, true, 64 * mib),
            (20 * tib, true, 512 * mib),
        ] {
            let len = range_len_of(file_len, sparse, 16 * mib);
            assert_eq!(len, expected, "{file_len} {sparse}");
            assert!(Ranges::new(file_len, len).count() >= 2);
        }
    }

    proptest! {
        #[test]
        fn ranges_cover_every_byte_once(file_len in 0u64..1 << 50, shift in 12u32..=40) {
            let range_len = (1u64 << shift).max(file_len.next_power_of_two() >> 12);
            let ranges = Ranges::new(file_len, range_len);
            let mut end = 0;
            for index in 0..ranges.count() {
                let range = ranges.get(index);
                prop_assert_eq!(range.offset, end);
                prop_assert!(range.len <= range_len && (range.len > 0 || file_len == 0));
                end += range.len;
            }
            prop_assert_eq!(end, file_len);
        }

        #[test]
        fn a_rounded_length_is_the_next_power_of_two(wanted in 1u64..=MAX_RANGE_LEN) {
            let rounded = round_range_len(wanted);
            prop_assert!(rounded.is_power_of_two() && rounded >= wanted);
            prop_assert!(rounded == MIN_RANGE_LEN || rounded / 2 < wanted);
        }
    }
}
