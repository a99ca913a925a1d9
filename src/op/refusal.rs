//! A job that is refused before anything is written.

use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::types::escaped;

/// One line that says which path, which operation, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub(super) String);

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
