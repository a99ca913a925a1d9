//! What an entry of the tree is, and what became of it.

use serde::{Deserialize, Serialize};

use super::{Digest, Failure, RelPath, Unkept};

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDev,
    BlockDev,
}

/// A time of the file system: seconds since 1970 (before it: negative) and nanoseconds after that
/// second, below 1,000,000,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    pub sec: i64,
    pub nsec: u32,
}

impl Timestamp {
    /// Nanoseconds since 1970. 128 bits, because ext4 and XFS hold years that 64 bits cannot.
    pub fn as_ns(self) -> i128 {
        i128::from(self.sec) * 1_000_000_000 + i128::from(self.nsec)
    }
}

/// What must not change while a file is read: if any of it does, the copy is a mixture.
///
/// Without the inode number: over dfuse it differs between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Bytes.
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// Which temporary file a large file is copied to: the run of the job that made it, and that run's attempt. Another run
/// or attempt makes one of another name: what was recorded of one must never be taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Temporary {
    pub generation: u32,
    /// Times that the file was copied before in that run, and had changed.
    pub attempt: u8,
}

/// What ranges of a large file belong to: only those that agree in all of it are of one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// Of the source. Its ctime too: ranges of two versions in one file would be a file that never was.
    pub identity: Identity,
    pub temporary: Temporary,
    /// Bytes of one range.
    pub range_len: u64,
}

/// Which names belong to one file: equal for all hard links of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LinkId {
    /// The device number, or one that stands for the file system of the source's root, because
    /// the same file system can have another device number on each node.
    pub dev: u64,
    pub ino: u64,
}

/// Why an entry is as it was: what stood there was to be left, or (in a dry run) nothing was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It was made, or took the place of what was there; in a dry run it would be made.
    #[default]
    Made,
    /// Of a dry run: it would take the place of what is there; a directory would be used.
    Replaces,
    /// It was there, and left.
    KeptExisting,
    /// It was there, not older than the source, and left.
    KeptNewer,
}

impl Fate {
    /// Whether the entry at the destination was left as it was; and the manifest's word for why.
    pub fn kept(self) -> Option<&'static str> {
        match self {
            Self::Made | Self::Replaces => None,
            Self::KeptExisting => Some("exists"),
            Self::KeptNewer => Some("newer"),
        }
    }
}

/// What the manifest says of an entry that was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes of a regular file; the length of a symbolic link's target; 0 otherwise.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky: below 0o10000.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of the source, when it was copied.
    pub mtime: Timestamp,
    /// Of the source, when it was copied: metadata that changed later shows in it. Not in the manifest.
    pub ctime: Timestamp,
    /// Of the copy, where it is not `mtime`. Not in the manifest.
    pub mtime_there: Option<Timestamp>,
    /// Of a symbolic link.
    #[serde(with = "serde_bytes")]
    pub target: Option<Vec<u8>>,
    /// Of a regular file, unless digests are off.
    pub digest: Option<Digest>,
    /// Major and minor number of a device.
    pub rdev: Option<(u32, u32)>,
    /// The name this one was linked to.
    pub hardlink: Option<RelPath>,
    pub unkept: Unkept,
    pub fate: Fate,
}

impl Facts {
    /// Whether an unchanged copy may have this modification time: the one that was set, or the one that was seen. Some file
    /// systems show another one right after writing than later (s3fs).
    pub fn may_have_time(&self, mtime: Timestamp) -> bool {
        mtime == self.mtime || Some(mtime) == self.mtime_there
    }
}

/// How an entry ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done(Facts),
    Failed(Failure),
}

/// An entry and how it ended: one line of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Below the root of the copy.
    pub path: RelPath,
    pub kind: Kind,
    pub outcome: Outcome,
}
