//! The command line: what can be said, its help, and its man page, from one source.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, ValueEnum};

use crate::plan::{MAX_RANGE_LEN, round_range_len};
use crate::proto::{Direct, Tuning};
use crate::sys::Buffer;
use crate::types::{human_bytes, parse_size};

/// Bytes. Chosen by measurement, see ARCHITECTURE.md.
const DEFAULT_RANGE_LEN: &str = "16MiB";
const DEFAULT_BLOCK_LEN: &str = "4MiB";
/// Bytes; a block is memory, once a thread.
const MAX_BLOCK_LEN: u64 = 1 << 30;

const AFTER_HELP: &str = "\
Where the copy goes:
  DST does not exist       DST becomes the copy of the one SRC; its parent must exist
  DST is a directory       the copy is DST/NAME, by SRC's own name
  SRC/ (with a slash)      what is in SRC goes straight into DST
  several SRC              DST must be a directory

Sizes: K, KB and KiB are 1024 bytes, as in dcp; so on for M, G, T.

Exit codes:
   0  every entry is there, was made durable, and the manifest says so
   1  some entries failed: each is in the manifest with path, operation and errno, and on stderr
   2  bad usage, or refused before anything was written
  70  the job could not be finished

Examples:
  mpirun -np 64 pcopy /scratch/project /backup/
  mpirun -genv LD_PRELOAD /usr/lib64/libioil.so -np 8 -f hostfile pcopy $SOURCE $DEST";

/// Copies trees and files in parallel with MPI: direct I/O, a BLAKE3 digest of every file, one manifest.
///
/// Directories are copied with all that is in them. Mode, owner (as root), times, extended attributes, ACLs, hard links and
/// holes are preserved. What was copied stands in .pcopy/manifest.jsonl in the copy's root, one line an entry.
#[derive(Clone, Debug, Parser)]
#[command(name = "pcopy", version, override_usage = "pcopy [OPTIONS] SRC... DST")]
#[command(after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// SRC..., what to copy: files and directories; and last DST, where to
    #[arg(value_name = "PATH", required_unless_present = "generate", conflicts_with = "generate")]
    paths: Vec<PathBuf>,

    /// Files larger than this are cut into ranges of it, which any rank copies; rounded up to a power of two
    #[arg(short = 'k', long = "chunksize", visible_alias = "range-size", value_name = "SIZE", default_value = DEFAULT_RANGE_LEN, value_parser = parse_size)]
    range_size: u64,

    /// Bytes of one read or write; rounded up to a multiple of 4 KiB
    #[arg(short = 'b', long = "bufsize", visible_alias = "block-size", value_name = "SIZE", default_value = DEFAULT_BLOCK_LEN, value_parser = parse_size)]
    block_size: u64,

    /// I/O threads of each rank [default: 2 to 4, by the cores and ranks of the node]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,

    /// When to read and write past the page cache (O_DIRECT): files of 1 MiB and more, all, or none; where a file
    /// system refuses, the page cache is used
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", require_equals = false)]
    direct: Direct,

    /// The same as --direct=always, as in dcp
    #[arg(short = 's', conflicts_with = "direct")]
    direct_always: bool,

    /// Do not compute BLAKE3 digests
    #[arg(long)]
    no_digest: bool,

    /// Write the manifest there instead of to .pcopy/manifest.jsonl in the copy's root
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Seconds between two lines of progress; 0 for none
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    progress: u64,

    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,

    /// Print errors only
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// Print what was chosen: paths, ranks, threads, sizes
    #[arg(short, long)]
    verbose: bool,

    /// Print the man page or the manifest's JSON Schema, and copy nothing
    #[arg(long, value_enum, value_name = "WHAT")]
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

/// What the job is to do: the command line, checked as far as it can be without looking at a disk.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one.
    pub sources: Vec<PathBuf>,
    pub destination: PathBuf,
    pub tuning: Tuning,
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
    /// The effective configuration.
    ///
    /// # Errors
    /// A usage error, to be printed.
    pub fn config(self) -> Result<Config, clap::Error> {
        let error = |text: String| Self::command().error(clap::error::ErrorKind::ValueValidation, text);
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
                direct: if self.direct_always { Direct::Always } else { self.direct },
                digest: !self.no_digest,
            },
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
        Cli::try_parse_from([&["pcopy"], args].concat()).and_then(Cli::config)
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
            &["--direct", "maybe", "a", "b"],
            &["-q", "-v", "a", "b"],
            &["--nonsense", "a", "b"],
            &["", "b"],
            &["a", ""],
        ] {
            assert!(config(args).is_err(), "{args:?}");
        }
    }
}
