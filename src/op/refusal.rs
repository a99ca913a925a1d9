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

/// Why a job has not begun.
#[derive(Debug)]
pub(super) struct Unprepared {
    /// The line for the user.
    pub(super) line: String,
    /// The same command may work later: the exit code is 75, not 2.
    pub(super) works_later: bool,
}

impl From<String> for Unprepared {
    fn from(line: String) -> Self {
        Self { line, works_later: false }
    }
}

impl Unprepared {
    /// A call on `path` failed with `err`.
    pub(super) fn at(path: &Path, err: impl Into<io::Error>) -> Self {
        let err = err.into();
        let errno = err.raw_os_error().map(Errno::from_raw);
        let what = errno.map_or_else(|| err.to_string(), |errno| errno.desc().to_string());
        Self { line: format!("{}: {what}", shown(path)), works_later: is_for_space(&err) }
    }
}

/// Whether a call failed because a file system or a quota is full.
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
