//! Bytes of the store go bad. Each message is delivered whole, or stays where people see it and is counted; or the
//! queue does not open, and says why. What damage in the journal and in the WAL can take is bounded, and told.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use outpost::clock::Clock;
use outpost::mail::content::Content;
use outpost::mail::envelope::Origin;
use outpost::queue::{DAMAGED, Listed, Next, Queue, QueueId};
use tempfile::TempDir;

use support::client::{Client, letter};
use support::copy::copy;
use support::ledger::{content, read};
use support::relay::Relay;
use support::service::Service;
use support::upstream::Upstream;
use support::workload::{envelope, settings};
use support::{http, programs, seed, wait};

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
    copy(&dir.path().join("closed"), &dir.path().join("open"), &[]);
    drop(queue);
    writer.join();
    Store { dir, accepted }
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
    /// It says that its log was damaged, and keeps it.
    told_of_log: bool,
}

/// Content that passes its checksum.
fn whole(content: &Content) -> Option<Vec<u8>> {
    let crc = match content {
        Content::Memory(_) => return Some(read(content)),
        Content::File { crc32c, .. } => *crc32c,
    };
    Some(read(content)).filter(|octets| crc32c::crc32c(octets) == crc)
}

/// Opens a damaged queue and delivers all that can be.
async fn look(directory: &Path, accepted: &BTreeMap<QueueId, u64>) -> Found {
    let mut found = Found::default();
    let (queue, writer) = match Queue::open(&settings(directory), Clock::System) {
        Ok(opened) => opened,
        Err(error) => return Found { refused: Some(error.to_string()), ..found },
    };
    found.told_of_log = queue.damaged_log().is_some_and(|path| path.exists());
    found.counted = queue.depth().await.map_or(0, |depth| depth.messages);
    let feeding = queue.clone();
    let feeder = tokio::spawn(async move { feeding.feed().await });
    let mut left = accepted.clone();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(claim) = tokio::time::timeout(Duration::from_millis(50), queue.claim()).await {
            let id = claim.entry().id;
            let number = left.remove(&id).expect("nothing is there that was not accepted, and nothing twice");
            if let Some(octets) = whole(claim.content()) {
                assert!(octets == content(number, octets.len()), "{id}: damaged octets are on their way");
                found.delivered += 1;
                drop(queue.settle(claim, Next::Done, Vec::new()));
            } else {
                // As delivery does with a file that fails its checksum.
                left.insert(id, number);
                let mut claim = claim;
                claim.entry_mut().held = Some(DAMAGED.to_owned());
                drop(queue.settle(claim, Next::Hold, Vec::new()));
            }
            continue;
        }
        let Ok(page) = queue.list(None, 10_000).await else { break };
        let waits = |item: &Listed| item.entry.as_ref().is_some_and(|entry| entry.held.is_none());
        found.set_aside = page.iter().filter(|item| left.contains_key(&item.id) && !waits(item)).count();
        if !page.iter().any(waits) || Instant::now() > end {
            break;
        }
    }
    found.lost = left.len() - found.set_aside;
    feeder.abort();
    let _ = feeder.await;
    drop(queue);
    writer.join();
    found
}

/// A few octets go bad anywhere in any file of a queue as a kill leaves it, again and again. Nothing is lost in
/// silence but what the last two commits held: damage there can't be told from a cut.
#[tokio::test]
#[allow(clippy::print_stderr)]
async fn wherever_octets_go_bad_no_message_is_lost_in_silence() {
    const CASES: usize = 60;
    /// Messages of one commit; each case may lose two of these untold.
    const EACH: usize = 5;
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (sound, damaged) = (dir.path().join("sound"), dir.path().join("damaged"));
    let (queue, writer) = Queue::open(&settings(&sound), Clock::System).expect("it opens");
    let mut accepted = BTreeMap::new();
    for batch in 0..20 {
        let mut commits = Vec::new();
        for number in batch * EACH..(batch + 1) * EACH {
            let mut incoming = queue.begin().expect("there is room");
            let number = number as u64;
            incoming.push(&content(number, if number.is_multiple_of(7) { 300_000 } else { 3_000 }));
            incoming.flush().await.expect("there is room");
            accepted.insert(incoming.id(), number);
            let facts = incoming.facts().expect("a short header");
            commits.push(tokio::spawn(incoming.commit(envelope(), Origin::default(), facts)));
        }
        for commit in commits {
            commit.await.expect("no panic").expect("it is taken");
        }
        if [10, 15].contains(&batch) {
            // Whoever reads has the database told of all; what comes then is in the journal alone.
            queue.list(None, 1).await.expect("it can be read");
        }
        if batch == 10 {
            // From here on in the database, the next in its log.
            let database = rusqlite::Connection::open(sound.join("queue.sqlite")).expect("the database");
            database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).expect("a checkpoint");
        }
    }
    copy(&sound, &dir.path().join("killed"), &[]);
    drop(queue);
    writer.join();

    let mut dice = seed::of("octets that go bad");
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for case in 0..CASES {
        let _ = fs::remove_dir_all(&damaged);
        copy(&dir.path().join("killed"), &damaged, &[]);
        let names = ["queue.sqlite", "queue.sqlite-wal", "queue.journal"];
        let mut files: Vec<_> = names.iter().map(|name| damaged.join(name)).collect();
        let spool = fs::read_dir(damaged.join("spool")).expect("the spool");
        let spool: Vec<_> = spool.map(|file| file.expect("a file").path()).collect();
        files.push(spool[dice.usize(..spool.len())].clone());
        let which = dice.usize(..files.len());
        let mut octets = fs::read(&files[which]).expect("the file");
        let places: Vec<usize> = (0..dice.usize(1..4)).map(|_| dice.usize(..octets.len())).collect();
        for place in &places {
            octets[*place] ^= 1 << dice.u32(0..8);
        }
        fs::write(&files[which], octets).expect("the file");
        let found = look(&damaged, &accepted).await;
        let what = if found.refused.is_some() {
            "refused with words"
        } else if found.told_of_log {
            "the log told as damaged"
        } else {
            let untold = if [1, 2].contains(&which) { 2 * EACH } else { 0 };
            assert!(found.lost <= untold, "case {case}: {:?} at {places:?}: {found:?}", files[which]);
            if found.set_aside > 0 { "messages set aside" } else { "all delivered" }
        };
        *seen.entry(what).or_default() += 1;
    }
    eprintln!("{seen:?}");
    assert!(seen.len() >= 3, "{seen:?}");
}

/// What is done to a file.
type Damage = fn(&mut Vec<u8>, &mut fastrand::Rng);

const PAGE: usize = 4096;

async fn after(store: &Store, which: &str, file: &str, damage: Damage) -> Found {
    let at = store.dir.path().join("damaged");
    let _ = fs::remove_dir_all(&at);
    copy(&store.dir.path().join(which), &at, &[]);
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

/// Where it can't be read whose a file is, the queue opens all the same, and the file stays.
#[tokio::test]
async fn a_page_that_tells_whose_a_file_is_takes_no_file_with_it() {
    const FILES: u64 = 30;
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (sound, damaged) = (dir.path().join("sound"), dir.path().join("damaged"));
    let (queue, writer) = Queue::open(&settings(&sound), Clock::System).expect("it opens");
    for number in 0..300 {
        let mut incoming = queue.begin().expect("there is room");
        incoming.push(&content(number, if number % 10 == 0 { 300_000 } else { 100 }));
        incoming.flush().await.expect("there is room");
        let facts = incoming.facts().expect("a short header");
        incoming.commit(envelope(), Origin::default(), facts).await.expect("it is taken");
    }
    drop(queue);
    writer.join();
    let database = rusqlite::Connection::open(sound.join("queue.sqlite")).expect("the database");
    let mut pages = database.prepare("SELECT pageno FROM dbstat WHERE name = 'message'").expect("its pages");
    let pages = pages.query_map([], |row| row.get::<_, i64>(0)).expect("its pages");
    let pages: Vec<usize> = pages.map(|page| page.expect("a page") as usize).collect();
    assert!(pages.len() > 3, "{pages:?}");
    for page in pages {
        let _ = fs::remove_dir_all(&damaged);
        copy(&sound, &damaged, &[]);
        let mut octets = fs::read(damaged.join("queue.sqlite")).expect("the database");
        octets[(page - 1) * PAGE..][..PAGE].fill(0);
        fs::write(damaged.join("queue.sqlite"), octets).expect("the database");
        let (queue, writer) = Queue::open(&settings(&damaged), Clock::System).expect("it opens");
        drop(queue);
        writer.join();
        let left = fs::read_dir(damaged.join("spool")).expect("the spool").count();
        assert_eq!(left as u64, FILES, "page {page}");
    }
}

/// The database's log has some transactions of this many messages each, and as many are in the journal alone.
const GROUP: u64 = 40;

async fn grouped() -> Store {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let at = dir.path().join("closed");
    let (queue, writer) = Queue::open(&settings(&at), Clock::System).expect("it opens");
    let mut accepted = BTreeMap::new();
    for group in 0..6 {
        for number in group * GROUP..(group + 1) * GROUP {
            let mut incoming = queue.begin().expect("there is room");
            incoming.push(&content(number, 1_000));
            accepted.insert(incoming.id(), number);
            let facts = incoming.facts().expect("a short header");
            incoming.commit(envelope(), Origin::default(), facts).await.expect("it is taken");
        }
        if group < 5 {
            queue.list(None, 1).await.expect("it can be read");
        }
    }
    copy(&at, &dir.path().join("open"), &[]);
    drop(queue);
    writer.join();
    Store { dir, accepted }
}

/// Damages the middle of what is in use of a file, so that it takes something. What is in which file depends on
/// the moment: once a second the journal goes into the database, and its log with it.
async fn damaged(file: &str, damage: Damage) -> Found {
    for _ in 0..40 {
        let store = grouped().await;
        let octets = fs::metadata(store.dir.path().join("open").join(file)).map_or(0, |file| file.len());
        if octets < 20_000 {
            // Just taken over.
            continue;
        }
        let whole = after(&store, "open", file, |_, _| {}).await;
        assert_eq!((whole.delivered, whole.lost, whole.told_of_log), (6 * GROUP as usize, 0, false));
        let found = after(&store, "open", file, damage).await;
        if found.told_of_log {
            return found;
        }
        assert_eq!(found.lost, 0, "{found:?}");
    }
    panic!("the damage was none");
}

#[tokio::test]
async fn damage_in_the_wal_takes_no_more_than_the_wal_held_and_is_told() {
    let found = damaged("queue.sqlite-wal", |file, _| {
        let middle = file.len() / 2;
        file[middle] ^= 1;
    })
    .await;
    assert!(found.lost > 0 && found.lost <= 5 * GROUP as usize, "{found:?}");
}

#[tokio::test]
async fn damage_in_the_journal_takes_no_more_than_the_commit_where_it_is_and_is_told() {
    // Each message was a commit of its own.
    let found = damaged("queue.journal", |file, _| file[10 * 1_600] ^= 1).await;
    assert_eq!(found.lost, 1, "{found:?}");
}

/// Each way in which only the content of a message goes bad: in its file, and in the database.
#[test]
fn a_message_whose_content_is_damaged_is_held_seen_and_returned_and_the_others_go_on() {
    const PASSWORD: &str = "upstream-sesame-4711";
    let mut upstream = Upstream::stopped(PASSWORD);
    let mut relay =
        Relay::start(&upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0));
    let send = |name: &str, size| {
        let mut client = Client::connect(relay.smtp).expect("a session");
        let to = format!("{name}@example.test");
        let said = client.send("sender@example.test", &[&to], &letter(name, size)).expect("it is taken");
        said.rsplit(' ').next().expect("an id").to_owned()
    };
    let [flipped, short, missing] = ["flipped", "short", "missing"].map(|name| send(name, 300_000));
    let inside = send("inside", 5_000);
    let sound = ["sound-small", "sound-large"];
    sound.iter().zip([5_000, 300_000]).for_each(|(name, size)| drop(send(name, size)));
    relay.terminate();

    let queue = relay.data().join("queue");
    let file = |id: &str| queue.join("spool").join(id);
    let mut octets = fs::read(file(&flipped)).expect("its file");
    octets[150_000] ^= 1;
    fs::write(file(&flipped), octets).expect("its file");
    fs::OpenOptions::new()
        .write(true)
        .open(file(&short))
        .and_then(|file| file.set_len(1_000))
        .expect("its file");
    fs::remove_file(file(&missing)).expect("its file");
    let id: QueueId = inside.parse().expect("an id");
    let database = rusqlite::Connection::open(queue.join("queue.sqlite")).expect("the database");
    let changed = database.execute("UPDATE content SET octets = zeroblob(5000) WHERE id = ?", [id.to_i64()]);
    assert_eq!(changed, Ok(1));
    drop(database);

    upstream.up();
    relay.up();
    let damaged = [&flipped, &short, &missing, &inside];
    let held = || relay.queue().into_iter().filter(|item| item["state"] == "held").collect::<Vec<_>>();
    wait::until_true("the sound ones have gone, the others are held", || {
        relay.queue().len() == 4 && held().len() == 4
    });
    assert!(sound.iter().all(|name| upstream.ledger().get(*name) == Some(&1)), "{:?}", upstream.ledger());
    assert_eq!(upstream.messages().len(), 2, "nothing damaged has got its dot");
    for item in held() {
        assert_eq!((&item["reason"], &item["sender"]), (&"damaged".into(), &"sender@example.test".into()));
        let address = item["recipients"][0]["address"].as_str().expect("a recipient").to_owned();
        let shown = relay.told(&["queue", "show", item["id"].as_str().expect("an id")]);
        assert!(shown.contains("damaged") && shown.contains(&address), "{shown}");
    }
    for id in damaged {
        let events = relay.told(&["logs", "--json", "--event=held", id]);
        let told = events.contains("\"reply\":\"damaged\"") && events.contains("sender@example.test");
        assert!(told, "{id}: {events}");
    }
    let metrics = http::get(relay.admin, "/metrics").text();
    assert!(
        metrics.contains("outpost_damaged_total 4") && metrics.contains("{state=\"held\"} 4"),
        "{metrics}"
    );
    assert_eq!(http::get(relay.admin, "/readyz").status, 200, "new mail is taken all the same");

    // Released, it is looked at again and is no better; returned, its sender learns of it; deleted, it is gone.
    relay.told(&["queue", "release", &short]);
    wait::until_true("it is held again", || held().len() == 4);
    for id in [&flipped, &inside, &missing] {
        relay.told(&["queue", "bounce", id]);
    }
    relay.told(&["queue", "delete", &short]);
    relay.wait_for_empty_queue();
    let reports = &upstream.messages()[2..];
    assert_eq!(reports.len(), 3);
    for report in reports {
        let at = relay.home.path("report.eml");
        fs::write(&at, report).expect("a file");
        let read = programs::python("read_mail.py", &[&at.display().to_string()]);
        assert_eq!(read["defects"], serde_json::json!([]));
        assert_eq!(read["parts"], serde_json::json!(["text/plain", "message/delivery-status"]), "{read:#}");
        assert_eq!(read["status"][1]["action"], "failed");
        assert!(
            read["text"].as_str().is_some_and(|text| text.contains("damaged on this relay's disk")),
            "{read:#}"
        );
    }
    relay.terminate();
}
