//! The upper limit of a rank's reading and writing, shared by its I/O threads, and changed while they work.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Credit that a rank that had nothing to do keeps, as time.
const BURST: Duration = Duration::from_millis(100);
/// How long a thread sleeps before it looks whether the limit has changed.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// Bytes that may be moved: a bucket that fills at the limit's rate. Who takes more than there is leaves a debt, and the
/// next one waits until it is paid, so that the average holds whatever the blocks' length.
#[derive(Default)]
pub struct Throttle(Mutex<Bucket>);

#[derive(Default)]
struct Bucket {
    /// Bytes a second; `None` for no limit.
    rate: Option<f64>,
    /// Bytes.
    credit: f64,
    /// When the credit was counted.
    counted: Option<Instant>,
}

impl Throttle {
    /// Sets the limit, in bytes a second.
    #[allow(clippy::cast_precision_loss)]
    pub fn set(&self, bytes_per_s: Option<u64>) {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // a debt at an old, lower rate would take too long at the new one
        *bucket = Bucket { rate: bytes_per_s.map(|rate| rate.max(1) as f64), credit: 0.0, counted: None };
    }

    /// Waits until `len` bytes may be moved, or until there is no sense in it any more.
    pub(super) fn wait(&self, len: usize, is_halting: impl Fn() -> bool) {
        while let Some(pause) = self.take(len, Instant::now()) {
            if is_halting() {
                return;
            }
            thread::sleep(pause.min(LONGEST_SLEEP));
        }
    }

    /// Takes bytes, or says how long it is until they can be taken.
    #[allow(clippy::cast_precision_loss)]
    fn take(&self, len: usize, now: Instant) -> Option<Duration> {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = bucket.rate?;
        let passed = now.saturating_duration_since(bucket.counted.unwrap_or(now));
        bucket.credit = (bucket.credit + passed.as_secs_f64() * rate).min(BURST.as_secs_f64() * rate);
        bucket.counted = Some(now);
        if bucket.credit >= 0.0 {
            bucket.credit -= len as f64;
            None
        } else {
            // a debt that is rounded to no time at all would be waited for again and again
            let due = Duration::from_secs_f64((-bucket.credit / rate).min(3600.0));
            Some(due.max(Duration::from_micros(1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are taken in blocks within so many seconds, by a clock of the test's own.
    fn taken(throttle: &Throttle, block: usize, from: Instant, seconds: u64) -> usize {
        let (mut now, mut taken) = (from, 0);
        while now < from + Duration::from_secs(seconds) {
            match throttle.take(block, now) {
                None => taken += block,
                Some(pause) => now += pause.min(LONGEST_SLEEP),
            }
            if taken > 1 << 40 {
                break;
            }
        }
        taken
    }

    #[test]
    fn the_average_is_the_limit_whatever_the_blocks() {
        let throttle = Throttle::default();
        let start = Instant::now();
        for (block, rate) in [(1, 1000), (4096, 1_000_000), (4 << 20, 1_000_000), (10_000, 64 << 20)] {
            throttle.set(Some(rate));
            let (taken, due) = (taken(&throttle, block, start, 100), usize::try_from(rate).expect("small") * 100);
            assert!(taken.abs_diff(due) <= due / 100 + 2 * block, "{block} at {rate}: {taken} of {due}");
        }
        throttle.set(None);
        assert_eq!(throttle.take(usize::MAX, start), None);
        assert_eq!(throttle.take(usize::MAX, start), None);
    }

    #[test]
    fn who_had_nothing_to_do_has_no_hour_of_credit() {
        let throttle = Throttle::default();
        let start = Instant::now();
        throttle.set(Some(1000));
        assert_eq!(throttle.take(1, start), None);
        let later = taken(&throttle, 10, start + Duration::from_secs(3600), 1);
        assert!((1000..=1200).contains(&later), "{later}");
    }
}
