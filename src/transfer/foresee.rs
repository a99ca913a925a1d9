//! A dry run: the same tasks, looked at. Nothing is written; sources are opened, to see that they can be read.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::entry::facts;
use super::{At, DEST, Mover, SOURCE};
use crate::proto::{FinishedDir, Names, Owned, Returned, Task, TaskResult};
use crate::sys::{Errno, Meta, open_read, read_link};
use crate::types::{Facts, Failure, Fate, Kind, LinkId, Op, Outcome, RelPath, Unkept};

/// What would become of an entry.
enum Foreseen {
    Entry(Kind, Facts),
    Linked(Returned),
}

impl Mover {
    /// Says what a task would do.
    pub(super) fn foresee(&mut self, task: Task) -> TaskResult {
        match task {
            Task::Entries { source, dir, names } => TaskResult::Returned(self.foresee_entries(source, &dir, &names)),
            Task::Owner { source, path, kind, .. } => {
                let owned = match self.foresee_path(source, &path, kind) {
                    Ok(Foreseen::Entry(kind, facts)) => {
                        self.end(path, kind, Outcome::Done(facts.clone()));
                        Owned::Copied(facts)
                    }
                    Ok(Foreseen::Linked(_)) => unreachable!("an owner is not looked at for its links"),
                    Err(failure) => {
                        self.fail(path, kind, failure);
                        Owned::Failed
                    }
                };
                TaskResult::Owned(Box::new(owned))
            }
            Task::Links { owner, kind, facts, paths, .. } => {
                for path in paths {
                    self.end(path, kind, Outcome::Done(Facts { hardlink: Some(owner.clone()), ..(*facts).clone() }));
                }
                TaskResult::Returned(Vec::new())
            }
            Task::FinishDirs { source, dirs } => {
                dirs.into_iter().for_each(|dir| self.foresee_dir(source, dir));
                TaskResult::Dirs { confirmed: Vec::new() }
            }
            Task::Range { .. } | Task::FinishFile { .. } | Task::Abandon { .. } | Task::Known { .. } => {
                unreachable!("a dry run hands no file back for its size, and knows of no earlier run")
            }
            Task::List { .. } => unreachable!("it is no other in a dry run"),
        }
    }

    pub(super) fn foresee_entries(&mut self, source: u16, dir: &RelPath, names: &Names) -> Vec<Returned> {
        let source_dir = self.source_dir(source, dir);
        let mut returned = Vec::new();
        for (name, kind) in names.iter() {
            let path = dir.join(name);
            let source_name = self.job.sources[usize::from(source)].single.clone().unwrap_or_else(|| name.to_vec());
            let foreseen =
                source_dir.clone().and_then(|dir| self.foresee_entry(source, (&dir, &source_name), &path, kind, true));
            match foreseen {
                Ok(Foreseen::Entry(kind, facts)) => self.end(path, kind, Outcome::Done(facts)),
                Ok(Foreseen::Linked(entry)) => returned.push(entry),
                Err(failure) => {
                    self.fail(path, kind, failure);
                }
            }
        }
        returned
    }

    fn foresee_path(&mut self, source: u16, path: &RelPath, kind: Kind) -> Result<Foreseen, Failure> {
        let (dir, name) = path.split().ok_or(Errno::EISDIR).at(Op::Open, SOURCE)?;
        let dir = self.source_dir(source, &dir)?;
        let name = self.job.sources[usize::from(source)].single.clone().unwrap_or_else(|| name.to_vec());
        self.foresee_entry(source, (&dir, &name), path, kind, false)
    }

    fn foresee_entry(
        &mut self,
        source: u16,
        (dir, name): (&Arc<OwnedFd>, &[u8]),
        path: &RelPath,
        kind: Kind,
        returns_links: bool,
    ) -> Result<Foreseen, Failure> {
        let meta = match kind {
            Kind::File => Meta::of(open_read(dir.as_fd(), name, self.reading).at(Op::Open, SOURCE)?),
            _ => self.source_meta((dir.as_fd(), name)),
        };
        let meta = meta.at(Op::Stat, SOURCE)?;
        if meta.kind != Some(kind) {
            return Err(Failure::CHANGED);
        }
        let there = self.there(path)?;
        if let Some(there) = &there {
            if there.kind == Some(Kind::Dir) {
                return Err(Errno::EISDIR).at(Op::Rename, DEST);
            }
            if let Some(fate) = self.job.policy.keeps(there.mtime, meta.mtime) {
                let kind = there.kind.unwrap_or(kind);
                let target = if kind == Kind::Symlink { Some(self.target_there(path)?) } else { None };
                return Ok(Foreseen::Entry(kind, Facts { fate, ..facts(there, Unkept::default(), target) }));
            }
        }
        if meta.nlink > 1 && returns_links && self.job.policy.preserve.links {
            let id: LinkId = self.node.link_id(source, &meta);
            let names = if self.reading.follow { u64::MAX } else { meta.nlink };
            let (path, identity) = (path.clone(), meta.identity());
            return Ok(Foreseen::Linked(Returned::Linked { path, kind, id, identity, names, there: None }));
        }
        let target = match kind {
            Kind::Symlink => Some(read_link(dir.as_fd(), name).at(Op::ReadLink, SOURCE)?),
            _ => None,
        };
        let fate = if there.is_some() { Fate::Replaces } else { Fate::Made };
        Ok(Foreseen::Entry(kind, Facts { fate, ..facts(&meta, Unkept::default(), target) }))
    }

    fn foresee_dir(&mut self, source: u16, dir: FinishedDir) {
        let looked = self.source_dir(source, &dir.path).and_then(|from| {
            let meta = Meta::of(&from).at(Op::Stat, SOURCE)?;
            let fate = match self.there(&dir.path)? {
                Some(there) if there.kind != Some(Kind::Dir) => return Err(Errno::ENOTDIR).at(Op::Mkdir, DEST),
                Some(_) => Fate::Replaces,
                None => Fate::Made,
            };
            Ok(Facts { fate, ..facts(&meta, Unkept::default(), None) })
        });
        match dir.failure.map_or(looked, Err) {
            Ok(facts) => self.end(dir.path, Kind::Dir, Outcome::Done(facts)),
            Err(failure) => {
                self.fail(dir.path, Kind::Dir, failure);
            }
        }
    }

    /// What is at the destination, if anything.
    fn there(&mut self, path: &RelPath) -> Result<Option<Meta>, Failure> {
        if self.job.fresh {
            return Ok(None);
        }
        let Some((dir, name)) = path.split() else {
            return Meta::of(self.node.destination()).at(Op::Stat, DEST).map(Some);
        };
        match self.destination.open(0, &dir).and_then(|dir| Meta::at(dir.as_fd(), name)) {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(err) => Err(err).at(Op::Stat, DEST),
        }
    }

    fn target_there(&mut self, path: &RelPath) -> Result<Vec<u8>, Failure> {
        let (dir, name) = path.split().ok_or(Errno::EISDIR).at(Op::ReadLink, DEST)?;
        self.destination.open(0, &dir).and_then(|dir| read_link(dir.as_fd(), name)).at(Op::ReadLink, DEST)
    }
}
