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
}

/// A directory, named by its file system and its path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    device: String,
    path: PathBuf,
}

impl Place {
    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.device == other.device && self.path.starts_with(&other.path)
    }
}

impl Mounts {
    /// Those of now; none when /proc is not there, and then only inode numbers tell.
    pub fn current() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mounts = text.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(2);
            let (device, root, point) = (words.next()?, words.next()?, words.next()?);
            Some(Mount { device: device.into(), root: unescape(root), point: unescape(point) })
        });
        Self(mounts.collect())
    }

    /// Where a canonical path lies. The last mount on a point hides the earlier ones.
    pub fn place(&self, path: &Path) -> Option<Place> {
        let mount =
            self.0.iter().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.components().count())?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some(Place { device: mount.device.clone(), path: mount.root.join(below) })
    }

    /// What is mounted below a canonical path.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = Place> + 'a {
        let inside = self.0.iter().filter(move |m| m.point.starts_with(path) && m.point != path);
        inside.map(|m| Place { device: m.device.clone(), path: m.root.clone() })
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
32 31 254:0 /backup /scratch/in rw - ext4 /dev/vda rw";

    #[test]
    fn a_bind_mount_is_seen_as_what_it_shows() {
        let mounts = Mounts::parse(INFO);
        let place = |path: &str| mounts.place(Path::new(path)).expect("on a mount");
        assert!(place("/mnt/bind mount/x").is_within(&place("/data/src")));
        assert!(place("/data/src").is_within(&place("/mnt/bind mount")));
        assert!(!place("/data/srcx").is_within(&place("/data/src")));
        assert!(!place("/scratch/a").is_within(&place("/")));
        let below: Vec<_> = mounts.below(Path::new("/scratch")).collect();
        assert_eq!(below, [place("/backup")]);
    }
}
