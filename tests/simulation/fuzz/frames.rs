//! Frames of every kind, decoded alone; and the records that come in some of them.

use pcopy::journal::{Encoded, Item, RangeDone, encode_item};
use pcopy::policy::{Filter, Leftovers, Policy, Rule};
use pcopy::proto::{
    Checkpoint, Direct, Durability, Hello, Job, Message, Records, Reflink, Report, Signal, Source, Sparse, Task,
    TaskResult, Trouble, Tuning,
};
use pcopy::types::{Failure, Kind, Maker, Op, Outcome, Partial, Record, RelPath, Secret, Side, Temporary};

use super::fuzz;
use super::mutate::mutated;
use crate::driver::memory;
use crate::driver::storage::Random;
use crate::driver::tree::{facts, identity};

fn job() -> Job {
    let source = Source {
        dir: b"/s".to_vec(),
        single: None,
        target: RelPath::root(),
        file_system: 0,
        leftovers: Leftovers::OfJobs(vec![8, 9]),
    };
    let single = Source {
        dir: b"/s".to_vec(),
        single: Some(b"one".to_vec()),
        target: path("one"),
        file_system: 1,
        leftovers: Leftovers::Copied,
    };
    Job {
        id: 7,
        secret: Secret::new([7; 16]),
        maker: Maker::of(4, 0o644),
        abandoned: vec![8, 9],
        sources: vec![source, single],
        destination: b"/d".to_vec(),
        generation: 2,
        began: Some(identity(1).mtime),
        state: Some(pcopy::proto::StatePlace::InCopy),
        fresh: false,
        coarse_times: false,
        tuning: Tuning {
            range_len: 4096,
            block_len: 4096,
            threads: Some(2),
            direct: Direct::Auto,
            digest: true,
            sparse: Sparse::Auto,
            durability: Durability::Checkpoint,
            retries: 5,
            reflink: Reflink::Auto,
        },
        policy: Policy::default(),
        filter: Filter::new(vec![Rule::new(false, b"*.tmp").expect("a pattern")]),
        one_file_system: false,
    }
}

fn path(path: &str) -> RelPath {
    RelPath::new(path.as_bytes().to_vec()).expect("a path")
}

fn records() -> Vec<u8> {
    let failure = Failure { op: Op::Open, side: Side::Source, errno: 13 };
    let entry = |at: &str, outcome| Item::Entry(Record { path: path(at), kind: Kind::File, outcome });
    let temporary = Temporary { generation: 1, attempt: 0 };
    let partial = Partial { identity: identity(9000), temporary, range_len: 4096 };
    let range = Item::Range(RangeDone { path: path("r"), partial, index: 1, value: Some([1; 32]) });
    let mut bytes = Vec::new();
    [entry("a/b", Outcome::Done(facts(3))), entry("c", Outcome::Failed(failure)), range]
        .iter()
        .for_each(|item| encode_item(item, &mut bytes));
    bytes
}

fn corpus() -> Vec<Vec<u8>> {
    let trouble = Trouble { text: "no space".into(), errno: 28 };
    let hello = Hello { host: "node1".into(), threads: 4, syncs: true, trouble: Some("no mount".into()) };
    let list = Task::List { source: 0, dir: path("a"), keep: 4 };
    let results = vec![TaskResult::Ended, TaskResult::Listed(Box::default())];
    let report = Report { results, private: vec![0, 1], ..empty_report() };
    let messages = [
        Message::Begin(None),
        Message::Begin(Some(Box::new(job()))),
        Message::Hello(hello),
        Message::Work { id: 9, tasks: vec![list] },
        Message::Report(Box::new(report)),
        Message::Checkpoint(Checkpoint::Sealed(1, true)),
        Message::Checkpoint(Checkpoint::Committed(2, Err(trouble))),
        Message::Signalled(Signal::Terminate),
        Message::Limit(Some(1 << 20)),
        Message::Stopped(Err("an I/O thread panicked".into())),
        Message::WantRecords(4096),
        Message::Records { records: Records(records()), last: true },
        Message::Bye,
    ];
    messages.iter().map(|message| message.encode().expect("a short message")).collect()
}

/// What is in the records of a frame, as the merge and the manifest read them.
fn read(mut records: &[u8]) -> u64 {
    let (mut item, mut count) = (Encoded::default(), 0);
    while let Ok(true) = item.read(&mut records) {
        assert!(item.bytes().len() > item.path().len());
        count += u64::from(item.decode().is_ok());
    }
    count
}

fn take(frame: &[u8]) -> [u64; 3] {
    let decoded = memory::inside(|| Message::decode(frame));
    let Ok(message) = decoded else { return [1, 0, 0] };
    let again = message.encode().expect("what was decoded fits a frame");
    let same = memory::inside(|| Message::decode(&again));
    assert_eq!(same.as_ref(), Ok(&message));
    let items = match &message {
        Message::Records { records, .. } => memory::inside(|| read(&records.0)),
        _ => 0,
    };
    memory::inside(|| drop((message, same)));
    [1, 1, items]
}

#[test]
fn changed_frames_of_every_kind_are_errors_or_messages() {
    let corpus = corpus();
    let counts = fuzz(["frames", "decoded", "records in them"], |random: &mut Random| {
        let frame = &corpus[super::below(random, corpus.len())];
        take(&mutated(frame, &corpus, random))
    });
    assert!(counts.iter().all(|count| *count > 0) || std::env::var_os("PCOPY_SEED").is_some(), "{counts:?}");
}

#[test]
fn the_longest_frame_does_not_become_more_memory_than_it_may() {
    memory::reset();
    let (start, len) = (Message::Report(Box::new(empty_report())).encode().expect("short"), 8 << 20);
    let mut taken = 0;
    for fill in [0u8, 1, 2, 4, 5, 6, 7, 8, 127] {
        for announced in [512u64, 1024, 16 << 10, 8_000_000] {
            for at in 2..start.len() {
                let mut frame = start[..at].to_vec();
                frame.extend(postcard_len(announced));
                frame.resize(len, fill);
                taken += take(&frame)[0];
            }
        }
    }
    assert!(taken > 300 && memory::peak() < super::MAX_MEMORY, "{taken} {}", memory::peak());
}

fn empty_report() -> Report {
    Report { id: 3, bytes_moved: 1, full: true, ..Report::default() }
}

/// A length as the encoding has it: seven bits a byte, the lowest first.
fn postcard_len(mut len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while len > 127 {
        bytes.push(u8::try_from(len & 127).expect("seven bits") | 128);
        len >>= 7;
    }
    bytes.push(u8::try_from(len).expect("seven bits"));
    bytes
}
