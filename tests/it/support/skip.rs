//! A capability that this machine lacks: said aloud, and a failure in CI, where all are expected.

use std::io::Write;

/// Why a test cannot run here.
#[derive(Debug)]
pub struct Missing(pub String);

impl Missing {
    pub fn new(reason: impl Into<String>) -> Self {
        Missing(reason.into())
    }

    /// Prints `SKIP: reason` past the test harness, which captures what `eprintln` prints.
    ///
    /// # Panics
    /// Under `CI=true`: there every capability is expected.
    pub fn report(&self) {
        let ci = std::env::var("CI").is_ok_and(|v| v == "true");
        assert!(!ci, "CI lacks something that the tests need: {}", self.0);
        self.say();
    }

    /// The same for what is no package, and is missing in CI too.
    pub fn say(&self) {
        let line = format!("SKIP: {}\n", self.0);
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
}

/// The value, or the end of the test with `SKIP: reason`.
macro_rules! need {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(missing) => {
                $crate::support::skip::Missing::report(&missing);
                return;
            }
        }
    };
}
pub(crate) use need;

/// Mounting, devices and foreign owners need root.
pub fn root() -> Result<(), Missing> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Missing::new("not root")) }
}

/// A program on PATH.
pub fn program(name: &str) -> Result<(), Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    found.then_some(()).ok_or_else(|| Missing::new(format!("{name} is not on PATH")))
}
