//! What earlier runs of the job have recorded, looked up by name.

use std::sync::Arc;

use crate::journal::{Base, Partials};
use crate::proto::{Known, KnownEntry};
use crate::types::{Kind, Outcome, RelPath};

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

    /// What is recorded of an entry. One whose record cannot be read is copied again.
    pub(super) fn find(&self, path: &RelPath, name: &[u8], kind: Kind) -> Option<Known> {
        let entry = self.base.find(path).ok().flatten().and_then(|(number, record)| match record.outcome {
            Outcome::Done(mut facts) => {
                let was_link = facts.hardlink.take().is_some();
                Some(KnownEntry { number, kind: record.kind, facts, was_link })
            }
            Outcome::Failed(_) => None,
        });
        let partial = self.partials.get(path).map(|there| there.partial);
        (entry.is_some() || partial.is_some()).then(|| Known { name: name.to_vec(), kind, entry, partial })
    }
}
