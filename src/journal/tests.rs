//! Journals as they are written, and as crashes and damage leave them.

use std::fs::{self, File};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::sys::open_root;
use crate::types::{Failure, Kind, Op, Outcome, Side};

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
    let identity = Identity { size: 1 << 40, mtime: time, ctime: time };
    Item::Range(RangeDone {
        path: path(n),
        identity,
        attempt: 1,
        range_len: 1 << 24,
        index: n.into(),
        value: Some([7; 32]),
    })
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
    read(File::open(home.path().join("j")).expect("opens")).expect("read").map(|mut found| {
        let mut items = Vec::new();
        let take = |item| {
            items.push(item);
            Ok(())
        };
        found.groups.for_each(take).expect("read");
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
        "01000000",
        "01000000",
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
    bytes[12] = 2;
    seal(&mut bytes);
    assert_eq!(found(&bytes), Err(Trouble::Newer(9)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
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
        for record in journal.into_sorted().expect("opened") {
            let path = record.expect("read").path;
            assert!(last.as_ref().is_none_or(|last| last < &path), "{last:?} {path:?}");
            last = Some(path);
            count += 1;
        }
        assert_eq!(count, groups * each);
        assert_eq!(fs::read_dir(home.path()).expect("listed").count(), 1, "only the journal is left");
    }
}
