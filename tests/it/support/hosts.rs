//! Three hosts on one machine: each a process with namespaces of its own for network, host name and mounts, in which
//! it is the sshd. Nothing has a name outside of these namespaces, and all of it ends with the processes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::launch::{Job, Mpi, mpi};
use super::mounts::{MountPoint, sshfs_by};
use super::skip::{self, Missing};
use super::slurm::wait_until;
use super::sys;
use super::tree::{chmod, temp};

const PORT: u16 = 2222;
const UP_WITHIN: Duration = Duration::from_secs(20);

/// Its own /run for sshd, its own /dev/shm; it begins when it is told that the network is there.
const BEGIN: &str = r#"
set -e
hostname "$1"
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
echo ready
read -r begin
shift
exec "$@"
"#;

pub struct Host {
    pub name: String,
    address: String,
    /// What the kernel calls its network namespace.
    network: PathBuf,
    sshd: Child,
}

impl Host {
    fn pid(&self) -> String {
        self.sshd.id().to_string()
    }

    /// The words before a command that make it run on this host.
    pub fn entry(&self) -> Vec<String> {
        ["nsenter", "--target", &self.pid(), "--net", "--uts", "--mount", "--"].map(str::to_owned).to_vec()
    }

    /// Runs a command on this host.
    pub fn try_run(&self, words: &[&str]) -> Output {
        let entry = self.entry();
        Command::new(&entry[0]).args(&entry[1..]).args(words).output().unwrap()
    }

    /// Runs a command that must succeed; what it prints.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Dropped, the hosts are gone with all that runs on them.
pub struct Hosts {
    pub all: Vec<Host>,
    home: TempDir,
}

impl Hosts {
    pub fn three() -> Result<Hosts, Missing> {
        skip::root()?;
        ["ip", "sshd", "ssh", "ssh-keygen", "unshare", "nsenter"].iter().try_for_each(|name| skip::program(name))?;
        let home = temp();
        for key in ["host-key", "user-key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(home.path().join(key));
            assert!(keygen.status().unwrap().success());
        }
        let mut hosts = Hosts { all: Vec::new(), home };
        for number in 1..=3 {
            let host = hosts.begin(number)?;
            hosts.all.push(host);
        }
        hosts.connect();
        for host in &mut hosts.all {
            host.sshd.stdin.take().unwrap().write_all(b"begin\n").unwrap();
        }
        hosts.write_ssh();
        let ssh = hosts.file("ssh");
        for host in &hosts.all {
            let words = [ssh.to_str().unwrap(), &host.address, "hostname"];
            let reached = || hosts.all[0].try_run(&words).stdout == format!("{}\n", host.name).as_bytes();
            assert!(wait_until(UP_WITHIN, reached), "{}: {:?}", host.name, hosts.all[0].try_run(&words));
        }
        Ok(hosts)
    }

    /// A job of so many ranks on each host, started on the first one.
    pub fn job(&self, ranks_each: usize) -> Job {
        let line = |host: &Host| match mpi() {
            Mpi::OpenMpi => format!("{} slots={ranks_each}\n", host.address),
            Mpi::Mpich => format!("{}:{ranks_each}\n", host.address),
        };
        let (host_file, ssh) = (self.file("hosts"), self.file("ssh"));
        fs::write(&host_file, self.all.iter().map(line).collect::<String>()).unwrap();
        let (host_file, ssh) = (host_file.to_str().unwrap(), ssh.to_str().unwrap());
        let mut words = self.all[0].entry();
        words.push(mpi().launcher().to_owned());
        let options = match mpi() {
            Mpi::OpenMpi => vec!["--hostfile", host_file, "--mca", "plm_rsh_agent", ssh, "--bind-to", "none"],
            Mpi::Mpich => vec!["-f", host_file, "-launcher", "ssh", "-launcher-exec", ssh, "-iface", "eth0"],
        };
        let ranks = ranks_each * self.all.len();
        words.extend(options.into_iter().chain(["-np", &ranks.to_string()]).map(str::to_owned));
        if mpi() == Mpi::OpenMpi {
            let settings =
                [("oob_tcp_if_include", "eth0"), ("pml", "ob1"), ("btl", "tcp,self"), ("btl_tcp_if_include", "eth0")];
            words.extend(settings.iter().flat_map(|(name, value)| ["--mca", name, value]).map(str::to_owned));
        }
        Job::ranks(ranks).by_words(words)
    }

    /// Shows what the second host has at `store`, by sshfs and its sshd. What is returned goes before the hosts.
    pub fn sshfs(&self, store: &Path, at: &Path) -> Result<MountPoint, Missing> {
        let (ssh, from) = (self.file("sshfs-ssh"), format!("{}:{}", self.all[1].address, store.display()));
        let words = self.all[0].entry().join(" ");
        fs::write(&ssh, format!("#!/bin/sh\nexec {words} {} \"$@\"\n", self.file("ssh").display())).unwrap();
        chmod(&ssh, 0o755);
        sshfs_by(&ssh, &from, at)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Starts the process that is to be the host's sshd, in its namespaces.
    fn begin(&self, number: usize) -> Result<Host, Missing> {
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        // The launchers keep files under the host's name, in the /tmp of all.
        let name = format!("pcn-{}-{}", std::process::id(), BEGUN.fetch_add(1, Ordering::Relaxed));
        let address = format!("10.231.7.{number}");
        let mut command = Command::new("unshare");
        command.args(["--net", "--uts", "--mount", "sh", "-c", BEGIN, "sh", &name]);
        command.args([&*sshd_path(), "-D", "-e", "-f", "/dev/null"]);
        let settings = [
            format!("Port={PORT}"),
            format!("ListenAddress={address}"),
            format!("HostKey={}", self.file("host-key").display()),
            format!("AuthorizedKeysFile={}", self.file("user-key.pub").display()),
            "StrictModes=no".to_owned(),
            "UsePAM=no".to_owned(),
            "PidFile=none".to_owned(),
            "Subsystem=sftp internal-sftp".to_owned(),
        ];
        command.args(settings.iter().flat_map(|setting| ["-o", setting]));
        let log = self.file(&format!("log-{number}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut sshd = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(sshd.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        if ready != "ready\n" {
            sshd.wait().unwrap();
            return Err(Missing::new(format!("namespaces: {}", fs::read_to_string(log).unwrap().trim())));
        }
        let network = fs::read_link(format!("/proc/{}/ns/net", sshd.id())).unwrap();
        assert_ne!(network, fs::read_link("/proc/self/ns/net").unwrap(), "everything in it will be killed");
        Ok(Host { name, address, network, sshd })
    }

    /// A bridge on the first host, a cable from it to each of the others.
    fn connect(&self) {
        let first = &self.all[0];
        first.run(&["ip", "link", "add", "eth0", "type", "bridge"]);
        for (number, host) in (2..).zip(&self.all[1..]) {
            let port = format!("port{number}");
            first.run(&["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host.pid()]);
            first.run(&["ip", "link", "set", &port, "master", "eth0", "up"]);
        }
        for host in &self.all {
            host.run(&["ip", "address", "add", &format!("{}/24", host.address), "dev", "eth0"]);
            ["lo", "eth0"].iter().for_each(|link| drop(host.run(&["ip", "link", "set", link, "up"])));
        }
    }

    /// An ssh that knows port and key.
    fn write_ssh(&self) {
        let key = self.file("user-key");
        let options =
            "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o BatchMode=yes";
        let ssh = format!(
            "#!/bin/sh\nexec ssh -F /dev/null -p {PORT} -i '{}' {options} -o LogLevel=ERROR \"$@\"\n",
            key.display()
        );
        fs::write(self.file("ssh"), ssh).unwrap();
        chmod(&self.file("ssh"), 0o755);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.all {
            inhabitants(&host.network).into_iter().for_each(sys::kill);
            host.sshd.wait().unwrap();
        }
    }
}

/// The processes of a network namespace, daemons that left their parents among them.
fn inhabitants(network: &Path) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        (fs::read_link(format!("/proc/{pid}/ns/net")).ok()? == network).then_some(pid)
    });
    processes.collect()
}

/// sshd starts itself again for each connection, and wants to be called by its full path for that.
fn sshd_path() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("sshd")).find(|file| Path::is_file(file));
    found.expect("was on PATH").into_os_string().into_string().unwrap()
}
