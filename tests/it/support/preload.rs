//! Libraries that are preloaded into the ranks, compiled when a test wants them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `tests/it/<source>` to a shared library in `home`.
pub fn compile(source: &str, home: &Path) -> PathBuf {
    let library = home.join(source).with_extension("so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(source);
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
    let built = cc.arg(&library).arg(&source).arg("-ldl").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

/// The sums of the counters that the processes of a run left in a directory, and how many processes there were.
pub fn counted(out: &Path) -> (BTreeMap<String, u64>, usize) {
    let mut sums = BTreeMap::new();
    let mut processes = 0;
    for file in fs::read_dir(out).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines() {
            let (name, value) = line.split_once(' ').unwrap();
            *sums.entry(name.to_owned()).or_default() += value.parse::<u64>().unwrap();
        }
        processes += 1;
    }
    (sums, processes)
}
