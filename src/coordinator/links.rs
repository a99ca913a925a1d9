//! Entries with several names: the first one seen is copied, the others are linked to it.

use std::collections::{HashMap, VecDeque};

use crate::proto::{MAX_BATCH_PATHS_LEN, Task};
use crate::scan::DirId;
use crate::types::{Facts, Identity, Kind, LinkId, RelPath};

/// Names that one task links, at most.
const MAX_LINKS: usize = 128;

/// One name of an entry, and the directory that waits for it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) dir: DirId,
    pub(super) source: u16,
    pub(super) path: RelPath,
    pub(super) kind: Kind,
    /// The links that wait for this name.
    pub(super) group: Option<LinkId>,
    pub(super) unlinkable: bool,
    /// Times that it was copied before, and had changed.
    pub(super) attempt: u8,
}

impl Member {
    pub(super) fn new(dir: DirId, source: u16, path: RelPath, kind: Kind) -> Self {
        Self { dir, source, path, kind, group: None, unlinkable: false, attempt: 0 }
    }
}

/// All groups of names of which not every one was seen.
#[derive(Default)]
pub(super) struct Links {
    groups: HashMap<LinkId, Group>,
    /// Groups that may have names to link.
    ready: VecDeque<LinkId>,
}

struct Group {
    identity: Identity,
    /// The name that the others are linked to, once it is there.
    owner: Option<(RelPath, Facts)>,
    waiting: VecDeque<Member>,
    /// Names that the scan has not come to; they may lie outside of the sources.
    unseen: u64,
}

/// What to do with a name.
pub(super) enum Next {
    Copy(Member),
    Wait,
}

impl Links {
    /// A name of an entry that has `names` of them; one that is `there` already is not copied.
    pub(super) fn add(
        &mut self,
        id: LinkId,
        identity: Identity,
        names: u64,
        member: Member,
        there: Option<&Facts>,
    ) -> Next {
        let Some(group) = self.groups.get_mut(&id) else {
            let mut group = Group { identity, owner: None, waiting: VecDeque::new(), unseen: names.saturating_sub(1) };
            let next = match there {
                None => Next::Copy(Member { group: Some(id), ..member }),
                Some(facts) => {
                    // it is linked to itself, which does nothing but end it
                    group.owner = Some((member.path.clone(), facts.clone()));
                    group.waiting.push_back(member);
                    self.ready.push_back(id);
                    Next::Wait
                }
            };
            self.groups.insert(id, group);
            return next;
        };
        // ctime changes with every link that is made or removed; size and mtime tell whether the inode's
        // number was given to another file since
        if (group.identity.size, group.identity.mtime) != (identity.size, identity.mtime) {
            return Next::Copy(Member { unlinkable: true, ..member });
        }
        group.unseen = group.unseen.saturating_sub(1);
        group.waiting.push_back(member);
        if group.owner.is_some() {
            self.ready.push_back(id);
        }
        Next::Wait
    }

    /// The name that was copied has ended. If it failed, the next one is copied instead.
    pub(super) fn owner_ended(&mut self, id: LinkId, path: &RelPath, facts: Option<&Facts>) -> Option<Member> {
        let group = self.groups.get_mut(&id)?;
        if let Some(facts) = facts {
            group.owner = Some((path.clone(), facts.clone()));
            self.ready.push_back(id);
            return None;
        }
        match group.waiting.pop_front() {
            Some(member) => Some(Member { group: Some(id), ..member }),
            None => {
                self.groups.remove(&id);
                None
            }
        }
    }

    /// The next task that links names; and which.
    pub(super) fn next_task(&mut self) -> Option<(Task, Vec<Member>)> {
        loop {
            let &id = self.ready.front()?;
            let Some(group) = self.groups.get_mut(&id) else {
                self.ready.pop_front();
                continue;
            };
            let (owner, facts) = group.owner.as_ref().expect("a group that is ready has an owner");
            let Some(source) = group.waiting.front().map(|member| member.source) else {
                self.ready.pop_front();
                if group.unseen == 0 {
                    self.groups.remove(&id);
                }
                continue;
            };
            let mut members = Vec::new();
            let mut len = 0;
            while members.len() < MAX_LINKS
                && len < MAX_BATCH_PATHS_LEN
                && group.waiting.front().is_some_and(|member| member.source == source)
            {
                let member = group.waiting.pop_front().expect("there is a front");
                len += member.path.as_bytes().len();
                members.push(member);
            }
            let task = Task::Links {
                source,
                owner: owner.clone(),
                kind: members[0].kind,
                facts: Box::new(facts.clone()),
                paths: members.iter().map(|member| member.path.clone()).collect(),
            };
            return Some((task, members));
        }
    }
}
