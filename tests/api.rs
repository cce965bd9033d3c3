//! The HTTP API keeps to its document: validated as OpenAPI, and tried by a generator of requests against the real
//! program, with mail in the queue and without.

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use support::{http, ports, programs, relay::Relay, service::Service};

/// A program of the virtual environment that tests/install-peers makes for these tests.
fn peer(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers/api/bin").join(name);
    programs::require(&path).to_owned()
}

/// A relay whose upstream is never there: what is taken stays in the queue.
fn mailer() -> Relay {
    Relay::start(
        &Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free()),
    )
}

/// Has requests generated from the document, good ones and bad ones, always the same; with a password, if it wants one.
fn generate(relay: &Relay, password: Option<&str>) {
    let directory = relay.home.path("schemathesis");
    std::fs::create_dir_all(&directory).expect("a directory");
    let output = Command::new(peer("schemathesis"))
        .current_dir(&directory)
        .env("NO_COLOR", "1")
        .arg("run")
        .arg(format!("http://127.0.0.1:{}/api/openapi.json", relay.admin))
        .args(["--seed", "4711", "--max-examples", "12", "--phases", "examples,coverage,fuzzing"])
        // What the document can't say of a value, such as that a cursor comes from a page, is refused with 400.
        .args(["--checks", "all", "--exclude-checks", "positive_data_acceptance"])
        .args(["--continue-on-failure", "--request-timeout", "20", "--warnings", "off"])
        .args(["--generation-database", "none"])
        .args(password.map(|password| format!("--header=Authorization: Bearer {password}")))
        .output()
        .expect("schemathesis runs");
    assert!(output.status.success(), "{}", programs::shown(&output));
    assert_eq!(http::get(relay.admin, "/readyz").status, 200);
}

#[test]
fn the_document_is_valid_openapi() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/openapi.json");
    programs::run(Command::new(peer("openapi-spec-validator")).arg(document));
}

#[test]
fn no_generated_request_breaks_the_contract_of_a_relay_with_mail() {
    let relay = mailer();
    for number in 0..20 {
        relay.client().send_token(&format!("token-{number}")).expect("it is taken");
    }
    generate(&relay, None);
}

#[test]
fn no_generated_request_breaks_the_contract_of_a_relay_with_a_password() {
    let service =
        Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free());
    let relay = Relay::start(&service.set("smtp_admin_password", "sesame-4711"));
    relay.client().send_token("token").expect("it is taken");
    generate(&relay, Some("sesame-4711"));
}

#[test]
fn no_generated_request_breaks_the_contract_of_local_mode() {
    let relay = Relay::start_dev();
    for number in 0..5 {
        relay.client().send_token(&format!("token-{number}")).expect("it is taken");
    }
    generate(&relay, None);
}

#[test]
fn errors_have_one_form() {
    let relay = mailer();
    for (method, path, status) in [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/queue?limit=0", 400),
        ("GET", "/api/v1/queue?limit=1001", 400),
        ("GET", "/api/v1/queue?stat=held", 400),
        ("GET", "/api/v1/queue?state=held&state=held", 400),
        ("GET", "/api/v1/queue/%FF", 400),
        ("GET", "/api/v1/queue/01HXYZ0000ABC", 404),
        ("PUT", "/api/v1/queue", 405),
        ("GET", "/api/v1/events?limit=x", 400),
    ] {
        let answer = http::request(method, relay.admin, path).expect("an answer");
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert!(answer.json()["error"].as_str().is_some_and(|words| !words.is_empty()), "{method} {path}");
    }
    let answer = http::request("PUT", relay.admin, "/api/v1/queue").expect("an answer");
    assert!(answer.head.to_ascii_lowercase().contains("\r\nallow: "), "{}", answer.head);
}

/// A stream of events, as far as its lines go.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(relay: &Relay, query: &str, last: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", relay.admin)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let last = last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
        let request = format!(
            "GET /api/v1/events{query} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{last}\r\n"
        );
        stream.write_all(request.as_bytes()).expect("it is heard");
        Self(BufReader::new(stream))
    }

    /// The next line that begins so, without that.
    fn next(&mut self, start: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).expect("a line") > 0, "the stream ended before {start}");
            if let Some(rest) = line.trim_end().strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    /// The next event, and its place.
    fn event(&mut self) -> (serde_json::Value, String) {
        assert_eq!(self.next("event: "), "event");
        let id = self.next("id: ");
        (serde_json::from_str(&self.next("data: ")).expect("JSON"), id)
    }
}

#[test]
fn events_are_streamed_and_who_comes_again_misses_none() {
    let relay = mailer();
    let mut client = relay.client();
    let mut send = |sender: &str| {
        client.send(sender, &["someone@example.test"], "Subject: x\r\n\r\nx\r\n").expect("it is taken");
    };
    send("before@a.example");
    let mut stream = Stream::open(&relay, "?event=received", None);
    assert_eq!(stream.next("HTTP/1.1 "), "200 OK");
    assert_eq!(stream.next("content-type: "), "text/event-stream");
    // Its head is sent when its place is known.
    send("one@a.example");
    let (event, place) = stream.event();
    assert_eq!((&event["event"], &event["sender"]), (&"received".into(), &"one@a.example".into()));
    assert_eq!(event["seq"].to_string(), place);
    drop(stream);
    send("two@a.example");
    send("three@b.example");
    let mut again = Stream::open(&relay, "?event=received", Some(&place));
    assert_eq!(again.event().0["sender"], "two@a.example");
    assert_eq!(again.event().0["sender"], "three@b.example");
    let mut filtered = Stream::open(&relay, "?cursor=0&sender=@b.example&event=received", None);
    assert_eq!(filtered.event().0["sender"], "three@b.example");
    // A place from which events are gone already.
    let mut late = Stream::open(&relay, "", Some("1"));
    assert_eq!(late.next("event: "), "missed");
    assert_eq!(late.next("data: "), "{\"events\":null}");
    assert_eq!(late.event().0["sender"], "before@a.example");

    let mut streams: Vec<Stream> = Vec::new();
    loop {
        let mut stream = Stream::open(&relay, "", None);
        match stream.next("HTTP/1.1 ").as_str() {
            "200 OK" => streams.push(stream),
            refused => break assert_eq!(refused, "503 Service Unavailable"),
        }
    }
    // The one that was closed may not be given back yet.
    assert!((28..=29).contains(&streams.len()), "{}", streams.len());
    assert_eq!(http::get(relay.admin, "/readyz").status, 200);
}
