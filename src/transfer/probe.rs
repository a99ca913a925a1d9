//! Probe of a file system: whether owner and times of a symbolic link can be set without changing its target.
//!
//! The SFTP protocol has no call for the link itself: sshfs sets owner and times of the link's target on the server. On
//! network and FUSE file systems both calls are therefore tried once a device, on a link and a file of pcopy's own.

use std::os::fd::AsFd;

use super::{At, DEST, Mover, Place};
use crate::sys::{Errno, Handle, Meta, Owner, close, create_new, hold, is_on_server, make_symlink};
use crate::types::{Call, Failure, Op, Temporary, Timestamp};

/// Which calls change a symbolic link itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkCalls {
    pub(super) chown: bool,
    pub(super) utimens: bool,
}

impl LinkCalls {
    pub(super) const ALL: Self = Self { chown: true, utimens: true };
    pub(super) const NONE: Self = Self { chown: false, utimens: false };
}

impl Mover {
    /// Which calls may be used on a symbolic link in this place: none if the probe cannot be made.
    ///
    /// # Errors
    /// Failures of the probe that may pass, or that stop the job.
    pub(super) fn link_calls(&mut self, source: u16, place: &Place) -> Result<LinkCalls, Failure> {
        if !is_on_server(place.dest()) {
            return Ok(LinkCalls::ALL);
        }
        let dev = Meta::known(place.dest()).at(Op::Stat, DEST)?.dev;
        if let Some(known) = self.node.known_link_calls(dev) {
            return Ok(known);
        }
        let found = match self.try_link_calls(source, place) {
            Err(failure) if failure.may_pass() || failure.halts() => return Err(failure),
            tried => tried.unwrap_or(LinkCalls::NONE),
        };
        self.node.learn_link_calls(dev, found);
        Ok(found)
    }

    /// Makes the probe. Each step is tried again on its own, like an operation on an entry.
    fn try_link_calls(&mut self, source: u16, place: &Place) -> Result<LinkCalls, Failure> {
        // Attempts at entries never reach these numbers.
        let name = |attempt| Temporary { generation: self.job.generation, attempt };
        let (for_file, for_link) = (name(u8::MAX), name(u8::MAX - 1));
        let (file, target) = self.retried(|me, _| {
            me.make_temporary(source, place, for_file, |(dir, name)| create_new(dir, name, 0o600)).at(Op::Create, DEST)
        })?;
        let to = target.place().1.to_vec();
        let made = self.retried(|me, _| {
            me.make_temporary(source, place, for_link, |(dir, name)| make_symlink(&to, dir, name)).at(Op::Symlink, DEST)
        });
        let tried = made.and_then(|((), link)| {
            let tried = self.retried(|_, _| {
                let held = hold(link.place().0, link.place().1, false).at(Op::Open, DEST)?;
                try_calls(Handle::Held(held.as_fd())).at(Op::Utimes, DEST)
            });
            link.discard();
            tried
        });
        target.discard();
        let tried = tried?;
        close(file).at(Op::Close, DEST)?;
        // Without CAP_CHOWN the call cannot be tried: the probe of the times decides.
        Ok(if self.node.privileged { tried } else { LinkCalls { chown: tried.utimens, ..tried } })
    }
}

fn try_calls(link: Handle<'_>) -> Result<LinkCalls, Errno> {
    let done = |call: Call, result: Result<(), Errno>| match result {
        Err(err) if call.allows(err) => Ok(false),
        result => result.map(|()| true),
    };
    // An even number of whole seconds: FAT holds no others.
    let time = Timestamp { sec: 1_000_000_000, nsec: 0 };
    let utimens = done(Call::Utimens, link.set_times(time, time))? && link.meta_now()?.mtime == time;
    // Any user but the present owner.
    let uid = link.meta_now()?.uid ^ 1;
    let chown = done(Call::Chown, link.set_owner(Owner { uid: Some(uid), gid: None }))? && link.meta_now()?.uid == uid;
    Ok(LinkCalls { chown, utimens })
}
