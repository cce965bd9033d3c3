//! The queue alone: durable messages per second, accepted and settled, on the disk of the working
//! directory. Prints a line for each number of producers and each size.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use outpost::{
    clock::Clock,
    config::{HistorySettings, QueueSettings, Waits},
    mail::{
        content::Facts,
        envelope::{Envelope, Handling, Origin},
    },
    queue::{Next, Queue},
    smtp::address::{Mailbox, ReversePath},
};

const RUN: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() {
    for (producers, size) in [(1, 1_024), (20, 1_024), (20, 10_240), (100, 10_240)] {
        let rate = measure(producers, size).await;
        let mut out = std::io::stdout().lock();
        let _ = std::io::Write::write_fmt(
            &mut out,
            format_args!("{producers:>4} producers  {size:>6} octets  {rate:>8.0} messages/s\n"),
        );
    }
}

async fn measure(producers: usize, size: usize) -> f64 {
    let directory = tempfile::tempdir_in("target").expect("a directory under target");
    let wait = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3600) };
    let settings = QueueSettings {
        directory: directory.path().join("queue"),
        lifetime: Duration::from_secs(86_400),
        delay_warning: None,
        retry: wait,
        max_messages: None,
        max_bytes: None,
        min_free: 0,
        history: HistorySettings::default(),
    };
    let (queue, writer) = Queue::open(&settings, Clock::System).expect("a fresh queue");
    let settled = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let feeding = queue.clone();
    tasks.spawn(async move { feeding.feed().await });
    let content: Arc<[u8]> = vec![b'x'; size].into();
    for _ in 0..producers {
        let queue_of_consumer = queue.clone();
        let (queue, content) = (queue.clone(), Arc::clone(&content));
        tasks.spawn(async move {
            let envelope = Envelope {
                reverse_path: ReversePath::from(Mailbox::parse("app@sender.example").expect("an address")),
                recipients: vec![Mailbox::parse("user@rcpt.example").expect("an address").into()],
                handling: Handling::default(),
            };
            loop {
                let mut incoming = queue.begin().expect("room");
                incoming.push(&content);
                let receipt = incoming.commit(envelope.clone(), Origin::default(), Facts::default()).await;
                receipt.expect("a receipt");
            }
        });
        let (queue, settled) = (queue_of_consumer.clone(), Arc::clone(&settled));
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
    tasks.shutdown().await;
    drop(queue);
    writer.join();
    rate
}
