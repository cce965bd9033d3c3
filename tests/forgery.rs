//! Nobody forges anything: what clients, load balancers and upstreams say, with everything in it that ends a
//! line, a value or a header somewhere, is one line an event in the log, one object in JSON, and no field of a
//! header or a report.

mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use support::bytes::{contains_word, field_name, header_fields};
use support::relay::Relay;
use support::service::Service;
use support::upstream::Upstream;
use support::{http, ports, programs, wait};

const PASSWORD: &str = "upstream-sesame-4711";

/// Whatever ends something somewhere, and what an attacker would have stand behind it.
const BREAKERS: [&str; 20] = [
    "\rX-Forged: yes",
    "\nX-Forged: yes",
    "\r\nX-Forged: yes",
    "\r\n\r\nX-Forged: yes",
    "\0X-Forged: yes",
    "\u{1b}[2J\u{1b}]0;forged\u{7}",
    "\u{7f}\u{8}\u{8}forged",
    "\u{85}X-Forged: yes",
    "\u{2028}X-Forged: yes",
    "\u{2029}X-Forged: yes",
    "\u{202e}degrof\u{2066}",
    "\u{200b}\u{feff}",
    "\"",
    "\\",
    "\" bounced id=FORGED sender=\"",
    " bounced id=FORGED",
    "\",\"event\":\"bounced\",\"id\":\"FORGED\",\"x\":\"",
    "\"}\n{\"event\":\"bounced\",\"id\":\"FORGED\"}",
    "); by relay.test (Outpost) with ESMTP id FORGED; (",
    "</td><script>forged</script>",
];

/// What may not stand in anything that people look at: controls, and what hides or reorders text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Each line is of people's words.
#[track_caller]
fn assert_plain(place: &str, text: &str) {
    for line in text.lines() {
        let shown = line.trim_end_matches('\r').replace('\t', " ");
        assert!(!shown.contains(is_hidden), "{place}: {line:?}");
    }
}

/// Says all of it at once, and hears all that is answered.
fn say(port: u16, octets: &[u8]) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a session");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    // It may end the conversation before it has heard everything.
    let _ = stream.write_all(octets);
    let _ = stream.shutdown(Shutdown::Write);
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    String::from_utf8_lossy(&heard).into_owned()
}

/// `xtext` of RFC 3461 §4, every octet encoded.
fn xtext(text: &str) -> String {
    text.bytes().map(|octet| format!("+{octet:02X}")).collect()
}

/// A dialog with this in every place that a client fills, one place each.
fn dialogs(number: usize, breaker: &str) -> Vec<String> {
    let quoted = breaker.replace('\\', "\\\\").replace('"', "\\\"");
    let (good, encoded) = (format!("r{number}@example.test"), xtext(breaker));
    let user = BASE64.encode(format!("dotcloud{breaker}"));
    let plain = BASE64.encode(format!("\0dotcloud{breaker}\0wrong"));
    let scram = BASE64.encode(format!("n,,n=dotcloud{breaker},r=abcdefghijkl"));
    // Whatever the client puts into its own header is its own; a line of its own is no forgery of ours.
    let value = breaker.replace(['\r', '\n'], "");
    let content = |token: &str| format!("X-Token: {token}\r\nSubject: token\r\n\r\nx\r\n.\r\nQUIT\r\n");
    let envelope = |mail: &str, rcpt: &str, token: &str| {
        format!(
            "EHLO app\r\nMAIL FROM:{mail}\r\nRCPT TO:{rcpt}\r\nDATA\r\n{}",
            content(&format!("{token}-{number}"))
        )
    };
    let sender = "<sender@example.test>";
    vec![
        format!(
            "EHLO app{breaker}\r\nMAIL FROM:{sender}\r\nRCPT TO:<{good}>\r\nDATA\r\n{}",
            content(&format!("ehlo-{number}"))
        ),
        format!(
            "HELO [192.0.2.1{breaker}]\r\nMAIL FROM:{sender}\r\nRCPT TO:<{good}>\r\nDATA\r\n{}",
            content(&format!("helo-{number}"))
        ),
        envelope(&format!("<sender{breaker}@example.test>"), &format!("<{good}>"), "mail"),
        envelope(&format!("<\"s{quoted}\"@example.test> SMTPUTF8"), &format!("<{good}>"), "quoted"),
        envelope(&format!("{sender} ENVID={encoded} RET=HDRS"), &format!("<{good}>"), "envid"),
        envelope(&format!("{sender} AUTH={encoded}"), &format!("<{good}>"), "auth"),
        envelope(&format!("{sender} X{breaker}=1 BODY={breaker}"), &format!("<{good}>"), "parameter"),
        envelope(sender, &format!("<user{breaker}@example.test>"), "rcpt"),
        envelope(sender, &format!("<\"u{quoted}\"@example.test>"), "quoted-rcpt"),
        envelope(&format!("{sender} SMTPUTF8"), &format!("<ü{breaker}@example.test>"), "utf8"),
        envelope(sender, &format!("<{good}> ORCPT=rfc822;{encoded} NOTIFY=FAILURE"), "orcpt"),
        envelope(sender, &format!("<{good}> ORCPT=utf-8;{encoded}"), "orcpt-utf8"),
        format!("EHLO app\r\nAUTH PLAIN {plain}\r\nQUIT\r\n"),
        format!("EHLO app\r\nAUTH LOGIN {user}\r\n{user}\r\nQUIT\r\n"),
        format!("EHLO app\r\nAUTH SCRAM-SHA-256 {scram}\r\nQUIT\r\n"),
        format!("EHLO app\r\nAUTH {breaker}\r\n{breaker}\r\nVRFY {breaker}\r\nQUIT\r\n"),
        format!(
            "EHLO app\r\nMAIL FROM:{sender}\r\nRCPT TO:<{good}>\r\nDATA\r\nX-Token: header-{number}\r\n\
             Subject: a{value}b\r\nMessage-ID: <m{value}@x>\r\nFrom: \"f{value}\" {sender}\r\n\
             Received: from x{value}\r\n\r\nx\r\n.\r\nQUIT\r\n"
        ),
    ]
}

/// What stands behind `outpost::mail: ` in a line of the log: the event's name and its fields.
#[track_caller]
fn event_of(line: &str) -> BTreeMap<String, String> {
    const FIELDS: [&str; 14] = [
        "id",
        "sender",
        "recipient",
        "upstream",
        "reply",
        "attempt",
        "next_attempt",
        "delay_ms",
        "client",
        "user",
        "size",
        "message_id",
        "uncertain",
        "tls",
    ];
    let (kind, mut rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut fields = BTreeMap::from([("event".to_owned(), kind.to_owned())]);
    while !rest.is_empty() {
        let (name, value) =
            rest.split_once('=').unwrap_or_else(|| panic!("no field at {rest:?} of {line:?}"));
        assert!(FIELDS.contains(&name), "a field {name:?} of {line:?}");
        let (value, after) = match value.strip_prefix('"') {
            Some(open) => unquoted(open).unwrap_or_else(|| panic!("no end of {name} in {line:?}")),
            None => {
                value.split_once(' ').map_or((value.to_owned(), ""), |(word, after)| (word.to_owned(), after))
            }
        };
        rest = after.strip_prefix(' ').unwrap_or(after);
        assert!(fields.insert(name.to_owned(), value).is_none(), "{name} stands twice in {line:?}");
    }
    fields
}

/// What Rust's quotes mean, up to the closing one, and what stands behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                '0' => value.push('\0'),
                'u' => {
                    let (digits, _) = text[at + 3..].split_once('}')?;
                    value.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    chars.by_ref().find(|(_, c)| *c == '}')?;
                }
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

/// The same out of JSON.
fn event_of_json(event: &Value) -> BTreeMap<String, String> {
    let event = event.as_object().expect("an object");
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    event
        .iter()
        .filter(|(name, _)| !["time", "seq"].contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), plain(value)))
        .collect()
}

/// All events, as the log tells them; every line of it is one of ours.
fn logged(relay: &Relay) -> Vec<BTreeMap<String, String>> {
    let log = relay.log();
    assert_plain("the log", &log);
    let mut events = Vec::new();
    for line in log.lines() {
        let (time, rest) = line.split_once(' ').unwrap_or((line, ""));
        let level = rest.split_whitespace().next().unwrap_or_default();
        // What is said of the settings at start has a second line.
        let ours = time.parse::<jiff::Timestamp>().is_ok()
            && ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"].contains(&level)
            || line.starts_with("  help: ");
        assert!(ours, "a line of somebody else's in the log: {line:?}");
        if let Some((_, event)) = line.split_once(" INFO outpost::mail: ") {
            events.push(event_of(event));
        }
    }
    events
}

fn all_events(relay: &Relay) -> Vec<Value> {
    let (mut events, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let answer = http::get(relay.admin, &format!("/api/v1/events?limit=1000&cursor={cursor}"));
        assert!(!answer.text().contains(is_hidden), "GET /api/v1/events: {:?}", answer.text());
        let page = answer.json();
        events.extend(page["items"].as_array().expect("items").clone());
        match page["next"].as_str() {
            Some(next) if next != cursor => next.clone_into(&mut cursor),
            _ => return events,
        }
    }
}

#[test]
fn nothing_that_clients_and_upstreams_say_forges_a_line_a_field_or_a_report() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| {
        for (number, breaker) in BREAKERS.iter().enumerate() {
            // A line of its own must be one of a reply, or nobody would take it for one.
            let words = breaker.replace('\n', "\n550-5.1.1 ");
            let reply =
                format!("550-5.1.1 no {words}\r\n550 5.1.1 such user{}", breaker.replace(['\r', '\n'], ""));
            it.recipients.insert(format!("r{number}@example.test"), reply);
        }
        it.greeting = Some(format!("554 5.7.1 no{}", BREAKERS.concat().replace(['\r', '\n'], "")));
    });
    let balanced = ports::free();
    let service = upstream.upstream_of(Service::mailer(), PASSWORD);
    let listen = format!(
        "['127.0.0.1:{}', {{address: '127.0.0.1:{balanced}', proxy_protocol: [127.0.0.1]}}]",
        service.smtp
    );
    let service = service
        .set("smtp_listen", listen)
        .set("smtp_networks", "[127.0.0.0/8, 198.18.0.0/15]")
        .set("smtp_breaker_bounces", 1000)
        .set("smtp_log_level", "outpost=trace");
    let relay = Relay::start(&service);

    // Each client has an address of its own, so that one's wrong password lets no other wait.
    let accepted: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = BREAKERS
            .iter()
            .enumerate()
            .map(|(number, breaker)| {
                let smtp = relay.smtp;
                scope.spawn(move || {
                    let mut accepted = 0;
                    for (place, dialog) in dialogs(number, breaker).iter().enumerate() {
                        let balancer = format!("PROXY TCP4 198.18.{number}.{place} 127.0.0.1 9 25\r\n");
                        let heard = say(balanced, format!("{balancer}{dialog}").as_bytes());
                        assert_plain("what a client hears", &heard);
                        assert!(!heard.contains("X-Forged: yes\r\n2"), "{heard}");
                        accepted += heard.matches("\n250 2.0.0 queued as ").count();
                    }
                    // The load balancer's own words; and a client that would be one.
                    say(
                        balanced,
                        format!("PROXY TCP4 198.18.0.1{breaker} 127.0.0.1 9 25\r\nEHLO a\r\n").as_bytes(),
                    );
                    say(smtp, format!("PROXY TCP4 198.18.0.1{breaker} 127.0.0.1 9 25\r\n").as_bytes());
                    say(smtp, format!("GET /{breaker} HTTP/1.1\r\n\r\n").as_bytes());
                    accepted
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client")).sum()
    });
    assert!(accepted > 4 * BREAKERS.len(), "{accepted} messages were accepted");

    // The greeting: trouble with the upstream, in the log and the status.
    wait::until_true("its trouble is told", || relay.status()["upstreams"][0]["state"] == "down");
    assert_plain("outpost status", &relay.told(&["status"]));
    assert!(!http::get(relay.admin, "/api/v1/status").text().contains(is_hidden));
    for command in [&["queue", "list"][..], &["queue", "list", "--json"], &["logs"]] {
        assert_plain(&command.join(" "), &relay.told(command));
    }
    for item in relay.queue().iter().take(60) {
        assert_plain("queue show", &relay.told(&["queue", "show", item["id"].as_str().expect("an id")]));
    }
    assert!(!http::get(relay.admin, "/").text().contains("<script>forged"), "the page runs what was sent");
    upstream.set(|it| it.greeting = None);
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();

    // The log and the API tell the same events, field by field.
    let told = wait::until("the history has all that the log has", || {
        let told = all_events(&relay);
        (told.len() == logged(&relay).len()).then_some(told)
    });
    let (mut log, mut json) = (logged(&relay), told.iter().map(event_of_json).collect::<Vec<_>>());
    log.sort();
    json.sort();
    for (log, json) in log.iter().zip(&json) {
        assert_eq!(log, json);
    }
    let count = |kind: &str| json.iter().filter(|event| event["event"] == kind).count();
    let reports = upstream.messages().iter().filter(|mail| contains_word(mail, "auto-replied")).count();
    assert_eq!(count("received"), accepted, "what was accepted, once each");
    let ids: HashSet<_> = json.iter().filter_map(|event| event.get("id")).collect();
    assert!(!ids.contains(&"FORGED".to_owned()), "{ids:?}");
    for line in relay.told(&["logs", "--json"]).lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(
            event["event"].is_string() && event["id"] != "FORGED" && !line.contains(is_hidden),
            "{line:?}"
        );
    }
    assert_plain("logs", &relay.told(&["logs"]));
    let metrics = http::get(relay.admin, "/metrics").text();
    assert!(!metrics.to_lowercase().contains("forged"), "{metrics}");

    // Headers and reports: as Python's email package reads them.
    assert!(reports > BREAKERS.len(), "{reports} reports");
    for mail in upstream.messages() {
        let fields = header_fields(&mail);
        let names: Vec<String> = fields.iter().map(|field| field_name(field)).collect();
        let text = String::from_utf8_lossy(&mail).into_owned();
        assert!(!names.contains(&"x-forged".to_owned()), "{text}");
        let is_report = contains_word(&mail, "Auto-Submitted: auto-replied");
        if !is_report {
            assert_eq!(names[0], "received", "{text}");
            let (trace, own) = (&fields[0], names.iter().filter(|name| *name == "received").count());
            assert!(own == 1 || text.contains("X-Token: header-") && own == 2, "{text}");
            assert!(!trace.contains("FORGED") || trace.contains('?'), "{trace:?}");
            assert_eq!(trace.matches(" id ").count(), 1, "{trace:?}");
            assert!(!trace.replace(['\n', '\t'], " ").contains(is_hidden), "{trace:?}");
            continue;
        }
        let file = relay.home.path("report.eml");
        fs::write(&file, &mail).expect("a file");
        let report = programs::python("read_mail.py", &[&file.display().to_string()]);
        assert_eq!(
            (&report["type"], &report["defects"]),
            (&"multipart/report".into(), &serde_json::json!([])),
            "{text}"
        );
        assert_eq!(report["parts"].as_array().map(Vec::len), Some(3), "{text}");
        for (number, block) in report["status"].as_array().expect("blocks").iter().enumerate() {
            let allowed: &[&str] = if number == 0 {
                &["reporting-mta", "arrival-date", "original-envelope-id", "x-outpost-queue-id"]
            } else {
                &[
                    "final-recipient",
                    "original-recipient",
                    "action",
                    "status",
                    "remote-mta",
                    "diagnostic-code",
                    "last-attempt-date",
                ]
            };
            for (name, value) in block.as_object().expect("fields") {
                assert!(allowed.contains(&name.as_str()), "a field {name} in {text}");
                assert!(!value.as_str().expect("text").contains(is_hidden), "{name}: {value:?}");
            }
        }
        assert_plain("what people read", report["text"].as_str().expect("text"));
    }
}
