//! What stands in the way of pcopy's own files is told before anything is copied, with the way out: nothing blocks, nothing
//! is written through a link, no device is opened (issue 14, item 7).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::support::launch::{Job, Outcome};
use crate::support::oracle::{self, Aspects};
use crate::support::parallel;
use crate::support::resumed::{Case, job};
use crate::support::skip::{self, Missing, need};
use crate::support::tree::{noise_file, temp, write};
use crate::support::whole::{Place, temporaries};

/// Every name that pcopy gives a file in a state directory.
const NAMES: [&str; 13] = [
    "job.json",
    "job.json.new",
    "lock",
    "base",
    "base.new",
    "manifest.jsonl",
    "manifest.jsonl.new",
    "manifest.jsonl.previous",
    "journal-000002.0",
    "journal-000009.7",
    "journal-000002.0.run0",
    "journal-merge.run0",
    "limit-rate",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dir,
    Fifo,
    Link,
    Dangling,
    Device,
    Immutable,
    AppendOnly,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Dir, Kind::Fifo, Kind::Link, Kind::Dangling, Kind::Device, Kind::Immutable, Kind::AppendOnly];

    fn flag(self) -> Option<&'static str> {
        match self {
            Kind::Immutable => Some("i"),
            Kind::AppendOnly => Some("a"),
            _ => None,
        }
    }

    /// What the refusal says of the way out.
    fn way_out(self) -> &'static str {
        match self {
            Kind::Immutable => "chattr -i",
            Kind::AppendOnly => "chattr -a",
            _ => "rename or remove",
        }
    }
}

/// Something in the way. Dropped, what was there before is there again.
struct InTheWay {
    path: PathBuf,
    kept: PathBuf,
    kind: Kind,
}

impl InTheWay {
    /// `victim` is what a link leads to.
    fn put(path: &Path, kind: Kind, victim: &Path) -> InTheWay {
        // beside the destination, with all of its metadata
        let kept = victim.with_extension("kept");
        if path.symlink_metadata().is_ok() && kind.flag().is_none() {
            fs::rename(path, &kept).unwrap();
        }
        match kind {
            Kind::Dir => fs::create_dir(path).unwrap(),
            Kind::Fifo => mkfifo(path, Mode::S_IRWXU).unwrap(),
            Kind::Link => symlink(victim, path).unwrap(),
            Kind::Dangling => symlink(victim.with_extension("new"), path).unwrap(),
            // /dev/zero: who reads it to its end never comes back
            Kind::Device => mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap(),
            Kind::Immutable | Kind::AppendOnly => {
                if !path.exists() {
                    write(path, b"");
                    write(&kept.with_extension("none"), b"");
                }
                chattr(path, &format!("+{}", kind.flag().unwrap())).unwrap();
            }
        }
        InTheWay { path: path.to_path_buf(), kept, kind }
    }
}

impl Drop for InTheWay {
    fn drop(&mut self) {
        let none = self.kept.with_extension("none");
        match self.kind {
            Kind::Dir => fs::remove_dir(&self.path).unwrap(),
            Kind::Immutable | Kind::AppendOnly => {
                chattr(&self.path, &format!("-{}", self.kind.flag().unwrap())).unwrap();
                if none.exists() {
                    fs::remove_file(&none).unwrap();
                    fs::remove_file(&self.path).unwrap();
                }
            }
            _ => fs::remove_file(&self.path).unwrap(),
        }
        if self.kept.exists() {
            fs::rename(&self.kept, &self.path).unwrap();
        }
    }
}

fn chattr(path: &Path, change: &str) -> Result<(), Missing> {
    skip::program("chattr")?;
    let output = Command::new("chattr").arg(change).arg(path).output().unwrap();
    let why = || Missing::new(format!("chattr {change}: {}", String::from_utf8_lossy(&output.stderr)));
    if output.status.success() { Ok(()) } else { Err(why()) }
}

/// Root, on a file system with chattr(1).
fn can_all() -> Result<(), Missing> {
    skip::root()?;
    let dir = temp();
    chattr(dir.path(), "+a")?;
    chattr(dir.path(), "-a")
}

/// A small copy, complete, with its state in it or elsewhere.
struct Scene {
    src: PathBuf,
    dst: PathBuf,
    state: PathBuf,
    /// What a link in the way leads to.
    victim: PathBuf,
    job: Job,
    dir: TempDir,
}

impl Scene {
    fn new(is_elsewhere: bool) -> Scene {
        let dir = temp();
        let [src, dst, state, victim] = ["src", "dst", "state", "victim"].map(|name| dir.path().join(name));
        noise_file(&src.join("a/one"), 3000);
        noise_file(&src.join("two"), 100);
        write(&victim, b"somebody's");
        let mut job = Job::ranks(1).options(["--progress", "0"]);
        if is_elsewhere {
            job = job.options(["--state-dir".as_ref(), state.as_os_str()]);
        }
        let state = if is_elsewhere { state } else { dst.join(".pcopy") };
        let scene = Scene { src, dst, state, victim, job, dir };
        scene.run().assert_code(0);
        scene
    }

    fn run(&self) -> Outcome {
        self.job.run([&self.src, &self.dst])
    }

    /// The job's number, as its temporary names have it.
    fn job_id(&self) -> String {
        let job = fs::read(self.state.join("job.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&job).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Runs where something is in the way, and demands a refusal that names it and leaves all as it is.
    #[track_caller]
    fn is_refused(&self, job: &Job, named: &Path, way_out: &str, what: &str) {
        let before = oracle::walk(self.dir.path());
        let outcome = job.clone().limit(20).run([&self.src, &self.dst]);
        let line = outcome.assert_refused();
        assert!(line.contains(named.to_str().unwrap()), "{what}: no {} in {line:?}", named.display());
        assert!(line.contains(way_out), "{what}: no {way_out:?} in {line:?}");
        let found = oracle::compare(&before, &oracle::walk(self.dir.path()), Aspects::ALL);
        oracle::assert_none(&found, &format!("{what}: {}", outcome.told()));
        assert_eq!(fs::read(&self.victim).unwrap(), b"somebody's", "{what}");
    }
}

#[test]
fn whatever_is_in_the_way_of_a_name_in_the_state_directory_is_refused_before_anything_is_copied() {
    need!(can_all());
    parallel::for_each(&[false, true], |_, is_elsewhere| {
        let scene = Scene::new(*is_elsewhere);
        // Something to copy, so that a run that is not refused would be seen.
        noise_file(&scene.src.join("new"), 100);
        let marker = format!(".pcopy-{}.here", scene.job_id());
        let in_state = NAMES.map(|name| scene.state.join(name));
        let markers = [scene.dst.join(&marker), scene.state.join(&marker)];
        for path in in_state.iter().chain(&markers) {
            for kind in Kind::ALL {
                // It is only read, and the one in the state directory is made only where that is elsewhere.
                if path.ends_with("limit-rate") && kind.flag().is_some() {
                    continue;
                }
                let _in_the_way = InTheWay::put(path, kind, &scene.victim);
                let what = format!("{} is {kind:?}", path.display());
                scene.is_refused(&scene.job, path, kind.way_out(), &what);
            }
        }
        scene.run().assert_code(0);
        oracle::assert_same(&scene.src, &scene.dst, Aspects::ALL);
    });
}

#[test]
fn a_state_directory_that_cannot_be_changed_is_refused() {
    need!(can_all());
    parallel::for_each(&[false, true], |_, is_elsewhere| {
        let scene = Scene::new(*is_elsewhere);
        noise_file(&scene.src.join("new"), 100);
        for kind in [Kind::Immutable, Kind::AppendOnly] {
            let _in_the_way = InTheWay::put(&scene.state, kind, &scene.victim);
            scene.is_refused(&scene.job, &scene.state, kind.way_out(), &format!("{kind:?}"));
        }
    });
}

#[test]
fn what_is_in_the_way_of_a_manifest_elsewhere_is_refused() {
    need!(can_all());
    let scene = Scene::new(false);
    noise_file(&scene.src.join("new"), 100);
    let manifest = scene.dir.path().join("m.jsonl");
    let job = scene.job.clone().options(["--manifest".as_ref(), manifest.as_os_str()]);
    for name in ["m.jsonl", "m.jsonl.new", "m.jsonl.previous"] {
        let path = scene.dir.path().join(name);
        for kind in Kind::ALL {
            let way_out = if kind.flag().is_some() { kind.way_out() } else { "another file with --manifest" };
            // An immutable file of somebody's is somebody's file first.
            let way_out = if name.ends_with(".new") || kind.flag().is_none() { way_out } else { "" };
            let _in_the_way = InTheWay::put(&path, kind, &scene.victim);
            scene.is_refused(&job, &path, way_out, &format!("{name} is {kind:?}"));
        }
        write(&path, b"somebody's results\n");
        scene.is_refused(&job, &path, "another file with --manifest", &format!("{name} is somebody's"));
        fs::remove_file(&path).unwrap();
    }
    for device in ["/dev/null", "/dev/stdout"] {
        let job = scene.job.clone().options(["--manifest", device]);
        scene.is_refused(&job, Path::new(device), "another file with --manifest", device);
    }
    job.run([&scene.src, &scene.dst]).assert_code(0);
    assert!(manifest.exists());
}

#[test]
fn a_state_directory_that_is_none_is_refused_whatever_it_is() {
    need!(can_all());
    let scene = Scene::new(false);
    let contents = scene.src.join("");
    let elsewhere = scene.dir.path().join("real");
    for kind in [Kind::Fifo, Kind::Link, Kind::Dangling, Kind::Device, Kind::Dir] {
        let _in_the_way = match kind {
            // a link to a state directory that is one
            Kind::Dir => {
                fs::rename(&scene.state, &elsewhere).unwrap();
                symlink(&elsewhere, &scene.state).unwrap();
                None
            }
            _ => Some(InTheWay::put(&scene.state, kind, &scene.victim)),
        };
        // Where what .pcopy says decides on the root, and where DST is the root by cp's rule.
        scene.is_refused(&scene.job, &scene.state, "--into", &format!(".pcopy is {kind:?}"));
        let outcome = scene.job.run([&contents, &scene.dst]);
        let line = outcome.assert_refused();
        assert!(line.contains(scene.state.to_str().unwrap()) && line.contains("move it away"), "{line:?}");
    }
    fs::remove_file(&scene.state).unwrap();
    write(&scene.state, b"a file");
    scene.is_refused(&scene.job, &scene.state, "--into", ".pcopy is a file");
    scene.job.clone().options(["--into"]).run([&scene.src, &scene.dst]).assert_code(0);
    oracle::assert_same(&scene.src, &scene.dst.join("src"), Aspects::ALL);
}

/// What is left of a job whose job file is gone, or says nothing.
fn is_unclear(case: &Case, what: &str) {
    let Place { src, root, .. } = &case.place;
    let before = oracle::walk(root.parent().unwrap());
    let contents = src.join("");
    for (operand, way_out) in [(src, "--into"), (&contents, "--restart")] {
        for options in [&[][..], &["--resume=require"], &["--dry-run"]] {
            let outcome = job(1).options(options).run([operand, root]);
            let line = outcome.assert_refused();
            assert!(line.contains(".pcopy") && line.contains("which copy"), "{what}: {line:?}");
            assert!(line.contains(way_out) && line.contains("--restart"), "{what}: no {way_out:?} in {line:?}");
        }
    }
    let found = oracle::compare(&before, &oracle::walk(root.parent().unwrap()), Aspects::ALL);
    oracle::assert_none(&found, what);
}

#[test]
fn journals_without_a_job_file_are_refused_and_never_copied_beside() {
    for content in [None, Some(b"".as_slice())] {
        let case = Case::killed(1);
        let file = case.place.state.join("job.json");
        match content {
            None => fs::remove_file(file).unwrap(),
            Some(content) => write(&file, content),
        }
        is_unclear(&case, &format!("job.json is {content:?}"));
        // the way out that is told
        let restart = job(1).options(["--restart"]);
        case.place.complete(&restart, [&case.place.src.join(""), &case.place.root]);
    }
}

#[test]
fn a_restart_without_a_job_file_removes_the_temporary_files_of_the_job_that_is_forgotten() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    noise_file(&src.join("sub/large"), 60_000_000);
    crate::support::journal::kill_at(&job(2), [&src, &dst], &dst.join(".pcopy"), 20);
    assert!(!temporaries(&dst).is_empty());
    fs::remove_file(dst.join(".pcopy/job.json")).unwrap();
    let restart = job(2).options(["--restart"]);
    Place::new(&src, &dst).complete(&restart, [&src.join(""), &dst]);
}
