//! The state directory of a copy: `.pcopy` in its root, or the one that `--state-dir` names. It belongs to the user who runs
//! pcopy, and nobody else can write to it. It is held by descriptor, so that nobody can put another one in its place.

mod copies;
mod job;
mod lock;
mod obstacles;

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

pub use copies::{Standing, Unfinished, is_copy_of, is_owner, is_trusted, standing, standing_of_state};
pub use job::{JOB_NAME, JobFile, JobFileError, SourceName};
pub use lock::{Holder, Lock, LockError};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::geteuid;
pub use obstacles::{Need, Obstacle, kind_name, obstacle, survey};

use crate::policy::Leftovers;
use crate::proto::Job;
use crate::sys::{Errno, Meta, Reading, list, open_dir_at, open_root, remove_dir, remove_file};
use crate::types::{Kind, Maker, RelPath};

/// Its name; a source's own one, from an earlier copy, is not copied.
pub const DIR_NAME: &[u8] = b".pcopy";
/// The manifest's name in it.
pub const MANIFEST_NAME: &[u8] = b"manifest.jsonl";

/// The file in the destination that shows every rank that it sees the directory which rank 0 sees, and
/// not the empty mount point of a file system that its node does not have.
pub fn marker_name(job_id: u64) -> Vec<u8> {
    format!(".pcopy-{job_id:016x}.here").into_bytes()
}

/// Whether an entry can be a marker that this user has made.
pub fn is_marker(entry: &Meta, maker: Maker) -> bool {
    entry.kind == Some(Kind::File) && entry.size == 0 && entry.uid == maker.uid
}

/// The name of a temporary file of a job, in the private directory of the directory that its entry is to be in.
pub fn temporary_name(job_id: u64, hash: &[u8; 32]) -> Vec<u8> {
    let hash = u128::from_be_bytes(*hash.first_chunk().expect("32 bytes"));
    format!(".pcopy-{job_id:016x}-{hash:032x}.tmp").into_bytes()
}

/// The name of the private directory in a directory of the copy.
pub fn private_name(job: &Job, dir: &RelPath) -> Vec<u8> {
    let hash = hash_of(job, b"private", dir);
    format!(".pcopy-{:016x}-{hash:032x}.d", job.id).into_bytes()
}

/// The name of a mark: the file in an unfinished directory of the copy that proves which path it has (see `guard`).
pub fn mark_name(job: &Job, dir: &RelPath) -> Vec<u8> {
    temporary_name(job.id, &hash_of(job, b"mark", dir).to_be_bytes().repeat(2).try_into().expect("32 bytes"))
}

fn hash_of(job: &Job, what: &[u8], dir: &RelPath) -> u128 {
    let mut hasher = blake3::Hasher::new_keyed(&job.secret.key());
    hasher.update(what).update(&[0]).update(dir.as_bytes());
    u128::from_be_bytes(*hasher.finalize().as_bytes().first_chunk().expect("32 bytes"))
}

/// What a name of pcopy's own in the copy is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Temporary {
    /// A temporary file, a mark, or the marker.
    File,
    /// A private directory.
    Dir,
}

/// The job that made a name of pcopy's own in a copy, and what the name is for. `None` for any other name.
fn temporary(name: &[u8]) -> Option<(u64, Temporary)> {
    // Nearly all names are refused by their first bytes.
    let (id, rest) = name.strip_prefix(b".pcopy-")?.split_at_checked(16)?;
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let id = std::str::from_utf8(id).ok().filter(|id| id.as_bytes().iter().all(is_digit))?;
    let dot = rest.iter().rposition(|&b| b == b'.')?;
    let kind = match (&rest[..dot], &rest[dot + 1..]) {
        (b"", b"here") => Temporary::File,
        // Earlier versions wrote 16 digits.
        ([b'-', hash @ ..], b"tmp") if matches!(hash.len(), 16 | 32) => Temporary::File,
        ([b'-', hash @ ..], b"d") if hash.len() == 32 => Temporary::Dir,
        _ => return None,
    };
    Some((u64::from_str_radix(id, 16).ok()?, kind))
}

/// What a name is for, if it is one of this job's own.
fn temporary_kind(name: &[u8], job_id: u64) -> Option<Temporary> {
    temporary(name).filter(|(id, _)| *id == job_id).map(|(_, kind)| kind)
}

/// Whether an entry of a source has the name of a temporary file of an incomplete copy that is to be left out.
pub fn is_leftover(name: &[u8], leftovers: &Leftovers) -> bool {
    *leftovers != Leftovers::Copied && temporary(name).is_some_and(|(id, _)| leftovers.leaves_out(id))
}

/// Whether a name in the state directory is that of the job file, the lock or the marker. (Manifest and journals have theirs.)
pub fn is_own_name(name: &[u8]) -> bool {
    [JOB_NAME.as_bytes(), job::NEW_NAME, lock::NAME].contains(&name) || temporary(name).is_some()
}

/// Whether a name is that of a mark, of a temporary file or of the marker of this job.
pub fn is_temporary_file(name: &[u8], job: &Job) -> bool {
    temporary_kind(name, job.id) == Some(Temporary::File)
}

/// Removes the temporary files and private directories of this job, and of the jobs that it replaces, from a directory.
///
/// # Errors
/// Those of open(2), readdir(3), unlinkat(2) and rmdir(2).
pub fn remove_temporaries(dir: BorrowedFd<'_>, job: &Job) -> Result<(), Errno> {
    let mut left = Vec::new();
    list(open_dir_at(dir, b".", Reading::default())?, |entry| {
        let ids = [job.id].into_iter().chain(job.abandoned.iter().copied());
        left.extend(ids.filter_map(|id| Some((entry.name.to_vec(), temporary_kind(entry.name, id)?))));
        ControlFlow::Continue(())
    })?;
    left.iter().try_for_each(|(name, kind)| match kind {
        // The owner of the directory may have removed it, or made a directory of this name.
        Temporary::File => match remove_file(dir, name) {
            Err(Errno::ENOENT | Errno::EISDIR) => Ok(()),
            removed => removed,
        },
        Temporary::Dir => remove_private_dir(dir, name, job),
    })
}

/// Removes a private directory and the job's files in it. One that others can change is left: it is not the job's.
///
/// # Errors
/// Those of open(2), readdir(3), unlinkat(2) and rmdir(2).
pub fn remove_private_dir(dir: BorrowedFd<'_>, name: &[u8], job: &Job) -> Result<(), Errno> {
    let private = match open_dir_at(dir, name, Reading::default()) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES) => return Ok(()),
        opened => opened?,
    };
    let meta = Meta::of(&private)?;
    if !job.maker.is_alone(meta.uid, meta.mode) {
        return Ok(());
    }
    remove_temporaries(private.as_fd(), job)?;
    match remove_dir(dir, name) {
        // Other files in it, or another entry under its name, are not the job's.
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        removed => removed,
    }
}

/// The name under which an older manifest is kept.
pub fn previous_name(manifest: &[u8]) -> Vec<u8> {
    [manifest, b".previous"].concat()
}

/// A name as the standard library has it.
pub fn os_name(name: &[u8]) -> OsString {
    OsString::from_vec(name.to_vec())
}

/// Makes the state directory where there is none, and opens it.
///
/// # Errors
/// Those of mkdir(2), and of [`open`].
pub fn make(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    match mkdirat(root, DIR_NAME, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => open(root),
        Err(err) => Err(err),
    }
}

/// Opens the state directory.
///
/// # Errors
/// Those of open(2); `EPERM` where it belongs to, or can be written by, somebody else.
pub fn open(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    checked(open_dir_at(root, DIR_NAME, Reading::default())?)
}

/// Makes a state directory elsewhere, where there is none, and opens it.
///
/// # Errors
/// Those of mkdir(2), and of [`open`].
pub fn make_at(path: &Path) -> Result<OwnedFd, Errno> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
            Err(Errno::from_raw(err.raw_os_error().unwrap_or(libc::EIO)))
        }
        _ => open_at(path),
    }
}

/// Opens a state directory elsewhere.
///
/// # Errors
/// As [`open`].
pub fn open_at(path: &Path) -> Result<OwnedFd, Errno> {
    checked(open_root(path)?)
}

fn checked(dir: OwnedFd) -> Result<OwnedFd, Errno> {
    if is_ours(&Meta::of(&dir)?) { Ok(dir) } else { Err(Errno::EPERM) }
}

/// Whether a state directory belongs to who runs pcopy, and nobody else can write to it.
pub fn is_ours(dir: &Meta) -> bool {
    dir.uid == geteuid().as_raw() && dir.mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::job_of;
    use crate::types::Secret;

    fn is_digits(text: &[u8], count: usize) -> bool {
        text.len() == count && text.iter().all(u8::is_ascii_hexdigit)
    }

    #[test]
    fn names_of_jobs_with_other_secrets_differ_in_all_but_the_job_number() {
        let (job, path) = (job_of(None), RelPath::root().join(b"d"));
        let other = Job { secret: Secret::new([8; 16]), ..job.clone() };
        for (name, of) in [(private_name as fn(&Job, &RelPath) -> Vec<u8>, ".d"), (mark_name, ".tmp")] {
            let hash = |job: &Job| {
                let name = name(job, &path);
                let hash =
                    name.strip_prefix(b".pcopy-0000000000000001-").and_then(|rest| rest.strip_suffix(of.as_bytes()));
                hash.expect("a name of this job").to_vec()
            };
            assert!(is_digits(&hash(&job), 32) && is_digits(&hash(&other), 32));
            assert_ne!(hash(&job), hash(&other));
        }
        assert_ne!(private_name(&job, &path), private_name(&job, &RelPath::root()));
    }

    #[test]
    fn temporary_names_of_this_and_of_earlier_versions_are_known() {
        let (job, path) = (job_of(None), RelPath::root().join(b"d"));
        assert!(temporary_kind(&private_name(&job, &path), 1) == Some(Temporary::Dir));
        assert!(temporary_kind(&private_name(&job, &path), 2).is_none());
        let files = [mark_name(&job, &path), marker_name(1), temporary_name(1, &[0xab; 32])];
        let earlier = b".pcopy-0000000000000001-0123456789abcdef.tmp".to_vec();
        for name in files.iter().chain([&earlier]) {
            assert!(temporary_kind(name, 1) == Some(Temporary::File), "{}", name.escape_ascii());
            assert!(temporary_kind(name, 2).is_none(), "{}", name.escape_ascii());
        }
        let others: [&[u8]; 5] =
            [b".pcopy", b".pcopy-1.here", b".pcopy-0000000000000001-0123.tmp", b".pcopy-000000000000000G.here", b"a"];
        assert!(others.iter().all(|name| temporary(name).is_none()));
    }
}
