//! Those that take long, or packages that few machines have: `ci/test --file-systems` runs them too.

use super::{Mounted, image, layered, try_file_system};
use crate::support::mounts::{FileSystem, Over};
use crate::support::served::{Served, served};

/// A small file of mode 01000 GlusterFS takes for a pointer of its own: at first each client reads it as empty, also one that
/// cp has made. setgid with the sticky bit marks a file that it moves, and is shown now and then.
const TAKEN_FOR_MARKS: [&str; 17] = [
    "modes/file-1000",
    "modes/file-3000",
    "modes/file-3100",
    "modes/file-3200",
    "modes/file-3400",
    "modes/file-3644",
    "modes/file-3777",
    "modes/file-3070",
    "modes/file-3007",
    "modes/file-7000",
    "modes/file-7100",
    "modes/file-7200",
    "modes/file-7400",
    "modes/file-7644",
    "modes/file-7777",
    "modes/file-7070",
    "modes/file-7007",
];

/// Judged through another client, which has nothing in its cache.
fn with_servers(name: &str, kind: Served) {
    try_file_system(name, |home| {
        let (path, judged) = (home.join("mnt"), home.join("judged"));
        let mounts = served(kind, &home.join("servers"), [&path, &judged])?;
        let left_out: &[&str] = match kind {
            Served::GlusterFs => &TAKEN_FOR_MARKS,
            // Names with control characters: the directory cannot be listed any more.
            Served::S3fs => &["names"],
            Served::MooseFs | Served::CephFs => &[],
        };
        let flaps = kind == Served::GlusterFs;
        Ok(Mounted { path, judged, strays: false, flaps, left_out, _mount: Box::new(mounts) })
    });
}

#[test]
fn gluster_keeps_what_is_not_told_to_be_lost() {
    with_servers("GlusterFS", Served::GlusterFs);
}

#[test]
fn moosefs_keeps_what_is_not_told_to_be_lost() {
    with_servers("MooseFS", Served::MooseFs);
}

#[test]
fn cephfs_keeps_what_is_not_told_to_be_lost() {
    with_servers("CephFS (ceph-fuse)", Served::CephFs);
}

#[test]
fn s3fs_keeps_what_is_not_told_to_be_lost() {
    with_servers("s3fs", Served::S3fs);
}

/// Takes 80 s and hardly any CPU time: to names that it cannot hold exFAT answers with ENOENT, as another node's cache
/// would, and pcopy waits for them.
#[test]
fn exfat_keeps_what_is_not_told_to_be_lost() {
    try_file_system("exfat-fuse", image(FileSystem::Exfat));
}

#[test]
fn ntfs_keeps_what_is_not_told_to_be_lost() {
    try_file_system("ntfs-3g", image(FileSystem::Ntfs));
}

#[test]
fn encfs_keeps_what_is_not_told_to_be_lost() {
    try_file_system("encfs", layered(Over::Encfs));
}

#[test]
fn unionfs_keeps_what_is_not_told_to_be_lost() {
    try_file_system("unionfs-fuse", layered(Over::Unionfs));
}

#[test]
fn cryfs_keeps_what_is_not_told_to_be_lost() {
    try_file_system("cryfs", layered(Over::Cryfs));
}
