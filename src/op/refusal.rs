//! A job that is refused before anything is written.

use std::fmt::Display;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::lead::Stop;
use crate::sys::Errno;
use crate::types::escaped;

/// One line that says which path, which operation, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub(super) String);

/// Why a job has not begun, though it may be one that can.
#[derive(Debug)]
pub(super) struct Unprepared {
    /// One line, as of a refusal.
    pub(super) line: String,
    /// There was no room for what comes first, on a full file system or by a quota: the same command may work later.
    pub(super) no_space: bool,
}

impl From<String> for Unprepared {
    fn from(line: String) -> Self {
        Self { line, no_space: false }
    }
}

impl Unprepared {
    /// Of a call that failed on a path.
    pub(super) fn at(path: &Path, err: impl Into<io::Error>) -> Self {
        let err = err.into();
        let errno = err.raw_os_error().map(Errno::from_raw);
        let what = errno.map_or_else(|| err.to_string(), |errno| errno.desc().to_string());
        Self { line: format!("{}: {what}", shown(path)), no_space: is_for_space(&err) }
    }
}

/// Whether a call failed for want of room.
pub(super) fn is_for_space(err: &io::Error) -> bool {
    err.raw_os_error().and_then(Stop::of_errno) == Some(Stop::NoSpace)
}

/// The refusal of a path.
///
/// # Errors
/// Always.
pub(super) fn refuse<T>(path: &Path, what: impl Display) -> Result<T, Refusal> {
    Err(Refusal(format!("{}: {what}", shown(path))))
}

/// A path as it may be shown on a terminal.
pub(super) fn shown(path: &Path) -> String {
    escaped(path.as_os_str().as_bytes())
}
