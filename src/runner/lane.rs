//! A lane: the way to one upstream, with its gate, its limits and its connections.
//!
//! A dispatcher hands messages to workers; a worker is one connection. While there is mail, workers
//! help themselves and the dispatcher is out of the way. A worker opens its connection through the
//! gate, once, at its birth; when the connection ends, so does the worker. Neither goes on while the
//! limits allow nothing.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Orders, Runner, ready::Ready, settle::is_over};
use crate::{
    clock::Timestamp,
    config::Waits,
    delivery::{
        Agent, Trouble,
        client::{Ahead, Attempt, Client},
        phase::Phase,
    },
    limits::{
        account::{Account, Permit, Spent},
        breaker::Breaker,
        gate::{Gate, Pass},
        pace::Pace,
    },
    mail::outcome::{Evidence, Outcome, Scope, Slower, Who},
    observe::UpstreamLabels,
    queue::{Claim, DAMAGED, QueueId, Settled, Turns},
    smtp::extension::Capabilities,
};

/// A kept connection without mail is given back to the upstream after so long.
const IDLE: Duration = Duration::from_secs(20);
/// Behind longer content a message would wait too long for its turn.
const SHORT: u64 = 64 * 1024;
/// A message whose envelope was sent behind another's content waits so long for the other's final reply,
/// and then goes by another connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it takes at most to see that there is room for another connection.
const LOOK: Duration = Duration::from_millis(500);

/// The way to one upstream.
#[derive(Debug)]
pub(super) struct Lane {
    agent: ArcSwap<Agent>,
    pub(super) gate: Gate,
    pub(super) account: Account,
    pub(super) breaker: Breaker,
    pub(super) pace: Pace,
    /// One permit for each message being carried.
    busy: Mutex<Arc<Semaphore>>,
    /// Workers that wait with an open connection, the last used on top: the others can run out.
    idle: Mutex<Vec<(usize, mpsc::Sender<Work>)>>,
    idled: Notify,
    names: AtomicUsize,
    connections: AtomicUsize,
    /// What other lanes drew from the queue for this one.
    pub(super) tray: Mutex<Turns<Job>>,
    pub(super) laid: Notify,
    /// Whether it waits for a message.
    pub(super) drawing: AtomicUsize,
    /// Messages that are put off until this lane draws them.
    pub(super) put_off: Mutex<Turns<QueueId>>,
    retired: watch::Sender<bool>,
    /// The upstream forgets what it is told behind content, and never answers it.
    one_at_a_time: AtomicBool,
}

/// A message, and those of its recipients that it is carried to now, by their places.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) claim: Claim,
    pub(super) places: Vec<usize>,
}

/// What a waiting worker is given.
type Work = (Job, OwnedSemaphorePermit);

/// How the attempt at one message ended, for the worker.
struct Carried {
    settled: Option<Settled>,
    /// No more on this connection for now.
    stop: bool,
}

impl Lane {
    pub(super) fn new(agent: Agent, gate: Gate, account: Account, breaker: Breaker, pace: Pace) -> Self {
        let busy = Mutex::new(semaphore(&agent));
        Self {
            agent: ArcSwap::from_pointee(agent),
            gate,
            account,
            breaker,
            pace,
            busy,
            idle: Mutex::default(),
            idled: Notify::new(),
            names: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            tray: Mutex::default(),
            laid: Notify::new(),
            drawing: AtomicUsize::new(0),
            put_off: Mutex::default(),
            retired: watch::channel(false).0,
            one_at_a_time: AtomicBool::new(false),
        }
    }

    /// Goes by another agent and other limits from the next message on, and lets a closed gate try
    /// again at once. Connections stay where the upstream is the same.
    pub(super) fn change(&self, agent: Agent) {
        self.account.change(&agent.upstream().limits);
        self.one_at_a_time.store(false, Ordering::Relaxed);
        let old = self.agent.swap(Arc::new(agent));
        let new = self.agent.load();
        if !old.is_same(&new) {
            *lock(&self.busy) = semaphore(&new);
            // Their channels close, which tells the waiting workers to go.
            lock(&self.idle).clear();
        }
        self.gate.reset();
    }

    /// The upstream is gone from the settings: what is under way is finished, and no more begun.
    pub(super) fn retire(&self) {
        self.retired.send_replace(true);
        self.send_idle_home();
    }

    pub(super) fn agent(&self) -> Arc<Agent> {
        self.agent.load_full()
    }

    pub(super) fn name(&self) -> String {
        self.agent.load().upstream().name.clone()
    }

    /// Open connections.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether mail goes out by it now, as far as known.
    pub(super) fn is_open(&self) -> bool {
        self.gate.closed().is_none() && self.account.blocked().is_none()
    }

    /// Gives back what others drew for it, for them to route it anew.
    pub(super) fn empty_tray(&self) {
        let jobs = std::mem::take(&mut *lock(&self.tray));
        drop(jobs);
    }

    fn send_idle_home(&self) {
        lock(&self.idle).clear();
    }
}

impl Runner {
    /// Runs a lane until it retires or `shutdown` turns true, and then until what is under way has had
    /// its final reply.
    pub(super) async fn run_lane(self, lane: Arc<Lane>, mut shutdown: watch::Receiver<bool>) {
        let (prober, breaker) = (self.clone(), lane.breaker.clone());
        let prober = tokio::spawn(async move { prober.probe(&breaker).await });
        let mut workers = JoinSet::new();
        let mut retired = lane.retired.subscribe();
        let told = shutdown.clone();
        loop {
            let work = tokio::select! {
                biased;
                _ = shutdown.wait_for(|shutdown| *shutdown) => break,
                _ = retired.wait_for(|retired| *retired) => break,
                Some(_) = workers.join_next() => None,
                work = self.dispatch(&lane) => work,
            };
            if let Some((job, permit, pass)) = work {
                let (runner, lane, told) = (self.clone(), Arc::clone(&lane), told.clone());
                workers.spawn(async move { runner.work(&lane, job, permit, pass, told).await });
            }
        }
        prober.abort();
        lane.send_idle_home();
        lane.empty_tray();
        while workers.join_next().await.is_some() {}
        let account = lane.account.clone();
        let _ = tokio::task::spawn_blocking(move || account.close()).await;
    }

    /// Hands out one message: to a worker that waits, or to a new one, whose first work is returned.
    /// Dropped midway, it leaves everything as it was.
    async fn dispatch(&self, lane: &Lane) -> Option<(Job, OwnedSemaphorePermit, Pass)> {
        let busy = Arc::clone(&lock(&lane.busy));
        let permit = busy.acquire_owned().await.ok()?;
        if !lane.is_open() {
            // Others may be able to carry what waits here.
            lane.empty_tray();
        }
        lane.account.ready().await;
        lane.pace.ready().await;
        let pass = loop {
            let idled = lane.idled.notified();
            if !lock(&lane.idle).is_empty() {
                break None;
            }
            let most = lane.pace.connections(lane.agent.load().upstream().connections);
            let room = lane.connections() + lane.gate.opening() < most;
            tokio::select! {
                pass = lane.gate.pass(), if room => break Some(pass),
                () = idled => {}
                // What was learned fades by itself.
                () = tokio::time::sleep(LOOK), if !room => {}
            }
        };
        let job = self.draw(lane).await;
        let waiting = lock(&lane.idle).pop();
        if let Some((_, worker)) = waiting {
            // If it went away at this moment, the claim comes back to the queue by itself.
            let _ = worker.try_send((job, permit));
            return None;
        }
        // Without a pass, the worker that waited a moment ago has left, and the claim goes back.
        pass.map(|pass| (job, permit, pass))
    }

    /// A worker's life.
    async fn work(
        &self,
        lane: &Lane,
        job: Job,
        permit: OwnedSemaphorePermit,
        pass: Pass,
        shutdown: watch::Receiver<bool>,
    ) {
        let agent = lane.agent();
        let job = match self.admit(lane, job) {
            Ok(job) => job,
            // A connection would be opened in vain.
            Err(_held) => return,
        };
        pass.begin();
        let begun = Instant::now();
        let client = match agent.open(|step| tracing::debug!(what = step.what, "{}", step.detail)).await {
            Ok(client) => client,
            Err(trouble) => {
                if trouble.evidence.slower() == Some(Slower::Connections) {
                    // As many as are open it does take.
                    lane.pace.fewer(begun, lane.connections());
                }
                return self.closed(lane, &agent, job, pass, *trouble);
            }
        };
        if pass.succeeded() {
            tracing::info!(upstream = agent.upstream().name, "the upstream takes mail again");
        }
        // While it was being opened, another connection learned that no mail is wanted now.
        if lane.gate.stops_all() {
            drop(job);
            return client.quit().await;
        }
        let open = lane.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.show(&agent, open);
        self.carry(lane, &agent, client, (job, permit), shutdown).await;
        let open = lane.connections.fetch_sub(1, Ordering::Relaxed) - 1;
        // There is room for another connection.
        lane.idled.notify_one();
        self.show(&agent, open);
    }

    /// Carries message after message over one connection.
    async fn carry(
        &self,
        lane: &Lane,
        agent: &Agent,
        mut client: Client<TcpStream>,
        (job, permit): Work,
        shutdown: watch::Receiver<bool>,
    ) {
        let (mut permit, mut settled) = (permit, None);
        let most = agent.upstream().messages.unwrap_or(u64::MAX);
        let mut next = self.prepare(lane, job, &mut settled).await;
        loop {
            let mut stop = false;
            if let Some(ready) = next.take() {
                let follows = !*shutdown.borrow() && client.carried() + 1 < most;
                let behind = if follows { self.behind(lane, &client, &ready).await } else { None };
                let carried;
                (carried, next) = self.carry_one(lane, agent, &mut client, ready, behind, settled).await;
                (settled, stop) = (carried.settled, carried.stop);
            }
            let changed = !agent.is_same(&lane.agent.load()) || *lane.retired.borrow();
            let stop = stop || lane.gate.stops_all() || changed || *shutdown.borrow();
            if !client.is_usable() || client.carried() >= most || stop {
                break;
            }
            if let Some(ready) = next.take() {
                // What the one before showed may have stopped this one.
                next = self.readmit(lane, ready, &mut settled);
                if next.is_none() {
                    break;
                }
                continue;
            }
            let more = client.is_free() && lane.account.blocked().is_none() && lane.pace.is_ready();
            let job = match more.then(|| self.try_draw(lane)).flatten() {
                Some(job) => job,
                None if !client.is_free() => break,
                None => {
                    drop(permit);
                    let Some(work) = self.wait_for_work(lane).await else { break };
                    let job;
                    (job, permit) = work;
                    job
                }
            };
            next = self.prepare(lane, job, &mut settled).await;
        }
        if let Some(ready) = next {
            ready.give_back();
        }
        if let Some(settled) = settled {
            let _ = settled.durable().await;
        }
        client.quit().await;
    }

    /// Waits among the idle; `None` when it waited too long, or is told to go.
    async fn wait_for_work(&self, lane: &Lane) -> Option<Work> {
        let name = lane.names.fetch_add(1, Ordering::Relaxed);
        let (sender, mut work) = mpsc::channel(1);
        lock(&lane.idle).push((name, sender));
        lane.idled.notify_one();
        if let Ok(work) = timeout(IDLE, work.recv()).await {
            return work;
        }
        let was_there = {
            let mut idle = lock(&lane.idle);
            let before = idle.len();
            idle.retain(|(other, _)| *other != name);
            idle.len() < before
        };
        // Not there any more: the dispatcher has just chosen us.
        if was_there { None } else { work.recv().await }
    }

    /// Takes a message's share of the limits. One that may not be tried is held, which is noted in
    /// `settled`; one for which nothing is left goes back as it was, and waits with the others.
    async fn prepare(&self, lane: &Lane, job: Job, settled: &mut Option<Settled>) -> Option<Ready> {
        let mut job = match self.admit(lane, job) {
            Ok(job) => job,
            Err(held) => {
                *settled = Some(held);
                return None;
            }
        };
        let paced = lane.pace.begin()?;
        // The others follow at once, in another transaction.
        job.places.truncate(lane.agent.load().upstream().recipients.unwrap_or(usize::MAX));
        let leave = lane.account.take(job.places.len()).await?;
        job.places.truncate(leave.recipients());
        let (agent, entry) = (lane.agent(), job.claim.entry());
        // By the settings of now, which an open connection need not know.
        let dressed = agent.dress(&entry.reverse_path, job.claim.content(), job.places.len()).await;
        match dressed {
            Ok(dressed) => Some(Ready { job, leave, paced, dressed }),
            Err(undressed) => {
                *settled = self.conclude(lane, &agent, None, (job, leave, paced), undressed).settled;
                None
            }
        }
    }

    /// The same message, if it still may be tried.
    fn readmit(&self, lane: &Lane, ready: Ready, settled: &mut Option<Settled>) -> Option<Ready> {
        let Ready { job, leave, paced, dressed } = ready;
        match self.admit(lane, job) {
            Ok(job) => Some(Ready { job, leave, paced, dressed }),
            Err(held) => {
                leave.spent(Spent::Nothing);
                *settled = Some(held);
                None
            }
        }
    }

    /// The message to announce behind this one's content, if one is at hand, nobody else is free to take
    /// it, and it would not have to wait for long.
    async fn behind(&self, lane: &Lane, client: &Client<TcpStream>, ready: &Ready) -> Option<(Ready, Ahead)> {
        let short = ready.job.claim.content().size() <= SHORT && !lane.one_at_a_time.load(Ordering::Relaxed);
        let open =
            lane.is_open() && lane.pace.is_ready() && !lane.gate.stops_all() && !*lane.retired.borrow();
        if !client.can_go_ahead() || !short || !open || !lock(&lane.idle).is_empty() {
            return None;
        }
        let job = self.try_draw(lane)?;
        let next = self.prepare(lane, job, &mut None).await?;
        match client.ahead(&next.message()) {
            Some(ahead) => Some((next, ahead)),
            None => {
                next.give_back();
                None
            }
        }
    }

    /// One attempt at one message. `before` is the settlement of the message before it; `behind` is
    /// announced with it, and returned, unless it had to wait too long.
    async fn carry_one(
        &self,
        lane: &Lane,
        agent: &Agent,
        client: &mut Client<TcpStream>,
        ready: Ready,
        behind: Option<(Ready, Ahead)>,
        before: Option<Settled>,
    ) -> (Carried, Option<Ready>) {
        let (mut next, ahead) = behind.unzip();
        let message = ready.message();
        let (announced, begun) = (!client.is_free(), Instant::now());
        let recorded = async {
            if let Some(before) = before {
                // If it can't be recorded the queue goes on trying, and keeps the entry to itself.
                let _ = before.durable().await;
            }
        };
        let attempt = {
            let mut attempt = pin!(client.attempt(&message, ahead, recorded));
            match timeout(PATIENCE, &mut attempt).await {
                Ok(attempt) => attempt,
                Err(_) => {
                    next.take().into_iter().for_each(Ready::give_back);
                    attempt.await
                }
            }
        };
        if announced && matches!(attempt, Attempt::Stale) && begun.elapsed() >= PATIENCE {
            tracing::warn!("the upstream does not answer what follows content, so nothing will");
            lane.one_at_a_time.store(true, Ordering::Relaxed);
        }
        let Ready { job, leave, paced, .. } = ready;
        (self.conclude(lane, agent, Some(client.capabilities()), (job, leave, paced), attempt), next)
    }

    /// What follows from an attempt: for the message, its limits, and the lane.
    fn conclude(
        &self,
        lane: &Lane,
        agent: &Agent,
        upstream: Option<&Capabilities>,
        (job, leave, paced): (Job, Permit, Instant),
        attempt: Attempt,
    ) -> Carried {
        let orders = self.orders();
        match attempt {
            Attempt::Done(outcomes) => {
                leave.spent(spent(&outcomes));
                if let Some(reason) = self.judged(&orders, lane, job.claim.entry(), &outcomes) {
                    let settled = self.settle_held(job.claim, &job.places, outcomes, &reason);
                    return Carried { settled: Some(settled), stop: false };
                }
                match outcomes.iter().find_map(|outcome| outcome.evidence().slower()) {
                    Some(Slower::Rate) => lane.pace.slower(paced),
                    Some(Slower::Connections) => lane.pace.fewer(paced, lane.connections() / 2),
                    None => {}
                }
                let until = self.pause(&orders, lane, agent, &outcomes);
                let settled = self.settle(&orders, job.claim, &job.places, outcomes, upstream, until);
                Carried { settled: Some(settled), stop: until.is_some() }
            }
            // Nothing was said of it: it goes back as it was.
            Attempt::Stale => {
                leave.spent(Spent::Nothing);
                Carried { settled: None, stop: false }
            }
            Attempt::Damaged => Carried { settled: Some(self.hold(job.claim, DAMAGED)), stop: false },
        }
    }

    /// Closes the gate if the upstream said of one message what concerns them all: a login that it
    /// wants, a limit of the account. Returns when it will be asked again.
    fn pause(&self, orders: &Orders, lane: &Lane, agent: &Agent, outcomes: &[Outcome]) -> Option<Timestamp> {
        let (evidence, waits) = outcomes.iter().find_map(|outcome| {
            let evidence = outcome.evidence();
            match evidence.scope {
                // Without advice the connection was lost, which the next one will explain.
                _ if evidence.advice.is_none() => None,
                Scope::Credential => Some((evidence, agent.upstream().auth_retry)),
                Scope::Account | Scope::Upstream => {
                    Some((evidence, retry_after(orders.queue.retry, evidence)))
                }
                _ => None,
            }
        })?;
        let until = lane.gate.close(waits, evidence.clone());
        // The idle ones go too: they would only hear the same.
        lane.send_idle_home();
        lane.empty_tray();
        tracing::warn!(upstream = evidence.upstream, next_try = %until, "the upstream is left alone: {evidence}");
        Some(until)
    }

    /// No connection: the gate closes, and the message that was tried remembers why, unless another
    /// upstream can take it.
    fn closed(&self, lane: &Lane, agent: &Agent, job: Job, pass: Pass, trouble: Trouble) {
        let orders = self.orders();
        let Trouble { evidence } = trouble;
        let waits = match evidence.scope {
            Scope::Credential => agent.upstream().auth_retry,
            Scope::Account => retry_after(orders.queue.retry, &evidence),
            // Asking whether it is back costs an upstream nothing, so it is asked soon at first.
            _ => Waits {
                first: orders.queue.retry.first.min(Duration::from_secs(5)),
                longest: orders.queue.retry.longest.min(Duration::from_secs(300)),
            },
        };
        let until = pass.failed(waits, evidence.clone());
        lane.empty_tray();
        tracing::warn!(
            upstream = evidence.upstream,
            phase = evidence.phase,
            who_must_act = evidence.who().map(Who::name),
            next_try = %until,
            help = evidence.help(),
            "no mail can be sent: {evidence}"
        );
        if !self.can_go_elsewhere(&job) {
            self.defer(&orders, job, &evidence, until);
        }
        // Others whose time is over have had this attempt too: it would have been theirs.
        while let Some(job) = self.try_draw(lane) {
            if self.can_go_elsewhere(&job) || !is_over(&orders, job.claim.entry(), evidence.at) {
                break;
            }
            self.defer(&orders, job, &evidence, until);
        }
    }

    pub(super) fn defer(&self, orders: &Orders, job: Job, evidence: &Evidence, until: Timestamp) {
        let outcomes = vec![Outcome::Deferred(evidence.clone()); job.places.len()];
        drop(self.settle(orders, job.claim, &job.places, outcomes, None, Some(until)));
    }

    fn show(&self, agent: &Agent, open: usize) {
        let upstream = agent.upstream().name.clone();
        self.observer()
            .metrics()
            .upstream_connections
            .get_or_create(&UpstreamLabels { upstream })
            .set(open as i64);
    }
}

/// What the upstream may have counted: recipients for whom content was sent. Who is refused before
/// costs it nothing.
fn spent(outcomes: &[Outcome]) -> Spent {
    let content = [Phase::Content.name(), Phase::FinalReply.name()];
    let counted = outcomes.iter().filter(|outcome| content.contains(&outcome.evidence().phase.as_str()));
    Spent::For(counted.count() as u64)
}

fn retry_after(waits: Waits, evidence: &Evidence) -> Waits {
    // A limit of seconds must not grow into one of an hour.
    let Some(told) = evidence.not_before().map(|at| at.since(evidence.at)) else { return waits };
    Waits { first: waits.first.min(told), longest: waits.longest.min(told) }
}

fn semaphore(agent: &Agent) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(agent.upstream().connections.max(1)))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
