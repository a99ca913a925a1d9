//! Directories that ranks list, while they have nothing else to do (issue 5).

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::copy::{assert_exact, copy};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::{Job, Outcome};
use crate::support::oracle;
use crate::support::skip::{Missing, need};
use crate::support::told;
use crate::support::tree::{self, temp, write};

/// Many directories with little in them; one with more names than a rank keeps; deep ones; links between them.
fn source(at: &Path) -> PathBuf {
    for dir in 0..150 {
        for file in 0..3 {
            write(&at.join(format!("b{dir:03}/f{file}")), format!("{dir} {file}").as_bytes());
        }
    }
    for file in 0..1_000 {
        write(&at.join(format!("many/{file:0120}")), b"");
    }
    for dir in 0..300 {
        fs::create_dir_all(at.join(format!("wide/{dir}/x"))).unwrap();
    }
    for dir in 0..40 {
        let deep = at.join(format!("deep/{dir}/{}", "x/".repeat(20)));
        write(&deep.join("file"), b"deep");
        fs::hard_link(at.join("b000/f0"), deep.join("link")).unwrap();
        std::os::unix::fs::symlink("file", deep.join("symlink")).unwrap();
        fs::create_dir(deep.join("empty")).unwrap();
    }
    tree::age(at);
    at.to_path_buf()
}

/// The source, and a mount that shows it and is slow to list it.
fn slow_source() -> Result<(FuseMount, PathBuf, PathBuf), Missing> {
    let fuse = FuseMount::new(Faults { list_delay_ms: 3, attributes_and_holes: true, ..Faults::default() })?;
    let (src, slow) = (source(&fuse.backing().join("src")), fuse.path().join("src"));
    Ok((fuse, src, slow))
}

fn lent(outcome: &Outcome) -> u64 {
    told::json(outcome)["dirs_lent"].as_u64().unwrap()
}

#[test]
fn what_ranks_list_is_copied_like_all_else() {
    let (dir, (_fuse, src, slow)) = (temp(), need!(slow_source()));
    for ranks in [1, 2, 5] {
        let dst = dir.path().join(format!("by-{ranks}"));
        let copied = copy(&Job::ranks(ranks).options(["--json"]), &[&slow], &dst);
        copied.outcome.assert_code(0);
        assert_exact(&copied, &src);
        assert!(lent(&copied.outcome) > 0, "{ranks} ranks: none was lent: {}", copied.outcome.told());
        // what was recorded has to be looked up on rank 0
        let again = copy(&Job::ranks(ranks).options(["--json"]), &[&slow], &dst);
        again.outcome.assert_code(0);
        assert_eq!(lent(&again.outcome), 0);
    }
}

#[test]
fn ranks_leave_out_what_is_to_be_left_out() {
    let (dir, (_fuse, src, slow)) = (temp(), need!(slow_source()));
    let options = ["--json", "--exclude=f1", "--exclude=/deep/3*/", "--include=/many/*5", "--exclude=/many/*"];
    let by = |ranks, options: &[&str]| {
        let dst = dir.path().join(format!("by-{ranks}-{}", options.len()));
        let copied = copy(&Job::ranks(ranks).options(options), &[&slow], &dst);
        copied.outcome.assert_code(0);
        (copied, dst)
    };
    let (copied, dst) = by(3, &options);
    assert!(lent(&copied.outcome) > 0, "{}", copied.outcome.told());
    let told = told::json(&copied.outcome);
    let all = oracle::walk(&src);
    let kept = |path: &str| {
        let in_deep = path.strip_prefix("deep/").is_some_and(|rest| rest.starts_with('3'));
        let of_many = path.strip_prefix("many/").is_none_or(|name| name.ends_with('5'));
        !path.ends_with("/f1") && !in_deep && of_many
    };
    let due: Vec<_> = all.keys().filter(|path| kept(std::str::from_utf8(path).unwrap())).cloned().collect();
    assert_eq!(oracle::walk(&dst).into_keys().collect::<Vec<_>>(), due);
    assert_eq!(told["excluded"].as_u64(), Some(150 + 11 + 900), "{told}");
}

#[test]
fn a_directory_that_a_rank_cannot_list_fails_alone() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let dst = dir.path().join("dst");
    // files in the way of directories
    for dir in [5, 75, 149] {
        write(&dst.join(format!("b{dir:03}")), b"in the way");
    }
    let job = Job::ranks(4).options(["--json"]);
    let copied = copy(&job, &[&src.join("")], &dst);
    copied.outcome.assert_code(1);
    let manifest = copied.manifest();
    let failed: Vec<_> = manifest.failed().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect();
    assert!(failed.iter().any(|path| path == "b075") && failed.len() == 3, "{failed:?}");
    for dir in [5, 75, 149] {
        fs::remove_file(dst.join(format!("b{dir:03}"))).unwrap();
    }
    let copied = copy(&job, &[&src.join("")], &dst);
    copied.outcome.assert_code(0);
    assert_exact(&copied, &src);
}

#[test]
fn a_dry_run_tells_what_ranks_list_too() {
    let (dir, (_fuse, src, slow)) = (temp(), need!(slow_source()));
    let outcome = Job::ranks(3).options(["--json", "--dry-run"]).run([&slow, &dir.path().join("dst")]);
    outcome.assert_code(0);
    assert!(lent(&outcome) > 0, "{}", outcome.told());
    assert_eq!(told::json(&outcome)["entries"].as_u64(), Some(oracle::walk(&src).len() as u64));
}

#[test]
fn filters_too_long_to_be_sent_to_ranks_leave_out_the_same() {
    let (dir, (_fuse, src, slow)) = (temp(), need!(slow_source()));
    let patterns = dir.path().join("patterns");
    let lines: String = (0..12_000).map(|n| format!("nothing-has-this-name-{n:08}-{}\n", "x".repeat(80))).collect();
    write(&patterns, (lines + "f1\n").as_bytes());
    let dst = dir.path().join("dst");
    let options = ["--json", "--exclude-from", patterns.to_str().unwrap()];
    let copied = copy(&Job::ranks(2).options(options), &[&slow], &dst);
    copied.outcome.assert_code(0);
    assert_eq!(lent(&copied.outcome), 0, "{}", copied.outcome.told());
    let due: Vec<_> = oracle::walk(&src).into_keys().filter(|path| !path.ends_with(b"/f1")).collect();
    assert_eq!(oracle::walk(&dst).into_keys().collect::<Vec<_>>(), due);
}
