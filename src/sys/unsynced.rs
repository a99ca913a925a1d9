//! Directories whose names are not durable yet, where syncfs would not make them so.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::{DirCache, Reading, open_dir_at, sync_file_system, sync_open_dir};
use crate::types::RelPath;
use crate::watch;

/// The directories below one root in which this rank has made, renamed or finished something since they were last synced.
/// Shared by its threads. Each is synced once a checkpoint, however much was done in it.
#[derive(Debug, Default)]
pub struct Unsynced(Mutex<Tree>);

/// A tree of directories by their names: thousands below one long path share its bytes.
#[derive(Debug)]
struct Tree(Vec<Dir>);

#[derive(Debug, Default)]
struct Dir {
    is_noted: bool,
    /// Their numbers in the tree.
    below: BTreeMap<Box<[u8]>, usize>,
}

impl Default for Tree {
    fn default() -> Self {
        Self(vec![Dir::default()])
    }
}

fn names(path: &RelPath) -> impl Iterator<Item = &[u8]> {
    path.as_bytes().split(|&byte| byte == b'/').filter(|name| !name.is_empty())
}

impl Tree {
    fn add(&mut self, dir: &RelPath) {
        let mut at = 0;
        for name in names(dir) {
            at = match self.0[at].below.get(name) {
                Some(&below) => below,
                None => {
                    let new = self.0.len();
                    self.0.push(Dir::default());
                    self.0[at].below.insert(name.into(), new);
                    new
                }
            };
        }
        self.0[at].is_noted = true;
    }

    fn forget(&mut self, dir: &RelPath) {
        let found = names(dir).try_fold(0, |at, name| self.0[at].below.get(name).copied());
        if let Some(at) = found {
            self.0[at].is_noted = false;
        }
    }

    /// The directories that were noted. Neighbours come one after the other, so that a descriptor cache serves them.
    fn paths(&self) -> impl Iterator<Item = RelPath> {
        // numbers, names, and how long the path above is
        let mut stack: Vec<(usize, &[u8], usize)> = vec![(0, b"", 0)];
        let mut path = Vec::new();
        std::iter::from_fn(move || {
            while let Some((at, name, above)) = stack.pop() {
                path.truncate(above);
                if above > 0 {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                let below = self.0[at].below.iter().rev();
                stack.extend(below.map(|(name, at)| (*at, &**name, path.len())));
                if self.0[at].is_noted {
                    return Some(RelPath::new(path.clone()).expect("of names of other paths"));
                }
            }
            None
        })
    }
}

impl Unsynced {
    fn lock(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a change in a directory, or of its metadata. Before anybody may record what is in it.
    pub fn add(&self, dir: &RelPath) {
        self.lock().add(dir);
    }

    /// A directory was made durable apart from this.
    pub fn forget(&self, dir: &RelPath) {
        self.lock().forget(dir);
    }

    /// Makes all that was noted durable. A directory that is gone, or replaced, has nothing to be made durable; where one may
    /// be written to and not be opened, the whole file system is synced.
    ///
    /// # Errors
    /// Those of open(2) and fsync(2). What was noted is not noted any more then: a second fsync does not tell what the
    /// first one lost.
    pub fn sync(&self, below: &mut DirCache) -> Result<(), Errno> {
        let dirs = std::mem::take(&mut *self.lock());
        dirs.paths().try_for_each(|dir| {
            watch::begin(dir.as_bytes(), b"");
            let opened = below.open(0, &dir).or_else(|err| match err {
                // A cached directory on the way was replaced since.
                Errno::ESTALE => {
                    below.clear();
                    below.open(0, &dir)
                }
                err => Err(err),
            });
            let opened = opened.and_then(|dir| open_dir_at(dir.as_fd(), b".", Reading::default()));
            match opened {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE) => Ok(()),
                Err(Errno::EACCES) => sync_file_system(below.root(0)),
                opened => sync_open_dir(opened?.as_fd()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_comes_once_each_and_in_order_and_what_was_forgotten_does_not() {
        let path = |text: &str| RelPath::new(text.as_bytes().to_vec()).expect("a path");
        let mut tree = Tree::default();
        for noted in ["a/b/c", "", "a", "a/b/c", "b", "a/bc", "a/b/d"] {
            tree.add(&path(noted));
        }
        for forgotten in ["a/b/d", "a/b", "x/y"] {
            tree.forget(&path(forgotten));
        }
        let shown: Vec<_> = tree.paths().map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned()).collect();
        assert_eq!(shown, ["", "a", "a/b/c", "a/bc", "b"]);
    }
}
