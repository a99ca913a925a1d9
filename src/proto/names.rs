//! Names of one directory's entries, packed.

use serde::{Deserialize, Serialize};

use super::at_most;
use crate::types::{Kind, MAX_NAME_LEN, is_name};

/// Names in one batch, at most: a rank may list more than it copies.
const MAX_NAMES: usize = 16 << 10;

/// Names and types of entries of one directory, in listing order.
///
/// One allocation for all names: a batch is read once, and a hundred million files pass through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Packed")]
pub struct Names {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    /// The end of each name in `bytes`, and its type.
    ends: Vec<(u32, Kind)>,
}

#[derive(Deserialize)]
struct Packed {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    #[serde(deserialize_with = "at_most::<MAX_NAMES, _, _>")]
    ends: Vec<(u32, Kind)>,
}

/// What a batch of names cannot be.
#[derive(Debug, thiserror::Error)]
#[error("names that do not fit their bytes, or that are not names")]
pub struct NamesError;

impl Names {
    /// A batch of one.
    pub fn one(name: &[u8], kind: Kind) -> Self {
        let mut names = Self::default();
        names.push(name, kind);
        names
    }

    /// Adds a name, which is a valid one: it comes from a listing.
    pub fn push(&mut self, name: &[u8], kind: Kind) {
        debug_assert!(is_name(name));
        self.bytes.extend_from_slice(name);
        let end = u32::try_from(self.bytes.len()).expect("a batch is far below 4 GiB");
        self.ends.push((end, kind));
    }

    /// How many names.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of memory and of a message, about.
    pub fn byte_len(&self) -> usize {
        self.bytes.len() + 6 * self.ends.len()
    }

    /// The names and their types, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Kind)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|&(end, _)| end as usize));
        starts.zip(&self.ends).map(|(start, &(end, kind))| (&self.bytes[start..end as usize], kind))
    }

    /// Takes `count` names out, the last ones, or all when there are fewer: what stays is not moved.
    pub fn take(&mut self, count: usize) -> Self {
        let Some(left) = self.len().checked_sub(count).filter(|&left| left > 0) else {
            return std::mem::take(self);
        };
        let cut = self.ends[left - 1].0;
        let bytes = self.bytes.split_off(cut as usize);
        let mut ends = self.ends.split_off(left);
        for (end, _) in &mut ends {
            *end -= cut;
        }
        Self { bytes, ends }
    }
}

impl TryFrom<Packed> for Names {
    type Error = NamesError;

    fn try_from(packed: Packed) -> Result<Self, NamesError> {
        let mut start = 0;
        for &(end, _) in &packed.ends {
            let name = packed.bytes.get(start..end as usize).ok_or(NamesError)?;
            if !is_name(name) || name.len() > MAX_NAME_LEN {
                return Err(NamesError);
            }
            start = end as usize;
        }
        if start == packed.bytes.len() { Ok(Self { bytes: packed.bytes, ends: packed.ends }) } else { Err(NamesError) }
    }
}
