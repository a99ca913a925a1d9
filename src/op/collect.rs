//! The end of a copy: the records of all ranks, merged by path into the manifest, with bounded memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;

use super::lead::{Incoming, Lead, LeadError};
use crate::journal::{Base, BaseWriter, Item, decode_all};
use crate::manifest::{Header, Place, Writer};
use crate::policy::Existing;
use crate::proto::{Job, Message, Trouble};
use crate::sys::act_as;
use crate::types::{Failure, Fate, Kind, Op, Outcome, Record, RelPath, Side, Stats};

/// Records of a rank that are left when it is asked for more.
const ASK_BELOW: usize = 256;

/// The sorted records of one rank, a frame at a time.
struct RankStream {
    records: VecDeque<Record>,
    /// A frame was asked for and has not come.
    asked: bool,
    last: bool,
}

/// Where the records of a job go.
pub(super) struct Outputs<'a> {
    /// Of the manifest, if there is one; as it is shown in messages.
    pub(super) place: Option<Place>,
    pub(super) shown: Option<&'a str>,
    pub(super) header: &'a Header,
    /// For a later run of the job.
    pub(super) base: Option<BaseWriter>,
    /// Called for every entry.
    pub(super) each: Option<fn(&Record)>,
}

/// What was made of the records.
pub(super) struct Collected {
    pub(super) stats: Stats,
    /// The base is durable under its name.
    pub(super) has_base: bool,
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
    outputs: Outputs<'_>,
    ended: u64,
) -> Result<Collected, LeadError> {
    lead.phase = "all is copied and durable; writing the manifest";
    let of_base = base.confirmed().map_err(|err| LeadError::Journal(0, Trouble::from(&err)))?;
    let mut merge = Merge::new(lead, job.policy.existing != Existing::Replace, Box::new(of_base));
    let collected = write(lead, &mut merge, job, outputs, ended);
    if collected.is_err() {
        // what ranks were asked for has to arrive, or they would wait for ever
        merge.drain(lead)?;
    }
    collected
}

fn write(
    lead: &mut Lead<'_>,
    merge: &mut Merge<'_>,
    job: &Job,
    outputs: Outputs<'_>,
    ended: u64,
) -> Result<Collected, LeadError> {
    let trouble = |error| LeadError::Manifest(outputs.shown.unwrap_or_default().to_string(), error);
    let acting = || act_as(job.policy.run_as).map_err(LeadError::Acting);
    let mut manifest = {
        let _acting = acting()?;
        outputs.place.map(|place| Writer::create(place, outputs.header)).transpose().map_err(trouble)?
    };
    let mut base = outputs.base;
    let mut counted = Stats::default();
    let mut joined = 0;
    let mut next = merge.next(lead)?;
    while let Some(mut record) = next {
        next = merge.next(lead)?;
        while let Some(twin) = next.take_if(|twin| twin.path == record.path) {
            joined += 1;
            if let Some(failure) = join(&mut record, twin) {
                lead.display.failure(&record.path, &failure);
                record.outcome = Outcome::Failed(failure);
            }
            next = merge.next(lead)?;
        }
        counted.count(&record);
        if let Some(each) = outputs.each {
            each(&record);
        }
        if let Some(writer) = &mut manifest {
            writer.entry(&record).map_err(trouble)?;
        }
        // where there is no space for the base the journals stay, which hold the same
        if let Some(full) = base.take_if(|base| base.entry(&record).is_err()) {
            full.abandon();
        }
    }
    // before the manifest gets its name: the ranks counted the same entries when they ended them
    let recorded = counted.entries() + joined;
    if recorded != ended {
        return Err(LeadError::Counts(format!("{ended} entries ended, {recorded} were recorded")));
    }
    let _acting = acting()?;
    let seconds = lead.display.elapsed().as_secs_f64();
    manifest.map(|manifest| manifest.finish(seconds)).transpose().map_err(trouble)?;
    let has_base = base.is_some_and(|base| base.finish().is_ok());
    Ok(Collected { stats: counted, has_base })
}

/// Two sources had an entry of this path. Directories are one; anything else was written twice.
fn join(record: &mut Record, twin: Record) -> Option<Failure> {
    match (&record.outcome, &twin.outcome) {
        (Outcome::Done(_), Outcome::Done(_)) if record.kind == Kind::Dir && twin.kind == Kind::Dir => None,
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

struct Merge<'a> {
    /// One a rank, and the last one of the base.
    streams: Vec<RankStream>,
    base: Box<dyn Iterator<Item = io::Result<(Record, bool)>> + 'a>,
    order: BinaryHeap<Reverse<(RelPath, usize)>>,
    /// Ranks whose next record is not known yet.
    unknown: usize,
    /// What is there already is left.
    leaves: bool,
}

impl<'a> Merge<'a> {
    fn new(lead: &mut Lead<'_>, leaves: bool, base: Box<dyn Iterator<Item = io::Result<(Record, bool)>> + 'a>) -> Self {
        let size = lead.comm.size();
        lead.send_to_all(&Message::WantRecords);
        let stream = |asked| RankStream { records: VecDeque::new(), asked, last: false };
        let mut streams: Vec<_> = (0..size).map(|_| stream(true)).collect();
        streams.push(stream(false));
        // that of the base is unknown too, until it is first asked for
        Self { streams, base, order: BinaryHeap::new(), unknown: size, leaves }
    }

    /// Takes what ranks were asked for, and forgets it.
    fn drain(&mut self, lead: &mut Lead<'_>) -> Result<(), LeadError> {
        while self.streams.iter().any(|stream| stream.asked) {
            let (from, incoming) = lead.next_of_any()?;
            if let Incoming::Records(..) = incoming {
                self.streams[from].asked = false;
            }
        }
        Ok(())
    }

    /// Reads on in the base. An entry that two sources hold comes twice.
    fn read_base(&mut self) -> Result<(), LeadError> {
        let number = self.streams.len() - 1;
        let stream = &mut self.streams[number];
        if !stream.records.is_empty() || stream.last {
            return Ok(());
        }
        match self.base.next().transpose().map_err(|err| LeadError::Journal(0, Trouble::from(&err)))? {
            None => stream.last = true,
            Some((record, twice)) => {
                if twice {
                    stream.records.push_back(twin_of(&record, self.leaves));
                }
                stream.records.push_back(record);
                self.advance(number);
            }
        }
        Ok(())
    }

    /// The next record in the order of paths; asks ranks for more before theirs run out.
    fn next(&mut self, lead: &mut Lead<'_>) -> Result<Option<Record>, LeadError> {
        self.read_base()?;
        while self.unknown > 0 {
            let (from, incoming) = lead.next()?;
            let Incoming::Records(records, last) = incoming else {
                return Err(LeadError::Unexpected(from, "a message that is no record"));
            };
            self.take(from, &records.0, last)?;
        }
        let Some(Reverse((_, rank))) = self.order.pop() else {
            return Ok(None);
        };
        let is_rank = rank + 1 < self.streams.len();
        let stream = &mut self.streams[rank];
        let record = stream.records.pop_front().expect("a stream in the order has a record");
        // ahead of its end, but never more than a frame: a rank that answers fast must not fill the memory
        if is_rank && stream.records.len() < ASK_BELOW && !stream.asked && !stream.last {
            stream.asked = true;
            lead.comm.send(rank, &Message::WantRecords);
        }
        self.advance(rank);
        Ok(Some(record))
    }

    fn take(&mut self, from: usize, frame: &[u8], last: bool) -> Result<(), LeadError> {
        self.streams[from].asked = false;
        let records = decode_all(frame).map_err(|err| LeadError::Manifest(format!("records of rank {from}"), err))?;
        let records = records.into_iter().filter_map(|item| match item {
            Item::Entry(record) => Some(record),
            Item::Range(_) => None,
        });
        let stream = &mut self.streams[from];
        let was_empty = stream.records.is_empty();
        stream.records.extend(records);
        stream.last = last;
        if was_empty {
            self.unknown -= 1;
            self.advance(from);
        }
        Ok(())
    }

    /// Enters the stream's next record into the order, or notes that it is not known.
    fn advance(&mut self, rank: usize) {
        let stream = &self.streams[rank];
        match stream.records.front() {
            Some(record) => self.order.push(Reverse((record.path.clone(), rank))),
            None if stream.last || rank + 1 == self.streams.len() => {}
            None => self.unknown += 1,
        }
    }
}
