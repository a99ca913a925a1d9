//! Gives out work: what is next, for which rank, and how much.

use super::links::{MAX_LINKS, Member, ToLink};
use super::queue::Batch;
use super::{Assigned, Assignment, Coordinator, Purpose, path_of};
use crate::proto::{FinishedDir, MAX_BATCH_LEN, MAX_BATCH_NAMES, MAX_BATCH_PATHS_LEN, Task};
use crate::scan::{Lent, ScanEvent};

/// Names that a rank copies at once of a directory that it has listed, at most.
const MAX_KEPT: usize = 128;
/// Names of a directory that is being listed, at a guess.
const NAMES_A_DIR: usize = 512;
/// Directories that one task finishes, at most.
const MAX_DIRS: usize = 128;

impl Coordinator {
    /// Whether a rank has nothing to do, and may list a directory: there is room for what it will find.
    pub fn can_lend(&self) -> bool {
        let expected = self.queue.len() + NAMES_A_DIR * self.lent;
        !self.halted && self.wants_scan() && expected < self.max_queued_names() && self.ranks.freest(0).is_some()
    }

    /// Gives a directory of the scan to a rank that is free, to be listed there; `waiting` is how many more there are.
    pub fn lend(&mut self, lent: Lent, waiting: usize) -> Option<Assignment> {
        let rank = self.ranks.freest(0)?;
        let Lent { id, parent, source, path } = lent.clone();
        // With fewer directories than threads, other ranks are idle too: this one copies less itself.
        let queued = if waiting < self.ranks.threads() { 0 } else { usize::MAX };
        // Each name may be handed back with its whole path.
        let most = MAX_KEPT.min(MAX_BATCH_PATHS_LEN / (path.len() + 256)).max(1);
        let keep = u32::try_from(self.ranks.share_of(rank, queued, most)).expect("few");
        self.lent += 1;
        self.lent_ever += 1;
        let task = Task::List { source, dir: path.to_path(), keep };
        self.scan(ScanEvent::Dir { id, parent, source, path });
        Some(self.assign(rank, vec![task], vec![Purpose::List { lent, keep }]))
    }

    /// The task that copies an entry without regard to its other names.
    fn owner_task(&self, member: &Member) -> Task {
        let path = path_of(&self.dirs, member);
        Task::Owner {
            source: member.source,
            kind: member.kind,
            id: member.group,
            attempt: member.attempt,
            unlinkable: member.unlinkable,
            // A file that was abandoned once begins anew.
            partial: self.partials.get(&path).filter(|_| member.attempt == 0).map(|there| there.partial),
            path,
        }
    }

    /// Work for a rank that is free, as long as there is both.
    pub fn next_work(&mut self) -> Option<Assignment> {
        if self.halted {
            return None;
        }
        let rank = self.ranks.freest(self.backlog())?;
        let (tasks, purposes) = self.next_tasks(rank)?;
        Some(self.assign(rank, tasks, purposes))
    }

    fn assign(&mut self, rank: usize, tasks: Vec<Task>, purposes: Vec<Purpose>) -> Assignment {
        let id = self.next_id;
        self.next_id += 1;
        self.ranks.assign(rank);
        self.assigned.insert(id, Assigned { rank, purposes });
        Assignment { rank, id, tasks }
    }

    /// About how many assignments wait.
    fn backlog(&self) -> usize {
        self.large.ready()
            + self.alone.len()
            + self.links.linkable() / MAX_LINKS
            + self.large.ranges_left()
            + self.queue.len() / self.ranks.full_share(self.max_queued_names())
            + self.finished_dirs.len() / MAX_DIRS
    }

    fn next_tasks(&mut self, rank: usize) -> Option<(Vec<Task>, Vec<Purpose>)> {
        // First tasks that free memory, or that other entries wait for.
        if let Some((file, task)) = self.large.next_step(|member| path_of(&self.dirs, member)) {
            let is_end = matches!(task, Task::FinishFile { .. });
            return Some((vec![task], vec![if is_end { Purpose::Finish { file } } else { Purpose::Abandon { file } }]));
        }
        if let Some(member) = self.alone.pop_front() {
            return Some((vec![self.owner_task(&member)], vec![Purpose::Owner(member)]));
        }
        let (mut tasks, mut purposes) = (Vec::new(), Vec::new());
        self.take_links(rank, &mut tasks, &mut purposes);
        if !tasks.is_empty() {
            return Some((tasks, purposes));
        }
        let ranges = self.ranks.ranges_of(rank, self.large.ranges_left());
        while tasks.len() < ranges
            && let Some((file, index, task)) = self.large.next_range(|member| path_of(&self.dirs, member))
        {
            tasks.push(task);
            purposes.push(Purpose::Range { file, index });
        }
        if !tasks.is_empty() {
            return Some((tasks, purposes));
        }
        self.take_dirs(rank, &mut tasks, &mut purposes);
        self.take_names(rank, &mut tasks, &mut purposes);
        (!tasks.is_empty()).then_some((tasks, purposes))
    }

    fn take_links(&mut self, rank: usize, tasks: &mut Vec<Task>, purposes: &mut Vec<Purpose>) {
        let mut left = self.ranks.share_of(rank, self.links.linkable(), MAX_LINKS);
        let mut paths_len = 0;
        while left > 0
            && paths_len < MAX_BATCH_PATHS_LEN
            && let Some(ToLink { task, members, len }) =
                self.links.next_task(left, |member| path_of(&self.dirs, member))
        {
            left -= members.len();
            paths_len += len;
            tasks.push(task);
            purposes.push(Purpose::Links(members));
        }
    }

    fn take_dirs(&mut self, rank: usize, tasks: &mut Vec<Task>, purposes: &mut Vec<Purpose>) {
        let share = self.ranks.share_of(rank, self.finished_dirs.len(), MAX_DIRS);
        let (mut ids, mut dirs, mut known) = (Vec::new(), Vec::new(), Vec::new());
        let Some(source) = self.finished_dirs.front().map(|id| self.dirs[id].source) else {
            return;
        };
        let mut len = 0;
        while ids.len() < share
            && len < MAX_BATCH_PATHS_LEN
            && self.finished_dirs.front().is_some_and(|id| self.dirs[id].source == source)
        {
            let id = self.finished_dirs.pop_front().expect("there is a front");
            let dir = self.dir_mut(id);
            len += dir.path.len() + dir.recorded.as_ref().map_or(0, |entry| entry.record.len());
            let (recorded, failure) = (dir.recorded.take(), dir.failure.take());
            let (before, private) = (dir.before, dir.private);
            known.extend(recorded.as_ref().map(|entry| entry.number));
            dirs.push(FinishedDir { path: dir.path.to_path(), before, recorded, failure, private });
            ids.push(id);
        }
        tasks.push(Task::FinishDirs { source, dirs });
        purposes.push(Purpose::Dirs(ids, known));
    }

    /// Fewer names the shorter the queue is, so that all ranks end together; several directories in one
    /// assignment when each has few.
    fn take_names(&mut self, rank: usize, tasks: &mut Vec<Task>, purposes: &mut Vec<Purpose>) {
        let share = self.ranks.share_of(rank, self.queue.len(), MAX_BATCH_NAMES);
        let (mut count, mut len, mut paths_len) = (0, 0, 0);
        while count < share
            && len < MAX_BATCH_LEN
            && paths_len < MAX_BATCH_PATHS_LEN
            && let Some(dir) = self.queue.next_dir()
        {
            let state = &self.dirs[&dir];
            let path_len = state.path.len() + 32;
            let most = (share - count).min(((MAX_BATCH_PATHS_LEN - paths_len) / path_len).max(1));
            let Some(batch) = self.queue.take(most) else { break };
            count += batch.len();
            len += batch.byte_len();
            paths_len += batch.len() * path_len;
            let source = state.source;
            purposes.push(Purpose::Entries { dir, source, count: batch.len() as u64, known: batch.numbers() });
            let dir = state.path.to_path();
            tasks.push(match batch {
                Batch::Names(names) => Task::Entries { source, dir, names },
                Batch::Known(entries) => Task::Known { source, dir, entries },
            });
        }
    }
}
