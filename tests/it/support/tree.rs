//! Building trees to copy. Contents are reproducible noise, so that a block at the wrong place shows.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use tempfile::TempDir;

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;

/// A private directory that other users may enter.
pub fn temp() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pcopy-it.").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// `len` bytes that differ from block to block and from seed to seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes a file and the directories above it.
pub fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A file of `len` bytes that is a hole but for noise at these offsets, of these lengths. The noise has no zeros:
/// a block that was left out would be no difference.
pub fn sparse_file(path: &Path, len: u64, data: &[(u64, usize)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (offset, data_len) in data {
        let bytes: Vec<_> = noise(*data_len, *offset).into_iter().map(|byte| byte | 1).collect();
        file.write_all_at(&bytes, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

/// Writes `len` bytes of noise.
pub fn noise_file(path: &Path, len: usize) {
    let seed = path.file_name().unwrap().as_bytes();
    let seed = seed.iter().fold(7_u64, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(*b)));
    write(path, &noise(len, seed));
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Sets atime and mtime, of a link itself too; `ns` may be negative.
pub fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let (atime, mtime) = (TimeSpec::new(atime.0, atime.1), TimeSpec::new(mtime.0, mtime.1));
    let itself = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, path, &atime, &mtime, itself).unwrap();
}

/// Gives everything below (and) `root` a distinct, old mtime with nanoseconds, leaves first.
pub fn age(root: &Path) {
    let mut count = 0;
    age_below(root, &mut count);
}

fn age_below(path: &Path, count: &mut i64) {
    let kind = fs::symlink_metadata(path).unwrap().file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            age_below(&entry.unwrap().path(), count);
        }
    }
    *count += 1;
    let then = (1_600_000_000 + *count * 1000, 123_456_789 + *count % 1000);
    set_times(path, then, then);
}

/// Sizes where copies go wrong: sectors, pages, blocks, ranges, one byte to each side.
pub fn odd_sizes(range_bytes: usize, block_bytes: usize) -> Vec<usize> {
    let mut sizes = vec![0, 1, 511, 512, 513, 4095, 4096, 4097];
    for middle in [block_bytes, range_bytes, 2 * range_bytes, 5 * range_bytes] {
        sizes.extend([middle - 1, middle, middle + 1]);
    }
    sizes.extend([3 * range_bytes + block_bytes, 7 * range_bytes + 4096 + 17]);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// A tree with files of all odd sizes, links, modes, an empty directory, and old times.
pub fn odd_tree(root: &Path, range_bytes: usize, block_bytes: usize) -> PathBuf {
    for size in odd_sizes(range_bytes, block_bytes) {
        noise_file(&root.join(format!("sizes/{size}.bin")), size);
    }
    fs::create_dir_all(root.join("empty/inner")).unwrap();
    noise_file(&root.join("deep/er/and/deeper/file"), 3000);
    std::os::unix::fs::symlink("deep/er", root.join("link-to-dir")).unwrap();
    std::os::unix::fs::symlink("/nonexistent/target", root.join("dangling")).unwrap();
    for mode in [0o444, 0o600, 0o755, 0o640] {
        let path = root.join(format!("mode-{mode:o}"));
        noise_file(&path, 100);
        chmod(&path, mode);
    }
    chmod(&root.join("empty"), 0o711);
    age(root);
    root.to_path_buf()
}

/// `dirs` directories with `files` small files each.
pub fn small_files(root: &Path, dirs: usize, files: usize) -> PathBuf {
    for dir in 0..dirs {
        for file in 0..files {
            let len = (dir * 131 + file * 977) % 9000;
            noise_file(&root.join(format!("d{dir:03}/f{file:04}")), len);
        }
    }
    age(root);
    root.to_path_buf()
}

/// A chain of directories longer than PATH_MAX below `root`, a file in every tenth and in the last.
pub fn deep_chain(root: &Path, levels: usize, name_len: usize) {
    fs::create_dir_all(root).unwrap();
    let mut here = open_dir(root);
    for level in 0..levels {
        let at = PathBuf::from(format!("/proc/self/fd/{}", here.as_raw_fd()));
        if level % 10 == 0 || level + 1 == levels {
            let mut file = File::create(at.join(format!("file-{level}"))).unwrap();
            file.write_all(&noise(500 + level, u64::try_from(level).unwrap())).unwrap();
        }
        let below = at.join(format!("{level:03}").repeat(name_len / 3));
        fs::create_dir(&below).unwrap();
        here = open_dir(&below);
    }
}

/// Directories in each other below `root`, each with a name of `name_len` bytes; the last one, open.
pub fn chain(root: &Path, levels: usize, name_len: usize) -> File {
    fs::create_dir_all(root).unwrap();
    below(root, levels, name_len, |dir| fs::create_dir(dir).unwrap())
}

/// The last one of such directories that are there.
pub fn end_of_chain(root: &Path, levels: usize, name_len: usize) -> File {
    below(root, levels, name_len, |_| {})
}

fn below(root: &Path, levels: usize, name_len: usize, before: impl Fn(&Path)) -> File {
    (0..levels).fold(open_dir(root), |above, level| {
        let dir = PathBuf::from(format!("/proc/self/fd/{}/{level:0name_len$}", above.as_raw_fd()));
        before(&dir);
        open_dir(&dir)
    })
}

fn open_dir(path: &Path) -> File {
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags).open(path).unwrap()
}

/// `dir/name` for a name of any bytes.
pub fn raw(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(name))
}
