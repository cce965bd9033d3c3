//! How the relay stops: who waits is told, final replies under way are waited for, a second signal ends it at once,
//! and however it ends nothing that was acknowledged is lost.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::relay::{Relay, STOP_WITHIN};
use support::service::{Home, Service};
use support::upstream::Upstream;
use support::wait;

const PASSWORD: &str = "upstream-sesame-4711";

/// An upstream that thinks for so long before each final reply, and a relay in front of it.
fn slow(final_delay: Duration) -> (Upstream, Relay) {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.final_delay = final_delay);
    let relay = Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD));
    (upstream, relay)
}

/// Hands in messages, and waits until one is at the upstream that still owes its final reply.
fn under_way(upstream: &Upstream, relay: &Relay, tokens: &[&str]) {
    let mut client = relay.client();
    for token in tokens {
        client.send_token(token).expect("it is taken");
    }
    wait::until_true("the upstream has one", || upstream.arrived() >= 1);
}

/// Until the process has ended, by itself.
fn ends(relay: &mut Relay, since: Instant) -> Duration {
    wait::until_true("it ends", || relay.has_ended());
    since.elapsed()
}

#[test]
fn the_first_signal_tells_who_waits_and_awaits_the_final_reply() {
    let (upstream, mut relay) = slow(Duration::from_secs(2));
    let idle = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.smtp)).expect("a session");
    idle.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let mut lines = BufReader::new(&idle).lines().map(|line| line.expect("a line"));
    assert!(lines.next().is_some_and(|line| line.starts_with("220 ")));
    under_way(&upstream, &relay, &["one"]);
    let began = Instant::now();
    relay.send_signal(Signal::TERM);
    let told = lines.next().expect("it is told");
    assert!(told.starts_with("421 4.3.2 "), "{told}");
    assert!(began.elapsed() < Duration::from_secs(2), "at once, and not only when all has ended");
    assert_eq!(lines.next(), None, "then the session ends");
    // It has had its signal; that it ends well is looked at as for any other.
    relay.terminated(STOP_WITHIN);
    assert!(relay.log().contains("stopped"), "{}", relay.log());
    upstream.set(|behaviour| behaviour.final_delay = Duration::ZERO);
    relay.up();
    relay.wait_for_empty_queue();
    assert_eq!(
        upstream.ledger().get("one"),
        Some(&1),
        "its final reply was waited for, so it is not sent again"
    );
    relay.terminate();
}

#[test]
fn content_under_way_is_taken_to_its_end_before_the_relay_stops() {
    let (upstream, mut relay) = slow(Duration::ZERO);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.smtp)).expect("a session");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
    let mut expect = |code: &str| {
        lines
            .find(|line| line.as_ref().is_ok_and(|line| line.starts_with(code)))
            .expect("a reply")
            .expect("a line")
    };
    let commands = "EHLO a\r\nMAIL FROM:<sender@example.test>\r\nRCPT TO:<someone@example.test>\r\nDATA\r\n";
    stream.write_all(commands.as_bytes()).expect("it listens");
    expect("354");
    relay.send_signal(Signal::TERM);
    wait::until_true("it takes nobody new", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, relay.smtp)).is_err()
    });
    stream.write_all(b"X-Token: late\r\n\r\nThe body.\r\n.\r\n").expect("it listens");
    let said = expect("250 2.0.0 queued");
    assert!(said.contains("queued as"), "{said}");
    relay.terminated(STOP_WITHIN);
    relay.up();
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("late"), Some(&1));
    relay.terminate();
}

#[test]
fn an_upstream_that_owes_its_final_reply_for_ever_delays_the_end_by_eight_seconds_at_most() {
    let (upstream, mut relay) = slow(Duration::from_secs(60));
    under_way(&upstream, &relay, &["one", "two"]);
    relay.send_signal(Signal::TERM);
    relay.terminated(STOP_WITHIN);
    assert!(relay.log().contains("an upstream still owes a final reply"), "{}", relay.log());
    upstream.set(|behaviour| behaviour.final_delay = Duration::ZERO);
    relay.up();
    relay.wait_for_empty_queue();
    assert_eq!(upstream.arrived(), 2, "what was not done is done after the start");
    relay.terminate();
}

#[test]
fn a_second_signal_ends_it_at_once_with_its_last_words_and_nothing_lost() {
    let (upstream, mut relay) = slow(Duration::from_secs(60));
    under_way(&upstream, &relay, &["one", "two", "three"]);
    relay.send_signal(Signal::TERM);
    wait::until_true("it waits", || relay.log().contains("final replies are waited for"));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!relay.has_ended(), "the first signal waits for the final reply");
    let again = Instant::now();
    relay.send_signal(Signal::TERM);
    let took = ends(&mut relay, again);
    assert!(took < Duration::from_secs(3), "{took:?}");
    relay.terminated(STOP_WITHIN);
    let log = relay.log();
    let last = ["told to stop a second time", "stopped"];
    assert!(last.iter().all(|words| log.contains(words)), "{log}");
    upstream.set(|behaviour| behaviour.final_delay = Duration::ZERO);
    relay.up();
    relay.wait_for_empty_queue();
    let ledger = upstream.ledger();
    assert!(["one", "two", "three"].iter().all(|token| ledger.contains_key(*token)), "{ledger:?}");
    relay.terminate();
}

/// As on a file system of another machine that has gone away: what is read comes to no end.
#[test]
fn a_signal_is_heard_while_the_configuration_is_read_for_ever() {
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD);
    let home = Home::new(&[&service]);
    let mut relay = Relay::start_in(&home, &service);
    let file = home.path("dotcloud.yml");
    std::fs::remove_file(&file).expect("it is there");
    support::programs::run(std::process::Command::new("mkfifo").arg(&file));
    relay.hang_up();
    std::thread::sleep(Duration::from_millis(500));
    relay.client().send_token("meanwhile").expect("it is taken");
    wait::until_true("it arrives", || upstream.arrived() == 1);
    relay.terminate();
}
