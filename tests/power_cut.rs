//! Power cuts: what the queue wrote and synced is replayed on a model of a disk, which is cut at every sync and at
//! many calls between them. Whatever a disk may still have then, the queue opens and has kept each promise.

mod support;

use std::env;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use outpost::clock::Clock;
use outpost::queue::Queue;
use tempfile::TempDir;

use support::client::letter;
use support::disk::{Disk, Lie, Survives};
use support::ledger::{self, Ledger};
use support::mount::{self, Ext4};
use support::relay::Relay;
use support::service::{Home, Service};
use support::strace::{Event, Injection, Operation, Trace, recorded};
use support::upstream::Upstream;
use support::workload::{Notes, Workload, envelope, settings};
use support::{programs, seed};

/// Between syncs the disk is cut at each so many events.
const STRIDE: usize = 40;

/// What a run of [`work_of_a_child`] left behind.
struct Run {
    /// The directory that the queue's was made in; the disk below it is what is cut.
    root: PathBuf,
    trace: Trace,
    dir: TempDir,
    /// In memory: an image is opened once, and what becomes of it then is not the question.
    images: TempDir,
}

impl Run {
    fn record(dice: &mut fastrand::Rng) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let root = dir.path().join("disk");
        fs::create_dir(&root).expect("a directory");
        let (log, notes) = (dir.path().join("strace"), dir.path().join("ledger"));
        let mut work = Command::new(env::current_exe().expect("this program"));
        work.args(["--exact", "work_of_a_child", "--ignored", "--nocapture", "--test-threads=1"]);
        work.env("CHILD_QUEUE", root.join("data/queue")).env("CHILD_LEDGER", &notes);
        work.env("CHILD_SEED", dice.u64(..).to_string());
        programs::run(&mut recorded(&work, &log));
        let trace = Trace::read(&log, &root, &notes);
        let memory = Path::new("/dev/shm");
        let free = rustix::fs::statvfs(memory).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
        let memory = if free > 256 << 20 { memory } else { dir.path() };
        let images = TempDir::new_in(memory).expect("a directory");
        Self { root, trace, dir, images }
    }

    /// Cuts the disk that lies about the syncs of some files, and tells what broke and how often it was cut.
    fn cut(&self, lies_about: Lie, seed: u64, enough: usize) -> (Vec<String>, usize) {
        const HANDS: usize = 2;
        let (images, found) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let hand = |hand: usize| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let image = self.images.path().join(hand.to_string());
            let mut dice = fastrand::Rng::with_seed(seed.wrapping_add(hand as u64));
            let mut disk = Disk::new(&self.root, lies_about);
            let mut promised = Ledger::default();
            let mut broken = Vec::new();
            for (now, event) in self.trace.events.iter().enumerate() {
                let (Event::Begins(number) | Event::Ends(number)) = *event;
                let sync = matches!(self.trace.operations[number], Operation::Sync { .. });
                let ends = *event == Event::Ends(number);
                // In front of the end of a sync most is promised and least is durable.
                if (sync && ends || now % STRIDE == 0) && now % HANDS == hand {
                    let mut some = |block| Survives::Some { seed: dice.u64(..), block };
                    for survives in [Survives::Synced, Survives::Everything, some(512), some(4096)] {
                        let _ = fs::remove_dir_all(&image);
                        disk.write_image(&image, survives);
                        images.fetch_add(1, Ordering::SeqCst);
                        // On a disk that lies it may be that nothing can be read any more.
                        let look = || runtime.block_on(violations(&image, &mut promised.clone()));
                        let what = std::panic::catch_unwind(AssertUnwindSafe(look))
                            .unwrap_or_else(|_| vec!["it can't be read: see above".to_owned()]);
                        found.fetch_add(what.len(), Ordering::SeqCst);
                        let place = |what| format!("cut at event {now}, {survives:?}: {what}");
                        broken.extend(what.into_iter().map(place));
                    }
                }
                if found.load(Ordering::SeqCst) >= enough {
                    break;
                }
                match event {
                    Event::Begins(_) => {
                        disk.begins(&self.trace, number, now);
                        if let Operation::Note(line) = &self.trace.operations[number] {
                            promised.note(line);
                        }
                    }
                    Event::Ends(_) => disk.ends(&self.trace, number, now),
                }
            }
            broken
        };
        let broken = std::thread::scope(|scope| {
            let hands: Vec<_> = (0..HANDS).map(|number| scope.spawn(move || hand(number))).collect();
            hands.into_iter().flat_map(|hand| hand.join().expect("no panic")).collect()
        });
        (broken, images.into_inner())
    }

    /// The log stays where it is, for whoever looks into a failure.
    fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}

/// Opens the queue that a cut has left, and compares it with what was promised.
async fn violations(image: &Path, promised: &mut Ledger) -> Vec<String> {
    let directory = image.join("data/queue");
    let (queue, writer) = match Queue::open(&settings(&directory), Clock::System) {
        Ok(opened) => opened,
        Err(error) => return vec![format!("it can't be opened: {error}")],
    };
    let mut broken = promised.compare(&queue).await;
    if let Some(log) = queue.damaged_log() {
        broken.push(format!("a cut is taken for damage: {}", log.display()));
    }
    let spooled = fs::read_dir(directory.join("spool")).expect("the spool").count();
    let entries = ledger::all(&queue).await.into_iter().filter_map(|item| item.entry);
    let due = entries.filter(|entry| entry.content.spooled).count();
    if spooled != due {
        broken.push(format!("{spooled} files in the spool, {due} belong to entries"));
    }
    // And it takes mail again.
    let mut incoming = queue.begin().expect("there is room");
    incoming.push(b"Subject: after the cut\r\n\r\n");
    let facts = incoming.facts().expect("a short header");
    if let Err(fault) = incoming.commit(envelope(), Default::default(), facts).await {
        broken.push(format!("it takes no mail any more: {fault}"));
    }
    drop(queue);
    writer.join();
    broken
}

/// What is recorded; it runs as a program of its own.
#[test]
#[ignore = "the others start it as a child"]
fn work_of_a_child() {
    let variable = |name| env::var(name).unwrap_or_else(|_| panic!("{name} is set by whoever starts this"));
    let work = |seed: u64, each| Workload {
        queue: variable("CHILD_QUEUE").into(),
        notes: Notes::append_to(Path::new(&variable("CHILD_LEDGER"))),
        seed,
        each,
    };
    let seed = variable("CHILD_SEED").parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    // First on a disk that has nothing, then on what that has left.
    runtime.block_on(work(seed, 20).run());
    runtime.block_on(work(seed.wrapping_add(1), 8).run());
}

#[test]
#[allow(clippy::print_stderr)]
fn a_power_cut_at_any_moment_takes_nothing_that_was_promised() {
    let mut dice = seed::of("power cuts");
    let run = Run::record(&mut dice);
    let seed = dice.u64(..);
    let honest = |_: &Path| false;
    let (broken, images) = run.cut(honest, seed, 20);
    eprintln!("{} calls, {images} images", run.trace.operations.len());
    if !broken.is_empty() {
        panic!("{}\nThe log of the calls is kept in {}", broken.join("\n"), run.keep().display());
    }
    assert!(images > 400, "only {images} images: the workload is too small");

    // The controls: on a disk that lies about one kind of file the same run loses what it promised.
    let lies: [(&str, Lie); 5] = [
        ("the journal", |path| path.ends_with("queue.journal")),
        ("the WAL", |path| path.ends_with("queue.sqlite-wal")),
        // It was made under this name.
        ("the database", |path| path.ends_with("queue.sqlite.new")),
        ("the spool's names", |path| path.ends_with("spool")),
        ("the spool's files", |path| path.parent().is_some_and(|parent| parent.ends_with("spool"))),
    ];
    for (what, lies_about) in lies {
        let (broken, _) = run.cut(lies_about, seed, 1);
        assert!(!broken.is_empty(), "with the syncs of {what} left out nothing broke: the test is blind");
    }
}

/// The same on a real file system: one message, its 250, and the power is gone before anything else can sync.
/// A busy disk would hide a missing sync, because the next one covers it.
#[test]
fn a_real_disk_that_loses_its_power_behind_a_250_has_the_message() {
    const ROUNDS: usize = 30;
    const PASSWORD: &str = "upstream-sesame-4711";
    if !mount::wanted() {
        return;
    }
    let mut upstream = Upstream::stopped(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0);
    let home = Home::new(&[&service]);
    let mut relay = Relay::of(&home, &service);
    let disk = Ext4::new(&home.path("disk.img"), 96, relay.data());
    let size = |round: usize| if round.is_multiple_of(2) { 1_000 } else { 300_000 };
    let token = |round: usize| format!("round-{round}");
    for round in 0..ROUNDS {
        relay.up();
        let mut client = relay.client();
        let letter = letter(&token(round), size(round));
        let switch = disk.switch();
        client.send("sender@example.test", &["someone@example.test"], &letter).expect("it is taken");
        switch.cut();
        relay.kill9();
        disk.again();
    }
    relay.up();
    assert_eq!(relay.status()["queue"]["messages"], ROUNDS, "all that were acknowledged are queued");
    upstream.up();
    relay.wait_for_empty_queue();
    for round in 0..ROUNDS {
        assert_eq!(upstream.ledger().get(&token(round)), Some(&1), "the one of round {round}");
    }
    let messages = upstream.messages();
    let whole = |round: &usize| {
        let letter = letter(&token(*round), size(*round));
        messages.iter().any(|message| message.ends_with(letter.as_bytes()))
    };
    assert_eq!((0..ROUNDS).filter(whole).count(), ROUNDS, "each is whole");
}

/// The control: the same relay whose syncs do nothing loses what it acknowledged.
#[test]
fn a_relay_whose_syncs_do_nothing_loses_what_it_acknowledged_with_the_power() {
    const PASSWORD: &str = "upstream-sesame-4711";
    if !mount::wanted() {
        return;
    }
    let upstream = Upstream::stopped(PASSWORD);
    for size in [1_000, 300_000] {
        let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_queue_min_free", 0);
        let home = Home::new(&[&service]);
        let mut relay = Relay::of(&home, &service);
        let disk = Ext4::new(&home.path("disk.img"), 96, relay.data());
        relay.up();
        let lie = Injection::attach(relay.pid(), "fsync,fdatasync:retval=0");
        let mut client = relay.client();
        let switch = disk.switch();
        let letter = letter("lost", size);
        client.send("sender@example.test", &["someone@example.test"], &letter).expect("it is taken");
        switch.cut();
        relay.kill9();
        drop(lie);
        disk.again();
        relay.up();
        let left = relay.status()["queue"]["messages"].clone();
        assert_eq!(left, 0, "a message of {size} octets is there: the test is blind");
        relay.kill9();
    }
}

/// The control: without a sync of the file, and without one of the directory, the same cut takes the file.
#[test]
fn a_real_disk_that_loses_its_power_has_no_file_that_was_not_synced() {
    if !mount::wanted() {
        return;
    }
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let at = dir.path().join("mnt");
    let disk = Ext4::new(&dir.path().join("disk.img"), 16, &at);
    let renamed = at.join("unsynced");
    fs::write(&renamed, "x").expect("a file");
    let file = fs::File::open(&renamed).expect("a file");
    file.sync_all().expect("a sync");
    drop(file);
    fs::rename(&renamed, at.join("renamed")).expect("it can be renamed");
    fs::write(at.join("late"), "x").expect("a file");
    disk.switch().cut();
    disk.again();
    assert!(!at.join("renamed").exists(), "a name that was not synced is there: the test is blind");
    assert!(!at.join("late").exists(), "a file that was not synced is there: the test is blind");
}
