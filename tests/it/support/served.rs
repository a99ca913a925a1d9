//! File systems that have servers: real ones, on one machine. The servers run in namespaces of their own for network,
//! mounts and processes, so that they find the addresses, and the directories of their own, that they want, and end with
//! the namespaces. Needs root and the packages that `ci/test --file-systems` installs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::mounts::MountPoint;
use super::skip::{self, Missing};
use super::slurm::wait_until;
use super::tree::{chmod, write};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    GlusterFs,
    MooseFs,
    /// Through ceph-fuse; the data are in memory.
    CephFs,
    /// A bucket of Ceph's object gateway.
    S3fs,
}

/// Mounted twice, by clients that share no cache. Dropped, it is unmounted, and its servers end.
pub struct ServedMounts {
    // The order matters.
    _points: [MountPoint; 2],
    _servers: Servers,
}

/// The only address of each network.
const ADDRESS: &str = "10.77.0.1";
const UP_WITHIN: Duration = Duration::from_secs(60);

/// A network with one address, and directories that programs know by name, empty.
const BEGIN: &str = r#"
set -e
ip link set lo up
ip address add "$1"/32 dev lo
for dir in /run /var/log /var/lib/glusterd; do
  if [ -d "$dir" ]; then mount -t tmpfs tmpfs "$dir"; fi
done
mkdir -p /run/gluster /var/log/glusterfs
touch "$2"
exec sleep infinity
"#;

/// The namespaces, which are there as long as their first process is.
struct Servers {
    first: Child,
    home: PathBuf,
}

impl Drop for Servers {
    fn drop(&mut self) {
        // the namespace's first process goes with it, and all others with that
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

impl Servers {
    fn begin(home: &Path) -> Result<Servers, Missing> {
        skip::root()?;
        ["ip", "unshare", "nsenter"].iter().try_for_each(|name| skip::program(name))?;
        if !Path::new("/dev/fuse").exists() {
            return Err(Missing::new("no /dev/fuse"));
        }
        fs::create_dir_all(home).unwrap();
        let ready = home.join("ready");
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "--mount",
            "--mount-proc",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            BEGIN,
            "sh",
            ADDRESS,
        ]);
        let first = command.arg(&ready).stdin(Stdio::null()).spawn().unwrap();
        let servers = Servers { first, home: home.to_path_buf() };
        assert!(wait_until(UP_WITHIN, || ready.exists()), "no namespaces");
        Ok(servers)
    }

    /// A command beside the servers.
    fn command(&self, words: &[&str]) -> Command {
        let of = |kind: &str| format!("/proc/{}/ns/{kind}", self.first.id());
        let mut command = Command::new("nsenter");
        command.args([format!("--net={}", of("net")), format!("--mount={}", of("mnt"))]);
        command.args([format!("--pid={}", of("pid_for_children")), "--".into()]).args(words);
        command.stdin(Stdio::null());
        command
    }

    fn try_run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    fn run(&self, words: &[&str]) {
        let output = self.try_run(words);
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&told));
    }

    #[track_caller]
    fn wait_for(&self, words: &[&str]) {
        let is_up = || self.try_run(words).status.success();
        assert!(wait_until(UP_WITHIN, is_up), "{words:?}: {:?}", self.try_run(words));
    }

    /// Mounts for all, by clients that reach the servers' network. It is tried until a server answers.
    #[track_caller]
    fn mount(self, at: [&Path; 2], words: impl Fn(&str) -> Vec<String>) -> ServedMounts {
        let points = at.map(|at| self.mount_one(&words(at.to_str().unwrap()), at));
        ServedMounts { _points: points, _servers: self }
    }

    #[track_caller]
    fn mount_one(&self, words: &[String], at: &Path) -> MountPoint {
        fs::create_dir_all(at).unwrap();
        let network = format!("--net=/proc/{}/ns/net", self.first.id());
        let above = fs::metadata(at.parent().unwrap()).unwrap().dev();
        let is_there = || fs::metadata(at).is_ok_and(|meta| meta.dev() != above);
        let try_it = || {
            let output = Command::new("nsenter").args([&network, "--"]).args(words).stdin(Stdio::null()).output();
            // some go to the background before they are mounted
            output.unwrap().status.success() && wait_until(Duration::from_secs(5), is_there)
        };
        assert!(wait_until(UP_WITHIN, try_it), "{words:?}: not mounted");
        MountPoint::at(at)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// A directory of this name.
    fn dir(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        write(&path, content.as_bytes());
        path.to_str().unwrap().to_owned()
    }

    fn gluster(self, at: [&Path; 2]) -> ServedMounts {
        let bricks = ["brick1", "brick2"].map(|name| format!("{ADDRESS}:{}", self.dir(name)));
        self.run(&["glusterd"]);
        let gluster = ["gluster", "--mode=script", "volume"];
        self.wait_for(&[&gluster[..], &["list"]].concat());
        self.run(&[&gluster[..], &["create", "gv", &bricks[0], &bricks[1], "force"]].concat());
        self.run(&[&gluster[..], &["start", "gv"]].concat());
        let log = format!("acl,log-file={}", self.path("log").display());
        let volume = format!("{ADDRESS}:/gv");
        self.mount(at, |at| owned(&["mount", "-t", "glusterfs", "-o", &log, &volume, at]))
    }

    fn moose(self, at: [&Path; 2]) -> ServedMounts {
        let (master, chunks) = (self.dir("master"), self.dir("chunks"));
        let exports = self.file("exports", "* / rw,alldirs,admin,maproot=0\n");
        let (topology, disks) = (self.file("topology", ""), self.file("disks", &self.dir("store")));
        self.file("master/metadata.mfs", "MFSM NEW");
        let user = "WORKING_USER = root\nWORKING_GROUP = root";
        let listen = ["ML", "CS", "CL"].map(|to| format!("MATO{to}_LISTEN_HOST = {ADDRESS}")).join("\n");
        let master = self.file(
            "master.cfg",
            &format!(
                "{user}\nDATA_PATH = {master}\nEXPORTS_FILENAME = {exports}\nTOPOLOGY_FILENAME = {topology}\n{listen}\n"
            ),
        );
        let chunks = self.file(
            "chunks.cfg",
            &format!(
                "{user}\nDATA_PATH = {chunks}\nHDD_CONF_FILENAME = {disks}\nHDD_LEAVE_SPACE_DEFAULT = 1GiB\n\
                 MASTER_HOST = {ADDRESS}\nBIND_HOST = {ADDRESS}\nCSSERV_LISTEN_HOST = {ADDRESS}\n"
            ),
        );
        self.run(&["mfsmaster", "-c", &master, "start"]);
        self.run(&["mfschunkserver", "-c", &chunks, "start"]);
        self.mount(at, |at| owned(&["mfsmount", at, "-H", ADDRESS]))
    }

    /// Ceph's monitor and one store; the words that name them to a program.
    fn ceph(&self) -> [String; 2] {
        const ID: &str = "4f6f2a1e-0b5c-4a8e-9b1e-1f0f0a0b0c0d";
        let [monitor, store, metadata, gateway, run] = ["mon", "osd", "mds", "rgw", "run"].map(|name| self.dir(name));
        let configuration = self.file(
            "ceph.conf",
            &format!(
                "[global]\nfsid = {ID}\nmon host = {ADDRESS}\nmon initial members = a\nauth cluster required = none\n\
                 auth service required = none\nauth client required = none\nrun dir = {run}\nlog file = {run}/$name.log\n\
                 pid file = {run}/$name.pid\nadmin socket = {run}/$name.$pid.asok\nmon data = {monitor}\n\
                 osd data = {store}\nmds data = {metadata}\nrgw data = {gateway}\ncrash dir = {run}\n\
                 osd objectstore = memstore\nmemstore device bytes = 2147483648\nosd pool default size = 1\n\
                 osd pool default min size = 1\nosd crush chooseleaf type = 0\nmon allow pool size one = true\n\
                 osd class load list = *\nosd class default list = *\nmon data avail crit = 1\n"
            ),
        );
        let named = ["-c".to_owned(), configuration];
        let run = |program: &str, words: &[&str]| self.run_ceph(program, &named, words);
        let map = self.path("monmap");
        let map = map.to_str().unwrap();
        self.run(&["monmaptool", "--create", "--add", "a", &format!("{ADDRESS}:6789"), "--fsid", ID, map]);
        run("ceph-mon", &["--mkfs", "-i", "a", "--monmap", map]);
        run("ceph-mon", &["-i", "a"]);
        run("ceph", &["osd", "create"]);
        run("ceph-osd", &["-i", "0", "--mkfs"]);
        run("ceph-osd", &["-i", "0"]);
        named
    }

    /// The monitor refuses some for a moment: "wrong fsid", "problem getting command descriptions".
    #[track_caller]
    fn run_ceph(&self, program: &str, named: &[String; 2], words: &[&str]) {
        self.wait_for(&[&[program, &named[0], &named[1]], words].concat());
    }

    fn ceph_fs(self, at: [&Path; 2]) -> ServedMounts {
        let named = self.ceph();
        let run = |program: &str, words: &[&str]| self.run_ceph(program, &named, words);
        for pool in ["metadata", "data"] {
            run("ceph", &["osd", "pool", "create", pool, "8"]);
        }
        run("ceph", &["fs", "new", "fs", "metadata", "data"]);
        run("ceph-mds", &["-i", "a"]);
        let mount = |at: &str| owned(&["ceph-fuse", &named[0], &named[1], &format!("--pid-file={at}.pid"), at]);
        self.mount(at, mount)
    }

    fn s3(self, at: [&Path; 2]) -> ServedMounts {
        /// SHA-256 of nothing.
        const NOTHING: &str = "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let named = self.ceph();
        let run = |program: &str, words: &[&str]| self.run_ceph(program, &named, words);
        let url = format!("http://{ADDRESS}:7480");
        run("radosgw", &["-n", "client.rgw", &format!("--rgw-frontends=beast endpoint={ADDRESS}:7480")]);
        self.wait_for(&["curl", "--silent", "--fail", &url]);
        let user = ["user", "create", "--uid=u", "--display-name=u", "--access-key=key", "--secret-key=secret"];
        run("radosgw-admin", &user);
        let signed = ["curl", "--silent", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "key:secret"];
        let bucket = format!("{url}/bucket");
        self.run(&[&signed[..], &["--header", NOTHING, "--request", "PUT", &bucket]].concat());
        let secret = self.file("secret", "key:secret");
        chmod(Path::new(&secret), 0o600);
        let options = format!("passwd_file={secret},url={url},use_path_request_style");
        self.mount(at, |at| owned(&["s3fs", "bucket", at, "-o", &options]))
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Mounts a new one at these places; `home` is for what its servers hold.
pub fn served(kind: Served, home: &Path, at: [&Path; 2]) -> Result<ServedMounts, Missing> {
    let programs: &[&str] = match kind {
        Served::GlusterFs => &["glusterd", "gluster", "mount.glusterfs"],
        Served::MooseFs => &["mfsmaster", "mfschunkserver", "mfsmount"],
        Served::CephFs => &["ceph-mon", "ceph-osd", "ceph-mds", "ceph-fuse", "ceph", "monmaptool"],
        Served::S3fs => &["ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool", "s3fs", "curl"],
    };
    programs.iter().try_for_each(|name| skip::program(name))?;
    let servers = Servers::begin(home)?;
    Ok(match kind {
        Served::GlusterFs => servers.gluster(at),
        Served::MooseFs => servers.moose(at),
        Served::CephFs => servers.ceph_fs(at),
        Served::S3fs => servers.s3(at),
    })
}
