//! The thread that makes things durable: data, then the journal. The thread that speaks MPI must not wait for a disk.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Event;
use crate::journal::{Batch, Journal, Recorder};
use crate::proto::Trouble;
use crate::transfer::Node;
use crate::watch;

/// What the thread is told.
enum Order {
    /// Make what this node has written durable.
    Sync(u64),
    /// Append this group to the journal.
    Commit(u64, Box<Batch>),
}

/// The thread, and its journal.
pub(super) struct Keeper {
    orders: Sender<Order>,
    thread: JoinHandle<Journal>,
}

impl Keeper {
    /// Starts it; its answers go to `events`.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub(super) fn start(
        node: &Arc<Node>,
        journal: Journal,
        recorder: &Arc<Mutex<Recorder>>,
        events: Sender<Event>,
    ) -> io::Result<Self> {
        let (orders, receiver) = unbounded();
        let (node, recorder) = (Arc::clone(node), Arc::clone(recorder));
        let work = move || keep(&node, (journal, &recorder), &receiver, &events);
        Ok(Self { orders, thread: thread::Builder::new().name("keeper".into()).spawn(work)? })
    }

    pub(super) fn sync(&self, seq: u64) {
        // a thread that is gone has panicked, which ends the job
        let _ = self.orders.send(Order::Sync(seq));
    }

    pub(super) fn commit(&self, seq: u64, items: Batch) {
        let _ = self.orders.send(Order::Commit(seq, Box::new(items)));
    }

    /// Ends it, after what it was told before; `None` when it has panicked.
    pub(super) fn into_journal(self) -> Option<Journal> {
        drop(self.orders);
        self.thread.join().ok()
    }
}

fn keep(
    node: &Node,
    (mut journal, recorder): (Journal, &Mutex<Recorder>),
    orders: &Receiver<Order>,
    events: &Sender<Event>,
) -> Journal {
    for order in orders {
        watch::begin(b"what is made durable", b"");
        let event = match order {
            Order::Sync(seq) => Event::Synced(seq, node.sync().map_err(|err| Trouble::from(&err.into()))),
            Order::Commit(seq, items) => {
                let written = journal.commit(*items);
                recorder.lock().unwrap_or_else(PoisonError::into_inner).written();
                Event::Committed(seq, written.map_err(|err| Trouble::from(&err)))
            }
        };
        watch::end();
        if events.send(event).is_err() {
            break;
        }
    }
    journal
}
