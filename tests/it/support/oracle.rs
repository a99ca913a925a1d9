//! The independent judge of a copy: its own walker, its own reads, every difference in words.
//!
//! Every directory is reached through the descriptor of the one above it, so that paths longer
//! than PATH_MAX are walked too. Each entry's times are taken before anything of it is read, and
//! reading leaves them alone where O_NOATIME may be used; only links remember who read them
//! (`snapshot` puts that back).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::syncfs;

use super::sys;
use super::tree::raw;

/// What the program keeps its own records in, at the copy's top: no part of the tree.
pub const STATE: &[u8] = b".pcopy";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One entry as the file system shows it.
#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a regular file, else 0.
    pub size: u64,
    pub mtime_ns: i128,
    pub atime_ns: i128,
    /// Bytes on disk of a regular file, else 0.
    pub allocated: u64,
    pub rdev: u64,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path (bytewise) that leads to the same inode.
    pub first_name: Vec<u8>,
    inode: (u64, u64),
}

/// The same entry, as it was, whoever has read it since.
impl PartialEq for Node {
    fn eq(&self, other: &Node) -> bool {
        self.inode == other.inode && node_differences(self, other, Aspects::ALL).is_empty()
    }
}

/// Entries by their path relative to the root; the root itself is the empty path.
pub type Tree = BTreeMap<Vec<u8>, Node>;

/// What to compare besides type, which always is.
#[derive(Clone, Copy, Debug)]
pub struct Aspects {
    pub content: bool,
    pub mode: bool,
    pub owner: bool,
    pub mtime: bool,
    /// Only where nothing has read the old tree since its walk, nor the new one since the copy.
    pub atime: bool,
    /// No file occupies `BLOCKS_SLACK` more than its source: its holes are there.
    pub blocks: bool,
    pub xattrs: bool,
    pub hard_links: bool,
    pub device_numbers: bool,
}

/// What a file may occupy beyond its source: file systems round in different ways.
pub const BLOCKS_SLACK: u64 = 64 << 10;

impl Aspects {
    /// What holds whoever has read the trees, and whatever the file systems make of holes.
    pub const ALL: Aspects = Aspects {
        content: true,
        mode: true,
        owner: true,
        mtime: true,
        atime: false,
        blocks: false,
        xattrs: true,
        hard_links: true,
        device_numbers: true,
    };
    /// Type, size and target alone.
    pub const NONE: Aspects = Aspects {
        content: false,
        mode: false,
        owner: false,
        mtime: false,
        atime: false,
        blocks: false,
        xattrs: false,
        hard_links: false,
        device_numbers: false,
    };
    pub const EVERYTHING: Aspects = Aspects { atime: true, blocks: true, ..Aspects::ALL };
}

/// All entries at and below `root`, without `.pcopy` at its top.
///
/// # Panics
/// Where something can't be read: a tree that can't be walked can't be judged.
pub fn walk(root: &Path) -> Tree {
    let mut tree = Tree::new();
    visit(root, Vec::new(), &mut tree, &mut BTreeMap::new());
    let mut first_names = BTreeMap::new();
    for (path, node) in &mut tree {
        let first = first_names.entry(node.inode).or_insert_with(|| path.clone());
        node.first_name.clone_from(first);
    }
    tree
}

/// `walk`, after which the tree is as before: to be compared in all aspects with a copy that is yet to be made.
pub fn snapshot(root: &Path) -> Tree {
    let tree = walk_settled(root);
    rewind(root, &tree);
    tree
}

/// Puts back the times of last access that `tree` knows.
pub fn rewind(root: &Path, tree: &Tree) {
    for (path, node) in tree.iter().rev() {
        let second = 1_000_000_000;
        let part = |ns: i128| i64::try_from(ns).expect("seconds, or nanoseconds of one");
        let atime = TimeSpec::new(part(node.atime_ns.div_euclid(second)), part(node.atime_ns.rem_euclid(second)));
        let (mtime, itself) = (TimeSpec::UTIME_OMIT, UtimensatFlags::NoFollowSymlink);
        at_below(root, path, |at| utimensat(AT_FDCWD, at, &atime, &mtime, itself).unwrap());
    }
}

/// `walk` when all is on disk: blocks are counted only there.
pub fn walk_settled(root: &Path) -> Tree {
    syncfs(open(root, 0)).unwrap();
    walk(root)
}

/// `atimes`: of inodes as they were before anything was read by any of their names.
fn visit(at: &Path, path: Vec<u8>, tree: &mut Tree, atimes: &mut BTreeMap<(u64, u64), i128>) {
    let mut node = look(at);
    node.atime_ns = *atimes.entry(node.inode).or_insert(node.atime_ns);
    let is_dir = node.kind == Kind::Dir;
    let at_top = path.is_empty();
    tree.insert(path.clone(), node);
    if !is_dir {
        return;
    }
    let dir = open(at, libc::O_DIRECTORY | libc::O_NOFOLLOW);
    let base = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    // All names before what is below them: a directory that is being listed holds one descriptor more.
    let listed = |error| panic!("listing {}: {error}", show(&path));
    let names = fs::read_dir(&base).and_then(|names| names.map(|entry| entry.map(|entry| entry.file_name())).collect());
    let names: Vec<_> = names.unwrap_or_else(listed);
    for name in names {
        if at_top && name.as_bytes() == STATE {
            continue;
        }
        visit(&base.join(&name), join(&path, name.as_bytes()), tree, atimes);
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    [parent, b"/", name].concat()
}

fn look(at: &Path) -> Node {
    let meta = fs::symlink_metadata(at).unwrap_or_else(|e| panic!("stat {at:?}: {e}"));
    let kind = match meta.file_type() {
        t if t.is_file() => Kind::File,
        t if t.is_dir() => Kind::Dir,
        t if t.is_symlink() => Kind::Symlink,
        t if t.is_fifo() => Kind::Fifo,
        t if t.is_socket() => Kind::Socket,
        t if t.is_char_device() => Kind::CharDevice,
        _ => Kind::BlockDevice,
    };
    let target = match kind {
        Kind::Symlink => fs::read_link(at).unwrap().into_os_string().into_vec(),
        _ => Vec::new(),
    };
    let mut names = sys::list_xattrs(at).unwrap_or_else(|e| panic!("xattrs of {at:?}: {e}"));
    // MooseFS and ntfs-3g have ACLs that they do not list
    for acl in ["system.posix_acl_access", "system.posix_acl_default"].map(str::as_bytes) {
        if !names.iter().any(|name| name == acl) && sys::get_xattr(at, acl).is_ok() {
            names.push(acl.to_vec());
        }
    }
    let xattrs = names.into_iter().map(|name| {
        // gocryptfs lists capabilities and does not read them
        let value = sys::get_xattr(at, &name).unwrap_or_else(|e| format!("unreadable: {e}").into_bytes());
        (name, value)
    });
    Node {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        size: if kind == Kind::File { meta.size() } else { 0 },
        mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        atime_ns: i128::from(meta.atime()) * 1_000_000_000 + i128::from(meta.atime_nsec()),
        allocated: if kind == Kind::File { meta.blocks() * 512 } else { 0 },
        rdev: meta.rdev(),
        target,
        xattrs: xattrs.collect(),
        first_name: Vec::new(),
        inode: (meta.dev(), meta.ino()),
    }
}

/// Opens without leaving a time of last access; O_NOATIME is for the owner and root.
fn open(at: &Path, flags: i32) -> File {
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags | libc::O_CLOEXEC).open(at);
    let file = match open(flags | libc::O_NOATIME) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(flags),
        opened => opened,
    };
    file.unwrap_or_else(|e| panic!("open {at:?}: {e}"))
}

/// Hands on a short path to `path` below `root`, however long that is. Of what a walk found: links on the way would be
/// followed.
pub fn at_below<T>(root: &Path, path: &[u8], hand_on: impl FnOnce(&Path) -> T) -> T {
    /// Of the system's 4096, what is left for it behind a descriptor.
    const MOST: usize = 4000;
    if path.is_empty() {
        return hand_on(root);
    }
    let in_dir = |dir: &File, path| raw(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())), path);
    let (mut dir, mut rest) = (open(root, libc::O_PATH | libc::O_DIRECTORY), path);
    while rest.len() > MOST {
        let end = rest[..MOST].iter().rposition(|b| *b == b'/').expect("a name has 255 bytes at most");
        dir = open(&in_dir(&dir, &rest[..end]), libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW);
        rest = &rest[end + 1..];
    }
    hand_on(&in_dir(&dir, rest))
}

/// Opens the regular file `path` below `root`, whatever the path's length.
pub fn open_below(root: &Path, path: &[u8]) -> File {
    at_below(root, path, |at| open(at, libc::O_NOFOLLOW))
}

/// Every difference between two trees, in words, `old` being what was to be copied.
pub fn differences(old: &Path, new: &Path, aspects: Aspects) -> Vec<String> {
    let walk = if aspects.blocks { walk_settled } else { walk };
    differences_since(&walk(old), old, new, aspects)
}

/// Every difference between `old`, as a walk before the copy saw it, and `new`.
pub fn differences_since(before: &Tree, old: &Path, new: &Path, aspects: Aspects) -> Vec<String> {
    let walk = if aspects.blocks { walk_settled } else { walk };
    let after = walk(new);
    let mut found = compare(before, &after, aspects);
    if aspects.content {
        let mut buffers = Buffers::default();
        for (path, node) in before {
            let both_files = node.kind == Kind::File && after.get(path).is_some_and(|other| other.kind == Kind::File);
            if both_files && let Some(words) = content_difference(old, new, path, &mut buffers) {
                found.push(format!("{}: {words}", show(path)));
            }
        }
    }
    found
}

/// The differences between two walks: everything but the contents.
pub fn compare(before: &Tree, after: &Tree, aspects: Aspects) -> Vec<String> {
    let mut found = Vec::new();
    for (path, node) in before {
        match after.get(path) {
            None => found.push(format!("{}: missing", show(path))),
            Some(other) => {
                let words = node_differences(node, other, aspects);
                found.extend(words.into_iter().map(|w| format!("{}: {w}", show(path))));
            }
        }
    }
    let extra = after.keys().filter(|path| !before.contains_key(*path));
    found.extend(extra.map(|path| format!("{}: not in the source", show(path))));
    found
}

/// The differences between two entries in what stat and attributes tell.
pub fn node_differences(old: &Node, new: &Node, aspects: Aspects) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |wanted: bool, what: &str, old: String, new: String| {
        if wanted && old != new {
            found.push(format!("{what} is {new}, was {old}"));
        }
    };
    let kinds = (format!("{:?}", old.kind), format!("{:?}", new.kind));
    if old.kind != new.kind {
        note(true, "type", kinds.0, kinds.1);
        return found;
    }
    let device = matches!(old.kind, Kind::CharDevice | Kind::BlockDevice);
    let owner = |n: &Node| format!("{}:{}", n.uid, n.gid);
    note(true, "size", old.size.to_string(), new.size.to_string());
    note(true, "target", show(&old.target), show(&new.target));
    note(aspects.mode, "mode", format!("{:04o}", old.mode), format!("{:04o}", new.mode));
    note(aspects.owner, "owner", owner(old), owner(new));
    note(aspects.mtime, "mtime", old.mtime_ns.to_string(), new.mtime_ns.to_string());
    note(aspects.atime, "atime", old.atime_ns.to_string(), new.atime_ns.to_string());
    let lost_holes = aspects.blocks && new.allocated > old.allocated + BLOCKS_SLACK;
    note(lost_holes, "bytes on disk", old.allocated.to_string(), new.allocated.to_string());
    let shared = old.kind != Kind::Dir && aspects.hard_links;
    note(shared, "first hard link", show(&old.first_name), show(&new.first_name));
    let numbered = device && aspects.device_numbers;
    note(numbered, "device", old.rdev.to_string(), new.rdev.to_string());
    let xattrs = |n: &Node| format!("{:?}", n.xattrs.iter().map(|(k, v)| (show(k), show(v))).collect::<Vec<_>>());
    note(aspects.xattrs, "xattrs", xattrs(old), xattrs(new));
    found
}

/// What the two sides of a comparison are read into.
struct Buffers {
    left: Vec<u8>,
    right: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Buffers {
        Buffers { left: vec![0; 1 << 20], right: vec![0; 1 << 20] }
    }
}

fn content_difference(old: &Path, new: &Path, path: &[u8], Buffers { left, right }: &mut Buffers) -> Option<String> {
    let (mut old, mut new) = (open_below(old, path), open_below(new, path));
    let mut offset = 0;
    loop {
        let (n, m) = (fill(&mut old, left), fill(&mut new, right));
        if left[..n] != right[..m] {
            let same = left[..n].iter().zip(&right[..m]).take_while(|(a, b)| a == b).count();
            return Some(format!("content differs at byte {}", offset + same));
        }
        if n < left.len() {
            return None;
        }
        offset += n;
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]).unwrap() {
            0 => break,
            n => filled += n,
        }
    }
    filled
}

/// Whether the regular file `path` has the same bytes below both roots.
pub fn same_content(old: &Path, new: &Path, path: &[u8]) -> bool {
    content_difference(old, new, path, &mut Buffers::default()).is_none()
}

/// A path for people: what is not printable ASCII is escaped.
pub fn show(path: &[u8]) -> String {
    if path.is_empty() {
        return "(root)".to_owned();
    }
    path.escape_ascii().to_string()
}

/// Fails with every difference, twenty of them spelled out.
#[track_caller]
pub fn assert_same(old: &Path, new: &Path, aspects: Aspects) {
    assert_none(&differences(old, new, aspects), &format!("{old:?} and {new:?}"));
}

/// Fails where `found` holds something.
#[track_caller]
pub fn assert_none(found: &[String], of: &str) {
    let listed: Vec<_> = found.iter().take(20).map(String::as_str).collect();
    let count = found.len();
    assert!(found.is_empty(), "{count} differences, {of}:\n  {}", listed.join("\n  "));
}
