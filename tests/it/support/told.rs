//! What the summary tells, read as a person or a script reads it, and what a manifest's marks add up to.

use std::collections::BTreeMap;

use serde_json::Value;

use super::launch::Outcome;
use super::manifest::Manifest;

/// Everything that a destination may be unable to hold.
pub const KINDS: [&str; 8] = ["ownership", "mode", "xattr", "acl", "links", "special", "timestamps", "flags"];

pub type Counts = BTreeMap<String, u64>;

/// The summary for machines.
#[track_caller]
pub fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.told()))
}

/// The first number behind `label:` at the beginning of a line.
pub fn count(outcome: &Outcome, label: &str) -> Option<u64> {
    let mut lines = outcome.stdout.lines().map(str::trim_start);
    let value = lines.find_map(|line| line.strip_prefix(label)?.strip_prefix(':'))?;
    number_in(value)
}

fn number_in(words: &str) -> Option<u64> {
    words.split_whitespace().find_map(|word| word.parse().ok())
}

/// The section "Not kept:": one line a kind, with its count.
#[track_caller]
pub fn unkept_in_summary(outcome: &Outcome) -> Counts {
    let mut lines = outcome.stdout.lines().skip_while(|line| !line.starts_with("Not kept:"));
    let first = lines.next().map(|line| &line["Not kept:".len()..]);
    let section = first.into_iter().chain(lines.take_while(|line| line.starts_with(' ')));
    let mut counts = Counts::new();
    for line in section {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let Some(kind) = words.find(|word| KINDS.contains(word)) else { continue };
        let number = number_in(line).unwrap_or_else(|| panic!("{line:?} has no count: {}", outcome.told()));
        assert!(counts.insert(kind.to_owned(), number).is_none(), "two lines of {kind}: {}", outcome.told());
    }
    counts
}

/// The same in the summary for machines.
#[track_caller]
pub fn unkept_in_json(outcome: &Outcome) -> Counts {
    let told = json(outcome);
    let kinds = told["unkept_kinds"].as_object();
    let kinds = kinds.unwrap_or_else(|| panic!("no unkept_kinds: {}", outcome.told())).iter();
    kinds.map(|(kind, count)| (kind.clone(), count.as_u64().unwrap())).collect()
}

/// How often each kind is marked in a manifest.
pub fn marks(manifest: &Manifest) -> Counts {
    let mut counts = Counts::new();
    for kind in manifest.entries.values().filter_map(|entry| entry["unkept"].as_array()).flatten() {
        *counts.entry(kind.as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}
