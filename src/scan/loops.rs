//! Directories that hold themselves, by symbolic links that are followed, or by a destination in its source.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::MAX_PATH_LEN;
use crate::sys::{Errno, Meta, Reading, open_dir_at};

/// A directory, as the source's file system knows it, and those that hold it.
pub(super) struct Ancestor {
    pub(super) meta: Meta,
    pub(super) parent: Option<Arc<Ancestor>>,
}

impl Ancestor {
    /// Whether the directory is one of them.
    pub(super) fn has(this: Option<&Arc<Self>>, meta: &Meta) -> bool {
        std::iter::successors(this, |ancestor| ancestor.parent.as_ref()).any(|ancestor| ancestor.meta.is_same(meta))
    }
}

/// Drops the nodes in a loop: recursion over a path of 32,000 names would overflow a thread's stack.
impl Drop for Ancestor {
    fn drop(&mut self) {
        let mut above = self.parent.take();
        while let Some(ancestor) = above {
            above = Arc::into_inner(ancestor).and_then(|mut ancestor| ancestor.parent.take());
        }
    }
}

/// Whether a directory is `other`, or somewhere in it.
///
/// # Errors
/// Those of open(2) and fstat(2).
pub(super) fn is_inside(dir: BorrowedFd<'_>, other: &Meta) -> Result<bool, Errno> {
    let mut meta = Meta::of(dir)?;
    let mut above = open_dir_at(dir, b"..", Reading::default())?;
    for _ in 0..MAX_PATH_LEN {
        let next = Meta::of(&above)?;
        // the root is its own parent
        if meta.is_same(other) || next.is_same(&meta) {
            return Ok(meta.is_same(other));
        }
        (meta, above) = (next, open_dir_at(above.as_fd(), b"..", Reading::default())?);
    }
    Err(Errno::ELOOP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::open_root;

    #[test]
    fn very_many_ancestors_are_dropped_on_a_small_stack() {
        let meta = || Meta::of(open_root(std::path::Path::new("/")).expect("opens")).expect("a stat");
        let work = move || {
            let above = |parent, _| Some(Arc::new(Ancestor { meta: meta(), parent }));
            drop((0..30_000).fold(None, above));
        };
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(work).expect("a thread");
        thread.join().expect("dropped");
    }
}
