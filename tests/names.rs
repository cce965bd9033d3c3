//! The name of the upstream, and a name server that has its bad days. Its failures are never those of mail.

mod support;

use support::bytes::contains;
use support::names::{Names, Says};
use support::relay::Relay;
use support::service::{Home, Service};
use support::upstream::{NAME, Shows, Upstream};
use support::{mount, wait};

const PASSWORD: &str = "upstream-sesame-4711";

fn upstream_status(relay: &Relay) -> serde_json::Value {
    relay.status()["upstreams"][0].clone()
}

#[test]
fn whatever_the_name_server_says_mail_waits_and_the_words_tell_what_it_was() {
    if !mount::wanted() {
        return;
    }
    for (says, words) in [
        (Says::NoSuchName, "Name or service not known"),
        (Says::NoAddress, "No address associated with hostname"),
        (Says::Failure, "Temporary failure in name resolution"),
        (Says::Nothing, "Temporary failure in name resolution"),
    ] {
        let names = Names::start(says);
        let upstream = Upstream::start(PASSWORD);
        let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_relay_server", NAME);
        let mut relay = Relay::of(&Home::new(&[&service]), &service);
        relay.up_under(names.only(), |_| {});
        relay.client().send_token("one").expect("taken, whatever the name server says");
        let status = wait::until(&format!("{says:?} is told"), || {
            Some(upstream_status(&relay)).filter(|status| status["state"] == "down")
        });
        let reason = status["reason"].as_str().expect("a reason");
        let wanted = format!("the host name {NAME} can't be resolved ({words})");
        assert!(reason.contains(&wanted), "{says:?}: {reason}");
        assert_eq!(status["who_must_act"], "operator", "{says:?}: {status}");
        let told = relay.told(&["status"]);
        assert!(
            told.contains(&wanted) && told.contains("check smtp_relay_server and the name server"),
            "{told}"
        );
        wait::until_true("it waits", || relay.queue()[0]["state"] == "deferred");
        let log = relay.log();
        assert!(log.contains(&wanted) && !log.contains(" bounced id="), "{says:?}: {log}");
        assert!(names.asked() > 0 && upstream.heard().is_empty());
        let mut check = names.only();
        let check = check.args(["check", "--connect"]).args(relay.whereabouts()).output().expect("it runs");
        assert!(
            contains(&[check.stdout, check.stderr].concat(), wanted.as_bytes()),
            "{says:?}: check --connect"
        );

        names.set(Says::Here);
        relay.wait_for_empty_queue();
        assert_eq!(upstream.ledger().get("one"), Some(&1), "{says:?}");
    }
}

// RFC 9525 §6.1: what was configured counts, not where a name server leads.
#[test]
fn behind_another_name_the_certificate_must_be_for_the_configured_one() {
    if !mount::wanted() {
        return;
    }
    let names = Names::start(Says::Alias);
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|it| it.shows = Shows::WrongName);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_relay_server", NAME);
    let mut relay = Relay::of(&Home::new(&[&service]), &service);
    relay.up_under(names.only(), |_| {});
    relay.client().send_token("one").expect("taken");
    let status = wait::until("it is told", || {
        Some(upstream_status(&relay)).filter(|status| status["state"] == "down")
    });
    let reason = status["reason"].as_str().expect("a reason");
    assert!(reason.contains(&format!("for another name than {NAME}")), "{reason}");
    assert_eq!(upstream.auth_attempts(), 0);

    upstream.set(|it| it.shows = Shows::Good);
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("one"), Some(&1));
}
