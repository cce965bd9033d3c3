//! Real clients hand in: each in clear, by STARTTLS and in TLS from the first byte, with a login. What
//! arrives at the upstream has the body that they sent, octet for octet.
//!
//! Each client is a small program in `clients/`, or one of the system's, that finds in its
//! environment where to send what: HOST, PORT (or CLEAR, where no STARTTLS is offered), TLS, CA, LOGIN, PASSWORD, SENDER, TO, TOKEN, and MAIL, a
//! file as it is to be sent. Those that compose by themselves take their text from TEXT and write to
//! OUT what they handed over. `peers.rs` has what needs a real Postfix as the upstream.

// Which client came by which way is what somebody who runs this wants to see.
#![allow(clippy::print_stdout)]

mod support;

use std::{
    cell::RefCell,
    fs, io,
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::spawn,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use support::bytes::{contains, header_fields};
use support::certs::Authority;
use support::postfix::Postfix;
use support::relay::Relay;
use support::service::Service;
use support::upstream::Upstream;
use support::{ports, programs, wait};

const UPSTREAM_PASSWORD: &str = "upstream-sesame-91";
const LOGIN: &str = "dotcloud";
const PASSWORD: &str = "app sesame'77%";
const SENDER: &str = "app@example.test";
const TO: &str = "user@example.test";

/// How a client comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// In clear from loopback, without a login.
    Plain,
    /// STARTTLS, then AUTH.
    StartTls,
    /// TLS from the first byte, then AUTH.
    Implicit,
}

const ALL: &[Way] = &[Way::Plain, Way::StartTls, Way::Implicit];

/// Every client with the ways it takes here, and why it does not take the others: what is run, and what
/// docs/smtp.md shows.
const CLIENTS: [(&str, &[Way], &str); 15] = [
    ("swaks", ALL, ""),
    ("curl", ALL, ""),
    ("msmtp", ALL, ""),
    ("Python smtplib", ALL, ""),
    ("Django", ALL, ""),
    ("nodemailer", ALL, ""),
    ("nodemailer, its pool", ALL, ""),
    ("PHPMailer", ALL, ""),
    ("Perl Net::SMTP", ALL, ""),
    ("Ruby mail", ALL, "in clear: where no STARTTLS is offered, for it uses what is"),
    ("Go net/smtp", ALL, ""),
    ("lettre", ALL, ""),
    ("s-nail", ALL, ""),
    ("Postfix", ALL, ""),
    ("Exim, by BDAT", ALL, ""),
];

/// The ways of a client of the table.
fn ways(client: &str) -> &'static [Way] {
    CLIENTS.iter().find(|(name, ..)| *name == client).unwrap_or_else(|| panic!("no client {client}")).1
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "none",
            Self::StartTls => "starttls",
            Self::Implicit => "implicit",
        }
    }

    /// Whether a trace field tells of it (RFC 3848).
    fn is_traced_in(self, field: &str) -> bool {
        let words: &[&str] = if self == Self::Plain {
            &[" with ESMTP ", " with SMTP ", " with UTF8SMTP "]
        } else {
            &[" with ESMTPSA ", " with UTF8SMTPSA "]
        };
        words.iter().any(|words| field.contains(words))
    }
}

/// A relay with three listeners and a certificate, a scripted upstream behind it.
struct Bench {
    upstream: Upstream,
    relay: Relay,
    implicit: u16,
    /// Without STARTTLS.
    clear: u16,
}

/// One mail to send.
struct Job {
    way: Way,
    port: u16,
    /// The same without STARTTLS, for those who use it wherever it is offered.
    clear: u16,
    ca: PathBuf,
    token: String,
    /// A mail as it is to be sent, but for the end of its lines.
    mail: PathBuf,
    /// The same with the line ends of Unix.
    unix_mail: PathBuf,
    text: PathBuf,
    out: PathBuf,
}

impl Bench {
    fn start() -> Self {
        let upstream = Upstream::start(UPSTREAM_PASSWORD);
        let service = upstream.upstream_of(Service::mailer(), UPSTREAM_PASSWORD);
        let (implicit, clear) = (ports::free(), ports::free());
        let listen = format!(
            "['127.0.0.1:{}', {{address: '127.0.0.1:{implicit}', tls: implicit}}, \
              {{address: '127.0.0.1:{clear}', tls: none}}]",
            service.smtp
        );
        let home = support::service::Home::new(&[]);
        let authority = Authority::new("test CA of the relay");
        let identity = authority.identity(&["localhost", "127.0.0.1"]);
        authority.write_to(&home.path("ca.pem"));
        fs::write(home.path("relay.pem"), &identity.cert_pem).expect("a certificate");
        fs::write(home.path("relay.key"), &identity.key_pem).expect("a key");
        let service = service
            .set("smtp_listen", listen)
            .set("smtp_tls_cert", home.path("relay.pem").display())
            .set("smtp_tls_key", home.path("relay.key").display())
            .set("smtp_password", format!("\"{PASSWORD}\""));
        home.write(&[&service]);
        let relay = Relay::start_in(&home, &service);
        Self { upstream, relay, implicit, clear }
    }

    fn job(&self, way: Way) -> Job {
        let path = |name: &str| self.relay.home.path(&format!("{}-{name}", way.name()));
        let token = format!("token-{}", way.name());
        let job = Job {
            way,
            port: if way == Way::Implicit { self.implicit } else { self.relay.smtp },
            clear: self.clear,
            ca: self.relay.home.path("ca.pem"),
            mail: path("mail.eml"),
            unix_mail: path("mail.txt"),
            text: path("text.txt"),
            out: path("out.eml"),
            token,
        };
        let mail = mail(&job.token);
        fs::write(&job.unix_mail, &mail).expect("a file");
        fs::write(&job.mail, mail.replace('\n', "\r\n")).expect("a file");
        fs::write(&job.text, text()).expect("a file");
        job
    }

    /// Waits for a mail and looks at it.
    #[track_caller]
    fn arrived(&self, job: &Job, token: &str, sent: &[u8]) {
        let field = format!("X-Token: {token}\r\n");
        let mail = wait::until(&format!("{token} arrives; {}", self.relay.log()), || {
            self.upstream.messages().into_iter().find(|mail| contains(mail, field.as_bytes()))
        });
        let (got, wanted) = (body(&mail), body(sent));
        let same = got.iter().zip(&wanted).take_while(|(got, wanted)| got == wanted).count();
        let from =
            |octets: &[u8]| String::from_utf8_lossy(&octets[same..octets.len().min(same + 200)]).into_owned();
        assert!(
            got == wanted,
            "{:?}: the body was changed behind octet {same}: {:?} was {:?}",
            job.way,
            from(&got),
            from(&wanted)
        );
        let trace = header_fields(&mail).remove(0);
        let trace = trace.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(job.way.is_traced_in(&trace), "{:?}: {trace}", job.way);
    }
}

/// A way to the relay that counts who comes through.
struct Door {
    port: u16,
    came: Arc<AtomicUsize>,
}

impl Door {
    fn to(relay: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let came = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&came);
        spawn(move || {
            for client in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let inside = TcpStream::connect(("127.0.0.1", relay)).expect("the relay takes connections");
                for (mut from, mut to) in [(&client, &inside), (&inside, &client)].map(|(from, to)| {
                    (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"))
                }) {
                    spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self { port, came }
    }
}

/// Lines that clients, relays and servers are known to break.
fn text() -> String {
    let long = "long ".repeat(198);
    format!(
        "Schöne Grüße ✓\n\n.\n..\n. \n.dot\nFrom here\n  blanks  \n\t\n{long}\n{}\n\nend\n",
        "0".repeat(3_000)
    )
}

fn mail(token: &str) -> String {
    let attachment = "AP8NCi4NCg==\n".repeat(200);
    let text = text();
    format!(
        "From: {SENDER}\nTo: {TO}\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nDate: Mon, 06 Jan 2025 10:11:12 +0100\n\
         Message-ID: <{token}@app.test>\nX-Token: {token}\nMIME-Version: 1.0\n\
         Content-Type: multipart/mixed; boundary=\"=_b\"\n\nPreamble.\n--=_b\n\
         Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{text}--=_b\n\
         Content-Type: application/octet-stream\nContent-Disposition: attachment; filename=\"a.bin\"\n\
         Content-Transfer-Encoding: base64\n\n{attachment}--=_b--\n"
    )
}

/// What is behind the header section, as it travels.
fn body(mail: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(mail.len());
    for line in mail.split_inclusive(|octet| *octet == b'\n') {
        let bare = line.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        lines.extend_from_slice(bare.unwrap_or(line));
        lines.extend_from_slice(b"\r\n");
    }
    let end = memchr::memmem::find(&lines, b"\r\n\r\n").expect("a header section");
    lines.split_off(end + 4)
}

/// Runs a client once for each of its ways.
#[track_caller]
fn serves(name: &str, client: impl Fn(&Job) -> Command) {
    serves_but(name, |sent| sent, client);
}

/// The same for a client that sends something else than it was given or says: `but` tells what.
#[track_caller]
fn serves_but(name: &str, but: impl Fn(Vec<u8>) -> Vec<u8>, client: impl Fn(&Job) -> Command) {
    let bench = Bench::start();
    for way in ways(name) {
        let job = bench.job(*way);
        programs::run(with_environment(&mut client(&job), &job));
        let sent = fs::read(&job.out).or_else(|_| fs::read(&job.mail)).expect("what was sent");
        bench.arrived(&job, &job.token, &but(sent));
        println!("{name}: {} done", way.name());
    }
    bench.relay.wait_for_empty_queue();
}

/// Some clients send an empty line before the last dot, whatever stands there.
fn with_an_empty_line(mut mail: Vec<u8>) -> Vec<u8> {
    mail.extend_from_slice(b"\r\n");
    mail
}

/// A mailbox file has an empty line behind each mail.
fn out_of_a_mailbox(mut mail: Vec<u8>) -> Vec<u8> {
    mail.pop();
    mail
}

fn with_environment<'c>(command: &'c mut Command, job: &Job) -> &'c mut Command {
    let (login, password) = if job.way == Way::Plain { ("", "") } else { (LOGIN, PASSWORD) };
    command
        .env("HOST", "localhost")
        .env("PORT", job.port.to_string())
        .env("CLEAR", job.clear.to_string())
        .env("TLS", job.way.name())
        .env("CA", &job.ca)
        .env("SSL_CERT_FILE", &job.ca)
        .envs([
            ("LOGIN", login),
            ("PASSWORD", password),
            ("SENDER", SENDER),
            ("TO", TO),
            ("TOKEN", &job.token),
        ])
        .env("MAIL", &job.mail)
        .env("TEXT", &job.text)
        .env("OUT", &job.out)
}

fn program(path: &str) -> Command {
    Command::new(programs::require(Path::new(path)))
}

/// A program of `clients/`, run by an interpreter.
fn script(interpreter: &str, name: &str) -> Command {
    let mut command = program(interpreter);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name));
    command
}

#[test]
fn swaks_is_served() {
    serves("swaks", |job| {
        // swaks ends the last line itself.
        let mail = fs::read_to_string(&job.mail).expect("a mail");
        fs::write(&job.mail, mail.trim_end()).expect("a file");
        let mut swaks = program("/usr/bin/swaks");
        swaks.args(["--server", "localhost", "--port", &job.port.to_string(), "--timeout", "30"]).args([
            "--from",
            SENDER,
            "--to",
            TO,
            "--data",
            &format!("@{}", job.mail.display()),
        ]);
        if job.way != Way::Plain {
            swaks
                .arg(if job.way == Way::StartTls { "--tls" } else { "--tls-on-connect" })
                .args(["--auth", "PLAIN", "--auth-user", LOGIN, "--auth-password", PASSWORD])
                .args(["--tls-verify", "--tls-ca-path"])
                .arg(&job.ca);
        }
        swaks
    });
}

#[test]
fn curl_is_served() {
    serves("curl", |job| {
        let scheme = if job.way == Way::Implicit { "smtps" } else { "smtp" };
        let mut curl = program("/usr/bin/curl");
        curl.args(["-sS", "--max-time", "30", &format!("{scheme}://localhost:{}/app.test", job.port)])
            .args(["--mail-from", SENDER, "--mail-rcpt", TO, "--upload-file"])
            .arg(&job.mail)
            .arg("--cacert")
            .arg(&job.ca);
        if job.way != Way::Plain {
            curl.args(["--ssl-reqd", "--user", &format!("{LOGIN}:{PASSWORD}")]);
        }
        curl
    });
}

#[test]
fn msmtp_is_served() {
    serves("msmtp", |job| {
        let (tls, starttls) = (job.way != Way::Plain, job.way == Way::StartTls);
        let on = |on: bool| if on { "on" } else { "off" };
        let mut msmtp = program("/usr/bin/msmtp");
        msmtp
            .args(["--file=/dev/null", "--host=localhost", "--timeout=30", &format!("--port={}", job.port)])
            .args([&format!("--tls={}", on(tls)), &format!("--tls-starttls={}", on(starttls))])
            .args([&format!("--from={SENDER}"), "--add-missing-date-header=off", TO])
            .stdin(fs::File::open(&job.unix_mail).expect("a file"));
        if tls {
            msmtp
                .args([&format!("--tls-trust-file={}", job.ca.display()), "--auth=plain"])
                .args([&format!("--user={LOGIN}"), "--passwordeval=printenv PASSWORD"]);
        }
        msmtp
    });
}

#[test]
fn smtplib_is_served() {
    serves("Python smtplib", |_| script("/usr/bin/python3", "python.py"));
}

#[test]
fn django_is_served() {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers").join("venv/bin/python");
    serves("Django", |_| script(&python.display().to_string(), "django_app.py"));
}

fn nodemailer() -> Command {
    let mut node = script("/usr/bin/node", "nodemailer.js");
    node.env("NODE_PATH", "/usr/share/nodejs");
    node
}

#[test]
fn nodemailer_is_served() {
    serves("nodemailer", |_| nodemailer());
}

#[test]
fn nodemailers_pool_sends_mail_after_mail_on_one_connection() {
    let bench = Bench::start();
    for (before, way) in ways("nodemailer, its pool").iter().enumerate() {
        let mut job = bench.job(*way);
        let door = Door::to(job.port);
        job.port = door.port;
        programs::run(with_environment(nodemailer().env("POOL", "yes"), &job));
        let sent = fs::read(&job.mail).expect("the mail");
        for number in 0..3 {
            bench.arrived(&job, &format!("{}-{number}", job.token), &sent);
        }
        let received = || bench.relay.log().matches(" received ").count();
        wait::until_true("all are told of", || received() >= 3 * (before + 1));
        assert_eq!(received(), 3 * (before + 1), "{}", bench.relay.log());
        assert_eq!(door.came.load(Ordering::SeqCst), 1, "{way:?}: the pool opened another connection");
    }
}

#[test]
fn phpmailer_is_served() {
    serves_but("PHPMailer", with_an_empty_line, |_| script("/usr/bin/php", "phpmailer.php"));
}

#[test]
fn perls_net_smtp_is_served() {
    serves("Perl Net::SMTP", |_| script("/usr/bin/perl", "net_smtp.pl"));
}

#[test]
fn rubys_mail_is_served() {
    serves("Ruby mail", |_| script("/usr/bin/ruby", "ruby_mail.rb"));
}

#[test]
fn gos_net_smtp_is_served() {
    let go = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers").join("go-client");
    serves("Go net/smtp", |_| program(&go.display().to_string()));
}

#[test]
fn postfix_is_served_as_a_client() {
    let postfixes = RefCell::new(Vec::new());
    serves("Postfix", |job| {
        let postfix = Postfix::start_as_client_of(job.port, |dir| {
            let login = format!("[localhost]:{} {LOGIN}:{PASSWORD}\n", job.port);
            fs::write(dir.join("logins"), login).expect("a file");
            let wrapped = if job.way == Way::Implicit { "yes" } else { "no" };
            let tls = format!(
                "smtp_tls_security_level = secure\nsmtp_tls_CAfile = {}\nsmtp_tls_secure_cert_match = localhost\n\
                 smtp_tls_wrappermode = {wrapped}\nsmtp_sasl_auth_enable = yes\n\
                 smtp_sasl_password_maps = texthash:{}/logins\nsmtp_sasl_security_options = noanonymous\n",
                job.ca.display(),
                dir.display(),
            );
            if job.way == Way::Plain { String::new() } else { tls }
        });
        let mail = fs::read_to_string(&job.mail).expect("a mail");
        fs::write(&job.mail, mail.trim_end()).expect("a file");
        let mut swaks = program("/usr/bin/swaks");
        swaks.args(["--server", "127.0.0.1", "--port", &postfix.port.to_string(), "--timeout", "30"]);
        swaks.args(["--from", SENDER, "--to", TO, "--data", &format!("@{}", job.mail.display())]);
        postfixes.borrow_mut().push(postfix);
        swaks
    });
}

#[test]
fn s_nail_is_served() {
    serves_but("s-nail", out_of_a_mailbox, |job| {
        let encoded = utf8_percent_encode(PASSWORD, NON_ALPHANUMERIC).to_string();
        let place = format!("localhost:{}", job.port);
        let mta = match job.way {
            Way::Plain => format!("mta=smtp://{place}"),
            Way::StartTls => format!("mta=smtp://{LOGIN}:{encoded}@{place}"),
            Way::Implicit => format!("mta=smtps://{LOGIN}:{encoded}@{place}"),
        };
        let set = [
            mta.as_str(),
            "v15-compat",
            "sendwait",
            "DEAD=/dev/null",
            "mime-encoding=8bit",
            "smtp-hostname=app.test",
            if job.way == Way::Plain { "smtp-auth=none" } else { "smtp-auth=plain" },
            if job.way == Way::StartTls { "smtp-use-starttls" } else { "nosmtp-use-starttls" },
            "tls-verify=strict",
            &format!("tls-ca-file={}", job.ca.display()),
            &format!("record={}", job.out.display()),
        ]
        .map(|set| format!("-S{set}"));
        let mut nail = program("/usr/bin/s-nail");
        nail.arg("-n").args(set).args([
            "-r",
            SENDER,
            "-s",
            "Hallo",
            "-C",
            &format!("X-Token: {}", job.token),
        ]);
        nail.arg("-a").arg(&job.unix_mail).arg(TO);
        nail.stdin(fs::File::open(&job.text).expect("a text")).env("LC_ALL", "C.UTF-8");
        nail
    });
}

#[test]
fn lettre_is_served() {
    use lettre::{
        SmtpTransport, Transport as _,
        address::Envelope,
        transport::smtp::{
            authentication::{Credentials, Mechanism},
            client::{Certificate, CertificateStore, Tls, TlsParameters},
        },
    };
    let bench = Bench::start();
    for way in ways("lettre") {
        let job = bench.job(*way);
        let ca = Certificate::from_pem(&fs::read(&job.ca).expect("a CA")).expect("a certificate");
        let tls = TlsParameters::builder("localhost".to_owned())
            .certificate_store(CertificateStore::None)
            .add_root_certificate(ca)
            .build_rustls()
            .expect("TLS");
        let mut builder = SmtpTransport::builder_dangerous("localhost").port(job.port).tls(match way {
            Way::Plain => Tls::None,
            Way::StartTls => Tls::Required(tls),
            Way::Implicit => Tls::Wrapper(tls),
        });
        if *way != Way::Plain {
            let credentials = Credentials::new(LOGIN.to_owned(), PASSWORD.to_owned());
            builder = builder.credentials(credentials).authentication(vec![Mechanism::Plain]);
        }
        let address = |text: &str| text.parse().expect("an address");
        let envelope = Envelope::new(Some(address(SENDER)), vec![address(TO)]).expect("an envelope");
        let sent = fs::read(&job.mail).expect("the mail");
        builder.build().send_raw(&envelope, &sent).expect("lettre sends");
        bench.arrived(&job, &job.token, &with_an_empty_line(sent));
    }
}

/// Debian's Exim, out of its package: it can't be installed beside Postfix.
fn exim() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers").join("exim/usr/sbin/exim4");
    programs::require(&path).to_owned()
}

#[test]
fn exim_is_served_as_a_client_and_hands_over_by_bdat() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let dir = tempfile::Builder::new()
        .prefix("outpost-exim-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .expect("a directory for Exim");
    let path = dir.path().display();
    let id = String::from_utf8(programs::run(Command::new("id").args(["-u", "Debian-exim"])).stdout);
    let id = id.expect("text").trim().parse().expect("a number");
    chown(dir.path(), Some(id), None).expect("root may give files away");
    serves("Exim, by BDAT", |job| {
        fs::copy(&job.ca, dir.path().join("ca.pem")).expect("the CA where Exim can read it");
        let secure = if job.way == Way::Plain {
            "  hosts_avoid_tls = *\n".to_owned()
        } else {
            let protocol = if job.way == Way::Implicit { "smtps" } else { "smtp" };
            format!(
                "  protocol = {protocol}\n  hosts_require_tls = *\n  hosts_require_auth = *\n\
                 \x20 tls_verify_certificates = {path}/ca.pem\n  tls_verify_hosts = *\n"
            )
        };
        let configuration = format!(
            "exim_path = {}\nprimary_hostname = app.test\nspool_directory = {path}/spool\n\
             log_file_path = {path}/%slog\npid_file_path = {path}/pid\nkeep_environment =\n\
             begin routers\nall:\n  driver = manualroute\n  domains = *\n\
             \x20 route_list = * localhost byname\n  self = send\n  transport = relay\n\
             begin transports\nrelay:\n  driver = smtp\n  port = {}\n  allow_localhost\n\
             \x20 message_linelength_limit = 10000\n{secure}\
             begin authenticators\nplain:\n  driver = plaintext\n  public_name = PLAIN\n\
             \x20 client_send = ^{LOGIN}^{PASSWORD}\n",
            exim().display(),
            job.port
        );
        let file = dir.path().join(format!("{}.conf", job.way.name()));
        fs::write(&file, configuration).expect("a file");
        let mut exim = Command::new(exim());
        exim.arg("-C").arg(&file).args(["-odf", "-oi", "-oMr", "local", "-f", SENDER, TO]);
        exim.stdin(fs::File::open(&job.unix_mail).expect("a file"));
        exim
    });
    // K: the message went by BDAT.
    let log = fs::read_to_string(dir.path().join("mainlog")).expect("Exim's log");
    assert_eq!(log.matches(" K C=\"250 2.0.0 queued as ").count(), ways("Exim, by BDAT").len(), "{log}");
}

#[test]
fn postfix_hands_over_addresses_beyond_ascii() {
    let away = Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free());
    let relay = Relay::start(&away);
    let postfix = Postfix::start_as_client_of(relay.smtp, |_| "smtputf8_enable = yes\n".to_owned());
    let code = "import smtplib, sys\n\
        with smtplib.SMTP('127.0.0.1', int(sys.argv[1]), timeout=30) as smtp:\n\
        \x20 smtp.sendmail('büro@example.test', ['grüße@example.test'], 'Subject: Grüße\\n\\nx\\n'.encode(),\n\
        \x20   mail_options=['SMTPUTF8', 'BODY=8BITMIME'])\n";
    programs::run(program("/usr/bin/python3").args(["-c", code, &postfix.port.to_string()]));
    let item = wait::until(&format!("the mail; {}", postfix.log()), || relay.queue().pop());
    assert_eq!(item["sender"], "büro@example.test");
    assert_eq!(item["recipients"][0]["address"], "grüße@example.test");
    let mail = relay.told(&["queue", "cat", item["id"].as_str().expect("an id")]);
    assert!(mail.contains(" with UTF8SMTP "), "{mail}");
}

#[test]
fn the_page_of_standards_shows_which_client_comes_in_by_which_way() {
    let mut table =
        "| client | in clear | STARTTLS and AUTH | implicit TLS and AUTH | |\n|---|---|---|---|---|\n"
            .to_owned();
    for (name, ways, but) in CLIENTS {
        let cells = ALL.iter().map(|way| if ways.contains(way) { "yes" } else { "no" }).collect::<Vec<_>>();
        table.push_str(&format!(
            "| {name} | {} | {but}{}|\n",
            cells.join(" | "),
            if but.is_empty() { "" } else { " " }
        ));
        let code = include_str!("clients.rs");
        let run =
            [format!("serves(\"{name}\""), format!("serves_but(\"{name}\""), format!("ways(\"{name}\")")];
        assert!(run.iter().any(|call| code.contains(call)), "{name} is run by no test");
    }
    println!("{table}");
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/smtp.md")).expect("the page");
    assert!(page.contains(&table), "docs/smtp.md has not this table:\n{table}");
}
