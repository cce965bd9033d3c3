//! `outpost login`: a user's consent by a code that is typed on another device (RFC 8628), and what becomes of
//! the refresh token that it brings.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use support::relay::Relay;
use support::service::{Home, Service};
use support::upstream::{USER, Upstream};
use support::wait;

/// An endpoint for codes and tokens on loopback: what it was asked, and the answers by a part of the form, each
/// used once but the last.
struct Endpoint {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

fn endpoint(answers: &[(&'static str, &'static str)]) -> Endpoint {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut answers) = (Arc::clone(&asked), answers.to_vec());
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut stream = BufReader::new(stream);
            let (mut length, mut line, mut text) = (0, String::new(), String::new());
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                text.push_str(&line);
                line.clear();
            }
            let mut body = vec![0; length];
            let _ = stream.read_exact(&mut body);
            text.push_str(&String::from_utf8_lossy(&body));
            let at = answers
                .iter()
                .position(|(part, _)| text.contains(part))
                .expect("a question that was foreseen");
            let (part, answer) = answers[at];
            if answers.iter().filter(|(other, _)| *other == part).count() > 1 {
                answers.remove(at);
            }
            seen.lock().expect("no poison").push(text);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
            let _ = write!(stream.get_mut(), "{head}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        }
    });
    Endpoint { port, asked }
}

impl Endpoint {
    fn service(&self, upstream: &Upstream) -> Service {
        let oauth = format!(
            "{{token_url: 'http://127.0.0.1:{0}/token', device_url: 'http://127.0.0.1:{0}/device', client_id: us, scope: mail}}",
            self.port
        );
        upstream
            .upstream_of(Service::mailer(), "")
            .without("smtp_relay_password")
            .set("smtp_relay_username", USER)
            .set("smtp_relay_oauth", oauth)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no poison").clone()
    }
}

const CODE: &str = r#"{"device_code": "device-4711", "user_code": "WDJB-MJHT", "verification_uri": "https://login.test/device",
    "expires_in": 900, "interval": 1}"#;

#[test]
fn a_code_brings_a_consent_that_mail_then_goes_by_and_new_tokens_are_kept() {
    let upstream = Upstream::start("access-2");
    upstream.set(|it| it.mechanisms = "XOAUTH2");
    let endpoint = endpoint(&[
        ("POST /device", CODE),
        ("device-4711", r#"{"error": "authorization_pending"}"#),
        ("device-4711", r#"{"access_token": "access-1", "refresh_token": "refresh-1", "expires_in": 3600}"#),
        (
            "refresh_token=refresh-1",
            r#"{"access_token": "access-2", "refresh_token": "refresh-2", "expires_in": 3600}"#,
        ),
        ("refresh_token=refresh-2", r#"{"access_token": "access-2", "expires_in": 3600}"#),
    ]);
    let service = endpoint.service(&upstream).set("smtp_auth_retry", "10m..30m");
    let home = Home::new(&[&service]);
    let mut relay = Relay::start_in(&home, &service);
    relay.client().send_token("one").expect("taken");
    wait::until_true("what to do is said", || relay.told(&["status"]).contains("run `outpost login`"));
    assert_eq!((upstream.auth_attempts(), endpoint.asked().len()), (0, 0));

    let said = relay.told(&["login"]);
    assert!(
        said.contains("Go to https://login.test/device and type the code WDJB-MJHT (good for 15 minutes)"),
        "{said}"
    );
    assert!(
        !said.contains("refresh-1") && !said.contains("access-1") && !said.contains("device-4711"),
        "{said}"
    );
    // The running relay need not be told.
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("one"), Some(&1));
    let file = relay.data().join("oauth-localhost.json");
    wait::until_true("the new one is kept", || {
        std::fs::read_to_string(&file)
            .is_ok_and(|kept| kept.contains("refresh-2") && !kept.contains("refresh-1"))
    });
    assert_eq!(std::fs::metadata(&file).expect("kept").permissions().mode() & 0o777, 0o600);

    // After a restart it goes on by what was kept.
    relay.terminate();
    relay.up();
    relay.client().send_token("two").expect("taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("two"), Some(&1));
    assert!(endpoint.asked().last().is_some_and(|asked| asked.contains("refresh_token=refresh-2")));
}

#[test]
fn many_connections_fetch_one_token_and_a_refused_code_is_told() {
    let upstream = Upstream::start("access-1");
    upstream.set(|it| {
        it.mechanisms = "OAUTHBEARER";
        it.final_delay = std::time::Duration::from_millis(300);
    });
    let endpoint = endpoint(&[
        ("POST /device", CODE),
        ("device-4711", r#"{"error": "access_denied", "error_description": "The user\u001b[2J said no."}"#),
        ("refresh_token=mine", r#"{"access_token": "access-1", "expires_in": 3600}"#),
    ]);
    let service = endpoint.service(&upstream);
    let relay = Relay::start(&service);
    let refused = relay.cli(&["login"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(69));
    assert!(words.contains("access_denied: The user[2J said no."), "{words:?}");

    let oauth = format!(
        "{{token_url: 'http://127.0.0.1:{}/token', client_id: us, refresh_token: mine}}",
        endpoint.port
    );
    relay.home.write(&[&service.set("smtp_relay_oauth", oauth)]);
    relay.told(&["reload"]);
    let before = endpoint.asked().len();
    let mut client = relay.client();
    for number in 0..40 {
        client.send_token(&format!("many-{number}")).expect("taken");
    }
    relay.wait_for_empty_queue();
    assert!(upstream.auth_attempts() > 1, "several connections");
    assert_eq!(endpoint.asked().len() - before, 1, "and one token");
}

// RFC 6749 §4.4.
#[test]
fn without_a_users_consent_the_relay_gets_tokens_as_a_client_of_its_own() {
    let upstream = Upstream::start("access-1");
    upstream.set(|it| it.mechanisms = "XOAUTH2");
    let endpoint = endpoint(&[(
        "grant_type=client_credentials&client_id=us&client_secret=s%2F1&scope=mail",
        r#"{"access_token": "access-1", "expires_in": 3600}"#,
    )]);
    let oauth = format!(
        "{{token_url: 'http://127.0.0.1:{}/token', client_id: us, client_secret: s/1, scope: mail}}",
        endpoint.port
    );
    let relay = Relay::start(&endpoint.service(&upstream).set("smtp_relay_oauth", oauth));
    relay.client().send_token("one").expect("taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("one"), Some(&1));
    assert_eq!(endpoint.asked().len(), 1);
    assert!(!endpoint.asked()[0].contains("refresh_token"), "{:?}", endpoint.asked());
}
