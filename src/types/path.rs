//! Paths as bytes, relative to the root of the copy, that cannot leave it.

mod dir;

use std::fmt;

pub use dir::DirPath;
use serde::{Deserialize, Serialize};

/// A path relative to the root of the copy: names joined by `/`; empty for the root itself.
///
/// No component is empty, `.` or `..`, and no byte is NUL, so that walking it name by name
/// stays below the directory where the walk began. Any other bytes are allowed.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf")]
pub struct RelPath(#[serde(serialize_with = "serde_bytes::serialize")] Vec<u8>);

/// Bytes of a path from outside, at most: twice what the scan goes down to, and the whole of a message many times over.
const MAX_LEN: usize = 128 << 10;
/// Bytes of a name from outside, at most: PATH_MAX, beyond what any file system has.
pub const MAX_NAME_LEN: usize = 4096;

/// Bytes that are not a [`RelPath`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a path below the root of the copy: {0}")]
pub struct PathError(String);

impl RelPath {
    /// The root of the copy itself.
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// Validates bytes from outside (a message, a file).
    ///
    /// # Errors
    /// A component that is empty, `.` or `..`, a leading or trailing slash, a NUL byte, or more than 128 KiB.
    pub fn new(bytes: Vec<u8>) -> Result<Self, PathError> {
        // byte by byte only where it must be: every record and message has paths
        let is_path = |bytes: &[u8]| !bytes.contains(&0) && bytes.split(|&b| b == b'/').all(can_be_part);
        if bytes.is_empty() || (bytes.len() <= MAX_LEN && is_path(&bytes)) {
            Ok(Self(bytes))
        } else {
            Err(PathError(escaped(&bytes[..bytes.len().min(MAX_NAME_LEN)])))
        }
    }

    /// The path of the entry `name` in this directory.
    ///
    /// # Panics
    /// When `name` is not a single component; names come from directory listings and from
    /// messages that were checked when they were decoded.
    pub fn join(&self, name: &[u8]) -> Self {
        assert!(is_name(name), "not a name: {}", escaped(name));
        let mut joined = Vec::with_capacity(self.0.len() + 1 + name.len());
        joined.extend_from_slice(&self.0);
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(name);
        Self(joined)
    }

    /// The path of what is at `below` in this directory.
    pub fn append(&self, below: &Self) -> Self {
        match (self.is_root(), below.is_root()) {
            (true, _) => below.clone(),
            (_, true) => self.clone(),
            _ => Self([self.as_bytes(), b"/", below.as_bytes()].concat()),
        }
    }

    /// What is left of this path below `prefix`, or `None` when it is not below it.
    pub fn strip(&self, prefix: &Self) -> Option<Self> {
        if prefix.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(prefix.as_bytes())? {
            [] => Some(Self::root()),
            [b'/', rest @ ..] => Some(Self(rest.to_vec())),
            _ => None,
        }
    }

    /// Whether this is `dir`, or something in it at whatever depth.
    pub fn is_at_or_below(&self, dir: &Self) -> bool {
        dir.is_root() || matches!(self.0.strip_prefix(dir.as_bytes()), Some([] | [b'/', ..]))
    }

    /// The directory that holds the entry, and the entry's name; `None` for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(at) => (Self(self.0[..at].to_vec()), &self.0[at + 1..]),
            None => (Self::root(), &self.0),
        })
    }

    /// The first name; `None` for the root.
    pub fn first_name(&self) -> Option<&[u8]> {
        self.0.split(|&b| b == b'/').next().filter(|name| !name.is_empty())
    }

    /// Whether this is the root of the copy.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, without a leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Whether what stands between two slashes names an entry, and not a directory that is there already.
fn can_be_part(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
}

/// Whether `bytes` can be the name of one directory entry.
pub fn is_name(bytes: &[u8]) -> bool {
    can_be_part(bytes) && !bytes.contains(&b'/') && !bytes.contains(&0)
}

/// A path as it may be shown on a terminal: control bytes and what is not UTF-8 escaped.
pub fn escaped(path: &[u8]) -> String {
    let mut shown = String::with_capacity(path.len());
    for part in path.utf8_chunks() {
        for c in part.valid().chars() {
            if c.is_control() || c == '\\' {
                shown.extend(c.escape_default());
            } else {
                shown.push(c);
            }
        }
        for byte in part.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// A text from another rank as one line: control characters, which could move a terminal's cursor, escaped.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&if self.is_root() { ".".into() } else { escaped(&self.0) })
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelPath({self})")
    }
}

impl TryFrom<serde_bytes::ByteBuf> for RelPath {
    type Error = PathError;

    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Self, PathError> {
        Self::new(bytes.into_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes().to_vec()).expect("a good path")
    }

    #[test]
    fn a_path_that_could_leave_the_root_is_refused() {
        for bad in ["/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\0b"] {
            assert!(RelPath::new(bad.as_bytes().to_vec()).is_err(), "{bad:?}");
        }
        assert!(RelPath::new(vec![b'a'; MAX_LEN + 1]).is_err() && RelPath::new(vec![b'a'; MAX_LEN]).is_ok());
        for good in ["", "a", "a/b", "...", "a/..b", "-", "a\nb", "\\"] {
            assert!(RelPath::new(good.as_bytes().to_vec()).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn joining_and_splitting_are_inverse() {
        let joined = RelPath::root().join(b"a").join(b"b");
        assert_eq!(joined, path("a/b"));
        assert_eq!(joined.split(), Some((path("a"), b"b".as_slice())));
        assert_eq!(path("a").split(), Some((RelPath::root(), b"a".as_slice())));
        assert_eq!(RelPath::root().split(), None);
        assert_eq!(path("a").append(&path("b/c")), path("a/b/c"));
        assert_eq!((path("a").append(&RelPath::root()), RelPath::root().append(&path("a"))), (path("a"), path("a")));
    }

    #[test]
    fn a_prefix_is_whole_names() {
        assert_eq!(path("run/x").strip(&path("run")), Some(path("x")));
        assert_eq!(path("run").strip(&path("run")), Some(RelPath::root()));
        assert_eq!(path("run2/x").strip(&path("run")), None);
    }

    #[test]
    fn what_is_in_a_directory_is_told_by_whole_names() {
        for (entry, dir, below) in [
            ("a", "", true),
            ("a/b", "", true),
            ("", "", true),
            ("a/b", "a", true),
            ("a", "a", true),
            ("a/b/c", "a", true),
            ("ab", "a", false),
            ("b", "a", false),
        ] {
            assert_eq!(path(entry).is_at_or_below(&path(dir)), below, "{entry} in {dir}");
        }
    }

    #[test]
    fn a_text_of_another_rank_is_one_line() {
        assert_eq!(one_line("no\n\x1b[2Jway: a\\n"), "no\\n\\u{1b}[2Jway: a\\n");
    }

    #[test]
    fn control_bytes_never_reach_a_terminal() {
        assert_eq!(escaped(b"a\nb\x1b[2J\xff\\"), "a\\nb\\u{1b}[2J\\xff\\\\");
        assert_eq!(escaped("grün".as_bytes()), "grün");
    }
}
