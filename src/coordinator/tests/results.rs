//! What follows from results: refused ones, ranges that are there, links.

use super::*;

#[test]
fn a_result_that_does_not_fit_its_task_is_refused() {
    let mut coordinator = Coordinator::new(&[1], true, Arc::default());
    one_dir(&mut coordinator, 1);
    let work = coordinator.next_work().expect("there is work");
    let report = |results| Report { id: work.id, results, ..Report::default() };
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
                ended: Stats { files: ended, ..Stats::default() },
                ..Report::default()
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
    let report = Report { id: work.id, results: vec![TaskResult::Returned(returned)], ..Report::default() };
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
