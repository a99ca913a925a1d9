//! Finds entries under names that pcopy needs for files of its own, before anything is copied. The entries are never opened.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::{Errno, Fixed, Meta, fixed, names_in};
use crate::types::Kind;

/// What pcopy does with a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// pcopy only reads it.
    Read,
    /// pcopy writes, replaces or removes it.
    Change,
}

/// Why a name cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The entry is not a regular file.
    Kind(Option<Kind>),
    Fixed(Fixed),
}

/// A type of entry with its article.
pub fn kind_name(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::File) => "a file",
        Some(Kind::Dir) => "a directory",
        Some(Kind::Symlink) => "a symbolic link",
        Some(Kind::Fifo) => "a fifo",
        Some(Kind::Socket) => "a socket",
        Some(Kind::CharDev | Kind::BlockDev) => "a device",
        None => "of an unknown type",
    }
}

impl fmt::Display for Obstacle {
    /// Says what the obstacle is, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(Fixed::Immutable) => f.write_str("cannot be changed (chattr +i): chattr -i it"),
            Self::Fixed(Fixed::AppendOnly) => f.write_str("cannot be replaced (chattr +a): chattr -a it"),
            Self::Fixed(Fixed::MountPoint) => f.write_str("is a mount point: unmount it"),
            Self::Kind(kind) => {
                let what = kind_name(*kind);
                write!(f, "is {what}, and pcopy needs the name for a file of its own: rename or remove it")
            }
        }
    }
}

/// The obstacle under a name. `None` if the name is free, or a file that can be used.
///
/// # Errors
/// Those of fstatat(2), and of [`fixed`].
pub fn obstacle(dir: BorrowedFd<'_>, name: &[u8], need: Need) -> Result<Option<Obstacle>, Errno> {
    let meta = match Meta::at(dir, name) {
        Err(Errno::ENOENT) => return Ok(None),
        meta => meta?,
    };
    if meta.kind != Some(Kind::File) {
        return Ok(Some(Obstacle::Kind(meta.kind)));
    }
    match need {
        Need::Read => Ok(None),
        Need::Change => Ok(fixed(dir, name)?.map(Obstacle::Fixed)),
    }
}

/// The names in a state directory, sorted, and the first obstacle there with its name.
pub type Survey = (Vec<Vec<u8>>, Option<(Vec<u8>, Obstacle)>);

/// Looks at what pcopy needs in a state directory, as `need` says, and at the directory itself, `.`.
///
/// # Errors
/// Those of listing it, and of [`obstacle`].
pub fn survey(dir: &OwnedFd, need: impl Fn(&[u8]) -> Option<Need>) -> Result<Survey, Errno> {
    let names = names_in(dir.as_fd())?;
    // The state directory itself may be a mount point.
    if let Some(fixed @ (Fixed::Immutable | Fixed::AppendOnly)) = fixed(dir.as_fd(), b".")? {
        return Ok((names, Some((b".".to_vec(), Obstacle::Fixed(fixed)))));
    }
    for name in &names {
        if let Some(need) = need(name)
            && let Some(obstacle) = obstacle(dir.as_fd(), name, need)?
        {
            let found = (name.clone(), obstacle);
            return Ok((names, Some(found)));
        }
    }
    Ok((names, None))
}
