//! fsync and close of small files, beside the copying: where syncfs does not reach, each waits for a server or a disk.

use std::io;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::{At, DEST};
use crate::sys::{End, sync_file};
use crate::types::{Failure, Op, RelPath};
use crate::watch;

/// Threads that make files durable, of one I/O thread. They end with it.
pub(super) struct Syncer {
    files: Sender<(usize, RelPath, End)>,
    synced: Receiver<(usize, Result<(), Failure>)>,
}

impl Syncer {
    /// Files that are under way at once, at most: so many threads, each with a descriptor or two.
    pub(super) const AT_ONCE: usize = 4;

    /// Starts the threads.
    ///
    /// # Errors
    /// Those of starting one.
    pub(super) fn start() -> io::Result<Self> {
        let ((files, to_sync), (done, synced)) = (unbounded::<(usize, RelPath, End)>(), unbounded());
        for index in 0..Self::AT_ONCE {
            let (to_sync, done) = (to_sync.clone(), done.clone());
            // who hands files over is gone when nobody listens any more
            let work = move || {
                for (number, path, file) in to_sync {
                    watch::begin(path.as_bytes(), b"");
                    let synced = make_durable(file);
                    watch::end();
                    let _ = done.send((number, synced));
                }
            };
            thread::Builder::new().name(format!("fsync {index}")).spawn(work)?;
        }
        Ok(Self { files, synced })
    }

    /// Has a file made durable and closed.
    pub(super) fn add(&self, number: usize, path: RelPath, file: End) {
        self.files.send((number, path, file)).expect("its threads live as long as it does");
    }

    /// Waits for one of those that were added.
    pub(super) fn wait(&self) -> (usize, Result<(), Failure>) {
        self.synced.recv().expect("its threads live as long as it does")
    }
}

/// Makes a file durable by itself, and closes it.
pub(super) fn make_durable(file: End) -> Result<(), Failure> {
    sync_file(file.plain()).at(Op::Fsync, DEST)?;
    file.close().at(Op::Close, DEST)
}
