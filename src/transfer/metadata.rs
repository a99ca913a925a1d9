//! Metadata of a copied entry, set through one descriptor in this order: attributes, owner, setuid, setgid and capabilities,
//! ACLs, mode, times.
//!
//! The order follows from what the calls change: chown clears setuid, setgid and capabilities; an ACL changes the mode; each
//! of them, and writing, changes the times. It also gives no user more than he has in the source at any moment: a new entry is
//! open to its maker alone until its owner is set, and to its owner alone until its ACL and mode are set. setuid, setgid and
//! capabilities are set only after fstat has shown the owner and a link count of 1; from then on the kernel clears them when
//! the file is written to.

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use super::entry::facts;
use super::probe::LinkCalls;
use super::{At, DEST, Mover, SOURCE};
use crate::guard::EXCHANGED;
use crate::sys::{
    Class, Errno, Handle, InodeFlags, Lease, Meta, Narrowed, Owner, SetXattrs, Stripped, XattrError, XattrReading,
    Xattrs, drop_other_xattrs, has_default_acl, reaches_held, strip_acls, sync_file, sync_open_dir,
};
use crate::types::{Call, Facts, Failure, Kind, Loss, Op, RelPath, Timestamp, Unkept};

pub(super) const SETUID_SETGID: u32 = 0o6000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// What became of an entry's metadata.
pub(super) struct Kept {
    /// The source's metadata, with the owner and the mode that the copy is to have.
    pub(super) meta: Meta,
    pub(super) unkept: Unkept,
    /// The times of last access and of modification that the copy is to have.
    times: (Timestamp, Timestamp),
    /// The times can be set.
    keeps_times: bool,
    /// The copy's modification time, where it is not the source's.
    mtime_there: Option<Timestamp>,
    /// The source's inode flags, as far as they are wanted; `None` if they could not be read.
    pub(super) flags: Option<InodeFlags>,
    /// The device that the copy is on.
    pub(super) dev: u64,
}

impl Kept {
    /// What is recorded of the entry; of a symbolic link with its target.
    pub(super) fn facts(&self, target: Option<Vec<u8>>) -> Facts {
        Facts { mtime_there: self.mtime_there, ..facts(&self.meta, self.unkept.clone(), target) }
    }
}

/// What became of an entry's owner.
struct Ownership {
    uid: u32,
    gid: u32,
    /// chown(2) was called and succeeded.
    set: bool,
    /// The copy has another owner than its source.
    differs: bool,
}

/// An entry that gets the metadata of its source.
pub(super) struct Setting<'a> {
    pub(super) from: Handle<'a>,
    pub(super) to: Handle<'a>,
    /// The source's metadata.
    pub(super) source: &'a Meta,
    /// The entry has inherited an ACL from its directory, which has to be removed.
    pub(super) inherits_acl: bool,
    pub(super) of: Age<'a>,
    /// For a symbolic link: which calls may be used on it.
    pub(super) link: LinkCalls,
    /// Owner and mode of a new file, if they are known already. Then the file is looked at only once, after everything is set:
    /// the last call's reply has filled the kernel's cache.
    pub(super) made: Option<Meta>,
}

/// Whether an entry was at the destination before.
pub(super) enum Age<'a> {
    /// This run has made it: its content is known.
    New,
    /// It was: it keeps its user, who may have written to it.
    Old,
    /// A directory, new or old. The function is called after its owner is set and before its times are set.
    Dir(&'a dyn Fn() -> Result<(), Errno>),
}

impl Mover {
    /// Whether new entries in this directory inherit an ACL that has to be removed.
    pub(super) fn inherits_acl(&self, dir: BorrowedFd<'_>) -> Result<bool, Failure> {
        // A directory that this job has made has no default ACL before it is finished.
        if self.job.fresh || !self.job.policy.strips_inherited_acls() {
            return Ok(false);
        }
        match has_default_acl(dir) {
            Err(_) if self.leniently => Ok(true),
            has => has.at(Op::Xattr, DEST),
        }
    }

    /// The attributes of a source that its copy is to have; `meta` is the source's metadata. `unkept` notes that some cannot
    /// be read.
    pub(super) fn read_xattrs(
        &self,
        (from, meta): (Handle<'_>, &Meta),
        unkept: &mut Unkept,
    ) -> Result<Xattrs, Failure> {
        let attributes = &self.node.attributes;
        let how = XattrReading {
            none: !attributes.wants_some(false) && !attributes.wants_some(true),
            by_name: self.node.hides_xattrs(meta.dev),
            leniently: self.leniently,
        };
        let read = match Xattrs::read(from, how, |name, is_acl| attributes.wants(name, is_acl)) {
            // Without /proc there is no path to the attributes of an entry that is not opened.
            Err(Errno::ENOENT) if matches!(from, Handle::Held(_)) && !reaches_held() => None,
            read => Some(read.at(Op::Xattr, SOURCE)?),
        };
        let such = (meta.dev, meta.kind);
        // A server that lists attributes at one time and none at another: those of this entry are lost.
        let are_lost = match &read {
            // what was seen already needs no look at what the threads share
            Some(read) if read.were_listed() && self.listed.get() == Some(such) => false,
            Some(read) => {
                self.listed.set(Some(such).filter(|_| read.were_listed()));
                self.node.loses_xattrs(such, read.were_listed())
            }
            None => true,
        };
        let unread = read.as_ref().map(Xattrs::unread).unwrap_or_default();
        for (acls, kind, unread) in [(false, Loss::XATTR, unread.0), (true, Loss::ACL, unread.1)] {
            if (are_lost || unread) && attributes.wants_some(acls) {
                unkept.add(kind);
            }
        }
        let read = read.unwrap_or_default();
        for (kind, name) in read.unread_names() {
            unkept.add_named(loss_of(*kind), name.to_bytes());
        }
        Ok(read)
    }

    /// The mode that a small file is created with. In a copy that this run has made from its root on, each directory is open to
    /// its maker alone until all in it has ended: there it is the source's, and chmod(2) is saved. setuid, setgid and
    /// sticky come later.
    pub(super) fn first_mode(&self, source: &Meta) -> u32 {
        const OWN: u32 = 0o600;
        let wanted = self.wanted_mode(source) & 0o777;
        if self.job.fresh && wanted & OWN == OWN { wanted } else { OWN }
    }

    /// The mode that a copy is to have, if nothing is in the way.
    fn wanted_mode(&self, source: &Meta) -> u32 {
        let policy = &self.job.policy;
        if policy.preserve.mode { source.mode } else { source.mode & 0o777 & !policy.umask }
    }

    /// Gives the copy of an entry the metadata of its source.
    pub(super) fn set_metadata(&self, set: &Setting<'_>) -> Result<Kept, Failure> {
        let Setting { from, to, source, .. } = *set;
        let policy = &self.job.policy;
        let have = match set.made {
            None => whole(to, source)?,
            Some(made) => made,
        };
        let is_link = source.kind == Some(Kind::Symlink);
        let mut unkept = Unkept::default();
        let xattrs = self.read_xattrs((from, source), &mut unkept)?;
        if source.kind == Some(Kind::File) && have.mode & SETUID_SETGID != 0 {
            keep_mode(to, have.mode & 0o777, &mut unkept)?;
        }
        let stripped = if set.inherits_acl && !is_link {
            strip_acls(to, self.leniently).at(Op::Xattr, DEST)?
        } else {
            Stripped::default()
        };
        if stripped.left {
            unkept.add(Loss::ACL);
        }
        self.set_xattrs(&xattrs, Class::Plain, set, &mut unkept)?;
        let owner = self.keep_owner(set, &have, &mut unkept)?;
        if let Age::Dir(once_owned) = &set.of {
            once_owned().at(Op::Create, DEST)?;
        }
        let mode = match is_link {
            true => source.mode,
            false => self.keep_access(set, &have, &owner, (&xattrs, stripped.any), &mut unkept)?,
        };
        let later = if policy.preserve.timestamps { self.keep_times(set, &mut unkept)? } else { None };
        let mut mode = mode;
        if self.node.doubts_metadata() {
            let there = if set.made.is_some() { whole(to, source)? } else { to.meta_known().at(Op::Stat, DEST)? };
            if (there.uid, there.gid) != (owner.uid, owner.gid) {
                unkept.add(Loss::OWNER);
            }
            if there.mode != mode && !is_link {
                if policy.preserve.mode {
                    unkept.add(Loss::MODE);
                }
                mode = there.mode;
            }
            if there.mtime != source.mtime && policy.preserve.timestamps {
                unkept.add(Loss::TIMES);
            }
        }
        let seen = match policy.preserve.timestamps && !unkept.has(Loss::TIMES) {
            true => (source.atime, source.mtime),
            false => to.meta().map(|there| (there.atime, there.mtime)).at(Op::Stat, DEST)?,
        };
        let mtime_there = later.or(Some(seen.1)).filter(|mtime| *mtime != source.mtime);
        let times = if policy.preserve.timestamps { (source.atime, source.mtime) } else { seen };
        let mode = if policy.preserve.mode { source.mode } else { mode };
        let meta = Meta { mode, uid: owner.uid, gid: owner.gid, ..*source };
        let flags = self.source_flags(from, source)?;
        Ok(Kept { meta, unkept, times, keeps_times: set.link.utimens, mtime_there, flags, dev: have.dev })
    }

    /// Sets ACLs, capabilities and the mode. Returns the mode that the entry may have.
    fn keep_access(
        &self,
        set: &Setting<'_>,
        have: &Meta,
        owner: &Ownership,
        (xattrs, stripped): (&Xattrs, bool),
        unkept: &mut Unkept,
    ) -> Result<u32, Failure> {
        let Setting { to, source, .. } = *set;
        let is_file = source.kind == Some(Kind::File);
        let mut bits = self.allowed_bits(source, owner, unkept) & if is_file { SETUID_SETGID } else { 0 };
        let gives_rights = bits != 0 || xattrs.has(Class::Privilege);
        if gives_rights && !self.give_rights(set, owner, (bits, xattrs), unkept)? {
            bits = 0;
        }
        let acls = self.set_xattrs(xattrs, Class::Acl, set, unkept)?;
        let mode = self.allowed_mode(source, owner, unkept, acls.without_acl);
        let mode = if is_file { mode & !SETUID_SETGID | bits } else { mode };
        // The cached mode of a directory may be older than the change that this job has made to it.
        let may_be_old = matches!(set.of, Age::Dir(_));
        let may_change = owner.set && (!is_file || self.node.doubts_metadata());
        if may_change || stripped || acls.set > 0 || gives_rights || may_be_old || have.mode != mode {
            keep_mode(to, mode, unkept)?;
            // chmod(2) clears setgid without an error if the caller is not in the group.
            if mode & SETUID_SETGID != 0 && to.meta().at(Op::Stat, DEST)?.mode != mode {
                unkept.add(Loss::MODE);
            }
        }
        Ok(mode)
    }

    /// Sets setuid, setgid and capabilities of a file that is still open to its owner alone. Returns whether the file has them.
    /// They are left out, and noted in `unkept`, if somebody who would gain by it can have written to the file.
    fn give_rights(
        &self,
        set: &Setting<'_>,
        owner: &Ownership,
        (bits, xattrs): (u32, &Xattrs),
        unkept: &mut Unkept,
    ) -> Result<bool, Failure> {
        let Handle::Open(fd) = set.to else { return Ok(false) };
        let now = set.to.meta().at(Op::Stat, DEST)?;
        let is_meant = matches!(set.of, Age::New) && (now.uid, now.gid, now.nlink) == (owner.uid, owner.gid, 1);
        // A setuid program of the owner's own gives him nothing new; setgid and capabilities do.
        let is_more = bits & SETGID != 0 || xattrs.has(Class::Privilege);
        let lease = if now.uid == self.job.maker.uid || !is_more { None } else { Some(Lease::take(fd)) };
        if !is_meant || matches!(lease, Some(None)) {
            if bits != 0 {
                unkept.add(Loss::MODE);
            }
            for name in xattrs.names(Class::Privilege) {
                unkept.add_named(Loss::XATTR, name.to_bytes());
            }
            return Ok(false);
        }
        // Data that a write-back cache still holds (FUSE) would clear them when it is written.
        if self.node.asks_server() {
            sync_file(fd).at(Op::Fsync, DEST)?;
        }
        keep_mode(set.to, bits | set.source.mode & 0o700, unkept)?;
        self.set_xattrs(xattrs, Class::Privilege, set, unkept)?;
        Ok(true)
    }

    /// Sets the attributes of one class, and notes what cannot be kept.
    fn set_xattrs(
        &self,
        xattrs: &Xattrs,
        class: Class,
        Setting { to, source, .. }: &Setting<'_>,
        unkept: &mut Unkept,
    ) -> Result<SetXattrs, Failure> {
        let set =
            xattrs.set((*to, source.kind), class, (self.node.doubted_xattrs(), self.leniently)).at(Op::Xattr, DEST)?;
        for name in &set.unkept {
            unkept.add_named(loss_of(class), name.to_bytes());
        }
        Ok(set)
    }

    /// Sets the owner if it differs and may be set.
    fn keep_owner(&self, set: &Setting<'_>, have: &Meta, unkept: &mut Unkept) -> Result<Ownership, Failure> {
        let (wants_uid, wants_gid) = self.node.guard().wanted(set.source, have);
        let uid = (have.uid != wants_uid).then_some(wants_uid);
        let gid = (have.gid != wants_gid).then_some(wants_gid);
        let may_give = self.node.privileged && !matches!(set.of, Age::Old);
        if uid.is_some() && !may_give {
            unkept.add(Loss::OWNER);
        }
        let owner = Owner { uid: uid.filter(|_| may_give), gid };
        let changes = owner != (Owner { uid: None, gid: None });
        if changes && !set.link.chown {
            unkept.add(Loss::OWNER);
        }
        let was_set = changes
            && set.link.chown
            && match set.to.set_owner(owner) {
                Ok(()) => true,
                // An ordinary user outside of the group, a user namespace, or a file system without owners.
                Err(err) if Call::Chown.allows(err) => {
                    unkept.add(Loss::OWNER);
                    false
                }
                Err(err) => return Err(err).at(Op::Chown, DEST),
            };
        if was_set && self.node.doubts_metadata() {
            let there = set.to.meta_known().at(Op::Stat, DEST)?;
            if (there.uid, there.gid) != (wants_uid, wants_gid) {
                unkept.add(Loss::OWNER);
            }
        }
        let source = (set.source.uid, set.source.gid);
        let differs = unkept.has(Loss::OWNER) || (wants_uid, wants_gid) != source;
        Ok(Ownership { uid: wants_uid, gid: wants_gid, set: was_set, differs })
    }

    /// The source's mode, without setuid and setgid if the copy has another owner than its source: a setuid program of one user
    /// must never become one of another.
    fn allowed_bits(&self, source: &Meta, owner: &Ownership, unkept: &Unkept) -> u32 {
        let wanted = self.wanted_mode(source);
        // setgid of a directory only chooses the group of new entries: it stays when the user maps owners.
        let drops = owner.differs && (source.kind != Some(Kind::Dir) || unkept.has(Loss::OWNER));
        if drops { wanted & !SETUID_SETGID } else { wanted }
    }

    /// The mode that the copy may have. If the source's ACL could not be set, the group's bits hold the ACL's mask, which would
    /// give the group more than it had, and users named in the ACL would count as the group or as others: these bits are
    /// narrowed.
    fn allowed_mode(
        &self,
        source: &Meta,
        owner: &Ownership,
        unkept: &mut Unkept,
        without_acl: Option<Narrowed>,
    ) -> u32 {
        let mode = self.allowed_bits(source, owner, unkept);
        let mode = without_acl.map_or(mode, |Narrowed { group, others }| mode & (!0o077 | group << 3 | others));
        if mode != self.wanted_mode(source) && self.job.policy.preserve.mode {
            unkept.add(Loss::MODE);
        }
        mode
    }

    /// Sets the times. Returns the modification time that the entry will have, if that is known to be another one than it
    /// shows now.
    fn keep_times(&self, set: &Setting<'_>, unkept: &mut Unkept) -> Result<Option<Timestamp>, Failure> {
        let Setting { to, source, .. } = *set;
        if !set.link.utimens {
            unkept.add(Loss::TIMES);
            return Ok(None);
        }
        match to.set_times(source.atime, source.mtime) {
            Ok(()) => {}
            Err(err) if Call::Utimens.allows(err) => {
                unkept.add(Loss::TIMES);
                return Ok(None);
            }
            Err(err) => return Err(err).at(Op::Utimes, DEST),
        }
        // A file system rounds or clamps a time that it cannot hold, without an error.
        let usual = 0..=i64::from(i32::MAX);
        if (self.node.coarse_times || !usual.contains(&source.mtime.sec))
            && to.meta_now().at(Op::Stat, DEST)?.mtime != source.mtime
        {
            unkept.add(Loss::TIMES);
            return Ok(None);
        }
        let later = self.mtime_later(to, source)?;
        if later.is_some() {
            unkept.add(Loss::TIMES);
        }
        Ok(later)
    }

    /// The modification time that an entry from before 1970 will have, if it is another one than its own, which it shows now.
    /// GlusterFS shows what was set for as long as it caches that, and then, for directories, 1970. On each device the first
    /// such directory, and the first such entry of another type, are looked at again after that time.
    fn mtime_later(&self, to: Handle<'_>, source: &Meta) -> Result<Option<Timestamp>, Failure> {
        const CACHED: Duration = Duration::from_millis(1500);
        if source.mtime.sec >= 0 || !self.node.doubts_metadata() {
            return Ok(None);
        }
        let there = to.meta_known().at(Op::Stat, DEST)?;
        let later = self.node.learned_mtime((there.dev, there.kind == Some(Kind::Dir)), || {
            thread::sleep(CACHED);
            let later = to.meta_now()?.mtime;
            Ok((later != source.mtime).then_some(later))
        });
        later.at(Op::Stat, DEST)
    }

    /// Sets the times once more after a rename. dfuse and encfs change them in a rename, and stat may still show the cached
    /// ones.
    pub(super) fn keep_times_again(&self, to: Handle<'_>, kept: &mut Kept) -> Result<(), Failure> {
        let set = if kept.keeps_times { to.set_times(kept.times.0, kept.times.1) } else { Err(Errno::EOPNOTSUPP) };
        let is_set = match set {
            Err(err) if Call::Utimens.allows(err) => false,
            set => set.map(|()| true).at(Op::Utimes, DEST)?,
        };
        if is_set && !self.node.doubts_metadata() && !kept.unkept.has(Loss::TIMES) {
            return Ok(());
        }
        let mut there = to.meta().at(Op::Stat, DEST)?.mtime;
        if there == kept.meta.mtime {
            there = self.mtime_later(to, &kept.meta)?.unwrap_or(there);
        }
        kept.mtime_there = Some(there).filter(|mtime| *mtime != kept.meta.mtime);
        kept.unkept.remove(Loss::TIMES);
        if self.job.policy.preserve.timestamps && (kept.mtime_there.is_some() || !is_set) {
            kept.unkept.add(Loss::TIMES);
        }
        Ok(())
    }

    /// Removes the attributes of a copy that its source no longer has. Returns whether all could be removed.
    pub(super) fn drop_other_xattrs(&self, from: Handle<'_>, to: Handle<'_>) -> Result<bool, Failure> {
        let wants = |name: &[u8], is_acl| self.node.attributes.wants(name, is_acl);
        match drop_other_xattrs(from, to, wants, self.leniently) {
            Ok(left) => Ok(left == 0),
            Err(XattrError::Reading(err)) => Err(err).at(Op::Xattr, SOURCE),
            Err(XattrError::Writing(err)) => Err(err).at(Op::Xattr, DEST),
        }
    }

    /// Makes a file durable if syncfs(2) does not do it on this file system.
    pub(super) fn sync_if_needed(&self, to: BorrowedFd<'_>) -> Result<(), Failure> {
        if self.node.unsynced().is_some() { sync_file(to).at(Op::Fsync, DEST) } else { Ok(()) }
    }

    /// Makes a directory (names and metadata) durable now, if syncfs(2) does not do it on this file system.
    pub(super) fn sync_finished_dir(&self, path: &RelPath, dir: BorrowedFd<'_>) -> Result<(), Failure> {
        let Some(unsynced) = self.node.unsynced() else { return Ok(()) };
        sync_open_dir(dir).at(Op::Fsync, DEST)?;
        unsynced.forget(path);
        Ok(())
    }

    /// Makes a directory (names and metadata) durable with the next checkpoint, if syncfs(2) does not do it on this file system.
    pub(super) fn sync_dir_later(&self, dir: &RelPath) {
        if let Some(unsynced) = self.node.unsynced() {
            unsynced.add(dir);
        }
    }
}

/// Sets the mode. If that is refused with the sticky bit (dfuse), sets it without.
fn keep_mode(to: Handle<'_>, mode: u32, unkept: &mut Unkept) -> Result<(), Failure> {
    match to.set_mode(mode) {
        Err(err) if Call::Chmod.allows(err) => {
            unkept.add(Loss::MODE);
            if mode & STICKY != 0 { keep_mode(to, mode & !STICKY, unkept) } else { Ok(()) }
        }
        set => set.at(Op::Chmod, DEST),
    }
}

/// What is lost with an attribute of this class.
fn loss_of(class: Class) -> Loss {
    if class == Class::Acl { Loss::ACL } else { Loss::XATTR }
}

/// The metadata of an entry that has the type, and for a file the size, of its source.
fn whole(to: Handle<'_>, source: &Meta) -> Result<Meta, Failure> {
    let have = to.meta().at(Op::Stat, DEST)?;
    if have.kind != source.kind {
        return Err(EXCHANGED).at(Op::Stat, DEST);
    }
    if source.kind == Some(Kind::File) && have.size != source.size {
        return Err(Errno::EIO).at(Op::Write, DEST);
    }
    Ok(have)
}
