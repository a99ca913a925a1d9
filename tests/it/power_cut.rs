//! Power cuts (issue 4): what the journals say is there is there, whatever else is lost; and the copy goes on from it.
//! What a cut takes is told in `support/fuse/durable.rs`.

use std::fs::{self, File};
use std::path::Path;

use crate::support::chance::{self, Chance};
use crate::support::crash::Crash;
use crate::support::fuse::{Faults, FuseMount};
use crate::support::journal::{copied_paths, journals, kill_at};
use crate::support::launch::{Job, Outcome};
use crate::support::oracle::{self, show};
use crate::support::skip::{Missing, need};
use crate::support::tree::{self, noise_file, raw, temp};
use crate::support::whole::Place;

fn mount() -> Result<FuseMount, Missing> {
    FuseMount::new(Faults { forgets_at_power_cut: true, ..Faults::default() })
}

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--threads", "1", "--checkpoint-interval", "20ms"])
}

/// Some of everything: small files, files of many ranges, directories, links, fifos.
fn tree(at: &Path) {
    tree::small_files(at, 12, 40);
    tree::odd_tree(&at.join("odd"), 64 << 10, 16 << 10);
    for number in 0..3 {
        noise_file(&at.join(format!("d{number:03}/large")), 2_000_000 + number);
    }
    for number in 0..20 {
        fs::hard_link(at.join(format!("d000/f{number:04}")), at.join(format!("d009/z{number:04}"))).unwrap();
    }
    tree::age(at);
}

/// A directory that is there already, for good.
fn make_durable(dir: &Path) {
    fs::create_dir(dir).unwrap();
    File::open(dir.parent().unwrap()).unwrap().sync_all().unwrap();
}

/// The copy that ended well is there. That something was removed need not be durable: the next run removes it again.
#[track_caller]
fn assert_survived(place: &Place, job: &Job, outcome: &Outcome) {
    outcome.assert_code(0);
    let found = place.objections(job).into_iter();
    let lost: Vec<_> =
        found.filter(|words| !(words.starts_with("state: ") && words.ends_with(": left behind"))).collect();
    oracle::assert_none(&lost, &outcome.told());
}

/// Everything that the journals and the base say was copied is at the destination, complete. How many there are.
#[track_caller]
fn claims_hold(place: &Place) -> usize {
    let base = Some(place.state.join("base")).filter(|base| base.exists());
    let claims: Vec<_> = journals(&place.state).into_iter().chain(base).collect();
    let paths: Vec<_> = claims.iter().flat_map(|journal| copied_paths(journal)).collect();
    if paths.is_empty() {
        return 0;
    }
    let (before, after) = (oracle::walk(&place.src), oracle::walk(&place.root));
    for path in &paths {
        let (old, new) = (&before[path], after.get(path));
        let new = new.unwrap_or_else(|| panic!("{}: missing, but recorded in {claims:?}", show(path)));
        let told = |node: &oracle::Node| (node.kind, node.size, node.mtime_ns, node.mode, node.target.clone());
        assert_eq!(told(old), told(new), "{}", show(path));
        let whole = || oracle::same_content(&place.src, &place.root, path);
        assert!(!raw(&place.src, path).is_file() || whole(), "{}: other content", show(path));
    }
    paths.len()
}

#[test]
fn a_copy_that_ended_well_is_there_after_a_power_cut() {
    for (ranks, exists) in [(1, true), (3, true), (1, false), (3, false)] {
        let mut fuse = need!(mount());
        let dir = temp();
        let place = Place::new(&dir.path().join("src"), &fuse.path().join("dst"));
        tree(&place.src);
        if exists {
            make_durable(&place.root);
        }
        let outcome = job(ranks).run([&place.src.join(""), &place.root]);
        outcome.assert_code(0);
        fuse.cut_power();
        assert_survived(&place, &job(ranks), &outcome);
    }
}

#[test]
fn what_the_journals_say_is_there_survives_power_cuts_and_the_copy_goes_on_from_it() {
    let mut chance = Chance::new(chance::seed("power cuts"));
    let dir = temp();
    let src = dir.path().join("src");
    tree(&src);
    let mut survived = 0;
    for _ in 0..chance::from_environment("PCOPY_POWER_CUTS").unwrap_or(3) {
        let mut fuse = need!(mount());
        let place = Place::new(&src, &fuse.path().join("dst"));
        if chance.index(2) == 0 {
            make_durable(&place.root);
        }
        for _ in 0..chance.of(1..=3) {
            let ranks = *chance.one(&[1, 2, 4]);
            kill_at(&job(ranks), [&place.src.join(""), &place.root], &place.state, chance.of(30..=90));
            fuse.cut_power();
            survived += claims_hold(&place);
            need!(fuse.restore_power());
        }
        let last = job(*chance.one(&[1, 2, 3]));
        let outcome = place.complete(&last, [&place.src.join(""), &place.root]);
        fuse.cut_power();
        assert_survived(&place, &last, &outcome);
    }
    assert!(survived > 50, "only {survived} records were put to the test");
}

#[test]
fn a_power_cut_between_any_two_steps_loses_nothing_that_was_recorded() {
    let mut chance = Chance::new(chance::seed("power cuts between steps"));
    let dir = temp();
    let src = dir.path().join("src");
    tree::small_files(&src, 3, 4);
    noise_file(&src.join("large"), 300_000);
    tree::age(&src);
    let crash = Crash::build();
    let job = Job::alone().options(["-k", "64K", "-b", "16K", "--threads", "1", "--checkpoint-interval", "1h"]);
    let mut fuse = need!(mount());
    let place = Place::new(&src, &fuse.path().join("dst"));
    crash.logged(&job, &place.root).run([&place.src, &place.root]).assert_code(0);
    let steps = crash.steps(&place.root).len();
    assert!(steps > 50, "{steps} steps");
    // Some of them, other ones each time.
    let most = chance::from_environment("PCOPY_POWER_CUTS").unwrap_or(12);
    for _ in 0..most {
        let mut fuse = need!(mount());
        let place = Place::new(&src, &fuse.path().join("dst"));
        let at = 1 + chance.index(steps);
        println!("a crash before step {at} of {steps}, and a power cut");
        let outcome = crash.within(&job, &place.root, at).run([&place.src, &place.root]);
        fuse.cut_power();
        if outcome.code() == Some(0) {
            assert_survived(&place, &job, &outcome);
        }
        claims_hold(&place);
        place.complete(&job, [&place.src, &place.root]);
    }
    fuse.cut_power();
}
