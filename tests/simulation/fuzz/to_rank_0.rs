//! Reports: decoded, and taken by the real coordinator in the middle of a job.

use pcopy::proto::{Message, Report, Returned, TaskResult};
use pcopy::types::RelPath;

use super::job::Job;
use super::mutate::mutated;
use super::{fuzz, one_in};
use crate::driver::memory;
use crate::driver::storage::Random;

/// How a job ended.
enum End {
    /// Rank 0 has ended it with a line and exit code 70.
    Refused,
    Finished {
        all_honest: bool,
    },
}

/// Whether two reports say the same of the same entries, but for how it went with them.
fn is_alike(one: &Report, other: &Report) -> bool {
    let paths = |returned: &[Returned]| -> Vec<RelPath> {
        let path = |entry: &Returned| match entry {
            Returned::Large(file) => file.path.clone(),
            Returned::Linked { path, .. } | Returned::Unlinkable { path, .. } => path.clone(),
        };
        returned.iter().map(path).collect()
    };
    let same = |one: &TaskResult, other: &TaskResult| match (one, other) {
        (TaskResult::Returned(one), TaskResult::Returned(other))
        | (TaskResult::Known { returned: one, .. }, TaskResult::Known { returned: other, .. }) => {
            paths(one) == paths(other)
        }
        // a listing is its rank's word, and so is what became of a file
        _ => one == other,
    };
    one.id == other.id
        && one.results.len() == other.results.len()
        && one.results.iter().zip(&other.results).all(|(one, other)| same(one, other))
}

/// One job, some of whose reports are changed on the way; how many frames were changed.
fn run(random: &mut Random) -> (End, u64) {
    let mut job = Job::new(random);
    let (mut seen, mut changed, mut all_honest, mut accepted) = (Vec::new(), 0, true, 0);
    for _ in 0..2000 {
        if job.coordinator.is_finished() {
            let progress = job.coordinator.progress();
            assert_eq!((progress.seen, progress.ended.entries()), (accepted, accepted), "what was accepted");
            // the sum that the ranks themselves have counted is compared with it in the end
            if all_honest && progress.seen == job.counted {
                assert_eq!(job.ended, job.entries, "complete, and it is not");
            }
            return (End::Finished { all_honest }, changed);
        }
        job.advance(random);
        let Some((rank, message)) = job.report(random) else {
            // what a rank said to be a directory that is not there, nobody lists: the real scan would find that out
            if job.coordinator.is_finished() || job.scans() {
                continue;
            }
            assert!(!all_honest, "stuck");
            return (End::Refused, changed);
        };
        let honest = message.encode().expect("a report fits a frame");
        seen.push(honest.clone());
        let frame = if one_in(random, 8) { mutated(&honest, &seen, random) } else { honest.clone() };
        changed += u64::from(frame != honest);
        let decoded = memory::inside(|| Message::decode(&frame));
        let (Ok(Message::Report(report)), Message::Report(told)) = (decoded, message) else {
            return (End::Refused, changed);
        };
        all_honest &= is_alike(&report, &told);
        if memory::inside(|| job.coordinator.report(rank, &report)).is_err() {
            // what was accepted before may have made work that nobody can do
            assert!(frame != honest || !all_honest, "an honest report is refused: {report:?}");
            return (End::Refused, changed);
        }
        accepted += report.ended.entries();
        memory::inside(|| drop(report));
    }
    panic!("the job does not come to an end");
}

#[test]
fn changed_reports_end_the_job_or_change_nothing_that_counts() {
    let counts = fuzz(["changed frames", "jobs ended", "jobs finished", "of them honest"], |random| {
        let (end, changed) = run(random);
        match end {
            End::Refused => [changed, 1, 0, 0],
            End::Finished { all_honest } => [changed, 0, 1, u64::from(all_honest)],
        }
    });
    assert!(counts.iter().all(|count| *count > 0) || std::env::var_os("PCOPY_SEED").is_some(), "{counts:?}");
}
