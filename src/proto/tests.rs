//! Every variant round-trips; every damaged frame is refused.

use proptest::prelude::*;

use super::*;
use crate::policy::{Leftovers, Rule, Xattrs};
use crate::types::{Fate, Op, Side, Timestamp};

fn path() -> impl Strategy<Value = RelPath> {
    prop::collection::vec(name(), 0..5)
        .prop_map(|names| names.iter().fold(RelPath::root(), |path, name| path.join(name)))
}

fn entry() -> impl Strategy<Value = RelPath> {
    (path(), name()).prop_map(|(dir, name)| dir.join(&name))
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..40).prop_filter("a name", |name| crate::types::is_name(name))
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::File, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDev, Kind::BlockDev])
}

fn failure() -> impl Strategy<Value = Failure> {
    (prop::sample::select(vec![Op::Open, Op::Read, Op::Changed, Op::Conflict]), any::<bool>(), any::<i32>()).prop_map(
        |(op, source, errno)| Failure { op, side: if source { Side::Source } else { Side::Destination }, errno },
    )
}

fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(sec, nsec)| Timestamp { sec, nsec })
}

fn large() -> impl Strategy<Value = LargeFile> {
    (any::<u16>(), entry(), 4097u64..1 << 62, time(), time(), any::<bool>()).prop_map(
        |(source, path, size, mtime, ctime, sparse)| LargeFile {
            source,
            path,
            identity: Identity { size, mtime, ctime },
            atime: ctime,
            sparse,
            range_len: crate::plan::range_len_of(size, sparse, 4096),
            temporary: Temporary { generation: 2, attempt: 1 },
            found: sparse,
        },
    )
}

fn facts() -> impl Strategy<Value = Facts> {
    (
        any::<u64>(),
        0u32..0o10000,
        any::<[u32; 2]>(),
        time(),
        any::<Option<Vec<u8>>>(),
        any::<Option<Digest>>(),
        any::<Option<(u32, u32)>>(),
    )
        .prop_map(|(size, mode, [uid, gid], mtime, target, digest, rdev)| Facts {
            size,
            mode,
            uid,
            gid,
            mtime,
            ctime: mtime,
            mtime_there: digest.map(|_| mtime),
            target,
            digest,
            rdev,
            hardlink: None,
            unkept: Default::default(),
            fate: Fate::KeptNewer,
        })
}

fn names() -> impl Strategy<Value = Names> {
    prop::collection::vec((name(), kind()), 0..50).prop_map(|entries| {
        let mut names = Names::default();
        for (name, kind) in entries {
            names.push(&name, kind);
        }
        names
    })
}

fn known() -> impl Strategy<Value = Known> {
    (name(), kind(), prop::option::of(facts()), prop::option::of(large())).prop_map(|(name, kind, facts, large)| {
        Known {
            name,
            kind,
            entry: facts.map(|facts| KnownEntry { number: facts.size, record: vec![7; facts.mode as usize % 300] }),
            partial: large.map(|file| file.partial()),
        }
    })
}

fn task() -> impl Strategy<Value = Task> {
    prop_oneof![
        (any::<u16>(), path(), names()).prop_map(|(source, dir, names)| Task::Entries { source, dir, names }),
        (any::<u16>(), entry(), kind(), any::<u8>(), any::<Option<u64>>()).prop_map(
            |(source, path, kind, attempt, ino)| {
                let id = ino.map(|ino| LinkId { dev: 1, ino });
                Task::Owner { source, path, kind, id, attempt, unlinkable: id.is_none(), partial: None }
            }
        ),
        (any::<u16>(), path(), prop::collection::vec(known(), 0..9)).prop_map(|(source, dir, entries)| Task::Known {
            source,
            dir,
            entries
        }),
        (large(), any::<prop::sample::Index>()).prop_map(|(file, index)| {
            let count = file.ranges().expect("a sound file").count();
            let index = index.index(usize::try_from(count).expect("few")) as u64;
            Task::Range { file, index }
        }),
        (large(), any::<Option<Digest>>(), any::<bool>()).prop_map(|(file, digest, unlinkable)| Task::FinishFile {
            file,
            digest,
            unlinkable
        }),
        (large(), prop::option::of(failure())).prop_map(|(file, failure)| Task::Abandon { file, failure }),
        (any::<u16>(), entry(), kind(), facts(), prop::collection::vec(entry(), 0..9)).prop_map(
            |(source, owner, kind, facts, paths)| Task::Links { source, owner, kind, facts: Box::new(facts), paths }
        ),
        (any::<u16>(), prop::collection::vec((path(), prop::option::of(failure())), 0..9)).prop_map(
            |(source, dirs)| {
                let dirs = dirs
                    .into_iter()
                    .map(|(path, failure)| FinishedDir { path, before: None, recorded: None, failure, private: true })
                    .collect();
                Task::FinishDirs { source, dirs }
            }
        ),
    ]
}

fn returned() -> impl Strategy<Value = Returned> {
    prop_oneof![
        large().prop_map(Returned::Large),
        (entry(), kind(), any::<[u64; 2]>(), large(), prop::option::of(facts())).prop_map(
            |(path, kind, [dev, ino], file, there)| {
                let (identity, names) = (file.identity, file.range_len);
                let there = there.map(Box::new);
                Returned::Linked { path, kind, id: LinkId { dev, ino }, identity, names, there }
            }
        ),
        (entry(), kind()).prop_map(|(path, kind)| Returned::Unlinkable { path, kind }),
    ]
}

fn result() -> impl Strategy<Value = TaskResult> {
    prop_oneof![
        Just(TaskResult::Ended),
        Just(TaskResult::Stopped),
        (any::<Vec<u64>>(), prop::collection::vec(returned(), 0..9))
            .prop_map(|(confirmed, returned)| TaskResult::Known { confirmed, returned }),
        any::<Vec<u64>>().prop_map(|confirmed| TaskResult::Dirs { confirmed }),
        prop::collection::vec(returned(), 0..9).prop_map(TaskResult::Returned),
        facts().prop_map(|facts| TaskResult::Owned(Box::new(Owned::Copied(facts)))),
        Just(TaskResult::Owned(Box::new(Owned::Failed))),
        large().prop_map(|file| TaskResult::Owned(Box::new(Owned::Large(file)))),
        any::<Option<[u8; 32]>>().prop_map(TaskResult::Range),
        failure().prop_map(TaskResult::RangeFailed),
        failure().prop_map(TaskResult::Lost),
        Just(TaskResult::Changed),
    ]
}

fn job() -> impl Strategy<Value = Job> {
    (any::<u64>(), entry(), prop::option::of(name()), prop::option::of(1usize..9), 12u32..=40).prop_map(
        |(id, target, single, threads, range_bits)| Job {
            id,
            secret: Secret::new([7; 16]),
            maker: Maker::of(4, 0o644),
            sources: vec![Source {
                dir: b"/s".to_vec(),
                single: single.clone(),
                target,
                file_system: id,
                leftovers: Leftovers::OfJobs(vec![id]),
            }],
            destination: b"/d".to_vec(),
            abandoned: vec![id, 1],
            generation: 3,
            began: single.as_ref().map(|_| Timestamp { sec: -1, nsec: 1 }),
            state: single.clone().map(StatePlace::At),
            fresh: false,
            coarse_times: true,
            tuning: Tuning {
                range_len: 1 << range_bits,
                block_len: 4096,
                threads,
                direct: Direct::Auto,
                digest: true,
                sparse: Sparse::Always,
                durability: Durability::None,
                retries: 5,
                reflink: Reflink::Always,
            },
            filter: Filter::new(vec![Rule::new(true, b"/a/*.[ch]").expect("a pattern")]),
            one_file_system: true,
            policy: Policy { xattrs: Xattrs::Libattr(vec!["x*".into()]), umask: 0o22, ..Policy::default() },
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        Just(Message::Begin(None)),
        job().prop_map(|job| Message::Begin(Some(Box::new(job)))),
        (".*", 1u32..100, any::<Option<String>>())
            .prop_map(|(host, threads, trouble)| { Message::Hello(Hello { host, threads, syncs: true, trouble }) }),
        (any::<u64>(), prop::collection::vec(task(), 0..3)).prop_map(|(id, tasks)| Message::Work { id, tasks }),
        (
            any::<u64>(),
            prop::collection::vec(result(), 0..3),
            any::<u64>(),
            any::<[u32; Stats::LEN]>(),
            prop::collection::vec((path(), failure()), 0..5)
        )
            .prop_map(|(id, results, bytes_moved, ended, mut failures)| {
                let halting = failures.pop();
                Message::Report(Box::new(Report {
                    id,
                    results,
                    bytes_moved,
                    ended: Stats::from_array(ended.map(u64::from)),
                    full: true,
                    halting,
                    failures,
                    private: vec![0, 7],
                }))
            }),
        any::<bool>().prop_map(|abandon| Message::Stop { abandon }),
        prop::collection::vec((".*", any::<Vec<u8>>(), any::<u64>()), 0..=MAX_OVERDUE).prop_map(|all| {
            let overdue = |(call, path, seconds)| Overdue { call, path, seconds };
            Message::Overdue(all.into_iter().map(overdue).collect())
        }),
        Just(Message::Halt),
        prop::sample::select(vec![
            Signal::Terminate,
            Signal::Interrupt,
            Signal::User1,
            Signal::HangUp,
            Signal::CpuTime,
            Signal::PowerFails,
            Signal::Progress
        ])
        .prop_map(Message::Signalled),
        (any::<u64>(), ".*", any::<i32>()).prop_map(|(seq, text, errno)| {
            Message::Checkpoint(Checkpoint::Committed(seq, Err(Trouble { text, errno })))
        }),
        prop_oneof![Just(Ok(())), ".*".prop_map(Err)].prop_map(Message::Stopped),
        any::<u32>().prop_map(Message::WantRecords),
        any::<Option<u64>>().prop_map(Message::Limit),
        (any::<Vec<u8>>(), any::<bool>()).prop_map(|(bytes, last)| Message::Records { records: Records(bytes), last }),
        Just(Message::Bye),
    ]
}

proptest! {
    #[test]
    fn every_message_round_trips(message in message()) {
        let frame = message.encode().expect("a small message");
        prop_assert_eq!(Message::decode(&frame), Ok(message));
    }

    #[test]
    fn a_truncated_frame_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let frame = message.encode().expect("a small message");
        prop_assert!(Message::decode(&frame[..cut.index(frame.len())]).is_err());
    }

    #[test]
    fn a_frame_that_goes_on_is_refused(message in message(), more in prop::collection::vec(any::<u8>(), 1..9)) {
        let frame = [message.encode().expect("a small message"), more.clone()].concat();
        prop_assert_eq!(Message::decode(&frame), Err(FrameError::Trailing(more.len())));
    }

    #[test]
    fn another_version_is_refused(message in message(), version in any::<u8>()) {
        prop_assume!(version != PROTOCOL_VERSION);
        let mut frame = message.encode().expect("a small message");
        frame[0] = version;
        prop_assert_eq!(Message::decode(&frame), Err(FrameError::Version(version)));
    }

    #[test]
    fn noise_never_panics(mut noise in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(first) = noise.first_mut() {
            *first = PROTOCOL_VERSION;
        }
        if let Ok(message) = Message::decode(&noise) {
            prop_assert!(message.encode().is_ok());
        }
    }

    #[test]
    fn taken_names_are_the_last_ones(names in names(), count in 0usize..60) {
        let all: Vec<_> = names.iter().map(|(name, kind)| (name.to_vec(), kind)).collect();
        let mut rest = names;
        let taken = rest.take(count);
        prop_assert_eq!(taken.len(), count.min(all.len()));
        let joined: Vec<_> = rest.iter().chain(taken.iter()).map(|(name, kind)| (name.to_vec(), kind)).collect();
        prop_assert_eq!(joined, all);
    }
}

#[test]
fn an_oversized_frame_is_refused_on_both_sides() {
    let message = Message::Records { records: Records(vec![0; MAX_FRAME_LEN]), last: false };
    assert!(matches!(message.encode(), Err(FrameError::TooLong(len)) if len > MAX_FRAME_LEN));
    assert_eq!(
        Message::decode(&vec![PROTOCOL_VERSION; MAX_FRAME_LEN + 1]),
        Err(FrameError::TooLong(MAX_FRAME_LEN + 1))
    );
    assert_eq!(Message::decode(&[]), Err(FrameError::Empty));
}

#[test]
fn a_path_that_leaves_the_root_is_refused_in_a_message() {
    let path = RelPath::root().join(b"ab");
    let dirs = vec![FinishedDir { path, before: None, recorded: None, failure: None, private: false }];
    let good = Message::Work { id: 1, tasks: vec![Task::FinishDirs { source: 0, dirs }] };
    let frame = good.encode().expect("a small message");
    let at = frame.windows(2).position(|two| two == b"ab").expect("the name is in the frame");
    let mut bad = frame.clone();
    bad[at..at + 2].copy_from_slice(b"..");
    assert!(matches!(Message::decode(&bad), Err(FrameError::Damaged(_))));
}

fn file(size: u64, range_len: u64) -> LargeFile {
    let (mtime, ctime) = (Timestamp::default(), Timestamp::default());
    LargeFile {
        source: 0,
        path: RelPath::root().join(b"f"),
        identity: Identity { size, mtime, ctime },
        atime: mtime,
        sparse: false,
        range_len,
        temporary: Temporary { generation: 1, attempt: 0 },
        found: false,
    }
}

fn work(task: Task) -> Message {
    Message::Work { id: 1, tasks: vec![task] }
}

fn report(result: TaskResult) -> Message {
    Message::Report(Box::new(Report { results: vec![result], ..Report::default() }))
}

/// A job of one source, a directory that becomes the copy's `in`, or the single entry of that name.
pub(crate) fn job_of(single: Option<&[u8]>) -> Job {
    let tuning = Tuning {
        range_len: 4096,
        block_len: 4096,
        threads: None,
        direct: Direct::Auto,
        digest: true,
        sparse: Sparse::Auto,
        durability: Durability::Checkpoint,
        retries: 0,
        reflink: Reflink::Auto,
    };
    let single = single.map(<[u8]>::to_vec);
    Job {
        id: 1,
        secret: Secret::new([7; 16]),
        maker: Maker::default(),
        sources: vec![Source {
            dir: b"/s".to_vec(),
            single,
            target: RelPath::root().join(b"in"),
            file_system: 0,
            leftovers: Leftovers::Copied,
        }],
        destination: b"/d".to_vec(),
        abandoned: Vec::new(),
        generation: 1,
        began: None,
        state: None,
        fresh: true,
        coarse_times: false,
        tuning,
        policy: Policy::default(),
        filter: Filter::default(),
        one_file_system: false,
    }
}

#[test]
fn a_message_that_cannot_be_right_is_refused_when_it_is_decoded() {
    let (root, f) = (RelPath::root(), RelPath::root().join(b"f"));
    let known = |name: &[u8], kind| {
        let entries = vec![Known { name: name.to_vec(), kind, entry: None, partial: None }];
        work(Task::Known { source: 0, dir: RelPath::root(), entries })
    };
    let owner = |path: &RelPath, kind| {
        let (id, partial) = (None, None);
        work(Task::Owner { source: 0, path: path.clone(), kind, id, attempt: 0, unlinkable: false, partial })
    };
    let range = |size, range_len, index| work(Task::Range { file: file(size, range_len), index });
    let large = |size, range_len| report(TaskResult::Returned(vec![Returned::Large(file(size, range_len))]));
    let begin = |change: &dyn Fn(&mut Job)| {
        let mut job = job_of(None);
        change(&mut job);
        Message::Begin(Some(Box::new(job)))
    };
    let single = |name: &[u8]| Message::Begin(Some(Box::new(job_of(Some(name)))));
    let hello = |threads, host: String| Message::Hello(Hello { host, threads, syncs: true, trouble: None });
    let listing = |listing| report(TaskResult::Listed(Box::new(listing)));
    let many = |count: usize, kind| {
        let mut names = Names::default();
        (0..count).for_each(|n| names.push(format!("{n}").as_bytes(), kind));
        names
    };
    let good = [
        known(b"f", Kind::Fifo),
        owner(&f, Kind::File),
        range(4097, 4096, 1),
        large(1 << 62, 1 << 40),
        begin(&|_| {}),
        single(b"x"),
        hello(4, "node".into()),
        listing(Listing { subdirs: many(257, Kind::Dir), rest: many(9000, Kind::File), ..Listing::default() }),
    ];
    for message in good {
        assert_eq!(Message::decode(&message.encode().expect("encodes")), Ok(message));
    }
    let bad = [
        known(b"..", Kind::File),
        known(b"a/b", Kind::File),
        known(b"", Kind::File),
        known(&[b'n'; 4097], Kind::File),
        known(b"f", Kind::Dir),
        owner(&root, Kind::File),
        owner(&f, Kind::Dir),
        work(Task::Entries { source: 0, dir: root.clone(), names: many(1, Kind::Dir) }),
        range(4097, 4096, 2),
        range(4097, 4096, u64::MAX),
        range(4096, 4096, 0),
        range(u64::MAX, 4096, 0),
        range(9000, 0, 0),
        range(9000, 4095, 0),
        range(9000, 2048, 0),
        range(1 << 62, 1 << 41, 0),
        large(1 << 40, 4096),
        large(9000, 5000),
        report(TaskResult::Owned(Box::new(Owned::Large(file(1, 4096))))),
        report(TaskResult::Returned(vec![Returned::Unlinkable { path: root.clone(), kind: Kind::File }])),
        begin(&|job| job.sources.clear()),
        begin(&|job| job.generation = 0),
        begin(&|job| job.tuning.range_len = 5000),
        begin(&|job| job.tuning.block_len = 0),
        begin(&|job| job.tuning.block_len = 1 << 40),
        begin(&|job| job.tuning.threads = Some(1 << 20)),
        single(b".."),
        single(b"../etc/passwd"),
        hello(0, "node".into()),
        hello(u32::MAX, "node".into()),
        hello(1, "n".repeat(2000)),
        listing(Listing { subdirs: many(258, Kind::Dir), ..Listing::default() }),
        listing(Listing { subdirs: many(1, Kind::File), ..Listing::default() }),
        listing(Listing { rest: many(12_000, Kind::File), ..Listing::default() }),
    ];
    for message in bad {
        let decoded = Message::decode(&message.encode().expect("encodes"));
        assert!(matches!(decoded, Err(FrameError::Senseless(_) | FrameError::Damaged(_))), "{message:?}");
    }
}

#[test]
fn a_list_is_no_longer_than_any_that_is_sent() {
    let ended =
        |count| Message::Report(Box::new(Report { results: vec![TaskResult::Ended; count], ..Report::default() }));
    let unlinkable = Returned::Unlinkable { path: RelPath::root().join(b"f"), kind: Kind::File };
    let returned = |count| report(TaskResult::Returned(vec![unlinkable.clone(); count]));
    let confirmed = |count| report(TaskResult::Dirs { confirmed: vec![0; count] });
    let cases: [(usize, &dyn Fn(usize) -> Message); 3] =
        [(MAX_TASKS, &ended), (MAX_BATCH_NAMES, &returned), (MAX_BATCH_NAMES, &confirmed)];
    for (most, message) in cases {
        let decoded = |count| Message::decode(&message(count).encode().expect("encodes"));
        assert!(decoded(most).is_ok());
        assert!(matches!(decoded(most + 1), Err(FrameError::Damaged(_))));
    }
}

#[test]
fn a_job_has_the_tasks_of_its_sources_and_no_other() {
    let path = |path: &str| RelPath::new(path.as_bytes().to_vec()).expect("a path");
    let entries =
        |source, dir: &str, name: &[u8]| Task::Entries { source, dir: path(dir), names: Names::one(name, Kind::File) };
    let list = |source, dir: &str| Task::List { source, dir: path(dir), keep: 1 };
    let finish = |dir: &str| {
        let dirs = vec![FinishedDir { path: path(dir), before: None, recorded: None, failure: None, private: false }];
        Task::FinishDirs { source: 0, dirs }
    };
    let range = |source| Task::Range { file: LargeFile { source, path: path("in/f"), ..file(9000, 4096) }, index: 0 };
    let (dir, single) = (job_of(None), job_of(Some(b"x")));
    let dry = Job { policy: Policy { dry_run: true, ..Policy::default() }, ..job_of(None) };
    for (job, task, has) in [
        (&dir, entries(0, "in", b"f"), true),
        (&dir, entries(0, "in/deep", b"f"), true),
        (&dir, entries(1, "in", b"f"), false),
        (&dir, entries(u16::MAX, "in", b"f"), false),
        (&dir, entries(0, "", b"in"), false),
        (&dir, entries(0, "inn", b"f"), false),
        (&dir, list(0, "in"), true),
        (&dir, list(0, ""), false),
        (&dir, finish("in/d"), true),
        (&dir, finish("other"), false),
        (&dir, range(0), true),
        (&dir, range(1), false),
        (&dry, range(0), false),
        (&dry, entries(0, "in", b"f"), true),
        (&single, entries(0, "", b"in"), true),
        (&single, entries(0, "", b"other"), false),
        (&single, list(0, "in"), false),
        (&single, finish("in"), false),
    ] {
        assert_eq!(job.has(&task), has, "{task:?}");
    }
}

#[test]
fn what_another_rank_says_is_shown_as_one_line() {
    let trouble = Trouble { text: "no\nspace\x1b[1A".into(), errno: 28 };
    assert_eq!(trouble.to_string(), "no\\nspace\\u{1b}[1A");
}
