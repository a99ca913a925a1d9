//! Paths of directories that share the directories above them.

use std::fmt;
use std::sync::Arc;

use super::{RelPath, escaped, is_name};

/// The path of a directory, kept as its name and a reference to the directory above. 100,000 directories below one long path
/// take the memory of their names, not of their paths. A clone copies one reference.
#[derive(Clone)]
pub struct DirPath(Arc<Node>);

struct Node {
    above: Option<DirPath>,
    /// The directory's name. The node without `above` holds a whole path, which is empty for the root.
    name: Box<[u8]>,
    /// Bytes of the whole path.
    len: usize,
}

impl DirPath {
    /// The path of the directory `name` in this one.
    ///
    /// # Panics
    /// As [`RelPath::join`].
    pub fn join(&self, name: &[u8]) -> Self {
        assert!(is_name(name), "not a name: {}", escaped(name));
        Self(Arc::new(Node { above: Some(self.clone()), name: name.into(), len: self.len_with(name) }))
    }

    fn len_with(&self, name: &[u8]) -> usize {
        self.len() + usize::from(self.len() > 0) + name.len()
    }

    /// Bytes of the whole path.
    #[allow(clippy::len_without_is_empty)] // `is_root` of what `to_path` gives is the question
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The directory's own name; empty for the root of the copy.
    pub fn name(&self) -> &[u8] {
        self.0.name.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// Bytes of memory that it takes without the directories above, about.
    pub fn own_len(&self) -> usize {
        size_of::<Node>() + 48 + self.0.name.len()
    }

    /// The whole path.
    pub fn to_path(&self) -> RelPath {
        let mut bytes = vec![0; self.len()];
        self.fill(&mut bytes);
        RelPath(bytes)
    }

    /// The whole path of the entry `name` in this directory.
    pub fn path_of(&self, name: &[u8]) -> RelPath {
        let mut bytes = vec![b'/'; self.len_with(name)];
        self.fill(&mut bytes[..self.len()]);
        let start = bytes.len() - name.len();
        bytes[start..].copy_from_slice(name);
        RelPath(bytes)
    }

    fn fill(&self, into: &mut [u8]) {
        let mut end = into.len();
        for node in self.nodes() {
            // The byte behind this name is the slash that was written for the name below.
            into[node.len - node.name.len()..end].copy_from_slice(&node.name);
            if let Some(above) = node.above.as_ref().filter(|above| above.len() > 0) {
                end = above.len();
                into[end] = b'/';
            } else {
                end = 0;
            }
        }
    }

    /// This directory and all directories above it, from the inside out.
    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(Some(&*self.0), |node| node.above.as_ref().map(|above| &*above.0))
    }

    /// The name of an entry that stands in this directory; `None` for any other path.
    pub fn name_in<'a>(&self, entry: &'a RelPath) -> Option<&'a [u8]> {
        let bytes = entry.as_bytes();
        let name = match bytes.get(self.len()..)? {
            name if self.len() == 0 => name,
            [b'/', name @ ..] => name,
            _ => return None,
        };
        let slash = |above: &DirPath| above.len() == 0 || bytes[above.len()] == b'/';
        let holds = |node: &Node| bytes[..node.len].ends_with(&node.name) && node.above.as_ref().is_none_or(slash);
        (is_name(name) && self.nodes().all(holds)).then_some(name)
    }
}

impl From<RelPath> for DirPath {
    fn from(path: RelPath) -> Self {
        let RelPath(bytes) = path;
        Self(Arc::new(Node { above: None, len: bytes.len(), name: bytes.into() }))
    }
}

/// Drops the nodes above in a loop: recursion over a path of 32,000 names would overflow a thread's stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(DirPath(node)) = above {
            above = Arc::into_inner(node).and_then(|mut node| node.above.take());
        }
    }
}

impl PartialEq for DirPath {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.to_path() == other.to_path()
    }
}

impl Eq for DirPath {}

impl fmt::Debug for DirPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_path().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes().to_vec()).expect("a path")
    }

    #[test]
    fn a_path_of_names_is_the_path_that_was_joined() {
        for top in ["", "a", "a/bc"] {
            let (mut whole, mut dir) = (path(top), DirPath::from(path(top)));
            for name in [b"d".as_slice(), b"ef", b"g"] {
                assert_eq!((dir.to_path(), dir.len()), (whole.clone(), whole.as_bytes().len()));
                assert_eq!(dir.path_of(name), whole.join(name));
                assert_eq!(dir.name_in(&whole.join(name)), Some(name));
                (whole, dir) = (whole.join(name), dir.join(name));
            }
        }
    }

    #[test]
    fn only_what_a_directory_holds_itself_has_a_name_in_it() {
        let dir = DirPath::from(path("a")).join(b"bc").join(b"d");
        for other in
            ["", "a", "a/bc", "a/bc/d", "a/bc/d/e/f", "a/bc/x/e", "a/xc/d/e", "x/bc/d/e", "a/bc/dxe", "axbc/d/e", "e"]
        {
            assert_eq!(dir.name_in(&path(other)), None, "{other}");
        }
        assert_eq!(DirPath::from(RelPath::root()).name_in(&RelPath::root()), None);
        assert_eq!(DirPath::from(RelPath::root()).name_in(&path("a/b")), None);
    }

    #[test]
    fn a_path_of_very_many_names_is_dropped_on_a_small_stack() {
        let work = || drop((0..100_000).fold(DirPath::from(RelPath::root()), |dir, _| dir.join(b"d")));
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(work).expect("a thread");
        thread.join().expect("dropped");
    }
}
