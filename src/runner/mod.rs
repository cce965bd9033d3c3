//! The queue runner: claim, route, attempt, settle, report. The only room where queue, delivery, limits
//! and reports meet.
//!
//! Each upstream has a lane of its own, so that a slow or closed one is in nobody's way.
//!
//! - here: the lanes as a whole: made of settings, run, shown
//! - `lane`: one upstream's connections: who carries what, and when
//! - `ready`: a message ready to be carried
//! - `sort`: which lane a message goes by
//! - `refusals`: what refusals do to the mail behind them
//! - `settle`: what becomes of a message behind an attempt
//! - `report`: who is told of it
//! - `late`: who is told that it waits

mod bounce;
mod lane;
mod late;
mod ready;
mod refusals;
mod report;
mod settle;
mod sort;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use self::lane::{Lane, lock};
pub use self::{
    bounce::{BounceError, Told},
    sort::{Obstacle, Outlook},
};
use crate::{
    clock::{Clock, Course},
    config::QueueSettings,
    delivery::{Agent, TokenInUse},
    limits::{
        account::{Account, Blocked, Usage},
        breaker::{Breaker, Stopped},
        gate::{Closed, Gate, Memory},
        kept::Kept,
        pace::{Learned, Pace},
    },
    observe::Observer,
    queue::{Queue, QueueId},
    smtp::address::Mailbox,
};

/// What the runner goes by; replaced as a whole when the configuration is read again.
#[derive(Clone, Debug)]
pub struct Orders {
    /// One for each upstream, their names all different.
    pub agents: Vec<Agent>,
    /// Where it is remembered what was used of limits, and what breakers know.
    pub data: PathBuf,
    /// When to try again, when to give up.
    pub queue: QueueSettings,
    /// Our name.
    pub hostname: String,
    /// Who gets reports that can't be returned.
    pub postmaster: Option<Mailbox>,
    /// Refusals in a row after which the rest is held.
    pub breaker_bounces: usize,
}

/// How an upstream is.
#[derive(Clone, Debug)]
pub struct UpstreamState {
    /// Its name.
    pub name: String,
    /// Why its gate is closed, if it is.
    pub closed: Option<Closed>,
    /// Which of its limits is used up, if one is.
    pub blocked: Option<Blocked>,
    /// What its breaker on refusals stops.
    pub stopped: Vec<Stopped>,
    /// Connections that are open.
    pub connections: usize,
    /// What its complaints have taught.
    pub learned: Option<Learned>,
    /// How much of its limits is used.
    pub limits: Vec<Usage>,
    /// The access token in use.
    pub token: Option<TokenInUse>,
}

/// The queue runner. Clones share it.
#[derive(Clone, Debug)]
pub struct Runner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    orders: ArcSwap<Orders>,
    lanes: ArcSwap<Vec<Arc<Lane>>>,
    /// There are other lanes than before.
    changed: Notify,
    /// Put off because no lane serves them, until they are to be looked at again.
    unserved: Mutex<Vec<(Instant, QueueId)>>,
    course: Mutex<Course>,
    queue: Queue,
    observer: Observer,
    clock: Clock,
}

impl Runner {
    /// A runner that empties `queue`.
    pub fn new(orders: Orders, queue: Queue, observer: Observer, clock: Clock) -> Self {
        let lanes = orders.agents.iter().map(|agent| new_lane(&orders, agent, &clock)).collect();
        Self(Arc::new(Inner {
            orders: ArcSwap::from_pointee(orders),
            lanes: ArcSwap::from_pointee(lanes),
            changed: Notify::new(),
            unserved: Mutex::default(),
            course: Mutex::new(Course::new(clock.now())),
            queue,
            observer,
            clock,
        }))
    }

    /// Goes by other orders from the next message on, and lets closed gates try again at once. Lanes,
    /// and what was used of their limits, stay where an upstream keeps its name.
    pub fn change(&self, orders: Orders) {
        let old = self.lanes();
        let mut lanes = Vec::new();
        for agent in &orders.agents {
            let same = old.iter().find(|lane| lane.name() == agent.upstream().name);
            let lane = match same {
                Some(lane) => {
                    lane.change(agent.clone(), memory(&orders, agent));
                    Arc::clone(lane)
                }
                None => new_lane(&orders, agent, &self.0.clock),
            };
            lanes.push(lane);
        }
        self.0.orders.store(Arc::new(orders));
        self.0.lanes.store(Arc::new(lanes.clone()));
        let kept = |lane: &Arc<Lane>| lanes.iter().any(|other| Arc::ptr_eq(lane, other));
        for lane in old.iter() {
            if !kept(lane) {
                lane.retire();
            }
            // All of it is routed anew.
            lane.empty_tray();
            let put_off = std::mem::take(&mut *lock(&lane.put_off));
            self.0.queue.bring_back(&put_off.collect::<Vec<_>>());
        }
        let unserved = std::mem::take(&mut *lock(&self.0.unserved));
        self.0.queue.bring_back(&unserved.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
        self.0.changed.notify_one();
        self.resume();
    }

    /// The agents in use.
    pub fn agents(&self) -> Vec<Agent> {
        self.0.orders.load().agents.clone()
    }

    /// How the upstreams are.
    pub fn upstreams(&self) -> Vec<UpstreamState> {
        let state = |lane: &Arc<Lane>| UpstreamState {
            name: lane.name(),
            closed: lane.gate.closed(),
            blocked: lane.account.blocked(),
            stopped: lane.breaker.stopped(),
            connections: lane.connections(),
            learned: lane.pace.learned(),
            limits: lane.account.usage(),
            token: lane.agent().token_in_use(),
        };
        self.lanes().iter().map(state).collect()
    }

    /// Runs until `shutdown` turns true, and then until what is under way has had its final reply.
    pub async fn run(&self, mut shutdown: watch::Receiver<bool>) {
        // From before anything is looked at.
        let (telling, found) = (self.clone(), self.0.queue.damaged());
        let teller = tokio::spawn(async move { telling.tell_of_damage(found).await });
        let feeding = self.0.queue.clone();
        let feeder = tokio::spawn(async move { feeding.feed().await });
        let warning = self.clone();
        let warner = tokio::spawn(async move { warning.warn_of_late_mail().await });
        let looking = self.clone();
        let looker = tokio::spawn(async move { looking.look_at_unserved().await });
        let mut running = JoinSet::new();
        let mut known: Vec<Arc<Lane>> = Vec::new();
        let told = shutdown.clone();
        loop {
            let lanes = self.lanes();
            for lane in lanes.iter().filter(|lane| !known.iter().any(|other| Arc::ptr_eq(lane, other))) {
                running.spawn(self.clone().run_lane(Arc::clone(lane), told.clone()));
            }
            known.clone_from(&lanes);
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|shutdown| *shutdown) => break,
                () = self.0.changed.notified() => {}
                Some(_) = running.join_next() => {}
            }
        }
        feeder.abort();
        warner.abort();
        looker.abort();
        teller.abort();
        while running.join_next().await.is_some() {}
    }

    fn orders(&self) -> Arc<Orders> {
        self.0.orders.load_full()
    }

    fn lanes(&self) -> Arc<Vec<Arc<Lane>>> {
        self.0.lanes.load_full()
    }

    fn queue(&self) -> &Queue {
        &self.0.queue
    }

    fn observer(&self) -> &Observer {
        &self.0.observer
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn unserved(&self) -> &Mutex<Vec<(Instant, QueueId)>> {
        &self.0.unserved
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        lock(&self.0.course)
    }
}

fn new_lane(orders: &Orders, agent: &Agent, clock: &Clock) -> Arc<Lane> {
    let upstream = agent.upstream();
    let of = format!("upstream {}", upstream.name);
    let account = Account::open(&orders.data.join("limits"), &of, &upstream.limits, clock.clone());
    let kept = |what: &str| kept(orders, agent, what);
    let breaker = Breaker::new(&upstream.name, kept("breaker"), clock.clone());
    let gate = Gate::remembering(memory(orders, agent), clock.clone());
    let pace = Pace::remembering(kept("pace"));
    Arc::new(Lane::new(agent.clone(), gate, account, breaker, pace))
}

/// Where something about an upstream is remembered.
fn kept(orders: &Orders, agent: &Agent, what: &str) -> Kept {
    Kept::at(orders.data.join(format!("{what}-{}.json", agent.upstream().name)))
}

fn memory(orders: &Orders, agent: &Agent) -> Memory {
    let upstream = agent.upstream();
    let login = upstream.login.as_ref();
    Memory {
        kept: kept(orders, agent, "gate"),
        mark: upstream.login_mark(),
        // Without a login there is nothing that could be locked.
        first: login.map(|_| upstream.auth_retry.first),
        twice: login.is_some_and(|login| login.oauth.is_some()),
    }
}

#[cfg(test)]
mod tests;
