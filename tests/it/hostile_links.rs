//! A file has a name in Eve's directory and one in another. Whatever she puts in her name's place, the other one is the
//! right file or a failure (issue 14, "What must hold").

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::attacker::{
    Attack, Decoy, Scene, Step, THEN, as_eve, exchange, exchange_works, file, in_home, withstand,
};
use crate::support::skip::need;
use crate::support::tree::{noise, set_times};

const PAIRS: usize = 25;
const LEN: usize = 3000;

fn name(sort: &str, number: usize) -> String {
    format!("{sort}-{number:02}")
}

/// Of another length each, so that nothing but a race makes one pass for another; or all of one.
fn len(run: Run, number: usize) -> usize {
    if matches!(run, Run::Forged) { LEN } else { LEN + 1 + number }
}

/// Files of root's that have a name in Eve's home, which is met first.
fn build(src: &Path, run: Run, turn: u64) {
    for number in 0..PAIRS {
        let (first, second) = (src.join("home").join(name("a", number)), src.join("shared").join(name("b", number)));
        let _ = fs::remove_file(&second);
        file(&first, &noise(len(run, number), 1000 * turn + number as u64), 0, 0o644);
        let then = (THEN.0 + i64::try_from(turn).unwrap(), THEN.1);
        set_times(&first, then, then);
        fs::hard_link(&first, &second).unwrap();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    First,
    /// Both names are there, with another content.
    Changed,
    /// Eve's name is there.
    Added,
    /// The same, and Eve's name is another file before the run begins, with the size and the time of the one that it was.
    Forged,
}

fn put_ready(scene: &Scene, run: Run, decoy: Option<Decoy>) {
    static TURN: AtomicU64 = AtomicU64::new(1);
    match run {
        Run::First => {}
        Run::Changed => build(&scene.src, run, TURN.fetch_add(1, Ordering::Relaxed)),
        Run::Added | Run::Forged => {
            (0..PAIRS).for_each(|n| fs::remove_file(scene.dst.join("shared").join(name("b", n))).unwrap());
        }
    }
    if let Some(decoy) = decoy {
        (0..PAIRS).for_each(|number| drop(decoy.put(scene, &name("decoy", number), LEN)));
    }
    if run == Run::Forged {
        as_eve(|| drop(exchange_each(scene, decoy)));
    }
}

/// Each of Eve's names with its decoy, or with the next one.
fn exchange_each(scene: &Scene, decoy: Option<Decoy>) -> Step {
    let at = |sort: &str, number| scene.home().join(name(sort, number));
    let other = |number| match decoy {
        Some(_) => at("decoy", number),
        None => at("a", (number + 1) % PAIRS),
    };
    Step::done((0..PAIRS).filter(|number| exchange(&at("a", *number), &other(*number))).count() > 0)
}

fn withstand_all(scene: &Scene, run: Run) {
    let attack = |decoy: Option<Decoy>| Attack {
        name: decoy.map_or("her names among each other".into(), |decoy| format!("{decoy:?}")),
        scene,
        options: vec![],
        prepare: Box::new(move || put_ready(scene, run, decoy)),
        act: Box::new(move || if run == Run::Forged { Step::Done } else { exchange_each(scene, decoy) }),
        hers: in_home,
    };
    let decoys = [None, Some(Decoy::Secret), Some(Decoy::Own), Some(Decoy::Symlink), Some(Decoy::LinkOutside)];
    withstand(&decoys.map(attack));
}

#[test]
fn links_are_never_made_to_what_eve_puts_there_in_a_first_run_into_her_directory() {
    need!(exchange_works());
    withstand_all(&Scene::new(|src| build(src, Run::First, 0)).begun(), Run::First);
}

#[test]
fn links_are_never_made_to_what_eve_puts_there_when_the_file_is_another_by_now() {
    need!(exchange_works());
    withstand_all(&Scene::new(|src| build(src, Run::Changed, 0)).copied(&[]), Run::Changed);
}

#[test]
fn links_are_never_made_to_what_eve_puts_there_when_a_name_is_added() {
    need!(exchange_works());
    withstand_all(&Scene::new(|src| build(src, Run::Added, 0)).copied(&[]), Run::Added);
}

#[test]
fn links_are_never_made_to_a_file_of_the_same_size_and_time_that_eve_has_put_there_before() {
    need!(exchange_works());
    withstand_all(&Scene::new(|src| build(src, Run::Forged, 0)).copied(&[]), Run::Forged);
}
