//! The queue runner: claim, attempt, settle, report. The only file where queue, delivery, limits and
//! reports meet.
//!
//! One dispatcher hands due messages to workers; a worker is one connection to the upstream. While
//! there is mail, workers help themselves and the dispatcher is out of the way. A worker opens its
//! connection through the gate, once, at its birth; when the connection ends, so does the worker.

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

use crate::{
    clock::{Clock, Timestamp},
    config::{QueueSettings, Waits},
    delivery::{
        Agent, Message, Trouble,
        client::{Attempt, Client},
    },
    dsn::{self, Failure, Undelivered},
    limits::gate::{Gate, Pass},
    mail::{
        content::{self, Content},
        envelope::{Envelope, Origin},
        outcome::{Evidence, Outcome, Scope},
    },
    observe::{Delivery, Event, EventKind, Observer, UpstreamLabels},
    queue::{
        Claim, Next, Queue, Report, Settled,
        entry::{Entry, RecipientState},
        retry,
    },
    smtp::address::{Mailbox, ReversePath},
};

/// A kept connection without mail is given back to the upstream after so long.
const IDLE: Duration = Duration::from_secs(20);
/// After an end that leaves open whether the upstream took the message, the next try waits at least
/// this long (or the longest wait, if that is shorter): each try may be one more copy.
const UNCERTAIN_WAIT: Duration = Duration::from_secs(300);

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
            recipients: pending.iter().map(|place| &entry.recipients[*place].address).collect(),
            eight_bit: entry.eight_bit,
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
                (Some(self.settle(orders, claim, &pending, outcomes, until)), until.is_some())
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

    fn defer_all(&self, orders: &Orders, claim: Claim, evidence: &Evidence, until: Timestamp) {
        let pending: Vec<usize> = claim.entry().pending().map(|(place, _)| place).collect();
        let outcomes = vec![Outcome::Deferred(evidence.clone()); pending.len()];
        drop(self.settle(orders, claim, &pending, outcomes, Some(until)));
    }

    /// Records outcomes, decides how the entry goes on, and reports what is final.
    fn settle(
        &self,
        orders: &Orders,
        mut claim: Claim,
        pending: &[usize],
        outcomes: Vec<Outcome>,
        until: Option<Timestamp>,
    ) -> Settled {
        let now = self.0.clock.now();
        let over = is_over(orders, claim.entry(), now);
        let entry = claim.entry_mut();
        let somebody = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Delivered(_)));
        let mut failed = Vec::new();
        let mut waits = Waiting::default();
        for (place, outcome) in pending.iter().zip(outcomes) {
            let recipient = &mut entry.recipients[*place];
            recipient.attempts += 1;
            recipient.last = Some(outcome.evidence().clone());
            match outcome {
                Outcome::Delivered(_) => recipient.state = RecipientState::Delivered,
                Outcome::Failed(_) => {
                    recipient.state = RecipientState::Bounced;
                    failed.push(*place);
                }
                Outcome::Deferred(evidence)
                    if over && !(somebody && evidence.scope == Scope::Transaction) =>
                {
                    recipient.state = RecipientState::Expired;
                    failed.push(*place);
                }
                Outcome::Deferred(evidence) => {
                    waits.note(orders.queue.retry, &evidence, recipient.attempts, somebody)
                }
            }
        }
        let next = match waits.time() {
            None => Next::Done,
            // It waits for the gate and for nothing else, so that it goes as soon as that opens.
            Some(_) if until.is_some() => Next::Retry(now),
            Some(wait) => Next::Retry(now.after(wait)),
        };
        let next_attempt = match next {
            Next::Retry(due) => Some(until.unwrap_or(due)),
            Next::Done | Next::Hold => None,
        };
        self.tell(claim.entry(), pending, next_attempt);
        let (reports, next) = self.reports(orders, &mut claim, &failed, next);
        self.0.queue.settle(claim, next, reports)
    }

    /// Who is told of the recipients that have failed. What nobody can be told is held, once all that
    /// can be delivered is.
    fn reports(
        &self,
        orders: &Orders,
        claim: &mut Claim,
        failed: &[usize],
        next: Next,
    ) -> (Vec<Report>, Next) {
        let entry = claim.entry();
        let lost = |state| matches!(state, RecipientState::Bounced | RecipientState::Expired);
        if !entry.recipients.iter().any(|recipient| lost(recipient.state)) {
            return (Vec::new(), next);
        }
        // A report that can't be delivered to the postmaster is not reported to the postmaster.
        let for_postmaster =
            || orders.postmaster.as_ref().filter(|to| entry.recipients.iter().all(|r| r.address != **to));
        let reason = match entry.reverse_path.mailbox().or_else(for_postmaster) {
            Some(_) if failed.is_empty() => return (Vec::new(), next),
            Some(to) => match self.report(orders, entry, claim.content(), failed, to) {
                Ok(content) => {
                    let recipients = vec![to.clone()];
                    let origin = Origin {
                        client: "report".to_owned(),
                        hello: orders.hostname.clone(),
                        ..Origin::default()
                    };
                    let envelope = Envelope { reverse_path: ReversePath::NULL, recipients, eight_bit: false };
                    return (vec![Report { envelope, origin, content, held: None }], next);
                }
                Err(error) => format!("not delivered, and {error}"),
            },
            None => "not delivered, and there is no sender to tell".to_owned(),
        };
        if next != Next::Done {
            return (Vec::new(), next);
        }
        self.note_held(claim, &reason);
        (Vec::new(), Next::Hold)
    }

    fn note_held(&self, claim: &mut Claim, reason: &str) {
        claim.entry_mut().held = Some(reason.to_owned());
        self.0.observer.emit(Event {
            reply: Some(reason.to_owned()),
            ..Event::new(self.0.clock.now(), EventKind::Held, claim.entry().id)
        });
    }

    fn report(
        &self,
        orders: &Orders,
        entry: &Entry,
        content: &Content,
        failed: &[usize],
        to: &Mailbox,
    ) -> Result<Vec<u8>, dsn::ComposeError> {
        let head = head(content);
        let header = content::header_section(&head, content.size() == head.len() as u64).unwrap_or(&head);
        let failures = failed
            .iter()
            .filter_map(|place| {
                let recipient = &entry.recipients[*place];
                let evidence = recipient.last.as_ref()?;
                let expired = recipient.state == RecipientState::Expired;
                Some(Failure { recipient: &recipient.address, evidence, expired })
            })
            .collect();
        dsn::compose(&Undelivered {
            to,
            hostname: &orders.hostname,
            id: &entry.id.to_string(),
            arrival: entry.received,
            now: self.0.clock.now(),
            subject: content::decoded_subject(&head).as_deref(),
            message_id: entry.message_id.as_deref(),
            header,
            failures,
        })
    }

    fn hold(&self, mut claim: Claim, reason: &str) -> Settled {
        tracing::error!(id = %claim.entry().id, reason, "message held");
        self.note_held(&mut claim, reason);
        self.0.queue.settle(claim, Next::Hold, Vec::new())
    }

    /// Events and counters of what an attempt showed.
    fn tell(&self, entry: &Entry, pending: &[usize], next_attempt: Option<Timestamp>) {
        let metrics = self.0.observer.metrics();
        for place in pending {
            let recipient = &entry.recipients[*place];
            let Some(evidence) = &recipient.last else { continue };
            let (kind, result) = match recipient.state {
                RecipientState::Delivered => (EventKind::Delivered, Delivery::delivered),
                RecipientState::Pending => (EventKind::Deferred, Delivery::deferred),
                RecipientState::Bounced => (EventKind::Bounced, Delivery::bounced),
                RecipientState::Expired => (EventKind::Expired, Delivery::bounced),
            };
            metrics.delivery(&evidence.upstream, result);
            let delay = evidence.at.since(entry.received);
            if kind == EventKind::Delivered {
                metrics.delivered_after(delay);
            }
            self.0.observer.emit(Event {
                sender: Some(entry.reverse_path.as_str().to_owned()),
                recipient: Some(recipient.address.to_string()),
                upstream: Some(evidence.upstream.clone()),
                reply: Some(evidence.to_string()),
                attempt: Some(recipient.attempts),
                next_attempt: next_attempt.filter(|_| kind == EventKind::Deferred),
                delay_ms: Some(delay.as_millis() as u64),
                uncertain: evidence.uncertain,
                ..Event::new(evidence.at, kind, entry.id)
            });
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

/// Whether a message has outlived the queue's patience. Asked only behind an attempt, so that a clock
/// set forward expires nothing that was not just tried.
fn is_over(orders: &Orders, entry: &Entry, now: Timestamp) -> bool {
    now.since(entry.received) >= orders.queue.lifetime
}

/// How long an entry waits, of what its recipients want.
#[derive(Debug, Default)]
struct Waiting {
    soonest: Option<Duration>,
    /// No sooner than this, whoever wants it.
    at_least: Duration,
}

impl Waiting {
    fn note(&mut self, waits: Waits, evidence: &Evidence, attempts: u32, somebody_was_delivered: bool) {
        let wait = if evidence.scope == Scope::Transaction && somebody_was_delivered {
            // The same mail may pass at once in another transaction; and the list gets shorter.
            Duration::ZERO
        } else {
            retry::wait(waits, attempts, fastrand::f64())
        };
        if evidence.uncertain {
            self.at_least = UNCERTAIN_WAIT.min(waits.longest);
        }
        self.soonest = Some(self.soonest.map_or(wait, |soonest| soonest.min(wait)));
    }

    fn time(&self) -> Option<Duration> {
        self.soonest.map(|soonest| soonest.max(self.at_least))
    }
}

/// The start of the content, as far as a header section may reach.
fn head(content: &Content) -> bytes::Bytes {
    match content {
        Content::Memory(octets) => octets.clone(),
        Content::File { path, .. } => {
            use std::io::Read as _;
            let mut head = Vec::new();
            // A large message that failed; rare enough to read where we are.
            let read = std::fs::File::open(path)
                .and_then(|file| file.take(content::HEADER_MAX as u64).read_to_end(&mut head));
            if read.is_err() {
                head.clear();
            }
            head.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) };

    fn evidence(scope: Scope, uncertain: bool) -> Evidence {
        Evidence {
            at: Timestamp(0),
            upstream: "up".into(),
            phase: "RCPT".into(),
            scope,
            reply: None,
            explanation: None,
            status: None,
            uncertain,
        }
    }

    #[test]
    fn too_many_recipients_go_on_at_once_only_when_some_have_gone() {
        let mut waiting = Waiting::default();
        waiting.note(WAITS, &evidence(Scope::Transaction, false), 1, true);
        assert_eq!(waiting.time(), Some(Duration::ZERO));
        // Nobody got through: trying the same again at once would go on for ever.
        let mut waiting = Waiting::default();
        waiting.note(WAITS, &evidence(Scope::Transaction, false), 1, false);
        assert!(waiting.time() >= Some(Duration::from_secs(48)));
    }

    #[test]
    fn after_a_lost_final_reply_nobody_of_the_message_is_tried_soon() {
        let mut waiting = Waiting::default();
        waiting.note(WAITS, &evidence(Scope::Upstream, true), 1, false);
        waiting.note(WAITS, &evidence(Scope::Recipient, false), 1, false);
        assert_eq!(waiting.time(), Some(UNCERTAIN_WAIT));
        let short = Waits { first: Duration::from_secs(1), longest: Duration::from_secs(2) };
        let mut waiting = Waiting::default();
        waiting.note(short, &evidence(Scope::Upstream, true), 1, false);
        assert_eq!(waiting.time(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn with_nobody_left_there_is_nothing_to_wait_for() {
        assert_eq!(Waiting::default().time(), None);
    }
}
