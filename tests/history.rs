//! What happened to a message is found after it left: from the running relay, from the stopped one, after a kill,
//! and by somebody who follows it over a restart.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use support::client::{Load, message_with};
use support::relay::{Relay, outpost};
use support::service::Service;
use support::strace::Injection;
use support::upstream::Upstream;
use support::{http, wait};

const PASSWORD: &str = "upstream-sesame-4711";

fn relay(upstream: &Upstream) -> Relay {
    Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0))
}

/// Sends a message and waits until it has left; its id.
fn deliver(relay: &Relay, upstream: &Upstream, token: &str) -> String {
    let before = upstream.arrived();
    let said = relay.client().send_token(token).expect("it is taken");
    wait::until_true("it is delivered", || upstream.arrived() > before);
    relay.wait_for_empty_queue();
    said.trim().rsplit(' ').next().expect("an id").to_owned()
}

/// The events of a message by `outpost logs`.
fn logged(relay: &Relay, id: &str) -> Vec<Value> {
    let lines = relay.told(&["logs", "--json", id]);
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().expect("a kind")).collect()
}

#[test]
fn what_happened_is_found_after_it_left_after_a_restart_and_while_stopped() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = relay(&upstream);
    let id = deliver(&relay, &upstream, "one");
    let other = deliver(&relay, &upstream, "two");
    let look = |relay: &Relay| {
        let events = logged(relay, &id);
        assert_eq!(kinds(&events), ["received", "delivered"]);
        let delivered = &events[1];
        assert_eq!((&delivered["attempt"], &delivered["tls"]), (&1.into(), &"TLSv1.3".into()));
        assert!(delivered["reply"].as_str().is_some_and(|reply| reply.starts_with("250")), "{delivered}");
        assert!(delivered["time"].is_string() && delivered["upstream"].is_string());
        // In lines for people, of both, oldest first.
        let lines = relay.told(&["logs"]);
        assert_eq!(lines.lines().count(), 4, "{lines}");
        assert!(
            lines.lines().nth(1).is_some_and(|line| line.contains(&format!(" delivered id={id} "))),
            "{lines}"
        );
        assert_eq!(relay.told(&["logs", "--limit=1"]).lines().count(), 1);
        assert_eq!(relay.told(&["logs", "--event=delivered", "--since=1h"]).lines().count(), 2);
        assert_eq!(relay.told(&["logs", &format!("--id={other}")]).lines().count(), 2);
    };
    let show = |relay: &Relay| {
        let shown: Value =
            serde_json::from_str(&relay.told(&["queue", "show", "--json", &id])).expect("JSON");
        assert_eq!(
            (&shown["state"], &shown["recipients"][0]["state"]),
            (&"gone".into(), &"delivered".into())
        );
        assert_eq!(shown["recipients"][0]["attempts"], 1);
        assert_eq!(shown["history"].as_array().map(Vec::len), Some(2));
        let words = relay.told(&["queue", "show", &id]);
        assert!(words.contains("gone") && words.contains("tls=TLSv1.3"), "{words}");
    };
    look(&relay);
    show(&relay);
    relay.terminate();
    look(&relay);
    relay.up();
    look(&relay);
    show(&relay);
    // Page by page, each event once.
    let (mut seen, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let page = http::get(relay.admin, &format!("/api/v1/events?limit=3&cursor={cursor}")).json();
        seen.extend(page["items"].as_array().expect("items").iter().map(|event| event["seq"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = next.to_owned();
    }
    assert_eq!(seen.len(), 4);
    relay.terminate();
}

#[test]
fn each_attempt_at_each_recipient_is_found() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| {
        behaviour.recipients.insert("busy@example.test".into(), "450 4.2.1 busy, says the test".into());
        behaviour.recipients.insert("late@example.test".into(), "451 4.7.1 greylisted, says the test".into());
        behaviour
            .recipients
            .insert("gone@example.test".into(), "550 5.1.1 no such user, says the test".into());
    });
    let mut relay = relay(&upstream);
    let to = ["busy@example.test", "gone@example.test", "late@example.test", "quick@example.test"];
    let said = relay.client().send("app@example.test", &to, &message_with("many")).expect("it is taken");
    let id = said.trim().rsplit(' ').next().expect("an id").to_owned();
    let of = |relay: &Relay, who: &str| -> Vec<(String, u64, String)> {
        let events = logged(relay, &id)
            .into_iter()
            .filter(|event| event["recipient"] == format!("{who}@example.test"));
        events
            .map(|event| {
                let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                (text("event"), event["attempt"].as_u64().unwrap_or_default(), text("reply"))
            })
            .collect()
    };
    wait::until_true("the one was tried twice", || of(&relay, "busy").len() == 2);
    upstream.set(|behaviour| drop(behaviour.recipients.remove("busy@example.test")));
    wait::until_true("it is reached", || of(&relay, "busy").len() == 3);
    upstream.set(|behaviour| behaviour.recipients.clear());
    relay.wait_for_empty_queue();
    let look = |relay: &Relay| {
        let busy = of(relay, "busy");
        for (number, (event, attempt, reply)) in (1..).zip(&busy) {
            let expected = if number == 3 { ("delivered", "250") } else { ("deferred", "450 4.2.1 busy") };
            assert!(*event == expected.0 && *attempt == number && reply.starts_with(expected.1), "{busy:?}");
        }
        let late = of(relay, "late");
        let (last, others) = late.split_last().expect("some");
        assert!(others.len() >= 2 && last.0 == "delivered", "{late:?}");
        assert!(
            others.iter().all(|(event, _, reply)| event == "deferred" && reply.contains("greylisted")),
            "{late:?}"
        );
        assert!((1..).zip(&late).all(|(number, (_, attempt, _))| *attempt == number), "{late:?}");
        let gone = of(relay, "gone");
        assert!(gone.len() == 1 && gone[0].0 == "bounced" && gone[0].2.starts_with("550 5.1.1"), "{gone:?}");
        let quick = of(relay, "quick");
        assert!(quick.len() == 1 && (quick[0].0.as_str(), quick[0].1) == ("delivered", 1), "{quick:?}");
        let shown: Value =
            serde_json::from_str(&relay.told(&["queue", "show", "--json", &id])).expect("JSON");
        let states: Vec<_> =
            shown["recipients"].as_array().expect("recipients").iter().map(|r| &r["state"]).collect();
        assert_eq!(states, ["delivered", "bounced", "delivered", "delivered"], "{shown}");
        assert_eq!(
            shown["history"].as_array().map(Vec::len),
            Some(1 + busy.len() + late.len() + 2),
            "{shown}"
        );
    };
    look(&relay);
    relay.kill9();
    relay.up();
    look(&relay);
    relay.terminate();
}

#[test]
fn it_costs_no_sync_of_its_own() {
    const MESSAGES: usize = 30;
    let upstream = Upstream::start(PASSWORD);
    let mut relay = relay(&upstream);
    // The file is synced when it is made.
    deliver(&relay, &upstream, "first");
    let log = relay.home.path("syncs");
    let watching = Injection::none(relay.pid(), "fsync,fdatasync", &log);
    for number in 0..MESSAGES {
        deliver(&relay, &upstream, &format!("token-{number}"));
    }
    drop(watching);
    let log = std::fs::read_to_string(log).expect("strace's log");
    let of = |file: &str| log.lines().filter(|line| line.contains(file)).count();
    assert!(of("/queue.journal") >= MESSAGES, "each was synced:\n{log}");
    assert_eq!(of("/history.sqlite"), 0, "{log}");
    let told = relay.told(&["logs", "--event=delivered"]);
    assert_eq!(told.lines().count(), MESSAGES + 1, "and remembered");
    relay.terminate();
}

#[test]
fn a_kill_takes_no_history_of_what_was_settled() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = relay(&upstream);
    for round in 0..3 {
        let ids: Vec<String> = (0..20)
            .map(|number| {
                let said =
                    relay.client().send_token(&format!("token-{round}-{number}")).expect("it is taken");
                said.trim().rsplit(' ').next().expect("an id").to_owned()
            })
            .collect();
        relay.kill9();
        relay.up();
        relay.wait_for_empty_queue();
        for id in ids {
            let events = logged(&relay, &id);
            assert!(kinds(&events).contains(&"delivered"), "{id}: {events:?}");
        }
    }
    relay.terminate();
}

#[test]
fn a_kill_behind_a_250_takes_no_word_of_it_and_of_what_was_not_accepted_there_is_none() {
    let upstream = Upstream::stopped(PASSWORD);
    let mut relay = relay(&upstream);
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let load = Load::start(relay.smtp, &format!("round-{round}"), 3, 1_000);
        wait::until_true("some are acknowledged", || load.acknowledged() > 2 + round);
        relay.kill9();
        acknowledged.extend(load.finish());
        relay.up();
    }
    let events = relay.told(&["logs", "--json", "--event=received", "--limit=10000"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: BTreeSet<&str> =
        events.iter().map(|event| event["message_id"].as_str().expect("a Message-ID")).collect();
    let untold: Vec<&String> = acknowledged
        .iter()
        .filter(|token| !told.contains(format!("<{token}@client.test>").as_str()))
        .collect();
    assert!(untold.is_empty(), "{untold:?} of {} are not remembered", acknowledged.len());
    assert!(acknowledged.len() > 30, "{} acknowledged only", acknowledged.len());
    // Nothing has left, so all that is remembered is there.
    let queue = relay.queue();
    let queued: BTreeSet<&str> = queue.iter().map(|item| item["id"].as_str().expect("an id")).collect();
    let unknown =
        events.iter().filter(|event| !queued.contains(event["id"].as_str().expect("an id"))).count();
    assert_eq!(unknown, 0, "of {}", events.len());
    relay.terminate();
}

#[test]
fn a_damaged_history_stops_no_mail_and_is_set_aside() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = relay(&upstream);
    deliver(&relay, &upstream, "one");
    relay.terminate();
    let file = relay.data().join("queue/history.sqlite");
    std::fs::write(&file, "this is no database, though it is long enough to be taken for one".repeat(200))
        .expect("it can be written");
    relay.up();
    let id = deliver(&relay, &upstream, "two");
    assert_eq!(kinds(&logged(&relay, &id)), ["received", "delivered"]);
    assert!(file.with_file_name("history.damaged.sqlite").exists());
    let metrics = http::get(relay.admin, "/metrics").text();
    assert!(metrics.contains("outpost_history_set_aside 1"), "{metrics}");
    relay.terminate();
}

/// A follower and the lines that it has said.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn of(relay: &Relay) -> Self {
        let mut command = outpost();
        command.args(["logs", "-f", "--event=delivered"]).args(relay.whereabouts());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (say, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        Self { child, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("a line")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_follower_sees_each_delivery_once_over_a_restart() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = relay(&upstream);
    let first = deliver(&relay, &upstream, "one");
    let follower = Follower::of(&relay);
    assert!(follower.next().contains(&first));
    let second = deliver(&relay, &upstream, "two");
    assert!(follower.next().contains(&second));
    relay.terminate();
    relay.up();
    let third = deliver(&relay, &upstream, "three");
    assert!(follower.next().contains(&third));
    relay.terminate();
}

#[test]
fn a_follower_whose_reader_has_gone_ends_quietly_although_nothing_happens() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = relay(&upstream);
    deliver(&relay, &upstream, "one");
    let mut command = outpost();
    command.args(["logs", "-f"]).args(relay.whereabouts()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut line = String::new();
    // As `| head -1` does.
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("a line");
    assert!(line.contains("received"), "{line}");
    drop(out);
    assert!(wait::ended(&mut child), "it still follows");
    let output = child.wait_with_output().expect("it has ended");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    relay.terminate();
}

#[test]
fn what_one_upstream_was_tried_with_is_picked_by_its_name() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = relay(&upstream);
    let id = deliver(&relay, &upstream, "one");
    let name = relay.status()["upstreams"][0]["name"].as_str().expect("a name").to_owned();
    let lines = |upstream: &str| {
        relay.told(&["logs", "--upstream", upstream]).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let told = lines(&name);
    assert!(told.len() == 1 && told[0].contains("delivered") && told[0].contains(&id), "{told:?}");
    assert_eq!(lines("another"), Vec::<String>::new());
    relay.terminate();
}
