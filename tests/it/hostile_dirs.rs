//! Eve owns a directory in which others' directories stand. Whatever names she exchanges, no directory of root's becomes
//! hers, and nothing in it can be read by her (issue 14, "What must hold").

use std::fs;
use std::path::Path;

use crate::support::attacker::{
    Attack, EVE, Scene, Step, as_eve, dir, exchange, exchange_works, file, in_home, marked, withstand,
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
