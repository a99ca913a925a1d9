//! The coordinator against simulated ranks: random trees, random outcomes, random message orders.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::proto::{LargeFile, Names};
use crate::types::{Facts, Identity, LinkId, Op, Outcome, Record, Side, Temporary, Timestamp, Unkept};

const RANGE_LEN: u64 = 4096;

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

fn facts(size: u64) -> Facts {
    Facts {
        size,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        mtime_there: None,
        target: None,
        digest: None,
        rdev: None,
        hardlink: None,
        unkept: Unkept::default(),
        fate: crate::types::Fate::Made,
    }
}

fn identity(size: u64) -> Identity {
    Identity { size, mtime: Timestamp::default(), ctime: Timestamp::default() }
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
            let mut report = Report {
                halting: None,
                id: work.id,
                results: vec![],
                bytes_moved: 0,
                ended: Stats::default(),
                full: false,
                failures: vec![],
                private: Vec::new(),
            };
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

fn one_dir(coordinator: &mut Coordinator, names: usize) {
    let mut batch = Names::default();
    for n in 0..names {
        batch.push(format!("f{n}").as_bytes(), Kind::File);
    }
    coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: RelPath::root().into() });
    coordinator.scan(ScanEvent::Names { dir: 0, names: batch });
}

#[test]
fn the_scan_waits_while_the_queue_is_full() {
    let mut coordinator = Coordinator::new(&[2], true, Arc::default());
    assert!(coordinator.wants_scan());
    one_dir(&mut coordinator, MAX_QUEUED_NAMES);
    assert!(!coordinator.wants_scan());
    assert!(coordinator.next_work().is_some());
    assert!(coordinator.wants_scan(), "room again after the first batch");
}

#[test]
fn no_rank_has_more_than_its_credits_and_all_have_work() {
    let mut coordinator = Coordinator::new(&[2, 2, 2], true, Arc::default());
    one_dir(&mut coordinator, 100_000);
    let mut given = [0; 3];
    while let Some(work) = coordinator.next_work() {
        given[work.rank] += 1;
    }
    assert_eq!(given, [4, 4, 4], "two assignments a thread");
}

#[test]
fn a_short_queue_is_shared_among_all_threads() {
    let mut coordinator = Coordinator::new(&[2, 2], true, Arc::default());
    one_dir(&mut coordinator, 64);
    let mut sizes = Vec::new();
    while let Some(work) = coordinator.next_work() {
        let count = |task: &Task| if let Task::Entries { names, .. } = task { names.len() } else { 0 };
        sizes.push(work.tasks.iter().map(count).sum::<usize>());
    }
    assert_eq!(sizes, [8, 7, 6, 5], "half of an equal share of what is left, and one assignment a thread");
}

fn names_in(work: &Assignment) -> usize {
    work.tasks.iter().map(|task| if let Task::Entries { names, .. } = task { names.len() } else { 0 }).sum()
}

/// A report of work whose entries have all ended.
fn all_ended(work: &Assignment) -> Report {
    let result = |task: &Task| match task {
        Task::Entries { .. } => TaskResult::Returned(vec![]),
        Task::Range { .. } => TaskResult::Range(None),
        Task::FinishDirs { .. } => TaskResult::Dirs { confirmed: vec![] },
        _ => TaskResult::Ended,
    };
    let dirs = |task: &Task| if let Task::FinishDirs { dirs, .. } = task { dirs.len() as u64 } else { 0 };
    Report {
        halting: None,
        id: work.id,
        results: work.tasks.iter().map(result).collect(),
        bytes_moved: 0,
        ended: Stats { files: names_in(work) as u64, dirs: work.tasks.iter().map(dirs).sum(), ..Stats::default() },
        full: false,
        failures: vec![],
        private: Vec::new(),
    }
}

#[test]
fn of_idle_ranks_the_one_that_has_waited_longest_is_next() {
    let mut coordinator = Coordinator::new(&[1, 1, 1], true, Arc::default());
    let mut order = Vec::new();
    coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: RelPath::root().into() });
    for n in 0..6 {
        let names = Names::one(format!("f{n}").as_bytes(), Kind::File);
        coordinator.scan(ScanEvent::Names { dir: 0, names });
        let work = coordinator.next_work().expect("a rank is idle");
        order.push(work.rank);
        coordinator.report(work.rank, &all_ended(&work)).expect("in order");
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_slow_rank_is_given_less() {
    let mut coordinator = Coordinator::new(&[1; 8], true, Arc::default());
    one_dir(&mut coordinator, 100_000);
    let mut running: VecDeque<Assignment> = VecDeque::new();
    let mut last = [0; 8];
    for round in 1..=400 {
        while let Some(work) = coordinator.next_work() {
            last[work.rank] = names_in(&work);
            running.push_back(work);
        }
        // rank 3 takes ten times as long
        let at = running.iter().position(|work| work.rank != 3 || round % 80 == 0).expect("all have work");
        let work = running.remove(at).expect("it has a position");
        coordinator.report(work.rank, &all_ended(&work)).expect("in order");
        let mut more = Names::default();
        (0..names_in(&work)).for_each(|n| more.push(format!("{round}-{n}").as_bytes(), Kind::File));
        coordinator.scan(ScanEvent::Names { dir: 0, names: more });
    }
    assert!(last[3] * 3 < last[0], "{last:?}");
}

#[test]
fn many_threads_have_a_longer_queue_and_longer_assignments() {
    let mut coordinator = Coordinator::new(&[4; 10_000], true, Arc::default());
    one_dir(&mut coordinator, MAX_QUEUED_NAMES);
    assert!(coordinator.wants_scan());
    let work = coordinator.next_work().expect("names");
    assert_eq!(names_in(&work), 40_000 / 150, "rank 0 has to answer 40,000 threads");
    coordinator.scan_ended();
    let work = coordinator.next_work().expect("names");
    assert_eq!(names_in(&work), 40_000 / 1000, "all have to end together");
}

#[test]
fn a_result_that_does_not_fit_its_task_is_refused() {
    let mut coordinator = Coordinator::new(&[1], true, Arc::default());
    one_dir(&mut coordinator, 1);
    let work = coordinator.next_work().expect("there is work");
    let report = |results| Report {
        halting: None,
        id: work.id,
        results,
        bytes_moved: 0,
        ended: Stats::default(),
        full: false,
        failures: vec![],
        private: Vec::new(),
    };
    let error = Err(CoordinatorError::WrongResult { rank: 0, id: work.id });
    assert_eq!(coordinator.report(0, &report(vec![TaskResult::Range(None)])), error);
}

/// A large file of ten ranges, and those of it that earlier runs have copied.
fn begun(done: &[u64]) -> (LargeFile, Arc<Partials>) {
    let file = LargeFile {
        source: 0,
        path: RelPath::root().join(b"f"),
        identity: identity(10 * RANGE_LEN),
        atime: Timestamp::default(),
        sparse: false,
        range_len: RANGE_LEN,
        temporary: Temporary { generation: 1, attempt: 0 },
        found: true,
    };
    let done = done.iter().map(|index| (*index, None)).collect();
    let unfinished = crate::journal::Unfinished { partial: file.partial(), done };
    let partials = Arc::new(Partials::from([(file.path.clone(), unfinished)]));
    (file, partials)
}

/// The ranges that are given out of a file that a rank found.
fn ranges_given(file: &LargeFile, partials: &Arc<Partials>) -> Vec<u64> {
    let mut coordinator = Coordinator::new(&[64], false, Arc::clone(partials));
    let path = RelPath::root().into();
    coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path });
    coordinator.scan(ScanEvent::Names { dir: 0, names: Names::one(b"f", Kind::File) });
    coordinator.scan(ScanEvent::Listed {
        dir: 0,
        subdirs: 0,
        excluded: 0,
        before: None,
        recorded: None,
        failure: None,
        retries: 0,
    });
    coordinator.scan_ended();
    let mut given = Vec::new();
    while let Some(work) = coordinator.next_work() {
        for task in work.tasks {
            let (result, ended) = match &task {
                Task::Entries { .. } => (TaskResult::Returned(vec![Returned::Large(file.clone())]), 0),
                Task::Range { index, .. } => {
                    given.push(*index);
                    (TaskResult::Range(None), 0)
                }
                Task::FinishFile { .. } => (TaskResult::Owned(Box::new(Owned::Copied(facts(1)))), 1),
                Task::FinishDirs { .. } => (TaskResult::Dirs { confirmed: vec![] }, 1),
                _ => (TaskResult::Ended, 0),
            };
            let report = Report {
                id: work.id,
                results: vec![result],
                bytes_moved: 0,
                ended: Stats { files: ended, ..Stats::default() },
                full: false,
                halting: None,
                failures: Vec::new(),
                private: Vec::new(),
            };
            coordinator.report(0, &report).expect("in order");
        }
    }
    assert!(coordinator.is_finished());
    given
}

#[test]
fn ranges_that_are_there_are_not_given_out_again() {
    let (file, partials) = begun(&[0, 1, 5, 9, 5, 77]);
    assert_eq!(ranges_given(&file, &partials), [2, 3, 4, 6, 7, 8]);
    let (file, partials) = begun(&(0..10).collect::<Vec<_>>());
    assert!(ranges_given(&file, &partials).is_empty());
}

#[test]
fn ranges_of_another_temporary_file_count_for_nothing() {
    let all: Vec<u64> = (0..10).collect();
    let (file, partials) = begun(&[3, 4]);
    for other in [
        LargeFile { found: false, ..file.clone() },
        LargeFile { temporary: Temporary { generation: 2, attempt: 0 }, ..file.clone() },
        LargeFile { identity: Identity { mtime: Timestamp { sec: 1, nsec: 0 }, ..file.identity }, ..file.clone() },
    ] {
        assert_eq!(ranges_given(&other, &partials), all);
    }
}

#[test]
fn a_name_that_is_there_becomes_the_owner_of_its_links_without_being_copied() {
    let mut coordinator = Coordinator::new(&[2], false, Arc::default());
    coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: RelPath::root().into() });
    let mut names = Names::default();
    names.push(b"a", Kind::File);
    names.push(b"b", Kind::File);
    coordinator.scan(ScanEvent::Names { dir: 0, names });
    let work = coordinator.next_work().expect("names");
    let linked = |name: &[u8], there: Option<Box<Facts>>| Returned::Linked {
        path: RelPath::root().join(name),
        kind: Kind::File,
        id: LinkId { dev: 1, ino: 2 },
        identity: identity(5),
        names: 2,
        there,
    };
    let returned = vec![linked(b"a", Some(Box::new(facts(5)))), linked(b"b", None)];
    let report = Report {
        id: work.id,
        results: vec![TaskResult::Returned(returned)],
        bytes_moved: 0,
        ended: Stats::default(),
        full: false,
        halting: None,
        failures: Vec::new(),
        private: Vec::new(),
    };
    coordinator.report(0, &report).expect("in order");
    let mut linked_paths = Vec::new();
    while let Some(work) = coordinator.next_work() {
        for task in work.tasks {
            let Task::Links { owner, paths, .. } = task else { panic!("{task:?}") };
            assert_eq!(owner.as_bytes(), b"a");
            linked_paths.extend(paths.iter().map(|path| path.as_bytes().to_vec()));
        }
    }
    assert_eq!(linked_paths, [b"a", b"b"]);
}

/// A report of names that are all names of one file.
fn all_linked(work: &Assignment, names: u64) -> Report {
    let result = |task: &Task| {
        let Task::Entries { dir, names: batch, .. } = task else { panic!("{task:?}") };
        let linked = |name| Returned::Linked {
            path: dir.join(name),
            kind: Kind::File,
            id: LinkId { dev: 1, ino: 2 },
            identity: identity(5),
            names,
            there: None,
        };
        TaskResult::Returned(batch.iter().map(|(name, _)| linked(name)).collect())
    };
    Report { results: work.tasks.iter().map(result).collect(), ended: Stats::default(), ..all_ended(work) }
}

#[test]
fn the_scan_waits_while_very_many_names_wait_for_one_of_their_file() {
    let mut coordinator = Coordinator::new(&[2], false, Arc::default());
    coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: RelPath::root().into() });
    let (mut owner, mut seen) = (None, 0_u64);
    while coordinator.wants_scan() {
        let mut batch = Names::default();
        (0..100).for_each(|n| batch.push(format!("{:0255}", seen + n).as_bytes(), Kind::File));
        seen += 100;
        coordinator.scan(ScanEvent::Names { dir: 0, names: batch });
        while let Some(work) = coordinator.next_work() {
            if matches!(work.tasks[..], [Task::Owner { .. }]) {
                owner = Some(work);
            } else {
                coordinator.report(0, &all_linked(&work, 1_000_000)).expect("in order");
            }
        }
        assert!(seen < 100_000, "{seen} names wait");
    }
    let owner = owner.expect("one of them is copied");
    let owned = TaskResult::Owned(Box::new(Owned::Copied(facts(5))));
    let one = Stats { files: 1, ..Stats::default() };
    coordinator.report(0, &Report { results: vec![owned], ended: one, ..all_ended(&owner) }).expect("in order");
    let mut linked = 0;
    while let Some(work) = coordinator.next_work() {
        let count = |task: &Task| if let Task::Links { paths, .. } = task { paths.len() as u64 } else { 0 };
        let links: u64 = work.tasks.iter().map(count).sum();
        assert!((1..=128).contains(&links), "{links} links in one assignment");
        linked += links;
        let results = vec![TaskResult::Returned(vec![]); work.tasks.len()];
        let ended = Stats { files: links, ..Stats::default() };
        coordinator.report(0, &Report { results, ended, ..all_ended(&work) }).expect("in order");
    }
    assert_eq!(linked + 1, seen);
    assert!(coordinator.wants_scan());
}
