//! What earlier runs have left in the state directory, and what this run makes of it: it goes on with their job, or begins
//! another one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp as Clock;
use serde_json::Value;

use super::choices::Choice;
use super::own_places::job_file_advice;
use super::refusal::shown;
use super::resolve::Plan;
use crate::cli::{Config, Resume};
use crate::journal::{self, LoadError};
use crate::policy::{Flags, Policy};
use crate::scan::Recorded;
use crate::state::{JOB_NAME, JobFile, JobFileError};
use crate::types::Secret;

/// The job of a state directory, as this run takes it up.
pub(super) struct Recalled {
    /// To be written when the job begins.
    pub(super) file: JobFile,
    pub(super) recorded: Recorded,
    /// Earlier runs of this job did not come to its end.
    pub(super) unfinished: bool,
    /// What is in the directory is of no use, and goes when the job begins.
    pub(super) forgets: bool,
    /// To be said.
    pub(super) notes: Vec<String>,
}

impl Recalled {
    fn new(file: JobFile, forgets: bool, notes: Vec<String>) -> Self {
        Self { file, recorded: Recorded::default(), unfinished: false, forgets, notes }
    }
}

/// Takes up the job of a state directory, whose lock this run has; `id` and `secret` are for a new one.
///
/// # Errors
/// One line: a file that a newer version wrote or that is damaged, or nothing to go on with where the user requires that.
pub(super) fn recall(
    dir: &OwnedFd,
    plan: &Plan,
    config: &Config,
    (id, secret): (u64, Secret),
    started: Clock,
) -> Result<Recalled, String> {
    let path = plan.state_dir().expect("there is a state directory");
    let place = shown(&path);
    let options = options(plan, config);
    let started = started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let new = JobFile::new((id, secret), started, plan.source_names.clone(), shown(&plan.root), options);
    let require = |what: &str| match config.resume {
        Resume::Require => Err(format!("{place}: {what}: nothing to resume, as --resume=require wants")),
        _ => Ok(()),
    };
    let mut old = match JobFile::read(dir) {
        Ok(Some(old)) => old,
        Ok(None) => {
            require("no earlier run of pcopy has left a job here")?;
            return start_over(dir, new).map_err(|err| format!("{place}: {err}"));
        }
        Err(JobFileError::Garbage(_)) if config.resume == Resume::Never => {
            return start_over(dir, new).map_err(|err| format!("{place}: {err}"));
        }
        Err(err) => return Err(format!("{}: {}", shown(&path.join(JOB_NAME)), job_file_advice(&err))),
    };
    let mut abandoned = old.abandoned.clone();
    if !old.complete {
        abandoned.push(old.id);
    }
    let mut other = new;
    other.abandoned = abandoned;
    if config.resume == Resume::Never {
        return Ok(Recalled::new(other, true, Vec::new()));
    }
    let mut changed = old.changed_options(&other.options);
    if !old.copies(&other.sources) {
        changed.insert(0, "sources".into());
    }
    if matches!(plan.state, Some(crate::proto::StatePlace::At(_))) && old.root != other.root {
        changed.insert(0, "destination".into());
    }
    if !changed.is_empty() {
        let what = format!("another job than the one recorded there (changed: {})", changed.join(", "));
        require(&what)?;
        let note = format!("{place}: {what}; nothing that it recorded is used");
        return Ok(Recalled::new(other, true, vec![note]));
    }
    old.secret.get_or_insert(secret);
    go_on(dir, &path, old)
}

/// A new job where there is no job file: the journals may know which jobs have left temporary files.
fn start_over(dir: &OwnedFd, mut new: JobFile) -> std::io::Result<Recalled> {
    new.abandoned = journal::jobs_in(dir)?.into_iter().collect();
    Ok(Recalled::new(new, true, Vec::new()))
}

fn go_on(dir: &OwnedFd, path: &Path, mut old: JobFile) -> Result<Recalled, String> {
    let place = shown(path);
    let loaded = journal::load(dir, old.id).map_err(|err| match err {
        LoadError::Newer(name, trouble) => {
            format!("{}: {trouble}: use that one, or start over with --restart", shown(&path.join(name)))
        }
        LoadError::Io(name, err) => format!("{}: {err}", shown(&path.join(name))),
    })?;
    let mut notes: Vec<_> = loaded.notes.iter().map(|note| format!("{place}: {note}")).collect();
    old.runs = old.runs.max(loaded.generation);
    let entries = loaded.base.len();
    let left = "what is unchanged by size and mtime is left (--restart copies all again)";
    notes.push(if old.complete && old.errors > 0 {
        let errors = old.errors;
        format!("{place}: the copy came to its end with {errors} errors, which are tried again; {left}")
    } else if old.complete {
        format!("{place}: the copy was complete; {left}")
    } else {
        let (began, run) = (&old.started, old.runs + 1);
        format!("{place}: going on with the job that began {began} (run {run}); {entries} entries are recorded")
    });
    Ok(Recalled {
        recorded: Recorded { base: Arc::new(loaded.base), partials: Arc::new(loaded.partials) },
        unfinished: !old.complete,
        forgets: false,
        file: old,
        notes,
    })
}

/// Every choice that decides what the copy is; how it is made may change from run to run.
fn options(plan: &Plan, config: &Config) -> BTreeMap<String, Value> {
    let Policy { preserve, umask, .. } = &plan.policy;
    let policy = serde_json::to_value(&plan.policy).and_then(serde_json::from_value);
    let mut options: BTreeMap<String, Value> = policy.expect("a policy is an object of plain data");
    // Written only if they are chosen, for the same reason as `incomplete_source` below.
    if preserve.flags == Flags::Counted
        && let Some(Value::Object(preserve)) = options.get_mut("preserve")
    {
        preserve.remove("flags");
    }
    for name in ["noatime", "dry_run", "umask", "changes"] {
        options.remove(name);
    }
    if !preserve.mode {
        options.insert("umask".into(), (*umask).into());
    }
    let hash = |digest: blake3::Hash| Value::from(digest.to_hex().to_string());
    let Choice { filter, selection, one_file_system } = &plan.choice;
    let filters = if filter.is_empty() { Value::Null } else { hash(filter.digest()) };
    let files = selection.as_ref().map_or(Value::Null, |list| hash(list.digest()));
    options.insert("filters".into(), filters);
    options.insert("files_from".into(), files);
    options.insert("one_file_system".into(), (*one_file_system).into());
    // Written only if it is chosen: job files of versions without this option stay the same.
    if config.incomplete_source {
        options.insert("incomplete_source".into(), true.into());
    }
    options.insert("durability".into(), format!("{:?}", config.tuning.durability).to_lowercase().into());
    options.insert("digest".into(), config.tuning.digest.into());
    options.insert("sparse".into(), format!("{:?}", config.tuning.sparse).to_lowercase().into());
    options
}
