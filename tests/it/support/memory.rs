//! How much memory the ranks of a run hold.

use std::ffi::OsStr;
use std::fs;
use std::thread;
use std::time::Duration;

use super::launch::{Job, Outcome};

/// Runs to the end; returns also the most memory that a rank has held, in KiB.
pub fn run_watched<S: AsRef<OsStr>>(job: &Job, operands: impl IntoIterator<Item = S>) -> (Outcome, u64) {
    let mut running = job.start(operands);
    let mut most = 0;
    while running.goes_on() {
        for pid in running.rank_pids() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|words| words.split_whitespace().next()?.parse().ok());
            most = most.max(kib.unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(50));
    }
    (running.wait(), most)
}
