//! The words that every layer speaks: paths, entries, failures, statistics, exit codes.
//!
//! Pure data; no I/O, no MPI. Everything above may import it, it imports nothing of pcopy.

mod entry;
mod exit;
mod failure;
mod maker;
mod names;
mod path;
mod size;
mod stats;
mod unkept;
mod verdict;

pub use entry::{Facts, Fate, Identity, Kind, LinkId, Outcome, Partial, Record, Temporary, Timestamp};
pub use exit::ExitCode;
pub use failure::{Failure, Op, Side};
pub use maker::{Maker, Secret};
pub use names::NameSet;
pub use path::{DirPath, MAX_NAME_LEN, PathError, RelPath, escaped, is_name, one_line};
pub use size::{human_bytes, parse_duration, parse_rate, parse_size};
pub use stats::Stats;
pub use unkept::{Loss, Unkept};
pub use verdict::{Call, Halt, Verdict};

/// A BLAKE3 digest of a whole file, 32 bytes, as `b3sum` prints it in hexadecimal.
pub type Digest = [u8; 32];
