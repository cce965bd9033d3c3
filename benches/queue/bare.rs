//! The floor: SQLite with next to nothing of ours around it. An envelope, when it is due, and content go
//! in, whoever is due is read back in the order of the index, and goes; what waits shares one sync.
//! Nothing is parsed, checked or remembered, no sender waits his turn, and nobody waits for a removal.
//!
//! It is what the queue is measured against, in turns with it: a disk is not the same on two days.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};

const SCHEMA: &str = "
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 4096;
    PRAGMA cache_size = -16384;
    CREATE TABLE message(id INTEGER PRIMARY KEY, envelope BLOB NOT NULL);
    CREATE TABLE recipient(message INTEGER PRIMARY KEY, due INTEGER NOT NULL, state INTEGER NOT NULL);
    CREATE INDEX recipient_due ON recipient(due, message) WHERE state = 0;
    CREATE TABLE content(id INTEGER PRIMARY KEY, octets BLOB NOT NULL);
";
/// Operations of one transaction.
const BATCH_MAX: usize = 2_000;
/// Due messages read in one go.
const LOOK: i64 = 200;
/// Connections that read.
const READERS: usize = 2;

enum Change {
    Insert { id: i64, envelope: Vec<u8>, octets: Arc<[u8]>, done: tokio::sync::oneshot::Sender<()> },
    Remove(i64),
}

/// Messages accepted and removed a second, by so many producers for so long.
pub(crate) async fn measure(directory: &Path, producers: usize, size: usize, run: Duration) -> f64 {
    let path = directory.join("bare.sqlite");
    let connection = Connection::open(&path).expect("a database");
    connection.execute_batch(SCHEMA).expect("its tables");
    let (changes, received) = channel();
    let (removed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let counter = Arc::clone(&removed);
    let writer = std::thread::spawn(move || write(&connection, &received, &counter));
    let (due, claimed) = channel();
    let (dispatching, at) = (Arc::clone(&stop), path.clone());
    let dispatcher = std::thread::spawn(move || dispatch(&at, &due, &dispatching));
    let claimed = Arc::new(std::sync::Mutex::new(claimed));
    let consumers: Vec<_> = (0..READERS)
        .map(|_| {
            let (path, claimed, changes) = (path.clone(), Arc::clone(&claimed), changes.clone());
            std::thread::spawn(move || consume(&path, &claimed, &changes))
        })
        .collect();
    let content: Arc<[u8]> = vec![b'x'; size].into();
    let next = Arc::new(AtomicI64::new(1));
    let mut tasks = tokio::task::JoinSet::new();
    for producer in 0..producers {
        let (changes, content): (Sender<Change>, _) = (changes.clone(), Arc::clone(&content));
        let (next, stop) = (Arc::clone(&next), Arc::clone(&stop));
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let (done, answer) = tokio::sync::oneshot::channel();
                let (envelope, octets) = (envelope(id, producer), Arc::clone(&content));
                let _ = changes.send(Change::Insert { id, envelope, octets, done });
                let _ = answer.await;
            }
        });
    }
    drop(changes);
    tokio::time::sleep(run / 6).await;
    let (before, start) = (removed.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(run).await;
    let rate = (removed.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    let _ = dispatcher.join();
    consumers.into_iter().for_each(|consumer| drop(consumer.join()));
    let _ = writer.join();
    rate
}

/// Some 330 octets of JSON.
fn envelope(id: i64, producer: usize) -> Vec<u8> {
    let recipient = serde_json::json!({"address": format!("user-{producer}@rcpt.example"), "attempts": 0});
    let origin =
        serde_json::json!({"client": "127.0.0.1", "hello": "app.internal", "user": "app", "tls": "TLSv1.3"});
    let envelope = serde_json::json!({
        "id": id, "sender": format!("app-{producer}@sender.example"), "recipients": [recipient],
        "origin": origin, "subject": "x".repeat(60), "message_id": format!("<{id}@app.internal>")
    });
    envelope.to_string().into_bytes()
}

fn write(connection: &Connection, changes: &Receiver<Change>, removed: &AtomicU64) {
    while let Ok(first) = changes.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(change) = changes.try_recv()
        {
            batch.push(change);
        }
        let gone = batch.iter().filter(|change| matches!(change, Change::Remove(_))).count();
        make_durable(connection, &batch).expect("the disk takes it");
        removed.fetch_add(gone as u64, Ordering::Relaxed);
        for change in batch {
            if let Change::Insert { done, .. } = change {
                let _ = done.send(());
            }
        }
    }
}

fn make_durable(connection: &Connection, batch: &[Change]) -> rusqlite::Result<()> {
    let execute =
        |sql: &str, values: &[&dyn rusqlite::ToSql]| connection.prepare_cached(sql)?.execute(values);
    execute("BEGIN IMMEDIATE", &[])?;
    for change in batch {
        match change {
            Change::Insert { id, envelope, octets, .. } => {
                execute("INSERT INTO message VALUES(?, ?)", params![id, envelope])?;
                execute("INSERT INTO recipient VALUES(?, ?, 0)", params![id, id])?;
                execute("INSERT INTO content VALUES(?, ?)", params![id, &octets[..]])?;
            }
            Change::Remove(id) => {
                execute("DELETE FROM message WHERE id = ?", params![id])?;
                execute("DELETE FROM recipient WHERE message = ?", params![id])?;
                execute("DELETE FROM content WHERE id = ?", params![id])?;
            }
        }
    }
    execute("COMMIT", &[])?;
    Ok(())
}

/// Reads what is due by a cursor; a claim is only in memory.
fn dispatch(path: &PathBuf, due: &Sender<i64>, stop: &AtomicBool) {
    let connection = Connection::open(path).expect("a database");
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut look = connection
            .prepare_cached(
                "SELECT message FROM recipient WHERE state = 0 AND due > ? ORDER BY due, message LIMIT ?",
            )
            .expect("a statement");
        let rows = look.query_map(params![last, LOOK], |row| row.get::<_, i64>(0)).expect("rows");
        let found: Vec<i64> = rows.map_while(Result::ok).collect();
        if found.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
        for id in found {
            last = id;
            let _ = due.send(id);
        }
    }
}

fn consume(path: &PathBuf, claimed: &std::sync::Mutex<Receiver<i64>>, changes: &Sender<Change>) {
    let connection = Connection::open(path).expect("a database");
    loop {
        let next = claimed.lock().expect("nobody panics").recv();
        let Ok(id) = next else { return };
        let mut read =
            connection.prepare_cached("SELECT octets FROM content WHERE id = ?").expect("a statement");
        let octets = read.query_row([id], |row| row.get::<_, Vec<u8>>(0)).expect("it is there");
        std::hint::black_box(octets);
        let _ = changes.send(Change::Remove(id));
    }
}
