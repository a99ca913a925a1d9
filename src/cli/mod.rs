//! The command line: what can be said, its help, and its man page, from one source.

mod config;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};

pub use config::{Config, FilterArg, Follow, Output, OwnerArgs, Resume};

use crate::policy::{Aspect, Changes, Rule};
use crate::proto::{Direct, Durability, Reflink, Sparse};
use crate::types::{parse_duration, parse_rate, parse_size};

/// Bytes. Chosen by measurement, see ARCHITECTURE.md.
const DEFAULT_RANGE_LEN: &str = "16MiB";
const DEFAULT_BLOCK_LEN: &str = "4MiB";
/// Bytes; a block is memory, once a thread.
const MAX_BLOCK_LEN: u64 = 1 << 30;

/// Headings of the help.
const TO_COPY: &str = "What to copy";
const TO_PRESERVE: &str = "What to preserve";
const HOW: &str = "How to copy";
const RESUMING: &str = "How to go on after a stop";
const OUTPUT: &str = "What to say";

const AFTER_HELP: &str = "\
Where the copy goes:
  DST does not exist       DST becomes the copy of the one SRC; its parent must exist
  DST is a directory       the copy is DST/NAME, by SRC's own name
  SRC/ (with a slash)      what is in SRC goes straight into DST
  several SRC              DST must be a directory
  DST is an earlier copy   the same command line goes on with it: what is unchanged by size and time is left

Patterns of --exclude and --include are rsync's; the first that matches decides:
  *.o         the name; * and ? do not match a slash
  /tmp        with a slash before it: at the top of SRC only
  cache/      with a slash after it: directories only; they are not entered
  a/*/b       with a slash in it: the end of the path; ** matches slashes too
  dir/***     the directory and all that is in it

Sizes: K, KB and KiB are 1024 bytes, as in dcp; so on for M, G, T.

Exit codes:
   0  every entry is there, was made durable, and the manifest says so
   1  some entries failed: each is in the manifest with path, operation and errno, and on stderr;
      with --strict also when something could not be preserved; or the summary could not be
      written to stdout
   2  bad usage, or refused before anything was written
  75  stopped by a signal, a time limit or a full file system: the same command goes on
  70  the job could not be finished

Examples:
  mpirun -np 64 pcopy /scratch/project /backup/
  mpirun -np 64 pcopy --exclude=.snapshot/ /scratch/project /backup/
  mpirun -genv LD_PRELOAD /usr/lib64/libioil.so -np 8 -f hostfile pcopy $SOURCE $DEST";

/// Copies trees and files in parallel with MPI: direct I/O, a BLAKE3 digest of every file, one manifest.
///
/// A copy that was stopped or killed goes on when the same command is run again, with any number of ranks.
///
/// Directories are copied with all that is in them. Mode, owner (as root), times, extended attributes, ACLs, hard links and
/// holes are preserved; what the destination cannot hold is counted, and marked in the manifest. What was copied stands in .pcopy/manifest.jsonl in the copy's root, one line an entry.
#[derive(Clone, Debug, Parser)]
#[command(name = "pcopy", version, override_usage = "pcopy [OPTIONS] SRC... DST")]
#[command(after_help = AFTER_HELP, max_term_width = 100, args_override_self = true)]
pub struct Cli {
    /// SRC..., what to copy: files and directories; and last DST, where to
    #[arg(value_name = "PATH", required_unless_present = "generate", conflicts_with = "generate")]
    paths: Vec<PathBuf>,

    /// Leave out what matches the pattern, see below
    #[arg(help_heading = TO_COPY, long, value_name = "PATTERN")]
    exclude: Vec<OsString>,

    /// Copy what matches the pattern, though a later --exclude matches it too
    #[arg(help_heading = TO_COPY, long, value_name = "PATTERN")]
    include: Vec<OsString>,

    /// Read patterns from the file, one a line; "+ " before one includes
    #[arg(help_heading = TO_COPY, long, value_name = "FILE")]
    exclude_from: Vec<PathBuf>,

    /// Filters in the order in which they were given.
    #[arg(skip)]
    filters: Vec<FilterArg>,

    /// Do not enter directories on other file systems than SRC
    #[arg(help_heading = TO_COPY, short = 'x', long)]
    one_file_system: bool,

    /// Copy only the entries that the file lists, one a line, relative to SRC; directories with all that is in them;
    /// "-" is standard input
    #[arg(help_heading = TO_COPY, short = 'i', long, visible_alias = "input", value_name = "FILE")]
    files_from: Option<PathBuf>,

    /// The entries of --files-from end in NUL
    #[arg(help_heading = TO_COPY, short = '0', long, requires = "files_from")]
    from0: bool,

    /// Copy a SRC that is an incomplete copy, or in one, as it is, without the temporary files of its job; otherwise it is
    /// refused
    #[arg(help_heading = TO_COPY, long)]
    incomplete_source: bool,

    /// Follow symbolic links in SRC: copy what they lead to
    #[arg(help_heading = TO_COPY, short = 'L', long, overrides_with_all = ["dereference", "no_dereference", "dereference_args"])]
    dereference: bool,

    /// Copy symbolic links as links; the default
    #[arg(help_heading = TO_COPY, short = 'P', long, overrides_with_all = ["dereference", "no_dereference", "dereference_args"])]
    no_dereference: bool,

    /// Follow symbolic links on the command line only
    #[arg(help_heading = TO_COPY, short = 'H', overrides_with_all = ["dereference", "no_dereference", "dereference_args"])]
    dereference_args: bool,

    /// Leave what is there already; directories are merged
    #[arg(help_heading = TO_COPY, long, conflicts_with = "update")]
    no_clobber: bool,

    /// Leave what is there already and is not older than its source
    #[arg(help_heading = TO_COPY, short, long)]
    update: bool,

    /// Print what would be done, a line an entry, and touch nothing; with --manifest also write it down
    #[arg(help_heading = TO_COPY, long)]
    dry_run: bool,

    /// Preserve only this: mode, ownership, timestamps, xattr, acl, links, all (without a list, and by default: all); and flags,
    /// which are inode flags (chattr) and project ids: all,flags preserves them too, as far as DST takes them
    #[arg(help_heading = TO_PRESERVE, short, long, value_enum, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "all", action = ArgAction::Append)]
    preserve: Vec<Aspect>,

    /// Do not preserve this; in the words of --preserve
    #[arg(help_heading = TO_PRESERVE, long, value_enum, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    no_preserve: Vec<Aspect>,

    /// Which extended attributes to copy: none (ACLs neither), all, all but those that bind a file to its store (Lustre's
    /// layout, security.ima and the like), or those that /etc/xattr.conf does not skip. user.daos is never copied
    #[arg(help_heading = TO_PRESERVE, short = 'X', long, value_enum, value_name = "WHICH", default_value = "non-lustre")]
    xattrs: XattrWord,

    /// When the copy has holes: where the source has them (auto), also where it has blocks of zeros (without a word),
    /// nowhere
    #[arg(help_heading = TO_PRESERVE, short = 'S', long, value_enum, value_name = "WHEN", default_value = "auto")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    sparse: Sparse,

    /// Exit with 1 when something could not be preserved
    #[arg(help_heading = TO_PRESERVE, long)]
    strict: bool,

    /// Give the copy this owner: USER, USER:GROUP or :GROUP
    #[arg(help_heading = TO_PRESERVE, long, value_name = "USER:GROUP", conflicts_with_all = ["usermap", "groupmap"])]
    chown: Option<String>,

    /// Give users' entries to others: FROM:TO,..., with names, ids, ranges of ids, patterns of names; the first that
    /// matches
    #[arg(help_heading = TO_PRESERVE, long, value_name = "MAP")]
    usermap: Option<String>,

    /// The same for groups
    #[arg(help_heading = TO_PRESERVE, long, value_name = "MAP")]
    groupmap: Option<String>,

    /// By what a change of a source is noticed: ctime (and mtime and size), mtime (and size) for file systems that show
    /// another ctime at each look, or none
    #[arg(help_heading = TO_PRESERVE, long, value_name = "BY", value_enum, default_value = "ctime", hide_possible_values = true)]
    changes: Changes,

    /// Leave the access times of what is read as they are, where that is allowed
    #[arg(help_heading = TO_PRESERVE, long)]
    open_noatime: bool,

    /// Accepted as in cp and rsync: it is what pcopy does anyway
    #[arg(help_heading = TO_PRESERVE, short, long, short_aliases = ['r', 'R'], alias = "recursive", action = ArgAction::Count)]
    archive: u8,

    /// Files larger than this are cut into ranges of it, which any rank copies; rounded up to a power of two
    #[arg(help_heading = HOW, short = 'k', long = "chunksize", visible_alias = "range-size", value_name = "SIZE", default_value = DEFAULT_RANGE_LEN, value_parser = parse_size)]
    range_size: u64,

    /// Bytes of one read or write, through the page cache at most 512 KiB; rounded up to a multiple of 4 KiB
    #[arg(help_heading = HOW, short = 'b', long = "bufsize", visible_alias = "block-size", value_name = "SIZE", default_value = DEFAULT_BLOCK_LEN, value_parser = parse_size)]
    block_size: u64,

    /// I/O threads of each rank [default: 1 to 4, two a core of its share of the node;
    /// with libioil, one for two cores]
    #[arg(help_heading = HOW, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,

    /// When to read and write past the page cache (O_DIRECT): files of 1 MiB and more, but for what ext4, XFS or btrfs
    /// have in memory already (auto), all (without a word), or none; where a file system refuses, the page cache is used
    #[arg(help_heading = HOW, short = 's', long, visible_alias = "synchronous", value_enum, value_name = "WHEN", default_value = "auto")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    direct: Direct,

    /// When the copy shares the blocks of its source, which XFS and btrfs can within one file system: files of 128 KiB and
    /// more (auto), all, or it is an error (always), none; digests are computed all the same
    #[arg(help_heading = HOW, long, value_enum, value_name = "WHEN", default_value = "auto")]
    reflink: Reflink,

    /// Do not compute BLAKE3 digests
    #[arg(help_heading = HOW, long)]
    no_digest: bool,

    /// Read, and write, at most so many bytes a second, all ranks together: 500M, 2G. While the job runs, another rate that
    /// is written to the file limit-rate in the state directory (.pcopy) takes its place; none is no limit
    #[arg(help_heading = HOW, long, value_name = "RATE", value_parser = parse_rate)]
    limit_rate: Option<u64>,

    /// How often what was copied is made durable and written down: 200ms, 5s, 1m
    #[arg(help_heading = HOW, long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    checkpoint_interval: Duration,

    /// What is made durable before it is written down
    #[arg(help_heading = HOW, long, value_enum, value_name = "WHAT", default_value = "checkpoint")]
    durability: Durability,

    /// What to do with what an earlier run of the same command has left: go on with it if there is any (auto), copy
    /// everything again (never), or refuse where there is nothing (require)
    #[arg(help_heading = RESUMING, long, value_enum, value_name = "WHEN", default_value = "auto", conflicts_with = "restart")]
    resume: Resume,

    /// Start over: the same as --resume=never
    #[arg(help_heading = RESUMING, long)]
    restart: bool,

    /// Copy into DST as cp does, also where DST is an earlier copy of SRC, with which pcopy would go on
    #[arg(help_heading = RESUMING, long)]
    into: bool,

    /// Keep the state of the job (journals, lock, manifest) in this directory instead of .pcopy in the copy's root; all
    /// nodes must see it
    #[arg(help_heading = RESUMING, long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Stop before this much time has passed, with exit code 75; the same command goes on
    #[arg(help_heading = RESUMING, long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,

    /// How long before the time limit, or before the end of the Slurm job, to stop [default: a tenth of the time, at most
    /// 60s]; and how long any stop may take [default: 5m]
    #[arg(help_heading = RESUMING, long, value_name = "TIME", value_parser = parse_duration)]
    grace: Option<Duration>,

    /// Times that an operation is tried again after EIO, ESTALE, ETIMEDOUT, EAGAIN, or ENOENT of what was just made
    #[arg(help_heading = HOW, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: u32,

    /// Copy as this user
    #[arg(help_heading = HOW, short = 'U', long, value_name = "USER")]
    uid: Option<String>,

    /// Copy as this group
    #[arg(help_heading = HOW, short = 'G', long, value_name = "GROUP")]
    gid: Option<String>,

    /// Write the manifest there instead of to .pcopy/manifest.jsonl in the copy's root
    #[arg(help_heading = OUTPUT, long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Seconds between two lines of progress; 0 for none
    #[arg(help_heading = OUTPUT, long, value_name = "SECONDS", default_value_t = 10)]
    progress: u64,

    /// Print the summary as one JSON object
    #[arg(help_heading = OUTPUT, long)]
    json: bool,

    /// Print errors only
    #[arg(help_heading = OUTPUT, short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// Print what was chosen: paths, ranks, threads, sizes
    #[arg(help_heading = OUTPUT, short, long)]
    verbose: bool,

    /// Print the man page or the manifest's JSON Schema, and copy nothing
    #[arg(help_heading = OUTPUT, long, value_enum, value_name = "WHAT")]
    pub generate: Option<Generate>,
}

/// A document that the program prints of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generate {
    /// The man page, in roff
    Man,
    /// The JSON Schema of the manifest's lines
    Schema,
}

/// A value of `--xattrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum XattrWord {
    None,
    All,
    NonLustre,
    Libattr,
}

impl Cli {
    /// What the program was called with.
    ///
    /// # Errors
    /// A usage error, or a request for help, to be printed.
    pub fn read() -> Result<Self, clap::Error> {
        Self::read_from(std::env::args_os())
    }

    fn read_from(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(args)?;
        let cli = Self::from_arg_matches(&matches)?;
        let filters = cli.filters_in_order(&matches)?;
        Ok(Self { filters, ..cli })
    }

    fn filters_in_order(&self, matches: &ArgMatches) -> Result<Vec<FilterArg>, clap::Error> {
        let at = |id| matches.indices_of(id).into_iter().flatten();
        let rule = |include, pattern: &OsString, option| {
            let made = Rule::new(include, pattern.as_bytes()).map(FilterArg::Rule);
            made.map_err(|err| usage_error(format!("--{option}: {err}")))
        };
        let mut filters = Vec::new();
        for (index, pattern) in at("exclude").zip(&self.exclude) {
            filters.push((index, rule(false, pattern, "exclude")?));
        }
        for (index, pattern) in at("include").zip(&self.include) {
            filters.push((index, rule(true, pattern, "include")?));
        }
        filters.extend(at("exclude_from").zip(self.exclude_from.iter().cloned().map(FilterArg::From)));
        filters.sort_by_key(|(index, _)| *index);
        Ok(filters.into_iter().map(|(_, filter)| filter).collect())
    }
}

fn usage_error(text: String) -> clap::Error {
    Cli::command().error(clap::error::ErrorKind::ValueValidation, text)
}

/// The man page, in roff.
///
/// # Errors
/// None that writing to memory has.
pub fn man_page() -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests;
