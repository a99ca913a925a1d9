//! The lock of a state directory: one run at a time, over all hosts. It survives neither a crash nor a reboot.
//!
//! A file, `lock`, that says who works, and how often it has shown a sign of life. On this node the kernel's lock on it, and
//! the process, tell whether that one lives. For another node, over a file system whose locks may not reach there, only the
//! sign of life does: who sees none for some time takes the lock over, and who finds somebody else's name in it ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::sys::{Errno, Locked, Reading, create_new, lock_file, open_read, open_write, remove_file};
use crate::watch;

/// Its name in the state directory.
pub(super) const NAME: &[u8] = b"lock";
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(2);
/// Without a sign of life, until the lock is taken over.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between taking over and looking whether nobody else did.
const SETTLE: Duration = Duration::from_secs(1);
/// The file is always of this length, so that one write replaces all of it.
const LEN: usize = 512;

/// Who works on a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    boot_id: String,
    pub pid: u32,
    /// Clock ticks since the boot.
    start_time: u64,
    /// Processes are numbered apart in containers.
    pid_ns: String,
    /// Unique to the run.
    run: u64,
    beat: u64,
}

/// The lock, held. Dropped without [`Lock::release`] it is left to be taken over.
pub struct Lock {
    dir: OwnedFd,
    run: u64,
    lost: Arc<AtomicBool>,
    end: Sender<()>,
    thread: JoinHandle<Holder>,
}

/// The lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another pcopy works on this copy (host {}, process {}): wait for its end, or end it", .0.host, .0.pid)]
    Held(Holder),
    #[error(
        "a process of the run before is in a call to a file system that does not return (host {}, process {}): it ends \
         when that file system answers or is unmounted by force", .0.host, .0.pid
    )]
    Ending(Holder),
    #[error("the lock: {0}")]
    Io(#[from] io::Error),
}

impl LockError {
    /// A process of this node holds the lock.
    fn held(holder: Holder) -> Self {
        if holder.pid != 0 && is_ending(holder.pid) { Self::Ending(holder) } else { Self::Held(holder) }
    }
}

impl From<Errno> for LockError {
    fn from(err: Errno) -> Self {
        Self::Io(err.into())
    }
}

impl Holder {
    fn this(run: u64) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
        let pid = std::process::id();
        let pid_ns = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default().to_string_lossy().into_owned();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid,
            start_time: start_time(pid).unwrap_or(0),
            pid_ns,
            run,
            beat: 0,
        }
    }

    /// Whether it lives, as far as this node can tell.
    fn lives(&self, this: &Self) -> Option<bool> {
        if self.host != this.host {
            return None;
        }
        if self.boot_id != this.boot_id {
            // this node has been started again since
            return Some(false);
        }
        (self.pid_ns == this.pid_ns).then(|| start_time(self.pid) == Some(self.start_time))
    }

    fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [b' '; LEN];
        let text = serde_json::to_vec(self).expect("plain text and numbers");
        let len = text.len().min(LEN - 1);
        bytes[..len].copy_from_slice(&text[..len]);
        bytes[LEN - 1] = b'\n';
        bytes
    }
}

/// When a process that lives was started.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the 3rd and the 22nd field, the first and the 20th behind the name in parentheses
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    // A process that has ended is listed until its parent has waited for it. One whose first thread has ended may have others.
    (!has_ended(state) || has_threads(pid)).then_some(start_time)
}

fn has_ended(state: &str) -> bool {
    matches!(state, "Z" | "X")
}

/// Whether a process has a thread that has not ended.
fn has_threads(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    let mut states = stats.filter_map(|stat| Some(stat.rsplit(')').next()?.split_whitespace().next()?.to_owned()));
    states.any(|state| !has_ended(&state))
}

/// Whether a process was killed and has not ended: it has a thread in a system call that does not return.
fn is_ending(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = |name| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    let is_killed = (pending("SigPnd:") | pending("ShdPnd:")) >> (libc::SIGKILL - 1) & 1 == 1;
    is_killed || field("State:").is_some_and(|state| has_ended(&state[..1.min(state.len())]))
}

fn read(dir: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let file = File::from(open_read(dir.as_fd(), NAME, Reading::default())?);
    let mut bytes = vec![0; 2 * LEN];
    let got = file.read_at(&mut bytes, 0).map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(libc::EIO)))?;
    bytes.truncate(got);
    Ok(bytes)
}

fn holder(bytes: &[u8]) -> Option<Holder> {
    serde_json::from_slice(bytes).ok()
}

impl Lock {
    /// Takes the lock of a state directory, for the run of this number. `waiting` is called when it has to wait for a sign of
    /// life of another node's run. `bury` is called with the number of a run that died with the lock, while that still stands
    /// in it: a crash in between leaves the number for the next run.
    ///
    /// # Errors
    /// Somebody else has it; a file that cannot be made or written; those of `bury`.
    pub fn take(
        dir: OwnedFd,
        run: u64,
        waiting: impl FnOnce(&str),
        bury: impl FnOnce(u64) -> Result<(), Errno>,
    ) -> Result<Self, LockError> {
        let this = Holder::this(run);
        let (file, is_new) = match create_new(dir.as_fd(), NAME, 0o600) {
            Ok(file) => (File::from(file), true),
            Err(Errno::EEXIST) => (File::from(open_write(dir.as_fd(), NAME)?), false),
            Err(err) => return Err(err.into()),
        };
        let before = if is_new { Vec::new() } else { read(&dir)? };
        match lock_file(file.as_fd())? {
            Locked::Yes | Locked::CannotTell => {}
            Locked::ByOther => return Err(LockError::held(holder(&before).unwrap_or(Holder { pid: 0, ..this }))),
        }
        if !is_new {
            match holder(&before).map(|other| (other.lives(&this), other)) {
                Some((Some(true), other)) => return Err(LockError::held(other)),
                Some((Some(false), _)) => {}
                Some((None, other)) => {
                    waiting(&other.host);
                    wait_for_life(&dir, &before)?;
                }
                // cut off by a crash, or being written
                None => wait_for_life(&dir, &before)?,
            }
            holder(&before).map_or(Ok(()), |dead| bury(dead.run))?;
        }
        let written =
            file.write_all_at(&this.bytes(), 0).and_then(|()| file.set_len(LEN as u64)).and_then(|()| file.sync_data());
        if let Err(err) = written {
            // an empty one would make the next run wait
            if is_new {
                remove_file(dir.as_fd(), NAME)?;
            }
            return Err(err.into());
        }
        if !is_new && holder(&before).is_some_and(|other| other.host != this.host) {
            thread::sleep(SETTLE);
        }
        match holder(&read(&dir)?) {
            Some(now) if now.run == run => {}
            Some(other) => return Err(LockError::Held(other)),
            None => return Err(LockError::Io(io::ErrorKind::InvalidData.into())),
        }
        let (end, ended) = bounded(0);
        let lost = Arc::new(AtomicBool::new(false));
        let (at, lost_to) = (dir.try_clone()?, Arc::clone(&lost));
        let beat = move || {
            let mut this = this;
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                watch::begin(b".pcopy", NAME);
                // a read that fails says nothing
                if read(&at).is_ok_and(|bytes| holder(&bytes).is_none_or(|now| now.run != this.run)) {
                    lost_to.store(true, Ordering::Relaxed);
                    break;
                }
                this.beat += 1;
                // without it others wait, and take over: that is noticed
                let _ = file.write_all_at(&this.bytes(), 0);
                watch::end();
            }
            this
        };
        let thread = thread::Builder::new().name("lock".into()).spawn(beat)?;
        Ok(Self { dir, run, lost, end, thread })
    }

    /// Whether another run has taken it over.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether it still is this run's, looked at now.
    pub fn is_held(&self) -> bool {
        // a read that fails says nothing
        !self.is_lost() && read(&self.dir).map_or(true, |bytes| holder(&bytes).is_some_and(|now| now.run == self.run))
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn release(self) -> Result<(), Errno> {
        drop(self.end);
        let Ok(this) = self.thread.join() else { return Ok(()) };
        match read(&self.dir) {
            Ok(bytes) if holder(&bytes).is_some_and(|now| now.run == this.run) => remove_file(self.dir.as_fd(), NAME),
            // it is not this run's any more
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(err) => Err(err),
        }
    }
}

/// The holder of the lock in a state directory of any owner. `None` if there is no lock, or its process is known to be dead. A
/// holder on another host counts as alive: this function does not wait for a sign of life.
///
/// # Errors
/// It cannot be read. One that says nothing is `EAGAIN`: it is being written, or a crash cut it off.
pub(super) fn held_by(dir: &OwnedFd) -> Result<Option<Holder>, Errno> {
    let bytes = match read(dir) {
        Err(Errno::ENOENT) => return Ok(None),
        bytes => bytes?,
    };
    let other = holder(&bytes).ok_or(Errno::EAGAIN)?;
    Ok((other.lives(&Holder::this(0)) != Some(false)).then_some(other))
}

/// Waits as long as a run on another node may need to show a sign of life.
fn wait_for_life(dir: &OwnedFd, before: &[u8]) -> Result<(), LockError> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        thread::sleep(BEAT / 4);
        let now = match read(dir) {
            // given back meanwhile
            Err(Errno::ENOENT) => return Err(LockError::Io(Errno::EAGAIN.into())),
            now => now?,
        };
        if now != before
            && let Some(other) = holder(&now)
        {
            return Err(LockError::Held(other));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::open_root;

    #[test]
    fn one_run_has_it_until_it_is_released() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = || open_root(home.path()).expect("opens");
        let lock = Lock::take(dir(), 1, |_| {}, |_| Ok(())).expect("free");
        let Err(LockError::Held(other)) = Lock::take(dir(), 2, |_| {}, |_| Ok(())) else { panic!("taken twice") };
        assert_eq!((other.pid, other.run), (std::process::id(), 1));
        assert!(!lock.is_lost());
        lock.release().expect("released");
        assert!(!home.path().join("lock").exists());
        Lock::take(dir(), 3, |_| {}, |_| Ok(())).expect("free again").release().expect("released");
    }

    #[test]
    fn one_that_died_on_this_node_is_taken_over_at_once() {
        let home = tempfile::tempdir().expect("a directory");
        let this = Holder::this(1);
        let started = Instant::now();
        for dead in [
            Holder { start_time: this.start_time + 1, ..this.clone() },
            Holder { boot_id: "another".into(), ..this.clone() },
        ] {
            std::fs::write(home.path().join("lock"), dead.bytes()).expect("written");
            let mut buried = None;
            let bury = |run| {
                // it still is the dead one's
                assert_eq!(std::fs::read(home.path().join("lock")).expect("there"), dead.bytes());
                buried = Some(run);
                Ok(())
            };
            let lock = Lock::take(open_root(home.path()).expect("opens"), 2, |_| {}, bury).expect("taken over");
            assert_eq!(buried, Some(1));
            lock.release().expect("released");
        }
        assert!(started.elapsed() < PATIENCE);
        std::fs::write(home.path().join("lock"), Holder { run: 9, ..this }.bytes()).expect("written");
        assert!(matches!(
            Lock::take(open_root(home.path()).expect("opens"), 2, |_| {}, |_| Ok(())),
            Err(LockError::Held(_))
        ));
    }
}
