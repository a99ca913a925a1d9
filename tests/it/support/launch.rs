//! Runs the real program under the real mpirun that it was built for. Every run has a time limit,
//! and a run that exceeds it fails the test with what it printed and where its processes stand.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::sys;

/// An ordinary user without files of his own.
pub const NOBODY: u32 = 65534;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mpi {
    OpenMpi,
    Mpich,
}

impl Mpi {
    pub fn launcher(self) -> &'static str {
        match self {
            Mpi::OpenMpi => "mpirun.openmpi",
            Mpi::Mpich => "mpirun.mpich",
        }
    }

    pub fn other(self) -> Mpi {
        match self {
            Mpi::OpenMpi => Mpi::Mpich,
            Mpi::Mpich => Mpi::OpenMpi,
        }
    }
}

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_pcopy"))
}

/// The MPI that the program is linked with.
pub fn mpi() -> Mpi {
    static MPI: OnceLock<Mpi> = OnceLock::new();
    *MPI.get_or_init(|| {
        let ldd = Command::new("ldd").arg(program()).output().unwrap();
        let libraries = String::from_utf8_lossy(&ldd.stdout).into_owned();
        match (libraries.contains("libmpi.so"), libraries.contains("libmpich")) {
            (true, false) => Mpi::OpenMpi,
            (false, true) => Mpi::Mpich,
            (true, true) => panic!("linked with two MPIs:\n{libraries}"),
            (false, false) => panic!("linked with neither OpenMPI nor MPICH:\n{libraries}"),
        }
    })
}

/// A command line of the program to be: ranks, options, limits.
#[derive(Clone, Debug)]
pub struct Job {
    ranks: usize,
    launcher: Option<Mpi>,
    words: Vec<OsString>,
    program: PathBuf,
    options: Vec<OsString>,
    rank_env: Vec<(String, OsString)>,
    user: Option<u32>,
    stdin: Option<PathBuf>,
    limit: Duration,
}

impl Job {
    /// `ranks` ranks under mpirun.
    pub fn ranks(ranks: usize) -> Job {
        // For a run that hangs; disks of virtual machines stand still for a minute now and then.
        let limit = Duration::from_secs(if ranks > 8 { 300 } else { 180 });
        Job {
            ranks,
            launcher: Some(mpi()),
            words: Vec::new(),
            program: program().to_path_buf(),
            options: Vec::new(),
            rank_env: Vec::new(),
            user: None,
            stdin: None,
            limit,
        }
    }

    /// One rank, started without a launcher.
    pub fn alone() -> Job {
        Job { launcher: None, ..Job::ranks(1) }
    }

    pub fn options<S: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = S>) -> Job {
        self.options.extend(options.into_iter().map(|o| o.as_ref().to_owned()));
        self
    }

    /// A variable for the ranks only, not for mpirun.
    pub fn rank_env(mut self, name: &str, value: impl AsRef<OsStr>) -> Job {
        self.rank_env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Another program in pcopy's place, to prove the launching.
    pub fn program(&self, program: &Path) -> Job {
        Job { program: program.to_path_buf(), ..self.clone() }
    }

    /// Started by these words, which start all the ranks, in mpirun's place. They get the ranks' variables too.
    pub fn by_words<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Job {
        self.launcher = None;
        self.words = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Under the launcher of the other MPI.
    pub fn under(mut self, launcher: Mpi) -> Job {
        self.launcher = Some(launcher);
        self
    }

    /// Standard input is this file; otherwise there is none.
    pub fn stdin(mut self, file: &Path) -> Job {
        self.stdin = Some(file.to_path_buf());
        self
    }

    pub fn limit(mut self, seconds: u64) -> Job {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// As an ordinary user, with a copy of the program that he can reach, kept in `at`.
    pub fn by_nobody(mut self, at: &Path) -> Job {
        let copy = at.join("pcopy-for-nobody");
        if !copy.exists() {
            // By a process of its own: what another test starts meanwhile would hold the copy open for writing.
            let cp = Command::new("cp").arg(&self.program).arg(&copy).status();
            assert!(cp.unwrap().success());
            super::tree::chmod(&copy, 0o755);
        }
        self.program = copy;
        self.user = Some(NOBODY);
        self
    }

    pub fn rank_count(&self) -> usize {
        self.ranks
    }

    pub fn has_option(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }

    /// The values of all `--option=VALUE`, in their order.
    pub fn values_given(&self, option: &str) -> impl Iterator<Item = &str> {
        let options = self.options.iter().filter_map(|o| o.to_str());
        options.filter_map(move |o| o.strip_prefix(option)?.strip_prefix('='))
    }

    /// The value behind `--option`.
    pub fn option_value(&self, option: &str) -> Option<&OsStr> {
        let at = self.options.iter().position(|o| o == option)?;
        self.options.get(at + 1).map(OsString::as_os_str)
    }

    fn command(&self) -> Command {
        let Some(launcher) = self.launcher else {
            let words: Vec<_> = self.words.iter().map(OsString::as_os_str).chain([self.program.as_os_str()]).collect();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command.envs(self.rank_env.iter().map(|(k, v)| (k, v)));
            return command;
        };
        let mut command = Command::new(launcher.launcher());
        if launcher == Mpi::OpenMpi {
            command.arg("--oversubscribe");
        }
        for (name, value) in &self.rank_env {
            match launcher {
                Mpi::OpenMpi => {
                    let mut pair = OsString::from(format!("{name}="));
                    pair.push(value);
                    command.arg("-x").arg(pair);
                }
                Mpi::Mpich => {
                    command.arg("-genv").arg(name).arg(value);
                }
            }
        }
        command.arg("-np").arg(self.ranks.to_string()).arg(&self.program);
        command
    }

    /// Starts the program with the options and `operands`.
    pub fn start<S: AsRef<OsStr>>(&self, operands: impl IntoIterator<Item = S>) -> Running {
        let permit = Permit::wait(self.ranks);
        let mut command = self.command();
        command.args(&self.options).args(operands);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
        command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        // Jobs of OpenMPI that share this directory fail in its mkdir, now and then, when one begins while another ends.
        let session = tempfile::tempdir().unwrap();
        super::tree::chmod(session.path(), 0o1777);
        command.env("OMPI_MCA_orte_tmpdir_base", session.path());
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("HOME", "/");
        }
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdin(self.stdin.as_ref().map_or_else(Stdio::null, |file| File::open(file).unwrap().into()));
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let words = format!("{command:?}");
        let child = command.process_group(0).spawn();
        let child = child.unwrap_or_else(|e| panic!("{words}: {e}"));
        let deadline = Instant::now() + self.limit;
        Running { child: Some(child), deadline, stdout, stderr, words, _session: session, _permit: permit }
    }

    /// Runs to the end.
    pub fn run<S: AsRef<OsStr>>(&self, operands: impl IntoIterator<Item = S>) -> Outcome {
        self.start(operands).wait()
    }
}

/// A run that hasn't been waited for. Dropped, it is killed.
pub struct Running {
    child: Option<Child>,
    deadline: Instant,
    stdout: File,
    stderr: File,
    words: String,
    _session: TempDir,
    _permit: Permit,
}

impl Running {
    /// The end of the run.
    ///
    /// # Panics
    /// At the time limit, after killing everything that the run started.
    pub fn wait(mut self) -> Outcome {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return self.outcome(status);
            }
            if Instant::now() > self.deadline {
                self.fail_at_limit();
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// True as long as the run lasts and is within its limit.
    pub fn goes_on(&mut self) -> bool {
        let ended = self.child.as_mut().unwrap().try_wait().unwrap().is_some();
        !ended && Instant::now() < self.deadline
    }

    /// The processes of the ranks, the launcher's own left out.
    pub fn rank_pids(&self) -> Vec<i32> {
        let first = self.launcher_pid();
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let family = descendants(first).into_iter();
        family.filter(|pid| name(pid).trim() == "pcopy").collect()
    }

    /// The processes of the ranks by their numbers, once all of them are there.
    ///
    /// # Panics
    /// Where the run ends before that.
    pub fn ranks(&mut self, count: usize) -> Vec<i32> {
        while self.goes_on() {
            let mut ranks: Vec<_> = self.rank_pids().into_iter().filter_map(|pid| Some((rank_of(pid)?, pid))).collect();
            if ranks.len() == count {
                ranks.sort_unstable();
                return ranks.into_iter().map(|(_, pid)| pid).collect();
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("no {count} ranks in {}\n{}", self.words, text(&mut self.stderr));
    }

    /// The launcher's own process; the only rank's, where there is none.
    pub fn launcher_pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// What stands on stderr so far.
    pub fn stderr_so_far(&mut self) -> String {
        text(&mut self.stderr)
    }

    fn outcome(&mut self, status: ExitStatus) -> Outcome {
        Outcome { status, stdout: text(&mut self.stdout), stderr: text(&mut self.stderr), words: self.words.clone() }
    }

    fn fail_at_limit(&mut self) -> ! {
        let standing = self.kill();
        let (out, err) = (text(&mut self.stdout), text(&mut self.stderr));
        let words = &self.words;
        panic!("no end within the time limit: {words}\n{standing}\nstdout:\n{out}\nstderr:\n{err}")
    }

    /// Kills the run and all that it started; returns where they stood.
    fn kill(&mut self) -> String {
        let Some(mut child) = self.child.take() else {
            return String::new();
        };
        let group = i32::try_from(child.id()).unwrap();
        // Ranks live in process groups of their own, so they are found by descent.
        let family = descendants(group);
        let standing: Vec<_> = family.iter().map(|pid| where_it_stands(*pid)).collect();
        sys::kill(-group);
        family.iter().for_each(|pid| sys::kill(*pid));
        child.wait().unwrap();
        // What the launcher started is not ours to wait for, and takes a moment to end.
        for _ in 0..500 {
            if family.iter().all(|pid| is_gone(*pid)) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        standing.join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `pid` and everything below it.
fn descendants(pid: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let child: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()?;
        Some((child, parent))
    });
    let processes: Vec<_> = processes.collect();
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        family.extend(processes.iter().filter(|p| p.1 == parent).map(|p| p.0));
        next += 1;
    }
    family
}

/// The number that the launcher gave to a rank; 0 for one that has no launcher.
fn rank_of(pid: i32) -> Option<usize> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok());
    let name =
        |pair: &str| pair.strip_prefix("OMPI_COMM_WORLD_RANK=").or(pair.strip_prefix("PMI_RANK=")).map(str::to_owned);
    // A process without memory is about to end.
    let told = variables.find_map(name);
    if environment.is_empty() { None } else { told.map_or(Some(0), |rank| rank.parse().ok()) }
}

/// Waits some seconds for processes to end; whether all did.
pub fn all_gone(pids: &[i32]) -> bool {
    let gone = || pids.iter().all(|pid| is_gone(*pid));
    (0..1000).any(|_| {
        gone() || {
            thread::sleep(Duration::from_millis(10));
            false
        }
    })
}

/// Whether a process has ended, reaped or not.
pub fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with(['Z', 'X']))
}

/// The processes that have this path in their command line: launcher, its helpers and ranks, whoever their parents are.
pub fn processes_naming(path: &Path) -> Vec<i32> {
    let path = path.as_os_str().as_encoded_bytes();
    let names_it = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.windows(path.len()).any(|window| window == path) && !is_gone(*pid)
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(names_it).collect()
}

fn where_it_stands(pid: i32) -> String {
    let read = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let state = read("status");
    let state = state.lines().find(|l| l.starts_with("State:")).unwrap_or_default().to_owned();
    format!("  {pid} {} {state} in {}", read("comm").trim(), read("wchan"))
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    words: String,
}

impl Outcome {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Everything about the run, for a failure's message.
    pub fn told(&self) -> String {
        let Outcome { status, stdout, stderr, words } = self;
        format!("{words}\n{status}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }

    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Outcome {
        assert_eq!(self.code(), Some(code), "exit code of {}", self.told());
        self
    }

    /// What the program itself says on stderr: `pcopy: ...`.
    pub fn lines_of_pcopy(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.starts_with("pcopy: ")).collect()
    }

    /// A refusal before anything was written: exit code 2 and one message, which is returned.
    #[track_caller]
    pub fn assert_refused(&self) -> &str {
        self.assert_code(2);
        assert_eq!(self.stdout, "", "stdout of {}", self.told());
        // Words that make no command line are refused by the parser, which has a prefix of its own.
        let is_message = |line: &&str| line.starts_with("pcopy: ") || line.starts_with("error: ");
        let messages: Vec<_> = self.stderr.lines().filter(is_message).collect();
        assert_eq!(messages.len(), 1, "messages in {}", self.told());
        messages[0]
    }

    #[track_caller]
    pub fn assert_says(&self, words: &str) -> &Outcome {
        assert!(self.stderr.contains(words), "{words:?} is not on stderr of {}", self.told());
        self
    }
}

/// A share of the machine: jobs of many ranks wait until they are alone.
struct Permit(usize);

static SHARES: Mutex<usize> = Mutex::new(6);
static RETURNED: Condvar = Condvar::new();

impl Permit {
    fn wait(ranks: usize) -> Permit {
        let wanted = ranks.min(6);
        let free = SHARES.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = RETURNED.wait_while(free, |free| *free < wanted);
        *enough.unwrap_or_else(PoisonError::into_inner) -= wanted;
        Permit(wanted)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *SHARES.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        RETURNED.notify_all();
    }
}
