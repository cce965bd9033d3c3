//! The queue and the upstream as people see them: the values behind the API, the page and the
//! commands, in the contract's words.
//!
//! The store knows when an entry is due; whether it really goes out then is the gate's word. While
//! that is closed, what is due is shown as deferred, with the gate's reason and time.

use serde::{Deserialize, Serialize};

use super::{Admin, people};
use crate::{
    clock::Timestamp,
    limits::{breaker::Stopped, gate::Closed},
    mail::outcome::{self, Evidence, Scope, Who},
    queue::{
        Depth, Fault, Listed,
        entry::{self, RecipientState},
    },
};

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
}

impl State {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deferred => "deferred",
            Self::Held => "held",
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
    pub store: StoreStatus,
    pub ready: bool,
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
    /// `up`, `paused` (it doesn't let us in) or `down`.
    pub state: String,
    pub reason: Option<String>,
    pub who_must_act: Option<String>,
    /// What to do.
    pub help: Option<String>,
    pub until: Option<String>,
    pub connections: usize,
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

/// Whether new mail can be made durable.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StoreStatus {
    pub writable: bool,
    pub reason: Option<String>,
}

/// What to do about refusal after refusal, where the upstream's words are all that is known.
const HELP_STOPPED: &str = "find out at the upstream why, then `outpost queue release --all`; a message is tried now \
    and then, and if it passes, all go";

/// What is known of the upstream at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Outlook {
    upstream: String,
    closed: Option<Closed>,
    stopped: Vec<Stopped>,
    connections: usize,
    now: Timestamp,
}

impl Outlook {
    /// The outlook now.
    pub(crate) fn of(admin: &Admin) -> Self {
        let upstream = admin.settings.load().upstream.name.clone();
        let connections = admin.runner.connections();
        let (closed, stopped) = (admin.gate.closed(), admin.runner.stopped());
        Self { upstream, closed, stopped, connections, now: admin.clock.now() }
    }

    /// Whether the upstream takes mail, as far as known. Until a probe has succeeded, it doesn't.
    pub(crate) fn is_up(&self) -> bool {
        self.closed.is_none() && self.stopped.iter().all(|stopped| stopped.sender.is_some())
    }

    /// Why what is due doesn't go out, if so. Connections that are open already go on working, so
    /// what is claimed is under way whatever the gate says.
    fn blocks(&self) -> Option<&Closed> {
        self.closed.as_ref().filter(|closed| closed.until > self.now)
    }

    pub(crate) fn upstream_status(&self) -> UpstreamStatus {
        let closed = self.closed.as_ref();
        if let (None, Some(stopped)) = (closed, self.stopped.first()) {
            return self.stopped_status(stopped);
        }
        let state = match closed {
            None => "up",
            Some(closed) if matches!(closed.evidence.scope, Scope::Credential | Scope::Account) => "paused",
            Some(_) => "down",
        };
        UpstreamStatus {
            name: self.upstream.clone(),
            state: state.to_owned(),
            reason: closed.map(|closed| closed.evidence.to_string()),
            who_must_act: closed.and_then(|closed| closed.evidence.who()).map(|who| who.name().to_owned()),
            help: closed.and_then(|closed| closed.evidence.help()).map(str::to_owned),
            until: closed.map(|closed| closed.until.to_string()),
            connections: self.connections,
        }
    }

    /// Mail is held: everybody's, or only some senders'.
    fn stopped_status(&self, stopped: &Stopped) -> UpstreamStatus {
        let evidence = &stopped.open.evidence;
        let (state, whose) = match &stopped.sender {
            None => ("paused", "it refuses message after message, so all mail is held".to_owned()),
            Some(sender) if self.stopped.len() == 1 => ("up", format!("mail from {sender} is held")),
            Some(sender) => {
                let others = people::count(self.stopped.len() as u64 - 1, "other sender");
                ("up", format!("mail from {sender} and {others} is held"))
            }
        };
        UpstreamStatus {
            name: self.upstream.clone(),
            state: state.to_owned(),
            reason: Some(format!("{whose}: {evidence}")),
            who_must_act: Some(evidence.who().unwrap_or(Who::Operator).name().to_owned()),
            help: Some(evidence.help().unwrap_or(HELP_STOPPED).to_owned()),
            until: Some(stopped.open.until.to_string()),
            connections: self.connections,
        }
    }

    /// `claimed` entries are being worked on.
    pub(crate) fn queue_status(&self, depth: Depth, claimed: u64) -> QueueStatus {
        let moving = if self.blocks().is_some() { depth.active.min(claimed) } else { depth.active };
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
        let blocked = self.blocks().filter(|_| !listed.claimed);
        let waits = listed.due > self.now && !listed.claimed;
        let state = match blocked {
            _ if entry.held.is_some() => State::Held,
            Some(_) => State::Deferred,
            None if waits => State::Deferred,
            None => State::Active,
        };
        let next = (state == State::Deferred)
            .then(|| blocked.map_or(listed.due, |closed| closed.until.max(listed.due)));
        let seen = || Some(entry.last_evidence()?.to_string());
        let reason = match (&entry.held, blocked) {
            (Some(held), _) => Some(held.clone()),
            (None, Some(closed)) if !waits => Some(closed.evidence.to_string()),
            (None, blocked) => seen().or_else(|| Some(blocked?.evidence.to_string())),
        };
        let recipient = |recipient: &entry::Recipient| {
            let pending = match recipient.state {
                RecipientState::Pending => Ok(state.name()),
                RecipientState::Delivered => Err("delivered"),
                RecipientState::Bounced => Err("bounced"),
                RecipientState::Expired => Err("expired"),
            };
            let last = recipient.last.as_ref();
            let told = last.or(blocked.map(|closed| &closed.evidence)).filter(|_| pending.is_ok());
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
            upstream: self.upstream.clone(),
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
            upstream: self.upstream.clone(),
            reason: Some("damaged".to_owned()),
        }
    }
}

impl Admin {
    /// How the relay is now.
    ///
    /// # Errors
    /// The queue can't be read.
    pub async fn status(&self) -> Result<Status, Fault> {
        let depth = self.queue.depth().await?;
        let outlook = Outlook::of(self);
        let trouble = self.queue.trouble();
        Ok(Status {
            queue: outlook.queue_status(depth, self.queue.claimed() as u64),
            upstreams: vec![outlook.upstream_status()],
            limits: Vec::new(),
            ready: trouble.is_none(),
            store: StoreStatus { writable: trouble.is_none(), reason: trouble },
        })
    }
}

impl Status {
    /// The same in sentences.
    pub fn sentences(&self) -> Vec<String> {
        let mut said = Vec::new();
        match &self.store.reason {
            Some(reason) => said.push(format!("NEW MAIL IS REFUSED for now: {reason}.")),
            None => said.push("New mail is taken.".to_owned()),
        }
        let queue = &self.queue;
        said.push(match queue.oldest_seconds {
            None => "The queue is empty.".to_owned(),
            Some(oldest) => format!(
                "{} in the queue ({}): {} active, {} deferred, {} held; the oldest has waited {}.",
                people::count(queue.messages, "message"),
                people::size(queue.bytes),
                queue.active,
                queue.deferred,
                queue.held,
                people::age(oldest)
            ),
        });
        if queue.held > 0 {
            said.push("Held messages wait for you: outpost queue list --state held".to_owned());
        }
        for upstream in &self.upstreams {
            said.push(upstream.sentence());
        }
        for limit in &self.limits {
            let frees = limit.frees_at.as_deref().map_or(String::new(), |at| format!("; frees up at {at}"));
            said.push(format!(
                "Limit of {}: {} of {} {} in {} used{frees}.",
                limit.upstream, limit.used, limit.max, limit.counts, limit.window
            ));
        }
        said
    }
}

impl UpstreamStatus {
    fn sentence(&self) -> String {
        let connections = people::count(self.connections as u64, "connection");
        let Some(reason) = &self.reason else {
            return format!("Upstream {} is {}, with {connections} open.", self.name, self.state);
        };
        let until = self.until.as_deref();
        let said = outcome::sentence(reason, self.who_must_act.as_deref(), self.help.as_deref(), until);
        format!(
            "Upstream {} is {}: {said} Mail stays queued, with {connections} open.",
            self.name, self.state
        )
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
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1_340_000_000_000);

    async fn outlook(scope: Option<Scope>, connections: usize) -> Outlook {
        let gate = Gate::new(Clock::starting_at(NOW));
        if let Some(scope) = scope {
            let waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(60) };
            gate.pass().await.failed(waits, evidence(scope, "535 5.7.8 no"));
        }
        Outlook { upstream: "up".into(), closed: gate.closed(), stopped: Vec::new(), connections, now: NOW }
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
            let status = outlook(Some(scope), 0).await.upstream_status();
            assert_eq!((status.state.as_str(), status.who_must_act.as_deref()), (state, Some("operator")));
            let said = status.sentence();
            assert!(said.contains("535 5.7.8 no") && said.contains("You must act"), "{said}");
        }
        let up = outlook(None, 2).await.upstream_status();
        assert_eq!(up.sentence(), "Upstream up is up, with 2 connections open.");
    }
}
