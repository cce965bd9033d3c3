//! What operators do with queued mail: through the running relay, and on the queue of one that is
//! stopped. The same words and exit codes both ways.

mod support;

use std::process::Output;

use outpost::{
    clock::Clock,
    config::{self, Source},
    mail::envelope::{Envelope, Handling, Origin},
    queue::Queue,
    smtp::address::Mailbox,
};
use serde_json::Value;

use support::client::letter;
use support::ports;
use support::relay::Relay;
use support::service::Service;

/// A relay whose upstream isn't there, so that mail stays.
fn service() -> Service {
    Service::mailer()
        .set("smtp_relay_server", "127.0.0.1")
        .set("smtp_relay_port", ports::free())
        .set("smtp_relay_tls", "none")
        .set("smtp_retry", "1h..2h")
}

/// Takes a message; returns its queue id.
fn send(relay: &Relay, sender: &str, recipient: &str) -> String {
    let reply = relay.client().send(sender, &[recipient], &letter("x", 100)).expect("it is taken");
    reply.trim().rsplit(' ').next().expect("an id").to_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn list(relay: &Relay, more: &[&str]) -> Vec<Value> {
    let told = relay.told(&[&["queue", "list", "--json", "--all"], more].concat());
    let list: Value = serde_json::from_str(&told).expect("JSON");
    list["items"].as_array().expect("items").clone()
}

/// The verbs on single messages, whichever way they go.
fn each_verb_works(relay: &Relay, ids: &[String]) {
    let [kept, returned, gone] = ids else { panic!("three messages") };
    assert_eq!(relay.told(&["queue", "hold", kept]), format!("{kept}: held\n"));
    assert!(relay.told(&["queue", "show", kept]).contains("held by the operator"));
    let refused = relay.cli(&["queue", "retry", kept]);
    assert!(code(&refused) == 75 && said(&refused).contains("release it"), "{}", said(&refused));
    assert_eq!(relay.told(&["queue", "release", kept]), format!("{kept}: released\n"));
    assert_eq!(relay.told(&["queue", "retry", kept]), format!("{kept}: tried again\n"));
    assert!(relay.told(&["queue", "cat", kept]).contains("Subject:"));
    assert_eq!(relay.told(&["queue", "delete", gone]), format!("{gone}: deleted\n"));
    let absent = relay.cli(&["queue", "cat", gone]);
    assert_eq!((code(&absent), said(&absent).contains("no such message")), (65, true), "{}", said(&absent));
    let told = relay.told(&["queue", "show", gone]);
    assert!(told.contains("gone") && told.contains("deleted by the operator"), "{told}");

    // A held one can be returned, too.
    relay.told(&["queue", "hold", returned]);
    let told = relay.told(&["queue", "bounce", returned, "--reason", "the wrong list"]);
    assert_eq!(told, format!("{returned}: returned to app@sender.example\n"));
    assert_eq!(code(&relay.cli(&["queue", "cat", returned])), 65);
    let reports = list(relay, &["--sender", "<>"]);
    assert_eq!((reports.len(), &reports[0]["recipients"][0]["address"]), (1, &"app@sender.example".into()));
    let report = reports[0]["id"].as_str().expect("an id");
    let text = relay.told(&["queue", "cat", report]);
    for words in ["returned by the operator of this relay: the wrong list", "Action: failed", "Status: 5.0.0"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("Remote-MTA"), "no upstream had a say: {text}");

    // Nobody is there to hear of a report.
    let refused = relay.cli(&["queue", "bounce", report]);
    assert!(
        code(&refused) == 75 && said(&refused).contains("no sender to return it to"),
        "{}",
        said(&refused)
    );
    relay.told(&["queue", "delete", report]);
    let ids: Vec<Value> = list(relay, &[]).into_iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, [Value::from(kept.as_str())]);
}

fn three(relay: &Relay) -> Vec<String> {
    (0..3).map(|_| send(relay, "app@sender.example", "user@rcpt.example")).collect()
}

#[test]
fn each_verb_works_through_the_running_relay() {
    let relay = Relay::start(&service());
    let ids = three(&relay);
    each_verb_works(&relay, &ids);
    let events = support::http::get(relay.admin, &format!("/api/v1/events?id={}", ids[1])).json();
    let bounced = events["items"].as_array().expect("items").iter().find(|event| event["event"] == "bounced");
    let bounced = bounced.expect("an event");
    assert_eq!(bounced["recipient"], "user@rcpt.example");
    assert!(bounced["reply"].as_str().is_some_and(|reply| reply.contains("the wrong list")), "{bounced}");
}

#[test]
fn each_verb_works_on_the_queue_of_a_stopped_relay_also_while_its_file_is_broken() {
    let mut relay = Relay::start(&service());
    let ids = three(&relay);
    relay.terminate();
    std::fs::write(relay.home.path("dotcloud.yml"), "mailer: [broken").expect("a file");
    each_verb_works(&relay, &ids);
    relay.home.write(&[&service()
        .set("smtp_listen", format!("127.0.0.1:{}", relay.smtp))
        .set("smtp_admin_listen", format!("127.0.0.1:{}", relay.admin))]);
    relay.up();
    let ids_now: Vec<Value> = relay.queue().into_iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids_now, [Value::from(ids[0].as_str())], "what was done without it, it knows");
}

#[test]
fn many_are_meant_only_after_it_was_said_how_many() {
    let relay = Relay::start(&service());
    for sender in ["a@one.example", "b@one.example", "c@two.example"] {
        send(&relay, sender, "user@rcpt.example");
    }
    for action in ["hold", "release", "retry", "bounce", "delete"] {
        let refused = relay.cli(&["queue", action, "--sender", "@one.example"]);
        let words = said(&refused);
        assert!(
            code(&refused) == 64 && words.contains("2 messages are meant") && words.contains("--yes"),
            "{words}"
        );
        assert_eq!(relay.told(&["queue", action, "--all", "--dry-run"]), "3 messages are meant.\n");
    }
    assert_eq!(relay.status()["queue"]["held"], 0, "nothing was done");
    assert_eq!(relay.told(&["queue", "hold", "--sender", "@one.example", "--yes"]), "2 messages held\n");
    assert_eq!(
        relay.told(&["queue", "hold", "--sender", "@none.example", "--yes"]),
        "No message is meant.\n"
    );
    // Those that can't be tried are named, and the rest is.
    let some = relay.cli(&["queue", "retry", "--all", "-y", "--json"]);
    let outcome: Value = serde_json::from_slice(&some.stdout).expect("JSON");
    assert_eq!((code(&some), &outcome["done"]), (75, &1.into()), "{}", said(&some));
    assert_eq!(outcome["failed"].as_array().map(Vec::len), Some(2));
    // What is being tried at this moment can't be returned.
    support::wait::until_true("the one has been tried again", || relay.status()["queue"]["active"] == 0);
    // The reports that it brings forth are not meant.
    assert_eq!(relay.told(&["queue", "bounce", "--all", "--yes"]), "3 messages returned\n");
    let senders: Vec<Value> = relay.queue().into_iter().map(|item| item["sender"].clone()).collect();
    assert_eq!(senders, ["", "", ""]);
    let nothing =
        support::http::request("POST", relay.admin, "/api/v1/queue?action=delete").expect("an answer");
    assert_eq!(nothing.status, 400, "without a word on which nothing is deleted");
}

/// Also of a relay that is stopped, which knows its upstreams all the same.
#[test]
fn many_are_meant_by_their_age_and_by_the_upstream_that_they_wait_for() {
    let upstream = |name: &str, domain: &str| {
        format!(
            "\n      - {{name: {name}, server: 127.0.0.1, port: {}, tls: none, recipients: {domain}}}",
            ports::free()
        )
    };
    let relays = upstream("east", "east.example") + &upstream("west", "west.example");
    let mut relay = Relay::start(&Service::mailer().set("smtp_relays", relays).set("smtp_retry", "1h..2h"));
    let east = send(&relay, "a@one.example", "user@east.example");
    support::wait::until_true("it is three seconds old", || list(&relay, &["--older-than", "3s"]).len() == 1);
    let west = send(&relay, "a@one.example", "user@west.example");
    let nowhere = send(&relay, "a@one.example", "user@nowhere.example");
    let ids = |relay: &Relay, filter: &[&str]| -> Vec<Value> {
        list(relay, filter).into_iter().map(|item| item["id"].clone()).collect()
    };
    assert_eq!(ids(&relay, &["--older-than", "3s"]), [east.as_str()]);
    assert_eq!(relay.told(&["queue", "hold", "--older-than", "3s", "--yes"]), "1 message held\n");
    assert_eq!(relay.told(&["queue", "hold", "--older-than", "1h", "--yes"]), "No message is meant.\n");
    assert_eq!(ids(&relay, &["--state", "held"]), [east.as_str()]);
    relay.told(&["queue", "release", &east]);
    let look = |relay: &Relay| {
        assert_eq!(ids(relay, &["--upstream", "east"]), [east.as_str()]);
        assert_eq!(ids(relay, &["--upstream", "west"]), [west.as_str()]);
        assert_eq!(ids(relay, &["--upstream", ""]), [nowhere.as_str()], "whom none serves");
        assert_eq!(ids(relay, &["--upstream", "none such"]), Vec::<Value>::new());
    };
    look(&relay);
    assert_eq!(relay.told(&["queue", "retry", "--upstream", "west", "--dry-run"]), "1 message is meant.\n");
    relay.terminate();
    look(&relay);
    assert_eq!(relay.told(&["queue", "delete", "--upstream", "west", "--yes"]), "1 message deleted\n");
    let mut left = ids(&relay, &[]);
    left.sort_by_key(Value::to_string);
    assert_eq!(left, [east.as_str(), nowhere.as_str()]);
}

#[test]
fn a_queue_in_use_whose_relay_does_not_answer_is_left_alone() {
    let relay = Relay::start(&service());
    let data = relay.whereabouts().into_iter().find_map(|arg| arg.strip_prefix("--data=").map(str::to_owned));
    let socket = std::path::PathBuf::from(data.expect("a directory")).join("admin.sock");
    std::fs::remove_file(&socket).expect("a socket");
    let refused = relay.cli(&["queue", "list"]);
    let words = said(&refused);
    assert!(
        code(&refused) == 75 && words.contains("in use by process") && words.contains("nobody answers"),
        "{words}"
    );
    let nowhere = relay.home.path("nowhere");
    let refused =
        support::relay::outpost().args(["queue", "list", "--data"]).arg(&nowhere).output().expect("it runs");
    assert!(code(&refused) == 69 && said(&refused).contains("no queue in"), "{}", said(&refused));
    assert!(!nowhere.exists(), "nothing is made by looking");
}

#[test]
fn five_thousand_are_acted_on_with_a_handful_of_requests() {
    const MANY: usize = 5_000;
    let service = service();
    let mut relay = Relay::start(&service);
    relay.terminate();
    let data = relay.whereabouts().into_iter().find_map(|arg| arg.strip_prefix("--data=").map(str::to_owned));
    fill(&std::path::PathBuf::from(data.expect("a directory")), MANY);
    assert_eq!(relay.told(&["queue", "hold", "--all", "--yes"]), format!("{MANY} messages held\n"));
    relay.up();
    assert_eq!(relay.status()["queue"]["held"], MANY);
    let told = relay.told(&["queue", "delete", "--state", "held", "--yes", "--json"]);
    let outcome: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((&outcome["done"], relay.queue().len()), (&MANY.into(), 0));
}

/// Puts messages into the queue of a stopped relay.
fn fill(data: &std::path::Path, number: usize) {
    let source = Source { data: Some(data.to_owned()), ..Source::default() };
    let text = "mailer: {type: smtp, config: {smtp_relay_server: up.example}}";
    let settings = config::parse(text, "dotcloud.yml", &source, &|_| None).expect("settings").settings;
    let (queue, writer) = Queue::open(&settings.queue, Clock::System).expect("a queue");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let accepting: Vec<_> = (0..number)
            .map(|_| {
                let mut incoming = queue.begin().expect("room");
                incoming.push(b"Subject: x\r\n\r\nx\r\n");
                let envelope = Envelope {
                    reverse_path: Mailbox::parse("app@sender.example").expect("an address").into(),
                    recipients: vec![Mailbox::parse("user@rcpt.example").expect("an address").into()],
                    handling: Handling::default(),
                };
                let facts = incoming.facts().expect("a header");
                tokio::spawn(incoming.commit(envelope, Origin::default(), facts))
            })
            .collect();
        for accepted in accepting {
            accepted.await.expect("no panic").expect("a receipt");
        }
    });
    drop(runtime);
    drop(queue);
    writer.join();
}
