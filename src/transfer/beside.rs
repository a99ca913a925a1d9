//! Entries that are made under a temporary name first: in a private directory beside the final name.
//!
//! The owner of a directory at the destination can exchange the names in it while root copies. Therefore whatever is opened
//! again by its name, renamed or linked is made in a directory that only the user who runs pcopy can change. It has mode 0700
//! and a name that is made with the job's secret. It is checked through the descriptor by which its entries are reached. It
//! inherits layout, project and group from the directory above.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{At, DEST, Mover, Place};
use crate::collision::COLLISION;
use crate::guard::EXCHANGED;
use crate::policy::{Existing, Flags};
use crate::state::{private_name, temporary_name};
use crate::sys::{
    Errno, Meta, hold, make_private_dir, move_entry, names_in, remove_file, rename_new, rename_reserving,
    take_flags_off,
};
use crate::types::{Failure, Kind, Op, RelPath, Temporary};

/// Attempts to make the private directory. Another rank removes it when it finishes the directory of another source.
const MAX_TIMES_GONE: usize = 8;

/// The place of an entry that was made: the directory and the name in it.
pub(super) struct Made {
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    /// The name is the entry's final one.
    pub(super) is_final: bool,
    /// What stands under the final name was looked at, and may be replaced.
    replaces: bool,
}

impl Made {
    pub(super) fn place(&self) -> (BorrowedFd<'_>, &[u8]) {
        (self.dir.as_fd(), &self.name)
    }

    /// Removes what a failed attempt has made. An error is ignored: the failure of the attempt is recorded already, and an entry
    /// that stays behind has no record and not the final times.
    pub(super) fn discard(&self) {
        let _ = remove_file(self.dir.as_fd(), &self.name);
    }
}

impl Mover {
    /// The place of a temporary file of an entry, in the private directory.
    ///
    /// # Errors
    /// Those of open(2) and statx(2), `ENOENT` if there is no private directory; [`EXCHANGED`] if others can change it.
    pub(super) fn beside(&self, source: u16, place: &Place, temporary: Temporary) -> Result<Made, Errno> {
        let dir = hold(place.dest(), &private_name(&self.job, &place.dir()), false)?;
        let meta = Meta::known(dir.as_fd())?;
        if meta.kind != Some(Kind::Dir) || !self.job.maker.is_alone(meta.uid, meta.mode) {
            return Err(EXCHANGED);
        }
        let name = self.temporary_name(source, &place.path, temporary);
        Ok(Made { dir: Arc::new(dir), name, is_final: false, replaces: false })
    }

    /// Checks that an opened temporary file is a regular file with one name.
    ///
    /// # Errors
    /// Those of fstat(2); [`EXCHANGED`].
    pub(super) fn check_temporary(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let meta = Meta::known(file)?;
        if meta.kind == Some(Kind::File) && meta.nlink == 1 { Ok(()) } else { Err(EXCHANGED) }
    }

    /// Makes an entry in the private directory, and that directory first if there is none.
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
                // An earlier attempt of this job made it: nobody else knows the name.
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

    /// Makes an entry under its final name, or in the private directory if that name is taken.
    pub(super) fn make_beside<T>(
        &mut self,
        source: u16,
        place: &Place,
        mut make: impl FnMut((BorrowedFd<'_>, &[u8])) -> Result<T, Errno>,
    ) -> Result<(T, Made), Errno> {
        // With --update and --no-clobber a later run leaves what is there: a half entry must never have the final name.
        if self.job.policy.existing == Existing::Replace {
            match make((place.dest(), &place.dest_name)) {
                Err(Errno::EEXIST) => self.check_name(source, place)?,
                made => {
                    let (dir, name) = (Arc::clone(&place.dest_dir), place.dest_name.clone());
                    return made.map(|made| (made, Made { dir, name, is_final: true, replaces: false }));
                }
            }
        } else if Meta::at(place.dest(), &place.dest_name).is_ok() {
            self.check_name(source, place)?;
        }
        let first = Temporary { generation: self.job.generation, attempt: 0 };
        let (entry, made) = self.make_temporary(source, place, first, make)?;
        Ok((entry, Made { replaces: self.job.policy.existing == Existing::Replace, ..made }))
    }

    /// Whether what stands under the name of an entry has another name: that of another entry of the source.
    ///
    /// # Errors
    /// Those of looking at both directories.
    pub(super) fn has_other_name(&mut self, source: u16, place: &Place) -> Result<bool, Errno> {
        let is_single = self.job.sources[usize::from(source)].single.is_some();
        self.collisions.has_other(&place.dest_dir, &place.dest_name, || {
            if self.node.targets.meeting_at(&place.dir()) > 1 {
                return Ok(None);
            }
            if is_single { Ok(Some(Vec::new())) } else { names_in(place.source_dir.as_fd()).map(Some) }
        })
    }

    /// Checks that what stands under the name of an entry may be replaced.
    ///
    /// # Errors
    /// [`COLLISION`] for another entry of the source, `EEXIST` for what is to be left; those of looking at it.
    fn check_name(&mut self, source: u16, place: &Place) -> Result<(), Errno> {
        match self.has_other_name(source, place)? {
            true => Err(COLLISION),
            false if self.may_replace(place) => Ok(()),
            false => Err(Errno::EEXIST),
        }
    }

    /// Gives a complete entry its final name, and returns that place. If a later step fails, the entry has to be discarded
    /// there: where nothing may be replaced, the next attempt would find the name taken.
    pub(super) fn give_name(&mut self, source: u16, place: &Place, made: &Made) -> Result<Made, Failure> {
        let to = (place.dest(), place.dest_name.as_slice());
        let renamed = match self.job.policy.existing {
            _ if made.replaces => move_entry(made.place(), to),
            // two names that collide may come to this at once
            Existing::Replace => rename_reserving(made.place(), to),
            // an empty file, after a kill, would be left by a later run
            _ => rename_new(made.place(), to),
        };
        let renamed = match renamed {
            Err(Errno::EEXIST) => self.check_name(source, place).and_then(|()| move_entry(made.place(), to)),
            renamed => renamed,
        };
        let renamed = match renamed {
            // an earlier run has set flags of the source's on it
            Err(Errno::EPERM) if self.may_take_flags_off(place) => {
                let there = hold(place.dest(), &place.dest_name, false);
                let freed = there.and_then(|there| take_flags_off(there.as_fd(), Meta::of(&there)?.kind));
                freed.and_then(|()| move_entry(made.place(), to))
            }
            renamed => renamed,
        };
        renamed.at(Op::Rename, DEST)?;
        Ok(Made { dir: Arc::clone(&place.dest_dir), name: place.dest_name.clone(), is_final: true, replaces: false })
    }

    /// Whether what has the name of an entry may lose its inode flags: an earlier run has set them, and nobody else can have
    /// put something of his own there.
    fn may_take_flags_off(&self, place: &Place) -> bool {
        let sets = self.job.generation > 1 && self.job.policy.preserve.flags == Flags::Copied;
        sets && self.node.guard().is_shared(place.dest()).is_ok_and(|shared| !shared)
    }

    /// Whether another entry that has the name may be replaced.
    fn may_replace(&self, place: &Place) -> bool {
        !self.job.fresh && (self.job.policy.existing != Existing::Keep || place.ours)
    }

    /// The temporary name of an entry. Its length is fixed, because the entry's own name may be as long as the file system
    /// allows.
    fn temporary_name(&self, source: u16, path: &RelPath, temporary: Temporary) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_keyed(&self.job.secret.key());
        hasher.update(&source.to_le_bytes()).update(&temporary.generation.to_le_bytes());
        hasher.update(&[temporary.attempt]).update(path.as_bytes());
        temporary_name(self.job.id, hasher.finalize().as_bytes())
    }
}
