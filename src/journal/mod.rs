//! The journal: what each rank has finished, durable, in groups; and the streams of records that the manifest is merged
//! from.
//!
//! A rank writes one file a run of the job, `journal-<generation>.<rank>`: a header, then groups. A group is what the rank
//! finished between two checkpoints, sorted by path; it is appended after the data of its records was made durable, and made
//! durable itself before the checkpoint counts. All numbers are little-endian.
//!
//! | bytes | header |
//! |---|---|
//! | 0..8 | `pcopyjnl` |
//! | 8..12, 12..16 | version of the format; oldest version whose readers understand it |
//! | 16..24 | number of the job |
//! | 24..28, 28..32, 32..36 | generation, from 1; rank; ranks of this generation |
//! | 36..64 | zero |
//! | 64..96 | BLAKE3 of bytes 0..64 |
//!
//! | bytes | group |
//! |---|---|
//! | 0..8 | `JnlGroup` |
//! | 8..16, 16..24 | number of items; length of the items in bytes |
//! | 24.. | items: length (u32) and postcard encoding of an [`Item`] each, sorted by path |
//! | then 32 | BLAKE3 of the group before it |
//!
//! | found | then |
//! |---|---|
//! | the file ends within a group, or its last group does not match its digest | the crash came there: the group is left out |
//! | an earlier group does not match | damage: that group is left out, later ones count; it is said |
//! | another job's number, or no header | foreign: the file is left out; it is said |
//! | a newer oldest reader | [`Trouble::Newer`]: nothing is read or overwritten |

mod base;
mod batch;
mod encoded;
mod merge;
mod reader;
mod writer;

use serde::{Deserialize, Serialize};

pub use base::{
    Base, BaseWriter, Block, Confirmed, LoadError, Loaded, Partials, Unfinished, can_be_left, is_own_name, jobs_in,
    load, remove_journals,
};
pub use batch::Batch;
pub use encoded::{Encoded, encode_item};
pub use merge::{Entries, Head};
pub use reader::Trouble;
pub use writer::{Journal, Recorder};

use crate::types::{Partial, Record, RelPath};

/// The version of the format that is written. 2: a record says which inode flags and project id its source has, and which
/// attributes its copy lacks; records of version 1 are read, and are taken to say nothing of them.
pub const FORMAT_VERSION: u32 = 2;
/// The oldest version whose readers understand what is written.
pub const OLDEST_READER: u32 = 2;

const HEADER_MAGIC: &[u8; 8] = b"pcopyjnl";
const GROUP_MAGIC: &[u8; 8] = b"JnlGroup";
const HEADER_LEN: usize = 96;
const GROUP_HEADER_LEN: usize = 24;
const DIGEST_LEN: usize = 32;

/// What a journal says of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// An entry has ended.
    Entry(Record),
    /// A range of a large file is in its temporary file.
    Range(RangeDone),
}

/// A range of a file that is copied in ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDone {
    pub path: RelPath,
    pub partial: Partial,
    pub index: u64,
    /// Its chaining value, if digests are on.
    pub value: Option<[u8; 32]>,
}

impl Item {
    /// The path that it is about.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Entry(record) => &record.path,
            Self::Range(range) => &range.path,
        }
    }

    fn path_mut(&mut self) -> &mut RelPath {
        match self {
            Self::Entry(record) => &mut record.path,
            Self::Range(range) => &mut range.path,
        }
    }
}

/// Where a journal belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub job_id: u64,
    /// Which run of the job, from 1.
    pub generation: u32,
    pub rank: u32,
    pub ranks: u32,
}

/// How the names of journals begin.
const PREFIX: &str = "journal-";

impl Header {
    /// The name of its file in the state directory.
    pub fn name(self) -> Vec<u8> {
        format!("{PREFIX}{:06}.{}", self.generation, self.rank).into_bytes()
    }

    fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(HEADER_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&OLDEST_READER.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.job_id.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.generation.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.rank.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.ranks.to_le_bytes());
        let digest = blake3::hash(&bytes[..64]);
        bytes[64..].copy_from_slice(digest.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, Trouble> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if &bytes[..8] != HEADER_MAGIC || blake3::hash(&bytes[..64]).as_bytes() != &bytes[64..] {
            return Err(Trouble::Foreign);
        }
        if word(12) > FORMAT_VERSION {
            return Err(Trouble::Newer(word(8)));
        }
        let job_id = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
        Ok(Self { job_id, generation: word(24), rank: word(28), ranks: word(32) })
    }
}

#[cfg(test)]
mod tests;
