//! Signals that ask the job to stop, or to say how far it is. The handler sets a flag; the thread that speaks MPI looks at
//! it between two messages.

use crate::proto::Signal;
use crate::sys::{Errno, SignalFlag, catch_signal, signal_number};

/// The signals that are caught, and what each asks for. SIGUSR1 is what batch systems can send before a time limit.
const CAUGHT: [(i32, Signal); 7] = [
    (signal_number::TERMINATE, Signal::Terminate),
    (signal_number::INTERRUPT, Signal::Interrupt),
    (signal_number::USER1, Signal::User1),
    (signal_number::HANG_UP, Signal::HangUp),
    (signal_number::CPU_TIME, Signal::CpuTime),
    (signal_number::POWER, Signal::PowerFails),
    (signal_number::USER2, Signal::Progress),
];

/// Signals of this process that were not looked at yet.
pub struct Signals(Vec<(Signal, SignalFlag)>);

/// A handler cannot be set.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.desc())]
pub struct SignalError(#[from] Errno);

impl Signals {
    /// Catches them from here on, but for a SIGHUP that is ignored (nohup). MPI must have been started: it sets handlers of
    /// its own, which these take the place of.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn catch() -> Result<Self, SignalError> {
        let catch = |(number, signal)| Ok((signal, catch_signal(number)?));
        CAUGHT.into_iter().map(catch).collect::<Result<_, _>>().map(Self)
    }

    /// The next signal that has come since it was asked for.
    pub fn take(&mut self) -> Option<Signal> {
        self.0.iter().find(|(_, flag)| flag.take()).map(|(signal, _)| *signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_told_once() {
        let mut signals = Signals::catch().expect("caught");
        assert_eq!(signals.take(), None);
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).expect("raised");
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).expect("raised");
        assert_eq!((signals.take(), signals.take()), (Some(Signal::Progress), None));
    }
}
