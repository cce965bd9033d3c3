//! The queue and the upstream as people see them: the values behind the API, the page and the
//! commands, in the contract's words.
//!
//! The store knows when an entry is due; whether it really goes out then is the gate's word. While
//! that is closed, what is due is shown as deferred, with the gate's reason and time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Admin, Desk, people};
use crate::{
    clock::Timestamp,
    delivery::TokenInUse,
    limits::{
        account::{Blocked, Usage},
        breaker::Stopped,
        gate::Closed,
    },
    mail::outcome::{self, Evidence, Scope, Who},
    queue::{
        DAMAGED, Depth, Fault, Listed, Standing, disk,
        entry::{self, RecipientState},
    },
    runner::{self, UpstreamState},
};
use axum::extract::FromRef as _;

/// Where a message is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Due, or being tried.
    Active,
    /// Waiting for its next try.
    Deferred,
    /// Waiting for an operator.
    Held,
    /// It has left: what is known is history.
    Gone,
}

impl State {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deferred => "deferred",
            Self::Held => "held",
            Self::Gone => "gone",
        }
    }
}

/// A queued message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the contract's and say what they are.
pub struct Item {
    pub id: String,
    pub state: State,
    pub sender: String,
    pub recipients: Vec<Recipient>,
    pub size: u64,
    pub received: String,
    pub client: Option<String>,
    pub user: Option<String>,
    pub message_id: Option<String>,
    pub subject: Option<String>,
    pub upstream: String,
    pub reason: Option<String>,
}

/// One of its recipients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Recipient {
    pub address: String,
    /// The message's state while it is to be reached; else `delivered`, `bounced`, `expired`.
    pub state: String,
    pub attempts: u32,
    pub last_reply: Option<String>,
    pub reason: Option<String>,
    /// `operator`, `the upstream`, `the sender`, `nobody`.
    pub who_must_act: Option<String>,
    /// What to do.
    pub help: Option<String>,
    pub next_attempt: Option<String>,
}

impl Recipient {
    /// What keeps it, in the words that status and log have.
    pub fn sentence(&self) -> Option<String> {
        let (who, help) = (self.who_must_act.as_deref(), self.help.as_deref());
        Some(outcome::sentence(self.reason.as_deref()?, who, help, self.next_attempt.as_deref()))
    }
}

/// A page of a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct List<T> {
    pub items: Vec<T>,
    /// What `?cursor=` takes for more.
    pub next: Option<String>,
}

/// How the relay is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Status {
    pub queue: QueueStatus,
    pub upstreams: Vec<UpstreamStatus>,
    pub limits: Vec<LimitStatus>,
    /// The limits of logins.
    #[serde(default)]
    pub logins: Vec<LoginLimit>,
    pub store: StoreStatus,
    pub ready: bool,
}

impl Status {
    /// Whether this upstream waits for nothing but a limit of ours to free up.
    pub fn waits_for_limit(&self, upstream: &UpstreamStatus) -> bool {
        let is_full = |limit: &LimitStatus| limit.upstream == upstream.name && limit.used >= limit.max;
        upstream.state == "paused"
            && upstream.who_must_act.as_deref() == Some(Who::Nobody.name())
            && self.limits.iter().any(is_full)
    }
}

/// How much is queued.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct QueueStatus {
    pub active: u64,
    pub deferred: u64,
    pub held: u64,
    pub messages: u64,
    pub bytes: u64,
    pub oldest_seconds: Option<u64>,
}

/// How an upstream is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct UpstreamStatus {
    pub name: String,
    /// `up`, `paused` (it doesn't let us in, or a limit is used up for a while) or `down`.
    pub state: String,
    pub reason: Option<String>,
    pub who_must_act: Option<String>,
    /// What to do.
    pub help: Option<String>,
    pub until: Option<String>,
    pub connections: usize,
    /// It has complained: what it gets at most for now.
    #[serde(default)]
    pub learned: Option<Learned>,
    /// The access token that it is logged in to by.
    #[serde(default)]
    pub token: Option<Token>,
}

/// An access token in use.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Token {
    pub expires: String,
    /// Why it can't be renewed, while that is so.
    pub reason: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

impl Token {
    fn of(token: &TokenInUse) -> Self {
        let trouble = token.trouble.as_ref();
        Self {
            expires: token.expires.to_string(),
            reason: trouble.map(|trouble| trouble.words.clone()),
            help: trouble.map(|trouble| trouble.help.to_owned()),
        }
    }

    /// The trouble with it in words, the same everywhere.
    pub fn trouble(&self, upstream: &str, now: Timestamp) -> Option<String> {
        let (expires, reason) = (&self.expires, self.reason.as_deref()?);
        let is_over = expires.parse::<Timestamp>().is_ok_and(|at| at <= now);
        let verb = if is_over { "expired" } else { "expires" };
        Some(format!(
            "the access token of upstream {upstream} {verb} at {expires} and can't be renewed: {reason}"
        ))
    }
}

/// What an upstream gets at most, learned from its complaints.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Learned {
    pub messages_per_second: Option<f64>,
    pub connections: Option<usize>,
}

impl Learned {
    /// The same in a sentence.
    pub fn sentence(&self) -> String {
        let rate = self.messages_per_second.map(|rate| match rate {
            0.5.. => format!("{rate:.1} messages a second"),
            _ => format!("{:.1} messages a minute", rate * 60.0),
        });
        let connections = self.connections.map(|most| people::count(most as u64, "connection"));
        let parts: Vec<String> = rate.into_iter().chain(connections).collect();
        format!("It has complained, so for now it gets at most {}.", parts.join(" and "))
    }
}

/// How much of a limit is used.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LimitStatus {
    pub upstream: String,
    pub window: String,
    pub counts: String,
    pub used: u64,
    pub max: u64,
    pub frees_at: Option<String>,
}

/// How much of a limit a login has used.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LoginLimit {
    pub user: String,
    pub window: String,
    pub counts: String,
    pub used: u64,
    pub max: u64,
    pub frees_at: Option<String>,
}

impl LoginLimit {
    fn of(user: &str, usage: &Usage) -> Self {
        Self {
            user: user.to_owned(),
            window: usage.limit.window_name(),
            counts: usage.limit.counts.name().to_owned(),
            used: usage.used,
            max: usage.limit.max,
            frees_at: usage.frees_at.map(|at| at.to_string()),
        }
    }
}

/// Whether new mail can be made durable.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StoreStatus {
    pub writable: bool,
    pub reason: Option<String>,
    /// Why queued mail may be lost, or some was, and what to do.
    #[serde(default)]
    pub warning: Option<String>,
}

/// A limit that frees up sooner is not worth a word: mail flows as fast as it may.
pub(crate) const QUOTA_FROM: Duration = Duration::from_secs(120);

/// What to do about refusal after refusal, where the upstream's words are all that is known.
const HELP_STOPPED: &str = "find out at the upstream why, then `outpost queue release --all --yes`; a message is tried now \
    and then, and if it passes, all go";

/// What is known of the upstreams at one moment.
pub(crate) struct Outlook {
    upstreams: Vec<UpstreamState>,
    /// Messages that wait for an upstream while others go out.
    put_off: u64,
    /// What becomes of a message.
    route: Box<dyn Fn(&entry::Entry) -> runner::Outlook + Send + Sync>,
    now: Timestamp,
}

impl Outlook {
    /// The outlook now.
    pub(crate) fn of(desk: &Desk) -> Self {
        let runner = desk.runner.clone();
        Self {
            upstreams: desk.runner.upstreams(),
            put_off: desk.queue.put_off() as u64,
            route: Box::new(move |entry| runner.outlook(entry)),
            now: desk.clock.now(),
        }
    }

    /// Whether nothing that is due goes out. Connections that are open already go on working, so what
    /// is claimed is under way whatever the gates say.
    fn all_blocked(&self) -> bool {
        let is_closed = |closed: &Closed| closed.until > self.now;
        self.upstreams.iter().all(|up| up.closed.as_ref().is_some_and(is_closed) || up.blocked.is_some())
    }

    /// How entries of a state stand in the store: all of that state do, and where upstreams take no mail
    /// now, perhaps others.
    pub(crate) fn standing(&self, state: State) -> Standing {
        let is_blocked = |up: &UpstreamState| {
            up.closed.as_ref().is_some_and(|closed| closed.until > self.now) || up.blocked.is_some()
        };
        match state {
            State::Held => Standing::Held,
            State::Active if !self.all_blocked() => Standing::Due(self.now),
            // What has left is not in the store at all.
            State::Active | State::Gone => Standing::Claimed,
            // What is due is deferred where it can't go, or where no upstream serves it.
            State::Deferred if self.upstreams.len() > 1 || self.upstreams.iter().any(is_blocked) => {
                Standing::Queued
            }
            State::Deferred => Standing::Later(self.now),
        }
    }

    /// Whether there is an upstream of this name.
    pub(crate) fn has_upstream(&self, name: &str) -> bool {
        self.upstreams.iter().any(|up| up.name == name)
    }

    pub(crate) fn upstreams(&self) -> impl Iterator<Item = UpstreamStatus> {
        self.upstreams.iter().map(|up| upstream_status(up, self.now))
    }

    /// Each upstream, and whether it would take mail if our limits let us send it.
    pub(crate) fn healths(&self) -> impl Iterator<Item = (UpstreamStatus, bool)> {
        self.upstreams.iter().zip(self.upstreams()).map(|(up, status)| {
            let limited = up.closed.is_none() && up.stopped.is_empty();
            let limited = limited && up.blocked.as_ref().is_some_and(|blocked| !blocked.is_fault);
            let is_well = limited || status.state == "up";
            (status, is_well)
        })
    }

    pub(crate) fn limits(&self) -> impl Iterator<Item = LimitStatus> {
        let status = |up: &UpstreamState, usage: &Usage| LimitStatus {
            upstream: up.name.clone(),
            window: usage.limit.window_name(),
            counts: usage.limit.counts.name().to_owned(),
            used: usage.used,
            max: usage.limit.max,
            frees_at: usage.frees_at.map(|at| at.to_string()),
        };
        self.upstreams.iter().flat_map(move |up| up.limits.iter().map(move |usage| status(up, usage)))
    }

    /// `claimed` entries are being worked on.
    pub(crate) fn queue_status(&self, depth: Depth, claimed: u64) -> QueueStatus {
        let under_way = depth.active.min(claimed);
        let moving = match self.all_blocked() {
            true => under_way,
            false => depth.active.saturating_sub(self.put_off).max(under_way),
        };
        QueueStatus {
            active: moving,
            deferred: depth.deferred + (depth.active - moving),
            held: depth.held,
            messages: depth.messages,
            bytes: depth.octets,
            oldest_seconds: depth.oldest.map(|oldest| self.now.since(oldest).as_secs()),
        }
    }

    pub(crate) fn item(&self, listed: &Listed) -> Item {
        let Some(entry) = &listed.entry else { return self.damaged(listed) };
        let runner::Outlook { upstream, blocked } = (self.route)(entry);
        let blocked = blocked.as_ref().filter(|_| !listed.claimed);
        let waits = listed.due > self.now && !listed.claimed;
        let state = match blocked {
            _ if entry.held.is_some() => State::Held,
            Some(_) => State::Deferred,
            None if waits => State::Deferred,
            None => State::Active,
        };
        let next = match blocked {
            _ if state != State::Deferred => None,
            Some(blocked) => blocked.until.map(|until| until.max(listed.due)),
            None => Some(listed.due),
        };
        let seen = || Some(entry.last_evidence()?.to_string());
        let reason = match (&entry.held, blocked) {
            (Some(held), _) => Some(held.clone()),
            (None, Some(blocked)) if !waits => Some(blocked.reason.clone()),
            (None, blocked) => seen().or_else(|| Some(blocked?.reason.clone())),
        };
        let recipient = |recipient: &entry::Recipient| {
            let pending = match recipient.state {
                RecipientState::Pending => Ok(state.name()),
                RecipientState::Delivered => Err("delivered"),
                RecipientState::Bounced => Err("bounced"),
                RecipientState::Expired => Err("expired"),
            };
            let last = recipient.last.as_ref();
            let seen = || blocked.and_then(|blocked| blocked.evidence.as_ref());
            let told = last.or_else(seen).filter(|_| pending.is_ok());
            Recipient {
                address: recipient.address.to_string(),
                state: pending.unwrap_or_else(|done| done).to_owned(),
                attempts: recipient.attempts,
                last_reply: last.and_then(|last| Some(last.reply.as_ref()?.to_string())),
                reason: match pending {
                    Ok(_) => last.map(ToString::to_string).or_else(|| reason.clone()),
                    Err(_) => last.map(ToString::to_string),
                },
                who_must_act: told.and_then(Evidence::who).map(|who| who.name().to_owned()),
                help: told.and_then(Evidence::help).map(str::to_owned),
                next_attempt: pending.ok().and(next).map(|next| next.to_string()),
            }
        };
        Item {
            id: listed.id.to_string(),
            state,
            sender: entry.reverse_path.as_str().to_owned(),
            recipients: entry.recipients.iter().map(recipient).collect(),
            size: listed.size,
            received: entry.received.to_string(),
            client: Some(entry.origin.client.clone()),
            user: entry.origin.user.clone(),
            message_id: entry.message_id.clone(),
            subject: entry.subject.as_deref().map(people::decoded),
            upstream: upstream.unwrap_or_default(),
            reason,
        }
    }

    /// All that is known of an entry whose record or content fails its checksum.
    fn damaged(&self, listed: &Listed) -> Item {
        Item {
            id: listed.id.to_string(),
            state: State::Held,
            sender: String::new(),
            recipients: Vec::new(),
            size: listed.size,
            received: listed.id.time().to_string(),
            client: None,
            user: None,
            message_id: None,
            subject: None,
            upstream: String::new(),
            reason: Some(DAMAGED.to_owned()),
        }
    }
}

/// Whether it is worth a word: mail waits longer for it than the way that mail flows under a limit explains.
fn is_long(blocked: &Blocked, now: Timestamp) -> bool {
    blocked.is_fault || blocked.until.is_some_and(|until| until.since(now) >= QUOTA_FROM)
}

fn upstream_status(up: &UpstreamState, now: Timestamp) -> UpstreamStatus {
    let status = |state: &str, reason: Option<String>| UpstreamStatus {
        name: up.name.clone(),
        state: state.to_owned(),
        reason,
        who_must_act: None,
        help: None,
        until: None,
        connections: up.connections,
        learned: up.learned.map(|learned| Learned {
            // For people: more digits mean nothing.
            messages_per_second: learned.rate.map(|rate| (rate * 1000.0).round() / 1000.0),
            connections: learned.connections,
        }),
        token: up.token.as_ref().map(Token::of),
    };
    // Mail is held: everybody's, or only some senders'.
    let held = |stopped: &Stopped| {
        let evidence = &stopped.open.evidence;
        let (state, whose) = match &stopped.sender {
            None => ("paused", "it refuses message after message, so all mail is held".to_owned()),
            Some(sender) if up.stopped.len() == 1 => ("up", format!("mail from {sender} is held")),
            Some(sender) => {
                let others = people::count(up.stopped.len() as u64 - 1, "other sender");
                ("up", format!("mail from {sender} and {others} is held"))
            }
        };
        UpstreamStatus {
            who_must_act: Some(evidence.who().unwrap_or(Who::Operator).name().to_owned()),
            help: Some(evidence.help().unwrap_or(HELP_STOPPED).to_owned()),
            until: Some(stopped.open.until.to_string()),
            ..status(state, Some(format!("{whose}: {evidence}")))
        }
    };
    match (&up.closed, up.stopped.first(), &up.blocked) {
        (None, Some(stopped), _) => held(stopped),
        (Some(closed), ..) => {
            let evidence = &closed.evidence;
            let kept_out = matches!(evidence.scope, Scope::Credential | Scope::Account);
            UpstreamStatus {
                who_must_act: evidence.who().map(|who| who.name().to_owned()),
                help: evidence.help().map(str::to_owned),
                until: Some(closed.until.to_string()),
                ..status(if kept_out { "paused" } else { "down" }, Some(evidence.to_string()))
            }
        }
        (None, None, Some(blocked)) if is_long(blocked, now) => UpstreamStatus {
            who_must_act: Some(Who::Nobody.name().to_owned()),
            until: blocked.until.map(|until| until.to_string()),
            ..status("paused", Some(blocked.reason.clone()))
        },
        (None, None, _) => status("up", None),
    }
}

fn damaged_log(path: std::path::PathBuf) -> String {
    format!(
        "at a start the queue's log was damaged, and messages accepted shortly before may be lost: compare \
         `outpost logs --event received` with what was delivered. {} has them; move it away when you are done",
        path.display()
    )
}

impl Admin {
    /// How much is queued now.
    ///
    /// # Errors
    /// The queue can't be read.
    pub(super) async fn queue_status(&self) -> Result<QueueStatus, Fault> {
        let depth = self.queue.depth().await?;
        Ok(Outlook::of(&Desk::from_ref(self)).queue_status(depth, self.queue.claimed() as u64))
    }

    /// How the relay is now.
    ///
    /// # Errors
    /// The queue can't be read.
    pub async fn status(&self) -> Result<Status, Fault> {
        let depth = self.queue.depth().await?;
        let outlook = Outlook::of(&Desk::from_ref(self));
        let trouble = self.queue.trouble();
        // Local mode keeps nothing that anybody would miss.
        let lasts = self.captured.is_some();
        let thrown_away = if lasts { None } else { disk::thrown_away(&self.settings.load()) };
        let warning = self.queue.damaged_log().map(damaged_log).or(thrown_away);
        Ok(Status {
            queue: outlook.queue_status(depth, self.queue.claimed() as u64),
            upstreams: outlook.upstreams().collect(),
            limits: outlook.limits().collect(),
            logins: self
                .allowances
                .load()
                .usage()
                .iter()
                .flat_map(|(user, limits)| limits.iter().map(|usage| LoginLimit::of(user, usage)))
                .collect(),
            ready: trouble.is_none(),
            store: StoreStatus { writable: trouble.is_none(), reason: trouble, warning },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::tests::{entry, evidence, listed},
        clock::Clock,
        config::Waits,
        limits::gate::Gate,
    };
    const NOW: Timestamp = Timestamp(1_340_000_000_000);

    async fn outlook(scope: Option<Scope>, connections: usize) -> Outlook {
        let gate = Gate::new(Clock::starting_at(NOW));
        if let Some(scope) = scope {
            let waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(60) };
            gate.pass().await.failed(waits, evidence(scope, "535 5.7.8 no"));
        }
        let closed = gate.closed();
        let blocked = closed.as_ref().map(|closed| runner::Obstacle {
            reason: closed.evidence.to_string(),
            until: Some(closed.until),
            evidence: Some(closed.evidence.clone()),
        });
        let route = move |_: &_| runner::Outlook { upstream: Some("up".into()), blocked: blocked.clone() };
        let up = UpstreamState {
            name: "up".into(),
            closed,
            blocked: None,
            stopped: Vec::new(),
            connections,
            learned: None,
            limits: Vec::new(),
            token: None,
        };
        Outlook { upstreams: vec![up], put_off: 0, route: Box::new(route), now: NOW }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_deferred_while_the_gate_is_closed_and_says_why() {
        let due = listed(entry(), NOW, false);
        assert_eq!(outlook(None, 0).await.item(&due).state, State::Active);

        let closed = outlook(Some(Scope::Credential), 0).await;
        let item = closed.item(&due);
        assert_eq!(item.state, State::Deferred);
        assert!(item.reason.as_deref().is_some_and(|reason| reason.contains("535 5.7.8 no")));
        let recipient = &item.recipients[0];
        assert_eq!(recipient.state, "deferred");
        assert!(recipient.next_attempt.as_deref() > Some(NOW.to_string().as_str()));
        assert!(recipient.reason.is_some() && recipient.last_reply.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_on_an_open_connection_stays_active_while_the_gate_is_closed() {
        let claimed = listed(entry(), NOW, true);
        assert_eq!(outlook(Some(Scope::Upstream), 1).await.item(&claimed).state, State::Active);
    }

    #[tokio::test(start_paused = true)]
    async fn held_and_damaged_messages_stay_held_and_say_why() {
        let mut held = entry();
        held.held = Some("held by the operator".into());
        let closed = outlook(Some(Scope::Credential), 0).await;
        let item = closed.item(&listed(held, NOW, false));
        assert_eq!((item.state, item.reason.as_deref()), (State::Held, Some("held by the operator")));
        assert_eq!(item.recipients[0].next_attempt, None);

        let damaged = Listed { entry: None, ..listed(entry(), NOW, false) };
        let item = closed.item(&damaged);
        assert_eq!((item.state, item.reason.as_deref()), (State::Held, Some("damaged")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_recipient_that_was_served_keeps_its_outcome() {
        let mut entry = entry();
        entry.recipients[0].state = RecipientState::Delivered;
        entry.recipients[0].last = Some(evidence(Scope::Recipient, "250 2.0.0 ok"));
        let item = outlook(None, 0).await.item(&listed(entry, Timestamp(NOW.0 + 1), false));
        assert_eq!(item.state, State::Deferred);
        assert_eq!(item.recipients[0].state, "delivered");
        assert_eq!(item.recipients[0].last_reply.as_deref(), Some("250 2.0.0 ok"));
        assert_eq!(item.recipients[0].next_attempt, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_depth_follows_the_gate_and_the_sum_stays() {
        let depth = Depth { messages: 10, active: 7, deferred: 2, held: 1, ..Depth::default() };
        for (scope, active) in [(None, 7), (Some(Scope::Upstream), 3)] {
            let queue = outlook(scope, 1).await.queue_status(depth, 3);
            assert_eq!((queue.active, queue.active + queue.deferred + queue.held), (active, 10));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_upstream_is_up_paused_or_down_and_says_who_must_act() {
        for (scope, state) in [(Scope::Credential, "paused"), (Scope::Upstream, "down")] {
            let status = upstream_status(&outlook(Some(scope), 0).await.upstreams[0], NOW);
            assert_eq!((status.state.as_str(), status.who_must_act.as_deref()), (state, Some("operator")));
            assert!(status.reason.is_some_and(|reason| reason.contains("535 5.7.8 no")));
        }
        let up = upstream_status(&outlook(None, 2).await.upstreams[0], NOW);
        assert_eq!((up.state.as_str(), up.reason, up.connections), ("up", None, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_used_up_limit_is_told_where_it_lasts_and_is_no_outage() {
        let blocked = |seconds: Option<u64>, is_fault: bool| Blocked {
            reason: "the limit is used up".into(),
            until: seconds.map(|seconds| NOW.after(Duration::from_secs(seconds))),
            is_fault,
        };
        for (block, state, is_well) in [
            (blocked(Some(1), false), "up", true),
            (blocked(Some(119), false), "up", true),
            (blocked(None, false), "up", true),
            (blocked(Some(120), false), "paused", true),
            (blocked(Some(5), true), "paused", false),
        ] {
            let mut outlook = outlook(None, 0).await;
            outlook.upstreams[0].blocked = Some(block.clone());
            let (status, well) = outlook.healths().next().unwrap();
            assert_eq!((status.state.as_str(), well), (state, is_well), "{block:?}");
            assert_eq!(status.reason.is_some(), state == "paused", "{block:?}");
        }
        let mut down = outlook(Some(Scope::Upstream), 0).await;
        down.upstreams[0].blocked = Some(blocked(Some(500), false));
        assert!(!down.healths().next().unwrap().1);
    }

    #[test]
    fn a_token_is_trouble_only_when_it_can_not_be_renewed() {
        let mut token = Token { expires: NOW.to_string(), reason: None, help: None };
        assert_eq!(token.trouble("up", NOW), None);
        token.reason = Some("the token endpoint refuses".into());
        let at = |now| token.trouble("up", now).unwrap();
        let words = "at 2012-06-18T06:13:20.000Z and can't be renewed: the token endpoint refuses";
        assert_eq!(at(Timestamp(NOW.0 - 1)), format!("the access token of upstream up expires {words}"));
        assert_eq!(at(NOW), format!("the access token of upstream up expired {words}"));
    }
}
