//! A set of names, kept as a number.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

/// Tells whether two listings of a directory show the same entries, in whatever order, without keeping them: the sum of
/// their hashes, 64 bits, since rank 0 has one for each directory that is not finished. Only to be compared within one
/// job: the hash is that of this build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameSet(u64);

impl NameSet {
    /// Adds an entry: a name, and the inode number that the listing shows. A name alone would not tell that two entries have
    /// exchanged their names, of which one was copied before and the other is copied after that.
    pub fn add(&mut self, name: &[u8], ino: u64) {
        let mut hasher = DefaultHasher::new();
        (name, ino).hash(&mut hasher);
        self.0 = self.0.wrapping_add(hasher.finish());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[(&str, u64)]) -> NameSet {
        let mut set = NameSet::default();
        names.iter().for_each(|(name, ino)| set.add(name.as_bytes(), *ino));
        set
    }

    #[test]
    fn the_order_does_not_matter_and_each_name_and_inode_does() {
        let (a, b) = (("a", 1), ("b", 2));
        assert_eq!(set(&[a, b]), set(&[b, a]));
        for other in [&[a] as &[_], &[a, b, b], &[a, ("c", 2)], &[("a", 2), ("b", 1)], &[("ab", 3)]] {
            assert_ne!(set(&[a, b]), set(other), "{other:?}");
        }
    }
}
