//! The checker of manifests accepts a right one and objects to each kind of wrong one.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::manifest::{self, Expect, How, b3sum};
use crate::support::oracle::{self, Kind, Node};
use crate::support::tree::{self, chmod, noise_file, raw, temp};

/// A tree, and the lines of a manifest that describes it, made from what the oracle sees.
pub struct Described {
    dir: TempDir,
    pub root: PathBuf,
    /// The header, then the entries in order; the closing line is made when they are written.
    pub lines: Vec<Value>,
    pub how: How<'static>,
}

impl Described {
    pub fn new() -> Described {
        let dir = temp();
        let root = tree::odd_tree(&dir.path().join("root"), 8192, 4096);
        noise_file(&raw(&root, b"not\xffutf-8"), 10);
        let header = json!({
            "pcopy_manifest": 1, "oldest_reader": 1, "version": "0.1.0",
            "hosts": [{"host": "h", "ranks": 2}, {"host": "i", "ranks": 1}], "ranks": 3,
            "sources": ["/src"], "destination": "/dst", "options": {},
            "started": "2026-01-02T03:04:05Z",
        });
        let entries = oracle::walk(&root).into_iter().map(|(path, node)| entry(&root, &path, &node));
        let lines = [header].into_iter().chain(entries).collect();
        Described { dir, root, lines, how: How::default() }
    }

    pub fn at(&mut self, path: &str) -> &mut Value {
        self.lines.iter_mut().find(|line| line["path"] == path).unwrap()
    }

    fn trailer(&self) -> Value {
        let entries = &self.lines[1..];
        let count = |kind: &str| entries.iter().filter(|e| e["type"] == kind).count();
        let others = ["fifo", "socket", "chardev", "blockdev"].map(count).iter().sum::<usize>();
        let bytes: u64 = entries.iter().filter_map(|e| e["size"].as_u64()).sum();
        let errors = entries.iter().filter(|e| e.get("error").is_some()).count();
        json!({
            "entries": entries.len(), "files": count("file"), "dirs": count("dir"),
            "symlinks": count("symlink"), "others": others, "bytes": bytes, "errors": errors,
            "hardlinks": entries.iter().filter(|e| e.get("hardlink").is_some()).count(),
            "unkept": entries.iter().filter(|e| e.get("unkept").is_some()).count(),
            "kept": entries.iter().filter(|e| e.get("kept").is_some()).count(),
            "seconds": 0.5,
        })
    }

    /// Writes the manifest, with the closing line changed by `change`, and checks it.
    pub fn check_with(&self, change: impl Fn(&mut Value)) -> Vec<String> {
        let mut text = String::new();
        for line in &self.lines {
            text += &format!("{line}\n");
        }
        let mut trailer = self.trailer();
        trailer["digest"] = blake3::hash(text.as_bytes()).to_hex().to_string().into();
        change(&mut trailer);
        self.check_text(&format!("{text}{trailer}\n"))
    }

    fn check_text(&self, text: &str) -> Vec<String> {
        let file = self.dir.path().join("manifest.jsonl");
        fs::write(&file, text).unwrap();
        let expect = Expect { root: &self.root, ranks: 3, digests: true, strangers: false };
        manifest::check_as(&file, &expect, self.how).err().unwrap_or_default()
    }

    pub fn check(&self) -> Vec<String> {
        self.check_with(|_| ())
    }
}

fn entry(root: &Path, path: &[u8], node: &Node) -> Value {
    let (kind, with_size) = match node.kind {
        Kind::File => ("file", true),
        Kind::Dir => ("dir", false),
        _ => ("symlink", false),
    };
    let mut entry = json!({
        "type": kind, "mode": format!("{:04o}", node.mode), "uid": node.uid, "gid": node.gid,
        "mtime": node.mtime_ns.to_string(),
    });
    match std::str::from_utf8(path) {
        Ok("") => entry["path"] = ".".into(),
        Ok(path) => entry["path"] = path.into(),
        Err(_) => entry["path_b64"] = STANDARD.encode(path).into(),
    }
    if with_size {
        entry["size"] = node.size.into();
        entry["blake3"] = b3sum(root, &[path]).unwrap()[0].clone().into();
    }
    if node.kind == Kind::Symlink {
        entry["target"] = std::str::from_utf8(&node.target).unwrap().into();
    }
    entry
}

/// One objection at least, and every one of them about `words`.
#[track_caller]
pub fn objects(found: &[String], words: &str) {
    assert!(!found.is_empty(), "no objection about {words}");
    assert!(found.iter().all(|f| f.contains(words)), "{words}: {found:?}");
}

#[test]
fn the_checker_accepts_a_manifest_that_is_right() {
    assert_eq!(Described::new().check(), Vec::<String>::new());
}

#[test]
fn the_checker_notices_each_wrong_field_of_an_entry() {
    let zeros = "0".repeat(64);
    let changes: [(&str, &str, Value); 9] = [
        ("sizes/4097.bin", "blake3", zeros.into()),
        ("sizes/4097.bin", "size", 4096.into()),
        ("mode-640", "mode", "0644".into()),
        ("mode-640", "uid", 3.into()),
        ("mode-640", "gid", 3.into()),
        ("empty", "mtime", "1600000000000000000".into()),
        ("empty", "mode", "0755".into()),
        ("dangling", "target", "/nonexistent/other".into()),
        ("dangling", "hardlink", "mode-640".into()),
    ];
    for (path, field, value) in changes {
        let mut described = Described::new();
        described.at(path)[field] = value;
        let found = described.check();
        let about = if field == "hardlink" { "hard link" } else { field };
        assert!(found.iter().any(|f| f.starts_with(path) && f.contains(about)), "{found:?}");
    }
}

#[test]
fn the_checker_notices_an_entry_that_is_missing_invented_doubled_or_out_of_order() {
    let mut described = Described::new();
    described.lines.retain(|line| line["path"] != "mode-640");
    objects(&described.check(), "mode-640: in the copy, not in the manifest");

    let described = Described::new();
    fs::remove_file(described.root.join("mode-640")).unwrap();
    let found = described.check();
    assert!(found.contains(&"mode-640: in the manifest, not in the copy".to_owned()), "{found:?}");

    let mut described = Described::new();
    described.lines.swap(2, 3);
    objects(&described.check(), "not behind the path above it");

    let mut described = Described::new();
    let twice = described.lines[4].clone();
    described.lines.insert(4, twice);
    assert!(described.check()[0].contains("not behind the path above it"));
}

#[test]
fn the_checker_notices_wrong_totals_and_a_wrong_closing_digest() {
    let described = Described::new();
    for total in ["entries", "files", "dirs", "symlinks", "others", "bytes", "errors"] {
        let found = described.check_with(|trailer| {
            let value = trailer[total].as_u64().unwrap();
            trailer[total] = (value + 1).into();
        });
        objects(&found, &format!("closing line: {total} is"));
    }
    let found = described.check_with(|trailer| trailer["digest"] = "f".repeat(64).into());
    objects(&found, "closing digest");
}

#[test]
fn the_checker_notices_what_the_schema_forbids() {
    type Change = fn(&mut Described);
    let changes: [Change; 7] = [
        |d| d.at("mode-640")["type"] = "folder".into(),
        |d| d.at("mode-640")["mode"] = "rw-r-----".into(),
        |d| d.at("mode-640")["blake3"] = "12".into(),
        |d| d.at("mode-640")["size"] = (-1).into(),
        |d| d.at("mode-640")["mtime"] = 1.5.into(),
        |d| d.lines[0]["pcopy_manifest"] = "one".into(),
        |d| drop(d.lines[0].as_object_mut().unwrap().remove("hosts")),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut described = Described::new();
        change(&mut described);
        let found = described.check();
        assert!(found.iter().any(|f| f.contains("schema")), "change {number}: {found:?}");
    }
}

#[test]
fn the_checker_notices_another_number_of_ranks_than_there_were() {
    let mut described = Described::new();
    described.lines[0]["ranks"] = 4.into();
    objects(&described.check(), "header: ranks is 4, not 3");
    let mut described = Described::new();
    described.lines[0]["hosts"][1]["ranks"] = 2.into();
    objects(&described.check(), "header: the hosts have 4 ranks, not 3");
}

#[test]
fn the_checker_notices_a_manifest_that_was_cut() {
    let described = Described::new();
    let line = described.lines[0].to_string();
    objects(&described.check_text(""), "the last line does not end");
    objects(&described.check_text(&line), "the last line does not end");
    objects(&described.check_text(&format!("{}\n", &line[..40])), "no JSON");
    assert!(!described.check_text(&format!("{line}\n")).is_empty());
}

#[test]
fn the_checker_takes_an_error_for_an_entry_and_counts_it() {
    let mut described = Described::new();
    let error = json!({"op": "open", "errno": 13, "text": "Permission denied (os error 13)"});
    *described.at("mode-640") = json!({"path": "mode-640", "type": "file", "error": error});
    assert_eq!(described.check(), Vec::<String>::new());
    objects(&described.check_with(|trailer| trailer["errors"] = 0.into()), "errors is 0");
}

#[test]
fn the_checker_lets_an_entry_differ_in_what_it_says_was_not_kept_and_in_nothing_else() {
    let mut described = Described::new();
    described.at("mode-640")["uid"] = 4242.into();
    described.at("mode-640")["unkept"] = json!(["ownership"]);
    assert_eq!(described.check(), Vec::<String>::new());
    described.at("mode-640")["unkept"] = json!(["xattr"]);
    objects(&described.check(), "mode-640: uid is");
}

#[test]
fn the_checker_notices_a_byte_changed_behind_the_manifests_back() {
    let described = Described::new();
    let path = described.root.join("sizes/4097.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4000] ^= 0x80;
    let times = oracle::walk(&described.root)[b"sizes/4097.bin".as_slice()].mtime_ns;
    fs::write(&path, bytes).unwrap();
    let then = (times / 1_000_000_000, times % 1_000_000_000);
    let then = (i64::try_from(then.0).unwrap(), i64::try_from(then.1).unwrap());
    tree::set_times(&path, then, then);
    objects(&described.check(), "sizes/4097.bin: blake3 is");
    chmod(&path, 0o600);
    assert!(described.check().iter().any(|f| f.contains("mode is")));
}
