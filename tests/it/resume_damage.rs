//! Damaged records of a job end in a whole copy or in a refusal, never in a false OK (issue 4).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::chance::{self, Chance};
use crate::support::journal::{self, journals};
use crate::support::launch::Outcome;
use crate::support::listing::{Listing, assert_untouched, listing};
use crate::support::oracle::{self, Kind};
use crate::support::resumed::{Case, job};
use crate::support::tree::{noise, raw, write};
use crate::support::whole::{Place, names};

/// A killed copy that can be put back.
struct Kept {
    case: Case,
    kept: PathBuf,
}

impl Kept {
    fn of(case: Case) -> Kept {
        let kept = case.place.root.with_file_name("kept");
        fs::rename(&case.place.root, &kept).unwrap();
        Kept { case, kept }
    }

    fn put_back(&self) -> &Place {
        let _ = fs::remove_dir_all(&self.case.place.root);
        let cp = Command::new("cp").arg("-a").arg(&self.kept).arg(&self.case.place.root).status();
        assert!(cp.unwrap().success());
        &self.case.place
    }

    /// Runs to the end; a refusal that names the file is one only where that is told.
    #[track_caller]
    fn ends_well(&self, what: &str, refusal: Option<&str>) -> Outcome {
        println!("{what}");
        let place = &self.case.place;
        let job = job(2);
        let outcome = self.case.again(&job);
        match refusal {
            Some(name) if outcome.code() == Some(2) => {
                assert!(outcome.lines_of_pcopy().iter().any(|line| line.contains(name)), "{what}: {}", outcome.told());
            }
            _ => place.assert_whole(&job, &outcome),
        }
        outcome
    }
}

/// The journals that are long enough for damage.
fn long_journals(place: &Place) -> Vec<PathBuf> {
    let long = |path: &PathBuf| path.metadata().unwrap().len() > 500;
    let found: Vec<_> = journals(&place.state).into_iter().filter(long).collect();
    assert!(!found.is_empty());
    found
}

fn flip(path: &Path, at: u64, bit: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

/// Raises the version, and with `oldest` the oldest version that reads it.
fn make_newer(path: &Path, oldest: bool) {
    let mut bytes = fs::read(path).unwrap();
    bytes[8..12].copy_from_slice(&99_u32.to_le_bytes());
    if oldest {
        bytes[12..16].copy_from_slice(&99_u32.to_le_bytes());
    }
    let digest = journal::b3sum(&bytes[..64]);
    for at in 0..32 {
        bytes[64 + at] = u8::from_str_radix(&digest[2 * at..2 * at + 2], 16).unwrap();
    }
    write(path, &bytes);
}

#[test]
fn journals_that_are_cut_anywhere_or_have_a_wrong_bit_end_in_a_whole_copy() {
    let mut chance = Chance::new(chance::seed("damaged journals"));
    let kept = Kept::of(Case::killed(2));
    for number in 0..chance::from_environment("PCOPY_DAMAGES").unwrap_or(12) {
        let place = kept.put_back();
        let path = chance.one(&long_journals(place)).clone();
        let at = chance.of(0..=path.metadata().unwrap().len() - 1);
        if number % 2 == 0 {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(at).unwrap();
            kept.ends_well(&format!("{path:?} cut at {at}"), None);
        } else {
            let bit = chance.of(0..=7);
            flip(&path, at, bit);
            // A bit of the version with a digest that does not match is no newer version.
            kept.ends_well(&format!("{path:?}: bit {bit} of byte {at} is wrong"), None);
        }
    }
}

#[test]
fn a_journal_that_is_empty_or_garbage_or_missing_ends_in_a_whole_copy() {
    let kept = Kept::of(Case::killed(3));
    let contents: [(&str, Vec<u8>); 4] =
        [("empty", vec![]), ("zeros", vec![0; 5000]), ("noise", noise(5000, 1)), ("text", b"not a journal\n".to_vec())];
    for (name, bytes) in contents {
        let place = kept.put_back();
        write(&long_journals(place)[0], &bytes);
        kept.ends_well(&format!("a journal is {name}"), None);
        let place = kept.put_back();
        write(&place.state.join("journal-000001.7"), &bytes);
        write(&place.state.join("journal-000009.0"), &bytes);
        kept.ends_well(&format!("further journals are {name}"), None);
    }
    let place = kept.put_back();
    fs::remove_file(&long_journals(place)[0]).unwrap();
    kept.ends_well("a rank's journal is missing", None);
    let place = kept.put_back();
    journals(&place.state).iter().for_each(|path| fs::remove_file(path).unwrap());
    kept.ends_well("all journals are missing", None);
}

#[test]
fn a_journal_of_another_job_is_not_used() {
    let (kept, other) = (Kept::of(Case::killed(2)), Case::killed(2));
    let place = kept.put_back();
    for journal in journals(&other.place.state) {
        fs::copy(&journal, place.state.join(journal.file_name().unwrap())).unwrap();
    }
    // It has the same paths, and none of what it tells is there.
    let files = oracle::walk(&place.root).into_iter().filter(|(_, node)| node.kind == Kind::File);
    files.for_each(|(path, _)| fs::remove_file(raw(&place.root, &path)).unwrap());
    kept.ends_well("journals of another job", None);
}

#[test]
fn what_a_newer_pcopy_wrote_is_refused_and_not_overwritten() {
    let (killed, complete) = (Kept::of(Case::killed(2)), Kept::of(Case::complete(2)));
    let contents = |place: &Place| -> Vec<_> {
        let names = names(&place.state).into_iter().filter(|name| name != "lock");
        names.map(|name| (fs::read(place.state.join(&name)).unwrap(), name)).collect()
    };
    let copied = |place: &Place| -> Listing {
        listing(&place.root).into_iter().filter(|(path, _)| !path.starts_with(b".pcopy")).collect()
    };
    for kept in [&killed, &complete] {
        let place = kept.put_back();
        let path =
            if place.state.join("base").exists() { place.state.join("base") } else { long_journals(place)[0].clone() };
        make_newer(&path, true);
        // The top has its times from making it.
        let (state, tree) = (contents(place), copied(place));
        let outcome = kept.case.again(&job(2));
        let message = outcome.assert_code(2).lines_of_pcopy().pop().unwrap_or_default();
        assert!(message.contains(path.file_name().unwrap().to_str().unwrap()), "{}", outcome.told());
        assert!(contents(place) == state, "the state was changed: {}", outcome.told());
        let but_top =
            |listing: Listing| -> Listing { listing.into_iter().filter(|(path, _)| !path.is_empty()).collect() };
        assert_untouched(&but_top(tree), &but_top(copied(place)), &outcome.told());
    }
    let place = killed.put_back();
    make_newer(&long_journals(place)[0], false);
    killed.ends_well("a journal of a newer version that this one can read", None);
}

#[test]
fn a_damaged_job_file_never_ends_in_a_false_ok() {
    for kept in [Kept::of(Case::killed(2)), Kept::of(Case::complete(2))] {
        let contents: [&[u8]; 3] = [b"", b"{}", b"\0\0\0\0"];
        for content in contents {
            let place = kept.put_back();
            let files = kept.case.files();
            files[..10].iter().for_each(|path| fs::remove_file(raw(&place.root, path)).unwrap());
            write(&place.state.join("job.json"), content);
            let outcome = kept.ends_well(&format!("job.json is {}", content.escape_ascii()), Some("job.json"));
            assert!(outcome.code() == Some(2) || outcome.stderr.contains("pcopy: note: "), "{}", outcome.told());
        }
        kept.put_back();
        fs::remove_file(kept.case.place.state.join("job.json")).unwrap();
        // Without it the mapping of a DST that is there is cp's again: only that must not be half done.
        let outcome = kept.case.again(&job(2));
        let nested = Place::new(&kept.case.place.src, &kept.case.place.root.join("src"));
        match outcome.code() {
            Some(0) if nested.root.exists() => nested.assert_whole(&job(2), &outcome),
            Some(0) => kept.case.place.assert_whole(&job(2), &outcome),
            code => assert_eq!(code, Some(2), "{}", outcome.told()),
        }
    }
}

#[test]
fn a_damaged_base_never_ends_in_a_false_ok() {
    let mut chance = Chance::new(chance::seed("damaged base"));
    let kept = Kept::of(Case::complete(2));
    let files = kept.case.files();
    for number in 0..chance::from_environment("PCOPY_DAMAGES").unwrap_or(9) {
        let place = kept.put_back();
        // What is gone must be missed, whatever the base tells.
        for _ in 0..5 {
            let _ = fs::remove_file(raw(&place.root, &files[chance.index(files.len())]));
        }
        let base = place.state.join("base");
        let at = chance.of(0..=base.metadata().unwrap().len() - 1);
        match number % 5 {
            0 => flip(&base, at, chance.of(0..=7)),
            1 => OpenOptions::new().write(true).open(&base).unwrap().set_len(at).unwrap(),
            2 => write(&base, b""),
            3 => write(&base, &noise(20_000, at)),
            _ => fs::remove_file(&base).unwrap(),
        }
        kept.ends_well(&format!("the base, damage {} at {at}", number % 5), Some("base"));
    }
}
