//! What monitoring sees: metrics that promtool and a real Prometheus understand, as many series however many clients
//! come, rules and a dashboard that fit them, health, and the plugin for Nagios.

mod support;

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use support::{http, ports, programs, relay::Relay, service::Service, upstream::Upstream, wait};

/// A relay whose upstream is never there: what is taken stays in the queue.
fn mailer() -> Service {
    Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free())
}

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn promtool() -> Command {
    Command::new(programs::require(Path::new("/usr/bin/promtool")))
}

fn metrics(relay: &Relay) -> String {
    http::get(relay.admin, "/metrics").text()
}

/// The series of an answer, by name and labels.
fn series(text: &str) -> BTreeSet<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.rsplit_once(' ')?.0))
        .collect()
}

#[test]
fn promtool_finds_nothing_to_say_of_the_metrics() {
    const PASSWORD: &str = "upstream-sesame-4711";
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0);
    let relay = Relay::start(&service.set("smtp_rate_limit", "1000/day"));
    relay.client().send_token("one").expect("it is taken");
    wait::until_true("it is delivered", || upstream.arrived() > 0);
    relay.wait_for_empty_queue();
    let text = metrics(&relay);
    let mut child = promtool()
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("promtool ends");
    assert!(output.status.success(), "{}", programs::shown(&output));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{}\n{text}", programs::shown(&output));
    for name in [
        "outpost_queue_messages{state=\"active\"} 0",
        "outpost_queue_oldest_age_seconds 0",
        "outpost_queue_bytes 0",
        "outpost_received_total{result=\"accepted\"} 1",
        "outpost_deliveries_total{upstream=\"localhost\",result=\"delivered\"} 1",
        "outpost_delivery_seconds_count 1",
        "outpost_upstream_up{upstream=\"localhost\"} 1",
        "outpost_upstream_connections{upstream=\"localhost\"} ",
        "outpost_rate_limit_used{upstream=\"localhost\",window=\"day\",counts=\"messages\"} 1",
        "outpost_rate_limit_max{upstream=\"localhost\",window=\"day\",counts=\"messages\"} 1000",
        "outpost_listener_connections ",
        "outpost_enqueue_seconds_count 1",
        "outpost_ready 1",
    ] {
        assert!(text.contains(&format!("\n{name}")), "{name} is not in\n{text}");
    }
    let open = http::send("GET", relay.admin, "/metrics", &[("Accept", "application/openmetrics-text")], b"");
    assert!(open.text().ends_with("# EOF\n") && open.head.contains("application/openmetrics-text"));
}

#[test]
fn no_probe_leaves_a_line_in_the_log() {
    let relay = Relay::start_dev();
    relay.client().send_token("one").expect("it is taken");
    wait::until_true("it is told", || relay.log().contains(" delivered id="));
    let lines = relay.log().lines().count();
    for _ in 0..50 {
        for path in ["/healthz", "/readyz", "/metrics", "/api/v1/status", "/nothing"] {
            http::get(relay.admin, path);
        }
    }
    assert_eq!(relay.log().lines().count(), lines, "{}", relay.log());
}

#[test]
fn no_client_adds_a_series() {
    let relay = Relay::start(&mailer());
    relay.client().send_token("first").expect("it is taken");
    let before = metrics(&relay);
    let known = series(&before);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", relay.smtp)).expect("a connection");
    let mut said = String::new();
    for number in 0..5_000 {
        said.push_str(&format!(
            "EHLO host-{number}.example\r\nMAIL FROM:<sender-{number}@from-{number}.example>\r\n\
             RCPT TO:<user-{number}@to-{number}.example>\r\nBDAT 14 LAST\r\nSubject: x\r\n\r\n"
        ));
    }
    said.push_str("QUIT\r\n");
    let mut heard = stream.try_clone().expect("its other half");
    let reading = std::thread::spawn(move || {
        let mut all = String::new();
        let _ = std::io::Read::read_to_string(&mut heard, &mut all);
        all
    });
    stream.write_all(said.as_bytes()).expect("it is heard");
    let heard = reading.join().expect("it is read");
    assert_eq!(
        heard.matches("250 2.0.0 queued as").count(),
        5_000,
        "{}",
        &heard[heard.len().saturating_sub(500)..]
    );
    let after = metrics(&relay);
    assert!(after.contains("outpost_received_total{result=\"accepted\"} 5001\n"), "{after}");
    assert_eq!(series(&after), known);
}

#[test]
fn nothing_that_becomes_of_mail_adds_a_series() {
    const PASSWORD: &str = "upstream-sesame-4711";
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_retry", "1h..1h");
    let relay = Relay::start(&service.set("smtp_breaker_bounces", 1000));
    relay.client().send_token("first").expect("it is taken");
    relay.wait_for_empty_queue();
    let before = metrics(&relay);
    let mut client = relay.client();
    for number in 0..300 {
        let to = format!("user-{number}@to-{number}.example");
        match number % 10 {
            0 => upstream.set(|it| drop(it.recipients.insert(to.clone(), format!("550 5.1.{number} no")))),
            1 => upstream.set(|it| drop(it.recipients.insert(to.clone(), format!("450 4.2.{number} later")))),
            _ => {}
        }
        let from = format!("sender-{number}@from-{number}.example");
        client.send(&from, &[&to], "Subject: x\r\n\r\nx\r\n").expect("it is taken");
    }
    wait::until_true("each has been tried", || relay.status()["queue"]["messages"] == 30);
    let after = metrics(&relay);
    assert!(!after.contains("result=\"bounced\"} 0\n"), "{after}");
    assert_eq!(series(&after), series(&before));
}

#[test]
fn mail_at_the_rate_that_is_allowed_is_no_outage() {
    const PASSWORD: &str = "upstream-sesame-4711";
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_rate_limit", "1/second");
    let relay = Relay::start(&service);
    let mut client = relay.client();
    for number in 0..20 {
        client.send_token(&format!("token-{number}")).expect("it is taken");
    }
    wait::until_true("it has begun", || upstream.arrived() > 0);
    let mut looks = 0;
    while upstream.arrived() < 18 {
        let text = metrics(&relay);
        assert!(text.contains("\noutpost_upstream_up{upstream=\"localhost\"} 1\n"), "{text}");
        let page = http::get(relay.admin, "/").text();
        assert!(!page.contains("Mail waits") && page.contains("headline good"), "{page}");
        let check = relay.cli(&["status", "--check"]);
        assert_eq!(check.status.code(), Some(0), "{}", programs::shown(&check));
        looks += 1;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(looks > 5, "{looks}");
}

#[test]
fn a_limit_that_is_used_up_for_long_is_said_and_is_no_outage() {
    const PASSWORD: &str = "upstream-sesame-4711";
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_rate_limit", "1/day");
    let relay = Relay::start(&service);
    relay.client().send_token("one").expect("it is taken");
    relay.client().send_token("two").expect("it is taken");
    wait::until_true("it is used up", || relay.status()["upstreams"][0]["state"] == "paused");
    let text = metrics(&relay);
    assert!(text.contains("\noutpost_upstream_up{upstream=\"localhost\"} 1\n"), "{text}");
    let page = http::get(relay.admin, "/").text();
    assert!(page.contains("headline wait") && page.contains("A limit is used up"), "{page}");
    let check = relay.cli(&["status", "--check"]);
    let line = programs::shown(&check);
    assert_eq!(check.status.code(), Some(1), "{line}");
    assert!(line.contains("is paused: the limit of"), "{line}");
}

#[test]
fn the_rules_pass_their_tests() {
    programs::run(promtool().args(["check", "rules"]).arg(packaging("prometheus/alerts.yml")));
    let mut test = promtool();
    programs::run(test.current_dir(packaging("prometheus")).args(["test", "rules", "alerts_test.yml"]));
}

#[test]
fn rules_and_dashboard_use_metrics_that_there_are() {
    let relay = Relay::start(&mailer().set("smtp_rate_limit", "10/day"));
    let text = metrics(&relay);
    let mut known: BTreeSet<String> = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a type");
        let ends: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        known.extend(ends.iter().map(|end| format!("{name}{end}")));
    }
    let dashboard = std::fs::read_to_string(packaging("grafana/dashboard.json")).expect("the dashboard");
    let parsed: Value = serde_json::from_str(&dashboard).expect("JSON");
    assert!(parsed["panels"].as_array().is_some_and(|panels| panels.len() > 10));
    let rules = std::fs::read_to_string(packaging("prometheus/alerts.yml")).expect("the rules");
    for (what, text) in [("dashboard", dashboard), ("rules", rules)] {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let used: BTreeSet<&str> =
            text.split(|c| !part(c)).filter(|word| word.starts_with("outpost_")).collect();
        assert!(used.len() > 5, "{used:?}");
        for name in used {
            assert!(known.contains(name), "the {what} uses {name}, which is none of {known:?}");
        }
    }
}

#[test]
fn a_real_prometheus_scrapes_it_and_takes_the_rules() {
    let relay = Relay::start(&mailer());
    relay.client().send_token("one").expect("it is taken");
    let (directory, port) = (relay.home.path("prometheus"), ports::free());
    std::fs::create_dir_all(&directory).expect("a directory");
    let configuration = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
         scrape_configs:\n- job_name: outpost\n  static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
        packaging("prometheus/alerts.yml").display(),
        relay.admin
    );
    std::fs::write(directory.join("prometheus.yml"), configuration).expect("it is written");
    programs::run(promtool().args(["check", "config", "prometheus.yml"]).current_dir(&directory));
    let mut prometheus = Command::new(programs::require(Path::new("/usr/bin/prometheus")))
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"])
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .current_dir(&directory)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log")).expect("a file for its log"))
        .spawn()
        .expect("prometheus starts");
    let asked = std::panic::catch_unwind(|| {
        let ask = |path: &str| {
            let answer = http::request("GET", port, path).ok()?;
            (answer.status == 200).then(|| answer.json())
        };
        let value = |query: &str| {
            let found = ask(&format!("/api/v1/query?query={query}"))?;
            found["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
        };
        wait::until_true("a scrape", || {
            value("outpost_queue_messages%7Bstate=%22active%22%7D").is_some()
                && value("up").as_deref() == Some("1")
        });
        assert_eq!(value("outpost_received_total%7Bresult=%22accepted%22%7D").as_deref(), Some("1"));
        let targets = ask("/api/v1/targets").expect("targets");
        assert_eq!(targets["data"]["activeTargets"][0]["lastError"], "", "{targets}");
        let rules = ask("/api/v1/rules").expect("rules");
        assert_eq!(rules["data"]["groups"][0]["rules"].as_array().map(Vec::len), Some(12), "{rules}");
    });
    let _ = prometheus.kill();
    let _ = prometheus.wait();
    if let Err(panic) = asked {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_plugin_says_in_one_line_how_it_is() {
    let mut relay = Relay::start(&mailer());
    let check = |relay: &Relay, args: &[&str]| {
        let output = relay.cli(&[&["status", "--check"], args].concat());
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(line.lines().count(), 1, "{line}");
        (output.status.code(), line)
    };
    let (code, line) = check(&relay, &["--max-depth=10", "--max-age=1h"]);
    assert_eq!(code, Some(0), "{line}");
    assert!(line.starts_with("OUTPOST OK - 0 messages in the queue | messages=0;;10;0 "), "{line}");
    assert!(line.contains(" oldest=0s;;3600;0 "), "{line}");
    relay.client().send_token("one").expect("it is taken");
    relay.client().send_token("two").expect("it is taken");
    let (code, line) = check(&relay, &["--max-depth=1"]);
    assert!(code == Some(2) && line.contains("2 messages in the queue, more than 1"), "{line}");
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let (code, line) = check(&relay, &["--max-age=10ms"]);
    assert!(code == Some(2) && line.contains("the oldest message has waited"), "{line}");
    wait::until_true("the upstream is down", || relay.status()["upstreams"][0]["state"] != "up");
    let (code, line) = check(&relay, &[]);
    assert!(code == Some(1) && line.starts_with("OUTPOST WARNING - upstream 127.0.0.1 is "), "{line}");
    relay.terminate();
    let (code, line) = check(&relay, &[]);
    assert!(code == Some(2) && line.starts_with("OUTPOST CRITICAL - no relay runs here"), "{line}");
    let usage = relay.cli(&["status", "--max-depth=1"]);
    assert!(!usage.status.success(), "without --check it means nothing");
}

#[test]
fn a_log_that_journald_reads_has_priorities_and_no_times() {
    use std::os::unix::fs::MetadataExt as _;
    let service = mailer();
    let home = support::service::Home::new(&[&service]);
    let mut relay = Relay::of(&home, &service);
    let stderr = std::fs::File::create(home.path("journal")).expect("a file");
    let stat = stderr.metadata().expect("its inode");
    relay.up_by(|command| {
        command.env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino())).stderr(stderr);
    });
    relay.client().send_token("one").expect("it is taken");
    let log = || std::fs::read_to_string(home.path("journal")).expect("the log");
    wait::until_true("it is told", || log().contains(" received id=") && log().contains("<4>"));
    for line in log().lines() {
        let level = ["<3>ERROR ", "<4> WARN ", "<6> INFO "].iter().find(|start| line.starts_with(**start));
        assert!(level.is_some(), "{line}");
    }
}

#[test]
fn the_log_is_one_object_a_line_and_shows_no_more_of_addresses_than_it_may() {
    for (addresses, shown, hidden) in [
        ("full", "alice@from.example", "nobody"),
        ("domain", "…@from.example", "alice"),
        ("hash", "#", "from.example"),
    ] {
        let service = mailer().set("smtp_log_format", "json").set("smtp_log_addresses", addresses);
        let relay = Relay::start(&service);
        let mut client = relay.client();
        client
            .send("alice@from.example", &["bob@to.example"], "Subject: x\r\n\r\nx\r\n")
            .expect("it is taken");
        wait::until_true("it is told", || relay.log().contains("\"received\""));
        let log = relay.log();
        let objects: Vec<Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
        assert!(objects.iter().all(|line| line["time"].is_string()), "{log}");
        let received = objects.iter().find(|line| line["event"] == "received").expect("it is there");
        assert!(received["sender"].as_str().is_some_and(|sender| sender.starts_with(shown)), "{received}");
        assert!(!log.contains(hidden), "{log}");
        // What is for the operator's eyes is not for the log's readers, and is whole.
        let events = http::get(relay.admin, "/api/v1/events").json();
        assert_eq!(events["items"][0]["sender"], "alice@from.example");
    }
    let relay = Relay::start(&mailer().set("smtp_log_addresses", "domain"));
    relay
        .client()
        .send("alice@from.example", &["bob@to.example"], "Subject: x\r\n\r\nx\r\n")
        .expect("it is taken");
    wait::until_true("it is told", || relay.log().contains("sender=…@from.example recipient=…@to.example"));
    assert!(!relay.log().contains("alice"), "{}", relay.log());
}
