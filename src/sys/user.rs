//! As whom a thread acts.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::marker::PhantomData;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist, getgroups};

use crate::policy::RunAs;

/// While it lives, this thread and the threads that it starts access file systems as another user. The C library's calls would
/// change all threads, and with them MPI's, whose shared memory belongs to the user who started the job.
///
/// The real and the saved id stay root's: only root may then signal or trace the process, and dropping this value takes the
/// thread back. A thread that was started meanwhile inherits no such value, and never changes its ids.
pub struct Acting {
    before: Option<Identity>,
    /// Bound to its thread.
    _thread: PhantomData<*const ()>,
}

struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Identity {
    fn current() -> Result<Self, Errno> {
        Ok(Self { uid: geteuid(), gid: getegid(), groups: getgroups()? })
    }
}

/// Acts as another user, another group, or both. A user's other groups come with him; where he is not known there are
/// none, and `gid` or the group with his number is his.
///
/// # Errors
/// Those of setgroups(2), setresgid(2) and setresuid(2): `EPERM` for who is not root.
pub fn act_as(RunAs { uid, gid }: RunAs) -> Result<Acting, Errno> {
    let before = Identity::current()?;
    let known = uid.and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
    let gid = gid.map(Gid::from_raw).or(known.as_ref().map(|user| user.gid)).or(uid.map(Gid::from_raw));
    let (uid, gid) = (uid.map_or(before.uid, Uid::from_raw), gid.unwrap_or(before.gid));
    if (uid, gid) == (before.uid, before.gid) {
        return Ok(Acting { before: None, _thread: PhantomData });
    }
    let groups = match known.and_then(|user| CString::new(user.name).ok()) {
        Some(name) => getgrouplist(&name, gid)?,
        None => vec![gid],
    };
    let is_root = before.uid.is_root();
    set_groups(&groups)?;
    // Dropped on an error, it takes back the changes made so far.
    let acting = Acting { before: Some(before), _thread: PhantomData };
    set_gid(gid)?;
    set_uid(uid)?;
    // With capabilities in effect, file systems would not check the user's permissions.
    if is_root && !uid.is_root() && has_capabilities()? {
        return Err(Errno::EPERM);
    }
    Ok(acting)
}

/// Whether this thread has any capability in effect: securebits(7) can keep them through a change of the user.
fn has_capabilities() -> Result<bool, Errno> {
    /// _LINUX_CAPABILITY_VERSION_3 of linux/capability.h.
    const VERSION: u32 = 0x2008_0522;
    let mut header = [VERSION, 0];
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: capget(2) reads the header, version and thread (0: this one), and writes two structs of three words.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) })?;
    // effective, permitted, inheritable
    Ok(sets.iter().any(|[effective, ..]| *effective != 0))
}

impl Drop for Acting {
    fn drop(&mut self) {
        let Some(before) = &self.before else { return };
        // the user first: only root may set the others
        let back = set_uid(before.uid).and_then(|()| set_gid(before.gid)).and_then(|()| set_groups(&before.groups));
        back.expect("who may become another user may become himself again");
    }
}

fn set_groups(groups: &[Gid]) -> Result<(), Errno> {
    // SAFETY: `Gid` is a transparent gid_t; the kernel reads as many of them as it is told.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

fn set_gid(gid: Gid) -> Result<(), Errno> {
    // SAFETY: plain numbers; -1 leaves the real and the saved id.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, -1, gid.as_raw(), -1) }).map(drop)
}

fn set_uid(uid: Uid) -> Result<(), Errno> {
    // SAFETY: plain numbers; -1 leaves the real and the saved id.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, -1, uid.as_raw(), -1) }).map(drop)
}

/// The number of a user, given as such or by name.
///
/// # Errors
/// What is wrong, in words.
pub fn uid_of(text: &str) -> Result<u32, String> {
    id_of(text, "user", |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
}

/// The number of a group, given as such or by name.
///
/// # Errors
/// What is wrong, in words.
pub fn gid_of(text: &str) -> Result<u32, String> {
    id_of(text, "group", |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

fn id_of(text: &str, what: &str, look_up: impl Fn(&str) -> Result<Option<u32>, Errno>) -> Result<u32, String> {
    match look_up(text) {
        Ok(Some(id)) => Ok(id),
        // a number needs no name; the largest one means "leave it" to chown(2)
        found => match (text.parse(), found) {
            (Ok(id), _) if id != u32::MAX => Ok(id),
            (_, Err(err)) => Err(format!("{text:?}: looking up the {what}: {}", err.desc())),
            _ => Err(format!("{text:?}: no such {what}")),
        },
    }
}

/// The name of a user, if it has one.
pub fn user_name(uid: u32) -> Option<String> {
    Some(User::from_uid(Uid::from_raw(uid)).ok()??.name)
}

/// The name of a group, if it has one.
pub fn group_name(gid: u32) -> Option<String> {
    Some(Group::from_gid(Gid::from_raw(gid)).ok()??.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_thread_and_those_that_it_starts_act_as_another() {
        if !geteuid().is_root() {
            assert_eq!(act_as(RunAs { uid: Some(0), gid: None }).map(drop), Err(Errno::EPERM));
            return;
        }
        let (other, before) = (std::sync::Barrier::new(2), getgroups());
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                other.wait();
                let seen = geteuid();
                other.wait();
                seen
            });
            let acting = act_as(RunAs { uid: Some(65534), gid: Some(4242) }).expect("root may");
            other.wait();
            let below = std::thread::spawn(|| (geteuid(), getegid())).join().expect("ends");
            assert_eq!(below, (Uid::from_raw(65534), Gid::from_raw(4242)));
            other.wait();
            drop(acting);
            assert_eq!(beside.join().expect("ends"), Uid::from_raw(0));
        });
        assert_eq!((geteuid(), getegid(), getgroups()), (Uid::from_raw(0), Gid::from_raw(0), before));
    }

    #[test]
    fn what_fails_half_way_leaves_the_thread_as_it_was() {
        if !geteuid().is_root() {
            return;
        }
        let before = (geteuid(), getegid(), getgroups());
        let kept =
            act_as(RunAs { uid: Some(65534), gid: Some(4242) }).map(|acting| (has_capabilities(), drop(acting)).0);
        assert_eq!(kept, Ok(Ok(false)), "no capability is in effect");
        // SAFETY: PR_SET_SECUREBITS takes a number, and is of this thread alone, which ends with the test.
        let keeps = |bits: libc::c_ulong| unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits) };
        /// SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
        const NO_FIXUP: libc::c_ulong = 4;
        assert_eq!(keeps(NO_FIXUP), 0);
        assert_eq!(act_as(RunAs { uid: Some(65534), gid: Some(4242) }).map(drop), Err(Errno::EPERM));
        assert_eq!((geteuid(), getegid(), getgroups()), before);
        assert_eq!(keeps(0), 0);
    }

    #[test]
    fn users_and_groups_are_known_by_name_and_number() {
        assert_eq!((uid_of("root"), gid_of("root")), (Ok(0), Ok(0)));
        assert_eq!((uid_of("4242424"), user_name(0)), (Ok(4_242_424), Some("root".into())));
        for bad in ["", "no such user", "-1", "4294967295", "1 "] {
            assert!(uid_of(bad).is_err() && gid_of(bad).is_err(), "{bad}");
        }
    }
}
