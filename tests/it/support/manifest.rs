//! Holds a manifest against its schema, its own closing line, the tree that it describes and
//! `b3sum`. Written from the documented format, without the product's code.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonschema::Validator;
use serde_json::Value;

use super::oracle::{self, Kind, Node, Tree, show};
use super::tree::raw;

/// What a manifest must agree with.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    pub root: &'a Path,
    pub ranks: usize,
    pub digests: bool,
    /// Entries below the root that the copy did not make (a destination that existed).
    pub strangers: bool,
}

/// What a manifest tells apart from an ordinary one.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    /// It tells what would be copied: `Expect::root` is the source.
    pub dry_run: bool,
    /// Words of `--preserve` that did not hold: an entry may then tell what its source had.
    pub unpreserved: &'a [&'a str],
}

/// A manifest that passed.
#[derive(Debug)]
pub struct Manifest {
    pub header: Value,
    /// By path relative to the root; the root itself is the empty path, as in the oracle.
    pub entries: BTreeMap<Vec<u8>, Value>,
    pub trailer: Value,
}

impl Manifest {
    pub fn failed(&self) -> impl Iterator<Item = (&Vec<u8>, &Value)> {
        self.entries.iter().filter(|(_, entry)| entry.get("error").is_some())
    }

    /// The errno that an entry failed with.
    #[track_caller]
    pub fn errno(&self, path: &str) -> i64 {
        let entry = self.entries.get(path.as_bytes());
        let entry = entry.unwrap_or_else(|| panic!("{path} is not in the manifest"));
        let errno = entry["error"]["errno"].as_i64();
        errno.unwrap_or_else(|| panic!("{path} has not failed: {entry}"))
    }

    pub fn is_done(&self, path: &[u8]) -> bool {
        self.entries.get(path).is_some_and(|entry| entry.get("error").is_none())
    }
}

fn schema() -> Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manifest/schema.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let schema: Value = serde_json::from_str(&text).unwrap();
    jsonschema::draft202012::new(&schema).unwrap()
}

/// Reads and checks a manifest; every objection in words.
pub fn check(file: &Path, expect: &Expect) -> Result<Manifest, Vec<String>> {
    check_as(file, expect, How::default())
}

/// `check` of a manifest that tells what `how` says.
pub fn check_as(file: &Path, expect: &Expect, how: How) -> Result<Manifest, Vec<String>> {
    let bytes = fs::read(file).map_err(|e| vec![format!("{}: {e}", file.display())])?;
    let mut found = Vec::new();
    let manifest = parse(&bytes, &mut found).ok_or_else(|| found.clone())?;
    check_header(&manifest, expect, how, &mut found);
    check_totals(&manifest, &mut found);
    check_tree(&manifest, expect, how, &mut found);
    let digests = expect.digests && !how.dry_run;
    check_digests(&manifest, &Expect { digests, ..*expect }, &mut found);
    if found.is_empty() { Ok(manifest) } else { Err(found) }
}

/// `check`, but for the entries that `spared` says: somebody else may have changed them since.
pub fn check_but(file: &Path, expect: &Expect, spared: impl Fn(&[u8]) -> bool) -> Result<Manifest, Vec<String>> {
    let bytes = fs::read(file).map_err(|e| vec![format!("{}: {e}", file.display())])?;
    let mut found = Vec::new();
    let mut manifest = parse(&bytes, &mut found).ok_or_else(|| found.clone())?;
    check_header(&manifest, expect, How::default(), &mut found);
    check_totals(&manifest, &mut found);
    let all = manifest.entries.clone();
    manifest.entries.retain(|path, _| !spared(path));
    for entry in manifest.entries.values_mut() {
        if bytes_of(entry, "hardlink").is_some_and(|first| spared(&first)) {
            entry.as_object_mut().unwrap().retain(|key, _| !key.starts_with("hardlink"));
        }
    }
    check_tree(&manifest, &Expect { strangers: true, ..*expect }, How::default(), &mut found);
    // b3sum would wait for ever for what is no file any more
    if found.is_empty() {
        check_digests(&manifest, expect, &mut found);
    }
    manifest.entries = all;
    if found.is_empty() { Ok(manifest) } else { Err(found) }
}

/// `check`, and a failure that lists the objections.
#[track_caller]
pub fn checked(file: &Path, expect: &Expect) -> Manifest {
    match check(file, expect) {
        Ok(manifest) => manifest,
        Err(found) => {
            oracle::assert_none(&found, &format!("{file:?}"));
            unreachable!("an error holds at least one objection");
        }
    }
}

fn parse(bytes: &[u8], found: &mut Vec<String>) -> Option<Manifest> {
    let Some(body) = bytes.strip_suffix(b"\n") else {
        found.push("the last line does not end".to_owned());
        return None;
    };
    let schema = schema();
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(body.split(|b| *b == b'\n')) {
        let value: Value = match serde_json::from_slice(line) {
            Ok(value) => value,
            Err(error) => {
                found.push(format!("line {number} is no JSON: {error}"));
                return None;
            }
        };
        let wrong = schema.iter_errors(&value).map(|e| format!("line {number}, schema: {e}"));
        found.extend(wrong);
        lines.push(value);
    }
    let trailer = lines.pop()?;
    let above = bytes.len() - 1 - body.rsplit(|b| *b == b'\n').next()?.len();
    let digest = blake3::hash(&bytes[..above]).to_hex().to_string();
    if trailer["digest"].as_str() != Some(&digest) {
        found.push(format!("closing digest is {}, the lines above give {digest}", trailer["digest"]));
    }
    if lines.is_empty() {
        found.push("no header above the closing line".to_owned());
        return None;
    }
    let header = lines.remove(0);
    let entries = order(lines, found);
    Some(Manifest { header, entries, trailer })
}

/// The entries by path; says where they are out of order or doubled.
fn order(lines: Vec<Value>, found: &mut Vec<String>) -> BTreeMap<Vec<u8>, Value> {
    let mut entries = BTreeMap::new();
    let mut last: Option<Vec<u8>> = None;
    for entry in lines {
        let Some(path) = bytes_of(&entry, "path") else {
            found.push(format!("an entry without a path: {entry}"));
            continue;
        };
        // The root comes first, as the empty path would.
        let path = if path == b"." { Vec::new() } else { path };
        if last.as_ref().is_some_and(|last| *last >= path) {
            found.push(format!("{}: not behind the path above it", show(&path)));
        }
        entries.insert(path.clone(), entry);
        last = Some(path);
    }
    entries
}

/// A text, or the bytes of `<key>_b64`.
fn bytes_of(entry: &Value, key: &str) -> Option<Vec<u8>> {
    if let Some(text) = entry.get(key) {
        return Some(text.as_str()?.as_bytes().to_vec());
    }
    let encoded = entry.get(format!("{key}_b64"))?.as_str()?;
    let bytes = STANDARD.decode(encoded).ok()?;
    std::str::from_utf8(&bytes).is_err().then_some(bytes)
}

fn check_header(manifest: &Manifest, expect: &Expect, how: How, found: &mut Vec<String>) {
    let header = &manifest.header;
    let dry_run = header.get("dry_run").unwrap_or(&Value::Bool(false));
    if *dry_run != Value::Bool(how.dry_run) {
        found.push(format!("header: dry_run is {dry_run}, not {}", how.dry_run));
    }
    let ranks = u64::try_from(expect.ranks).unwrap();
    if header["ranks"].as_u64() != Some(ranks) {
        found.push(format!("header: ranks is {}, not {ranks}", header["ranks"]));
    }
    let hosts = header["hosts"].as_array().into_iter().flatten();
    let on_hosts: u64 = hosts.filter_map(|host| host["ranks"].as_u64()).sum();
    if on_hosts != ranks {
        found.push(format!("header: the hosts have {on_hosts} ranks, not {ranks}"));
    }
    if header["pcopy_manifest"].as_u64() != Some(1) {
        found.push("header: not a manifest of version 1".to_owned());
    }
}

fn check_totals(manifest: &Manifest, found: &mut Vec<String>) {
    let mut range = |name: &str, least: u64, most: u64| {
        let value = &manifest.trailer[name];
        if !value.as_u64().is_some_and(|v| (least..=most).contains(&v)) {
            found.push(format!("closing line: {name} is {value}, the entries give {least}..={most}"));
        }
    };
    let count = |keep: &dyn Fn(&Value) -> bool| {
        let kept = manifest.entries.values().filter(|entry| keep(entry)).count();
        u64::try_from(kept).unwrap()
    };
    let failed = |entry: &Value| entry.get("error").is_some();
    let all = count(&|_| true);
    range("entries", all, all);
    let errors = count(&failed);
    range("errors", errors, errors);
    let linked = count(&|entry| bytes_of(entry, "hardlink").is_some() && !failed(entry));
    range("hardlinks", linked, linked);
    let unkept = count(&|entry| entry.get("unkept").is_some());
    range("unkept", unkept, unkept);
    let kept = count(&is_kept);
    if manifest.trailer.get("kept").is_some() {
        range("kept", kept, kept);
    }
    let types: [(&str, &[&str]); 4] = [
        ("files", &["file"]),
        ("dirs", &["dir"]),
        ("symlinks", &["symlink"]),
        ("others", &["fifo", "socket", "chardev", "blockdev"]),
    ];
    for (name, kinds) in types {
        // Whether an entry that failed, was left or could not be made counts as a file is left open.
        let is = |entry: &Value| entry["type"].as_str().is_some_and(|t| kinds.contains(&t));
        let done = count(&|entry| is(entry) && !failed(entry) && !is_kept(entry) && !is_unkept(entry, "special"));
        range(name, done, count(&|entry| is(entry)));
    }
    let bytes = |keep: &dyn Fn(&Value) -> bool| -> u64 {
        let files = manifest.entries.values().filter(|e| e["type"] == "file" && keep(e));
        files.filter_map(|entry| entry["size"].as_u64()).sum()
    };
    let once = |entry: &Value| !failed(entry) && !is_kept(entry) && bytes_of(entry, "hardlink").is_none();
    range("bytes", bytes(&once), bytes(&|_| true));
}

fn check_tree(manifest: &Manifest, expect: &Expect, how: How, found: &mut Vec<String>) {
    let tree = oracle::walk(expect.root);
    for (path, entry) in &manifest.entries {
        if entry.get("error").is_some() {
            continue;
        }
        if how.dry_run && is_kept(entry) {
            continue;
        }
        if is_unkept(entry, "special") && !how.dry_run {
            if tree.contains_key(path) {
                found.push(format!("{}: could not be made, but is in the copy", show(path)));
            }
            continue;
        }
        let Some(node) = tree.get(path) else {
            found.push(format!("{}: in the manifest, not in the copy", show(path)));
            continue;
        };
        let wrong = entry_differences(entry, node, &tree, how.unpreserved);
        found.extend(wrong.into_iter().map(|w| format!("{}: {w}", show(path))));
    }
    if !expect.strangers {
        let silent = tree.keys().filter(|path| !manifest.entries.contains_key(*path));
        // The directory that several sources were copied into is no copy itself.
        let silent = silent.filter(|path| !path.is_empty());
        found.extend(silent.map(|p| format!("{}: in the copy, not in the manifest", show(p))));
    }
}

fn entry_differences(entry: &Value, node: &Node, tree: &Tree, unpreserved: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut same = |key: &str, real: Option<String>| {
        let told = entry.get(key).map(|v| v.as_str().map_or(v.to_string(), str::to_owned));
        if told != real {
            found.push(format!("{key} is {told:?}, on disk {real:?}"));
        }
    };
    let type_name = match node.kind {
        Kind::File => "file",
        Kind::Dir => "dir",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "chardev",
        Kind::BlockDevice => "blockdev",
    };
    same("type", Some(type_name.to_owned()));
    // An entry tells what its source had; where the copy could not hold that, it tells so. One that was left as
    // it was tells what is there.
    let told = |what: &str| is_kept(entry) || !is_unkept(entry, what) && !unpreserved.contains(&what);
    if told("mode") {
        same("mode", Some(format!("{:04o}", node.mode)));
    }
    if told("ownership") {
        same("uid", Some(node.uid.to_string()));
        same("gid", Some(node.gid.to_string()));
    }
    if told("timestamps") {
        same("mtime", Some(node.mtime_ns.to_string()));
    }
    if node.kind == Kind::File {
        same("size", Some(node.size.to_string()));
    }
    if matches!(node.kind, Kind::CharDevice | Kind::BlockDevice) {
        let (major, minor) = (libc::major(node.rdev), libc::minor(node.rdev));
        same("rdev", Some(format!("{major}:{minor}")));
    }
    let target = bytes_of(entry, "target").unwrap_or_default();
    if target != node.target {
        found.push(format!("target is {}, on disk {}", show(&target), show(&node.target)));
    }
    if let Some(first) = bytes_of(entry, "hardlink")
        && !is_unkept(entry, "links")
        && tree.get(&first).map(|n| &n.first_name) != Some(&node.first_name)
    {
        found.push(format!("is no hard link of {}", show(&first)));
    }
    found
}

/// Whether the entry says that the destination could not hold this of it.
pub fn is_unkept(entry: &Value, what: &str) -> bool {
    entry["unkept"].as_array().is_some_and(|list| list.iter().any(|v| v == what))
}

/// Whether the entry was at the destination, and left there.
pub fn is_kept(entry: &Value) -> bool {
    entry.get("kept").is_some()
}

fn check_digests(manifest: &Manifest, expect: &Expect, found: &mut Vec<String>) {
    let files = manifest.entries.iter().filter(|(_, e)| e["type"] == "file");
    let files = files.filter(|(_, e)| e.get("error").is_none());
    let (done, undigested): (Vec<_>, Vec<_>) = files.partition(|(_, e)| expect.digests && !is_kept(e));
    let told = undigested.iter().filter(|(_, e)| e.get("blake3").is_some());
    found.extend(told.map(|(path, _)| format!("{}: a digest, unasked", show(path))));
    let paths: Vec<_> = done.iter().map(|(path, _)| path.as_slice()).collect();
    let digests = match b3sum(expect.root, &paths) {
        Ok(digests) => digests,
        Err(words) => return found.push(words),
    };
    for ((path, entry), real) in done.iter().zip(digests) {
        if entry["blake3"].as_str() != Some(&real) {
            found.push(format!("{}: blake3 is {}, b3sum says {real}", show(path), entry["blake3"]));
        }
    }
}

/// What `b3sum` prints for files below `root`, in their order.
pub fn b3sum(root: &Path, paths: &[&[u8]]) -> Result<Vec<String>, String> {
    let by_name = |path: &[u8]| root.as_os_str().len() + path.len() < 4000;
    let full = |path: &[u8]| -> PathBuf { if path.is_empty() { root.to_path_buf() } else { raw(root, path) } };
    let mut digests = Vec::new();
    for batch in paths.chunk_by(|a, b| by_name(a) == by_name(b)) {
        if by_name(batch[0]) {
            for some in batch.chunks(400) {
                digests.extend(run_b3sum(some.iter().map(|p| full(p)), Stdio::null())?);
            }
            continue;
        }
        for path in batch {
            let file = oracle::open_below(root, path);
            digests.extend(run_b3sum(std::iter::empty(), file.into())?);
        }
    }
    if digests.len() == paths.len() {
        Ok(digests)
    } else {
        Err(format!("b3sum printed {} digests for {} files", digests.len(), paths.len()))
    }
}

fn run_b3sum(files: impl Iterator<Item = PathBuf>, input: Stdio) -> Result<Vec<String>, String> {
    let mut command = Command::new("b3sum");
    command.args(["--no-names", "--no-mmap", "--"]).args(files).stdin(input);
    let output = command.output().map_err(|e| format!("b3sum: {e}"))?;
    if !output.status.success() {
        return Err(format!("b3sum: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}
