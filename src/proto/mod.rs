//! The messages between ranks, and their frames. Pure: bytes in, messages out.
//!
//! A frame is a version byte and one [`Message`] in postcard's encoding (postcard.jamesmunns.com,
//! wire format 1), at most [`MAX_FRAME_LEN`] bytes. A frame of another version, one that ends
//! early and one that goes on after its message are errors: ranks of different builds in one
//! job must not guess. So is a message that cannot be right whatever the job is: a range outside of
//! its file, an entry without a name, a list that is longer than any that is sent.

mod check;
mod lists;
mod names;
mod targets;

use serde::{Deserialize, Serialize};

use lists::at_most;
pub use names::Names;
pub use targets::Targets;

use crate::policy::{Filter, Leftovers, Policy};
use crate::types::{
    Digest, Facts, Failure, Identity, Kind, LinkId, Maker, NameSet, Partial, RelPath, Secret, Stats, Temporary,
    Timestamp, one_line,
};

/// Changes with every change of [`Message`] or of a type in it.
pub const PROTOCOL_VERSION: u8 = 14;
/// Bytes. A batch is kept below a sixteenth of it by [`MAX_BATCH_LEN`]; what is longer is a single path
/// of a very deep tree.
pub const MAX_FRAME_LEN: usize = 8 << 20;
/// Bytes. Records of the manifest travel in frames of about this length, at most.
pub const MAX_RECORDS_LEN: u32 = 256 << 10;
/// Names in one batch, at most.
pub const MAX_BATCH_NAMES: usize = 512;
/// Bytes of names in one batch, at most, unless it is a batch of one.
pub const MAX_BATCH_LEN: usize = 32 << 10;
/// Bytes of whole paths that a batch may stand for, at most, unless it is a batch of one: a report may
/// have to hand back every path of it.
pub const MAX_BATCH_PATHS_LEN: usize = 256 << 10;
/// Entries in one batch of those that earlier runs have recorded, at most; each comes with its record.
pub const MAX_BATCH_KNOWN: usize = 128;
/// Failures that a report carries to be shown; it counts the rest, and the manifest has all.
pub const MAX_SHOWN_FAILURES: usize = 16;
/// Tasks in one message, at most: a batch of names may be of as many directories, and directories may end beside it.
pub const MAX_TASKS: usize = 2 * MAX_BATCH_NAMES;
/// Bytes of names, and directories, of a directory that a rank lists, at most, but for the last one of each.
pub const MAX_LISTED_LEN: usize = 96 << 10;
pub const MAX_LISTED_SUBDIRS: usize = 256;
/// Operations in one [`Message::Overdue`], at most.
pub const MAX_OVERDUE: usize = 16;
/// I/O threads of a rank, at most.
pub const MAX_THREADS: u32 = 65535;

/// Everything that one rank says to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Rank 0 to all, first: what to do. `None` ends the job before it began.
    Begin(Option<Box<Job>>),
    /// A rank to rank 0, once: it sees the sources and the destination, or why not.
    Hello(Hello),
    /// Rank 0 to a rank: do this, one task after the other, on one thread.
    Work {
        id: u64,
        #[serde(deserialize_with = "at_most::<MAX_TASKS, _, _>")]
        tasks: Vec<Task>,
    },
    /// A rank to rank 0: this is done.
    Report(Box<Report>),
    /// A step of a checkpoint.
    Checkpoint(Checkpoint),
    /// A rank to rank 0: its process was signalled.
    Signalled(Signal),
    /// Rank 0 to a rank: read, and write, at most so many bytes a second, from now on.
    Limit(Option<u64>),
    /// Rank 0 to all: leave what you have not begun, and break off what you have.
    Halt,
    /// A rank to rank 0: all of its operations that have not returned for long, the longest first. Replaces the list that it
    /// sent before.
    Overdue(#[serde(deserialize_with = "at_most::<MAX_OVERDUE, _, _>")] Vec<Overdue>),
    /// Rank 0 to all: there is no more work; the I/O threads end. With `abandon` nobody waits for
    /// them, and their later reports are not sent.
    Stop { abandon: bool },
    /// A rank to rank 0, after [`Message::Stop`]; or why it could not, in words.
    Stopped(Result<(), String>),
    /// Rank 0 to a rank: the next records, please, about so many bytes.
    WantRecords(u32),
    /// A rank to rank 0: its next records, sorted by path; `last` when there are no more.
    Records { records: Records, last: bool },
    /// Rank 0 to all, last: the job is over.
    Bye,
}

/// An operation that has not returned for long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overdue {
    /// The name of the system call, for the user.
    pub call: String,
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Seconds since its thread began the entry, or moved the last block of it.
    pub seconds: u64,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    Terminate,
    Interrupt,
    User1,
    HangUp,
    /// The limit of CPU time (`ulimit -t`) is reached; some batch systems send it too.
    CpuTime,
    PowerFails,
    /// To say how far the job is.
    Progress,
}

/// The steps of a checkpoint, each with its number: three orders of rank 0 and the answers to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checkpoint {
    /// What was finished so far belongs to the checkpoint.
    Seal(u64),
    /// It is sealed, and holds something or not.
    Sealed(u64, bool),
    /// Make what this node has written durable.
    Sync(u64),
    /// It is, or why not.
    Synced(u64, Result<(), Trouble>),
    /// Append what was sealed to the journal.
    Commit(u64),
    /// It is in the journal, or why not.
    Committed(u64, Result<(), Trouble>),
}

/// Why something could not be made durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// In words.
    pub text: String,
    /// The C library's errno, or 0.
    pub errno: i32,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.text))
    }
}

impl From<&std::io::Error> for Trouble {
    fn from(err: &std::io::Error) -> Self {
        Self { text: err.to_string(), errno: err.raw_os_error().unwrap_or(0) }
    }
}

impl Checkpoint {
    /// The number of the checkpoint.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Seal(seq) | Self::Sync(seq) | Self::Commit(seq) => *seq,
            Self::Sealed(seq, _) | Self::Synced(seq, _) | Self::Committed(seq, _) => *seq,
        }
    }
}

/// Entries in their own encoding, as journals hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// What every rank has to know of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The same in every run of the job: names temporary files.
    pub id: u64,
    /// What makes the names of temporary files, the same in every run of the job.
    pub secret: Secret,
    /// As what the destination shows what this job makes.
    pub maker: Maker,
    /// Other jobs that left temporary files in the copy, which nobody will use.
    pub abandoned: Vec<u64>,
    pub sources: Vec<Source>,
    /// Absolute path of the directory that the copy's paths are relative to.
    #[serde(with = "serde_bytes")]
    pub destination: Vec<u8>,
    /// Which run of the job this is, from 1.
    pub generation: u32,
    /// Of a run that goes on with an unfinished job: when that began, by the destination's clock. What is newer there may
    /// be the job's own.
    pub began: Option<Timestamp>,
    /// Where ranks keep their journals: not those of one entry, and of a dry run.
    pub state: Option<StatePlace>,
    /// The copy's directory was made by this job: a name that is taken in it is a conflict. In a dry run: it is not there.
    pub fresh: bool,
    /// The destination does not keep times to the nanosecond.
    pub coarse_times: bool,
    pub tuning: Tuning,
    pub policy: Policy,
    /// What is left out.
    pub filter: Filter,
    /// Directories on another file system than their source are not entered.
    pub one_file_system: bool,
}

/// Where the state of a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StatePlace {
    /// In the `.pcopy` of the copy's root.
    InCopy,
    /// The absolute path of a directory.
    At(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// A source, and where it lands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Absolute path of a directory: the source itself, or the one that holds the single entry.
    #[serde(with = "serde_bytes")]
    pub dir: Vec<u8>,
    /// The name of the single entry in `dir`; `None` when the source is the directory.
    #[serde(with = "serde_bytes")]
    pub single: Option<Vec<u8>>,
    /// Where it lands: of a directory the copy's directory, of a single entry the copy itself.
    pub target: RelPath,
    /// Sources with equal numbers are on one file system, as rank 0 sees it.
    pub file_system: u64,
    /// Which temporary files in it are left out.
    pub leftovers: Leftovers,
}

/// How data is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Bytes; a power of two. Files above it are cut into ranges of it.
    pub range_len: u64,
    /// Bytes of one read or write; a multiple of 4096.
    pub block_len: usize,
    /// I/O threads of a rank; `None`: each rank chooses by its node's cores and ranks.
    pub threads: Option<usize>,
    pub direct: Direct,
    pub digest: bool,
    pub sparse: Sparse,
    pub durability: Durability,
    /// Times that an operation is tried again after a failure that may pass.
    pub retries: u32,
    pub reflink: Reflink,
}

/// When a copy shares the blocks of its source, on file systems that can: XFS, btrfs and some others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Reflink {
    /// Files of at least 128 KiB, where both are on one such file system.
    #[default]
    Auto,
    /// Every file: it is an error where that is not possible.
    Always,
    /// None.
    Never,
}

/// When files are read and written with `O_DIRECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Direct {
    /// Files of at least 1 MiB, where the file system allows it; what ext4, XFS or btrfs have in memory is read from
    /// there.
    Auto,
    /// Every file, where the file system allows it.
    Always,
    /// None.
    Never,
}

/// What is made durable, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Durability {
    /// What was copied, at every checkpoint, before it is written down
    #[default]
    Checkpoint,
    /// Nothing: after a power cut the copy may be incomplete though it was reported as complete. For measuring
    None,
}

/// When the copy has holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Sparse {
    /// Where the source has them.
    #[default]
    Auto,
    /// Also where it has blocks of zeros.
    Always,
    /// Nowhere: all blocks are written.
    Never,
}

/// A rank reports for duty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub host: String,
    pub threads: u32,
    /// It takes part in making durable: the first rank of a node does it for all of them, where syncfs does; else each.
    pub syncs: bool,
    /// What it could not see, in words; `None` when it is ready.
    pub trouble: Option<String>,
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// List a directory, make it at the destination, and copy some of its entries, at most `keep`.
    List { source: u16, dir: RelPath, keep: u32 },
    /// Copy these entries of one directory.
    Entries { source: u16, dir: RelPath, names: Names },
    /// Look at these entries of one directory, which earlier runs have recorded or begun, and copy those that are not
    /// as recorded.
    Known {
        source: u16,
        dir: RelPath,
        #[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")]
        entries: Vec<Known>,
    },
    /// Copy one entry that has several names, or that cannot be linked.
    /// With an `id` only if it still is the file of that number.
    Owner {
        source: u16,
        path: RelPath,
        kind: Kind,
        id: Option<LinkId>,
        attempt: u8,
        unlinkable: bool,
        partial: Option<Partial>,
    },
    /// Copy one range of a file whose destination is there.
    Range { file: LargeFile, index: u64 },
    /// All ranges are there: metadata, then the final name.
    FinishFile { file: LargeFile, digest: Option<Digest>, unlinkable: bool },
    /// Remove what was written of the file; with a failure, record that.
    Abandon { file: LargeFile, failure: Option<Failure> },
    /// Give further names to an entry that was copied.
    Links {
        source: u16,
        owner: RelPath,
        kind: Kind,
        facts: Box<Facts>,
        #[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")]
        paths: Vec<RelPath>,
    },
    /// Set the metadata of directories whose entries have all ended.
    FinishDirs {
        source: u16,
        #[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")]
        dirs: Vec<FinishedDir>,
    },
}

impl Task {
    /// The entry of the task. For several entries: their directory, or the first one.
    pub fn path(&self) -> Option<&RelPath> {
        match self {
            Self::List { dir, .. } | Self::Entries { dir, .. } | Self::Known { dir, .. } => Some(dir),
            Self::Owner { path, .. } => Some(path),
            Self::Range { file, .. } | Self::FinishFile { file, .. } | Self::Abandon { file, .. } => Some(&file.path),
            Self::Links { owner, .. } => Some(owner),
            Self::FinishDirs { dirs, .. } => dirs.first().map(|dir| &dir.path),
        }
    }
}

/// A file that is copied in ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeFile {
    pub source: u16,
    pub path: RelPath,
    pub identity: Identity,
    /// From before the first read, which may change it.
    pub atime: Timestamp,
    /// Fewer blocks than bytes: it has holes, which the copy gets too.
    pub sparse: bool,
    /// Bytes of one range.
    pub range_len: u64,
    /// What it is copied to. A node that still knows the name of the attempt before must not write there.
    pub temporary: Temporary,
    /// Its temporary file is the one that earlier runs have recorded ranges of.
    pub found: bool,
}

impl LargeFile {
    /// What its ranges belong to.
    pub fn partial(&self) -> Partial {
        Partial { identity: self.identity, temporary: self.temporary, range_len: self.range_len }
    }
}

/// An entry that earlier runs have recorded, or begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// In its directory.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// As the scan sees it.
    pub kind: Kind,
    pub entry: Option<KnownEntry>,
    pub partial: Option<Partial>,
}

impl Known {
    /// Bytes of memory and of a message, about.
    pub fn byte_len(&self) -> usize {
        self.name.len() + self.entry.as_ref().map_or(0, |entry| entry.record.len()) + 64
    }
}

/// The record of an entry that was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownEntry {
    /// Names it on rank 0.
    pub number: u64,
    /// As journals hold it, but with an empty path.
    #[serde(with = "serde_bytes")]
    pub record: Vec<u8>,
}

/// A directory whose entries have all ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedDir {
    pub path: RelPath,
    /// From before it was listed; `None` when it could not be opened.
    pub before: Option<DirBefore>,
    /// What earlier runs have recorded of it, where it may be left as it is.
    pub recorded: Option<KnownEntry>,
    /// Why it could not be made, or not be listed to its end.
    pub failure: Option<Failure>,
    /// A private directory was made in it.
    pub private: bool,
}

/// A directory when it was opened to be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirBefore {
    pub atime: Timestamp,
    /// Of what changes with every entry that is made, removed or renamed in it.
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Permission bits of the destination's one, if that was there already.
    pub mode_there: Option<u32>,
    /// Its owner, who runs pcopy, got permissions that he did not have.
    pub lent: bool,
    /// What the listing has shown; `None` where only some names were asked for.
    pub names: Option<NameSet>,
}

/// Tasks are done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of the [`Message::Work`].
    pub id: u64,
    /// One a task, in their order.
    #[serde(deserialize_with = "at_most::<MAX_TASKS, _, _>")]
    pub results: Vec<TaskResult>,
    /// Bytes of file data that were moved, for the display.
    pub bytes_moved: u64,
    /// Entries that were ended, each with a record.
    pub ended: Stats,
    /// The rank has much in memory to write down.
    pub full: bool,
    /// What the job has to stop for: no space is left, the file system is gone. The entry has not ended.
    pub halting: Option<(RelPath, Failure)>,
    /// Of the failures, the first few; `ended` counts them all.
    #[serde(deserialize_with = "at_most::<MAX_SHOWN_FAILURES, _, _>")]
    pub failures: Vec<(RelPath, Failure)>,
    /// The tasks, by their numbers, in whose directories a private one was made, which goes when they are finished.
    #[serde(deserialize_with = "at_most::<MAX_TASKS, _, _>")]
    pub private: Vec<u32>,
}

/// What a task hands back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskResult {
    /// Nothing to hand back.
    Ended,
    /// The job was told to halt; what was left of the task is not done.
    Stopped,
    /// Of a directory: what is in it.
    Listed(Box<Listing>),
    /// Of a directory: rank 0 has to list it, there is too much in it for one report.
    TooLong,
    /// Of entries: those that need another task.
    Returned(#[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")] Vec<Returned>),
    /// Of known entries: the numbers of those that are as recorded, and those that need another task.
    Known {
        #[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")]
        confirmed: Vec<u64>,
        #[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")]
        returned: Vec<Returned>,
    },
    /// Of finished directories: the numbers of those that are as recorded.
    Dirs {
        #[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")]
        confirmed: Vec<u64>,
    },
    /// Of an owner or of a large file: how it ended, for the links to it.
    Owned(Box<Owned>),
    /// Of a range: its chaining value, if digests are on.
    Range(Option<[u8; 32]>),
    /// Of a range: it could not be copied.
    RangeFailed(Failure),
    /// Of a range or of the finish: the source is not the file it was.
    Changed,
    /// Of a range or of the finish: what was written to the file may be lost.
    Lost(Failure),
}

/// What a rank found in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub subdirs: Names,
    /// How many of the other entries the rank has copied; of them those that need another task.
    pub kept: u64,
    #[serde(deserialize_with = "at_most::<MAX_BATCH_NAMES, _, _>")]
    pub returned: Vec<Returned>,
    /// Those that it has not.
    pub rest: Names,
    pub excluded: u64,
    pub before: Option<DirBefore>,
    /// Why it could not be made, or not be listed to its end.
    pub failure: Option<Failure>,
    /// It is on another file system, and was not entered.
    pub left_alone: bool,
    pub retries: u64,
}

/// An entry that its reader did not copy itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Returned {
    /// A file above the range length; its destination is made, at its final length.
    Large(LargeFile),
    /// An entry with several names (`names` of them): one is copied, the others are linked to it. With `there` it is
    /// at the destination already, as that says.
    Linked { path: RelPath, kind: Kind, id: LinkId, identity: Identity, names: u64, there: Option<Box<Facts>> },
    /// A further name that the destination cannot link: it is copied on its own.
    Unlinkable { path: RelPath, kind: Kind },
}

/// How an entry that others link to has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owned {
    Copied(Facts),
    Failed,
    /// It is a large file: its ranges come first.
    Large(LargeFile),
}

/// Bytes that are not a message of this protocol.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a frame of {0} bytes; at most {MAX_FRAME_LEN} are allowed")]
    TooLong(usize),
    #[error("an empty frame")]
    Empty,
    #[error(
        "a frame of protocol version {0}; this is version {PROTOCOL_VERSION}: the ranks run different builds of pcopy"
    )]
    Version(u8),
    #[error("a damaged frame: {0}")]
    Damaged(postcard::Error),
    #[error("{0} bytes after the end of a message")]
    Trailing(usize),
    #[error("a message that no rank sends: {0}")]
    Senseless(&'static str),
}

impl Message {
    /// The frame of this message.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when it would be longer than a receiver takes.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut frame = Vec::with_capacity(2048);
        frame.push(PROTOCOL_VERSION);
        let frame = postcard::to_extend(self, frame).map_err(FrameError::Damaged)?;
        if frame.len() > MAX_FRAME_LEN { Err(FrameError::TooLong(frame.len())) } else { Ok(frame) }
    }

    /// The message of a frame.
    ///
    /// # Errors
    /// The frame is not exactly one message of this version, or one that no rank sends.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        if frame.len() > MAX_FRAME_LEN {
            return Err(FrameError::TooLong(frame.len()));
        }
        match frame {
            [] => Err(FrameError::Empty),
            [PROTOCOL_VERSION, body @ ..] => match postcard::take_from_bytes::<Self>(body) {
                Ok((message, [])) => message.check().map(|()| message).map_err(FrameError::Senseless),
                Ok((_, rest)) => Err(FrameError::Trailing(rest.len())),
                Err(err) => Err(FrameError::Damaged(err)),
            },
            [version, ..] => Err(FrameError::Version(*version)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
