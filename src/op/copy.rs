//! The copy: resolve, prepare, greet, run, stop, collect, say.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use jiff::Timestamp as Clock;

use super::collect::collect;
use super::lead::{Incoming, Lead, LeadError};
use super::resolve::{MANIFEST_NAME, Plan, resolve};
use crate::cli::{Config, Output};
use crate::comm::Comm;
use crate::coordinator::Coordinator;
use crate::manifest::{FORMAT_VERSION, Header, Host, OLDEST_READER};
use crate::progress::Display;
use crate::proto::{Direct, Hello, Job, Message};
use crate::scan::{MAX_SCAN_THREADS, Scan};
use crate::sys::{XattrPlace, open_root, strip_acls};
use crate::transfer::marker_name;
use crate::types::{ExitCode, Stats, escaped, human_bytes};
use crate::worker::Worker;

/// What the job ended with, to be said.
struct Summary {
    started: Clock,
    seconds: f64,
    stats: Stats,
    hosts: Vec<Host>,
    manifest: Option<String>,
    code: ExitCode,
}

/// Copies as rank 0; the other ranks are in [`crate::worker::serve`].
///
/// # Errors
/// What ends the job on the way; nothing was reported as complete.
pub fn copy(comm: &mut Comm, config: &Config) -> Result<ExitCode, LeadError> {
    let mut display = Display::new(config.progress_s);
    let started = Clock::now();
    for note in &config.notes {
        display.note(note);
    }
    let prepared = resolve(config).map_err(|refusal| refusal.to_string()).and_then(|plan| {
        let job = job(&plan, config, started);
        prepare(&plan, &job).map(|()| (plan, job))
    });
    let (plan, job) = match prepared {
        Ok(prepared) => prepared,
        Err(line) => {
            display.print(&format!("pcopy: {line}"));
            return Ok(refuse(Lead::new(comm, None, display)));
        }
    };
    for note in &plan.notes {
        display.note(note);
    }
    display.set_trees(&job.sources, &job.destination);
    let mut lead = Lead::new(comm, None, display);
    let hellos = match greet(&mut lead, &job)? {
        Ok(hellos) => hellos,
        Err(line) => {
            lead.display.print(&format!("pcopy: {line}"));
            unprepare(&plan, &job);
            lead.send_to_all(&Message::Bye);
            lead.comm.flush();
            return Ok(ExitCode::Refused);
        }
    };
    let marker = plan.root.join(std::ffi::OsStr::from_bytes(&marker_name(job.id)));
    fs::remove_file(&marker).map_err(|err| LeadError::Manifest(marker.display().to_string(), err))?;
    set_aside(&plan)?;
    if config.verbose {
        say_choices(&lead.display, &plan, config, &hellos);
    }
    let summary = run(&mut lead, &plan, &job, config, &hellos, started)?;
    lead.send_to_all(&Message::Bye);
    lead.comm.flush();
    lead.display.finish();
    say(&summary, config.output);
    Ok(summary.code)
}

/// An older manifest must not make this copy look complete while it is not.
fn set_aside(plan: &Plan) -> Result<(), LeadError> {
    // with --manifest elsewhere also the one in the copy
    let own = plan.state_dir.as_ref().map(|dir| dir.join(MANIFEST_NAME));
    for manifest in plan.manifest.iter().chain(own.iter().filter(|own| plan.manifest.as_ref() != Some(*own))) {
        let mut previous = manifest.clone().into_os_string();
        previous.push(".previous");
        match fs::rename(manifest, previous) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(LeadError::Manifest(manifest.display().to_string(), err));
            }
            _ => {}
        }
    }
    Ok(())
}

fn refuse(mut lead: Lead<'_>) -> ExitCode {
    lead.send_to_all(&Message::Begin(None));
    lead.comm.flush();
    ExitCode::Refused
}

fn job(plan: &Plan, config: &Config, started: Clock) -> Job {
    let mut seed = blake3::Hasher::new();
    seed.update(&started.as_nanosecond().to_le_bytes()).update(&std::process::id().to_le_bytes());
    seed.update(plan.root.as_os_str().as_bytes());
    let id = seed.finalize();
    Job {
        id: u64::from_le_bytes(id.as_bytes()[..8].try_into().expect("eight bytes")),
        sources: plan.sources.clone(),
        destination: plan.root.as_os_str().as_bytes().to_vec(),
        state_dir: plan.state_dir.as_ref().map(|dir| dir.as_os_str().as_bytes().to_vec()),
        fresh: !plan.root_exists,
        tuning: config.tuning,
    }
}

/// Makes the copy's root, the state directory and the marker: the first writes.
fn prepare(plan: &Plan, job: &Job) -> Result<(), String> {
    let failed = |path: &Path, err| format!("{}: {err}", escaped(path.as_os_str().as_bytes()));
    let mut private = DirBuilder::new();
    private.mode(0o700);
    if !plan.root_exists {
        private.create(&plan.root).map_err(|err| failed(&plan.root, err))?;
        let root = open_root(&plan.root).and_then(|root| strip_acls(XattrPlace::Fd(root.as_fd())));
        root.map_err(|err| failed(&plan.root, err.into()))?;
    }
    let made = make_state(plan, job, &private).map_err(|(path, err)| failed(&path, err));
    made.inspect_err(|_| unprepare(plan, job))
}

fn make_state(plan: &Plan, job: &Job, private: &DirBuilder) -> Result<(), (std::path::PathBuf, std::io::Error)> {
    if let Some(dir) = plan.state_dir.as_ref().filter(|dir| !dir.exists()) {
        private.create(dir).map_err(|err| (dir.clone(), err))?;
    }
    let marker = plan.root.join(std::ffi::OsStr::from_bytes(&marker_name(job.id)));
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&marker);
    created.map(drop).map_err(|err| (marker, err))
}

/// Takes back what [`prepare`] made; what was there before is not empty and stays.
fn unprepare(plan: &Plan, job: &Job) {
    let _ = fs::remove_file(plan.root.join(std::ffi::OsStr::from_bytes(&marker_name(job.id))));
    if let Some(dir) = &plan.state_dir {
        let _ = fs::remove_dir(dir);
    }
    if !plan.root_exists {
        let _ = fs::remove_dir(&plan.root);
    }
}

/// Tells all ranks the job, starts this rank's worker, and waits until all are ready; or says who is not.
fn greet(lead: &mut Lead<'_>, job: &Job) -> Result<Result<Vec<Hello>, String>, LeadError> {
    let begin = Message::Begin(Some(Box::new(job.clone())));
    for rank in 1..lead.comm.size() {
        lead.comm.send(rank, &begin);
    }
    let own = match Worker::start(Box::new(job.clone()), lead.comm) {
        Ok((hello, worker)) => {
            lead.worker = Some(worker);
            hello
        }
        Err(hello) => hello,
    };
    let mut hellos: Vec<Option<Hello>> = vec![None; lead.comm.size()];
    hellos[0] = Some(own);
    for _ in 1..lead.comm.size() {
        match lead.next()? {
            (from, Incoming::Hello(hello)) => hellos[from] = Some(hello),
            (from, _) => return Err(LeadError::Unexpected(from, "a message before its greeting")),
        }
    }
    let hellos: Vec<Hello> = hellos.into_iter().flatten().collect();
    let mut troubled =
        hellos.iter().enumerate().filter_map(|(rank, hello)| Some((rank, &hello.host, hello.trouble.as_ref()?)));
    let Some((rank, host, trouble)) = troubled.next() else {
        return Ok(Ok(hellos));
    };
    let others = troubled.count();
    let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
    Ok(Err(format!("rank {rank} on {host}: {trouble}{more}")))
}

/// Everything from the first entry to the manifest.
fn run(
    lead: &mut Lead<'_>,
    plan: &Plan,
    job: &Job,
    config: &Config,
    hellos: &[Hello],
    started: Clock,
) -> Result<Summary, LeadError> {
    let threads: Vec<u32> = hellos.iter().map(|hello| hello.threads).collect();
    let mut coordinator = Coordinator::new(&threads, config.tuning.range_len, config.tuning.digest);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let roots = lead.worker.as_ref().expect("rank 0 works while it leads").roots();
    let scan = Scan::start(&std::sync::Arc::new(job.clone()), &roots, cores.min(MAX_SCAN_THREADS), &plan.singles);
    lead.run(&mut coordinator, scan.map_err(LeadError::Scan)?)?;
    let (sums, mut troubles) = lead.stop()?;
    // three counts of the same entries: by the scan, by the ranks, in the manifest
    let (seen, ended) = (coordinator.progress().seen, sums.entries());
    if seen != ended {
        return Err(LeadError::Counts(format!("{seen} entries were seen, {ended} ended")));
    }
    let header = header(plan, config, hellos, started);
    // what is not durable gets no manifest: that would prove it
    let manifest = plan.manifest.as_deref().filter(|_| troubles.is_empty());
    let stats = collect(lead, manifest, job.id, &header, ended)?;
    remove_state(plan, &mut troubles);
    for trouble in &troubles {
        lead.display.print(&format!("pcopy: error: {trouble}"));
    }
    Ok(Summary {
        started,
        seconds: lead.display.elapsed().as_secs_f64(),
        stats: Stats { recopied: sums.recopied, ..stats },
        hosts: header.hosts,
        manifest: manifest.map(|path| escaped(path.as_os_str().as_bytes())),
        code: match (troubles.is_empty(), stats.errors) {
            (false, _) => ExitCode::Broken,
            (true, 0) => ExitCode::Complete,
            (true, _) => ExitCode::EntriesFailed,
        },
    })
}

/// With the manifest elsewhere nothing of pcopy stays in the copy; its root keeps the source's times.
fn remove_state(plan: &Plan, troubles: &mut Vec<String>) {
    let Some(dir) = &plan.state_dir else { return };
    if plan.manifest.as_ref().is_some_and(|manifest| manifest.starts_with(dir)) {
        return;
    }
    let times = fs::metadata(&plan.root)
        .and_then(|meta| Ok(fs::FileTimes::new().set_accessed(meta.accessed()?).set_modified(meta.modified()?)));
    // an older manifest keeps it
    if fs::remove_dir(dir).is_ok()
        && let Err(err) = times.and_then(|times| fs::File::open(&plan.root)?.set_times(times))
    {
        troubles.push(format!("{}: setting its times: {err}", escaped(plan.root.as_os_str().as_bytes())));
    }
}

fn header(plan: &Plan, config: &Config, hellos: &[Hello], started: Clock) -> Header {
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    for hello in hellos {
        *ranks.entry(&hello.host).or_default() += 1;
    }
    let source = |source: &crate::proto::Source| {
        let mut path = Path::new(std::ffi::OsStr::from_bytes(&source.dir)).to_path_buf();
        if let Some(name) = &source.single {
            path.push(std::ffi::OsStr::from_bytes(name));
        }
        escaped(path.as_os_str().as_bytes())
    };
    let tuning = &config.tuning;
    let options = BTreeMap::from([
        ("range_size", tuning.range_len.into()),
        ("block_size", tuning.block_len.into()),
        ("direct", direct_name(tuning.direct).into()),
        ("digest", if tuning.digest { "blake3" } else { "none" }.into()),
        ("threads", hellos.iter().map(|hello| hello.threads).max().into()),
    ]);
    Header {
        pcopy_manifest: FORMAT_VERSION,
        oldest_reader: OLDEST_READER,
        version: env!("CARGO_PKG_VERSION"),
        hosts: ranks.into_iter().map(|(host, ranks)| Host { host: host.to_string(), ranks }).collect(),
        ranks: hellos.len(),
        sources: plan.sources.iter().map(source).collect(),
        destination: escaped(plan.root.as_os_str().as_bytes()),
        options,
        started: started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }
}

fn direct_name(direct: Direct) -> &'static str {
    match direct {
        Direct::Auto => "auto",
        Direct::Always => "always",
        Direct::Never => "never",
    }
}

fn say_choices(display: &Display, plan: &Plan, config: &Config, hellos: &[Hello]) {
    let threads: u32 = hellos.iter().map(|hello| hello.threads).sum();
    let tuning = &config.tuning;
    display.print(&format!(
        "pcopy: {} ranks with {threads} I/O threads; ranges of {}, blocks of {}, direct I/O {}, to {}",
        hellos.len(),
        human_bytes(tuning.range_len),
        human_bytes(tuning.block_len as u64),
        direct_name(tuning.direct),
        escaped(plan.root.as_os_str().as_bytes()),
    ));
}

fn say(summary: &Summary, output: Output) {
    let text = match output {
        Output::Nothing => return,
        Output::Json => format!("{}\n", summary.json()),
        Output::Text => summary.text(),
    };
    // a reader who has gone must not turn a complete copy into a failed one
    let _ = std::io::stdout().write_all(text.as_bytes());
}

impl Summary {
    fn rate(&self, count: u64) -> f64 {
        // a rate for a reader: the float's 53 bits are enough
        #[allow(clippy::cast_precision_loss)]
        let rate = count as f64 / self.seconds.max(1e-3);
        rate
    }

    fn json(&self) -> serde_json::Value {
        let stats = &self.stats;
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
            "recopied": stats.recopied,
            "manifest": self.manifest,
        })
    }

    fn text(&self) -> String {
        let stats = &self.stats;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bytes_rate = human_bytes(self.rate(stats.bytes) as u64);
        let mut text = String::new();
        let mut line = |label: &str, value: String| text.push_str(&format!("{label:<12} {value}\n"));
        line("Started:", self.started.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
        line("Seconds:", format!("{:.3}", self.seconds));
        let hosts = if self.hosts.len() == 1 { "host" } else { "hosts" };
        line(
            "Ranks:",
            format!("{} on {} {hosts}", self.hosts.iter().map(|host| host.ranks).sum::<usize>(), self.hosts.len()),
        );
        line("Items:", format!("{} ({:.0}/s)", stats.entries(), self.rate(stats.entries())));
        line("  Dirs:", stats.dirs.to_string());
        line("  Files:", format!("{} ({} hard links)", stats.files, stats.hardlinks));
        line("  Links:", stats.symlinks.to_string());
        line("  Others:", stats.others.to_string());
        line("  Errors:", stats.errors.to_string());
        line("Data:", format!("{} ({} bytes)", human_bytes(stats.bytes), stats.bytes));
        line("Rate:", format!("{bytes_rate}/s"));
        if stats.recopied > 0 {
            line("Copied again:", format!("{} files that changed while they were read", stats.recopied));
        }
        if stats.unkept > 0 {
            line(
                "Not kept:",
                format!(
                    "{} entries lost metadata that the destination cannot hold; \"unkept\" in the manifest",
                    stats.unkept
                ),
            );
        }
        line("Manifest:", self.manifest.clone().unwrap_or_else(|| "none".into()));
        line(
            "Result:",
            match self.code {
                ExitCode::Complete => "complete".into(),
                ExitCode::EntriesFailed => {
                    format!("{} entries FAILED; \"error\" in the manifest", stats.errors)
                }
                ExitCode::Refused | ExitCode::Broken => "NOT complete".to_string(),
            },
        );
        text
    }
}
