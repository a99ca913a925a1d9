//! The tests' dfuse, started by hand: shows a directory as dfuse shows a container (tests/it/support/fuse/dfuse.rs says how),
//! until SIGINT or SIGTERM.
//!
//! ```text
//! cargo run --release --example dfuse -- STORE MOUNTPOINT [--disable-caching] [--multi-user] [--write-back]
//! ```

use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

/// What the file system stands on, as in the tests.
#[allow(dead_code, unused_imports, unused_macros, clippy::unwrap_used)]
#[path = "../it/support"]
mod support {
    pub mod fuse;
    pub mod mounts;
    pub mod oracle;
    pub mod skip;
    pub mod sys;
    pub mod tree;
}

use support::fuse::{Dfuse, Faults, FuseMount, set_container};

const USAGE: &str = "usage: dfuse STORE MOUNTPOINT [--disable-caching] [--multi-user] [--write-back]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (options, places): (Vec<_>, Vec<_>) = words.iter().map(String::as_str).partition(|word| word.starts_with("--"));
    let known = ["--disable-caching", "--multi-user", "--write-back"];
    let [store, point] = places[..] else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if options.iter().any(|option| !known.contains(option)) {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    match serve(Path::new(store), Path::new(point), |option| options.contains(&option)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("dfuse: {trouble}");
            ExitCode::FAILURE
        }
    }
}

fn serve(store: &Path, point: &Path, has: impl Fn(&str) -> bool) -> Result<(), String> {
    // before the threads that serve are started, which inherit it
    let mut ends = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|signal| ends.add(signal));
    ends.thread_block().map_err(|err| format!("signals: {err}"))?;
    let place = |path: &Path| path.canonicalize().map_err(|err| format!("{}: {err}", path.display()));
    let (store, point) = (place(store)?, place(point)?);
    let container = store.display().to_string();
    set_container(&container, Some(&store));
    let dfuse = Dfuse {
        container,
        caching: !has("--disable-caching"),
        multi_user: has("--multi-user"),
        write_back: has("--write-back"),
    };
    let mount = FuseMount::at(&point, &store, Faults { dfuse: Some(dfuse), ..Faults::default() });
    let mount = mount.map_err(|missing| missing.0)?;
    println!("{} is a dfuse over {}", point.display(), store.display());
    ends.wait().map_err(|err| format!("signals: {err}"))?;
    drop(mount);
    Ok(())
}
