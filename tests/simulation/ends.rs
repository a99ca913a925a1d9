//! Everything that the scan found ends exactly once, whatever goes wrong on the way; `driver::Lead::run` checks it.

use pcopy::proto::{Message, Names, Task};
use pcopy::types::{Kind, RelPath};

use crate::driver::storage::Storage;
use crate::driver::tree::{Faults, Tree};
use crate::driver::world::World;
use crate::driver::{MS, SECOND, Setup};

const ALL_FAULTS: Faults = Faults { fail: 5_000, linked: 50_000, unlinkable: 100_000, large: 2_000, trouble: 400_000 };

fn troubled(files: u64) -> Tree {
    Tree { files_per_dir: 100, dirs: files / 100, fanout: 10, faults: ALL_FAULTS, ..Tree::of(files, 4096) }
}

#[test]
fn every_entry_and_range_ends_once_with_any_number_of_ranks() {
    for (ranks, threads, files) in [(1, 1, 5_000), (3, 2, 50_000), (64, 4, 200_000), (10_000, 1, 1_000_000)] {
        for seed in 1..=3 {
            println!("{ranks} ranks, seed {seed}");
            let figures = Setup { threads, seed, ..Setup::new(ranks, troubled(files), Storage::TYPICAL) }.run();
            assert!(figures.failed > 0 && figures.entries == files + files / 100);
        }
    }
}

#[test]
fn a_frozen_rank_and_a_slow_network_lose_nothing() {
    let storage = Storage { slow_one_in: 50, slowness: 2000, worst: 500, ..Storage::TYPICAL };
    Setup { latency: 50 * MS, ..Setup::new(300, troubled(200_000), storage) }.run();
}

#[test]
fn what_earlier_runs_have_recorded_ends_once() {
    let tree = Tree { known: true, ..Tree::of(1_000_000, 4096) };
    let figures = Setup::new(10_000, tree, Storage::TYPICAL).run();
    assert_eq!(figures.items, 1_000_000);
}

#[test]
fn odd_trees_end_too() {
    let tree = Tree::of(1000, 4096);
    for tree in [
        Tree { dirs: 1, files_per_dir: 0, ..tree.clone() },
        Tree { dirs: 1, files_per_dir: 1, ..tree.clone() },
        // a chain of directories
        Tree { dirs: 500, files_per_dir: 0, fanout: 1, ..tree.clone() },
        Tree { dirs: 20_000, files_per_dir: 1, fanout: 20_000, ..tree.clone() },
        // one name more than a batch holds
        Tree { dirs: 3, files_per_dir: 513, fanout: 2, huge: Some((7, 1 << 40)), ..tree.clone() },
    ] {
        println!("{tree:?}");
        Setup::new(10_000, tree, Storage::TYPICAL).run();
    }
}

#[test]
fn a_run_is_the_same_each_time() {
    let run = |seed| Setup { seed, ..Setup::new(500, troubled(100_000), Storage::TYPICAL) }.run();
    let (first, again, other) = (run(7), run(7), run(8));
    assert_eq!((first.end, first.assignments, first.peak_bytes), (again.end, again.assignments, again.peak_bytes));
    assert_ne!(first.end, other.end);
    assert!(first.end < 100 * SECOND);
}

/// Ranks that were given one file so many times.
fn given(times: u64) -> World {
    let mut world = World::new(&Setup::new(2, Tree { dirs: 1, files_per_dir: 2, ..Tree::of(2, 1) }, Storage::TYPICAL));
    for id in 0..times {
        let names = Names::one(b"file-00000001.dat", Kind::File);
        let tasks = vec![Task::Entries { source: 0, dir: RelPath::root(), names }];
        world.send(0, 0, &Message::Work { id, tasks }.encode().expect("a short frame"));
    }
    while world.arrived(SECOND).is_some() {}
    world
}

#[test]
#[should_panic(expected = "entry 1 ended twice")]
fn an_entry_that_is_given_out_twice_is_noticed() {
    given(2);
}

#[test]
#[should_panic(expected = "entries that ended")]
fn an_entry_that_is_lost_is_noticed() {
    given(1).check();
}
