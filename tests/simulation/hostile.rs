//! Trees that are made to fill rank 0's memory: what the coordinator holds of them, counted by the allocator.

use std::sync::Arc;

use pcopy::coordinator::{Assignment, Coordinator, Store};
use pcopy::proto::{Names, Owned, Report, Returned, Task, TaskResult};
use pcopy::scan::ScanEvent;
use pcopy::types::{Identity, Kind, LinkId, RelPath, Stats, Timestamp};

use crate::driver::memory::{self, inside};
use crate::driver::tree::facts;

/// A directory whose path has 4 KiB.
fn deep() -> RelPath {
    (0..16).fold(RelPath::root(), |path, _| path.join(&[b'd'; 255]))
}

/// The coordinator of two ranks, and files of which each has as many names.
struct Job {
    coordinator: Coordinator,
    names_a_file: u64,
    /// Files that are being copied: it takes as long as there is anything else to do.
    owners: Vec<Assignment>,
    /// Names that were linked to another one.
    linked: u64,
}

impl Job {
    fn new(names_a_file: u64) -> Self {
        Self::in_dir(names_a_file, deep())
    }

    fn in_dir(names_a_file: u64, path: RelPath) -> Self {
        memory::reset();
        let mut coordinator = inside(|| Coordinator::new(&[2, 2], true, Arc::default()));
        let dir = |id, parent, path: RelPath| ScanEvent::Dir { id, parent, source: 0, path: path.into() };
        inside(|| {
            coordinator.scan(dir(0, None, RelPath::root()));
            coordinator.scan(dir(1, Some(0), path));
        });
        Self { coordinator, names_a_file, owners: Vec::new(), linked: 0 }
    }

    /// The scan finds one more name, when it may.
    fn find(&mut self, number: u64) {
        while !self.coordinator.wants_scan() {
            assert!(self.work(), "the scan waits, and nobody has work");
        }
        inside(|| {
            let names = Names::one(format!("{number:010}").as_bytes(), Kind::File);
            self.coordinator.scan(ScanEvent::Names { dir: 1, names });
        });
    }

    /// One rank does one assignment, if there is one.
    fn work(&mut self) -> bool {
        inside(|| {
            let is_owner = |work: &Assignment| matches!(work.tasks[..], [Task::Owner { .. }]);
            let work = match self.coordinator.next_work() {
                Some(owner) if is_owner(&owner) => {
                    self.owners.push(owner);
                    return true;
                }
                Some(work) => work,
                None => match self.owners.pop() {
                    Some(owner) => owner,
                    None => return false,
                },
            };
            let report = self.report(&work);
            let names = |task: &Task| if let Task::Links { paths, .. } = task { paths.len() as u64 } else { 0 };
            self.linked += work.tasks.iter().map(names).sum::<u64>();
            self.coordinator.report(work.rank, &report).expect("in order");
            true
        })
    }

    fn report(&self, work: &Assignment) -> Report {
        let mut ended = 0;
        let results = work.tasks.iter().map(|task| match task {
            Task::Entries { dir, names, .. } => {
                TaskResult::Returned(names.iter().map(|(name, _)| self.linked(dir, name)).collect())
            }
            Task::Owner { .. } => {
                ended += 1;
                TaskResult::Owned(Box::new(Owned::Copied(facts(5))))
            }
            Task::Links { paths, .. } => {
                ended += paths.len() as u64;
                TaskResult::Returned(Vec::new())
            }
            other => panic!("{other:?}"),
        });
        let results = results.collect();
        let ended = Stats { files: ended, ..Stats::default() };
        Report { id: work.id, results, ended, ..Report::default() }
    }

    fn linked(&self, dir: &RelPath, name: &[u8]) -> Returned {
        let number: u64 = String::from_utf8_lossy(name).parse().expect("a number");
        let (mtime, ctime) = (Timestamp::default(), Timestamp::default());
        Returned::Linked {
            path: dir.join(name),
            kind: Kind::File,
            id: LinkId { dev: 1, ino: number / self.names_a_file },
            identity: Identity { size: 5, mtime, ctime },
            names: self.names_a_file,
            there: None,
        }
    }
}

#[test]
fn names_of_one_file_are_bounded_in_bytes_however_many_there_are() {
    const COUNT: u64 = 300_000;
    let mut job = Job::new(COUNT);
    (0..COUNT).for_each(|number| job.find(number));
    while job.work() {}
    assert_eq!(job.coordinator.progress().ended.files, COUNT);
    let peak = memory::peak();
    println!("{COUNT} names of one file: {peak} bytes");
    assert!((1..24 << 20).contains(&peak), "{peak} bytes");
}

/// A store in memory that nobody counts.
#[derive(Default)]
struct Elsewhere(Vec<u8>);

impl Store for Elsewhere {
    fn put(&mut self, bytes: &[u8]) -> Option<u64> {
        memory::outside(|| {
            let at = self.0.len() as u64;
            self.0.extend_from_slice(bytes);
            Some(at)
        })
    }

    fn get(&mut self, at: u64, len: u32) -> Option<Vec<u8>> {
        let at = usize::try_from(at).ok()?;
        self.0.get(at..at + len as usize).map(Vec::from)
    }
}

#[test]
fn files_of_which_one_name_was_seen_are_bounded_in_bytes_and_linked_when_the_other_comes() {
    const COUNT: u64 = 300_000;
    let mut job = Job::in_dir(2, RelPath::root().join(&[b'd'; 200]));
    job.coordinator.keep_in(Box::new(Elsewhere::default()));
    for number in 0..COUNT {
        job.find(2 * number);
        while job.work() {}
    }
    let peak = memory::peak();
    println!("{COUNT} files of which one name was seen: {peak} bytes");
    assert!((1..48 << 20).contains(&peak), "{peak} bytes");
    (0..COUNT).for_each(|number| job.find(2 * number + 1));
    while job.work() {}
    assert_eq!((job.coordinator.progress().ended.files, job.linked), (2 * COUNT, COUNT));
}

#[test]
fn a_file_of_which_one_name_was_seen_takes_little_memory_until_the_other_comes() {
    const COUNT: u64 = 100_000;
    let mut job = Job::new(2);
    let before = memory::live();
    // of each file the first name
    for number in 0..COUNT {
        job.find(2 * number);
        while job.work() {}
    }
    let of_each = (memory::live() - before) / i64::try_from(COUNT).expect("few");
    println!("{of_each} bytes for each file of which one name was seen");
    assert!((1..320).contains(&of_each), "{of_each} bytes");
    (0..COUNT).for_each(|number| job.find(2 * number + 1));
    while job.work() {}
    assert_eq!(job.coordinator.progress().ended.files, 2 * COUNT);
    let left = memory::live() - before;
    // of tables that have grown, their empty places
    assert!(left < 8 << 20, "{left} bytes are left");
}
