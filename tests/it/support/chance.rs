//! Random choices that their seed repeats, and what a long test says of itself.

use std::io::Write;
use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

/// A sequence of choices (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number of the range, all about as likely.
    pub fn of(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (first, last) = range.into_inner();
        first + self.next() % (last - first + 1)
    }

    /// A number below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(len).unwrap()).unwrap()
    }

    /// One of them.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }
}

/// The seed of a test: `PCOPY_SEED`, or one by the clock. It is said, so that a failure can be had again.
pub fn seed(test: &str) -> u64 {
    let by_clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    let seed = from_environment("PCOPY_SEED").unwrap_or_else(by_clock);
    println!("{test}: PCOPY_SEED={seed}");
    seed
}

/// A number from the environment.
///
/// # Panics
/// Where it is none: a run that was meant to be a long one would be a short one.
pub fn from_environment(name: &str) -> Option<u64> {
    let word = std::env::var(name).ok()?;
    Some(word.parse().unwrap_or_else(|e| panic!("{name}={word}: {e}")))
}

/// A line past the test harness, which captures what `println` prints.
pub fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}
