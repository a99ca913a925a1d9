//! What an attacker may have done: privileges that she got, secrets that she reads, files outside of the copy that are
//! others by now, and a copy that is told to be good where it is not.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::attacker::{EVE, as_eve};
use super::launch::{Job, Outcome};
use super::manifest::{self, Expect, Manifest};
use super::oracle::{self, Aspects, Kind, Node, Tree, show};
use super::tree::raw;

/// At the start of every file that Eve may not read.
pub const SECRET: &[u8] = b"SECRET: Eve may not read this. ";
/// At the start of every file that Eve has written, and that is nobody's source.
pub const EVIL: &[u8] = b"EVIL: Eve has written this. ";

const SPECIAL: u32 = 0o6000;
const CAPABILITY: &[u8] = b"security.capability";

/// What was there before the attacks.
pub struct Watch {
    src: PathBuf,
    dst: PathBuf,
    outside: PathBuf,
    before: Tree,
    contents: Vec<(Vec<u8>, Vec<u8>)>,
    /// The files with powers that the copy has already.
    older: Vec<Power>,
}

/// A content, and with whose rights it is run: owner, group, setuid and setgid, capabilities.
type Power = (blake3::Hash, u32, u32, u32, Option<Vec<u8>>);

impl Watch {
    /// Nothing in `outside` may change. What is at the destination is good as it is.
    pub fn new(src: &Path, dst: &Path, outside: &Path) -> Watch {
        let before = oracle::walk(outside);
        let contents = contents(outside, &before);
        let older = if dst.exists() { special(dst, &oracle::walk(dst)) } else { Vec::new() };
        let older = older.into_iter().map(|(_, power)| power).collect();
        Watch { src: src.into(), dst: dst.into(), outside: outside.into(), before, contents, older }
    }

    /// Everything that is wrong after a run. What is in a directory that was Eve's, `hers`, may be anything that she could
    /// have put there herself.
    pub fn harm(&self, job: &Job, outcome: &Outcome, hers: impl Fn(&[u8]) -> bool) -> Vec<String> {
        let mut found = self.dishonesty(job, outcome, &hers);
        found.extend(self.harm_by_then(&hers));
        found
    }

    /// The same of a run that was killed: it has said nothing.
    pub fn harm_by_then(&self, hers: impl Fn(&[u8]) -> bool) -> Vec<String> {
        let after = oracle::walk(&self.dst);
        let mut found = self.privileges(&after);
        found.extend(secrets(&self.dst, &after));
        found.extend(strange(&self.dst, &after, hers));
        found.extend(self.changes_outside());
        found
    }

    /// What is another than before outside of the copy.
    fn changes_outside(&self) -> Vec<String> {
        let after = oracle::walk(&self.outside);
        let mut found = oracle::compare(&self.before, &after, Aspects::ALL);
        let changed = self.contents.iter().zip(contents(&self.outside, &after)).filter(|(a, b)| **a != *b);
        found.extend(changed.map(|((path, _), _)| format!("{}: content", show(path))));
        found.into_iter().map(|words| format!("outside of the copy: {words}")).collect()
    }

    /// Files with powers whose content no file of the source had with them.
    fn privileges(&self, after: &Tree) -> Vec<String> {
        let mut known: Vec<_> =
            special(&self.src, &oracle::walk(&self.src)).into_iter().map(|(_, power)| power).collect();
        known.extend(self.older.iter().cloned());
        let gained = special(&self.dst, after).into_iter().filter(|(_, power)| !known.contains(power));
        let told = gained.map(|(path, (_, uid, gid, bits, capability))| {
            let capability = if capability.is_some() { " and capabilities" } else { "" };
            let start = start_of(&raw(&self.dst, &path)).unwrap().escape_ascii().to_string();
            format!("{}: {bits:04o}{capability} of {uid}:{gid}, not with the source's content: {start}", show(&path))
        });
        told.collect()
    }

    /// Where the run says that all is well, and it is not, in directories that were nobody's but root's.
    fn dishonesty(&self, job: &Job, outcome: &Outcome, hers: &impl Fn(&[u8]) -> bool) -> Vec<String> {
        let file = self.dst.join(".pcopy/manifest.jsonl");
        if !matches!(outcome.code(), Some(0 | 1)) {
            return vec![format!("exit code {:?}: {}", outcome.code(), outcome.lines_of_pcopy().join(" / "))];
        }
        let (ranks, digests) = (job.rank_count(), !job.has_option("--no-digest"));
        let expect = Expect { root: &self.dst, ranks, digests, strangers: true };
        let manifest = match manifest::check_but(&file, &expect, hers) {
            Ok(manifest) => manifest,
            Err(found) => return found.into_iter().map(|words| format!("manifest: {words}")).collect(),
        };
        let mut found = Vec::new();
        if i32::from(manifest.failed().count() > 0) != outcome.code().unwrap() {
            found.push(format!("exit code {:?} with {} failures", outcome.code(), manifest.failed().count()));
        }
        found.extend(self.unfaithful(&manifest, hers));
        found
    }

    /// The entries that are done by the manifest, and not as in the source.
    fn unfaithful(&self, manifest: &Manifest, hers: &impl Fn(&[u8]) -> bool) -> Vec<String> {
        let (before, after) = (oracle::walk(&self.src), oracle::walk(&self.dst));
        let aspects = Aspects { hard_links: false, ..Aspects::ALL };
        let mut found = Vec::new();
        for (path, old) in before.iter().filter(|(path, _)| !hers(path) && manifest.is_done(path)) {
            let Some(new) = after.get(path) else {
                found.push(format!("{}: done, and not there", show(path)));
                continue;
            };
            let words = oracle::node_differences(old, new, aspects);
            found.extend(words.into_iter().map(|words| format!("{}: done, and {words}", show(path))));
            if (old.kind, new.kind) == (Kind::File, Kind::File) && !oracle::same_content(&self.src, &self.dst, path) {
                found.push(format!("{}: done, and its content differs", show(path)));
            }
        }
        found
    }
}

fn contents(root: &Path, tree: &Tree) -> Vec<(Vec<u8>, Vec<u8>)> {
    let files = tree.iter().filter(|(_, node)| node.kind == Kind::File);
    files.map(|(path, _)| (path.clone(), fs::read(raw(root, path)).unwrap())).collect()
}

/// The files with powers, those left out that Eve may give to what is hers.
fn special(root: &Path, tree: &Tree) -> Vec<(Vec<u8>, Power)> {
    let is_special = |node: &Node| node.mode & SPECIAL != 0 || node.xattrs.contains_key(CAPABILITY);
    let files = tree.iter().filter(|(_, node)| node.kind == Kind::File && is_special(node));
    let powers = files.map(|(path, node)| {
        let content = blake3::hash(&fs::read(raw(root, path)).unwrap());
        let capability = node.xattrs.get(CAPABILITY).cloned();
        (path.clone(), (content, node.uid, node.gid, node.mode & SPECIAL, capability))
    });
    let is_eves = |(_, (_, uid, gid, bits, capability)): &(Vec<u8>, Power)| {
        *uid == EVE && capability.is_none() && (bits & 0o2000 == 0 || *gid == EVE)
    };
    powers.filter(|power| !is_eves(power)).collect()
}

fn start_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(SECRET.len() as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// Secret files that Eve owns or opens, and directories with secrets that are hers.
fn secrets(dst: &Path, after: &Tree) -> Vec<String> {
    let files = after.iter().filter(|(_, node)| node.kind == Kind::File);
    let secret: Vec<_> = files.filter(|(path, _)| holds_secret(&raw(dst, path))).collect();
    let mut found: Vec<_> = as_eve(|| {
        let opened = secret.iter().filter(|(path, _)| File::open(raw(dst, path)).is_ok());
        opened.map(|(path, _)| format!("{}: Eve reads a secret", show(path))).collect()
    });
    let owned = secret.iter().filter(|(_, node)| node.uid == EVE);
    found.extend(owned.map(|(path, _)| format!("{}: Eve owns a secret", show(path))));
    let dirs: BTreeSet<_> = secret.iter().filter_map(|(path, _)| Path::new(OsStr::from_bytes(path)).parent()).collect();
    let is_hers = |dir: &&&Path| !dir.as_os_str().is_empty() && after[dir.as_os_str().as_bytes()].uid == EVE;
    // in her home root's files may stand, but not be read
    let given = dirs.iter().filter(is_hers).filter(|dir| dir.components().count() > 1);
    found.extend(given.map(|dir| format!("{}: Eve owns a directory of secrets", dir.display())));
    found
}

/// Whether a secret begins at any 4 KiB of a file: a range of it may stand anywhere.
fn holds_secret(path: &Path) -> bool {
    fs::read(path).unwrap().chunks(4096).any(|block| block.starts_with(SECRET))
}

/// What Eve has written or linked, in directories that are not hers.
fn strange(dst: &Path, after: &Tree, hers: impl Fn(&[u8]) -> bool) -> Vec<String> {
    let others = after.iter().filter(|(path, _)| !hers(path));
    let evil = others.filter(|(path, node)| match node.kind {
        Kind::File => fs::read(raw(dst, path)).unwrap().chunks(4096).any(|block| block.starts_with(EVIL)),
        Kind::Symlink => node.target.starts_with(b"/"),
        _ => false,
    });
    evil.map(|(path, _)| format!("{}: of Eve's making, in a directory that is not hers", show(path))).collect()
}
