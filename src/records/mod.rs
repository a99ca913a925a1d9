//! The records of one rank, kept in sorted runs, and the merge of sorted streams.
//!
//! A rank holds records in memory up to [`Recorder::RUN_LEN`] bytes, then sorts them and writes them to a run
//! file. Many runs are merged into one, so that the number of open files and the memory are bounded
//! whatever the number of entries. At the end every rank streams its records in order to rank 0.
//!
//! A run is a sequence of records, each its length (u32, little-endian) and its postcard encoding. Runs
//! live for one job; nothing reads them later.

mod batch;
mod merge;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

pub use batch::Batch;
pub use merge::{Merged, Stream};

use crate::sys::create_new;
use crate::types::{Record, Stats};

/// Records of one rank, as they come.
pub struct Recorder {
    /// Where runs go, and the start of their names; `None` keeps everything in memory.
    place: Option<(Arc<OwnedFd>, String)>,
    buffer: Batch,
    /// Runs by level: a run of level n was merged from [`Recorder::FAN_IN`] of level n - 1.
    levels: Vec<Vec<Vec<u8>>>,
    runs_made: u64,
    stats: Stats,
}

impl Recorder {
    /// Bytes of memory that records take before they become a run.
    const RUN_LEN: usize = 8 << 20;
    /// Runs that are merged into one; and open files of a merge, at most, a level.
    const FAN_IN: usize = 16;

    /// Keeps runs in `dir` under names that begin with `prefix`, or all records in memory.
    pub fn new(dir: Option<OwnedFd>, prefix: String) -> Self {
        Self {
            place: dir.map(|dir| (Arc::new(dir), prefix)),
            buffer: Batch::default(),
            levels: Vec::new(),
            runs_made: 0,
            stats: Stats::default(),
        }
    }

    /// Adds records.
    ///
    /// # Errors
    /// A run could not be written; the records are lost, and with them the manifest.
    pub fn append(&mut self, records: &Batch) -> io::Result<()> {
        self.stats.add(records.stats());
        self.buffer.append(records);
        if self.buffer.byte_len() >= Self::RUN_LEN && self.place.is_some() {
            self.spill()?;
        }
        Ok(())
    }

    /// The counters of everything that was recorded.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// All records, sorted by path. Removes each run when it has been read.
    ///
    /// # Errors
    /// A run could not be opened.
    pub fn into_sorted(mut self) -> io::Result<Merged> {
        let mut streams = vec![self.sorted_buffer()];
        for run in std::mem::take(&mut self.levels).into_iter().flatten() {
            streams.push(Stream::run(self.dir(), &run)?);
        }
        Merged::new(streams)
    }

    fn dir(&self) -> &Arc<OwnedFd> {
        &self.place.as_ref().expect("runs are written only where there is a place").0
    }

    fn sorted_buffer(&mut self) -> Stream {
        Stream::Memory(Box::new(std::mem::take(&mut self.buffer).into_sorted()))
    }

    fn spill(&mut self) -> io::Result<()> {
        let mut sorted = self.sorted_buffer();
        let run = self.write_run(std::iter::from_fn(|| sorted.next_record().transpose()))?;
        self.add_run(0, run)
    }

    fn add_run(&mut self, level: usize, run: Vec<u8>) -> io::Result<()> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        self.levels[level].push(run);
        if self.levels[level].len() < Self::FAN_IN {
            return Ok(());
        }
        let runs = std::mem::take(&mut self.levels[level]);
        let streams = runs.iter().map(|run| Stream::run(self.dir(), run)).collect::<io::Result<Vec<_>>>()?;
        let merged = self.write_run(Merged::new(streams)?)?;
        self.add_run(level + 1, merged)
    }

    fn write_run(&mut self, records: impl Iterator<Item = io::Result<Record>>) -> io::Result<Vec<u8>> {
        let (dir, prefix) = self.place.as_ref().expect("runs are written only where there is a place");
        let name = format!("{prefix}.{}", self.runs_made).into_bytes();
        self.runs_made += 1;
        let mut run = BufWriter::with_capacity(1 << 20, File::from(create_new(dir.as_fd(), &name, 0o600)?));
        let mut encoded = Vec::new();
        for record in records {
            encoded.clear();
            encode(&record?, &mut encoded);
            run.write_all(&encoded)?;
        }
        run.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(name)
    }
}

/// Appends the record as runs and messages hold it.
pub fn encode(record: &Record, into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(&[0; 4]);
    let mut grown = postcard::to_extend(record, std::mem::take(into)).expect("a record always encodes into memory");
    let len = u32::try_from(grown.len() - start - 4).expect("a path is far below 4 GiB");
    grown[start..start + 4].copy_from_slice(&len.to_le_bytes());
    *into = grown;
}

/// The records of a message.
///
/// # Errors
/// `InvalidData` where the bytes are not records.
pub fn decode_all(mut bytes: &[u8]) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    while let Some(record) = decode(&mut bytes)? {
        records.push(record);
    }
    Ok(records)
}

/// The next record, or `None` at the end.
fn decode(from: &mut impl Read) -> io::Result<Option<Record>> {
    // far above the path of the deepest tree; a length beyond it is damage
    const LONGEST: u32 = 1 << 26;
    let mut len = [0; 4];
    match from.read(&mut len[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut len[1..])?,
    }
    let len = u32::from_le_bytes(len);
    if len > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a record of {len} bytes")));
    }
    let mut encoded = vec![0; len as usize];
    from.read_exact(&mut encoded)?;
    postcard::from_bytes(&encoded).map(Some).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

type RunReader = BufReader<File>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Failure, Kind, Op, Outcome, RelPath, Side};

    fn record(n: u32) -> Record {
        // spread, so that runs interleave
        let name = format!("{:08x}", n.wrapping_mul(0x9e37_79b1));
        let failure = Failure { op: Op::Read, side: Side::Source, errno: 5 };
        Record { path: RelPath::root().join(name.as_bytes()), kind: Kind::File, outcome: Outcome::Failed(failure) }
    }

    #[test]
    fn records_come_back_sorted_through_many_runs_and_leave_no_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = crate::sys::open_root(dir.path()).expect("opens");
        let mut recorder = Recorder::new(Some(place), "run".into());
        let all: u32 = 4_000_000;
        for start in (0..all).step_by(10_000) {
            let mut batch = Batch::default();
            (start..start + 10_000).for_each(|n| batch.push(&record(n)));
            recorder.append(&batch).expect("kept");
        }
        assert!(recorder.levels.len() >= 2, "enough for a second level");
        assert_eq!(recorder.stats().errors, u64::from(all));
        let mut last = None;
        let mut count = 0;
        for record in recorder.into_sorted().expect("opened") {
            let path = record.expect("read").path;
            assert!(last.as_ref().is_none_or(|last| last < &path), "{last:?} {path:?}");
            last = Some(path);
            count += 1;
        }
        assert_eq!(count, all);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
    }

    #[test]
    fn a_run_that_ends_early_is_an_error() {
        let mut bytes = Vec::new();
        encode(&record(1), &mut bytes);
        encode(&record(2), &mut bytes);
        assert_eq!(decode_all(&bytes).expect("whole"), [record(1), record(2)]);
        for cut in 1..bytes.len() {
            let decoded = decode_all(&bytes[..cut]);
            assert!(decoded.is_err() || decoded.expect("whole").len() == 1, "cut at {cut}");
        }
    }
}
