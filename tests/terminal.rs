//! What somebody sees who sits at a terminal: tmux is that terminal, and its panes are looked at.

mod support;

use std::{
    path::Path,
    process::{Command, Output},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{
    http, ports,
    postfix::{PASSWORD, Postfix, USER},
    programs::{require, shown},
    relay::{Relay, outpost},
    service::Service,
    wait,
};
use tempfile::TempDir;

const TMUX: &str = "/usr/bin/tmux";

/// A terminal of 110 by 30 with a shell in it; gone when dropped.
struct Terminal {
    dir: TempDir,
}

impl Terminal {
    fn open() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let terminal = Self { dir };
        let size = ["-x", "110", "-y", "30"];
        let shell = "env -u NO_COLOR PS1='ready> ' /bin/sh -i";
        let new = terminal.tmux(&[&["-f", "/dev/null", "new-session", "-d"][..], &size, &[shell]].concat());
        assert!(new.status.success(), "{}", shown(&new));
        terminal.wait_for("ready>");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(require(Path::new(TMUX)));
        command.arg("-S").arg(self.dir.path().join("tmux")).args(arguments).current_dir(self.dir.path());
        command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").output().expect("tmux runs")
    }

    /// Types a line and presses Enter.
    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.key("Enter");
    }

    fn key(&self, key: &str) {
        assert!(self.tmux(&["send-keys", key]).status.success(), "{key}");
    }

    /// What is to be seen, with colours as escapes if they are wanted.
    fn seen(&self, colours: bool) -> String {
        let mut arguments = vec!["capture-pane", "-p"];
        arguments.extend(colours.then_some("-e"));
        String::from_utf8_lossy(&self.tmux(&arguments).stdout).into_owned()
    }

    fn wait_for(&self, text: &str) -> String {
        wait::until(&format!("{text:?} on the terminal, which shows {}", self.seen(false)), || {
            Some(self.seen(false)).filter(|seen| seen.contains(text))
        })
    }

    /// The shell's prompt stands alone on the last line: the program has ended and left all as it was.
    fn wait_for_shell(&self) {
        wait::until(&format!("the shell; the terminal shows {}", self.seen(false)), || {
            let seen = self.seen(false);
            seen.trim_end().lines().last().filter(|line| *line == "ready>").map(|_| ())
        });
        // It shows what is typed, and takes lines: nothing was left raw.
        self.line("stty -a | tr ' ;' '\\n\\n' | grep -x -e echo -e icanon | sort | tr '\\n' '+'");
        self.wait_for("echo+icanon+");
    }

    /// The process that the shell runs now.
    fn child(&self) -> Pid {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = String::from_utf8_lossy(&shell.stdout).trim().to_owned();
        wait::until("the shell's child", || {
            let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).ok()?;
            Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
        })
    }

    /// A command of ours with what finds this relay.
    fn ours(&self, relay: &Relay, command: &str) {
        let binary = outpost().get_program().to_string_lossy().into_owned();
        self.line(&format!("clear; {binary} {command} {}", relay.whereabouts().join(" ")));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// A relay whose upstream is nobody, so that mail stays.
fn stuck() -> Relay {
    let service = Service::mailer()
        .set("smtp_relay_server", "127.0.0.1")
        .set("smtp_relay_port", ports::free())
        .set("smtp_rate_limit", "500 recipients/day");
    let relay = Relay::start(&service);
    let mut client = relay.client();
    for number in 0..5 {
        let sent = client.send(
            "shop@example.test",
            &["anna@example.test"],
            &format!("Subject: {number}\r\n\r\nx\r\n"),
        );
        assert!(sent.is_ok(), "{sent:?}");
    }
    relay
}

#[test]
fn init_asks_four_questions_shows_no_password_and_asks_again_where_it_knows_better() {
    let postfix = Postfix::start(&[]);
    let terminal = Terminal::open();
    let binary = outpost().get_program().to_string_lossy().into_owned();
    let free = (ports::free(), ports::free());
    terminal.line(&format!(
        "clear; export SSL_CERT_FILE={} SMTP_LISTEN=127.0.0.1:{} SMTP_ADMIN_LISTEN=127.0.0.1:{}; {binary} init --connect",
        postfix.ca_file().display(),
        free.0,
        free.1
    ));
    terminal.wait_for("Provider (");
    terminal.line("malgun");
    terminal.wait_for("did you mean mailgun?");
    terminal.line(&format!("localhost:{}", postfix.port));
    terminal.wait_for("User name (");
    terminal.line(USER);
    terminal.wait_for("Password:");
    terminal.line(PASSWORD);
    terminal.wait_for("Sender of all mail");
    terminal.line("app@example.test");
    let seen = terminal.wait_for("Next:");
    assert!(seen.contains("ok: AUTH") && !seen.contains(PASSWORD), "{seen}");
    terminal.wait_for_shell();
    // Ctrl-C at the password leaves the terminal whole.
    terminal.line(&format!("clear; {binary} init --force --provider mailgun --user a@b.example"));
    terminal.wait_for("Password (");
    terminal.key("C-c");
    terminal.wait_for("nothing was written");
    terminal.wait_for_shell();
}

#[test]
fn top_shows_the_relay_at_work_obeys_keys_and_gives_the_terminal_back() {
    let relay = stuck();
    let terminal = Terminal::open();
    terminal.ours(&relay, "top --interval 200ms");
    // It may be seen half drawn.
    for words in
        ["5 messages", "New mail is taken.", "shop@example.test", "sort by: age", "UPSTREAM", "received"]
    {
        terminal.wait_for(words);
    }
    terminal.key("s");
    terminal.wait_for("sort by: size");
    terminal.key("S");
    terminal.wait_for("(reversed)");
    terminal.key("p");
    terminal.wait_for("PAUSED");
    let mut client = relay.client();
    client.send("shop@example.test", &["anna@example.test"], "Subject: six\r\n\r\nx\r\n").expect("taken");
    // Whatever comes meanwhile is shown when it goes on.
    terminal.key("r");
    terminal.wait_for("6 messages");
    terminal.key("q");
    terminal.wait_for_shell();

    // A signal ends it as well.
    terminal.ours(&relay, "top --interval 200ms");
    terminal.wait_for("6 messages");
    kill_process(terminal.child(), Signal::TERM).expect("a child of the shell's");
    terminal.wait_for_shell();

    // Nor does it outlive its terminal.
    terminal.ours(&relay, "top --interval 200ms");
    terminal.wait_for("6 messages");
    let top = terminal.child();
    drop(terminal);
    // Where nobody asks how it ended it stays as a zombie.
    wait::until_true("it has ended", || {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", top.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|behind| behind.is_empty() || behind.starts_with(" Z"))
    });
}

#[test]
fn status_has_colours_on_a_terminal_and_none_where_they_are_not_wanted() {
    let relay = stuck();
    let terminal = Terminal::open();
    terminal.ours(&relay, "status");
    terminal.wait_for("Upstreams");
    assert!(terminal.seen(true).contains("\x1b[32m"), "{}", terminal.seen(true));
    terminal.line("clear");
    wait::until_true("nothing is to be seen", || !terminal.seen(false).contains("Upstreams"));
    terminal.ours(&relay, "status --color never");
    terminal.wait_for("Upstreams");
    let plain = terminal.seen(true);
    assert!(!plain.contains("\x1b[32m") && !plain.contains("\x1b[31m"), "{plain}");
    // A pipe is no terminal.
    assert!(!relay.told(&["status"]).contains('\x1b'));
    assert!(relay.told(&["status", "--color=always"]).contains("\x1b[32m"));
    let status: serde_json::Value = serde_json::from_str(&relay.told(&["status", "--json"])).expect("JSON");
    assert_eq!(
        status["queue"]["messages"],
        http::get(relay.admin, "/api/v1/status").json()["queue"]["messages"]
    );
    let no = relay.cli(&["top"]);
    assert_eq!(no.status.code(), Some(64), "{}", shown(&no));
}

#[test]
fn long_work_shows_how_far_it_has_come_on_a_terminal_and_nowhere_else() {
    let relay = stuck();
    let terminal = Terminal::open();
    let drawn = terminal.dir.path().join("drawn");
    // All that is drawn, also what is gone again a moment later.
    terminal.tmux(&["pipe-pane", "-O", &format!("cat > {}", drawn.display())]);
    terminal.ours(&relay, "queue hold --all --yes");
    terminal.wait_for("5 messages held");
    wait::until_true("a bar", || {
        String::from_utf8_lossy(&std::fs::read(&drawn).unwrap_or_default()).contains(" of 5 messages")
    });
    terminal.wait_for_shell();
    let bars = |words: &str| {
        wait::until_true("a bar", || {
            String::from_utf8_lossy(&std::fs::read(&drawn).unwrap_or_default()).contains(words)
        });
        terminal.wait_for_shell();
        std::fs::write(&drawn, "").expect("it is emptied");
    };
    std::fs::write(&drawn, "").expect("it is emptied");
    terminal.ours(&relay, "queue export -o all.tar");
    bars(" of 5 messages");
    terminal.ours(&relay, "queue import all.tar");
    bars(" left");
    let released = relay.cli(&["queue", "release", "--all", "--yes"]);
    assert!(released.status.success() && released.stderr.is_empty(), "{}", shown(&released));
}
