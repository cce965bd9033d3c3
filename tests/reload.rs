//! The configuration changes while the relay runs: nothing is lost, nothing comes twice, what can be taken up is, what
//! can't is named, and what is broken changes nothing.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use outpost::config::KEYS;

use support::client::{Client, Load};
use support::relay::Relay;
use support::service::{Home, Service};
use support::upstream::Upstream;
use support::{ports, programs, wait};

const PASSWORD: &str = "upstream-sesame-4711";
const SESSIONS: usize = 10;
const MESSAGES: usize = 10_000;
const CHANGES: usize = 20;

/// The ways by which a relay is made to read its configuration again.
#[derive(Clone, Copy)]
enum By {
    Command,
    Signal,
    /// Nobody says anything; the file is another.
    File,
}

#[test]
fn ten_thousand_messages_pass_while_the_configuration_changes_twenty_times() {
    let upstream = Upstream::start(PASSWORD);
    let base = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_relay_connections", 4);
    let relay = Relay::start(&base);
    let second_port = ports::free();
    let listens = format!("[\"127.0.0.1:{}\", \"127.0.0.1:{second_port}\"]", base.smtp);
    let good = [
        base.clone().set("smtp_relay_connections", 8).set("smtp_retry", "2s..3s"),
        base.clone().set("smtp_listen", &listens).set("smtp_users", "{shop: {password: 'one'}}"),
        base.clone().set("smtp_hostname", "other.relay.test").set("smtp_relay_messages", 50),
        base.clone().set("smtp_log_level", "warn").set("smtp_relay_pipelining", false),
        base.clone().set("smtp_relay_server", "127.0.0.1").set("smtp_max_message_size", "10MB"),
    ];
    let broken = [
        base.clone().set("smtp_relay_prot", 25),
        base.clone().set("smtp_relay_tls_ca", "/nowhere/ca.pem"),
        base.clone().without("smtp_relay_username"),
        // The address of somebody else.
        base.clone().set("smtp_listen", format!("127.0.0.1:{}", upstream.port)),
    ];
    let load = Load::start(relay.smtp, "m", SESSIONS, MESSAGES / SESSIONS);
    let (mut taken_up, mut refused) = (0, 0);
    for change in 0..CHANGES {
        let due = (change + 1) * MESSAGES / (CHANGES + 4);
        wait::until_true("the load goes on", || load.acknowledged() >= due || load.ended());
        let by = [By::Command, By::Signal, By::Command, By::File][change % 4];
        // Each third is broken, once by being cut off in the middle.
        let is_broken = change % 3 == 2;
        match (is_broken, change) {
            (true, 5) => {
                relay.home.write(&[&base]);
                let path = relay.home.path("dotcloud.yml");
                let whole = fs::read(&path).expect("the file");
                fs::write(&path, &whole[..whole.len() - 36]).expect("the file can be written");
            }
            (true, _) => relay.home.write(&[&broken[change / 3 % broken.len()]]),
            (false, _) => relay.home.write(&[&good[change % good.len()]]),
        }
        let before = (relay.log().matches("configuration read again").count(), refusals(&relay));
        match by {
            By::Command => {
                let output = relay.cli(&["reload"]);
                assert_eq!(output.status.success(), !is_broken, "{}", programs::shown(&output));
            }
            By::Signal => relay.hang_up(),
            // The next change comes before the file was seen to rest, and takes its place.
            By::File => continue,
        }
        wait::until_true("it is read", || match is_broken {
            true => refusals(&relay) > before.1,
            false => true,
        });
        if is_broken { refused += 1 } else { taken_up += 1 }
    }
    let acknowledged = load.finish();
    assert_eq!(acknowledged.len(), MESSAGES, "no session was broken off, no message was refused");
    let is_empty = || (relay.status()["queue"]["messages"] == 0).then_some(());
    wait::until_within(4 * wait::DEADLINE, "the queue is empty", is_empty);
    let ledger = upstream.ledger();
    let lost: Vec<_> = acknowledged.iter().filter(|token| !ledger.contains_key(*token)).collect();
    let twice: Vec<_> = ledger.iter().filter(|(_, times)| **times != 1).collect();
    assert!(lost.is_empty(), "{} of {MESSAGES} are lost, such as {:?}", lost.len(), lost.first());
    assert!(twice.is_empty(), "{} came more than once, such as {:?}", twice.len(), twice.first());
    assert_eq!(ledger.len(), MESSAGES);
    // Counters go on, whatever was read in between.
    let metrics = support::http::get(relay.admin, "/metrics").text();
    let accepted = format!("\noutpost_received_total{{result=\"accepted\"}} {MESSAGES}\n");
    assert!(metrics.contains(&accepted), "{metrics}");
    assert!(taken_up >= 8 && refused >= 4, "{taken_up} taken up, {refused} refused");
    assert!(!relay.log().contains("panicked"), "{}", relay.log());
}

fn refusals(relay: &Relay) -> usize {
    relay.log().matches("not reloaded, the settings in force stay").count()
}

fn reload(relay: &Relay, service: &Service) -> Output {
    relay.home.write(&[service]);
    relay.cli(&["reload"])
}

/// A value for each key, other than the base's: its own example, unless that means something here.
fn changed(base: &Service, key: &str, home: &Path, upstream: &Upstream) -> Service {
    let at = |name: &str| home.join(name).display().to_string();
    let pair = |cert: &str, secret: &str| base.clone().set(cert, at("cert.pem")).set(secret, at("key.pem"));
    let no_upstream = || {
        let keys = KEYS.iter().filter(|key| key.name.starts_with("smtp_relay_"));
        keys.fold(base.clone(), |service, key| service.without(key.name))
    };
    let values: BTreeMap<&str, String> = [
        ("smtp_relay_server", "127.0.0.1".to_owned()),
        ("smtp_relay_port", ports::free().to_string()),
        ("smtp_relay_password", "another".to_owned()),
        ("smtp_relay_tls", "implicit".to_owned()),
        ("smtp_relay_tls_ca", at("cert.pem")),
        ("smtp_relay_tls_fingerprint", "3a".repeat(32)),
        ("smtp_relay_replies", "[{text: slow down, scope: account, means: slower}]".to_owned()),
        ("smtp_dkim", format!("{{domain: example.com, algorithm: ed25519, key: {}}}", at("dkim.pem"))),
        ("smtp_listen", format!("127.0.0.1:{}", ports::free())),
        ("smtp_password", "another".to_owned()),
        ("smtp_users", "{shop: {password: 'one'}}".to_owned()),
        ("smtp_queue", at("elsewhere")),
        ("smtp_environment_file", at("apps.json")),
        ("smtp_admin_listen", format!("127.0.0.1:{}", ports::free())),
        ("smtp_admin_password", "another".to_owned()),
    ]
    .into();
    match key {
        "smtp_tls_cert" | "smtp_tls_key" => pair("smtp_tls_cert", "smtp_tls_key"),
        "smtp_relay_tls_cert" | "smtp_relay_tls_key" => pair("smtp_relay_tls_cert", "smtp_relay_tls_key"),
        _ if key.contains("_webhook") => {
            let of = key.trim_end_matches("_secret");
            base.clone().set(of, "'https://hooks.test/outpost'").set(&format!("{of}_secret"), "sesame")
        }
        "smtp_relay_oauth" => base
            .clone()
            .without("smtp_relay_password")
            .set(key, "{token_url: 'https://tokens.test/', client_id: x, client_secret: y}"),
        "smtp_relays" => no_upstream().set(key, format!("[{{server: localhost, port: {}}}]", upstream.port)),
        _ => {
            let example = || KEYS.iter().find(|known| known.name == key).expect("a key").example.to_owned();
            base.clone().set(key, values.get(key).cloned().unwrap_or_else(example))
        }
    }
}

#[test]
fn every_key_is_taken_up_or_named_as_waiting_for_a_restart() {
    let upstream = Upstream::stopped(PASSWORD);
    let base = upstream.upstream_of(Service::mailer(), PASSWORD);
    let home = Home::new(&[&base]);
    let identity = support::certs::Authority::new("test CA").identity(&["localhost"]);
    fs::write(home.path("cert.pem"), &identity.cert_pem).expect("a file");
    fs::write(home.path("key.pem"), &identity.key_pem).expect("a file");
    programs::run(
        Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(home.path("dkim.pem")),
    );
    let relay = Relay::start_in(&home, &base);
    for key in KEYS {
        let wanted = changed(&base, key.name, home.dir(), &upstream);
        let named = format!("these need a restart: {}", key.name);
        // Told each time, for it waits still.
        for _ in 0..if key.restart { 2 } else { 1 } {
            let output = reload(&relay, &wanted);
            let said = programs::shown(&output);
            assert!(output.status.success(), "{}: {said}", key.name);
            assert_eq!(said.contains("need a restart"), key.restart, "{}: {said}", key.name);
            assert_eq!(said.contains(&named), key.restart, "{}: {said}", key.name);
        }
        let said = programs::shown(&reload(&relay, &base));
        assert!(!said.contains("need a restart"), "back at what is in force: {said}");
    }
}

#[test]
fn what_was_taken_up_holds_at_once() {
    let upstream = Upstream::start(PASSWORD);
    let base = upstream.upstream_of(Service::mailer(), PASSWORD);
    let relay = Relay::start(&base);
    let mut inside = relay.client();
    inside.send_token("before").expect("it is taken");
    relay.wait_for_empty_queue();
    let sure = |service: &Service| {
        let output = reload(&relay, service);
        assert!(output.status.success(), "{}", programs::shown(&output));
    };

    // Addresses: a new one is open, the old one closed, whoever is inside stays inside.
    let other = ports::free();
    sure(&base.clone().set("smtp_listen", format!("127.0.0.1:{other}")));
    Client::connect(other).expect("open").send_token("other").expect("it is taken");
    assert!(Client::connect(relay.smtp).is_err(), "closed");
    inside.send_token("inside").expect("it is taken");
    assert_eq!(relay.environment()["DOTCLOUD_MAILER_SMTP_PORT"], other.to_string());
    sure(
        &base.clone().set("smtp_listen", format!("{{address: '127.0.0.1:{}', auth: required}}", relay.smtp)),
    );
    let refused = relay.client().send_token("refused").expect_err("a login is required now");
    assert!(refused.to_string().contains("530"), "{refused}");

    // The queue's bounds.
    sure(&base.clone().set("smtp_queue_min_free", "100TB"));
    let refused = relay.client().send_token("full").expect_err("no room");
    assert!(refused.to_string().contains("452"), "{refused}");
    sure(&base);
    relay.client().send_token("room").expect("it is taken");

    // The log.
    assert!(!relay.log().contains("DEBUG"));
    sure(&base.clone().set("smtp_log_level", "debug"));
    relay.client().send_token("debug").expect("it is taken");
    wait::until_true("more is said", || relay.log().contains("DEBUG"));

    sure(&base.clone().set("smtp_log_format", "json").set("smtp_log_addresses", "domain"));
    relay.client().send_token("json").expect("it is taken");
    let objects = || {
        let log = relay.log();
        let received = log.lines().filter(|line| line.starts_with('{') && line.contains("\"received\""));
        received.map(str::to_owned).collect::<Vec<_>>()
    };
    wait::until_true("it is an object", || !objects().is_empty());
    assert!(objects()[0].contains("…@") && !objects()[0].contains("sender@"), "{:?}", objects());
    sure(&base);
    relay.client().send_token("human").expect("it is taken");
    wait::until_true("it is a line", || relay.log().matches(" received id=").count() >= 6);
    assert_eq!(objects().len(), 1);

    // The page, at another port and at the same one of another address.
    let (old, moved) = (relay.admin, ports::free());
    let ready = |host: &str, port: u16| {
        let mut stream = std::net::TcpStream::connect((host, port)).ok()?;
        std::io::Write::write_all(
            &mut stream,
            b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
        .ok()?;
        let mut said = String::new();
        std::io::Read::read_to_string(&mut stream, &mut said).ok()?;
        said.starts_with("HTTP/1.1 200").then_some(())
    };
    sure(&base.clone().set("smtp_admin_listen", format!("127.0.0.1:{moved}")));
    assert!(ready("127.0.0.1", moved).is_some());
    wait::until_true("the old one is closed", || ready("127.0.0.1", old).is_none());
    // That can only be had when the one before is closed.
    let guarded = base.clone().set("smtp_admin_password", "sesame");
    sure(&guarded.clone().set("smtp_admin_listen", format!("0.0.0.0:{moved}")));
    assert!(ready("127.0.0.2", moved).is_some());
    // One that can't be had: the one that there is stays, and with it all else.
    let output = reload(&relay, &guarded.set("smtp_admin_listen", format!("192.0.2.1:{moved}")));
    let said = programs::shown(&output);
    assert!(!output.status.success() && said.contains("can't listen on 192.0.2.1:"), "{said}");
    assert!(ready("127.0.0.2", moved).is_some(), "{}", relay.log());
    sure(&base);
    assert!(ready("127.0.0.1", old).is_some());

    // An address that is taken: nothing changes, and the words say which.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("bound");
    let output = reload(&relay, &base.clone().set("smtp_listen", taken));
    let said = programs::shown(&output);
    assert!(!output.status.success() && said.contains("can't listen on 127.0.0.1:"), "{said}");
    relay.client().send_token("after").expect("it is taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.arrived(), 8, "{:?}", upstream.ledger());
}

#[test]
fn a_changed_file_is_taken_up_by_itself_and_a_broken_one_is_not() {
    let upstream = Upstream::start(PASSWORD);
    let home = Home::new(&[]);
    let secret = home.path("secret");
    fs::write(&secret, "wrong\n").expect("a file");
    let base = upstream
        .upstream_of(Service::mailer(), PASSWORD)
        .without("smtp_relay_password")
        .set("smtp_relay_password_file", secret.display())
        .set("smtp_auth_retry", "1h..1h");
    home.write(&[&base]);
    let relay = Relay::start_in(&home, &base);
    relay.client().send_token("waits").expect("it is taken");
    wait::until_true("the login is refused", || upstream.auth_attempts() > 0);
    // The file of the secret alone; as a Kubernetes volume changes it, by a link to another directory.
    fs::create_dir(home.path("..new")).expect("a directory");
    fs::write(home.path("..new/secret"), PASSWORD).expect("a file");
    std::os::unix::fs::symlink("..new/secret", home.path("swap")).expect("a link");
    fs::rename(home.path("swap"), &secret).expect("a rename");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("waits"), Some(&1));
    wait::until_true("it is told", || relay.log().contains("secret: changed; configuration read again"));

    // A broken file is told with its line, and once.
    home.write(&[&base.clone().set("smtp_relay_prot", 25)]);
    wait::until_true("it is refused", || refusals(&relay) == 1);
    assert!(relay.log().contains("did you mean smtp_relay_port?"), "{}", relay.log());
    relay.client().send_token("still").expect("it is taken");
    // A file that the broken one did not name, and that is missing at first.
    let late = home.path("late");
    home.write(&[&base.clone().set("smtp_password_file", late.display())]);
    wait::until_true("it is refused", || refusals(&relay) == 2);
    fs::write(&late, "sesame-for-apps").expect("a file");
    wait::until_true("it is taken up", || {
        relay.environment()["DOTCLOUD_MAILER_SMTP_PASSWORD"] == "sesame-for-apps"
    });
    relay.wait_for_empty_queue();
    assert_eq!(refusals(&relay), 2, "{}", relay.log());
}

/// Whether a login succeeds, by a mechanism of gsasl's.
fn logs_in(relay: &Relay, user: &str, mechanism: &str, password: &str) -> bool {
    let output = Command::new(programs::require("/usr/bin/gsasl".as_ref()))
        .args(["--smtp", "--connect", &format!("127.0.0.1:{}", relay.smtp), "--hostname", "localhost"])
        .args(["--no-starttls", "--mechanism", mechanism, "--authentication-id", user])
        .args(["--password", password])
        .stdin(Stdio::null())
        .output()
        .expect("gsasl runs");
    let said = programs::shown(&output);
    assert!(said.contains("235 2.7.0") || said.contains("535 5.7.8"), "{mechanism}: {said}");
    said.contains("235 2.7.0")
}

const MECHANISMS: [&str; 4] = ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"];

#[test]
fn an_old_password_works_for_its_grace_by_every_mechanism_and_over_a_restart() {
    let upstream = Upstream::stopped(PASSWORD);
    let base = upstream.upstream_of(Service::mailer(), PASSWORD);
    let with = |own: &str, shop: &str, grace: &str| {
        base.clone()
            .set("smtp_password", own)
            .set("smtp_users", format!("{{shop: {{password: '{shop}'}}}}"))
            .set("smtp_password_grace", grace)
    };
    let mut relay = Relay::start(&with("own-one", "shop-one", "1h"));
    let works = |relay: &Relay, user: &str, password: &str| {
        let right = MECHANISMS.map(|mechanism| logs_in(relay, user, mechanism, password));
        assert!(right.iter().all(|one| *one == right[0]), "{user}: {right:?}");
        right[0]
    };
    assert!(works(&relay, "dotcloud", "own-one"));

    assert!(reload(&relay, &with("own-two", "shop-two", "1h")).status.success());
    assert_eq!(relay.environment()["DOTCLOUD_MAILER_SMTP_PASSWORD"], "own-two", "published at once");
    for (user, passwords) in [("dotcloud", ["own-one", "own-two"]), ("shop", ["shop-one", "shop-two"])] {
        assert!(passwords.iter().all(|password| works(&relay, user, password)), "{user}");
    }
    assert!(!logs_in(&relay, "dotcloud", "CRAM-MD5", "shop-one"), "each has its own");

    // Changed once more while it is stopped: both old ones work.
    relay.terminate();
    relay.home.write(&[&with("own-three", "shop-two", "1h")]);
    relay.up();
    for password in ["own-one", "own-two", "own-three"] {
        assert!(works(&relay, "dotcloud", password), "{password}");
    }
    let log = relay.log();
    assert!(!["own-", "shop-"].iter().any(|secret| log.contains(secret)), "{log}");

    // The grace ends by itself; without one nothing old works. Each wrong password waits longer than the one before.
    assert!(reload(&relay, &with("own-three", "shop-two", "2s")).status.success());
    wait::until_true("the old ones have ended", || {
        relay.log().contains("an old password of an app has ended")
    });
    assert!(!logs_in(&relay, "shop", "SCRAM-SHA-256", "shop-one"));
    assert!(!logs_in(&relay, "dotcloud", "CRAM-MD5", "own-two"));
    assert!(works(&relay, "dotcloud", "own-three"));
    let without = with("own-four", "shop-two", "1h").without("smtp_password_grace");
    assert!(reload(&relay, &without).status.success());
    assert!(!logs_in(&relay, "dotcloud", "PLAIN", "own-three") && works(&relay, "dotcloud", "own-four"));
    assert!(!relay.data().join("passwords.json").exists());
}
