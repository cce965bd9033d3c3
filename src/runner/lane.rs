//! A lane: the way to one upstream, with its gate, its limits and its connections.
//!
//! A dispatcher hands messages to workers (`worker`); a worker is one connection. While there is mail, workers
//! help themselves and the dispatcher is out of the way. Neither goes on while the limits allow nothing.

mod worker;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
};

use super::Runner;
use crate::{
    delivery::Agent,
    limits::{
        account::Account,
        breaker::Breaker,
        gate::{Gate, Memory, Pass},
        pace::Pace,
    },
    queue::{Claim, Flow, QueueId, Turns},
};

/// How long it takes at most to see that there is room for another connection.
const LOOK: Duration = Duration::from_millis(500);

/// How often it is looked whether an access token is to be replaced.
const LOOK_AT_TOKEN: Duration = Duration::from_secs(1);
/// So long a fetch that is under way keeps the relay from ending: its answer may hold the only refresh token
/// that is good from then on.
const LAST_TOKEN: Duration = Duration::from_secs(3);

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

impl Job {
    /// Its priority, the highest being 0.
    pub(super) fn rank(&self) -> u32 {
        Flow::of(self.claim.entry()).rank()
    }
}

/// What a waiting worker is given.
type Work = (Job, OwnedSemaphorePermit);

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
    pub(super) fn change(&self, agent: Agent, memory: Memory) {
        self.account.change(&agent.upstream().limits);
        self.one_at_a_time.store(false, Ordering::Relaxed);
        let old = self.agent.swap(Arc::new(agent));
        let new = self.agent.load();
        if !old.is_same(&new) {
            *lock(&self.busy) = semaphore(&new);
            // Their channels close, which tells the waiting workers to go.
            lock(&self.idle).clear();
        }
        new.hasten_token();
        self.gate.change(memory);
    }

    /// The upstream is gone from the settings: what is under way is finished, and no more begun.
    pub(super) fn retire(&self) {
        self.retired.send_replace(true);
        self.send_idle_home();
    }

    /// Whether nothing goes by it any more.
    pub(super) fn is_retired(&self) -> bool {
        *self.retired.borrow()
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

    /// Replaces access tokens ahead of their time, by whatever agent it is that has them.
    async fn renew_tokens(&self, mut shutdown: watch::Receiver<bool>) {
        let mut retired = self.retired.subscribe();
        loop {
            tokio::select! {
                _ = shutdown.wait_for(|shutdown| *shutdown) => return,
                _ = retired.wait_for(|retired| *retired) => return,
                () = tokio::time::sleep(LOOK_AT_TOKEN) => {}
            }
            self.agent().renew_token().await;
        }
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
        let (renewing, told) = (Arc::clone(&lane), shutdown.clone());
        let renewer = tokio::spawn(async move { renewing.renew_tokens(told).await });
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
        let _ = tokio::time::timeout(LAST_TOKEN, renewer).await;
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
            let most = if lane.gate.is_on_trial() {
                1
            } else {
                lane.pace.connections(lane.agent.load().upstream().connections)
            };
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
}

fn semaphore(agent: &Agent) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(agent.upstream().connections.max(1)))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
