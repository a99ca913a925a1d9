//! The manifest: what was copied, a line an entry, sorted by path, and the proof of it.
//!
//! JSON Lines, format version 1; `schema.json` beside this file is its JSON Schema.
//!
//! | line | object | fields |
//! |---|---|---|
//! | first | header | `pcopy_manifest`: the format's version; `oldest_reader`: the oldest version whose reader understands it; `version` of pcopy; `hosts`, `ranks`, `sources`, `destination`, `options`, `started` |
//! | one an entry | entry | `path`, or `path_b64` where it is not UTF-8; `type`; then `error`, or what [`Facts`](crate::types::Facts) holds |
//! | last | trailer | totals, `seconds`, and `digest`: BLAKE3 of every byte above this line |
//!
//! A path is relative to the copy's root, `.` for the root itself; sorted by its bytes, the root first. `mode` is octal
//! text; `mtime` is decimal text, nanoseconds since 1970, because JSON's numbers are not exact that far. A reader keeps
//! fields that it does not know. The file is written under another name, made durable and renamed: it is whole or absent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};

use crate::sys::{
    Buffer, End, Errno, Reading, close, create_new, errno_of_lost_write, is_on_fuse, remove_file, rename, sync_dir,
};
use crate::types::{Digest, Failure, Kind, Outcome, Record, Stats, escaped};

/// The version of the format that is written.
pub const FORMAT_VERSION: u32 = 1;
/// The oldest version whose readers understand what is written.
pub const OLDEST_READER: u32 = 1;
/// Bytes of lines that are hashed and written at once.
const LINES_LEN: usize = 256 << 10;
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
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "octal")]
    mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "decimal")]
    mtime: Option<i128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdev: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hardlink: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hardlink_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hexadecimal")]
    blake3: Option<&'a Digest>,
    /// Why what was at the destination was left; then the facts are its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'static str>,
    /// What the destination could not hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unkept: Vec<&'static str>,
    /// The extended attributes and ACLs among it, as far as they are known; control bytes and what is not UTF-8 escaped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unkept_xattrs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<EntryError>,
}

fn octal<S: Serializer>(mode: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{:04o}", mode.unwrap_or_default()))
}

fn decimal<S: Serializer>(number: &Option<i128>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&number.unwrap_or_default())
}

fn hexadecimal<S: Serializer>(digest: &Option<&Digest>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&digest.map_or_else(Default::default, |digest| blake3::Hash::from_bytes(*digest).to_hex()))
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

/// The name under which a manifest is written.
pub fn new_name(manifest: &[u8]) -> Vec<u8> {
    [manifest, b".new"].concat()
}

/// Writes a manifest, line by line.
pub struct Writer {
    file: File,
    hasher: blake3::Hasher,
    /// Lines that were not written yet.
    lines: Vec<u8>,
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
        let temporary = new_name(&place.name);
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
            file,
            hasher: blake3::Hasher::new(),
            lines: Vec::with_capacity(LINES_LEN + 4096),
            stats: Stats::default(),
            place,
            temporary,
        };
        writer.write_line(header)?;
        Ok(writer)
    }

    /// Writes lines that [`write_entry`] made of entries, which come sorted by path; `stats` counts them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn lines(&mut self, lines: &[u8], stats: &Stats) -> io::Result<()> {
        self.stats.add(stats);
        self.lines.extend_from_slice(lines);
        self.write_if_many()
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
            digest: {
                self.write_lines()?;
                self.hasher.finalize().to_hex().to_string()
            },
        };
        self.write_line(&trailer)?;
        self.write_lines()?;
        self.file.sync_all()?;
        if is_on_fuse(self.file.as_fd()) {
            self.read_back()?;
        }
        close(self.file.into())?;
        let dir = self.place.dir.as_fd();
        rename(dir, &self.temporary, &self.place.name)?;
        sync_dir(dir)?;
        Ok(stats)
    }

    /// Demands that all that was written is there, past the page cache: a server may say that it has taken data which it
    /// then loses.
    fn read_back(&self) -> io::Result<()> {
        let mut end = End::open_source(self.place.dir.as_fd(), &self.temporary, Reading::default())?;
        let (mut buffer, mut hasher, mut at) = (Buffer::new(1 << 20), blake3::Hasher::new(), 0);
        loop {
            let len = buffer.len();
            let got = end.read(&mut buffer, len, at)?;
            hasher.update(&buffer[..got]);
            at += got as u64;
            if got < len {
                break;
            }
        }
        if hasher.finalize() == self.hasher.finalize() {
            return Ok(());
        }
        Err(errno_of_lost_write(self.file.as_fd(), at).into())
    }

    fn write_line(&mut self, line: &impl Serialize) -> io::Result<()> {
        write_line(line, &mut self.lines)?;
        self.write_if_many()
    }

    fn write_if_many(&mut self) -> io::Result<()> {
        if self.lines.len() >= LINES_LEN { self.write_lines() } else { Ok(()) }
    }

    /// Hashes many lines at once, which is several times as fast as one by one.
    fn write_lines(&mut self) -> io::Result<()> {
        self.hasher.update(&self.lines);
        self.file.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}

/// Appends the line of an entry.
///
/// # Errors
/// None in practice: what an entry holds can be written as JSON.
pub fn write_entry(record: &Record, to: &mut Vec<u8>) -> io::Result<()> {
    write_line(&line(record), to)
}

fn write_line(line: &impl Serialize, to: &mut Vec<u8>) -> io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.push(b'\n');
    Ok(())
}

fn line(record: &Record) -> Entry<'_> {
    let Record { path, kind, outcome } = record;
    let (path, path_b64) = text(if path.is_root() { b"." } else { path.as_bytes() });
    let bare = Entry {
        path,
        path_b64,
        kind: *kind,
        size: None,
        mode: None,
        uid: None,
        gid: None,
        mtime: None,
        target: None,
        target_b64: None,
        rdev: None,
        hardlink: None,
        hardlink_b64: None,
        blake3: None,
        kept: None,
        unkept: Vec::new(),
        unkept_xattrs: Vec::new(),
        error: None,
    };
    let facts = match outcome {
        Outcome::Failed(failure) => return Entry { error: Some(entry_error(failure)), ..bare },
        Outcome::Done(facts) => facts,
    };
    let (target, target_b64) = facts.target.as_deref().map_or((None, None), text);
    let (hardlink, hardlink_b64) = facts.hardlink.as_ref().map_or((None, None), |owner| text(owner.as_bytes()));
    Entry {
        size: matches!(kind, Kind::File | Kind::Symlink).then_some(facts.size),
        mode: Some(facts.mode),
        uid: Some(facts.uid),
        gid: Some(facts.gid),
        mtime: Some(facts.mtime.as_ns()),
        target,
        target_b64,
        rdev: facts.rdev.map(|(major, minor)| format!("{major}:{minor}")),
        hardlink,
        hardlink_b64,
        blake3: facts.digest.as_ref(),
        kept: facts.fate.kept(),
        unkept: facts.unkept.kinds(),
        unkept_xattrs: facts.unkept.names().map(escaped).collect(),
        ..bare
    }
}

/// Bytes as text where they are text, and otherwise in base 64.
fn text(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn entry_error(failure: &Failure) -> EntryError {
    EntryError { op: failure.op.to_string(), errno: failure.errno, text: failure.to_string() }
}

#[cfg(test)]
mod tests;
