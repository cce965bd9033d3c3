//! The pages: each action, the way in, what strangers try, and all of it in a real browser.

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use support::{
    http::{self, Answer},
    ports, programs,
    relay::Relay,
    service::Service,
    upstream::Upstream,
    wait,
};

const PASSWORD: &str = "upstream-sesame-4711";
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

/// A relay whose upstream is never there: what is taken stays in the queue.
fn mailer() -> Service {
    Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free())
}

fn send(relay: &Relay, subject: &str) -> String {
    let content = format!("From: app@example.test\r\nSubject: {subject}\r\n\r\nHallo\r\n");
    let said = relay.client().send("app@example.test", &["you@example.test"], &content).expect("it is taken");
    said.trim().rsplit(' ').next().expect("an id").to_owned()
}

/// What a form of our own page sends.
fn post(relay: &Relay, path: &str, more: &[(&str, &str)], body: &str) -> Answer {
    let origin = format!("http://127.0.0.1:{}", relay.admin);
    let fields = [&[FORM, ("Origin", origin.as_str())], more].concat();
    http::request_with("POST", relay.admin, path, &fields, body).expect("an answer")
}

/// The fields of the form that the page sends by POST, as a browser would.
fn fields_of(html: &str) -> String {
    let form =
        html.split("method=\"post\"").nth(1).and_then(|rest| rest.split("</form>").next()).expect("a form");
    let of = |field: &str, name: &str| {
        let value = field.split(&format!("{name}=\"")).nth(1)?.split('"').next()?;
        Some(value.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&"))
    };
    let hidden = form.split("<input").skip(1).filter(|field| field.contains("type=\"hidden\""));
    let escaped = |text: String| {
        text.bytes()
            .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect::<String>()
    };
    let pairs =
        hidden.filter_map(|field| Some(format!("{}={}", of(field, "name")?, escaped(of(field, "value")?))));
    pairs.collect::<Vec<_>>().join("&")
}

/// Asks what is meant, and does it.
fn confirm(relay: &Relay, query: &str, more: &str) -> (String, String) {
    let asked = http::get(relay.admin, &format!("/queue/confirm?{query}"));
    assert_eq!(asked.status, 200, "{}", asked.text());
    let done = post(relay, "/queue/act", &[], &format!("{}{more}", fields_of(&asked.text())));
    assert_eq!(done.status, 200, "{}", done.text());
    (asked.text(), done.text())
}

fn states(relay: &Relay) -> Vec<String> {
    relay.queue().iter().map(|item| item["state"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn messages_are_held_released_returned_and_deleted_behind_a_question_that_names_their_number() {
    let relay = Relay::start(&mailer());
    let ids: Vec<String> = (1..=3).map(|i| send(&relay, &format!("mail {i}"))).collect();

    let (asked, done) = confirm(&relay, &format!("action=hold&id={}&id={}", ids[0], ids[1]), "");
    assert!(asked.contains("Hold 2 messages?") && asked.contains("mail 1"), "{asked}");
    assert!(done.contains("2 messages held"), "{done}");
    assert_eq!(states(&relay).iter().filter(|state| *state == "held").count(), 2);
    // The question alone does nothing, and what arrives behind it isn't meant.
    let asked = http::get(relay.admin, "/queue/confirm?action=release&scope=all&state=held").text();
    assert!(asked.contains("Release 2 messages?"), "{asked}");
    let late = send(&relay, "late");
    confirm(&relay, &format!("action=hold&id={late}"), "");
    let done = post(&relay, "/queue/act", &[], &fields_of(&asked)).text();
    assert!(done.contains("2 messages released"), "{done}");
    assert_eq!(states(&relay).iter().filter(|state| *state == "held").count(), 1, "the late one");

    let (asked, done) = confirm(&relay, &format!("action=bounce&id={}", ids[2]), "&reason=no+such+address");
    assert!(asked.contains("Return 1 message to the sender?"), "{asked}");
    assert!(done.contains("1 message returned to the sender"), "{done}");
    let story = http::get(relay.admin, &format!("/queue/{}", ids[2])).text();
    assert!(story.contains("no such address") && story.contains("bounced"), "{story}");

    let number = relay.queue().len();
    let (asked, done) = confirm(&relay, "action=delete&scope=all", "");
    assert!(asked.contains(&format!("Delete {number} messages?")), "{asked}");
    assert!(done.contains(&format!("{number} messages deleted")), "{done}");
    assert!(http::get(relay.admin, "/queue").text().contains("Nothing waits"));
    // What is no action, or no message, is said so.
    assert_eq!(http::get(relay.admin, "/queue/confirm?action=eat&id=x").status, 400);
    assert!(http::get(relay.admin, "/queue/confirm?action=hold").text().contains("No message is meant"));
    assert_eq!(http::get(relay.admin, "/queue/01HXYZ0000ABC").status, 404);
}

#[test]
fn the_queue_is_searched_and_read_page_by_page() {
    let relay = Relay::start(&mailer());
    let ids: Vec<String> = (0..60).map(|i| send(&relay, &format!("number {i}"))).collect();
    let page = http::get(relay.admin, "/queue?sender=&state=&older_than=").text();
    assert!(
        page.contains("50 messages here") && page.contains("number 0<") && !page.contains("number 55"),
        "{page}"
    );
    let next = page.split("href=\"").find(|link| link.contains("cursor=")).expect("a next page");
    let next = next.split('"').next().expect("its end").replace("&amp;", "&");
    let page = http::get(relay.admin, &next).text();
    assert!(page.contains("10 messages here") && page.contains("number 59"), "{page}");
    let none = http::get(relay.admin, "/queue?recipient=%40other.example").text();
    assert!(none.contains("No message is like that"), "{none}");
    let wrong = http::get(relay.admin, "/queue?older_than=5");
    assert!(wrong.status == 400 && wrong.text().contains("Older_than is a duration"), "{}", wrong.text());
    let found = http::get(relay.admin, &format!("/queue?find={}", ids[3]));
    assert_eq!((found.status, found.field("location")), (303, Some(format!("/queue/{}", ids[3]).as_str())));
}

#[test]
fn whoever_has_no_session_is_asked_for_the_password_and_guessing_gets_slower() {
    let relay = Relay::start(&mailer().set("smtp_admin_password", "sesame-4711"));
    let get = |path: &str, fields: &[(&str, &str)]| {
        http::request_with("GET", relay.admin, path, fields, "").expect("an answer")
    };
    let html = ("Accept", "text/html");
    let asked = get("/queue?state=held", &[html]);
    assert_eq!((asked.status, asked.field("location")), (303, Some("/login?next=%2Fqueue%3Fstate%3Dheld")));
    assert_eq!(get("/api/v1/queue", &[]).status, 401, "a program is told so");
    assert!(
        get("/api/v1/queue", &[("Sec-Fetch-Mode", "cors")]).field("www-authenticate").is_none(),
        "no dialog for a script"
    );
    for public in ["/login", "/style.css", "/page.js", "/icon.svg", "/healthz"] {
        assert_eq!(get(public, &[]).status, 200, "{public}");
    }
    assert!(!get("/login?next=%2F%2Fevil.example", &[]).text().contains("evil"), "no way to elsewhere");

    let mut took = Vec::new();
    for _ in 0..2 {
        let begun = Instant::now();
        let wrong = post(&relay, "/login", &[], "password=sesame-4712&next=%2Fqueue");
        assert!(wrong.status == 401 && wrong.field("set-cookie").is_none(), "{}", wrong.head);
        assert!(wrong.text().contains("That is not the password"), "{}", wrong.text());
        took.push(begun.elapsed());
    }
    assert!(took[0] >= Duration::from_secs(1) && took[1] >= Duration::from_secs(2), "{took:?}");

    let strange = [FORM, ("Origin", "http://evil.example")];
    let forced = http::request_with("POST", relay.admin, "/login", &strange, "password=sesame-4711");
    assert_eq!(forced.expect("an answer").status, 403, "another site logs nobody in");

    let right =
        post(&relay, "/login", &[("X-Forwarded-Proto", "https")], "password=sesame-4711&next=%2Fqueue");
    assert_eq!((right.status, right.field("location")), (303, Some("/queue")));
    assert!(right.field("set-cookie").is_some_and(|cookie| cookie.ends_with("; Secure")), "{}", right.head);
    let right = post(&relay, "/login", &[], "password=sesame-4711");
    let cookie = right.field("set-cookie").expect("a cookie");
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains("Secure"), "{cookie}");
    let session = ("Cookie", cookie.split(';').next().expect("its value"));
    let page = get("/", &[html, session]);
    assert!(page.status == 200 && page.text().contains("Log out"), "{}", page.text());

    // A session is no way in for pages of other sites.
    let id = send(&relay, "mine");
    let body = format!("action=delete&id={id}");
    for strange in [
        &[FORM, session, ("Origin", "http://evil.example")][..],
        &[FORM, session, ("Origin", "null")],
        &[FORM, session, ("Sec-Fetch-Site", "cross-site")],
        &[FORM, session],
    ] {
        let forged =
            http::request_with("POST", relay.admin, "/queue/act", strange, &body).expect("an answer");
        assert_eq!(forged.status, 403, "{strange:?}");
    }
    assert_eq!(get(&format!("/queue/{id}"), &[html, session]).status, 200, "it is still there");
    assert_eq!(post(&relay, "/queue/act", &[session], &body).status, 200);

    assert_eq!(post(&relay, "/logout", &[session], "").field("location"), Some("/login"));
    assert_eq!(get("/", &[html, session]).status, 303, "the session has ended");
}

#[test]
fn the_plots_go_on_behind_a_kill_and_anew_behind_damage() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD));
    for i in 0..3 {
        send(&relay, &format!("mail {i}"));
    }
    let sum = |relay: &Relay, what: &str| {
        let trend = http::get(relay.admin, "/api/v1/trend?range=24h").json();
        trend["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|item| item[what].as_u64().unwrap_or(0))
            .sum::<u64>()
    };
    relay.wait_for_empty_queue();
    wait::until_true("the deliveries are counted", || sum(&relay, "delivered") == 3);
    let file = relay.data().join("trend");
    // A place has 128 octets; the recipients that were reached are its seventh number.
    let delivered = |place: &[u8]| place.get(36..40).map_or(0, |number| u32::from(number[0]));
    wait::until_true("and written down", || {
        let written = std::fs::read(&file).unwrap_or_default();
        written.chunks(128).take(1_440).map(delivered).sum::<u32>() == 3
    });
    relay.kill9();
    relay.up();
    assert_eq!(sum(&relay, "delivered"), 3);
    send(&relay, "one more");
    relay.wait_for_empty_queue();
    wait::until_true("it goes on", || sum(&relay, "delivered") == 4 && sum(&relay, "accepted") == 4);
    relay.terminate();
    std::fs::write(&file, vec![0xA5; 500_000]).expect("it is damaged");
    relay.up();
    assert_eq!(sum(&relay, "delivered"), 0);
    let page = http::get(relay.admin, "/?range=7d");
    assert!(page.status == 200 && page.text().contains("<svg"), "{}", page.text());
    send(&relay, "mail goes on");
    relay.wait_for_empty_queue();
    assert_eq!(http::get(relay.admin, "/api/v1/trend?range=2y").status, 400);
}

#[test]
fn an_open_page_is_told_of_changes_and_no_more_pages_than_there_are_places() {
    let relay = Relay::start(&mailer());
    let open = || {
        let mut stream = TcpStream::connect(("127.0.0.1", relay.admin)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        write!(stream, "GET /live HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", relay.admin).expect("it is heard");
        let mut stream = BufReader::new(stream);
        let mut first = String::new();
        stream.read_line(&mut first).expect("an answer");
        (first, stream)
    };
    let mut streams: Vec<_> = (0..32).map(|_| open()).collect();
    assert!(streams.iter().all(|(first, _)| first.contains(" 200 ")));
    assert!(open().0.contains(" 503 "), "no place is left");
    send(&relay, "something new");
    let (_, stream) = &mut streams[0];
    let told = stream.lines().map_while(Result::ok).find(|line| line == "event: change");
    assert!(told.is_some(), "nothing was told");
    drop(streams);
    wait::until_true("places are free again", || open().0.contains(" 200 "));
}

/// Mail that tries what mail can try.
const HOSTILE: &str = "From: \"<b onmouseover=alert(1)>\" <app@example.test>\r\n\
    To: you@example.test\r\n\
    Subject: =?utf-8?q?=3Cscript=3Edocument=2Etitle=3D=27owned=27=3C/script=3E_=E2=80=AE_=22=27=3Eimg?=\r\n\
    MIME-Version: 1.0\r\n\
    Content-Type: multipart/mixed; boundary=outer\r\n\r\n\
    --outer\r\nContent-Type: multipart/related; boundary=inner\r\n\r\n\
    --inner\r\nContent-Type: text/html; charset=utf-8\r\n\r\n\
    <html><head><link rel=preconnect href=http://127.0.0.1:PORT/link><meta http-equiv=refresh content=\"0;url=http://127.0.0.1:PORT/refresh\">\r\n\
    <style>@import url(http://127.0.0.1:PORT/import); body { background: url(http://127.0.0.1:PORT/css) }</style></head>\r\n\
    <body onload=\"top.document.title='owned'\"><h1 style=\"color:teal\">Hello <script>top.document.title='owned'</script></h1>\r\n\
    <img src=\"cid:dot@x\" alt=dot width=20 height=20><img src=http://127.0.0.1:PORT/pixel><iframe src=http://127.0.0.1:PORT/frame></iframe>\r\n\
    <object data=http://127.0.0.1:PORT/object></object><video src=http://127.0.0.1:PORT/video autoplay></video>\r\n\
    <form action=http://127.0.0.1:PORT/form><input name=q></form><a href=http://127.0.0.1:PORT/a>link</a></body></html>\r\n\
    --inner\r\nContent-Type: image/png\r\nContent-ID: <dot@x>\r\nContent-Transfer-Encoding: base64\r\n\r\n\
    iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==\r\n\
    --inner--\r\n\
    --outer\r\nContent-Type: text/html\r\nContent-Disposition: attachment; filename=\"../../<script>alert(1)</script>\u{202E}gpj.html\"\r\n\r\n\
    <script>alert(1)</script>\r\n--outer--\r\n";

/// A picture as a browser draws it is looked at by people; here it is only that it can be drawn without a complaint.
#[test]
fn a_real_browser_shows_each_page_and_nothing_hostile_gets_through() {
    let trap = Trap::start();
    let dev = Relay::start_dev();
    let hostile = HOSTILE.replace("PORT", &trap.port.to_string());
    let welcome = "From: \"Lunch\" <app@example.test>\r\nTo: you@example.test\r\nSubject: Your table for two\r\n\r\nSee you at eight.\r\n";
    for content in [hostile.as_str(), welcome] {
        let mut client = dev.client();
        client
            .send("app@example.test", &["you@example.test", "b@example.test"], content)
            .expect("it is taken");
    }
    dev.wait_for_empty_queue();
    wait::until_true("both have arrived", || {
        let list = http::get(dev.admin, "/api/v1/dev/messages").json();
        list["items"].as_array().is_some_and(|items| items.len() == 2)
    });

    let upstream = Upstream::start(PASSWORD);
    let said = "<script>document.title='owned'</script><img src=x onerror=alert(1)> \u{202E}over";
    upstream.set(|behaviour| {
        behaviour.recipients.insert("later@example.test".to_owned(), format!("450 4.2.0 {said}"));
        behaviour.recipients.insert("never@example.test".to_owned(), format!("550 5.1.1 {said}"));
    });
    let service = upstream.upstream_of(Service::mailer(), PASSWORD);
    let relay = Relay::start(
        &service
            .set("smtp_admin_password", "sesame-4711")
            .set("smtp_rate_limit", "500 recipients/day")
            .set("smtp_retry", "1h..2h"),
    );
    let mut client = relay.client();
    let mut sent = |to: &str, n: usize| {
        let content = format!("Subject: mail {n} for <{to}>\r\n\r\n<b>text</b> {n}\r\n");
        let said = client.send("\"<i>\"@example.test", &[to], &content).expect("it is taken");
        said.trim().rsplit(' ').next().expect("an id").to_owned()
    };
    let gone = sent("fine@example.test", 0);
    sent("never@example.test", 1);
    let waiting: Vec<String> = (2..6).map(|n| sent("later@example.test", n)).collect();
    wait::until_true("each has been tried", || {
        let events = relay.told(&["logs", "--json", "--event=deferred"]);
        waiting.iter().all(|id| events.contains(id))
    });
    relay.told(&["queue", "hold", &waiting[0]]);

    let peers = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
    let modules = programs::require(&peers.join("browser/node_modules")).to_owned();
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pictures");
    std::fs::create_dir_all(&pictures).expect("a directory");
    let order = json!({
        "modules": modules, "chromium": programs::require(Path::new("/usr/bin/chromium")), "pictures": pictures,
        "dev": { "admin": dev.admin, "smtp": dev.smtp },
        "relay": { "admin": relay.admin, "smtp": relay.smtp, "password": "sesame-4711", "gone": gone, "waiting": waiting },
    });
    let told = browse(&order);
    assert!(told["pages"].as_u64().is_some_and(|pages| pages >= 40), "{told}");
    assert_eq!(trap.heard(), Vec::<String>::new(), "nothing was asked for elsewhere");
}

/// Runs the script of tests/browser; it says on standard error what it found wrong.
fn browse(order: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/look.mjs");
    let mut node = Command::new("node");
    node.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = node.spawn().expect("node runs");
    child.stdin.take().expect("its input").write_all(order.to_string().as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", programs::shown(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A server that nobody is to ask.
struct Trap {
    port: u16,
    heard: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Trap {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let heard = std::sync::Arc::default();
        let ears = std::sync::Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut line = String::new();
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                // Whoever only connects is noted, too.
                let _ = BufReader::new(stream).read_line(&mut line);
                let ears: &std::sync::Mutex<Vec<String>> = &ears;
                ears.lock().expect("not poisoned").push(line);
            }
        });
        Self { port, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("not poisoned").clone()
    }
}
