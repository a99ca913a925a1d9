//! Which entry each thread of this process works on, and since when: to report operations that do not return.
//!
//! A thread notes each entry that it begins, and each block that it has moved. The kernel tells which call it is in, and on which
//! file: proc_pid_syscall(5). Nothing here calls a file system other than
//! procfs.

use std::cell::OnceCell;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::proto::Overdue;
use crate::types::MAX_NAME_LEN;

/// Operations that have not returned for this long are reported while the job runs.
pub const LONG: Duration = Duration::from_secs(30);

/// One slot for each thread that has called [`begin`].
static SLOTS: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

struct Slot {
    thread: i32,
    at: Mutex<At>,
}

#[derive(Default)]
struct At {
    /// The entry, relative to the copy's root, or an absolute path.
    path: Vec<u8>,
    /// `None` while the thread works on nothing.
    since: Option<Instant>,
}

thread_local! {
    static OWN: OnceCell<Arc<Slot>> = const { OnceCell::new() };
}

fn with_own(what: impl FnOnce(&mut At)) {
    OWN.with(|own| {
        let slot = own.get_or_init(|| {
            let slot = Arc::new(Slot { thread: nix::unistd::gettid().as_raw(), at: Mutex::default() });
            let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|slot| slot.strong_count() > 0);
            slots.push(Arc::downgrade(&slot));
            slot
        });
        what(&mut slot.at.lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// This thread begins with an entry: its path, or that of its directory and its name.
pub fn begin(dir: &[u8], name: &[u8]) {
    with_own(|at| {
        at.path.clear();
        at.path.extend_from_slice(dir);
        if !dir.is_empty() && !name.is_empty() {
            at.path.push(b'/');
        }
        at.path.extend_from_slice(name);
        at.since = Some(Instant::now());
    });
}

/// This thread begins with entries of a directory, which it does not note one by one.
pub fn begin_in(dir: &[u8]) {
    begin(&[dir, b"/"].concat(), b"");
}

/// This thread goes on with the same entry: a call has returned.
pub fn goes_on() {
    with_own(|at| at.since = at.since.map(|_| Instant::now()));
}

/// This thread has nothing to do.
pub fn end() {
    with_own(|at| at.since = None);
}

/// The operations of this process that have not returned for longer than this, the longest first.
pub fn overdue(longer: Duration) -> Vec<Overdue> {
    let slots: Vec<_> = SLOTS.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
    let mut overdue: Vec<_> = slots.iter().filter_map(|slot| slot.overdue(longer)).collect();
    overdue.sort_by_key(|operation| std::cmp::Reverse(operation.seconds));
    overdue
}

impl Slot {
    fn overdue(&self, longer: Duration) -> Option<Overdue> {
        let (path, since) = {
            let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
            (at.path.clone(), at.since.filter(|since| since.elapsed() > longer)?)
        };
        let (call, about) = match std::fs::read_to_string(format!("/proc/self/task/{}/syscall", self.thread)) {
            Ok(line) => call(&line)?,
            // The thread has ended, or the kernel has no such file. The entry is reported without the call.
            Err(_) => ("an operation", About::Unknown),
        };
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let opened = |fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let known = match about {
            About::File(fd) => opened(fd).map(|file| file.into_os_string().into_encoded_bytes()),
            // statx, newfstatat and utimensat can be about the open file itself.
            About::EntryOf(fd) => {
                opened(fd).map(|dir| match dir.file_name().is_some_and(|own| own.as_bytes() == name) {
                    true => dir.into_os_string().into_encoded_bytes(),
                    false => [dir.as_os_str().as_bytes(), b"/", name].concat(),
                })
            }
            About::Unknown => None,
        };
        let mut path = known.unwrap_or(path);
        path.truncate(MAX_NAME_LEN);
        Some(Overdue { call: call.to_string(), path, seconds: since.elapsed().as_secs() })
    }
}

/// Calls whose first argument is an open file; below those that name an entry of an open directory.
const OF_FILE: [(i64, &str); 22] = [
    (libc::SYS_read, "read"),
    (libc::SYS_pread64, "read"),
    (libc::SYS_write, "write"),
    (libc::SYS_pwrite64, "write"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fsync"),
    (libc::SYS_syncfs, "syncfs"),
    (libc::SYS_close, "close"),
    (libc::SYS_getdents64, "list"),
    (libc::SYS_fstat, "stat"),
    (libc::SYS_lseek, "seek"),
    (libc::SYS_ftruncate, "truncate"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_fchown, "chown"),
    (libc::SYS_fchmod, "chmod"),
    (libc::SYS_fsetxattr, "xattr"),
    (libc::SYS_fgetxattr, "xattr"),
    (libc::SYS_flistxattr, "xattr"),
    (libc::SYS_fremovexattr, "xattr"),
    (libc::SYS_fstatfs, "statfs"),
    (libc::SYS_copy_file_range, "clone"),
];
const IN_DIRECTORY: [(i64, &str); 12] = [
    (libc::SYS_openat, "open"),
    (libc::SYS_newfstatat, "stat"),
    (libc::SYS_statx, "stat"),
    (libc::SYS_linkat, "link"),
    (libc::SYS_renameat2, "rename"),
    (libc::SYS_unlinkat, "remove"),
    (libc::SYS_mkdirat, "mkdir"),
    (libc::SYS_symlinkat, "symlink"),
    (libc::SYS_mknodat, "mknod"),
    (libc::SYS_readlinkat, "readlink"),
    (libc::SYS_utimensat, "utimes"),
    (libc::SYS_fchownat, "chown"),
];
/// Calls in which a thread waits for another thread, or sleeps.
const WAITS: [i64; 3] = [libc::SYS_futex, libc::SYS_nanosleep, libc::SYS_clock_nanosleep];

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    File(i32),
    /// An entry of the directory.
    EntryOf(i32),
    Unknown,
}

/// The call of a line of `/proc/PID/syscall`, and what it is about; `None` where the thread only waits for another one.
fn call(line: &str) -> Option<(&'static str, About)> {
    let mut words = line.split_whitespace();
    // "running", or -1 outside of a system call. libioil waits in a loop.
    let number: i64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(-1);
    if WAITS.contains(&number) {
        return None;
    }
    let argument = words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let fd = argument.and_then(|argument| i32::try_from(argument).ok());
    let of = |calls: &[(i64, &'static str)]| calls.iter().find(|(other, _)| *other == number).map(|(_, name)| *name);
    Some(match (of(&OF_FILE), of(&IN_DIRECTORY)) {
        (Some(name), _) => (name, fd.map_or(About::Unknown, About::File)),
        (None, Some(name)) => (name, fd.map_or(About::Unknown, About::EntryOf)),
        (None, None) => ("an operation", About::Unknown),
    })
}

/// When the thread that speaks MPI last looked at signals, clock and messages, in milliseconds since [`STARTED`].
static LOOKED: AtomicU64 = AtomicU64::new(0);
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now_ms() -> u64 {
    u64::try_from(STARTED.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Notes that the thread that speaks MPI looks at signals, clock and messages.
pub fn looks_around() {
    LOOKED.store(now_ms(), Ordering::Relaxed);
}

/// The time since the last call of [`looks_around`].
pub fn not_looked_for() -> Duration {
    Duration::from_millis(now_ms().saturating_sub(LOOKED.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn the_call_that_a_thread_is_in_and_its_file_are_told() {
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        let shown = std::fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd())).expect("it is open");
        let (sender, told) = channel();
        let waits = thread::spawn(move || {
            begin(b"dir", b"file");
            sender.send(()).expect("heard");
            nix::unistd::read(&reader, &mut [0]).expect("read");
            end();
        });
        told.recv().expect("told");
        let of_reader = || {
            let overdue = overdue(Duration::ZERO);
            overdue.into_iter().find(|operation| operation.path == shown.as_os_str().as_bytes())
        };
        let found = (0..1000).find_map(|_| {
            thread::sleep(Duration::from_millis(2));
            of_reader()
        });
        assert_eq!(found.expect("told").call, "read");
        assert!(overdue(Duration::from_secs(60)).is_empty());
        drop(writer);
        waits.join().expect("ended");
        assert!(of_reader().is_none());
    }

    #[test]
    fn calls_are_known_by_their_numbers_and_waiting_is_none() {
        let line = |number: i64| format!("{number} 0x7 0x1 0x2 0x0 0x0 0x0 0x7f 0x7e\n");
        assert_eq!(call(&line(libc::SYS_pread64)), Some(("read", About::File(7))));
        assert_eq!(call(&line(libc::SYS_renameat2)), Some(("rename", About::EntryOf(7))));
        assert_eq!(call(&line(libc::SYS_futex)), None);
        assert_eq!(call("running\n"), Some(("an operation", About::Unknown)));
    }
}
