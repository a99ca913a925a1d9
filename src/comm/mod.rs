//! Messages over MPI, by one thread a rank, without ever spinning: non-blocking calls, polled.
//!
//! A blocking receive burns a core (97 % at two ranks, with either MPI), so every wait here polls with
//! pauses that grow ([`Pause`]). Sends own their buffers until MPI is done with them. Messages to the own
//! rank do not go through MPI.

#![allow(unsafe_code)]

mod launcher;
mod pause;

use std::collections::VecDeque;
use std::io::Write;
use std::os::raw::c_int;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::Duration;

pub use launcher::{Launcher, Mismatch};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::traits::Communicator;
pub use pause::Pause;

use crate::proto::{FrameError, MAX_FRAME_LEN, Message};

/// This rank's place in the job, and its messages. Dropping it finalizes MPI, for which all ranks wait.
pub struct Comm {
    // dropped last: its drop calls MPI_Finalize
    world: ffi::MPI_Comm,
    rank: usize,
    size: usize,
    host: String,
    /// This rank's number on its node, and how many ranks the node has.
    node_rank: usize,
    node_size: usize,
    sends: Vec<PendingSend>,
    /// The send that is looked at next.
    next_send: usize,
    receives: VecDeque<PendingReceive>,
    to_self: VecDeque<Vec<u8>>,
    _universe: Universe,
}

struct PendingSend {
    request: ffi::MPI_Request,
    _frame: Box<[u8]>,
}

struct PendingReceive {
    request: ffi::MPI_Request,
    from: usize,
    frame: Box<[u8]>,
}

/// MPI cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    #[error("MPI_Init failed, or was called before")]
    Init,
    #[error("this MPI library does not allow threads beside the one that calls it (MPI_THREAD_FUNNELED)")]
    Threads,
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

/// A frame that could not be understood, and where it came from.
#[derive(Debug, thiserror::Error)]
#[error("a message from rank {from}: {error}")]
pub struct ReceiveError {
    pub from: usize,
    pub error: FrameError,
}

/// All messages carry the same tag: their type stands in the frame.
const TAG: c_int = 1;

impl Comm {
    /// Starts MPI. From here on a panic of any thread ends the whole job.
    ///
    /// # Errors
    /// MPI could not be started, or the launcher started other ranks than MPI knows of.
    pub fn start(launcher: &Launcher) -> Result<Self, CommError> {
        launcher.check_environment()?;
        let (universe, threading) = mpi::initialize_with_threading(Threading::Funneled).ok_or(CommError::Init)?;
        let world = universe.world();
        let of = |number: i32| usize::try_from(number).expect("MPI counts ranks from zero");
        let (rank, size) = (of(world.rank()), of(world.size()));
        let host = mpi::environment::processor_name().unwrap_or_else(|_| "unknown".into());
        end_job_on_panic(rank, host.clone());
        if threading < Threading::Funneled {
            return Err(CommError::Threads);
        }
        launcher.check(size)?;
        let node = world.split_shared(0);
        let (node_rank, node_size) = (of(node.rank()), of(node.size()));
        Ok(Self {
            // SAFETY: a constant of the MPI library, valid from MPI_Init to MPI_Finalize.
            world: unsafe { ffi::RSMPI_COMM_WORLD },
            rank,
            size,
            host,
            node_rank,
            node_size,
            sends: Vec::new(),
            next_send: 0,
            receives: VecDeque::new(),
            to_self: VecDeque::new(),
            _universe: universe,
        })
    }

    /// This rank's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The name of this rank's node.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How many ranks of the job this node has.
    pub fn node_size(&self) -> usize {
        self.node_size
    }

    /// Whether this rank acts for its node where one is enough.
    pub fn leads_node(&self) -> bool {
        self.node_rank == 0
    }

    /// Sends; never waits for the receiver.
    ///
    /// # Panics
    /// When the message is longer than a frame may be: batches are cut so that none is.
    pub fn send(&mut self, to: usize, message: &Message) {
        let frame = message.encode().unwrap_or_else(|err| panic!("a message to rank {to}: {err}"));
        if to == self.rank {
            self.to_self.push_back(frame);
            return;
        }
        let frame = frame.into_boxed_slice();
        let count = c_int::try_from(frame.len()).expect("a frame is far below 2 GiB");
        let to = c_int::try_from(to).expect("ranks are MPI's own numbers");
        // SAFETY: `request` is written by the call; the frame lives on the heap, is not touched, and is
        // dropped only after MPI_Test has said that the send is complete.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            ffi::MPI_Isend(frame.as_ptr().cast(), count, ffi::RSMPI_UINT8_T, to, TAG, self.world, &mut request);
            self.sends.push(PendingSend { request, _frame: frame });
        }
    }

    /// The next message, if one has come whole. Messages of one rank come in the order in which it sent them.
    ///
    /// # Errors
    /// A frame that is too long, or not a message of this protocol.
    pub fn receive(&mut self) -> Result<Option<(usize, Message)>, ReceiveError> {
        let own = self.to_self.pop_front().map(|frame| (self.rank, frame.into_boxed_slice()));
        let next = match own {
            Some(own) => Some(own),
            None => {
                self.start_receives()?;
                self.forget_sent();
                let complete = self.receives.front_mut().is_some_and(|receive| is_complete(&mut receive.request));
                let done = if complete { self.receives.pop_front() } else { None };
                done.map(|receive| (receive.from, receive.frame))
            }
        };
        let Some((from, frame)) = next else {
            return Ok(None);
        };
        match Message::decode(&frame) {
            Ok(message) => Ok(Some((from, message))),
            Err(error) => Err(ReceiveError { from, error }),
        }
    }

    /// Frees what some of the sends have needed: with thousands of ranks there are thousands under way.
    fn forget_sent(&mut self) {
        const AT_ONCE: usize = 16;
        for _ in 0..AT_ONCE.min(self.sends.len()) {
            if self.next_send >= self.sends.len() {
                self.next_send = 0;
            }
            if is_complete(&mut self.sends[self.next_send].request) {
                self.sends.swap_remove(self.next_send);
            } else {
                self.next_send += 1;
            }
        }
    }

    /// Starts to receive every message that has arrived, each into memory of its own length.
    fn start_receives(&mut self) -> Result<(), ReceiveError> {
        const AT_ONCE: usize = 64;
        /// Bytes of frames that have begun to come, at most, but for the last one.
        const MAX_LEN: usize = 32 << 20;
        if self.size == 1 {
            return Ok(());
        }
        let mut begun: usize = self.receives.iter().map(|receive| receive.frame.len()).sum();
        while self.receives.len() < AT_ONCE && begun < MAX_LEN {
            // SAFETY: plain C structs and handles, written by the calls before they are read; the memory of
            // the frame lives on the heap and is not touched before MPI_Test has said that it is filled.
            unsafe {
                let (mut found, mut handle) = (0, ffi::RSMPI_MESSAGE_NULL);
                let mut status: ffi::MPI_Status = std::mem::zeroed();
                ffi::MPI_Improbe(ffi::RSMPI_ANY_SOURCE, TAG, self.world, &mut found, &mut handle, &mut status);
                if found == 0 {
                    return Ok(());
                }
                let mut count = 0;
                ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count);
                let len = usize::try_from(count).unwrap_or(usize::MAX);
                let from = usize::try_from(status.MPI_SOURCE).expect("MPI counts ranks from zero");
                if len > MAX_FRAME_LEN {
                    return Err(ReceiveError { from, error: FrameError::TooLong(len) });
                }
                begun += len;
                let mut frame = vec![0; len].into_boxed_slice();
                let mut request = ffi::RSMPI_REQUEST_NULL;
                ffi::MPI_Imrecv(frame.as_mut_ptr().cast(), count, ffi::RSMPI_UINT8_T, &mut handle, &mut request);
                self.receives.push_back(PendingReceive { request, from, frame });
            }
        }
        Ok(())
    }

    /// Adds up the ranks' numbers on rank 0; every rank must call it, with as many. Only rank 0's result counts.
    pub fn sum(&mut self, numbers: &[u64]) -> Vec<u64> {
        let mut sums = vec![0; numbers.len()];
        let count = c_int::try_from(numbers.len()).expect("a few counters");
        // SAFETY: both buffers have `count` numbers and live until the request is complete.
        let mut request = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let (from, to) = (numbers.as_ptr().cast(), sums.as_mut_ptr().cast());
            ffi::MPI_Ireduce(from, to, count, ffi::RSMPI_UINT64_T, ffi::RSMPI_SUM, 0, self.world, &mut request);
            request
        };
        let mut pause = Pause::default();
        while !is_complete(&mut request) {
            thread::sleep(pause.longer());
        }
        sums
    }

    /// Waits until everything that was sent has left.
    pub fn flush(&mut self) {
        let mut pause = Pause::default();
        loop {
            self.sends.retain_mut(|send| !is_complete(&mut send.request));
            if self.sends.is_empty() {
                return;
            }
            thread::sleep(pause.longer());
        }
    }
}

fn is_complete(request: &mut ffi::MPI_Request) -> bool {
    let mut done = 0;
    // SAFETY: the request was made by a non-blocking call and is tested until it is complete, then dropped.
    unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
    done != 0
}

/// The thread that started MPI; only it may call MPI.
static MPI_THREAD: OnceLock<ThreadId> = OnceLock::new();
static PANICKED: AtomicBool = AtomicBool::new(false);
/// EX_SOFTWARE of sysexits.h.
const PANIC_CODE: c_int = 70;

/// Whether another thread has panicked: the thread that calls MPI must then end the job.
pub fn has_panicked() -> bool {
    PANICKED.load(Ordering::Relaxed)
}

/// Ends all ranks at once, with this exit code.
pub fn abort(code: c_int) -> ! {
    // MPICH's launcher drops what a rank wrote just before: without this 1 line of 10 that says why was lost
    thread::sleep(Duration::from_millis(100));
    tell_hydra(code);
    // SAFETY: MPI is initialised: Comm::start does that before it registers the only callers.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
    // MPI_Abort does not return; should it all the same, this rank must not go on
    std::process::abort()
}

/// Tells MPICH's launcher, hydra, that a job of one rank aborts, by a line of its protocol (PMI 1). `MPI_Abort` (MPICH 4.0)
/// does not send it for one rank, and hydra then waits until the process has ended. A process with a thread in a call that
/// does not return cannot end.
fn tell_hydra(code: c_int) {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|has| has == value);
    let fd = std::env::var("PMI_FD").ok().and_then(|fd| fd.parse::<c_int>().ok());
    // Set by hydra alone. Slurm sets PMI_FD too, and speaks PMI 2.
    let is_hydra = std::env::var_os("MPI_LOCALNRANKS").is_some();
    let Some(fd) = fd.filter(|_| is_hydra && is("PMI_SIZE", "1")) else { return };
    let line = format!("cmd=abort exitcode={code}\n");
    // SAFETY: the bytes live until the call returns; write(2) to a number that is no descriptor fails.
    unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
    thread::sleep(Duration::from_millis(100));
}

/// A panic that unwinds would drop `Universe`, whose MPI_Finalize waits for all ranks for ever.
fn end_job_on_panic(rank: usize, host: String) {
    MPI_THREAD.get_or_init(|| thread::current().id());
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let thread = thread::current();
        let thread_name = thread.name().unwrap_or("unnamed").to_string();
        // not eprintln: a closed stderr would be a panic in a panic
        let place = info.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
        let payload = info.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("a panic without words");
        let line = format!("pcopy: internal error on rank {rank} ({host}), thread {thread_name}, {place}: {text}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        PANICKED.store(true, Ordering::Relaxed);
        if MPI_THREAD.get() != Some(&thread.id()) {
            // the MPI thread sees the flag within milliseconds; if it is stuck, end the job from here
            thread::sleep(Duration::from_secs(5));
        }
        abort(PANIC_CODE);
    }));
}
