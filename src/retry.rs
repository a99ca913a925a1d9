//! Operations that are tried again after a failure that may pass: a server that restarts, another node's cache.

use std::thread;
use std::time::Duration;

use crate::types::{Failure, Side};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Operations that were given up in a row, after which the next ones are tried half as often: on a file system that is
/// broken as a whole nobody should have to wait for every entry.
const PATIENCE: u32 = 4;

/// How long a node may remember that a name is missing which another one has just made: five seconds with dfuse's default,
/// and some for the clocks.
const UNSEEN: Duration = Duration::from_secs(6);
/// How long one thread waits in all for names that then do not show: what was removed since it was listed is missing too.
const UNSEEN_IN_VAIN: Duration = Duration::from_secs(60);

/// On which sides a node may not know a name yet that another node has made: network file systems and FUSE.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lag {
    pub source: bool,
    pub destination: bool,
}

impl Lag {
    /// Whether the failure may only mean that.
    fn explains(self, failure: &Failure) -> bool {
        let lags = match failure.side {
            Side::Source => self.source,
            Side::Destination => self.destination,
        };
        lags && failure.errno == libc::ENOENT
    }
}

/// How often one thread tries again.
#[derive(Clone, Debug)]
pub struct Retry {
    retries: u32,
    lag: Lag,
    /// In a row.
    given_up: u32,
    waited_in_vain: Duration,
}

impl Retry {
    /// Tries at most this many times again; a name that another node may have made, for some seconds.
    pub fn new(retries: u32, lag: Lag) -> Self {
        Self { retries, lag, given_up: 0, waited_in_vain: Duration::ZERO }
    }

    /// Calls `what` until it succeeds or fails for good, with pauses that grow; before each further time `again` is asked
    /// whether to go on.
    ///
    /// # Errors
    /// The last failure.
    pub fn run<S, T>(
        &mut self,
        state: &mut S,
        mut what: impl FnMut(&mut S, bool) -> Result<T, Failure>,
        mut again: impl FnMut(&mut S) -> bool,
    ) -> Result<T, Failure> {
        let retries = self.retries.checked_shr(self.given_up / PATIENCE).unwrap_or(0);
        let mut pause = FIRST_PAUSE;
        let mut result = what(state, false);
        let (mut tries, mut waited) = (0, Duration::ZERO);
        while let Err(failure) = &result {
            let passes = failure.may_pass() && tries < retries;
            let may_show = retries > 0 && waited < UNSEEN && self.waited_in_vain < UNSEEN_IN_VAIN;
            let shows = may_show && self.lag.explains(failure);
            if !(passes || shows) || !again(state) {
                break;
            }
            thread::sleep(pause);
            (tries, waited) = (tries + 1, waited + pause);
            pause = (pause * 4).min(LONGEST_PAUSE);
            result = what(state, true);
        }
        if matches!(&result, Err(failure) if self.lag.explains(failure)) {
            self.waited_in_vain += waited;
        }
        self.given_up = match &result {
            Err(failure) if failure.may_pass() || self.lag.explains(failure) => self.given_up.saturating_add(1),
            _ => 0,
        };
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Op;

    fn failure(errno: i32) -> Failure {
        Failure { op: Op::Read, side: Side::Source, errno }
    }

    #[test]
    fn what_passes_is_tried_until_it_has_and_what_does_not_only_once() {
        let mut calls = 0;
        let mut of = |errno, fails: u32| {
            calls = 0;
            let what = |calls: &mut u32, again: bool| {
                assert_eq!(again, *calls > 0);
                *calls += 1;
                if *calls > fails { Ok(*calls) } else { Err(failure(errno)) }
            };
            (Retry::new(2, Lag::default()).run(&mut calls, what, |_| true), calls)
        };
        assert_eq!(of(libc::EIO, 0), (Ok(1), 1));
        assert_eq!(of(libc::EIO, 2), (Ok(3), 3));
        assert_eq!(of(libc::EIO, 3), (Err(failure(libc::EIO)), 3));
        assert_eq!(of(libc::EACCES, 1), (Err(failure(libc::EACCES)), 1));
        assert_eq!(of(libc::ENOENT, 1), (Err(failure(libc::ENOENT)), 1));
    }

    #[test]
    fn a_name_that_another_node_may_have_made_is_waited_for() {
        let mut calls = 0;
        let what = |calls: &mut u32, _| {
            *calls += 1;
            if *calls > 4 { Ok(*calls) } else { Err(failure(libc::ENOENT)) }
        };
        let lag = Lag { source: true, destination: false };
        assert_eq!(Retry::new(2, lag).run(&mut calls, what, |_| true), Ok(5));
        calls = 0;
        assert_eq!(Retry::new(0, lag).run(&mut calls, what, |_| true), Err(failure(libc::ENOENT)));
    }

    #[test]
    fn where_nothing_passes_it_is_tried_less_and_less() {
        let mut retry = Retry::new(2, Lag::default());
        let calls: Vec<u32> = (0..13)
            .map(|_| {
                let mut calls = 0;
                let what = |calls: &mut u32, _| -> Result<(), Failure> {
                    *calls += 1;
                    Err(failure(libc::EIO))
                };
                let _ = retry.run(&mut calls, what, |_| true);
                calls
            })
            .collect();
        assert_eq!(calls, [3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1]);
    }
}
