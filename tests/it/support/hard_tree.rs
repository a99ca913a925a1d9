//! The hard tree: everything that a file system holds of a tree and that a copy can lose, in some three hundred
//! entries. Each top directory is one concern. What its owner cannot make is left out, never what he can.

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

use super::launch::NOBODY;
use super::oracle::{self, Kind, Tree};
use super::skip::{self, Missing};
use super::sys;
use super::tree::{self, KIB, MIB, chmod, noise, noise_file, raw, write};

/// The range length that the tree is hard for.
pub const RANGE: usize = 64 * KIB;

/// Who owns the tree, and copies it. An ordinary user has no devices, foreign owners, capabilities and attributes
/// of root's, and everything is readable for him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Root,
    Nobody,
}

/// The tree, and how it was before anything read it.
pub struct HardTree {
    pub root: PathBuf,
    pub before: Tree,
}

impl HardTree {
    /// Makes it at `root`, which is not there yet.
    pub fn new(root: &Path, by: By) -> Result<HardTree, Missing> {
        skip::root()?;
        ["setfacl", "setcap"].iter().try_for_each(|name| skip::program(name))?;
        [sizes, mode_files, links, holes, special, names, deep].iter().for_each(|make| make(root));
        if by == By::Root {
            devices(&root.join("special"));
        }
        // The order matters: an owner takes bits of the mode and capabilities with it, an ACL is part of the mode.
        owners(root, by);
        modes(root, by);
        attributes(root, by);
        if by == By::Root {
            attributes_of_root(root);
        }
        times(root);
        Ok(HardTree { root: root.to_path_buf(), before: oracle::snapshot(root) })
    }

    /// As it was before somebody read it.
    pub fn rewind(&self) {
        oracle::rewind(&self.root, &self.before);
    }
}

fn sizes(root: &Path) {
    for len in [0, 1, 4095, 4096, 4097, RANGE - 1, RANGE, RANGE + 1, 3 * RANGE, 300_001] {
        noise_file(&root.join(format!("sizes/{len}")), len);
    }
    fs::create_dir_all(root.join("empty/empty/empty")).unwrap();
}

/// Each of the special bits with each of these.
const RIGHTS: [u32; 8] = [0o000, 0o100, 0o200, 0o400, 0o644, 0o777, 0o070, 0o007];

fn special_modes() -> impl Iterator<Item = u32> {
    (0..8_u32).flat_map(|special| RIGHTS.map(|rights| special << 9 | rights))
}

/// A file, a directory with something in it, and now and then a file in ranges.
fn mode_files(root: &Path) {
    for mode in special_modes() {
        let len = if mode & 0o7000 == 0 { 3 * RANGE } else { 100 };
        noise_file(&root.join(format!("modes/file-{mode:04o}")), len);
        noise_file(&root.join(format!("modes/dir-{mode:04o}/inside")), 10);
    }
}

/// Several names of everything that can have them, across directories.
fn links(root: &Path) {
    let at = |name: &str| root.join("links").join(name);
    for dir in ["a", "b/c", "z"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    noise_file(&at("a/small"), 300);
    noise_file(&at("a/large"), 300_000);
    noise_file(&at("a/empty"), 0);
    sparse(&at("a/sparse"), 3 * MIB, &[(2 * MIB, 10)]);
    symlink("nowhere", at("a/symlink")).unwrap();
    mkfifo(&at("a/fifo"), Mode::S_IRUSR).unwrap();
    mknod(&at("a/socket"), SFlag::S_IFSOCK, Mode::S_IRUSR, 0).unwrap();
    for name in ["small", "large", "empty", "sparse", "symlink", "fifo", "socket"] {
        for other in ["a/second-", "b/c/", "z/"] {
            fs::hard_link(at("a").join(name), at(&format!("{other}{name}"))).unwrap();
        }
    }
}

/// Where a file has data: offsets and lengths.
type Data<'a> = &'a [(usize, usize)];

fn sparse(path: &Path, len: usize, data: Data<'_>) {
    let offset = |offset: usize| u64::try_from(offset).unwrap();
    let data: Vec<_> = data.iter().map(|(at, len)| (offset(*at), *len)).collect();
    tree::sparse_file(path, offset(len), &data);
}

fn holes(root: &Path) {
    fs::create_dir_all(root.join("holes")).unwrap();
    let striped: Vec<_> = (0..6).map(|n| (n * 5 * RANGE, 2 * RANGE)).collect();
    let one_a_range: Vec<_> = (0..8).map(|n| (n * 4 * RANGE + n, 1)).collect();
    let shapes: [(&str, usize, Data<'_>); 9] = [
        ("only", 2 * MIB, &[]),
        ("only-and-a-byte", 2 * MIB + 1, &[]),
        ("at-the-start", 2 * MIB, &[(MIB + 5000, MIB - 5000)]),
        ("in-the-middle", 2 * MIB, &[(0, 5000), (2 * MIB - 5000, 5000)]),
        ("at-the-end", 2 * MIB, &[(0, 5001)]),
        ("before-one-byte", 2 * MIB, &[(2 * MIB - 1, 1)]),
        ("striped", 2 * MIB, &striped),
        ("a-byte-in-some-ranges", 2 * MIB, &one_a_range),
        ("small", 40_000, &[(39_999, 1)]),
    ];
    for (name, len, data) in shapes {
        sparse(&root.join("holes").join(name), len, data);
    }
}

fn special(root: &Path) {
    let at = |name: &str| root.join("special").join(name);
    fs::create_dir_all(at("")).unwrap();
    let mode = Mode::from_bits_truncate(0o640);
    mkfifo(&at("fifo"), mode).unwrap();
    mknod(&at("socket"), SFlag::S_IFSOCK, mode, 0).unwrap();
    // What overlayfs takes for a name that was removed: the one device that anybody may make.
    mknod(&at("whiteout"), SFlag::S_IFCHR, mode, 0).unwrap();
    symlink("/nonexistent/target", at("dangling")).unwrap();
    symlink("itself", at("itself")).unwrap();
    symlink("..", at("to-a-directory")).unwrap();
    symlink("fifo", at("to-a-fifo")).unwrap();
    symlink("t/".repeat(500), at("long")).unwrap();
    symlink(raw(Path::new(""), b"\xff\xfe\n"), at("odd")).unwrap();
}

fn devices(dir: &Path) {
    for (name, kind, major, minor) in
        [("null", SFlag::S_IFCHR, 1, 3), ("loop", SFlag::S_IFBLK, 7, 200), ("wide", SFlag::S_IFBLK, 300, 70_000)]
    {
        mknod(&dir.join(name), kind, Mode::from_bits_truncate(0o620), makedev(major, minor)).unwrap();
    }
    fs::hard_link(dir.join("null"), dir.join("null-again")).unwrap();
}

fn names(root: &Path) {
    let dir = root.join("names");
    let control: Vec<u8> = (1..32).chain([127]).collect();
    let (long, long_odd) = ([b'n'; 255], [0xFE; 255]);
    let odd: [&[u8]; 19] = [
        b"-rf",
        b"--",
        b"-k",
        b"a\nb",
        b"ends\n",
        &control,
        b"\xff\xfe not UTF-8",
        b"\xc3",
        &long,
        &long_odd,
        b" ",
        b"*",
        b"host:path",
        b"a\\nb",
        b"'\"`$(id)",
        b"...",
        b".hidden",
        b"%s%n",
        b"\xe2\x80\xaertl",
    ];
    for name in odd {
        write(&raw(&dir.join("files"), name), name);
        let below = raw(&dir.join("dirs"), name);
        write(&raw(&below, name), name);
        symlink(raw(Path::new(""), name), below.join("link")).unwrap();
    }
    noise_file(&raw(&dir.join("files"), b"in ranges\n\xff"), 3 * RANGE);
}

/// Longer than PATH_MAX.
fn deep(root: &Path) {
    tree::deep_chain(&root.join("deep"), 20, 240);
}

fn owners(root: &Path, by: By) {
    if by == By::Nobody {
        for path in oracle::walk(root).keys() {
            oracle::at_below(root, path, |at| lchown(at, Some(NOBODY), Some(NOBODY)).unwrap());
        }
        return;
    }
    let foreign = [
        ("", 11, 12),
        ("sizes/1", 1001, 2002),
        ("sizes/300001", 1001, 2002),
        ("sizes/4096", u32::MAX - 1, u32::MAX - 1),
        ("empty/empty", NOBODY, 0),
        ("links/a/large", 1001, 0),
        ("links/a/symlink", 1002, 2002),
        ("special/dangling", 77, 78),
        ("special/fifo", 0, 78),
        ("special/null", 77, 0),
        ("modes/file-6777", 1003, 1004),
        ("modes/dir-6777", 1003, 1004),
        ("modes/file-4644", 1003, 1004),
    ];
    for (path, uid, gid) in foreign {
        lchown(root.join(path), Some(uid), Some(gid)).unwrap();
    }
}

fn modes(root: &Path, by: By) {
    // An owner who may not read it cannot copy it.
    let (of_files, of_dirs) = if by == By::Root { (0, 0) } else { (0o400, 0o500) };
    for mode in special_modes() {
        chmod(&root.join(format!("modes/file-{mode:04o}")), mode | of_files);
        chmod(&root.join(format!("modes/dir-{mode:04o}")), mode | of_dirs);
    }
    chmod(&root.join("links/a/large"), 0o6755);
    chmod(&root.join("links/z"), 0o3777);
    chmod(&root.join("special/fifo"), 0o1604);
    chmod(root, 0o2751);
}

fn run(program: &str, words: &[&str], path: &Path) {
    let output = Command::new(program).args(words).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the owner may set.
fn attributes(root: &Path, by: By) {
    let at = |name: &str| root.join("attributes").join(name);
    for (name, len) in [("few", 10), ("many", 10), ("in-ranges", 3 * RANGE), ("acl", 10), ("acl-in-ranges", 3 * RANGE)]
    {
        noise_file(&at(name), len);
    }
    for name in ["mask", "handed-down/file", "plain"] {
        noise_file(&at(name), 10);
    }
    fs::create_dir(at("dir")).unwrap();
    for path in [at("few"), at("in-ranges"), at("dir"), root.join("links/a/large"), root.to_path_buf()] {
        sys::set_xattr(&path, "user.note", b"a \0 value").unwrap();
        sys::set_xattr(&path, "user.empty", b"").unwrap();
        sys::set_xattr(&path, "user.\u{fc}\n", &noise(900, 1)).unwrap();
    }
    for number in 0..40 {
        sys::set_xattr(&at("many"), &format!("user.number-{number}"), &[7; 20]).unwrap();
    }
    if by == By::Nobody {
        for path in ["", "few", "many", "in-ranges", "acl", "acl-in-ranges", "mask", "handed-down/file", "plain", "dir"]
        {
            lchown(at(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        lchown(at("handed-down"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    run("setfacl", &["-m", "u:1234:rw,g:77:r"], &at("acl"));
    run("setfacl", &["-m", "u:1234:rwx"], &at("acl-in-ranges"));
    run("setfacl", &["-m", "u:1234:r"], &root.join("links/a/large"));
    // Less than the group's own right.
    run("setfacl", &["-m", "u:1234:rwx,g::rwx,m::r"], &at("mask"));
    // What is made in a directory would inherit this: it comes last.
    run("setfacl", &["-m", "d:u:1234:rwx,d:g:77:rx,d:o::-"], &at("handed-down"));
    run("setfacl", &["-m", "u:1234:x,d:u:5678:rwx"], &at("dir"));
    run("setfacl", &["-m", "u:1234:x,d:u:5678:rwx"], root);
}

/// What only root may set.
fn attributes_of_root(root: &Path) {
    let at = |name: &str| root.join("attributes").join(name);
    for name in ["few", "in-ranges", "dir"] {
        sys::set_xattr(&at(name), "trusted.of-root", &[7; 300]).unwrap();
        sys::set_xattr(&at(name), "security.pcopy-it", b"label").unwrap();
    }
    for name in ["", "special/dangling", "special/fifo", "special/null", "links/a/symlink"] {
        sys::set_xattr(&root.join(name), "trusted.of-root", &[9; 30]).unwrap();
    }
    noise_file(&at("capable"), 10);
    noise_file(&at("capable-in-ranges"), 3 * RANGE);
    noise_file(&at("capable-of-another"), 10);
    noise_file(&at("capable-in-a-namespace"), 10);
    lchown(at("capable-of-another"), Some(1001), Some(1002)).unwrap();
    for name in ["capable", "capable-in-ranges", "capable-of-another"] {
        run("setcap", &["cap_net_raw,cap_chown+ep"], &at(name));
    }
    run("setcap", &["-n", "1000", "cap_net_raw+ep"], &at("capable-in-a-namespace"));
    run("setcap", &["cap_sys_nice+ep"], &root.join("links/a/large"));
}

/// At which clocks and casts go wrong. ext4 ends in 2446, XFS in 2486.
const TIMES: [(i64, i64); 8] = [
    (-1, 999_999_999),
    (-1_000_000_000, 1),
    (0, 0),
    (0, 1),
    (4_294_967_296, 7),
    (12_000_000_000, 999_999_999),
    (-1_500_000_000, 500),
    (1_600_000_000, 123_456_789),
];

/// Every entry its own times, links and directories too; leaves first, for each changes what is above it.
fn times(root: &Path) {
    let tree = oracle::walk(root);
    for (number, path) in tree.keys().enumerate().collect::<Vec<_>>().into_iter().rev() {
        let apart = i64::try_from(number).unwrap() * 10;
        let [atime, mtime] = [number % 8, (3 * number + 1) % 8].map(|n| TimeSpec::new(TIMES[n].0 + apart, TIMES[n].1));
        let itself = UtimensatFlags::NoFollowSymlink;
        oracle::at_below(root, path, |at| utimensat(AT_FDCWD, at, &atime, &mtime, itself).unwrap());
    }
    assert!(tree.values().any(|node| node.kind == Kind::Fifo));
}
