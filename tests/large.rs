//! Large mail streams from socket to disk to socket: many such messages at once need no more memory than small ones.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use support::relay::Relay;
use support::service::Service;
use support::wait;

const SESSIONS: usize = 50;
/// Octets of each message: just within the usual `smtp_max_message_size`.
const SIZE: usize = 24_900_000;
const MEMORY_MAX_KB: u64 = 64 * 1024;
const LONG: Duration = Duration::from_secs(240);

/// Subject and checksum of the body of each message that came whole.
type Arrived = Arc<Mutex<Vec<(String, u32)>>>;

/// An upstream that keeps nothing of what it takes but a checksum.
fn sink() -> (u16, Arrived) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let arrived = Arrived::default();
    let list = Arc::clone(&arrived);
    spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let arrived = Arc::clone(&list);
            // A peer that leaves is none of its business.
            spawn(move || take(&stream, &arrived));
        }
    });
    (port, arrived)
}

fn take(stream: &TcpStream, arrived: &Arrived) -> std::io::Result<()> {
    let mut lines = BufReader::with_capacity(256 * 1024, stream);
    let say = |words: &str| (&mut &*stream).write_all(format!("{words}\r\n").as_bytes());
    say("220 sink.test")?;
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        match line[..line.len().min(4)].to_ascii_uppercase().as_slice() {
            b"DATA" => {
                say("354 go ahead")?;
                let (mut subject, mut sum, mut in_body) = (String::new(), 0, false);
                loop {
                    line.clear();
                    if lines.read_until(b'\n', &mut line)? == 0 {
                        return Ok(());
                    }
                    match &line[..] {
                        b".\r\n" => break,
                        octets if in_body => sum = crc32c::crc32c_append(sum, octets),
                        b"\r\n" => in_body = true,
                        octets if octets.starts_with(b"Subject: ") => {
                            subject = String::from_utf8_lossy(&octets[9..]).trim_end().to_owned();
                        }
                        _ => {}
                    }
                }
                arrived.lock().expect("no panic").push((subject, sum));
                say("250 2.0.0 taken")?;
            }
            b"QUIT" => return say("221 2.0.0 bye"),
            _ => say("250 2.0.0 yes")?,
        }
        line.clear();
    }
    Ok(())
}

fn memory(pid: u32, figure: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(figure)).expect("a line of status");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
}

/// Sends one message; all of them begin their content together.
fn send(port: u16, subject: &str, body: &[u8], together: &Barrier) -> u32 {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a session");
    stream.set_read_timeout(Some(LONG)).expect("a socket");
    let mut lines = BufReader::new(&stream);
    let mut expect = |code: &str| loop {
        let mut line = String::new();
        lines.read_line(&mut line).expect("a reply");
        if line.as_bytes().get(3) != Some(&b'-') {
            assert!(line.starts_with(code), "{subject}: {line}");
            break;
        }
    };
    let write = |octets: &[u8]| (&mut &stream).write_all(octets).expect("it listens");
    expect("220");
    for (command, code) in [
        ("EHLO a\r\n", "250"),
        ("MAIL FROM:<sender@example.test>\r\n", "250"),
        ("RCPT TO:<someone@example.test>\r\n", "250"),
        ("DATA\r\n", "354"),
    ] {
        write(command.as_bytes());
        expect(code);
    }
    together.wait();
    write(format!("Subject: {subject}\r\n\r\n").as_bytes());
    // In pieces, so that all of them are under way for as long as it takes.
    body.chunks(500_000).for_each(write);
    let end = format!("The end of {subject}.\r\n");
    write(format!("{end}.\r\n").as_bytes());
    expect("250");
    crc32c::crc32c_append(crc32c::crc32c(body), end.as_bytes())
}

#[test]
#[allow(clippy::print_stderr)]
fn fifty_sessions_with_the_largest_mail_at_once_need_less_than_64_mebibytes() {
    let (port, arrived) = sink();
    let service = Service::mailer()
        .set("smtp_relay_server", "127.0.0.1")
        .set("smtp_relay_port", port)
        .set("smtp_relay_tls", "none")
        .set("smtp_queue_min_free", 0);
    let mut relay = Relay::start(&service);
    let line = format!("{}\r\n", "=".repeat(76));
    let body: Arc<[u8]> = line.repeat(SIZE / line.len()).into_bytes().into();
    let together = Arc::new(Barrier::new(SESSIONS));
    let began = Instant::now();
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| {
            let (body, together, port) = (Arc::clone(&body), Arc::clone(&together), relay.smtp);
            spawn(move || {
                let subject = format!("large-{number}");
                let sum = send(port, &subject, &body, &together);
                (subject, sum)
            })
        })
        .collect();
    let mut expected: Vec<_> = sessions.into_iter().map(|session| session.join().expect("taken")).collect();
    let taken = began.elapsed();
    wait::until_within(LONG, "all have arrived", || {
        sleep(Duration::from_millis(50));
        (arrived.lock().expect("no panic").len() >= SESSIONS).then_some(())
    });
    relay.wait_for_empty_queue();
    let peak = memory(relay.pid(), "VmHWM");
    eprintln!("taken in {taken:?}, passed on in {:?}; at most {peak} kB", began.elapsed());
    let mut arrived = arrived.lock().expect("no panic").clone();
    arrived.sort();
    expected.sort();
    assert_eq!(arrived, expected, "each arrives once and whole");
    assert!(peak < MEMORY_MAX_KB, "{peak} kB");
    relay.terminate();
}
