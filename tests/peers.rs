//! Real clients hand in, a real Postfix is the upstream: each mail arrives once, as it was.

mod support;

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use support::bytes::{contains_word, field_name, header_fields, with_lf};
use support::postfix::{Postfix, REFUSAL, REFUSED};
use support::relay::Relay;
use support::service::{Home, Service};
use support::{http, programs, wait};

const APP_PASSWORD: &str = "app-sesame-77";
const TO: &str = "user@example.test";

/// A Postfix with a mailbox for `user` and one for `sender`, and a relay in front of it.
fn postfix_and_relay() -> (Postfix, Relay) {
    let postfix = Postfix::start(&["user", "sender"]);
    let relay = Relay::start(&mailer(&postfix));
    (postfix, relay)
}

fn mailer(postfix: &Postfix) -> Service {
    postfix.upstream_of(Service::mailer()).set("smtp_password", APP_PASSWORD)
}

/// The one mail in a user's mailbox, after the relay has nothing left.
fn only_mail(postfix: &Postfix, relay: &Relay, user: &str) -> Vec<u8> {
    postfix.first_mail(user);
    relay.wait_for_empty_queue();
    let mut mails = postfix.mailbox(user);
    assert_eq!(mails.len(), 1, "{user} has it once");
    mails.remove(0)
}

/// What was sent stands at the end, unchanged; above it only what `hops` relays and Postfix add.
#[track_caller]
fn assert_intact(mail: &[u8], sent: &[u8], hops: usize) {
    let sent = with_lf(sent);
    assert!(
        mail.ends_with(&sent),
        "changed on the way:\n{}\n--- sent\n{}",
        String::from_utf8_lossy(mail),
        String::from_utf8_lossy(&sent)
    );
    let added = header_fields(&mail[..mail.len() - sent.len()]);
    let names: Vec<String> = added.iter().map(|field| field_name(field)).collect();
    let received = names.iter().filter(|name| *name == "received").count();
    assert_eq!(received, hops + 1, "one a hop, and Postfix's: {added:#?}");
    let postfixs = ["return-path", "x-original-to", "delivered-to", "received"];
    assert!(names.iter().all(|name| postfixs.contains(&name.as_str())), "{added:#?}");
}

/// Sends a mail by swaks with these options, and looks at it in the mailbox.
fn swaks_arrives(options: &[&str]) -> Vec<u8> {
    let (postfix, relay) = postfix_and_relay();
    let sent = "From: Swaks <sender@example.test>\r\nTo: user@example.test\r\n\
                Subject: =?UTF-8?Q?Gr=C3=BC=C3=9Fe?= von swaks\r\nDate: Mon, 06 Jan 2025 10:11:12 +0100\r\n\
                Message-ID: <swaks-1@app.test>\r\nMIME-Version: 1.0\r\n\
                Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
                Schöne Grüße.\r\n\r\n..two dots\r\n  and spaces  \r\n";
    let file = relay.home.path("mail.eml");
    // swaks ends the last line itself.
    fs::write(&file, sent.trim_end_matches("\r\n")).expect("a file for swaks");
    let (server, data) = (format!("127.0.0.1:{}", relay.smtp), format!("@{}", file.display()));
    let usual = ["--server", &server, "--from", "sender@example.test", "--to", TO, "--data", &data];
    programs::swaks(&[&usual, options].concat());

    let mail = only_mail(&postfix, &relay, "user");
    assert_intact(&mail, sent.as_bytes(), 1);
    mail
}

/// The options for a login over STARTTLS.
fn login(mechanism: &str) -> [&str; 7] {
    ["--tls", "--auth", mechanism, "--auth-user", "dotcloud", "--auth-password", APP_PASSWORD]
}

/// The relay's own trace field.
fn trace(mail: &[u8]) -> String {
    let fields = header_fields(mail);
    let ours = fields.iter().find(|field| field.contains("by relay.test"));
    ours.unwrap_or_else(|| panic!("no trace field of the relay: {fields:#?}")).clone()
}

#[test]
fn mail_from_swaks_without_a_login_arrives_from_loopback() {
    swaks_arrives(&[]);
}

#[test]
fn mail_from_swaks_over_starttls_with_auth_plain_arrives() {
    let mail = swaks_arrives(&login("PLAIN"));
    assert!(trace(&mail).contains("ESMTPSA"), "RFC 3848: {}", trace(&mail));
}

#[test]
fn mail_from_swaks_over_starttls_with_auth_login_arrives() {
    swaks_arrives(&login("LOGIN"));
}

#[test]
fn mail_from_swaks_over_starttls_with_auth_cram_md5_arrives() {
    swaks_arrives(&login("CRAM-MD5"));
}

#[test]
fn a_wrong_login_gets_nothing_in() {
    let (postfix, relay) = postfix_and_relay();
    let server = format!("127.0.0.1:{}", relay.smtp);
    let output = std::process::Command::new("/usr/bin/swaks")
        .args(["--server", &server, "--from", "sender@example.test", "--to", TO])
        .args(["--tls", "--auth", "PLAIN", "--auth-user", "dotcloud", "--auth-password", "wrong"])
        .output()
        .expect("swaks starts");
    assert!(!output.status.success());
    assert!(contains_word(&output.stdout, "535 5.7.8"), "{}", programs::shown(&output));
    assert_eq!(relay.queue(), Vec::<Value>::new());
    assert!(postfix.mailbox("user").is_empty());
}

#[test]
fn mail_from_smtplib_with_cram_md5_arrives() {
    let (postfix, relay) = postfix_and_relay();
    let environment = relay.environment();
    let login = environment["DOTCLOUD_MAILER_SMTP_LOGIN"].as_str().expect("a login");
    let password = environment["DOTCLOUD_MAILER_SMTP_PASSWORD"].as_str().expect("a password");
    assert_eq!((login, password), ("dotcloud", APP_PASSWORD));
    let port = relay.smtp.to_string();
    let told = programs::python(
        "send.py",
        &[
            ["--port", &port, "--to", TO],
            ["--mechanism", "CRAM-MD5", "--login", login],
            ["--password", password, "--sender", "sender@example.test"],
        ]
        .concat(),
    );

    let mail = only_mail(&postfix, &relay, "user");
    let sent = BASE64.decode(told["sent"].as_str().expect("base64")).expect("base64");
    assert_intact(&mail, &sent, 1);
    assert_eq!(read(&relay, &mail)["subject"], told["subject"]);
}

#[test]
fn a_django_app_that_reads_environment_json_sends_mail() {
    let (postfix, relay) = postfix_and_relay();
    let file = relay.environment_file();
    let told = programs::django("django_app.py", &[&file.display().to_string(), TO]);

    let mail = only_mail(&postfix, &relay, "user");
    let sent = BASE64.decode(told["sent"].as_str().expect("base64")).expect("base64");
    assert_intact(&mail, &sent, 1);
    let seen = read(&relay, &mail);
    assert_eq!(seen["subject"], "Bestellung bestätigt ✓");
    assert_eq!(seen["attachments"], serde_json::json!(["bild.bin"]));
}

#[test]
fn two_tiers_in_one_file_pass_mail_on_over_a_certificate_pinned_by_itself() {
    let postfix = Postfix::start(&["user"]);
    let first = Service::new("www", "python");
    let second = mailer(&postfix);
    let home = Home::new(&[]);
    // All services of an application share one file of what apps are told.
    let shared = home.path("environment.json");
    fs::write(&shared, r#"{"DOTCLOUD_DB_MYSQL_URL": "mysql://root:x@db:3306"}"#).expect("a file");
    let second = second.set("smtp_environment_file", shared.display());
    let first = first
        .set("smtp_environment_file", shared.display())
        .set("smtp_server", "127.0.0.1")
        .set("smtp_port", second.smtp)
        .set("smtp_username", "dotcloud")
        .set("smtp_password", APP_PASSWORD);
    home.write(&[&first, &second]);
    let relay = Relay::start_in(&home, &second);
    let local = Relay::start_in(&home, &first);

    let environment: Value =
        serde_json::from_slice(&fs::read(&shared).expect("the shared file")).expect("JSON");
    let pinned = environment["DOTCLOUD_MAILER_SMTP_TLS_FINGERPRINT"].as_str();
    assert!(pinned.is_some_and(|pin| !pin.is_empty()), "{environment}");
    assert_eq!(environment["DOTCLOUD_DB_MYSQL_URL"], "mysql://root:x@db:3306", "kept");

    let told = programs::python("send.py", &["--port", &local.smtp.to_string(), "--to", TO]);
    postfix.first_mail("user");
    local.wait_for_empty_queue();
    let mail = only_mail(&postfix, &relay, "user");
    let sent = BASE64.decode(told["sent"].as_str().expect("base64")).expect("base64");
    assert_intact(&mail, &sent, 2);
    let over_tls = header_fields(&mail).iter().filter(|field| field.contains("ESMTPSA")).count();
    assert_eq!(over_tls, 2, "www to mailer, and mailer to Postfix: {:#?}", header_fields(&mail));
}

#[test]
fn one_refused_recipient_of_three_comes_back_as_a_report_in_the_upstreams_own_words() {
    let postfix = Postfix::start(&["one", "two", "sender"]);
    let relay = Relay::start(&mailer(&postfix));
    let content = "From: sender@example.test\r\nTo: one@example.test, two@example.test\r\n\
                   Subject: three recipients\r\nDate: Mon, 06 Jan 2025 10:11:12 +0100\r\n\
                   Message-ID: <three@app.test>\r\n\r\nHello.\r\n";
    let recipients = ["one@example.test", REFUSED, "two@example.test"];
    relay.client().send("sender@example.test", &recipients, content).expect("it is taken");

    for user in ["one", "two"] {
        assert_intact(&only_mail(&postfix, &relay, user), content.as_bytes(), 1);
    }
    let report = only_mail(&postfix, &relay, "sender");
    let seen = read(&relay, &report);
    assert_eq!(seen["type"], "multipart/report", "{seen:#}");
    assert_eq!(seen["report_type"], "delivery-status");
    assert_eq!(seen["return_path"], "<>", "nobody answers a report");
    assert_eq!(seen["defects"], serde_json::json!([]));
    let parts: Vec<&str> =
        seen["parts"].as_array().expect("parts").iter().filter_map(Value::as_str).collect();
    assert_eq!(parts[..2], ["text/plain", "message/delivery-status"], "{seen:#}");
    assert!(seen["text"].as_str().is_some_and(|text| text.contains(REFUSAL)), "{seen:#}");

    let status = seen["status"].as_array().expect("blocks");
    assert_eq!(status.len(), 2, "the message's block and one recipient's: {seen:#}");
    let field = |name: &str| status[1][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(field("final-recipient"), format!("rfc822; {REFUSED}"), "{seen:#}");
    assert_eq!(field("action"), "failed");
    assert_eq!(field("status"), "5.1.1");
    assert!(field("diagnostic-code").starts_with("smtp;"), "{seen:#}");
    assert!(field("diagnostic-code").contains(REFUSAL), "{seen:#}");
}

#[test]
fn the_relay_reports_what_it_delivered_in_its_metrics() {
    let (postfix, relay) = postfix_and_relay();
    programs::python("send.py", &["--port", &relay.smtp.to_string(), "--to", TO]);
    only_mail(&postfix, &relay, "user");
    let metrics = http::get(relay.admin, "/metrics").text();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("outpost_deliveries_total{") && line.contains("result=\"delivered\""));
    assert!(line.is_some_and(|line| line.ends_with(" 1")), "{line:?} in:\n{metrics}");
}

/// A mail as Python's email package reads it.
fn read(relay: &Relay, mail: &[u8]) -> Value {
    let file = relay.home.path("read.eml");
    fs::write(&file, mail).expect("a file to read from");
    programs::python("read_mail.py", &[&file.display().to_string()])
}

#[test]
fn a_postfix_upstream_takes_each_login_that_it_offers_and_the_strongest_by_default() {
    let postfix = Postfix::start(&["user"]);
    for (wanted, used) in [
        ("plain", "PLAIN"),
        ("login", "LOGIN"),
        ("cram-md5", "CRAM-MD5"),
        ("scram-sha-256", "SCRAM-SHA-256"),
        ("auto", "SCRAM-SHA-256"),
    ] {
        let before = postfix.log().matches(&format!("sasl_method={used},")).count();
        let relay = Relay::start(&mailer(&postfix).set("smtp_relay_auth", wanted));
        relay.client().send("a@example.test", &[TO], "Subject: x\r\n\r\nx\r\n").expect("it is taken");
        relay.wait_for_empty_queue();
        // Postfix writes its log, and delivers into the mailbox, behind its 250.
        let logins = || postfix.log().matches(&format!("sasl_method={used},")).count();
        wait::until_true("a login", || logins() > before);
        assert_eq!(logins(), before + 1, "{wanted}: {}", postfix.log());
    }
    wait::until_true("all is in the mailbox", || postfix.mailbox("user").len() == 5);
}
