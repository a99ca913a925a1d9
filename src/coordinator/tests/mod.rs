//! The coordinator alone: random jobs, who is given how much, and what follows from results.

mod random;
mod results;
mod shares;

use super::*;
use crate::proto::{FinishedDir, LargeFile, Listing, Names, Owned, Report, Returned, TaskResult};
use crate::types::{Facts, Identity, Kind, LinkId, Temporary, Timestamp, Unkept};

const RANGE_LEN: u64 = 4096;

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

fn one_dir(coordinator: &mut Coordinator, names: usize) {
    let mut batch = Names::default();
    for n in 0..names {
        batch.push(format!("f{n}").as_bytes(), Kind::File);
    }
    coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: RelPath::root().into() });
    coordinator.scan(ScanEvent::Names { dir: 0, names: batch });
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
        id: work.id,
        results: work.tasks.iter().map(result).collect(),
        ended: Stats { files: names_in(work) as u64, dirs: work.tasks.iter().map(dirs).sum(), ..Stats::default() },
        ..Report::default()
    }
}
