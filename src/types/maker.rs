//! Who makes the copy: what new files of his look like, and the secret that their temporary names are made of.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the destination's file system shows of a file that was made for its owner alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// Its owner: who runs pcopy, or whom the server makes of him.
    pub uid: u32,
    /// Permission bits of the group and of all others that it has all the same: the file system keeps no modes.
    pub forced: u32,
}

impl Maker {
    /// Of a file that was just made with mode 0600.
    pub fn of(uid: u32, mode: u32) -> Self {
        Self { uid, forced: mode & 0o077 }
    }

    /// Whether an entry with this owner and mode is his, and for him alone as far as the file system can tell.
    pub fn is_alone(&self, uid: u32, mode: u32) -> bool {
        uid == self.uid && mode & 0o077 & !self.forced == 0
    }
}

/// What makes names that nobody else can guess. The same in every run of a job.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 16]);

impl Secret {
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// The key of a hash.
    pub fn key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&self.0);
        key
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
