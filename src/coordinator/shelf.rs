//! Where groups of names are kept that wait for a name which may never come: out of memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};

use crate::types::{LinkId, RelPath, Timestamp};

/// Holds bytes outside of memory.
pub trait Store: Send {
    /// Takes bytes; where they are. `None` if it cannot, now and later.
    fn put(&mut self, bytes: &[u8]) -> Option<u64>;

    /// As many bytes as were put there, or more that were put behind them. `None` if they cannot be read.
    fn get(&mut self, at: u64, len: u32) -> Option<Vec<u8>>;
}

/// A file of which one name was copied, and others may come.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shelved {
    pub(super) id: LinkId,
    pub(super) version: (u64, Timestamp),
    pub(super) unseen: u64,
    /// The directory of the name that was copied.
    pub(super) dir: RelPath,
    /// [`Owner`](super::links)'s.
    #[serde(with = "serde_bytes")]
    pub(super) packed: Vec<u8>,
}

/// What is known of a file that was looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Found(Shelved),
    NotThere,
    /// It was put there, and cannot be read.
    Lost,
}

/// Finds files in a store by a hash of their numbers: 16 bytes of memory a file, and empty places of the table.
pub(super) struct Shelf {
    store: Box<dyn Store>,
    places: HashMap<u64, (u64, u32)>,
    hasher: RandomState,
    /// The store takes no more.
    pub(super) is_full: bool,
}

impl Shelf {
    pub(super) fn new(store: Box<dyn Store>) -> Self {
        Self { store, places: HashMap::new(), hasher: RandomState::new(), is_full: false }
    }

    /// Takes a file; `false` if it cannot.
    pub(super) fn put(&mut self, file: &Shelved) -> bool {
        let key = self.hasher.hash_one(file.id);
        // of two files with one hash the second stays where it is
        if self.is_full || self.places.contains_key(&key) {
            return false;
        }
        let bytes = postcard::to_allocvec(file).expect("a file always encodes into memory");
        let (Some(at), Ok(len)) = (self.store.put(&bytes), u32::try_from(bytes.len())) else {
            self.is_full = true;
            return false;
        };
        self.places.insert(key, (at, len));
        true
    }

    /// Gives a file back, which is then no longer here.
    pub(super) fn take(&mut self, id: LinkId) -> Looked {
        let key = self.hasher.hash_one(id);
        let Some(&(at, len)) = self.places.get(&key) else { return Looked::NotThere };
        let file = self.store.get(at, len).and_then(|bytes| postcard::from_bytes::<Shelved>(&bytes).ok());
        match file {
            None => Looked::Lost,
            Some(file) if file.id != id => Looked::NotThere,
            Some(file) => {
                self.places.remove(&key);
                Looked::Found(file)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Memory(Vec<u8>, Option<usize>);

    impl Store for Memory {
        fn put(&mut self, bytes: &[u8]) -> Option<u64> {
            let at = self.0.len();
            self.1.is_none_or(|most| at + bytes.len() <= most).then(|| self.0.extend_from_slice(bytes))?;
            Some(at as u64)
        }

        fn get(&mut self, at: u64, len: u32) -> Option<Vec<u8>> {
            let at = usize::try_from(at).ok()?;
            self.0.get(at..at + len as usize).map(Vec::from)
        }
    }

    fn file(ino: u64) -> Shelved {
        let dir = RelPath::root().join(b"d");
        Shelved {
            id: LinkId { dev: 1, ino },
            version: (ino, Timestamp::default()),
            unseen: 2,
            dir,
            packed: vec![7; 30],
        }
    }

    #[test]
    fn what_was_put_is_given_back_once() {
        let mut shelf = Shelf::new(Box::new(Memory::default()));
        (0..1000).for_each(|ino| assert!(shelf.put(&file(ino))));
        for ino in (0..1000).rev() {
            assert_eq!(shelf.take(file(ino).id), Looked::Found(file(ino)));
            assert_eq!(shelf.take(file(ino).id), Looked::NotThere);
        }
        assert!(shelf.put(&file(3)), "again");
    }

    #[test]
    fn a_full_store_takes_no_more_and_keeps_what_it_has() {
        let mut shelf = Shelf::new(Box::new(Memory(Vec::new(), Some(200))));
        let taken = (0..100).filter(|ino| shelf.put(&file(*ino))).count();
        assert!((1..10).contains(&taken) && shelf.is_full);
        assert_eq!(shelf.take(file(0).id), Looked::Found(file(0)));
    }

    #[test]
    fn what_cannot_be_read_is_lost_and_told() {
        let mut shelf = Shelf::new(Box::new(Memory::default()));
        assert!(shelf.put(&file(1)));
        shelf.store = Box::new(Memory::default());
        assert_eq!(shelf.take(file(1).id), Looked::Lost);
    }
}
