//! What breaks around the relay: its disk, its clock, its descriptors, whoever reads its log. It answers 4yz and
//! never 5yz, says what is wrong, loses nothing, and goes on by itself when the cause is gone.

mod support;

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::client::{Client, letter};
use support::mount::{self, Ext4, Mount};
use support::programs::{run, shown};
use support::relay::Relay;
use support::service::{Home, Service};
use support::strace::Injection;
use support::upstream::{USER, Upstream};
use support::{http, wait};

const PASSWORD: &str = "upstream-sesame-4711";
const SMALL: usize = 1_000;
const LARGE: usize = 300_000;

fn mailer(upstream: &Upstream) -> Service {
    upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0)
}

/// Sends a message; what the relay said if it didn't take it.
fn send(relay: &Relay, token: &str, size: usize) -> Result<String, String> {
    let sent = Client::connect(relay.smtp).and_then(|mut client| {
        client.send("sender@example.test", &["someone@example.test"], &letter(token, size))
    });
    sent.map_err(|error| error.to_string())
}

#[track_caller]
fn refused(answer: Result<String, String>, with: &str) {
    let said = answer.expect_err("it is not taken");
    assert!(said.contains(&format!("said {with}")), "expected {with}, but {said}");
}

fn ready(relay: &Relay) -> (u16, String) {
    let answer = http::get(relay.admin, "/readyz");
    (answer.status, answer.text())
}

/// It recovers by itself and takes mail, and after a restart everything that was acknowledged arrives, once.
fn recovers(relay: &mut Relay, upstream: &mut Upstream, acknowledged: &[&str], refused: &[&str]) {
    wait::until_true("it is ready again by itself", || ready(relay).0 == 200);
    send(relay, "again-small", SMALL).expect("a small one is taken again");
    send(relay, "again-large", LARGE).expect("a large one is taken again");
    relay.kill9();
    relay.up();
    upstream.up();
    relay.wait_for_empty_queue();
    let ledger = upstream.ledger();
    for token in acknowledged.iter().chain(&["again-small", "again-large"]) {
        assert_eq!(ledger.get(*token), Some(&1), "{token} was acknowledged");
    }
    for token in refused {
        assert_eq!(ledger.get(*token), None, "{token} was refused");
    }
}

#[test]
fn a_sync_that_fails_once_refuses_that_message_and_no_other() {
    for (size, name) in [(SMALL, "small"), (LARGE, "large")] {
        let mut upstream = Upstream::stopped(PASSWORD);
        let mut relay = Relay::start(&mailer(&upstream).set("smtp_retry", "1m..1h"));
        send(&relay, "before", size).expect("it is taken");
        // The file of the history is synced when it is made, and the database once an idle second has passed;
        // from then on the syncs are those of mail.
        wait::until_true("the history is begun", || relay.told(&["logs"]).contains(" received "));
        wait::until_true("it was tried", || relay.queue()[0]["recipients"][0]["attempts"] == 1);
        std::thread::sleep(Duration::from_millis(2_500));
        let injection = Injection::attach(relay.pid(), "fsync,fdatasync:error=EIO:when=1");
        refused(send(&relay, name, size), "451 4.3.0");
        wait::until_true("the next is taken", || send(&relay, "next", size).is_ok());
        drop(injection);
        recovers(&mut relay, &mut upstream, &["before"], &[name]);
        assert!(upstream.ledger().contains_key("next"));
    }
}

/// The commit of a message is in the journal before it is synced; a kill behind the 451 must not bring it back.
#[test]
fn what_was_refused_for_a_failed_sync_does_not_come_back_by_a_kill() {
    for (size, name) in [(SMALL, "small"), (LARGE, "large")] {
        let mut upstream = Upstream::stopped(PASSWORD);
        let mut relay = Relay::start(&mailer(&upstream).set("smtp_retry", "1m..1h"));
        send(&relay, "before", size).expect("it is taken");
        // From here on it has nothing to write by itself.
        wait::until_true("it was tried", || relay.queue()[0]["recipients"][0]["attempts"] == 1);
        let journal = relay.data().join("queue/queue.journal");
        let injection = Injection::attach_at(relay.pid(), &["fsync,fdatasync:error=EIO:when=1"], &[journal]);
        refused(send(&relay, name, size), "451 4.3.0");
        relay.kill9();
        drop(injection);
        relay.up();
        assert_eq!(relay.queue().len(), 1, "{:?}", relay.queue());
        upstream.up();
        relay.wait_for_empty_queue();
        assert_eq!(upstream.ledger(), [("before".to_owned(), 1)].into());
    }
}

#[test]
fn names_of_files_that_could_not_be_synced_are_refused_all_and_not_synced_again() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream).set("smtp_retry", "1m..1h"));
    send(&relay, "before", SMALL).expect("it is taken");
    wait::until_true("it was tried", || relay.queue()[0]["recipients"][0]["attempts"] == 1);
    let queue = relay.data().join("queue");
    // While a small one is written slowly, two large ones and another small one gather behind it. The
    // journal has fdatasync, so the first fsync is that of the names.
    let faults = ["pwrite64:delay_enter=2000000:when=1", "fsync:error=EIO:when=1"];
    let files = [queue.join("queue.journal"), queue.join("spool")];
    let injection = Injection::attach_at(relay.pid(), &faults, &files);
    std::thread::scope(|scope| {
        let send = |name, size| send(&relay, name, size);
        let first = scope.spawn(move || send("first", SMALL));
        std::thread::sleep(Duration::from_millis(500));
        let large = ["large-1", "large-2"].map(|name| scope.spawn(move || send(name, LARGE)));
        let small = scope.spawn(move || send("small", SMALL));
        for one in large {
            refused(one.join().expect("a client doesn't panic"), "451 4.3.0");
        }
        for one in [first, small] {
            one.join().expect("a client doesn't panic").expect("it is taken");
        }
    });
    drop(injection);
    recovers(&mut relay, &mut upstream, &["before", "first", "small"], &["large-1", "large-2"]);
}

#[test]
fn while_the_disk_refuses_mail_is_answered_451_and_readiness_says_why() {
    let faults = [
        ("fsync,fdatasync:error=EIO", "451 4.3.0"),
        ("pwrite64:error=EIO", "451 4.3.0"),
        ("pwrite64,openat:error=EROFS", "451 4.3.0"),
        ("pwrite64:error=ENOSPC", "452 4.3.1"),
        ("pwrite64:error=EDQUOT", "452 4.3.1"),
    ];
    for (fault, reply) in faults {
        let mut upstream = Upstream::stopped(PASSWORD);
        let mut relay = Relay::start(&mailer(&upstream));
        send(&relay, "before", LARGE).expect("it is taken");
        let injection = Injection::attach(relay.pid(), fault);
        refused(send(&relay, "small", SMALL), reply);
        let (status, reason) = ready(&relay);
        assert_eq!(status, 503, "{fault}: {reason}");
        assert!(reason.contains("queue") || reason.contains("disk"), "{fault}: it says why: {reason}");
        refused(send(&relay, "small again", SMALL), reply);
        drop(injection);
        recovers(&mut relay, &mut upstream, &["before"], &["small", "small again"]);
    }
}

/// Mail that one upstream's lane drew for another's lies ready there. It has to wait like all else.
#[test]
fn while_outcomes_can_not_be_recorded_nothing_more_is_sent() {
    const MESSAGES: usize = 12;
    let (idle, slow) = (Upstream::start(PASSWORD), Upstream::start(PASSWORD));
    slow.set(|behaviour| behaviour.final_delay = Duration::from_millis(400));
    let relays = [("idle", &idle), ("slow", &slow)].map(|(name, upstream)| {
        format!(
            "\n      - {{name: {name}, server: localhost, port: {}, username: {USER}, password: {PASSWORD}, \
             tls_ca: {}, connections: 1, recipients: {name}.test}}",
            upstream.port,
            upstream.ca_file().display()
        )
    });
    let service = Service::mailer().set("smtp_queue_min_free", 0).set("smtp_relays", relays.concat());
    let mut relay = Relay::start(&service);
    let mut client = relay.client();
    for number in 0..MESSAGES {
        let letter = letter(&format!("token-{number}"), SMALL);
        client.send("sender@example.test", &["someone@slow.test"], &letter).expect("it is taken");
    }
    wait::until_true("it sends", || slow.arrived() > 0);
    let injection = Injection::attach(relay.pid(), "fsync,fdatasync:error=EIO");
    let before = slow.arrived();
    std::thread::sleep(Duration::from_secs(3));
    let since = slow.arrived() - before;
    // One was on its way, and one may have been announced behind it.
    assert!(since <= 2, "{since} were sent");
    drop(injection);
    wait::until_true("it goes on", || slow.arrived() == MESSAGES);
    relay.wait_for_empty_queue();
    assert!(slow.ledger().values().all(|count| *count == 1), "{:?}", slow.ledger());
    relay.terminate();
}

#[test]
fn a_spool_that_takes_no_file_refuses_large_mail_for_now() {
    for (fault, reply) in [("openat:error=EACCES", "451 4.3.0"), ("openat:error=EROFS", "451 4.3.0")] {
        let mut upstream = Upstream::stopped(PASSWORD);
        let mut relay = Relay::start(&mailer(&upstream));
        send(&relay, "before", LARGE).expect("it is taken");
        let injection = Injection::attach(relay.pid(), fault);
        refused(send(&relay, "large", LARGE), reply);
        let (status, reason) = ready(&relay);
        assert!(status == 503 && reason.contains("large mail can't be kept"), "{status} {reason}");
        drop(injection);
        recovers(&mut relay, &mut upstream, &["before"], &["large"]);
    }
}

#[test]
fn a_file_that_can_not_be_removed_is_not_sent_again() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream));
    let injection = Injection::attach(relay.pid(), "unlink:error=EIO");
    send(&relay, "large", LARGE).expect("it is taken");
    relay.wait_for_empty_queue();
    drop(injection);
    relay.kill9();
    relay.up();
    send(&relay, "again", SMALL).expect("it is taken");
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("large"), Some(&1));
    let spool = relay.data().join("queue/spool");
    assert_eq!(fs::read_dir(spool).expect("the spool").count(), 0, "it is swept at the next start");
}

#[test]
fn a_queue_directory_that_is_moved_away_refuses_for_now_and_goes_on_when_it_is_back() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream));
    send(&relay, "before", LARGE).expect("it is taken");
    let (queue, away) = (relay.data().join("queue"), relay.data().join("away"));
    fs::rename(&queue, &away).expect("it can be moved");
    refused(send(&relay, "large", LARGE), "451 4.3.0");
    let small = send(&relay, "small", SMALL);
    assert!(!queue.exists(), "no second queue is made in its place");
    fs::rename(&away, &queue).expect("it can be moved back");
    // The database is open: what was taken lies in it, wherever it is.
    let taken: &[&str] = if small.is_ok() { &["before", "small"] } else { &["before"] };
    recovers(&mut relay, &mut upstream, taken, &["large"]);
}

/// As when its volume is not mounted: at the usual place, and at one of its own.
#[test]
fn a_queue_that_was_there_and_is_not_is_not_begun_anew_in_silence() {
    let upstream = Upstream::stopped(PASSWORD);
    let usual = mailer(&upstream);
    let home = Home::new(&[&usual]);
    let elsewhere = usual.clone().set("smtp_queue", home.path("volume/queue").display());
    for (service, queue) in [(usual, "mailer-data/queue"), (elsewhere, "volume/queue")] {
        let (queue, away) = (home.path(queue), home.path("away"));
        let remembered = home.path("mailer-data/queue.id");
        let _ = fs::remove_file(&remembered);
        home.write(&[&service]);
        let mut relay = Relay::start_in(&home, &service);
        send(&relay, "before", LARGE).expect("it is taken");
        relay.terminate();
        fs::rename(&queue, &away).expect("it can be moved");
        for is_mounted_on in [false, true] {
            if is_mounted_on {
                fs::create_dir_all(queue.join("lost+found")).expect("a directory");
            }
            for command in [&["serve"][..], &["queue", "import", "-"]] {
                let output = relay.cli(command);
                assert_eq!(output.status.code(), Some(73), "{}", shown(&output));
                for words in ["mount", &queue.display().to_string(), &remembered.display().to_string()] {
                    assert!(shown(&output).contains(words), "{words}: {}", shown(&output));
                }
            }
            assert!(!queue.join("queue.sqlite").exists(), "nothing is made");
        }
        fs::remove_dir_all(&queue).expect("it can be removed");
        fs::rename(&away, &queue).expect("it can be moved back");
        relay.up();
        assert_eq!(relay.queue().len(), 1, "all is there again");
        // Who wants to begin anew does as it was told.
        relay.terminate();
        fs::rename(&queue, &away).expect("it can be moved");
        fs::remove_file(&remembered).expect("it is there");
        relay.up();
        assert_eq!(relay.queue().len(), 0);
        send(&relay, "again", SMALL).expect("it is taken");
        relay.terminate();
        fs::remove_dir_all(&away).expect("it can be removed");
    }
}

/// A relay whose data directory is a file system of its own, of so many MiB.
fn relay_on_a_disk(upstream: &Upstream, mebibytes: u64) -> (Relay, Ext4) {
    let service = mailer(upstream);
    let home = Home::new(&[&service]);
    let mut relay = Relay::of(&home, &service);
    let disk = Ext4::new(&home.path("disk.img"), mebibytes, relay.data());
    relay.up();
    (relay, disk)
}

#[test]
fn on_a_full_disk_new_mail_is_refused_and_queued_mail_leaves() {
    if !mount::wanted() {
        return;
    }
    let mut upstream = Upstream::stopped(PASSWORD);
    let (mut relay, _disk) = relay_on_a_disk(&upstream, 128);
    let tokens: Vec<String> = (0..40).map(|number| format!("queued-{number}")).collect();
    for (number, token) in tokens.iter().enumerate() {
        send(&relay, token, if number % 4 == 0 { LARGE } else { SMALL * 50 }).expect("there is room");
    }
    let filler = relay.data().join("filler");
    fill(&filler);
    // While the database is told, and the journal begins again in room that it has, some more may be taken.
    let mut tokens = tokens;
    wait::until_true("a small one is refused", || {
        let more = format!("more-{}", tokens.len());
        let is_taken = send(&relay, &more, SMALL).is_ok();
        tokens.extend(is_taken.then_some(more));
        !is_taken
    });
    refused(send(&relay, "small", SMALL), "452 4.3.1");
    refused(send(&relay, "large", LARGE), "452 4.3.1");
    assert_eq!(ready(&relay).0, 503);

    upstream.up();
    wait::until_true("queued mail leaves while the disk is full", || {
        relay.status()["queue"]["messages"] == 0
    });
    fs::remove_file(&filler).expect("it can be removed");
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    recovers(&mut relay, &mut upstream, &tokens, &["small", "large"]);
}

#[test]
fn a_queue_on_what_is_thrown_away_is_told_of_at_start_with_what_to_do() {
    if !mount::wanted() {
        return;
    }
    let upstream = Upstream::stopped(PASSWORD);
    let told = |kind: &str, mount: &dyn Fn(&Home, &Path) -> Vec<Mount>| {
        let service = mailer(&upstream);
        let home = Home::new(&[&service]);
        let mut relay = Relay::of(&home, &service);
        let _mounted = mount(&home, relay.data());
        let checked = shown(&relay.cli(&["check"]));
        relay.up();
        send(&relay, "one", SMALL).expect("mail is taken nevertheless");
        let volume =
            format!("Mount a volume on {}", fs::canonicalize(relay.data()).expect("it is there").display());
        let warning = relay.status()["store"]["warning"].clone();
        let status = relay.told(&["status"]);
        for (where_, said) in [("check", &checked), ("the log", &relay.log()), ("status", &status)] {
            let tells = said.contains(&format!("lies on {kind}")) && said.contains(&volume);
            assert_eq!(tells, !kind.is_empty(), "{kind}: {where_}: {said}");
        }
        assert_eq!(warning.is_null(), kind.is_empty(), "{kind}: {warning}");
        assert_eq!(relay.log().matches("lies on").count(), usize::from(!kind.is_empty()), "it is said once");
        relay.terminate();
    };
    told("tmpfs", &|_, data| vec![Mount::new("tmpfs", "size=32m", data)]);
    told("ramfs", &|_, data| vec![Mount::new("ramfs", "defaults", data)]);
    told("overlay", &|home, data| {
        let layers = home.path("layers");
        let below = Mount::new("tmpfs", "size=32m", &layers);
        let layer = |name: &str| {
            fs::create_dir(layers.join(name)).expect("a directory");
            layers.join(name).display().to_string()
        };
        let options =
            format!("lowerdir={},upperdir={},workdir={}", layer("lower"), layer("upper"), layer("work"));
        vec![Mount::new("overlay", &options, data), below]
    });
    // The control: of a disk nothing is said, and nothing of what local mode keeps.
    let disk = std::cell::OnceCell::new();
    told("", &|home, data| {
        disk.get_or_init(|| Ext4::new(&home.path("disk.img"), 64, data));
        Vec::new()
    });
    let home = Home::new(&[]);
    let _memory = Mount::new("tmpfs", "size=300m", &home.path("dev-data"));
    let mut dev = Relay::start_dev_in(home);
    assert!(!dev.log().contains("lies on") && !dev.told(&["status"]).contains("lies on"));
    dev.terminate();
}

#[test]
fn a_disk_that_turns_read_only_refuses_for_now_and_has_all_when_it_is_mounted_again() {
    if !mount::wanted() {
        return;
    }
    let mut upstream = Upstream::stopped(PASSWORD);
    let (mut relay, disk) = relay_on_a_disk(&upstream, 96);
    for (token, size) in [("before-small", SMALL), ("before-large", LARGE)] {
        send(&relay, token, size).expect("it is taken");
    }
    disk.turn_read_only();
    refused(send(&relay, "small", SMALL), "451 4.3.0");
    refused(send(&relay, "large", LARGE), "451 4.3.0");
    let (status, reason) = ready(&relay);
    assert_eq!(status, 503, "{reason}");
    assert!(!relay.has_ended());
    // The kernel lets nobody write to it before it is mounted anew.
    relay.kill9();
    disk.again();
    relay.up();
    recovers(&mut relay, &mut upstream, &["before-small", "before-large"], &["small", "large"]);
}

#[test]
fn on_a_disk_that_is_read_only_from_the_start_it_ends_and_says_which_file() {
    if !mount::wanted() {
        return;
    }
    let upstream = Upstream::stopped(PASSWORD);
    let service = mailer(&upstream);
    let home = Home::new(&[&service]);
    let relay = Relay::of(&home, &service);
    let _disk = Mount::new("tmpfs", "size=1m,ro", relay.data());
    let began = Instant::now();
    let output = relay.cli(&["serve"]);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(output.status.code(), Some(73), "{}", shown(&output));
    let said = shown(&output);
    assert!(said.contains("Read-only") && said.contains(&relay.data().display().to_string()), "{said}");
}

#[test]
fn below_what_must_stay_free_mail_is_refused_and_queued_mail_leaves_also_from_the_start() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let service = mailer(&upstream);
    let home = Home::new(&[&service]);
    let mut relay = Relay::start_in(&home, &service);
    send(&relay, "queued", LARGE).expect("it is taken");
    relay.terminate();
    let full = service.clone().set("smtp_queue_min_free", "1000TB");
    home.write(&[&full]);
    relay.up_unready();
    wait::until_true("it listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, relay.smtp)).is_ok());
    refused(send(&relay, "refused", SMALL), "452 4.3.1");
    let (status, reason) = ready(&relay);
    assert!(status == 503 && reason.contains("full"), "{status} {reason}");
    upstream.up();
    relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger().get("queued"), Some(&1));
    relay.terminate();
    home.write(&[&service]);
    // What the kill would catch in flight would arrive twice.
    upstream.down();
    relay.up();
    recovers(&mut relay, &mut upstream, &["queued"], &["refused"]);
}

#[test]
fn without_inodes_large_mail_is_refused_for_now_and_the_rest_goes_on() {
    if !mount::wanted() {
        return;
    }
    let mut upstream = Upstream::stopped(PASSWORD);
    let service = mailer(&upstream);
    let home = Home::new(&[&service]);
    let mut relay = Relay::of(&home, &service);
    let _disk = Ext4::new(&home.path("disk.img"), 64, relay.data());
    relay.up();
    send(&relay, "before", LARGE).expect("it is taken");
    let files = relay.data().join("files");
    fs::create_dir(&files).expect("a directory");
    let made = (0..).take_while(|number| fs::write(files.join(number.to_string()), "").is_ok()).count();
    assert!(made > 1_000, "{made} files only");
    refused(send(&relay, "large", LARGE), "452 4.3.1");
    send(&relay, "small", SMALL).expect("it needs no file of its own");
    fs::remove_dir_all(&files).expect("they can be removed");
    recovers(&mut relay, &mut upstream, &["before", "small"], &["large"]);
}

#[test]
fn a_second_process_on_the_same_queue_ends_at_once_and_names_the_first() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let service = mailer(&upstream);
    let home = Home::new(&[&service]);
    let mut relay = Relay::start_in(&home, &service);
    send(&relay, "one", SMALL).expect("it is taken");
    let other = service.clone().set("smtp_listen", "127.0.0.1:0").set("smtp_admin_listen", "127.0.0.1:0");
    home.write(&[&other]);
    let began = Instant::now();
    let output = relay.cli(&["serve"]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(output.status.code(), Some(75), "{}", shown(&output));
    assert!(shown(&output).contains(&format!("in use by process {}", relay.pid())), "{}", shown(&output));
    home.write(&[&service]);
    // Nothing of the first was disturbed, and a process that is killed leaves no lock behind.
    recovers(&mut relay, &mut upstream, &["one"], &[]);
}

#[test]
fn times_in_messages_are_right_in_any_time_zone() {
    let upstream = Upstream::start(PASSWORD);
    let service = mailer(&upstream);
    let mut relay = Relay::of(&Home::new(&[&service]), &service);
    relay.up_by(|command| {
        command.env("TZ", "America/St_Johns");
    });
    send(&relay, "one", SMALL).expect("it is taken");
    relay.wait_for_empty_queue();
    let message = String::from_utf8_lossy(&upstream.messages()[0]).into_owned();
    let field = message.split("\r\n").take_while(|line| !line.starts_with("Date:")).collect::<String>();
    let date = field.rsplit(';').next().expect("a date").trim();
    let told = jiff::fmt::rfc2822::parse(date).unwrap_or_else(|error| panic!("{error}: {field}"));
    let off = jiff::Timestamp::now().as_second() - told.timestamp().as_second();
    assert!((0..60).contains(&off), "{off} s off: {date}");
}

/// Writes to a file until nothing more fits on its disk.
fn fill(path: &Path) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("a file to fill with");
    for size in [1024 * 1024, 4096, 512, 1] {
        let octets = vec![b'x'; size];
        while file.write_all(&octets).is_ok() {}
    }
}

/// Seconds of processor time that a process has used.
fn processor_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("its name").1.split_whitespace().collect();
    (fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime")) / 100.0
}

#[test]
fn without_free_descriptors_it_neither_spins_nor_ends() {
    let upstream = Upstream::start(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream));
    let pid = relay.pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    let limit = |soft: usize| {
        run(Command::new("/usr/bin/prlimit").args([format!("--pid={pid}"), format!("--nofile={soft}:")]))
    };
    limit(open + 6);
    let waiting: Vec<TcpStream> =
        (0..40).filter_map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, relay.smtp)).ok()).collect();
    let (began, used) = (Instant::now(), processor_time(pid));
    std::thread::sleep(Duration::from_secs(2));
    let used = (processor_time(pid) - used) / began.elapsed().as_secs_f64();
    assert!(used < 0.25, "it uses {used:.2} of a processor");
    assert!(!relay.has_ended());
    drop(waiting);
    limit(1024);
    wait::until_true("mail goes on", || send(&relay, "after", LARGE).is_ok());
    wait::until_true("it is delivered", || upstream.arrived() == 1);
}

/// A relay whose wall clock is set by a file, and its monotonic clock by nobody.
struct Clocked {
    relay: Relay,
    file: std::path::PathBuf,
}

impl Clocked {
    fn start(service: &Service) -> Self {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        let library = support::programs::require(Path::new(&library));
        let home = Home::new(&[service]);
        let mut relay = Relay::of(&home, service);
        let file = home.path("clock");
        fs::write(&file, "+0").expect("the clock's file");
        relay.up_by(|command| {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &file);
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        });
        Self { relay, file }
    }

    /// Sets the clock and does something else in the same moment, as the relay sees it.
    fn jump(&self, by: &str, meanwhile: impl FnOnce()) {
        self.relay.send_signal(Signal::STOP);
        fs::write(&self.file, by).expect("the clock's file");
        meanwhile();
        self.relay.send_signal(Signal::CONT);
    }
}

impl Drop for Clocked {
    fn drop(&mut self) {
        // The library leaves these behind when its process is killed.
        let pid = self.relay.pid();
        let _ = fs::remove_file(format!("/dev/shm/faketime_shm_{pid}"));
        let _ = fs::remove_file(format!("/dev/shm/sem.faketime_sem_{pid}"));
    }
}

#[test]
fn a_clock_set_forward_expires_nothing_that_was_not_tried_since() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let clocked = Clocked::start(&mailer(&upstream));
    let tokens: Vec<String> = (0..20).map(|number| format!("old-{number}")).collect();
    for token in &tokens {
        send(&clocked.relay, token, SMALL).expect("it is taken");
    }
    clocked.jump("+10d", || upstream.up());
    clocked.relay.wait_for_empty_queue();
    let ledger = upstream.ledger();
    assert!(tokens.iter().all(|token| ledger.get(token) == Some(&1)), "{ledger:?}");
    assert_eq!(ledger.len(), tokens.len(), "nobody was told that it had expired");
}

#[test]
fn a_clock_set_forward_while_the_upstream_is_away_returns_nothing() {
    let mut upstream = Upstream::stopped(PASSWORD);
    let clocked = Clocked::start(&mailer(&upstream).set("smtp_retry", "1s..1m"));
    let tokens: Vec<String> = (0..20).map(|number| format!("old-{number}")).collect();
    for token in &tokens {
        send(&clocked.relay, token, SMALL).expect("it is taken");
    }
    let failed = || clocked.relay.log().matches("no mail can be sent").count();
    let before = failed();
    clocked.jump("+10d", || ());
    wait::until_true("it has tried in vain", || failed() >= before + 3);
    assert_eq!(clocked.relay.told(&["logs", "--event=expired"]), "");
    upstream.up();
    // So that it does not wait for its next try, which may be half a minute away.
    clocked.relay.told(&["reload"]);
    clocked.relay.wait_for_empty_queue();
    assert_eq!(upstream.ledger(), tokens.into_iter().map(|token| (token, 1)).collect());
    assert_eq!(upstream.messages().len(), 20, "nobody was told that it had expired");
}

#[test]
fn a_clock_set_back_does_not_make_retries_wait_for_it() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| {
        behaviour.recipients.insert("someone@example.test".into(), "450 4.2.0 try again later".into());
    });
    let clocked = Clocked::start(&mailer(&upstream));
    send(&clocked.relay, "deferred", SMALL).expect("it is taken");
    wait::until_true("it is deferred", || clocked.relay.status()["queue"]["deferred"] == 1);
    clocked.jump("-1d", || upstream.set(|behaviour| behaviour.recipients.clear()));
    wait::until_true("it is delivered as soon as before", || upstream.arrived() == 1);
    send(&clocked.relay, "new", SMALL).expect("it is taken");
    clocked.relay.wait_for_empty_queue();
}

#[test]
fn whoever_stops_reading_the_log_does_not_stop_mail() {
    let upstream = Upstream::start(PASSWORD);
    let service = mailer(&upstream).set("smtp_log_level", "debug");
    let mut relay = Relay::of(&Home::new(&[&service]), &service);
    // Nobody ever reads it, and it holds 64 KiB.
    let (_reader, writer) = io::pipe().expect("a pipe");
    relay.up_by(|command| {
        command.stderr(writer.try_clone().expect("a descriptor")).stdout(writer);
    });
    let mut client = relay.client();
    for number in 0..1_000 {
        client.send_token(&format!("token-{number}")).expect("it is taken");
    }
    wait::until_true("all are delivered", || upstream.arrived() == 1_000);
    relay.terminate();
}

#[test]
fn with_its_outputs_closed_it_works_on() {
    let upstream = Upstream::start(PASSWORD);
    let service = mailer(&upstream).set("smtp_log_level", "debug");
    let mut relay = Relay::of(&Home::new(&[&service]), &service);
    let (reader, writer) = io::pipe().expect("a pipe");
    relay.up_by(|command| {
        command.stderr(writer.try_clone().expect("a descriptor")).stdout(writer);
    });
    // From here on each write to them fails.
    drop(reader);
    relay.client().send_token("one").expect("it is taken");
    wait::until_true("it is delivered", || upstream.arrived() == 1);
    relay.terminate();
}
