//! Who gets in, and by which door: load balancers, Unix sockets, certificates, clients that log in.

#[path = "support/mod.rs"]
mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    time::Duration,
};

use support::{client::connect_from, ports, relay::Relay, service::Service};

/// A relay whose upstream is never there: what is taken stays in the queue.
fn mailer() -> Service {
    Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free())
}

/// Says all of it at once and hears the server out: its last words come, and then a clean end.
fn dialog(port: u16, words: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.write_all(words.as_ref()).expect("it is heard");
    stream.shutdown(Shutdown::Write).expect("our end is ended");
    let mut heard = String::new();
    stream.read_to_string(&mut heard).expect("no reset");
    heard
}

const PROBE: &str = "EHLO a\r\nMAIL FROM:<a@b.example>\r\nQUIT\r\n";

#[test]
fn a_load_balancer_names_the_client_and_nobody_else_does() {
    let (balanced, plain) = (ports::free(), ports::free());
    let listen = format!(
        "[{{address: '127.0.0.1:{balanced}', proxy_protocol: 127.0.0.1}}, \
          {{address: '127.0.0.1:{plain}', proxy_protocol: 10.0.0.5}}]"
    );
    let relay = Relay::start(&mailer().set("smtp_listen", listen));
    let probe = |header: &str| dialog(balanced, format!("{header}{PROBE}"));
    assert!(probe("PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n").contains("530 5.7.0"), "a stranger");
    assert!(probe("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n").contains("250 2.1.0"), "one of us");
    assert!(probe("PROXY UNKNOWN\r\n").contains("530 5.7.0"), "nobody in particular");
    let binary = |client: [u8; 4]| {
        let addresses = [&client[..], &[127, 0, 0, 1, 0, 1, 0, 2]].concat();
        let header = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &addresses[..]].concat();
        dialog(balanced, [&header, PROBE.as_bytes()].concat())
    };
    assert!(binary([192, 0, 2, 7]).contains("530 5.7.0"), "a stranger, in the binary form");
    assert!(binary([127, 0, 0, 1]).contains("250 2.1.0"), "one of us");
    let unnamed = probe("");
    assert!(unnamed.starts_with("421 4.7.0 a PROXY header was expected"), "{unnamed}");
    let forged = dialog(plain, format!("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n{PROBE}"));
    assert!(forged.contains("550 5.7.1 a PROXY header is not taken") && !forged.contains("250"), "{forged}");
    assert!(dialog(plain, PROBE).contains("250 2.1.0"), "without a header it is a listener like any other");
    drop(relay);
}

#[test]
fn a_unix_socket_takes_mail_like_loopback_and_outlives_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("smtp");
    let service = mailer();
    let listen = format!("['127.0.0.1:{}', 'unix:{}']", service.smtp, path.display());
    let mut relay = Relay::start(&service.set("smtp_listen", listen));
    for _ in 0..2 {
        let mode = std::fs::metadata(&path).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let mut stream = UnixStream::connect(&path).expect("a connection");
        let words = "EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nSubject: x\r\n\r\nx\r\n.\r\nQUIT\r\n";
        stream.write_all(words.as_bytes()).expect("it is heard");
        let mut heard = String::new();
        stream.read_to_string(&mut heard).expect("an answer");
        assert!(heard.contains("250 2.0.0 queued as "), "{heard}");
        relay.kill9();
        assert!(path.exists(), "a stale socket is left behind");
        relay.up();
    }
    assert_eq!(relay.queue().len(), 2);
    assert!(relay.queue().iter().all(|item| item["client"] == "127.0.0.1"));
    assert_eq!(relay.environment()["DOTCLOUD_MAILER_SMTP_PORT"], relay.smtp.to_string());
}

#[test]
fn msmtp_logs_in_by_scram() {
    let relay = Relay::start(&mailer().set("smtp_password", "sésame-4711").set("smtp_networks", "192.0.2.1"));
    let send = |password: &str| {
        let mut msmtp = std::process::Command::new(support::programs::require("/usr/bin/msmtp".as_ref()));
        msmtp
            .args(["--host=127.0.0.1", &format!("--port={}", relay.smtp), "--auth=scram-sha-256"])
            .args(["--user=dotcloud", "--tls=off", "--from=a@b.example", "c@d.example"])
            .arg(format!("--passwordeval=printf %s '{password}'"))
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = msmtp.spawn().expect("msmtp starts");
        child.stdin.take().expect("its input").write_all(b"Subject: x\n\nx\n").expect("it reads");
        child.wait_with_output().expect("msmtp ends")
    };
    let sent = send("sésame-4711");
    assert!(sent.status.success(), "{}", support::programs::shown(&sent));
    assert_eq!(relay.queue()[0]["user"], "dotcloud");
    let refused = send("sesame-4711");
    assert!(!refused.status.success());
    assert!(support::programs::shown(&refused).contains("535"), "{}", support::programs::shown(&refused));
}

#[test]
fn gsasl_ties_its_login_to_the_tls_1_3_connection() {
    let relay = Relay::start(&mailer().set("smtp_password", "sesame-4711"));
    let ca = relay.environment_file().with_file_name("tls").join("cert.pem");
    let log_in = |priority: &str, password: &str| {
        let output = std::process::Command::new(support::programs::require("/usr/bin/gsasl".as_ref()))
            .args(["--smtp", "--starttls", "--connect", &format!("127.0.0.1:{}", relay.smtp)])
            .args(["--mechanism", "SCRAM-SHA-256-PLUS", "--hostname", "localhost", "--priority", priority])
            .args(["--authentication-id", "dotcloud", "--password", password])
            .arg(format!("--x509-ca-file={}", ca.display()))
            .stdin(std::process::Stdio::null())
            .output()
            .expect("gsasl runs");
        support::programs::shown(&output)
    };
    let said = log_in("NORMAL", "sesame-4711");
    assert!(said.contains("235 2.7.0") && said.contains("server trusted"), "{said}");
    let said = log_in("NORMAL", "sesame-4712");
    assert!(said.contains("535 5.7.8"), "{said}");
    // docs/smtp.md says why not in TLS 1.2.
    let said = log_in("NORMAL:-VERS-TLS1.3", "sesame-4711");
    assert!(said.contains("504 5.5.4"), "{said}");
}

#[test]
fn whoever_is_turned_away_leaves_an_event_and_is_counted() {
    let relay = Relay::start(
        &mailer()
            .set("smtp_timeout", "5s")
            .set("smtp_transaction_timeout", "5s")
            .set("smtp_max_errors", "3")
            .set("smtp_max_connections_per_client", "2")
            .set("smtp_max_message_size", "1KB"),
    );
    let open = "EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";
    // Whoever has hung up has a place until the relay has heard of it.
    let says = |words: &str| {
        support::wait::until("a place", || {
            let heard = dialog(relay.smtp, words);
            (!heard.contains("too many connections")).then_some(heard)
        })
    };
    let heard = says("X\r\nX\r\nX\r\nX\r\n");
    assert!(heard.contains("421 4.7.0 too many errors"), "{heard}");
    let heard = says("GET / HTTP/1.1\r\n\r\n");
    assert!(heard.contains("421 4.7.0 this is a mail server"), "{heard}");
    let heard = says("EHLO a\r\nMAIL FROM:<a@b.example> SIZE=5000\r\nQUIT\r\n");
    assert!(heard.contains("552 5.3.4"), "{heard}");
    let heard = says(&format!("{open}DATA\r\n{}\r\n.\r\nQUIT\r\n", "x".repeat(2_000)));
    assert!(heard.contains("552 5.3.4"), "{heard}");

    // One is silent in a transaction, one within its content; meanwhile there is no place for a third.
    let slow = |words: &str| {
        support::wait::until("a place", || {
            let mut stream = TcpStream::connect(("127.0.0.1", relay.smtp)).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
            stream.write_all(words.as_bytes()).expect("it is heard");
            let mut heard = [0; 1];
            stream.read_exact(&mut heard).expect("a greeting");
            (heard == *b"2").then_some(stream)
        })
    };
    let mut silent = [slow(open), slow(&format!("{open}DATA\r\nSubject: x\r\n"))];
    support::wait::until_true("no place is left", || {
        dialog(relay.smtp, "").contains("421 4.7.0 too many conn")
    });
    for stream in &mut silent {
        let mut heard = String::new();
        let _ = stream.read_to_string(&mut heard);
        assert!(heard.contains("421 4.4.2"), "{heard}");
    }
    for (words, times) in [
        ("421 4.7.0 too many errors", 1),
        ("421 4.7.0 this is a mail server", 1),
        ("421 4.4.2 relay.test waited too long for you", 1),
        ("421 4.4.2 the message came too slowly", 1),
        ("552 5.3.4 message is larger", 2),
    ] {
        let told =
            |line: &&str| [" rejected ", words, "client=127.0.0.1"].iter().all(|part| line.contains(part));
        support::wait::until_true(&format!("{words}: {}", relay.log()), || {
            relay.log().lines().filter(told).count() == times
        });
    }
    assert!(
        relay.log().contains("reply=\"421 4.7.0 too many connections at once"),
        "told, though not each time"
    );
    let log = relay.log();
    let slow = log.lines().find(|line| line.contains("came too slowly")).expect("it is told");
    assert!(slow.contains("sender=a@b.example recipient=c@d.example"), "{slow}");
    let metrics = support::http::get(relay.admin, "/metrics").text();
    for (reason, times) in [("abuse", 2), ("command", 1), ("message", 1), ("slow", 2)] {
        let line = format!("outpost_rejections_total{{reason=\"{reason}\"}} {times}\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    assert!(metrics.contains("outpost_rejections_total{reason=\"connections\"} "), "{metrics}");
}

#[test]
fn strangers_of_many_addresses_leave_room_for_an_app_and_go_when_they_do_not_log_in() {
    let relay = Relay::start(
        &mailer()
            .set("smtp_max_connections", "20")
            .set("smtp_networks", "127.0.0.1/32")
            .set("smtp_login_timeout", "8s"),
    );
    let stranger = |number: u8| {
        let mut stream = connect_from(Ipv4Addr::new(127, 0, 3, number), relay.smtp).expect("a connection");
        stream.write_all(b"EHLO a\r\n").expect("it is heard");
        let mut heard = [0; 3];
        stream.read_exact(&mut heard).expect("a word");
        (heard, stream)
    };
    let mut held: Vec<_> = (1..=16).map(stranger).collect();
    assert!(held.iter().all(|(heard, _)| heard == b"220"), "four fifths of the places are anybody's");
    assert_eq!(&stranger(17).0, b"421", "and no more");
    relay.client().send_token("app").expect("an app's mail is taken meanwhile");

    for (_, stream) in &mut held {
        let mut heard = String::new();
        let _ = stream.read_to_string(&mut heard);
        assert!(heard.contains("421 4.7.0 you have not logged in in time (smtp_login_timeout)"), "{heard}");
    }
    support::wait::until_true("the places are free again", || &stranger(18).0 == b"220");
}

#[test]
fn whoever_is_refused_hears_it_to_the_end_and_in_tls_nothing_in_clear() {
    let (plain, implicit) = (ports::free(), ports::free());
    let listen = format!("['127.0.0.1:{plain}', {{address: '127.0.0.1:{implicit}', tls: implicit}}]");
    let service = mailer()
        .set("smtp_listen", listen)
        .set("smtp_max_connections_per_client", "1")
        .set("smtp_max_errors", "2");
    let relay = Relay::start(&service);
    // What comes behind the last word is more than a read takes.
    let heard = dialog(plain, "X\r\n".repeat(5_000));
    assert!(heard.ends_with("421 4.7.0 too many errors (smtp_max_errors); closing\r\n"), "{heard}");
    let held = support::wait::until("a place", || {
        let mut stream = TcpStream::connect(("127.0.0.1", plain)).expect("a connection");
        let mut heard = [0; 3];
        stream.read_exact(&mut heard).expect("a word");
        (heard == *b"220").then_some(stream)
    });
    let heard = dialog(plain, PROBE.repeat(100));
    assert!(
        heard.starts_with("421 4.7.0 too many connections at once (smtp_max_connections_per_client)"),
        "{heard}"
    );
    assert_eq!(dialog(implicit, ""), "");
    drop((held, relay));
}

#[test]
fn a_handshake_does_not_outlast_the_time_for_a_login() {
    let port = ports::free();
    let listen = format!("[{{address: '127.0.0.1:{port}', tls: implicit}}]");
    let relay = Relay::start(
        &mailer()
            .set("smtp_listen", listen)
            .set("smtp_networks", "192.0.2.1")
            .set("smtp_login_timeout", "2s"),
    );
    let mut silent = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    silent.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    assert_eq!(silent.read(&mut [0; 9]).expect("the relay ends it"), 0);
    drop(relay);
}

/// What `openssl s_client` sees of the relay's STARTTLS.
fn s_client(port: u16, args: &[&str]) -> (bool, String) {
    let output = std::process::Command::new("openssl")
        .args(["s_client", "-starttls", "smtp", "-connect", &format!("127.0.0.1:{port}"), "-brief"])
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// SHA-256 of the certificate that the relay shows behind STARTTLS.
fn shown_fingerprint(port: u16) -> String {
    fingerprint_of(port, "-starttls smtp")
}

fn fingerprint_of(port: u16, how: &str) -> String {
    let script = format!(
        "openssl s_client {how} -connect 127.0.0.1:{port} </dev/null 2>/dev/null \
         | openssl x509 -noout -fingerprint -sha256"
    );
    let output = support::programs::run(std::process::Command::new("sh").args(["-c", &script]));
    let text = String::from_utf8_lossy(&output.stdout).trim().to_lowercase().replace(':', "");
    text.rsplit_once('=').expect("a fingerprint").1.to_owned()
}

#[test]
fn only_tls_1_2_and_1_3_are_spoken() {
    let relay = Relay::start(&mailer());
    for (version, expected) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let (ok, said) = s_client(relay.smtp, &[version]);
        assert!(ok && said.contains(&format!("Protocol version: {expected}")), "{version}: {said}");
    }
    for version in ["-tls1_1", "-tls1"] {
        // The client's own policy would refuse them as well.
        let (ok, said) = s_client(relay.smtp, &[version, "-cipher", "DEFAULT:@SECLEVEL=0"]);
        assert!(!ok && said.contains(" alert "), "{version}: {said}");
    }
}

#[test]
fn a_changed_certificate_is_taken_up_and_a_broken_one_is_not() {
    let relay = Relay::start(&mailer());
    let published = |relay: &Relay| {
        let fingerprint = &relay.environment()["DOTCLOUD_MAILER_SMTP_TLS_FINGERPRINT"];
        fingerprint.as_str().expect("a fingerprint").to_owned()
    };
    let first = shown_fingerprint(relay.smtp);
    assert!(!relay.log().contains("changed"), "nothing has changed yet");
    assert_eq!(published(&relay), first);
    let cert = relay.environment_file().with_file_name("tls").join("cert.pem");
    let key = cert.with_file_name("key.pem");

    // The certificate alone: it no longer matches its key.
    let identity = support::certs::Authority::new("test CA").identity(&["localhost"]);
    std::fs::write(&cert, &identity.cert_pem).expect("it can be written");
    support::wait::until_true("the broken pair is noticed", || {
        relay.log().contains("the settings in force stay")
    });
    assert_eq!((shown_fingerprint(relay.smtp), published(&relay)), (first.clone(), first.clone()));

    std::fs::write(&key, &identity.key_pem).expect("it can be written");
    support::wait::until_true("the new pair is shown", || shown_fingerprint(relay.smtp) != first);
    support::wait::until_true("and published", || published(&relay) == shown_fingerprint(relay.smtp));
}

#[test]
fn the_operators_certificate_is_renewed_where_tls_begins_at_once() {
    let home = support::service::Home::new(&[]);
    let (cert, key) = (home.path("relay.pem"), home.path("relay.key"));
    let renew = || {
        let identity = support::certs::Authority::new("test CA").identity(&["localhost"]);
        std::fs::write(&cert, &identity.cert_pem).expect("it can be written");
        std::fs::write(&key, &identity.key_pem).expect("it can be written");
    };
    renew();
    let port = ports::free();
    let service = mailer()
        .set("smtp_listen", format!("[{{address: '127.0.0.1:{port}', tls: implicit}}]"))
        .set("smtp_tls_cert", cert.display())
        .set("smtp_tls_key", key.display());
    home.write(&[&service]);
    let relay = Relay::start_in(&home, &service);
    let first = fingerprint_of(port, "");
    renew();
    support::wait::until_true("the new certificate is shown", || fingerprint_of(port, "") != first);
    support::wait::until_true("and published", || {
        relay.environment()["DOTCLOUD_MAILER_SMTP_TLS_FINGERPRINT"] == fingerprint_of(port, "")
    });
}
