//! The user who makes the copy, as the destination shows him, and the secret from which temporary names are made.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Owner and mode that the destination's file system shows for a file that was created with mode 0600.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The owner of new files: the user who runs pcopy, or the user to whom the server maps him (NFS `root_squash`).
    pub uid: u32,
    /// Permission bits for the group and others that files and directories have on a file system without modes (FAT); else 0.
    pub forced: u32,
}

impl Maker {
    /// From the owner and the mode that a file shows which was created with mode 0600.
    pub fn of(uid: u32, mode: u32) -> Self {
        let of_files = mode & 0o077;
        // Where others may read each file, they may search each directory.
        Self { uid, forced: of_files | (of_files & 0o044) >> 2 }
    }

    /// Whether an entry with this owner and mode belongs to him, and is open to nobody else as far as the file system can say.
    pub fn is_alone(&self, uid: u32, mode: u32) -> bool {
        uid == self.uid && mode & 0o077 & !self.forced == 0
    }
}

/// 128 random bits of a job, the same in each of its runs. Names that are made with them cannot be guessed by other users.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 16]);

impl Secret {
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// The key for BLAKE3's keyed hash.
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

#[cfg(test)]
mod tests {
    use super::Maker;

    #[test]
    fn where_files_are_open_to_all_a_directory_may_be_searched_by_all() {
        let rclone = Maker::of(0, 0o644);
        assert!(rclone.is_alone(0, 0o755) && !rclone.is_alone(0, 0o777) && !rclone.is_alone(1, 0o755));
        let usual = Maker::of(0, 0o600);
        assert!(usual.is_alone(0, 0o700) && !usual.is_alone(0, 0o711) && !usual.is_alone(0, 0o750));
    }
}
