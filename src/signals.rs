//! Signals that ask the job to stop, or to say how far it is. The handler sets a flag; the thread that speaks MPI looks at
//! it between two messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::flag;

use crate::proto::Signal;

/// The signals that are caught, and what each asks for. SIGUSR1 is what batch systems can send before a time limit.
const CAUGHT: [(i32, Signal); 4] =
    [(SIGTERM, Signal::Terminate), (SIGINT, Signal::Interrupt), (SIGUSR1, Signal::User1), (SIGUSR2, Signal::Progress)];

/// Signals of this process that were not looked at yet.
pub struct Signals(Vec<(Signal, Arc<AtomicBool>)>);

/// A handler cannot be set.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SignalError(#[from] std::io::Error);

impl Signals {
    /// Catches them from here on. MPI must have been started: it sets handlers of its own.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn catch() -> Result<Self, SignalError> {
        let mut flags = Vec::new();
        for (number, signal) in CAUGHT {
            let raised = Arc::new(AtomicBool::new(false));
            flag::register(number, Arc::clone(&raised))?;
            flags.push((signal, raised));
        }
        Ok(Self(flags))
    }

    /// The next signal that has come since it was asked for.
    pub fn take(&mut self) -> Option<Signal> {
        self.0.iter().find(|(_, raised)| raised.swap(false, Ordering::Relaxed)).map(|(signal, _)| *signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_told_once() {
        let mut signals = Signals::catch().expect("caught");
        assert_eq!(signals.take(), None);
        signal_hook::low_level::raise(SIGUSR2).expect("raised");
        signal_hook::low_level::raise(SIGUSR2).expect("raised");
        assert_eq!((signals.take(), signals.take()), (Some(Signal::Progress), None));
    }
}
