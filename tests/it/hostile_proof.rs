//! Eve has her rights and no others, and the judge of what she has done objects to each harm.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use crate::support::attacker::{
    Attack, CLUB, EVE, Scene, Step, THEN, as_eve, dir, file, in_home, marked, touch, while_eve, withstand_for,
};
use crate::support::harm::{EVIL, SECRET};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::tree::{chmod, noise, set_times};

#[test]
fn eve_has_her_own_rights_and_the_tests_keep_theirs() {
    need!(skip::root());
    let scene = Scene::new(|src| {
        file(&src.join("shared/club"), b"club", 0, 0o640);
        lchown(src.join("shared/club"), Some(0), Some(CLUB)).unwrap();
    });
    let at = |name: &str| scene.src.join(name);
    as_eve(|| {
        for (name, may) in [("shared/plain", true), ("shared/club", true), ("private/open", false)] {
            assert_eq!(File::open(at(name)).is_ok(), may, "{name}");
        }
        fs::write(at("home/hers"), b"hers").unwrap();
        assert!(fs::write(at("shared/hers"), b"hers").is_err());
        assert!(lchown(at("home/hers"), Some(0), None).is_err());
        chmod(&at("home/hers"), 0o4755);
    });
    assert_eq!(at("home/hers").metadata().unwrap().uid(), EVE);
    File::open(at("private/closed")).unwrap();
}

/// What the judge says after `act` on a copy that was good.
fn objections(act: impl FnOnce(&Scene)) -> String {
    let scene = Scene::new(|src| {
        file(&src.join("home/prog"), &noise(100, 1), 0, 0o4755);
        file(&src.join("home/mine"), &noise(100, 2), EVE, 0o644);
    });
    let watch = scene.watch();
    let job = Scene::job(2, &[]);
    let outcome = job.run([scene.source(), scene.dst.clone()]);
    act(&scene);
    watch.harm(&job, &outcome, in_home).join("; ")
}

/// Words of an objection, and the harm that it is to be raised against.
type Case<'a> = (&'a str, &'a dyn Fn(&Scene));

#[test]
fn the_judge_of_attacks_objects_to_each_harm_and_to_nothing_else() {
    need!(skip::root());
    assert_eq!(objections(|_| {}), "");
    // what she may do in her home, and to what is hers
    let harmless = objections(|scene| {
        as_eve(|| {
            fs::rename(scene.home().join("prog"), scene.home().join("moved")).unwrap();
            fs::write(scene.home().join("mine"), b"others").unwrap();
            chmod(&scene.home().join("mine"), 0o4755);
            symlink("/etc/passwd", scene.home().join("link")).unwrap();
        });
    });
    assert_eq!(harmless, "");
    let evil = |at: &Path, owner: u32, mode: u32| file(at, &marked(EVIL, 100, 1), owner, mode);
    let secret = |at: &Path, owner: u32, mode: u32| file(at, &marked(SECRET, 9000, 1), owner, mode);
    let cases: [Case; 15] = [
        ("4000 of 0:0", &|scene| evil(&scene.home().join("new"), 0, 0o4755)),
        ("2000 of 4242:8", &|scene| {
            evil(&scene.home().join("new"), EVE, 0o755);
            lchown(scene.home().join("new"), Some(EVE), Some(8)).unwrap();
            chmod(&scene.home().join("new"), 0o2755);
        }),
        ("and capabilities", &|scene| {
            evil(&scene.home().join("new"), EVE, 0o755);
            let mut capability = [0; 20];
            (capability[0], capability[3], capability[5]) = (1, 2, 32);
            sys::set_xattr(&scene.home().join("new"), "security.capability", &capability).unwrap();
        }),
        ("reads a secret", &|scene| secret(&scene.home().join("new"), 0, 0o644)),
        ("owns a secret", &|scene| lchown(scene.dst.join("private/closed"), Some(EVE), None).unwrap()),
        ("owns a directory", &|scene| {
            dir(&scene.home().join("d"), EVE, 0o700);
            secret(&scene.home().join("d/new"), 0, 0o600);
        }),
        ("reads a secret", &|scene| {
            let bytes = [noise(4096, 1), marked(SECRET, 100, 1)].concat();
            file(&scene.home().join("new"), &bytes, 0, 0o644);
        }),
        ("outside of the copy: closed: owner", &|scene| lchown(scene.outside.join("closed"), Some(EVE), None).unwrap()),
        ("outside of the copy: for-all: mode", &|scene| chmod(&scene.outside.join("for-all"), 0o644)),
        ("outside of the copy: for-all: mtime", &|scene| set_times(&scene.outside.join("for-all"), THEN, (7, 7))),
        ("outside of the copy: linked: content", &|scene| {
            let at = scene.outside.join("linked");
            let len = at.metadata().unwrap().len();
            fs::write(&at, noise(usize::try_from(len).unwrap(), 99)).unwrap();
            set_times(&at, THEN, THEN);
        }),
        ("not hers", &|scene| evil(&scene.dst.join("shared/new"), 0, 0o600)),
        ("not hers", &|scene| symlink("/etc/passwd", scene.dst.join("shared/new")).unwrap()),
        ("manifest: shared/plain: mode", &|scene| chmod(&scene.dst.join("shared/plain"), 0o600)),
        ("shared/plain: done, and its content differs", &|scene| {
            // as a manifest would tell it that has the wrong digest too
            fs::write(scene.src.join("shared/plain"), noise(5000, 98)).unwrap();
            set_times(&scene.src.join("shared/plain"), THEN, THEN);
        }),
    ];
    for (number, (words, act)) in cases.into_iter().enumerate() {
        let found = objections(act);
        assert!(found.contains(words), "case {number}: no {words:?} in {found:?}");
    }
}

fn attack<'a>(scene: &'a Scene, act: impl Fn() -> Step + Sync + 'a) -> Attack<'a> {
    let (prepare, act) = (Box::new(|| touch(&scene.src)), Box::new(act));
    Attack { name: "one".into(), scene, options: vec![], prepare, act, hers: in_home }
}

#[test]
fn an_attack_that_harms_and_one_that_does_nothing_are_no_good_end() {
    need!(skip::root());
    let scene = Scene::new(|_| {}).copied(&[]);
    let objects = |act: fn(&Scene) -> Step| {
        catch_unwind(AssertUnwindSafe(|| withstand_for(Duration::ZERO, &[attack(&scene, || act(&scene))]))).is_err()
    };
    assert!(!objects(|_| Step::Done));
    assert!(objects(|_| Step::Nothing));
    assert!(objects(|_| Step::Harm(vec!["words".into()])));
}

#[test]
fn what_eve_does_is_counted_as_long_as_the_run_lasts() {
    need!(skip::root());
    let ((), done, harm) = while_eve(&|| Step::Done, || std::thread::sleep(Duration::from_millis(20)));
    assert!(done > 0 && harm.is_empty());
    let failed = catch_unwind(|| while_eve(&|| Step::Done, || panic!("the run fails the test")));
    assert!(failed.is_err());
}
