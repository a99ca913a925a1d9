//! Eve owns a directory in which pcopy writes under temporary names. Whatever she puts there in their place, nothing
//! outside of the copy is written or given away, and no secret of root's becomes hers (issue 14, item 2).

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::attacker::{
    Attack, Decoy, EVE, LARGE, Scene, Step, THEN, exchange, exchange_works, file, in_home, marked, temporaries,
    withstand,
};
use crate::support::harm::SECRET;
use crate::support::interrupted::wait_for;
use crate::support::skip::need;
use crate::support::tree::{noise, set_times};

const SMALL: usize = 6;

/// All that is made under a temporary name where something has the final one: `turn` makes it another than before.
fn write_home(src: &Path, turn: u64) {
    let at = |name: &str| src.join("home").join(name);
    file(&at("large"), &noise(LARGE, 1 + turn), EVE, 0o644);
    file(&at("large-of-root"), &marked(SECRET, LARGE, 100 + turn), 0, 0o600);
    file(&at("large-setuid"), &noise(LARGE, 200 + turn), 0, 0o4755);
    file(&at("linked"), &noise(LARGE, 300 + turn), EVE, 0o644);
    let _ = fs::remove_file(at("linked-too"));
    fs::hard_link(at("linked"), at("linked-too")).unwrap();
    for number in 0..SMALL {
        file(&at(&format!("small-{number}")), &noise(3000, 400 + turn), EVE, 0o644);
        let link = at(&format!("link-{number}"));
        let _ = fs::remove_file(&link);
        symlink(format!("nowhere-{turn}"), &link).unwrap();
        lchown(&link, Some(EVE), Some(EVE)).unwrap();
    }
    let fifo = at("fifo");
    let _ = fs::remove_file(&fifo);
    mkfifo(&fifo, Mode::from_bits_truncate(0o644)).unwrap();
    lchown(&fifo, Some(EVE), Some(EVE)).unwrap();
    // another time than at the last turn
    for entry in fs::read_dir(src.join("home")).unwrap() {
        let then = (THEN.0 + i64::try_from(turn).unwrap(), THEN.1);
        set_times(&entry.unwrap().path(), then, then);
    }
}

/// Changes everything in Eve's home.
fn change(scene: &Scene) {
    static TURN: AtomicU64 = AtomicU64::new(1);
    write_home(&scene.src, TURN.fetch_add(1, Ordering::Relaxed));
}

/// A pause that is another each time, so that both sides of an exchange are met.
fn pause() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    thread::sleep(Duration::from_micros(COUNT.fetch_add(7, Ordering::Relaxed) % 5 * 150));
}

/// Exchanges each temporary name with the decoy.
fn exchange_with(scene: &Scene) -> Step {
    let decoy = scene.home().join("decoy");
    let exchanged = temporaries(&scene.home()).iter().filter(|temporary| exchange(temporary, &decoy)).count();
    pause();
    Step::done(exchanged > 0)
}

/// Exchanges each temporary name with the next one.
fn exchange_among(scene: &Scene) -> Step {
    let exchanged = temporaries(&scene.home()).windows(2).filter(|pair| exchange(&pair[0], &pair[1])).count();
    pause();
    Step::done(exchanged > 0)
}

/// Every decoy, and the temporary files of each other, in runs that `prepare` makes ready.
fn attacks<'a>(scene: &'a Scene, options: &[&'static str], prepare: impl Fn(&Scene) + Copy + 'a) -> Vec<Attack<'a>> {
    let attack = |name: String, decoy: Option<Decoy>| Attack {
        name,
        scene,
        options: options.to_vec(),
        prepare: Box::new(move || {
            if let Some(decoy) = decoy {
                decoy.put(scene, "decoy", LARGE);
            }
            prepare(scene);
        }),
        act: Box::new(move || if decoy.is_some() { exchange_with(scene) } else { exchange_among(scene) }),
        hers: in_home,
    };
    let decoys = Decoy::ALL.map(|decoy| attack(format!("{decoy:?}"), Some(decoy)));
    [attack("among each other".into(), None)].into_iter().chain(decoys).collect()
}

#[test]
fn temporary_names_that_eve_exchanges_do_no_harm_in_a_first_run_into_her_directory() {
    need!(exchange_works());
    let scene = Scene::new(|src| write_home(src, 0)).begun();
    withstand(&attacks(&scene, &[], |_| {}));
}

#[test]
fn temporary_names_that_eve_exchanges_do_no_harm_where_older_files_are_replaced() {
    need!(exchange_works());
    let scene = Scene::new(|src| write_home(src, 0)).copied(&[]);
    withstand(&attacks(&scene, &[], change));
}

#[test]
fn temporary_names_that_eve_exchanges_do_no_harm_with_update() {
    need!(exchange_works());
    let scene = Scene::new(|src| write_home(src, 0)).copied(&["--update"]);
    withstand(&attacks(&scene, &["--update"], change));
}

/// Kills a run that has begun to write to a large file of Eve's, and has recorded ranges of it.
fn kill_in_the_middle(scene: &Scene) {
    change(scene);
    let job = Scene::job(2, &["--checkpoint-interval", "10ms", "--limit-rate", "1M"]);
    let mut running = job.start([scene.source(), scene.dst.clone()]);
    wait_for(&mut running, "temporary files", || !temporaries(&scene.home()).is_empty());
    let until = Instant::now() + Duration::from_millis(250);
    wait_for(&mut running, "a part of them", || Instant::now() > until);
    drop(running);
}

#[test]
fn temporary_files_that_eve_replaces_after_a_kill_do_no_harm_when_the_job_goes_on() {
    need!(exchange_works());
    let scene = Scene::new(|src| write_home(src, 0)).copied(&[]);
    let replaced = |scene: &Scene| {
        kill_in_the_middle(scene);
        // without any race, and once more beside the run
        if exchange_with(scene).is_nothing() {
            exchange_among(scene);
        }
    };
    withstand(&attacks(&scene, &[], replaced));
}
