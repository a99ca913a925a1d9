//! The checker of manifests knows what was not kept, what was left as it was, and what would only have been copied.

use std::fs;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::manifest_proof::{Described, objects};
use crate::support::manifest::How;

/// A description in which `mode-640` has `fact` and the marks `unkept`.
fn marked(fact: &str, value: Value, unkept: &[&str]) -> Vec<String> {
    let mut described = Described::new();
    let entry = described.at("mode-640");
    entry[fact] = value;
    if !unkept.is_empty() {
        entry["unkept"] = json!(unkept);
    }
    described.check()
}

#[test]
fn each_mark_excuses_its_own_fact_and_no_other() {
    let facts = [("mode", json!("0777")), ("uid", json!(4242)), ("gid", json!(4242)), ("mtime", json!("77"))];
    let marks = ["mode", "ownership", "timestamps", "xattr", "acl"];
    for (fact, value) in facts {
        for mark in marks {
            let excused =
                matches!((fact, mark), ("mode", "mode") | ("uid" | "gid", "ownership") | ("mtime", "timestamps"));
            let found = marked(fact, value.clone(), &[mark]);
            assert_eq!(found.is_empty(), excused, "{fact} with the mark {mark}: {found:?}");
        }
    }
}

#[test]
fn a_special_file_that_could_not_be_made_must_not_be_there() {
    let mut described = Described::new();
    let fifo = json!({
        "path": "nowhere", "type": "fifo", "mode": "0644", "uid": 0, "gid": 0, "mtime": "5", "unkept": ["special"],
    });
    let after = described.lines.iter().position(|line| line["path"].as_str() > Some("nowhere")).unwrap();
    described.lines.insert(after, fifo);
    assert_eq!(described.check(), [""; 0]);
    // Whether it is one of the others is left open.
    assert_eq!(described.check_with(|trailer| trailer["others"] = 0.into()), [""; 0]);
    described.at("nowhere").as_object_mut().unwrap().remove("unkept");
    objects(&described.check(), "nowhere: in the manifest, not in the copy");

    described.at("nowhere")["unkept"] = json!(["special"]);
    mkfifo(&described.root.join("nowhere"), Mode::S_IRUSR).unwrap();
    let found = described.check();
    assert!(found.iter().any(|words| words.contains("could not be made, but is in the copy")), "{found:?}");
}

/// `mode-640` described as left at the destination.
fn left() -> Described {
    let mut described = Described::new();
    let entry = described.at("mode-640").as_object_mut().unwrap();
    entry.remove("blake3");
    entry.insert("kept".to_owned(), "exists".into());
    described
}

#[test]
fn what_was_left_is_told_as_it_is_and_without_a_digest() {
    assert_eq!(left().check(), [""; 0]);
    objects(&left().check_with(|trailer| trailer["kept"] = 2.into()), "kept is 2");
    let mut without = left();
    without.at("mode-640").as_object_mut().unwrap().remove("kept");
    objects(&without.check(), "mode-640: blake3");

    let mut with_digest = Described::new();
    with_digest.at("mode-640")["kept"] = "exists".into();
    objects(&with_digest.check(), "mode-640: a digest, unasked");
    // No mark excuses it: it tells what is there.
    let mut wrong = left();
    wrong.at("mode-640")["mtime"] = "77".into();
    wrong.at("mode-640")["unkept"] = json!(["timestamps"]);
    objects(&wrong.check(), "mode-640: mtime is");
}

#[test]
fn what_was_not_to_be_preserved_may_differ_and_nothing_else() {
    for (word, fact, value) in
        [("mode", "mode", json!("0777")), ("ownership", "gid", json!(4242)), ("timestamps", "mtime", json!("7"))]
    {
        let mut described = Described::new();
        described.at("mode-640")[fact] = value;
        objects(&described.check(), &format!("mode-640: {fact} is"));
        for unpreserved in [&["mode"], &["ownership"], &["timestamps"]] {
            described.how = How { unpreserved, ..How::default() };
            assert_eq!(described.check().is_empty(), unpreserved == &[word], "{fact} without {unpreserved:?}");
        }
    }
}

/// A description of a dry run: no digests.
fn dry() -> Described {
    let mut described = Described::new();
    described.lines[0]["dry_run"] = true.into();
    described.lines.iter_mut().filter_map(Value::as_object_mut).for_each(|line| drop(line.remove("blake3")));
    described.how.dry_run = true;
    described
}

#[test]
fn a_dry_run_says_so_and_has_no_digests() {
    assert_eq!(dry().check(), [""; 0]);
    let mut untold = dry();
    untold.lines[0].as_object_mut().unwrap().remove("dry_run");
    objects(&untold.check(), "header: dry_run is false, not true");
    let mut real = Described::new();
    real.lines[0]["dry_run"] = true.into();
    objects(&real.check(), "header: dry_run is true, not false");
    let mut digested = Described::new();
    digested.lines[0]["dry_run"] = true.into();
    digested.how.dry_run = true;
    objects(&digested.check(), "a digest, unasked");
    // Its entries are held against the source.
    let incomplete = dry();
    fs::remove_file(Path::new(&incomplete.root).join("mode-640")).unwrap();
    let found = incomplete.check();
    assert!(found.iter().any(|words| words.contains("mode-640: in the manifest, not in")), "{found:?}");
}
