//! `--uid` and `--gid` as root: the threads that touch files act as that user and never as anybody else again; what stays
//! root's reaches nothing of the trees; the umask does not matter (issue 14, item 10).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, chown};
use tempfile::TempDir;

use crate::support::copy::copy;
use crate::support::fuse::{Faults, FuseMount};
use crate::support::interrupted::wait_for;
use crate::support::launch::{Job, NOBODY, Running};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::tree::{self, MIB, chmod, noise_file, temp};

const AS_NOBODY: [&str; 4] = ["-U", "nobody", "-G", "nogroup"];

fn give(path: &Path) {
    chown(path, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY))).unwrap();
}

/// Small and large files, links and a directory, all nobody's.
fn source(src: &Path) {
    tree::small_files(src, 3, 10);
    noise_file(&src.join("large"), 3 * MIB);
    noise_file(&src.join("one"), 100);
    fs::hard_link(src.join("one"), src.join("two")).unwrap();
    symlink("one", src.join("link")).unwrap();
    for path in oracle::walk(src).keys() {
        let at = tree::raw(src, path);
        std::os::unix::fs::lchown(&at, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    tree::age(src);
}

/// A directory with a source, and a home of nobody's to copy it into.
fn trees() -> (TempDir, PathBuf, PathBuf) {
    let dir = temp();
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    source(&src);
    fs::create_dir(&home).unwrap();
    give(&home);
    (dir, src, home)
}

/// What the kernel says of a thread: its name, and each line of its status.
struct Thread {
    name: String,
    status: BTreeMap<String, Vec<String>>,
}

impl Thread {
    fn all(pid: i32) -> Vec<Thread> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let thread = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("status")).ok()?;
            let line = |line: &str| {
                let (key, values) = line.split_once(':')?;
                Some((key.to_owned(), values.split_whitespace().map(str::to_owned).collect()))
            };
            let status: BTreeMap<String, Vec<String>> = text.lines().filter_map(line).collect();
            Some(Thread { name: status["Name"].join(" "), status })
        };
        tasks.filter_map(thread).collect()
    }

    /// Real, effective, saved and file-system id.
    fn ids(&self, which: &str) -> Vec<u32> {
        self.status[which].iter().map(|id| id.parse().unwrap()).collect()
    }

    fn touches_files(&self) -> bool {
        let name = self.name.as_str();
        let kinds = ["I/O ", "scan ", "fsync ", "records "];
        kinds.iter().any(|kind| name.starts_with(kind)) || ["keeper", "lock", "manifest"].contains(&name)
    }
}

/// Looks at all threads of all ranks until the run has copied something, and some times after that; says which kinds of
/// threads it has seen act.
fn watch(running: &mut Running, ranks: usize, until: impl Fn() -> bool) -> BTreeSet<String> {
    let pids = running.ranks(ranks);
    let mut seen = BTreeSet::new();
    while running.goes_on() && !until() {
        for thread in pids.iter().flat_map(|pid| Thread::all(*pid)).filter(Thread::touches_files) {
            let told = format!("{}: {:?}", thread.name, thread.status);
            // the real and the saved ids are root's, so that nobody but root can signal or trace it
            assert_eq!(thread.ids("Uid"), [0, NOBODY, 0, NOBODY], "{told}");
            assert_eq!(thread.ids("Gid"), [0, NOBODY, 0, NOBODY], "{told}");
            assert_eq!(thread.status["Groups"], [NOBODY.to_string()], "{told}");
            assert_eq!(thread.status["CapEff"], ["0000000000000000"], "{told}");
            seen.insert(thread.name.split_once(' ').map_or(thread.name.as_str(), |(kind, _)| kind).to_owned());
        }
        thread::sleep(Duration::from_millis(5));
    }
    seen
}

#[test]
fn every_thread_that_touches_files_acts_as_the_user_and_has_neither_groups_nor_capabilities() {
    need!(skip::root());
    let (_dir, src, home) = trees();
    for ranks in [1, 3] {
        let dst = home.join(format!("np{ranks}"));
        let options = ["--limit-rate=1M", "--checkpoint-interval=200ms", "-b", "64K", "-k", "64K"];
        let mut running = Job::ranks(ranks).options(AS_NOBODY).options(options).start([&src, &dst]);
        let seen = watch(&mut running, ranks, || false);
        running.wait().assert_code(0);
        for kind in ["I/O", "keeper", "lock"] {
            assert!(seen.contains(kind), "{kind} is not among {seen:?}");
        }
        assert!(dst.join("large").exists());
    }
}

#[test]
fn the_threads_beside_a_copy_over_fuse_act_too() {
    need!(skip::root());
    let mount = need!(FuseMount::new(Faults { delay_ms: 20, list_delay_ms: 50, ..Faults::default() }));
    let dir = temp();
    let src = mount.backing().join("src");
    source(&src);
    give(mount.backing());
    let options = ["--checkpoint-interval=200ms", "-k", "64K"];
    let operands = [mount.path().join("src"), mount.path().join("dst")];
    let mut running = Job::ranks(2).options(AS_NOBODY).options(options).start(&operands);
    let seen = watch(&mut running, 2, || false);
    running.wait().assert_code(0);
    for kind in ["I/O", "scan", "fsync", "keeper", "lock"] {
        assert!(seen.contains(kind), "{kind} is not among {seen:?}");
    }
    drop(dir);
}

/// What a descriptor that is open already may be used for by whoever holds it: no name is looked up, nothing else reached.
const BY_DESCRIPTOR: [&str; 5] = ["read", "flush", "release", "releasedir", "forget"];

#[test]
fn root_asks_neither_tree_for_anything_in_any_kind_of_run() {
    need!(skip::root());
    let mount = need!(FuseMount::new(Faults { attributes_and_holes: true, delay_ms: 1, ..Faults::default() }));
    let home = temp();
    chmod(home.path(), 0o777);
    source(&mount.backing().join("src"));
    give(mount.backing());
    let list = mount.backing().join("list");
    fs::write(&list, "one\nlarge\n").unwrap();
    chmod(&list, 0o644);
    let (src, dst) = (mount.path().join("src"), mount.path().join("dst"));
    let run = |what: &str, options: &[&str], operands: [&Path; 2], code: i32| {
        mount.control().take_users();
        let fixed = ["-k", "64K", "--checkpoint-interval=200ms"];
        let outcome = Job::ranks(2).options(AS_NOBODY).options(fixed).options(options).run(operands);
        outcome.assert_code(code);
        let users = mount.control().take_users();
        let by = |user| users.iter().filter(move |(_, by)| *by == user).map(|(call, _)| *call);
        assert!(by(NOBODY).count() > 0, "{what}: {users:?}");
        let roots: Vec<_> = users.iter().filter(|(call, by)| *by != NOBODY && !BY_DESCRIPTOR.contains(call)).collect();
        assert!(roots.is_empty(), "{what}: {roots:?}");
    };
    run("first", &["--limit-rate=2M"], [&src, &dst], 0);
    run("again", &[], [&src, &dst], 0);
    chmod(&mount.backing().join("src/one"), 0o600);
    run("metadata alone", &[], [&src, &dst], 0);
    noise_file(&mount.backing().join("src/large"), 3 * MIB + 1);
    give(&mount.backing().join("src/large"));
    run("update", &["--update", "--restart"], [&src, &dst], 0);
    run("dry run", &["--dry-run"], [&src, &mount.path().join("new")], 0);
    let files_from = format!("--files-from={}", mount.path().join("list").display());
    run("list", &[&files_from], [&src, &mount.path().join("listed")], 0);
    run("stopped", &["--limit-rate=500K", "--time-limit=2s"], [&src, &mount.path().join("slow")], 75);
    run("goes on", &[], [&src, &mount.path().join("slow")], 0);
    run("refused", &[], [&mount.path().join("missing"), &dst], 2);
    let state = format!("--state-dir={}", mount.path().join("state").display());
    run("state elsewhere", &[&state], [&src, &mount.path().join("other")], 0);
    let manifest = format!("--manifest={}", mount.path().join("m.jsonl").display());
    run("manifest elsewhere", &[&manifest], [&src, &mount.path().join("third")], 0);
}

#[test]
fn a_file_of_roots_that_the_user_has_put_in_the_place_of_a_limit_is_not_read() {
    need!(skip::root());
    let (_dir, src, home) = trees();
    let secret = home.join("secret");
    fs::write(&secret, "root's own words").unwrap();
    chmod(&secret, 0o600);
    let dst = home.join("dst");
    let mut running = Job::ranks(2).options(AS_NOBODY).options(["--limit-rate=1M", "-b", "64K"]).start([&src, &dst]);
    wait_for(&mut running, "the state directory is there", || dst.join(".pcopy/job.json").exists());
    fs::hard_link(&secret, dst.join(".pcopy/limit-rate")).unwrap();
    let outcome = running.wait();
    outcome.assert_code(0);
    assert!(!outcome.told().contains("root's own words"), "{}", outcome.told());
}

#[test]
fn lists_that_the_user_may_not_read_are_refused() {
    need!(skip::root());
    let (dir, src, home) = trees();
    let list = dir.path().join("list");
    fs::write(&list, "one\n").unwrap();
    for (mode, code) in [(0o600, 2), (0o644, 0)] {
        chmod(&list, mode);
        for option in ["--files-from", "--exclude-from"] {
            let dst = home.join(format!("{option}{mode:o}"));
            let outcome =
                Job::ranks(2).options(AS_NOBODY).options([option.as_ref(), list.as_os_str()]).run([&src, &dst]);
            outcome.assert_code(code);
            assert_eq!(dst.exists(), code == 0, "{}", outcome.told());
        }
    }
}

/// Tries what a process of the user's own could do to the ranks: to signal them, to trace them, to read their memory and
/// to use their descriptors. Returns what worked.
fn tried_by_nobody(pid: i32) -> Vec<String> {
    let script = format!(
        "kill -0 {pid} 2>/dev/null && echo kill
        for task in /proc/{pid}/task/*; do kill -0 ${{task##*/}} 2>/dev/null && echo kill thread; done
        head -c 1 /proc/{pid}/mem 2>/dev/null && echo mem
        cat /proc/{pid}/environ 2>/dev/null | grep -q . && echo environ
        cat /proc/{pid}/maps 2>/dev/null | grep -q . && echo maps
        ls /proc/{pid}/fd/ 2>/dev/null | grep -q . && echo fd
        for task in /proc/{pid}/task/*; do ls $task/fd 2>/dev/null | grep -q . && echo thread fd; done
        readlink /proc/{pid}/cwd && echo cwd; true"
    );
    let output = Command::new("sh").arg("-c").arg(script).uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn processes_of_the_user_can_neither_signal_nor_look_into_the_ranks() {
    need!(skip::root());
    let (_dir, src, home) = trees();
    // The tries work where they should: on a process of the user's own.
    let mut own = Command::new("sleep").arg("60").uid(NOBODY).gid(NOBODY).spawn().unwrap();
    let worked = tried_by_nobody(i32::try_from(own.id()).unwrap());
    own.kill().unwrap();
    own.wait().unwrap();
    assert!(["kill", "environ", "fd"].iter().all(|what| worked.iter().any(|line| line == what)), "{worked:?}");
    let mut running =
        Job::ranks(2).options(AS_NOBODY).options(["--limit-rate=1M", "-b", "64K"]).start([&src, &home.join("dst")]);
    wait_for(&mut running, "something is copied", || home.join("dst/d000").exists());
    for pid in running.ranks(2) {
        assert_eq!(tried_by_nobody(pid), Vec::<String>::new(), "rank of process {pid}");
    }
    running.wait().assert_code(0);
}

#[test]
fn signals_and_errors_give_no_thread_roots_ids_back() {
    need!(skip::root());
    let dir = temp();
    let (src, home) = (dir.path().join("src"), dir.path().join("home"));
    source(&src);
    noise_file(&src.join("closed"), 100);
    chmod(&src.join("closed"), 0o600);
    fs::create_dir(&home).unwrap();
    give(&home);
    let options = ["--limit-rate=600K", "-b", "64K", "--checkpoint-interval=200ms"];
    let mut running = Job::ranks(2).options(AS_NOBODY).options(options).start([&src, &home.join("dst")]);
    let pids = running.ranks(2);
    wait_for(&mut running, "something is copied", || home.join("dst/d000").exists());
    // two that the program answers, and one that stops it: meanwhile and until its end
    for signal in [libc::SIGUSR2, libc::SIGUSR2, libc::SIGTERM] {
        sys::signal(pids[1], signal);
        let looked = Instant::now();
        let until = Duration::from_millis(if signal == libc::SIGTERM { 60_000 } else { 300 });
        assert!(!watch(&mut running, 2, || looked.elapsed() > until).is_empty(), "no thread was seen");
    }
    running.wait().assert_code(75);
    // What root alone may read was not read, neither before the signals nor after them.
    let rest = Job::ranks(2).options(AS_NOBODY).run([&src, &home.join("dst")]);
    rest.assert_code(1);
    assert!(!home.join("dst/closed").exists());
}

/// The copy as this umask makes it, and the most that others could do with any of its files and directories meanwhile.
fn made_with(umask: &str, src: &Path, dst: &Path) -> u32 {
    let words = ["sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"];
    let options = ["--limit-rate=3M", "-b", "64K", "-k", "64K", "--checkpoint-interval=200ms"];
    let by_len: BTreeMap<u64, u32> = oracle::walk(src).values().map(|node| (node.size, node.mode)).collect();
    let mut running = Job::ranks(1).options(options).by_words(words).start([src, dst]);
    let mut open = 0;
    while running.goes_on() {
        let mut left = vec![dst.to_path_buf()];
        while let Some(at) = left.pop() {
            let Ok(meta) = at.symlink_metadata() else { continue };
            let source = src.join(at.strip_prefix(dst).unwrap()).symlink_metadata();
            // A temporary file has the length of its source from the start, which no other file has.
            let allowed = source.map_or_else(|_| by_len.get(&meta.len()).copied(), |meta| Some(meta.mode()));
            let allowed = allowed.unwrap_or(0);
            if !meta.is_symlink() {
                open |= meta.mode() & 0o777 & !allowed & if meta.is_dir() { 0o077 } else { 0o177 };
            }
            left.extend(fs::read_dir(&at).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    running.wait().assert_code(0);
    open
}

#[test]
fn the_umask_does_not_matter() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    source(&src);
    for (number, (name, mode)) in
        [("closed", 0o600), ("group", 0o640), ("open", 0o666), ("secret", 0o604)].into_iter().enumerate()
    {
        noise_file(&src.join(name), 200_000 + number);
        chmod(&src.join(name), mode);
    }
    chmod(&src.join("d001"), 0o700);
    tree::age(&src);
    for umask in ["000", "022", "077", "777"] {
        let dst = dir.path().join(format!("dst{umask}"));
        assert_eq!(
            made_with(umask, &src, &dst),
            0,
            "with a umask of {umask} others could have more than in the source"
        );
        oracle::assert_none(&oracle::differences(&src, &dst, Aspects::ALL), &format!("umask {umask}"));
        for name in fs::read_dir(dst.join(".pcopy")).unwrap().flatten() {
            assert_eq!(name.metadata().unwrap().mode() & 0o077, 0, "{:?} with {umask}", name.path());
        }
        assert_eq!(dst.join(".pcopy").metadata().unwrap().mode() & 0o7777, 0o700);
    }
    // The same where the copy is another user's.
    give(dir.path());
    copy(&Job::ranks(2).options(AS_NOBODY), &[&src.join("d000")], &dir.path().join("own")).outcome.assert_code(0);
}
