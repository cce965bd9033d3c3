//! What operators type, and what they get when the configuration is wrong: where, what, what to do,
//! at once, and nothing half-started.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

const GOOD: &str = "mailer:\n  type: smtp\n  config:\n    smtp_relay_server: smtp.mailgun.org\n    smtp_relay_username: \
    postmaster@yourmailgundomain.com\n    smtp_relay_password: YourMailgunPassword\n";

/// EX_CONFIG of sysexits(3).
const CONFIG: i32 = 78;

fn outpost(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outpost"))
        .args(arguments)
        .args(["--data", "data"])
        .current_dir(directory)
        .env_clear()
        .output()
        .expect("the binary starts")
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_good_file_is_good() {
    let home = tempfile::tempdir().expect("a directory");
    fs::write(home.path().join("dotcloud.yml"), GOOD).expect("a file");
    let output = outpost(home.path(), &["check"]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(!words(&output).contains("YourMailgunPassword"));
}

#[test]
fn a_bad_file_is_refused_at_once_with_place_and_help_and_nothing_is_started() {
    let bomb = {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, before) in
            ["b", "c", "d", "e", "f", "g", "h", "i"].iter().zip(["a", "b", "c", "d", "e", "f", "g", "h"])
        {
            text.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(", ")));
        }
        text + GOOD
    };
    let cases = [
        (
            GOOD.replace("smtp_relay_username", "smtp_relay_usrname"),
            "dotcloud.yml:5:5: smtp_relay_usrname",
            "smtp_relay_username",
        ),
        (GOOD.replace("smtp.mailgun.org", "[1, 2]"), "dotcloud.yml:4:", "smtp_relay_server"),
        (GOOD.replace("type: smtp", "type: redis"), "dotcloud.yml", "type: smtp"),
        (format!("{GOOD}    smtp_relay_port: 70000\n"), "dotcloud.yml:7:", "65535"),
        (format!("{GOOD}    smtp_relay_password_file: none\n"), "dotcloud.yml", "smtp_relay_password"),
        (format!("{GOOD}    smtp_rate_limit: 14 a second\n"), "dotcloud.yml:7:", "a slash"),
        (GOOD.replace("  type", "\ttype"), "dotcloud.yml:2:", "tab"),
        ("[".repeat(100_000), "dotcloud.yml:1:", ""),
        (bomb, "dotcloud.yml", ""),
    ];
    for (text, place, hint) in cases {
        for command in ["check", "serve"] {
            let home = tempfile::tempdir().expect("a directory");
            fs::write(home.path().join("dotcloud.yml"), &text).expect("a file");
            let start = Instant::now();
            let output = outpost(home.path(), &[command]);
            let (took, said) = (start.elapsed(), words(&output));
            assert_eq!(output.status.code(), Some(CONFIG), "{command}: {said}");
            assert!(took < Duration::from_secs(10), "{command} took {took:?}: {said}");
            assert!(said.contains(place) && said.contains(hint), "{command}: {place}, {hint}: {said}");
            assert!(!said.contains("YourMailgunPassword"), "{said}");
            assert!(!home.path().join("data").exists(), "something was started");
        }
    }
}

#[test]
fn a_missing_file_and_a_directory_in_its_place_are_told_apart() {
    let home = tempfile::tempdir().expect("a directory");
    let output = outpost(home.path(), &["serve", "-f", "none.yml"]);
    assert_eq!(output.status.code(), Some(CONFIG), "{}", words(&output));
    assert!(words(&output).contains("none.yml"), "{}", words(&output));
    fs::create_dir(home.path().join("dotcloud.yml")).expect("a directory");
    let output = outpost(home.path(), &["serve"]);
    assert_eq!(output.status.code(), Some(CONFIG), "{}", words(&output));
    assert!(words(&output).contains("directory"), "{}", words(&output));
}

#[test]
fn without_a_relay_commands_say_so_and_wrong_usage_is_told() {
    let home = tempfile::tempdir().expect("a directory");
    let output = outpost(home.path(), &["status"]);
    assert_eq!(output.status.code(), Some(69), "{}", words(&output));
    assert!(words(&output).contains("admin.sock"), "{}", words(&output));
    assert_eq!(outpost(home.path(), &["no-such-command"]).status.code(), Some(64));
}

#[test]
fn shells_are_given_scripts_that_they_can_read() {
    let home = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = outpost(home.path(), &["completions", shell]);
        assert!(
            output.status.success() && words(&output).contains("sendmail"),
            "{shell}: {}",
            words(&output)
        );
        if shell == "bash" {
            fs::write(home.path().join("script"), &output.stdout).expect("a file");
            let read = Command::new("bash").arg("-n").arg(home.path().join("script")).output().expect("bash");
            assert!(read.status.success(), "{}", words(&read));
        }
    }
    assert_eq!(outpost(home.path(), &["completions", "dos"]).status.code(), Some(64));
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let home = tempfile::tempdir().expect("a directory");
    let output = outpost(home.path(), &["man"]);
    assert!(output.status.success() && words(&output).contains(".TH outpost 1"), "{}", words(&output));
    let output = outpost(home.path(), &["man", "pages/man1"]);
    assert!(output.status.success(), "{}", words(&output));
    for page in ["outpost.1", "outpost-sendmail.1", "outpost-queue-list.1"] {
        let text = fs::read_to_string(home.path().join("pages/man1").join(page)).expect(page);
        assert!(text.contains(".SH DESCRIPTION"), "{page}: {text}");
    }
    fs::write(home.path().join("file"), "").expect("a file");
    assert_eq!(outpost(home.path(), &["man", "file"]).status.code(), Some(73));
}

#[test]
fn presets_are_listed_and_shown_one_by_one_for_people_and_programs() {
    let home = tempfile::tempdir().expect("a directory");
    let presets = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outpost"));
        let output = command.arg("presets").args(arguments).current_dir(home.path()).env_clear().output();
        output.expect("the binary starts")
    };
    let list = words(&presets(&[]));
    assert!(list.lines().next().is_some_and(|head| head.starts_with("NAME")), "{list}");
    for name in ["mailgun", "mailgun-eu", "gmail", "google-workspace-relay", "sendgrid", "ses", "postmark"] {
        assert!(list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {list}");
    }
    for name in ["sparkpost", "mailjet", "brevo", "resend", "office365", "zoho", "zeptomail", "fastmail"] {
        assert!(list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {list}");
    }
    assert!(list.contains("critsend") && list.contains("(gone)"), "{list}");
    let gmail = words(&presets(&["Gmail"]));
    for line in ["hosts:", "ports:", "tls:", "user name:", "password:", "rate limits:", "replies:", "source:"]
    {
        assert!(gmail.lines().any(|shown| shown.starts_with(line)), "{line} {gmail}");
    }
    assert!(gmail.contains("smtp.gmail.com") && gmail.contains("500 recipients/day"), "{gmail}");
    assert!(gmail.contains("gmail-app-password"), "{gmail}");

    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&presets(arguments).stdout).expect("JSON")
    };
    let sendgrid = json(&["sendgrid", "--json"]);
    assert_eq!((&sendgrid["name"], &sendgrid["tls"]), (&"sendgrid".into(), &"starttls".into()));
    assert!(sendgrid["username"].as_str().is_some_and(|rule| rule.contains("apikey")), "{sendgrid}");
    assert_eq!(json(&["--json"]).as_array().map(Vec::len), Some(list.lines().count() - 1));

    let unknown = presets(&["sendgird"]);
    assert_eq!(unknown.status.code(), Some(64));
    assert!(words(&unknown).contains("there is no preset sendgird"), "{}", words(&unknown));
}
