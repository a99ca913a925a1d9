//! What is made before it has its final name: in a private directory beside it, of the job's own.
//!
//! Whoever owns a directory of the destination can exchange the names in it while root copies. So what is written to by its
//! name, renamed or linked stands in a directory that only this user can change: mode 0700, under a name that the job's secret
//! makes, looked at through the descriptor by which its entries are reached. It inherits the layout, the project and the
//! group of the directory that it is in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{At, DEST, Mover, Place};
use crate::guard::EXCHANGED;
use crate::policy::Existing;
use crate::state::{private_name, temporary_name};
use crate::sys::{Errno, Meta, hold, make_private_dir, move_entry, remove_file, rename_new};
use crate::types::{Failure, Kind, Op, RelPath, Temporary};

/// Times that the private directory is made again, when whoever finishes the directory of another source has removed it.
const MAX_TIMES_GONE: usize = 8;

/// Where something was made.
pub(super) struct Made {
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    /// It has its final name.
    pub(super) is_final: bool,
}

impl Made {
    pub(super) fn place(&self) -> (BorrowedFd<'_>, &[u8]) {
        (self.dir.as_fd(), &self.name)
    }

    /// Removes what a failed attempt made. That it failed is recorded already; a name that stays behind has neither the
    /// final times nor a record.
    pub(super) fn discard(&self) {
        let _ = remove_file(self.dir.as_fd(), &self.name);
    }
}

impl Mover {
    /// What a temporary file of this entry is called, in the private directory, if that is there.
    ///
    /// # Errors
    /// Those of open(2) and statx(2); [`EXCHANGED`] for a directory that is not this user's alone.
    pub(super) fn beside(&self, source: u16, place: &Place, temporary: Temporary) -> Result<Made, Errno> {
        let dir = hold(place.dest(), &private_name(&self.job, &place.dir()), false)?;
        let meta = Meta::known(dir.as_fd())?;
        if meta.kind != Some(Kind::Dir) || !self.job.maker.is_alone(meta.uid, meta.mode) {
            return Err(EXCHANGED);
        }
        let name = self.temporary_name(source, &place.path, temporary);
        Ok(Made { dir: Arc::new(dir), name, is_final: false })
    }

    /// Demands that what a temporary name has led to is a file of one name.
    ///
    /// # Errors
    /// Those of fstat(2); [`EXCHANGED`].
    pub(super) fn check_temporary(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let meta = Meta::known(file)?;
        if meta.kind == Some(Kind::File) && meta.nlink == 1 { Ok(()) } else { Err(EXCHANGED) }
    }

    /// Makes something in the private directory, which is made where it is not there.
    pub(super) fn make_temporary<T>(
        &mut self,
        source: u16,
        place: &Place,
        temporary: Temporary,
        mut make: impl FnMut((BorrowedFd<'_>, &[u8])) -> Result<T, Errno>,
    ) -> Result<(T, Made), Errno> {
        self.task.private = true;
        for _ in 0..MAX_TIMES_GONE {
            let made = self.beside(source, place, temporary).and_then(|spot| match make(spot.place()) {
                // of an earlier attempt of this job: no one else has the name
                Err(Errno::EEXIST) => {
                    remove_file(spot.dir.as_fd(), &spot.name)?;
                    Ok((make(spot.place())?, spot))
                }
                made => Ok((made?, spot)),
            });
            match made {
                Err(Errno::ENOENT) => make_private_dir(place.dest(), &private_name(&self.job, &place.dir()))?,
                made => return made,
            }
        }
        Err(Errno::ENOENT)
    }

    /// Makes something under its final name, or beside it where that is taken.
    pub(super) fn make_beside<T>(
        &mut self,
        source: u16,
        place: &Place,
        mut make: impl FnMut((BorrowedFd<'_>, &[u8])) -> Result<T, Errno>,
    ) -> Result<(T, Made), Errno> {
        // where what is there may be left, a later run must not take half an entry for a whole one
        if self.job.policy.existing == Existing::Replace {
            match make((place.dest(), &place.dest_name)) {
                Err(Errno::EEXIST) if self.may_replace(place) => {}
                made => {
                    let (dir, name) = (Arc::clone(&place.dest_dir), place.dest_name.clone());
                    return made.map(|made| (made, Made { dir, name, is_final: true }));
                }
            }
        } else if !self.may_replace(place) && Meta::at(place.dest(), &place.dest_name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let first = Temporary { generation: self.job.generation, attempt: 0 };
        self.make_temporary(source, place, first, make)
    }

    /// Gives an entry that is whole its final name.
    pub(super) fn give_name(&self, place: &Place, made: &Made) -> Result<(), Failure> {
        let renamed = if self.may_replace(place) { move_entry } else { rename_new };
        renamed(made.place(), (place.dest(), &place.dest_name)).at(Op::Rename, DEST)
    }

    /// Whether another entry that has the name may be replaced.
    fn may_replace(&self, place: &Place) -> bool {
        !self.job.fresh && (self.job.policy.existing != Existing::Keep || place.ours)
    }

    /// The name under which an entry is made before it replaces another one: of fixed length, because the entry's own may
    /// already be as long as the file system allows.
    fn temporary_name(&self, source: u16, path: &RelPath, temporary: Temporary) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_keyed(&self.job.secret.key());
        hasher.update(&source.to_le_bytes()).update(&temporary.generation.to_le_bytes());
        hasher.update(&[temporary.attempt]).update(path.as_bytes());
        temporary_name(self.job.id, hasher.finalize().as_bytes())
    }
}
