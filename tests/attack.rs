//! Everything at once that a hostile neighbour can do without a login, against the running program,
//! while an app sends its mail: nobody's mail waits, and memory stays where it was.

#[path = "support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{
    client::{Client, connect_from},
    ports,
    relay::Relay,
    service::Service,
    upstream::Upstream,
    wait,
};

const SLOW: usize = 500;
/// Clients that stall in the midst of their content, and how much of it they had sent: more in all than may be
/// held in memory.
const STALLED: usize = 300;
const STALLED_AT: usize = 200 * 1024;
/// How long the app sends under attack.
const UNDER_ATTACK: Duration = Duration::from_secs(12);
/// The promises.
const P99_MAX: Duration = Duration::from_secs(1);
const RSS_MAX_KB: u64 = 150_000;

/// A figure of `/proc/PID/status`, in kB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of status");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
}

/// User and system time of a process so far.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks = |n: usize| fields.split(' ').nth(n).and_then(|t| t.parse::<u64>().ok()).expect("a number");
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// How often each code was heard.
type Heard = BTreeMap<String, usize>;

/// Repeats an attack until the app has sent what it wants to send; what came of it.
fn repeat(
    over: &Arc<AtomicBool>,
    attack: impl Fn(u8) -> String + Send + 'static,
) -> thread::JoinHandle<Heard> {
    let over = Arc::clone(over);
    thread::spawn(move || {
        let (mut rounds, mut heard) = (0_usize, Heard::new());
        while !over.load(Ordering::Relaxed) {
            for line in attack((rounds % 200) as u8 + 1).lines() {
                *heard.entry(line.get(..3).unwrap_or_default().to_owned()).or_default() += 1;
            }
            rounds += 1;
            thread::sleep(Duration::from_millis(20));
        }
        heard
    })
}

/// Says all of it from an address of its own, whether the relay wants it or not; what it heard meanwhile.
fn play(source: Ipv4Addr, port: u16, words: &[&[u8]]) -> String {
    let Ok(mut stream) = connect_from(source, port) else { return String::new() };
    let mut reader = stream.try_clone().expect("another handle");
    let hear = thread::spawn(move || rest(&mut reader));
    let _ = words.iter().try_for_each(|words| stream.write_all(words));
    let _ = stream.shutdown(Shutdown::Write);
    hear.join().expect("no panic")
}

/// All that is said until the end, whatever the end is like.
fn rest(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    String::from_utf8_lossy(&heard).into_owned()
}

fn said(stream: &mut TcpStream) -> String {
    let mut heard = [0; 4096];
    let read = stream.read(&mut heard).unwrap_or(0);
    String::from_utf8_lossy(&heard[..read]).into_owned()
}

const OPEN: &[u8] = b"EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n";

#[test]
fn under_all_attacks_at_once_mail_goes_in_within_a_second_and_memory_stays_bounded() {
    let upstream = Upstream::start("pw");
    let relay = Relay::start(
        &upstream
            .upstream_of(Service::mailer(), "pw")
            .set("smtp_max_message_size", "5MB")
            .set("smtp_max_buffered", "32MB")
            .set("smtp_max_connections_per_client", "100")
            .set("smtp_timeout", "8s")
            .set("smtp_transaction_timeout", "10s"),
    );
    let (port, pid) = (relay.smtp, relay.pid());
    let over = Arc::new(AtomicBool::new(false));

    // Slow clients, half of them in a command, half in content, from 100 addresses.
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let mut stream = connect_from(Ipv4Addr::new(127, 0, 1, (n % 100) as u8 + 1), port).expect("a place");
        stream.write_all(if n % 2 == 0 { b"EHL" } else { OPEN }).expect("it is heard");
        slow.push(stream);
    }
    let stalled: Vec<TcpStream> = (0..STALLED)
        .map(|n| {
            let mut stream =
                connect_from(Ipv4Addr::new(127, 0, 6, (n % 100) as u8 + 1), port).expect("a place");
            stream.write_all(OPEN).expect("it is heard");
            let line = [&[b'x'; 1022][..], b"\r\n"].concat();
            stream
                .write_all(&[b"Subject: x\r\n\r\n", &line.repeat(STALLED_AT / 1024)[..]].concat())
                .expect("it is read");
            stream
        })
        .collect();
    let drip = {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for stream in &mut slow {
                    let _ = stream.write_all(b"x");
                }
                thread::sleep(Duration::from_secs(1));
            }
            slow
        })
    };
    let attacks = [
        // Connections and no word, from one address, more than it may have.
        repeat(&over, move |_| {
            let flood = (0..250).map(|_| connect_from(Ipv4Addr::new(127, 0, 2, 1), port));
            let mut flood: Vec<_> = flood.filter_map(Result::ok).collect();
            flood.iter_mut().map(said).collect()
        }),
        // A line of 10 MB in a command.
        repeat(&over, move |n| play(Ipv4Addr::new(127, 0, 3, n), port, &[&vec![b'x'; 10_000_000]])),
        // One in content.
        repeat(&over, move |n| {
            let line = vec![b'x'; 10_000_000];
            play(Ipv4Addr::new(127, 0, 7, n), port, &[OPEN, &line, b"\r\n.\r\n"])
        }),
        // 100,000 header fields.
        repeat(&over, move |n| {
            let fields = b"X-Attack: y\r\n".repeat(100_000);
            play(Ipv4Addr::new(127, 0, 4, n), port, &[OPEN, &fields, b".\r\n"])
        }),
        // Recipients without end.
        repeat(&over, move |n| {
            let recipients: String = (0..5_000).map(|n| format!("RCPT TO:<u{n}@d.example>\r\n")).collect();
            let open = b"EHLO a\r\nMAIL FROM:<a@b.example>\r\n";
            play(Ipv4Addr::new(127, 0, 5, n), port, &[open, recipients.as_bytes()])
        }),
    ];

    let mut app = relay.client();
    let mut waits = Vec::new();
    let (mut peak, begin) = (0, Instant::now());
    while begin.elapsed() < UNDER_ATTACK {
        let sent = Instant::now();
        // Now and then over a new connection, for those are what a flood takes.
        if waits.len() % 10 == 9 {
            app = relay.client();
        }
        app.send_token(&format!("app-{}", waits.len())).expect("the app's mail is taken");
        waits.push(sent.elapsed());
        peak = peak.max(memory(pid, "VmRSS"));
        thread::sleep(Duration::from_millis(10));
    }
    over.store(true, Ordering::Relaxed);
    let slow = drip.join().expect("no panic");
    let heard = attacks.map(|attack| attack.join().expect("no panic"));
    for (heard, code) in heard.iter().zip(["421", "500", "552", "552", "452"]) {
        assert!(heard.get(code).is_some_and(|times| *times > 0), "{code} is not among {heard:?}");
    }
    for mut stream in slow.into_iter().chain(stalled) {
        let heard = rest(&mut stream);
        assert!(heard.contains("421 4.4.2 "), "it was never told to go: {heard}");
    }
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    assert!(waits.len() > 50, "only {} messages in {UNDER_ATTACK:?}", waits.len());
    assert!(p99 < P99_MAX, "p99 is {p99:?} of {} messages", waits.len());
    assert!(peak < RSS_MAX_KB, "{peak} kB resident");
}

#[test]
fn without_descriptors_nothing_spins_and_all_goes_on_when_there_are_some_again() {
    let relay = Relay::start(
        &Service::mailer().set("smtp_relay_server", "127.0.0.1").set("smtp_relay_port", ports::free()),
    );
    let (pid, taken) = (relay.pid(), Arc::new(AtomicUsize::new(0)));
    let limit = |soft: &str| {
        support::programs::run(
            std::process::Command::new("prlimit")
                .args([&format!("--pid={pid}"), &format!("--nofile={soft}:")]),
        );
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
    let before = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let before = before.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let before = before.split_whitespace().nth(3).expect("a number").to_owned();
    limit(&(open + 5).to_string());

    let mut held: Vec<TcpStream> =
        (0..60).filter_map(|_| connect_from(Ipv4Addr::LOCALHOST, relay.smtp).ok()).collect();
    wait::until_true("it says so", || relay.log().contains("can't accept connections"));
    let spent = processor_time(pid);
    thread::sleep(Duration::from_secs(2));
    let spent = processor_time(pid) - spent;
    assert!(spent < Duration::from_millis(500), "{spent:?} of two seconds for nothing");
    assert_eq!(relay.log().matches("can't accept connections").count(), 1, "said once");

    limit(&before);
    for stream in &mut held {
        taken.fetch_add(usize::from(said(stream).starts_with("220 ")), Ordering::Relaxed);
    }
    assert_eq!(taken.load(Ordering::Relaxed), held.len(), "whoever waited is served");
    drop(held);
    let mut app = Client::connect(relay.smtp).expect("a session");
    app.send_token("afterwards").expect("mail is taken again");
}
