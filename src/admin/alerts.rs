//! Alerts that don't depend on mail: what an operator must look at, told to `smtp_alert_webhook` when it
//! begins and when it is over.
//!
//! What is raised, and what could not be told yet, survives a restart. Nothing here makes mail wait.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Admin, people,
    view::{QUOTA_FROM, Status},
};
use crate::{
    clock::Timestamp,
    config::{Settings, Thresholds},
    listener::tls,
    observe::Told,
    webhook,
};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);
/// So long a condition must be gone until it is over: what comes and goes is one alert.
const OVER_AFTER: Duration = Duration::from_secs(10);
/// How long the queue may take to answer, and our own small files to be written: a disk that hangs is told too.
const WITHIN: Duration = Duration::from_secs(10);
/// Alerts that wait to be told; more push out the oldest.
const PENDING_MAX: usize = 100;
/// The file's name in the data directory.
const NAME: &str = "alerts.json";

/// Something that an operator must look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Condition {
    /// Its kind: `upstream`, `quota`, `queue_depth`, `queue_age`, `store`, `held`, `certificate`, `token`.
    alert: String,
    /// Which of several: an upstream's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// What is told anew when it changes while the alert is on: an upstream's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    /// The same: who must act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    who_must_act: Option<String>,
    /// In words.
    reason: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    /// It keeps an alert on, and does not begin one.
    #[serde(skip)]
    lasts_only: bool,
}

impl Condition {
    fn new(alert: &str, subject: Option<&str>, reason: String, help: Option<&str>) -> Self {
        let (subject, help) = (subject.map(str::to_owned), help.map(str::to_owned));
        Self {
            alert: alert.to_owned(),
            subject,
            class: None,
            who_must_act: None,
            reason,
            help,
            lasts_only: false,
        }
    }

    /// Whether an operator who was told of the other must be told of this one, too.
    fn is_other_than(&self, told: &Self) -> bool {
        (&self.class, &self.who_must_act) != (&told.class, &told.who_must_act)
    }

    fn key(&self) -> String {
        self.subject.as_ref().map_or_else(|| self.alert.clone(), |of| format!("{}:{of}", self.alert))
    }
}

/// What is wrong now.
fn conditions(
    status: &Result<Status, String>,
    thresholds: &Thresholds,
    expires: Option<Timestamp>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut found = Vec::new();
    let store =
        |reason: String| Condition::new("store", None, format!("new mail is refused: {reason}"), None);
    match status {
        Ok(status) => {
            found.extend(status.store.reason.clone().map(store));
            of_queue(status, thresholds, &mut found);
            of_upstreams(status, now, &mut found);
        }
        Err(fault) => found.push(store(fault.clone())),
    }
    if let Some(expires) = expires.filter(|expires| expires.before(thresholds.certificate) <= now) {
        let words = if expires <= now { "has expired" } else { "expires" };
        let reason = format!("the listener's certificate {words} at {expires}");
        found.push(Condition::new("certificate", None, reason, Some("renew it: it is taken up by itself")));
    }
    found
}

fn of_queue(status: &Status, thresholds: &Thresholds, found: &mut Vec<Condition>) {
    let queue = &status.queue;
    if queue.messages >= thresholds.messages {
        let reason = format!("{} in the queue", people::count(queue.messages, "message"));
        found.push(Condition::new("queue_depth", None, reason, Some("outpost status")));
    }
    if let Some(oldest) = queue.oldest_seconds.filter(|oldest| *oldest >= thresholds.age.as_secs()) {
        let reason = format!("the oldest message has waited {}", people::age(oldest));
        found.push(Condition::new("queue_age", None, reason, Some("outpost status")));
    }
    if queue.held > 0 {
        let reason = format!("{} held", people::count(queue.held, "message"));
        found.push(Condition::new("held", None, reason, Some("outpost queue list --state held")));
    }
}

fn of_upstreams(status: &Status, now: Timestamp, found: &mut Vec<Condition>) {
    for upstream in &status.upstreams {
        let token = upstream.token.as_ref();
        if let Some((token, reason)) =
            token.and_then(|token| Some((token, token.trouble(&upstream.name, now)?)))
        {
            found.push(Condition::new("token", Some(&upstream.name), reason, token.help.as_deref()));
        }
        let Some(reason) = &upstream.reason else { continue };
        // Waiting for a limit is no trouble of the upstream's.
        if status.waits_for_limit(upstream) {
            continue;
        }
        let reason = format!("upstream {} is {}: {reason}", upstream.name, upstream.state);
        found.push(Condition {
            class: Some(upstream.state.clone()),
            who_must_act: upstream.who_must_act.clone(),
            ..Condition::new("upstream", Some(&upstream.name), reason, upstream.help.as_deref())
        });
    }
    for limit in status.limits.iter().filter(|limit| limit.used >= limit.max) {
        let frees = limit.frees_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
        let until = limit.frees_at.as_deref().map_or(String::new(), |at| format!("; frees up at {at}"));
        let (used, max) = (limit.used, limit.max);
        let reason = format!("{used} of {max} {} in {} used{until}", limit.counts, limit.window);
        let subject = format!("{} {} {}", limit.upstream, limit.counts, limit.window);
        // Each time that some of it frees up soon it would end else, and begin again a moment later.
        let lasts_only = frees.is_some_and(|at| at.since(now) < QUOTA_FROM);
        found.push(Condition { lasts_only, ..Condition::new("quota", Some(&subject), reason, None) });
    }
}

/// An alert that is on.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Raised {
    condition: Condition,
    since: Timestamp,
    seen: Timestamp,
}

impl Raised {
    /// Whether it was told just now; what lies ahead was told by a clock that was set back since.
    fn is_fresh(&self, now: Timestamp) -> bool {
        self.since <= now && now.since(self.since) < OVER_AFTER
    }
}

/// A message that is to be told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pending {
    id: String,
    body: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    raised: BTreeMap<String, Raised>,
    pending: VecDeque<Pending>,
}

impl State {
    /// Takes up what is wrong now; whether there is something to tell.
    fn update(&mut self, found: Vec<Condition>, settings: &Settings, now: Timestamp) -> bool {
        let before = self.pending.len();
        for condition in found {
            let key = condition.key();
            match self.raised.get_mut(&key) {
                // What goes to and fro is not told each time.
                Some(raised) if condition.is_other_than(&raised.condition) && raised.is_fresh(now) => {
                    raised.seen = now;
                }
                Some(raised) if !condition.is_other_than(&raised.condition) => {
                    (raised.condition, raised.seen) = (condition, now);
                }
                None if condition.lasts_only => {}
                _ => {
                    let raised = Raised { condition, since: now, seen: now };
                    self.push("alert.raised", &raised, settings, now);
                    self.raised.insert(key, raised);
                }
            }
        }
        let is_over = |raised: &Raised| now.since(raised.seen) >= OVER_AFTER || raised.seen > now;
        let over: Vec<String> =
            self.raised.iter().filter(|(_, raised)| is_over(raised)).map(|(key, _)| key.clone()).collect();
        for key in over {
            if let Some(raised) = self.raised.remove(&key) {
                self.push("alert.cleared", &raised, settings, now);
            }
        }
        self.pending.len() != before
    }

    fn push(&mut self, kind: &str, raised: &Raised, settings: &Settings, now: Timestamp) {
        let Condition { alert, subject, who_must_act, reason, help, .. } = &raised.condition;
        let body = json!({
            "type": kind,
            "timestamp": now.to_string(),
            "data": {
                "service": settings.service,
                "hostname": settings.hostname,
                "alert": alert,
                "subject": subject,
                "reason": reason,
                "who_must_act": who_must_act,
                "help": help,
                "since": raised.since.to_string(),
            },
        });
        let id = format!("alert_{}_{:08x}", now.0, fastrand::u32(..));
        self.pending.push_back(Pending { id, body: body.to_string() });
        while self.pending.len() > PENDING_MAX {
            self.pending.pop_front();
        }
    }
}

/// Looks for what is wrong, and tells of it, until the process ends.
pub async fn watch(admin: Admin, mut shutdown: watch::Receiver<bool>) {
    let path = admin.settings.load().data.join(NAME);
    let mut state: State = read(&path).await;
    // What was on is not over because nobody looked: the relay has yet to learn how things stand.
    let begun = admin.clock.now();
    state.raised.values_mut().for_each(|raised| raised.seen = begun);
    let (mut failures, mut again) = (0, Instant::now());
    loop {
        tokio::select! {
            () = sleep(LOOK) => {}
            _ = shutdown.wait_for(|shutdown| *shutdown) => return,
        }
        let settings = admin.settings.load_full();
        let Some(hook) = &settings.webhooks.alerts else { continue };
        let now = admin.clock.now();
        let status = soon(admin.status()).await;
        let found = conditions(&status, &settings.webhooks.thresholds, expires(&settings).await, now);
        if state.update(found, &settings, now) {
            write(&path, &state).await;
        }
        while let Some(first) = state.pending.front().cloned()
            && Instant::now() >= again
            && !*shutdown.borrow()
        {
            let told = webhook::tell(hook, &first.id, admin.clock.now(), first.body).await;
            admin
                .observer
                .metrics()
                .webhook("alert", if told.is_ok() { Told::delivered } else { Told::failed });
            match told {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!("smtp_alert_webhook can be reached again");
                    }
                    failures = 0;
                    state.pending.pop_front();
                    write(&path, &state).await;
                }
                Err(reason) => {
                    failures += 1;
                    again = Instant::now() + webhook::wait(failures);
                    if failures == 1 {
                        tracing::warn!("smtp_alert_webhook can't be told; trying on: {reason}");
                    }
                }
            }
        }
    }
}

/// What is answered in time; else why not.
async fn soon<T, E: ToString>(answer: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(WITHIN, answer).await {
        Ok(answer) => answer.map_err(|fault| fault.to_string()),
        Err(_) => Err(format!("the queue has not answered for {} s", WITHIN.as_secs())),
    }
}

/// When the listener's certificate expires.
async fn expires(settings: &Settings) -> Option<Timestamp> {
    let (own, directory) = (settings.tls.clone(), settings.data.join("tls"));
    let looking = tokio::task::spawn_blocking(move || tls::expires(own.as_ref(), &directory));
    timeout(WITHIN, looking).await.ok()?.ok().flatten()
}

/// A small state of ours in a file; the default where there is none that can be read.
pub(super) async fn read<T: serde::de::DeserializeOwned + Default>(path: &Path) -> T {
    let octets = tokio::fs::read(path).await.unwrap_or_default();
    serde_json::from_slice(&octets).unwrap_or_default()
}

/// Replaces it whole. That it fails is told, and costs a repetition after a restart.
pub(super) async fn write(path: &Path, state: &impl Serialize) {
    async fn replace(path: PathBuf, octets: Vec<u8>) -> io::Result<()> {
        let beside = path.with_extension("new");
        tokio::fs::write(&beside, octets).await?;
        tokio::fs::rename(&beside, &path).await
    }
    let octets = serde_json::to_vec(state).unwrap_or_default();
    let replaced = timeout(WITHIN, replace(path.to_owned(), octets)).await;
    if let Err(error) = replaced.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        tracing::warn!(path = %path.display(), %error, "what a webhook has been told can't be kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{
        tests::settings,
        view::{LimitStatus, QueueStatus, StoreStatus, Token, UpstreamStatus},
    };

    const NOW: Timestamp = Timestamp(1_340_000_000_000);

    fn status() -> Status {
        Status {
            queue: QueueStatus {
                active: 0,
                deferred: 0,
                held: 0,
                messages: 0,
                bytes: 0,
                oldest_seconds: None,
            },
            upstreams: vec![UpstreamStatus {
                name: "up".into(),
                state: "up".into(),
                reason: None,
                who_must_act: None,
                help: None,
                until: None,
                connections: 1,
                learned: None,
                token: None,
            }],
            limits: vec![LimitStatus {
                upstream: "up".into(),
                window: "day".into(),
                counts: "recipients".into(),
                used: 1,
                max: 500,
                frees_at: None,
            }],
            logins: Vec::new(),
            store: StoreStatus { writable: true, reason: None, warning: None },
            ready: true,
        }
    }

    fn kinds(change: impl FnOnce(&mut Status), expires: Option<Timestamp>) -> Vec<String> {
        let mut status = status();
        change(&mut status);
        let found = conditions(&Ok(status), &Thresholds::default(), expires, NOW);
        found.into_iter().map(|condition| condition.alert).collect()
    }

    #[test]
    fn each_trouble_has_its_alert_and_peace_has_none() {
        let none = |_: &mut Status| {};
        let day = Duration::from_secs(86_400);
        assert!(kinds(none, Some(NOW.after(15 * day))).is_empty());
        assert_eq!(kinds(none, Some(NOW.after(13 * day))), ["certificate"]);
        assert_eq!(kinds(none, Some(NOW.before(day))), ["certificate"]);
        assert_eq!(kinds(|s| s.queue.messages = 10_000, None), ["queue_depth"]);
        assert_eq!(kinds(|s| s.queue.oldest_seconds = Some(5 * 3_600), None), ["queue_age"]);
        assert_eq!(kinds(|s| s.queue.held = 1, None), ["held"]);
        assert_eq!(kinds(|s| s.store.reason = Some("read-only".into()), None), ["store"]);
        let down = |s: &mut Status| {
            (s.upstreams[0].state, s.upstreams[0].reason) = ("paused".into(), Some("535".into()))
        };
        assert_eq!(kinds(down, None), ["upstream"]);
        let token = |reason: Option<&str>| {
            let (reason, help) = (reason.map(str::to_owned), Some("`outpost login`".to_owned()));
            let token = Token { expires: NOW.after(day).to_string(), reason, help };
            move |s: &mut Status| s.upstreams[0].token = Some(token)
        };
        assert!(kinds(token(None), None).is_empty());
        assert_eq!(kinds(token(Some("refused")), None), ["token"]);
        let used_up = |s: &mut Status| {
            s.limits[0].used = 500;
            s.limits[0].frees_at = Some(NOW.after(day).to_string());
            s.upstreams[0].reason = Some("the limit is used up".into());
            s.upstreams[0].who_must_act = Some("nobody".into());
            s.upstreams[0].state = "paused".into();
        };
        assert_eq!(kinds(used_up, None), ["quota"]);
        let soon = |s: &mut Status| {
            used_up(s);
            s.limits[0].frees_at = Some(NOW.after(Duration::from_secs(1)).to_string());
        };
        assert_eq!(kinds(soon, None), ["quota"]);
        let told = |change: &dyn Fn(&mut Status), state: &mut State, second: u64| {
            let mut status = status();
            change(&mut status);
            let found = conditions(&Ok(status), &Thresholds::default(), None, NOW);
            state.update(found, &settings(""), NOW.after(Duration::from_secs(second)))
        };
        let mut state = State::default();
        assert!(!told(&soon, &mut state, 0), "it begins no alert");
        assert!(told(&used_up, &mut state, 1));
        assert!(!told(&soon, &mut state, 120), "and keeps one on");
        assert!(told(&|_| (), &mut state, 140), "until there is room");
        let broken = conditions(&Err("it is broken".into()), &Thresholds::default(), None, NOW);
        assert_eq!(broken[0].alert, "store");
    }

    #[test]
    fn another_state_of_an_upstream_and_another_who_must_act_are_told_and_other_words_are_not() {
        let settings = settings("");
        let upstream = |state: &str, who: &str, reason: &str| {
            let mut status = status();
            let upstream = &mut status.upstreams[0];
            upstream.state = state.into();
            (upstream.reason, upstream.who_must_act) = (Some(reason.into()), Some(who.into()));
            conditions(&Ok(status), &Thresholds::default(), None, NOW)
        };
        let mut state = State::default();
        let at = |seconds: u64| NOW.after(Duration::from_secs(seconds));
        assert!(state.update(upstream("down", "nobody", "no connection"), &settings, at(0)));
        assert!(!state.update(upstream("down", "nobody", "no answer"), &settings, at(20)));
        assert!(state.update(upstream("paused", "nobody", "535"), &settings, at(22)));
        // To and fro within seconds.
        assert!(!state.update(upstream("down", "nobody", "no answer"), &settings, at(24)));
        assert!(!state.update(upstream("paused", "nobody", "535"), &settings, at(40)));
        assert!(state.update(upstream("paused", "operator", "535"), &settings, at(42)));
        // The clock is set back, which must not keep a change secret until it has caught up.
        let back = NOW.before(Duration::from_secs(3_600));
        assert!(state.update(upstream("down", "nobody", "no answer"), &settings, back));
        assert!(state.update(Vec::new(), &settings, at(60)));
        let told: Vec<serde_json::Value> =
            state.pending.iter().map(|told| serde_json::from_str(&told.body).expect("JSON")).collect();
        let kinds: Vec<&str> = told.iter().filter_map(|told| told["type"].as_str()).collect();
        let raised = "alert.raised";
        assert_eq!(kinds, [raised, raised, raised, raised, "alert.cleared"]);
        assert_eq!(told[2]["data"]["who_must_act"], "operator");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_does_not_answer_is_a_store_that_takes_no_mail() {
        let hangs = std::future::pending::<Result<Status, String>>();
        let found = conditions(&soon(hangs).await, &Thresholds::default(), None, NOW);
        assert_eq!(found[0].alert, "store");
        assert!(found[0].reason.contains("the queue has not answered for 10 s"), "{}", found[0].reason);
    }

    #[test]
    fn an_alert_is_raised_once_and_cleared_once_whatever_flickers() {
        let settings = settings("");
        let held = |number: u64| {
            let mut status = status();
            status.queue.held = number;
            conditions(&Ok(status), &Thresholds::default(), None, NOW)
        };
        let mut state = State::default();
        let at = |seconds: u64| NOW.after(Duration::from_secs(seconds));
        assert!(state.update(held(1), &settings, at(0)));
        assert!(!state.update(held(0), &settings, at(5)));
        assert!(!state.update(held(2), &settings, at(10)));
        assert!(!state.update(held(0), &settings, at(19)));
        assert!(state.update(held(0), &settings, at(21)));
        let kinds: Vec<serde_json::Value> =
            state.pending.iter().map(|told| serde_json::from_str(&told.body).expect("JSON")).collect();
        assert_eq!((&kinds[0]["type"], &kinds[1]["type"]), (&"alert.raised".into(), &"alert.cleared".into()));
        assert_eq!(kinds[0]["data"]["alert"], "held");
        for second in 0..2 * PENDING_MAX as u64 {
            state.update(held(second % 2), &settings, at(1_000 + 40 * second));
        }
        assert_eq!(state.pending.len(), PENDING_MAX);
    }
}
