//! Which mount a path lies on, and where in its file system: to see that two paths overlap though
//! bind mounts give them unlike names.

use std::path::{Path, PathBuf};

/// The mounts of this process, from /proc/self/mountinfo (proc_pid_mountinfo(5)).
pub struct Mounts(Vec<Mount>);

struct Mount {
    /// `major:minor` of the file system.
    device: String,
    /// What is mounted: a directory of that file system.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    /// The file system's type, with that of a FUSE server: `fuse.sshfs`.
    file_system: String,
    /// What is mounted, in the words of whoever did it: a device, a server, a FUSE server's name.
    source: String,
}

/// A directory as one mount shows it: by its file system, its path in that, and its path here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    device: String,
    path: PathBuf,
    visible: PathBuf,
    /// What the mount shows, and where.
    mount_root: PathBuf,
    mount_point: PathBuf,
}

impl Place {
    /// A directory that is the same one, seen through this place and through `other`, if this place is `other` or below
    /// it. Both paths have to be compared by inode: NFS gives every mount the root `/`.
    pub fn meeting_point(&self, other: &Self) -> Option<(PathBuf, PathBuf)> {
        if self.device != other.device || !self.path.starts_with(&other.path) {
            return None;
        }
        match self.mount_root.strip_prefix(&other.path) {
            // this mount shows a part of the other place
            Ok(rest) => Some((self.mount_point.clone(), join(&other.visible, rest))),
            // the other place as this mount shows it
            Err(_) => {
                let rest = other.path.strip_prefix(&self.mount_root).ok()?;
                Some((join(&self.mount_point, rest), other.visible.clone()))
            }
        }
    }
}

/// Without the slash that joining nothing adds.
fn join(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { path.to_path_buf() } else { path.join(rest) }
}

impl Mounts {
    /// Those of now; none when /proc is not there, and then only inode numbers tell.
    pub fn current() -> Self {
        Self::parse(&String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo").unwrap_or_default()))
    }

    fn parse(text: &str) -> Self {
        let mounts = text.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(2);
            let (device, root, point) = (words.next()?, words.next()?, words.next()?);
            // a number of optional fields before a dash
            let mut words = words.skip_while(|word| *word != "-").skip(1);
            let (file_system, source) = (words.next()?, words.next()?);
            Some(Mount {
                device: device.into(),
                root: unescape(root),
                point: unescape(point),
                file_system: file_system.into(),
                source: source.into(),
            })
        });
        Self(mounts.collect())
    }

    /// Where a canonical path lies.
    pub fn place(&self, path: &Path) -> Option<Place> {
        Some(self.mount_of(path)?.place(path))
    }

    /// Whether a canonical path lies on a dfuse, which DAOS containers are mounted by.
    pub fn is_dfuse(&self, path: &Path) -> bool {
        self.mount_of(path).is_some_and(Mount::is_dfuse)
    }

    /// Whether something below a canonical path may lie on a dfuse.
    pub fn has_dfuse(&self, path: &Path) -> bool {
        self.is_dfuse(path) || self.0.iter().any(|mount| mount.point.starts_with(path) && mount.is_dfuse())
    }

    /// The last mount on a point hides the earlier ones.
    fn mount_of(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.components().count())
    }

    /// The mount points below a canonical path.
    pub fn points_below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Path> {
        let inside = self.0.iter().filter(move |m| m.point.starts_with(path) && m.point != path);
        inside.map(|mount| mount.point.as_path())
    }

    /// What is mounted below a canonical path.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = Place> + 'a {
        let inside = self.0.iter().filter(move |m| m.point.starts_with(path) && m.point != path);
        inside.map(|m| m.place(&m.point))
    }
}

impl Mount {
    fn is_dfuse(&self) -> bool {
        // the subtype is missing where it is mounted without libfuse
        self.file_system == "fuse.daos" || self.file_system == "fuse" && self.source == "dfuse"
    }

    fn place(&self, visible: &Path) -> Place {
        let below = visible.strip_prefix(&self.point).unwrap_or(Path::new(""));
        Place {
            device: self.device.clone(),
            path: join(&self.root, below),
            visible: visible.to_path_buf(),
            mount_root: self.root.clone(),
            mount_point: self.point.clone(),
        }
    }
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(word: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = word.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| bytes.get(at + 1..at + 4)).flatten();
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 254:0 /data/src /mnt/bind\\040mount rw - ext4 /dev/vda rw
31 22 0:40 / /scratch rw shared:1 - tmpfs tmpfs rw
32 31 254:0 /backup /scratch/in rw - ext4 /dev/vda rw
33 22 0:45 / /daos rw,noatime shared:2 master:1 - fuse.daos dfuse rw,default_permissions
34 22 0:46 / /standin rw - fuse dfuse rw";

    #[test]
    fn a_bind_mount_meets_what_it_shows() {
        let mounts = Mounts::parse(INFO);
        let place = |path: &str| mounts.place(Path::new(path)).expect("on a mount");
        let meet = |a: &str, b: &str| place(a).meeting_point(&place(b));
        let pair = |a: &str, b: &str| Some((PathBuf::from(a), PathBuf::from(b)));
        assert_eq!(meet("/mnt/bind mount/x", "/data/src"), pair("/mnt/bind mount", "/data/src"));
        assert_eq!(meet("/mnt/bind mount/x", "/data"), pair("/mnt/bind mount", "/data/src"));
        assert_eq!(meet("/data/src", "/mnt/bind mount"), pair("/data/src", "/mnt/bind mount"));
        assert_eq!(meet("/data/srcx", "/data/src"), None);
        assert_eq!(meet("/scratch/a", "/"), None);
        let below: Vec<_> = mounts.below(Path::new("/scratch")).collect();
        assert_eq!(place("/backup/x").meeting_point(&below[0]), pair("/backup", "/scratch/in"));
        assert_eq!(below.len(), 1);
        let dfuse = ["/data", "/scratch/a", "/daos/a", "/standin"].map(|path| mounts.is_dfuse(Path::new(path)));
        assert_eq!(dfuse, [false, false, true, true]);
        assert!(mounts.has_dfuse(Path::new("/")) && !mounts.has_dfuse(Path::new("/scratch")));
    }
}
