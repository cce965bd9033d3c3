//! A claim: an entry that one worker has to itself, until it is settled.

use std::collections::HashSet;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Fault, Next, Queue, QueueId,
    entry::{ContentInfo, Entry, Recipient},
    marks::Flow,
    schedule::Ready,
    turns::Turns,
    writer::{EntryChange, NewContent, NewEntry, Request},
};
use crate::clock::Timestamp;
use crate::mail::{
    content::{Content, Facts},
    envelope::{Envelope, Origin},
};

/// A message of our own making: a report, or a copy of one.
#[derive(Debug)]
pub struct Report {
    /// Whom it is for.
    pub envelope: Envelope,
    /// Where it comes from: ourselves.
    pub origin: Origin,
    /// Complete, header and all.
    pub content: Vec<u8>,
    /// Why it waits for an operator, if it can't be sent to anybody.
    pub held: Option<String>,
}

/// An entry that one worker has to itself. Dropped unsettled, it goes back as it was; dropped by a
/// panic it is held, for whatever caused that would cause it again and again.
#[derive(Debug)]
pub struct Claim {
    pub(super) ready: Option<Ready>,
    /// When it is due, if it was claimed out of its turn.
    pub(super) due: Option<Timestamp>,
    pub(super) queue: Queue,
}

impl Claim {
    /// The entry.
    pub fn entry(&self) -> &Entry {
        &self.ready.as_ref().expect("because only settling empties a claim, and that consumes it").entry
    }

    /// The entry, to note outcomes in it.
    pub fn entry_mut(&mut self) -> &mut Entry {
        &mut self.ready.as_mut().expect("because only settling empties a claim, and that consumes it").entry
    }

    /// Its content.
    pub fn content(&self) -> &Content {
        &self.ready.as_ref().expect("because only settling empties a claim, and that consumes it").content
    }

    /// Takes the entry out of the window, untouched, until [`Queue::bring_back`] is asked for it.
    ///
    /// # Errors
    /// So many are put off, or so many of its flow, that no more can be remembered; the claim comes back.
    pub fn put_off(self) -> Result<(), Self> {
        let queue = self.queue.clone();
        let flow = Flow::of(self.entry());
        if !queue.shared.schedule().has_room_to_put_off(flow) {
            return Err(self);
        }
        if let Some(ready) = self.into_inner() {
            queue.shared.schedule().put_off(&ready);
        }
        Ok(())
    }

    fn into_inner(mut self) -> Option<Ready> {
        self.ready.take()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(mut ready) = self.ready.take() else { return };
        if std::thread::panicking() {
            ready.entry.held = Some("internal error while it was being delivered; see the log".to_owned());
            let change =
                EntryChange { entry: *ready.entry, next: Next::Hold, reports: Vec::new(), insists: true };
            let _ = self.queue.request(Request::Change(Box::new(change), oneshot::channel().0));
        } else if ready.entry.held.is_some() {
            // An operator's: nobody else may have it.
            self.queue.shared.schedule().forget(ready.entry.id, None);
        } else if let Some(due) = self.due {
            // It was claimed out of its turn, maybe without its content: it waits where it did, as it did.
            self.queue.shared.schedule().forget(ready.entry.id, Some(due));
            self.queue.shared.look.notify_one();
        } else {
            self.queue.shared.schedule().give_back(ready);
            self.queue.shared.claimable.notify_one();
        }
    }
}

/// Tells when a settlement is durable.
#[derive(Debug)]
pub struct Settled(oneshot::Receiver<Result<(), Fault>>);

impl Settled {
    /// Waits for it.
    ///
    /// # Errors
    /// It could not be recorded yet. The queue goes on trying, and keeps the entry to itself until
    /// then.
    pub async fn durable(self) -> Result<(), Fault> {
        self.0.await.map_err(|_| Fault::stopped())?
    }
}

impl Queue {
    /// Lets entries that were put off come into the window again. Others are passed over.
    pub fn bring_back(&self, ids: &[QueueId]) {
        if self.shared.schedule().bring_back(ids) {
            self.shared.look.notify_one();
        }
    }

    /// Entries that are put off.
    pub fn put_off(&self) -> usize {
        self.shared.schedule().away()
    }

    /// Those of these that are put off still, each once, in their order.
    pub fn still_put_off(&self, mut all: Turns<QueueId>) -> Vec<(Flow, QueueId)> {
        let schedule = self.shared.schedule();
        let mut seen = HashSet::new();
        std::iter::from_fn(|| all.pop()).filter(|(_, id)| schedule.is_away(*id) && seen.insert(*id)).collect()
    }

    /// Records how a claimed entry goes on, and accepts the reports that this brings forth, in one
    /// frame. The work begins at once; the future tells when it is durable.
    pub fn settle(&self, claim: Claim, next: Next, reports: Vec<Report>) -> Settled {
        self.record_change(claim, next, reports, true)
    }

    /// The same for what nothing has happened for yet: if it can't be recorded, it is given up, and the
    /// entry is as it was.
    pub fn settle_once(&self, claim: Claim, next: Next, reports: Vec<Report>) -> Settled {
        self.record_change(claim, next, reports, false)
    }

    fn record_change(&self, claim: Claim, next: Next, reports: Vec<Report>, insists: bool) -> Settled {
        let (done, answer) = oneshot::channel();
        if let Some(ready) = claim.into_inner() {
            let reports = reports.into_iter().map(|report| self.new_report(report)).collect();
            let change = Box::new(EntryChange { entry: *ready.entry, next, reports, insists });
            // If the writer is gone, so is the process in a moment; the entry is still on disk.
            let _ = self.request(Request::Change(change, done));
        }
        Settled(answer)
    }

    fn new_report(&self, report: Report) -> NewEntry {
        let now = self.shared.clock.now();
        let content = Bytes::from(report.content);
        let facts = Facts::of(&content, true).unwrap_or_default();
        let entry = Entry {
            id: self.shared.ids.next(now),
            received: now,
            reverse_path: report.envelope.reverse_path,
            recipients: report.envelope.recipients.into_iter().map(Recipient::new).collect(),
            handling: report.envelope.handling,
            origin: report.origin,
            content: ContentInfo {
                size: content.len() as u64,
                crc32c: crc32c::crc32c(&content),
                spooled: false,
            },
            hops: facts.hops,
            subject: facts.subject,
            message_id: facts.message_id,
            held: report.held,
            warned: false,
        };
        NewEntry { entry: Box::new(entry), content: NewContent::Memory(content), event: None }
    }
}
