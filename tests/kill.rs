//! kill -9, at random and at chosen system calls. What was acknowledged is there or has arrived, whole; what
//! arrives twice was on its way to the upstream when the relay was killed; nothing comes of half a message.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use outpost::clock::Clock;
use outpost::queue::{Action, Queue};
use tempfile::TempDir;

use support::client::{Client, letter};
use support::ledger::{self, Ledger};
use support::relay::Relay;
use support::service::Service;
use support::strace::Injection;
use support::upstream::Upstream;
use support::workload::{Notes, Workload, settings};
use support::{seed, wait};

const PASSWORD: &str = "upstream-sesame-4711";
const CONNECTIONS: usize = 4;
const LONG: Duration = Duration::from_secs(30);

fn mailer(upstream: &Upstream) -> Service {
    upstream
        .upstream_of(Service::mailer(), PASSWORD)
        .set("smtp_relay_connections", CONNECTIONS)
        .set("smtp_log_level", "warn")
}

/// What clients have sent, and what they were told.
#[derive(Default)]
struct Told {
    /// Token and size of each.
    sent: HashMap<String, usize>,
    acknowledged: BTreeSet<String>,
}

impl Told {
    fn merge(&mut self, other: Self) {
        self.sent.extend(other.sent);
        self.acknowledged.extend(other.acknowledged);
    }

    /// What was acknowledged and has not arrived.
    fn missing(&self, upstream: &Upstream) -> Vec<&String> {
        let ledger = upstream.ledger();
        self.acknowledged.iter().filter(|token| !ledger.contains_key(*token)).collect()
    }

    /// Waits until all that was acknowledged has arrived; then looks at each message that has.
    fn compare(&self, upstream: &Upstream, relay: &Relay, kills: usize) {
        wait::until_within(LONG, "every acknowledged message arrives", || {
            self.missing(upstream).is_empty().then_some(())
        });
        relay.wait_for_empty_queue();
        for message in upstream.messages() {
            let text = String::from_utf8_lossy(&message);
            let token = text.split("\r\nX-Token: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let token = token.expect("each has a token");
            let size = self.sent.get(token).unwrap_or_else(|| panic!("nobody sent {token}"));
            assert!(text.ends_with(&letter(token, *size)), "{token} is not what was sent");
        }
        let twice: usize = upstream.ledger().values().map(|count| count - 1).sum();
        assert!(twice <= kills * CONNECTIONS, "{twice} arrived once more, after {kills} kills");
    }
}

/// A client that sends until the relay is gone, or it is told to stop.
fn client(port: u16, name: String, mut dice: fastrand::Rng, stop: Arc<AtomicBool>) -> JoinHandle<Told> {
    spawn(move || {
        let mut told = Told::default();
        let Ok(mut client) = Client::connect(port) else { return told };
        for number in 0.. {
            let size =
                if dice.u32(0..12) == 0 { dice.usize(270_000..400_000) } else { dice.usize(200..4_000) };
            let token = format!("{name}-{number}");
            told.sent.insert(token.clone(), size);
            let answer = client.send("sender@example.test", &["someone@example.test"], &letter(&token, size));
            if answer.is_ok() {
                told.acknowledged.insert(token);
            }
            if answer.is_err() || stop.load(Ordering::SeqCst) {
                break;
            }
        }
        told
    })
}

#[test]
#[allow(clippy::print_stderr)]
fn a_relay_killed_at_random_moments_loses_nothing_that_was_acknowledged() {
    const ROUNDS: usize = 70;
    /// Enough that something was at stake in each round. A busy machine acknowledges less between two kills, so
    /// there are more of them there.
    const ENOUGH: usize = 5 * ROUNDS;
    const ROUNDS_MAX: usize = 2 * ROUNDS;
    let mut dice = seed::of("kills of the relay");
    let mut upstream = Upstream::stopped(PASSWORD);
    upstream.set(|behaviour| behaviour.final_delay = Duration::from_millis(1));
    upstream.up();
    let mut relay = Relay::start(&mailer(&upstream));
    // A relay that dies three times in its first login doesn't know but that it was refused, and waits.
    let mut told = send_both(relay.smtp, "before");
    relay.wait_for_empty_queue();
    let (mut rounds, mut kills) = (0, 0);
    while rounds < ROUNDS || rounds < ROUNDS_MAX && told.acknowledged.len() <= ENOUGH {
        let round = rounds;
        rounds += 1;
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..3)
            .map(|number| client(relay.smtp, format!("r{round}-{number}"), dice.fork(), Arc::clone(&stop)))
            .collect();
        sleep(Duration::from_micros(dice.u64(0..120_000)));
        relay.kill9();
        kills += 1;
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            told.merge(client.join().expect("a client doesn't panic"));
        }
        // Some are killed again while they open what the last one left.
        if dice.u32(0..4) == 0 {
            relay.up_for(Duration::from_micros(dice.u64(0..30_000)));
            kills += 1;
        }
        relay.up();
    }
    eprintln!("{rounds} rounds, {} sent, {} acknowledged", told.sent.len(), told.acknowledged.len());
    assert!(told.acknowledged.len() > ENOUGH, "{} acknowledged only", told.acknowledged.len());
    told.compare(&upstream, &relay, kills);

    // The control: a message that is lost behind the ledger's back is missed.
    upstream.down();
    told.merge(send_both(relay.smtp, "control"));
    let id = relay.queue()[0]["id"].as_str().expect("an id").to_owned();
    wait::until_true("one is lost", || relay.cli(&["queue", "delete", &id]).status.success());
    upstream.up();
    relay.wait_for_empty_queue();
    assert_eq!(told.missing(&upstream), ["control-small"], "a lost message goes unnoticed");
}

/// What is killed by the test below; it runs as a program of its own, until then.
#[test]
#[ignore = "another starts it as a child"]
fn work_of_a_child() {
    let variable = |name| env::var(name).unwrap_or_else(|_| panic!("{name} is set by whoever starts this"));
    let workload = Workload {
        queue: variable("CHILD_QUEUE").into(),
        notes: Notes::append_to(Path::new(&variable("CHILD_LEDGER"))),
        seed: variable("CHILD_SEED").parse().expect("a number"),
        each: 1_000_000,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(workload.run());
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[allow(clippy::print_stderr)]
async fn a_queue_killed_at_random_moments_keeps_every_promise_in_its_ledger() {
    const ROUNDS: usize = 140;
    /// Rounds on one queue; then it has become too much to look through each time.
    const EACH: usize = 20;
    let mut dice = seed::of("kills of the queue");
    let (mut accepted, mut certain) = (0, 0);
    let mut dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for round in 0..ROUNDS {
        if round % EACH == 0 {
            dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        }
        let (directory, notes) = (dir.path().join("queue"), dir.path().join("ledger"));
        let mut child = Command::new(env::current_exe().expect("this program"));
        child.args(["--exact", "work_of_a_child", "--ignored", "--test-threads=1"]);
        child.env("CHILD_QUEUE", &directory).env("CHILD_LEDGER", &notes);
        child.env("CHILD_SEED", dice.u64(..).to_string()).stdout(Stdio::null());
        let known = fs::metadata(&notes).map_or(0, |notes| notes.len());
        let child = Killed(child.spawn().expect("this program starts"));
        // Every other one has begun its work, however slow the machine is.
        let begun = || fs::metadata(&notes).is_ok_and(|notes| notes.len() > known);
        let bound = Instant::now() + Duration::from_secs(5);
        while round % 2 == 1 && !begun() && Instant::now() < bound {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(dice.u64(0..150_000))).await;
        drop(child);

        let lines = fs::read_to_string(&notes).unwrap_or_default();
        let mut promised = Ledger::read(&lines);
        certain += promised.certain();
        accepted += promised.len();
        let (queue, writer) =
            Queue::open(&settings(&directory), Clock::System).expect("it opens after a kill");
        let broken = promised.compare(&queue).await;
        assert!(broken.is_empty(), "round {round}: {}\n{}", broken.join("\n"), dir.keep().display());
        if round == ROUNDS - 1 {
            // The control: an entry that is lost behind the ledger's back is missed.
            let one = ledger::all(&queue).await.into_iter().find(|item| promised.knows(item.id));
            let one = one.expect("something is queued").id;
            queue.act(one, Action::Delete, "the control").await.expect("it can be deleted");
            assert_eq!(promised.clone().compare(&queue).await.len(), 1, "a lost entry goes unnoticed");
        }
        drop(queue);
        writer.join();
        fs::write(&notes, promised.lines()).expect("the ledger can be written");
    }
    eprintln!("{accepted} entries looked for, {certain} of them certain to be there");
    assert!(certain > 3 * ROUNDS, "only {certain} entries were certain to be there");
}

/// Sends one small and one large message; what the relay said of each.
fn send_both(port: u16, name: &str) -> Told {
    let mut told = Told::default();
    for (kind, size) in [("small", 1_000), ("large", 300_000)] {
        let token = format!("{name}-{kind}");
        told.sent.insert(token.clone(), size);
        let sent = Client::connect(port).and_then(|mut client| {
            client.send("sender@example.test", &["someone@example.test"], &letter(&token, size))
        });
        if sent.is_ok() {
            told.acknowledged.insert(token);
        }
    }
    told
}

#[test]
#[allow(clippy::print_stderr)]
fn a_relay_killed_at_any_call_that_writes_loses_nothing_that_was_acknowledged() {
    /// Calls, and up to which of each thread's the relay is killed.
    const CALLS: &[(&str, usize)] = &[
        ("pwrite64", 60),
        ("write", 20),
        ("fsync,fdatasync", 12),
        ("openat", 4),
        ("unlink", 2),
        ("sendto", 24),
    ];
    /// Rounds without a kill, after which there is no such call any more.
    const SPARED_MAX: usize = 3;
    let upstream = Upstream::start(PASSWORD);
    let mut relay = Relay::start(&mailer(&upstream));
    // As above.
    let mut told = send_both(relay.smtp, "before");
    relay.wait_for_empty_queue();
    let mut all = 0;
    for (call, last) in CALLS {
        let (mut kills, mut spared) = (0, 0);
        for nth in 1..=*last {
            let injection = Injection::attach(relay.pid(), &format!("{call}:signal=KILL:when={nth}"));
            let both = send_both(relay.smtp, &format!("{call}-{nth}"));
            // Delivery has its calls as well.
            let end = Instant::now() + Duration::from_secs(1);
            while !relay.has_ended() && Instant::now() < end {
                let ledger = upstream.ledger();
                let arrived = both.sent.keys().all(|token| ledger.contains_key(token));
                // What has left takes its file with it.
                let mut spool = fs::read_dir(relay.data().join("queue/spool")).expect("the spool");
                let is_over = arrived && spool.next().is_none();
                sleep(Duration::from_millis(if is_over { 25 } else { 5 }));
                if is_over {
                    break;
                }
            }
            told.merge(both);
            drop(injection);
            if relay.has_ended() {
                (kills, spared) = (kills + 1, 0);
                relay.kill9();
                relay.up();
            } else {
                spared += 1;
            }
            if spared == SPARED_MAX {
                break;
            }
        }
        eprintln!("killed at {kills} calls of {call}");
        assert!(kills > 0, "never killed at {call}: nothing calls it any more");
        all += kills;
    }
    assert!(all >= 30, "killed {all} times only");
    told.compare(&upstream, &relay, all);
}

#[test]
#[allow(clippy::print_stderr)]
fn a_relay_killed_at_any_call_of_its_first_start_starts_again() {
    const CALLS: &[(&str, usize, usize)] = &[
        ("pwrite64", 40, 3),
        ("fsync,fdatasync", 20, 2),
        ("mkdir", 4, 1),
        ("ftruncate", 3, 1),
        ("rename", 3, 1),
    ];
    let upstream = Upstream::start(PASSWORD);
    let mut all = 0;
    for (call, last, step) in CALLS {
        let mut kills = 0;
        for nth in (1..=*last).step_by(*step) {
            let fault = format!("{call}:signal=KILL:when={nth}");
            let Some(mut relay) = Relay::start_injected(&mailer(&upstream), &fault) else { break };
            kills += 1;
            relay.up();
            let both = send_both(relay.smtp, &format!("start-{call}-{nth}"));
            assert_eq!(both.acknowledged.len(), 2, "killed at {call} number {nth}, it takes mail again");
            relay.wait_for_empty_queue();
        }
        eprintln!("killed at {kills} calls of {call}");
        assert!(kills > 0, "never killed at {call}: nothing calls it any more");
        all += kills;
    }
    assert!(all >= 15, "killed {all} times only");
    assert_eq!(upstream.arrived(), 2 * all);
}
