//! The relay under test: the real binary as a child, with a dotcloud.yml of its own.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::Client;
use super::service::{Home, Service};
use super::strace::injected;
use super::{http, ports, wait};

/// How long a stop may take (CONTRACT, fine print).
pub const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A relay process; killed when dropped.
pub struct Relay {
    pub home: Arc<Home>,
    pub smtp: u16,
    pub admin: u16,
    service: Option<String>,
    data: PathBuf,
    child: Option<Child>,
}

impl Relay {
    /// Starts the only service of a new home.
    pub fn start(service: &Service) -> Self {
        Self::start_in(&Home::new(&[service]), service)
    }

    /// Starts one of a home's services, with its own data directory.
    pub fn start_in(home: &Arc<Home>, service: &Service) -> Self {
        let mut relay = Self::of(home, service);
        relay.up();
        relay
    }

    /// The same, not started yet.
    pub fn of(home: &Arc<Home>, service: &Service) -> Self {
        Self {
            home: Arc::clone(home),
            smtp: service.smtp,
            admin: service.admin,
            data: home.path(&format!("{}-data", service.name)),
            service: Some(service.name.clone()),
            child: None,
        }
    }

    /// Starts `outpost dev`, which takes no configuration.
    pub fn start_dev() -> Self {
        Self::start_dev_in(Home::new(&[]))
    }

    /// The same in a home that is there.
    pub fn start_dev_in(home: Arc<Home>) -> Self {
        let data = home.path("dev-data");
        let (smtp, admin) = (ports::free(), ports::free());
        let mut relay = Self { home, smtp, admin, service: None, data, child: None };
        relay.up();
        relay
    }

    /// Starts the process and waits until it takes mail.
    pub fn up(&mut self) {
        self.up_by(|_| {});
    }

    /// The same with another environment or other outputs.
    pub fn up_by(&mut self, prepare: impl FnOnce(&mut Command)) {
        self.up_under(outpost(), prepare);
    }

    /// The same by a program that becomes the relay.
    pub fn up_under(&mut self, command: Command, prepare: impl FnOnce(&mut Command)) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.spawn(command, prepare));
        let mut ended = None;
        wait::until("the relay is ready (/readyz answers 200)", || {
            ended = self.child.as_mut().and_then(|child| child.try_wait().expect("our child"));
            let answer = http::request("GET", self.admin, "/readyz");
            (ended.is_some() || answer.is_ok_and(|answer| answer.status == 200)).then_some(())
        });
        assert!(ended.is_none(), "the relay ended at its start, {ended:?}:\n{}", self.log());
    }

    /// Starts the process, which is not to become ready.
    pub fn up_unready(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.spawn(outpost(), |_| {}));
    }

    /// Starts the process for the first time with a fault in its system calls, as strace's `inject` has it; `None`
    /// if that didn't keep it from becoming ready.
    pub fn start_injected(service: &Service, fault: &str) -> Option<Self> {
        let mut relay = Self::of(&Home::new(&[service]), service);
        let mut child = relay.spawn(injected(fault), |_| {});
        let ready = wait::until("the relay is ready, or has ended", || {
            let answer = http::request("GET", relay.admin, "/readyz");
            let ready = answer.is_ok_and(|answer| answer.status == 200);
            (ready || child.try_wait().expect("our child").is_some()).then_some(ready)
        });
        // strace would let go of a relay that lives.
        let strace = child.id();
        let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children"));
        for traced in children.unwrap_or_default().split_whitespace() {
            let _ = traced.parse().ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::KILL));
        }
        relay.child = Some(child);
        relay.kill9();
        (!ready).then_some(relay)
    }

    /// Starts the process, and kills it so much later, ready or not.
    pub fn up_for(&mut self, time: Duration) {
        self.child = Some(self.spawn(outpost(), |_| {}));
        std::thread::sleep(time);
        self.kill9();
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().expect("our child").is_some())
    }

    fn spawn(&self, mut command: Command, prepare: impl FnOnce(&mut Command)) -> Child {
        match &self.service {
            Some(_) => command.arg("serve").args(self.whereabouts()),
            None => command.arg("dev").args([
                format!("--smtp=127.0.0.1:{}", self.smtp),
                format!("--admin=127.0.0.1:{}", self.admin),
                format!("--data={}", self.data.display()),
            ]),
        };
        command
            .stdout(self.append("stdout"))
            .stderr(self.append("stderr"))
            .stdin(Stdio::null())
            .current_dir(self.home.dir());
        prepare(&mut command);
        command.spawn().expect("the binary starts")
    }

    /// The arguments by which every command finds this relay.
    pub fn whereabouts(&self) -> Vec<String> {
        let mut args = Vec::new();
        if let Some(service) = &self.service {
            args.push(format!("--config={}", self.home.path("dotcloud.yml").display()));
            args.push(format!("--service={service}"));
        }
        args.push(format!("--data={}", self.data.display()));
        args
    }

    /// Runs an `outpost` command on this relay.
    pub fn cli(&self, command: &[&str]) -> Output {
        outpost().args(command).args(self.whereabouts()).output().expect("the binary starts")
    }

    /// What a command that must succeed printed.
    pub fn told(&self, command: &[&str]) -> String {
        let output = self.cli(command);
        assert!(output.status.success(), "{command:?}: {}", super::programs::shown(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A session with it.
    pub fn client(&self) -> Client {
        Client::connect(self.smtp).expect("the relay takes a session")
    }

    /// `GET /api/v1/status`.
    pub fn status(&self) -> Value {
        http::get(self.admin, "/api/v1/status").json()
    }

    /// All items of the queue, over the API.
    pub fn queue(&self) -> Vec<Value> {
        let mut items = Vec::new();
        let mut path = "/api/v1/queue?limit=1000".to_owned();
        loop {
            let page = http::get(self.admin, &path).json();
            items.extend(page["items"].as_array().expect("items").iter().cloned());
            match &page["next"] {
                Value::Null => return items,
                Value::String(cursor) => path = format!("/api/v1/queue?limit=1000&cursor={cursor}"),
                other => path = format!("/api/v1/queue?limit=1000&cursor={other}"),
            }
        }
    }

    /// Waits until nothing is queued any more.
    pub fn wait_for_empty_queue(&self) {
        wait::until_true("the queue is empty", || self.status()["queue"]["messages"] == 0);
    }

    /// Where its queue and all else lies.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Sends it a signal.
    pub fn send_signal(&self, signal: Signal) {
        self.signal(signal);
    }

    /// Where apps read their settings, by default.
    pub fn environment_file(&self) -> PathBuf {
        self.data.join("environment.json")
    }

    /// environment.json, as apps read it.
    pub fn environment(&self) -> Value {
        let file = fs::read(self.environment_file()).expect("environment.json");
        serde_json::from_slice(&file).expect("environment.json is JSON")
    }

    /// All that the process has said so far, on both its outputs.
    pub fn log(&self) -> String {
        self.stdout() + &self.output_file("stderr")
    }

    /// What it said on standard output.
    pub fn stdout(&self) -> String {
        self.output_file("stdout")
    }

    /// Its pid while it runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Asks it to read its configuration again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// kill -9.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().expect("our child ends");
    }

    /// SIGTERM; it must end within its time with exit code 0.
    pub fn terminate(&mut self) {
        self.stop_by(Signal::TERM);
    }

    /// The same by SIGINT.
    pub fn interrupt(&mut self) {
        self.stop_by(Signal::INT);
    }

    fn stop_by(&mut self, signal: Signal) {
        self.signal(signal);
        self.terminated(STOP_WITHIN);
    }

    /// It has had its signal: it must end by itself within so much time, with exit code 0.
    pub fn terminated(&mut self, within: Duration) {
        let mut child = self.child.take().expect("it runs");
        let status = ended_within(&mut child, within);
        assert_eq!(status.code(), Some(0), "it ends well:\n{}", self.log());
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("our child can be signalled");
    }

    fn append(&self, name: &str) -> File {
        let path = self.output_path(name);
        OpenOptions::new().create(true).append(true).open(path).expect("a file for the log")
    }

    fn output_file(&self, name: &str) -> String {
        let bytes = fs::read(self.output_path(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn output_path(&self, name: &str) -> PathBuf {
        self.home.path(&format!("{}.{name}", self.service.as_deref().unwrap_or("dev")))
    }
}

impl Drop for Relay {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Either may find it gone already, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("--- the relay's last words\n{}\n---", tail.join("\n"));
        }
    }
}

/// The binary, with an environment that sets nothing for it.
pub fn outpost() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_outpost")));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        if text.starts_with("SMTP_") || text.starts_with("OUTPOST_") || text == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// Waits for a child; kills it and panics when it takes longer.
pub fn ended_within(child: &mut Child, limit: Duration) -> ExitStatus {
    let end = std::time::Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            return status;
        }
        if std::time::Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it didn't end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
