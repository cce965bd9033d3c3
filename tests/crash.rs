//! kill -9, SIGTERM and a second process: what was acknowledged arrives, and no more than what was
//! in flight arrives twice.

mod support;

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use support::client::Load;
use support::relay::{Relay, ended_within, outpost};
use support::service::{Home, Service};
use support::upstream::Upstream;
use support::wait;

const PASSWORD: &str = "upstream-sesame-4711";
const CONNECTIONS: usize = 10;
/// For a thousand messages on a slow disk.
const LONG: Duration = Duration::from_secs(90);

fn mailer(upstream: &Upstream) -> Service {
    upstream
        .upstream_of(Service::mailer(), PASSWORD)
        .set("smtp_relay_connections", CONNECTIONS)
        .set("smtp_log_level", "warn")
}

/// Waits until each of these has arrived and nothing is queued; gives the ledger.
fn all_arrive(upstream: &Upstream, relay: &Relay, tokens: &[String]) -> HashMap<String, usize> {
    let missing =
        |ledger: &HashMap<String, usize>| tokens.iter().filter(|token| !ledger.contains_key(*token)).count();
    wait::until_within(LONG, "every acknowledged message arrives", || {
        (missing(&upstream.ledger()) == 0).then_some(())
    });
    relay.wait_for_empty_queue();
    upstream.ledger()
}

/// How many arrivals were one too many.
fn duplicates(ledger: &HashMap<String, usize>) -> usize {
    ledger.values().map(|count| count - 1).sum()
}

#[test]
fn killed_while_it_takes_mail_it_loses_nothing_that_was_acknowledged() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream));
    let load = Load::start(relay.smtp, "in", 8, 10_000);
    wait::until_within(LONG, "1000 are acknowledged", || (load.acknowledged() >= 1000).then_some(()));
    assert!(!load.ended(), "it is killed in the middle");
    relay.kill9();
    let acknowledged = load.finish();

    relay.up();
    let queued = relay.status()["queue"]["messages"].as_u64().expect("a number");
    assert!(queued >= acknowledged.len() as u64, "{queued} of {} queued", acknowledged.len());
    upstream.up();
    let ledger = all_arrive(&upstream, &relay, &acknowledged);
    assert_eq!(duplicates(&ledger), 0, "no final reply was in flight");
}

#[test]
fn killed_while_it_delivers_it_repeats_no_more_than_what_was_in_flight() {
    let mut upstream = Upstream::stopped(PASSWORD);
    upstream.set(|behaviour| behaviour.final_delay = Duration::from_millis(5));
    let mut relay = Relay::start(&mailer(&upstream));
    let load = Load::start(relay.smtp, "out", 8, 125);
    let acknowledged = load.finish();
    assert_eq!(acknowledged.len(), 1000);

    upstream.up();
    let kills_at = [200, 450, 700];
    for kill_at in kills_at {
        wait::until_within(LONG, "the middle of the delivery", || {
            (upstream.arrived() >= kill_at).then_some(())
        });
        assert!(upstream.arrived() < 1000, "it is killed in the middle");
        relay.kill9();
        relay.up();
    }
    let ledger = all_arrive(&upstream, &relay, &acknowledged);
    let (repeated, bound) = (duplicates(&ledger), kills_at.len() * CONNECTIONS);
    assert!(repeated <= bound, "{repeated} repeated, {bound} could have been in flight");
}

#[test]
fn stopped_by_sigterm_under_load_it_ends_well_and_neither_loses_nor_repeats() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| behaviour.final_delay = Duration::from_millis(2));
    let mut relay = Relay::start(&mailer(&upstream));
    let load = Load::start(relay.smtp, "term", 6, 10_000);
    wait::until_within(LONG, "300 are acknowledged", || (load.acknowledged() >= 300).then_some(()));
    assert!(!load.ended(), "it is stopped in the middle");
    relay.terminate();
    let acknowledged = load.finish();

    relay.up();
    let ledger = all_arrive(&upstream, &relay, &acknowledged);
    assert_eq!(duplicates(&ledger), 0, "replies already due were waited for");
}

#[test]
fn a_second_process_on_the_same_queue_ends_at_once_and_names_the_first() {
    let upstream = Upstream::start(PASSWORD);
    let relay = Relay::start(&mailer(&upstream));
    // Other ports, so that the queue is all that they could fight about.
    let second = mailer(&upstream);
    let home = Home::new(&[&second]);
    let mut args = Relay::of(&home, &second).whereabouts();
    args.retain(|arg| !arg.starts_with("--data="));
    args.extend(relay.whereabouts().into_iter().filter(|arg| arg.starts_with("--data=")));

    let mut child = outpost()
        .arg("serve")
        .args(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let status = ended_within(&mut child, Duration::from_secs(5));
    let output = child.wait_with_output().expect("its last words");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(status.code(), Some(75), "{said}");
    assert!(said.contains(&relay.pid().to_string()), "it names {}: {said}", relay.pid());

    relay.client().send_token("still at work").expect("the first one goes on");
    wait::until_true("the first one delivers", || upstream.arrived() == 1);
}

#[test]
fn after_kill_9_the_queue_is_free_at_once() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream));
    relay.client().send_token("before").expect("it is taken");
    relay.kill9();
    relay.up();
    relay.client().send_token("after").expect("it is taken");
    upstream.up();
    let tokens = ["before", "after"].map(str::to_owned);
    assert_eq!(duplicates(&all_arrive(&upstream, &relay, &tokens)), 0);
}
