//! Ends the job where the thread that leads it hangs in a call to a file system: it sees neither signals nor the clock then.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::lead::{GRACE, ONE_SIGNAL, PATIENCE, told};
use crate::comm;
use crate::sys::{leave_signals_to_others, stops_caught};
use crate::types::ExitCode;
use crate::watch;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// The thread that watches, and takes the signals of the process. It ends when this is dropped.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
}

struct Shared {
    host: String,
    over: AtomicBool,
    limits: Mutex<Limits>,
}

#[derive(Clone, Copy)]
struct Limits {
    /// When the job has to stop by itself.
    deadline: Option<Instant>,
    /// How long a stop may take.
    grace: Duration,
}

impl Watchdog {
    /// Starts it, on rank 0.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(super) fn start(host: &str) -> std::io::Result<Self> {
        let limits = Mutex::new(Limits { deadline: None, grace: GRACE });
        let shared = Arc::new(Shared { host: host.to_string(), over: AtomicBool::new(false), limits });
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
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn watch(&self) {
        let (mut stopped, mut has_told) = (None, false);
        while !self.over.load(Ordering::Relaxed) {
            thread::sleep(INTERVAL);
            let Limits { deadline, grace } = *self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            let silent = watch::not_looked_for();
            if stopped.is_none() && (stops_caught() > 0 || deadline.is_some_and(|deadline| deadline <= Instant::now()))
            {
                stopped = Some((Instant::now(), stops_caught()));
            }
            if silent > watch::LONG && !has_told {
                has_told = true;
                self.tell(watch::LONG);
            }
            let Some((since, signals)) = stopped else { continue };
            let is_urged = since.elapsed() > ONE_SIGNAL && stops_caught() > signals;
            let patience = if is_urged { ONE_SIGNAL } else { grace.min(2 * PATIENCE) };
            if silent > patience && since.elapsed() > patience && !self.over.load(Ordering::Relaxed) {
                self.tell(Duration::from_secs(1));
                say(
                    "pcopy: error: told to stop, and rank 0 hangs; what was copied since the last checkpoint is copied again",
                );
                comm::abort(ExitCode::Stopped.number());
            }
        }
    }

    fn tell(&self, longer: Duration) {
        watch::overdue(longer).iter().for_each(|operation| say(&told(0, &self.host, operation)));
    }
}

/// A closed stderr must not become a panic.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
