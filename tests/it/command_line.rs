//! The command line: help, usage errors, sizes, modes, and the output for machines.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::copy::{copy, copy_exactly};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::launch::{Job, mpi, program};
use crate::support::oracle;
use crate::support::parallel;
use crate::support::skip::{self, need};
use crate::support::tree::{self, KIB, noise_file, temp};

const NONE: [&str; 0] = [];

fn source(at: &Path) -> std::path::PathBuf {
    tree::odd_tree(&at.join("src"), 64 * KIB, 16 * KIB)
}

#[test]
fn help_and_version_are_printed_once_whatever_the_number_of_ranks() {
    for job in [Job::alone(), Job::ranks(4)] {
        let job = job.limit(30);
        for option in ["--help", "-h"] {
            let outcome = job.clone().options([option]).run(NONE);
            outcome.assert_code(0);
            assert_eq!(outcome.stdout.matches("Usage:").count(), 1, "{}", outcome.told());
            assert_eq!(outcome.lines_of_pcopy().len(), 0, "{}", outcome.told());
        }
        let outcome = job.options(["--version"]).run(NONE);
        outcome.assert_code(0);
        assert_eq!(outcome.stdout.trim(), concat!("pcopy ", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn help_names_every_option() {
    let outcome = Job::alone().limit(30).options(["--help"]).run(NONE);
    let options = [
        "--chunksize",
        "--bufsize",
        "--threads",
        "--direct",
        "--no-digest",
        "--manifest",
        "--progress",
        "--json",
        "--preserve",
        "--no-preserve",
        "--xattrs",
        "--sparse",
        "--strict",
        "--dereference",
        "--no-dereference",
        "--no-clobber",
        "--update",
        "--exclude",
        "--include",
        "--exclude-from",
        "--one-file-system",
        "--files-from",
        "--input",
        "--from0",
        "--chown",
        "--usermap",
        "--groupmap",
        "--uid",
        "--gid",
        "--open-noatime",
        "--dry-run",
        "--synchronous",
        "--generate",
        "--version",
        "-k",
        "-b",
        "-s",
        "-q",
        "-v",
    ];
    let missing: Vec<_> = options.iter().filter(|o| !outcome.stdout.contains(*o)).collect();
    assert!(missing.is_empty(), "{missing:?} not in:\n{}", outcome.stdout);
}

#[test]
fn usage_errors_are_printed_once_and_nothing_is_written() {
    let dir = temp();
    let (src, dst) = (source(dir.path()), dir.path().join("dst"));
    let (src, dst) = (src.to_str().unwrap(), dst.to_str().unwrap());
    let cases: [&[&str]; 9] = [
        &[],
        &[src],
        &["--no-such-option", src, dst],
        &["-k", "lots", src, dst],
        &["-k", "-1", src, dst],
        &["-b", "0", src, dst],
        &["-k", "99999999999999T", src, dst],
        &["--threads", "0", src, dst],
        &["--direct=perhaps", src, dst],
    ];
    for case in cases {
        let outcome = Job::alone().limit(30).run(case);
        outcome.assert_code(2);
        assert_eq!(outcome.stdout, "", "{}", outcome.told());
        assert!(!outcome.stderr.is_empty(), "{}", outcome.told());
    }
    let told = |job: Job| {
        let outcome = job.limit(30).run(["--no-such-option", src, dst]);
        outcome.assert_code(2);
        outcome.stderr.matches("--no-such-option").count()
    };
    let once = told(Job::alone());
    assert!(once > 0);
    assert_eq!(told(Job::ranks(4)), once, "times that the wrong option is named");
    assert!(!Path::new(dst).exists());
}

#[test]
fn a_users_dcp_command_lines_are_accepted() {
    need!(skip::root());
    let dir = temp();
    let src = source(dir.path());
    let list = dir.path().join("list");
    fs::write(&list, "deep\nmode-640\n").unwrap();
    let list = list.to_str().unwrap();
    let cases: [&[&str]; 10] = [
        &["-b", "4MB", "-k", "4MB", "-X", "non-lustre", "-P", "-p", "-s", "--progress", "10", "-v"],
        &[
            "--bufsize",
            "1M",
            "--chunksize",
            "1M",
            "--xattrs",
            "all",
            "--no-dereference",
            "--preserve",
            "--direct",
            "-q",
        ],
        &["-s", "--direct", "--synchronous", "--open-noatime", "-S", "--sparse", "-p", "--preserve"],
        &["-U", "root", "-G", "root", "--verbose"],
        &["--uid", "0", "--gid", "0", "--quiet"],
        &["-i", list],
        &["--input", list, "-p"],
        &["-X", "libattr"],
        &["--xattrs=none"],
        // cp's and rsync's words for what is the default here.
        &["-a", "--archive", "-r", "-R", "--recursive"],
    ];
    parallel::for_each(&cases, |number, options| {
        let dst = dir.path().join(format!("{number}"));
        let job = Job::ranks(1 + number % 2).limit(30).options(*options);
        if options.contains(&list) {
            copy(&job, &[&src], &dst).outcome.assert_code(0);
            assert!(dst.join("mode-640").exists() && !dst.join("mode-600").exists());
        } else {
            copy_exactly(&job, &src, &dst);
        }
    });
    fs::remove_file(src.join("dangling")).unwrap();
    for option in ["-L", "--dereference"] {
        let copied = copy(&Job::ranks(2).options([option, "-p"]), &[&src], &dir.path().join(option));
        copied.outcome.assert_code(0);
        assert!(copied.root.join("link-to-dir").symlink_metadata().unwrap().is_dir());
    }
}

#[test]
fn options_with_a_value_of_their_own_do_not_take_the_next_word_for_it() {
    let dir = temp();
    let src = source(dir.path());
    for option in ["--direct", "--sparse", "--preserve", "-p", "-S"] {
        copy_exactly(&Job::alone().options([option]), &src, &dir.path().join(option));
    }
    let (src, dst) = (src.to_str().unwrap(), dir.path().join("dst"));
    for words in [["--direct", "always"], ["--sparse", "never"], ["--preserve", "mode"]] {
        // Now a source, and there is none of that name.
        let outcome = Job::alone().run([words[0], words[1], src, dst.to_str().unwrap()]);
        outcome.assert_refused();
        assert!(!dst.exists());
    }
}

#[test]
fn words_that_no_option_knows_are_named_in_one_line_and_nothing_is_written() {
    let dir = temp();
    let src = source(dir.path());
    let before = oracle::walk(dir.path());
    let cases: [(&[&str], &str); 16] = [
        (&["--preserve=nonsense"], "nonsense"),
        (&["--preserve=mode,colour,links"], "colour"),
        (&["--preserve=mode", "--no-preserve=times"], "times"),
        (&["--no-preserve=Mode"], "Mode"),
        (&["-X", "some"], "some"),
        (&["--xattrs=lustre"], "lustre"),
        (&["--sparse=perhaps"], "perhaps"),
        (&["--direct=sometimes"], "sometimes"),
        (&["-b", "4Q"], "4Q"),
        (&["-k", "1.5M"], "1.5M"),
        (&["--bufsize="], "bufsize"),
        (&["-k", "M"], "M"),
        (&["--progress", "often"], "often"),
        (&["--no-clobber", "--update"], "--update"),
        (&["--no-clobber", "-u"], "--no-clobber"),
        (&["--no-preserve"], "--no-preserve"),
    ];
    parallel::for_each(&cases, |number, (options, named)| {
        let job = Job::ranks(1 + number % 2).limit(30).options(*options);
        let outcome = job.run([&src, &dir.path().join("dst")]);
        let line = outcome.assert_refused();
        assert!(line.contains(named), "{named:?} is not in {line:?}");
        assert_eq!(before, oracle::walk(dir.path()), "{}", outcome.told());
    });
}

#[test]
fn the_man_page_and_the_schema_come_from_the_program() {
    let schema = Job::alone().limit(30).options(["--generate", "schema"]).run(NONE);
    schema.assert_code(0);
    let printed: Value = serde_json::from_str(&schema.stdout).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manifest/schema.json");
    let kept: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(printed, kept);
    let man = Job::alone().limit(30).options(["--generate", "man"]).run(NONE);
    man.assert_code(0);
    assert!(man.stdout.contains(".TH pcopy 1"), "{}", man.stdout);
    assert!(man.stdout.contains("chunksize"), "{}", man.stdout);
}

#[test]
fn sizes_are_understood_in_every_spelling() {
    let dir = temp();
    let src = source(dir.path());
    let spellings = ["65536", "64K", "64KB", "64KiB", "64k"];
    for (number, size) in spellings.iter().enumerate() {
        let job = Job::alone().options(["-k", size, "-b", "16K"]);
        let copied = copy_exactly(&job, &src, &dir.path().join(format!("{number}")));
        assert!(!copied.outcome.stderr.contains("power of two"), "{}", copied.outcome.told());
    }
    let job = Job::alone().options(["--chunksize", "1M", "--bufsize", "64K"]);
    copy_exactly(&job, &src, &dir.path().join("long"));
    let job = Job::alone().options(["--range-size", "1MiB", "--block-size", "1M"]);
    copy_exactly(&job, &src, &dir.path().join("alias"));
}

#[test]
fn a_range_size_is_rounded_up_to_a_power_of_two_and_that_is_said_once() {
    let dir = temp();
    let src = source(dir.path());
    let job = Job::ranks(4).options(["-k", "100K", "-b", "16K"]);
    let copied = copy_exactly(&job, &src, &dir.path().join("dst"));
    let lines = copied.outcome.lines_of_pcopy();
    let said = lines.iter().filter(|line| line.contains("128") && line.contains("power of two"));
    assert_eq!(said.count(), 1, "{}", copied.outcome.told());
}

#[test]
fn without_digests_the_manifest_has_none() {
    let dir = temp();
    let src = source(dir.path());
    let job = Job::ranks(2).options(["--no-digest", "-k", "64K", "-b", "16K"]);
    copy_exactly(&job, &src, &dir.path().join("dst"));
}

#[test]
fn with_state_and_manifest_elsewhere_nothing_of_pcopy_is_in_the_copy() {
    let dir = temp();
    let src = source(dir.path());
    let (file, state) = (dir.path().join("elsewhere.jsonl"), dir.path().join("state"));
    let job = Job::ranks(2).options(["--manifest".as_ref(), file.as_os_str()]);
    let copied = copy_exactly(&job, &src, &dir.path().join("one"));
    assert_eq!(copied.manifest().header["destination"], copied.root.to_str().unwrap());
    assert!(!copied.root.join(".pcopy/manifest.jsonl").exists());
    let job = job.options(["--state-dir".as_ref(), state.as_os_str()]);
    let copied = copy_exactly(&job, &src, &dir.path().join("two"));
    assert!(state.join("job.json").exists() && !copied.root.join(".pcopy").exists());
}

#[test]
fn the_output_for_machines_parses_and_agrees_with_the_manifest() {
    let dir = temp();
    let src = source(dir.path());
    for ranks in [1, 4] {
        let dst = dir.path().join(format!("np{ranks}"));
        let copied = copy_exactly(&Job::ranks(ranks).options(["--json"]), &src, &dst);
        let told: Value = serde_json::from_str(&copied.outcome.stdout).unwrap();
        let trailer = &copied.manifest().trailer;
        for key in ["entries", "files", "dirs", "symlinks", "others", "bytes", "errors"] {
            assert_eq!(told[key], trailer[key], "{key}");
        }
        assert_eq!(told["exit_code"], 0);
        assert!(told["seconds"].as_f64().is_some_and(|s| s >= 0.0), "{told}");
        let manifest = dst.join(".pcopy/manifest.jsonl");
        let manifest = manifest.canonicalize().unwrap();
        assert_eq!(told["manifest"].as_str(), manifest.to_str());
    }
}

#[test]
fn the_output_for_machines_of_one_file_names_no_manifest() {
    let dir = temp();
    noise_file(&dir.path().join("f"), 100_000);
    let job = Job::ranks(2).options(["--json"]);
    let outcome = job.run([dir.path().join("f"), dir.path().join("g")]);
    outcome.assert_code(0);
    let told: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&told["files"], &told["bytes"]), (&Value::from(1), &Value::from(100_000)));
    assert_eq!(told["manifest"], Value::Null);
}

#[test]
fn a_summary_that_cannot_be_written_is_told_and_a_reader_who_has_gone_is_no_error() {
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let script = |name: &str, words: &str| {
        let at = dir.path().join(name);
        fs::write(&at, format!("#!/bin/bash\n{}\n", words.replace("PCOPY", &program().display().to_string()))).unwrap();
        tree::chmod(&at, 0o755);
        at
    };
    let full = script("full", "exec 'PCOPY' \"$@\" >/dev/full");
    let gone = script("gone", "exec 'PCOPY' \"$@\" > >(exec true)");
    for ranks in [1, 2] {
        for (number, options) in [&["--json"][..], &["--progress=0"], &["--dry-run"], &["-q"]].into_iter().enumerate() {
            let dst = |name| dir.path().join(format!("{name}-{ranks}-{number}"));
            let is_quiet = options == ["-q"];
            let job = Job::ranks(ranks).program(&full).options(options);
            let outcome = job.run([&src, &dst("full")]);
            outcome.assert_code(if is_quiet { 0 } else { 1 });
            if !is_quiet {
                let words = if number == 2 { "dry run, nothing was written" } else { "complete" };
                outcome.assert_says("the summary could not be written to stdout: No space left on device");
                outcome.assert_says(&format!("its result: {words}"));
            }
            assert_eq!(dst("full").join(".pcopy/manifest.jsonl").exists(), number != 2);
            Job::ranks(ranks).program(&gone).options(options).run([&src, &dst("gone")]).assert_code(0);
        }
    }
    for option in ["--help", "--version", "--generate=schema"] {
        Job::alone().program(&full).run([option]).assert_code(2).assert_says("No space left on device");
        Job::alone().program(&gone).run([option]).assert_code(0);
    }
}

#[test]
fn the_summary_is_on_stdout_and_quiet_leaves_it_out() {
    let dir = temp();
    let src = source(dir.path());
    let bytes: u64 = oracle::walk(&src).values().map(|n| n.size).sum();
    let loud = copy_exactly(&Job::ranks(2), &src, &dir.path().join("loud")).outcome;
    let digits: String = loud.stdout.chars().filter(char::is_ascii_digit).collect();
    assert!(digits.contains(&bytes.to_string()), "{bytes} bytes: {}", loud.told());
    let job = Job::ranks(2).options(["-q"]);
    let quiet = copy_exactly(&job, &src, &dir.path().join("quiet")).outcome;
    assert_eq!((quiet.stdout.as_str(), quiet.lines_of_pcopy().len()), ("", 0), "{}", quiet.told());
}

#[test]
fn progress_is_told_while_a_slow_copy_goes_on_and_not_when_switched_off() {
    let fuse = need!(FuseMount::new(Faults { delay_ms: 150, ..Faults::default() }));
    let dir = temp();
    for number in 0..25 {
        noise_file(&fuse.backing().join(format!("src/f{number:02}")), 2000);
    }
    tree::age(&fuse.backing().join("src"));
    let lines = |progress: &str| {
        let job = Job::ranks(1).options(["--threads", "1", "--progress", progress]);
        let dst = dir.path().join(progress);
        let copied = copy_exactly(&job, &fuse.path().join("src"), &dst);
        let lines = copied.outcome.stderr.lines().filter(|line| line.contains('/'));
        (lines.count(), copied.outcome.told())
    };
    let (off, told_off) = lines("0");
    assert_eq!(off, 0, "{told_off}");
    let (on, told_on) = lines("1");
    // Four seconds of reading.
    assert!(on >= 2, "{told_on}");
}

#[test]
fn the_launcher_of_the_other_mpi_is_refused_with_one_line_and_nothing_is_copied() {
    need!(skip::program(mpi().other().launcher()));
    let dir = temp();
    let src = source(dir.path());
    let before = oracle::walk(dir.path());
    let job = Job::ranks(2).under(mpi().other());
    let outcome = job.run([&src, &dir.path().join("dst")]);
    assert_ne!(outcome.code(), Some(0), "{}", outcome.told());
    let both = format!("{}\n{}", outcome.stdout, outcome.stderr);
    let lines = both.lines().filter(|line| line.contains("pcopy: "));
    assert_eq!(lines.count(), 1, "{}", outcome.told());
    assert_eq!(before, oracle::walk(dir.path()));
}

#[test]
fn a_destination_that_is_written_with_a_trailing_slash_is_the_same_destination() {
    let dir = temp();
    let src = source(dir.path());
    let dst = dir.path().join("dst/");
    fs::create_dir(&dst).unwrap();
    let copied = copy(&Job::ranks(2), &[&src], &dst);
    copied.outcome.assert_code(0);
    oracle::assert_same(&src, &dst.join("src"), oracle::Aspects::ALL);
}
