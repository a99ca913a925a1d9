//! The program with system calls that fail: strace's fault injection, and what was struck.
//!
//! strace counts calls in each thread for itself, and all calls of a name, whatever they are about. So it is attached only
//! when MPI has started and nothing of the trees was looked at: the program reads its filters from a gate first. What a
//! number then leads to may still differ from run to run. Judge by what was struck, not by what was meant.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::launch::{Job, Outcome};
use super::skip::{self, Missing};

/// One system call of a run.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    pub thread: String,
    /// Among the traced calls of this name in its thread, from 1.
    pub number: usize,
    /// What it is about: the last path of a call that has several.
    pub path: Option<String>,
    /// The paths of its descriptors, and its texts as they stand there: what strace selects calls by.
    pub words: Vec<String>,
    /// The errno that was injected.
    pub struck: Option<String>,
}

/// Calls that are to fail.
#[derive(Clone, Debug, Default)]
pub struct Strikes {
    /// Of a name, with a number in whichever thread, with an errno.
    pub calls: Vec<(String, usize, &'static str)>,
    /// Only calls with one of these words are traced, counted and struck; all of them where there are none.
    pub words: Vec<String>,
}

/// Whether strace is there and may attach to a process.
pub fn available() -> Result<(), Missing> {
    skip::root()?;
    skip::program("strace")
}

/// Runs a job of one rank, with these calls failing; what it called, of `names`. `dir` gets the trace.
pub fn run(job: &Job, names: &[&str], strikes: &Strikes, dir: &Path, operands: [&Path; 2]) -> (Outcome, Vec<Call>) {
    let (gate_at, trace) = (dir.join("gate"), dir.join("trace"));
    mkfifo(&gate_at, Mode::S_IRWXU).unwrap();
    // Open on both ends, so that nobody waits for the other one.
    let gate = OpenOptions::new().read(true).write(true).open(&gate_at).unwrap();
    let mut running = job.clone().options(["--exclude-from", "-"]).stdin(&gate_at).start(operands);
    let pid = running.launcher_pid();
    while !waits_at_gate(pid) {
        assert!(running.goes_on(), "it has not read its filters: {}", running.stderr_so_far());
        thread::sleep(Duration::from_millis(2));
    }
    let mut strace = Command::new("strace");
    // Not every machine has every call.
    strace.args(["-qq", "-f", "-y", "-e", "signal=none", "-e", &format!("trace=?{}", names.join(",?"))]);
    for (name, number, errno) in &strikes.calls {
        strace.args(["-e", &format!("inject={name}:error={errno}:when={number}")]);
    }
    for word in &strikes.words {
        strace.args(["-P", word]);
    }
    strace.arg("-o").arg(&trace).args(["-p", &pid.to_string()]);
    let said = dir.join("strace.err");
    let mut strace = strace.stdin(Stdio::null()).stderr(File::create(&said).unwrap()).spawn().unwrap();
    while !is_traced(pid) {
        let ended = strace.try_wait().unwrap().is_some();
        assert!(!ended && running.goes_on(), "strace: {}", fs::read_to_string(&said).unwrap());
        thread::sleep(Duration::from_millis(2));
    }
    drop(gate);
    let outcome = running.wait();
    strace.wait().unwrap();
    let calls = calls_in(&String::from_utf8_lossy(&fs::read(&trace).unwrap()));
    (outcome, calls)
}

fn waits_at_gate(pid: i32) -> bool {
    let now = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    now.starts_with(&format!("{} 0x0 ", libc::SYS_read))
}

fn is_traced(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.filter_map(Result::ok).all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    })
}

/// The calls of a trace, in the order in which they ended.
fn calls_in(trace: &str) -> Vec<Call> {
    let (mut begun, mut counts) = (HashMap::new(), HashMap::<_, usize>::new());
    let (mut open, mut calls) = (HashMap::new(), Vec::new());
    for line in trace.lines() {
        let Some((thread, words)) = line.split_once(' ') else { continue };
        let words = words.trim_start();
        if let Some(half) = words.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, half);
            continue;
        }
        let whole = match words.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            Some((_, rest)) => format!("{}{rest}", begun.remove(thread).unwrap_or_default()),
            None => words.to_owned(),
        };
        let (Some((name, _)), Some((call, answer))) = (whole.split_once('('), whole.rsplit_once(" = ")) else {
            continue;
        };
        let args = &call[name.len()..];
        let (mut paths, words) = read_args(args, &mut open, takes_name(name));
        read_args(answer, &mut open, false);
        let number = counts.entry((thread.to_owned(), name.to_owned())).or_default();
        *number += 1;
        // The second descriptor of a request to share blocks is the source's.
        let path = if name == "ioctl" { paths.drain(..).next() } else { paths.pop() };
        let struck = answer.ends_with("(INJECTED)").then(|| answer.split(' ').nth(1)).flatten();
        calls.push(Call {
            name: name.to_owned(),
            thread: thread.to_owned(),
            number: *number,
            path,
            words,
            struck: struck.map(str::to_owned),
        });
    }
    calls
}

/// Whether a descriptor of a directory is followed by a name in it.
fn takes_name(call: &str) -> bool {
    call.ends_with("at") || ["statx", "renameat2"].contains(&call)
}

/// The absolute paths that arguments lead to, and their words. `open` remembers what each descriptor leads to.
fn read_args(args: &str, open: &mut HashMap<String, String>, takes_names: bool) -> (Vec<String>, Vec<String>) {
    let (mut paths, mut words, mut rest, mut dir) = (Vec::new(), Vec::new(), args, None::<String>);
    while let Some(at) = rest.find(['<', '"']) {
        let (before, is_text) = (&rest[..at], rest.as_bytes()[at] == b'"');
        let Some((inside, behind)) = rest[at + 1..].split_once(if is_text { '"' } else { '>' }) else { break };
        rest = behind;
        words.push(inside.to_owned());
        if is_text {
            let reached = match inside.strip_prefix("/proc/self/fd/") {
                Some(number) => open.get(number).cloned(),
                None if inside.starts_with('/') => Some(inside.to_owned()),
                None => dir.take().filter(|_| takes_names && before == ", ").map(|dir| format!("{dir}/{inside}")),
            };
            let Some(path) = reached else { continue };
            // The name in a directory stands for it.
            if before == ", " {
                paths.pop();
            }
            paths.push(path.trim_end_matches("/.").trim_end_matches('/').to_owned());
            continue;
        }
        let number = &before[before.trim_end_matches(|c: char| c.is_ascii_digit()).len()..];
        if !number.is_empty() {
            open.insert(number.to_owned(), inside.to_owned());
        }
        dir = Some(inside.to_owned());
        paths.push(inside.to_owned());
    }
    (paths, words)
}

#[cfg(test)]
mod tests {
    use super::calls_in;

    #[test]
    fn what_a_call_is_about_is_read_from_its_arguments() {
        let trace = concat!(
            "7 openat(5</a/b>, \"f\", O_RDONLY) = 9</a/b/f>\n",
            "7 fsetxattr(9</a/b/f>, \"user.x\", \"v\", 1, 0) = -1 EPERM (Operation not permitted) (INJECTED)\n",
            "8 renameat(5</a/b>, \"x\", 6</a/c>, \"y\" <unfinished ...>\n",
            "7 listxattr(\"/proc/self/fd/9\", NULL, 0) = 0\n",
            "8 <... renameat resumed>) = 0\n",
            "7 newfstatat(9</a/b/f>, \"\", {st_mode=S_IFREG|0600, ...}, AT_EMPTY_PATH) = 0\n",
            "7 openat(5</a/b>, \"g\", O_RDONLY) = -1 EIO (Input/output error) (INJECTED)\n",
        );
        let calls = calls_in(trace);
        let found: Vec<_> =
            calls.iter().map(|call| (call.number, call.path.as_deref().unwrap(), call.struck.as_deref())).collect();
        let expected = [
            (1, "/a/b/f", None),
            (1, "/a/b/f", Some("EPERM")),
            (1, "/a/b/f", None),
            (1, "/a/c/y", None),
            (1, "/a/b/f", None),
            (2, "/a/b/g", Some("EIO")),
        ];
        assert_eq!(found, expected);
    }
}
