//! How long things take: a latency an operation with a heavy tail, a bandwidth, ranks that are slow.

use super::{Nanos, SECOND};

/// A small generator of random numbers (xorshift64*), the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(hash(seed) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A number that looks random and depends on `number` alone (splitmix64).
pub fn hash(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The storage as ranks see it.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Mean time of an entry, without its bytes; also of a range, a link, a directory's end.
    pub entry: Nanos,
    /// Bytes a second that one thread reads and writes.
    pub bandwidth: u64,
    /// Latencies vary: the slowest in 4096 takes this many times the mean.
    pub worst: u64,
    /// One rank in so many is slow; 0 for none.
    pub slow_one_in: usize,
    /// How many times slower it is.
    pub slowness: u64,
}

impl Storage {
    /// Takes no time at all: rank 0 is the limit.
    pub const INFINITE: Self = Self { entry: 0, bandwidth: u64::MAX, worst: 1, slow_one_in: 0, slowness: 1 };
    /// 1 ms an entry with a tail up to 50 ms, 1 GiB/s a thread, one rank in 100 five times slower.
    pub const TYPICAL: Self = Self { entry: 1_000_000, bandwidth: 1 << 30, worst: 50, slow_one_in: 100, slowness: 5 };

    pub fn slowness_of(&self, rank: usize) -> u64 {
        match self.slow_one_in {
            0 => 1,
            one_in if hash(rank as u64).is_multiple_of(one_in as u64) => self.slowness,
            _ => 1,
        }
    }

    /// How long `bytes` take.
    pub fn transfer(&self, bytes: u64) -> Nanos {
        let nanos = u128::from(bytes) * u128::from(SECOND) / u128::from(self.bandwidth);
        Nanos::try_from(nanos).unwrap_or(Nanos::MAX)
    }
}

/// Latencies, drawn.
pub struct Latencies {
    /// Quantiles.
    table: Vec<Nanos>,
    random: Random,
}

impl Latencies {
    const LEN: u64 = 4096;

    /// A distribution of the storage's mean: quantile q is proportional to 1 / (1 - q)^a (Pareto), with `a` such that the
    /// last one is `worst` times the mean.
    pub fn new(storage: &Storage, seed: u64) -> Self {
        let quantiles = |a: f64| -> Vec<f64> {
            (0..Self::LEN).map(|i| (1.0 - super::ratio(2 * i + 1, 2 * Self::LEN)).powf(-a)).collect()
        };
        let mean = |all: &[f64]| all.iter().sum::<f64>() / super::ratio(Self::LEN, 1);
        let worst = super::ratio(storage.worst.max(1), 1);
        let (mut low, mut high) = (0.0, 2.0);
        for _ in 0..40 {
            let a = (low + high) / 2.0;
            let all = quantiles(a);
            let reached = all.last().expect("not empty") / mean(&all);
            if reached < worst { low = a } else { high = a }
        }
        let all = quantiles(low);
        let unit = super::ratio(storage.entry, SECOND) / mean(&all);
        let nanos = |seconds: f64| std::time::Duration::from_secs_f64(seconds).as_nanos();
        let table = all.iter().map(|quantile| Nanos::try_from(nanos(quantile * unit)).expect("a latency")).collect();
        Self { table, random: Random::new(seed) }
    }

    pub fn draw(&mut self) -> Nanos {
        let index = usize::try_from(self.random.next() >> 52).expect("12 bits");
        self.table[index]
    }
}
