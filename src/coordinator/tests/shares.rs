//! How much work each rank is given, and when the scan waits for ranks.

use super::*;

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
