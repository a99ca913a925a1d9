//! Eve owns a directory of the copy. Whatever she puts there in the place of a file that gets its metadata again, she
//! gets neither a program of root's making nor a file of root's (issue 14, item 1).

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::attacker::{
    Attack, Decoy, EVE, Scene, Step, THEN, as_eve, exchange, exchange_works, file, in_home, marked, touch, withstand,
};
use crate::support::harm::{EVIL, SECRET};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::tree::{chmod, noise, set_times};

const MAIL: u32 = 8;
const LEN: usize = 5000;
/// Files of each sort: each is one chance to come between two looks at a name.
const PAIRS: usize = 40;
/// A capability, as the kernel keeps it: version 2, effective, cap_net_raw.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn owned(at: &Path, (uid, gid): (u32, u32), mode: u32) {
    lchown(at, Some(uid), Some(gid)).unwrap();
    chmod(at, mode);
}

/// Everything that the attacks without a race replace.
fn programs(src: &Path) {
    let at = |name: &str| src.join("home").join(name);
    file(&at("root-setuid"), &noise(LEN, 1), 0, 0o4755);
    file(&at("root-setuid-moved"), &noise(LEN, 2), 0, 0o4755);
    file(&at("mine"), &noise(LEN, 3), EVE, 0o644);
    file(&at("becomes-roots"), &noise(LEN, 4), EVE, 0o755);
    file(&at("setgid"), &noise(LEN, 5), EVE, 0o755);
    owned(&at("setgid"), (EVE, MAIL), 0o2755);
    file(&at("capable"), &noise(LEN, 6), EVE, 0o755);
    sys::set_xattr(&at("capable"), "security.capability", &NET_RAW).unwrap();
    set_times(&at("capable"), THEN, THEN);
}

/// What Eve does between two runs: each file has the size and the time of the one that it takes the place of.
fn replace(scene: &Scene) {
    let at = |name: &str| scene.home().join(name);
    // root's own, as a run that was killed left it there: renamed by Eve
    file(&at("roots-of-eves-making"), &marked(EVIL, LEN, 7), 0, 0o600);
    file(&at("secret"), &marked(SECRET, LEN, 8), 0, 0o600);
    as_eve(|| {
        fs::rename(at("root-setuid"), at("away")).unwrap();
        fs::write(at("root-setuid"), marked(EVIL, LEN, 9)).unwrap();
        fs::rename(at("roots-of-eves-making"), at("root-setuid-moved")).unwrap();
        fs::rename(at("secret"), at("mine")).unwrap();
        // where they are still there: she may write to what is hers, and it loses its special bits
        for name in ["becomes-roots", "setgid", "capable"] {
            fs::write(at(name), marked(EVIL, LEN, 10)).unwrap();
            set_times(&at(name), THEN, THEN);
        }
        set_times(&at("root-setuid"), THEN, THEN);
    });
}

/// The options of a first run and of the next one, and whether the source's metadata is set in between.
const RUNS: [(&str, &[&str], &[&str], bool); 7] = [
    ("nothing changed in the source", &[], &[], false),
    ("metadata only", &[], &[], true),
    ("--update", &["--update"], &["--update"], true),
    ("--no-clobber", &["--no-clobber"], &["--no-clobber"], true),
    ("--no-digest", &["--no-digest"], &["--no-digest"], true),
    ("--restart", &[], &["--restart"], true),
    ("--update for the first time", &[], &["--update"], true),
];

#[test]
fn what_eve_puts_in_the_place_of_a_copied_file_never_gets_its_metadata() {
    need!(skip::root());
    let scenes = RUNS.map(|(_, first, _, _)| Scene::new(programs).copied(first));
    let attack = |number: usize| {
        let ((name, _, options, touches), scene) = (RUNS[number], &scenes[number]);
        // the owner is another since the copy was made
        owned(&scene.src.join("home/becomes-roots"), (0, 0), 0o4755);
        let prepare = move || {
            if touches {
                touch(&scene.src);
            }
            replace(scene);
        };
        Attack {
            name: name.into(),
            scene,
            options: options.to_vec(),
            prepare: Box::new(prepare),
            act: Box::new(|| Step::Done),
            hers: in_home,
        }
    };
    withstand(&(0..RUNS.len()).map(attack).collect::<Vec<_>>());
}

fn name(sort: &str, number: usize) -> String {
    format!("{sort}-{number:02}")
}

fn each(act: impl Fn(usize) -> bool) -> Step {
    Step::done((0..PAIRS).filter(|number| act(*number)).count() > 0)
}

/// Eve exchanges each entry of a sort with the decoy of its number, all the time.
fn exchanging<'a>(name: String, scene: &'a Scene, sort: &'static str, prepare: impl Fn() + 'a) -> Attack<'a> {
    let at = |sort: &str, number| scene.home().join(self::name(sort, number));
    let act = move || each(|number| exchange(&at(sort, number), &at("decoy", number)));
    Attack { name, scene, options: vec![], prepare: Box::new(prepare), act: Box::new(act), hers: in_home }
}

#[test]
fn names_that_eve_exchanges_while_metadata_is_set_again_give_her_nothing() {
    need!(exchange_works());
    let scene = Scene::new(|src| {
        for number in 0..PAIRS {
            let at = |sort: &str| src.join("home").join(name(sort, number));
            file(&at("prog"), &noise(LEN, 20 + number as u64), 0, 0o755);
            file(&at("mine"), &noise(LEN, 90 + number as u64), EVE, 0o644);
        }
    })
    .copied(&[]);
    for number in 0..PAIRS {
        chmod(&scene.src.join("home").join(name("prog", number)), 0o4755);
    }
    let scene = &scene;
    let attack = |of: &'static str, sort: &'static str, bytes: Vec<u8>, owner: u32, mode: u32| {
        let put = move |at: &Path| file(at, &bytes, owner, mode);
        let prepare = move || {
            touch(&scene.src);
            (0..PAIRS).for_each(|number| put(&scene.home().join(name("decoy", number))));
        };
        exchanging(of.into(), scene, sort, prepare)
    };
    withstand(&[
        attack("root's file with Eve's content, as a killed run leaves it", "prog", marked(EVIL, LEN, 1), 0, 0o755),
        attack("Eve's own program", "prog", marked(EVIL, LEN, 2), EVE, 0o755),
        attack("root's secret for her file", "mine", marked(SECRET, LEN, 3), 0, 0o600),
    ]);
}

/// What is made by a name alone.
const SORTS: [&str; 3] = ["fifo", "socket", "link"];

fn make_special(at: &Path, sort: &str) {
    match sort {
        "fifo" => mkfifo(at, Mode::from_bits_truncate(0o644)).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(at).unwrap()),
        _ => symlink("/nowhere", at).unwrap(),
    }
    lchown(at, Some(EVE), Some(EVE)).unwrap();
}

#[test]
fn a_new_special_file_or_link_that_eve_exchanges_with_a_secret_leaves_that_roots() {
    need!(exchange_works());
    let scene = Scene::new(|src| {
        for (number, sort) in (0..PAIRS).flat_map(|number| SORTS.map(|sort| (number, sort))) {
            make_special(&src.join("home").join(name(sort, number)), sort);
        }
    });
    let scene = scene.copied(&[]);
    let scene = &scene;
    let attack = |sort: &'static str, replaced: bool| {
        let prepare = move || {
            let at = |sort: &str, number| scene.home().join(name(sort, number));
            for number in 0..PAIRS {
                Decoy::Secret.put(scene, &name("decoy", number), LEN);
                as_eve(|| fs::remove_file(at(sort, number)).unwrap());
                if replaced {
                    Decoy::Own.put(scene, &name(sort, number), 100);
                }
            }
        };
        exchanging(format!("{sort}{}", if replaced { ", in the place of a file" } else { "" }), scene, sort, prepare)
    };
    withstand(&[
        attack("fifo", false),
        attack("socket", false),
        attack("link", false),
        attack("fifo", true),
        attack("link", true),
    ]);
}
