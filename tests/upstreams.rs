//! Real servers as the upstream, and real proxies on the way: each mail arrives once.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::bytes::contains_word;
use support::daemon::{self, Daemon};
use support::opensmtpd::OpenSmtpd;
use support::relay::Relay;
use support::service::Service;
use support::upstream::Upstream;
use support::{client, ports, wait};

const USER: &str = "relay";
const PASSWORD: &str = "upstream-sesame-4711";

/// More than go in one flight, so that what is said ahead of its time is seen by a real server.
const MAILS: usize = 30;

fn send(relay: &Relay, count: usize) {
    let mut client = relay.client();
    for number in 0..count {
        client.send_token(&format!("mail-{number}")).expect("it is taken");
    }
}

fn upstream_of(dir: &Path, port: u16) -> Service {
    Service::mailer()
        .set("smtp_relay_server", "localhost")
        .set("smtp_relay_port", port)
        .set("smtp_relay_username", USER)
        .set("smtp_relay_tls_ca", dir.join("ca.pem").display())
        .set("smtp_relay_connections", 1)
}

/// Exim, with TLS and logins, that throws away what it takes. Debian's package would replace Postfix, so
/// it was unpacked beside the machine's own.
fn exim(dir: &Path, port: u16) -> Daemon {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers/exim/usr/sbin/exim4");
    for name in ["spool", "log"] {
        fs::create_dir(dir.join(name)).expect("a new directory");
    }
    let config = dir.join("exim.conf");
    let here = dir.display();
    fs::write(
        &config,
        format!(
            "primary_hostname = exim.test
exim_user = nobody
exim_group = nogroup
spool_directory = {here}/spool
log_file_path = {here}/log/%slog
pid_file_path = {here}/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
disable_ipv6 = true
deliver_drop_privilege = true
never_users =
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts = *
tls_certificate = {here}/cert.pem
tls_privatekey = {here}/key.pem
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
acl_smtp_rcpt = rcpt
acl_smtp_data = data
begin acl
rcpt:
  accept authenticated = *
  deny
data:
  accept
begin routers
all:
  driver = redirect
  data = :blackhole:
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{USER}}}}}{{eq{{$auth3}}{{{PASSWORD}}}}}}}}}
  server_set_id = $auth2
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${{if eq{{$auth1}}{{{USER}}}{{{PASSWORD}}}fail}}
  server_set_id = $auth1
"
        ),
    )
    .expect("a new file");
    for name in ["spool", "log", "key.pem"] {
        support::programs::run(Command::new("chown").arg("nobody:nogroup").arg(dir.join(name)));
    }
    Daemon::start(dir, Command::new(program).arg("-C").arg(&config).arg("-bdf"), port)
}

#[test]
fn exim_takes_each_mail_once_by_chunks_and_by_envelopes_behind_the_dot() {
    for chunking in [true, false] {
        let (dir, port) = (daemon::home("exim"), ports::free());
        let exim = exim(dir.path(), port);
        let service = upstream_of(dir.path(), port)
            .set("smtp_relay_password", PASSWORD)
            .set("smtp_relay_chunking", chunking);
        let relay = Relay::start(&service);
        send(&relay, MAILS);
        relay.wait_for_empty_queue();
        let log = fs::read_to_string(dir.path().join("log/mainlog")).expect("Exim's log");
        let taken = log.lines().filter(|line| line.contains(" <= ")).count();
        assert_eq!(taken, MAILS, "{log}\n{}", exim.output());
        let how = if chunking { "A=cram:relay K" } else { "A=cram:relay" };
        assert!(log.lines().filter(|line| line.contains(how)).count() >= MAILS, "{log}");
        for word in ["rror", "synchronization"] {
            assert!(!contains_word(log.as_bytes(), word), "{log}");
        }
    }
}

/// A token endpoint (RFC 6749) and an introspection endpoint (RFC 7662) in one: it gives out this token,
/// and knows no other.
fn tokens(token: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (mut text, mut chunk) = (String::new(), [0; 4096]);
            while !text.contains("scope=") && !text.contains("token=") {
                let Ok(count @ 1..) = stream.read(&mut chunk) else { break };
                text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
            let body = match (text.starts_with("POST /token"), text.contains(token)) {
                (true, _) => format!("{{\"access_token\": \"{token}\", \"expires_in\": 3600}}"),
                (false, known) => format!("{{\"active\": {known}, \"username\": \"{USER}\"}}"),
            };
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
            let _ =
                stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    port
}

/// Dovecot's submission service, which takes tokens and passes mail on to a port of this host.
fn dovecot(dir: &Path, port: u16, behind: u16, tokens: u16) -> Daemon {
    let here = dir.display();
    fs::write(
        dir.join("dovecot.conf"),
        format!(
            "base_dir = {here}/run
state_dir = {here}/state
log_path = {here}/log
protocols = submission
listen = 127.0.0.1
hostname = dovecot.test
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
first_valid_uid = 1
ssl = required
ssl_cert = <{here}/cert.pem
ssl_key = <{here}/key.pem
auth_mechanisms = xoauth2 oauthbearer
mail_location = maildir:{here}/mail
submission_relay_host = 127.0.0.1
submission_relay_port = {behind}
service submission-login {{
  inet_listener submission {{
    port = {port}
  }}
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {here}/oauth2.conf
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={here}/mail
}}
"
        ),
    )
    .expect("a new file");
    fs::write(
        dir.join("oauth2.conf"),
        format!(
            "introspection_mode = post
introspection_url = http://127.0.0.1:{tokens}/introspect
username_attribute = username
active_attribute = active
active_value = true
"
        ),
    )
    .expect("a new file");
    fs::create_dir(dir.join("mail")).expect("a new directory");
    support::programs::run(Command::new("chown").arg("nobody:nogroup").arg(dir.join("mail")));
    let program = support::programs::require(Path::new("/usr/sbin/dovecot"));
    Daemon::start(dir, Command::new(program).arg("-F").arg("-c").arg(dir.join("dovecot.conf")), port)
}

#[test]
fn dovecot_takes_tokens_from_a_token_endpoint_by_xoauth2_and_by_oauthbearer() {
    let token = "token-of-the-test-0815";
    let endpoint = tokens(token);
    // What Dovecot passes on goes through a second relay, which asks nobody on loopback for a login.
    let last = Upstream::start(PASSWORD);
    let second = Relay::start(&last.upstream_of(Service::mailer(), PASSWORD));
    let (dir, port) = (daemon::home("dovecot"), ports::free());
    let dovecot = dovecot(dir.path(), port, second.smtp, endpoint);
    for mechanism in ["xoauth2", "oauthbearer"] {
        let oauth = format!(
            "{{token_url: 'http://127.0.0.1:{endpoint}/token', client_id: us, refresh_token: me, scope: mail}}"
        );
        let service =
            upstream_of(dir.path(), port).set("smtp_relay_auth", mechanism).set("smtp_relay_oauth", oauth);
        let relay = Relay::start(&service);
        relay.client().send_token(mechanism).expect("it is taken");
        relay.wait_for_empty_queue();
        second.wait_for_empty_queue();
        let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        assert_eq!(last.ledger().get(mechanism), Some(&1), "{log}\n{}", dovecot.output());
        assert!(!contains_word(relay.log().as_bytes(), token));
    }
}

/// The relay's keys for OpenSMTPD.
fn opensmtpd_of(opensmtpd: &OpenSmtpd, password: &str) -> Service {
    upstream_of(opensmtpd.dir(), opensmtpd.starttls).set("smtp_relay_password", password)
}

/// A message of about this size with what lines may have in it, as it travels: dots doubled.
fn awkward(token: &str, size: usize) -> String {
    let dots = "..\r\n...two\r\n From here\r\n\r\n\tends with a tab\t\r\n";
    client::letter(token, size) + dots
}

/// What stands behind the header.
fn body(message: &[u8]) -> &[u8] {
    let end = memchr::memmem::find(message, b"\r\n\r\n").expect("a header");
    &message[end + 4..]
}

#[test]
fn opensmtpd_takes_each_mail_once_and_whole_by_starttls_and_in_tls_from_the_first_byte() {
    let last = Upstream::start(PASSWORD);
    let opensmtpd = OpenSmtpd::start(&last, PASSWORD, (USER, PASSWORD));
    let mut sent = HashMap::new();
    for (tls, port) in [("starttls", opensmtpd.starttls), ("implicit", opensmtpd.smtps)] {
        for mechanism in ["plain", "login"] {
            let service = opensmtpd_of(&opensmtpd, PASSWORD)
                .set("smtp_relay_tls", tls)
                .set("smtp_relay_port", port)
                .set("smtp_relay_auth", mechanism)
                .set("smtp_log_level", "debug");
            let relay = Relay::start(&service);
            let mut client = relay.client();
            for (number, size) in [0, 3_000, 500_000].into_iter().enumerate() {
                let token = format!("{tls}-{mechanism}-{number}");
                let content = awkward(&token, size);
                client.send("sender@example.test", &["someone@example.test"], &content).expect("it is taken");
                sent.insert(token, content.replace("\r\n..", "\r\n."));
            }
            relay.wait_for_empty_queue();
            let log = relay.log();
            for words in ["certificate verified".to_owned(), format!("logged in with {mechanism} as {USER}")]
            {
                assert!(contains_word(log.as_bytes(), &words), "{words}: {log}");
            }
        }
    }
    assert_eq!(opensmtpd.taken(), sent.len(), "{}", opensmtpd.output());
    wait::until_true("OpenSMTPD passes them on", || last.arrived() == sent.len());
    assert!(last.ledger().values().all(|count| *count == 1), "{:?}", last.ledger());
    let arrived = last.messages();
    for (token, content) in &sent {
        let same = |message: &Vec<u8>| body(message) == body(content.as_bytes());
        assert!(arrived.iter().any(same), "{token} is not as it was");
    }
}

#[test]
fn opensmtpd_gets_neither_login_nor_mail_without_its_certificate_verified() {
    let last = Upstream::start(PASSWORD);
    let opensmtpd = OpenSmtpd::start(&last, PASSWORD, (USER, PASSWORD));
    for (tls, port) in [("starttls", opensmtpd.starttls), ("implicit", opensmtpd.smtps)] {
        let service = opensmtpd_of(&opensmtpd, PASSWORD)
            .set("smtp_relay_tls", tls)
            .set("smtp_relay_port", port)
            // Another one's authority.
            .set("smtp_relay_tls_ca", last.ca_file().display());
        let relay = Relay::start(&service);
        send(&relay, 1);
        wait::until_true("the status says why", || {
            contains_word(&relay.cli(&["status"]).stdout, "certificate")
        });
        assert_eq!(relay.queue().len(), 1, "it waits");
    }
    assert_eq!((opensmtpd.taken(), last.arrived()), (0, 0), "{}", opensmtpd.output());
    assert!(!contains_word(opensmtpd.output().as_bytes(), "smtp authentication"), "{}", opensmtpd.output());
}

#[test]
fn a_password_that_opensmtpd_refuses_holds_all_mail_until_it_is_corrected() {
    let last = Upstream::start(PASSWORD);
    let opensmtpd = OpenSmtpd::start(&last, PASSWORD, (USER, PASSWORD));
    let service = opensmtpd_of(&opensmtpd, "wrong-sesame-0815").set("smtp_auth_retry", "10m..30m");
    let relay = Relay::start(&service);
    send(&relay, 5);
    wait::until_true("the status names the login", || {
        contains_word(&relay.cli(&["status"]).stdout, "refuses the login")
    });
    assert_eq!(relay.queue().len(), 5, "all stay");
    assert!(contains_word(opensmtpd.output().as_bytes(), "result=permfail"), "{}", opensmtpd.output());
    assert_eq!((opensmtpd.taken(), last.arrived()), (0, 0), "{}", opensmtpd.output());

    relay.home.write(&[&service.set("smtp_relay_password", PASSWORD)]);
    relay.hang_up();
    relay.wait_for_empty_queue();
    wait::until_true("all arrive", || last.arrived() == 5);
    // No more than these: a bounce would be one.
    assert_eq!((opensmtpd.taken(), last.messages().len()), (5, 5), "{}", opensmtpd.output());
}

/// It takes a hundred over one connection, and refuses the next MAIL with 452.
#[test]
fn behind_opensmtpd_s_hundredth_message_the_mail_goes_over_another_connection_at_once() {
    const COUNT: usize = 230;
    let last = Upstream::start(PASSWORD);
    let opensmtpd = OpenSmtpd::start(&last, PASSWORD, (USER, PASSWORD));
    // Whoever had to wait would do so for longer than this test lasts.
    let relay = Relay::start(&opensmtpd_of(&opensmtpd, PASSWORD).set("smtp_retry", "10m..20m"));
    send(&relay, COUNT);
    relay.wait_for_empty_queue();
    let output = opensmtpd.output();
    assert_eq!(opensmtpd.taken(), COUNT, "{output}");
    assert_eq!(output.matches("Too many messages sent").count(), 2, "{output}");
    assert_eq!(output.matches(" smtp authentication user=relay result=ok").count(), 3, "{output}");
    assert!(!contains_word(relay.log().as_bytes(), "deferred"), "{}", relay.log());
    // OpenSMTPD itself has pauses between its connections to the last one.
    let limit = Duration::from_secs(120);
    wait::until_within(limit, "it passes them on", || (last.arrived() == COUNT).then_some(()));
    assert_eq!(last.messages().len(), COUNT, "{:?}", last.ledger());
}

/// A relay that goes through this proxy to a good upstream, and by no other way.
fn arrives_through(proxy: &str, upstream: &Upstream) -> Relay {
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_relay_proxy", proxy);
    let relay = Relay::start(&service);
    relay.client().send_token("one").expect("it is taken");
    wait::until_true("it arrives", || upstream.arrived() == 1);
    relay.wait_for_empty_queue();
    let told = relay.told(&["check", "--connect"]);
    assert!(told.contains("through the proxy"), "{told}");
    relay
}

/// A relay that the proxy doesn't let through keeps its mail, says why, and shows no password.
fn waits_before(proxy: &str, upstream: &Upstream, words: &str) {
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_relay_proxy", proxy);
    let relay = Relay::start(&service.set("smtp_log_level", "trace"));
    relay.client().send_token("two").expect("it is taken");
    let mut said = String::new();
    wait::until_true("the status says why", || {
        said = String::from_utf8_lossy(&relay.cli(&["status"]).stdout).into_owned();
        said.contains(words)
    });
    assert!(said.contains("smtp_relay_proxy"), "{said}");
    assert_eq!(relay.queue().len(), 1, "it waits");
    let check = relay.cli(&["check", "--connect"]);
    let all = [said.as_bytes(), relay.log().as_bytes(), &check.stdout, &check.stderr].concat();
    for secret in ["wrong-sesame", "d3Jvbmctc2VzYW1l"] {
        assert!(!contains_word(&all, secret), "{}", String::from_utf8_lossy(&all));
    }
    assert!(!upstream.ledger().contains_key("two"));
}

#[test]
fn mail_goes_through_a_socks5_proxy_with_and_without_a_login() {
    let upstream = Upstream::start(PASSWORD);
    let (dir, port) = (daemon::home("socks"), ports::free());
    let mut open = Command::new("microsocks");
    let proxy = Daemon::start(dir.path(), open.args(["-i", "127.0.0.1", "-p", &port.to_string()]), port);
    drop(arrives_through(&format!("socks5://127.0.0.1:{port}"), &upstream));
    drop(proxy);
    let (dir, port) = (daemon::home("socks"), ports::free());
    let mut closed = Command::new("microsocks");
    closed.args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", "me", "-P", "proxy@sesame"]);
    let _proxy = Daemon::start(dir.path(), &mut closed, port);
    let upstream = Upstream::start(PASSWORD);
    drop(arrives_through(&format!("socks5://me:proxy%40sesame@127.0.0.1:{port}"), &upstream));
    waits_before(&format!("socks5://me:wrong-sesame@127.0.0.1:{port}"), &upstream, "refuses the login");
    waits_before(&format!("socks5://127.0.0.1:{port}"), &upstream, "wants a login");
}

#[test]
fn mail_goes_through_an_http_proxy_with_a_login() {
    let upstream = Upstream::start(PASSWORD);
    let (dir, port) = (daemon::home("http"), ports::free());
    let config = dir.path().join("tinyproxy.conf");
    fs::write(
        &config,
        format!(
            "User nobody\nGroup nogroup\nPort {port}\nListen 127.0.0.1\nBasicAuth me sesame\nMaxClients 20\n"
        ),
    )
    .expect("a new file");
    let mut command = Command::new("tinyproxy");
    let _proxy = Daemon::start(dir.path(), command.arg("-d").arg("-c").arg(&config), port);
    drop(arrives_through(&format!("http://me:sesame@127.0.0.1:{port}"), &upstream));
    waits_before(&format!("http://me:wrong-sesame@127.0.0.1:{port}"), &upstream, "refuses the login");
    waits_before(&format!("http://127.0.0.1:{port}"), &upstream, "wants a login");
    let gone = ports::free();
    waits_before(&format!("http://127.0.0.1:{gone}"), &upstream, "the proxy: 127.0.0.1");
}

#[test]
fn connections_come_from_the_source_address() {
    let upstream = Upstream::start(PASSWORD);
    let service = upstream
        .upstream_of(Service::mailer(), PASSWORD)
        .set("smtp_relay_source_address", "[127.0.0.9, '::1']");
    let relay = Relay::start(&service);
    relay.client().send_token("one").expect("it is taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.heard()[0].from, Some("127.0.0.9".parse().expect("an address")));
}
