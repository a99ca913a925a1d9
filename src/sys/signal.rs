//! Flags that signals set. Without the handler that was there before: MPICH's own of SIGUSR1 asks its launcher for dead
//! processes, and without a launcher waits for an answer for ever.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Their numbers.
pub mod signal_number {
    pub const TERMINATE: i32 = libc::SIGTERM;
    pub const INTERRUPT: i32 = libc::SIGINT;
    pub const USER1: i32 = libc::SIGUSR1;
    pub const USER2: i32 = libc::SIGUSR2;
    pub const HANG_UP: i32 = libc::SIGHUP;
    pub const CPU_TIME: i32 = libc::SIGXCPU;
    pub const POWER: i32 = libc::SIGPWR;
}

const COUNT: usize = 32;
static RAISED: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];

/// Whether a signal has come.
pub struct SignalFlag(&'static AtomicBool);

impl SignalFlag {
    /// Whether it has come since this was asked for.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Blocks the signals that are caught in this thread, so that another thread runs the handler; or unblocks them. The kernel
/// prefers the first thread of a process, also while that hangs in a call and cannot run a handler. Threads that this one
/// starts inherit the mask.
pub fn leave_signals_to_others(leave: bool) {
    use signal_number::{CPU_TIME, HANG_UP, INTERRUPT, POWER, TERMINATE, USER1, USER2};
    let mut set = SigSet::empty();
    let signals = [TERMINATE, INTERRUPT, USER1, USER2, HANG_UP, CPU_TIME, POWER].into_iter().map(Signal::try_from);
    signals.filter_map(Result::ok).for_each(|signal| set.add(signal));
    // pthread_sigmask(3) fails only for a wrong first argument.
    let _ = if leave { set.thread_block() } else { set.thread_unblock() };
}

/// How many signals that ask for a stop were caught.
static STOPS: AtomicU32 = AtomicU32::new(0);

/// How many signals that ask for a stop were caught. The flags of [`catch_signal`] are not touched.
pub fn stops_caught() -> u32 {
    STOPS.load(Ordering::Relaxed)
}

extern "C" fn raise_flag(number: libc::c_int) {
    if number != signal_number::USER2 {
        STOPS.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(flag) = usize::try_from(number).ok().and_then(|number| RAISED.get(number)) {
        flag.store(true, Ordering::Relaxed);
    }
}

/// Ignores three signals whose default action ends the process. SIGIO: another process waits for a lease. SIGXFSZ: a file would
/// be longer than `ulimit -f` allows; when it is ignored, the write fails with `EFBIG`. SIGUSR2: a user asks for progress
/// before the handler is set.
pub fn ignore_signals() {
    for number in [libc::SIGIO, libc::SIGXFSZ, libc::SIGUSR2] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}

/// Catches a signal from here on; calls that it interrupts are started again. A SIGHUP that is ignored stays so.
///
/// # Errors
/// Those of sigaction(2).
pub fn catch_signal(number: i32) -> Result<SignalFlag, Errno> {
    let signal = Signal::try_from(number)?;
    let flag = usize::try_from(number).ok().and_then(|number| RAISED.get(number)).ok_or(Errno::EINVAL)?;
    let action = SigAction::new(SigHandler::Handler(raise_flag), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing but store to atomics that live as long as the process.
    let before = unsafe { sigaction(signal, &action) }?;
    if number == signal_number::HANG_UP && matches!(before.handler(), SigHandler::SigIgn) {
        // SAFETY: it is what was there before.
        unsafe { sigaction(signal, &before) }?;
    }
    Ok(SignalFlag(flag))
}
