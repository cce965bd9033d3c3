//! Everything at once that a hostile neighbour can do without a login, against the running program,
//! while an app sends its mail: nobody's mail waits, and memory stays where it was.

#[path = "support/mod.rs"]
mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
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

/// Repeats an attack until the app has sent what it wants to send.
fn repeat(
    over: &Arc<AtomicBool>,
    attack: impl Fn(u8) -> std::io::Result<()> + Send + 'static,
) -> thread::JoinHandle<usize> {
    let over = Arc::clone(over);
    thread::spawn(move || {
        let mut rounds = 0_usize;
        while !over.load(Ordering::Relaxed) {
            // What becomes of an attacker's connection is none of our business here.
            let _ = attack((rounds % 200) as u8 + 1);
            rounds += 1;
            thread::sleep(Duration::from_millis(20));
        }
        rounds
    })
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
    let relay =
        Relay::start(&upstream.upstream_of(Service::mailer(), "pw").set("smtp_max_message_size", "5MB"));
    let (port, pid) = (relay.smtp, relay.pid());
    let over = Arc::new(AtomicBool::new(false));

    // Slow clients, half of them in a command, half in content, from 100 addresses.
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let mut stream = connect_from(Ipv4Addr::new(127, 0, 1, (n % 100) as u8 + 1), port).expect("a place");
        stream.write_all(if n % 2 == 0 { b"EHL" } else { OPEN }).expect("it is heard");
        slow.push(stream);
    }
    let drip = {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for stream in &mut slow {
                    let _ = stream.write_all(b"x");
                }
                thread::sleep(Duration::from_secs(1));
            }
        })
    };
    let attacks = [
        // Connections and no word, from one address, more than it may have.
        repeat(&over, move |_| {
            let flood: Vec<_> = (0..250).map(|_| connect_from(Ipv4Addr::new(127, 0, 2, 1), port)).collect();
            drop(flood);
            Ok(())
        }),
        // A line of 10 MB in a command, and one in content.
        repeat(&over, move |n| {
            let mut stream = connect_from(Ipv4Addr::new(127, 0, 3, n), port)?;
            let line = vec![b'x'; 10_000_000];
            if n % 2 == 0 {
                stream.write_all(OPEN)?;
            }
            stream.write_all(&line)
        }),
        // 100,000 header fields.
        repeat(&over, move |n| {
            let mut stream = connect_from(Ipv4Addr::new(127, 0, 4, n), port)?;
            stream.write_all(OPEN)?;
            stream.write_all(&b"X-Attack: y\r\n".repeat(100_000))?;
            stream.write_all(b".\r\nQUIT\r\n")?;
            said(&mut stream);
            Ok(())
        }),
        // Recipients without end.
        repeat(&over, move |n| {
            let mut stream = connect_from(Ipv4Addr::new(127, 0, 5, n), port)?;
            let mut reader = stream.try_clone()?;
            let drain = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
            stream.write_all(b"EHLO a\r\nMAIL FROM:<a@b.example>\r\n")?;
            for n in 0..5_000 {
                stream.write_all(format!("RCPT TO:<u{n}@d.example>\r\n").as_bytes())?;
            }
            let _ = drain.join();
            Ok(())
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
        thread::sleep(Duration::from_millis(20));
    }
    over.store(true, Ordering::Relaxed);
    drip.join().expect("no panic");
    for attack in attacks {
        assert!(attack.join().expect("no panic") > 0);
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
