//! What rank 0 says while the job runs: lines of progress or a bar, errors, notes. On stderr; never waits.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::coordinator::Progress;
use crate::proto::Source;
use crate::types::{Failure, RelPath, Side, escaped, human_bytes};

/// Says how far the job is.
pub struct Display {
    started: Instant,
    /// Of lines; `None` for no progress.
    interval: Option<Duration>,
    last: Instant,
    last_progress: Progress,
    bar: Option<ProgressBar>,
    notes: BTreeSet<String>,
    /// Incomplete copies that the sources hold.
    incomplete_below: u64,
    /// The two trees, for whole paths in messages.
    sources: Vec<Source>,
    /// The first of the sources that are copied to a name in the copy's root, by that name; to the root itself, by "".
    by_name: HashMap<Vec<u8>, usize>,
    destination: Vec<u8>,
}

/// On a terminal the bar moves this often.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

impl Display {
    /// With a line every `interval_s` seconds (0 for none), or a bar where stderr is a terminal.
    pub fn new(interval_s: u64) -> Self {
        let now = Instant::now();
        let terminal = interval_s > 0 && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is a constant");
            ProgressBar::new_spinner().with_style(style)
        });
        let interval = (interval_s > 0).then(|| if terminal { BAR_INTERVAL } else { Duration::from_secs(interval_s) });
        Self {
            started: now,
            interval,
            last: now,
            last_progress: Progress::default(),
            bar,
            notes: BTreeSet::new(),
            incomplete_below: 0,
            sources: Vec::new(),
            by_name: HashMap::new(),
            destination: Vec::new(),
        }
    }

    /// Since the job started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says how far the job is, if it is time, or if it was `asked`. Returns whether it printed a line (and did not move the bar).
    pub fn tick(&mut self, asked: bool, progress: impl FnOnce() -> Progress) -> bool {
        let passed = match self.is_time() {
            Some(passed) => passed,
            None if asked => self.last.elapsed(),
            None => return false,
        };
        let progress = progress();
        let line = line(&progress, &self.last_progress, passed.as_secs_f64());
        self.last_progress = progress;
        self.show(line, asked);
        asked || self.bar.is_none()
    }

    /// Says what the job waits for after the copy, if it is time.
    pub fn tick_phase(&mut self, phase: &str, asked: bool) {
        if self.is_time().is_some() || asked {
            self.show(phase.to_string(), asked);
        }
    }

    /// How long the last line is ago, when the next one is due; it counts as said.
    fn is_time(&mut self) -> Option<Duration> {
        let passed = self.last.elapsed();
        if passed < self.interval? {
            return None;
        }
        self.last = Instant::now();
        Some(passed)
    }

    fn show(&self, line: String, asked: bool) {
        match &self.bar {
            Some(bar) if !asked => {
                bar.set_message(line);
                bar.tick();
            }
            _ => self.print(&format!("pcopy: {:.0} s: {line}", self.elapsed().as_secs_f64())),
        }
    }

    /// Shows whole paths from now on: those of these trees.
    pub fn set_trees(&mut self, sources: &[Source], destination: &[u8]) {
        self.sources = sources.to_vec();
        for (number, source) in sources.iter().enumerate() {
            self.by_name.entry(source.target.first_name().unwrap_or_default().to_vec()).or_insert(number);
        }
        self.destination = destination.to_vec();
    }

    /// Says that an entry failed.
    pub fn failure(&self, path: &RelPath, failure: &Failure) {
        self.print(&format!("pcopy: error: {}: {failure}", escaped(&self.whole_path(path, failure.side))));
    }

    /// Says that a directory is another file system, and not entered.
    pub fn not_entered(&self, path: &RelPath) {
        let path = escaped(&self.whole_path(path, Side::Source));
        self.print(&format!("pcopy: note: {path}: not entered, another file system (--one-file-system)"));
    }

    /// Says that a source holds an incomplete copy; of many such the first ones.
    pub fn incomplete_below(&mut self, state: &RelPath) {
        const MAX_SAID: u64 = 16;
        self.incomplete_below += 1;
        let path = escaped(&self.whole_path(state, Side::Source));
        match self.incomplete_below {
            ..=MAX_SAID => {
                self.note(&format!("{path}: of an incomplete copy, which is copied as it is, with its state"))
            }
            _ => self.note("there are more incomplete copies in the sources"),
        }
    }

    /// The path on the side where it failed. Where several sources share a place it is the first one's.
    fn whole_path(&self, path: &RelPath, side: Side) -> Vec<u8> {
        let below = |dir: &[u8], path: &[u8]| if path.is_empty() { dir.to_vec() } else { [dir, b"/", path].concat() };
        let of_source = |source: &Source| {
            let rest = path.strip(&source.target)?;
            Some(below(&source.dir, source.single.as_deref().unwrap_or(rest.as_bytes())))
        };
        let places = [&b""[..], path.first_name().unwrap_or_default()];
        let first = places.into_iter().filter_map(|place| self.by_name.get(place)).min();
        let source = first.filter(|_| side == Side::Source).and_then(|&number| of_source(&self.sources[number]));
        source.unwrap_or_else(|| below(&self.destination, path.as_bytes()))
    }

    /// Says something once.
    pub fn note(&mut self, note: &str) {
        if self.notes.insert(note.to_string()) {
            self.print(&format!("pcopy: note: {note}"));
        }
    }

    /// A line on stderr that leaves the bar whole.
    pub fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| to_stderr(line)),
            None => to_stderr(line),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes to stdout. EPIPE (for example "pcopy --dry-run | head") is not an error.
///
/// # Errors
/// Those of write(2).
pub fn to_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A closed stderr must not end the job: what matters is in the manifest and the exit code.
fn to_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn line(now: &Progress, before: &Progress, seconds: f64) -> String {
    let rate = |now: u64, before: u64| {
        // rates for a reader: the float's 53 bits are enough
        #[allow(clippy::cast_precision_loss)]
        let per_second = now.saturating_sub(before) as f64 / seconds.max(1e-3);
        per_second
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes_rate = human_bytes(rate(now.bytes_moved, before.bytes_moved) as u64);
    let entries_rate = rate(now.ended.entries(), before.ended.entries());
    let of = if now.scan_ended { "of" } else { "of at least" };
    let (entries, seen) = (now.ended.entries(), now.seen);
    let (bytes, in_flight, errors) = (human_bytes(now.bytes_moved), now.in_flight, now.ended.errors);
    format!(
        "{entries} {of} {seen} entries ({entries_rate:.0}/s), {bytes} ({bytes_rate}/s), {in_flight} in flight, {errors} errors"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Stats;

    #[test]
    fn a_line_tells_counts_rates_and_errors() {
        let before = Progress { bytes_moved: 1 << 20, ..Progress::default() };
        let ended = Stats { files: 98, errors: 2, ..Stats::default() };
        let now = Progress { seen: 150, ended, bytes_moved: 21 << 20, in_flight: 3, ..Progress::default() };
        let expected = "100 of at least 150 entries (10/s), 21.00 MiB (2.00 MiB/s), 3 in flight, 2 errors";
        assert_eq!(line(&now, &before, 10.0), expected);
    }
}
