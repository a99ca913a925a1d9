//! Operations that are tried again after a failure that may pass: a server that restarts, another node's cache.

use std::thread;
use std::time::Duration;

use crate::types::Failure;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Operations that were given up in a row, after which the next ones are tried half as often: on a file system that is
/// broken as a whole nobody should have to wait for every entry.
const PATIENCE: u32 = 4;

/// How often one thread tries again.
#[derive(Clone, Debug)]
pub struct Retry {
    retries: u32,
    /// In a row.
    given_up: u32,
}

impl Retry {
    /// Tries at most this many times again.
    pub fn new(retries: u32) -> Self {
        Self { retries, given_up: 0 }
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
        for _ in 0..retries {
            if !matches!(&result, Err(failure) if failure.may_pass()) || !again(state) {
                break;
            }
            thread::sleep(pause);
            pause = (pause * 4).min(LONGEST_PAUSE);
            result = what(state, true);
        }
        self.given_up = match &result {
            Err(failure) if failure.may_pass() => self.given_up.saturating_add(1),
            _ => 0,
        };
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Op, Side};

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
            (Retry::new(2).run(&mut calls, what, |_| true), calls)
        };
        assert_eq!(of(libc::EIO, 0), (Ok(1), 1));
        assert_eq!(of(libc::EIO, 2), (Ok(3), 3));
        assert_eq!(of(libc::EIO, 3), (Err(failure(libc::EIO)), 3));
        assert_eq!(of(libc::EACCES, 1), (Err(failure(libc::EACCES)), 1));
    }

    #[test]
    fn where_nothing_passes_it_is_tried_less_and_less() {
        let mut retry = Retry::new(2);
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
