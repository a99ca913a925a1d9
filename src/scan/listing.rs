//! One directory: its names, told apart into what is entered, copied, known and left out.

use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::loops::Ancestor;
use super::{Below, DirId, Gone, Pending, ScanEvent, Scanner, failure};
use crate::policy::Selection;
use crate::proto::{Known, MAX_BATCH_KNOWN, MAX_BATCH_LEN, MAX_BATCH_NAMES, Names};
use crate::state;
use crate::sys::{Errno, list, open_dir_at};
use crate::types::{DirPath, Failure, Kind, NameSet, Op, RelPath, Side};

/// A directory that is being listed.
pub(super) struct Listing<'a> {
    pub(super) id: DirId,
    pub(super) source: u16,
    pub(super) is_top: bool,
    /// Below the root of the copy.
    pub(super) path: &'a RelPath,
    pub(super) dir_path: &'a DirPath,
    pub(super) dir: &'a Arc<OwnedFd>,
    /// It, and those that hold it, where symbolic links are followed.
    pub(super) ancestors: Option<Arc<Ancestor>>,
    pub(super) nested: usize,
    /// Names that were not sent yet.
    pub(super) names: Names,
    /// All that the listing has shown.
    pub(super) seen: NameSet,
    pub(super) known: Vec<Known>,
    /// Bytes of them, about.
    pub(super) known_len: usize,
    pub(super) subdirs: u64,
    pub(super) excluded: u64,
    pub(super) gone: bool,
}

impl Scanner {
    /// All names. The outer failure may be tried again; the inner one comes after names that were seen, which must not be
    /// seen twice.
    pub(super) fn list_all(&mut self, listing: &mut Listing<'_>) -> Result<Result<(), Failure>, Failure> {
        let failed = |err| failure(Op::List, Side::Source, err);
        let stream = open_dir_at(listing.dir.as_fd(), b".", self.lister.rooms.reading).map_err(failed)?;
        let (mut unknown, mut seen) = (None, false);
        listing.seen = NameSet::default();
        let listed = list(stream, |entry| {
            seen = true;
            listing.seen.add(entry.name, entry.ino);
            let linked = self.lister.rooms.reading.follow && entry.kind.is_none_or(|kind| kind == Kind::Symlink);
            match entry.kind.filter(|_| !linked).map_or_else(|| self.lister.kind_of(listing.dir, entry.name), Ok) {
                Ok(kind) => self.found(listing, entry.name, kind, Below { linked, selected: None }),
                // gone again since it was listed, or a link that leads nowhere: who opens it will tell
                Err(_) if linked => self.found(listing, entry.name, Kind::File, Below::default()),
                Err(Errno::ENOENT) => {}
                Err(err) => unknown = Some(err),
            }
            if listing.gone || unknown.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match (listed, unknown) {
            (Err(err), _) if !seen => Err(failed(err)),
            (Err(err), _) | (Ok(()), Some(err)) => Ok(Err(failed(err))),
            (Ok(()), None) => Ok(Ok(())),
        }
    }

    /// The names that a list asks for. What is not there is handed on as a file: who opens it will tell.
    pub(super) fn list_selected(
        &mut self,
        listing: &mut Listing<'_>,
        selection: &Selection,
        below: &RelPath,
        range: Range<usize>,
    ) {
        for selected in selection.names_in(below, range) {
            let kind = self.lister.kind_of(listing.dir, selected.name).unwrap_or(Kind::File);
            let linked = self.lister.rooms.reading.follow;
            if selected.whole {
                self.found(listing, selected.name, kind, Below { linked, selected: None });
            } else if kind == Kind::Dir {
                let below = Below { linked, selected: Some(selected.below.clone()) };
                self.found(listing, selected.name, kind, below);
            }
            if kind != Kind::Dir && !selected.below.is_empty() && !listing.gone {
                listing.gone = selection.paths(selected.below).any(|path| self.missing(listing.source, path).is_err());
            }
        }
    }

    /// An entry of a list below what is no directory: it has no parent that could wait for it.
    fn missing(&mut self, source: u16, below: &RelPath) -> Result<(), Gone> {
        let path = self.lister.rooms.job.sources[usize::from(source)].target.append(below);
        let (path, name) = path.split().expect("the source itself is there");
        let id = self.shared.new_id();
        self.keep(ScanEvent::Single { id, source, path: path.into() });
        self.keep(ScanEvent::Names { dir: id, names: Names::one(name, Kind::File) });
        self.send(ScanEvent::of_single(id))
    }

    /// One entry of a directory; of a directory in it, what is to be listed there.
    fn found(&mut self, listing: &mut Listing<'_>, name: &[u8], kind: Kind, below: Below) {
        if listing.gone {
            return;
        }
        if listing.is_top && name == state::DIR_NAME {
            self.keep(ScanEvent::StateSkipped { source: listing.source });
            return;
        }
        if self.lister.is_excluded((listing.source, listing.path), name, kind == Kind::Dir) {
            listing.excluded += 1;
            return;
        }
        if kind == Kind::Dir {
            listing.subdirs += 1;
            let (parent, source, path) = (Some(listing.id), listing.source, listing.dir_path.join(name));
            let ancestors = listing.ancestors.clone();
            let pending = Pending { id: None, parent, source, path, ancestors, below };
            // whoever lists it may be heard of at once
            if self.send_kept().is_err() {
                listing.gone = true;
                return;
            }
            if let Some(pending) = self.push(pending, listing.nested) {
                listing.gone = self.list(pending, listing.nested + 1).is_err();
            }
            return;
        }
        let recorded = &self.shared.recorded;
        if !recorded.is_empty()
            && let Some(known) = recorded.find(&listing.path.join(name), name, kind, &mut self.block)
        {
            listing.known_len += known.byte_len();
            listing.known.push(known);
            if listing.known.len() >= MAX_BATCH_KNOWN || listing.known_len >= MAX_BATCH_LEN {
                listing.known_len = 0;
                let entries = std::mem::take(&mut listing.known);
                listing.gone = self.send(ScanEvent::Known { dir: listing.id, entries }).is_err();
            }
            return;
        }
        listing.names.push(name, kind);
        if listing.names.len() >= MAX_BATCH_NAMES || listing.names.byte_len() >= MAX_BATCH_LEN {
            let names = std::mem::take(&mut listing.names);
            listing.gone = self.send(ScanEvent::Names { dir: listing.id, names }).is_err();
        }
    }
}
