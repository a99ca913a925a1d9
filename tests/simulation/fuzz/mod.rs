//! Frames that another rank should never send: valid ones, changed at random, against all that takes them. Each ends as an
//! error or as what an honest rank could have said; nothing panics, and memory stays below a bound.
//!
//! `PCOPY_FUZZ_SECONDS` says how long each test goes on (default: 3), `PCOPY_SEED` where it begins: a failure prints the
//! number that begins with its case. (issue 14, item 9)

mod frames;
mod job;
mod mutate;
mod to_rank_0;
mod to_ranks;

use std::time::{Duration, Instant, SystemTime};

use crate::driver::memory;
use crate::driver::storage::Random;

/// Bytes that taking one frame may allocate: a frame of 8 MiB in memory, and what its lists become.
const MAX_MEMORY: u64 = 96 << 20;

/// Prints how to begin with a case if it fails.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("PCOPY_SEED={} begins with this case", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|err| panic!("{name}={text}: {err}")))
}

/// Runs one case after the other until the time is over, each with randomness of its own; says how many there were, and
/// what they count.
fn fuzz<const N: usize>(what: [&str; N], mut case: impl FnMut(&mut Random) -> [u64; N]) -> [u64; N] {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let first = number("PCOPY_SEED").unwrap_or(now.as_secs() << 20);
    let seconds = number("PCOPY_FUZZ_SECONDS").unwrap_or(3);
    println!("PCOPY_SEED={first}");
    let (start, mut sums, mut cases) = (Instant::now(), [0; N], 0);
    while cases == 0 || start.elapsed() < Duration::from_secs(seconds) {
        let seed = first.wrapping_add(cases);
        let _case = Case(seed);
        memory::reset();
        let counts = case(&mut Random::new(seed));
        assert!(memory::peak() < MAX_MEMORY, "{} bytes", memory::peak());
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        cases += 1;
    }
    let told: Vec<_> = what.iter().zip(sums).map(|(what, sum)| format!("{sum} {what}")).collect();
    println!("{cases} cases in {} s: {}", start.elapsed().as_secs(), told.join(", "));
    sums
}

/// A number below `end`.
fn below(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.next() >> 11).expect("53 bits") % end.max(1)
}

fn one_in(random: &mut Random, count: usize) -> bool {
    below(random, count) == 0
}
