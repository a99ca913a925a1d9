//! A FUSE passthrough served from the test process: it has faults, or is a dfuse.

mod calls;
mod dfuse;
mod durable;
mod inodes;
mod passthrough;
mod trouble;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use super::mounts::unmount;
use super::skip::{self, Missing};
use super::tree::temp;
pub use dfuse::{Dfuse, set_container};
use durable::Ledger;
use passthrough::Passthrough;
pub use trouble::{Call, Control, Trouble};

/// A place in a file that fails: a read or write that covers it gets EIO.
#[derive(Clone, Debug)]
pub struct BadByte {
    /// A file's name; without one every file is meant.
    pub name: Option<OsString>,
    pub offset: u64,
}

/// What the passthrough refuses and where it fails. The default is none of it.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub refuse_link: bool,
    pub refuse_mknod: bool,
    pub refuse_chown: bool,
    /// Extended attributes are kept, but ACLs are refused; without it none is kept (EOPNOTSUPP).
    pub xattrs_without_acls: bool,
    /// All extended attributes are kept, ACLs too, and holes are seen: as on a disk.
    pub attributes_and_holes: bool,
    /// Times that are set become multiples of so many seconds, as on FAT.
    pub clock_step_s: Option<i64>,
    /// The ctime of everything is the present moment, at each look.
    pub moving_ctime: bool,
    /// EINVAL at every open with O_DIRECT.
    pub no_odirect: bool,
    /// EINVAL for reads and writes by descriptors with O_DIRECT whose offset or length is no multiple of 512.
    pub aligned_odirect: bool,
    pub eio_read_at: Option<BadByte>,
    pub eio_write_at: Option<BadByte>,
    /// No read (write) moves more than this many bytes; files then bypass the page cache.
    pub short_read: Option<u32>,
    pub short_write: Option<u32>,
    /// ENOSPC once so many bytes were written.
    pub enospc_after: Option<u64>,
    /// Every read and write takes this long.
    pub delay_ms: u64,
    /// Every listing of a directory takes this long.
    pub list_delay_ms: u64,
    /// Faults that come and go.
    pub control: Control,
    /// What is not made durable is lost in [`FuseMount::cut_power`]; see `durable.rs`.
    pub forgets_at_power_cut: bool,
    /// It is a dfuse; see `dfuse.rs`.
    pub dfuse: Option<Dfuse>,
}

impl Faults {
    /// Neither hard links nor special files nor other owners.
    pub fn refusing() -> Faults {
        Faults { refuse_link: true, refuse_mknod: true, refuse_chown: true, ..Faults::default() }
    }
}

/// What is durable, shared by the mount and the threads that serve it.
type Durable = Arc<Mutex<Option<Ledger>>>;

/// A mounted passthrough: `path` shows `backing`. Dropped, it is unmounted and its threads end.
pub struct FuseMount {
    path: PathBuf,
    backing: PathBuf,
    faults: Faults,
    durable: Durable,
    session: Option<BackgroundSession>,
    home: TempDir,
}

impl FuseMount {
    pub fn new(faults: Faults) -> Result<FuseMount, Missing> {
        FuseMount::over(None, faults)
    }

    /// Shows a directory that is there; without one, an own one.
    pub fn over(backing: Option<&Path>, faults: Faults) -> Result<FuseMount, Missing> {
        let home = temp();
        let (path, own) = (home.path().join("mnt"), home.path().join("backing"));
        fs::create_dir(&path).unwrap();
        if backing.is_none() {
            fs::create_dir(&own).unwrap();
        }
        FuseMount::in_home(home, path, backing.map_or(own, Path::to_path_buf), faults)
    }

    /// Shows a directory at a mount point: for `tests/stand-ins/dfuse.rs`.
    #[allow(dead_code)]
    pub fn at(point: &Path, backing: &Path, faults: Faults) -> Result<FuseMount, Missing> {
        FuseMount::in_home(temp(), point.to_path_buf(), backing.to_path_buf(), faults)
    }

    fn in_home(home: TempDir, path: PathBuf, backing: PathBuf, faults: Faults) -> Result<FuseMount, Missing> {
        skip::root()?;
        if !Path::new("/dev/fuse").exists() {
            return Err(Missing::new("no /dev/fuse"));
        }
        // Each inode that the kernel knows of holds a descriptor here.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let mut mount = FuseMount { path, backing, faults, durable: Durable::default(), session: None, home };
        mount.serve()?;
        Ok(mount)
    }

    fn serve(&mut self) -> Result<(), Missing> {
        if self.faults.forgets_at_power_cut {
            let shadows = self.home.path().join("shadows");
            fs::create_dir(&shadows).unwrap();
            *self.durable.lock().unwrap() = Some(Ledger::new(&self.backing, &shadows).unwrap());
        }
        let passthrough = Passthrough::new(&self.backing, self.faults.clone(), self.durable.clone()).unwrap();
        let notifier = passthrough.notifier();
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("pcopy-it".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::Dev,
            MountOption::Suid,
        ];
        if self.faults.dfuse.is_some() {
            // as dfuse mounts itself, but for the subtype, which needs libfuse
            config.mount_options = vec![
                MountOption::FSName("dfuse".to_owned()),
                MountOption::DefaultPermissions,
                MountOption::NoDev,
                MountOption::NoSuid,
                MountOption::NoAtime,
            ];
        }
        config.acl = SessionACL::All;
        config.n_threads = Some(4);
        let session = Session::new(passthrough, &self.path, &config);
        let session = session.map_err(|e| Missing::new(format!("mounting FUSE: {e}")))?;
        let _ = notifier.set(session.notifier());
        self.session = Some(session.spawn().unwrap());
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory behind the mount: to put things in and look at them past the faults.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// The faults that come and go.
    pub fn control(&self) -> &Control {
        &self.faults.control
    }

    /// It goes away under those who use it, as when its server dies: whatever they ask for is ENOTCONN.
    pub fn break_off(&self) {
        let dir = temp();
        mount(Some("fusectl"), dir.path(), Some("fusectl"), MsFlags::empty(), None::<&str>).unwrap();
        let aborted = fs::write(dir.path().join(connection(&self.path)).join("abort"), "1");
        assert!(unmount(dir.path()), "the switches of FUSE are still mounted");
        aborted.unwrap();
    }

    /// Mounted anew at the same place over the same directory, after it broke off. Those who hold the old one keep it.
    pub fn mount_again(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
        // That the connection is gone may be what ends its threads.
        let ended = self.session.take().expect("mounted").join();
        assert!(
            ended.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ECONNABORTED)) || ended.is_ok(),
            "{ended:?}"
        );
        self.serve().unwrap();
    }

    /// Ends the mount; `path` is then a plain directory with what was durable at this moment. Who used the mount must have
    /// been killed.
    pub fn cut_power(&mut self) {
        let ledger = self.durable.lock().unwrap().take();
        let ledger = ledger.expect("a mount that forgets at a power cut, and whose power is on");
        assert!(self.end(), "somebody still uses the mount");
        fs::remove_dir(&self.path).unwrap();
        ledger.into_tree(&self.path).unwrap();
        fs::remove_dir_all(&self.backing).unwrap();
        fs::remove_dir_all(self.home.path().join("shadows")).unwrap();
    }

    /// Mounts it again after a power cut; what `path` has is durable.
    pub fn restore_power(&mut self) -> Result<(), Missing> {
        fs::rename(&self.path, &self.backing).unwrap();
        fs::create_dir(&self.path).unwrap();
        self.serve()
    }

    /// Whether it is unmounted for good.
    fn end(&mut self) -> bool {
        let Some(session) = self.session.take() else { return true };
        // A thread of the session that serves a hanging call does not end, and join would wait for it.
        self.faults.control.let_go();
        let gone = unmount(&self.path);
        // The threads of one that is still busy serve on, or whoever holds it would hang.
        if gone && let Err(error) = session.join() {
            eprintln!("the FUSE session ended with {error}");
        }
        gone
    }
}

/// The number that the kernel has for the connection of a FUSE mount: its device's, asked without a call to it.
fn connection(at: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // number, parent, device, root, mount point, ...
    let lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    // The last is on top of others.
    let device = lines.rev().find(|words| Path::new(words[4]) == at).map(|words| words[2].to_owned());
    device.expect("it is mounted").split_once(':').unwrap().1.to_owned()
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        self.end();
    }
}
