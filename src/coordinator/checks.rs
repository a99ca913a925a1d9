//! Checks a rank's report against what the rank was given. Anything else is a defect, or a foreign rank.

use super::{Coordinator, Purpose, path_of};
use crate::proto::{LargeFile, Listing, Owned, Returned, TaskResult};
use crate::transfer::MAX_ATTEMPTS;
use crate::types::DirPath;

/// Bytes of a directory's path that a rank may list: as far down as the scan goes.
const MAX_DIR_LEN: usize = 64 << 10;

impl Coordinator {
    /// Whether a result names only entries that the rank was given. `take_result` checks that its kind fits the purpose, and
    /// how many entries it stands for.
    pub(super) fn fits(&self, purpose: &Purpose, result: &TaskResult) -> bool {
        match (purpose, result) {
            (Purpose::Entries { dir, source, known, .. }, TaskResult::Known { confirmed, returned }) => {
                are_of(confirmed, known) && self.are_in(*dir, *source, returned)
            }
            (Purpose::Entries { dir, source, .. }, TaskResult::Returned(returned)) => {
                self.are_in(*dir, *source, returned)
            }
            (Purpose::List { lent, keep }, TaskResult::Listed(listing)) => {
                listing.kept <= u64::from(*keep)
                    && self.are_in(lent.id, lent.source, &listing.returned)
                    && fits_below(&lent.path, listing)
            }
            (Purpose::Owner(member), TaskResult::Owned(owned)) => match &**owned {
                Owned::Large(file) => is_large(file, member.source) && file.path == path_of(&self.dirs, member),
                Owned::Copied(_) | Owned::Failed => true,
            },
            (Purpose::Dirs(_, known), TaskResult::Dirs { confirmed }) => are_of(confirmed, known),
            _ => true,
        }
    }

    /// Whether all entries that are handed back stand in this directory.
    fn are_in(&self, dir: u64, source: u16, returned: &[Returned]) -> bool {
        let Some(dir) = self.dirs.get(&dir).map(|dir| &dir.path) else { return false };
        returned.iter().all(|entry| match entry {
            Returned::Large(file) => is_large(file, source) && dir.name_in(&file.path).is_some(),
            Returned::Linked { path, .. } | Returned::Unlinkable { path, .. } => dir.name_in(path).is_some(),
        })
    }
}

/// Whether a large file belongs to this source, and its attempts are within their limit.
fn is_large(file: &LargeFile, source: u16) -> bool {
    file.source == source && file.ranges().is_some() && file.temporary.attempt < MAX_ATTEMPTS
}

/// Whether `numbers` are a subsequence of the numbers that were given.
fn are_of(numbers: &[u64], given: &[u64]) -> bool {
    let mut given = given.iter();
    numbers.iter().all(|number| given.any(|other| other == number))
}

/// Whether the entries of a listing have paths that are short enough to be copied. The lister refuses a longer path; a
/// listing below one would lead to messages that are too long to be sent.
fn fits_below(dir: &DirPath, listing: &Listing) -> bool {
    let is_empty = listing.subdirs.is_empty() && listing.rest.is_empty() && listing.kept == 0;
    is_empty || dir.len() <= MAX_DIR_LEN
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::coordinator::CoordinatorError;
    use crate::proto::{Known, KnownEntry, Names, Report, Task};
    use crate::scan::{Lent, ScanEvent};
    use crate::types::{Facts, Fate, Identity, Kind, LinkId, RelPath, Stats, Temporary, Timestamp, Unkept};

    fn path(path: &str) -> RelPath {
        RelPath::new(path.as_bytes().to_vec()).expect("a path")
    }

    fn large(at: &str, change: impl Fn(&mut LargeFile)) -> LargeFile {
        let (mtime, ctime) = (Timestamp::default(), Timestamp::default());
        let mut file = LargeFile {
            source: 0,
            path: path(at),
            identity: Identity { size: 9000, mtime, ctime },
            atime: mtime,
            sparse: false,
            range_len: 4096,
            temporary: Temporary { generation: 1, attempt: 0 },
            found: false,
        };
        change(&mut file);
        file
    }

    fn facts() -> Facts {
        let (mtime, ctime) = (Timestamp::default(), Timestamp::default());
        let (target, digest, rdev, hardlink, mtime_there) = (None, None, None, None, None);
        let (unkept, fate) = (Unkept::default(), Fate::Made);
        let (size, mode, uid, gid) = (1, 0o644, 0, 0);
        Facts { size, mode, uid, gid, mtime, ctime, mtime_there, target, digest, rdev, hardlink, unkept, fate }
    }

    fn ended(files: u64) -> Stats {
        Stats { files, ..Stats::default() }
    }

    /// What becomes of a rank's first report of two plain entries in `d`, or of what `scan` finds there.
    fn told(events: Vec<ScanEvent>, result: TaskResult, ended: Stats) -> Result<(), CoordinatorError> {
        let mut coordinator = Coordinator::new(&[1], true, Arc::default());
        coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: path("d").into() });
        events.into_iter().for_each(|event| coordinator.scan(event));
        let work = coordinator.next_work().expect("there is some");
        report(&mut coordinator, work.id, result, ended)
    }

    fn report(
        coordinator: &mut Coordinator,
        id: u64,
        result: TaskResult,
        ended: Stats,
    ) -> Result<(), CoordinatorError> {
        coordinator.report(0, &Report { id, results: vec![result], ended, ..Report::default() })
    }

    const WRONG: Result<(), CoordinatorError> = Err(CoordinatorError::WrongResult { rank: 0, id: 0 });

    #[test]
    fn what_is_handed_back_is_of_the_directory_that_was_given() {
        let mut names = Names::one(b"a", Kind::File);
        names.push(b"b", Kind::File);
        let linked = |at: &str| Returned::Linked {
            path: path(at),
            kind: Kind::File,
            id: LinkId { dev: 1, ino: 1 },
            identity: large("x", |_| {}).identity,
            names: 2,
            there: None,
        };
        let tell = |entry: Returned, files| {
            let events = vec![ScanEvent::Names { dir: 0, names: names.clone() }];
            told(events, TaskResult::Returned(vec![entry]), ended(files))
        };
        assert_eq!(tell(Returned::Large(large("d/a", |_| {})), 1), Ok(()));
        assert_eq!(tell(linked("d/a"), 1), Ok(()));
        let unlinkable = |at: &str| Returned::Unlinkable { path: path(at), kind: Kind::File };
        for entry in [
            Returned::Large(large("a", |_| {})),
            Returned::Large(large("d/e/a", |_| {})),
            Returned::Large(large("d/a", |file| file.source = 1)),
            Returned::Large(large("d/a", |file| file.range_len = 5000)),
            Returned::Large(large("d/a", |file| file.range_len = 1 << 20)),
            Returned::Large(large("d/a", |file| file.identity.size = u64::MAX)),
            Returned::Large(large("d/a", |file| file.temporary.attempt = 255)),
            linked("other/a"),
            linked("d"),
            unlinkable("da"),
        ] {
            assert_eq!(tell(entry.clone(), 1), WRONG, "{entry:?}");
        }
    }

    #[test]
    fn a_report_counts_what_its_results_end() {
        let entry = || vec![ScanEvent::Names { dir: 0, names: Names::one(b"a", Kind::File) }];
        let none = || TaskResult::Returned(Vec::new());
        assert_eq!(told(entry(), none(), ended(1)), Ok(()));
        assert_eq!(told(entry(), none(), Stats { errors: 1, ..Stats::default() }), Ok(()));
        assert_eq!(told(entry(), none(), ended(0)), WRONG);
        assert_eq!(told(entry(), none(), ended(2)), WRONG);
        assert_eq!(told(entry(), none(), Stats { files: u64::MAX, dirs: 2, ..Stats::default() }), WRONG);
    }

    #[test]
    fn only_numbers_that_were_given_are_confirmed_each_once() {
        let known = |number| {
            let entry = Some(KnownEntry { number, record: Vec::new() });
            Known { name: format!("f{number}").into_bytes(), kind: Kind::File, entry, partial: None }
        };
        let tell = |confirmed: &[u64]| {
            let events = vec![ScanEvent::Known { dir: 0, entries: vec![known(5), known(6)] }];
            let result = TaskResult::Known { confirmed: confirmed.to_vec(), returned: Vec::new() };
            told(events, result, ended(2))
        };
        for good in [&[5u64, 6] as &[u64], &[5], &[6], &[]] {
            assert_eq!(tell(good), Ok(()), "{good:?}");
        }
        for bad in [&[5u64, 5] as &[u64], &[7], &[0], &[5, 6, 5], &[6, 5]] {
            assert_eq!(tell(bad), WRONG, "{bad:?}");
        }
        let recorded = Some(KnownEntry { number: 9, record: Vec::new() });
        let listed = |recorded| ScanEvent::Listed {
            dir: 0,
            subdirs: 0,
            excluded: 0,
            before: None,
            recorded,
            failure: None,
            retries: 0,
        };
        let dirs = Stats { dirs: 1, ..Stats::default() };
        let tell = |confirmed, recorded| told(vec![listed(recorded)], TaskResult::Dirs { confirmed }, dirs);
        assert_eq!((tell(vec![9], recorded.clone()), tell(vec![], recorded.clone())), (Ok(()), Ok(())));
        assert_eq!((tell(vec![8], recorded.clone()), tell(vec![9, 9], recorded)), (WRONG, WRONG));
        assert_eq!(tell(vec![9], None), WRONG);
    }

    #[test]
    fn a_listing_holds_no_more_than_was_asked_for() {
        let tell = |change: &dyn Fn(&mut Listing), files, dir: &str| {
            let mut coordinator = Coordinator::new(&[1], true, Arc::default());
            coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: path("d").into() });
            let lent = Lent { id: 1, parent: Some(0), source: 0, path: path(dir).into() };
            let work = coordinator.lend(lent, 0).expect("a rank is free");
            let Task::List { keep, .. } = work.tasks[0] else { panic!("to be listed") };
            let mut listing = Listing { kept: 1, ..Listing::default() };
            assert!((1..100).contains(&keep));
            change(&mut listing);
            report(&mut coordinator, work.id, TaskResult::Listed(Box::new(listing)), ended(files))
        };
        assert_eq!(tell(&|_| {}, 1, "d/e"), Ok(()));
        assert_eq!(tell(&|listing| listing.returned = vec![Returned::Large(large("d/e/a", |_| {}))], 0, "d/e"), Ok(()));
        assert_eq!(tell(&|listing| listing.kept = 1 << 40, 1 << 40, "d/e"), WRONG);
        assert_eq!(tell(&|listing| listing.kept = u64::MAX, u64::MAX, "d/e"), WRONG);
        assert_eq!(tell(&|listing| listing.kept = 0, 1, "d/e"), WRONG);
        assert_eq!(tell(&|listing| listing.returned = vec![Returned::Large(large("d/a", |_| {}))], 0, "d/e"), WRONG);
        assert_eq!(tell(&|_| {}, 1, "d/".repeat(33_000).trim_end_matches('/')), WRONG);
    }

    #[test]
    fn an_entry_that_is_copied_alone_comes_back_as_itself() {
        let mut coordinator = Coordinator::new(&[1], true, Arc::default());
        coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: path("d").into() });
        coordinator.scan(ScanEvent::Names { dir: 0, names: Names::one(b"a", Kind::File) });
        let first = coordinator.next_work().expect("the names").id;
        let back = TaskResult::Returned(vec![Returned::Unlinkable { path: path("d/a"), kind: Kind::File }]);
        assert_eq!(report(&mut coordinator, first, back, ended(0)), Ok(()));
        let owned = |file| TaskResult::Owned(Box::new(Owned::Large(file)));
        let id = coordinator.next_work().expect("its owner").id;
        let wrong = Err(CoordinatorError::WrongResult { rank: 0, id });
        assert_eq!(report(&mut coordinator, id, owned(large("d/b", |_| {})), ended(0)), wrong);
    }

    #[test]
    fn a_file_is_finished_as_a_file_and_not_begun_again() {
        let mut coordinator = Coordinator::new(&[1], false, Arc::default());
        coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: path("d").into() });
        coordinator.scan(ScanEvent::Names { dir: 0, names: Names::one(b"a", Kind::File) });
        let id = coordinator.next_work().expect("the names").id;
        let back = TaskResult::Returned(vec![Returned::Large(large("d/a", |_| {}))]);
        assert_eq!(report(&mut coordinator, id, back, ended(0)), Ok(()));
        for _ in 0..3 {
            let id = coordinator.next_work().expect("a range").id;
            assert_eq!(report(&mut coordinator, id, TaskResult::Range(None), ended(0)), Ok(()));
        }
        let id = coordinator.next_work().expect("the finish").id;
        let again = TaskResult::Owned(Box::new(Owned::Large(large("d/a", |_| {}))));
        let wrong = Err(CoordinatorError::WrongResult { rank: 0, id });
        assert_eq!(report(&mut coordinator, id, again, ended(0)), wrong);
        let copied = TaskResult::Owned(Box::new(Owned::Copied(facts())));
        let unknown = Err(CoordinatorError::UnknownAssignment { rank: 0, id });
        assert_eq!(report(&mut coordinator, id, copied, ended(1)), unknown);
    }
}
