//! Entries with several names: the first one seen is copied, the others are linked to it.

use std::collections::{HashMap, VecDeque};

use super::shelf::{Looked, Shelf, Shelved, Store};
use crate::proto::{MAX_BATCH_PATHS_LEN, Task};
use crate::scan::DirId;
use crate::types::{DirPath, Facts, Identity, Kind, LinkId, RelPath, Timestamp};

/// Names that one assignment links, at most.
pub(super) const MAX_LINKS: usize = 128;

/// One name of an entry, and the directory that waits for it. A million may wait: its path is not kept.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) dir: DirId,
    pub(super) source: u16,
    pub(super) name: Box<[u8]>,
    pub(super) kind: Kind,
    /// The links that wait for this name.
    pub(super) group: Option<LinkId>,
    pub(super) unlinkable: bool,
    /// Times that it was copied before, and had changed.
    pub(super) attempt: u8,
}

impl Member {
    pub(super) fn new(dir: DirId, source: u16, name: &[u8], kind: Kind) -> Self {
        Self { dir, source, name: name.into(), kind, group: None, unlinkable: false, attempt: 0 }
    }

    /// Bytes of memory, about.
    fn byte_len(&self) -> usize {
        size_of::<Self>() + 16 + self.name.len()
    }
}

/// All groups of names of which not every one was seen.
#[derive(Default)]
pub(super) struct Links {
    groups: HashMap<LinkId, Box<Group>>,
    /// Groups that have an owner and names to link to it.
    ready: VecDeque<LinkId>,
    /// Names of those groups.
    linkable: usize,
    /// Bytes of all names that wait, about.
    waiting_len: usize,
    /// Bytes of groups whose owner is there, and whose other names the scan has not come to, about.
    idle_len: usize,
    shelf: Option<Shelf>,
}

/// Bytes of such groups that stay in memory, at most, if they can be kept elsewhere.
const MAX_IDLE_LEN: usize = 16 << 20;
/// Bytes of the path of a directory whose names are kept elsewhere, at most: there each of them has a path of its own.
const MAX_SHELVED_PATH_LEN: usize = 256;

struct Group {
    /// Size and modification time of the file: another file may get the same inode number during the job.
    version: (u64, Timestamp),
    /// The name that the others are linked to, once it is there.
    owner: Option<Owner>,
    waiting: VecDeque<Member>,
    /// Names that the scan has not come to; they may lie outside of the sources.
    unseen: u64,
}

/// A name that was copied. Its directory may have ended. It is packed, because a million may wait for their other names.
struct Owner {
    dir: DirPath,
    /// The facts in postcard's encoding, then the name.
    packed: Box<[u8]>,
}

impl Owner {
    fn new(dir: DirPath, name: &[u8], facts: &Facts) -> Self {
        let mut packed = postcard::to_allocvec(facts).expect("facts always encode into memory");
        packed.extend_from_slice(name);
        Self { dir, packed: packed.into() }
    }

    /// Bytes of memory, about.
    fn byte_len(&self) -> usize {
        size_of::<Group>() + 96 + self.packed.len()
    }

    fn unpacked(&self) -> (RelPath, Facts) {
        let (facts, name) = postcard::take_from_bytes(&self.packed).expect("they were encoded above");
        (self.dir.path_of(name), facts)
    }
}

/// What to do with a name.
pub(super) enum Next {
    Copy(Member),
    Wait,
}

/// Names of one file, and the task that links them.
pub(super) struct ToLink {
    pub(super) task: Task,
    pub(super) members: Vec<Member>,
    /// Bytes of the paths of which there will be records.
    pub(super) len: usize,
}

impl Links {
    /// Bytes of memory of the names that wait, about.
    pub(super) fn waiting_len(&self) -> usize {
        self.waiting_len
    }

    /// Names that can be linked now.
    pub(super) fn linkable(&self) -> usize {
        self.linkable
    }

    /// Groups that wait for names which may never come are kept in this store when there are many.
    pub(super) fn keep_in(&mut self, store: Box<dyn Store>) {
        self.shelf = Some(Shelf::new(store));
    }

    /// Whether a group is there; from the shelf it comes back into memory.
    fn find(&mut self, id: LinkId) -> Looked {
        let looked = match &mut self.shelf {
            Some(shelf) if !self.groups.contains_key(&id) => shelf.take(id),
            _ => Looked::NotThere,
        };
        if let Looked::Found(file) = &looked {
            let owner = Owner { dir: file.dir.clone().into(), packed: file.packed.clone().into() };
            if postcard::take_from_bytes::<Facts>(&owner.packed).is_err() {
                return Looked::Lost;
            }
            self.idle_len += owner.byte_len();
            let group =
                Group { version: file.version, owner: Some(owner), waiting: VecDeque::new(), unseen: file.unseen };
            self.groups.insert(id, Box::new(group));
        }
        looked
    }

    /// Notes a group that nothing waits for in memory, and puts all such groups away when they are too many.
    fn idles(&mut self, owner_len: usize) {
        self.idle_len += owner_len;
        if self.idle_len < MAX_IDLE_LEN {
            return;
        }
        let Some(shelf) = self.shelf.as_mut().filter(|shelf| !shelf.is_full) else { return };
        self.idle_len = 0;
        self.groups.retain(|id, group| {
            let is_idle = |owner: &&Owner| group.waiting.is_empty() && owner.dir.len() <= MAX_SHELVED_PATH_LEN;
            let Some(owner) = group.owner.as_ref().filter(is_idle) else { return true };
            let (dir, packed) = (owner.dir.to_path(), owner.packed.to_vec());
            let file = Shelved { id: *id, version: group.version, unseen: group.unseen, dir, packed };
            !shelf.put(&file)
        });
        self.groups.shrink_to_fit();
    }

    /// A name in `dir` of an entry that has `names` of them; one that is `there` already is not copied.
    pub(super) fn add(
        &mut self,
        (id, identity): (LinkId, Identity),
        names: u64,
        member: Member,
        dir: &DirPath,
        there: Option<&Facts>,
    ) -> Next {
        let version = (identity.size, identity.mtime);
        if self.find(id) == Looked::Lost {
            return Next::Copy(Member { unlinkable: true, ..member });
        }
        let Some(group) = self.groups.get_mut(&id) else {
            let owner = there.map(|facts| Owner::new(dir.clone(), &member.name, facts));
            let is_there = owner.is_some();
            let unseen = names.saturating_sub(1);
            self.groups.insert(id, Box::new(Group { version, owner, waiting: VecDeque::new(), unseen }));
            if !is_there {
                return Next::Copy(Member { group: Some(id), ..member });
            }
            // The owner is among the names to be linked: linking it to itself only ends it.
            self.wait(id, member);
            return Next::Wait;
        };
        // ctime changes with every link that is made or removed; size and mtime tell whether the inode's
        // number was given to another file since
        if group.version != version {
            return Next::Copy(Member { unlinkable: true, ..member });
        }
        group.unseen = group.unseen.saturating_sub(1);
        self.wait(id, member);
        Next::Wait
    }

    fn wait(&mut self, id: LinkId, member: Member) {
        let group = self.groups.get_mut(&id).expect("its group is there");
        self.waiting_len += member.byte_len();
        if let Some(owner) = &group.owner {
            self.linkable += 1;
            if group.waiting.is_empty() {
                self.idle_len = self.idle_len.saturating_sub(owner.byte_len());
                self.ready.push_back(id);
            }
        }
        group.waiting.push_back(member);
    }

    /// The name in `dir` that was copied has ended. If it failed, the next one is copied instead.
    pub(super) fn owner_ended(
        &mut self,
        id: LinkId,
        member: &Member,
        dir: &DirPath,
        facts: Option<&Facts>,
    ) -> Option<Member> {
        let group = self.groups.get_mut(&id)?;
        if let Some(facts) = facts {
            group.owner = Some(Owner::new(dir.clone(), &member.name, facts));
            if group.waiting.is_empty() {
                let len = group.owner.as_ref().map_or(0, Owner::byte_len);
                self.forget_or_idle(id, len);
            } else {
                self.linkable += group.waiting.len();
                self.ready.push_back(id);
            }
            return None;
        }
        match group.waiting.pop_front() {
            Some(member) => {
                self.waiting_len -= member.byte_len();
                Some(Member { group: Some(id), ..member })
            }
            None => {
                self.groups.remove(&id);
                None
            }
        }
    }

    /// Nothing waits for the owner of a group, which takes `len` bytes.
    fn forget_or_idle(&mut self, id: LinkId, len: usize) {
        if self.groups.get(&id).is_some_and(|group| group.unseen == 0) {
            self.groups.remove(&id);
        } else {
            self.idles(len);
        }
    }

    /// The next task, which links at most `most` names of one file. `path_of` makes the path of a name.
    pub(super) fn next_task(&mut self, most: usize, path_of: impl Fn(&Member) -> RelPath) -> Option<ToLink> {
        let &id = self.ready.front()?;
        let group = self.groups.get_mut(&id).expect("a group that is ready is there");
        let (owner, facts) = group.owner.as_ref().expect("a group that is ready has an owner").unpacked();
        let source = group.waiting.front().expect("a group that is ready has names to link").source;
        let (mut members, mut paths, mut len) = (Vec::new(), Vec::new(), 0);
        while members.len() < most
            && len < MAX_BATCH_PATHS_LEN
            && group.waiting.front().is_some_and(|member| member.source == source)
        {
            let member = group.waiting.pop_front().expect("there is a front");
            let path = path_of(&member);
            self.waiting_len -= member.byte_len();
            // The record of a link holds both paths.
            len += owner.as_bytes().len() + path.as_bytes().len();
            paths.push(path);
            members.push(member);
        }
        self.linkable -= members.len();
        if group.waiting.is_empty() {
            self.ready.pop_front();
            let len = group.owner.as_ref().map_or(0, Owner::byte_len);
            self.forget_or_idle(id, len);
        }
        let kind = members.first().expect("there is one at least").kind;
        let task = Task::Links { source, owner, kind, facts: Box::new(facts), paths };
        Some(ToLink { task, members, len })
    }
}
