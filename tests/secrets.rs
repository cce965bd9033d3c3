//! Secrets stay where they belong. With everything failing that can, at the most verbose level, nothing that
//! the relay says or keeps repeats a password, a token or a key: not as it is, and not in another form.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use support::relay::Relay;
use support::service::{Home, Service};
use support::upstream::{USER, Upstream};
use support::wait;

/// Quotes, blanks and letters beyond ASCII, so that every form differs from the others.
const RELAY_PASSWORD: &str = "Up/str+eam \"s\u{e9}same\" 4711";
const APP_PASSWORD: &str = "App&l\u{e9} \"s\u{e9}same\" =4712";
const WRONG_APP_PASSWORD: &str = "Wr\u{f6}ng \"guess\" of a client 4713";
const USER_PASSWORD: &str = "Us\u{e9}r's own \"s\u{e9}same\" 4714";
const ADMIN_PASSWORD: &str = "Adm\u{ed}n \"s\u{e9}same\" ?4715";
const CLIENT_SECRET: &str = "Cli\u{e9}nt secret \"of\" OAuth 4716";
const REFRESH_TOKEN: &str = "1//refresh+tok\u{e9}n\"4717";
const PROXY_PASSWORD: &str = "Pr\u{f6}xy's \"s\u{e9}same\" :@/4719";
/// The path of a webhook is often all that guards it.
const WEBHOOK_PATH: &str = "T0KEN/x+y=4720";
const WEBHOOK_SECRET: &str = "W\u{eb}bhook's \"s\u{e9}same\" 4721";
const ACCESS_TOKEN: &str = "ya29.access+token/4718==";

/// Every key that holds a secret, and the secret that stands there, or in its like, in the test below.
const KEYS: [(&str, &str); 13] = [
    ("smtp_admin_password", ADMIN_PASSWORD),
    ("smtp_alert_webhook", WEBHOOK_PATH),
    ("smtp_alert_webhook_secret", WEBHOOK_SECRET),
    ("smtp_event_webhook", WEBHOOK_PATH),
    ("smtp_event_webhook_secret", WEBHOOK_SECRET),
    ("smtp_password", APP_PASSWORD),
    ("smtp_relay_oauth.client_secret", CLIENT_SECRET),
    ("smtp_relay_oauth.refresh_token", REFRESH_TOKEN),
    ("smtp_relay_password", RELAY_PASSWORD),
    ("smtp_relay_proxy", PROXY_PASSWORD),
    ("smtp_relays.password", RELAY_PASSWORD),
    ("smtp_relays.proxy", PROXY_PASSWORD),
    ("smtp_users.password", USER_PASSWORD),
];

#[test]
fn every_key_that_holds_a_secret_is_searched_for() {
    let mut keys: Vec<String> = outpost::config::secret_keys().collect();
    keys.sort();
    assert_eq!(keys, KEYS.map(|(key, _)| key), "give the new one a value below, and search for it");
    let searched = secrets("");
    for (key, secret) in KEYS {
        assert!(searched.iter().any(|(_, other, _)| other == secret), "{key} is not searched for");
    }
}

/// The forms in which a secret could get away.
fn forms(secret: &str, user: &str) -> Vec<(&'static str, Vec<u8>)> {
    let octets = secret.as_bytes();
    let hex = |upper: bool| -> String {
        octets
            .iter()
            .map(|octet| if upper { format!("{octet:02X}") } else { format!("{octet:02x}") })
            .collect()
    };
    let percent: String = octets
        .iter()
        .map(|octet| match octet.is_ascii_alphanumeric() {
            true => char::from(*octet).to_string(),
            false => format!("%{octet:02X}"),
        })
        .collect();
    let json = serde_json::to_string(secret).expect("JSON");
    let list: Vec<String> = octets.iter().map(ToString::to_string).collect();
    let mut forms = vec![
        ("plain", octets.to_vec()),
        ("base64 of PLAIN", BASE64.encode(format!("\0{user}\0{secret}")).into_bytes()),
        ("hex", hex(false).into_bytes()),
        ("HEX", hex(true).into_bytes()),
        ("percent-encoded", percent.into_bytes()),
        ("JSON", json.trim_matches('"').into()),
        ("Debug", format!("{secret:?}").trim_matches('"').into()),
        ("a list of octets", list.join(", ").into_bytes()),
        ("UTF-16", secret.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("reversed", secret.chars().rev().collect::<String>().into_bytes()),
    ];
    // Inside of something longer, base64 begins at any of three places; its ends are then the others'.
    for before in 0..3 {
        let whole = BASE64.encode([&b"xx"[..before], octets].concat());
        let begin = [0, 2, 3][before];
        let length = (octets.len() + before) * 8 / 6;
        forms.push(("base64", whole.as_bytes()[begin..length - 1].to_vec()));
    }
    forms
}

fn secrets(key: &str) -> Vec<(&'static str, String, &'static str)> {
    let mut secrets = vec![
        ("the upstream's password", RELAY_PASSWORD.to_owned(), USER),
        ("the apps' password", APP_PASSWORD.to_owned(), "dotcloud"),
        ("a client's wrong password", WRONG_APP_PASSWORD.to_owned(), "dotcloud"),
        ("a login's password", USER_PASSWORD.to_owned(), "shop"),
        ("the page's password", ADMIN_PASSWORD.to_owned(), "admin"),
        ("OAuth's client secret", CLIENT_SECRET.to_owned(), USER),
        ("OAuth's refresh token", REFRESH_TOKEN.to_owned(), USER),
        ("OAuth's access token", ACCESS_TOKEN.to_owned(), USER),
        ("a proxy's password", PROXY_PASSWORD.to_owned(), "door"),
        ("a webhook's path", WEBHOOK_PATH.to_owned(), "hook"),
        ("a webhook's secret", WEBHOOK_SECRET.to_owned(), "hook"),
    ];
    // Of a key, each line.
    secrets.extend(
        key.lines()
            .filter(|line| line.len() >= 32 && !line.starts_with('-'))
            .map(|line| ("a DKIM key", line.to_owned(), "x")),
    );
    secrets
}

/// Says where a secret is found, if it is.
fn search(place: &str, text: &[u8], secrets: &[(&str, String, &str)], found: &mut Vec<String>) {
    for (what, secret, user) in secrets {
        for (form, needle) in forms(secret, user) {
            if memchr::memmem::find(text, &needle).is_some() {
                found.push(format!("{place} holds {what}, {form}"));
            }
        }
    }
}

/// A token endpoint that hands out a token, to whoever asks.
fn token_endpoint() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut stream = BufReader::new(stream);
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                line.clear();
            }
            let mut body = vec![0; length];
            let _ = stream.read_exact(&mut body);
            let answer =
                format!(r#"{{"access_token":"{ACCESS_TOKEN}","token_type":"Bearer","expires_in":3600}}"#);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
            let _ = write!(stream.get_mut(), "{head}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        }
    });
    port
}

/// A proxy that refuses whoever logs in; one of HTTP says so with what it was sent.
fn proxy(scheme: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let asked = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut said = [0; 4096];
            let mut hear = |stream: &mut TcpStream| {
                let count = stream.read(&mut said).unwrap_or(0);
                String::from_utf8_lossy(&said[..count]).into_owned()
            };
            let heard = hear(&mut stream);
            if scheme == "socks5" {
                let _ = stream.write_all(&[5, 2]);
                hear(&mut stream);
                let _ = stream.write_all(&[1, 1]);
            } else {
                let login = heard.lines().find_map(|line| line.strip_prefix("Proxy-Authorization: Basic "));
                let login = login.unwrap_or_default();
                let decoded = String::from_utf8(BASE64.decode(login).unwrap_or_default()).unwrap_or_default();
                let answer = format!("HTTP/1.1 502 no {login} ({}), says the test\r\n\r\n", decoded);
                let _ = stream.write_all(answer.as_bytes());
            }
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let password = percent_encoding::utf8_percent_encode(PROXY_PASSWORD, percent_encoding::NON_ALPHANUMERIC);
    (format!("{scheme}://door:{password}@127.0.0.1:{port}"), asked)
}

/// A webhook that takes nothing, and says so with what it was sent.
fn webhook() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let asked = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            let _ = stream.read_line(&mut line);
            let answer = format!("HTTP/1.1 500 no {}\r\nConnection: close\r\n\r\n{line}", line.trim());
            let _ = stream.get_mut().write_all(answer.as_bytes());
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, asked)
}

/// Logs in at the relay as an app does; what was answered.
fn log_in(port: u16, lines: &[String]) -> String {
    let mut stream = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a session"));
    let mut said = String::new();
    let mut answer = |stream: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
            said.push_str(&line);
            if line.as_bytes().get(3) == Some(&b' ') {
                break;
            }
            line.clear();
        }
    };
    answer(&mut stream);
    for line in lines {
        stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).expect("written");
        answer(&mut stream);
    }
    said
}

fn ask(port: u16, path: &str, password: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the page");
    let login = BASE64.encode(format!("admin:{password}"));
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {login}\r\nConnection: close\r\n\r\n"
    )
    .expect("asked");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn yaml(secret: &str) -> String {
    format!("'{}'", secret.replace('\'', "''"))
}

fn files_below(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&path, found),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn no_secret_is_repeated_in_any_form_whatever_fails() {
    let endpoint = token_endpoint();
    let mechanisms = ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2", "OAUTHBEARER"];
    let upstreams: Vec<Upstream> = mechanisms.iter().map(|_| Upstream::start("another password")).collect();
    let mut items = Vec::new();
    for (place, (mechanism, upstream)) in mechanisms.iter().zip(&upstreams).enumerate() {
        upstream.set(|it| it.mechanisms = mechanism);
        let login = if mechanism.contains("OAUTH") {
            format!(
                "oauth: {{token_url: 'http://127.0.0.1:{endpoint}/token', client_id: us, client_secret: {}, \
                 refresh_token: {}}}",
                yaml(CLIENT_SECRET),
                yaml(REFRESH_TOKEN)
            )
        } else {
            format!("password: {}", yaml(RELAY_PASSWORD))
        };
        items.push(format!(
            "{{name: {}, server: localhost, port: {}, tls_ca: {}, username: {USER}, priority: {place}, {login}}}",
            mechanism.to_lowercase(),
            upstream.port,
            upstream.ca_file().display()
        ));
    }
    // One more, which repeats what it was sent in its refusal.
    let echo = Upstream::start("another password");
    let plain = BASE64.encode(format!("\0{USER}\0{RELAY_PASSWORD}"));
    echo.set(|it| {
        it.login = Some(format!("535 5.7.8 can't make sense of AUTH PLAIN {plain}, says the test"))
    });
    items.push(format!(
        "{{name: echo, server: localhost, port: {}, tls_ca: {}, username: {USER}, priority: 9, password: {}}}",
        echo.port,
        echo.ca_file().display(),
        yaml(RELAY_PASSWORD)
    ));
    let mut proxies = Vec::new();
    for scheme in ["socks5", "http"] {
        let (url, asked) = proxy(scheme);
        proxies.push(asked);
        items
            .push(format!("{{name: by-{scheme}, server: localhost, port: 1, priority: 10, proxy: '{url}'}}"));
    }
    // One that answers no, and one that is not there.
    let ((hook, told), away) = (webhook(), support::ports::free());
    let service = Service::mailer()
        .set("smtp_event_webhook", format!("'http://127.0.0.1:{hook}/{WEBHOOK_PATH}'"))
        .set("smtp_event_webhook_secret", yaml(WEBHOOK_SECRET))
        .set("smtp_alert_webhook", format!("'http://127.0.0.1:{away}/{WEBHOOK_PATH}'"))
        .set("smtp_alert_webhook_secret", yaml(WEBHOOK_SECRET))
        .set("smtp_relays", format!("[{}]", items.join(", ")))
        .set("smtp_password", yaml(APP_PASSWORD))
        .set("smtp_users", format!("{{shop: {{password: {}}}}}", yaml(USER_PASSWORD)))
        .set("smtp_admin_password", yaml(ADMIN_PASSWORD))
        .set("smtp_dkim", "{domain: example.test}")
        .set("smtp_log_level", "trace");
    let home = Home::new(&[&service]);
    let mut relay = Relay::of(&home, &service);
    relay.told(&["dkim"]);
    relay.up_by(|command| {
        command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
    });
    let key = fs::read_to_string(relay.data().join("dkim/outpost.example.test.pem")).expect("the key");
    let secrets = secrets(&key);

    // Clients with right and with wrong passwords, by each mechanism that carries one.
    let (plain, base64) = (
        |user: &str, password: &str| BASE64.encode(format!("\0{user}\0{password}")),
        |text: &str| BASE64.encode(text),
    );
    let ehlo = || "EHLO app".to_owned();
    let mut said = String::new();
    for lines in [
        vec![ehlo(), format!("AUTH PLAIN {}", plain("dotcloud", APP_PASSWORD)), "QUIT".to_owned()],
        vec![ehlo(), format!("AUTH PLAIN {}", plain("shop", USER_PASSWORD)), "QUIT".to_owned()],
        vec![ehlo(), format!("AUTH PLAIN {}", plain("dotcloud", WRONG_APP_PASSWORD)), "QUIT".to_owned()],
        vec![
            ehlo(),
            "AUTH LOGIN".to_owned(),
            base64("dotcloud"),
            base64(WRONG_APP_PASSWORD),
            "QUIT".to_owned(),
        ],
        vec![ehlo(), format!("AUTHPLAIN {}", plain("dotcloud", WRONG_APP_PASSWORD)), "QUIT".to_owned()],
    ] {
        said.push_str(&log_in(relay.smtp, &lines));
    }
    assert_eq!(said.matches("\r\n235 ").count(), 2, "{said}");
    relay
        .client()
        .send("a@example.test", &["b@example.test"], "From: a@example.test\r\n\r\nx\r\n")
        .expect("taken");
    for upstream in upstreams.iter().filter(|it| it.port != upstreams[3].port).chain([&echo]) {
        wait::until_true("each upstream has seen a login", || upstream.auth_attempts() > 0);
    }

    for asked in &proxies {
        wait::until_true("each proxy has been asked", || asked.load(Ordering::SeqCst) > 0);
    }
    wait::until_true("a webhook has been told", || told.load(Ordering::SeqCst) > 0);
    wait::until_true("what the proxy said is told", || relay.log().contains("502 no (withheld)"));

    let mut found = Vec::new();
    for path in [
        "/",
        "/metrics",
        "/healthz",
        "/readyz",
        "/api/v1/status",
        "/api/v1/queue",
        "/api/v1/info",
        "/api/v1/no",
        "/api/openapi.json",
    ] {
        for password in [ADMIN_PASSWORD, "wrong"] {
            let answer = ask(relay.admin, path, password);
            // What apps need is what this one exists to tell.
            if path != "/api/v1/info" || password == "wrong" {
                search(&format!("GET {path}"), &answer, &secrets, &mut found);
            }
        }
    }
    let id = {
        let listed: serde_json::Value =
            serde_json::from_str(&relay.told(&["queue", "list", "--json"])).expect("JSON");
        listed["items"][0]["id"].as_str().expect("a message").to_owned()
    };
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["queue", "list"],
        &["queue", "show", &id],
        &["queue", "show", &id, "--json"],
        &["logs"],
        &["logs", "--json"],
        &["info"],
        &["presets"],
        &["check"],
        &["check", "--connect"],
        &["dkim"],
        &["reload"],
    ] {
        let output = relay.cli(command);
        let told = [&output.stdout[..], &output.stderr].concat();
        search(&format!("outpost {}", command.join(" ")), &told, &secrets, &mut found);
    }
    for file in ["cmdline", "environ", "comm", "status", "stat", "limits", "mountinfo"] {
        let text = fs::read(format!("/proc/{}/{file}", relay.pid())).expect("our child");
        search(&format!("/proc/PID/{file}"), &text, &secrets, &mut found);
    }
    let pid = relay.pid();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten() {
        let name = fs::read(task.path().join("comm")).unwrap_or_default();
        search("a thread's name", &name, &secrets, &mut found);
    }
    relay.terminate();
    let log = relay.log();
    for (mechanism, upstream) in mechanisms.iter().zip(&upstreams) {
        let inside: Vec<u8> = upstream.heard().into_iter().flat_map(|heard| heard.inside).collect();
        let said = String::from_utf8_lossy(&inside).into_owned();
        // More than the word itself: a challenge was answered, or the login went with it.
        let auth = said.lines().position(|line| line.starts_with(&format!("AUTH {mechanism}")));
        let auth = auth.unwrap_or_else(|| panic!("no login by {mechanism}: {said}"));
        let answered = said.lines().nth(auth + 1).is_some_and(|line| !line.contains(' ') && line.len() > 20);
        assert!(answered || said.lines().nth(auth).is_some_and(|line| line.len() > 40), "{said}");
    }
    assert!(log.contains("DEBUG") && log.contains("(withheld)"), "the log is as verbose as can be");
    search("the log", log.as_bytes(), &secrets, &mut found);
    search("standard output", relay.stdout().as_bytes(), &secrets, &mut found);
    let mut files = Vec::new();
    files_below(relay.data(), &mut files);
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    assert!(names.iter().any(|name| name.contains("queue/")), "{names:?}");
    for file in &files {
        let name = file.strip_prefix(relay.data()).expect("below").display().to_string();
        // What is published for apps, and the key itself, for which only its owner has the rights.
        if name.starts_with("environment.") || name.starts_with("dkim/") {
            continue;
        }
        search(&name, &fs::read(file).expect("readable"), &secrets, &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
    // The search itself works: it finds the password where it has to be.
    let mut there = Vec::new();
    search("dotcloud.yml", &fs::read(home.path("dotcloud.yml")).expect("readable"), &secrets, &mut there);
    assert!(there.iter().any(|found| found.contains("the upstream's password, plain")), "{there:?}");
}
