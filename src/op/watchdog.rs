//! Ends the job where the first thread of rank 0 hangs in a call to a file system. That thread handles the signals and the
//! time limit otherwise.

use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::lead::{GRACE, ONE_SIGNAL, PATIENCE, told};
use crate::comm;
use crate::sys::{leave_signals_to_others, stops_caught};
use crate::types::ExitCode;
use crate::watch;

/// The time between two looks at the first thread.
const INTERVAL: Duration = Duration::from_millis(250);

/// Values of `Shared::state`. The first thread has not ended its work.
const WATCHING: u8 = 0;
/// The first thread has ended its work, and ends the job.
const OVER: u8 = 1;
/// The watchdog ends the job.
const ENDING: u8 = 2;

const TOLD: &str = "pcopy: error: told to stop, and rank 0 is busy or hangs; what was copied since the last checkpoint \
                    is copied again";

/// The thread that watches, and takes the signals of the process. It ends when this is dropped.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
}

struct Shared {
    host: String,
    state: AtomicU8,
    limits: Mutex<Limits>,
}

#[derive(Clone, Copy)]
struct Limits {
    /// When the job has to stop by itself.
    deadline: Option<Instant>,
    /// The longest time from the beginning of a stop to the end of the job.
    grace: Duration,
}

impl Watchdog {
    /// Starts it, on rank 0.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(super) fn start(host: &str) -> std::io::Result<Self> {
        let limits = Mutex::new(Limits { deadline: None, grace: GRACE });
        let shared = Arc::new(Shared { host: host.to_string(), state: AtomicU8::new(WATCHING), limits });
        watch::looks_around();
        let watched = Arc::clone(&shared);
        thread::Builder::new().name("watchdog".into()).spawn(move || watched.watch())?;
        leave_signals_to_others(true);
        Ok(Self { shared })
    }

    /// From now on the job stops by itself at `deadline`, and a stop may take `grace`.
    pub(super) fn set(&self, deadline: Option<Instant>, grace: Duration) {
        *self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner) = Limits { deadline, grace };
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        leave_signals_to_others(false);
        while !self.shared.turn_to(OVER) {
            // The watchdog is about to call MPI_Abort.
            thread::sleep(INTERVAL);
        }
    }
}

impl Shared {
    fn watch(&self) {
        let (mut stopped, mut has_told) = (None, false);
        while self.state.load(Ordering::SeqCst) == WATCHING {
            thread::sleep(INTERVAL);
            let Limits { deadline, grace } = *self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            let silent = watch::not_looked_for();
            if stopped.is_none() && (stops_caught() > 0 || deadline.is_some_and(|deadline| deadline <= Instant::now()))
            {
                stopped = Some((Instant::now(), stops_caught()));
            }
            let is_long = silent > watch::LONG;
            if is_long && !has_told {
                say(self.lines(watch::LONG));
            }
            has_told = is_long;
            let Some((since, signals)) = stopped else { continue };
            let is_urged = since.elapsed() > ONE_SIGNAL && stops_caught() > signals;
            let patience = if is_urged { ONE_SIGNAL } else { grace.clamp(PATIENCE, 2 * PATIENCE) };
            // From here on the first thread waits in `drop`, so that MPI_Finalize and MPI_Abort do not run at once.
            let is_over = silent > patience && since.elapsed() > patience;
            if is_over && self.turn_to(ENDING) {
                let mut lines = self.lines(Duration::from_secs(1));
                lines.push(TOLD.to_owned());
                say(lines);
                comm::abort(ExitCode::Stopped.number());
            }
        }
    }

    /// Changes the state from `WATCHING`; false if it has been changed before.
    fn turn_to(&self, state: u8) -> bool {
        self.state.compare_exchange(WATCHING, state, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn lines(&self, longer: Duration) -> Vec<String> {
        watch::overdue(longer).iter().map(|operation| told(0, &self.host, operation)).collect()
    }
}

/// Writes lines to stderr from a thread of its own, and waits for it for a second: stderr may be on the file system that
/// hangs.
fn say(lines: Vec<String>) {
    let (done, said) = bounded(1);
    let write = move || {
        // a closed stderr must not become a panic
        lines.iter().for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
        let _ = done.send(());
    };
    if thread::Builder::new().name("stderr".into()).spawn(write).is_ok() {
        let _ = said.recv_timeout(Duration::from_secs(1));
    }
}
