//! The command line: what can be said, its help, and its man page, from one source.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::plan::{MAX_RANGE_LEN, round_range_len};
use crate::policy::{Aspect, Existing, Policy, Preserve, Rule, Xattrs};
use crate::proto::{Direct, Sparse, Tuning};
use crate::sys::Buffer;
use crate::types::{human_bytes, parse_size};

/// Bytes. Chosen by measurement, see ARCHITECTURE.md.
const DEFAULT_RANGE_LEN: &str = "16MiB";
const DEFAULT_BLOCK_LEN: &str = "4MiB";
/// Bytes; a block is memory, once a thread.
const MAX_BLOCK_LEN: u64 = 1 << 30;

/// Headings of the help.
const TO_COPY: &str = "What to copy";
const TO_PRESERVE: &str = "What to preserve";
const HOW: &str = "How to copy";
const OUTPUT: &str = "What to say";

const AFTER_HELP: &str = "\
Where the copy goes:
  DST does not exist       DST becomes the copy of the one SRC; its parent must exist
  DST is a directory       the copy is DST/NAME, by SRC's own name
  SRC/ (with a slash)      what is in SRC goes straight into DST
  several SRC              DST must be a directory

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
      with --strict also when something could not be preserved
   2  bad usage, or refused before anything was written
  70  the job could not be finished

Examples:
  mpirun -np 64 pcopy /scratch/project /backup/
  mpirun -np 64 pcopy --exclude=.snapshot/ /scratch/project /backup/
  mpirun -genv LD_PRELOAD /usr/lib64/libioil.so -np 8 -f hostfile pcopy $SOURCE $DEST";

/// Copies trees and files in parallel with MPI: direct I/O, a BLAKE3 digest of every file, one manifest.
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

    /// Preserve only this: mode, ownership, timestamps, xattr, acl, links, all (without a list, and by default: all)
    #[arg(help_heading = TO_PRESERVE, short, long, value_enum, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "all", action = ArgAction::Append)]
    preserve: Vec<Aspect>,

    /// Do not preserve this; in the words of --preserve
    #[arg(help_heading = TO_PRESERVE, long, value_enum, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    no_preserve: Vec<Aspect>,

    /// Which extended attributes to copy: none (ACLs neither), all, all but Lustre's own, or those that
    /// /etc/xattr.conf does not skip
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

    /// Leave the access times of what is read as they are, where that is allowed
    #[arg(help_heading = TO_PRESERVE, long)]
    open_noatime: bool,

    /// Accepted as in cp and rsync: it is what pcopy does anyway
    #[arg(help_heading = TO_PRESERVE, short, long, short_aliases = ['r', 'R'], alias = "recursive", action = ArgAction::Count)]
    archive: u8,

    /// Files larger than this are cut into ranges of it, which any rank copies; rounded up to a power of two
    #[arg(help_heading = HOW, short = 'k', long = "chunksize", visible_alias = "range-size", value_name = "SIZE", default_value = DEFAULT_RANGE_LEN, value_parser = parse_size)]
    range_size: u64,

    /// Bytes of one read or write; rounded up to a multiple of 4 KiB
    #[arg(help_heading = HOW, short = 'b', long = "bufsize", visible_alias = "block-size", value_name = "SIZE", default_value = DEFAULT_BLOCK_LEN, value_parser = parse_size)]
    block_size: u64,

    /// I/O threads of each rank [default: 2 to 4, by the cores and ranks of the node]
    #[arg(help_heading = HOW, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,

    /// When to read and write past the page cache (O_DIRECT): files of 1 MiB and more (auto), all (without a word), or
    /// none; where a file system refuses, the page cache is used
    #[arg(help_heading = HOW, short = 's', long, visible_alias = "synchronous", value_enum, value_name = "WHEN", default_value = "auto")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    direct: Direct,

    /// Do not compute BLAKE3 digests
    #[arg(help_heading = HOW, long)]
    no_digest: bool,

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
            },
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
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, clap::Error> {
        Cli::read_from([&["pcopy"], args].concat()).and_then(Cli::config)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dcp_flags_are_understood() {
        let config =
            config(&["-b", "8MB", "-k", "64MB", "-s", "-v", "--progress", "30", "a", "b", "c"]).expect("parses");
        assert_eq!(config.sources, [PathBuf::from("a"), "b".into()]);
        assert_eq!(config.destination, PathBuf::from("c"));
        assert_eq!((config.tuning.block_len, config.tuning.range_len), (8 << 20, 64 << 20));
        assert_eq!((config.tuning.direct, config.progress_s), (Direct::Always, 30));
        assert!(config.notes.is_empty());
    }

    #[test]
    fn what_is_preserved_is_named_in_cps_words() {
        let names = |args: &[&str]| config(&[args, &["a", "b"]].concat()).expect("parses").policy.preserve.names();
        let all = ["mode", "ownership", "timestamps", "xattr", "acl", "links"];
        assert_eq!((names(&[]), names(&["-p"]), names(&["--preserve"])), (all.into(), all.into(), all.into()));
        assert_eq!(names(&["--preserve=mode,links"]), ["mode", "links"]);
        assert_eq!(names(&["--preserve=mode", "--preserve=acl"]), ["mode", "acl"]);
        assert_eq!(names(&["--no-preserve=xattr,acl,links"]), all[..3]);
        assert_eq!(names(&["--preserve", "--no-preserve=all"]), [""; 0]);
    }

    #[test]
    fn of_the_options_for_links_the_last_one_counts() {
        let follow = |args: &[&str]| config(&[args, &["a", "b"]].concat()).expect("parses").follow;
        assert_eq!(
            (follow(&[]), follow(&["-H"]), follow(&["-L"])),
            (Follow::Never, Follow::CommandLine, Follow::Always)
        );
        assert_eq!(
            (follow(&["-LP"]), follow(&["-PH"]), follow(&["-HL", "-L"])),
            (Follow::Never, Follow::CommandLine, Follow::Always)
        );
    }

    #[test]
    fn filters_keep_their_order() {
        let args = ["--exclude=a", "--include", "b", "--exclude-from", "c", "--exclude", "d", "x", "y"];
        let filters = config(&args).expect("parses").filters;
        let told: Vec<_> = filters.iter().map(|filter| matches!(filter, FilterArg::From(_))).collect();
        assert_eq!(told, [false, false, true, false]);
    }

    #[test]
    fn rounding_is_said() {
        let config = config(&["--range-size", "5M", "--block-size", "5000", "a", "b"]).expect("parses");
        assert_eq!((config.tuning.range_len, config.tuning.block_len), (8 << 20, 8192));
        assert_eq!(config.notes.len(), 2);
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["a"][..],
            &[],
            &["-k", "4X", "a", "b"],
            &["-k", "0", "a", "b"],
            &["-b", "2T", "a", "b"],
            &["--threads", "0", "a", "b"],
            &["--direct=maybe", "a", "b"],
            &["--sparse=maybe", "a", "b"],
            &["--preserve=mode,nonsense", "a", "b"],
            &["--no-preserve", "a", "b"],
            &["--xattrs=some", "a", "b"],
            &["--exclude=[", "a", "b"],
            &["--no-clobber", "--update", "a", "b"],
            &["--chown=a", "--usermap=b:c", "a", "b"],
            &["--from0", "a", "b"],
            &["-q", "-v", "a", "b"],
            &["--nonsense", "a", "b"],
            &["", "b"],
            &["a", ""],
        ] {
            assert!(config(args).is_err(), "{args:?}");
        }
    }
}
