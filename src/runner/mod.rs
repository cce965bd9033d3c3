//! The queue runner: claim, attempt, settle, report. The only file where queue, delivery, limits and
//! reports meet.
//!
//! One dispatcher hands due messages to workers; a worker is one connection to the upstream. While
//! there is mail, workers help themselves and the dispatcher is out of the way. A worker opens its
//! connection through the gate, once, at its birth; when the connection ends, so does the worker.
//!
//! - here: who carries what, and when
//! - [`settle`]: what becomes of a message behind an attempt
//! - [`report`]: who is told of it
//! - [`late`]: who is told that it waits

mod late;
mod report;
mod settle;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use self::settle::is_over;
use crate::{
    clock::{Clock, Timestamp},
    config::{QueueSettings, Waits},
    delivery::{
        Agent, Forward, Message, Trouble,
        client::{Attempt, Client},
    },
    limits::gate::{Gate, Pass},
    mail::outcome::{Outcome, Scope},
    observe::{Observer, UpstreamLabels},
    queue::{Claim, Queue, Settled, entry::Recipient},
    smtp::address::Mailbox,
};

/// A kept connection without mail is given back to the upstream after so long.
const IDLE: Duration = Duration::from_secs(20);
/// What the runner goes by; replaced as a whole when the configuration is read again.
#[derive(Debug)]
pub struct Orders {
    /// Speaks to the upstream.
    pub agent: Agent,
    /// When to try again, when to give up.
    pub queue: QueueSettings,
    /// Our name.
    pub hostname: String,
    /// Who gets reports that can't be returned.
    pub postmaster: Option<Mailbox>,
}

/// The queue runner. Clones share it.
#[derive(Clone, Debug)]
pub struct Runner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    orders: ArcSwap<Orders>,
    queue: Queue,
    gate: Gate,
    observer: Observer,
    clock: Clock,
    /// One permit for each message being carried.
    busy: Mutex<Arc<Semaphore>>,
    /// Workers that wait with an open connection, the last used on top: the others can run out.
    idle: Mutex<Vec<(usize, mpsc::Sender<Job>)>>,
    idled: Notify,
    names: AtomicUsize,
    connections: AtomicUsize,
}

/// What a waiting worker is given.
type Job = (Claim, OwnedSemaphorePermit);

impl Runner {
    /// A runner that empties `queue` through `gate`.
    pub fn new(orders: Orders, queue: Queue, gate: Gate, observer: Observer, clock: Clock) -> Self {
        let busy = Mutex::new(Arc::new(Semaphore::new(orders.agent.upstream().connections.max(1))));
        Self(Arc::new(Inner {
            orders: ArcSwap::from_pointee(orders),
            queue,
            gate,
            observer,
            clock,
            busy,
            idle: Mutex::default(),
            idled: Notify::new(),
            names: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        }))
    }

    /// Goes by other orders from the next message on, and lets a closed gate try again at once.
    /// Connections stay where the upstream is the same.
    pub fn change(&self, orders: Orders) {
        let old = self.0.orders.swap(Arc::new(orders));
        let new = self.0.orders.load();
        if !old.agent.is_same(&new.agent) {
            *self.lock(&self.0.busy) = Arc::new(Semaphore::new(new.agent.upstream().connections.max(1)));
            // Their channels close, which tells the waiting workers to go.
            self.lock(&self.0.idle).clear();
        }
        self.0.gate.reset();
    }

    /// The agent in use.
    pub fn agent(&self) -> Agent {
        self.0.orders.load().agent.clone()
    }

    /// Runs until `shutdown` turns true, and then until what is under way has had its final reply.
    pub async fn run(&self, mut shutdown: watch::Receiver<bool>) {
        let feeding = self.0.queue.clone();
        let feeder = tokio::spawn(async move { feeding.feed().await });
        let warning = self.clone();
        let warner = tokio::spawn(async move { warning.warn_of_late_mail().await });
        let mut workers = JoinSet::new();
        let told = shutdown.clone();
        loop {
            let work = tokio::select! {
                biased;
                _ = shutdown.wait_for(|shutdown| *shutdown) => break,
                Some(_) = workers.join_next() => None,
                work = self.dispatch() => work,
            };
            if let Some((claim, permit, pass)) = work {
                let (runner, told) = (self.clone(), told.clone());
                workers.spawn(async move { runner.work(claim, permit, pass, told).await });
            }
        }
        feeder.abort();
        warner.abort();
        self.lock(&self.0.idle).clear();
        while workers.join_next().await.is_some() {}
    }

    /// Hands out one message: to a worker that waits, or to a new one, whose first work is returned.
    /// Dropped midway, it leaves everything as it was.
    async fn dispatch(&self) -> Option<(Claim, OwnedSemaphorePermit, Pass)> {
        let busy = Arc::clone(&self.lock(&self.0.busy));
        let permit = busy.acquire_owned().await.ok()?;
        let pass = loop {
            let idled = self.0.idled.notified();
            if !self.lock(&self.0.idle).is_empty() {
                break None;
            }
            tokio::select! {
                pass = self.0.gate.pass() => break Some(pass),
                () = idled => {}
            }
        };
        let claim = self.0.queue.claim().await;
        let waiting = self.lock(&self.0.idle).pop();
        if let Some((_, worker)) = waiting {
            // If it went away at this moment, the claim comes back to the queue by itself.
            let _ = worker.try_send((claim, permit));
            return None;
        }
        // Without a pass, the worker that waited a moment ago has left, and the claim goes back.
        pass.map(|pass| (claim, permit, pass))
    }

    /// A worker's life.
    async fn work(
        &self,
        claim: Claim,
        permit: OwnedSemaphorePermit,
        pass: Pass,
        shutdown: watch::Receiver<bool>,
    ) {
        let orders = self.0.orders.load_full();
        let client =
            match orders.agent.open(|step| tracing::debug!(what = step.what, "{}", step.detail)).await {
                Ok(client) => client,
                Err(trouble) => return self.closed(&orders, claim, pass, *trouble),
            };
        if pass.succeeded() {
            tracing::info!(upstream = orders.agent.upstream().name, "the upstream takes mail again");
        }
        // While it was being opened, another connection learned that no mail is wanted now.
        if self.0.gate.stops_all() {
            drop(claim);
            return client.quit().await;
        }
        let open = self.0.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.show(&orders, open);
        self.carry(&orders, client, claim, permit, shutdown).await;
        let open = self.0.connections.fetch_sub(1, Ordering::Relaxed) - 1;
        self.show(&orders, open);
    }

    /// Carries message after message over one connection.
    async fn carry(
        &self,
        orders: &Arc<Orders>,
        mut client: Client<TcpStream>,
        claim: Claim,
        permit: OwnedSemaphorePermit,
        shutdown: watch::Receiver<bool>,
    ) {
        let (mut claim, mut permit, mut settled) = (claim, permit, None);
        loop {
            let now = self.0.orders.load_full();
            let (recorded, paused) = self.carry_one(&now, &mut client, claim, settled).await;
            settled = recorded;
            let changed = !orders.agent.is_same(&self.0.orders.load().agent);
            let stop = paused || self.0.gate.stops_all() || changed || *shutdown.borrow();
            if !client.is_usable() || stop {
                break;
            }
            if let Some(next) = self.0.queue.try_claim() {
                claim = next;
                continue;
            }
            drop(permit);
            match self.wait_for_job().await {
                Some(job) => (claim, permit) = job,
                None => break,
            }
        }
        if let Some(settled) = settled {
            let _ = settled.durable().await;
        }
        client.quit().await;
    }

    /// Waits among the idle; `None` when it waited too long, or is told to go.
    async fn wait_for_job(&self) -> Option<Job> {
        let name = self.0.names.fetch_add(1, Ordering::Relaxed);
        let (sender, mut jobs) = mpsc::channel(1);
        self.lock(&self.0.idle).push((name, sender));
        self.0.idled.notify_one();
        if let Ok(job) = timeout(IDLE, jobs.recv()).await {
            return job;
        }
        let was_there = {
            let mut idle = self.lock(&self.0.idle);
            let before = idle.len();
            idle.retain(|(other, _)| *other != name);
            idle.len() < before
        };
        // Not there any more: the dispatcher has just chosen us.
        if was_there { None } else { jobs.recv().await }
    }

    /// One attempt at one message. `before` is the settlement of the message before it. Returns its
    /// settlement, and whether the upstream said something that concerns all mail.
    async fn carry_one(
        &self,
        orders: &Orders,
        client: &mut Client<TcpStream>,
        claim: Claim,
        before: Option<Settled>,
    ) -> (Option<Settled>, bool) {
        let entry = claim.entry();
        let pending: Vec<usize> = entry.pending().map(|(place, _)| place).collect();
        let message = Message {
            reverse_path: &entry.reverse_path,
            recipients: pending.iter().map(|place| forward(&entry.recipients[*place])).collect(),
            handling: &entry.handling,
            content: claim.content(),
        };
        let recorded = async {
            if let Some(before) = before {
                // If it can't be recorded the queue goes on trying, and keeps the entry to itself.
                let _ = before.durable().await;
            }
        };
        match client.attempt(&message, recorded).await {
            Attempt::Done(outcomes) => {
                let until = self.pause(orders, &outcomes);
                let upstream = Some(client.capabilities());
                (Some(self.settle(orders, claim, &pending, outcomes, upstream, until)), until.is_some())
            }
            // Nothing was said of it: it goes back as it was.
            Attempt::Stale => (None, false),
            Attempt::Damaged => (Some(self.hold(claim, "damaged")), false),
        }
    }

    /// Closes the gate if the upstream said of one message what concerns them all: a login that it
    /// wants, a limit of the account. Returns when it will be asked again.
    fn pause(&self, orders: &Orders, outcomes: &[Outcome]) -> Option<Timestamp> {
        let (evidence, waits) = outcomes.iter().find_map(|outcome| {
            let evidence = outcome.evidence();
            // Without its words the connection was lost, which the next one will explain.
            let said = matches!(outcome, Outcome::Deferred(_)) && evidence.explanation.is_some();
            match evidence.scope {
                Scope::Credential if said => Some((evidence, orders.agent.upstream().auth_retry)),
                Scope::Upstream
                    if said && evidence.reply.as_ref().is_some_and(|reply| reply.code() != 421) =>
                {
                    Some((evidence, orders.queue.retry))
                }
                _ => None,
            }
        })?;
        let until = self.0.gate.close(waits, evidence.clone(), "operator", None);
        // The idle ones go too: they would only hear the same.
        self.lock(&self.0.idle).clear();
        tracing::warn!(upstream = evidence.upstream, next_try = %until, "the upstream is left alone: {evidence}");
        Some(until)
    }

    /// No connection: the gate closes, and the message that was tried remembers why.
    fn closed(&self, orders: &Orders, claim: Claim, pass: Pass, trouble: Trouble) {
        let Trouble { evidence, who_must_act, help } = trouble;
        let waits = match evidence.scope {
            Scope::Credential => orders.agent.upstream().auth_retry,
            // Asking whether it is back costs an upstream nothing, so it is asked soon at first.
            _ => Waits {
                first: orders.queue.retry.first.min(Duration::from_secs(5)),
                longest: orders.queue.retry.longest.min(Duration::from_secs(300)),
            },
        };
        let until = pass.failed(waits, evidence.clone(), who_must_act, help);
        tracing::warn!(
            upstream = evidence.upstream,
            phase = evidence.phase,
            who_must_act,
            next_try = %until,
            help,
            "no mail can be sent: {evidence}"
        );
        self.defer_all(orders, claim, &evidence, until);
        // Others whose time is over have had this attempt too: it would have been theirs.
        while let Some(claim) = self.0.queue.try_claim() {
            if !is_over(orders, claim.entry(), evidence.at) {
                break;
            }
            self.defer_all(orders, claim, &evidence, until);
        }
    }

    fn show(&self, orders: &Orders, open: usize) {
        let upstream = orders.agent.upstream().name.clone();
        self.0
            .observer
            .metrics()
            .upstream_connections
            .get_or_create(&UpstreamLabels { upstream })
            .set(open as i64);
    }

    /// Open connections to the upstream.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forward(recipient: &Recipient) -> Forward<'_> {
    Forward { mailbox: &recipient.address, notify: recipient.notify, original: recipient.original.as_ref() }
}

#[cfg(test)]
mod tests;
