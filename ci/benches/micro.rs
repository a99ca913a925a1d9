//! The pieces that every entry passes through, one by one.
//!
//!     MPICC=mpicc.openmpi cargo bench --target-dir target/openmpi --bench micro

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use pcopy::coordinator::Coordinator;
use pcopy::digest::Merge;
use pcopy::journal::{Batch, Encoded, Header, Item, Journal, encode_item};
use pcopy::manifest::{self, Place, Writer, write_entry};
use pcopy::proto::{MAX_BATCH_NAMES, Message, Names, Report, Task, TaskResult};
use pcopy::scan::ScanEvent;
use pcopy::types::{Facts, Fate, Kind, Outcome, Record, RelPath, Stats, Timestamp, Unkept};

type Group<'a> = BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn facts() -> Facts {
    let time = Timestamp { sec: 1_732_178_000, nsec: 123_456_789 };
    Facts {
        size: 4096,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        mtime: time,
        ctime: time,
        mtime_there: None,
        target: None,
        digest: Some([7; 32]),
        rdev: None,
        hardlink: None,
        unkept: Unkept::default(),
        fate: Fate::Made,
    }
}

fn dir() -> RelPath {
    RelPath::root().join(b"project").join(b"results").join(b"run-000123")
}

fn item(number: usize) -> Item {
    let path = dir().join(format!("file-{number:08}.dat").as_bytes());
    Item::Entry(Record { path, kind: Kind::File, outcome: Outcome::Done(facts()) })
}

fn names(count: usize) -> Names {
    let mut names = Names::default();
    for number in 0..count {
        names.push(format!("file-{number:08}.dat").as_bytes(), Kind::File);
    }
    names
}

fn report(id: u64, tasks: usize, entries: usize) -> Report {
    Report {
        id,
        results: vec![TaskResult::Returned(Vec::new()); tasks],
        bytes_moved: 4096 * entries as u64,
        ended: Stats { files: entries as u64, bytes: 4096 * entries as u64, ..Stats::default() },
        full: false,
        halting: None,
        failures: Vec::new(),
        private: Vec::new(),
    }
}

fn records(c: &mut Criterion) {
    const COUNT: usize = 1000;
    let items: Vec<Item> = (0..COUNT).map(item).collect();
    let mut encoded = Vec::new();
    items.iter().for_each(|item| encode_item(item, &mut encoded));
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Elements(COUNT as u64));
    group.bench_function("encode", |b| {
        let mut bytes = Vec::new();
        b.iter(|| {
            bytes.clear();
            items.iter().for_each(|item| encode_item(item, &mut bytes));
        });
    });
    group.bench_function("decode", |b| {
        b.iter(|| {
            let (mut bytes, mut item) = (black_box(encoded.as_slice()), Encoded::default());
            while item.read(&mut bytes).expect("items") {
                black_box(item.decode().expect("an item"));
            }
        });
    });
    group.finish();
}

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("message");
    for count in [4, 64, MAX_BATCH_NAMES] {
        let tasks = vec![Task::Entries { source: 0, dir: dir(), names: names(count) }];
        coded(&mut group, &format!("work of {count} names"), &Message::Work { id: 123_456, tasks }, count);
    }
    coded(&mut group, "report", &Message::Report(Box::new(report(123_456, 1, 64))), 1);
    group.finish();
}

fn coded(group: &mut Group<'_>, what: &str, message: &Message, count: usize) {
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function(format!("encode {what}"), |b| b.iter(|| black_box(message).encode().expect("a frame")));
    let frame = message.encode().expect("a frame");
    group.bench_function(format!("decode {what}"), |b| b.iter(|| Message::decode(black_box(&frame)).expect("whole")));
}

fn digests(c: &mut Criterion) {
    const RANGES: u64 = 1 << 16;
    let mut group = c.benchmark_group("digest");
    group.throughput(Throughput::Elements(RANGES));
    // as they come from 1024 ranks
    let order: Vec<u64> = (0..1024).flat_map(|first| (first..RANGES).step_by(1024)).collect();
    for (what, order) in [("in order", (0..RANGES).collect()), ("in strides", order)] {
        group.bench_function(format!("merge of 65536 ranges {what}"), |b| {
            b.iter(|| {
                let mut merge = Merge::new(RANGES);
                order.iter().for_each(|&index| merge.insert(index, [3; 32]));
                merge.digest().expect("all have come")
            });
        });
    }
    group.finish();
}

/// Rank, assignment, number of its tasks.
type Running = (usize, u64, usize);

/// A coordinator in the middle of a job: its queue is full, and every thread has work.
fn busy(ranks: usize, found: &Names) -> (Coordinator, VecDeque<Running>) {
    let mut coordinator = Coordinator::new(&vec![1; ranks], true, Arc::default());
    let mut running = VecDeque::new();
    coordinator.scan(ScanEvent::Dir { id: 0, parent: None, source: 0, path: dir().into() });
    refill(&mut coordinator, found);
    while let Some(work) = coordinator.next_work() {
        running.push_back((work.rank, work.id, work.tasks.len()));
        refill(&mut coordinator, found);
    }
    (coordinator, running)
}

fn refill(coordinator: &mut Coordinator, found: &Names) {
    while coordinator.wants_scan() {
        coordinator.scan(ScanEvent::Names { dir: 0, names: found.clone() });
    }
}

fn steps(c: &mut Criterion) {
    const COUNT: usize = 1000;
    let mut group = c.benchmark_group("coordinator");
    group.throughput(Throughput::Elements(COUNT as u64));
    let found = names(MAX_BATCH_NAMES);
    for ranks in [64, 10_000] {
        let (mut coordinator, mut running) = busy(ranks, &found);
        group.bench_function(format!("report, scan and next work, {ranks} ranks"), |b| {
            b.iter(|| {
                for _ in 0..COUNT {
                    let (rank, id, tasks) = running.pop_front().expect("all have work");
                    coordinator.report(rank, &report(id, tasks, 0)).expect("in order");
                    refill(&mut coordinator, &found);
                    let work = coordinator.next_work().expect("the queue is full");
                    running.push_back((work.rank, work.id, work.tasks.len()));
                }
            });
        });
    }
    group.finish();
}

/// As many groups as a rank's journal has after some minutes, merged into a manifest.
fn manifests(c: &mut Criterion) {
    const GROUPS: usize = 32;
    const COUNT: usize = 1000;
    const FRAME_LEN: usize = 128 << 10;
    let header = Header { job_id: 1, generation: 1, rank: 0, ranks: 1 };
    let journal = || {
        let mut journal = Journal::new(None, header, false);
        for group in 0..GROUPS {
            let mut batch = Batch::default();
            (0..COUNT).for_each(|number| batch.push(&item(number * GROUPS + group)));
            journal.commit(batch).expect("in memory");
        }
        journal
    };
    let mut group = c.benchmark_group("manifest");
    group.sample_size(20);
    group.throughput(Throughput::Elements((GROUPS * COUNT) as u64));
    group.bench_function("merge of 32 groups", |b| {
        let merged = |journal: Journal| {
            let (mut entries, mut frame) = (journal.into_sorted().expect("in memory"), Vec::new());
            while !entries.is_at_end() {
                frame.clear();
                entries.fill(&mut frame, FRAME_LEN).expect("in memory");
            }
        };
        b.iter_batched(journal, merged, BatchSize::LargeInput);
    });
    let record = |number| match item(number) {
        Item::Entry(record) => record,
        Item::Range(_) => unreachable!("all are entries"),
    };
    let records: Vec<Record> = (0..GROUPS * COUNT).map(record).collect();
    let place = tempfile::tempdir().expect("a directory for the manifest");
    group.bench_function("lines", |b| {
        b.iter(|| {
            let dir = std::fs::File::open(place.path()).expect("just made").into();
            let mut writer = Writer::create(Place { dir, name: b"m".to_vec() }, &first_line()).expect("a manifest");
            for records in records.chunks(500) {
                let (mut lines, mut stats) = (Vec::new(), Stats::default());
                for record in records {
                    write_entry(record, &mut lines).expect("memory for it");
                    stats.count(record);
                }
                writer.lines(&lines, &stats).expect("space for it");
            }
            writer.finish(1.0).expect("space for it")
        });
    });
    group.finish();
}

fn first_line() -> manifest::Header {
    manifest::Header {
        pcopy_manifest: manifest::FORMAT_VERSION,
        oldest_reader: manifest::OLDEST_READER,
        version: "0",
        hosts: Vec::new(),
        ranks: 1,
        sources: Vec::new(),
        destination: "/backup".into(),
        options: std::collections::BTreeMap::new(),
        started: "2026-11-21T09:10:15Z".into(),
        dry_run: false,
    }
}

criterion_group!(benches, records, messages, digests, steps, manifests);
criterion_main!(benches);
