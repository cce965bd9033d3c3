//! The queue alone, on the disk that the build lies on, without SMTP and without an upstream. What each
//! part measures, and what is wanted of it, it prints itself:
//!
//! ```sh
//! cargo bench --bench queue                      # durable messages a second, accepted and settled
//! cargo bench --bench queue -- slow-sync         # the same, each sync 3 ms longer
//! cargo bench --bench queue -- million           # a million queued: open, memory, status, filters
//! cargo bench --bench queue -- deferred          # 50,000 deferred: disk; and given back after a drain
//! cargo bench --bench queue -- later DIR         # measures nothing: a million, due in 50 minutes, in DIR/queue
//! ```
//!
//! `--profile dist` measures what is packaged. The first two take turns with bare SQLite ([`bare`]), for as
//! many rounds as `OUTPOST_BENCH_ROUNDS` says; `OUTPOST_BENCH_MESSAGES` makes the last three shorter.

mod bare;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use outpost::{
    clock::{Clock, Timestamp},
    config::{HistorySettings, QueueSettings, Waits},
    mail::{
        content::Facts,
        envelope::{Envelope, Handling, Origin},
        outcome::Evidence,
    },
    queue::{Next, Queue, Search, Standing, WriterThread},
    smtp::address::{Mailbox, ReversePath},
};

/// How long throughput is measured.
const RUN: Duration = Duration::from_secs(3);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match words.first().map_or("throughput", String::as_str) {
        "throughput" => runtime.block_on(throughput(&[(1, 1_024), (20, 1_024), (20, 10_240), (100, 10_240)])),
        "slow-sync" => with_slow_syncs("throughput-slow"),
        "throughput-slow" => runtime.block_on(throughput(&[(1, 10_240), (20, 10_240), (100, 10_240)])),
        "million" => {
            let directory = scratch();
            runtime.block_on(fill(directory.path(), messages(1_000_000), None));
            // In a process of its own, so that its memory is that of an open queue.
            let me = std::env::current_exe().expect("this program");
            let at = directory.path().to_str().expect("a name in ASCII");
            let status = Command::new(me).args(["million-open", at]).status();
            assert!(status.is_ok_and(|status| status.success()));
        }
        "million-open" => runtime.block_on(look(&PathBuf::from(&words[1]))),
        "deferred" => runtime.block_on(deferred(messages(50_000))),
        "later" => {
            // No later than a retry may be: what is, is looked at when a relay starts.
            let later = Clock::System.now().after(Duration::from_secs(3_000));
            runtime.block_on(fill(&PathBuf::from(&words[1]), messages(1_000_000), Some(later)));
        }
        other => panic!("there is no part {other}: throughput, slow-sync, million, deferred or later"),
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn messages(otherwise: u64) -> u64 {
    let told = std::env::var("OUTPOST_BENCH_MESSAGES").ok().and_then(|text| text.parse().ok());
    told.unwrap_or(otherwise)
}

/// A directory on the disk that the build lies on.
fn scratch() -> tempfile::TempDir {
    let near = std::env::current_exe().expect("this program");
    tempfile::tempdir_in(near.parent().expect("a directory")).expect("a directory of our own")
}

/// This program again, with longer syncs.
fn with_slow_syncs(part: &str) {
    let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/slow-sync"))
        .arg(std::env::current_exe().expect("this program"))
        .arg(part)
        .stdin(Stdio::null())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "benches/slow-sync needs a C compiler");
}

fn open(directory: &Path) -> (Queue, WriterThread) {
    let wait = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) };
    let settings = QueueSettings {
        directory: directory.join("queue"),
        lifetime: Duration::from_secs(5 * 86_400),
        delay_warning: None,
        retry: wait,
        max_messages: None,
        max_bytes: None,
        min_free: 0,
        history: HistorySettings::default(),
    };
    Queue::open(&settings, Clock::System).expect("the queue opens")
}

fn envelope(sender: u64, recipient: u64) -> Envelope {
    let mailbox = |text: String| Mailbox::parse(&text).expect("an address");
    Envelope {
        reverse_path: ReversePath::from(mailbox(format!("app-{sender}@sender-{}.example", sender % 10))),
        recipients: vec![mailbox(format!("user-{recipient}@rcpt-{}.example", recipient % 1_000)).into()],
        handling: Handling::default(),
    }
}

fn origin() -> Origin {
    Origin { client: "127.0.0.1".into(), hello: "app.internal".into(), ..Origin::default() }
}

async fn accept(queue: &Queue, content: &[u8], envelope: Envelope) {
    let mut incoming = queue.begin().expect("room");
    incoming.push(content);
    incoming.commit(envelope, origin(), Facts::default()).await.expect("a receipt");
}

async fn throughput(rows: &[(usize, usize)]) {
    let rounds = std::env::var("OUTPOST_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    say(
        "durable, accepted and settled (wanted, 10 KiB: 15,000/s by 20, 24,000/s by 100; with 3 ms a sync 2,500 and 10,000)",
    );
    for (producers, size) in rows {
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let directory = scratch();
            let floor = bare::measure(directory.path(), *producers, *size, RUN).await;
            let (rate, p50, p99) = measure(*producers, *size).await;
            ratios.push(floor / rate);
            say(&format!(
                "{producers:>4} producers  {size:>6} octets  {rate:>8.0} messages/s  accepted in p50 {p50:.1} ms, p99 {p99:.1} ms; bare SQLite {floor:>8.0}/s, {:.2} times that",
                floor / rate
            ));
        }
        ratios.sort_by(f64::total_cmp);
        say(&format!("{:>42} median of the ratios: {:.2} (wanted: 1.2)", "", ratios[ratios.len() / 2]));
    }
}

async fn measure(producers: usize, size: usize) -> (f64, f64, f64) {
    let directory = scratch();
    let (queue, writer) = open(directory.path());
    let settled = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let feeding = queue.clone();
    tasks.spawn(async move {
        feeding.feed().await;
        Vec::new()
    });
    let content: Arc<[u8]> = vec![b'x'; size].into();
    let stop = Arc::new(AtomicU64::new(0));
    for producer in 0..producers {
        let consuming = queue.clone();
        let (queue, content, stop) = (queue.clone(), Arc::clone(&content), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut waits = Vec::new();
            while stop.load(Ordering::Relaxed) == 0 {
                let begun = Instant::now();
                accept(&queue, &content, envelope(producer as u64 % 5, producer as u64)).await;
                waits.push(begun.elapsed());
            }
            waits
        });
        let (queue, settled) = (consuming, Arc::clone(&settled));
        tasks.spawn(async move {
            loop {
                let claim = queue.claim().await;
                if queue.settle(claim, Next::Done, Vec::new()).durable().await.is_ok() {
                    settled.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    tokio::time::sleep(RUN / 6).await;
    let (before, start) = (settled.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(RUN).await;
    let rate = (settled.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    stop.store(1, Ordering::Relaxed);
    let mut waits = Vec::new();
    for _ in 0..producers {
        if let Some(Ok(some)) = tasks.join_next().await {
            waits.extend(some);
        }
    }
    waits.sort_unstable();
    let share = |of: usize| waits.get(waits.len() * of / 100).map_or(0.0, |wait| wait.as_secs_f64() * 1e3);
    let result = (rate, share(50), share(99));
    tasks.shutdown().await;
    drop(queue);
    writer.join();
    result
}

/// Messages of 1 KiB of a hundred senders to as many recipients as messages.
async fn fill(directory: &Path, count: u64, hold_until: Option<Timestamp>) {
    let (queue, writer) = open(directory);
    let (next, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (queue, next) = (queue.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            let content = vec![b'x'; 1_024];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    break;
                }
                let mut envelope = envelope(number % 100, number);
                envelope.handling.hold_until = hold_until;
                accept(&queue, &content, envelope).await;
            }
        });
    }
    tasks.join_all().await;
    drop(queue);
    writer.join();
    let rate = count as f64 / began.elapsed().as_secs_f64();
    say(&format!("{count} messages of 1 KiB accepted at {rate:.0}/s"));
}

/// A long queue, opened by a process that has just begun.
async fn look(directory: &Path) {
    let began = Instant::now();
    let (queue, writer) = open(directory);
    say(&format!("open: {:.1} ms (wanted: 50)", began.elapsed().as_secs_f64() * 1e3));
    let feeding = queue.clone();
    let feeder = tokio::spawn(async move { feeding.feed().await });
    while queue.waiting() < 250 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    say(&format!("{} at hand after {:.1} ms", queue.waiting(), began.elapsed().as_secs_f64() * 1e3));
    say(&format!("memory: {} MB (wanted: 40)", resident() / 1_000_000));
    for round in ["cold", "warm"] {
        let began = Instant::now();
        let depth = queue.depth().await.expect("it can be read");
        say(&format!(
            "{round} status of {} messages: {:.1} ms (wanted: 100)",
            depth.messages,
            began.elapsed().as_secs_f64() * 1e3
        ));
    }
    let now = Clock::System.now();
    let text = |text: &str| Some(text.to_owned());
    let all = Search::default();
    let searches = [
        ("none", all.clone()),
        ("sender, many", Search { sender: text("app-7@sender-7.example"), ..all.clone() }),
        ("sender, none", Search { sender: text("nobody@sender-7.example"), ..all.clone() }),
        ("sender's domain, none", Search { sender: text("@nowhere.example"), ..all.clone() }),
        ("recipient, the last", Search { recipient: text("user-999999@rcpt-999.example"), ..all.clone() }),
        ("recipient, none", Search { recipient: text("nobody@rcpt-1.example"), ..all.clone() }),
        ("recipient's domain", Search { recipient: text("@rcpt-999.example"), ..all.clone() }),
        (
            "sender and recipient, never together",
            Search { sender: text("@sender-1.example"), recipient: text("@rcpt-2.example"), ..all.clone() },
        ),
        ("held, none", Search { standing: Standing::Held, ..all.clone() }),
        ("deferred, none", Search { standing: Standing::Later(now), ..all.clone() }),
        ("due", Search { standing: Standing::Due(now), ..all.clone() }),
        ("older than a day, none", Search { before: Some(now.before(Duration::from_secs(86_400))), ..all }),
    ];
    for (name, search) in searches {
        let began = Instant::now();
        let found = queue.search(search, None, 101).await.expect("it can be read").len();
        let took = began.elapsed().as_secs_f64() * 1e3;
        say(&format!("first page, {name}: {found} in {took:.1} ms (wanted: 100)"));
    }
    say(&format!("memory: {} MB (wanted: 40)", resident() / 1_000_000));
    feeder.abort();
    let _ = feeder.await;
    drop(queue);
    writer.join();
}

async fn deferred(count: u64) {
    let directory = scratch();
    fill(directory.path(), count, None).await;
    let (queue, writer) = open(directory.path());
    let feeding = queue.clone();
    let feeder = tokio::spawn(async move { feeding.feed().await });
    // As an upstream that can't be reached leaves it.
    let evidence: Evidence = serde_json::from_value(serde_json::json!({
        "at": Clock::System.now(), "upstream": "smtp.upstream.example", "phase": "connect", "scope": "network",
        "explanation": "connection refused by 127.0.0.1:587",
        "advice": { "who": "nobody", "help": "it is tried again by itself" },
    }))
    .expect("evidence");
    let due = Clock::System.now().after(Duration::from_secs(3_000));
    let mut settling = tokio::task::JoinSet::new();
    for _ in 0..count {
        let mut claim = queue.claim().await;
        let recipient = &mut claim.entry_mut().recipients[0];
        recipient.attempts += 1;
        recipient.last = Some(evidence.clone());
        recipient.due = Some(due);
        let settled = queue.settle(claim, Next::Retry(due), Vec::new());
        settling.spawn(async move { settled.durable().await.expect("it is recorded") });
        while settling.len() > 500 {
            settling.join_next().await;
        }
    }
    while settling.join_next().await.is_some() {}
    tokio::time::sleep(Duration::from_secs(3)).await;
    let each = used(directory.path()) as f64 / count as f64;
    // Postfix: 8,264 octets and two inodes, measured for 1 KiB with its queue and defer files.
    say(&format!(
        "{count} deferred of 1 KiB: {each:.0} octets of disk each (wanted: 2,755, a third of Postfix's)"
    ));

    let ids: Vec<_> =
        queue.list(None, count as usize).await.expect("a list").iter().map(|one| one.id).collect();
    for some in ids.chunks(500) {
        let acting = some.iter().map(|id| {
            let (queue, id) = (queue.clone(), *id);
            async move { queue.act(id, outpost::queue::Action::Retry, "").await.expect("it is due") }
        });
        acting.collect::<tokio::task::JoinSet<_>>().join_all().await;
    }
    let began = Instant::now();
    for _ in 0..count {
        let claim = queue.claim().await;
        let settled = queue.settle(claim, Next::Done, Vec::new());
        settling.spawn(async move { settled.durable().await.expect("it is recorded") });
        while settling.len() > 500 {
            settling.join_next().await;
        }
    }
    while settling.join_next().await.is_some() {}
    let drained = Instant::now();
    let rate = count as f64 / began.elapsed().as_secs_f64();
    say(&format!("drained at {rate:.0}/s; {} MB of disk", used(directory.path()) / 1_000_000));
    while used(directory.path()) > 24_000_000 && drained.elapsed() < Duration::from_secs(90) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left = used(directory.path()) / 1_000_000;
    say(&format!("{left} MB, reserve and all, {:.1} s later (wanted: 60)", drained.elapsed().as_secs_f64()));
    feeder.abort();
    let _ = feeder.await;
    drop(queue);
    writer.join();
}

/// Octets that the files of a directory take on the disk.
fn used(directory: &Path) -> u64 {
    let told = Command::new("du").args(["-s", "-B1"]).arg(directory).output().expect("du");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    text.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Octets of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
}
