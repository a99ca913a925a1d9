//! The copy: resolve, prepare, greet, run, stop, collect, say.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp as Clock;

use super::checkpoint::Checkpoints;
use super::choices;
use super::collect::{Collected, Target, collect};
use super::lead::{Incoming, Lead, LeadError, Stop};
use super::limit::Limit;
use super::prepare::{Prepared, prepare};
use super::refusal::{Unprepared, shown};
use super::resolve::{Plan, resolve};
use super::spill::Spill;
use super::summary::Summary;
use super::watchdog::Watchdog;
use crate::cli::{Config, Output};
use crate::comm::{self, Comm};
use crate::coordinator::Coordinator;
use crate::manifest::{FORMAT_VERSION, Header, Host, OLDEST_READER};
use crate::policy::Filter;
use crate::progress::{Display, to_stdout};
use crate::proto::{Direct, Durability, Hello, Job, Message};
use crate::scan::{MAX_SCAN_THREADS, Scan};
use crate::signals::Signals;
use crate::sys::{Meta, act_as, random_bytes, space};
use crate::types::{ExitCode, Fate, Kind, Maker, Outcome, Record, Secret, Stats, escaped, human_bytes, one_line};
use crate::watch;
use crate::worker::Worker;

/// Copies as rank 0; the other ranks are in [`crate::worker::serve`].
///
/// # Errors
/// What ends the job on the way; nothing was reported as complete.
pub fn copy(comm: &mut Comm, config: &Config) -> Result<ExitCode, LeadError> {
    let signals = Signals::catch()?;
    let mut display = Display::new(config.progress_s);
    let started = Clock::now();
    let watchdog = Watchdog::start(comm.host()).map_err(LeadError::Watchdog)?;
    if let Some((limit, grace)) = time_limit(config, started) {
        watchdog.set(Some(Instant::now() + limit.saturating_sub(grace)), config.grace.unwrap_or(grace));
    } else if let Some(grace) = config.grace {
        watchdog.set(None, grace);
    }
    for note in &config.notes {
        display.note(note);
    }
    let planned = plan(config, started);
    watch::end();
    let (plan, job, prepared) = match planned {
        Ok(prepared) => prepared,
        Err(Unprepared { line, works_later }) => {
            display.print(&format!("pcopy: {line}"));
            if works_later {
                display.print("pcopy: see to that, then run the same command again");
            }
            let refused = refuse(Lead::new(comm, None, display, signals));
            return Ok(if works_later { ExitCode::Stopped } else { refused });
        }
    };
    for note in plan.notes.iter().chain(&prepared.notes) {
        display.note(note);
    }
    display.set_trees(&job.sources, plan.root.as_os_str().as_bytes());
    let mut lead = Lead::new(comm, None, display, signals);
    if let Some((limit, grace)) = time_limit(config, started) {
        if grace >= limit {
            lead.display.note("less time is left than --grace: stopping at once");
        }
        lead.deadline = Some(limit.saturating_sub(grace));
        lead.grace = grace;
    }
    lead.grace = config.grace.unwrap_or(lead.grace);
    let hellos = match greet(&mut lead, &job) {
        Err(err) if err.stop().is_some() => give_up(&lead, &plan, &err),
        Err(err) => return Err(err),
        Ok(Ok(hellos)) => hellos,
        Ok(Err(line)) => {
            lead.display.print(&format!("pcopy: {line}"));
            let acting = act_as(job.policy.run_as).map_err(LeadError::Acting)?;
            prepared.undo(&plan, &job);
            drop(acting);
            lead.send_to_all(&Message::Bye);
            lead.comm.flush();
            return Ok(ExitCode::Refused);
        }
    };
    let acting = act_as(job.policy.run_as).map_err(LeadError::Acting)?;
    watch::begin_in(&job.destination);
    let begun = prepared.begin(&plan, &job);
    watch::end();
    if let Err((path, err)) = begun {
        let err = LeadError::State(path, err);
        let stop = err.stop();
        if stop.is_none() {
            return Err(err);
        }
        lead.display.print(&format!("pcopy: error: {err}"));
        say_how_to_go_on(&lead.display, &plan, stop);
        prepared.leave(&job, false);
        lead.send_to_all(&Message::Bye);
        lead.comm.flush();
        return Ok(ExitCode::Stopped);
    }
    drop(acting);
    if config.verbose {
        say_choices(&lead.display, &plan, config, &hellos);
    }
    note_space(&mut lead.display, &plan);
    lead.hosts = hellos.iter().map(|hello| hello.host.clone()).collect();
    let mut summary = match run(&mut lead, &plan, &job, config, prepared, &hellos, started) {
        Err(err) if err.stop().is_some() => give_up(&lead, &plan, &err),
        summary => summary?,
    };
    lead.send_to_all(&Message::Bye);
    lead.comm.flush();
    lead.display.finish();
    say_how_to_go_on(&lead.display, &plan, summary.stop);
    let code = say(&mut summary, config.output, &lead.display);
    if lead.abandons {
        // A process with a thread in a call that does not return cannot end, and MPI_Finalize lets the launcher wait for it.
        comm::abort(code.number());
    }
    Ok(code)
}

/// Ends all ranks at once. There is no last checkpoint.
fn give_up(lead: &Lead<'_>, plan: &Plan, err: &LeadError) -> ! {
    lead.display.print(&format!("pcopy: error: {err}; what was copied since the last checkpoint is copied again"));
    say_how_to_go_on(&lead.display, plan, err.stop());
    comm::abort(ExitCode::Stopped.number());
}

/// What to do after a stop that somebody has to see to.
fn say_how_to_go_on(display: &Display, plan: &Plan, stop: Option<Stop>) {
    let what = match stop {
        Some(Stop::NoSpace) => {
            let free = act_as(plan.policy.run_as).and_then(|_acting| space(&plan.root));
            let free = free.map_or_else(|_| "an unknown amount".into(), |(free, _)| human_bytes(free));
            format!("{free} free, or no inodes, or a quota is used up: make space there")
        }
        Some(Stop::FileSystemGone) => "see that both file systems are mounted, and writable".into(),
        _ => return,
    };
    let root = shown(&plan.root);
    display
        .print(&format!("pcopy: {root}: {what}, then run the same command again: it goes on where this one stopped"));
}

/// What is to be done, and the first writes.
fn plan(config: &Config, started: Clock) -> Result<(Plan, Job, Prepared), Unprepared> {
    let policy = choices::policy(config).map_err(|refusal| refusal.to_string())?;
    let _acting =
        act_as(policy.run_as).map_err(|err| format!("--uid, --gid: acting as another user: {}", err.desc()))?;
    let plan = resolve(config, policy).map_err(|refusal| refusal.to_string())?;
    let secret = random_bytes().map_err(|err| format!("random bytes for temporary names: {}", err.desc()))?;
    let job = job(&plan, config, started, Secret::new(secret));
    let (prepared, job) = prepare(&plan, config, job, started)?;
    Ok((plan, job, prepared))
}

fn refuse(mut lead: Lead<'_>) -> ExitCode {
    lead.send_to_all(&Message::Begin(None));
    lead.comm.flush();
    ExitCode::Refused
}

/// The time from the start of this run to its time limit or to the end of the Slurm job, whichever comes first; and how long
/// before that the run stops by itself.
fn time_limit(config: &Config, started: Clock) -> Option<(Duration, Duration)> {
    let job_end = std::env::var("SLURM_JOB_END_TIME").ok().and_then(|end| end.parse().ok());
    let now = u64::try_from(started.as_second()).unwrap_or(0);
    // one that has passed is that of an earlier job, in whose environment this one was started
    let of_slurm = job_end.filter(|end| *end > now).map(|end: u64| Duration::from_secs(end - now));
    let limit = [config.time_limit, of_slurm].into_iter().flatten().min()?;
    let grace = config.grace.unwrap_or_else(|| (limit / 10).min(Duration::from_secs(60)));
    Some((limit, grace))
}

/// A quick look at the free space: nobody knows yet how much there is to copy, but a source that is a whole file system says.
fn note_space(display: &mut Display, plan: &Plan) {
    let Ok(_acting) = act_as(plan.policy.run_as) else { return };
    let Ok((free, _)) = space(&plan.root) else { return };
    let roots = plan.sources.iter().filter(|source| source.single.is_none());
    for dir in roots.map(|source| Path::new(std::ffi::OsStr::from_bytes(&source.dir))) {
        let is_mount = dir.parent().is_some_and(|above| {
            let dev = |path| Meta::of_path(path, true).map(|meta| meta.dev);
            dev(dir).ok() != dev(above).ok()
        });
        if let (true, Ok((_, used))) = (is_mount, space(dir))
            && used > free
        {
            let (used, free) = (human_bytes(used), human_bytes(free));
            let (dir, root) = (shown(dir), shown(&plan.root));
            display.note(&format!("{dir} holds {used}, {root} has {free} free: it may not fit"));
        }
    }
}

fn job(plan: &Plan, config: &Config, started: Clock, secret: Secret) -> Job {
    let mut seed = blake3::Hasher::new();
    seed.update(&started.as_nanosecond().to_le_bytes()).update(&std::process::id().to_le_bytes());
    seed.update(plan.root.as_os_str().as_bytes());
    let id = seed.finalize();
    // in a dry run a root that is not there is not made: ranks see the directory that it would be in
    let above = plan.root.parent().filter(|_| plan.policy.dry_run && !plan.root_exists);
    let destination = above.unwrap_or(&plan.root);
    Job {
        id: u64::from_le_bytes(id.as_bytes()[..8].try_into().expect("eight bytes")),
        secret,
        // nothing of a dry run; else the marker will tell
        maker: Maker::default(),
        sources: plan.sources.clone(),
        destination: destination.as_os_str().as_bytes().to_vec(),
        abandoned: Vec::new(),
        generation: 1,
        began: None,
        state: plan.state.clone().filter(|_| !plan.policy.dry_run),
        fresh: !plan.root_exists,
        coarse_times: false,
        tuning: config.tuning,
        policy: plan.policy.clone(),
        filter: plan.choice.filter.clone(),
        one_file_system: plan.choice.one_file_system,
    }
}

/// Tells all ranks the job, starts this rank's worker, and waits until all are ready; or says who is not.
fn greet(lead: &mut Lead<'_>, job: &Job) -> Result<Result<Vec<Hello>, String>, LeadError> {
    // ranks that do not know the filter are given no directory to list
    let filter = if job.filter.travels() { job.filter.clone() } else { Filter::default() };
    let begin = Message::Begin(Some(Box::new(Job { filter, ..job.clone() })));
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
    lead.awaited = (1..lead.comm.size()).collect();
    for _ in 1..lead.comm.size() {
        match lead.next_of_any()? {
            (from, Incoming::Hello(hello)) if lead.awaited.remove(&from) => hellos[from] = Some(hello),
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
    Ok(Err(format!("rank {rank} on {}: {}{more}", one_line(host), one_line(trouble))))
}

/// Everything from the first entry to the manifest.
fn run(
    lead: &mut Lead<'_>,
    plan: &Plan,
    job: &Job,
    config: &Config,
    mut prepared: Prepared,
    hellos: &[Hello],
    started: Clock,
) -> Result<Summary, LeadError> {
    let threads: Vec<u32> = hellos.iter().map(|hello| hello.threads).collect();
    let recorded = prepared.recorded();
    let mut coordinator = Coordinator::new(&threads, config.tuning.digest, Arc::clone(&recorded.partials));
    coordinator.keep_in(Box::new(Spill::default()));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_SCAN_THREADS);
    let roots = lead.worker.as_ref().expect("rank 0 works while it leads").roots();
    let job = Arc::new(job.clone());
    // the scan's threads are started as whom they act
    let acting = act_as(job.policy.run_as).map_err(LeadError::Acting)?;
    let what = (plan.choice.selection.clone(), recorded.clone());
    let scan = Scan::start(&job, roots, what, cores, &plan.singles).map_err(LeadError::Scan)?;
    drop(acting);
    let state = prepared.state_dir().map_err(|err| LeadError::State(".".into(), err))?;
    lead.limit = Limit::new(config.limit_rate, state, job.policy.run_as);
    lead.share_limit(&threads);
    let leaders = (0..).zip(hellos).filter(|(_, hello)| hello.syncs).map(|(rank, _)| rank).collect();
    let durability = if job.policy.dry_run { Durability::None } else { config.tuning.durability };
    let mut checkpoints = Checkpoints::new(hellos.len(), leaders, config.checkpoint_interval, durability);
    lead.run((&mut coordinator, &mut checkpoints), scan, (&recorded.base, &threads), || prepared.is_lost())?;
    let sums = lead.stop(&mut checkpoints)?;
    let progress = coordinator.progress();
    let sums = Stats { retries: sums.retries.saturating_add(progress.retries), ..sums };
    let header = header(plan, config, hellos, started);
    let mut summary = Summary {
        started,
        seconds: 0.0,
        stats: sums,
        excluded: progress.excluded,
        lent: progress.lent,
        bytes_moved: progress.bytes_moved,
        runs: prepared.runs(),
        has_state: job.state.is_some(),
        unrecorded: lead.unrecorded,
        hosts: header.hosts.clone(),
        manifest: None,
        dry_run: plan.policy.dry_run,
        stop: None,
        unsaid: None,
        code: ExitCode::Stopped,
    };
    let collected = match lead.stop {
        Some(_) => Err(LeadError::Halted),
        None if !act_as(job.policy.run_as).is_ok_and(|_acting| prepared.is_held()) => return Err(LeadError::LockLost),
        None => {
            // three counts of the same entries: by the scan, by the ranks, in the manifest
            let ended = sums.entries();
            if progress.seen != ended {
                return Err(LeadError::Counts(format!("{} entries were seen, {ended} ended", progress.seen)));
            }
            summary.manifest = plan.manifest_path().filter(|_| prepared.manifest.is_some()).map(|path| shown(&path));
            let acting = act_as(job.policy.run_as).map_err(LeadError::Acting)?;
            let target = Target {
                place: prepared.manifest.take(),
                shown: summary.manifest.as_deref(),
                header: &header,
                // without it the journals stay, which hold the same
                base: prepared.new_base(&job).unwrap_or(None),
                said: (plan.policy.dry_run && config.output == Output::Text)
                    .then_some(foreseen as fn(&Record) -> String),
            };
            drop(acting);
            collect(lead, &job, &recorded.base, target, ended)
        }
    };
    let _acting = act_as(job.policy.run_as).map_err(LeadError::Acting)?;
    watch::begin_in(&job.destination);
    summary.seconds = lead.display.elapsed().as_secs_f64();
    let stop = match &collected {
        Err(LeadError::Halted) => lead.stop,
        Err(err) => err.stop(),
        Ok(_) => None,
    };
    match collected {
        Ok(Collected { stats, has_base, unsaid }) => {
            let Stats { recopied, resumed, resumed_bytes, retries, .. } = sums;
            summary.stats = Stats { recopied, resumed, resumed_bytes, retries, ..stats };
            lead.explain_changes(&summary.stats, job.policy.changes);
            summary.unsaid = unsaid;
            let cleaned = prepared.complete(&job, has_base, stats.errors);
            if let Err((what, err)) = &cleaned {
                lead.display.print(&format!("pcopy: error: {what}: {err}"));
            }
            summary.code = match (cleaned.is_ok(), stats.errors, stats.unkept) {
                (false, _, _) => ExitCode::Broken,
                (true, 0, 0) => ExitCode::Complete,
                (true, 0, _) if !config.strict => ExitCode::Complete,
                (true, _, _) => ExitCode::EntriesFailed,
            };
        }
        // A rank does not answer, so that MPI_Finalize would wait for ever.
        Err(err @ LeadError::GaveUp { .. }) => return Err(err),
        Err(err) if stop.is_some() => {
            if !matches!(err, LeadError::Halted) {
                lead.display.print(&format!("pcopy: error: {err}"));
            }
            (summary.stop, summary.manifest) = (stop, None);
            prepared.leave(&job, lead.abandons);
        }
        Err(err) => return Err(err),
    }
    Ok(summary)
}

/// What a dry run says of an entry.
fn foreseen(record: &Record) -> String {
    let path = &record.path;
    match &record.outcome {
        Outcome::Failed(failure) => format!("FAIL {path}: {failure}"),
        Outcome::Done(facts) => match facts.fate {
            Fate::KeptExisting | Fate::KeptNewer => format!("kept {path}"),
            _ if facts.hardlink.is_some() => format!("link {path}"),
            Fate::Made => format!("new {path}"),
            Fate::Replaces if record.kind == Kind::Dir => format!("merge {path}"),
            Fate::Replaces => format!("replace {path}"),
        },
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
        ("preserve", plan.policy.preserve.names().into()),
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
        dry_run: plan.policy.dry_run,
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

/// Writes the summary to stdout. Returns the exit code of the job: 1 instead of 0 if that failed.
fn say(summary: &mut Summary, output: Output, display: &Display) -> ExitCode {
    let text = match output {
        Output::Nothing => String::new(),
        Output::Json => format!("{}\n", summary.json()),
        Output::Text => summary.text(),
    };
    let said = to_stdout(&text).err();
    let Some(err) = summary.unsaid.take().or(said) else { return summary.code };
    let result = summary.result();
    display.print(&format!("pcopy: error: the summary could not be written to stdout: {err}; its result: {result}"));
    match summary.code {
        ExitCode::Complete => ExitCode::EntriesFailed,
        code => code,
    }
}
