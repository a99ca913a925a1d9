//! Extended attributes that bind an inode to the store or the place that it is in, instead of saying what it holds: one
//! table. On another inode they are wrong, refused, or worse: a directory that gets `user.daos` becomes a link to the
//! container that its source is in.

/// When such an attribute is copied, and removed where the source does not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// Whatever `--xattrs` says.
    Never,
    /// With `--xattrs=all`, or where /etc/xattr.conf decides (`--xattrs=libattr`).
    ByChoice,
}

/// Names, or with a dot at the end what they begin with.
const TABLE: [(&[u8], Bound); 24] = [
    // DAOS: which container a directory is, or leads to
    (b"user.daos", Bound::Never),
    // Lustre: layout, identity and state of one copy; dcp leaves out the same
    (b"lustre.", Bound::ByChoice),
    (b"trusted.som", Bound::ByChoice),
    (b"trusted.lov", Bound::ByChoice),
    (b"trusted.lma", Bound::ByChoice),
    (b"trusted.lmv", Bound::ByChoice),
    (b"trusted.dmv", Bound::ByChoice),
    (b"trusted.link", Bound::ByChoice),
    (b"trusted.fid", Bound::ByChoice),
    (b"trusted.version", Bound::ByChoice),
    (b"trusted.hsm", Bound::ByChoice),
    (b"trusted.lfsck_bitmap", Bound::ByChoice),
    (b"trusted.dummy", Bound::ByChoice),
    // GlusterFS, read from a brick: identity, layout and state of replicas
    (b"trusted.gfid", Bound::ByChoice),
    (b"trusted.glusterfs.", Bound::ByChoice),
    (b"trusted.afr.", Bound::ByChoice),
    // CephFS: layout, quota and statistics, made on demand
    (b"ceph.", Bound::ByChoice),
    // overlayfs, read from a layer: handles of the inodes below; what is opaque or redirected is content, and copied
    (b"trusted.overlay.origin", Bound::ByChoice),
    (b"trusted.overlay.upper", Bound::ByChoice),
    (b"trusted.overlay.uuid", Bound::ByChoice),
    (b"trusted.overlay.nlink", Bound::ByChoice),
    (b"trusted.overlay.impure", Bound::ByChoice),
    // Linux IMA and EVM: digests and signatures, the latter over the inode's number
    (b"security.ima", Bound::ByChoice),
    (b"security.evm", Bound::ByChoice),
];

/// Whether the attribute of this name binds, and when it is copied all the same; `None` for what is copied always.
pub(super) fn bound(name: &[u8]) -> Option<Bound> {
    let is = |entry: &[u8]| if entry.ends_with(b".") { name.starts_with(entry) } else { name == entry };
    TABLE.iter().find(|(entry, _)| is(entry)).map(|(_, bound)| *bound)
}
