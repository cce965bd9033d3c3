//! Which lane a message goes by: drawn from the queue, routed, taken, or laid where it belongs.
//!
//! A lane that is ready for work draws from the queue. What turns out to be another's is laid on that
//! one's tray; what nobody can carry now is put off: it leaves the queue's window, so that it is in
//! nobody's way, until a lane that it may go by is ready and draws it. Trays are short, and of what is
//! put off only the id is kept. In both, too, senders take turns.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{
    Orders, Runner,
    lane::{Job, Lane, lock},
    settle::given_up_at,
};
use crate::{
    clock::Timestamp,
    config::Serves,
    delivery::{Agent, route},
    limits::account::Blocked,
    mail::outcome::{Advice, Evidence, Scope, Who},
    queue::{Claim, Flow, Next, QueueId, Report, entry::Entry},
    smtp::reply::Enhanced,
};

/// What a tray holds: enough that a worker never waits for the queue, little enough to be given back.
const TRAY: usize = 20;
/// How many of the messages put off for it a lane asks for at once.
const BROUGHT_BACK: usize = 100;
/// What may stand in a lane's list of what was put off for it, beside twice what is put off.
const PUT_OFF_SLACK: usize = 1_000;
/// How long a lane leaves others for laying here what they were quicker to claim.
const LAID_SOON: Duration = Duration::from_millis(200);
/// When so much is put off that not even the ids are kept, a message is looked at again after so long.
const LATER: Duration = Duration::from_secs(60);

/// How often it is looked whether the time of mail that nobody serves is over, and how long it is left alone at
/// most, whatever the clock does.
const LOOK: Duration = Duration::from_secs(1);
const LEFT_ALONE: Duration = Duration::from_secs(3_600);
/// Why it waits.
const UNSERVED: &str = "no upstream of smtp_relays serves this sender, recipient and login";

/// The lanes at one moment, with what routes depend on.
struct Lanes {
    lanes: Arc<Vec<Arc<Lane>>>,
    agents: Vec<Arc<Agent>>,
    open: Vec<bool>,
}

/// What an operator wants to know of a message that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The upstream that it goes by, or would.
    pub upstream: Option<String>,
    /// Why it doesn't go now.
    pub blocked: Option<Obstacle>,
}

/// Why a message doesn't go now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// In words.
    pub reason: String,
    /// Until when, as far as that is known.
    pub until: Option<Timestamp>,
    /// What was seen, where it was an upstream's doing.
    pub evidence: Option<Evidence>,
}

impl Runner {
    /// Waits for a message that this lane can carry.
    pub(super) async fn draw(&self, lane: &Lane) -> Job {
        let _drawing = Drawing::begin(lane);
        let brought_back = lock(&lane.put_off).rank();
        let job = loop {
            let laid = lane.laid.notified();
            if let Some(job) = self.try_draw(lane) {
                break job;
            }
            tokio::select! {
                claim = self.queue().claim() => {
                    if let Some(job) = self.sort(lane, claim) {
                        break job;
                    }
                }
                () = laid => {}
            }
        };
        match brought_back {
            Some(first) if first < job.rank() => self.overtaken(lane, job).await,
            _ => job,
        }
    }

    /// A higher one than this was brought back for the lane. Another lane may have been quicker to claim it, and
    /// lays it here in a moment; a lane that may send but now and then would else send the lower one each time.
    async fn overtaken(&self, lane: &Lane, job: Job) -> Job {
        let higher = async {
            loop {
                let laid = lane.laid.notified();
                if lock(&lane.tray).rank().is_some_and(|laid| laid < job.rank())
                    && let Some(higher) = lock(&lane.tray).next()
                {
                    return higher;
                }
                laid.await;
            }
        };
        timeout(LAID_SOON, higher).await.unwrap_or(job)
    }

    /// A message that this lane can carry, if one is at hand.
    pub(super) fn try_draw(&self, lane: &Lane) -> Option<Job> {
        if !self.queue().can_record() {
            // The queue gives it out again when they can be.
            lane.empty_tray();
            return None;
        }
        let put_off = lock(&lane.put_off).rank();
        let laid = lock(&lane.tray).rank();
        if laid.is_some_and(|laid| put_off.is_some_and(|put_off| put_off < laid)) {
            // What lies here goes back, too, and then all of it comes by its priority.
            lane.empty_tray();
        }
        let laid = lock(&lane.tray).next();
        if laid.is_some() {
            return laid;
        }
        self.bring_back(lane);
        while let Some(claim) = self.queue().try_claim() {
            let job = self.sort(lane, claim);
            if job.is_some() {
                return job;
            }
        }
        None
    }

    /// Whether some of it can go by a lane that is open.
    pub(super) fn can_go_elsewhere(&self, job: &Job) -> bool {
        let all = self.all_lanes();
        all.lanes.len() > 1 && {
            let entry = job.claim.entry();
            job.places.iter().any(|place| all.order(entry, *place).into_iter().any(|lane| all.open[lane]))
        }
    }

    /// What becomes of a message now, unless it is under way, for people.
    pub fn outlook(&self, entry: &Entry) -> Outlook {
        let all = self.all_lanes();
        let now = self.clock().now();
        let Some(place) = due(entry, now).first().copied() else {
            return Outlook { upstream: None, blocked: None };
        };
        let order = all.order(entry, place);
        let name = |lane: &usize| all.agents[*lane].upstream().name.clone();
        let Some(first) = order.first() else {
            return Outlook {
                upstream: None,
                blocked: Some(Obstacle { reason: UNSERVED.to_owned(), until: None, evidence: None }),
            };
        };
        let obstacle = |lane: &usize| obstacle(&all.lanes[*lane], now);
        let goes = order.iter().find(|lane| obstacle(lane).is_none());
        let until = order.iter().filter_map(|lane| obstacle(lane)?.until).min();
        Outlook {
            upstream: Some(name(goes.unwrap_or(first))),
            blocked: obstacle(first).filter(|_| goes.is_none()).map(|first| Obstacle { until, ..first }),
        }
    }

    /// Takes what is this lane's; finds a place for the rest.
    fn sort(&self, lane: &Lane, claim: Claim) -> Option<Job> {
        let all = self.all_lanes();
        let now = self.clock().now();
        let due = due(claim.entry(), now);
        if let [agent] = &all.agents[..]
            && is_for_all(&agent.upstream().serves)
        {
            return Some(Job { claim, places: due });
        }
        let orders: Vec<Vec<usize>> = due.iter().map(|place| all.order(claim.entry(), *place)).collect();
        let is_ours = |other: usize| std::ptr::eq(lane, &*all.lanes[other]);
        let choice =
            |order: &Vec<usize>| order.iter().copied().find(|other| is_ours(*other) || all.open[*other]);
        let mine = |order: &Vec<usize>| choice(order).is_some_and(is_ours);
        let places: Vec<usize> =
            due.iter().zip(&orders).filter(|(_, order)| mine(order)).map(|(place, _)| *place).collect();
        if !places.is_empty() {
            return Some(Job { claim, places });
        }
        // Somebody else's: one that is open, or one that waits for something to try its luck with.
        let draws = |other: &usize| all.lanes[*other].drawing.load(Ordering::Relaxed) > 0;
        let taker = orders.iter().find_map(choice).or_else(|| orders.iter().flatten().copied().find(draws));
        if let Some(taker) = taker {
            let lane = &all.lanes[taker];
            let flow = Flow::of(claim.entry());
            // Those alone that may go by it: the others come again with the settlement.
            let theirs =
                |order: &Vec<usize>| choice(order).map_or(order.contains(&taker), |one| one == taker);
            let places =
                due.iter().zip(&orders).filter(|(_, order)| theirs(order)).map(|(place, _)| *place).collect();
            let too_many = lock(&lane.tray).push_bounded(flow, Job { claim, places }, TRAY);
            lane.laid.notify_one();
            if let Some(Job { claim, places }) = too_many {
                self.put_off(&all, claim, places, vec![taker]);
            }
            return None;
        }
        self.put_off(&all, claim, due, orders.into_iter().flatten().collect());
        None
    }

    /// Nobody can carry it now.
    fn put_off(&self, all: &Lanes, claim: Claim, places: Vec<usize>, mut candidates: Vec<usize>) {
        let orders = self.orders();
        candidates.sort_unstable();
        candidates.dedup();
        // The failure that closed the gate was an attempt at this one as well: it would have been its.
        let failed = candidates.iter().find_map(|lane| all.lanes[*lane].gate.closed());
        if let Some(closed) = failed
            && self.has_waited_in_vain(&orders, claim.entry(), closed.evidence.at)
        {
            return self.defer(&orders, Job { claim, places }, &closed.evidence, closed.until);
        }
        let now = self.clock().now();
        if candidates.is_empty() && self.has_waited_in_vain(&orders, claim.entry(), now) {
            return self.defer(&orders, Job { claim, places }, &unserved(now), now);
        }
        let (id, flow) = (claim.entry().id, Flow::of(claim.entry()));
        let look = Instant::now() + unserved_until(&orders, claim.entry(), now);
        match claim.put_off() {
            Ok(()) => {
                for lane in &candidates {
                    self.put_off_for(&all.lanes[*lane], flow, id);
                }
                if candidates.is_empty() {
                    lock(self.unserved()).push((look, id));
                }
            }
            Err(claim) => {
                let later = now.after(LATER);
                drop(self.queue().settle(claim, Next::Retry(later), Vec::<Report>::new()));
            }
        }
    }

    /// Notes that a lane may draw what was put off.
    fn put_off_for(&self, lane: &Lane, flow: Flow, id: QueueId) {
        let mut put_off = lock(&lane.put_off);
        put_off.push(flow, id);
        // Another lane may have carried what stands here, or have put it off again, and again.
        if put_off.len() > 2 * self.queue().put_off() + PUT_OFF_SLACK {
            let all = std::mem::take(&mut *put_off);
            self.queue().still_put_off(all).into_iter().for_each(|(flow, id)| put_off.push(flow, id));
        }
        drop(put_off);
        if lane.is_retired() {
            // Nobody draws for it any more; who retired it may have looked before.
            self.queue().bring_back(&[id]);
        }
        lane.laid.notify_one();
    }

    /// Lets mail that no upstream serves come again when its time is over, or when others of its recipients, who
    /// are served, are due. Runs until it is dropped.
    pub(super) async fn look_at_unserved(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Instant::now();
            let mut unserved = lock(self.unserved());
            let (again, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut *unserved).into_iter().partition(|(look, _)| *look <= now);
            *unserved = later;
            drop(unserved);
            let ids: Vec<QueueId> = again.into_iter().map(|(_, id)| id).collect();
            self.queue().bring_back(&ids);
        }
    }

    /// Asks the queue for some of what was put off until now.
    fn bring_back(&self, lane: &Lane) {
        let mut put_off = lock(&lane.put_off);
        let ids: Vec<_> = put_off.by_ref().take(BROUGHT_BACK).collect();
        drop(put_off);
        if !ids.is_empty() {
            self.queue().bring_back(&ids);
        }
    }

    fn all_lanes(&self) -> Lanes {
        let lanes = self.lanes();
        let agents = lanes.iter().map(|lane| lane.agent()).collect();
        let open = lanes.iter().map(|lane| lane.is_open()).collect();
        Lanes { lanes, agents, open }
    }
}

impl Lanes {
    /// The lanes that a recipient may go by, best first.
    fn order(&self, entry: &Entry, place: usize) -> Vec<usize> {
        let recipient = &entry.recipients[place];
        // That one may have taken it, and only there a second copy may be recognised as one.
        if let Some(name) = &recipient.perhaps
            && let Some(lane) = self.agents.iter().position(|agent| agent.upstream().name == *name)
        {
            return vec![lane];
        }
        let facts = route::Facts {
            sender: entry.reverse_path.mailbox(),
            user: entry.origin.user.as_deref(),
            // Each try draws lots anew.
            seed: entry.id.to_i64().cast_unsigned().wrapping_add(u64::from(recipient.attempts)),
        };
        let serves = self.agents.iter().map(|agent| &agent.upstream().serves);
        route::order(serves, facts, &recipient.address)
    }
}

/// Counts as drawing until dropped.
struct Drawing<'l>(&'l Lane);

impl<'l> Drawing<'l> {
    fn begin(lane: &'l Lane) -> Self {
        lane.drawing.fetch_add(1, Ordering::Relaxed);
        Self(lane)
    }
}

impl Drop for Drawing<'_> {
    fn drop(&mut self) {
        self.0.drawing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The pending recipients that are due, by their places, or all of them, if only the entry is: an
/// operator wants it tried.
fn due(entry: &Entry, now: Timestamp) -> Vec<usize> {
    let is_due = |due: Option<Timestamp>| due.is_none_or(|due| due <= now);
    let due: Vec<usize> =
        entry.pending().filter(|(_, recipient)| is_due(recipient.due)).map(|(place, _)| place).collect();
    if due.is_empty() { entry.pending().map(|(place, _)| place).collect() } else { due }
}

/// How long it is until something may come of an entry that no upstream serves.
fn unserved_until(orders: &Orders, entry: &Entry, now: Timestamp) -> Duration {
    let end = given_up_at(orders, entry).since(now);
    let end = if end.is_zero() { LATER } else { end };
    let dues = entry.pending().filter_map(|(_, recipient)| recipient.due).filter(|due| *due > now);
    dues.map(|due| due.since(now)).min().map_or(end, |due| due.min(end)).min(LEFT_ALONE)
}

/// What is known of one that no upstream serves.
fn unserved(at: Timestamp) -> Evidence {
    let advice = Advice { who: Who::Operator, help: None, not_before: None, tries: None, slower: None };
    Evidence {
        at,
        upstream: String::new(),
        phase: "route".to_owned(),
        scope: Scope::Network,
        reply: None,
        explanation: Some(UNSERVED.to_owned()),
        // RFC 3463 §3.5: unable to route.
        status: Some(Enhanced(4, 4, 4)),
        advice: Some(Box::new(advice)),
        uncertain: false,
        tls: None,
    }
}

fn is_for_all(serves: &Serves) -> bool {
    serves.senders.is_empty() && serves.recipients.is_empty() && serves.users.is_empty()
}

/// Why nothing goes by a lane now. While a probe is due, something may.
fn obstacle(lane: &Lane, now: Timestamp) -> Option<Obstacle> {
    if let Some(closed) = lane.gate.closed().filter(|closed| closed.until > now) {
        let reason = closed.evidence.to_string();
        return Some(Obstacle { reason, until: Some(closed.until), evidence: Some(closed.evidence) });
    }
    let Blocked { reason, until, .. } = lane.account.blocked()?;
    Some(Obstacle { reason, until, evidence: None })
}
