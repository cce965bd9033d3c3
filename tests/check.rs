//! What `outpost check` finds, and in which words: docs/check.md is run, section by section. Each has a
//! dotcloud.yml that holds one mistake, and what is said of it.
//!
//! `OUTPOST_BLESS=1 cargo test --test check` writes what is said into the page.

mod support;

use std::{
    fs::{self, File, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use serde_json::Value;
use support::{certs::Authority, ports, relay::outpost, strace::injected, wait};
use tempfile::TempDir;

const PAGE: &str = "docs/check.md";
/// What the page calls the data directory.
const DATA: &str = "/var/lib/outpost";

/// One mistake of the page.
struct Mistake {
    title: String,
    yml: String,
    said: String,
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)).expect(PAGE)
}

fn mistakes() -> Vec<Mistake> {
    let page = page();
    let sections = page.split("\n## ").skip(1);
    let block = |section: &str, kind: &str| {
        let (_, rest) = section.split_once(&format!("```{kind}\n")).expect("a block of that kind");
        rest.split_once("```").expect("the block's end").0.to_owned()
    };
    sections
        .map(|section| Mistake {
            title: section.lines().next().expect("a title").split_once(". ").expect("a number").1.to_owned(),
            yml: block(section, "yaml"),
            said: block(section, "text"),
        })
        .collect()
}

/// A directory with the file of a mistake, and what it takes to make it.
struct Stage {
    home: TempDir,
    data: std::path::PathBuf,
    command: Command,
    /// Kept while the command runs.
    _taken: Option<TcpListener>,
    _memory: Option<TempDir>,
    /// The port that stands for 587.
    port: u16,
}

impl Stage {
    fn of(mistake: &Mistake) -> Self {
        let base = env!("CARGO_TARGET_TMPDIR");
        let home = tempfile::tempdir_in(base).expect("a directory");
        let file = home.path().join("dotcloud.yml");
        let port = ports::free();
        let listens = format!("0.0.0.0:{port}");
        // The usual port may be taken on this machine; what is said of it is said of the usual one.
        fs::write(&file, mistake.yml.replace("587", &port.to_string())).expect("a file");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("our file");
        fs::write(home.path().join("relay-password"), "sesame\n").expect("a file");
        fs::set_permissions(home.path().join("relay-password"), Permissions::from_mode(0o600)).expect("ours");
        let mut stage = Self {
            data: home.path().join("data"),
            home,
            command: outpost(),
            _taken: None,
            _memory: None,
            port,
        };
        stage.prepare(mistake, &file);
        let Self { command, home, data, .. } = &mut stage;
        command
            .arg("check")
            .arg("--data")
            .arg(data)
            .current_dir(home.path())
            .env_remove("CREDENTIALS_DIRECTORY");
        if !mistake.yml.contains("smtp_listen") {
            command.env("SMTP_LISTEN", &listens);
        }
        if !mistake.yml.contains("smtp_admin_listen") {
            command.env("SMTP_ADMIN_LISTEN", format!("127.0.0.1:{}", ports::free()));
        }
        stage
    }

    /// What no dotcloud.yml can hold by itself.
    fn prepare(&mut self, mistake: &Mistake, file: &Path) {
        match mistake.title.as_str() {
            "A port that another program has" => {
                // Between fork and exec a child that another test starts holds what probed the port.
                let bind = || TcpListener::bind(("0.0.0.0", self.port)).ok();
                self._taken = Some(wait::until("the port is free", bind));
            }
            // As the kernel does for a user; we are root, who may.
            "A port below 1024 without the right to it" => {
                self.command = injected("bind:error=EACCES:when=1");
            }
            "A password that every user can read" => {
                fs::set_permissions(file, Permissions::from_mode(0o644)).expect("our file");
            }
            "A queue that does not last" => {
                let memory = tempfile::tempdir_in("/dev/shm").expect("memory that looks like a disk");
                self.data = memory.path().to_owned();
                self._memory = Some(memory);
            }
            "A certificate that has expired" => {
                let identity = Authority::new("test CA").expired_identity(&["relay.example.com"]);
                fs::write(self.home.path().join("cert.pem"), identity.cert_pem).expect("a file");
                fs::write(self.home.path().join("key.pem"), identity.key_pem).expect("a file");
            }
            "A clock that is wrong" => {
                let later = SystemTime::UNIX_EPOCH + Duration::from_secs(4_070_908_800);
                File::options()
                    .append(true)
                    .open(file)
                    .and_then(|file| file.set_modified(later))
                    .expect("ours");
            }
            _ => {}
        }
    }

    fn run(&mut self) -> Output {
        self.command.output().expect("the binary starts")
    }

    /// What was said, in the page's words for this directory and port.
    fn said(&self, output: &Output) -> String {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.replace(&self.data.display().to_string(), DATA)
            .replace(&self.home.path().display().to_string(), "")
            .replace(&self.port.to_string(), "587")
    }
}

/// What was told of the mistake: without the sum, and without what this machine's own disk is told of, if
/// that isn't the mistake.
fn told(said: &str, of_disk: bool) -> String {
    let mut lines = said.lines().take_while(|line| !line.starts_with("outpost: "));
    let mut told = String::new();
    while let Some(line) = lines.next() {
        if !of_disk && line.contains("warning: the queue in") {
            lines.next();
        } else {
            told.push_str(line);
            told.push('\n');
        }
    }
    told
}

#[test]
fn each_of_the_commonest_mistakes_is_told_with_its_place_and_what_to_do_in_these_words() {
    let mistakes = mistakes();
    assert!(mistakes.len() >= 20, "{}", mistakes.len());
    let mut blessed = page();
    for mistake in &mistakes {
        let mut stage = Stage::of(mistake);
        let output = stage.run();
        let said = stage.said(&output);
        let title = &mistake.title;
        let errors = said.lines().any(|line| line.starts_with("outpost: ") && line.contains("error"));
        assert_eq!(output.status.code(), Some(if errors { 78 } else { 0 }), "{title}: {said}");
        assert!(said.contains("  help: "), "{title}: {said}");
        for secret in ["sesame", "SG.abcdef", "wJalrX", "correct-horse", "abcd efgh"] {
            assert!(!said.contains(secret), "{title}: {said}");
        }
        let told = told(&said, stage._memory.is_some());
        if std::env::var_os("OUTPOST_BLESS").is_some() {
            let (before, rest) = blessed.split_once(&format!(". {title}\n")).expect("its section");
            let (between, rest) = rest.split_once("```text\n").expect("its block");
            let (_, after) = rest.split_once("```").expect("the block's end");
            blessed = format!("{before}. {title}\n{between}```text\n{told}```{after}");
        } else {
            assert_eq!(told, mistake.said, "{title}");
        }
    }
    if std::env::var_os("OUTPOST_BLESS").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE), blessed).expect(PAGE);
    }
}

#[test]
fn programs_are_told_the_same_as_json_with_the_number_of_errors_and_warnings() {
    for mistake in mistakes() {
        let mut stage = Stage::of(&mistake);
        stage.command.arg("--json");
        let output = stage.run();
        let title = &mistake.title;
        let told: Value = serde_json::from_slice(&output.stdout).expect(title);
        assert_eq!(told["ok"].as_bool(), Some(output.status.success()), "{title}: {told}");
        let problems = told["problems"].as_array().expect("a list");
        let count = |level: &str| problems.iter().filter(|problem| problem["level"] == level).count();
        assert_eq!(told["errors"], count("error"), "{told}");
        assert_eq!(told["warnings"], count("warning"), "{told}");
        assert!(
            !problems.is_empty() && problems.iter().all(|problem| problem["message"].is_string()),
            "{told}"
        );
        let about_line = mistake.said.lines().next().is_some_and(|said| {
            let place = said.strip_prefix("dotcloud.yml:");
            place.is_some_and(|place| place.starts_with(|first: char| first.is_ascii_digit()))
        });
        let has_line = problems.iter().any(|problem| problem["line"].is_u64());
        assert!(has_line || !about_line, "{title}: {told}");
    }
}
