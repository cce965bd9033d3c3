//! What is said of a wrong configuration.

use super::*;

#[test]
fn problems_point_at_the_place_and_say_what_to_do() {
    for case in include_str!("problems.txt").trim_end().split("\n\n") {
        let (lines, expected) = case.split_once("\n->\n").expect("lines, an arrow, problems");
        let got = problems(&relay(lines));
        assert_eq!(got, expected, "for {lines}");
        assert!(!got.contains("s3cret") && !got.contains("hunter2"));
    }
}

#[test]
fn mistakes_of_the_upstream_are_named_when_it_is_read() {
    let server = |server: &str| problems(&MAILGUN.replace("smtp.mailgun.org", server));
    assert!(server("smtp.mailgun.org:587").contains("has a key of its own"));
    let url = server("smtp://me:s3cret@smtp.mailgun.org");
    assert!(url.contains("without `smtp://`") && !url.contains("s3cret"));
    let list = problems(&relay("smtp_users: [{shop: {password: a}}, {blog: {password: b}}]"));
    assert!(list.contains("smtp_users is no list"), "{list}");
    for tls in ["none", "opportunistic"] {
        let text = format!("{MAILGUN}    smtp_relay_tls: {tls}\n");
        assert!(
            problems(&text).starts_with("dotcloud.yml:8:21: credentials never travel without verified TLS")
        );
        let allowed = read(&format!("{text}    smtp_relay_allow_insecure_auth: true\n"));
        assert!(allowed.upstreams[0].allow_insecure_auth);
    }
    let implicit = read(&MAILGUN.replace("587", "465"));
    assert_eq!(implicit.upstreams[0].tls, UpstreamTls::Implicit);
    assert_eq!(read(&MAILGUN.replace("smtp.mailgun.org", "'[fd00::1]'")).upstreams[0].server, "fd00::1");
    assert_eq!(read(&MAILGUN.replace("smtp.mailgun.org", "my_mailer")).upstreams[0].server, "my_mailer");
}

#[test]
fn all_problems_come_at_once_and_in_order() {
    let text = relay("smtp_relay_port: x\nsmtp_foo: 1\nsmtp_retry: 1");
    let lines: Vec<_> = read_with(&text, None, &[]).expect_err("wrong").0.iter().map(|p| p.line).collect();
    assert_eq!(lines, [Some(5), Some(6), Some(7)]);
}

#[test]
fn the_service_is_chosen_or_the_choice_is_explained() {
    assert!(
        problems(LOCAL)
            .contains("no service here is of type: smtp\n  help: a local MTA runs with --service: www")
    );
    let two = format!("{MAILGUN}{}", MAILGUN.replace("mailer", "second"));
    assert!(problems(&two).contains("dotcloud.yml:8:1: more than one service is of type: smtp\n  help: choose one with --service: mailer, second"));
    assert_eq!(read_with(&two, Some("second"), &[]).expect("right").settings.service, "second");
    let none = read_with(MAILGUN, Some("web"), &[]).expect_err("wrong").to_string();
    assert!(none.contains("there is no service \"web\"\n  help: services: mailer"), "{none}");
    let empty = read_with("web: {type: php}", Some("web"), &[]).expect_err("wrong").to_string();
    assert!(empty.contains(":1:1: smtp_server is missing"), "{empty}");
    let by_variable = read_with("web: {type: php}", Some("web"), &[("SMTP_SERVER", "mailer")]);
    assert_eq!(by_variable.expect("right").settings.upstreams[0].server, "mailer");
    assert!(
        problems("mailer:\n  type: smtp\n  smtp_relay_server: a\n")
            .contains("3:3: settings of the service stand under its `config`")
    );
    assert!(
        problems("mailer:\n  type: smtp\n  config: a\n")
            .contains("3:11: config is a map of keys, but this is a single value")
    );
    assert!(problems(&format!("{MAILGUN}{MAILGUN}")).contains("8:1: this service stands here a second time"));
    assert!(problems("mailer: {type: smtp}").contains("1:1: smtp_relay_server is missing"));
}

#[test]
fn every_key_is_read() {
    for key in KEYS {
        let text = if key.name == "smtp_relay_server" {
            "mailer: {type: smtp, config: {smtp_relay_server: {}}}".into()
        } else {
            relay(&format!("{}: !odd x", key.name))
        };
        let got = problems(&text);
        assert!(got.contains(key.name) && got.contains(key.wants), "{}: {got}", key.name);
    }
}
