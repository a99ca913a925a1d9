//! Where the records of a job go: lines of the manifest, entries of the base, a dry run's lines; each in the order in which
//! they come.
//!
//! Whoever merges the records passes them on as they are encoded. Threads make of them what is written, a chunk each, and
//! another thread writes the chunks in their order: rank 0 has the cores of its node for itself by then.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::journal::{BaseWriter, Encoded, Item, can_be_left};
use crate::manifest::{Writer, write_entry};
use crate::progress::to_stdout;
use crate::types::{Record, Stats};

/// Bytes of records in a chunk.
const CHUNK_LEN: usize = 64 << 10;
/// Threads that make what is written, at most. Making a line takes three times the instructions of merging its record.
const MAX_THREADS: usize = 4;

/// What is written of the records, and to where.
pub(super) struct Outputs {
    pub(super) manifest: Option<Writer>,
    /// For a later run of the job.
    pub(super) base: Option<BaseWriter>,
    /// What is said of every entry, on stdout.
    pub(super) said: Option<fn(&Record) -> String>,
}

/// What has become of the outputs when all records are in them.
pub(super) struct Written {
    pub(super) manifest: Option<Writer>,
    /// `None` also when there was no space for it: the journals hold the same.
    pub(super) base: Option<BaseWriter>,
    /// The error of writing to stdout, if there was one. Nothing is written to stdout after it.
    pub(super) unsaid: Option<io::Error>,
    pub(super) stats: Stats,
}

/// Why records could not be written.
#[derive(Debug)]
pub(super) enum OutputError {
    Io(io::Error),
    /// Another thread has panicked.
    Thread,
}

/// The threads, and the records that are not with them yet.
pub(super) struct Pipeline {
    chunk: Vec<u8>,
    records: Sender<(Vec<u8>, Sender<io::Result<Chunk>>)>,
    order: Sender<Receiver<io::Result<Chunk>>>,
    makers: Vec<JoinHandle<()>>,
    writer: JoinHandle<io::Result<Written>>,
}

/// What is written of some records.
#[derive(Default)]
struct Chunk {
    lines: Vec<u8>,
    base: (u64, Vec<u8>),
    said: String,
    stats: Stats,
}

impl Pipeline {
    /// Starts the threads.
    ///
    /// # Errors
    /// One of them cannot be started.
    pub(super) fn start(outputs: Outputs) -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS);
        let (records, for_makers) = bounded::<(Vec<u8>, Sender<io::Result<Chunk>>)>(threads);
        let (order, for_writer) = bounded(2 * threads);
        let what = What { lines: outputs.manifest.is_some(), base: outputs.base.is_some(), said: outputs.said };
        let mut makers = Vec::new();
        for index in 0..threads {
            let for_makers = for_makers.clone();
            let make = move || {
                for (records, made) in for_makers {
                    // who does not want it any more has failed, and says so
                    let _ = made.send(what.make(&records));
                }
            };
            makers.push(thread::Builder::new().name(format!("records {index}")).spawn(make)?);
        }
        let write = move || write(outputs, for_writer);
        let writer = thread::Builder::new().name("manifest".into()).spawn(write)?;
        Ok(Self { chunk: Vec::with_capacity(CHUNK_LEN + 1024), records, order, makers, writer })
    }

    /// Adds a record. `None` when the threads have ended: [`Pipeline::finish`] says why.
    pub(super) fn push(&mut self, record: &Encoded) -> Option<()> {
        self.chunk.extend_from_slice(record.bytes());
        if self.chunk.len() < CHUNK_LEN { Some(()) } else { self.pass_on() }
    }

    fn pass_on(&mut self) -> Option<()> {
        let records = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_LEN + 1024));
        let (made, chunk) = bounded(1);
        self.order.send(chunk).ok()?;
        self.records.send((records, made)).ok()
    }

    /// Waits until all records are written, and ends the threads.
    ///
    /// # Errors
    /// Something could not be written, or a thread has panicked.
    pub(super) fn finish(mut self) -> Result<Written, OutputError> {
        // if the threads have ended, the writer's result says why
        let _ = self.pass_on();
        drop((self.records, self.order));
        let panicked = self.makers.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        match self.writer.join() {
            Ok(written) if panicked == 0 => written.map_err(OutputError::Io),
            _ => Err(OutputError::Thread),
        }
    }
}

/// What is to be made of records.
#[derive(Clone, Copy)]
struct What {
    lines: bool,
    base: bool,
    said: Option<fn(&Record) -> String>,
}

impl What {
    fn make(self, mut records: &[u8]) -> io::Result<Chunk> {
        let (mut chunk, mut encoded) = (Chunk::default(), Encoded::default());
        while encoded.read(&mut records)? {
            let Item::Entry(record) = encoded.decode()? else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a range among the entries"));
            };
            chunk.stats.count(&record);
            if self.lines {
                write_entry(&record, &mut chunk.lines)?;
            }
            if self.base && can_be_left(&record) {
                chunk.base.0 += 1;
                chunk.base.1.extend_from_slice(encoded.bytes());
            }
            if let Some(said) = self.said {
                chunk.said += &said(&record);
                chunk.said.push('\n');
            }
        }
        Ok(chunk)
    }
}

fn write(outputs: Outputs, chunks: Receiver<Receiver<io::Result<Chunk>>>) -> io::Result<Written> {
    let Outputs { mut manifest, mut base, .. } = outputs;
    let (mut stats, mut unsaid) = (Stats::default(), None);
    for chunk in chunks {
        let chunk = chunk.recv().map_err(|_| io::Error::other("a thread that makes its lines ended"))??;
        stats.add(&chunk.stats);
        if let Some(manifest) = &mut manifest {
            manifest.lines(&chunk.lines, &chunk.stats)?;
        }
        // where there is no space for the base the journals stay, which hold the same
        if let Some(full) = base.take_if(|base| base.entries(&chunk.base.1, chunk.base.0).is_err()) {
            full.abandon();
        }
        if unsaid.is_none() && !chunk.said.is_empty() {
            unsaid = to_stdout(&chunk.said).err();
        }
    }
    Ok(Written { manifest, base, unsaid, stats })
}
