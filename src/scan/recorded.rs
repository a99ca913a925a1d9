//! What earlier runs of the job have recorded, looked up by name.

use std::sync::Arc;

use crate::journal::{Base, Block, Partials};
use crate::proto::{Known, KnownEntry};
use crate::types::{Kind, RelPath};

/// What earlier runs of the job have recorded.
#[derive(Clone, Default)]
pub struct Recorded {
    pub base: Arc<Base>,
    pub partials: Arc<Partials>,
}

impl Recorded {
    pub(super) fn is_empty(&self) -> bool {
        self.base.is_empty() && self.partials.is_empty()
    }

    /// The record of an entry that was copied, without its path; none where it cannot be read.
    pub(super) fn record(&self, path: &RelPath, block: &mut Block) -> Option<KnownEntry> {
        if self.base.is_empty() {
            return None;
        }
        let (number, record) = self.base.find(path, block).ok().flatten()?;
        Some(KnownEntry { number, record: record.without_path() })
    }

    /// What is recorded of an entry. One whose record cannot be read is copied again.
    pub(super) fn find(&self, path: &RelPath, name: &[u8], kind: Kind, block: &mut Block) -> Option<Known> {
        let entry = self.record(path, block);
        let partial = self.partials.get(path).map(|there| there.partial);
        (entry.is_some() || partial.is_some()).then(|| Known { name: name.to_vec(), kind, entry, partial })
    }
}
