//! A small job around the real coordinator: a scan, and ranks that are honest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pcopy::coordinator::{Coordinator, Elsewhere};
use pcopy::proto::{
    FinishedDir, Known, KnownEntry, LargeFile, Listing, Message, Names, Owned, Report, Returned, Task, TaskResult,
};
use pcopy::scan::{Lent, ScanEvent};
use pcopy::types::{Failure, Kind, LinkId, Op, RelPath, Side, Stats, Temporary};

use super::{below, one_in};
use crate::driver::memory;
use crate::driver::storage::Random;
use crate::driver::tree::{facts, identity};

const RANGE_LEN: u64 = 4096;

/// What is in a directory.
#[derive(Clone)]
struct Dir {
    parent: Option<u64>,
    path: RelPath,
    names: Names,
    known: Vec<Known>,
    subdirs: Vec<u64>,
}

pub struct Job {
    pub coordinator: Coordinator,
    dirs: Vec<Dir>,
    /// Directories that the scan has not come to.
    scan: VecDeque<u64>,
    lent: BTreeMap<RelPath, u64>,
    /// Frames of work, and who has them.
    running: Vec<(usize, Vec<u8>)>,
    /// What the ranks have really ended, and what they have counted.
    pub ended: BTreeSet<RelPath>,
    pub counted: u64,
    pub entries: BTreeSet<RelPath>,
    began: u64,
}

fn failure() -> Failure {
    Failure { op: Op::Read, side: Side::Source, errno: libc::EIO }
}

impl Job {
    pub fn new(random: &mut Random) -> Self {
        let mut dirs: Vec<Dir> = Vec::new();
        let mut entries = BTreeSet::new();
        for number in 0..1 + below(random, 6) as u64 {
            let parent = (number > 0).then(|| below(random, dirs.len()) as u64);
            let above = parent.map(|parent| &mut dirs[usize::try_from(parent).expect("few")]);
            let path = match above {
                None => RelPath::root(),
                Some(above) => {
                    above.subdirs.push(number);
                    above.path.join(format!("d{number}").as_bytes())
                }
            };
            let mut names = Names::default();
            (0..below(random, 12)).for_each(|n| names.push(format!("n{n}").as_bytes(), Kind::File));
            let known = |n: usize| {
                let entry = Some(KnownEntry { number: number * 100 + n as u64, record: vec![7; 40] });
                Known { name: format!("k{n}").into_bytes(), kind: Kind::File, entry, partial: None }
            };
            let known: Vec<_> = (0..below(random, 6)).map(known).collect();
            entries.extend(names.iter().map(|(name, _)| path.join(name)));
            entries.extend(known.iter().map(|known| path.join(&known.name)));
            entries.insert(path.clone());
            dirs.push(Dir { parent, path, names, known, subdirs: Vec::new() });
        }
        let threads: Vec<u32> = (0..1 + below(random, 3)).map(|_| 1 + u32::from(one_in(random, 3))).collect();
        Self {
            coordinator: memory::inside(|| Coordinator::new(&threads, true, Arc::default())),
            dirs,
            scan: VecDeque::from([0]),
            lent: BTreeMap::new(),
            running: Vec::new(),
            ended: BTreeSet::new(),
            counted: 0,
            entries,
            began: 0,
        }
    }

    /// Whether the scan has more to list.
    pub fn scans(&self) -> bool {
        !self.scan.is_empty()
    }

    fn dir(&self, id: u64) -> &Dir {
        &self.dirs[usize::try_from(id).expect("few")]
    }

    /// Lets the scan go on, or lends what it would list, and takes all work that there is.
    pub fn advance(&mut self, random: &mut Random) {
        if let Some(id) = self.scan.pop_front() {
            let Dir { parent, path, known, .. } = self.dir(id).clone();
            let lent = Lent { id, parent, source: 0, path: path.clone().into() };
            let lends = parent.is_some() && known.is_empty() && one_in(random, 2) && self.coordinator.can_lend();
            match lends.then(|| memory::inside(|| self.coordinator.lend(lent, 0))).flatten() {
                Some(work) => {
                    self.lent.insert(path, id);
                    self.give(work.rank, work.id, work.tasks);
                }
                None => self.list(id, true),
            }
        }
        for listed in memory::inside(|| self.coordinator.take_listed()) {
            match listed {
                // what another rank says of a directory is what the scan goes on with
                Elsewhere::Listed { below, .. } => below.iter().for_each(|(_, _, path)| {
                    let known = self.dirs.iter().position(|dir| dir.path == path.to_path());
                    self.scan.extend(known.map(|at| at as u64));
                }),
                Elsewhere::TooLong(lent) => self.list(lent.id, false),
            }
        }
        if self.scan.is_empty() && self.lent.is_empty() {
            self.coordinator.scan_ended();
        }
        while let Some(work) = memory::inside(|| self.coordinator.next_work()) {
            self.give(work.rank, work.id, work.tasks);
        }
    }

    /// The scan's own thread lists a directory, which is new to the coordinator or not.
    fn list(&mut self, id: u64, is_new: bool) {
        let Dir { parent, path, names, known, subdirs } = self.dir(id).clone();
        self.scan.extend(&subdirs);
        memory::inside(|| {
            if is_new {
                self.coordinator.scan(ScanEvent::Dir { id, parent, source: 0, path: path.into() });
            }
            if !names.is_empty() {
                self.coordinator.scan(ScanEvent::Names { dir: id, names: names.clone() });
            }
            if !known.is_empty() {
                self.coordinator.scan(ScanEvent::Known { dir: id, entries: known.clone() });
            }
            let recorded = (id % 2 == 1).then(|| KnownEntry { number: 10_000 + id, record: vec![7; 40] });
            let (subdirs, excluded, before, failure, retries) = (subdirs.len() as u64, 0, None, None, 0);
            let listed = ScanEvent::Listed { dir: id, subdirs, excluded, before, recorded, failure, retries };
            self.coordinator.scan(listed);
        });
    }

    fn give(&mut self, rank: usize, id: u64, tasks: Vec<Task>) {
        let frame = Message::Work { id, tasks }.encode().expect("work fits a frame");
        self.running.push((rank, frame));
    }

    /// Ends some rank's work: the rank, and what it honestly says. `None` where no rank has any.
    pub fn report(&mut self, random: &mut Random) -> Option<(usize, Message)> {
        if self.running.is_empty() {
            return None;
        }
        let (rank, frame) = self.running.swap_remove(below(random, self.running.len()));
        let Ok(Message::Work { id, tasks }) = Message::decode(&frame) else { panic!("what is sent decodes") };
        let mut ended = Stats::default();
        let results: Vec<_> = tasks.into_iter().map(|task| self.execute(task, &mut ended, random)).collect();
        let tasks = results.len();
        self.counted += ended.entries();
        let bytes_moved = random.next() >> 40;
        let private = (0..u32::try_from(tasks).expect("few")).filter(|_| one_in(random, 4)).collect();
        let report = Report { id, results, bytes_moved, ended, private, ..Report::default() };
        Some((rank, Message::Report(Box::new(report))))
    }

    /// Entries that were begun twice are ended twice: the count tells.
    fn end(&mut self, path: &RelPath, ended: &mut Stats, random: &mut Random) {
        self.ended.insert(path.clone());
        let is_there = self.entries.contains(path) && !one_in(random, 10);
        *(if is_there { &mut ended.files } else { &mut ended.errors }) += 1;
    }

    fn execute(&mut self, task: Task, ended: &mut Stats, random: &mut Random) -> TaskResult {
        match task {
            Task::List { dir, keep, .. } => self.list_elsewhere(&dir, keep, ended, random),
            Task::Entries { dir, names, .. } => TaskResult::Returned(self.try_names(&dir, &names, ended, random)),
            Task::Known { dir, entries, .. } => {
                let (mut confirmed, mut returned) = (Vec::new(), Vec::new());
                for Known { name, entry, .. } in entries {
                    let path = dir.join(&name);
                    match (one_in(random, 2), entry) {
                        (true, Some(entry)) => {
                            confirmed.push(entry.number);
                            self.end(&path, ended, random);
                        }
                        _ => returned.extend(self.try_entry(&path, false, ended, random)),
                    }
                }
                TaskResult::Known { confirmed, returned }
            }
            Task::Owner { path, .. } => TaskResult::Owned(Box::new(match self.try_entry(&path, true, ended, random) {
                Some(Returned::Large(file)) => Owned::Large(file),
                _ if one_in(random, 5) => Owned::Failed,
                _ => Owned::Copied(facts(10)),
            })),
            Task::Range { .. } => match below(random, 30) {
                0 => TaskResult::RangeFailed(failure()),
                1 => TaskResult::Changed,
                2 => TaskResult::Lost(failure()),
                _ => TaskResult::Range(Some([5; 32])),
            },
            Task::FinishFile { file, .. } if !one_in(random, 10) => {
                self.end(&file.path, ended, random);
                TaskResult::Owned(Box::new(Owned::Copied(facts(file.identity.size))))
            }
            Task::FinishFile { .. } => TaskResult::Changed,
            Task::Abandon { file, failure } => {
                if failure.is_some() {
                    self.end(&file.path, ended, random);
                }
                TaskResult::Ended
            }
            Task::Links { paths, .. } => {
                let mut back = Vec::new();
                for path in paths {
                    if one_in(random, 4) {
                        back.push(Returned::Unlinkable { path, kind: Kind::File });
                    } else {
                        self.end(&path, ended, random);
                    }
                }
                TaskResult::Returned(back)
            }
            Task::FinishDirs { dirs, .. } => {
                let mut confirmed = Vec::new();
                for FinishedDir { path, recorded, .. } in dirs {
                    confirmed.extend(recorded.filter(|_| one_in(random, 2)).map(|entry| entry.number));
                    self.end(&path, ended, random);
                }
                TaskResult::Dirs { confirmed }
            }
        }
    }

    fn list_elsewhere(&mut self, path: &RelPath, keep: u32, ended: &mut Stats, random: &mut Random) -> TaskResult {
        // a directory that is not there is empty
        let Some(id) = self.lent.remove(path) else { return TaskResult::Listed(Box::default()) };
        if one_in(random, 8) {
            return TaskResult::TooLong;
        }
        let Dir { mut names, subdirs, .. } = self.dir(id).clone();
        let kept = names.take(usize::try_from(keep).expect("few"));
        let returned = self.try_names(path, &kept, ended, random);
        let mut found = Names::default();
        subdirs.iter().for_each(|id| found.push(format!("d{id}").as_bytes(), Kind::Dir));
        let kept = kept.len() as u64;
        TaskResult::Listed(Box::new(Listing { subdirs: found, kept, returned, rest: names, ..Listing::default() }))
    }

    fn try_names(&mut self, dir: &RelPath, names: &Names, ended: &mut Stats, random: &mut Random) -> Vec<Returned> {
        names.iter().filter_map(|(name, _)| self.try_entry(&dir.join(name), false, ended, random)).collect()
    }

    /// Ends an entry, or hands it back; one that is copied `alone` only if it is large.
    fn try_entry(&mut self, path: &RelPath, alone: bool, ended: &mut Stats, random: &mut Random) -> Option<Returned> {
        self.began += 1;
        match below(random, 6) {
            0 if path.as_bytes().len().is_multiple_of(3) => {
                return Some(Returned::Large(LargeFile {
                    source: 0,
                    path: path.clone(),
                    identity: identity(RANGE_LEN * 3 + self.began),
                    atime: identity(1).mtime,
                    sparse: false,
                    range_len: RANGE_LEN,
                    temporary: Temporary { generation: 1, attempt: 0 },
                    found: false,
                }));
            }
            1 if !alone => {
                let id = LinkId { dev: 1, ino: random.next() % 3 };
                let (kind, identity, there) = (Kind::File, identity(10), None);
                return Some(Returned::Linked { path: path.clone(), kind, id, identity, names: 3, there });
            }
            _ => self.end(path, ended, random),
        }
        None
    }
}
