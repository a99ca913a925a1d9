//! Golden lines, and the schema that every line fulfils.

use super::*;
use crate::types::{Facts, Fate, Loss, Op, RelPath, Side, Timestamp, Unkept};

fn header() -> Header {
    Header {
        pcopy_manifest: FORMAT_VERSION,
        oldest_reader: OLDEST_READER,
        version: "0.1.0",
        hosts: vec![Host { host: "n1".into(), ranks: 4 }],
        ranks: 4,
        sources: vec!["/data/src".into()],
        destination: "/backup/src".into(),
        options: BTreeMap::from([("direct", "auto".into())]),
        started: "2026-01-02T03:04:05Z".into(),
        dry_run: false,
    }
}

fn facts() -> Facts {
    Facts {
        size: 5,
        mode: 0o644,
        uid: 0,
        gid: 4_294_967_295,
        mtime: Timestamp { sec: -2, nsec: 500_000_000 },
        ctime: Timestamp::default(),
        mtime_there: None,
        target: None,
        digest: Some([0xab; 32]),
        rdev: None,
        hardlink: None,
        unkept: Unkept::default(),
        fate: Fate::Made,
    }
}

fn records() -> Vec<Record> {
    let path = |name: &[u8]| RelPath::root().join(name);
    let bare = Facts { digest: None, size: 0, ..facts() };
    let mut unkept = Unkept::from(Loss::OWNER);
    unkept.add(Loss::LINK);
    let failure = Failure { op: Op::Open, side: Side::Source, errno: 13 };
    let done = |path, kind, facts| Record { path, kind, outcome: Outcome::Done(facts) };
    vec![
        done(RelPath::root(), Kind::Dir, bare.clone()),
        done(path(b"a\n\"b"), Kind::File, facts()),
        done(path(b"b"), Kind::File, Facts { hardlink: Some(path(b"a\n\"b")), unkept, ..facts() }),
        done(path(b"dev"), Kind::BlockDev, Facts { rdev: Some((8, 1)), ..bare.clone() }),
        Record { path: path(b"gone"), kind: Kind::File, outcome: Outcome::Failed(failure) },
        done(path(b"link"), Kind::Symlink, Facts { size: 2, target: Some(vec![0xff, b'x']), ..bare }),
        done(path(b"old"), Kind::File, Facts { fate: Fate::KeptNewer, digest: None, ..facts() }),
        done(path(b"\xff"), Kind::File, facts()),
    ]
}

fn written() -> (String, Stats) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("manifest.jsonl");
    let place = Place { dir: crate::sys::open_root(dir.path()).expect("opens"), name: b"manifest.jsonl".to_vec() };
    let mut writer = Writer::create(place, &header()).expect("created");
    for record in records() {
        let (mut lines, mut stats) = (Vec::new(), Stats::default());
        write_entry(&record, &mut lines).expect("written");
        stats.count(&record);
        writer.lines(&lines, &stats).expect("written");
    }
    let stats = writer.finish(1.5).expect("finished");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "no temporary file is left");
    (std::fs::read_to_string(&path).expect("UTF-8"), stats)
}

#[test]
fn lines_are_as_the_format_says() {
    let (text, stats) = written();
    let lines: Vec<&str> = text.lines().collect();
    let ab = "ab".repeat(32);
    let golden = [
        r#"{"pcopy_manifest":1,"oldest_reader":1,"version":"0.1.0","hosts":[{"host":"n1","ranks":4}],"ranks":4,"sources":["/data/src"],"destination":"/backup/src","options":{"direct":"auto"},"started":"2026-01-02T03:04:05Z"}"#.to_string(),
        r#"{"path":".","type":"dir","mode":"0644","uid":0,"gid":4294967295,"mtime":"-1500000000"}"#.to_string(),
        format!(r#"{{"path":"a\n\"b","type":"file","size":5,"mode":"0644","uid":0,"gid":4294967295,"mtime":"-1500000000","blake3":"{ab}"}}"#),
        format!(r#"{{"path":"b","type":"file","size":5,"mode":"0644","uid":0,"gid":4294967295,"mtime":"-1500000000","hardlink":"a\n\"b","blake3":"{ab}","unkept":["ownership","links"]}}"#),
        r#"{"path":"dev","type":"blockdev","mode":"0644","uid":0,"gid":4294967295,"mtime":"-1500000000","rdev":"8:1"}"#.to_string(),
        r#"{"path":"gone","type":"file","error":{"op":"open","errno":13,"text":"open source: Permission denied (os error 13)"}}"#.to_string(),
        r#"{"path":"link","type":"symlink","size":2,"mode":"0644","uid":0,"gid":4294967295,"mtime":"-1500000000","target_b64":"/3g="}"#.to_string(),
        r#"{"path":"old","type":"file","size":5,"mode":"0644","uid":0,"gid":4294967295,"mtime":"-1500000000","kept":"newer"}"#.to_string(),
        format!(r#"{{"path_b64":"/w==","type":"file","size":5,"mode":"0644","uid":0,"gid":4294967295,"mtime":"-1500000000","blake3":"{ab}"}}"#),
    ];
    assert_eq!(lines[..9], golden);
    let above = text.len() - lines[9].len() - 1;
    let digest = blake3::hash(&text.as_bytes()[..above]).to_hex();
    let trailer = format!(
        r#"{{"entries":8,"files":4,"dirs":1,"symlinks":1,"others":1,"hardlinks":1,"bytes":10,"errors":1,"unkept":1,"kept":1,"seconds":1.5,"digest":"{digest}"}}"#
    );
    assert_eq!(lines[9], trailer);
    assert_eq!((stats.entries(), stats.errors), (8, 1));
}

#[test]
fn every_line_fulfils_the_schema_and_a_damaged_one_does_not() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    for line in written().0.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(validator.is_valid(&value), "{line}");
        for key in ["type", "path", "path_b64", "mode", "mtime", "digest", "ranks"] {
            let mut damaged = value.clone();
            if damaged.as_object_mut().expect("an object").remove(key).is_some() {
                assert!(!validator.is_valid(&damaged), "without {key}: {line}");
            }
        }
    }
}
