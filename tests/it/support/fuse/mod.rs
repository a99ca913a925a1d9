//! A FUSE passthrough served from the test process: it refuses what dfuse refuses, and has faults.

mod calls;
mod inodes;
mod passthrough;
mod trouble;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use super::mounts::unmount;
use super::skip::{self, Missing};
use super::tree::temp;
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
    /// EINVAL at every open with O_DIRECT.
    pub no_odirect: bool,
    pub eio_read_at: Option<BadByte>,
    pub eio_write_at: Option<BadByte>,
    /// No read (write) moves more than this many bytes; files then bypass the page cache.
    pub short_read: Option<u32>,
    pub short_write: Option<u32>,
    /// ENOSPC once so many bytes were written.
    pub enospc_after: Option<u64>,
    /// Every read and write takes this long.
    pub delay_ms: u64,
    /// Faults that come and go.
    pub control: Control,
}

impl Faults {
    /// What dfuse refuses.
    pub fn like_dfuse() -> Faults {
        Faults { refuse_link: true, refuse_mknod: true, refuse_chown: true, ..Faults::default() }
    }
}

/// A mounted passthrough: `path` shows `backing`. Dropped, it is unmounted and its threads end.
pub struct FuseMount {
    path: PathBuf,
    backing: PathBuf,
    session: Option<BackgroundSession>,
    faults: Faults,
    _home: TempDir,
}

impl FuseMount {
    pub fn new(faults: Faults) -> Result<FuseMount, Missing> {
        skip::root()?;
        if !Path::new("/dev/fuse").exists() {
            return Err(Missing::new("no /dev/fuse"));
        }
        // Each inode that the kernel knows of holds a descriptor here.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let home = temp();
        let (path, backing) = (home.path().join("mnt"), home.path().join("backing"));
        fs::create_dir(&path).unwrap();
        fs::create_dir(&backing).unwrap();
        let session = Some(serve(&path, &backing, &faults)?);
        Ok(FuseMount { path, backing, session, faults, _home: home })
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
        self.session.take().expect("mounted").join().unwrap();
        self.session = Some(serve(&self.path, &self.backing, &self.faults).unwrap());
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

fn serve(path: &Path, backing: &Path, faults: &Faults) -> Result<BackgroundSession, Missing> {
    let passthrough = Passthrough::new(backing, faults.clone()).unwrap();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("pcopy-it".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(4);
    let session = Session::new(passthrough, path, &config);
    let session = session.map_err(|e| Missing::new(format!("mounting FUSE: {e}")))?;
    Ok(session.spawn().unwrap())
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        let gone = unmount(&self.path);
        let session = self.session.take().expect("taken here only");
        // The threads of one that is still busy serve on, or whoever holds it would hang.
        if gone && let Err(error) = session.join() {
            eprintln!("the FUSE session ended with {error}");
        }
    }
}
