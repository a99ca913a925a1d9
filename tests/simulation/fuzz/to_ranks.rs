//! Work: decoded, and done by a real I/O thread on real files in a small tree, beside which nothing may change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pcopy::journal::{Item, Recorder, encode_item};
use pcopy::policy::{Filter, Leftovers, Policy};
use pcopy::proto::{
    Direct, Durability, FinishedDir, Job, Known, KnownEntry, LargeFile, Message, Names, Owned, Reflink, Returned,
    Source, Sparse, Task, TaskResult, Tuning,
};
use pcopy::retry::Lag;
use pcopy::scan::{Rooms, Roots};
use pcopy::state::{marker_name, os_name};
use pcopy::transfer::{Mover, Node, Throttle, reading};
use pcopy::types::{Kind, Maker, Outcome, Record, RelPath, Secret};

use super::mutate::mutated;
use super::{below, fuzz};
use crate::driver::memory;
use crate::driver::storage::Random;
use crate::driver::tree::facts;

const RANGE_LEN: u64 = 4096;

/// A directory with a source, a destination, and what belongs to neither.
struct Home {
    base: tempfile::TempDir,
    job: Arc<Job>,
    mover: Mover,
    recorder: Arc<Mutex<Recorder>>,
    /// All but the destination, as it was.
    before: BTreeMap<PathBuf, String>,
}

fn path(path: &str) -> RelPath {
    RelPath::new(path.as_bytes().to_vec()).expect("a path")
}

/// Every entry below a directory, but for `except`: kind, mode, times and content.
fn shown(top: &Path, except: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut left) = (BTreeMap::new(), vec![top.to_path_buf()]);
    while let Some(at) = left.pop() {
        let meta = at.symlink_metadata().expect("it is there");
        let content = if meta.is_file() { fs::read(&at).expect("it can be read") } else { Vec::new() };
        let told = format!("{:o} {} {}.{} {content:?}", meta.mode(), meta.nlink(), meta.mtime(), meta.mtime_nsec());
        if meta.is_dir() {
            let below = fs::read_dir(&at).expect("it lists").map(|entry| entry.expect("an entry").path());
            left.extend(below.filter(|below| below != except));
        }
        found.insert(at, told);
    }
    found
}

fn job(base: &Path) -> Job {
    let bytes = |name: &str| base.join(name).into_os_string().into_encoded_bytes();
    let tuning = Tuning {
        range_len: RANGE_LEN,
        block_len: 4096,
        threads: Some(1),
        direct: Direct::Never,
        digest: true,
        sparse: Sparse::Auto,
        durability: Durability::None,
        retries: 0,
        reflink: Reflink::Never,
    };
    Job {
        id: 7,
        abandoned: Vec::new(),
        secret: Secret::new([7; 16]),
        maker: Maker::default(),
        sources: vec![Source {
            dir: bytes("src"),
            single: None,
            target: path("in"),
            file_system: 0,
            leftovers: Leftovers::Copied,
        }],
        destination: bytes("dst"),
        generation: 2,
        began: None,
        state: None,
        fresh: false,
        coarse_times: false,
        tuning,
        policy: Policy::default(),
        filter: Filter::default(),
        one_file_system: false,
    }
}

impl Home {
    fn new() -> Self {
        let base = tempfile::tempdir().expect("a directory");
        let at = |name: &str| base.path().join(name);
        for dir in ["src/d", "dst/in/d", "beside"] {
            fs::create_dir_all(at(dir)).expect("made");
        }
        for (name, len) in [("src/small", 10), ("src/d/large", 9000), ("src/d/f", 100), ("beside/secret", 5)] {
            fs::write(at(name), vec![b'x'; len]).expect("written");
        }
        fs::hard_link(at("src/small"), at("src/too")).expect("linked");
        symlink("../../beside", at("src/link")).expect("linked");
        // a way out of the destination for who follows it
        symlink("../../beside", at("dst/in/out")).expect("linked");
        let job = Arc::new(job(base.path()));
        fs::write(at("dst").join(os_name(&marker_name(job.id))), "").expect("written");
        let (mover, recorder) = mover(&job);
        let before = shown(base.path(), &at("dst"));
        Self { base, job, mover, recorder, before }
    }

    /// Whether nothing but the destination has changed; that begins anew.
    fn check(&mut self) {
        assert_eq!(shown(self.base.path(), &self.base.path().join("dst")), self.before, "outside of the destination");
        let inside = self.base.path().join("dst/in");
        fs::remove_dir_all(&inside).expect("removed");
        fs::create_dir_all(inside.join("d")).expect("made");
        symlink("../../beside", inside.join("out")).expect("linked");
        // what was opened below is gone
        (self.mover, self.recorder) = mover(&self.job);
    }

    /// Frames of work as rank 0 sends it, made of what the rank itself hands back.
    fn corpus(&mut self) -> Vec<Vec<u8>> {
        let mut names = Names::one(b"small", Kind::File);
        [b"too" as &[u8], b"gone"].iter().for_each(|name| names.push(name, Kind::File));
        names.push(b"link", Kind::Symlink);
        let entries = Task::Entries { source: 0, dir: path("in"), names };
        let listed = Task::List { source: 0, dir: path("in/d"), keep: 5 };
        let owner = |at: &str| Task::Owner {
            source: 0,
            path: path(at),
            kind: Kind::File,
            id: None,
            attempt: 0,
            unlinkable: false,
            partial: None,
        };
        let result = self.mover.run(1, vec![owner("in/d/large")]).results.remove(0);
        let TaskResult::Owned(owned) = result else { panic!("{result:?}") };
        let Owned::Large(file) = *owned else { panic!("{owned:?}") };
        let large = |file: &LargeFile| file.clone();
        let record = || {
            let mut record = Vec::new();
            let entry = Record { path: RelPath::root(), kind: Kind::File, outcome: Outcome::Done(facts(10)) };
            encode_item(&Item::Entry(entry), &mut record);
            Some(KnownEntry { number: 4, record })
        };
        let known =
            |name: &str| Known { name: name.into(), kind: Kind::File, entry: record(), partial: Some(file.partial()) };
        let dir = FinishedDir { path: path("in/d"), before: None, recorded: record(), failure: None, private: true };
        let facts = Box::new(facts(10));
        let (owner_path, paths) = (path("in/small"), vec![path("in/too"), path("in/d/third")]);
        let tasks = [
            vec![entries],
            vec![listed],
            vec![owner("in/small"), owner("in/d/large")],
            vec![Task::Known { source: 0, dir: path("in"), entries: vec![known("small"), known("too")] }],
            (0..3).map(|index| Task::Range { file: large(&file), index }).collect(),
            vec![Task::FinishFile { file: large(&file), digest: Some([1; 32]), unlinkable: false }],
            vec![Task::Abandon { file: large(&file), failure: None }],
            vec![Task::Links { source: 0, owner: owner_path, kind: Kind::File, facts, paths }],
            vec![Task::FinishDirs { source: 0, dirs: vec![dir] }],
        ];
        let frame = |(id, tasks)| Message::Work { id, tasks }.encode().expect("short");
        (0..).zip(tasks).map(frame).collect()
    }

    /// Does the work of a frame, if it is work of this job.
    fn take(&mut self, frame: &[u8]) -> [u64; 3] {
        let decoded = memory::inside(|| Message::decode(frame));
        let Ok(Message::Work { id, tasks }) = decoded else { return [1, 0, 0] };
        if !tasks.iter().all(|task| self.job.has(task)) {
            memory::inside(|| drop(tasks));
            return [1, 1, 0];
        }
        let report = memory::inside(|| self.mover.run(id, tasks));
        // nothing makes it durable here
        let mut recorder = self.recorder.lock().expect("nobody has panicked");
        recorder.seal();
        memory::inside(|| drop(recorder.take_sealed()));
        let answer = memory::inside(|| Message::Report(Box::new(report)));
        let frame = answer.encode().expect("a report fits a frame");
        assert_eq!(Message::decode(&frame).as_ref(), Ok(&answer), "what a rank sends is a message");
        memory::inside(|| drop(answer));
        [1, 1, 1]
    }
}

fn mover(job: &Arc<Job>) -> (Mover, Arc<Mutex<Recorder>>) {
    let node = Arc::new(Node::open(job).expect("both trees are there"));
    let roots = Roots {
        sources: node.source_dirs(),
        destination: Arc::clone(node.destination()),
        reading: reading(job),
        unsynced: None,
        lag: Lag::default(),
        guard: Arc::clone(node.guard()),
        cached_dirs: 8,
    };
    let rooms = Arc::new(Rooms::new(job, &roots).expect("both trees are there"));
    let recorder = Arc::<Mutex<Recorder>>::default();
    let throttle = Arc::new(Throttle::default());
    (Mover::new(job, &node, &recorder, (&rooms, &roots), (&Arc::default(), &throttle)), recorder)
}

#[test]
fn changed_work_touches_nothing_outside_of_the_destination() {
    let mut home = Home::new();
    let corpus = home.corpus();
    for frame in &corpus {
        assert_eq!(home.take(frame), [1, 1, 1], "honest work is done");
    }
    home.check();
    let counts = fuzz(["frames", "decoded", "done"], |random: &mut Random| {
        let mut counts = [0; 3];
        for _ in 0..64 {
            let frame = &corpus[below(random, corpus.len())];
            let taken = home.take(&mutated(frame, &corpus, random));
            counts.iter_mut().zip(taken).for_each(|(count, more)| *count += more);
        }
        home.check();
        counts
    });
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn the_judge_notices_what_changes_beside_the_destination() {
    let home = Home::new();
    let now = || shown(home.base.path(), &home.base.path().join("dst"));
    assert_eq!(now(), home.before);
    fs::write(home.base.path().join("dst/in/f"), "new").expect("written");
    assert_eq!(now(), home.before, "the destination is not looked at");
    fs::write(home.base.path().join("beside/secret"), "yyyyy").expect("written");
    assert_ne!(now(), home.before);
}

#[test]
fn a_large_file_that_is_handed_back_is_a_sound_one() {
    let mut home = Home::new();
    let names = Names::one(b"large", Kind::File);
    let result = home.mover.run(1, vec![Task::Entries { source: 0, dir: path("in/d"), names }]).results.remove(0);
    let TaskResult::Returned(returned) = result else { panic!("{result:?}") };
    let Returned::Large(file) = &returned[0] else { panic!("{returned:?}") };
    assert_eq!(file.ranges().expect("sound").count(), 3);
}
