//! An upstream that can't be trusted or won't take the login: nothing is given away, nothing is
//! lost, people are told in words, and the mail arrives once when the cause is gone.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use support::bytes::{contains, contains_word};
use support::certs::Authority;
use support::relay::Relay;
use support::service::{Home, Service};
use support::upstream::{Behaviour, Ending, Heard, Shows, StartTls, USER, Upstream};
use support::{http, ports, programs, wait};

const PASSWORD: &str = "upstream-sesame-4711";

/// What is done after the cause is gone.
enum Then {
    Reload,
    HangUp,
    Restart,
    Nothing,
}

impl Then {
    fn act_on(self, relay: &mut Relay) {
        match self {
            Self::Reload => drop(relay.told(&["reload"])),
            Self::HangUp => relay.hang_up(),
            Self::Restart => {
                relay.terminate();
                relay.up();
            }
            Self::Nothing => {}
        }
    }
}

/// A relay for this upstream that tries again soon.
fn mailer(upstream: &Upstream, password: &str) -> Service {
    upstream.upstream_of(Service::mailer(), password).set("smtp_auth_retry", "1s..2s")
}

fn queued_by_id(relay: &Relay) -> Vec<String> {
    relay.queue().iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
}

/// Waits until any one of `words` stands in what `outpost status` prints, and in the log; `always`
/// is asserted all the while.
fn wait_for_words(relay: &Relay, words: &[&str], always: impl Fn()) {
    let in_any = |text: &str| words.iter().any(|word| contains_word(text.as_bytes(), word));
    let mut said = String::new();
    let end = Instant::now() + wait::DEADLINE;
    while !in_any(&said) {
        always();
        assert!(Instant::now() < end, "none of {words:?} in `outpost status`:\n{said}");
        // Its exit code may well say that something is wrong.
        said = String::from_utf8_lossy(&relay.cli(&["status"]).stdout).into_owned();
    }
    wait::until_true(&format!("one of {words:?} in the log"), || in_any(&relay.log()));
}

/// Not one byte of a login, and no MAIL, on any connection so far, in clear or inside TLS.
fn assert_nothing_given_away(upstream: &Upstream) {
    assert_eq!(upstream.auth_attempts(), 0);
    for heard in upstream.heard() {
        for said in [&heard.wire, &heard.inside] {
            for word in ["AUTH ", "MAIL FROM", PASSWORD, USER] {
                let shown = String::from_utf8_lossy(said);
                assert!(!contains_word(said, word), "{word:?} was said: {shown}");
            }
        }
    }
}

/// What was said before TLS has neither login nor envelope in it.
fn assert_all_secret_on_the_wire(upstream: &Upstream) {
    for heard in upstream.heard() {
        for word in ["AUTH ", "MAIL FROM"] {
            assert!(!contains_word(&heard.wire, word), "{word:?} in clear");
        }
    }
}

/// No form of `password` in anything that people or machines can read.
fn assert_no_output_has(relay: &Relay, password: &str) {
    let plain = BASE64.encode(format!("\0{USER}\0{password}"));
    let forms = [password.to_owned(), BASE64.encode(password), plain];
    let id = queued_by_id(relay).first().cloned().unwrap_or_default();
    let mut outputs = vec![("the log".to_owned(), relay.log())];
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["queue", "list"],
        &["queue", "list", "--json"],
        &["queue", "show", &id],
        &["queue", "show", &id, "--json"],
        &["check"],
        &["check", "--connect"],
        &["info"],
        &["env"],
    ] {
        let output = relay.cli(command);
        let both = [output.stdout, output.stderr].concat();
        outputs.push((format!("{command:?}"), String::from_utf8_lossy(&both).into_owned()));
    }
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/queue", &format!("/api/v1/queue/{id}")] {
        let answer = http::get(relay.admin, path);
        outputs.push((path.to_owned(), format!("{}\n{}", answer.head, answer.text())));
    }
    outputs.push(("environment.json".to_owned(), relay.environment().to_string()));
    for (name, text) in outputs {
        for form in &forms {
            assert!(!contains(text.as_bytes(), form.as_bytes()), "{form:?} in {name}: {text}");
        }
    }
}

/// The mail arrived once, and nothing is left.
fn assert_arrives_once(upstream: &Upstream, relay: &Relay, token: &str) {
    wait::until_true("it arrives", || upstream.arrived() > 0);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get(token), Some(&1), "{:?}", upstream.ledger());
    assert_eq!(upstream.arrived(), 1);
    assert_all_secret_on_the_wire(upstream);
}

/// The whole story of a fault of the connection's.
fn nothing_is_given_away_until(fault: fn(&mut Behaviour), words: &[&str], then: Then) {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(fault);
    let mut relay = Relay::start(&mailer(&upstream, PASSWORD));
    relay.client().send_token("one").expect("the relay takes it, whatever the upstream is like");

    wait::until_true("it was tried", || !upstream.heard().is_empty());
    wait_for_words(&relay, words, || assert_nothing_given_away(&upstream));
    assert_no_output_has(&relay, PASSWORD);
    assert_eq!(queued_by_id(&relay).len(), 1, "it stays");
    assert_nothing_given_away(&upstream);

    upstream.set(|behaviour| {
        behaviour.shows = Shows::Good;
        behaviour.starttls = StartTls::Offered;
    });
    then.act_on(&mut relay);
    assert_arrives_once(&upstream, &relay, "one");
}

#[test]
fn an_expired_certificate_gets_neither_login_nor_mail() {
    nothing_is_given_away_until(|it| it.shows = Shows::Expired, &["expired"], Then::Reload);
}

#[test]
fn a_certificate_for_another_name_gets_neither_login_nor_mail() {
    let words = ["not valid for", "other.example", "another name", "wrong name", "host name"];
    nothing_is_given_away_until(|it| it.shows = Shows::WrongName, &words, Then::Restart);
}

#[test]
fn a_certificate_by_an_unknown_authority_gets_neither_login_nor_mail() {
    let words = ["authority", "unknown issuer", "UnknownIssuer", "not trusted", "smtp_relay_tls_ca"];
    nothing_is_given_away_until(|it| it.shows = Shows::UnknownAuthority, &words, Then::Reload);
}

#[test]
fn starttls_taken_out_on_the_way_gets_neither_login_nor_mail() {
    let fault = |it: &mut Behaviour| it.starttls = StartTls::Stripped;
    nothing_is_given_away_until(fault, &["STARTTLS"], Then::HangUp);
}

#[test]
fn starttls_refused_gets_neither_login_nor_mail() {
    let fault = |it: &mut Behaviour| it.starttls = StartTls::Refused;
    nothing_is_given_away_until(fault, &["STARTTLS"], Then::Nothing);
}

#[test]
fn plaintext_glued_to_the_220_gets_neither_login_nor_mail() {
    let words = ["injected", "plaintext", "before TLS", "in clear"];
    let fault = |it: &mut Behaviour| it.starttls = StartTls::Injected;
    nothing_is_given_away_until(fault, &words, Then::Reload);
}

#[test]
fn a_handshake_that_does_not_go_on_gets_neither_login_nor_mail() {
    for (starttls, words) in [
        (StartTls::Stalled, "does not go on with the TLS handshake"),
        (StartTls::HalfClosed, "closed the connection during the TLS handshake"),
        (StartTls::Garbage, "TLS fails"),
    ] {
        let upstream = Upstream::start(PASSWORD);
        upstream.set(|it| it.starttls = starttls);
        let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_relay_timeout", "1s"));
        relay.client().send_token("one").expect("the relay takes it");
        wait_for_words(&relay, &[words], || assert_nothing_given_away(&upstream));
        assert_eq!(relay.status()["upstreams"][0]["state"], "down", "{starttls:?}");
        assert_eq!(queued_by_id(&relay).len(), 1, "{starttls:?}: it stays");
        upstream.set(|it| it.starttls = StartTls::Offered);
        assert_arrives_once(&upstream, &relay, "one");
    }
}

// RFC 3207 §4.2.
#[test]
fn what_was_offered_before_tls_counts_for_nothing_inside() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.keywords_in_clear = Some(vec!["CHUNKING", "DSN", "SIZE 10", "AUTH CRAM-MD5"]));
    let relay = Relay::start(&mailer(&upstream, PASSWORD));
    let mail = "<sender@example.test> RET=HDRS";
    let content = support::client::message_with("one");
    relay.client().send_as(mail, &["<someone@example.test>"], &content).expect("it is taken");
    assert_arrives_once(&upstream, &relay, "one");
    let inside = String::from_utf8_lossy(&upstream.heard()[0].inside).into_owned();
    assert!(inside.contains("AUTH PLAIN ") && inside.contains("\r\nDATA\r\n"), "{inside}");
    for word in ["BDAT", "RET=", "CRAM-MD5"] {
        assert!(!inside.contains(word), "{word}: {inside}");
    }
}

#[test]
fn an_upstream_that_offers_no_mechanism_of_ours_gets_neither_login_nor_mail() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.mechanisms = "GSSAPI NTLM");
    let relay = Relay::start(&mailer(&upstream, PASSWORD));
    relay.client().send_token("one").expect("the relay takes it");
    wait_for_words(&relay, &["no AUTH mechanism of ours (GSSAPI NTLM)"], || {
        assert_nothing_given_away(&upstream);
    });
    assert_eq!(relay.status()["upstreams"][0]["who_must_act"], "operator");
    assert_eq!(queued_by_id(&relay).len(), 1, "it stays");
    upstream.set(|it| it.mechanisms = "PLAIN");
    assert_arrives_once(&upstream, &relay, "one");
}

#[test]
fn a_lost_235_is_no_more_than_a_refused_login_and_keeps_the_mail() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.login_lost = true);
    let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_auth_retry", "4s..16s"));
    let mut client = relay.client();
    for number in 0..20 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
    wait_for_words(&relay, &["closed the connection during AUTH"], || ());
    wait::until_true("a probe is lost as well", || upstream.auth_attempts() >= 2);
    let first = upstream.auth_times()[0];
    wait::until_true("one and a half of the first wait", || first.elapsed() > Duration::from_secs(6));
    let times = upstream.auth_times();
    let within = times.iter().filter(|time| **time - first <= Duration::from_secs(6)).count();
    assert!(within <= 3, "{within} logins");
    assert_eq!(queued_by_id(&relay).len(), 20, "all stay");
    upstream.set(|it| it.login_lost = false);
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 20 && upstream.ledger().values().all(|count| *count == 1));
}

#[test]
fn a_probe_that_may_log_in_again_lets_all_go_without_anybody() {
    let upstream = Upstream::start("not this one");
    let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_retry", "10m..30m"));
    let mut client = relay.client();
    for number in 0..20 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
    wait_for_words(&relay, &["refuses the login"], || ());
    upstream.set(|it| it.password = PASSWORD.to_owned());
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 20 && upstream.ledger().values().all(|count| *count == 1));
    assert_eq!(relay.status()["upstreams"][0]["state"], "up");
}

#[test]
fn a_bad_certificate_costs_a_handshake_now_and_then_however_much_is_queued() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.shows = Shows::Expired);
    let service = mailer(&upstream, PASSWORD).set("smtp_retry", "10m..30m");
    let relay = Relay::start(&service.set("smtp_relay_connections", 10));
    let mut client = relay.client();
    for number in 0..100 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
    wait_for_words(&relay, &["expired"], || assert_nothing_given_away(&upstream));
    // The first wait is five seconds, give or take a fifth, and the next one twice as long.
    let end = Instant::now() + Duration::from_secs(9);
    wait::until_true("two waits", || {
        assert!(upstream.heard().len() <= 3, "{} handshakes", upstream.heard().len());
        Instant::now() > end
    });
    assert_eq!(queued_by_id(&relay).len(), 100, "all stay");
    upstream.set(|it| it.shows = Shows::Good);
    wait::until_true("the next probe opens it", || upstream.arrived() == 100);
    relay.wait_for_empty_queue();
    assert!(upstream.ledger().values().all(|count| *count == 1), "{:?}", upstream.ledger());
}

#[test]
fn a_final_reply_that_does_not_come_in_time_leaves_the_message_uncertain() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.final_delay = Duration::from_secs(8));
    let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_relay_timeout", "1s"));
    relay.client().send_token("one").expect("it is taken");
    wait::until_true("it is told", || {
        contains_word(relay.log().as_bytes(), "did not answer in time during final reply")
    });
    assert!(contains_word(relay.log().as_bytes(), "uncertain"), "{}", relay.log());
    upstream.set(|it| it.final_delay = Duration::ZERO);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("one"), Some(&2), "once more, for nobody can know");
}

#[test]
fn a_wrong_password_is_tried_three_times_at_most_and_holds_fifty_mails_until_it_is_corrected() {
    let upstream = Upstream::start(PASSWORD);
    let wrong = "wrong-sesame-0815";
    let service = mailer(&upstream, wrong).set("smtp_auth_retry", "10m..30m");
    let relay = Relay::start(&service);
    let mut client = relay.client();
    for number in 0..50 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }

    wait_for_words(&relay, &["password", "login"], || ());
    assert_eq!(queued_by_id(&relay).len(), 50, "all stay");
    // Longer than two rounds of ordinary retries: those must not try the login again.
    let end = Instant::now() + Duration::from_secs(4);
    wait::until_true("two rounds of retries", || {
        assert!(upstream.auth_attempts() <= 3, "{} attempts", upstream.auth_attempts());
        Instant::now() > end
    });
    // Only now: `check --connect` among it tries the login itself.
    assert_no_output_has(&relay, wrong);
    for heard in upstream.heard() {
        assert!(!contains_word(&heard.inside, "MAIL FROM"), "MAIL without a login");
    }

    relay.home.write(&[&service.set("smtp_relay_password", PASSWORD)]);
    relay.hang_up();
    wait::until_true("all arrive", || upstream.arrived() == 50);
    relay.wait_for_empty_queue();
    assert!(upstream.ledger().values().all(|count| *count == 1), "{:?}", upstream.ledger());
    assert_all_secret_on_the_wire(&upstream);
    assert_no_output_has(&relay, PASSWORD);
}

#[test]
fn a_password_that_the_upstream_takes_again_is_used_after_a_reload() {
    let upstream = Upstream::start("not this one");
    let service = mailer(&upstream, PASSWORD).set("smtp_auth_retry", "10m..30m");
    let relay = Relay::start(&service);
    relay.client().send_token("one").expect("it is taken");
    wait_for_words(&relay, &["password", "login"], || ());
    assert_no_output_has(&relay, PASSWORD);

    upstream.set(|behaviour| behaviour.password = PASSWORD.to_owned());
    relay.told(&["reload"]);
    assert_arrives_once(&upstream, &relay, "one");
}

#[test]
fn a_password_from_a_file_stays_out_of_all_output_at_the_highest_log_level() {
    let upstream = Upstream::start("not this one");
    let service = mailer(&upstream, PASSWORD).set("smtp_log_level", "trace");
    let home = Home::new(&[]);
    std::fs::write(home.path("secret"), format!("{PASSWORD}\n")).expect("a secret's file");
    let service =
        service.without("smtp_relay_password").set("smtp_relay_password_file", home.path("secret").display());
    home.write(&[&service]);
    let relay = Relay::start_in(&home, &service);
    relay.client().send_token("one").expect("it is taken");
    wait_for_words(&relay, &["password", "login"], || ());
    assert_no_output_has(&relay, PASSWORD);

    upstream.set(|behaviour| behaviour.password = PASSWORD.to_owned());
    relay.told(&["reload"]);
    assert_arrives_once(&upstream, &relay, "one");
    assert_no_output_has(&relay, PASSWORD);
}

#[test]
fn an_upstream_that_hangs_up_after_its_250_has_delivered() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.ending = Ending::DropAfterReply);
    let relay = Relay::start(&mailer(&upstream, PASSWORD));
    relay.client().send_token("one").expect("it is taken");
    assert_arrives_once(&upstream, &relay, "one");
}

#[test]
fn a_limit_of_the_account_bounces_nothing_and_leaves_the_upstream_alone_until_a_reload() {
    let upstream = Upstream::start(PASSWORD);
    let quota = "550 5.4.5 Daily user sending quota exceeded, says the test";
    upstream.set(|behaviour| drop(behaviour.recipients.insert("someone@example.test".into(), quota.into())));
    let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_retry", "10m..30m"));
    let mut client = relay.client();
    for number in 0..20 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
    wait_for_words(&relay, &["quota exceeded, says the test"], || ());
    assert_eq!(queued_by_id(&relay).len(), 20, "nothing bounces");
    let asked = |heard: &Heard| memchr::memmem::find_iter(&heard.inside, b"RCPT TO").count();
    let asked: usize = upstream.heard().iter().map(asked).sum();
    assert!((1..=3).contains(&asked), "asked {asked} times though it said no for all");

    upstream.set(|behaviour| behaviour.recipients.clear());
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 20 && upstream.ledger().values().all(|count| *count == 1));
}

#[test]
fn a_lost_final_reply_is_tried_again_and_told_as_uncertain() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.ending = Ending::DropBeforeReply);
    let relay = Relay::start(&mailer(&upstream, PASSWORD));
    relay.client().send_token("one").expect("it is taken");
    wait::until_true("it was sent once", || upstream.arrived() == 1);
    upstream.set(|behaviour| behaviour.ending = Ending::Reply);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("one"), Some(&2), "once more, for nobody can know");
    assert!(contains_word(relay.log().as_bytes(), "uncertain"), "{}", relay.log());
}

#[test]
fn an_upstream_that_asks_for_our_certificate_gets_it() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.shows = Shows::GoodAndAsks);
    let service = mailer(&upstream, PASSWORD);
    let relay = Relay::start(&service);
    relay.client().send_token("one").expect("it is taken");
    wait_for_words(&relay, &["ertificate"], || assert_nothing_given_away(&upstream));

    let identity = |name: &str| upstream.client_file(name).display().to_string();
    let service = service.set("smtp_relay_tls_cert", identity("client.pem"));
    relay.home.write(&[&service.set("smtp_relay_tls_key", identity("client.key"))]);
    relay.hang_up();
    assert_arrives_once(&upstream, &relay, "one");
}

#[test]
fn restarts_in_a_loop_try_a_wrong_password_three_times_and_the_right_one_at_once() {
    let upstream = Upstream::start(PASSWORD);
    let service = mailer(&upstream, "wrong-sesame-0815").without("smtp_auth_retry");
    let mut relay = Relay::start(&service);
    relay.client().send_token("one").expect("it is taken");
    for _ in 0..6 {
        let before = upstream.auth_attempts();
        let end = Instant::now() + Duration::from_millis(700);
        while upstream.auth_attempts() == before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        relay.kill9();
        relay.up();
    }
    let attempts = upstream.auth_attempts();
    assert!((1..=3).contains(&attempts), "{attempts} attempts");
    relay.kill9();
    relay.home.write(&[&service.set("smtp_relay_password", PASSWORD)]);
    relay.up();
    assert_arrives_once(&upstream, &relay, "one");
}

#[test]
fn opportunistic_tls_is_taken_where_it_is_whoever_shows_what_and_its_lack_is_no_trouble() {
    for (starttls, shows, in_clear) in
        [(StartTls::Offered, Shows::UnknownAuthority, false), (StartTls::Stripped, Shows::Good, true)]
    {
        let upstream = Upstream::start(PASSWORD);
        upstream.set(|it| (it.starttls, it.shows) = (starttls, shows));
        let service = mailer(&upstream, PASSWORD)
            .without("smtp_relay_tls_ca")
            .set("smtp_relay_tls", "opportunistic")
            // Without it no login may be set here at all.
            .set("smtp_relay_allow_insecure_auth", true);
        let relay = Relay::start(&service);
        relay.client().send_token("one").expect("it is taken");
        relay.wait_for_empty_queue();
        assert_eq!(upstream.ledger().get("one"), Some(&1), "{starttls:?}");
        assert_eq!(contains_word(&upstream.heard()[0].wire, "MAIL FROM"), in_clear, "{starttls:?}");
    }
}

/// OpenSSL's server that speaks one old version of TLS alone; it ends when dropped.
struct OldServer(std::process::Child);

impl OldServer {
    fn start(version: &str, port: u16, home: &Home) -> Self {
        let authority = Authority::new("test CA of an old server");
        let identity = authority.identity(&["localhost"]);
        authority.write_to(&home.path("old-ca.pem"));
        std::fs::write(home.path("old.pem"), identity.key_pem + &identity.cert_pem).expect("a file");
        let mut openssl = Command::new(programs::require(Path::new("/usr/bin/openssl")));
        openssl.args(["s_server", version, "-cipher", "DEFAULT@SECLEVEL=0", "-quiet"]);
        openssl.args(["-accept", &format!("127.0.0.1:{port}"), "-cert"]).arg(home.path("old.pem"));
        // What a client says inside TLS goes to its standard output.
        let said = std::fs::File::create(home.path("old.said")).expect("a file");
        // It ends when its standard input does.
        openssl.stdin(Stdio::piped()).stdout(said).stderr(Stdio::null());
        Self(openssl.spawn().expect("OpenSSL's server starts"))
    }
}

impl Drop for OldServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// RFC 8996.
#[test]
fn an_upstream_of_tls_1_0_or_1_1_alone_gets_neither_login_nor_mail() {
    for version in ["-tls1", "-tls1_1"] {
        let (home, port) = (Home::new(&[]), ports::free());
        let _server = OldServer::start(version, port, &home);
        // It does work, with those who are content with that.
        wait::until_true("an old client gets in", || {
            let mut old = Command::new("/usr/bin/openssl");
            old.args([
                "s_client",
                version,
                "-cipher",
                "DEFAULT@SECLEVEL=0",
                "-verify_return_error",
                "-CAfile",
            ]);
            old.arg(home.path("old-ca.pem")).args(["-connect", &format!("localhost:{port}")]);
            old.stdin(Stdio::null()).output().expect("OpenSSL's client runs").status.success()
        });
        let service = Service::mailer()
            .set("smtp_relay_server", "localhost")
            .set("smtp_relay_port", port)
            .set("smtp_relay_tls", "implicit")
            .set("smtp_relay_tls_ca", home.path("old-ca.pem").display())
            .set("smtp_relay_username", USER)
            .set("smtp_relay_password", PASSWORD);
        home.write(&[&service]);
        let relay = Relay::start_in(&home, &service);
        relay.client().send_token("one").expect("it is taken");
        wait_for_words(
            &relay,
            &["speaks no version of TLS that is good enough, which is 1.2 and newer"],
            || {},
        );
        let status = relay.status()["upstreams"][0].clone();
        assert_eq!(
            (&status["state"], &status["who_must_act"]),
            (&"down".into(), &"operator".into()),
            "{status}"
        );
        assert!(relay.told(&["status"]).contains("smtp_relay_tls_min_version"), "{version}: no key is named");
        wait::until_true("it waits", || relay.queue()[0]["state"] == "deferred");
        assert!(!relay.log().contains(" bounced id="), "{}", relay.log());
        assert_eq!(std::fs::read_to_string(home.path("old.said")).expect("a file"), "", "{version}");
    }
}

/// A token endpoint on loopback that gives the tokens of a list, the last one for ever; gives what it
/// was asked.
fn token_endpoint(tokens: &[&str]) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, tokens) = (Arc::clone(&asked), tokens.iter().map(ToString::to_string).collect::<Vec<_>>());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (mut text, mut chunk) = (String::new(), [0; 4096]);
            while !text.contains("scope=") {
                let Ok(count @ 1..) = stream.read(&mut chunk) else { break };
                text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
            let mut seen = seen.lock().expect("no poison");
            let token = tokens.get(seen.len()).or(tokens.last()).expect("a token");
            seen.push(text);
            let body = if token == "refused" {
                "{\"error\": \"invalid_grant\", \"error_description\": \"Token has been revoked.\"}"
                    .to_owned()
            } else {
                format!("{{\"access_token\": \"{token}\", \"expires_in\": 3600}}")
            };
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
            let _ =
                stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    (port, asked)
}

fn with_tokens(upstream: &Upstream, port: u16) -> Service {
    let oauth = format!(
        "{{token_url: 'http://127.0.0.1:{port}/token', client_id: us, refresh_token: 'refresh/me', scope: mail}}"
    );
    mailer(upstream, "").without("smtp_relay_password").set("smtp_relay_oauth", oauth)
}

#[test]
fn a_token_takes_the_password_s_place_and_a_refused_one_is_fetched_anew() {
    for mechanism in ["XOAUTH2", "OAUTHBEARER"] {
        let upstream = Upstream::start("token-2");
        upstream.set(|behaviour| {
            behaviour.mechanisms = if mechanism == "XOAUTH2" { "PLAIN XOAUTH2" } else { "OAUTHBEARER" }
        });
        let (port, asked) = token_endpoint(&["token-1", "token-2"]);
        let relay = Relay::start(&with_tokens(&upstream, port));
        relay.client().send_token("one").expect("it is taken");
        assert_arrives_once(&upstream, &relay, "one");
        let asked = asked.lock().expect("no poison").clone();
        assert_eq!(asked.len(), 2, "{asked:?}");
        assert!(
            asked[0].contains("grant_type=refresh_token&client_id=us&refresh_token=refresh%2Fme"),
            "{asked:?}"
        );
        for secret in ["token-1", "token-2", "refresh/me"] {
            assert_no_output_has(&relay, secret);
        }
    }
}

#[test]
fn tokens_that_are_all_refused_are_tried_three_times_at_most_within_one_and_a_half_of_the_first_wait() {
    let upstream = Upstream::start("token-1");
    upstream.set(|behaviour| behaviour.mechanisms = "XOAUTH2");
    let (port, _) = token_endpoint(&["token-1", "token-2", "token-3", "token-4", "token-5", "token-6"]);
    let service =
        with_tokens(&upstream, port).set("smtp_auth_retry", "4s..16s").set("smtp_relay_messages", 1);
    let relay = Relay::start(&service);
    relay.client().send_token("good").expect("it is taken");
    relay.wait_for_empty_queue();

    let before = upstream.auth_attempts();
    upstream.set(|behaviour| behaviour.password = "none of them".to_owned());
    let mut client = relay.client();
    for number in 0..30 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
    wait::until_true("a probe is refused as well", || upstream.auth_attempts() >= before + 3);
    wait::until_true("and another", || upstream.auth_attempts() >= before + 4);
    let times = upstream.auth_times().split_off(before);
    for (at, first) in times.iter().enumerate() {
        let within = times[at..].iter().filter(|time| **time - *first <= Duration::from_secs(6)).count();
        assert!(within <= 3, "{within} of {times:?}");
    }
    assert_eq!(queued_by_id(&relay).len(), 30, "all stay");
}

#[test]
fn a_revoked_consent_is_the_operator_s_affair_and_keeps_the_mail() {
    let upstream = Upstream::start("token-2");
    upstream.set(|behaviour| behaviour.mechanisms = "XOAUTH2");
    let (port, _) = token_endpoint(&["refused", "token-2"]);
    let relay = Relay::start(&with_tokens(&upstream, port).set("smtp_auth_retry", "10m..30m"));
    relay.client().send_token("one").expect("it is taken");
    wait_for_words(&relay, &["invalid_grant"], || ());
    assert_eq!(upstream.auth_attempts(), 0);
    relay.told(&["reload"]);
    assert_arrives_once(&upstream, &relay, "one");
}

#[test]
fn the_second_connection_resumes_the_first_one_s_session_which_began_with_a_post_quantum_key_exchange() {
    let upstream = Upstream::start(PASSWORD);
    let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_relay_messages", 1));
    for token in ["one", "two"] {
        relay.client().send_token(token).expect("it is taken");
        relay.wait_for_empty_queue();
    }
    let heard = upstream.heard();
    assert_eq!(heard.iter().map(|heard| heard.resumed).collect::<Vec<_>>(), [false, true]);
    assert_eq!(heard[0].key_exchange, Some(rustls::NamedGroup::X25519MLKEM768));
}

#[test]
fn mail_that_was_announced_when_the_upstream_hung_up_arrives_once() {
    let upstream = Upstream::start(PASSWORD);
    // It hangs up behind each 250, whatever was said behind the content.
    upstream.set(|behaviour| behaviour.ending = Ending::DropAfterReply);
    let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_relay_connections", 1));
    let mut client = relay.client();
    for number in 0..20 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 20 && upstream.ledger().values().all(|count| *count == 1));
    assert!(!contains_word(relay.log().as_bytes(), "uncertain"), "{}", relay.log());
}

#[test]
fn while_there_is_more_mail_the_next_envelope_is_said_before_the_final_reply() {
    let upstream = Upstream::start(PASSWORD);
    let relay = Relay::start(&mailer(&upstream, PASSWORD).set("smtp_relay_connections", 1));
    // While it thinks about the first, the others come.
    upstream.set(|behaviour| behaviour.final_delay = Duration::from_millis(200));
    let mut client = relay.client();
    for number in 0..10 {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
    relay.wait_for_empty_queue();
    assert!(upstream.arrived() == 10 && upstream.ledger().values().all(|count| *count == 1));
    let followed = upstream.arrivals().iter().filter(|arrival| arrival.followed).count();
    assert!(followed >= 7, "{followed} of 9");
}
