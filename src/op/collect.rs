//! The end of a copy: the records of all ranks, merged by path into the manifest, with bounded memory.

use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::io::Cursor;

use super::lead::{Incoming, Lead, LeadError};
use super::outputs::{OutputError, Outputs, Pipeline, Written};
use crate::journal::{Base, BaseWriter, Confirmed, Encoded, Head, Item};
use crate::manifest::{Header, Place, Writer};
use crate::policy::Existing;
use crate::proto::{Job, MAX_RECORDS_LEN, Message, Trouble};
use crate::sys::act_as;
use crate::types::{Failure, Fate, Kind, Op, Outcome, Record, Side, Stats};
use crate::watch;
use crate::worker::WorkerError;

/// Bytes of memory for frames of records, of all ranks together: two of each, unless there are very many.
const FRAMES_LEN: usize = 64 << 20;
/// Bytes of a frame, at least.
const MIN_FRAME_LEN: u32 = 2 << 10;

/// The sorted records of one rank, a frame at a time.
#[derive(Default)]
struct RankStream {
    frame: Cursor<Vec<u8>>,
    /// A frame was asked for and has not come.
    asked: bool,
    last: bool,
    /// Its next record is among the heads.
    is_known: bool,
    /// The path of its last record, while the next one is not known: none may come before it.
    reached: Vec<u8>,
}

/// What was made of the records.
pub(super) struct Collected {
    pub(super) stats: Stats,
    /// The base is durable under its name.
    pub(super) has_base: bool,
    /// The error of writing a dry run's lines to stdout, if there was one.
    pub(super) unsaid: Option<std::io::Error>,
}

/// Where the manifest goes, and what goes there beside it.
pub(super) struct Target<'a> {
    /// If there is a manifest.
    pub(super) place: Option<Place>,
    /// As it is shown in messages.
    pub(super) shown: Option<&'a str>,
    pub(super) header: &'a Header,
    pub(super) base: Option<BaseWriter>,
    /// What is said of every entry.
    pub(super) said: Option<fn(&Record) -> String>,
}

/// Merges the records of all ranks and those that were confirmed of `base`, sorted by path, into the outputs, and counts
/// them; `ended` is how many entries the ranks have ended.
///
/// # Errors
/// What ends the job: also when not every entry that ended has a record, and when it is told to halt.
pub(super) fn collect(
    lead: &mut Lead<'_>,
    job: &Job,
    base: &Base,
    target: Target<'_>,
    ended: u64,
) -> Result<Collected, LeadError> {
    lead.phase = "all is copied and durable; writing the manifest";
    let trouble = |error| LeadError::Manifest(target.shown.unwrap_or_default().to_string(), error);
    let acting = act_as(job.policy.run_as).map_err(LeadError::Acting)?;
    let of_base = base.confirmed().map_err(|err| LeadError::Journal(0, Trouble::from(&err)))?;
    let manifest = target.place.map(|place| Writer::create(place, target.header)).transpose().map_err(trouble)?;
    let outputs = Outputs { manifest, base: target.base, said: target.said };
    // Threads inherit the user as whom this thread acts.
    let mut pipeline = Pipeline::start(outputs).map_err(trouble)?;
    drop(acting);
    let mut merge = Merge::new(lead, of_base);
    let merged = pass_on(lead, &mut merge, &mut pipeline, job);
    // this rank's own records will not come: the job ends at once
    if let Err(err @ LeadError::Worker(_)) = merged {
        return Err(err);
    }
    // what ranks were asked for has to arrive, or they would wait for ever
    merge.drain(lead)?;
    let written = pipeline.finish().map_err(|err| match err {
        OutputError::Io(err) => trouble(err),
        OutputError::Thread => WorkerError::Thread.into(),
    });
    let joined = merged?;
    let Written { manifest, base, unsaid, stats } = written?;
    // before the manifest gets its name: the ranks counted the same entries when they ended them
    let recorded = stats.entries() + joined;
    if recorded != ended {
        return Err(LeadError::Counts(format!("{ended} entries ended, {recorded} were recorded")));
    }
    let _acting = act_as(job.policy.run_as).map_err(LeadError::Acting)?;
    let seconds = lead.display.elapsed().as_secs_f64();
    watch::begin(target.shown.unwrap_or_default().as_bytes(), b"");
    manifest.map(|manifest| manifest.finish(seconds)).transpose().map_err(trouble)?;
    let has_base = base.is_some_and(|base| base.finish().is_ok());
    Ok(Collected { stats, has_base, unsaid })
}

/// Passes each entry on, in the order of the paths; those of one path are joined. Returns how many were joined to another.
fn pass_on(lead: &mut Lead<'_>, merge: &mut Merge<'_>, pipeline: &mut Pipeline, job: &Job) -> Result<u64, LeadError> {
    let leaves = job.policy.existing != Existing::Replace;
    let mut joined = 0;
    let (mut encoded, mut next) = (Encoded::default(), Encoded::default());
    let mut twice = merge.next(lead, &mut next)?;
    while let Some(of_two) = twice {
        std::mem::swap(&mut encoded, &mut next);
        let mut twins = Vec::new();
        if of_two {
            twins.push(twin_of(&record_of(&encoded)?, leaves));
        }
        twice = merge.next(lead, &mut next)?;
        while twice.is_some() && next.path() == encoded.path() {
            twins.push(record_of(&next)?);
            twice = merge.next(lead, &mut next)?;
        }
        if !twins.is_empty() {
            joined += twins.len() as u64;
            encoded = Encoded::of(&Item::Entry(joined_with(lead, record_of(&encoded)?, twins)));
        }
        if pipeline.push(&encoded).is_none() {
            // its end says why
            return Ok(joined);
        }
    }
    Ok(joined)
}

/// The one record of entries of one path.
fn joined_with(lead: &mut Lead<'_>, mut record: Record, twins: Vec<Record>) -> Record {
    for twin in twins {
        if let Some(failure) = join(&mut record, twin) {
            lead.display.failure(&record.path, &failure);
            record.outcome = Outcome::Failed(failure);
        }
    }
    record
}

fn record_of(encoded: &Encoded) -> Result<Record, LeadError> {
    match encoded.decode() {
        Ok(Item::Entry(record)) => Ok(record),
        Ok(Item::Range(_)) => Err(LeadError::Counts("a range among the records".into())),
        Err(err) => Err(LeadError::Manifest("a record".into(), err)),
    }
}

/// Two sources had an entry of this path. Directories are one; anything else was written twice.
fn join(record: &mut Record, twin: Record) -> Option<Failure> {
    let both_dirs = record.kind == Kind::Dir && twin.kind == Kind::Dir;
    match (&mut record.outcome, &twin.outcome) {
        (Outcome::Done(facts), Outcome::Done(other)) if both_dirs => {
            facts.unkept.join(&other.unkept);
            None
        }
        // of two sources the first one made it, and the other left it
        (Outcome::Done(_), Outcome::Done(facts)) if facts.fate.kept().is_some() => None,
        (Outcome::Done(facts), Outcome::Done(_)) if facts.fate.kept().is_some() => {
            *record = twin;
            None
        }
        (Outcome::Done(_), Outcome::Done(_)) => Some(Failure { op: Op::Conflict, side: Side::Source, errno: 0 }),
        (Outcome::Failed(_), _) => None,
        // the failure stays
        (Outcome::Done(_), Outcome::Failed(_)) => {
            *record = twin;
            None
        }
    }
}

/// An entry of the base that a second source has too: of the two the first one was copied; where what is there is left the
/// other one was left.
fn twin_of(record: &Record, leaves: bool) -> Record {
    let mut twin = record.clone();
    if let (Outcome::Done(facts), true) = (&mut twin.outcome, leaves) {
        facts.fate = Fate::KeptExisting;
    }
    twin
}

/// The records of all ranks, and what was confirmed of the base, as the last stream.
struct Merge<'a> {
    ranks: Vec<RankStream>,
    base: Confirmed<'a>,
    /// The base's head stands for two.
    base_twice: bool,
    heads: BinaryHeap<Head>,
    /// Ranks whose next record is not known yet.
    unknown: usize,
    /// The base was not asked yet.
    begins: bool,
    /// Bytes of one frame.
    frame_len: u32,
}

impl<'a> Merge<'a> {
    fn new(lead: &mut Lead<'_>, base: Confirmed<'a>) -> Self {
        let size = lead.comm.size();
        let frame_len = u32::try_from(FRAMES_LEN / 2 / size).unwrap_or(u32::MAX).clamp(MIN_FRAME_LEN, MAX_RECORDS_LEN);
        lead.send_to_all(&Message::WantRecords(frame_len));
        let ranks = (0..size).map(|_| RankStream { asked: true, ..RankStream::default() }).collect();
        Self { ranks, base, base_twice: false, heads: BinaryHeap::new(), unknown: size, begins: true, frame_len }
    }

    /// Takes what ranks were asked for, and forgets it.
    fn drain(&mut self, lead: &mut Lead<'_>) -> Result<(), LeadError> {
        while self.ranks.iter().any(|stream| stream.asked) {
            let (from, incoming) = lead.next_of_any()?;
            if let Incoming::Records(..) = incoming {
                self.ranks[from].asked = false;
            }
        }
        Ok(())
    }

    /// Puts the next record in the order of paths in place of `record`; whether it stands for two. `None` at the end. Asks
    /// ranks for more before theirs run out.
    fn next(&mut self, lead: &mut Lead<'_>, record: &mut Encoded) -> Result<Option<bool>, LeadError> {
        let of_base = |err| LeadError::Journal(0, Trouble::from(&err));
        if std::mem::take(&mut self.begins) {
            let (mut item, stream) = (Encoded::default(), self.ranks.len());
            if let Some(twice) = self.base.next(&mut item).map_err(of_base)? {
                self.base_twice = twice;
                self.heads.push(Head { item, stream });
            }
        }
        while self.unknown > 0 {
            let (from, incoming) = lead.next()?;
            let Incoming::Records(records, last) = incoming else {
                return Err(LeadError::Unexpected(from, "a message that is no record"));
            };
            self.take(lead, from, records.0, last)?;
        }
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        std::mem::swap(record, &mut head.item);
        let stream = head.stream;
        if stream == self.ranks.len() {
            let twice = self.base_twice;
            match self.base.next(&mut head.item).map_err(of_base)? {
                Some(next_twice) => self.base_twice = next_twice,
                None => drop(PeekMut::pop(head)),
            }
            return Ok(Some(twice));
        }
        let of_rank = &mut self.ranks[stream];
        if head.item.read(&mut of_rank.frame).map_err(|err| bad_frame(stream, err))? {
            check_order(stream, record.path(), &head.item)?;
            drop(head);
        } else {
            of_rank.reached = record.path().to_vec();
            PeekMut::pop(head);
            of_rank.is_known = false;
            self.unknown += usize::from(!of_rank.last);
        }
        self.ask(lead, stream);
        Ok(Some(false))
    }

    /// Asks a rank for more, ahead of its end; but never beyond a second frame: a rank that answers fast must not fill the
    /// memory.
    fn ask(&mut self, lead: &mut Lead<'_>, rank: usize) {
        let stream = &mut self.ranks[rank];
        let left = stream.frame.get_ref().len() as u64 - stream.frame.position();
        if !stream.asked && !stream.last && left < u64::from(self.frame_len) {
            stream.asked = true;
            lead.comm.send(rank, &Message::WantRecords(self.frame_len));
        }
    }

    /// Takes a frame of a rank.
    fn take(&mut self, lead: &mut Lead<'_>, from: usize, frame: Vec<u8>, last: bool) -> Result<(), LeadError> {
        let stream = &mut self.ranks[from];
        if !std::mem::take(&mut stream.asked) {
            return Err(LeadError::Unexpected(from, "records that it was not asked for"));
        }
        stream.last = last;
        let unread = usize::try_from(stream.frame.position()).expect("within the frame");
        let mut bytes = std::mem::take(&mut stream.frame).into_inner();
        bytes.drain(..unread);
        bytes.extend_from_slice(&frame);
        stream.frame = Cursor::new(bytes);
        if !stream.is_known {
            let mut item = Encoded::default();
            stream.is_known = item.read(&mut stream.frame).map_err(|err| bad_frame(from, err))?;
            if stream.is_known {
                check_order(from, &stream.reached, &item)?;
                self.heads.push(Head { item, stream: from });
            } else if !last {
                return Err(LeadError::Unexpected(from, "an empty frame of records"));
            }
            self.unknown -= 1;
        }
        self.ask(lead, from);
        Ok(())
    }
}

/// Checks that each rank's records come in the order of their paths: the manifest is sorted only then.
fn check_order(rank: usize, before: &[u8], item: &Encoded) -> Result<(), LeadError> {
    if before <= item.path() { Ok(()) } else { Err(LeadError::Unexpected(rank, "records out of their order")) }
}

fn bad_frame(rank: usize, err: std::io::Error) -> LeadError {
    LeadError::Manifest(format!("records of rank {rank}"), err)
}
