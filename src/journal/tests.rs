//! Journals as they are written, and as crashes and damage leave them.

use std::fs::{self, File};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::sys::open_root;
use crate::types::{Facts, Failure, Fate, Identity, Kind, Op, Outcome, Partial, Side, Temporary, Unkept};

const HEADER: Header = Header { job_id: 0x0123_4567_89ab_cdef, generation: 2, rank: 3, ranks: 4 };

fn path(n: u32) -> RelPath {
    // spread, so that groups interleave
    RelPath::root().join(format!("{:08x}", n.wrapping_mul(0x9e37_79b1)).as_bytes())
}

fn entry(n: u32) -> Item {
    let failure = Failure { op: Op::Read, side: Side::Source, errno: 5 };
    Item::Entry(Record { path: path(n), kind: Kind::File, outcome: Outcome::Failed(failure) })
}

fn range(n: u32) -> Item {
    let time = crate::types::Timestamp { sec: -1, nsec: 999_999_999 };
    let temporary = Temporary { generation: 2, attempt: 1 };
    let identity = Identity { size: 1 << 40, mtime: time, ctime: time };
    let partial = Partial { identity, temporary, range_len: 1 << 24 };
    Item::Range(RangeDone { path: path(n), partial, index: n.into(), value: Some([7; 32]) })
}

/// An entry that was copied, whose size tells it from others of its path.
fn done(n: u32, size: u64) -> Item {
    let time = crate::types::Timestamp { sec: 1, nsec: 2 };
    let facts = Facts {
        size,
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: time,
        ctime: time,
        mtime_there: None,
        target: None,
        digest: Some([9; 32]),
        rdev: None,
        hardlink: None,
        unkept: Unkept::default(),
        fate: Fate::Made,
    };
    Item::Entry(Record { path: path(n), kind: Kind::File, outcome: Outcome::Done(facts) })
}

fn batch(items: impl IntoIterator<Item = Item>) -> Batch {
    let mut batch = Batch::default();
    items.into_iter().for_each(|item| batch.push(&item));
    batch
}

/// A journal of these groups in a directory of its own.
fn written(groups: &[Vec<Item>]) -> (tempfile::TempDir, Vec<u8>) {
    let home = tempfile::tempdir().expect("a temporary directory");
    let dir = Arc::new(open_root(home.path()).expect("opens"));
    let mut journal = Journal::new(Some(dir), HEADER, true);
    groups.iter().for_each(|items| journal.commit(batch(items.clone())).expect("committed"));
    let bytes = fs::read(home.path().join("journal-000002.3")).expect("read");
    (home, bytes)
}

fn found(bytes: &[u8]) -> Result<(Vec<Item>, u64, bool), Trouble> {
    let home = tempfile::tempdir().expect("a temporary directory");
    fs::write(home.path().join("j"), bytes).expect("written");
    reader::read(File::open(home.path().join("j")).expect("opens")).expect("read").map(|found| {
        let mut items = Vec::new();
        let each = |item: &Encoded, _| {
            items.push(item.decode()?);
            Ok(())
        };
        found.groups.for_each(each).expect("read");
        (items, found.damaged, found.torn)
    })
}

fn sorted(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by(|a, b| a.path().cmp(b.path()));
    items
}

#[test]
fn bytes_are_as_the_table_says() {
    let (_home, bytes) = written(&[vec![entry(1)]]);
    let golden = concat!(
        "70636f70796a6e6c",
        "02000000",
        "02000000",
        "efcdab8967452301",
        "02000000",
        "03000000",
        "04000000",
        "00000000000000000000000000000000000000000000000000000000",
    );
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&bytes[..64]), golden);
    assert_eq!(bytes[64..96], *blake3::hash(&bytes[..64]).as_bytes());
    // length of the item, variant, path, kind, outcome: failed, operation, side, errno (zigzag)
    let item = ["0f000000", "00", "08", &hex(b"9e3779b1"), "00", "01", "03", "00", "0a"].concat();
    assert_eq!(hex(&bytes[96..120]), format!("{}{}{}", hex(b"JnlGroup"), "0100000000000000", "1300000000000000"));
    assert_eq!(hex(&bytes[120..139]), item);
    assert_eq!(bytes[139..], *blake3::hash(&bytes[96..139]).as_bytes());
}

#[test]
fn what_was_committed_is_read_again() {
    let groups: Vec<Vec<Item>> =
        (0..5).map(|g| (g * 10..g * 10 + 10).map(|n| if n % 7 == 0 { range(n) } else { entry(n) }).collect()).collect();
    let (_home, bytes) = written(&groups);
    let expected: Vec<Item> = groups.into_iter().flat_map(sorted).collect();
    assert_eq!(found(&bytes), Ok((expected, 0, false)));
}

/// What version 1 wrote differs in the header, and in that no entry had names of attributes.
#[test]
fn what_version_1_wrote_is_read() {
    let (_home, mut bytes) = written(&[vec![entry(1), done(2, 77)]]);
    (bytes[8], bytes[12]) = (1, 1);
    let digest = blake3::hash(&bytes[..64]);
    bytes[64..96].copy_from_slice(digest.as_bytes());
    let (items, damaged, torn) = found(&bytes).expect("read");
    assert_eq!((items, damaged, torn), (sorted(vec![entry(1), done(2, 77)]), 0, false));
    let unkept = |kinds: u8| {
        let item = Encoded::of(&done(2, 77)).bytes().to_vec();
        // the last two bytes: what was not kept, and why the entry is as it is
        let mut item = item.clone();
        let at = item.len() - 2;
        item[at] = kinds;
        let mut read = Encoded::default();
        assert!(read.read(&mut item.as_slice()).expect("read"));
        let Ok(Item::Entry(Record { outcome: Outcome::Done(facts), .. })) = read.decode() else { panic!("no entry") };
        facts.unkept.kinds()
    };
    assert_eq!(unkept(0b101_0001), ["ownership", "acl", "timestamps"]);
}

#[test]
fn a_file_that_ends_early_has_the_groups_before() {
    let groups = [vec![entry(1)], vec![entry(2), entry(3)]];
    let (_home, bytes) = written(&groups);
    let first = written(&groups[..1]).1.len();
    for len in 0..bytes.len() {
        let expected = match len {
            _ if len < HEADER_LEN => Err(Trouble::Foreign),
            _ if len < first => Ok((vec![], 0, len > HEADER_LEN)),
            _ => Ok((vec![entry(1)], 0, len > first)),
        };
        assert_eq!(found(&bytes[..len]), expected, "{len} of {}", bytes.len());
    }
}

#[test]
fn a_foreign_and_a_newer_file_are_told_apart() {
    let (_home, mut bytes) = written(&[vec![entry(1)]]);
    assert_eq!(found(&[b'x'; 200]), Err(Trouble::Foreign));
    bytes[8] = 9;
    assert_eq!(found(&bytes), Err(Trouble::Foreign), "a flipped bit in the header");
    let seal = |bytes: &mut Vec<u8>| {
        let digest = blake3::hash(&bytes[..64]);
        bytes[64..96].copy_from_slice(digest.as_bytes());
    };
    seal(&mut bytes);
    assert!(found(&bytes).is_ok(), "a newer writer that older readers understand");
    bytes[12] = 3;
    seal(&mut bytes);
    assert_eq!(found(&bytes), Err(Trouble::Newer(9)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_hash_is_found_where_halving_finds_it(
        mut hashes in prop_oneof![vec(any::<u64>(), 0..2000), vec(0u64..40, 0..300), vec(u64::MAX - 40..=u64::MAX, 0..300)],
        wanted in prop_oneof![any::<u64>(), 0u64..50, Just(u64::MAX)],
    ) {
        hashes.sort_unstable();
        for wanted in hashes.iter().copied().step_by(7).chain([wanted]) {
            prop_assert_eq!(super::base::first_of(&hashes, wanted, |hash| *hash), hashes.partition_point(|hash| *hash < wanted));
        }
    }

    #[test]
    fn a_flipped_bit_costs_its_group_and_no_other(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let groups: Vec<Vec<Item>> = (0..4).map(|g| vec![entry(g), range(g + 100)]).collect();
        let (_home, mut bytes) = written(&groups);
        let group_len = (bytes.len() - HEADER_LEN) / 4;
        let at = HEADER_LEN + at.index(bytes.len() - HEADER_LEN);
        bytes[at] ^= 1 << bit;
        let hit = (at - HEADER_LEN) / group_len;
        let expected: Vec<Item> = (0..4).filter(|g| *g != hit).flat_map(|g| sorted(groups[g].clone())).collect();
        let (damaged, torn) = if hit == 3 { (0, true) } else { (1, false) };
        prop_assert_eq!(found(&bytes), Ok((expected, damaged, torn)));
    }
}

#[test]
fn entries_come_back_sorted_through_many_groups() {
    for durable in [false, true] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dir = Arc::new(open_root(home.path()).expect("opens"));
        let mut journal = Journal::new(Some(dir), HEADER, durable);
        let (groups, each) = if durable { (3, 10) } else { (5000, 40) };
        for group in 0..groups {
            let items = (0..each).map(|n| entry(group * each + n)).chain([range(group)]);
            journal.commit(batch(items)).expect("committed");
        }
        let mut last = None;
        let mut count = 0;
        let mut entries = journal.into_sorted().expect("opened");
        while !entries.is_at_end() {
            let mut frame = Vec::new();
            entries.fill(&mut frame, 1000).expect("read");
            let (mut frame, mut item) = (frame.as_slice(), Encoded::default());
            while item.read(&mut frame).expect("whole") {
                let path = item.path().to_vec();
                assert!(item.is_entry() && last.as_ref().is_none_or(|last| last < &path), "{last:?} {path:?}");
                last = Some(path);
                count += 1;
            }
        }
        assert_eq!(count, groups * each);
        assert_eq!(fs::read_dir(home.path()).expect("listed").count(), 1, "only the journal is left");
    }
}

/// A state directory with journals: generation, rank, groups.
fn state(journals: &[(u32, u32, Vec<Vec<Item>>)]) -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("a temporary directory");
    let dir = Arc::new(open_root(home.path()).expect("opens"));
    for (generation, rank, groups) in journals {
        let header = Header { generation: *generation, rank: *rank, ..HEADER };
        let mut journal = Journal::new(Some(Arc::clone(&dir)), header, true);
        groups.iter().for_each(|items| journal.commit(batch(items.clone())).expect("committed"));
    }
    home
}

fn loaded(home: &tempfile::TempDir) -> Loaded {
    load(&open_root(home.path()).expect("opens"), HEADER.job_id).expect("loaded")
}

fn size_of_recorded(base: &Base, n: u32) -> Option<u64> {
    base.find(&path(n), &mut Block::default()).expect("read").map(|(_, found)| match found.decode() {
        Ok(Item::Entry(Record { outcome: Outcome::Done(facts), .. })) => facts.size,
        other => panic!("{other:?} is not recorded for later"),
    })
}

#[test]
fn the_newest_record_of_each_path_is_found_again() {
    let home = state(&[
        (1, 0, vec![vec![done(1, 10), done(2, 20)], vec![done(3, 30)]]),
        (1, 1, vec![vec![done(4, 40), entry(5)]]),
        (2, 0, vec![vec![done(2, 21), entry(3)]]),
    ]);
    for round in 0..2 {
        let Loaded { base, partials, generation, notes } = loaded(&home);
        assert_eq!((base.len(), partials.len(), generation, notes.len()), (3, 0, 2, 0), "round {round}");
        let sizes: Vec<_> = (0..6).map(|n| size_of_recorded(&base, n)).collect();
        // what has failed since is not there any more, whatever was before
        assert_eq!(sizes, [None, Some(10), Some(21), None, Some(40), None]);
        let names: Vec<_> = fs::read_dir(home.path()).expect("listed").map(|e| e.expect("read").file_name()).collect();
        assert_eq!(names, ["base"], "the journals are merged into it");
    }
}

#[test]
fn what_was_confirmed_comes_back_sorted_and_says_if_it_was_twice() {
    let home = state(&[(1, 0, vec![(0..2000).map(|n| done(n, n.into())).collect()])]);
    let Loaded { base, .. } = loaded(&home);
    let confirmed = |base: &Base| {
        let (mut confirmed, mut item, mut all) = (base.confirmed().expect("read"), Encoded::default(), Vec::new());
        while let Some(twice) = confirmed.next(&mut item).expect("read") {
            all.push((item.path().to_vec(), twice));
        }
        all
    };
    assert_eq!(confirmed(&base), []);
    let mut block = Block::default();
    for n in (0..2000).step_by(3) {
        let (number, _) = base.find(&path(n), &mut block).expect("read").expect("recorded");
        base.confirm(number).expect("there");
        (n == 6).then(|| base.confirm(number).expect("there"));
    }
    assert_eq!(base.confirm(2000), None);
    let confirmed = confirmed(&base);
    assert_eq!(confirmed.len(), 667);
    assert!(confirmed.is_sorted());
    let twice: Vec<_> = confirmed.iter().filter(|(_, twice)| *twice).map(|(path, _)| path.as_slice()).collect();
    assert_eq!(twice, [path(6).as_bytes()]);
}

/// A range of the file `n`, of a copy that this temporary file tells from others.
fn range_of(n: u32, index: u64, generation: u32, attempt: u8) -> Item {
    let Item::Range(range) = range(n) else { panic!("a range") };
    let partial = Partial { temporary: Temporary { generation, attempt }, ..range.partial };
    Item::Range(RangeDone { partial, index, ..range })
}

#[test]
fn ranges_of_one_temporary_file_are_joined_and_never_mixed_with_anothers() {
    let home = state(&[
        (1, 0, vec![vec![range_of(1, 0, 1, 0), range_of(2, 0, 1, 0)], vec![range_of(3, 7, 1, 0), done(4, 1)]]),
        (1, 1, vec![vec![range_of(1, 5, 1, 0), range_of(2, 1, 1, 0), range_of(4, 3, 1, 0)]]),
        (2, 0, vec![vec![range_of(1, 2, 1, 0), range_of(2, 9, 2, 0), done(3, 30)]]),
    ]);
    for _ in 0..2 {
        let Loaded { base, partials, .. } = loaded(&home);
        let ranges = |n: u32| {
            let mut indices: Vec<_> = partials.get(&path(n))?.done.iter().map(|(index, _)| *index).collect();
            indices.sort_unstable();
            Some((indices, partials[&path(n)].partial.temporary.generation))
        };
        assert_eq!(ranges(1), Some((vec![0, 2, 5], 1)), "of three runs and ranks, one temporary file");
        assert_eq!(ranges(2), Some((vec![9], 2)), "the second run made another one");
        assert_eq!((ranges(3), size_of_recorded(&base, 3)), (None, Some(30)), "it was finished since");
    }
}

#[test]
fn journals_of_another_job_and_damage_are_said_and_left_out() {
    let home = state(&[(1, 0, vec![vec![done(1, 10)], vec![done(2, 20)], vec![done(3, 30)]])]);
    let journal = home.path().join("journal-000001.0");
    let mut bytes = fs::read(&journal).expect("read");
    let middle = HEADER_LEN + (bytes.len() - HEADER_LEN) / 2;
    bytes[middle] ^= 1;
    fs::write(&journal, bytes).expect("written");
    fs::write(home.path().join("journal-000001.7"), "garbage").expect("written");
    let other = Header { job_id: 1, generation: 9, rank: 1, ranks: 2 };
    let dir = Arc::new(open_root(home.path()).expect("opens"));
    Journal::new(Some(dir), other, true).commit(batch([done(8, 80)])).expect("committed");
    let Loaded { base, generation, notes, .. } = loaded(&home);
    assert_eq!((base.len(), generation, notes.len()), (2, 1, 3), "{notes:?}");
    assert_eq!([1, 2, 3, 8].map(|n| size_of_recorded(&base, n)), [Some(10), None, Some(30), None]);
}

#[test]
fn a_journal_of_a_newer_version_is_neither_used_nor_removed() {
    let home = state(&[(1, 0, vec![vec![done(1, 10)]]), (2, 0, vec![vec![done(2, 10)]])]);
    let journal = home.path().join("journal-000002.0");
    let mut bytes = fs::read(&journal).expect("read");
    bytes[8..16].copy_from_slice(&[9, 0, 0, 0, 9, 0, 0, 0]);
    let digest = blake3::hash(&bytes[..64]);
    bytes[64..96].copy_from_slice(digest.as_bytes());
    fs::write(&journal, &bytes).expect("written");
    let refused = load(&open_root(home.path()).expect("opens"), HEADER.job_id);
    assert!(matches!(refused, Err(LoadError::Newer(name, Trouble::Newer(9))) if name == "journal-000002.0"));
    assert_eq!(fs::read(&journal).expect("still there"), bytes);
    assert!(home.path().join("journal-000001.0").exists() && !home.path().join("base").exists());
}

#[test]
fn an_item_without_its_path_is_the_same_item() {
    for len in [1, 127, 128, 60_000] {
        let with = |path: &RelPath| {
            let mut item = done(1, 77);
            *item.path_mut() = path.clone();
            item
        };
        let bytes = Encoded::of(&with(&RelPath::root().join(&vec![b'x'; len]))).without_path();
        let mut read = Encoded::default();
        assert!(read.read(&mut bytes.as_slice()).expect("an item"));
        assert_eq!((read.decode().expect("an item"), read.bytes().len()), (with(&RelPath::root()), bytes.len()));
    }
}

#[test]
fn there_is_room_for_more_records_once_those_before_are_written() {
    let mut recorder = Recorder::default();
    let long = RelPath::root().join(&vec![b'x'; 1 << 20]);
    let mut item = done(1, 77);
    *item.path_mut() = long;
    let items = batch([item]);
    let mut count = 0;
    while recorder.has_room() {
        recorder.append(&items);
        count += 1;
        assert!(count < 100, "{count} MiB of records");
    }
    assert!(recorder.is_full() && recorder.seal() && !recorder.has_room());
    recorder.take_sealed();
    assert!(!recorder.has_room(), "they are being written");
    recorder.written();
    assert!(recorder.has_room());
}
