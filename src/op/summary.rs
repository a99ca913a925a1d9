//! What is said of a copy when it has ended.

use jiff::Timestamp as Clock;

use super::lead::Stop;
use crate::manifest::Host;
use crate::types::{ExitCode, Loss, Stats, human_bytes};

/// What the job ended with.
pub(super) struct Summary {
    pub(super) started: Clock,
    pub(super) seconds: f64,
    pub(super) stats: Stats,
    pub(super) excluded: u64,
    /// Directories that other threads than the scan's were given to list.
    pub(super) lent: u64,
    /// Bytes of file data that this run has moved.
    pub(super) bytes_moved: u64,
    /// Of the job, this one too.
    pub(super) runs: u32,
    /// The job can be gone on with.
    pub(super) has_state: bool,
    /// What was copied since the last checkpoint could not be written down.
    pub(super) unrecorded: bool,
    pub(super) hosts: Vec<Host>,
    pub(super) manifest: Option<String>,
    pub(super) dry_run: bool,
    /// Why it stopped before its end.
    pub(super) stop: Option<Stop>,
    /// The error of writing a dry run's lines to stdout, if there was one.
    pub(super) unsaid: Option<std::io::Error>,
    pub(super) code: ExitCode,
}

/// What is missing where a kind of metadata could not be kept.
fn lost(kind: Loss) -> &'static str {
    match kind {
        Loss::OWNER => "belong to somebody else than their sources",
        Loss::MODE => "have another mode",
        Loss::XATTR => "lost extended attributes",
        Loss::ACL => "lost their ACLs",
        Loss::LINK => "are copies instead of hard links",
        Loss::SPECIAL => "are fifos, sockets or devices that the destination cannot make: they are NOT there",
        Loss::FLAGS => "lost inode flags or their project id",
        _ => "have other times",
    }
}

impl Summary {
    fn rate(&self, count: u64) -> f64 {
        // a rate for a reader: the float's 53 bits are enough
        #[allow(clippy::cast_precision_loss)]
        let rate = count as f64 / self.seconds.max(1e-3);
        rate
    }

    /// Kinds of metadata that were not kept, and how often.
    fn unkept_kinds(&self) -> impl Iterator<Item = (Loss, &'static str, u64)> {
        let counts = Loss::KINDS.into_iter().zip(self.stats.unkept_kinds);
        counts.filter(|(_, count)| *count > 0).map(|((kind, name), count)| (kind, name, count))
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let stats = &self.stats;
        let kinds: serde_json::Map<_, _> =
            self.unkept_kinds().map(|(_, name, count)| (name.to_string(), count.into())).collect();
        serde_json::json!({
            "exit_code": self.code.number(),
            "started": self.started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "seconds": self.seconds,
            "hosts": self.hosts,
            "entries": stats.entries(),
            "files": stats.files,
            "dirs": stats.dirs,
            "symlinks": stats.symlinks,
            "others": stats.others,
            "hardlinks": stats.hardlinks,
            "bytes": stats.bytes,
            "errors": stats.errors,
            "unkept": stats.unkept,
            "unkept_kinds": kinds,
            "kept": stats.kept,
            "excluded": self.excluded,
            "dirs_lent": self.lent,
            "recopied": stats.recopied,
            "bytes_moved": self.bytes_moved,
            "runs": self.runs,
            "resumed": stats.resumed,
            "resumed_bytes": stats.resumed_bytes,
            "retries": stats.retries,
            "stopped": self.stop.map(Stop::name),
            "dry_run": self.dry_run,
            "manifest": self.manifest,
        })
    }

    pub(super) fn text(&self) -> String {
        let stats = &self.stats;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bytes_rate = human_bytes(self.rate(stats.bytes.saturating_sub(stats.resumed_bytes)) as u64);
        let mut text = String::new();
        let mut line = |label: &str, value: String| text.push_str(&format!("{label:<13} {value}\n"));
        line("Started:", self.started.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
        line("Seconds:", format!("{:.3}", self.seconds));
        let hosts = if self.hosts.len() == 1 { "host" } else { "hosts" };
        line(
            "Ranks:",
            format!("{} on {} {hosts}", self.hosts.iter().map(|host| host.ranks).sum::<usize>(), self.hosts.len()),
        );
        let worked = stats.entries().saturating_sub(stats.resumed);
        line("Items:", format!("{} ({:.0}/s)", stats.entries(), self.rate(worked)));
        line("  Dirs:", stats.dirs.to_string());
        line("  Files:", format!("{} ({} hard links)", stats.files, stats.hardlinks));
        line("  Links:", stats.symlinks.to_string());
        line("  Others:", stats.others.to_string());
        line("  Errors:", stats.errors.to_string());
        line("Data:", format!("{} ({} bytes)", human_bytes(stats.bytes), stats.bytes));
        line("Rate:", format!("{bytes_rate}/s"));
        if self.excluded > 0 {
            line("Excluded:", format!("{} entries, with all that is in them", self.excluded));
        }
        if stats.kept > 0 {
            line("Kept:", format!("{} entries that were there already; \"kept\" in the manifest", stats.kept));
        }
        if stats.resumed > 0 {
            line("Resumed:", format!("{} entries were there from earlier runs", stats.resumed));
        }
        if stats.retries > 0 {
            line("Retried:", format!("{} operations that failed at first", stats.retries));
        }
        if stats.recopied > 0 {
            line("Copied again:", format!("{} files that changed while they were read", stats.recopied));
        }
        if stats.unkept > 0 {
            line("Not kept:", format!("of {} entries, each marked \"unkept\" in the manifest:", stats.unkept));
            for (kind, name, count) in self.unkept_kinds() {
                line(&format!("  {name}:"), format!("{count} {}", lost(kind)));
            }
        }
        line("Manifest:", self.manifest.clone().unwrap_or_else(|| "none".into()));
        line("Result:", self.result());
        text
    }

    fn stopped(&self) -> String {
        let reason = match self.stop.map(Stop::name) {
            Some(name) if name.starts_with("SIG") => format!("by {name}"),
            Some(name) => format!("({name})"),
            None => String::new(),
        };
        match (self.has_state, self.unrecorded) {
            (false, _) => {
                format!("stopped {reason}; NOT complete, and nothing is recorded: the same command starts over")
            }
            (true, true) => {
                format!("stopped {reason}; the same command goes on, and copies again what is not recorded")
            }
            (true, false) => {
                format!("stopped {reason}; {} entries are recorded; the same command goes on", self.stats.entries())
            }
        }
    }

    /// How it ended, in words.
    pub(super) fn result(&self) -> String {
        let (errors, unkept) = (self.stats.errors, self.stats.unkept);
        match self.code {
            ExitCode::Complete if self.dry_run => "dry run, nothing was written".into(),
            ExitCode::EntriesFailed if self.dry_run => {
                format!("dry run, nothing was written; {errors} entries would FAIL")
            }
            ExitCode::Complete => "complete".into(),
            ExitCode::EntriesFailed if errors == 0 => {
                format!("{unkept} entries did not keep everything, and --strict was given")
            }
            ExitCode::EntriesFailed => format!("{errors} entries FAILED; \"error\" in the manifest"),
            ExitCode::Stopped => self.stopped(),
            ExitCode::Refused | ExitCode::Broken => "NOT complete".into(),
        }
    }
}
