//! What went wrong with one entry: the operation, the side, the errno.

use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Call, Halt, Verdict};

/// The operation that failed, by the name of the call where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Open,
    Stat,
    List,
    Read,
    Seek,
    ReadLink,
    Create,
    Mkdir,
    Mknod,
    Symlink,
    Link,
    Write,
    Truncate,
    Chown,
    Chmod,
    Xattr,
    Utimes,
    Fsync,
    Close,
    Rename,
    /// The source changed while it was read, every time it was tried.
    Changed,
    /// Two sources hold an entry of this path.
    Conflict,
    /// A directory that was entered before, on the way to itself, or the destination.
    Loop,
    /// Cancelled, because the job is stopping. It is not an error of the entry, and is never recorded.
    Stopped,
    /// Sharing the source's blocks.
    Clone,
    /// An entry at the destination that others can exchange is not proved to be the copy's.
    Exchanged,
    /// The destination takes the name for that of another entry.
    Collision,
    /// The source holds more or less than its size says, and does not change: procfs, sysfs.
    Size,
}

/// Which tree the operation was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Source,
    Destination,
}

/// Why an entry was not copied. It travels to rank 0, the manifest and the exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub op: Op,
    pub side: Side,
    /// The C library's errno; 0 where no call failed ([`Op::Changed`], [`Op::Conflict`], [`Op::Loop`], [`Op::Exchanged`],
    /// [`Op::Collision`], [`Op::Size`]).
    pub errno: i32,
}

impl Failure {
    /// The source changed during every attempt to copy it.
    pub const CHANGED: Self = Self { op: Op::Changed, side: Side::Source, errno: 0 };
    /// The size of the source says nothing of what it holds.
    pub const SIZE: Self = Self { op: Op::Size, side: Side::Source, errno: 0 };
    /// Cancelled, because the job is stopping.
    pub const STOPPED: Self = Self { op: Op::Stopped, side: Side::Source, errno: 0 };
    /// What stands at the destination is not proved to be the copy's.
    pub const EXCHANGED: Self = Self { op: Op::Exchanged, side: Side::Destination, errno: 0 };
    /// The destination takes the name for that of another entry of the source.
    pub const COLLISION: Self = Self { op: Op::Collision, side: Side::Destination, errno: 0 };
    /// The directory is one of its own ancestors.
    pub const LOOP: Self = Self { op: Op::Loop, side: Side::Source, errno: 0 };
}

impl Failure {
    /// Whether it is none of the entry alone, but of the job, which has to halt: nothing more can be copied before
    /// somebody has made space, or mounted the file system again.
    pub fn halts(&self) -> bool {
        self.op == Op::Stopped || matches!(self.verdict(), Verdict::Halt(_))
    }

    /// Whether the file's data may be lost, whatever the same call says the next time: fsync(2) and close(2) report an error
    /// of writing back once.
    pub fn loses_data(&self) -> bool {
        self.side == Side::Destination && matches!(self.op, Op::Fsync | Op::Close)
    }

    /// Whether an entry can be copied without the extended attributes that it is of.
    pub fn is_of_attributes(&self) -> bool {
        self.op == Op::Xattr && self.verdict() != Verdict::Halt(Halt::FileSystemGone)
    }

    /// Whether it may pass by itself: a server that restarts, another node's cache that does not know a new name yet.
    pub fn may_pass(&self) -> bool {
        self.verdict() == Verdict::Again
    }

    /// The consequence, by the table.
    pub fn verdict(&self) -> Verdict {
        Call::OnEntry.verdict(self.side, Errno::from_raw(self.errno))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Read => "read",
            Self::Seek => "seek",
            Self::ReadLink => "readlink",
            Self::Create => "create",
            Self::Mkdir => "mkdir",
            Self::Mknod => "mknod",
            Self::Symlink => "symlink",
            Self::Link => "link",
            Self::Write => "write",
            Self::Truncate => "truncate",
            Self::Chown => "chown",
            Self::Chmod => "chmod",
            Self::Xattr => "xattr",
            Self::Utimes => "utimes",
            Self::Fsync => "fsync",
            Self::Close => "close",
            Self::Rename => "rename",
            Self::Changed => "changed",
            Self::Conflict => "conflict",
            Self::Loop => "loop",
            Self::Stopped => "stopped",
            Self::Clone => "clone",
            Self::Exchanged => "exchanged",
            Self::Collision => "collision",
            Self::Size => "size",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Op::Changed => f.write_str("the source changed while it was read"),
            Op::Size => f.write_str(
                "holds more or less than its size says, and does not change (/proc, /sys): not copied; leave it out, or give \
                 --one-file-system",
            ),
            Op::Conflict => f.write_str("more than one source holds an entry of this path"),
            Op::Exchanged => f.write_str(
                "what stands at the destination is not known to be the copy's, and others can exchange it: give it the owner of \
                 the source, or remove it",
            ),
            Op::Collision => f.write_str(
                "the destination takes this name for that of another entry (it ignores case, or changes names): rename one of \
                 them in the source, or copy to another file system",
            ),
            Op::Stopped => f.write_str("broken off"),
            Op::Loop => f.write_str("leads back to a directory on the way to it, or to the destination: not entered"),
            op => write!(f, "{op} {}: {}", self.side, std::io::Error::from_raw_os_error(self.errno)),
        }
    }
}
