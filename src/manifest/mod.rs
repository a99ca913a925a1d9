//! The manifest: what was copied, a line an entry, sorted by path, and the proof of it.
//!
//! JSON Lines, format version 1; `schema.json` beside this file is its JSON Schema.
//!
//! | line | object | fields |
//! |---|---|---|
//! | first | header | `pcopy_manifest`: the format's version; `oldest_reader`: the oldest version whose reader understands it; `version` of pcopy; `hosts`, `ranks`, `sources`, `destination`, `options`, `started` |
//! | one an entry | entry | `path`, or `path_b64` where it is not UTF-8; `type`; then `error`, or what [`Facts`] holds |
//! | last | trailer | totals, `seconds`, and `digest`: BLAKE3 of every byte above this line |
//!
//! A path is relative to the copy's root, `.` for the root itself; sorted by its bytes, the root first. `mode` is octal
//! text; `mtime` is decimal text, nanoseconds since 1970, because JSON's numbers are not exact that far. A reader keeps
//! fields that it does not know. The file is written under another name, made durable and renamed: it is whole or absent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::digest::hex;
use crate::sys::{Errno, close, create_new, remove_file, rename, sync_dir};
use crate::types::{Facts, Failure, Kind, Outcome, Record, RelPath, Stats};

/// The version of the format that is written.
pub const FORMAT_VERSION: u32 = 1;
/// The oldest version whose readers understand what is written.
pub const OLDEST_READER: u32 = 1;
/// The JSON Schema that each line fulfils.
pub const SCHEMA: &str = include_str!("schema.json");

/// The first line.
#[derive(Clone, Debug, Serialize)]
pub struct Header {
    pub pcopy_manifest: u32,
    pub oldest_reader: u32,
    pub version: &'static str,
    pub hosts: Vec<Host>,
    pub ranks: usize,
    /// Absolute; control bytes and what is not UTF-8 escaped.
    pub sources: Vec<String>,
    pub destination: String,
    pub options: BTreeMap<&'static str, serde_json::Value>,
    /// UTC, RFC 3339.
    pub started: String,
    /// Nothing was copied: what follows is what would be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A node, and how many ranks it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    pub host: String,
    pub ranks: usize,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    path: Name<'a>,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(flatten)]
    facts: Option<EntryFacts<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<EntryError>,
}

/// Bytes as text where they are text.
#[derive(Serialize)]
#[serde(untagged)]
enum Name<'a> {
    Text { path: &'a str },
    Bytes { path_b64: String },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Target<'a> {
    Text { target: &'a str },
    Bytes { target_b64: String },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Hardlink<'a> {
    Text { hardlink: &'a str },
    Bytes { hardlink_b64: String },
}

#[derive(Serialize)]
struct EntryFacts<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    mode: String,
    uid: u32,
    gid: u32,
    mtime: String,
    #[serde(flatten)]
    target: Option<Target<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdev: Option<String>,
    #[serde(flatten)]
    hardlink: Option<Hardlink<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    /// Why what was at the destination was left; then the facts are its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'static str>,
    /// What the destination could not hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unkept: Vec<&'static str>,
}

#[derive(Serialize)]
struct EntryError {
    op: String,
    errno: i32,
    text: String,
}

#[derive(Serialize)]
struct Trailer {
    entries: u64,
    files: u64,
    dirs: u64,
    symlinks: u64,
    others: u64,
    hardlinks: u64,
    bytes: u64,
    errors: u64,
    unkept: u64,
    kept: u64,
    seconds: f64,
    digest: String,
}

/// Writes a manifest, line by line.
pub struct Writer {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    line: Vec<u8>,
    stats: Stats,
    place: Place,
    temporary: Vec<u8>,
}

/// The directory and the name of a manifest.
pub struct Place {
    pub dir: OwnedFd,
    pub name: Vec<u8>,
}

impl Writer {
    /// Begins the manifest that will be at `place`, under a temporary name beside it, for its owner alone: it names
    /// everything in the tree.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn create(place: Place, header: &Header) -> io::Result<Self> {
        let temporary = [&place.name, b".new".as_slice()].concat();
        let file = match create_new(place.dir.as_fd(), &temporary, 0o600) {
            // of a run that was killed
            Err(Errno::EEXIST) => {
                remove_file(place.dir.as_fd(), &temporary)?;
                create_new(place.dir.as_fd(), &temporary, 0o600)
            }
            file => file,
        };
        let file = File::from(file?);
        let mut writer = Self {
            file: BufWriter::with_capacity(256 << 10, file),
            hasher: blake3::Hasher::new(),
            line: Vec::new(),
            stats: Stats::default(),
            place,
            temporary,
        };
        writer.write_line(header)?;
        Ok(writer)
    }

    /// Writes an entry's line; entries come sorted by path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn entry(&mut self, record: &Record) -> io::Result<()> {
        self.stats.count(record);
        let (facts, error) = match &record.outcome {
            Outcome::Done(facts) => (Some(entry_facts(record.kind, facts)), None),
            Outcome::Failed(failure) => (None, Some(entry_error(failure))),
        };
        self.write_line(&Entry { path: name(&record.path), kind: record.kind, facts, error })
    }

    /// Writes the closing line, makes the manifest durable and gives it its name. Returns the totals.
    ///
    /// # Errors
    /// The file cannot be written, made durable or renamed; the next run replaces the temporary file.
    pub fn finish(mut self, seconds: f64) -> io::Result<Stats> {
        let stats = self.stats;
        let trailer = Trailer {
            entries: stats.entries(),
            files: stats.files,
            dirs: stats.dirs,
            symlinks: stats.symlinks,
            others: stats.others,
            hardlinks: stats.hardlinks,
            bytes: stats.bytes,
            errors: stats.errors,
            unkept: stats.unkept,
            kept: stats.kept,
            seconds,
            digest: self.hasher.finalize().to_hex().to_string(),
        };
        self.write_line(&trailer)?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        close(file.into())?;
        let dir = self.place.dir.as_fd();
        rename(dir, &self.temporary, &self.place.name)?;
        sync_dir(dir)?;
        Ok(stats)
    }

    fn write_line(&mut self, line: &impl Serialize) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)?;
        self.line.push(b'\n');
        self.hasher.update(&self.line);
        self.file.write_all(&self.line)
    }
}

fn name(path: &RelPath) -> Name<'_> {
    let bytes = if path.is_root() { b"." } else { path.as_bytes() };
    match std::str::from_utf8(bytes) {
        Ok(path) => Name::Text { path },
        Err(_) => Name::Bytes { path_b64: STANDARD.encode(bytes) },
    }
}

fn entry_facts(kind: Kind, facts: &Facts) -> EntryFacts<'_> {
    EntryFacts {
        size: matches!(kind, Kind::File | Kind::Symlink).then_some(facts.size),
        mode: format!("{:04o}", facts.mode),
        uid: facts.uid,
        gid: facts.gid,
        mtime: facts.mtime.as_ns().to_string(),
        target: facts.target.as_deref().map(|target| match std::str::from_utf8(target) {
            Ok(target) => Target::Text { target },
            Err(_) => Target::Bytes { target_b64: STANDARD.encode(target) },
        }),
        rdev: facts.rdev.map(|(major, minor)| format!("{major}:{minor}")),
        hardlink: facts.hardlink.as_ref().map(|owner| match std::str::from_utf8(owner.as_bytes()) {
            Ok(hardlink) => Hardlink::Text { hardlink },
            Err(_) => Hardlink::Bytes { hardlink_b64: STANDARD.encode(owner.as_bytes()) },
        }),
        blake3: facts.digest.as_ref().map(hex),
        kept: facts.fate.kept(),
        unkept: facts.unkept.names(),
    }
}

fn entry_error(failure: &Failure) -> EntryError {
    EntryError { op: failure.op.to_string(), errno: failure.errno, text: failure.to_string() }
}

#[cfg(test)]
mod tests;
