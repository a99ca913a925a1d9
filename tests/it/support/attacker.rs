//! Eve, an ordinary user who owns one directory of a tree: what she does beside copies that root makes of it, and for how
//! long. She acts on threads of the tests that have her rights and no others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::chance;
use super::harm::{EVIL, SECRET, Watch};
use super::launch::{Job, Outcome};
use super::sys;
use super::tree::{self, chmod, noise, set_times, temp, write};

pub const EVE: u32 = 4242;
/// A group that Eve is in besides her own.
pub const CLUB: u32 = 4343;

/// The time of what Eve has made to look like another file.
pub const THEN: (i64, i64) = (1_500_000_000, 123_456_789);

/// Bytes of a file that is copied in ranges.
pub const LARGE: usize = 300_000;

/// Acts with Eve's rights.
pub fn as_eve<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let become_eve_and_act = || {
        sys::become_user(EVE, &[EVE, CLUB]).unwrap();
        act()
    };
    thread::scope(|scope| scope.spawn(become_eve_and_act).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// What came of one of Eve's steps.
#[derive(PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// She has changed something.
    Done,
    /// It was harm at once, in words.
    Harm(Vec<String>),
}

impl Step {
    pub fn is_nothing(&self) -> bool {
        *self == Step::Nothing
    }

    pub fn done(is_done: bool) -> Step {
        if is_done { Step::Done } else { Step::Nothing }
    }
}

/// Has Eve do `act` again and again as long as `run` lasts. Returns how often it did something, and the harm.
pub fn while_eve<T>(act: &(dyn Fn() -> Step + Sync), run: impl FnOnce() -> T) -> (T, usize, Vec<String>) {
    let (end, done, harm) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let attack = || {
        while !end.load(Ordering::Relaxed) {
            match act() {
                Step::Nothing => {}
                Step::Done => drop(done.fetch_add(1, Ordering::Relaxed)),
                Step::Harm(words) => harm.lock().unwrap().extend(words),
            }
        }
    };
    let result = thread::scope(|scope| {
        scope.spawn(|| as_eve(attack));
        // a run that fails the test ends the attack too
        let _end = AtEnd(&end);
        run()
    });
    let mut harm = harm.into_inner().unwrap();
    harm.sort_unstable();
    harm.dedup();
    (result, done.into_inner(), harm)
}

/// Says that it is over, however that came.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two names change places.
pub fn exchange(a: &Path, b: &Path) -> bool {
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) == Ok(())
}

/// `len` bytes that begin with a mark in each 4 KiB.
pub fn marked(mark: &[u8], len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = noise(len, seed);
    for block in bytes.chunks_mut(4096) {
        let len = block.len().min(mark.len());
        block[..len].copy_from_slice(&mark[..len]);
    }
    bytes
}

/// A file with an owner and a mode, of the time `THEN`.
pub fn file(at: &Path, bytes: &[u8], owner: u32, mode: u32) {
    let _ = fs::remove_file(at);
    write(at, bytes);
    lchown(at, Some(owner), Some(owner)).unwrap();
    chmod(at, mode);
    set_times(at, THEN, THEN);
}

pub fn dir(at: &Path, owner: u32, mode: u32) {
    fs::create_dir_all(at).unwrap();
    lchown(at, Some(owner), Some(owner)).unwrap();
    chmod(at, mode);
}

/// A tree with Eve's home in it, and files of others; what is outside of it; where it is copied to.
pub struct Scene {
    pub src: PathBuf,
    pub dst: PathBuf,
    pub outside: PathBuf,
    saved: PathBuf,
    _dir: TempDir,
}

impl Scene {
    /// `build` adds to the source.
    pub fn new(build: impl FnOnce(&Path)) -> Scene {
        let top = temp();
        let at = |name: &str| top.path().join(name);
        let scene = Scene { src: at("src"), dst: at("dst"), outside: at("outside"), saved: at("saved"), _dir: top };
        dir(&scene.src.join("home"), EVE, 0o755);
        dir(&scene.src.join("private"), 0, 0o700);
        file(&scene.src.join("private/open"), &marked(SECRET, 300, 1), 0, 0o644);
        file(&scene.src.join("private/closed"), &marked(SECRET, 300, 2), 0, 0o600);
        file(&scene.src.join("shared/plain"), &noise(5000, 3), 0, 0o644);
        build(&scene.src);
        // Eve may write to it, so she may link it; it is root's all the same
        file(&scene.outside.join("for-all"), &noise(LARGE, 4), 0, 0o666);
        file(&scene.outside.join("linked"), &marked(SECRET, LARGE, 7), 0, 0o600);
        file(&scene.outside.join("closed"), &marked(SECRET, 9000, 5), 0, 0o600);
        dir(&scene.outside.join("dir"), 0, 0o755);
        scene
    }

    /// The copy is there by now, complete.
    pub fn copied(self, options: &[&str]) -> Scene {
        self.run(1, options).assert_code(0);
        cp(&self.dst, &self.saved);
        self
    }

    /// The destination is there by now, with Eve's home in it.
    pub fn begun(self) -> Scene {
        dir(&self.saved.join("home"), EVE, 0o755);
        self
    }

    /// The destination as it was saved.
    pub fn reset(&self) {
        if self.dst.exists() {
            fs::remove_dir_all(&self.dst).unwrap();
        }
        cp(&self.saved, &self.dst);
    }

    pub fn job(ranks: usize, options: &[&str]) -> Job {
        Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--progress", "0"]).options(options)
    }

    pub fn run(&self, ranks: usize, options: &[&str]) -> Outcome {
        Scene::job(ranks, options).run([self.source(), self.dst.clone()])
    }

    /// The source as an operand: what is in it goes into the destination.
    pub fn source(&self) -> PathBuf {
        self.src.join("")
    }

    pub fn home(&self) -> PathBuf {
        self.dst.join("home")
    }

    pub fn watch(&self) -> Watch {
        Watch::new(&self.src, &self.dst, &self.outside)
    }
}

/// Whether a path of the copy is Eve's home or in it.
pub fn in_home(path: &[u8]) -> bool {
    path == b"home" || path.starts_with(b"home/")
}

/// As the source's metadata were set again: its time of change is another.
pub fn touch(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let (path, meta) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
        // the same owner again would clear setuid and capabilities
        match meta.is_symlink() {
            true => lchown(&path, Some(meta.uid()), Some(meta.gid())).unwrap(),
            false => chmod(&path, meta.mode() & 0o7777),
        }
        if meta.is_dir() {
            touch(&path);
        }
    }
}

/// Copies a tree with all that it has.
fn cp(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "-T", "--"]).arg(from).arg(to).status();
    assert!(status.unwrap().success());
}

/// One attack on one kind of run.
pub struct Attack<'a> {
    pub name: String,
    pub scene: &'a Scene,
    pub options: Vec<&'static str>,
    /// What is done before each run, once the destination is as it was saved.
    pub prepare: Box<dyn Fn() + 'a>,
    /// Eve's step, again and again beside the run.
    pub act: Box<dyn Fn() -> Step + Sync + 'a>,
    /// What of the copy may be of her making.
    pub hers: fn(&[u8]) -> bool,
}

/// How long each test attacks: `PCOPY_ATTACK_SECONDS`.
pub fn attack_time() -> Duration {
    Duration::from_secs(chance::from_environment("PCOPY_ATTACK_SECONDS").unwrap_or(3))
}

/// Of each attack, how much of the harm is told.
const MAX_TOLD: usize = 12;
const RANKS: [usize; 7] = [2, 1, 4, 2, 3, 1, 8];

/// Makes the attacks in turn for `attack_time`, each at least once, each time beside a copy.
///
/// # Panics
/// With all the harm that came of them.
#[track_caller]
pub fn withstand(attacks: &[Attack<'_>]) {
    withstand_for(attack_time(), attacks);
}

/// The same for another time.
#[track_caller]
pub fn withstand_for(time: Duration, attacks: &[Attack<'_>]) {
    let _turn = Turn::wait();
    let until = Instant::now() + time;
    let mut found: BTreeMap<String, (usize, Vec<String>)> = BTreeMap::new();
    let mut steps = 0;
    let mut rounds = 0;
    while rounds < attacks.len() || Instant::now() < until {
        let attack = &attacks[rounds % attacks.len()];
        let ranks = RANKS[(rounds + rounds / attacks.len()) % RANKS.len()];
        attack.scene.reset();
        let watch = attack.scene.watch();
        (attack.prepare)();
        let job = Scene::job(ranks, &attack.options);
        let run = || job.run([attack.scene.source(), attack.scene.dst.clone()]);
        let (outcome, done, mut harm) = while_eve(&attack.act, run);
        harm.extend(watch.harm(&job, &outcome, attack.hers));
        steps += done;
        if !harm.is_empty() {
            let kept = found.entry(attack.name.clone()).or_default();
            kept.0 += 1;
            // of each kind of harm the first, whatever the number of the file
            let kind =
                |words: &str| words.replace(|c: char| c.is_ascii_digit(), "").chars().take(40).collect::<String>();
            harm.dedup_by_key(|words| kind(words));
            kept.1.extend(harm);
            kept.1.truncate(MAX_TOLD);
        }
        rounds += 1;
    }
    let told = found.iter().map(|(name, (count, harm))| format!("{name} ({count} times): {}", harm.join("; ")));
    let told: Vec<_> = told.collect();
    assert!(told.is_empty(), "harm in {rounds} runs:\n  {}", told.join("\n  "));
    assert!(steps > 0, "Eve never did anything in {rounds} runs");
}

/// Few attacks at a time: an attacker who waits for a processor comes too late.
struct Turn;

static TURNS: Mutex<usize> = Mutex::new(2);
static OVER: Condvar = Condvar::new();

impl Turn {
    fn wait() -> Turn {
        let free = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        *OVER.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner) -= 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        OVER.notify_one();
    }
}

/// The names in `dir` that pcopy makes for a while.
pub fn temporaries(dir: &Path) -> Vec<PathBuf> {
    let Ok(names) = fs::read_dir(dir) else { return Vec::new() };
    let names = names.filter_map(Result::ok).filter(|name| name.file_name().as_bytes().starts_with(b".pcopy-"));
    names.map(|name| name.path()).collect()
}

/// What Eve puts in the place of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoy {
    /// Root's file of the same size that stands in her home.
    Secret,
    /// Root's file in her home that has a name elsewhere too.
    LinkedSecret,
    /// A hard link to root's file outside, which she may read and write, and so link.
    LinkOutside,
    Symlink,
    Fifo,
    Dir,
    /// Her own file of the same size.
    Own,
}

impl Decoy {
    pub const ALL: [Decoy; 7] =
        [Decoy::Secret, Decoy::LinkedSecret, Decoy::LinkOutside, Decoy::Symlink, Decoy::Fifo, Decoy::Dir, Decoy::Own];

    /// Puts it in Eve's home, `len` bytes long where it is made anew, else `LARGE`.
    pub fn put(self, scene: &Scene, name: &str, len: usize) -> PathBuf {
        let at = scene.home().join(name);
        match self {
            Decoy::Secret => file(&at, &marked(SECRET, len, 6), 0, 0o600),
            Decoy::LinkedSecret => fs::hard_link(scene.outside.join("linked"), &at).unwrap(),
            Decoy::LinkOutside => as_eve(|| fs::hard_link(scene.outside.join("for-all"), &at).unwrap()),
            Decoy::Symlink => as_eve(|| symlink(scene.outside.join("closed"), &at).unwrap()),
            Decoy::Fifo => as_eve(|| mkfifo(&at, Mode::S_IRWXU).unwrap()),
            Decoy::Dir => as_eve(|| fs::create_dir(&at).unwrap()),
            Decoy::Own => file(&at, &marked(EVIL, len, 8), EVE, 0o644),
        }
        at
    }
}

/// Whether this file system exchanges names.
pub fn exchange_works() -> Result<(), super::skip::Missing> {
    super::skip::root()?;
    let top = temp();
    let (a, b) = (top.path().join("a"), top.path().join("b"));
    tree::write(&a, b"a");
    tree::write(&b, b"b");
    match renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE) {
        Err(err @ (Errno::EINVAL | Errno::ENOSYS)) => Err(super::skip::Missing::new(format!("RENAME_EXCHANGE: {err}"))),
        done => {
            done.unwrap();
            Ok(())
        }
    }
}
