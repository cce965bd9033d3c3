//! Senders of mail that waits for long are told once, whether it was tried or not.
//!
//! Mail before a closed gate is due and not attempted, so nothing that happens to it could bring the
//! warning forth. Instead the queue is walked in the order of arrival, a page at a time, by a mark
//! that only goes forward: however long it is, each entry is looked at once, and a handful of them
//! are in memory.

use std::time::Duration;

use super::{
    Orders, Runner,
    report::News,
    settle::{is_late, is_over},
};
use crate::{
    clock::Timestamp,
    dsn::wish::{self, Happened},
    queue::{ActionError, Fault, Next, Settled, entry::Entry, id::QueueId},
};

/// Entries read at once.
const PAGE: usize = 200;
/// Warnings on their way to the disk at once: they share a sync, and mail does not wait for long
/// behind them.
const AT_ONCE: usize = 50;
/// Of more that are on hold only an attempt tells that they are late.
const ON_HOLD_MAX: usize = 100_000;
/// How often it is looked whether somebody is late: at a tenth of the delay, within these.
const OFTEN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(60)];

/// How far the walk has come.
#[derive(Debug, Default)]
pub(super) struct Walk {
    seen: Option<QueueId>,
    /// Passed by while an attempt was under way: no more than there are connections.
    busy: Vec<QueueId>,
    /// Passed by while their senders wanted them to wait (RFC 4865), and when they will be late.
    on_hold: Vec<(Timestamp, QueueId)>,
}

impl Runner {
    /// Runs until it is dropped.
    pub(super) async fn warn_of_late_mail(&self) {
        let mut walk = Walk::default();
        loop {
            let orders = self.orders();
            let delay = orders.queue.delay_warning;
            tokio::time::sleep(delay.map_or(OFTEN[1], |delay| (delay / 10).clamp(OFTEN[0], OFTEN[1]))).await;
            let Some(delay) = delay else { continue };
            if let Err(fault) = self.walk(&orders, &mut walk, delay).await {
                tracing::error!(%fault, "the queue can't be looked through for late mail");
            }
        }
    }

    pub(super) async fn walk(&self, orders: &Orders, walk: &mut Walk, delay: Duration) -> Result<(), Fault> {
        let now = self.clock().now();
        let arrived = Timestamp(now.0.saturating_sub(delay.as_millis() as u64));
        let mut settled = Vec::new();
        for id in std::mem::take(&mut walk.busy) {
            self.warn(orders, walk, id, &mut settled).await?;
        }
        let (late, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut walk.on_hold).into_iter().partition(|(late, _)| *late <= now);
        walk.on_hold = later;
        for (_, id) in late {
            self.warn(orders, walk, id, &mut settled).await?;
        }
        // A warning is a courtesy; it takes no room from mail.
        while self.queue().trouble().is_none() {
            let page = self.queue().list(walk.seen, PAGE).await?;
            let more = page.len() == PAGE && page.last().is_some_and(|listed| listed.id.time() <= arrived);
            for listed in page.into_iter().take_while(|listed| listed.id.time() <= arrived) {
                match listed.entry {
                    Some(entry) if is_to_be_warned(orders, &entry, now) => {
                        self.warn(orders, walk, listed.id, &mut settled).await?;
                    }
                    Some(entry) if !entry.warned && walk.on_hold.len() < ON_HOLD_MAX => {
                        let late = entry.handling.hold_until.map(|until| until.after(delay));
                        walk.on_hold.extend(late.filter(|late| *late > now).map(|late| (late, listed.id)));
                    }
                    _ => {}
                }
                walk.seen = Some(listed.id);
                if settled.len() >= AT_ONCE {
                    recorded(&mut settled).await;
                }
            }
            if !more {
                break;
            }
        }
        recorded(&mut settled).await;
        Ok(())
    }

    /// Tells the sender of one entry, in the transaction that remembers it.
    async fn warn(
        &self,
        orders: &Orders,
        walk: &mut Walk,
        id: QueueId,
        settled: &mut Vec<Settled>,
    ) -> Result<(), Fault> {
        let (mut claim, due) = match self.queue().claim_by_id(id).await {
            Ok(claimed) => claimed,
            Err(ActionError::Busy) => {
                walk.busy.push(id);
                return Ok(());
            }
            // It has left, or is an operator's business by now.
            Err(ActionError::NoSuchEntry | ActionError::Damaged) => return Ok(()),
            Err(ActionError::Fault(fault)) => return Err(fault),
        };
        let mut news = News::default();
        if is_to_be_warned(orders, claim.entry(), self.clock().now()) {
            news.warn(claim.entry_mut());
        }
        let (reports, next) = self.reports(orders, &mut claim, &news, false, Next::Retry(due));
        settled.push(self.queue().settle(claim, next, reports));
        Ok(())
    }
}

/// Waits until all are on disk. What can't be recorded the queue goes on trying.
async fn recorded(settled: &mut Vec<Settled>) {
    for settled in settled.drain(..) {
        let _ = settled.durable().await;
    }
}

/// Whether somebody wants to hear that it is late. What is over is not: its next attempt ends it.
fn is_to_be_warned(orders: &Orders, entry: &Entry, now: Timestamp) -> bool {
    entry.held.is_none()
        && entry.reverse_path.mailbox().is_some()
        && is_late(orders, entry, now)
        && !is_over(orders, entry, now)
        && entry.pending().any(|(_, recipient)| wish::report(Happened::Late, recipient.notify).is_some())
}
