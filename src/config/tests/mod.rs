//! What a right configuration means; the other files: what is said of a wrong one, where settings come
//! from, what attackers write, and units.

mod hostile;
mod manual;
mod problems;
mod sources;
mod units;

use std::{collections::HashMap, path::Path, time::Duration};

use secrecy::ExposeSecret as _;

use super::*;

const MAILGUN: &str = "\
mailer:
  type: smtp
  config:
    smtp_relay_server: smtp.mailgun.org
    smtp_relay_port: 587
    smtp_relay_username: postmaster@yourmailgundomain.com
    smtp_relay_password: YourMailgunPassword
";

const LOCAL: &str = "\
www:
  type: python
  config:
    smtp_server: smtp.mailgun.org
    smtp_port: 25
    smtp_username: postmaster@company.com
    smtp_password: YourMailGunPassword
";

fn read_with(text: &str, service: Option<&str>, env: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let env: HashMap<_, _> = env.iter().copied().collect();
    let source =
        Source { service: service.map(str::to_owned), data: Some("/data".into()), ..Source::default() };
    parse(text, "/etc/app/dotcloud.yml", &source, &|name| env.get(name).map(|v| (*v).to_owned()))
}

fn read(text: &str) -> Settings {
    read_with(text, None, &[]).map_err(|p| p.to_string()).expect("it is right").settings
}

/// A relay with these lines in its `config`.
fn relay(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!("mailer:\n  type: smtp\n  config:\n    smtp_relay_server: relay.example\n{lines}")
}

fn problems(text: &str) -> String {
    read_with(text, None, &[]).expect_err("it is wrong").to_string().replace("/etc/app/", "")
}

#[test]
fn the_relay_of_the_mission_reads_as_it_stands() {
    let settings = read(MAILGUN);
    assert_eq!((settings.service.as_str(), settings.role), ("mailer", Role::Relay));
    let upstream = &settings.upstreams[0];
    assert_eq!((upstream.server.as_str(), upstream.port), ("smtp.mailgun.org", 587));
    assert_eq!((upstream.name.as_str(), upstream.tls), ("smtp.mailgun.org", UpstreamTls::StartTls));
    let login = upstream.login.as_ref().expect("a login");
    assert_eq!(login.username, "postmaster@yourmailgundomain.com");
    assert_eq!(login.password.expose_secret(), "YourMailgunPassword");
    assert_eq!(settings.listen, [Listen::at("0.0.0.0:587")]);
    assert_eq!(settings.access.users[0].name, "dotcloud");
    assert!(settings.access.users[0].password.is_none());
    assert_eq!(settings.queue.directory, Path::new("/data/queue"));
    assert_eq!(settings.queue.lifetime, Duration::from_secs(5 * 86_400));
    let files = ["/data/environment.json", "/data/environment.yaml"].map(PathBuf::from);
    assert_eq!((&settings.environment.files[..], &upstream.published[..]), (&files[..], &[][..]));
    assert_eq!(settings.bounds.message_size, 25_000_000);
    assert_eq!(settings.admin.listen.to_string(), "127.0.0.1:8025");
}

#[test]
fn only_the_server_is_needed() {
    let settings = read(&relay(""));
    assert_eq!(settings.upstreams[0].port, 587);
    assert!(settings.upstreams[0].login.is_none());
}

#[test]
fn the_local_mta_of_the_mission_reads_as_it_stands() {
    let loaded = read_with(LOCAL, Some("www"), &[]).expect("it is right");
    let settings = loaded.settings;
    assert_eq!((settings.service.as_str(), settings.role), ("www", Role::LocalMta));
    assert_eq!(settings.upstreams[0].port, 25);
    assert_eq!(settings.upstreams[0].login.clone().expect("a login").username, "postmaster@company.com");
    assert_eq!(settings.listen[0].address, "127.0.0.1:25");
    assert_eq!(settings.access.users[0].name, "dotcloud", "and not the upstream's");
    assert!(settings.access.networks.iter().any(|net| net.contains(&std::net::IpAddr::from([127, 0, 0, 1]))));
}

#[test]
fn both_ways_stand_in_one_file_among_services_that_are_not_ours() {
    let others = "\
db: {type: mysql, config: {smtp_nonsense: 1, x: [1, !odd {a: 1}]}}
db2:
  type: redis
  config: &shared
    a: 1
    a: 2
x: *shared
";
    let text = format!(
        "{MAILGUN}{LOCAL}    php_version: 5\n    uwsgi_memory: {{}}\n  approot: www\n  instances: 2\n{others}"
    );
    assert_eq!(read(&text).service, "mailer");
    let www = read_with(&text, Some("www"), &[]).expect("it is right").settings;
    assert_eq!(www.role, Role::LocalMta);
}

#[test]
fn several_upstreams_each_have_their_keys_and_what_they_serve() {
    let text = "mailer:
  type: smtp
  config:
    smtp_auth_retry: 1s..2s
    smtp_users: {shop: {password: x, rate_limit: [5/second, 9 recipients/hour]}}
    smtp_relays:
      - {name: first, server: a.example, port: 465, username: u, password: p, rate_limit: 14/second}
      - server: smtp.office365.com
        priority: 2
        weight: 3
        senders: [shop.example, .shop.example]
        recipients: vip@b.example
        users: shop
";
    let settings = read(text);
    let [first, second] = &settings.upstreams[..] else { panic!("two") };
    assert_eq!((first.name.as_str(), first.tls), ("first", UpstreamTls::Implicit));
    assert_eq!(first.limits, [parse_limit("14/second").expect("a limit")]);
    assert_eq!(first.auth_retry.longest, Duration::from_secs(2));
    assert_eq!((second.name.as_str(), second.connections), ("smtp.office365.com", 3));
    let shown: Vec<_> = second.limits.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["30 messages/minute", "10000 recipients/day"], "what the provider documents");
    let Serves { priority, weight, senders, recipients, users } = &second.serves;
    assert_eq!((*priority, *weight, senders.len(), recipients.len(), users.len()), (2, 3, 2, 1, 1));
    assert_eq!(settings.access.users[1].limits.len(), 2);
}

#[test]
fn every_option_of_the_upstream_exists_for_a_local_mta_too() {
    let text =
        format!("{LOCAL}    smtp_tls: implicit\n    smtp_relay_tls_ca: ca.pem\n    smtp_relay_auth: plain\n");
    let upstream = read_with(&text, Some("www"), &[]).expect("it is right").settings.upstreams.remove(0);
    assert_eq!(upstream.tls, UpstreamTls::Implicit);
    assert_eq!(upstream.ca.as_deref(), Some(Path::new("/etc/app/ca.pem")));
    assert_eq!(upstream.login.expect("a login").mechanism, AuthMechanism::Plain);
}

#[test]
fn every_key_reads() {
    let settings = read(&relay(
        "smtp_relay_tls_fingerprint: 'SHA256:AB:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:AB:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD'
smtp_relay_connections: 3
smtp_relay_timeout: 1m30s
smtp_auth_retry: 2s..4s
smtp_listen:
  - 127.0.0.1:2525
  - {address: '[::]:465', tls: implicit, auth: required, proxy_protocol: [10.0.0.5, 10.1.0.0/16]}
  - {address: 'unix:/run/outpost/smtp', proxy_protocol: true}
smtp_hostname: mailer.example.com
smtp_username: app
smtp_password: 0123
smtp_users:
  shop: {password: 1e3, senders: shop.example}
smtp_senders: [example.com, '@example.org', .example.net, a@example.edu]
smtp_networks: [10.0.0.0/8, 192.168.1.1, 'fd00::/8']
smtp_tls_cert: cert.pem
smtp_tls_key: /k.pem
smtp_max_message_size: 10MiB
smtp_max_recipients: 5
smtp_max_connections: 6
smtp_max_connections_per_client: 7
smtp_max_buffered: 1MB
smtp_max_command_line: 1000
smtp_max_header_size: 100KB
smtp_max_content_line: 1500
smtp_max_buffered_per_connection: 200KB
smtp_max_hops: 9
smtp_max_passes: 4
smtp_max_failed_logins: 2
smtp_max_errors: 8
smtp_max_commands: 70
smtp_max_commands_before_auth: 60
smtp_login_timeout: 30s
smtp_timeout: 1m
smtp_transaction_timeout: 2m
smtp_min_rate: \"0\"
smtp_queue: spool
smtp_queue_lifetime: 2d
smtp_delay_warning: 1h
smtp_retry: 1s..2s
smtp_queue_max_messages: 10
smtp_queue_max_bytes: 1GB
smtp_queue_min_free: \"0\"
smtp_postmaster: root@example.com
smtp_environment_file: [a.json, /b.env]
smtp_public_host: mailer
smtp_publish_relay_password: true
smtp_admin_listen: 0.0.0.0:80
smtp_admin_password: x
smtp_log_level: warn,outpost::queue=debug
smtp_log_format: json
smtp_log_addresses: hash
smtp_alert_webhook: 'https://hooks.example/a?b=c'
smtp_alert_webhook_secret: s
smtp_alert_queue_messages: 5
smtp_alert_queue_age: 1m
smtp_alert_certificate: 1d",
    ));
    let (log, hooks) = (&settings.log, &settings.webhooks);
    assert_eq!((log.format, log.addresses), (LogFormat::Json, LogAddresses::Hash));
    let thresholds = hooks.thresholds;
    assert_eq!((thresholds.messages, thresholds.age.as_secs()), (5, 60));
    assert_eq!(thresholds.certificate.as_secs(), 86_400);
    let url = hooks.alerts.as_ref().map(|hook| hook.url.expose_secret().to_owned());
    assert_eq!((url.as_deref(), hooks.events.is_none()), (Some("https://hooks.example/a?b=c"), true));
    assert_eq!(settings.upstreams[0].fingerprint.expect("set")[..2], [0xab, 0]);
    assert_eq!(settings.upstreams[0].timeout, Some(Duration::from_secs(90)));
    assert_eq!(settings.upstreams[0].auth_retry.longest, Duration::from_secs(4));
    let proxies = vec!["10.0.0.5/32".parse().expect("a network"), "10.1.0.0/16".parse().expect("a network")];
    let implicit =
        Listen { tls: ListenTls::Implicit, login_required: true, proxies, ..Listen::at("[::]:465") };
    assert_eq!(settings.listen[1], implicit);
    assert!(settings.listen[2].is_unix() && !settings.listen[2].login_required);
    assert_eq!(settings.listen[2].proxies, settings.access.networks);
    let secret =
        |n: usize| settings.access.users[n].password.as_ref().expect("set").expose_secret().to_owned();
    assert_eq!((secret(0), secret(1)), ("0123".into(), "1e3".into()), "numbers keep their text");
    assert_eq!(settings.access.networks[1].to_string(), "192.168.1.1/32");
    let shown = |list: &Option<Vec<AddressPattern>>| {
        list.iter().flatten().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(shown(&settings.access.users[1].senders), ["shop.example"]);
    assert_eq!(
        shown(&settings.access.senders),
        ["example.com", "example.org", ".example.net", "a@example.edu"]
    );
    assert_eq!(settings.tls.expect("set").cert, Path::new("/etc/app/cert.pem"));
    assert_eq!(settings.bounds.message_size, 10 << 20);
    let bounds = settings.bounds.session;
    assert_eq!((bounds.command_line, bounds.header, bounds.hops, bounds.errors), (1000, 100_000, 9, 8));
    assert_eq!((bounds.content_line, bounds.buffered), (Some(1500), 200_000));
    assert_eq!((bounds.passes, bounds.failed_logins), (4, 2));
    assert_eq!((bounds.commands, bounds.commands_before_auth, bounds.min_rate), (70, 60, 0));
    assert_eq!((bounds.timeout.as_secs(), bounds.transaction_timeout.as_secs()), (60, 120));
    assert_eq!(bounds.login_timeout.as_secs(), 30);
    assert_eq!(settings.bounds.buffered, 1_000_000);
    assert_eq!(settings.queue.directory, Path::new("/etc/app/spool"));
    assert_eq!(settings.queue.min_free, 0);
    assert_eq!(settings.queue.delay_warning, Some(Duration::from_secs(3_600)));
    assert_eq!(settings.environment.files, [PathBuf::from("/etc/app/a.json"), "/b.env".into()]);
    assert!(settings.environment.relay_password);
}

#[test]
fn a_map_may_be_shared_by_anchor_and_merge() {
    let text = "x-common: &common\n  smtp_relay_server: a.example\n  smtp_relay_port: 25\nmailer:\n  type: smtp\n  config:\n    <<: *common\n    smtp_relay_port: 26\n";
    let upstream = read(text).upstreams.remove(0);
    assert_eq!((upstream.server.as_str(), upstream.port), ("a.example", 26));
}

#[test]
fn a_byte_order_mark_at_the_start_is_no_harm() {
    assert_eq!(read(&format!("\u{feff}{MAILGUN}")).service, "mailer");
    assert_eq!(read(&MAILGUN.replace('\n', "\r\n")).upstreams[0].port, 587);
}

#[test]
fn the_examples_are_right() {
    let check = |text: &str, service| {
        parse(text, "dotcloud.yml", &Source { service, ..Source::default() }, &|_| None)
            .map_err(|problems| problems.to_string())
            .expect("an example works as it stands")
    };
    check(include_str!("../../../config/dotcloud.yml"), None);
    check(include_str!("../../../config/gmail.yml"), None);
    for service in [None, Some("www".to_owned())] {
        check(include_str!("../../../config/two-tier.yml"), service);
    }
}

#[test]
fn senders_are_rewritten_by_one_address_or_by_the_first_pattern_that_fits() {
    let map = |lines: &str| read(&relay(lines)).upstreams[0].sender_rewrite.clone().expect("a map");
    let of = |map: &AddressMap, sender: &str| map.of(sender).map(|address| address.as_str().to_owned());
    let one = map("smtp_sender_rewrite: relay@example.com");
    assert_eq!(of(&one, "a@b.example").as_deref(), Some("relay@example.com"));
    assert_eq!(of(&one, "root").as_deref(), Some("relay@example.com"));
    assert_eq!(of(&one, "relay@example.com"), None);
    let several = map("smtp_sender_rewrite: {z@b.example: z@example.com, b.example: b@example.com}");
    assert_eq!(of(&several, "Z@b.example").as_deref(), Some("z@example.com"));
    assert_eq!(of(&several, "a@b.example").as_deref(), Some("b@example.com"));
    assert_eq!((of(&several, "a@c.example"), of(&several, "root")), (None, None));
    let settings = read(
        "mailer: {type: smtp, config: {smtp_relays: [{server: a.example, sender_rewrite: a@example.com}, {server: b.example}]}}",
    );
    assert!(settings.upstreams[0].sender_rewrite.is_some() && settings.upstreams[1].sender_rewrite.is_none());
    for (wrong, words) in [
        ("relay", "5:26: smtp_sender_rewrite wants a mail address"),
        ("{}", "wants 1 to"),
        ("{'*@b.example': a@b.example}", "write `user@example.com`, `example.com` for a domain"),
        ("{b.example: b.example}", "wants a mail address"),
    ] {
        let said = problems(&relay(&format!("smtp_sender_rewrite: {wrong}")));
        assert!(said.contains(words), "{wrong}: {said}");
    }
}

#[test]
fn keys_that_sign_mail_are_one_or_several() {
    let keys = |lines: &str| read(&relay(lines)).dkim;
    let one = keys("smtp_dkim: {domain: example.com}");
    assert_eq!(one[0].key, Path::new("/data/dkim/outpost.example.com.pem"));
    assert_eq!((one[0].selector.as_str(), one[0].algorithm), ("outpost", DkimAlgorithm::Rsa));
    let two = keys(
        "smtp_dkim: [{domain: a.example, key: k.pem}, {domain: a.example, selector: ed, algorithm: ed25519}]",
    );
    assert_eq!(two[0].key, Path::new("/etc/app/k.pem"));
    assert_eq!((two.len(), two[1].algorithm), (2, DkimAlgorithm::Ed25519));
    for (wrong, words) in [
        ("example.com", "smtp_dkim wants a map of domain"),
        ("{selector: x}", "this key has no domain"),
        ("[{domain: a.example}, {domain: a.example}]", "outpost is there twice for a.example"),
        ("{domain: a.example, algorithm: dsa}", "algorithm wants rsa or ed25519"),
        ("{domain: a.example, selektor: x}", "did you mean selector"),
    ] {
        let said = problems(&relay(&format!("smtp_dkim: {wrong}")));
        assert!(said.contains(words), "{wrong}: {said}");
    }
}

#[test]
fn tokens_come_from_a_known_provider_or_from_urls() {
    let oauth = |lines: &str| {
        let text = relay(&format!("smtp_relay_username: a@b.example\nsmtp_relay_oauth: {lines}"));
        read(&text).upstreams[0].login.clone().expect("a login").oauth.expect("tokens")
    };
    let user = oauth("{provider: microsoft, client_id: us}");
    assert_eq!(user.token_url, "https://login.microsoftonline.com/organizations/oauth2/v2.0/token");
    assert_eq!(user.scope.as_deref(), Some("https://outlook.office.com/SMTP.Send offline_access"));
    assert_eq!(user.kept, Path::new("/data/oauth-relay.example.json"));
    let client = oauth("{provider: microsoft, tenant: b.example, client_id: us, client_secret: x}");
    assert_eq!(client.token_url, "https://login.microsoftonline.com/b.example/oauth2/v2.0/token");
    assert_eq!(client.scope.as_deref(), Some("https://outlook.office365.com/.default"));
    let google = oauth("{provider: google, client_id: us, client_secret: x, refresh_token: y}");
    assert_eq!(google.device_url.as_deref(), Some("https://oauth2.googleapis.com/device/code"));
    assert_eq!(google.scope.as_deref(), Some("https://mail.google.com/"));
    let said = problems(&relay(
        "smtp_relay_username: a\nsmtp_relay_oauth: {token_url: 'https://a.example/', client_id: us}",
    ));
    assert!(
        said.contains("neither refresh_token nor client_secret") && said.contains("outpost login"),
        "{said}"
    );
}

#[test]
fn a_provider_s_largest_message_is_told_before_the_first_one() {
    let text = "mailer: {type: smtp, config: {smtp_relay_provider: postmark}}";
    let loaded = read_with(text, None, &[]).map_err(|p| p.to_string()).expect("it is right");
    assert_eq!(loaded.settings.upstreams[0].message_size, Some(10_000_000));
    let said: String = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(said.contains("10000000 octets at most") && said.contains("smtp_max_message_size"), "{said}");
    let text = "mailer: {type: smtp, config: {smtp_relay_provider: postmark, smtp_max_message_size: 10MB}}";
    assert!(read_with(text, None, &[]).map_err(|p| p.to_string()).expect("it is right").warnings.is_empty());
}
