//! A set of names, kept as a number.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::Kind;

/// Tells whether two listings of a directory show the same entries, in whatever order, without keeping them: the sum of
/// their hashes, 64 bits, and how many they are. Only to be compared within one job: the hash is that of this build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameSet {
    count: u64,
    sum: u64,
}

impl NameSet {
    /// Adds an entry; its kind as far as the listing tells.
    pub fn add(&mut self, name: &[u8], kind: Option<Kind>) {
        let mut hasher = DefaultHasher::new();
        (name, kind).hash(&mut hasher);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hasher.finish());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[(&str, Option<Kind>)]) -> NameSet {
        let mut set = NameSet::default();
        names.iter().for_each(|(name, kind)| set.add(name.as_bytes(), *kind));
        set
    }

    #[test]
    fn the_order_does_not_matter_and_each_name_and_kind_does() {
        let (a, b) = (("a", Some(Kind::File)), ("b", None));
        assert_eq!(set(&[a, b]), set(&[b, a]));
        for other in [&[a] as &[_], &[a, b, b], &[a, ("c", None)], &[("a", Some(Kind::Dir)), b], &[("ab", None)]] {
            assert_ne!(set(&[a, b]), set(other), "{other:?}");
        }
    }
}
