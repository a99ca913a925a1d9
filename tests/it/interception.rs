//! What a library preloaded into the ranks sees (issue 2, item 12): every byte of file data passes
//! through the C library's symbols, in direct and in buffered mode, under both launchers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::copy::{assert_exact, copy};
use crate::support::launch::Job;
use crate::support::oracle::{self, Kind};
use crate::support::preload;
use crate::support::skip::{self, need};
use crate::support::tree::{self, KIB, MIB, noise_file, temp};

/// The compiled shim and the directory that its counters go to.
pub struct Shim {
    home: TempDir,
    library: PathBuf,
}

impl Shim {
    pub fn build() -> Shim {
        let home = temp();
        let library = preload::compile("shim.c", home.path());
        fs::create_dir(home.path().join("counters")).unwrap();
        Shim { home, library }
    }

    pub fn variables(&self, src: &Path, dst: &Path) -> [(&'static str, PathBuf); 4] {
        // The shim sees paths as the kernel has them.
        let parent = dst.parent().unwrap().canonicalize().unwrap();
        [
            ("LD_PRELOAD", self.library.clone()),
            ("PCOPY_SHIM_SRC", src.canonicalize().unwrap()),
            ("PCOPY_SHIM_DST", parent.join(dst.file_name().unwrap())),
            ("PCOPY_SHIM_OUT", self.home.path().join("counters")),
        ]
    }

    /// The sums over all processes, and how many there were.
    pub fn counted(&self) -> (BTreeMap<String, u64>, usize) {
        preload::counted(&self.home.path().join("counters"))
    }
}

fn run_shimmed(shim: &Shim, program: &str, args: &[&str], src: &Path, dst: &Path) {
    let mut command = Command::new(program);
    let status = command.args(args).envs(shim.variables(src, dst)).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_shim_counts_reads_and_writes_of_dd() {
    need!(skip::program("dd"));
    let (shim, dir) = (Shim::build(), temp());
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    noise_file(&src.join("f"), 100_001);
    noise_file(&dst.join("other"), 7);
    let input = format!("if={}", src.join("f").display());
    let output = format!("of={}", dst.join("f").display());
    run_shimmed(&shim, "dd", &[&input, &output, "bs=4096", "status=none"], &src, &dst);
    let (sums, processes) = shim.counted();
    assert_eq!(processes, 1);
    assert_eq!(sums["source_bytes_read"], 100_001);
    assert_eq!(sums["destination_bytes_written"], 100_001);
    assert_eq!((sums["source_opens"], sums["destination_opens"]), (1, 1));
    assert_eq!((sums["kernel_copies"], sums["state_bytes_written"]), (0, 0));
}

#[test]
fn the_shim_notices_data_that_the_kernel_copies() {
    let (shim, dir) = (Shim::build(), temp());
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    noise_file(&src.join("f"), 100_001);
    fs::create_dir(&dst).unwrap();
    // One that uses copy_file_range through the C library, whatever version of cp is installed.
    let program = dir.path().join("by_kernel");
    let code = "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <unistd.h>\n\
        int main(int n, char **a) { (void)n; int i = open(a[1], O_RDONLY);\
        int o = open(a[2], O_WRONLY|O_CREAT, 0600);\
        return copy_file_range(i, 0, o, 0, 1<<20, 0) != 100001; }";
    tree::write(&dir.path().join("by_kernel.c"), code.as_bytes());
    let mut cc = Command::new("cc");
    cc.arg("-o").arg(&program).arg(dir.path().join("by_kernel.c"));
    assert!(cc.status().unwrap().success());
    let (from, to) = (src.join("f"), dst.join("f"));
    let args = [from.to_str().unwrap(), to.to_str().unwrap()];
    run_shimmed(&shim, program.to_str().unwrap(), &args, &src, &dst);
    let (sums, _) = shim.counted();
    assert_eq!((sums["kernel_copies"], sums["source_bytes_read"]), (1, 0));
}

/// Copies with the shim in every rank and holds its counters against the tree.
fn every_byte_is_seen(job: Job) {
    let (shim, dir) = (Shim::build(), temp());
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    tree::odd_tree(&src, 256 * KIB, 64 * KIB);
    noise_file(&src.join("large.bin"), 5 * MIB + 1234);
    tree::small_files(&src.join("small"), 3, 40);
    tree::age(&src);
    let ranks = job.rank_count();
    let variables = shim.variables(&src, &dst);
    let job = variables.iter().fold(job, |job, (name, value)| job.rank_env(name, value));
    let copied = copy(&job, &[&src], &dst);
    copied.outcome.assert_code(0);
    let (sums, processes) = shim.counted();
    assert_exact(&copied, &src);

    let walked = oracle::walk(&src);
    let files = walked.values().filter(|n| n.kind == Kind::File).count();
    let files = u64::try_from(files).unwrap();
    let bytes: u64 = walked.values().map(|n| n.size).sum();
    assert_eq!(processes, ranks, "ranks with the shim: {sums:?}");
    assert!(sums["source_opens"] >= files, "{files} files: {sums:?}");
    assert!(sums["destination_opens"] >= files, "{files} files: {sums:?}");
    assert_eq!(sums["source_bytes_read"], bytes, "{sums:?}");
    assert!(sums["destination_bytes_written"] >= bytes, "{bytes} bytes: {sums:?}");
    assert!(sums["state_bytes_written"] > 0, "the manifest: {sums:?}");
    assert_eq!(sums["kernel_copies"], 0, "{sums:?}");
}

#[test]
fn a_preloaded_library_sees_every_byte_in_direct_mode() {
    every_byte_is_seen(Job::ranks(2).options(["-k", "256K", "-b", "64K", "--direct=always"]));
}

#[test]
fn a_preloaded_library_sees_every_byte_in_buffered_mode() {
    every_byte_is_seen(Job::ranks(2).options(["-k", "256K", "-b", "64K", "--direct=never"]));
}

#[test]
fn a_preloaded_library_sees_every_byte_with_the_defaults_and_four_ranks() {
    every_byte_is_seen(Job::ranks(4));
}
