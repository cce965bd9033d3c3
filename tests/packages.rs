//! What is packaged runs as it is packaged: under a service manager, in a container's root, from a .deb; examples and
//! manifests are what they say.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};

use support::relay::{Relay, outpost};
use support::service::{Home, Service};
use support::upstream::{USER, Upstream};
use support::{http, ports, programs, wait};

const PASSWORD: &str = "upstream-sesame-4711";

fn packaging(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn venv(program: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers").join("venv/bin").join(program)
}

/// A service manager's end of NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self { socket, heard: Vec::new() }
    }

    /// Waits for a message with this line in it, behind those that were waited for already.
    fn hears(&mut self, line: &str) -> String {
        wait::until(&format!("the manager hears {line}"), || {
            let mut octets = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut octets) {
                self.heard.push(String::from_utf8_lossy(&octets[..length]).into_owned());
            }
            let at = self.heard.iter().position(|said| said.lines().any(|said| said == line))?;
            let found = self.heard.remove(at);
            self.heard.drain(..at);
            Some(found)
        })
    }
}

#[test]
fn a_service_manager_is_told_and_gives_sockets() {
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_listen", "fd:smtp");
    let home = Home::new(&[&service]);
    let mut manager = Manager::at(&home.path("notify"));
    // The first two belong to somebody else's names; ours come as the manager orders them.
    let sockets: Vec<TcpListener> =
        (0..3).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port")).collect();
    let port = |at: usize| sockets[at].local_addr().expect("an address").port();
    for socket in &sockets {
        fcntl_setfd(socket, FdFlags::empty()).expect("it may be handed on");
    }
    let moves: Vec<String> = sockets
        .iter()
        .enumerate()
        .map(|(at, socket)| format!("{}<&{}", 60 + at, socket.as_raw_fd()))
        .collect();
    let script = format!("exec {}; exec 3<&60 4<&61 5<&62; LISTEN_PID=$$ exec \"$@\"", moves.join(" "));
    let mut child = Command::new("bash")
        .args(["-c", &script, "bash", env!("CARGO_BIN_EXE_outpost"), "serve"])
        .args(["--config", "dotcloud.yml", "--data", "data"])
        .current_dir(home.dir())
        .env("LISTEN_FDS", "3")
        .env("LISTEN_FDNAMES", "other:smtp:smtp")
        .env("NOTIFY_SOCKET", home.path("notify"))
        .env("WATCHDOG_USEC", "400000")
        .stderr(fs::File::create(home.path("log")).expect("a file"))
        .spawn()
        .map(Killed)
        .expect("it starts");
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    // Both sockets of that name take mail; the third doesn't.
    for (at, token) in [(1, "one"), (2, "two")] {
        let mut client = support::client::Client::connect(port(at)).expect("it takes a session");
        client.send_token(token).expect("it is taken");
    }
    wait::until_true("both have arrived", || upstream.arrived() == 2);
    // Our own commands get there too, though the listener's name says nothing of its port.
    let ours = ["--config", "dotcloud.yml", "--data", "data"];
    let sent =
        outpost().args(["send", "--to", "someone@example.test"]).args(ours).current_dir(home.dir()).output();
    let sent = sent.expect("it runs");
    assert!(sent.status.success(), "{}", programs::shown(&sent));
    wait::until_true("it has arrived", || upstream.messages().len() == 3);
    let environment: serde_json::Value =
        serde_json::from_str(&read(&home.path("data/environment.json"))).expect("JSON");
    assert_eq!(environment["DOTCLOUD_MAILER_SMTP_PORT"], port(1).to_string(), "where apps find it");

    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("our child");
    let said = manager.hears("RELOADING=1");
    let now = said.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("when it began");
    assert!(now.parse::<u64>().is_ok_and(|now| now > 0), "{said}");
    let said = manager.hears("READY=1");
    assert!(said.contains("STATUS=configuration read again"), "{said}");
    support::client::Client::connect(port(1)).expect("open still").send_token("three").expect("taken");

    // A name that was not passed is no address.
    home.write(&[&service.clone().set("smtp_listen", "fd:none")]);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("our child");
    manager.hears("RELOADING=1");
    assert!(manager.hears("READY=1").contains("not reloaded"));
    wait::until_true("why is told", || read(&home.path("log")).contains("no socket of that name was passed"));

    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our child");
    manager.hears("STOPPING=1");
    assert!(support::relay::ended_within(&mut child.0, support::relay::STOP_WITHIN).success());
    wait::until_true("all has arrived", || upstream.messages().len() == 4);
}

/// A child that doesn't outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_units_are_valid_and_the_service_can_do_little() {
    let dir = tempfile::tempdir().expect("a directory");
    let analyze = programs::require(Path::new("/usr/bin/systemd-analyze"));
    for unit in ["outpost.service", "outpost.socket"] {
        // The program is not installed here.
        let text =
            read(&packaging("systemd").join(unit)).replace("/usr/bin/outpost", env!("CARGO_BIN_EXE_outpost"));
        fs::write(dir.path().join(unit), text).expect("a file");
    }
    for unit in ["outpost.service", "outpost.socket"] {
        let output = programs::run(
            Command::new(analyze)
                .args(["verify", "--man=no", "--recursive-errors=no"])
                .arg(dir.path().join(unit)),
        );
        assert_eq!(programs::shown(&output).matches("outpost").count(), 0, "{}", programs::shown(&output));
    }
    // From 0 to 100: twenty is a score of 2.0.
    let service = dir.path().join("outpost.service");
    let security = ["security", "--offline=true", "--threshold=20"];
    let output = programs::run(Command::new(analyze).args(security).arg(service));
    let said = programs::shown(&output);
    let score = said.split_once("exposure level for outpost.service: ").expect("the score").1;
    let score = score.split(' ').next().expect("a number");
    let told = format!("`systemd-analyze security outpost` gives it {score},");
    assert!(read(&packaging("../docs/quickstart.md")).contains(&told), "{told}");
}

/// One instruction of the last stage of a Containerfile, continuation lines joined.
fn instructions() -> Vec<(String, String)> {
    let text = read(&packaging("Containerfile")).replace("\\\n", " ");
    let last = text.rsplit_once("\nFROM ").expect("a last stage").1;
    let lines = last.lines().skip(1).filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (word, rest) = line.split_once(' ').expect("an instruction");
            (word.to_owned(), rest.to_owned())
        })
        .collect()
}

/// The only argument of the only such instruction.
fn instruction(word: &str) -> String {
    let found: Vec<String> =
        instructions().into_iter().filter(|(name, _)| name == word).map(|(_, rest)| rest).collect();
    assert_eq!(found.len(), 1, "{word}: {found:?}");
    found[0].clone()
}

/// The program that is packaged: the one of these tests, or the static one that packaging/build-static has made.
fn program() -> PathBuf {
    std::env::var_os("OUTPOST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_outpost").into(), PathBuf::from)
}

/// The root file system of the image, by its COPY lines; and what the program of a test needs beside it, for it is not
/// linked statically as the packaged one is.
fn assemble(root: &Path) {
    let place = |path: &str| root.join(path.trim_start_matches('/'));
    let copy = |from: &Path, to: &Path| {
        fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
        fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    for (_, rest) in instructions().iter().filter(|(word, _)| word == "COPY") {
        let words: Vec<&str> = rest.split(' ').filter(|word| !word.starts_with("--")).collect();
        let owner = rest.split(' ').find_map(|word| word.strip_prefix("--chown="));
        let (from, to) = (words[0], place(words[1]));
        match from {
            "/empty" => fs::create_dir_all(&to).expect("a directory"),
            from if from.ends_with("/outpost") => copy(&program(), &to),
            from => copy(Path::new(from), &to),
        }
        if let Some((user, group)) = owner.and_then(|owner| owner.split_once(':')) {
            chown(&to, user.parse().ok(), group.parse().ok()).expect("we are root");
        }
    }
    // It fails for a program that needs none.
    let libraries = Command::new("ldd").arg(program()).output().expect("ldd runs");
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for library in libraries.inspect(|_| assert!(std::env::var_os("OUTPOST_PROGRAM").is_none(), "not static"))
    {
        copy(Path::new(library), &place(library));
    }
}

#[test]
fn mail_passes_a_container_of_which_only_the_volume_can_be_written() {
    if !support::mount::wanted() {
        return;
    }
    let upstream = Upstream::start(PASSWORD);
    let dir = tempfile::Builder::new()
        .prefix("root-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
    assemble(&root);
    let at = instruction("VOLUME");
    let user = instruction("USER");
    assert!(!user.starts_with('0') && !user.starts_with("root"), "{user}");
    // A new volume is as the image has the directory.
    fs::create_dir(&volume).expect("a directory");
    let (uid, gid) = user.split_once(':').expect("user and group");
    chown(&volume, uid.parse().ok(), gid.parse().ok()).expect("we are root");
    // As each engine has it.
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").expect("a file");
    fs::create_dir(root.join("dev")).expect("a directory");
    for device in ["dev/random", "dev/urandom"] {
        fs::write(root.join(device), "").expect("a place for it");
    }
    fs::copy(upstream.ca_file(), root.join("etc/ca.pem")).expect("a file");
    fs::set_permissions(root.join("etc/ca.pem"), fs::Permissions::from_mode(0o644)).expect("ours");

    let script = "mount --make-rprivate / && mount --bind \"$0\" \"$0\" && mount --bind \"$1\" \"$0$2\" \
                  && for device in random urandom; do mount --bind /dev/$device \"$0/dev/$device\"; done \
                  && mount -o remount,ro,bind \"$0\" && exec chroot --userspec=\"$3\" --groups= \"$0\" \"${@:4}\"";
    let program: Vec<String> = serde_json::from_str(&instruction("ENTRYPOINT")).expect("a list");
    let command: Vec<String> = serde_json::from_str(&instruction("CMD")).expect("a list");
    let (name, value) =
        instruction("ENV").split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).expect("one");
    let (smtp, admin) = (ports::free(), ports::free());
    let child = Command::new("unshare")
        .args(["--mount", "bash", "-c", script])
        .args([&root, &volume])
        .args([&at, &user])
        .args(program.iter().chain(&command))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env(&name, &value)
        .env("SMTP_RELAY_SERVER", "localhost")
        .env("SMTP_RELAY_PORT", upstream.port.to_string())
        .env("SMTP_RELAY_USERNAME", USER)
        .env("SMTP_RELAY_PASSWORD", PASSWORD)
        .env("SMTP_RELAY_TLS_CA", "/etc/ca.pem")
        .env("SMTP_LISTEN", format!("127.0.0.1:{smtp}"))
        .env("SMTP_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
        .stderr(fs::File::create(dir.path().join("log")).expect("a file"))
        .spawn()
        .map(Killed)
        .expect("it starts");
    let log = || read(&dir.path().join("log"));
    wait::until("the relay is ready", || {
        let answer = http::request("GET", admin, "/readyz");
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    });

    // It is nobody special, and can write nowhere but in the volume.
    let status = read(Path::new(&format!("/proc/{}/status", child.0.id())));
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("Uid:"), vec![uid; 4]);
    assert_eq!(of("Gid:"), vec![gid; 4]);
    assert_eq!(of("CapEff:"), ["0000000000000000"]);
    let inside = |arguments: &[String]| {
        Command::new("nsenter")
            .args([
                "--target",
                &child.0.id().to_string(),
                "--mount",
                "--root",
                "--setgid",
                gid,
                "--setuid",
                uid,
                "--",
            ])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env(&name, &value)
            .output()
            .expect("nsenter runs")
    };
    let (_, health) = instruction("HEALTHCHECK")
        .split_once("CMD ")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("a command");
    let health: Vec<String> = serde_json::from_str(&health).expect("a list");
    let healthy = inside(&health);
    assert!(healthy.status.success(), "{}\n{}", programs::shown(&healthy), log());
    support::client::Client::connect(smtp).expect("a session").send_token("contained").expect("it is taken");
    wait::until_true("it has arrived", || upstream.ledger().get("contained") == Some(&1));
    assert!(volume.join("queue/queue.sqlite").exists() && volume.join("environment.json").exists());
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let backup = inside(&words(&["/usr/bin/outpost", "queue", "backup", "/elsewhere"]));
    let said = programs::shown(&backup);
    assert!(
        !backup.status.success() && said.contains("Read-only file system"),
        "nothing else is written: {said}"
    );
    assert!(!log().contains("ERROR"), "{}", log());

    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our child");
    let mut child = child;
    assert!(support::relay::ended_within(&mut child.0, support::relay::STOP_WITHIN).success(), "{}", log());
    let health = outpost().args(["health", "--data"]).arg(&volume).output().expect("it runs");
    assert_eq!(health.status.code(), Some(69), "nobody is healthy any more: {}", programs::shown(&health));
}

/// A relay at work under strace, which records its syncs; what was synced of its data before it was ready.
fn synced_by_a_start(home: &Home, log: &Path) -> Vec<String> {
    let notify = home.path("notify");
    let mut manager = Manager::at(&notify);
    let mut command = Command::new(programs::require(Path::new("/usr/bin/strace")));
    command.args(["-f", "-y", "-e", "trace=fsync,fdatasync", "-o"]).arg(log).arg("--").arg(program());
    command.args(["serve", "--config", "dotcloud.yml", "--data", "data"]).current_dir(home.dir());
    let child = command.env("NOTIFY_SOCKET", &notify).stderr(Stdio::null()).spawn();
    let mut child = child.map(Killed).expect("it starts");
    manager.hears("READY=1");
    let data = home.path("data").display().to_string();
    let of = |line: &str| Some(line.split_once(&data)?.1.split_once('>')?.0.to_owned());
    let synced = read(log).lines().filter_map(of).collect();
    // What strace is told it passes on to nobody, and the log names threads, which may have ended.
    let strace = child.0.id();
    let children = read(Path::new(&format!("/proc/{strace}/task/{strace}/children")));
    let traced = children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a process");
    let traced = rustix::process::Pid::from_raw(traced).expect("a process");
    rustix::process::kill_process(traced, rustix::process::Signal::TERM).expect("our child");
    support::relay::ended_within(&mut child.0, support::relay::STOP_WITHIN);
    fs::remove_file(notify).expect("a socket");
    synced
}

// How fast it is `packaging/measure` asks, of the program that is packaged. What decides it can be counted.
#[test]
fn a_first_start_waits_for_the_disk_a_dozen_times_and_each_later_one_hardly() {
    let service =
        Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free());
    let home = Home::new(&[&service]);
    let first = synced_by_a_start(&home, &home.path("first"));
    for file in ["/queue", "/queue.id.new", "/tls/key.new", "/smtp_password.new", "/.environment.json.new"] {
        assert!(first.iter().any(|synced| synced == file), "{file} is not among {first:?}");
    }
    assert!(first.len() <= 12, "{first:?}");
    let later = synced_by_a_start(&home, &home.path("later"));
    assert!(later.len() <= 2, "{later:?}");
}

#[test]
fn a_relay_without_mail_takes_little_memory() {
    let service =
        Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free());
    let relay = Relay::start(&service);
    let status = read(Path::new(&format!("/proc/{}/status", relay.pid())));
    // The program's own pages are another number of another program; `packaging/measure` counts both.
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    let anonymous: u64 = anonymous.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!((500..8_000).contains(&anonymous), "{anonymous} kB");
}

/// The example's settings as they stand, with this upstream in the provider's place.
fn example(home: &Home, upstream: &Upstream, smtp: u16, admin: u16) {
    let text = read(&packaging("compose/dotcloud.yml"))
        .replace("smtp.mailgun.org", "localhost")
        .replace("postmaster@example.com", USER)
        .replace("smtp_admin_listen: 0.0.0.0:8025", &format!("smtp_admin_listen: 127.0.0.1:{admin}"))
        .replace("smtp_public_host: mailer", "smtp_public_host: 127.0.0.1")
        .replace(
            "/home/dotcloud/environment.json",
            &home.path("apps/environment.json").display().to_string(),
        );
    let own = format!(
        "    smtp_relay_port: {}\n    smtp_relay_tls_ca: {}\n    smtp_listen: 127.0.0.1:{smtp}\n",
        upstream.port,
        upstream.ca_file().display()
    );
    fs::create_dir(home.path("apps")).expect("a directory");
    fs::write(home.path("dotcloud.yml"), text + &own).expect("a file");
}

#[test]
fn the_example_s_django_app_and_its_worker_send_through_the_relay() {
    let upstream = Upstream::start(PASSWORD);
    let service = Service::mailer();
    let home = Home::new(&[]);
    example(&home, &upstream, service.smtp, service.admin);
    let mut relay = Relay::of(&home, &service);
    relay.up_by(|command| {
        command.env("SMTP_RELAY_PASSWORD", PASSWORD).env("SMTP_ADMIN_PASSWORD", "admin-sesame-4711");
    });
    let python = venv("python");
    let app = |arguments: &[&str]| {
        let mut command = Command::new(programs::require(&python));
        command
            .current_dir(packaging("compose/app"))
            .args(arguments)
            .env("ENVIRONMENT_FILE", home.path("apps/environment.json"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    let said = programs::run(&mut app(&["worker.py", "one@example.test", "two@example.test"]));
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "2");

    let port = ports::free();
    let web =
        app(&["web.py", &format!("127.0.0.1:{port}")]).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
    let _web = Killed(web.expect("it starts"));
    let form = "to=three%40example.test";
    let answer = wait::until("the page answers", || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        )
        .ok()?;
        let lines: Vec<String> = BufReader::new(stream).lines().map_while(Result::ok).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    });
    assert!(answer.contains("Ordered; the confirmation is on its way."), "{answer}");
    wait::until_true("all three have arrived", || upstream.arrived() == 3);
    let subjects =
        upstream.messages().iter().map(|mail| String::from_utf8_lossy(mail).into_owned()).collect::<String>();
    assert_eq!(subjects.matches("Subject: Your digest").count(), 2, "{subjects}");
    assert_eq!(subjects.matches("Subject: Your order").count(), 1, "{subjects}");
    // The page listens beyond loopback there, so it asks for its password.
    let status =
        |fields: &[(&str, &str)]| support::http::send("GET", relay.admin, "/api/v1/status", fields, b"");
    assert_eq!(status(&[]).status, 401);
    wait::until_true("the queue is empty", || {
        status(&[("Authorization", "Bearer admin-sesame-4711")]).json()["queue"]["messages"] == 0
    });
}

#[test]
fn the_example_hangs_together() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/compose.py");
    let python = programs::require(Path::new("/usr/bin/python3"));
    programs::run(Command::new(python).arg(script).args([packaging("compose"), packaging("Containerfile")]));
}

#[test]
fn the_manifests_are_kubernetes_and_hang_together() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/kubernetes.py");
    let home = Home::new(&[]);
    let output = programs::run(
        Command::new(programs::require(&venv("python")))
            .arg(script)
            .args([packaging("kubernetes/outpost.yml"), packaging("kubernetes/servicemonitor.yml")])
            .arg(home.path("dotcloud.yml")),
    );
    // The settings in it are right; the secrets are where the volume has them.
    let text = read(&home.path("dotcloud.yml"));
    let secrets = home.path("secrets").display().to_string();
    fs::create_dir(&secrets).expect("a directory");
    for name in String::from_utf8_lossy(&output.stdout).lines() {
        fs::write(home.path("secrets").join(name), "a-secret").expect("a file");
    }
    fs::write(home.path("dotcloud.yml"), text.replace("/run/secrets/outpost", &secrets)).expect("a file");
    programs::run(outpost().arg("check").current_dir(home.dir()));
}

#[test]
fn the_schema_takes_the_examples_and_refuses_mistakes() {
    let home = Home::new(&[]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let printed = programs::run(outpost().arg("schema"));
    fs::write(home.path("schema.json"), &printed.stdout).expect("a file");
    assert_eq!(
        String::from_utf8_lossy(&printed.stdout).trim(),
        read(&root.join("schema/dotcloud.schema.json")).trim(),
        "what the command prints is the file"
    );
    let good = [
        "config/dotcloud.yml",
        "config/gmail.yml",
        "config/two-tier.yml",
        "packaging/compose/dotcloud.yml",
        "packaging/debian/dotcloud.yml",
    ];
    let mut cases: Vec<(bool, PathBuf)> = good.iter().map(|name| (true, root.join(name))).collect();
    let base = "mailer:\n  type: smtp\n  config:\n    smtp_relay_server: smtp.mailgun.org\n";
    let rich = "    smtp_relay_port: '587'\n    smtp_listen: [0.0.0.0:587, {address: '0.0.0.0:465', tls: implicit}]\n    \
                smtp_users: {shop: {password: 0123, senders: [shop.example], rate_limit: 100/hour}}\n    \
                smtp_rate_limit: [14/second, 500 recipients/day]\n    smtp_retry: 1m..1h\n    \
                smtp_delay_warning: never\n    smtp_max_message_size: 25 MB\n    smtp_queue_min_free: 0\n    \
                smtp_relay_tls_min_version: 1.3\n    smtp_binarymime: true\n";
    let bad = [
        "    smtp_relay_usrname: a\n",
        "    smtp_relay_port: 70000\n",
        "    smtp_relay_password: a\n    smtp_relay_password_file: none\n",
        "    smtp_rate_limit: 14 a second\n",
        "    smtp_retry: 1m\n",
        "    smtp_relay_timeout: 30\n",
        "    smtp_relay_tls: ssl\n",
        "    smtp_users: {shop: {pasword: x}}\n",
        "    smtp_max_message_size: 25 MBytes\n",
    ];
    let texts = [(true, base.to_owned() + rich), (false, base.replace("smtp.mailgun.org", "[1, 2]"))];
    let texts = texts.into_iter().chain(bad.iter().map(|bad| (false, base.to_owned() + bad)));
    for (number, (is_good, text)) in texts.enumerate() {
        let path = home.path(&format!("{number}.yml"));
        fs::write(&path, &text).expect("a file");
        // What an editor refuses, the program refuses; and here the other way round as well.
        let checked = outpost().arg("check").arg("-f").arg(&path).output().expect("it runs");
        assert_eq!(checked.status.success(), is_good, "{text}: {}", programs::shown(&checked));
        cases.push((is_good, path));
    }
    let script = root.join("tests/python/schema.py");
    let mut command = Command::new(programs::require(Path::new("/usr/bin/python3")));
    command.arg(script).arg(home.path("schema.json"));
    for (is_good, path) in &cases {
        command.arg(if *is_good { "good" } else { "bad" }).arg(path);
    }
    programs::run(&mut command);
}

#[test]
fn the_deb_has_all_that_is_installed_and_its_program_runs() {
    let dir =
        tempfile::Builder::new().prefix("deb-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let deb = dir.path().join("outpost.deb");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let tools = target.join("peers/bin");
    programs::require(&tools.join("cargo-deb"));
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("a path"));
    programs::run(
        Command::new(packaging("build-deb"))
            .arg("release")
            .arg(&deb)
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", target),
    );
    let root = dir.path().join("root");
    programs::run(Command::new("dpkg-deb").arg("-x").args([&deb, &root]));
    programs::run(Command::new("dpkg-deb").arg("-e").args([&deb, &dir.path().join("control")]));
    for file in [
        "usr/bin/outpost",
        "etc/outpost/dotcloud.yml",
        "lib/systemd/system/outpost.service",
        "usr/lib/systemd/system/outpost.socket",
        "usr/share/man/man1/outpost.1.gz",
        "usr/share/man/man1/outpost-queue-list.1.gz",
        "usr/share/bash-completion/completions/outpost",
        "usr/share/zsh/vendor-completions/_outpost",
        "usr/share/fish/vendor_completions.d/outpost.fish",
        "usr/share/outpost/dotcloud.schema.json",
        "usr/share/doc/outpost/configuration.md.gz",
        "usr/share/doc/outpost/copyright",
    ] {
        let plain = file.strip_suffix(".gz").unwrap_or(file);
        let usr = format!("usr/{file}");
        let found = [file, plain, &usr].iter().any(|file| root.join(file).exists());
        assert!(
            found,
            "{file} is missing: {}",
            programs::shown(&programs::run(Command::new("find").arg(&root)))
        );
    }
    assert_eq!(read(&dir.path().join("control/conffiles")).trim(), "/etc/outpost/dotcloud.yml");
    for script in ["postinst", "postrm", "prerm"] {
        let path = dir.path().join("control").join(script);
        programs::run(Command::new("sh").arg("-n").arg(&path));
        assert!(!read(&path).contains("#DEBHELPER#"), "{script}");
    }
    assert!(read(&dir.path().join("control/postinst")).contains("/etc/outpost/credentials"));
    assert!(read(&dir.path().join("control/control")).contains("\nDepends: "));

    let program = root.join("usr/bin/outpost");
    let version = programs::run(Command::new(&program).arg("--version"));
    assert_eq!(
        String::from_utf8_lossy(&version.stdout).trim(),
        format!("outpost {}", env!("CARGO_PKG_VERSION"))
    );
    // Its configuration is right as far as it goes: the account is missing.
    let checked = Command::new(&program)
        .args(["check", "--data", "/nowhere", "-f"])
        .arg(root.join("etc/outpost/dotcloud.yml"))
        .env("SMTP_RELAY_PASSWORD", "a-password")
        .output()
        .expect("it runs");
    assert!(checked.status.success(), "{}", programs::shown(&checked));
    let without =
        Command::new(&program).args(["check", "-f"]).arg(root.join("etc/outpost/dotcloud.yml")).output();
    let said = programs::shown(&without.expect("it runs"));
    assert!(said.contains("smtp_relay_username without smtp_relay_password"), "{said}");
}
