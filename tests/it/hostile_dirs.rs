//! Eve owns a directory in which others' directories stand. Whatever names she exchanges, no directory of root's becomes
//! hers, and nothing in it can be read by her (issue 14, "What must hold").

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::support::attacker::{
    Attack, EVE, Scene, Step, as_eve, attack_time, dir, exchange, exchange_works, file, in_home, marked, while_eve,
    withstand,
};
use crate::support::harm::SECRET;
use crate::support::skip::need;
use crate::support::tree::noise;

const PAIRS: usize = 20;

fn eves(number: usize) -> String {
    format!("eves-{number:02}")
}

fn roots(number: usize) -> String {
    format!("roots-{number:02}")
}

/// For root alone, but what is in it is for all who could enter.
fn make_roots(at: &Path) {
    dir(at, 0, 0o700);
    for name in ["one", "two"] {
        file(&at.join(name), &marked(SECRET, 3000, 1), 0, 0o644);
    }
}

fn build(src: &Path) {
    for number in 0..PAIRS {
        let at = |name: String| src.join("home").join(name);
        dir(&at(eves(number)), EVE, 0o755);
        file(&at(eves(number)).join("own"), &noise(3000, 2), EVE, 0o644);
        make_roots(&at(roots(number)));
    }
}

fn exchange_each(scene: &Scene, other: fn(usize) -> String) -> Step {
    let at = |name: String| scene.home().join(name);
    Step::done((0..PAIRS).filter(|number| exchange(&at(eves(*number)), &at(other(*number)))).count() > 0)
}

fn attack<'a>(name: &str, scene: &'a Scene, prepare: impl Fn() + 'a, act: impl Fn() -> Step + Sync + 'a) -> Attack<'a> {
    let (prepare, act) = (Box::new(prepare), Box::new(act));
    Attack { name: name.into(), scene, options: vec![], prepare, act, hers: in_home }
}

fn remove(scene: &Scene, name: fn(usize) -> String) {
    (0..PAIRS).for_each(|number| fs::remove_dir_all(scene.home().join(name(number))).unwrap());
}

fn other(number: usize) -> String {
    format!("other-{number:02}")
}

#[test]
fn directories_that_eve_exchanges_never_become_hers_with_what_is_in_them() {
    need!(exchange_works());
    let (begun, copied) = (&Scene::new(build).begun(), &Scene::new(build).copied(&[]));
    let put_others = || (0..PAIRS).for_each(|number| make_roots(&copied.home().join(other(number))));
    withstand(&[
        attack("first run into Eve's directory", begun, || {}, || exchange_each(begun, roots)),
        attack(
            "both are made anew",
            copied,
            || {
                remove(copied, eves);
                remove(copied, roots);
            },
            || exchange_each(copied, roots),
        ),
        attack("both are there", copied, || {}, || exchange_each(copied, roots)),
        attack("exchanged before the run", copied, || drop(as_eve(|| exchange_each(copied, roots))), || Step::Done),
        attack(
            "root's finished directory for hers that is being made",
            copied,
            || {
                remove(copied, eves);
                put_others();
            },
            || exchange_each(copied, other),
        ),
        attack(
            "root's finished directory under her directory's name",
            copied,
            || {
                remove(copied, eves);
                put_others();
                let at = |name: String| copied.home().join(name);
                as_eve(|| (0..PAIRS).for_each(|number| fs::rename(at(other(number)), at(eves(number))).unwrap()));
            },
            || Step::Done,
        ),
    ]);
}

#[test]
fn records_are_never_written_to_a_directory_that_eve_puts_in_the_place_of_the_state() {
    need!(exchange_works());
    let scene = Scene::new(|src| (0..40).for_each(|n| file(&src.join(format!("f{n}")), &noise(300, n), 0, 0o644)));
    let scene = &scene.begun();
    let (until, mut runs, mut steps, mut found) = (Instant::now() + attack_time(), 0, 0, Vec::new());
    while runs < 3 || Instant::now() < until {
        scene.reset();
        dir(&scene.dst, EVE, 0o755);
        let places = [scene.dst.join(".pcopy"), scene.dst.join("decoy")];
        dir(&places[1], 0, 0o700);
        let job = Scene::job(3, &["--checkpoint-interval", "10ms"]);
        let run = || drop(job.run([scene.source(), scene.dst.clone()]));
        steps += while_eve(&|| Step::done(exchange(&places[0], &places[1])), run).1;
        // The state is the directory with the job file, whatever its name is by now.
        for place in places.iter().filter(|place| place.exists() && !place.join("job.json").exists()) {
            let names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name());
            found.extend(names.map(|name| format!("run {runs}: {} in the other directory", name.display())));
        }
        runs += 1;
    }
    assert!(found.is_empty(), "{runs} runs: {found:?}");
    assert!(steps > 0, "Eve never exchanged anything in {runs} runs");
}
