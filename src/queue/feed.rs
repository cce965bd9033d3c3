//! The feeder: keeps the window filled from the store, whatever the clock does.
//!
//! Due times are wall time, for they outlive the process. A clock set forward makes all of them due,
//! which is noticed within half a minute. A clock set back would make them wait for as long as it
//! went back: so what lies further ahead than any wait that we choose counts as due.

use std::time::Duration;

use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    DAMAGED, Entry, Fault, Next, Queue, Shared,
    id::QueueId,
    reader::Reader,
    retry,
    schedule::{Look, Ready},
    store::State,
    writer::{Astray, EntryChange, Request},
};
use crate::clock::{Course, Timestamp};

/// The store is looked at so often, however far away the next due time is.
const LONGEST: Duration = Duration::from_secs(30);
/// The wait before the next look after one that failed.
const AFTER_FAULT: Duration = Duration::from_secs(1);
/// Octets of content brought into the window by one look at the store.
const LOOK_OCTETS_MAX: usize = 8 * 1024 * 1024;
/// Flows that one look at the store sees; the next one goes on behind them.
const FLOWS_MAX: usize = 2_000;
/// Due times that are looked at, and moved, in one go.
const AHEAD_MAX: usize = 1_000;

/// What the store had under an id.
enum Loaded {
    /// An entry that is due.
    Ready(Ready),
    /// Nothing that is due any more.
    Gone,
    /// An entry whose record or content fails its checksum; itself, if only the content does.
    Damaged(Option<Box<Entry>>),
    /// Something that can't even be set aside.
    Unreadable,
}

impl Queue {
    /// Keeps the window filled from the store. Runs until it is dropped.
    pub async fn feed(&self) {
        let mut course = Course::new(self.shared.clock.now());
        // It may have gone back while nobody looked.
        let mut astray = true;
        loop {
            let now = self.shared.clock.now();
            astray |= course.went_back(now);
            if astray {
                match self.bring_forward(now).await {
                    Ok(()) => astray = false,
                    Err(fault) => {
                        tracing::error!(%fault, "due times behind a clock set back can't be moved");
                        sleep(AFTER_FAULT).await;
                    }
                }
            }
            let look = self.shared.schedule().next_look(now);
            match look {
                Some(at) if at <= now => {
                    let reason = self.look(now).await.err().map(|fault| fault.to_string());
                    let failed = reason.is_some();
                    let before = self.shared.health.set_unread(reason.clone());
                    if failed {
                        if before != reason {
                            tracing::error!(reason, "the queue can't be read");
                        }
                        sleep(AFTER_FAULT).await;
                    }
                }
                other => {
                    let wait = other.map_or(LONGEST, |at| at.since(now).min(LONGEST));
                    let _ = timeout(wait, self.shared.look.notified()).await;
                }
            }
        }
    }

    /// Makes due now what lies further ahead than any wait of ours, unless its sender asked for that
    /// (RFC 4865), and what was accepted in the future.
    async fn bring_forward(&self, now: Timestamp) -> Result<(), Fault> {
        let latest = self.shared.latest_due(now);
        let mut after = (latest, QueueId::from_i64(i64::MAX));
        loop {
            let rows = self.read(move |_, reader| reader.ahead(after, AHEAD_MAX)).await?;
            let Some(last) = rows.last() else { break };
            after = (last.due, last.id);
            let asked_for = |until: Option<Timestamp>| until.is_some_and(|until| until > latest);
            let astray = |entry: &Entry| !asked_for(entry.handling.hold_until);
            let ids =
                rows.iter().filter(|row| row.entry.as_ref().is_none_or(astray)).map(|row| row.id).collect();
            self.move_to_now(Astray { ids, latest, now }).await?;
        }
        loop {
            // The time of the look itself: since `now` mail may have been accepted, and that is not of the future.
            let of_the_future = |shared: &Shared, reader: &Reader| {
                let now = shared.clock.now();
                Ok((reader.of_the_future(now, AHEAD_MAX)?, now))
            };
            let (ids, now) = self.read(of_the_future).await?;
            if ids.is_empty() {
                break;
            }
            self.move_to_now(Astray { ids, latest, now }).await?;
        }
        self.shared.schedule().look_again();
        Ok(())
    }

    async fn move_to_now(&self, astray: Astray) -> Result<(), Fault> {
        if astray.ids.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            messages = astray.ids.len(),
            "the clock was set back: due times that it left far ahead are now"
        );
        let (done, moved) = oneshot::channel();
        self.request(Request::BringForward(astray, done))?;
        moved.await.map_err(|_| Fault::stopped())?
    }

    /// One look at the store: fills the window with what is due, of each flow its share.
    async fn look(&self, now: Timestamp) -> Result<(), Fault> {
        let queue = self.clone();
        let look = self.shared.schedule().begin_look(now);
        let looked = self.read(move |shared, reader| queue.look_into(shared, reader, &look, now)).await;
        if looked.is_err() {
            self.shared.schedule().look_failed();
        }
        for _ in 0..self.waiting() {
            self.shared.claimable.notify_one();
        }
        looked
    }

    fn look_into(
        &self,
        shared: &Shared,
        reader: &Reader,
        look: &Look,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let (flows, next) = reader.flows(look.from, now, FLOWS_MAX)?;
        for flow in &flows {
            let wanted = look.wanted(*flow, flows.len());
            let mut ids = Vec::new();
            let mut complete = reader.due(*flow, now, |id| {
                let is_new = shared.schedule().is_to_be_read(id);
                let has_room = ids.len() < wanted;
                if is_new && has_room {
                    ids.push(id);
                }
                has_room || !is_new
            })?;
            let (mut found, mut octets) = (Vec::new(), 0);
            for id in ids {
                if octets > LOOK_OCTETS_MAX / flows.len() {
                    complete = false;
                    break;
                }
                match self.load(shared, reader, id, now)? {
                    Loaded::Ready(ready) => {
                        octets += ready.content.octets_in_memory();
                        found.push(ready);
                    }
                    Loaded::Damaged(entry) => self.set_aside(id, entry),
                    Loaded::Unreadable => shared.schedule().pass_over(id),
                    Loaded::Gone => {}
                }
            }
            shared.schedule().fill(*flow, found, complete);
        }
        let next_due = reader.next_due(now)?;
        shared.schedule().end_look(next, next_due);
        Ok(())
    }

    fn load(
        &self,
        shared: &Shared,
        reader: &Reader,
        id: QueueId,
        now: Timestamp,
    ) -> rusqlite::Result<Loaded> {
        let entry = match reader.get(id)? {
            Some(row) if row.state == State::Unreadable => return Ok(Loaded::Unreadable),
            Some(row) if row.state.is_queued() && row.due <= now => row.entry,
            _ => return Ok(Loaded::Gone),
        };
        let Some(mut entry) = entry else { return Ok(Loaded::Damaged(None)) };
        let latest = shared.latest_due(now);
        for recipient in &mut entry.recipients {
            recipient.due = recipient.due.filter(|due| *due <= latest);
        }
        Ok(match shared.content(reader, &entry)? {
            Some(content) => Loaded::Ready(Ready { entry: Box::new(entry), content }),
            // It may have left between the two reads.
            None if reader.get(id)?.is_none() => Loaded::Gone,
            None => Loaded::Damaged(Some(Box::new(entry))),
        })
    }

    /// Sets a damaged entry aside, so that the others go on. While its record is sound it is held like any
    /// other, so that people see whom it is from and for, and can return it.
    fn set_aside(&self, id: QueueId, entry: Option<Box<Entry>>) {
        if !self.shared.schedule().withdraw(id) {
            return;
        }
        tracing::error!(%id, "a damaged message is set aside as held");
        let request = match entry {
            Some(mut entry) => {
                entry.held = Some(DAMAGED.to_owned());
                let change =
                    EntryChange { entry: *entry, next: Next::Hold, reports: Vec::new(), insists: true };
                Request::Change(Box::new(change), oneshot::channel().0)
            }
            None => Request::SetAside(id),
        };
        let _ = self.request(request);
        // Perhaps nobody listens.
        let _ = self.shared.damaged.send(id);
    }
}

impl Shared {
    /// No wait that we choose ends later than this.
    fn latest_due(&self, now: Timestamp) -> Timestamp {
        now.after(retry::longest(self.settings.load().retry))
    }
}
