//! Faults that come and go while the passthrough is mounted: an errno for some calls, the first few or all of them,
//! room that ends and is made again, and a switch for the speed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use fuser::{Errno, FileHandle, INodeNo, Request};

use super::passthrough::Passthrough;
use crate::support::oracle::STATE;

/// What the kernel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Lookup,
    GetAttr,
    SetAttr,
    Open,
    OpenToWrite,
    Create,
    /// Symbolic links, hard links, fifos and devices.
    MakeOther,
    MakeDir,
    Remove,
    Rename,
    Read,
    Write,
    /// Each close of a descriptor.
    Flush,
    Fsync,
    OpenDir,
    ReadDir,
    SetXattr,
}

impl Call {
    /// All that a read-only file system refuses.
    pub const CHANGES: &[Call] = &[
        Call::SetAttr,
        Call::OpenToWrite,
        Call::Create,
        Call::MakeOther,
        Call::MakeDir,
        Call::Remove,
        Call::Rename,
        Call::Write,
        Call::SetXattr,
    ];
}

#[derive(Clone, Debug)]
enum Names {
    All,
    /// Neither the program's own records nor a directory that is called `src` or `dst`.
    Entries,
    Only(OsString),
}

impl Names {
    fn have(&self, name: &OsStr) -> bool {
        match self {
            Names::All => true,
            Names::Entries => !is_state(name) && !["", "src", "dst"].iter().any(|operand| name == *operand),
            Names::Only(only) => only == name,
        }
    }
}

/// The program's own: its records, and what it looks for from every node, but not an entry under a temporary name.
fn is_state(name: &OsStr) -> bool {
    let records = ["job.json", "lock", "base", "journal-", "manifest.jsonl"];
    let bytes = name.as_encoded_bytes();
    let own = bytes.starts_with(STATE) && !bytes.ends_with(b".tmp");
    own || records.iter().any(|record| bytes.starts_with(record.as_bytes()))
}

#[derive(Clone, Copy, Debug)]
enum Times {
    First(u64),
    FirstOfEach(u64),
    Always,
}

/// Calls that fail: all of these kinds, until it is narrowed.
#[derive(Clone, Debug)]
pub struct Trouble {
    calls: &'static [Call],
    errno: i32,
    names: Names,
    times: Times,
    skip: u64,
    loses_data: bool,
}

impl Trouble {
    pub fn new(calls: &'static [Call], errno: i32) -> Trouble {
        Trouble { calls, errno, names: Names::All, times: Times::Always, skip: 0, loses_data: false }
    }

    /// Only on entries of the tree: not on the operands, nor on the program's own records.
    pub fn entries(self) -> Trouble {
        Trouble { names: Names::Entries, ..self }
    }

    pub fn named(self, name: &str) -> Trouble {
        Trouble { names: Names::Only(name.into()), ..self }
    }

    /// Only so many times.
    pub fn first(self, count: u64) -> Trouble {
        Trouble { times: Times::First(count), ..self }
    }

    /// Only so many times for each name.
    pub fn first_of_each(self, count: u64) -> Trouble {
        Trouble { times: Times::FirstOfEach(count), ..self }
    }

    /// Only after so many that would have failed went well.
    pub fn after(self, count: u64) -> Trouble {
        Trouble { skip: count, ..self }
    }

    /// An fsync or close that fails leaves zeros where the file's data was, as a page cache may.
    pub fn loses_data(self) -> Trouble {
        Trouble { loses_data: true, ..self }
    }
}

struct Active {
    trouble: Trouble,
    met: u64,
    struck: u64,
    each: HashMap<OsString, u64>,
}

impl Active {
    /// Counts a call that the trouble is about; whether it fails.
    fn strikes(&mut self, name: &OsStr) -> bool {
        self.met += 1;
        if self.met <= self.trouble.skip {
            return false;
        }
        let each = self.each.entry(name.to_owned()).or_default();
        let strikes = match self.trouble.times {
            Times::First(count) => self.struck < count,
            Times::FirstOfEach(count) => *each < count,
            Times::Always => true,
        };
        *each += u64::from(strikes);
        self.struck += u64::from(strikes);
        strikes
    }
}

#[derive(Default)]
struct State {
    troubles: Mutex<Vec<Active>>,
    /// Bytes that may still be written, and what else is told.
    room: Mutex<Option<(u64, i32)>>,
    struck: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    delay_ms: AtomicU64,
    /// How long an fsync of an entry takes, and how many are being served.
    fsync_ms: AtomicU64,
    fsyncs: AtomicU64,
    /// Calls that do not return, by the names that they are about; how many have hung so far.
    hangs: Mutex<Vec<(Call, OsString)>>,
    lifted: Condvar,
    hung: AtomicU64,
    /// Requests of the kernel, by their names.
    requests: Mutex<BTreeMap<&'static str, u64>>,
    /// And which users have asked for each.
    users: Mutex<BTreeSet<(&'static str, u32)>>,
}

/// The switches of a passthrough; the clones are the same switches.
#[derive(Clone, Default)]
pub struct Control(Arc<State>);

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Control({} struck)", self.struck())
    }
}

impl Control {
    pub fn add(&self, trouble: Trouble) {
        let active = Active { trouble, met: 0, struck: 0, each: HashMap::new() };
        self.0.troubles.lock().unwrap().push(active);
    }

    /// So many bytes more may be written; then `errno`.
    pub fn leave_room(&self, bytes: u64, errno: i32) {
        *self.0.room.lock().unwrap() = Some((bytes, errno));
    }

    /// The bytes that may still be written, where they are counted.
    pub fn room(&self) -> Option<u64> {
        self.0.room.lock().unwrap().map(|(bytes, _)| bytes)
    }

    /// Every read and write takes this long from now on.
    pub fn delay(&self, delay_ms: u64) {
        self.0.delay_ms.store(delay_ms, Ordering::Relaxed);
    }

    /// Every fsync of an entry takes this long from now on; a file that is made meanwhile is counted as a request of its own,
    /// `create beside fsync`.
    pub fn delay_fsync(&self, delay_ms: u64) {
        self.0.fsync_ms.store(delay_ms, Ordering::Relaxed);
    }

    /// A call about an entry of this name does not return until all is lifted.
    pub fn hang(&self, call: Call, name: &str) {
        self.0.hangs.lock().unwrap().push((call, name.into()));
    }

    /// How many calls have not returned.
    pub fn hung(&self) -> u64 {
        self.0.hung.load(Ordering::SeqCst)
    }

    /// Calls that hang return, and no further ones hang.
    pub fn let_go(&self) {
        self.0.hangs.lock().unwrap().clear();
        self.0.lifted.notify_all();
    }

    /// No trouble any more, as much room as there is, and no delay.
    pub fn lift(&self) {
        self.let_go();
        self.0.troubles.lock().unwrap().clear();
        *self.0.room.lock().unwrap() = None;
        self.delay(0);
        self.delay_fsync(0);
    }

    /// How many calls failed by a trouble or for want of room.
    pub fn struck(&self) -> u64 {
        self.0.struck.load(Ordering::Relaxed)
    }

    /// Reads that were asked for, failed ones too.
    pub fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// Counts a request of the kernel.
    fn count(&self, request: &'static str, user: u32) {
        *self.0.requests.lock().unwrap().entry(request).or_default() += 1;
        self.0.users.lock().unwrap().insert((request, user));
    }

    /// Which users have asked for what, since this was last asked.
    pub fn take_users(&self) -> BTreeSet<(&'static str, u32)> {
        std::mem::take(&mut *self.0.users.lock().unwrap())
    }

    /// How many requests of each kind there were since this was last asked.
    pub fn take_requests(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut *self.0.requests.lock().unwrap())
    }

    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }

    /// Whether this call fails, with what, and whether data goes with it.
    fn meets(&self, call: Call, name: &OsStr) -> Option<(i32, bool)> {
        let mut hangs = self.0.hangs.lock().unwrap();
        let is_meant = |hangs: &[(Call, OsString)]| hangs.iter().any(|(other, of)| *other == call && of == name);
        if is_meant(&hangs) {
            self.0.hung.fetch_add(1, Ordering::SeqCst);
            while is_meant(&hangs) {
                hangs = self.0.lifted.wait(hangs).unwrap();
            }
        }
        drop(hangs);
        let counter = match call {
            Call::Read => Some(&self.0.reads),
            Call::Write => Some(&self.0.writes),
            _ => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(self.0.delay_ms.load(Ordering::Relaxed)));
        }
        let fsync_ms = self.0.fsync_ms.load(Ordering::Relaxed);
        if call == Call::Fsync && fsync_ms > 0 && !is_state(name) {
            self.0.fsyncs.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(fsync_ms));
            self.0.fsyncs.fetch_sub(1, Ordering::SeqCst);
        }
        if call == Call::Create && !is_state(name) && self.0.fsyncs.load(Ordering::SeqCst) > 0 {
            *self.0.requests.lock().unwrap().entry("create beside fsync").or_default() += 1;
        }
        let mut troubles = self.0.troubles.lock().unwrap();
        let about = |active: &&mut Active| active.trouble.calls.contains(&call) && active.trouble.names.have(name);
        let found = troubles.iter_mut().filter(about).find_map(|active| {
            let Trouble { errno, loses_data, .. } = active.trouble;
            active.strikes(name).then_some((errno, loses_data))
        });
        self.0.struck.fetch_add(u64::from(found.is_some()), Ordering::Relaxed);
        found
    }

    fn takes(&self, len: u64) -> Result<(), i32> {
        let mut room = self.0.room.lock().unwrap();
        let Some((bytes, errno)) = *room else { return Ok(()) };
        if len > bytes {
            self.0.struck.fetch_add(1, Ordering::Relaxed);
            return Err(errno);
        }
        *room = Some((bytes - len, errno));
        Ok(())
    }
}

fn as_errno(code: i32) -> Errno {
    Errno::from(io::Error::from_raw_os_error(code))
}

impl Passthrough {
    /// Counts a request of the kernel.
    pub fn count(&self, req: &Request, request: &'static str) {
        self.faults.control.count(request, req.uid());
    }

    /// What a call about this name fails with.
    pub fn trouble(&self, call: Call, name: &OsStr) -> Option<Errno> {
        self.faults.control.meets(call, name).map(|(code, _)| as_errno(code))
    }

    /// The same for an inode, by the name that it was last looked up by.
    pub fn trouble_with(&self, call: Call, ino: INodeNo) -> Option<Errno> {
        self.inodes.get(ino).ok().and_then(|inode| self.trouble(call, &inode.name))
    }

    /// The same for an open file, by the name that it was opened by.
    pub fn trouble_at(&self, call: Call, fh: FileHandle) -> Option<Errno> {
        let handle = self.file(fh).ok()?;
        let (code, loses_data) = self.faults.control.meets(call, &handle.name)?;
        if loses_data && let Ok(meta) = handle.file.metadata() {
            handle.file.set_len(0).and_then(|()| handle.file.set_len(meta.len())).unwrap();
        }
        Some(as_errno(code))
    }

    /// The same for a write of so many bytes.
    pub fn trouble_writing(&self, fh: FileHandle, len: usize) -> Option<Errno> {
        let room = || self.faults.control.takes(u64::try_from(len).unwrap()).err().map(as_errno);
        self.trouble_at(Call::Write, fh).or_else(room)
    }
}
