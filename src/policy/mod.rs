//! What is copied, and what is preserved of it: the user's choices, and what follows from them. Pure: no files, no
//! messages. The command line makes them, the scan and the I/O threads ask them.

mod bound;
mod filter;
mod glob;
mod ids;
mod owners;
mod selection;

use bound::{Bound, bound};
use serde::{Deserialize, Serialize};

pub use filter::{Filter, Rule};
pub use glob::{Glob, GlobError};
pub use ids::IdMap;
pub use owners::{From, OwnerMap, OwnerRule};
pub use selection::{Selected, Selection, SelectionError};

use crate::types::{Fate, Identity, Timestamp};

/// What every rank has to know of the user's choices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub preserve: Preserve,
    pub xattrs: Xattrs,
    pub existing: Existing,
    /// Symbolic links in the sources are followed, not copied.
    pub follow_links: bool,
    pub users: OwnerMap,
    pub groups: OwnerMap,
    /// Sources are read without a trace in their access times, where that is allowed.
    pub noatime: bool,
    /// Nothing is written; every rank only looks.
    pub dry_run: bool,
    /// Permission bits that new entries do not get where the mode is not preserved; below 0o1000.
    pub umask: u32,
    pub run_as: RunAs,
    pub changes: Changes,
}

/// By what a change of a source is noticed: while it is read, and between two runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Changes {
    /// Size, modification time and ctime.
    #[default]
    Ctime,
    /// Size and modification time. For file systems that show another ctime at each look.
    Mtime,
    /// Nothing: what is read is taken for the file. Between two runs as `mtime`.
    None,
}

impl Changes {
    /// Whether what a stat(2) shows now may be another version of a file.
    pub fn show_another(self, before: &Identity, now: &Identity) -> bool {
        match self {
            Self::Ctime => before != now,
            Self::Mtime => (before.size, before.mtime) != (now.size, now.mtime),
            Self::None => false,
        }
    }
}

/// Which temporary files of pcopy in a source are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leftovers {
    /// They are entries like others: nobody has said that the source is an incomplete copy.
    #[default]
    Copied,
    /// Temporary files of these jobs are left out.
    OfJobs(Vec<u64>),
    /// Temporary files of every job are left out: the job that made the source is not known.
    LeftOut,
}

impl Leftovers {
    /// Whether temporary files of this job are left out.
    pub fn leaves_out(&self, job_id: u64) -> bool {
        match self {
            Self::Copied => false,
            Self::OfJobs(ids) => ids.contains(&job_id),
            Self::LeftOut => true,
        }
    }
}

/// What is preserved of an entry besides its type and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preserve {
    pub mode: bool,
    pub ownership: bool,
    pub timestamps: bool,
    /// Extended attributes, capabilities among them, ACLs not.
    pub xattr: bool,
    pub acl: bool,
    /// Several names of one entry stay that.
    pub links: bool,
    pub flags: Flags,
}

/// What becomes of inode flags, those of chattr(1), and of project ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flags {
    /// Nobody looks at them.
    Ignored,
    /// Those that a copy lacks are counted, where looking at them is no request to a server.
    #[default]
    Counted,
    /// They are set, as far as the destination takes them; the others are counted.
    Copied,
}

/// A word of `--preserve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Aspect {
    Mode,
    Ownership,
    Timestamps,
    Xattr,
    Acl,
    Links,
    Flags,
    All,
}

/// Which extended attributes are copied; the choices are dcp's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Xattrs {
    /// None at all, ACLs neither.
    None,
    All,
    /// All but those that bind an inode to its store, Lustre's layout for one (`bound.rs` has the table).
    #[default]
    NonLustre,
    /// All but those whose names match one of these patterns, from /etc/xattr.conf, see attr_copy_action(3).
    Libattr(Vec<String>),
}

/// What becomes of an entry that is there already and is no directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Existing {
    #[default]
    Replace,
    /// It is left.
    Keep,
    /// It is left unless it is older than the source.
    Update,
}

/// The user and group as whom file systems are used; `None` for who started the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl Preserve {
    /// All but flags, which would keep the copy from being changed: of these the loss is counted.
    pub const ALL: Self = Self {
        mode: true,
        ownership: true,
        timestamps: true,
        xattr: true,
        acl: true,
        links: true,
        flags: Flags::Counted,
    };
    pub const NONE: Self = Self {
        mode: false,
        ownership: false,
        timestamps: false,
        xattr: false,
        acl: false,
        links: false,
        flags: Flags::Ignored,
    };

    /// Sets what a word names.
    pub fn set(&mut self, aspect: Aspect, on: bool) {
        match aspect {
            Aspect::Mode => self.mode = on,
            Aspect::Ownership => self.ownership = on,
            Aspect::Timestamps => self.timestamps = on,
            Aspect::Xattr => self.xattr = on,
            Aspect::Acl => self.acl = on,
            Aspect::Links => self.links = on,
            Aspect::Flags => self.flags = if on { Flags::Copied } else { Flags::Ignored },
            Aspect::All if on => {
                let flags = if self.flags == Flags::Copied { Flags::Copied } else { Flags::Counted };
                *self = Self { flags, ..Self::ALL };
            }
            Aspect::All => *self = Self::NONE,
        }
    }

    /// The words for what is preserved.
    pub fn names(self) -> Vec<&'static str> {
        let Self { mode, ownership, timestamps, xattr, acl, links, flags } = self;
        let words = [
            (mode, "mode"),
            (ownership, "ownership"),
            (timestamps, "timestamps"),
            (xattr, "xattr"),
            (acl, "acl"),
            (links, "links"),
            (flags == Flags::Copied, "flags"),
        ];
        words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect()
    }
}

impl Default for Preserve {
    fn default() -> Self {
        Self::ALL
    }
}

impl Policy {
    /// Whether ACLs that a destination's directory hands down are removed: the entry's own permissions stand for it.
    pub fn strips_inherited_acls(&self) -> bool {
        self.preserve.mode || self.preserve.acl
    }

    /// Whether an entry that is there is left, by its mtime and its source's; and why.
    pub fn keeps(&self, there: Timestamp, source: Timestamp) -> Option<Fate> {
        match self.existing {
            Existing::Replace => None,
            Existing::Keep => Some(Fate::KeptExisting),
            Existing::Update => (there >= source).then_some(Fate::KeptNewer),
        }
    }
}

/// Which attributes are copied, ready to be asked for many names.
pub struct XattrChoice {
    xattr: bool,
    acl: bool,
    /// Those that bind an inode to its store too, but for the ones that never are.
    bound: bool,
    skipped: Vec<Glob>,
}

impl XattrChoice {
    /// # Errors
    /// A pattern of /etc/xattr.conf that is none.
    pub fn new(policy: &Policy) -> Result<Self, GlobError> {
        let some = policy.xattrs != Xattrs::None;
        let skipped = match &policy.xattrs {
            Xattrs::Libattr(patterns) => {
                patterns.iter().map(|p| Glob::name(p.as_bytes())).collect::<Result<Vec<_>, _>>()?
            }
            _ => Vec::new(),
        };
        Ok(Self {
            xattr: some && policy.preserve.xattr,
            acl: some && policy.preserve.acl,
            bound: policy.xattrs != Xattrs::NonLustre,
            skipped,
        })
    }

    /// Whether any attributes are copied, ACLs or others.
    pub fn wants_some(&self, acls: bool) -> bool {
        if acls { self.acl } else { self.xattr }
    }

    /// Whether the attribute of this name is copied; `is_acl` if it is an ACL.
    pub fn wants(&self, name: &[u8], is_acl: bool) -> bool {
        let wanted = self.wants_some(is_acl);
        let may_be = || match bound(name) {
            None => true,
            Some(Bound::ByChoice) => self.bound,
            Some(Bound::Never) => false,
        };
        wanted && may_be() && !self.skipped.iter().any(|glob| glob.matches(name))
    }
}

/// The patterns of an xattr.conf whose attributes are not copied: lines of a pattern and an action, `#` begins a comment.
pub fn skipped_by_xattr_conf(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let words = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?))
    });
    words.filter(|(_, action)| *action == "skip").map(|(pattern, _)| pattern.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(policy: &Policy, name: &str) -> bool {
        XattrChoice::new(policy).expect("good patterns").wants(name.as_bytes(), name.starts_with("system.posix_acl"))
    }

    #[test]
    fn attributes_are_chosen_as_in_dcp() {
        let names = ["user.a", "trusted.lov", "lustre.lov", "security.evm", "system.posix_acl_access"];
        let conf = "# x\nsecurity.evm\tskip # why\nuser.Beagle.*  skip\nsystem.posix_acl_access permissions\nbroken\n";
        let chosen = |xattrs| {
            let policy = Policy { xattrs, ..Policy::default() };
            names.map(|name| wants(&policy, name))
        };
        assert_eq!(chosen(Xattrs::None), [false; 5]);
        assert_eq!(chosen(Xattrs::All), [true; 5]);
        assert_eq!(chosen(Xattrs::NonLustre), [true, false, false, false, true]);
        assert_eq!(chosen(Xattrs::Libattr(skipped_by_xattr_conf(conf))), [true, true, true, false, true]);
        let beagle = Policy { xattrs: Xattrs::Libattr(skipped_by_xattr_conf(conf)), ..Policy::default() };
        assert!(!wants(&beagle, "user.Beagle.x/y") && wants(&beagle, "user.Beagle"));
    }

    #[test]
    fn what_binds_an_inode_to_its_store_is_copied_by_choice_or_never() {
        let by_choice =
            ["trusted.glusterfs.dht", "trusted.gfid", "ceph.dir.layout", "trusted.overlay.origin", "security.ima"];
        let always = ["trusted.overlay.opaque", "trusted.lovely", "user.daosx", "trusted.note", "btrfs.compression"];
        for (xattrs, expected) in [(Xattrs::NonLustre, false), (Xattrs::All, true), (Xattrs::Libattr(Vec::new()), true)]
        {
            let policy = Policy { xattrs, ..Policy::default() };
            by_choice.iter().for_each(|name| assert_eq!(wants(&policy, name), expected, "{name}"));
            always.iter().for_each(|name| assert!(wants(&policy, name), "{name}"));
            assert!(!wants(&policy, "user.daos"));
        }
    }

    #[test]
    fn acls_and_other_attributes_are_chosen_apart() {
        let without = |aspect| {
            let mut policy = Policy::default();
            policy.preserve.set(aspect, false);
            (wants(&policy, "user.a"), wants(&policy, "system.posix_acl_access"))
        };
        assert_eq!(without(Aspect::Xattr), (false, true));
        assert_eq!(without(Aspect::Acl), (true, false));
        assert_eq!(without(Aspect::All), (false, false));
    }
}
