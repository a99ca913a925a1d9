//! Paths as bytes, relative to the root of the copy, that cannot leave it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A path relative to the root of the copy: names joined by `/`; empty for the root itself.
///
/// No component is empty, `.` or `..`, and no byte is NUL, so that walking it name by name
/// stays below the directory where the walk began. Any other bytes are allowed, of any length.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf")]
pub struct RelPath(#[serde(serialize_with = "serde_bytes::serialize")] Vec<u8>);

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
    /// A component that is empty, `.` or `..`, a leading or trailing slash, or a NUL byte.
    pub fn new(bytes: Vec<u8>) -> Result<Self, PathError> {
        // byte by byte only where it must be: every record and message has paths
        if bytes.is_empty() || (!bytes.contains(&0) && bytes.split(|&b| b == b'/').all(can_be_part)) {
            Ok(Self(bytes))
        } else {
            Err(PathError(escaped(&bytes)))
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
    fn control_bytes_never_reach_a_terminal() {
        assert_eq!(escaped(b"a\nb\x1b[2J\xff\\"), "a\\nb\\u{1b}[2J\\xff\\\\");
        assert_eq!(escaped("grün".as_bytes()), "grün");
    }
}
