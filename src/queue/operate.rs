//! What operators see of the queue and do with it, one entry at a time; and a claim out of turn.

use std::{ops::Range, pin::pin};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Claim, DAMAGED, Fault, Next, Queue, Shared,
    entry::{Entry, RecipientState},
    id::QueueId,
    reader::{self, Reader, Row},
    schedule::{Ready, Schedule},
    search::Search,
    store::State,
    writer::{EntryChange, Request},
};
use crate::{clock::Timestamp, mail::content::Content};

/// A queue of fewer is looked through by one reader: it takes some milliseconds.
const LOOKED_THROUGH_ALONE: u64 = if cfg!(test) { 3 } else { 50_000 };

/// An entry as a list shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub id: QueueId,
    /// Octets.
    pub size: u64,
    /// When it wants to be tried, unless it is held.
    pub due: Timestamp,
    /// An attempt is under way at this moment.
    pub claimed: bool,
    /// The entry itself; `None` if it is damaged.
    pub entry: Option<Entry>,
}

/// An operator's action on one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Try it now.
    Retry,
    /// Try it no more until it is released.
    Hold,
    /// Let a held one go on, where its sender named a time (RFC 4865) not before that.
    Release,
    /// Remove it; nobody is told.
    Delete,
}

/// An operator's action was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// There is none of this id.
    #[error("no such message in the queue")]
    NoSuchEntry,
    /// An attempt is under way.
    #[error("the message is being delivered at this moment; try again")]
    Busy,
    /// It can't be read.
    #[error("the message is damaged, and its envelope with it: it can only be deleted")]
    Damaged,
    /// The store refused.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Queue {
    /// Entries behind `after` in the order of their arrival, at most `limit`.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<Listed>, Fault> {
        self.read(move |shared, reader| {
            let rows = reader.list(after, limit)?;
            let schedule = shared.schedule();
            Ok(rows.into_iter().map(|row| listed(row, &schedule)).collect())
        })
        .await
    }

    /// The same, of those that are looked for.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn search(
        &self,
        search: Search,
        after: Option<QueueId>,
        limit: usize,
    ) -> Result<Vec<Listed>, Fault> {
        let start = reader::behind(after);
        if !search.has_address() || self.tally().messages < LOOKED_THROUGH_ALONE {
            return self.search_among(search, start..i64::MAX, limit).await;
        }
        // Only looking at each row tells whether an address is meant. Two look, each at a half.
        let middle = self.read(move |_, reader| reader.middle(start)).await?;
        let mut first = pin!(self.search_among(search.clone(), start..middle, limit));
        let mut second = pin!(self.search_among(search, middle..i64::MAX, limit));
        let mut later = None;
        let mut found = loop {
            tokio::select! {
                found = &mut first => break found?,
                found = &mut second, if later.is_none() => later = Some(found?),
            }
        };
        // Where the first half was enough, nobody waits for the other.
        if found.len() < limit {
            found.extend(match later {
                Some(later) => later,
                None => second.await?,
            });
            found.truncate(limit);
        }
        Ok(found)
    }

    async fn search_among(
        &self,
        search: Search,
        ids: Range<i64>,
        limit: usize,
    ) -> Result<Vec<Listed>, Fault> {
        self.read(move |shared, reader| {
            let claims: Vec<_> =
                if search.asks_for_claims() { shared.schedule().claims().collect() } else { Vec::new() };
            let rows = reader.search(&search, &claims, ids, limit)?;
            let schedule = shared.schedule();
            Ok(rows.into_iter().map(|row| listed(row, &schedule)).collect())
        })
        .await
    }

    /// One entry.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn get(&self, id: QueueId) -> Result<Option<Listed>, Fault> {
        self.read(move |shared, reader| {
            let row = reader.get(id)?;
            let schedule = shared.schedule();
            Ok(row.map(|row| listed(row, &schedule)))
        })
        .await
    }

    /// Claims a queued entry out of its turn, and tells when that will be: to be settled with
    /// [`Next::Retry`] for then, unless its time has come for something else.
    ///
    /// # Errors
    /// See [`ActionError`]; a held entry is no more to be claimed than one that is not there.
    pub async fn claim_by_id(&self, id: QueueId) -> Result<(Claim, Timestamp), ActionError> {
        self.claim_one(id, State::is_queued, false).await
    }

    /// The same for an operator, who has a say over held entries as well, and over one whose content is
    /// damaged: that claim has none.
    ///
    /// # Errors
    /// See [`ActionError`].
    pub async fn claim_for_operator(&self, id: QueueId) -> Result<Claim, ActionError> {
        let (claim, _) = self.claim_one(id, |_| true, true).await?;
        Ok(claim)
    }

    async fn claim_one(
        &self,
        id: QueueId,
        wants: impl Fn(State) -> bool + Clone + Send + 'static,
        without_content: bool,
    ) -> Result<(Claim, Timestamp), ActionError> {
        let find = move |shared: &Shared, reader: &Reader| {
            let Some(row) = reader.get(id)?.filter(|row| wants(row.state)) else { return Ok(None) };
            let sound = row.entry.filter(|_| row.state.is_sound());
            let Some(entry) = sound else { return Ok(Some(Err(ActionError::Damaged))) };
            let is_sound = entry.held.as_deref() != Some(DAMAGED);
            let content = shared.content(reader, &entry)?.filter(|_| is_sound);
            let content = content.or(without_content.then(|| Content::Memory(Bytes::new())));
            let ready = content.map(|content| Ready { entry: Box::new(entry), content });
            Ok(Some(ready.map(|ready| (ready, row.due)).ok_or(ActionError::Damaged)))
        };
        let (withdrawn, found) = self.withdraw(id, find).await?;
        let (ready, due) = found?;
        withdrawn.handed_over();
        Ok((Claim { ready: Some(ready), due: Some(due), queue: self.clone() }, due))
    }

    /// Takes an entry out of everybody's way, and finds it. Only where the database doesn't know it as it is has
    /// it to be told: whoever acts on thousands does not wait for that each time.
    async fn withdraw<T: Send + 'static>(
        &self,
        id: QueueId,
        find: impl Fn(&Shared, &Reader) -> rusqlite::Result<Option<T>> + Clone + Send + 'static,
    ) -> Result<(Withdrawn<'_>, T), ActionError> {
        let mut withdrawn = Withdrawn::take(self, id);
        if withdrawn.is_none() {
            self.catch_up().await;
            withdrawn = Withdrawn::take(self, id);
        }
        let withdrawn = withdrawn.ok_or(ActionError::Busy)?;
        let mut found = self.read_as_it_is(find.clone()).await?;
        if found.is_none() {
            found = self.read(find).await?;
        }
        Ok((withdrawn, found.ok_or(ActionError::NoSuchEntry)?))
    }

    /// The greatest id given out so far to an entry that was accepted.
    pub fn newest(&self) -> QueueId {
        QueueId::from_i64(self.tally().last)
    }

    /// Does what an operator asks with one entry. What can't be recorded is not done, now or later. False
    /// where there was nothing to do: an entry that isn't held can't be released, and goes on as it was.
    ///
    /// # Errors
    /// See [`ActionError`].
    pub async fn act(&self, id: QueueId, action: Action, reason: &str) -> Result<bool, ActionError> {
        let find = move |shared: &Shared, reader: &Reader| {
            Ok(reader.get(id)?.map(|row| listed(row, &shared.schedule())))
        };
        let (withdrawn, listed) = self.withdraw(id, find).await?;
        if listed.entry.is_none() && action != Action::Delete {
            return Err(ActionError::Damaged);
        }
        let now = self.shared.clock.now();
        let mut entry = listed.entry.unwrap_or_else(|| Entry::placeholder(id, now, listed.size));
        let next = match action {
            Action::Delete => Next::Done,
            Action::Hold => {
                entry.held = Some(reason.to_owned());
                Next::Hold
            }
            // A held entry stays held until it is released: trying it is another decision.
            Action::Retry if entry.held.is_some() => Next::Hold,
            Action::Retry => {
                entry.recipients.iter_mut().for_each(|recipient| recipient.due = None);
                Next::Retry(now)
            }
            // It waits for its own time, or is being tried.
            Action::Release if entry.held.is_none() => return Ok(false),
            Action::Release => {
                entry.held = None;
                entry.recipients.iter_mut().for_each(|recipient| recipient.due = None);
                // With nobody left to reach, what was given up is what the operator wants tried again.
                if entry.pending().next().is_none() {
                    let given_up = |state| state != RecipientState::Delivered;
                    let again = entry.recipients.iter_mut().filter(|recipient| given_up(recipient.state));
                    again.for_each(|recipient| recipient.state = RecipientState::Pending);
                }
                // What its sender asked for holds behind the operator's hold as well.
                Next::Retry(entry.handling.hold_until.map_or(now, |until| until.max(now)))
            }
        };
        let (done, answer) = oneshot::channel();
        let change = Box::new(EntryChange { entry, next, reports: Vec::new(), insists: false });
        self.request(Request::Change(change, done))?;
        // From here on the writer gives it back.
        withdrawn.handed_over();
        answer.await.map_err(|_| Fault::stopped())??;
        Ok(true)
    }
}

/// An entry taken out of everybody's way. Dropped before the writer has it, as when whoever asked has
/// gone, it goes on as it was.
struct Withdrawn<'q> {
    queue: Option<&'q Queue>,
    id: QueueId,
}

impl<'q> Withdrawn<'q> {
    fn take(queue: &'q Queue, id: QueueId) -> Option<Self> {
        // Not `then_some`: a value made in vain would give back what another has.
        queue.shared.schedule().withdraw(id).then(|| Self { queue: Some(queue), id })
    }

    fn handed_over(mut self) {
        self.queue = None;
    }
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.queue {
            // The store knows best when it is due.
            queue.shared.schedule().forget(self.id, Some(Timestamp::default()));
            queue.shared.look.notify_one();
        }
    }
}

pub(super) fn listed(row: Row, schedule: &Schedule) -> Listed {
    let claimed = schedule.is_claimed(row.id);
    let entry = row.entry.filter(|_| row.state.is_sound());
    Listed { id: row.id, size: row.size, due: row.due, claimed, entry }
}
