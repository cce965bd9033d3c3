//! What webhooks are told: signed, tried again, over a restart, and never in the way of mail.

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use support::{
    http, ports, programs,
    relay::Relay,
    service::Service,
    upstream::{USER, Upstream},
    wait,
};

const SECRET: &str = "webhook-sesame-4711";

/// A POST as it came.
#[derive(Clone, Debug)]
struct Post {
    path: String,
    head: String,
    body: String,
}

impl Post {
    fn field(&self, name: &str) -> &str {
        let start = format!("{name}: ");
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_else(|| panic!("{name}: {}", self.head))
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

/// A place that takes POSTs, and answers with the status and the body that it is told to.
struct Place {
    port: u16,
    status: Arc<AtomicU16>,
    answer: Arc<Mutex<String>>,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Place {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (status, posts) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(Vec::new())));
        let answer = Arc::new(Mutex::new(String::new()));
        let (answered, taken, body_of) = (Arc::clone(&status), Arc::clone(&posts), Arc::clone(&answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let status = answered.load(Ordering::SeqCst);
                let mut reader = BufReader::new(&stream);
                let (mut head, mut line) = (String::new(), String::new());
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    head.push_str(&line.replace("\r\n", "\n"));
                    line.clear();
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let mut body = vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)];
                if reader.read_exact(&mut body).is_err() {
                    continue;
                }
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let body = String::from_utf8(body).expect("text");
                taken.lock().expect("the posts").push(Post { path, head, body });
                let answer = body_of.lock().expect("the answer").clone();
                let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}", answer.len());
                let _ = write!(&stream, "{head}\r\nConnection: close\r\n\r\n{answer}");
            }
        });
        Self { port, status, answer, posts }
    }

    fn answers(&self, body: &str) {
        body.clone_into(&mut self.answer.lock().expect("the answer"));
    }

    fn url(&self, path: &str) -> String {
        format!("'http://127.0.0.1:{}/{path}'", self.port)
    }

    fn posts(&self) -> Vec<Post> {
        self.posts.lock().expect("the posts").clone()
    }

    /// Alerts that came, each once: what happened to which.
    fn alerts(&self) -> Vec<(String, String)> {
        let mut seen = std::collections::BTreeSet::new();
        let posts = self.posts();
        let fresh = posts.iter().filter(|post| seen.insert(post.field("webhook-id").to_owned()));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        fresh.map(Post::json).map(|json| (text(&json["type"]), text(&json["data"]["alert"]))).collect()
    }
}

/// A relay whose upstream is never there: what is taken stays in the queue.
fn mailer() -> Service {
    Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free())
}

/// What openssl makes of it.
fn hmac(secret: &str, text: &str) -> String {
    let script = "printf %s \"$TEXT\" | openssl dgst -sha256 -hmac \"$SECRET\" -binary | openssl base64 -A";
    let output =
        programs::run(Command::new("sh").args(["-c", script]).env("TEXT", text).env("SECRET", secret));
    String::from_utf8(output.stdout).expect("text")
}

fn raised(name: &str) -> (String, String) {
    ("alert.raised".to_owned(), name.to_owned())
}

fn cleared(name: &str) -> (String, String) {
    ("alert.cleared".to_owned(), name.to_owned())
}

#[test]
fn alerts_are_signed_tried_again_survive_a_kill_and_are_cleared() {
    let place = Place::open();
    place.status.store(500, Ordering::SeqCst);
    let service = mailer()
        .set("smtp_alert_webhook", place.url("hook/path-secret-4711"))
        .set("smtp_alert_webhook_secret", SECRET)
        .set("smtp_alert_queue_messages", 2)
        .set("smtp_log_level", "trace");
    let mut relay = Relay::start(&service);
    for token in ["one", "two"] {
        relay.client().send_token(token).expect("it is taken");
    }
    // Said before the kill: lines of the log gather for some milliseconds.
    let said = "smtp_alert_webhook can't be told; trying on: it answers 500";
    wait::until_true("it is tried", || {
        place.alerts().contains(&raised("queue_depth")) && relay.log().contains(said)
    });
    // What was refused waits, and a kill changes nothing of it.
    relay.kill9();
    place.status.store(204, Ordering::SeqCst);
    relay.up();
    wait::until_true("the upstream is missed", || {
        let alerts = place.alerts();
        alerts.contains(&raised("queue_depth")) && alerts.contains(&raised("upstream"))
    });
    let posts = place.posts();
    let post = posts.last().expect("a post");
    assert_eq!(post.path, "/hook/path-secret-4711");
    let signed = format!("{}.{}.{}", post.field("webhook-id"), post.field("webhook-timestamp"), post.body);
    assert_eq!(post.field("webhook-signature"), format!("v1,{}", hmac(SECRET, &signed)));
    let data = &post.json()["data"];
    assert!(
        data["service"] == "mailer" && data["hostname"] == "relay.test" && data["since"].is_string(),
        "{data}"
    );
    // The same message has the same id, however often it is tried.
    let first: Vec<&Post> = posts.iter().filter(|post| post.body == posts[0].body).collect();
    assert!(first.len() > 1 && first.iter().all(|p| p.field("webhook-id") == first[0].field("webhook-id")));

    relay.told(&["queue", "delete", "--all", "--yes"]);
    let minute = Duration::from_secs(60);
    wait::until_within(minute, "it is over", || {
        place.alerts().contains(&cleared("queue_depth")).then_some(())
    });
    let once = place.alerts().into_iter().filter(|alert| *alert == raised("queue_depth")).count();
    assert_eq!(once, 1, "{:?}", place.alerts());
    let log = relay.log();
    assert!(log.contains(said), "{log}");
    assert!(!log.contains("path-secret") && !log.contains(SECRET), "{log}");
    for path in ["/metrics", "/api/v1/status", "/"] {
        let text = http::get(relay.admin, path).text();
        assert!(!text.contains("path-secret") && !text.contains(SECRET), "{path}");
    }
    assert!(
        !http::get(relay.admin, "/metrics")
            .text()
            .contains("outpost_webhook_total{webhook=\"alert\",result=\"delivered\"} 0\n")
    );
}

#[test]
fn a_token_is_renewed_before_its_end_and_where_that_fails_an_alert_says_so_in_time() {
    let (hook, endpoint) = (Place::open(), Place::open());
    let upstream = Upstream::start("access-4711");
    upstream.set(|it| it.mechanisms = "XOAUTH2");
    // It can be used for five seconds: the last minute is never used.
    let good = r#"{"access_token": "access-4711", "expires_in": 65}"#;
    endpoint.answers(good);
    let oauth = format!(
        "{{token_url: {}, client_id: us, client_secret: client-4711, refresh_token: refresh-4711}}",
        endpoint.url("token")
    );
    let service = upstream
        .upstream_of(Service::mailer(), "")
        .without("smtp_relay_password")
        .set("smtp_relay_username", USER)
        .set("smtp_relay_oauth", oauth)
        .set("smtp_auth_retry", "1s..1s")
        .set("smtp_alert_webhook", hook.url("hook"))
        .set("smtp_alert_webhook_secret", SECRET)
        .set("smtp_log_level", "trace");
    let relay = Relay::start(&service);
    let status = || http::get(relay.admin, "/api/v1/status").json();
    std::thread::sleep(Duration::from_secs(2));
    assert!(endpoint.posts().is_empty() && status()["upstreams"][0]["token"].is_null(), "never used");

    relay.client().send_token("one").expect("it is taken");
    relay.wait_for_empty_queue();
    let first = status()["upstreams"][0]["token"].clone();
    assert!(first["expires"].is_string() && first["reason"].is_null(), "{first}");
    // Nobody sends, and it is renewed all the same.
    wait::until_true("it is renewed", || status()["upstreams"][0]["token"]["expires"] != first["expires"]);
    assert!(endpoint.posts().len() > 1);

    // Words that repeat a secret.
    endpoint.answers(r#"{"error": "invalid_grant", "error_description": "refresh-4711 was revoked"}"#);
    wait::until_true("it is told", || hook.alerts().contains(&raised("token")));
    let posts = hook.posts();
    let told = posts.iter().map(Post::json).find(|told| told["data"]["alert"] == "token").expect("the alert");
    let data = &told["data"];
    let reason = data["reason"].as_str().expect("words");
    assert!(
        reason.starts_with("the access token of upstream localhost expire")
            && reason.contains(" and can't be renewed: the token endpoint ")
            && reason.contains("invalid_grant: (withheld) was revoked"),
        "{reason}"
    );
    assert_eq!(data["subject"], "localhost");
    let help = data["help"].as_str().expect("what to do");
    assert!(help.contains("smtp_relay_oauth"), "{help}");
    // The same words wherever one looks.
    let token = status()["upstreams"][0]["token"].clone();
    let words = token["reason"].as_str().expect("why");
    let screen = relay.told(&["status"]);
    let screen = screen.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = http::get(relay.admin, "/").text();
    for place in [reason, &screen, &page.replace("&#39;", "'")] {
        assert!(place.contains(words), "{words}: {place}");
    }
    let check = relay.cli(&["status", "--check"]);
    assert_eq!(check.status.code(), Some(1), "{}", programs::shown(&check));

    endpoint.answers(good);
    wait::until_within(Duration::from_secs(60), "it is over", || {
        hook.alerts().contains(&cleared("token")).then_some(())
    });
    assert!(relay.log().contains("the access token is renewed"), "{}", relay.log());
    relay.client().send_token("two").expect("it is taken");
    relay.wait_for_empty_queue();
    let everything = [relay.log(), page, screen, status().to_string(), format!("{:?}", hook.posts())];
    for secret in ["access-4711", "client-4711", "refresh-4711"] {
        for text in &everything {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

#[test]
fn events_come_in_order_all_of_them_and_a_dead_webhook_is_in_nobodys_way() {
    let place = Place::open();
    place.status.store(503, Ordering::SeqCst);
    let service =
        mailer().set("smtp_event_webhook", place.url("events")).set("smtp_event_webhook_secret", SECRET);
    let mut relay = Relay::start(&service);
    wait::until_true("it has begun", || relay.data().join("event_webhook.json").exists());
    let mut ids = Vec::new();
    for number in 0..150 {
        let said = relay.client().send_token(&format!("token-{number}")).expect("it is taken at once");
        ids.push(said.trim().rsplit(' ').next().expect("an id").to_owned());
    }
    wait::until_true("it is tried", || !place.posts().is_empty());
    relay.kill9();
    place.posts.lock().expect("the posts").clear();
    place.status.store(200, Ordering::SeqCst);
    relay.up();
    let received = || {
        let mut seqs = Vec::new();
        let mut ids = Vec::new();
        for post in place.posts() {
            for item in post.json()["data"]["items"].as_array().expect("items") {
                seqs.push(item["seq"].as_i64().expect("a place"));
                if item["event"] == "received" {
                    ids.push(item["id"].as_str().expect("an id").to_owned());
                }
            }
        }
        (seqs, ids)
    };
    wait::until_true("all are told", || received().1.len() >= ids.len());
    let (seqs, told) = received();
    assert_eq!(told, ids);
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    let post = place.posts().remove(0);
    let signed = format!("{}.{}.{}", post.field("webhook-id"), post.field("webhook-timestamp"), post.body);
    assert_eq!(post.field("webhook-signature"), format!("v1,{}", hmac(SECRET, &signed)));
}

/// A relay that tells alerts to `place`.
fn telling(place: &Place, service: Service) -> Service {
    let service = service.set("smtp_alert_webhook", place.url("hook"));
    service.set("smtp_alert_webhook_secret", SECRET).set("smtp_queue_min_free", 0)
}

/// Waits until the alert has come, as often as that.
fn told(place: &Place, alert: &(String, String), times: usize) {
    wait::until_within(Duration::from_secs(60), &format!("{alert:?}"), || {
        (place.alerts().iter().filter(|one| *one == alert).count() >= times).then_some(())
    });
}

/// What the latest alert of that kind said.
fn last(place: &Place, alert: &str) -> Value {
    let posts = place.posts();
    let data = posts.iter().rev().map(|post| post.json()["data"].clone());
    data.into_iter().find(|data| data["alert"] == alert).expect("it came")
}

#[test]
fn a_refused_login_and_mail_that_a_breaker_holds_are_told_and_their_end_is() {
    let place = Place::open();
    let upstream = Upstream::start("right");
    let base = upstream.upstream_of(Service::mailer(), "right").set("smtp_breaker_bounces", 1);
    let base = telling(&place, base).set("smtp_auth_retry", "1h..1h");
    let relay = Relay::start(&base.clone().set("smtp_relay_password", "wrong"));
    relay.client().send_token("one").expect("it is taken");
    told(&place, &raised("upstream"), 1);
    let data = last(&place, "upstream");
    assert_eq!(
        (&data["subject"], &data["who_must_act"]),
        (&"localhost".into(), &"operator".into()),
        "{data}"
    );
    relay.home.write(&[&base]);
    relay.told(&["reload"]);
    relay.wait_for_empty_queue();
    told(&place, &cleared("upstream"), 1);

    upstream.set(|it| it.refusal = Some("554 5.7.1 this looks like spam".to_owned()));
    for number in 0..4 {
        relay.client().send_token(&format!("refused-{number}")).expect("it is taken");
    }
    wait::until_true("mail is held", || {
        relay.client().send_token("another").expect("it is taken");
        relay.status()["queue"]["held"].as_u64() > Some(0)
    });
    told(&place, &raised("held"), 1);
    upstream.set(|it| it.refusal = None);
    // One may be on its way as a probe.
    wait::until_true("all are released", || {
        relay.cli(&["queue", "release", "--all", "--yes"]).status.success()
    });
    told(&place, &cleared("held"), 1);
    relay.wait_for_empty_queue();
}

#[test]
fn a_quota_that_is_used_up_is_told_and_its_end_is_and_it_is_no_trouble_of_the_upstream() {
    let place = Place::open();
    let upstream = Upstream::start("right");
    let base = telling(&place, upstream.upstream_of(Service::mailer(), "right"));
    let relay = Relay::start(&base.clone().set("smtp_rate_limit", "1/day"));
    relay.client().send_token("one").expect("it is taken");
    told(&place, &raised("quota"), 1);
    assert_eq!(last(&place, "quota")["subject"], "localhost messages day");
    relay.home.write(&[&base.set("smtp_rate_limit", "5/day")]);
    relay.told(&["reload"]);
    told(&place, &cleared("quota"), 1);
    assert!(!place.alerts().contains(&raised("upstream")), "{:?}", place.alerts());
}

#[test]
fn a_certificate_that_soon_expires_is_told_until_there_is_another() {
    let place = Place::open();
    let home = support::service::Home::new(&[]);
    let (cert, key) = (home.path("cert.pem"), home.path("key.pem"));
    let make = |days: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        openssl.args(["-subj", "/CN=relay.test", "-addext", "subjectAltName=DNS:relay.test", "-days", days]);
        programs::run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert));
    };
    make("5");
    let service = telling(&place, mailer());
    let service = service.set("smtp_tls_cert", cert.display()).set("smtp_tls_key", key.display());
    home.write(&[&service]);
    let _relay = Relay::start_in(&home, &service);
    told(&place, &raised("certificate"), 1);
    make("500");
    told(&place, &cleared("certificate"), 1);
}

#[test]
fn a_store_that_takes_no_mail_is_told_and_its_end_is() {
    let place = Place::open();
    let relay = Relay::start(&telling(&place, mailer()));
    relay.client().send_token("before").expect("it is taken");
    let injection = support::strace::Injection::attach(relay.pid(), "pwrite64:error=EIO");
    let refused = relay.client().send_token("refused").expect_err("the disk refuses");
    assert!(refused.to_string().contains("451"), "{refused}");
    told(&place, &raised("store"), 1);
    drop(injection);
    told(&place, &cleared("store"), 1);
    assert_eq!(http::get(relay.admin, "/readyz").status, 200);
}

#[test]
fn an_app_that_is_new_behind_the_event_webhook_gets_what_happens_from_then_on() {
    let (one, other) = (Place::open(), Place::open());
    let base = mailer().set("smtp_event_webhook_secret", SECRET);
    let to = |place: &Place| base.clone().set("smtp_event_webhook", place.url("events"));
    let relay = Relay::start(&to(&one));
    let kept = relay.data().join("event_webhook.json");
    let text = || std::fs::read_to_string(&kept).unwrap_or_default();
    wait::until_true("it has begun", || text().contains("\"after\":0"));
    let senders = |place: &Place| {
        let posts: Vec<Value> = place.posts().iter().map(Post::json).collect();
        let items = posts.iter().flat_map(|post| post["data"]["items"].as_array().expect("items").clone());
        let received = items.filter(|item| item["event"] == "received");
        received.map(|item| item["sender"].as_str().expect("a sender").to_owned()).collect::<Vec<_>>()
    };
    let send = |sender: &str| {
        let letter = "Subject: x\r\n\r\nx\r\n";
        relay.client().send(sender, &["someone@example.test"], letter).expect("it is taken");
    };
    let reload = |service: &Service| {
        // Whose place it is; how far that has come changes all the time.
        let of = || serde_json::from_str::<Value>(&text()).map_or(Value::Null, |kept| kept["of"].clone());
        let before = of();
        relay.home.write(&[service]);
        relay.told(&["reload"]);
        wait::until_true("its place is begun anew", || of() != before && !text().contains("null,"));
    };
    send("one@a.example");
    wait::until_true("it is told", || senders(&one) == ["one@a.example"]);
    reload(&to(&other));
    send("two@a.example");
    wait::until_true("it is told", || senders(&other) == ["two@a.example"]);
    // Without one, and back again.
    relay.home.write(&[&base.clone().without("smtp_event_webhook_secret")]);
    relay.told(&["reload"]);
    wait::until_true("it is forgotten", || text() == "{\"after\":null,\"of\":null}");
    send("three@a.example");
    reload(&to(&other));
    send("four@a.example");
    wait::until_true("it is told", || senders(&other).len() >= 2);
    assert_eq!(senders(&other), ["two@a.example", "four@a.example"]);
}

#[test]
fn https_is_verified() {
    let place = Place::open();
    let url = place.url("hook").replace("http://", "https://");
    let service = mailer().set("smtp_alert_webhook", url).set("smtp_alert_webhook_secret", SECRET);
    let relay = Relay::start(&service.set("smtp_alert_queue_messages", 1));
    relay.client().send_token("one").expect("it is taken");
    wait::until_true("it fails", || relay.log().contains("smtp_alert_webhook can't be told"));
    std::thread::sleep(Duration::from_millis(200));
    // What came was the start of a handshake.
    assert!(place.posts().iter().all(|post| post.path != "/hook" && post.body.is_empty()));
}

#[test]
fn what_can_not_work_is_said_before_the_start_and_without_the_secret() {
    for (url, secret, words) in [
        ("'ftp://hooks.example/path-secret'", Some(SECRET), "smtp_alert_webhook is no URL"),
        ("'https://user:path-secret@hooks.example/'", Some(SECRET), "smtp_alert_webhook is no URL"),
        ("'https://hooks.example/path-secret'", None, "smtp_alert_webhook has no secret to sign with"),
    ] {
        let mut service = mailer().set("smtp_alert_webhook", url);
        if let Some(secret) = secret {
            service = service.set("smtp_alert_webhook_secret", secret);
        }
        let home = support::service::Home::new(&[&service]);
        let relay = Relay::of(&home, &service);
        let output = relay.cli(&["check"]);
        let said = programs::shown(&output);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(words) && !said.contains("path-secret") && !said.contains(SECRET), "{said}");
    }
}
