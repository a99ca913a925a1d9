//! A list of paths to copy (`--files-from`), in the order in which a tree is walked.

use std::cmp::Ordering;
use std::ops::Range;

use crate::types::{RelPath, escaped};

/// Paths below one source, sorted so that what is below a directory follows it. Takes the memory of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(Vec<RelPath>);

/// An entry of the list that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {number}, {entry}: {reason}")]
pub struct SelectionError {
    /// From 1.
    number: usize,
    entry: String,
    reason: &'static str,
}

/// One name of a directory that the list asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected<'a> {
    pub name: &'a [u8],
    /// The entry itself is listed: of a directory, with all that is in it.
    pub whole: bool,
    /// Entries of the list below it.
    pub below: Range<usize>,
}

impl Selection {
    /// The paths of a list, ended by newlines or, `by_nul`, by NULs; relative to the source, or absolute and below
    /// `source`, its canonical path or as the user gave it.
    ///
    /// # Errors
    /// An entry that leads out of the source.
    pub fn parse(text: &[u8], by_nul: bool, source: [&[u8]; 2]) -> Result<Self, SelectionError> {
        let end = if by_nul { 0 } else { b'\n' };
        let entries = (1..).zip(text.split(|&b| b == end)).filter(|(_, entry)| !entry.is_empty());
        let paths = entries.map(|(number, entry)| {
            below_source(entry, source).map_err(|reason| SelectionError { number, entry: escaped(entry), reason })
        });
        let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
        paths.sort_unstable_by(in_tree_order);
        paths.dedup();
        Ok(Self(paths))
    }

    /// All entries.
    pub fn all(&self) -> Range<usize> {
        0..self.0.len()
    }

    /// What tells it from another list.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for path in &self.0 {
            hasher.update(path.as_bytes()).update(b"\0");
        }
        hasher.finalize()
    }

    /// Whether the source itself is listed.
    pub fn has_root(&self) -> bool {
        self.0.first().is_some_and(RelPath::is_root)
    }

    /// The entries of a range.
    pub fn paths(&self, range: Range<usize>) -> impl Iterator<Item = &RelPath> {
        self.0[range].iter()
    }

    /// The names that the entries `range` ask for in the directory `dir`, below which all of them lie.
    pub fn names_in(&self, dir: &RelPath, range: Range<usize>) -> Vec<Selected<'_>> {
        let skip = if dir.is_root() { 0 } else { dir.as_bytes().len() + 1 };
        let mut names: Vec<Selected<'_>> = Vec::new();
        for index in range {
            let below = &self.0[index].as_bytes()[skip..];
            let (name, rest) = match below.iter().position(|&b| b == b'/') {
                Some(at) => (&below[..at], &below[at..]),
                None => (below, &below[below.len()..]),
            };
            match names.last_mut() {
                Some(last) if last.name == name => last.below.end = index + 1,
                _ => {
                    let whole = rest.is_empty();
                    names.push(Selected { name, whole, below: index + usize::from(whole)..index + 1 });
                }
            }
        }
        names
    }
}

fn below_source(entry: &[u8], source: [&[u8]; 2]) -> Result<RelPath, &'static str> {
    let relative = if entry.starts_with(b"/") {
        let below = source.into_iter().find_map(|source| {
            let source = source.strip_suffix(b"/").unwrap_or(source);
            entry.strip_prefix(source).filter(|rest| source.starts_with(b"/") && matches!(rest, [] | [b'/', ..]))
        });
        below.ok_or("is not below the source")?
    } else {
        entry
    };
    let names: Vec<&[u8]> = relative.split(|&b| b == b'/').filter(|name| !matches!(name, [] | [b'.'])).collect();
    if names.contains(&b"..".as_slice()) {
        return Err("leads out of the source with ..");
    }
    RelPath::new(names.join(&b'/')).map_err(|_| "is not a path")
}

/// A directory before what is in it, and all of that before anything else.
fn in_tree_order(a: &RelPath, b: &RelPath) -> Ordering {
    // a slash before every byte that a name can hold
    let key = |b: &u8| if *b == b'/' { 0 } else { *b };
    a.as_bytes().iter().map(key).cmp(b.as_bytes().iter().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Selection, SelectionError> {
        Selection::parse(text.as_bytes(), false, [b"/data/src", b"/link/"])
    }

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes().to_vec()).expect("a path")
    }

    #[test]
    fn entries_are_below_the_source_or_refused() {
        let list = parse("b\n\n./a//x/\n/data/src/c\n/link/d\nb\n").expect("a good list");
        assert_eq!(list.0, ["a/x", "b", "c", "d"].map(path));
        for bad in ["../a", "a/../../b", "/etc/passwd", "/data/srcx", "/", "a/.."] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("/data/src").expect("the source").has_root());
        let nul = Selection::parse(b"a\nb\0c\0", true, [b"/s", b"s"]).expect("a good list");
        assert_eq!(nul.0, [path("a\nb"), path("c")]);
    }

    #[test]
    fn names_come_once_with_what_is_below_them() {
        let list = parse("dir/a\ndir\ndir-2\ndir/b/c\nx/y/z\nx/y").expect("a good list");
        let names = list.names_in(&RelPath::root(), list.all());
        let told: Vec<_> = names.iter().map(|s| (s.name, s.whole, s.below.clone())).collect();
        assert_eq!(told, [(b"dir".as_slice(), true, 1..3), (b"dir-2", true, 4..4), (b"x", false, 4..6)]);
        let names = list.names_in(&path("x"), 4..6);
        assert_eq!(names, [Selected { name: b"y", whole: true, below: 5..6 }]);
    }
}
