//! Mail handed in over HTTP: as a message or in parts, held to what holds for SMTP, once for each key, durable before
//! the answer.

mod support;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use support::{
    http::{self, Answer},
    ports,
    relay::Relay,
    service::Service,
    upstream::Upstream,
    wait,
};

const MESSAGES: &str = "/api/v1/messages";
const RAW: (&str, &str) = ("Content-Type", "message/rfc822");
const JSON: (&str, &str) = ("Content-Type", "application/json");
const ENVELOPE: &str = "/api/v1/messages?from=app@sender.example&to=user@rcpt.example";

/// A relay whose upstream is never there: what is taken stays in the queue.
fn mailer() -> Service {
    Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free())
}

fn raw(relay: &Relay, path: &str, fields: &[(&str, &str)], content: &str) -> Answer {
    http::send("POST", relay.admin, path, &[&[RAW], fields].concat(), content.as_bytes())
}

fn parts(relay: &Relay, fields: &[(&str, &str)], message: &Value) -> Answer {
    http::send("POST", relay.admin, MESSAGES, &[&[JSON], fields].concat(), message.to_string().as_bytes())
}

#[track_caller]
fn id(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().expect("an id").to_owned()
}

#[track_caller]
fn refused(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains(words)), "{}", answer.text());
}

fn content(relay: &Relay, id: &str) -> String {
    http::get(relay.admin, &format!("/api/v1/queue/{id}/content")).text()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn a_message_is_queued_as_it_came_and_traced_like_any_other() {
    let relay = Relay::start(&mailer());
    let path = format!("{ENVELOPE}&to=%22john%20doe%22@rcpt.example&to=user@rcpt.example");
    let queued = id(&raw(&relay, &path, &[], "Subject: x\r\nFrom: a@b.example\r\n\r\n.\r\n..\r\nend"));
    let item = http::get(relay.admin, &format!("/api/v1/queue/{queued}")).json();
    assert_eq!(item["sender"], "app@sender.example");
    let recipients: Vec<_> =
        item["recipients"].as_array().expect("some").iter().map(|to| to["address"].clone()).collect();
    assert_eq!(recipients, ["user@rcpt.example", "\"john doe\"@rcpt.example"]);
    assert_eq!(item["history"][0]["event"], "received");
    let content = content(&relay, &queued);
    let received =
        format!("Received: from api ([127.0.0.1])\r\n\tby relay.test (Outpost) with HTTP id {queued};");
    assert!(content.starts_with(&received), "{content}");
    assert!(content.contains("\r\nDate: ") && content.contains("\r\nMessage-ID: <"), "{content}");
    assert!(content.ends_with("\r\n\r\n.\r\n..\r\nend"), "{content}");
    // Lines of the log gather for a moment.
    let line = format!("received id={queued} sender=app@sender.example");
    support::wait::until_true("the log tells of it", || relay.log().contains(&line));
}

#[test]
fn parts_are_composed_and_arrive_upstream() {
    const PASSWORD: &str = "upstream-sesame-4711";
    let upstream = Upstream::start(PASSWORD);
    let relay =
        Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0));
    let message = json!({
        "from": "Shop <shop@sender.example>", "to": "User <user@rcpt.example>", "bcc": ["hidden@rcpt.example"],
        "subject": "Grüße", "text": "Hallo\n", "html": "<p>Hallo</p>",
        "attachments": [{ "filename": "a.bin", "content": STANDARD.encode([0, 1, 2, 255]) }],
    });
    let queued = id(&parts(&relay, &[], &message));
    wait::until_true("it is delivered", || upstream.arrived() > 0);
    relay.wait_for_empty_queue();
    let events = http::get(relay.admin, &format!("/api/v1/events?id={queued}")).json();
    let delivered: Vec<_> =
        events["items"].as_array().expect("events").iter().filter(|e| e["event"] == "delivered").collect();
    assert_eq!(delivered.len(), 2, "{events}");
}

#[test]
fn what_smtp_refuses_is_refused_here_in_the_same_words() {
    let service = mailer()
        .set("smtp_senders", "[sender.example]")
        .set("smtp_max_recipients", 2)
        .set("smtp_max_message_size", "1KB");
    let relay = Relay::start(&service);
    let message = "Subject: x\r\n\r\nx\r\n";
    let to = |path: &str, content: &str| raw(&relay, &format!("{MESSAGES}{path}"), &[], content);
    refused(&to("?from=a@other.example&to=b@c.example", message), 403, "is not among smtp_senders");
    refused(&to("?from=a@sender.example&to=b", message), 422, "");
    let many = to("?from=a@sender.example&to=b@c.example&to=nobody&to=d@c.example&to=e@c.example", message);
    refused(&many, 422, "");
    let named: Vec<_> =
        many.json()["recipients"].as_array().expect("some").iter().map(|r| r["recipient"].clone()).collect();
    assert_eq!(named, ["nobody", "e@c.example"], "{}", many.text());
    refused(
        &raw(&relay, ENVELOPE, &[], &format!("Subject: x\r\n\r\n{}", "x".repeat(2_000))),
        413,
        "larger than",
    );
    refused(&raw(&relay, ENVELOPE, &[], "Subject: x\n\nx\n"), 422, "");
    refused(&to("?from=a@sender.example", message), 400, "the envelope is missing");
    refused(&to("?to=b@c.example", message), 400, "the envelope is missing");
    refused(&to("?from=a@sender.example&to=b@c.example%3E%0D%0ARCPT%20TO:%3Cd@e.example", message), 422, "");
    refused(&http::send("POST", relay.admin, ENVELOPE, &[], message.as_bytes()), 415, "Content-Type");
    refused(
        &parts(&relay, &[], &json!({ "from": "a@sender.example", "text": "x" })),
        400,
        "nobody to send it to",
    );
    refused(
        &parts(&relay, &[], &json!({ "from": "a@sender.example", "to": "b@c.example", "txt": 1 })),
        400,
        "txt",
    );
    assert!(relay.queue().is_empty());
    assert_eq!(id(&raw(&relay, &format!("{MESSAGES}?from=&to=b@c.example"), &[], message)).len(), 13);
    let metrics = http::get(relay.admin, "/metrics").text();
    assert!(metrics.contains("outpost_received_total{result=\"accepted\"} 1"), "{metrics}");
    assert!(metrics.contains("outpost_received_total{result=\"rejected\"} 2"), "{metrics}");
}

#[test]
fn an_app_uses_its_login_and_gets_no_further_with_it() {
    let service = mailer()
        .set("smtp_admin_password", "operator-4711")
        .set("smtp_users", "{shop: {password: shop-4711, senders: shop.example, rate_limit: 2/hour}}");
    let relay = Relay::start(&service);
    let send = |path: &str, authorization: &str| {
        raw(&relay, path, &[("Authorization", authorization)], "Subject: x\r\n\r\nx\r\n")
    };
    let path = "/api/v1/messages?from=a@shop.example&to=b@c.example";
    let shop = basic("shop", "shop-4711");
    for _ in 0..2 {
        id(&send(path, &shop));
    }
    refused(&send(path, &shop), 429, "limit of this login");
    refused(&send(ENVELOPE, &shop), 403, "smtp_users.shop.senders");
    refused(&send(path, &basic("shop", "wrong")), 401, "");
    refused(&raw(&relay, path, &[], "Subject: x\r\n\r\nx\r\n"), 401, "smtp_admin_password");
    id(&send(ENVELOPE, &basic("", "operator-4711")));
    id(&send(ENVELOPE, "Bearer operator-4711"));
    let answer = http::send("GET", relay.admin, "/api/v1/queue", &[("Authorization", &shop)], b"");
    assert_eq!(answer.status, 401);
    let answer = http::send("GET", relay.admin, MESSAGES, &[("Authorization", &shop)], b"");
    assert_eq!(answer.status, 405);
    let status =
        http::send("GET", relay.admin, "/api/v1/queue", &[("Authorization", "Bearer operator-4711")], b"");
    let users: Vec<_> =
        status.json()["items"].as_array().expect("items").iter().map(|i| i["user"].clone()).collect();
    assert_eq!(users, [json!("shop"), json!("shop"), Value::Null, Value::Null]);
}

#[test]
fn another_sites_page_hands_in_nothing() {
    let relay = Relay::start(&mailer());
    let send = |fields: &[(&str, &str)]| raw(&relay, ENVELOPE, fields, "Subject: x\r\n\r\nx\r\n").status;
    assert_eq!(send(&[("Origin", "http://evil.example")]), 403);
    assert_eq!(send(&[("Sec-Fetch-Site", "cross-site")]), 403);
    assert!(relay.queue().is_empty());
}

#[test]
fn a_key_stands_for_one_message_over_a_kill_and_after_it_has_left() {
    let mut relay = Relay::start(&mailer());
    let send = |relay: &Relay, key: &str, text: &str| {
        raw(relay, ENVELOPE, &[("Idempotency-Key", key)], &format!("Subject: x\r\n\r\n{text}\r\n"))
    };
    let first = id(&send(&relay, "order-1", "one"));
    let again = send(&relay, "order-1", "one");
    assert_eq!(id(&again), first);
    assert!(again.head.to_ascii_lowercase().contains("\r\nidempotency-replayed: true"), "{}", again.head);
    refused(&send(&relay, "order-1", "two"), 422, "another message");
    assert_ne!(id(&send(&relay, "order-2", "one")), first);
    refused(&send(&relay, "", "one"), 400, "Idempotency-Key");
    let composed = json!({ "from": "a@b.example", "to": "c@d.example", "text": "x" });
    let third = id(&parts(&relay, &[("Idempotency-Key", "order-3")], &composed));
    relay.kill9();
    relay.up();
    assert_eq!(id(&send(&relay, "order-1", "one")), first);
    assert_eq!(id(&parts(&relay, &[("Idempotency-Key", "order-3")], &composed)), third);
    let deleted = http::request("DELETE", relay.admin, &format!("/api/v1/queue/{first}")).expect("an answer");
    assert_eq!(deleted.status, 200);
    assert_eq!(id(&send(&relay, "order-1", "one")), first);
    assert_eq!(relay.queue().len(), 2);

    // What was not accepted frees its key.
    refused(&send(&relay, "order-4", "bare\nnewline"), 422, "");
    id(&send(&relay, "order-4", "whole"));

    // A kill between the message and the word that it is there: the queue, or its history, knows.
    let file = relay.data().join("idempotency.jsonl");
    relay.kill9();
    let begun = std::fs::read_to_string(&file).expect("the keys").replace("\"done\"", "\"begun\"");
    std::fs::write(&file, begun).expect("it is written");
    relay.up();
    assert_eq!(id(&send(&relay, "order-1", "one")), first);
    assert_eq!(id(&parts(&relay, &[("Idempotency-Key", "order-3")], &composed)), third);
    assert_eq!(relay.queue().len(), 3);
}

#[test]
fn what_was_answered_202_survives_a_kill_and_a_large_message_takes_little_memory() {
    let mut relay = Relay::start(&mailer());
    let content = format!("Subject: large\r\n\r\n{}", "0123456789abcdef\r\n".repeat(1_000_000));
    let queued = id(&raw(&relay, ENVELOPE, &[], &content));
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("its status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 100_000, "{peak} kB at most, for a message of 18 MB");
    relay.kill9();
    relay.up();
    assert!(self::content(&relay, &queued).ends_with(&content["Subject: large\r\n".len()..]));
}

#[test]
fn a_fault_of_ours_is_503_and_says_when_to_come_again() {
    let relay = Relay::start(&mailer().set("smtp_queue_max_messages", 1));
    id(&raw(&relay, ENVELOPE, &[], "Subject: x\r\n\r\nx\r\n"));
    let full = raw(&relay, ENVELOPE, &[("Idempotency-Key", "k")], "Subject: x\r\n\r\nx\r\n");
    refused(&full, 503, "not enough storage");
    assert!(full.head.to_ascii_lowercase().contains("\r\nretry-after: "), "{}", full.head);
}
