//! Libraries that are preloaded into the ranks, compiled when a test wants them.

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
