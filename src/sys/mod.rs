//! The only file-system calls of pcopy, through symbols of the C library.
//!
//! Interception libraries (DAOS's libioil) replace those symbols by LD_PRELOAD, so file data is read and written by calls
//! that they know, or shared (`share`), which is for file systems that they do not intercept. copy_file_range gained nothing.
//! Four calls go to the kernel directly: the one that has no symbol (`is_cached` in `file`), the opening of directories
//! that are listed or changed, which libioil must not see, and their listing (`open_dir_at` and `list` in `dir` say why),
//! and those that act for one thread alone (`user`).
//! Every name is relative to an open directory and never follows a symbolic link. Errors are bare errnos; the layer above
//! says on which path and side, and `types::Call` which of them mean less than an error.

mod buffer;
mod dir;
mod file;
mod flags;
mod lease;
mod loaded;
mod meta;
mod mounts;
mod random;
mod share;
mod signal;
mod unsynced;
mod user;
mod xattr;

pub use buffer::Buffer;
pub use dir::{
    DirCache, DirThere, Listed, UNFINISHED_DIR_MODE, list, make_dir, make_private_dir, mode_before, names_in,
    open_dir_at, open_root, reach_root, remove_dir, strip_dir_acls,
};
pub use file::{
    End, Locked, Reading, close, create_new, errno_of_lost_write, is_on_fuse, is_on_server, keeps_metadata, lock_file,
    move_entry, next_data, open_read, open_write, remove_file, rename, rename_new, rename_reserving, reopen, set_len,
    space, sync_data, sync_dir, sync_file, sync_file_system, sync_open_dir, syncfs_reaches,
};
pub use flags::{InodeFlags, take_flags_off};
pub use lease::Lease;
pub use loaded::is_loaded;
pub use meta::{Fixed, Handle, Meta, Owner, fixed, hold, link, make_node, make_symlink, reaches_held, read_link};
pub use mounts::{Mounts, Place};
pub use nix::errno::Errno;
pub use random::random_bytes;
pub use share::share_blocks;
pub use signal::{SignalFlag, catch_signal, ignore_signals, leave_signals_to_others, signal_number, stops_caught};
pub use unsynced::Unsynced;
pub use user::{Acting, act_as, gid_of, group_name, uid_of, user_name};
pub use xattr::{
    Class, Narrowed, SeenXattrs, SetXattrs, Stripped, XattrError, XattrReading, Xattrs, drop_other_xattrs,
    has_access_acl, has_capability, has_default_acl, strip_acls,
};
