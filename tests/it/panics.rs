//! A panic on one rank ends the whole job, with one line that tells where it was (issue 2, item 8).
//! The product has no hook for it: a preloaded library makes an assertion of the program fail. And another end
//! without a manifest: what was copied cannot be made durable.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::support::launch::{Job, Outcome};
use crate::support::preload;
use crate::support::tree::{self, temp};

/// The processes that have `operand` on their command line.
fn processes_with(operand: &Path) -> Vec<String> {
    let operand = operand.to_str().unwrap();
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(operand)).collect()
}

/// A copy in which the C library lies about the source. The run's end is the end of all its processes, and no
/// manifest is there.
fn copy_with_lie(ranks: usize, lie: &str) -> Outcome {
    let (dir, home) = (temp(), temp());
    let library = preload::compile("liar.c", home.path());
    let src = tree::small_files(&dir.path().join("src"), 20, 20);
    let job = Job::ranks(ranks).limit(30).options(["--threads", "1"]).rank_env("LD_PRELOAD", library);
    let job = job.rank_env("PCOPY_LIAR_BELOW", dir.path().canonicalize().unwrap()).rank_env("PCOPY_LIAR_TELLS", lie);
    let dst = dir.path().join("dst");
    let outcome = job.run([&src, &dst]);
    assert_ne!(outcome.code(), Some(0), "{}", outcome.told());
    assert!(!dst.join(".pcopy/manifest.jsonl").exists(), "a manifest: {}", outcome.told());
    // The launcher has ended; ranks that it killed may take a moment.
    let all_gone = (0..500).any(|_| {
        thread::sleep(Duration::from_millis(10));
        processes_with(&dst).is_empty()
    });
    assert!(all_gone, "{:?} after {}", processes_with(&dst), outcome.told());
    outcome
}

/// Splits the one line about the panic: the rank, the thread, the source place.
#[track_caller]
fn panic_told(outcome: &Outcome) -> (usize, String, String) {
    let lines = outcome.lines_of_pcopy();
    let lines: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("pcopy: internal error on rank ")).collect();
    let [line] = lines[..] else { panic!("not one line about the panic: {}", outcome.told()) };
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let (rank, rest) = line.split_once(&format!(" ({host}), thread ")).expect(line);
    let (thread, rest) = rest.split_once(", ").expect(line);
    // file:line:column: text
    let (file, rest) = rest.split_once(".rs:").expect(line);
    let numbers: Vec<_> = rest.splitn(3, ':').collect();
    assert!(numbers[..2].iter().all(|number| number.parse::<u32>().is_ok()), "{line}");
    assert!(numbers[2].trim().len() > 5, "no words: {line}");
    (rank.parse().expect(line), thread.to_owned(), format!("{file}.rs"))
}

#[test]
fn a_panic_of_a_scan_thread_ends_the_job_and_tells_where() {
    for ranks in [2, 4] {
        let outcome = copy_with_lie(ranks, "name");
        let (rank, thread, file) = panic_told(&outcome);
        assert_eq!((rank, file.as_str()), (0, "src/types/path/dir.rs"), "{}", outcome.told());
        assert!(thread.starts_with("scan"), "{}", outcome.told());
    }
}

#[test]
fn a_panic_of_an_io_thread_of_another_rank_ends_the_job_and_tells_where() {
    for ranks in [2, 4] {
        let outcome = copy_with_lie(ranks, "length");
        let (rank, thread, file) = panic_told(&outcome);
        assert_eq!((rank, file.as_str()), (1, "src/sys/xattr.rs"), "{}", outcome.told());
        assert_eq!(thread, "I/O 0", "{}", outcome.told());
    }
}

#[test]
fn a_copy_that_cannot_be_made_durable_has_no_manifest_and_is_not_complete() {
    for ranks in [1, 2] {
        let outcome = copy_with_lie(ranks, "sync");
        outcome.assert_code(70).assert_says("making the copy durable failed").assert_says("os error 5");
        outcome.assert_says("the copy is NOT complete");
    }
}
