//! Kills at random moments, of random victims, again and again (issue 4): the same command then ends with the whole copy.
//!
//! `PCOPY_KILLS` rounds are played, 6 by default. A round prints its seed, and is played alone by `PCOPY_SEED=<that seed>
//! PCOPY_KILLS=1`; the moments are as exact as the machine is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::chance::{self, Chance, say};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::journal;
use crate::support::launch::{Job, Outcome, Running, is_gone, processes_naming};
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::skip::{Missing, need};
use crate::support::sys;
use crate::support::tree::{self, noise_file, temp};
use crate::support::whole::{Place, names};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    OneRank,
    AllRanks,
    Launcher,
    /// SIGTERM, to one rank.
    Terminated,
}

/// When it is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    After(Duration),
    /// The journals of this run hold so many bytes.
    Journals(u64),
    /// Something is written besides the journals, or they are merged; and then so much later.
    Late(Duration),
}

/// How far the copy was when the kill came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    BeforeTheJob,
    Copying,
    AfterTheLastEntry,
    /// The run had ended.
    TooLate,
}

/// What a round copies: all of one sort. With the bytes that journals of it have.
struct Sources {
    trees: Vec<(PathBuf, u64)>,
    /// Reads of which each takes a moment, so that there is a middle in which a run can be killed.
    fuse: FuseMount,
}

impl Sources {
    fn new() -> Result<Sources, Missing> {
        let fuse = FuseMount::new(Faults { delay_ms: 1, attributes_and_holes: true, ..Faults::default() })?;
        let at = fuse.backing().to_path_buf();
        let small = tree::small_files(&at.join("small"), 25, 60);
        let large = at.join("large");
        for number in 0..4 {
            noise_file(&large.join(format!("file{number}")), 6_000_000 + number * 12_345);
        }
        tree::age(&large);
        let mixed = tree::small_files(&at.join("mixed"), 10, 40);
        tree::odd_tree(&mixed.join("odd"), 64 << 10, 16 << 10);
        for number in 0..40 {
            let file = mixed.join(format!("d{:03}/f{:04}", number % 3, number));
            for name in 0..1 + number % 4 {
                fs::hard_link(&file, mixed.join(format!("d{:03}/link{number}-{name}", 3 + name))).unwrap();
            }
            std::os::unix::fs::symlink("f0001", mixed.join(format!("d007/symlink{number}"))).unwrap();
        }
        for number in 0..3 {
            let file = mixed.join(format!("d00{number}/large"));
            noise_file(&file, 1_500_000 + number);
            fs::hard_link(&file, mixed.join(format!("d008/large{number}"))).unwrap();
        }
        tree::age(&mixed);
        Ok(Sources { trees: vec![(small, 120_000), (large, 30_000), (mixed, 60_000)], fuse })
    }
}

fn job(chance: &mut Chance) -> Job {
    let ranks = *chance.one(&[1, 1, 2, 2, 3, 4, 5, 8]);
    let interval = format!("{}ms", chance.of(5..=50));
    let options = ["-k", "64K", "-b", "16K", "--threads", "1", "--progress", "0", "--checkpoint-interval", &interval];
    Job::ranks(ranks).options(options)
}

/// What is in the state directory, without the journals of this run that only grow.
fn late_names(state: &Path) -> Vec<String> {
    let others = ["lock", "job.json"];
    let late = |name: &String| !name.starts_with("journal-") && !others.iter().any(|other| name.starts_with(other));
    names(state).into_iter().filter(late).collect()
}

/// Waits for the moment; whether the run still goes on then.
fn wait_for(moment: Moment, running: &mut Running, state: &Path) -> bool {
    let earlier = journal::journals(state).into_iter().collect();
    let started = Instant::now();
    let mut seen = false;
    let mut before = None;
    loop {
        let come = match moment {
            Moment::After(time) => started.elapsed() >= time,
            Moment::Journals(bytes) => journal::written(state, &earlier) >= bytes,
            Moment::Late(more) => {
                seen |= journal::written(state, &earlier) > 0;
                let now = late_names(state);
                // What the beginning of a run writes there is no sign of its end.
                let changed = seen && *before.get_or_insert_with(|| now.clone()) != now;
                if !seen {
                    before = None;
                }
                if changed {
                    thread::sleep(more);
                }
                changed
            }
        };
        if come || !running.goes_on() {
            return running.goes_on();
        }
        thread::sleep(Duration::from_micros(300));
    }
}

fn strike(victim: Victim, chance: &mut Chance, running: &Running) {
    let ranks = running.rank_pids();
    match victim {
        Victim::OneRank if !ranks.is_empty() => sys::kill(*chance.one(&ranks)),
        Victim::Terminated if !ranks.is_empty() => sys::signal(*chance.one(&ranks), libc::SIGTERM),
        Victim::AllRanks if !ranks.is_empty() => ranks.into_iter().for_each(sys::kill),
        // The ranks are not there yet.
        _ => sys::kill(running.launcher_pid()),
    }
}

/// Waits until nothing of the run is left. What outlives its launcher is given some seconds; a rank that is being killed
/// has no command line any more, but is still there.
fn wait_for_all(root: &Path, ranks: &[i32]) {
    let given_up = Instant::now() + Duration::from_secs(10);
    loop {
        let mut left = processes_naming(root);
        left.extend(ranks.iter().filter(|pid| !is_gone(**pid)));
        if left.is_empty() {
            return;
        }
        if Instant::now() > given_up {
            left.iter().for_each(|pid| sys::kill(*pid));
        }
        assert!(Instant::now() < given_up + Duration::from_secs(20), "{left:?} cannot be killed");
        thread::sleep(Duration::from_millis(20));
    }
}

fn phase(place: &Place, entries: usize) -> Phase {
    if !place.state.join("job.json").exists() {
        return Phase::BeforeTheJob;
    }
    let there = oracle::walk(&place.root);
    let is_own =
        |path: &&Vec<u8>| path.split(|b| *b == b'/').next_back().is_some_and(|name| name.starts_with(b".pcopy-"));
    let own = there.keys().filter(is_own).count();
    if there.len() - own < entries { Phase::Copying } else { Phase::AfterTheLastEntry }
}

fn manifest(place: &Place) -> Option<Vec<u8>> {
    fs::read(place.state.join("manifest.jsonl")).ok()
}

/// What holds after every run, however it ended.
#[track_caller]
fn assert_honest(place: &Place, job: &Job, victim: Victim, (before, outcome): (Option<Vec<u8>>, &Outcome)) {
    match outcome.code() {
        Some(0) => place.assert_whole(job, outcome),
        Some(75) => {
            assert_eq!(victim, Victim::Terminated, "{}", outcome.told());
            assert!(outcome.stdout.contains("stopped by SIGTERM"), "{}", outcome.told());
        }
        _ => {}
    }
    // One that was there before tells of an earlier run, which this one has not begun to go on from.
    if manifest(place).is_some_and(|now| before.as_ref() != Some(&now)) {
        let found = oracle::differences(&place.src, &place.root, Aspects::ALL);
        oracle::assert_none(&found, &format!("a manifest is there after {}", outcome.told()));
    }
}

/// The tally of all rounds.
#[derive(Default)]
struct Tally {
    kills: BTreeMap<(Phase, Victim), usize>,
    runs: usize,
}

fn moment(chance: &mut Chance, journal_bytes: u64) -> Moment {
    match chance.index(8) {
        0 | 1 => Moment::After(Duration::from_millis(chance.of(0..=600))),
        2..=5 => Moment::Journals(chance.of(1..=journal_bytes)),
        _ => Moment::Late(Duration::from_micros(chance.of(0..=6000))),
    }
}

/// Kills one run of the copy.
fn play(chance: &mut Chance, round: &Round<'_>, journal_bytes: u64, tally: &mut Tally) {
    let place = &round.place;
    let victims = [Victim::OneRank, Victim::AllRanks, Victim::Launcher, Victim::Terminated];
    let (job, moment, victim) = (job(chance), moment(chance, journal_bytes), *chance.one(&victims));
    println!("  {} ranks, {victim:?} {moment:?}", job.rank_count());
    let before = manifest(place);
    let mut running = job.start([round.slow, &place.root]);
    let struck = wait_for(moment, &mut running, &place.state);
    if struck {
        strike(victim, chance, &running);
    }
    let ranks = running.rank_pids();
    let outcome = running.wait();
    wait_for_all(&place.root, &ranks);
    let late = !struck || outcome.code() == Some(0);
    let phase = if late { Phase::TooLate } else { phase(place, round.entries) };
    println!("    {phase:?}, exit code {:?}", outcome.code());
    *tally.kills.entry((phase, victim)).or_default() += 1;
    tally.runs += 1;
    if !struck {
        outcome.assert_code(0);
    }
    assert_honest(place, &job, victim, (before, &outcome));
}

/// A round's copy.
struct Round<'a> {
    place: Place,
    /// The source, as the slow mount shows it.
    slow: &'a Path,
    entries: usize,
}

fn play_round(seed: u64, sources: &Sources, at: &Path, tally: &mut Tally) {
    let mut chance = Chance::new(seed);
    let (src, journal_bytes) = chance.one(&sources.trees).clone();
    let slow = sources.fuse.path().join(src.file_name().unwrap());
    let round = Round { place: Place::new(&src, at), slow: &slow, entries: oracle::walk(&src).len() };
    let (place, operands) = (&round.place, [slow.as_path(), at]);
    println!("round: PCOPY_SEED={seed} PCOPY_KILLS=1, {}", src.display());
    for _ in 0..chance.of(1..=3) {
        play(&mut chance, &round, journal_bytes, tally);
    }
    let last = job(&mut chance);
    place.complete(&last, operands);
    if chance.index(3) == 0 {
        // A run of the complete job, which finds that something is gone.
        let tree = oracle::walk(&place.root);
        let files: Vec<_> = tree.into_iter().filter(|(_, node)| node.kind == Kind::File).collect();
        for _ in 0..5 {
            let _ = fs::remove_file(tree::raw(&place.root, &chance.one(&files).0));
        }
        play(&mut chance, &round, 200, tally);
        let last = job(&mut chance);
        place.complete(&last, operands);
    }
    fs::remove_dir_all(&place.root).unwrap();
}

#[test]
fn a_copy_that_is_killed_again_and_again_ends_whole() {
    let seed = chance::seed("kills");
    let rounds = chance::from_environment("PCOPY_KILLS").unwrap_or(6);
    let dir = temp();
    let sources = need!(Sources::new());
    let mut tally = Tally::default();
    for number in 0..rounds {
        play_round(seed.wrapping_add(number), &sources, &dir.path().join("dst"), &mut tally);
    }
    say(&format!("kills: PCOPY_SEED={seed}, {rounds} rounds, {} runs killed or to be killed:", tally.runs));
    for ((phase, victim), count) in &tally.kills {
        say(&format!("kills: {count:4} {phase:?}, {victim:?}"));
    }
}
