//! All that stat tells of a tree, looked at without changing it: for what must not even be touched.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::dir::Dir;

use super::tree::raw;

/// What stat tells, by path.
pub type Listing = BTreeMap<Vec<u8>, String>;

/// Everything at and below `root`. Without the time at which a symbolic link was last read: nothing can keep that.
pub fn listing(root: &Path) -> Listing {
    let mut found = Listing::new();
    visit(root, Vec::new(), &mut found);
    found
}

fn visit(root: &Path, path: Vec<u8>, found: &mut Listing) {
    let at = raw(root, &path);
    let meta = fs::symlink_metadata(&at).unwrap_or_else(|e| panic!("stat {at:?}: {e}"));
    let accessed = if meta.is_symlink() { (0, 0) } else { (meta.atime(), meta.atime_nsec()) };
    let stat = format!(
        "inode {}:{}, mode {:o}, {} links, owner {}:{}, device {}, {} bytes, {} blocks, accessed {accessed:?}, modified {:?}, changed {:?}",
        meta.dev(),
        meta.ino(),
        meta.mode(),
        meta.nlink(),
        meta.uid(),
        meta.gid(),
        meta.rdev(),
        meta.size(),
        meta.blocks(),
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    );
    if meta.is_dir() {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NOATIME;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&at).unwrap();
        let mut dir = Dir::from_fd(OwnedFd::from(file)).unwrap();
        for entry in dir.iter() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let below = if path.is_empty() { name.to_vec() } else { [&path, name].join(&b'/') };
                visit(root, below, found);
            }
        }
    }
    found.insert(path, stat);
}

/// The same without the times of last access: what an ordinary user reads of another's tree changes them.
pub fn unread(listing: Listing) -> Listing {
    let without = |stat: String| {
        let (before, after) = (stat.find("accessed").unwrap(), stat.find("modified").unwrap());
        format!("{}{}", &stat[..before], &stat[after..])
    };
    listing.into_iter().map(|(path, stat)| (path, without(stat))).collect()
}

/// Fails where the two differ, with each difference.
#[track_caller]
pub fn assert_untouched(before: &Listing, after: &Listing, of: &str) {
    let show = super::oracle::show;
    let mut found = Vec::new();
    for (path, was) in before {
        match after.get(path) {
            None => found.push(format!("{}: gone", show(path))),
            Some(is) if is != was => found.push(format!("{}:\n    was {was}\n    is  {is}", show(path))),
            Some(_) => {}
        }
    }
    let new = after.keys().filter(|path| !before.contains_key(*path));
    found.extend(new.map(|path| format!("{}: new", show(path))));
    super::oracle::assert_none(&found, of);
}
