//! What is made of the command line: checked as far as it can be without looking at a disk.

use std::path::PathBuf;
use std::time::Duration;

use super::{Cli, MAX_BLOCK_LEN, XattrWord, usage_error};
use crate::plan::{MAX_RANGE_LEN, round_range_len};
use crate::policy::{Existing, Policy, Preserve, Rule, Xattrs};
use crate::proto::Tuning;
use crate::sys::Buffer;
use crate::types::human_bytes;

/// One filter of the command line.
#[derive(Clone, Debug)]
pub enum FilterArg {
    Rule(Rule),
    /// A file of rules.
    From(PathBuf),
}

/// Which symbolic links in the sources are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    Never,
    CommandLine,
    Always,
}

/// What to do with what an earlier run has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Resume {
    Auto,
    Never,
    Require,
}

/// Who is to own the copy, as the user wrote it.
#[derive(Clone, Debug, Default)]
pub struct OwnerArgs {
    pub chown: Option<String>,
    pub usermap: Option<String>,
    pub groupmap: Option<String>,
    pub uid: Option<String>,
    pub gid: Option<String>,
}

/// What the job is to do: the command line, checked as far as it can be without looking at a disk.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one.
    pub sources: Vec<PathBuf>,
    pub destination: PathBuf,
    pub tuning: Tuning,
    /// Without what has to be looked up: names of users, files of patterns.
    pub policy: Policy,
    pub owners: OwnerArgs,
    pub follow: Follow,
    pub filters: Vec<FilterArg>,
    pub one_file_system: bool,
    pub files_from: Option<PathBuf>,
    pub from0: bool,
    pub strict: bool,
    pub checkpoint_interval: Duration,
    /// Bytes a second, of all ranks together.
    pub limit_rate: Option<u64>,
    pub resume: Resume,
    /// The destination is a directory to copy into, whatever is there.
    pub into: bool,
    /// A source may be an incomplete copy.
    pub incomplete_source: bool,
    pub state_dir: Option<PathBuf>,
    /// Since the start of the run.
    pub time_limit: Option<Duration>,
    /// Before the time limit.
    pub grace: Option<Duration>,
    pub manifest: Option<PathBuf>,
    /// Seconds; 0 for no progress.
    pub progress_s: u64,
    pub output: Output,
    pub verbose: bool,
    /// What was made of the user's words, to be said once.
    pub notes: Vec<String>,
}

/// What is printed on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Text,
    Json,
    Nothing,
}

impl Cli {
    fn policy(&self) -> Policy {
        let mut preserve = if self.preserve.is_empty() { Preserve::ALL } else { Preserve::NONE };
        self.preserve.iter().for_each(|aspect| preserve.set(*aspect, true));
        self.no_preserve.iter().for_each(|aspect| preserve.set(*aspect, false));
        Policy {
            preserve,
            xattrs: match self.xattrs {
                XattrWord::None => Xattrs::None,
                XattrWord::All => Xattrs::All,
                XattrWord::NonLustre => Xattrs::NonLustre,
                XattrWord::Libattr => Xattrs::Libattr(Vec::new()),
            },
            existing: match (self.no_clobber, self.update) {
                (true, _) => Existing::Keep,
                (false, true) => Existing::Update,
                (false, false) => Existing::Replace,
            },
            follow_links: self.dereference,
            noatime: self.open_noatime,
            dry_run: self.dry_run,
            changes: self.changes,
            ..Policy::default()
        }
    }

    /// The effective configuration.
    ///
    /// # Errors
    /// A usage error, to be printed.
    pub fn config(self) -> Result<Config, clap::Error> {
        let error = usage_error;
        let policy = self.policy();
        let mut notes = Vec::new();
        if self.range_size > MAX_RANGE_LEN {
            return Err(error(format!("--chunksize: at most {}", human_bytes(MAX_RANGE_LEN))));
        }
        let range_len = round_range_len(self.range_size);
        if range_len != self.range_size {
            let (wanted, used) = (self.range_size, human_bytes(range_len));
            notes.push(format!("the range size of {wanted} bytes is rounded up to {used}, a power of two"));
        }
        if self.block_size > MAX_BLOCK_LEN {
            return Err(error(format!("--bufsize: at most {}", human_bytes(MAX_BLOCK_LEN))));
        }
        let block_len = self.block_size.next_multiple_of(Buffer::ALIGN as u64);
        if block_len != self.block_size {
            let (wanted, used) = (self.block_size, human_bytes(block_len));
            notes.push(format!("the block size of {wanted} bytes is rounded up to {used}, a multiple of 4 KiB"));
        }
        if let (Some(limit), Some(grace)) = (self.time_limit, self.grace)
            && grace >= limit
        {
            return Err(error("--grace must be shorter than --time-limit".into()));
        }
        let mut sources = self.paths;
        let destination = sources.pop().ok_or_else(|| error("nothing to copy: pcopy SRC... DST".into()))?;
        if sources.is_empty() {
            let path = destination.display();
            return Err(error(format!("{path}: no destination to copy it to: pcopy SRC... DST")));
        }
        if let Some(empty) = sources.iter().chain([&destination]).find(|path| path.as_os_str().is_empty()) {
            return Err(error(format!("an empty path ({empty:?}); is a variable unset?")));
        }
        Ok(Config {
            sources,
            destination,
            tuning: Tuning {
                range_len,
                block_len: usize::try_from(block_len).expect("at most 1 GiB"),
                threads: self.threads.map(usize::from),
                direct: self.direct,
                digest: !self.no_digest,
                sparse: self.sparse,
                durability: self.durability,
                retries: self.retries,
                reflink: self.reflink,
            },
            checkpoint_interval: self.checkpoint_interval,
            limit_rate: self.limit_rate,
            resume: if self.restart { Resume::Never } else { self.resume },
            into: self.into,
            incomplete_source: self.incomplete_source,
            state_dir: self.state_dir,
            time_limit: self.time_limit,
            grace: self.grace,
            policy,
            owners: OwnerArgs {
                chown: self.chown,
                usermap: self.usermap,
                groupmap: self.groupmap,
                uid: self.uid,
                gid: self.gid,
            },
            follow: match (self.dereference, self.dereference_args) {
                (true, _) => Follow::Always,
                (false, true) => Follow::CommandLine,
                (false, false) => Follow::Never,
            },
            filters: self.filters,
            one_file_system: self.one_file_system,
            files_from: self.files_from,
            from0: self.from0,
            strict: self.strict,
            manifest: self.manifest,
            progress_s: if self.quiet { 0 } else { self.progress },
            output: match (self.json, self.quiet) {
                (true, _) => Output::Json,
                (false, true) => Output::Nothing,
                (false, false) => Output::Text,
            },
            verbose: self.verbose,
            notes,
        })
    }
}
