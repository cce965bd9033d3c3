//! `outpost dev`: two commands from nothing to a mail that one can look at.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use support::bytes::{field_name, header_fields};
use support::relay::Relay;
use support::{http, programs, wait};

/// Sends by smtplib; gives what the script tells of it, and the bytes that left Python.
fn send_by_smtplib(relay: &Relay, more: &[&str]) -> (Value, Vec<u8>) {
    let port = relay.smtp.to_string();
    let args = [&["--port", &port, "--to", "somebody@example.test"], more].concat();
    let told = programs::python("send.py", &args);
    let sent = BASE64.decode(told["sent"].as_str().expect("base64")).expect("base64");
    (told, sent)
}

/// Waits until the embedded upstream has this many; gives them as listed.
fn captured(relay: &Relay, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} captured"), || {
        let list = http::get(relay.admin, "/api/v1/dev/messages").json();
        let items = list["items"].as_array().expect("a list has items").clone();
        (items.len() == count).then_some(items)
    })
}

fn raw(relay: &Relay, item: &Value) -> Vec<u8> {
    let answer = http::get(relay.admin, &format!("/api/v1/dev/messages/{}", item["n"]));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.body
}

#[test]
fn the_captured_copy_is_what_was_sent_but_for_one_received_field_on_top() {
    let relay = Relay::start_dev();
    let (_, sent) = send_by_smtplib(&relay, &[]);
    let copy = raw(&relay, &captured(&relay, 1)[0]);

    assert!(copy.ends_with(&sent), "changed on the way:\n{}", String::from_utf8_lossy(&copy));
    let added = &copy[..copy.len() - sent.len()];
    let fields = header_fields(added);
    assert_eq!(fields.len(), 1, "one field was added: {fields:?}");
    assert_eq!(field_name(&fields[0]), "received");
    assert!(added.ends_with(b"\r\n"));
    assert_eq!(added.iter().filter(|byte| **byte == b'\n').count(), fields[0].lines().count());
}

#[test]
fn the_list_tells_envelope_subject_size_and_that_tls_and_auth_were_used() {
    let relay = Relay::start_dev();
    let (told, _) = send_by_smtplib(&relay, &["--to", "another@example.test"]);
    let item = &captured(&relay, 1)[0];

    assert_eq!(item["sender"], told["sender"]);
    let recipients: Vec<&str> =
        item["recipients"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(recipients, ["somebody@example.test", "another@example.test"]);
    assert_eq!(item["subject"], told["subject"], "decoded, for people");
    assert_eq!(item["size"], raw(&relay, item).len());
    assert!(item["received"].is_string(), "a time: {item}");
    assert_eq!(item["tls"], true);
    assert_eq!(item["auth"], true);
    assert!(item["user"].as_str().is_some_and(|user| !user.is_empty()), "{item}");
}

#[test]
fn a_login_by_cram_md5_works_with_what_environment_json_says() {
    let relay = Relay::start_dev();
    let environment = relay.environment();
    let of = |name: &str| {
        let key = environment.as_object().expect("an object").keys().find(|k| k.ends_with(name));
        environment[key.expect(name)].as_str().expect("a string").to_owned()
    };
    let (login, password) = (of("_SMTP_LOGIN"), of("_SMTP_PASSWORD"));
    let mechanism = ["--mechanism", "CRAM-MD5", "--login", &login, "--password", &password];
    send_by_smtplib(&relay, &mechanism);
    captured(&relay, 1);
}

#[test]
fn the_page_shows_what_arrived_and_escapes_what_senders_write() {
    let relay = Relay::start_dev();
    send_by_smtplib(&relay, &["--subject", "Grüße <script>alert(1)</script> & mehr"]);
    captured(&relay, 1);

    let page = http::get(relay.admin, "/");
    assert_eq!(page.status, 200);
    assert!(page.head.to_ascii_lowercase().contains("content-type: text/html"), "{}", page.head);
    let html = page.text();
    assert!(html.contains("Grüße"), "the subject, decoded: {html}");
    assert!(html.contains("&lt;script&gt;alert(1)"), "escaped: {html}");
    assert!(!html.contains("<script>alert(1)"), "as it came: {html}");
    assert!(html.contains("somebody@example.test"), "{html}");
}

#[test]
fn emptying_forgets_what_was_captured() {
    let relay = Relay::start_dev();
    send_by_smtplib(&relay, &[]);
    let n = captured(&relay, 1)[0]["n"].clone();

    let answer = http::request("DELETE", relay.admin, "/api/v1/dev/messages").expect("an answer");
    assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
    captured(&relay, 0);
    assert_eq!(http::get(relay.admin, &format!("/api/v1/dev/messages/{n}")).status, 404);

    send_by_smtplib(&relay, &[]);
    captured(&relay, 1);
}

#[test]
fn four_lines_say_where_to_send_where_to_look_and_how_to_stop() {
    let mut relay = Relay::start_dev();
    let lines = wait::until("four lines on standard output", || {
        let lines: Vec<String> = relay.stdout().lines().map(str::to_owned).collect();
        (lines.len() >= 4).then_some(lines)
    });
    assert_eq!(lines.len(), 4, "{lines:?}");
    let all = lines.join("\n");
    assert!(all.contains(&format!("127.0.0.1:{}", relay.smtp)), "where to send: {all}");
    assert!(all.contains(&format!("http://127.0.0.1:{}", relay.admin)), "where to look: {all}");
    assert!(all.to_lowercase().contains("ctrl"), "how to stop: {all}");

    relay.interrupt();
    let said: Vec<String> = relay.stdout().lines().map(str::to_owned).collect();
    assert_eq!(said[..4], lines[..], "nothing else stands between them");
}
