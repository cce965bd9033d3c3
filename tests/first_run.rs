//! As a new user would: from an empty directory to a first relayed message, by the README's own commands,
//! to a real Postfix with TLS and AUTH.

mod support;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Output, Stdio},
};

use support::{
    http, ports,
    postfix::{PASSWORD, Postfix, USER},
    programs::shown,
    relay::{ended_within, outpost},
    wait,
};
use tempfile::TempDir;

/// The README's section on the first run.
fn section() -> String {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("## Use it: three commands and four answers\n").expect("the section");
    rest.split_once("\n## ").expect("the next one").0.to_owned()
}

fn block(kind: &str) -> String {
    let section = section();
    let (_, rest) = section.split_once(&format!("```{kind}\n")).expect("a block of that kind");
    rest.split_once("```").expect("its end").0.to_owned()
}

/// The README's commands: arguments of `outpost`, comments left out.
fn commands() -> Vec<Vec<String>> {
    let line = |line: &str| {
        let line = line.split(" #").next().unwrap_or_default().trim().to_owned();
        line.strip_prefix("outpost ").expect("a command of ours").split(' ').map(str::to_owned).collect()
    };
    block("sh").lines().map(line).collect()
}

/// An empty directory, and what a user's shell has set.
struct Newcomer {
    home: TempDir,
    smtp: u16,
    admin: u16,
    /// Authorities that the system trusts.
    ca: Option<std::path::PathBuf>,
}

impl Newcomer {
    fn new(ca: Option<std::path::PathBuf>) -> Self {
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Self { home, smtp: ports::free(), admin: ports::free(), ca }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = outpost();
        command
            .args(arguments)
            .current_dir(self.home.path())
            // Other tests run at the same time, and other relays may.
            .env("SMTP_LISTEN", format!("127.0.0.1:{}", self.smtp))
            .env("SMTP_ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin))
            .env("OUTPOST_DATA", self.home.path().join("outpost-data"));
        if let Some(ca) = &self.ca {
            command.env("SSL_CERT_FILE", ca);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary starts")
    }

    /// Runs `init` with these answers on standard input.
    fn answer(&self, arguments: &[&str], answers: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        // It may end before it has read all of it.
        let _ = child.stdin.take().expect("piped").write_all(answers.as_bytes());
        child.wait_with_output().expect("it ends")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.home.path().join(name)).expect(name)
    }

    fn has(&self, name: &str) -> bool {
        self.home.path().join(name).exists()
    }
}

/// Ended when the test is over.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn three_commands_and_four_answers_bring_a_first_message_to_a_real_upstream() {
    let postfix = Postfix::start(&["anna"]);
    let user = Newcomer::new(Some(postfix.ca_file()));
    let commands = commands();
    let [init, serve, send] = &commands[..] else { panic!("three commands: {commands:?}") };
    let words = |command: &[String]| -> Vec<String> {
        command.iter().map(|word| word.replace("you@example.com", "anna@example.test")).collect()
    };
    let of = |words: &[String]| words.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    assert_eq!(of(init), "init --connect");

    let answers = [
        "localhost".to_owned() + &format!(":{}", postfix.port),
        USER.into(),
        PASSWORD.into(),
        "app@example.test".into(),
    ];
    assert_eq!(answers.len(), 4);
    let output = user.answer(&["init", "--connect"], &answers.join("\n"));
    let said = shown(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("ok: AUTH") && said.contains("Wrote dotcloud.yml and relay-password"), "{said}");
    assert!(!said.contains(PASSWORD) && !user.read("dotcloud.yml").contains(PASSWORD), "{said}");
    let mode =
        |name: &str| fs::metadata(user.home.path().join(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!((mode("relay-password"), user.read("relay-password").trim()), (0o600, PASSWORD));

    let arguments = words(serve);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = fs::File::create(user.home.path().join("log")).expect("a file");
    let mut serving = user.command(&arguments);
    let _serving = Serving(serving.stderr(log).spawn().expect("the binary starts"));
    wait::until_true("the relay is ready", || {
        http::request("GET", user.admin, "/readyz").is_ok_and(|answer| answer.status == 200)
    });
    let arguments = words(send);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = user.run(&arguments);
    assert!(output.status.success(), "{}\n{}", shown(&output), user.read("log"));
    let mail = String::from_utf8(postfix.first_mail("anna")).expect("text");
    assert!(mail.contains("test message from Outpost") && mail.contains("using TLS"), "{mail}");
    assert!(mail.contains("From: app@example.test"), "{mail}");
}

#[test]
fn the_file_that_the_readme_shows_is_the_one_that_is_written() {
    let yml = block("yaml");
    assert_eq!(yml.lines().count(), 7);
    assert!(section().contains("a `dotcloud.yml` of seven lines"));
    let user = Newcomer::new(None);
    let output = user.answer(&["init"], "mailgun\npostmaster@mg.example.com\nYourMailgunPassword\n\n");
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(user.read("dotcloud.yml"), yml);
    let output = user.run(&["check"]);
    assert!(output.status.success(), "{}", shown(&output));
    // A machine whose disk does not last is told so.
    let warned = |line: &str| line.contains("warning: ") && !line.contains("the queue in");
    assert!(!shown(&output).lines().any(warned), "{}", shown(&output));
}

#[test]
fn nothing_is_overwritten_and_nothing_is_written_when_the_login_does_not_work() {
    let postfix = Postfix::start(&[]);
    let user = Newcomer::new(Some(postfix.ca_file()));
    let server = format!("localhost:{}", postfix.port);
    let answers = format!("{server}\n{USER}\nwrong-sesame\n\n");
    let output = user.answer(&["init", "--connect"], &answers);
    let said = shown(&output);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("FAILED: AUTH") && said.contains("nothing was written"), "{said}");
    assert!(!said.contains("wrong-sesame") && !user.has("dotcloud.yml") && !user.has("relay-password"));

    // Without the authority TLS can't be verified, which is another step's failure.
    let stranger = Newcomer::new(None);
    let output = stranger.answer(&["init", "--connect"], &answers);
    assert_eq!(output.status.code(), Some(69), "{}", shown(&output));
    assert!(shown(&output).contains("FAILED: TLS"), "{}", shown(&output));

    fs::write(user.home.path().join("dotcloud.yml"), "db:\n  type: mysql\n").expect("a file");
    let output = user.answer(&["init"], &answers);
    assert_eq!(output.status.code(), Some(73), "{}", shown(&output));
    assert!(shown(&output).contains("dotcloud.yml is there already"), "{}", shown(&output));
    assert_eq!(user.read("dotcloud.yml"), "db:\n  type: mysql\n");
    let output = user.answer(&["init", "--force"], &answers);
    assert!(
        output.status.success() && user.read("dotcloud.yml").contains(&server[..9]),
        "{}",
        shown(&output)
    );
}

#[test]
fn scripts_answer_by_options_and_known_mistakes_are_named_before_the_first_mail() {
    let user = Newcomer::new(None);
    let password = user.home.path().join("secret");
    fs::write(&password, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n").expect("a file");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).expect("our file");
    let given = ["--user", "AKIAIOSFODNN7EXAMPLE", "--password-file", "secret", "--sender", "example.com"];
    let init = |provider: &str| {
        user.answer(&[&["init", "--force", "--provider", provider][..], &given].concat(), "")
    };
    let output = init("ses-eu-west-1");
    let said = shown(&output);
    assert!(output.status.success() && said.contains("IAM user's secret key"), "{said}");
    assert!(!said.contains("wJalr"), "{said}");
    let yml = user.read("dotcloud.yml");
    assert!(
        yml.contains("smtp_relay_password_file: secret\n") && yml.contains("smtp_senders: example.com\n"),
        "{yml}"
    );
    assert!(!user.has("relay-password"), "the password has a file already");

    for (provider, words) in [("ses", "this provider has regions"), ("malgun", "did you mean mailgun?")] {
        let output = init(provider);
        assert_eq!(output.status.code(), Some(64), "{}", shown(&output));
        assert!(shown(&output).contains(words), "{}", shown(&output));
    }
    let output = user.answer(&["init", "--force", "--provider", "mailgun"], "");
    assert_eq!(output.status.code(), Some(64), "{}", shown(&output));
    assert!(shown(&output).contains("say it by --user"), "{}", shown(&output));

    // By variables, as a container's entry point would.
    let other = Newcomer::new(None);
    let mut command = other.command(&["init"]);
    command.env("SMTP_RELAY_PROVIDER", "gmail").env("SMTP_RELAY_USERNAME", "you@gmail.com");
    command.env("SMTP_RELAY_PASSWORD", "account-password").stdin(Stdio::null());
    let output = command.output().expect("the binary starts");
    let said = shown(&output);
    assert!(output.status.success() && said.contains("this is no app password"), "{said}");
    assert!(other.read("dotcloud.yml").contains("smtp_sender_rewrite: you@gmail.com"), "{said}");
}

#[test]
fn a_password_is_no_option() {
    let output = outpost().args(["init", "--help"]).output().expect("the binary starts");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(help.contains("--password-file") && !help.contains("--password "), "{help}");
    let home = tempfile::tempdir().expect("a directory");
    let mut refused = outpost();
    refused.args(["init", "--password", "x"]).current_dir(home.path());
    let mut refused = refused.spawn().expect("the binary starts");
    assert_eq!(ended_within(&mut refused, wait::DEADLINE).code(), Some(64));
    assert!(!home.path().join("dotcloud.yml").exists());
}
