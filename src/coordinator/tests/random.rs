//! The coordinator against simulated ranks: random trees, random outcomes, random message orders.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::types::{Op, Outcome, Record, Side};

/// What becomes of an entry when a simulated rank tries it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Small,
    Fails,
    /// Bytes, and how often it changes before it holds still.
    Large(u64, u8),
    LargeFails(u64),
    /// One of this many names of an inode.
    Linked(u64, u64),
}

/// A random tree: for every directory its parent (an earlier one) and its entries' fates.
#[derive(Clone, Debug)]
struct Tree {
    dirs: Vec<(usize, Vec<Fate>)>,
    no_links: bool,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Small),
        1 => Just(Fate::Fails),
        1 => (RANGE_LEN + 1..20 * RANGE_LEN, 0u8..5).prop_map(|(size, changes)| Fate::Large(size, changes)),
        1 => (RANGE_LEN + 1..20 * RANGE_LEN).prop_map(Fate::LargeFails),
        2 => (1u64..6, 2u64..5).prop_map(|(ino, names)| Fate::Linked(ino, names)),
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    let dir = (any::<prop::sample::Index>(), prop::collection::vec(fate(), 0..40));
    (prop::collection::vec(dir, 1..30), any::<bool>()).prop_map(|(dirs, no_links)| {
        let dirs = dirs.into_iter().enumerate();
        Tree { dirs: dirs.map(|(i, (parent, fates))| (parent.index(i.max(1)), fates)).collect(), no_links }
    })
}

/// Simulated ranks, scan and file system around the real coordinator.
struct Simulation {
    coordinator: Coordinator,
    fates: BTreeMap<RelPath, Fate>,
    /// Scan events, one queue a thread: each is in order, their interleaving is random.
    scan: Vec<VecDeque<ScanEvent>>,
    running: Vec<Assignment>,
    ended: BTreeMap<RelPath, Record>,
    /// Times that a large file has changed so far.
    changed: BTreeMap<RelPath, u8>,
    no_links: bool,
    /// What is in directories that ranks list.
    lent: BTreeMap<RelPath, Vec<ScanEvent>>,
}

fn failure(op: Op) -> Failure {
    Failure { op, side: Side::Source, errno: 5 }
}

impl Simulation {
    fn new(tree: &Tree, threads: &[u32]) -> Self {
        let mut fates = BTreeMap::new();
        let mut paths = Vec::new();
        let mut scan = vec![VecDeque::new(); 3];
        let mut children = vec![0; tree.dirs.len()];
        for (parent, _) in tree.dirs.iter().skip(1) {
            children[*parent] += 1;
        }
        for (i, (parent, entries)) in tree.dirs.iter().enumerate() {
            let parent = (i > 0).then_some(*parent);
            let path = parent.map_or_else(RelPath::root, |parent: usize| {
                let parent: &RelPath = &paths[parent];
                parent.join(format!("d{i}").as_bytes())
            });
            paths.push(path.clone());
            let queue = &mut scan[i % 3];
            let id = i as u64;
            queue.push_back(ScanEvent::Dir {
                id,
                parent: parent.map(|p| p as u64),
                source: 0,
                path: path.clone().into(),
            });
            for (batch, fates_of_batch) in entries.chunks(7).enumerate() {
                let mut names = Names::default();
                for (n, fate) in fates_of_batch.iter().enumerate() {
                    let name = format!("f{batch}-{n}");
                    names.push(name.as_bytes(), Kind::File);
                    fates.insert(path.join(name.as_bytes()), *fate);
                }
                queue.push_back(ScanEvent::Names { dir: id, names });
            }
            let failed = entries.len() % 13 == 12;
            queue.push_back(ScanEvent::Listed {
                dir: id,
                subdirs: children[i],
                excluded: 0,
                before: None,
                recorded: None,
                failure: failed.then(|| failure(Op::List)),
                retries: 0,
            });
        }
        Self {
            coordinator: Coordinator::new(threads, false, Arc::default()),
            fates,
            scan,
            running: Vec::new(),
            ended: BTreeMap::new(),
            changed: BTreeMap::new(),
            no_links: tree.no_links,
            lent: BTreeMap::new(),
        }
    }

    /// Where the scan may lend a directory: the numbers of the queues that begin with one.
    fn lendable(&self) -> Vec<usize> {
        let begins = |i: &usize| matches!(self.scan[*i].front(), Some(ScanEvent::Dir { parent: Some(_), .. }));
        if self.coordinator.can_lend() { self.scannable().into_iter().filter(begins).collect() } else { vec![] }
    }

    fn lend(&mut self, from: usize) {
        let queue = &mut self.scan[from];
        let Some(ScanEvent::Dir { id, parent, source, path }) = queue.pop_front() else { panic!("a directory") };
        let end = queue.iter().position(|event| matches!(event, ScanEvent::Listed { .. })).expect("its end");
        self.lent.insert(path.to_path(), queue.drain(..=end).collect());
        let work = self.coordinator.lend(Lent { id, parent, source, path }, 0).expect("a rank is idle");
        self.running.push(work);
    }

    /// What a rank says of a directory that it was to list.
    fn list(&mut self, dir: &RelPath, keep: usize, stats: &mut Stats) -> TaskResult {
        let mut events = self.lent.remove(dir).expect("it was lent");
        let names = events.iter().filter_map(|event| match event {
            ScanEvent::Names { names, .. } => Some(names.clone()),
            _ => None,
        });
        let names: Vec<_> = names.collect();
        if names.len() > 2 {
            self.lent.insert(dir.clone(), events);
            return TaskResult::TooLong;
        }
        let Some(ScanEvent::Listed { subdirs, failure, .. }) = events.pop() else { panic!("its end") };
        let mut listing = Listing { failure, ..Listing::default() };
        (0..subdirs).for_each(|n| listing.subdirs.push(format!("d{n}").as_bytes(), Kind::Dir));
        names.iter().flat_map(Names::iter).for_each(|(name, kind)| listing.rest.push(name, kind));
        let kept = listing.rest.take(keep);
        listing.kept = kept.len() as u64;
        let paths: Vec<_> = kept.iter().map(|(name, _)| dir.join(name)).collect();
        listing.returned = paths.into_iter().filter_map(|path| self.try_entry(path, false, stats)).collect();
        TaskResult::Listed(Box::new(listing))
    }

    /// The scan takes back what was lent.
    fn take_back(&mut self) {
        for listed in self.coordinator.take_listed() {
            if let Elsewhere::TooLong(lent) = listed {
                self.scan.push(self.lent.remove(&lent.path.to_path()).expect("it was lent").into());
            }
        }
        if self.scan.iter().all(VecDeque::is_empty) && self.lent.is_empty() {
            self.coordinator.scan_ended();
        }
    }

    /// A directory is listed only after its parent was: only then may its events come.
    fn scannable(&self) -> Vec<usize> {
        let known = |event: &ScanEvent| match event {
            ScanEvent::Dir { parent: Some(parent), .. } => self.coordinator.dirs.contains_key(parent),
            _ => true,
        };
        (0..self.scan.len()).filter(|&i| self.scan[i].front().is_some_and(known)).collect()
    }

    fn step(&mut self, choice: &prop::sample::Index) {
        while let Some(work) = self.coordinator.next_work() {
            assert!(!work.tasks.is_empty());
            self.running.push(work);
        }
        let (scannable, lendable) = (self.scannable(), self.lendable());
        let options = scannable.len() + self.running.len() + lendable.len();
        assert!(options > 0, "stuck: nothing runs and nothing is scanned, and the job is not finished");
        let at = choice.index(options);
        if at < scannable.len() {
            let event = self.scan[scannable[at]].pop_front().expect("it has a front");
            self.coordinator.scan(event);
        } else if at >= scannable.len() + self.running.len() {
            self.lend(lendable[at - scannable.len() - self.running.len()]);
        } else {
            let work = self.running.swap_remove(at - scannable.len());
            let mut report = Report { id: work.id, results: vec![], ..Report::default() };
            for task in work.tasks {
                let result = self.execute(task, &mut report.ended);
                report.results.push(result);
            }
            let wrong = (work.rank + 1) % self.coordinator.ranks.len();
            if wrong != work.rank {
                let error = CoordinatorError::UnknownAssignment { rank: wrong, id: work.id };
                assert_eq!(self.coordinator.report(wrong, &report), Err(error));
            }
            assert_eq!(self.coordinator.report(work.rank, &report), Ok(()));
            let error = CoordinatorError::UnknownAssignment { rank: work.rank, id: work.id };
            assert_eq!(self.coordinator.report(work.rank, &report), Err(error), "a duplicate is refused");
        }
        self.take_back();
    }

    fn end(&mut self, path: RelPath, kind: Kind, outcome: Outcome, stats: &mut Stats) {
        let record = Record { path: path.clone(), kind, outcome };
        stats.count(&record);
        assert!(self.ended.insert(path, record).is_none(), "an entry ended twice");
    }

    fn execute(&mut self, task: Task, stats: &mut Stats) -> TaskResult {
        match task {
            Task::Known { .. } => unreachable!("the simulated scan knows of no earlier run"),
            Task::List { dir, keep, .. } => self.list(&dir, keep as usize, stats),
            Task::Entries { dir, names, .. } => {
                let paths: Vec<_> = names.iter().map(|(name, _)| dir.join(name)).collect();
                TaskResult::Returned(paths.into_iter().filter_map(|path| self.try_entry(path, false, stats)).collect())
            }
            Task::Owner { path, .. } => {
                let owned = match self.try_entry(path.clone(), true, stats) {
                    Some(Returned::Large(file)) => Owned::Large(file),
                    Some(_) => panic!("an owner is never handed back for its links"),
                    None => match &self.ended[&path].outcome {
                        Outcome::Done(facts) => Owned::Copied(facts.clone()),
                        Outcome::Failed(_) => Owned::Failed,
                    },
                };
                TaskResult::Owned(Box::new(owned))
            }
            Task::Range { file, index } => match self.fates[&file.path] {
                Fate::LargeFails(_) if index == 1 => TaskResult::RangeFailed(failure(Op::Read)),
                Fate::Large(_, changes) if index == 0 && changes > *self.changed.get(&file.path).unwrap_or(&0) => {
                    TaskResult::Changed
                }
                _ => TaskResult::Range(None),
            },
            Task::FinishFile { file, .. } => {
                let facts = facts(file.identity.size);
                self.end(file.path, Kind::File, Outcome::Done(facts.clone()), stats);
                TaskResult::Owned(Box::new(Owned::Copied(facts)))
            }
            Task::Abandon { file, failure } => {
                *self.changed.entry(file.path.clone()).or_default() += 1;
                if let Some(failure) = failure {
                    self.end(file.path, Kind::File, Outcome::Failed(failure), stats);
                }
                TaskResult::Ended
            }
            Task::Links { owner, facts, paths, .. } => {
                assert!(matches!(self.ended[&owner].outcome, Outcome::Done(_)), "links follow their owner");
                if self.no_links {
                    let back = |path| Returned::Unlinkable { path, kind: Kind::File };
                    return TaskResult::Returned(paths.into_iter().map(back).collect());
                }
                for path in paths {
                    let facts = Facts { hardlink: Some(owner.clone()), ..(*facts).clone() };
                    self.end(path, Kind::File, Outcome::Done(facts), stats);
                }
                TaskResult::Returned(vec![])
            }
            Task::FinishDirs { dirs, .. } => {
                for dir in dirs {
                    self.finish_dir(dir, stats);
                }
                TaskResult::Dirs { confirmed: vec![] }
            }
        }
    }

    fn try_entry(&mut self, path: RelPath, alone: bool, stats: &mut Stats) -> Option<Returned> {
        let large = |path, size| {
            Returned::Large(LargeFile {
                source: 0,
                path,
                identity: identity(size),
                atime: Timestamp::default(),
                temporary: Temporary { generation: 1, attempt: 0 },
                found: false,
                sparse: false,
                range_len: RANGE_LEN,
            })
        };
        match self.fates[&path] {
            Fate::Large(size, _) | Fate::LargeFails(size) => return Some(large(path, size)),
            Fate::Linked(ino, names) if !alone => {
                let id = LinkId { dev: 1, ino };
                return Some(Returned::Linked {
                    path,
                    kind: Kind::File,
                    id,
                    identity: identity(ino),
                    names,
                    there: None,
                });
            }
            Fate::Linked(ino, _) => self.end(path, Kind::File, Outcome::Done(facts(ino)), stats),
            Fate::Small => self.end(path, Kind::File, Outcome::Done(facts(1)), stats),
            Fate::Fails => self.end(path, Kind::File, Outcome::Failed(failure(Op::Open)), stats),
        }
        None
    }

    fn finish_dir(&mut self, dir: FinishedDir, stats: &mut Stats) {
        let below = |path: &RelPath| path != &dir.path && path.strip(&dir.path).is_some();
        let open: BTreeSet<_> =
            self.fates.keys().filter(|path| below(path) && !self.ended.contains_key(path)).collect();
        assert!(open.is_empty(), "{:?} ended before {open:?}", dir.path);
        let outcome = dir.failure.map_or(Outcome::Done(facts(0)), Outcome::Failed);
        self.end(dir.path, Kind::Dir, outcome, stats);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_entry_ends_once_in_any_order_of_messages(
        tree in tree(),
        threads in prop::collection::vec(1u32..4, 1..6),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let mut simulation = Simulation::new(&tree, &threads);
        let total = simulation.fates.len() + tree.dirs.len();
        let mut steps = 0;
        while !simulation.coordinator.is_finished() {
            simulation.step(&choices[steps % choices.len()]);
            steps += 1;
            prop_assert!(steps < 100_000, "the job does not come to an end");
        }
        prop_assert_eq!(simulation.ended.len(), total);
        let progress = simulation.coordinator.progress();
        prop_assert_eq!(progress.seen, total as u64);
        prop_assert_eq!(progress.ended.entries(), total as u64);
        prop_assert!(simulation.coordinator.next_work().is_none() && simulation.running.is_empty());
        for (path, fate) in &simulation.fates {
            let failed = matches!(simulation.ended[path].outcome, Outcome::Failed(_));
            let fails = match fate {
                Fate::Fails | Fate::LargeFails(_) => true,
                Fate::Large(_, changes) => *changes >= crate::transfer::MAX_ATTEMPTS,
                Fate::Small | Fate::Linked(..) => false,
            };
            prop_assert_eq!(failed, fails, "{:?} {:?}", path, fate);
        }
    }
}
