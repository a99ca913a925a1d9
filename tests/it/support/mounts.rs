//! Real file systems in private directories: loop mounts, tmpfs, ramfs, bind mounts. Needs root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use tempfile::TempDir;

use super::skip::{self, Missing};
use super::tree::temp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    /// With inodes that have no room for more than whole seconds until 2038.
    Ext4OfSeconds,
    Xfs,
    Btrfs,
    Tmpfs,
    /// Refuses O_DIRECT.
    Ramfs,
    /// In user space. Ignores case; without owners and modes.
    Exfat,
    /// In user space. Ignores case, and lists names in lower case; without owners and modes.
    NtfsIgnoringCase,
    /// In user space, as ntfs-3g mounts it by itself; without owners and modes.
    Ntfs,
}

impl FileSystem {
    pub const ALL: [FileSystem; 5] =
        [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs, FileSystem::Tmpfs, FileSystem::Ramfs];

    fn mkfs(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            FileSystem::Ext4 => Some(("mkfs.ext4", &["-q", "-F", "-m", "0"])),
            FileSystem::Ext4OfSeconds => Some(("mkfs.ext4", &["-q", "-F", "-m", "0", "-I", "128"])),
            FileSystem::Xfs => Some(("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"])),
            FileSystem::Btrfs => Some(("mkfs.btrfs", &["-q", "-f"])),
            FileSystem::Exfat => Some(("mkfs.exfat", &[])),
            FileSystem::NtfsIgnoringCase | FileSystem::Ntfs => Some(("mkfs.ntfs", &["-F", "-Q", "-q"])),
            FileSystem::Tmpfs | FileSystem::Ramfs => None,
        }
    }

    /// The command that mounts an image, but for image and directory.
    fn mounting(self) -> Command {
        let words: &[&str] = match self {
            FileSystem::Exfat => &["mount", "-t", "exfat-fuse", "-o", "loop"],
            FileSystem::NtfsIgnoringCase => &["lowntfs-3g", "-o", "ignore_case"],
            FileSystem::Ntfs => &["ntfs-3g"],
            _ => &["mount", "-o", "loop"],
        };
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    }
}

/// A mount point. Dropped, it is unmounted.
pub struct MountPoint(PathBuf);

impl MountPoint {
    /// What is mounted here already.
    pub fn at(path: &Path) -> MountPoint {
        MountPoint(path.to_path_buf())
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Unmounts; a busy one is tried for some seconds, then detached so that nothing stays behind.
/// True where it is gone for good.
pub fn unmount(at: &Path) -> bool {
    for _ in 0..100 {
        match umount(at) {
            Err(Errno::EBUSY) => thread::sleep(Duration::from_millis(50)),
            _ => return true,
        }
    }
    eprintln!("{} is busy: {:?}", at.display(), umount2(at, MntFlags::MNT_DETACH));
    false
}

/// A file system of the test's own.
pub struct Mount {
    path: PathBuf,
    // The order matters: unmounted first, then the directory with the image is removed.
    _point: MountPoint,
    home: TempDir,
}

impl Mount {
    /// A new, empty file system with `size_mib` MiB (XFS takes 300 at least).
    pub fn new(kind: FileSystem, size_mib: u64) -> Result<Mount, Missing> {
        skip::root()?;
        let home = temp();
        let path = home.path().join("mnt");
        fs::create_dir(&path).unwrap();
        match kind.mkfs() {
            Some((mkfs, options)) => {
                skip::program(mkfs)?;
                let image = home.path().join("image");
                File::create(&image).unwrap().set_len(size_mib << 20).unwrap();
                succeed(Command::new(mkfs).args(options).arg(&image))?;
                succeed(kind.mounting().arg(&image).arg(&path))?;
            }
            None => {
                let name = if kind == FileSystem::Tmpfs { "tmpfs" } else { "ramfs" };
                // As many inodes as anybody wants: the default is by the machine's memory.
                let size = format!("size={size_mib}m,mode=0755,nr_inodes=0");
                let mounted = mount(Some(name), &path, Some(name), MsFlags::empty(), Some(&*size));
                mounted.map_err(|e| Missing::new(format!("mounting {name}: {e}")))?;
            }
        }
        Ok(Mount { _point: MountPoint(path.clone()), path, home })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An ext4 becomes read-only at once, as after a broken disk, whoever has files open for writing.
    pub fn turn_read_only(&self) -> Result<(), Missing> {
        succeed(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.path))
    }

    /// One that turned read-only is looked after, and is writable again.
    pub fn turn_writable(&self) -> Result<(), Missing> {
        let image = self.home.path().join("image");
        assert!(unmount(&self.path), "somebody still uses {}", self.path.display());
        // 1: errors were there, and are corrected.
        let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(&image).output().unwrap();
        assert!(checked.status.code().is_some_and(|code| code <= 1), "{}", String::from_utf8_lossy(&checked.stdout));
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&self.path))
    }
}

/// Shows `from` at `at` too.
pub fn bind(from: &Path, at: &Path) -> Result<MountPoint, Missing> {
    skip::root()?;
    fs::create_dir_all(at).unwrap();
    let mounted = mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    mounted.map_err(|e| Missing::new(format!("bind mount: {e}")))?;
    Ok(MountPoint(at.to_path_buf()))
}

/// Shows `store` at `at` by sshfs, through the SFTP server of OpenSSH, without a network between them.
pub fn sshfs(store: &Path, at: &Path) -> Result<MountPoint, Missing> {
    const SERVERS: [&str; 3] =
        ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];
    let server = SERVERS.into_iter().find(|server| Path::new(server).is_file());
    let server = server.ok_or_else(|| Missing::new("no sftp-server of OpenSSH"))?;
    // sshfs gives it the words for ssh
    let script = store.with_extension("ssh");
    fs::write(&script, format!("#!/bin/sh\nexec {server}\n")).unwrap();
    super::tree::chmod(&script, 0o755);
    sshfs_by(&script, &format!("here:{}", store.display()), at)
}

/// Shows a directory of another host by sshfs, by this program instead of ssh.
pub fn sshfs_by(ssh: &Path, from: &str, at: &Path) -> Result<MountPoint, Missing> {
    skip::root()?;
    skip::program("sshfs")?;
    if !Path::new("/dev/fuse").exists() {
        return Err(Missing::new("no /dev/fuse"));
    }
    fs::create_dir_all(at).unwrap();
    let mut options = format!("ssh_command={}", ssh.display());
    // newer ones do not show the targets of links that lead out of the mount
    let help = Command::new("sshfs").arg("--help").output().unwrap();
    if String::from_utf8_lossy(&help.stdout).contains("no_contain_symlinks") {
        options += ",no_contain_symlinks";
    }
    succeed(Command::new("sshfs").args(["-o", &options]).arg(from).arg(at))?;
    Ok(MountPoint(at.to_path_buf()))
}

/// File systems in user space that keep what they hold in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Gocryptfs,
    FuseOverlayfs,
    /// With the kernel's write-back cache.
    Mergerfs,
    Encfs,
    Unionfs,
    Cryfs,
}

impl Over {
    /// What the file system holds is there for all to see, as it is.
    pub fn shows_store(self) -> bool {
        matches!(self, Over::Mergerfs | Over::Unionfs)
    }

    fn program(self) -> &'static str {
        match self {
            Over::Gocryptfs => "gocryptfs",
            Over::FuseOverlayfs => "fuse-overlayfs",
            Over::Mergerfs => "mergerfs",
            Over::Encfs => "encfs",
            Over::Unionfs => "unionfs-fuse",
            Over::Cryfs => "cryfs",
        }
    }
}

/// Mounts a new one at `at`; `home` is for what it holds.
pub fn over(kind: Over, home: &Path, at: &Path) -> Result<MountPoint, Missing> {
    skip::root()?;
    skip::program(kind.program())?;
    if !Path::new("/dev/fuse").exists() {
        return Err(Missing::new("no /dev/fuse"));
    }
    let [store, lower, work, secret] = ["store", "lower", "work", "secret"].map(|name| home.join(name));
    [&store, &lower, &work, &at.to_path_buf()].into_iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    fs::write(&secret, "secret\n").unwrap();
    let mut command = Command::new(kind.program());
    match kind {
        Over::Gocryptfs => {
            let made = Command::new("gocryptfs")
                .args(["-init", "-q", "-scryptn", "10", "-passfile"])
                .arg(&secret)
                .arg(&store)
                .status();
            assert!(made.unwrap().success());
            command.args(["-q", "-passfile"]).arg(&secret).arg(&store).arg(at)
        }
        Over::FuseOverlayfs => {
            let [lower, upper, work] = [lower, store, work].map(|dir| dir.display().to_string());
            command.args(["-o", &format!("lowerdir={lower},upperdir={upper},workdir={work}")]).arg(at)
        }
        Over::Mergerfs => command.args(["-o", "cache.files=auto-full,cache.writeback=true"]).arg(&store).arg(at),
        Over::Encfs => {
            command.args(["--standard", "--extpass"]).arg(format!("cat {}", secret.display())).arg(&store).arg(at)
        }
        Over::Unionfs => command.arg(format!("{}=RW", store.display())).arg(at),
        Over::Cryfs => {
            command.envs([("CRYFS_FRONTEND", "noninteractive"), ("CRYFS_NO_UPDATE_CHECK", "true")]);
            command.env("CRYFS_LOCAL_STATE_DIR", &work).stdin(File::open(&secret).unwrap()).arg(&store).arg(at)
        }
    };
    succeed(&mut command)?;
    Ok(MountPoint(at.to_path_buf()))
}

fn succeed(command: &mut Command) -> Result<(), Missing> {
    let words = format!("{command:?}");
    let output = command.output().map_err(|e| Missing::new(format!("{words}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(Missing::new(format!("{words}: {}", told.trim())))
}
