//! The end of a copy: the records of all ranks, merged by path into the manifest, with bounded memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::lead::{Incoming, Lead, LeadError};
use crate::journal::{Item, decode_all};
use crate::manifest::{Header, Place, Writer};
use crate::proto::{Job, Message};
use crate::sys::act_as;
use crate::types::{Failure, Kind, Op, Outcome, Record, RelPath, Side, Stats};

/// Records of a rank that are left when it is asked for more.
const ASK_BELOW: usize = 256;

/// The sorted records of one rank, a frame at a time.
struct RankStream {
    records: VecDeque<Record>,
    /// A frame was asked for and has not come.
    asked: bool,
    last: bool,
}

/// Writes the manifest from the records of all ranks, to `place`, which is `shown` in messages; counts them only when
/// there is none. Returns the totals. `each` is called for every entry in the order of paths; `ended` is how many entries
/// the ranks have ended.
///
/// # Errors
/// What ends the job: also when not every entry that ended has a record.
pub fn collect(
    lead: &mut Lead<'_>,
    place: Option<Place>,
    shown: Option<&str>,
    each: Option<fn(&Record)>,
    job: &Job,
    header: &Header,
    ended: u64,
) -> Result<Stats, LeadError> {
    let trouble = |error| LeadError::Manifest(shown.unwrap_or_default().to_string(), error);
    let acting = || act_as(job.policy.run_as).map_err(LeadError::Acting);
    let mut writer = {
        let _acting = acting()?;
        place.map(|place| Writer::create(place, job.id, header)).transpose().map_err(trouble)?
    };
    let mut counted = Stats::default();
    lead.phase = "all is copied and durable; writing the manifest";
    let mut merge = Merge::new(lead);
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
        if let Some(each) = each {
            each(&record);
        }
        if let Some(writer) = &mut writer {
            writer.entry(&record).map_err(trouble)?;
        }
    }
    // before the manifest gets its name: the ranks counted the same entries when they ended them
    let recorded = counted.entries() + joined;
    if recorded != ended {
        return Err(LeadError::Counts(format!("{ended} entries ended, {recorded} were recorded")));
    }
    let _acting = acting()?;
    let seconds = lead.display.elapsed().as_secs_f64();
    writer.map(|writer| writer.finish(seconds)).transpose().map_err(trouble)?;
    Ok(counted)
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

struct Merge {
    streams: Vec<RankStream>,
    order: BinaryHeap<Reverse<(RelPath, usize)>>,
    /// Ranks whose next record is not known yet.
    unknown: usize,
}

impl Merge {
    fn new(lead: &mut Lead<'_>) -> Self {
        let size = lead.comm.size();
        lead.send_to_all(&Message::WantRecords);
        let streams = (0..size).map(|_| RankStream { records: VecDeque::new(), asked: true, last: false }).collect();
        Self { streams, order: BinaryHeap::new(), unknown: size }
    }

    /// The next record in the order of paths; asks ranks for more before theirs run out.
    fn next(&mut self, lead: &mut Lead<'_>) -> Result<Option<Record>, LeadError> {
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
        let stream = &mut self.streams[rank];
        let record = stream.records.pop_front().expect("a stream in the order has a record");
        // ahead of its end, but never more than a frame: a rank that answers fast must not fill the memory
        if stream.records.len() < ASK_BELOW && !stream.asked && !stream.last {
            stream.asked = true;
            lead.comm.send(rank, &Message::WantRecords);
        }
        self.advance(rank);
        Ok(Some(record))
    }

    fn take(&mut self, from: usize, frame: &[u8], last: bool) -> Result<(), LeadError> {
        let records = decode_all(frame).map_err(|err| LeadError::Manifest(format!("records of rank {from}"), err))?;
        let records = records.into_iter().filter_map(|item| match item {
            Item::Entry(record) => Some(record),
            Item::Range(_) => None,
        });
        let stream = &mut self.streams[from];
        let was_empty = stream.records.is_empty();
        stream.records.extend(records);
        stream.last = last;
        stream.asked = false;
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
            None if stream.last => {}
            None => self.unknown += 1,
        }
    }
}
