//! A Slurm of the test's own: a controller and two nodes on this host, without munge, systemd or cgroups.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid, gethostname};
use tempfile::TempDir;

use super::skip::{self, Missing};
use super::sys;
use super::tree::temp;

const UP_WITHIN: Duration = Duration::from_secs(30);
const DOWN_WITHIN: Duration = Duration::from_secs(10);

/// A running Slurm. Dropped, its jobs are cancelled and its daemons end.
pub struct Slurm {
    home: TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    pub fn start() -> Result<Slurm, Missing> {
        Slurm::start_with("")
    }

    /// With these lines more in its configuration.
    pub fn start_with(more: &str) -> Result<Slurm, Missing> {
        ["slurmctld", "slurmd", "srun", "sbatch"].iter().try_for_each(|name| skip::program(name))?;
        let home = temp();
        for name in ["run", "state", "log", "spool.n1", "spool.n2", "tmp.n1", "tmp.n2"] {
            fs::create_dir(home.path().join(name)).unwrap();
        }
        fs::write(home.path().join("slurm.conf"), configuration(home.path()) + more).unwrap();
        let mut slurm = Slurm { home, daemons: Vec::new() };
        slurm.daemon("slurmctld", &["-c"]);
        slurm.daemon("slurmd", &["-N", "n1"]);
        slurm.daemon("slurmd", &["-N", "n2"]);
        let both_idle = || slurm.ask("sinfo", ["-h", "-N", "-o", "%N %t"]) == "n1 idle\nn2 idle\n";
        assert!(wait_until(UP_WITHIN, both_idle), "Slurm does not come up: {}", slurm.logs());
        Ok(slurm)
    }

    /// What Slurm's commands find it by.
    pub fn conf(&self) -> PathBuf {
        self.home.path().join("slurm.conf")
    }

    /// In the foreground, so that it is a child with a known pid.
    fn daemon(&mut self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        command.arg("-D").arg("-f").arg(self.conf()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.push(command.spawn().unwrap());
    }

    /// Puts a job script into the queue, with these variables; the job's number.
    ///
    /// # Panics
    /// Where Slurm doesn't take it.
    pub fn submit(&self, words: &[&OsStr], variables: &[(&str, &OsStr)]) -> String {
        let mut command = Command::new("sbatch");
        command.arg("--parsable").args(words).env("SLURM_CONF", self.conf()).envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// PENDING, RUNNING, COMPLETED...
    pub fn state(&self, job: &str) -> String {
        self.ask("squeue", ["-h", "-t", "all", "-o", "%T", "-j", job]).trim().to_owned()
    }

    /// A word of what `scontrol show job` tells: `Restarts`, `ExitCode`.
    pub fn told(&self, job: &str, key: &str) -> String {
        let all = self.ask("scontrol", ["show", "job", job]);
        let mut words = all.split_whitespace().filter_map(|word| word.split_once('='));
        words.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).unwrap_or_default()
    }

    /// The second node goes down, with all that runs there.
    pub fn lose_second_node(&mut self) {
        let daemon = self.daemons.last_mut().expect("the second node's");
        daemon.kill().and_then(|()| daemon.wait()).unwrap();
        self.ask("scontrol", ["update", "nodename=n2", "state=down", "reason=test"]);
        self.kill_ranks_on("n2");
    }

    pub fn kill_ranks_on(&self, node: &str) {
        self.ranks_on(node).into_iter().for_each(sys::kill);
    }

    pub fn bring_back_second_node(&mut self) {
        self.daemons.pop();
        self.daemon("slurmd", &["-N", "n2"]);
        self.ask("scontrol", ["update", "nodename=n2", "state=resume"]);
    }

    /// The copying processes that a node's daemon started.
    fn ranks_on(&self, node: &str) -> Vec<i32> {
        let ours = [format!("SLURM_CONF={}", self.conf().display()), format!("SLURMD_NODENAME={node}")];
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_rank = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let has = |pair: &String| environment.split(|byte| *byte == 0).any(|other| other == pair.as_bytes());
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "pcopy")
                && ours.iter().all(has)
        };
        pids.filter(is_rank).collect()
    }

    /// What one of Slurm's commands prints; empty where it fails.
    pub fn ask<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> String {
        let output = Command::new(program).args(args).env("SLURM_CONF", self.conf()).output().unwrap();
        if output.status.success() { String::from_utf8_lossy(&output.stdout).into_owned() } else { String::new() }
    }

    /// What the daemons have to say, for a failure's message.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.home.path().join("log")).unwrap() {
            let path = entry.unwrap().path();
            writeln!(text, "{}:\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default()).unwrap();
        }
        text
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // The steps of a job are no children of slurmd's: they end with the job.
        self.ask("scancel", ["--user".to_owned(), user_name()]);
        let ended = wait_until(DOWN_WITHIN, || self.ask("squeue", ["-h"]).is_empty());
        if !ended {
            eprintln!("jobs do not end: {}", self.ask("squeue", ["-h"]));
        }
        for daemon in self.daemons.iter_mut().rev() {
            let killed = daemon.kill().and_then(|()| daemon.wait());
            killed.unwrap_or_else(|e| panic!("a daemon of Slurm's: {e}"));
        }
    }
}

/// Looks again and again until it is so; false at the deadline.
pub fn wait_until(within: Duration, is_so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn user_name() -> String {
    User::from_uid(geteuid()).unwrap().expect("somebody runs the tests").name
}

/// A free TCP port outside of the range from which the kernel takes ports for connections: such a port may be taken before
/// the daemon binds it.
fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000; // up to the first of net.ipv4.ip_local_port_range, 32768
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        // Other processes that run tests begin elsewhere.
        let number = process::id().wrapping_mul(97).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).expect("below 30,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn configuration(home: &Path) -> String {
    let [controller, n1, n2] = [free_port(), free_port(), free_port()];
    let host = gethostname().unwrap().into_string().unwrap();
    let host = host.split('.').next().unwrap();
    let (user, home) = (user_name(), home.display());
    let node = format!("NodeHostname={host} NodeAddr=127.0.0.1 CPUs=32 State=UNKNOWN");
    format!(
        "ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmctldPort={controller}
SlurmctldPidFile={home}/run/slurmctld.pid
SlurmdPidFile={home}/run/slurmd.%n.pid
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
TmpFS={home}/tmp.%n
SlurmctldLogFile={home}/log/slurmctld.log
SlurmdLogFile={home}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
JobRequeue=1
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PropagateResourceLimits=NONE
NodeName=n1 Port={n1} {node}
NodeName=n2 Port={n2} {node}
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"
    )
}
