//! Nothing of a tree is lost, on any file system, for root and for an ordinary user: the hard tree arrives in all
//! that stat, the attributes and the blocks on disk tell. And a table: what other tools lose of it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::copy::copy_exactly;
use crate::support::fuse::{Faults, FuseMount};
use crate::support::hard_tree::{By, HardTree};
use crate::support::launch::{Job, Mpi, NOBODY, mpi};
use crate::support::losses::{self, Counts};
use crate::support::manifest::{self, Expect};
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{self, need};
use crate::support::tree::{chmod, temp, write};

/// Copies the hard tree within one file system, mounted at `place`.
fn arrives_at(place: &Path, by: By) {
    let tree = need!(HardTree::new(&place.join("src"), by));
    let (home, kit) = (place.join("home"), temp());
    fs::create_dir(&home).unwrap();
    for ranks in [1, 4] {
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K"]);
        let job = if by == By::Root {
            job
        } else {
            chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
            job.by_nobody(kit.path())
        };
        let dst = home.join(format!("np{ranks}"));
        tree.rewind();
        let outcome = job.run([&tree.root, &dst]);
        outcome.assert_code(0);
        let what = format!("{place:?}, by {by:?}, {}", outcome.told());
        // Before anything else: whoever reads the copy changes its times.
        let found = oracle::differences_since(&tree.before, &tree.root, &dst, Aspects::EVERYTHING);
        oracle::assert_none(&found, &what);
        let expect = Expect { root: &dst, ranks, digests: true, strangers: false };
        let told = manifest::checked(&dst.join(".pcopy/manifest.jsonl"), &expect);
        assert_eq!(told.entries.len(), tree.before.len(), "entries of the manifest, {what}");
        assert_eq!((&told.trailer["errors"], &told.trailer["unkept"]), (&0.into(), &0.into()), "{what}");
        let harmed = oracle::compare(&tree.before, &oracle::walk(&tree.root), Aspects::ALL);
        oracle::assert_none(&harmed, &format!("the source after it, {what}"));
    }
}

fn arrives_on(kind: FileSystem, by: By) {
    // From half a GiB on ext4 has blocks of 4 KiB, and room for attributes in them.
    let mount = need!(Mount::new(kind, 600));
    arrives_at(mount.path(), by);
}

fn arrives_over_fuse(by: By) {
    let fuse = need!(FuseMount::new(Faults { attributes_and_holes: true, ..Faults::default() }));
    arrives_at(fuse.path(), by);
}

#[test]
fn nothing_is_lost_on_ext4_by_root() {
    arrives_on(FileSystem::Ext4, By::Root);
}

#[test]
fn nothing_is_lost_on_ext4_by_an_ordinary_user() {
    arrives_on(FileSystem::Ext4, By::Nobody);
}

#[test]
fn nothing_is_lost_on_xfs_by_root() {
    arrives_on(FileSystem::Xfs, By::Root);
}

#[test]
fn nothing_is_lost_on_xfs_by_an_ordinary_user() {
    arrives_on(FileSystem::Xfs, By::Nobody);
}

#[test]
fn nothing_is_lost_on_btrfs_by_root() {
    arrives_on(FileSystem::Btrfs, By::Root);
}

#[test]
fn nothing_is_lost_on_btrfs_by_an_ordinary_user() {
    arrives_on(FileSystem::Btrfs, By::Nobody);
}

#[test]
fn nothing_is_lost_on_tmpfs_by_root() {
    arrives_on(FileSystem::Tmpfs, By::Root);
}

#[test]
fn nothing_is_lost_on_tmpfs_by_an_ordinary_user() {
    arrives_on(FileSystem::Tmpfs, By::Nobody);
}

#[test]
fn nothing_is_lost_over_fuse_by_root() {
    arrives_over_fuse(By::Root);
}

#[test]
fn nothing_is_lost_over_fuse_by_an_ordinary_user() {
    arrives_over_fuse(By::Nobody);
}

#[test]
fn each_of_the_4096_modes_arrives_on_files_and_directories() {
    need!(skip::root());
    let dir = temp();
    let src = dir.path().join("src");
    for mode in 0..0o10000 {
        let (file, below) = (src.join(format!("files/{mode:04o}")), src.join(format!("dirs/{mode:04o}")));
        fs::create_dir_all(&below).unwrap();
        write(&file, b"");
        chmod(&file, mode);
        chmod(&below, mode);
    }
    copy_exactly(&Job::ranks(4), &src, &dir.path().join("dst"));
}

/// The tools that the table compares; each is told to preserve all that it can.
const OTHERS: [(&str, &[&str]); 3] =
    [("cp -a", &["cp", "-a"]), ("rsync", &["rsync", "-aHAXS", "--numeric-ids"]), ("dcp -p", &["dcp", "-p"])];

/// The exit code of a tool, as the table shows it; none where it is not installed.
fn run_other(words: &[&str], src: &Path, dst: &Path) -> Option<String> {
    skip::program(words[0]).ok()?;
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]);
    if words[0] == "dcp" {
        // An MPI program too, not necessarily of the MPI that pcopy is tested with.
        let ldd = Command::new("sh").args(["-c", "ldd \"$(command -v dcp)\""]).output().unwrap();
        let is_of_mpich = String::from_utf8_lossy(&ldd.stdout).contains("libmpich");
        let launcher = if is_of_mpich { Mpi::Mpich } else { Mpi::OpenMpi }.launcher();
        skip::program(launcher).ok()?;
        command.arg(launcher).args(if is_of_mpich { None } else { Some("--oversubscribe") }).args(["-np", "4"]);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
    let mut from = OsString::from(src);
    if words[0] == "rsync" {
        from.push("/");
    }
    command.args(words).arg(from).arg(dst).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().unwrap();
    Some(status.code().map_or_else(|| format!("{status}"), |code| code.to_string()))
}

/// One table; returns it with what pcopy lost and its exit code.
fn table(kind: FileSystem, place: &Path, tree: &HardTree) -> (String, Counts, Option<i32>) {
    let mut text = format!("{kind:?}: what is lost of {} entries, by root\n", tree.before.len());
    let at_stake = losses::at_stake(tree);
    writeln!(text, "{}", losses::line("", |column| column.to_owned(), "exit code")).unwrap();
    let number = |counts: &Counts, column| counts.get(column).copied().unwrap_or_default().to_string();
    writeln!(text, "{}", losses::line("of", |column| number(&at_stake, column), "")).unwrap();
    for (name, words) in OTHERS {
        let dst = place.join(words[0]);
        tree.rewind();
        let line = match run_other(words, &tree.root, &dst) {
            None => losses::line(name, |_| "-".to_owned(), "not here"),
            Some(code) => {
                let lost = losses::losses(tree, &dst);
                losses::line(name, |column| number(&lost, column), &code)
            }
        };
        writeln!(text, "{line}").unwrap();
    }
    let dst = place.join("pcopy");
    tree.rewind();
    let outcome = Job::ranks(4).options(["-k", "64K", "-b", "16K"]).run([&tree.root, &dst]);
    let lost = losses::losses(tree, &dst);
    let code = outcome.code();
    let shown = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
    writeln!(text, "{}", losses::line("pcopy", |column| number(&lost, column), &shown)).unwrap();
    (text, lost, code)
}

#[test]
fn pcopy_loses_nothing_and_a_table_tells_what_other_tools_lose() {
    let (mut report, mut lost, mut codes) = (String::new(), Vec::new(), Vec::new());
    for kind in [FileSystem::Ext4, FileSystem::Tmpfs] {
        let mount = need!(Mount::new(kind, 600));
        let tree = need!(HardTree::new(&mount.path().join("src"), By::Root));
        let (text, of_pcopy, code) = table(kind, mount.path(), &tree);
        report.push_str(&text);
        lost.extend(of_pcopy.into_iter().filter(|(_, count)| *count > 0));
        codes.push(code);
    }
    let mpi = if mpi() == Mpi::OpenMpi { "openmpi" } else { "mpich" };
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    fs::write(target.join(format!("fidelity-{mpi}.txt")), &report).unwrap();
    // Past the harness, which captures what `eprintln` prints.
    let lines: String = report.lines().map(|line| format!("REPORT: {line}\n")).collect();
    std::io::stderr().write_all(lines.as_bytes()).unwrap();
    assert_eq!((lost, codes), (Vec::new(), vec![Some(0); 2]), "{report}");
}
