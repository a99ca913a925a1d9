//! POSIX ACLs, capabilities and extended attributes arrive, or the manifest tells that they did not
//! (issue 2, item 6). Judged by getfacl and getcap too, besides the bytes of the attributes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid, chown};

use crate::support::copy::{assert_exact, copy, copy_exactly};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::Job;
use crate::support::manifest::is_unkept;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, Missing, need};
use crate::support::sys;
use crate::support::tree::{self, MIB, chmod, noise_file, temp};

fn tools() -> Result<(), Missing> {
    skip::root()?;
    ["setfacl", "getfacl"].iter().try_for_each(|name| skip::program(name))?;
    // They are in /usr/sbin, which is not everybody's PATH.
    ["setcap", "getcap"].iter().try_for_each(|name| skip::program(name))
}

fn output<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    let output = command.args(args).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn setfacl(acl: &str, path: &Path) {
    output("setfacl", ["-m".as_ref(), acl.as_ref(), path.as_os_str()]);
}

/// What `getfacl` and `getcap` print of everything below `root`.
fn acls_and_capabilities(root: &Path) -> (String, Vec<String>) {
    let shown = |path: PathBuf| output("getcap", ["-n".as_ref(), path.as_os_str()]);
    let here = root.to_str().unwrap();
    let capabilities = WITH_CAPABILITIES.iter().map(|name| shown(root.join(name)).replace(here, ""));
    let acls = ["-R", "-P", "-n", "-p", here];
    let acls = output("getfacl", acls).replace(here, "");
    // pcopy's own directory has no counterpart in the source.
    let acls = acls.split("\n\n").filter(|part| !part.contains("/.pcopy")).collect::<Vec<_>>();
    let mut acls: Vec<_> = acls.into_iter().map(str::trim).collect();
    acls.sort_unstable();
    (acls.join("\n\n"), capabilities.collect())
}

const WITH_ACL: [&str; 5] = ["acl", "acl-large", "acl-mask", "d", "d/both"];
const WITH_CAPABILITIES: [&str; 3] = ["cap", "cap-of-other", "cap-large"];
const WITH_ATTRIBUTES: [&str; 4] = ["d/user", "d/user-dir", "user-large", "link"];
const PLAIN: [&str; 4] = ["plain", "plain-large", "plain-link", "d/plain"];

/// Files, directories and links with all kinds of attributes, and some without.
fn attributed(root: &Path) -> PathBuf {
    let at = |name: &str| root.join(name);
    for name in ["acl", "acl-mask", "cap", "cap-of-other", "plain", "d/user", "d/plain"] {
        noise_file(&at(name), 1000);
    }
    for name in ["acl-large", "cap-large", "user-large", "plain-large"] {
        noise_file(&at(name), MIB / 2 + 7);
    }
    for name in ["d/both", "d/user-dir"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    symlink("plain", at("link")).unwrap();
    symlink("plain", at("plain-link")).unwrap();
    // Changing the owner clears capabilities: a copy that sets them first loses them.
    chown(&at("cap-of-other"), Some(Uid::from_raw(1001)), Some(Gid::from_raw(1002))).unwrap();
    for name in WITH_CAPABILITIES {
        output("setcap", ["cap_net_raw,cap_chown+ep".as_ref(), at(name).as_os_str()]);
    }
    for name in ["user-large", "d/user", "d/user-dir"] {
        sys::set_xattr(&at(name), "user.note", b"a \0 value").unwrap();
        sys::set_xattr(&at(name), "user.empty", b"").unwrap();
    }
    sys::set_xattr(&at("link"), "trusted.of-a-link", &[9; 300]).unwrap();
    setfacl("u:1234:rw,g:77:r", &at("acl"));
    setfacl("u:1234:rwx", &at("acl-large"));
    // Less than the mode's group bits say without the ACL.
    setfacl("u:1234:rwx,g::rwx,m::r", &at("acl-mask"));
    // What is made in a directory would inherit its default ACL: it must come last.
    setfacl("d:u:1234:rwx,d:g:77:rx", &at("d"));
    setfacl("u:1234:x,d:u:5678:rwx,d:o::-", &at("d/both"));
    tree::age(root);
    root.to_path_buf()
}

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K"])
}

/// Copies within a file system, all attributes with it.
fn attributes_arrive_on(kind: FileSystem, size_mib: u64) {
    need!(tools());
    let mount = need!(Mount::new(kind, size_mib));
    let src = attributed(&mount.path().join("src"));
    for ranks in [1, 2] {
        let dst = mount.path().join(format!("np{ranks}"));
        let copied = copy_exactly(&job(ranks), &src, &dst);
        assert_eq!(acls_and_capabilities(&src), acls_and_capabilities(&dst), "{}", copied.outcome.told());
        assert_eq!(copied.manifest().trailer["unkept"], 0);
    }
}

#[test]
fn acls_capabilities_and_attributes_arrive_on_ext4() {
    attributes_arrive_on(FileSystem::Ext4, 60);
}

#[test]
fn acls_capabilities_and_attributes_arrive_on_xfs() {
    attributes_arrive_on(FileSystem::Xfs, 320);
}

#[test]
fn acls_capabilities_and_attributes_arrive_on_tmpfs() {
    attributes_arrive_on(FileSystem::Tmpfs, 60);
}

#[test]
fn attributes_that_a_file_system_refuses_are_marked_and_no_failure() {
    need!(tools());
    let fuse = need!(FuseMount::new(Faults::default()));
    let dir = temp();
    let src = attributed(&dir.path().join("src"));
    for ranks in [1, 2] {
        let copied = copy(&job(ranks), &[&src], &fuse.path().join(format!("np{ranks}")));
        copied.outcome.assert_code(0);
        let aspects = Aspects { xattrs: false, ..Aspects::ALL };
        // without its ACL a file's mask is not the group's right any more
        let of_acl = |words: &String| WITH_ACL.iter().any(|name| words.starts_with(&format!("{name}: mode")));
        let found = oracle::differences(&src, &copied.root, aspects).into_iter().filter(|words| !of_acl(words));
        oracle::assert_none(&found.collect::<Vec<_>>(), &copied.outcome.told());
        for name in WITH_ACL {
            let group = |root: &Path| fs::symlink_metadata(root.join(name)).unwrap().permissions().mode() & 0o070;
            assert_eq!(group(&copied.root) & !group(&src), 0, "{name}: the group gains");
        }
        let manifest = copied.manifest();
        let marked = [&WITH_ACL[..], &WITH_CAPABILITIES, &WITH_ATTRIBUTES].concat();
        for name in &marked {
            let kind = if WITH_ACL.contains(name) { "acl" } else { "xattr" };
            assert!(is_unkept(&manifest.entries[name.as_bytes()], kind), "{name}: {}", copied.outcome.told());
        }
        for name in PLAIN {
            assert!(manifest.entries[name.as_bytes()].get("unkept").is_none(), "{name}");
        }
        assert_eq!(manifest.trailer["unkept"], marked.len());
        assert_eq!(manifest.trailer["errors"], 0);
    }
}

#[test]
fn attributes_that_only_root_may_set_are_marked_when_an_ordinary_user_copies() {
    need!(tools());
    let (dir, kit) = (temp(), temp());
    let src = attributed(&dir.path().join("src"));
    // Readable by everybody, also where the ACL has tightened the group.
    ["acl", "acl-large", "acl-mask"].iter().for_each(|name| chmod(&src.join(name), 0o644));
    chmod(&src.join("d/both"), 0o755);
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    chmod(&home, 0o777);
    let copied = copy(&job(2).by_nobody(kit.path()), &[&src], &home.join("dst"));
    copied.outcome.assert_code(0);
    let entry = |name: &str| &copied.manifest().entries[name.as_bytes()];
    for name in WITH_CAPABILITIES {
        assert!(is_unkept(entry(name), "xattr"), "{name}: {}", copied.outcome.told());
    }
    assert!(!is_unkept(entry("d/user"), "xattr") && !is_unkept(entry("acl"), "xattr"));
    let kept = ["acl", "acl-large", "d/user", "user-large"];
    for name in kept {
        let of = |root: &Path| oracle::walk(root)[name.as_bytes()].xattrs.clone();
        assert_eq!(of(&src), of(&copied.root), "{name}");
    }
}
#[test]
fn a_second_copy_over_the_first_has_the_same_acls_though_its_directories_hand_theirs_down() {
    need!(tools());
    let mount = need!(Mount::new(FileSystem::Ext4, 60));
    let src = attributed(&mount.path().join("src"));
    let dst = mount.path().join("dst");
    for _ in 0..2 {
        let copied = copy(&job(2), &[&mount.path().join("src/")], &dst);
        copied.outcome.assert_code(0);
        assert_exact(&copied, &src);
        assert_eq!(acls_and_capabilities(&src), acls_and_capabilities(&dst), "{}", copied.outcome.told());
    }
}

#[test]
fn what_the_directory_above_hands_down_is_not_in_the_copy() {
    need!(tools());
    let mount = need!(Mount::new(FileSystem::Ext4, 60));
    let src = attributed(&mount.path().join("src"));
    let above = mount.path().join("above");
    fs::create_dir(&above).unwrap();
    setfacl("d:u:4321:rwx", &above);
    let copied = copy_exactly(&job(2), &src, &above.join("dst"));
    assert_eq!(acls_and_capabilities(&src), acls_and_capabilities(&copied.root));
}
