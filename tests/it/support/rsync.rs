//! rsync as a judge: what it makes of the same tree with the same words.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// Copies what is in `src` to `dst` with these options and no others.
#[track_caller]
pub fn rsync<S: AsRef<OsStr>>(options: impl IntoIterator<Item = S>, src: &Path, dst: &Path) {
    let mut from = src.as_os_str().to_owned();
    from.push("/");
    let mut command = Command::new("rsync");
    let output = command.args(options).arg("--").arg(from).arg(dst).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
