//! Names that the destination takes for one (issue 15, item 1), on real file systems that ignore case.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::support::journal::{b3sum, kill_at};
use crate::support::launch::{Job, Outcome};
use crate::support::manifest::{self, Expect, Manifest};
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Kind};
use crate::support::skip::{Missing, need};
use crate::support::told;
use crate::support::tree::{noise, temp, write};

const IGNORING_CASE: [FileSystem; 2] = [FileSystem::Exfat, FileSystem::NtfsIgnoringCase];

/// A copy onto a file system without modes: its state stands elsewhere.
struct Copy {
    _dir: tempfile::TempDir,
    kind: FileSystem,
    mount: Mount,
    src: PathBuf,
    dst: PathBuf,
    state: PathBuf,
}

impl Copy {
    fn new(kind: FileSystem) -> Result<Copy, Missing> {
        let dir = temp();
        let mount = Mount::new(kind, 64)?;
        let (src, dst, state) = (dir.path().join("src"), mount.path().join("dst"), dir.path().join("state"));
        Ok(Copy { kind, src, dst, state, mount, _dir: dir })
    }

    fn job(&self, ranks: usize, options: &[&str]) -> Job {
        let state = format!("--state-dir={}", self.state.display());
        let small = ["-k", "64K", "-b", "16K", "--checkpoint-interval", "10ms"];
        Job::ranks(ranks).options(small).options([state]).options(options)
    }

    fn run(&self, ranks: usize, options: &[&str]) -> Outcome {
        self.job(ranks, options).run([&self.src, &self.dst])
    }

    fn manifest(&self, ranks: usize) -> Manifest {
        let expect = Expect { root: &self.dst, ranks, digests: true, strangers: true };
        // a walk finds names in lower case on NTFS: this test compares the entries itself
        manifest::check_but(&self.state.join("manifest.jsonl"), &expect, |_| true).unwrap()
    }

    /// Every content in the copy, by the path as the file system lists it.
    fn contents(&self) -> BTreeMap<Vec<u8>, String> {
        oracle::walk(&self.dst)
            .into_iter()
            .filter(|(_, node)| node.kind == Kind::File)
            .map(|(path, _)| (path.clone(), digest(&self.dst, &path)))
            .collect()
    }

    /// Fails unless the run has told of every entry that is not there, and each name has its own entry's content.
    #[track_caller]
    fn assert_told(&self, outcome: &Outcome, ranks: usize) {
        outcome.assert_code(1).assert_says("takes this name for that of another entry");
        let manifest = self.manifest(ranks);
        let (mut done, mut failed) = (0, 0);
        for (path, entry) in &manifest.entries {
            let shown = oracle::show(path);
            if let Some(error) = entry.get("error") {
                assert_eq!(error["op"], "collision", "{shown}: {entry}\n{}", outcome.told());
                failed += 1;
                continue;
            }
            done += 1;
            if entry["type"] == "file" {
                assert_eq!(digest(&self.dst, path), digest(&self.src, path), "{shown} {}", outcome.told());
            }
        }
        // two directories that are one would have more in them; where all is listed in lower case, a name that was copied
        // in an earlier run may be refused now
        let there = oracle::walk(&self.dst).len();
        let as_done = if self.kind == FileSystem::Exfat { there == done } else { there >= done };
        assert!(as_done, "{there} entries of the copy, {done} done {}", outcome.told());
        self.assert_unmixed(outcome);
        assert_eq!(told::json(outcome)["errors"], failed, "{}", outcome.told());
        assert!(failed > 0);
    }
}

impl Copy {
    /// Fails where a directory of the copy holds entries of two directories of the source.
    #[track_caller]
    fn assert_unmixed(&self, outcome: &Outcome) {
        let source = oracle::walk(&self.src);
        let names_below = |dir: &[u8], tree: &oracle::Tree| -> BTreeSet<Vec<u8>> {
            let prefix = [dir, b"/"].concat();
            tree.keys().filter_map(|path| Some(path.strip_prefix(prefix.as_slice())?.to_ascii_lowercase())).collect()
        };
        let dirs = |tree: &oracle::Tree| -> Vec<Vec<u8>> {
            tree.iter()
                .filter(|(path, node)| node.kind == Kind::Dir && !path.is_empty())
                .map(|(path, _)| path.clone())
                .collect()
        };
        let copy = oracle::walk(&self.dst);
        for dir in dirs(&copy) {
            let there = names_below(&dir, &copy);
            let mut same = dirs(&source).into_iter().filter(|other| other.eq_ignore_ascii_case(&dir));
            assert!(
                same.any(|other| there.is_subset(&names_below(&other, &source))),
                "{} holds {there:?} {}",
                oracle::show(&dir),
                outcome.told()
            );
        }
    }
}

fn digest(root: &Path, path: &[u8]) -> String {
    b3sum(&fs::read(root.join(std::ffi::OsStr::from_bytes(path))).unwrap())
}

/// Pairs of names that meet: small files, files in ranges, directories, and names that meet none.
fn build(src: &Path) {
    let file = |path: &str, len: usize| write(&src.join(path), &noise(len, len as u64));
    for number in 0..12 {
        file(&format!("Readme-{number}"), 100 + number);
        file(&format!("README-{number}"), 200 + number);
    }
    file("Large", 200_000);
    file("LARGE", 210_000);
    file("Umlaut-\u{e4}", 31);
    file("umlaut-\u{c4}", 32);
    for number in 0..4 {
        for (dir, names) in [("Dir", ["x", "only-in-Dir"]), ("dir", ["x", "only-in-dir"])] {
            for (at, name) in names.into_iter().enumerate() {
                file(
                    &format!("{dir}-{number}/{name}"),
                    1000 + 100 * number + 10 * at + dir.len() + usize::from(dir == "dir"),
                );
            }
        }
    }
    file("alone/Mixed", 50);
    file("alone/2026-11-28 (b)", 51);
}

#[test]
fn the_second_of_two_names_that_meet_is_an_error_in_every_run_and_the_first_is_not_touched() {
    for kind in IGNORING_CASE {
        let copy = need!(Copy::new(kind));
        build(&copy.src);
        let outcome = copy.run(2, &["--json"]);
        copy.assert_told(&outcome, 2);
        let first = copy.contents();
        for (ranks, option) in [(1, "-v"), (4, "-v"), (2, "--update"), (1, "--no-clobber"), (2, "--restart")] {
            let outcome = copy.run(ranks, &["--json", option]);
            copy.assert_told(&outcome, ranks);
            assert_eq!(copy.contents(), first, "{kind:?} {option} {}", outcome.told());
        }
    }
}

#[test]
fn after_a_kill_too() {
    for kind in IGNORING_CASE {
        for items in [4, 20] {
            let copy = need!(Copy::new(kind));
            build(&copy.src);
            kill_at(&copy.job(2, &["--threads", "1"]), [&copy.src, &copy.dst], &copy.state, items);
            let there = copy.contents();
            let outcome = copy.run(4, &["--json"]);
            copy.assert_told(&outcome, 4);
            // a name in the copy holds now what it did, or what it was cut off in
            let now = copy.contents();
            let whole = |path: &[u8], digest: &String| {
                let mut files = oracle::walk(&copy.src).into_keys().filter(|other| other.eq_ignore_ascii_case(path));
                files.any(|other| {
                    copy.src.join(std::ffi::OsStr::from_bytes(&other)).is_file()
                        && self::digest(&copy.src, &other) == *digest
                })
            };
            // what was whole before is so now
            let lost = there.iter().filter(|(path, digest)| whole(path, digest) && now.get(*path) != Some(digest));
            let lost: Vec<_> = lost.map(|(path, _)| oracle::show(path)).collect();
            assert!(lost.is_empty(), "{kind:?}: {lost:?} {}", outcome.told());
        }
    }
}

#[test]
fn names_of_two_sources_meet_too_and_a_name_of_an_earlier_copy_that_no_entry_has_is_replaced() {
    for kind in IGNORING_CASE {
        let copy = need!(Copy::new(kind));
        let (one, other) = (copy.src.join("one/Readme"), copy.src.join("other/README"));
        write(&one, b"one");
        write(&other, b"the other");
        fs::create_dir(&copy.dst).unwrap();
        let outcome = copy.job(1, &["--json"]).run([&one, &other, &copy.dst]);
        outcome.assert_code(1).assert_says("takes this name for that of another entry");
        let contents: Vec<_> = copy.contents().into_values().collect();
        assert!(contents == [b3sum(b"one")] || contents == [b3sum(b"the other")], "{}", outcome.told());

        let lone = Copy { dst: copy.mount.path().join("lone"), state: copy.src.join("state"), ..copy };
        let (from, to) = (lone.src.join("one"), lone.dst.join("x"));
        fs::create_dir(&lone.dst).unwrap();
        lone.job(1, &[]).run([&from, &to]).assert_code(0);
        fs::rename(from.join("Readme"), from.join("README")).unwrap();
        write(&from.join("README"), b"newer");
        let outcome = lone.job(2, &[]).run([&from, &to]);
        outcome.assert_code(0);
        assert_eq!(fs::read(to.join("README")).unwrap(), b"newer", "{}", outcome.told());
    }
}
