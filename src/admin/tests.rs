//! What the room's tests share, and the routes asked over a real socket.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use super::*;
use crate::{
    clock::Timestamp,
    config::{self, Source},
    listener::auth::Credentials,
    mail::{
        envelope::{Envelope, Handling, Origin},
        outcome::{Advice, Evidence, Scope, Who},
    },
    observe::{Event, EventKind},
    queue::{Entry, Listed, QueueId, WriterThread},
    service::parts,
    smtp::{address::Mailbox, reply::Reply},
};

/// Settings of a relay with these keys.
pub(super) fn settings(keys: &str) -> Settings {
    let text = format!("mailer:\n  type: smtp\n  config:\n    smtp_relay_server: up.example\n    {keys}\n");
    let source = Source { data: Some("/nowhere".into()), ..Source::default() };
    config::parse(&text, "dotcloud.yml", &source, &|_| None).expect("settings").settings
}

pub(super) fn entry() -> Entry {
    serde_json::from_value(json!({
        "id": "01HXYZ0000ABC",
        "received": 1_340_000_000_000_u64,
        "reverse_path": "app@sender.example",
        "recipients": [{ "address": "user@rcpt.example" }],
        "origin": { "client": "127.0.0.1", "hello": "app" },
        "content": { "size": 3, "crc32c": 0 },
        "subject": "=?utf-8?q?Gr=C3=BC=C3=9Fe?= <b>",
    }))
    .expect("an entry")
}

pub(super) fn listed(entry: Entry, due: Timestamp, claimed: bool) -> Listed {
    Listed { id: entry.id, size: entry.content.size, due, claimed, entry: Some(entry) }
}

pub(super) fn evidence(scope: Scope, reply: &str) -> Evidence {
    let (code, text) = reply.split_once(' ').expect("a reply");
    Evidence {
        at: Timestamp(0),
        upstream: "up".into(),
        phase: "AUTH".into(),
        scope,
        reply: Some(Reply::new(code.parse().expect("a code"), None, text.to_owned())),
        explanation: None,
        status: None,
        advice: Some(Box::new(Advice {
            who: Who::Operator,
            help: None,
            not_before: None,
            tries: None,
            slower: None,
        })),
        uncertain: false,
        tls: None,
    }
}

/// An admin over a queue in `data`, with a captured one beside it; nothing delivers.
pub(super) fn admin(data: &Path) -> (Admin, [WriterThread; 2]) {
    let mut settings = settings("");
    settings.data = data.to_owned();
    settings.queue.min_free = 0;
    settings.queue.directory = data.join("queue");
    let (queue, writer) = Queue::open(&settings.queue, Clock::System).expect("a queue");
    settings.queue.directory = data.join("captured");
    let (captured, second) = Queue::open(&settings.queue, Clock::System).expect("a queue");
    let published = Published {
        service: "mailer".into(),
        host: "127.0.0.1".into(),
        port: 587,
        login: "dotcloud".into(),
        password: SecretString::from("s3cret"),
        tls: "starttls",
        fingerprint: None,
        relay_server: "up.example".into(),
        relay_port: 587,
        relay_username: None,
        relay_password: None,
        rate_limit: None,
        max_message_size: 1,
        max_recipients: 1,
    };
    let (reload, mut asked) = mpsc::channel::<oneshot::Sender<Result<String, String>>>(1);
    tokio::spawn(async move {
        while let Some(answer) = asked.recv().await {
            let _ = answer.send(Err("line 3 is wrong".into()));
        }
    });
    let observer = Observer::default();
    let keeper = queue.clone();
    observer.keep_by(Box::new(move |event| {
        keeper.record(event.id.parse().ok(), serde_json::to_vec(event).unwrap());
    }));
    let orders = parts::orders(&settings, &[], &Clock::System).expect("orders");
    let runner = Runner::new(orders, queue.clone(), observer.clone(), Clock::System);
    let terms = parts::terms(&settings, Credentials::default(), None, Arc::default());
    let (_, told) = watch::channel(false);
    let listener = Listener::new(terms, queue.clone(), Some(observer.clone()), Clock::System, told);
    let admin = Admin {
        settings: Arc::new(ArcSwap::from_pointee(settings)),
        queue,
        runner,
        observer,
        listener,
        once: Once::open(data, Clock::System),
        streams: Streams::default(),
        places: Places::default(),
        allowances: Arc::default(),
        published: Arc::new(ArcSwap::from_pointee(published)),
        reload,
        captured: Some(captured),
        trend: crate::observe::trend::Trend::at(data.join("trend")),
        clock: Clock::System,
    };
    (admin, [writer, second])
}

async fn accept(queue: &Queue, content: &str) -> String {
    let mut incoming = queue.begin().expect("room");
    incoming.push(content.as_bytes());
    let envelope = Envelope {
        reverse_path: Mailbox::parse("app@sender.example").expect("an address").into(),
        recipients: vec![Mailbox::parse("user@rcpt.example").expect("an address").into()],
        handling: Handling::default(),
    };
    let facts = incoming.facts().expect("a header");
    let origin = Origin { client: "127.0.0.1".into(), hello: "app".into(), ..Origin::default() };
    incoming.commit(envelope, origin, facts).await.expect("a receipt").id().to_string()
}

/// One request over the socket of `data`.
async fn ask(data: &Path, method: &str, path: &str) -> (u16, String) {
    use http_body_util::BodyExt as _;
    let stream = hyper_util::rt::TokioIo::new(connect_socket(data).await.expect("it is served"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("a connection");
    tokio::spawn(connection);
    let request = hyper::Request::builder().method(method).uri(path).header("host", "outpost");
    let request = request.body(axum::body::Body::empty()).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn the_socket_answers_all_that_the_document_describes_and_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().expect("a directory");
    // Longer than a socket's path can be.
    let data = home.path().join("x".repeat(120));
    std::fs::create_dir(&data).expect("a directory");
    let (admin, _writers) = admin(&data);
    let content = "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= <b>\r\n\r\nHallo\r\n";
    let id = accept(&admin.queue, content).await;
    accept(admin.captured.as_ref().expect("local mode"), content).await;
    let socket = data.join(SOCKET);
    for _stale_one_is_replaced in 0..2 {
        let (stop, told) = watch::channel(false);
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        serve(admin.clone(), tcp, &socket, told).expect("it serves");
        let _ = stop.send(true);
    }
    let (_stop, told) = watch::channel(false);
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    serve(admin, tcp, &socket, told).expect("it serves");
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let (_, document) = ask(&data, "GET", "/api/openapi.json").await;
    let document: serde_json::Value = serde_json::from_str(&document).expect("the document is JSON");
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in ["get", "post"].iter().filter(|method| methods.get(**method).is_some()) {
            for action in ["retry", "hold", "release"] {
                let path = path.replace("{id}", &id).replace("{n}", "1").replace("{action}", action);
                let (status, body) = ask(&data, &method.to_uppercase(), &path).await;
                let wanted = methods[method]["responses"].get(status.to_string());
                assert!(wanted.is_some() && status != 404, "{method} {path}: {status} {body}");
            }
        }
    }

    let (_, item) = ask(&data, "GET", &format!("/api/v1/queue/{id}")).await;
    let item: view::Item = serde_json::from_str(&item).expect("an item");
    assert_eq!((item.subject.as_deref(), item.state.name()), (Some("Grüße <b>"), "active"));
    assert_eq!(ask(&data, "GET", &format!("/api/v1/queue/{id}/content")).await.1, content);
    for page in ["/", "/dev/1"] {
        let (status, html) = ask(&data, "GET", page).await;
        assert!(status == 200 && html.contains("Grüße &lt;b&gt;"), "{page}: {html}");
    }
    assert!(ask(&data, "GET", "/api/v1/info").await.1.contains("s3cret"));
    assert_eq!(ask(&data, "DELETE", &format!("/api/v1/queue/{id}")).await.0, 200);
    assert_eq!(ask(&data, "DELETE", "/api/v1/dev/messages").await.0, 204);
    assert_eq!(ask(&data, "GET", "/api/v1/dev/messages/1").await.0, 404);
    assert!(ask(&data, "GET", "/api/v1/queue").await.1.contains("\"items\":[]"));
    assert_eq!(ask(&data, "GET", "/nothing").await.0, 404);
    let (_, events) = ask(&data, "GET", &format!("/api/v1/events?id={id}")).await;
    assert!(events.contains("\"held\"") && events.contains("\"deleted\""), "{events}");
    assert!(ask(&data, "GET", "/metrics").await.1.contains("outpost_upstream_up{upstream=\"up.example\"} 1"));
}

#[tokio::test]
async fn release_is_done_with_what_is_held_and_counts_and_tells_of_nothing_else() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    let desk = Desk::from_ref(&admin);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(accept(&admin.queue, "Subject: x\r\n\r\n").await.parse::<QueueId>().expect("an id"));
    }
    let verb = |name: &str| queue::Verb::named(name, None).expect("a verb");
    let hold = verb("hold").apply(&desk, ids[1]).await.expect("it is held");
    assert_eq!(hold.as_deref(), Some("held"));
    let mut outcome = Outcome::default();
    assert!(bulk::act_on(&desk, &verb("release"), &ids, &mut outcome).await);
    assert_eq!((outcome.done, outcome.failed.len()), (1, 0));
    assert_eq!(verb("release").apply(&desk, ids[1]).await.expect("it is no fault"), None);
    let wanted = events::Wanted { event: Some("released".into()), ..events::Wanted::default() };
    let told = desk.events(wanted).await.expect("a page").items;
    assert_eq!(told.iter().map(|event| event.id.clone()).collect::<Vec<_>>(), [ids[1].to_string()]);
}

#[tokio::test]
async fn what_was_begun_with_a_message_is_done_and_told_though_whoever_asked_leaves() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    let desk = Desk::from_ref(&admin);
    let id: QueueId = accept(&admin.queue, "Subject: x\r\n\r\n").await.parse().expect("an id");
    let verb = queue::Verb::named("hold", None).expect("a verb");
    {
        let mut asked = std::pin::pin!(verb.apply(&desk, id));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(asked.as_mut().poll(&mut context).is_pending());
    }
    let told = async {
        loop {
            let happened = desk.events(events::Wanted::of_message(id)).await.expect("a page").items;
            if happened.iter().any(|event| event.event == EventKind::Held) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.expect("it is told");
    let listed = admin.queue.get(id).await.expect("a queue").expect("it is there");
    assert!(listed.entry.is_some_and(|entry| entry.held.is_some()));
}

#[tokio::test]
async fn what_became_of_a_message_is_told_however_often_it_was_tried() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    let happened = |kind| {
        let recipient = Some("user@rcpt.example".to_owned());
        admin.observer.emit(Event { recipient, ..Event::new(admin.clock.now(), kind, "01HXYZ0000ABC") });
    };
    (0..2_500).for_each(|_| happened(EventKind::Deferred));
    happened(EventKind::Delivered);
    let path = extract::Path("01HXYZ0000ABC".to_owned());
    let shown = queue::show(axum::extract::State(Desk::from_ref(&admin)), path).await;
    let Json(story) = shown.expect("its story");
    assert_eq!((story.history.len(), story.item.recipients[0].state.as_str()), (2_501, "delivered"));
}

#[tokio::test]
async fn a_list_goes_on_where_its_page_ended() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    for _ in 0..5 {
        accept(&admin.queue, "Subject: x\r\n\r\n").await;
    }
    let state = Some("active".to_owned());
    for filter in [Filter::default(), Filter { state, ..Filter::default() }] {
        let (mut cursor, mut ids, mut pages) = (None, Vec::new(), 0);
        loop {
            let filter = Filter { limit: Some(2), cursor, ..filter.clone() };
            let page = queue::page(&Desk::from_ref(&admin), &filter).await.expect("a page");
            ids.extend(page.items.into_iter().map(|item| item.id));
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let mut sorted = ids.clone();
        sorted.dedup();
        assert_eq!((ids.len(), sorted.len(), pages), (5, 5, 3));
    }
    let nobody = Filter { sender: Some("@other.example".into()), ..Filter::default() };
    assert!(queue::page(&Desk::from_ref(&admin), &nobody).await.expect("a page").items.is_empty());
}

/// The paths of a router, as its Debug form names them: axum has no other way to ask.
fn paths(router: &Router) -> Vec<String> {
    let text = format!("{router:?}");
    let quoted = text.split('"').skip(1).step_by(2).map(str::to_owned);
    let mut paths: Vec<String> = quoted.filter(|text| text.starts_with('/')).collect();
    paths.sort();
    paths.dedup();
    paths
}

#[tokio::test]
async fn the_document_has_just_the_routes_that_there_are() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    let router = router(admin, Access::Socket);
    let document: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).expect("JSON");
    let described = document["paths"].as_object().expect("paths");
    let of_api =
        |path: &String| path.starts_with("/api/") || !path.contains(['.', '{']) && path.ends_with('z');
    let mut routed = std::collections::BTreeMap::new();
    for path in paths(&router).into_iter().filter(|path| of_api(path) || path == "/metrics") {
        // A method that no route has is answered with those that it has.
        let request = Request::builder().method("PROPFIND").uri(path.replace(['{', '}'], "x"));
        let request = request.body(Body::empty()).expect("a request");
        let answer = router.clone().oneshot(request).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allowed = answer.headers()[header::ALLOW].to_str().expect("words").to_lowercase();
        // HEAD comes with GET.
        let mut allowed: Vec<String> =
            allowed.split(',').filter(|method| *method != "head").map(str::to_owned).collect();
        allowed.sort();
        routed.insert(path, allowed);
    }
    assert!(routed.contains_key("/api/v1/status"), "{routed:?}");
    let of_path = |(path, item): (&String, &serde_json::Value)| {
        let methods = item.as_object().expect("an object").keys().filter(|key| *key != "parameters");
        (path.clone(), methods.cloned().collect::<Vec<_>>())
    };
    let mut described: std::collections::BTreeMap<_, _> = described.iter().map(of_path).collect();
    described.values_mut().for_each(|methods| methods.sort());
    assert_eq!(routed, described);
}

/// The fields that a route's query may have, as its refusal of another one names them; none where it names none.
fn fields(words: &str) -> Vec<String> {
    let Some((_, list)) = words.split_once("expected ") else { return Vec::new() };
    let mut fields: Vec<String> = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn the_document_has_just_the_parameters_that_a_query_may_have() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    let router = router(admin, Access::Socket);
    let document: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).expect("JSON");
    let mut compared = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let Some(parameters) = item["get"]["parameters"].as_array() else { continue };
        let request = Request::builder().uri(format!("{path}?no_such_field=x"));
        let answer = router.clone().oneshot(request.body(Body::empty()).expect("a request")).await;
        let body = axum::body::to_bytes(answer.expect("an answer").into_body(), 65_536).await;
        let read = fields(&String::from_utf8_lossy(&body.expect("a body")));
        if read.is_empty() {
            continue;
        }
        let described = parameters.iter().map(|parameter| match parameter["$ref"].as_str() {
            Some(reference) => document.pointer(&reference[1..]).expect("it is there"),
            None => parameter,
        });
        let described = described.filter(|parameter| parameter["in"] == "query");
        let mut described: Vec<String> =
            described.filter_map(|parameter| Some(parameter["name"].as_str()?.to_owned())).collect();
        described.sort();
        assert_eq!(described, read, "{path}");
        compared.push(path.as_str());
    }
    for path in ["/api/v1/queue", "/api/v1/queue/export", "/api/v1/events"] {
        assert!(compared.contains(&path), "{path} is not in {compared:?}");
    }
}

#[tokio::test]
async fn while_the_queue_can_not_be_read_metrics_say_so_and_keep_their_counters() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    admin.observer.metrics().received(crate::observe::Received::accepted);
    let database = rusqlite::Connection::open(home.path().join("queue/queue.sqlite")).expect("its database");
    let router = router(admin, Access::Socket);
    let get = async |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).expect("a request");
        let answer = router.clone().oneshot(request).await.expect("an answer");
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    for (change, status, ready) in [
        ("SELECT 1", 200, "outpost_ready 1\n"),
        ("ALTER TABLE meta RENAME TO gone", 503, "outpost_ready 0\n"),
        ("ALTER TABLE gone RENAME TO meta", 200, "outpost_ready 1\n"),
    ] {
        database.execute_batch(change).expect("it is done");
        assert_eq!(get("/api/v1/status").await.0, status, "{change}");
        let (status, text) = get("/metrics").await;
        assert_eq!(status, 200, "{change}: {text}");
        for line in [
            ready,
            "outpost_received_total{result=\"accepted\"} 1\n",
            "outpost_upstream_up{upstream=\"up.example\"} 1\n",
        ] {
            assert!(text.contains(line), "{change}: {line} is not in {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_looks_at_the_metrics_at_the_same_time_sees_all_of_them() {
    let home = tempfile::tempdir().expect("a directory");
    let (admin, _writers) = admin(home.path());
    let router = router(admin, Access::Socket);
    let look = |router: Router| async move {
        for _ in 0..100 {
            let request = Request::builder().uri("/metrics").body(Body::empty()).expect("a request");
            let answer = router.clone().oneshot(request).await.expect("an answer");
            let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
            let text = String::from_utf8_lossy(&body).into_owned();
            assert!(text.contains("outpost_upstream_up{upstream=\"up.example\"} 1\n"), "{text}");
        }
    };
    let looking: Vec<_> = (0..8).map(|_| tokio::spawn(look(router.clone()))).collect();
    for one in looking {
        one.await.expect("it sees all");
    }
}
