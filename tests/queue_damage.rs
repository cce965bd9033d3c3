//! Bytes of the store go bad. Each message is delivered whole, or stays where people see it and is counted; or the
//! queue does not open, and says why. What damage in the WAL can take is bounded: SQLite can't see it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use outpost::clock::Clock;
use outpost::mail::envelope::Origin;
use outpost::queue::{Next, Queue, QueueId};
use tempfile::TempDir;

use support::ledger::{content, read};
use support::workload::{envelope, settings};

const MESSAGES: u64 = 1_000;
const SIZE: usize = 10_000;

/// A queue of many messages: closed, and as it was while its latest were in the WAL alone.
struct Store {
    dir: TempDir,
    accepted: BTreeMap<QueueId, u64>,
}

async fn store() -> Store {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (queue, writer) =
        Queue::open(&settings(&dir.path().join("closed")), Clock::System).expect("it opens");
    let mut accepted = BTreeMap::new();
    for batch in 0..MESSAGES / 50 {
        let mut commits = Vec::new();
        for number in batch * 50..(batch + 1) * 50 {
            let mut incoming = queue.begin().expect("there is room");
            incoming.push(&content(number, SIZE));
            accepted.insert(incoming.id(), number);
            let facts = incoming.facts().expect("a short header");
            commits.push(tokio::spawn(incoming.commit(envelope(), Origin::default(), facts)));
        }
        for commit in commits {
            commit.await.expect("no panic").expect("it is taken");
        }
    }
    copy(&dir.path().join("closed"), &dir.path().join("open"));
    drop(queue);
    writer.join();
    Store { dir, accepted }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("spool")).expect("a directory");
    for file in fs::read_dir(from).expect("the queue") {
        let file = file.expect("a file");
        let name = file.file_name().to_string_lossy().into_owned();
        if file.path().is_file() && !name.ends_with("-shm") {
            fs::copy(file.path(), to.join(name)).expect("a copy");
        }
    }
}

/// What became of all that was acknowledged.
#[derive(Debug, Default)]
struct Found {
    delivered: usize,
    set_aside: usize,
    lost: usize,
    /// What the queue says that it has, before anything is done.
    counted: u64,
    refused: Option<String>,
}

/// Opens a damaged queue and delivers all that can be.
async fn look(directory: &Path, accepted: &BTreeMap<QueueId, u64>) -> Found {
    let mut found = Found::default();
    let (queue, writer) = match Queue::open(&settings(directory), Clock::System) {
        Ok(opened) => opened,
        Err(error) => return Found { refused: Some(error.to_string()), ..found },
    };
    found.counted = queue.depth().await.map_or(0, |depth| depth.messages);
    let feeding = queue.clone();
    let feeder = tokio::spawn(async move { feeding.feed().await });
    let mut left = accepted.clone();
    while let Ok(claim) = tokio::time::timeout(Duration::from_secs(3), queue.claim()).await {
        let id = claim.entry().id;
        let number = left.remove(&id).expect("nothing is there that was not accepted, and nothing twice");
        assert!(read(claim.content()) == content(number, SIZE), "{id}: damaged octets are on their way");
        found.delivered += 1;
        drop(queue.settle(claim, Next::Done, Vec::new()));
    }
    // Let the last settlements through.
    tokio::time::sleep(Duration::from_millis(200)).await;
    if let Ok(page) = queue.list(None, 10_000).await {
        found.set_aside = page.iter().filter(|item| left.contains_key(&item.id)).count();
    }
    found.lost = left.len() - found.set_aside;
    feeder.abort();
    let _ = feeder.await;
    drop(queue);
    writer.join();
    found
}

/// What is done to a file.
type Damage = fn(&mut Vec<u8>, &mut fastrand::Rng);

const PAGE: usize = 4096;

async fn after(store: &Store, which: &str, file: &str, damage: Damage) -> Found {
    let at = store.dir.path().join("damaged");
    let _ = fs::remove_dir_all(&at);
    copy(&store.dir.path().join(which), &at);
    let mut octets = fs::read(at.join(file)).expect("the file");
    // Always the same places: which of them hurt most is known from trying them all.
    damage(&mut octets, &mut fastrand::Rng::with_seed(4711));
    fs::write(at.join(file), octets).expect("the file");
    look(&at, &store.accepted).await
}

#[tokio::test]
async fn damage_in_the_store_takes_no_message_in_silence() {
    let store = store().await;
    let all = MESSAGES as usize;

    let none = after(&store, "closed", "queue.sqlite", |_, _| {}).await;
    assert_eq!((none.delivered, none.counted), (all, MESSAGES));

    let flipped: Damage = |file, dice| {
        for _ in 0..64 {
            let at = dice.usize(PAGE..file.len());
            file[at] ^= 0x55;
        }
    };
    let found = after(&store, "closed", "queue.sqlite", flipped).await;
    assert_eq!((found.lost, found.counted), (0, MESSAGES), "{found:?}");
    assert!(found.set_aside >= 30 && found.delivered >= all - 64, "only those are set aside: {found:?}");

    let zeroed: Damage = |file, dice| {
        for _ in 0..3 {
            let page = dice.usize(1..file.len() / PAGE);
            file[page * PAGE..][..PAGE].fill(0);
        }
    };
    let found = after(&store, "closed", "queue.sqlite", zeroed).await;
    assert_eq!((found.lost, found.counted), (0, MESSAGES), "{found:?}");

    let beheaded: Damage = |file, _| file[..PAGE].fill(0);
    let cut_off: Damage = |file, _| file.truncate(file.len() / 3 * 2);
    for damage in [beheaded, cut_off] {
        let found = after(&store, "closed", "queue.sqlite", damage).await;
        let said = found.refused.as_deref().expect("it does not open");
        assert!(said.contains("queue.sqlite"), "it says which file: {said}");
    }
}

#[tokio::test]
async fn damage_in_the_wal_takes_no_more_than_the_wal_held_and_lets_nothing_half_through() {
    let store = store().await;
    let wal = "queue.sqlite-wal";
    let size = fs::metadata(store.dir.path().join("open").join(wal)).expect("the WAL").len() as usize;
    // SQLite takes a damaged frame for the end, so what the WAL may hold is what can be lost.
    assert!(size < 6 * 1024 * 1024, "a WAL of {size} octets");
    let whole = after(&store, "open", wal, |_, _| {}).await;
    assert_eq!(whole.delivered, MESSAGES as usize);
    let damaged = after(&store, "open", wal, |file, _| {
        let middle = file.len() / 2;
        file[middle] ^= 1;
    })
    .await;
    assert!(damaged.delivered < MESSAGES as usize, "the damage was none");
    assert!(damaged.lost <= size / SIZE, "{} lost by a WAL of {size} octets", damaged.lost);
}
