//! `outpost sendmail` in the place of sendmail(1): what programs say to it, and what the relay then
//! has in its queue. The upstream is away, so that mail stays there to be looked at.

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::JoinHandle,
};

use serde_json::Value;

use support::bytes::{contains, header_fields};
use support::relay::Relay;
use support::service::Service;
use support::{http, ports, programs, wait};

const TO: &str = "you@example.test";

/// A relay that keeps what it takes.
struct Kept {
    relay: Relay,
    /// The program under the name that others know it by.
    sendmail: PathBuf,
}

impl Kept {
    fn start() -> Self {
        Self::with(|service| service)
    }

    fn with(change: impl Fn(Service) -> Service) -> Self {
        let service = Service::mailer()
            .set("smtp_relay_server", "127.0.0.1")
            .set("smtp_relay_port", ports::free())
            .set("smtp_retry", "1h..1h");
        let relay = Relay::start(&change(service));
        let sendmail = named(&relay, "sendmail");
        Self { relay, sendmail }
    }

    /// sendmail in an environment that holds nothing but the way to this relay.
    fn sendmail(&self, arguments: &[&str]) -> Command {
        let mut command = bare(&self.sendmail, arguments);
        command.env("OUTPOST_DATA", self.relay.data());
        command
    }

    /// The only queued message, which is then taken away: its item, and its content behind our
    /// Received field.
    fn only(&self) -> (Value, Vec<u8>) {
        let mut queue = self.relay.queue();
        assert_eq!(queue.len(), 1, "{queue:#?}");
        let item = queue.remove(0);
        let id = item["id"].as_str().expect("an id");
        let content = http::get(self.relay.admin, &format!("/api/v1/queue/{id}/content")).body;
        let received =
            header_fields(&content).first().map_or(0, |field| field.len() + field.matches('\n').count() + 2);
        // Not while it is being tried.
        wait::until_true("it is deleted", || self.relay.cli(&["queue", "delete", id]).status.success());
        (item, content[received..].to_vec())
    }

    /// Runs sendmail on a message, which must be taken.
    fn takes(&self, arguments: &[&str], input: &[u8]) -> (Value, String) {
        let output = fed(&mut self.sendmail(arguments), input);
        assert!(output.status.success(), "{arguments:?}: {}", programs::shown(&output));
        let (item, content) = self.only();
        (item, String::from_utf8_lossy(&content).into_owned())
    }
}

fn named(relay: &Relay, name: &str) -> PathBuf {
    let link = relay.home.path(name);
    symlink(env!("CARGO_BIN_EXE_outpost"), &link).expect("a link");
    link
}

fn bare(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("LC_ALL", "C").current_dir("/");
    // Local mode's directory may be left in the usual place.
    command.env("TMPDIR", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = piped(command);
    let mut stdin = child.stdin.take().expect("a pipe");
    // One that has seen enough closes its end.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn recipients(item: &Value) -> Vec<&str> {
    let recipients = item["recipients"].as_array().expect("recipients");
    recipients.iter().filter_map(|to| to["address"].as_str()).collect()
}

#[track_caller]
fn fails(output: &Output, exit: i32, words: &str) {
    assert_eq!(output.status.code(), Some(exit), "{}", programs::shown(output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(words), "{words} in: {said}");
}

#[test]
fn programs_are_understood_whatever_they_say() {
    let kept = Kept::start();
    let body = "\n.. dots\n.\nend\n";
    let message = format!(
        "From: a@example.test\nTo: One <one@example.test>, \n two@example.test\nBcc: three@example.test\nDate: x\nMessage-ID: <1@x>\n{body}"
    );
    let whole = message.replace('\n', "\r\n");
    let without_bcc = whole.replace("Bcc: three@example.test\r\n", "");
    let until_dot = |text: &str| text.replace(".\r\nend\r\n", "");
    let own = "root@relay.test";
    let by_header = ["one@example.test", "two@example.test", "three@example.test"];
    for (arguments, sender, to, content) in [
        // PHP, with and without mail()'s fifth argument.
        (&["-t", "-i"][..], own, &by_header[..], without_bcc.clone()),
        (&["-t", "-i", "-fapp@example.test"], "app@example.test", &by_header, without_bcc.clone()),
        (&["-ti", "-r", "<>"], "", &by_header, without_bcc.clone()),
        // No -i: the dot ends it.
        (&["-t"], own, &by_header, until_dot(&without_bcc)),
        // mutt, git send-email, s-nail.
        (&["-oem", "-oi", "-f", "me@example.test", "--", TO], "me@example.test", &[TO], whole.clone()),
        (&["-i", TO, "Other <other@example.test>"], own, &[TO, "other@example.test"], whole.clone()),
        // Sendmail's own words, which say nothing here.
        (&["-Am", "-odb", "-O", "IgnoreDots", "-B8BITMIME", "-v", TO], own, &[TO], whole.clone()),
        (
            &["-bm", "-i", "-F", "Not used", "-N", "failure", "-R", "hdrs", "-V", "QQ1", TO],
            own,
            &[TO],
            whole.clone(),
        ),
    ] {
        let (item, got) = kept.takes(arguments, message.as_bytes());
        assert_eq!(
            (item["sender"].as_str(), recipients(&item)),
            (Some(sender), to.to_vec()),
            "{arguments:?}"
        );
        assert_eq!(got, content, "{arguments:?}");
    }
}

#[test]
fn cron_is_served_in_its_empty_environment() {
    let kept = Kept::start();
    let input = "From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@app> ./nightly\n\nGrüße\n";
    let (item, content) = kept.takes(&["-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root"], input.as_bytes());
    assert_eq!(
        (item["sender"].as_str(), recipients(&item)),
        (Some("root@relay.test"), vec!["root@relay.test"])
    );
    assert!(content.ends_with(&input.replace('\n', "\r\n")), "{content}");
    let added = header_fields(content.as_bytes());
    assert!(added[0].starts_with("Date: ") && added[1].starts_with("Message-ID: <"), "{added:#?}");
}

#[test]
fn a_body_alone_gets_a_header() {
    let kept = Kept::start();
    let (_, content) = kept.takes(&["-F", "The App", "-f", "app@example.test", TO], b"just text\n");
    assert!(content.starts_with("From: \"The App\" <app@example.test>\r\nDate: "), "{content}");
    assert!(content.ends_with(">\r\n\r\njust text\r\n"), "{content}");
}

#[test]
fn phps_mail_function_sends() {
    let kept = Kept::start();
    let code = r#"exit(mail("you@example.test", "Hallo", "Zeile\n.\nzwei ü\n",
        "From: app@example.test\r\nBcc: shadow@example.test", "-fbounce@example.test") ? 0 : 1);"#;
    let path = format!("sendmail_path={} -t -i", kept.sendmail.display());
    let mut php = bare(programs::require(Path::new("/usr/bin/php")), &["-d", &path, "-r", code]);
    programs::run(php.env("OUTPOST_DATA", kept.relay.data()).env("PATH", "/usr/bin:/bin"));
    let (item, content) = kept.only();
    assert_eq!(item["sender"], "bounce@example.test");
    assert_eq!(recipients(&item), [TO, "shadow@example.test"]);
    let content = String::from_utf8(content).expect("UTF-8");
    assert!(content.ends_with("\r\n\r\nZeile\r\n.\r\nzwei ü\r\n\r\n"), "{content:?}");
    assert!(content.contains("\r\nSubject: Hallo\r\n") && !content.contains("shadow"), "{content}");
}

#[test]
fn phps_mail_function_fails_while_the_relay_is_away() {
    let mut kept = Kept::start();
    kept.relay.terminate();
    let path = format!("sendmail_path={} -t -i", kept.sendmail.display());
    let code = r#"exit(mail("you@example.test", "Hallo", "x") ? 0 : 1);"#;
    let mut php = bare(programs::require(Path::new("/usr/bin/php")), &["-d", &path, "-r", code]);
    let output =
        php.env("OUTPOST_DATA", kept.relay.data()).env("PATH", "/usr/bin:/bin").output().expect("PHP");
    fails(&output, 1, "refuses connections");
}

#[test]
fn s_nail_sends() {
    let kept = Kept::start();
    let mta = format!("mta={}", kept.sendmail.display());
    let options = [
        "-n",
        "-S",
        &mta,
        "-S",
        "sendwait",
        "-S",
        "DEAD=/dev/null",
        "-r",
        "me@example.test",
        "-s",
        "Grüße",
        TO,
    ];
    let mut nail = bare(programs::require(Path::new("/usr/bin/s-nail")), &options);
    nail.env("OUTPOST_DATA", kept.relay.data()).env("HOME", kept.relay.home.dir()).env("LC_ALL", "C.UTF-8");
    let output = fed(&mut nail, b"Hello\n..\nfrom s-nail\n");
    assert!(output.status.success(), "{}", programs::shown(&output));
    let (item, content) = kept.only();
    assert_eq!((item["sender"].as_str(), recipients(&item)), (Some("me@example.test"), vec![TO]));
    assert!(
        content.ends_with(b"\r\n\r\nHello\r\n..\r\nfrom s-nail\r\n"),
        "{}",
        String::from_utf8_lossy(&content)
    );
}

#[test]
fn mutt_sends() {
    let kept = Kept::start();
    let set = format!("set sendmail=\"{} -oem -oi\"", kept.sendmail.display());
    let options = [
        "-n",
        "-F",
        "/dev/null",
        "-e",
        &set,
        "-e",
        "set from=me@example.test use_envelope_from=yes copy=no charset=utf-8",
        "-s",
        "Grüße",
        "-b",
        "shadow@example.test",
        "--",
        TO,
    ];
    let mut mutt = bare(programs::require(Path::new("/usr/bin/mutt")), &options);
    mutt.env("OUTPOST_DATA", kept.relay.data()).env("HOME", kept.relay.home.dir()).env("LC_ALL", "C.UTF-8");
    let output = fed(&mut mutt, b"Hello\n..\nfrom mutt\n");
    assert!(output.status.success(), "{}", programs::shown(&output));
    let (item, content) = kept.only();
    assert_eq!(item["sender"], "me@example.test");
    assert_eq!(recipients(&item), [TO, "shadow@example.test"]);
    let content = String::from_utf8_lossy(&content);
    assert!(content.ends_with("\r\n\r\nHello\r\n..\r\nfrom mutt\r\n"), "{content}");
    assert!(!content.contains("shadow"), "{content}");
}

#[test]
fn git_send_email_sends() {
    let kept = Kept::start();
    let patch = kept.relay.home.path("0001-x.patch");
    let text = "From 1111111111111111111111111111111111111111 Mon Sep 17 00:00:00 2001\nFrom: Me <me@example.test>\n\
                Date: Mon, 6 Jan 2025 10:11:12 +0100\nSubject: [PATCH] Change a line\n\nWhy.\n---\n a | 2 +-\n\n\
                diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-x\n+.\n";
    fs::write(&patch, text).expect("a patch");
    let command = format!("--sendmail-cmd={} -i", kept.sendmail.display());
    let mut git = bare(
        programs::require(Path::new("/usr/bin/git")),
        &[
            "send-email",
            "--from=Me <me@example.test>",
            "--envelope-sender=auto",
            "--to",
            TO,
            "--confirm=never",
            "--suppress-cc=all",
            &command,
        ],
    );
    git.arg(&patch).env("OUTPOST_DATA", kept.relay.data()).env("HOME", kept.relay.home.dir());
    programs::run(
        git.env("PATH", "/usr/bin:/bin")
            .env("GIT_AUTHOR_NAME", "Me")
            .env("GIT_AUTHOR_EMAIL", "me@example.test")
            .env("GIT_COMMITTER_EMAIL", "me@example.test")
            .env("GIT_COMMITTER_NAME", "Me"),
    );
    let (item, content) = kept.only();
    assert_eq!((item["sender"].as_str(), recipients(&item)), (Some("me@example.test"), vec![TO]));
    assert!(contains(&content, b"\r\nWhy.\r\n---\r\n"), "{}", String::from_utf8_lossy(&content));
    assert!(content.ends_with(b"-x\r\n+.\r\n"), "{}", String::from_utf8_lossy(&content));
}

#[test]
fn smtp_is_spoken_on_standard_input_and_output() {
    let kept = Kept::start();
    let dialog = "EHLO app.test\r\nMAIL FROM:<a@example.test>\r\nRCPT TO:<you@example.test>\r\nDATA\r\n\
                  From: a@example.test\r\n\r\nx\r\n.\r\nQUIT\r\n";
    let mut child = piped(&mut kept.sendmail(&["-bs"]));
    // Standard input stays open, as that of a mail reader does: QUIT is what ends it.
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(dialog.as_bytes()).expect("it reads");
    let mut said = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("it speaks");
    assert!(child.wait().expect("it ends").success(), "{said}");
    let codes: Vec<&str> =
        said.lines().filter(|line| line.get(3..4) == Some(" ")).map(|line| &line[..3]).collect();
    assert_eq!(codes, ["220", "250", "250", "250", "354", "250", "221"], "{said}");
    assert_eq!(kept.only().0["sender"], "a@example.test");
}

#[test]
fn mailq_lists_newaliases_does_nothing_and_q_tries_again() {
    let kept = Kept::start();
    let output = fed(&mut kept.sendmail(&["-v", TO]), b"Subject: x\n\nx\n");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = said.trim().strip_prefix("queued as ").expect("an id");
    let run = |name: &str, arguments: &[&str]| {
        let program = if name == "sendmail" { kept.sendmail.clone() } else { named(&kept.relay, name) };
        let output =
            bare(&program, arguments).env("OUTPOST_DATA", kept.relay.data()).output().expect("it runs");
        assert!(output.status.success(), "{name}: {}", programs::shown(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run("mailq", &[]).contains(id));
    assert_eq!(run("newaliases", &[]), "");
    assert!(run("sendmail", &["-q"]).contains('1'));
}

#[test]
fn nothing_is_lost_in_silence_while_the_relay_is_away() {
    let mut kept = Kept::start();
    kept.relay.terminate();
    let output = fed(&mut kept.sendmail(&["-i", TO]), b"Subject: x\n\nx\n");
    fails(&output, 75, "the mail was not sent: the relay at");
    fails(&output, 75, "refuses connections");
}

#[test]
fn a_named_relay_that_never_ran_is_not_replaced_by_another() {
    let here = tempfile::tempdir().expect("a directory");
    let mut command = bare(Path::new(env!("CARGO_BIN_EXE_outpost")), &["sendmail", "-i", TO]);
    let output = fed(command.env("OUTPOST_DATA", here.path()), b"x\n");
    fails(&output, 75, "no relay has ever run in");
}

#[test]
fn wrong_usage_and_missing_recipients_have_codes_of_their_own() {
    let kept = Kept::start();
    let run = |arguments: &[&str], input: &str| fed(&mut kept.sendmail(arguments), input.as_bytes());
    fails(&run(&["-Z"], ""), 64, "no option -Z");
    fails(&run(&["-bd"], ""), 64, "outpost serve");
    fails(&run(&["-i"], "Subject: x\n\nx\n"), 64, "name its recipients");
    fails(&run(&["-t"], "To: nobody:;\n\nx\n"), 65, "names no recipient");
    fails(&run(&["-t"], "To: a@b@c\n\nx\n"), 65, "is no address");
    assert!(kept.relay.queue().is_empty());
}

#[test]
fn what_the_relay_can_not_take_is_told_in_its_words() {
    let kept = Kept::with(|service| service.set("smtp_max_message_size", "10KB"));
    fails(&fed(&mut kept.sendmail(&[TO]), &b"x\n".repeat(10_000)), 65, "larger than 10000 octets");
    fails(&fed(&mut kept.sendmail(&[TO]), b"Subject: x\n\na\rb\n"), 65, "550 5.6.0");
    assert!(kept.relay.queue().is_empty());
}

#[test]
fn more_recipients_than_one_transaction_takes_go_in_several() {
    let kept = Kept::with(|service| service.set("smtp_max_recipients", 2));
    let to: Vec<String> = (0..5).map(|n| format!("to{n}@example.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let output = fed(&mut kept.sendmail(&to), b"Subject: x\n\nx\n");
    assert!(output.status.success(), "{}", programs::shown(&output));
    let queue = kept.relay.queue();
    let mut got: Vec<&str> = queue.iter().flat_map(recipients).collect();
    got.sort_unstable();
    assert_eq!((queue.len(), got), (3, to));
}

#[test]
fn a_large_message_does_not_grow_the_process() {
    let kept = Kept::with(|service| service.set("smtp_max_message_size", "80MB"));
    let mut child = piped(&mut kept.sendmail(&["-i", TO]));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"Subject: large\n\n").expect("it reads");
    let piece = b"0123456789abcdefghijklmnopqrstuvwxyz 0123456789abcdefghijklmnopqr\n".repeat(16_384);
    let pieces = 60;
    for _ in 0..pieces {
        stdin.write_all(&piece).expect("it reads");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 40_000, "{peak} kB at the peak for {} kB of mail", pieces * piece.len() / 1000);
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", programs::shown(&output));
    let size = kept.relay.queue()[0]["size"].as_u64().expect("a size");
    assert!(size as usize > pieces * (piece.len() + 16_384), "whole, with CRLF: {size}");
}

#[test]
fn an_app_container_finds_its_relay_by_variables_and_pins_its_certificate() {
    let kept = Kept::start();
    let environment = kept.relay.environment();
    let run = |change: &dyn Fn(&str, &str) -> String| {
        let mut command = bare(&kept.sendmail, &["-i", TO]);
        for (name, value) in environment.as_object().expect("a map") {
            command.env(name, change(name, value.as_str().expect("a string")));
        }
        fed(&mut command, b"Subject: x\n\nx\n")
    };
    let output = run(&|_, value| value.to_owned());
    assert!(output.status.success(), "{}", programs::shown(&output));
    let (item, content) = kept.only();
    assert_eq!(item["user"], "dotcloud", "it logged in");
    drop(content);

    let swapped = |wanted: &'static str, with: &'static str| {
        run(&move |name, value| if name.ends_with(wanted) { with.to_owned() } else { value.to_owned() })
    };
    let other = "0000000000000000000000000000000000000000000000000000000000000000";
    fails(&swapped("TLS_FINGERPRINT", other), 75, "not the pinned one");
    fails(&swapped("PASSWORD", "wrong"), 77, "refuses the login");
    assert!(kept.relay.queue().is_empty());
}

#[test]
fn of_two_published_relays_the_local_one_is_meant_and_else_one_must_be_named() {
    let kept = Kept::start();
    let run = |first: &str| {
        let mut command = bare(&kept.sendmail, &["-i", TO]);
        command
            .env("DOTCLOUD_WWW_SMTP_HOST", first)
            .env("DOTCLOUD_WWW_SMTP_PORT", kept.relay.smtp.to_string())
            .env("DOTCLOUD_MAILER_SMTP_HOST", "relay.invalid");
        fed(&mut command, b"Subject: x\n\nx\n")
    };
    assert!(run("127.0.0.1").status.success());
    fails(&run("www.invalid"), 78, "DOTCLOUD_MAILER_SMTP_HOST");
}

#[test]
fn what_local_mode_left_behind_is_not_taken_for_a_relay() {
    let kept = Kept::start();
    let left = kept.relay.home.path(&format!("outpost-dev-{}", rustix::process::getuid().as_raw()));
    fs::create_dir(&left).expect("a directory");
    drop(std::os::unix::net::UnixListener::bind(left.join("admin.sock")).expect("a socket"));
    let published =
        format!(r#"{{"DOTCLOUD_DEV_SMTP_HOST":"127.0.0.1","DOTCLOUD_DEV_SMTP_PORT":"{}"}}"#, ports::free());
    fs::write(left.join("environment.json"), published).expect("a file");
    let mut command = bare(&kept.sendmail, &["-i", TO]);
    command
        .env("TMPDIR", kept.relay.home.path(""))
        .env("DOTCLOUD_MAILER_SMTP_HOST", "127.0.0.1")
        .env("DOTCLOUD_MAILER_SMTP_PORT", kept.relay.smtp.to_string());
    let output = fed(&mut command, b"Subject: x\n\nx\n");
    assert!(output.status.success(), "{}", programs::shown(&output));
    kept.only();
}

/// A server for one session that refuses one recipient, and hangs up on another's mail.
fn picky(port: u16) -> JoinHandle<()> {
    // As the scripted upstream does.
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
    let listener = wait::until("the port is free", bind);
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        answer(&mut stream);
    })
}

fn answer(stream: &mut TcpStream) {
    let mut said = Vec::new();
    stream.write_all(b"220 picky.test\r\n").expect("a client");
    let mut piece = [0; 4096];
    let (mut in_data, mut hangs_up, mut done) = (false, false, 0);
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        said.extend_from_slice(&piece[..count]);
        while let Some(end) = memchr::memmem::find(&said[done..], b"\r\n") {
            let line = String::from_utf8_lossy(&said[done..done + end]).into_owned();
            done += end + 2;
            let reply = match line.split([' ', ':']).next() {
                _ if in_data && line == "." && hangs_up => return,
                _ if in_data && line == "." => "250 2.0.0 queued as PICKY1\r\n",
                _ if in_data => continue,
                Some("EHLO") => "250 picky.test\r\n",
                Some("RCPT") if line.contains("broken@") => {
                    hangs_up = true;
                    "250 2.1.5 ok\r\n"
                }
                Some("RCPT") if line.contains("gone@") => "550 5.1.1 gone long ago\r\n",
                Some("DATA") => "354 go ahead\r\n",
                _ => "250 2.0.0 ok\r\n",
            };
            in_data = reply.starts_with("354");
            if stream.write_all(reply.as_bytes()).is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_refused_recipient_is_named_and_the_others_get_it() {
    for (to, exit, words) in [
        (&["gone@example.test"][..], 67, &["the mail was not sent: 550 5.1.1 gone long ago"][..]),
        (
            &["a@example.test", "gone@example.test", "b@example.test"],
            67,
            &[
                "not sent to gone@example.test: 550 5.1.1 gone long ago",
                "for the other 2 it is queued as PICKY1",
            ],
        ),
        // It hangs up where its last word should be.
        (&["broken@example.test"], 75, &["it is not known whether the mail was sent", "it may arrive twice"]),
    ] {
        let port = ports::free();
        let server = picky(port);
        let arguments = [&["sendmail", "-f", "a@example.test"], to].concat();
        let mut command = bare(Path::new(env!("CARGO_BIN_EXE_outpost")), &arguments);
        command
            .env("DOTCLOUD_MAILER_SMTP_HOST", "127.0.0.1")
            .env("DOTCLOUD_MAILER_SMTP_PORT", port.to_string());
        let output = fed(&mut command, b"Subject: x\n\nx\n");
        for words in words {
            fails(&output, exit, words);
        }
        server.join().expect("the server ends");
    }
}

#[test]
fn a_reader_without_the_relays_rights_reaches_it_by_what_the_configuration_says() {
    let kept = Kept::start();
    let nobody = |command: &mut Command| {
        use std::os::unix::process::CommandExt as _;
        command.uid(65_534).gid(65_534);
    };
    // The directories above belong to root and may be closed: the file is handed over by a copy.
    let place =
        tempfile::Builder::new().prefix("outpost-nobody-").tempdir_in("/var/tmp").expect("a directory");
    let program = place.path().join("outpost");
    // By another process: what is open for writing here is so in the child of another test, until that has its exec.
    programs::run(Command::new("cp").arg(env!("CARGO_BIN_EXE_outpost")).arg(&program));
    let file = place.path().join("dotcloud.yml");
    fs::copy(kept.relay.home.path("dotcloud.yml"), &file).expect("a copy");
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let mut command = bare(&program, &["sendmail", "-v", TO]);
    nobody(command.env("OUTPOST_CONFIG", &file).env("OUTPOST_DATA", kept.relay.data()));
    let output = fed(&mut command, b"Subject: x\n\nx\n");
    assert!(output.status.success(), "{}", programs::shown(&output));
    wait::until_true("it is queued", || !kept.relay.queue().is_empty());
    assert_eq!(kept.only().0["sender"], "nobody@relay.test");
}
