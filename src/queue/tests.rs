//! The queue's behaviour on a real disk. Time is tokio's paused clock.

use std::time::Duration;

use super::*;
use crate::{
    config::{HistorySettings, Waits},
    mail::envelope::{Envelope, Handling, Origin},
    smtp::address::{Mailbox, ReversePath},
};

fn settings(directory: &Path) -> QueueSettings {
    QueueSettings {
        directory: directory.to_owned(),
        lifetime: Duration::from_secs(5 * 86_400),
        delay_warning: None,
        retry: Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) },
        max_messages: None,
        max_bytes: None,
        min_free: 0,
        history: HistorySettings::default(),
    }
}

fn envelope() -> Envelope {
    Envelope {
        reverse_path: ReversePath::from(Mailbox::parse("a@b.example").unwrap()),
        recipients: vec![Mailbox::parse("c@d.example").unwrap().into()],
        handling: Handling::default(),
    }
}

async fn accept(queue: &Queue, content: &[u8]) -> Result<QueueId, Fault> {
    let mut incoming = queue.begin()?;
    for piece in content.chunks(60_000) {
        incoming.push(piece);
        incoming.flush().await?;
    }
    let facts = incoming.facts().unwrap();
    Ok(incoming.commit(envelope(), Origin::default(), facts).await?.id())
}

fn read(content: &Content) -> Vec<u8> {
    match content {
        Content::Memory(octets) => octets.to_vec(),
        Content::File { path, .. } => std::fs::read(path).unwrap(),
    }
}

/// A queue whose feeder runs, in a directory that lives as long as the test.
struct Fixture {
    directory: tempfile::TempDir,
    queue: Queue,
    thread: WriterThread,
    feeder: tokio::task::JoinHandle<()>,
}

impl Fixture {
    fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    fn open(directory: tempfile::TempDir) -> Self {
        let (queue, thread) = Queue::open(&settings(directory.path()), Clock::System).unwrap();
        let feeding = queue.clone();
        let feeder = tokio::spawn(async move { feeding.feed().await });
        Self { directory, queue, thread, feeder }
    }

    /// Closes the queue and opens it again, as a restart does.
    async fn restart(self) -> Self {
        self.feeder.abort();
        let _ = self.feeder.await;
        drop(self.queue);
        self.thread.join();
        Self::open(self.directory)
    }
}

fn large() -> Vec<u8> {
    [b"Subject: large\r\n\r\n".to_vec(), b"0123456789abcdef\r\n".repeat(40_000)].concat()
}

#[tokio::test]
async fn what_was_accepted_is_claimed_whole_also_after_a_restart() {
    let fixture = Fixture::new();
    let small = accept(&fixture.queue, b"Subject: small\r\n\r\nhi\r\n").await.unwrap();
    let big = accept(&fixture.queue, &large()).await.unwrap();
    let claims = [fixture.queue.claim().await, fixture.queue.claim().await];
    assert_eq!([claims[0].entry().id, claims[1].entry().id], [small, big]);
    assert_eq!(claims[1].entry().subject.as_deref(), Some("large"));
    assert!(claims[1].entry().content.spooled);
    assert_eq!(fixture.queue.claimed(), 2);
    drop(claims);

    let fixture = fixture.restart().await;
    let first = fixture.queue.claim().await;
    assert_eq!((first.entry().id, read(first.content())), (small, b"Subject: small\r\n\r\nhi\r\n".to_vec()));
    let second = fixture.queue.claim().await;
    assert_eq!((second.entry().id, read(second.content())), (big, large()));
}

#[tokio::test]
async fn what_is_settled_is_gone_and_leaves_no_file() {
    let fixture = Fixture::new();
    for content in [b"x\r\n".to_vec(), large()] {
        accept(&fixture.queue, &content).await.unwrap();
        let claim = fixture.queue.claim().await;
        fixture.queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
    }
    let depth = fixture.queue.depth().await.unwrap();
    assert_eq!((depth.messages, depth.octets), (0, 0));
    assert_eq!(fixture.queue.shared.spool.ids().unwrap(), []);
    let fixture = fixture.restart().await;
    assert!(fixture.queue.list(None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_deferred_entry_is_claimed_when_it_is_due_and_not_before() {
    let fixture = Fixture::new();
    accept(&fixture.queue, b"x\r\n").await.unwrap();
    let claim = fixture.queue.claim().await;
    let due = Clock::System.now().after(Duration::from_secs(2));
    fixture.queue.settle(claim, Next::Retry(due), Vec::new()).durable().await.unwrap();
    assert_eq!(fixture.queue.depth().await.unwrap().deferred, 1);
    let _claim = fixture.queue.claim().await;
    assert!(Clock::System.now() >= due);
}

/// An operator may look at it without its content, if that is damaged: nobody else may get it so, nor before its time.
#[tokio::test]
async fn what_an_operator_has_claimed_in_vain_waits_where_it_did() {
    let fixture = Fixture::new();
    let id = accept(&fixture.queue, b"x\r\n").await.unwrap();
    let claim = fixture.queue.claim().await;
    let due = Clock::System.now().after(Duration::from_secs(2));
    fixture.queue.settle(claim, Next::Retry(due), Vec::new()).durable().await.unwrap();
    drop(fixture.queue.claim_for_operator(id).await.unwrap());
    assert!(fixture.queue.try_claim().is_none() || Clock::System.now() >= due);
    let claim = fixture.queue.claim().await;
    assert!(Clock::System.now() >= due);
    assert_eq!(read(claim.content()), b"x\r\n");
}

#[tokio::test]
async fn a_time_further_ahead_than_any_wait_is_now_unless_the_sender_asked_for_it() {
    let fixture = Fixture::new();
    let now = Clock::System.now();
    let far = now.after(Duration::from_secs(86_400));
    let mut ids = Vec::new();
    for hold_until in [None, Some(far)] {
        ids.push(accept(&fixture.queue, b"x\r\n").await.unwrap());
        let mut claim = fixture.queue.claim().await;
        claim.entry_mut().handling.hold_until = hold_until;
        claim.entry_mut().recipients[0].due = Some(far);
        fixture.queue.settle(claim, Next::Retry(far), Vec::new()).durable().await.unwrap();
    }
    assert!(fixture.queue.try_claim().is_none());
    // A clock that was set back while nobody looked is found at start.
    let fixture = fixture.restart().await;
    let claim = tokio::time::timeout(Duration::from_secs(10), fixture.queue.claim()).await.unwrap();
    assert_eq!(claim.entry().id, ids[0]);
    assert_eq!(claim.entry().recipients[0].due, None, "its recipients don't wait any longer either");
    assert_eq!(fixture.queue.get(ids[1]).await.unwrap().unwrap().due, far);
}

#[tokio::test]
async fn a_report_is_accepted_by_the_transaction_that_settles() {
    let fixture = Fixture::new();
    accept(&fixture.queue, b"x\r\n").await.unwrap();
    let claim = fixture.queue.claim().await;
    let report = Report {
        envelope: Envelope { reverse_path: ReversePath::NULL, ..envelope() },
        origin: Origin::default(),
        content: b"Subject: report\r\n\r\n".to_vec(),
        held: None,
    };
    fixture.queue.settle(claim, Next::Done, vec![report]).durable().await.unwrap();
    let claim = fixture.queue.claim().await;
    assert_eq!(claim.entry().reverse_path, ReversePath::NULL);
    assert_eq!(fixture.queue.depth().await.unwrap().messages, 1);
}

#[tokio::test]
async fn an_unfinished_message_leaves_nothing() {
    let fixture = Fixture::new();
    let mut incoming = fixture.queue.begin().unwrap();
    incoming.push(&large());
    incoming.flush().await.unwrap();
    assert_eq!(fixture.queue.shared.spool.ids().unwrap().len(), 1);
    drop(incoming);
    assert_eq!(fixture.queue.shared.spool.ids().unwrap(), []);
    // After a crash nobody drops it: the sweep at start does the same.
    std::fs::write(fixture.queue.shared.spool.path(fixture.queue.shared.ids.next(Timestamp(1))), "x")
        .unwrap();
    std::fs::write(fixture.directory.path().join("spool/not-ours"), "x").unwrap();
    let fixture = fixture.restart().await;
    assert_eq!(fixture.queue.shared.spool.ids().unwrap(), []);
    assert!(fixture.directory.path().join("spool/not-ours").exists());
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_queue() {
    let fixture = Fixture::new();
    let error = Queue::open(&settings(fixture.directory.path()), Clock::System).unwrap_err();
    assert!(
        matches!(error, OpenError::InUse { process: Some(id), .. } if id == std::process::id()),
        "{error}"
    );
}

#[tokio::test]
async fn a_later_format_is_refused_and_left_untouched() {
    let fixture = Fixture::new();
    let path = store::path(fixture.directory.path());
    fixture.feeder.abort();
    let _ = fixture.feeder.await;
    drop(fixture.queue);
    fixture.thread.join();
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Queue::open(&settings(fixture.directory.path()), Clock::System).unwrap_err();
    assert!(error.to_string().contains("later version"), "{error}");
}

#[tokio::test]
async fn a_damaged_entry_is_set_aside_and_the_others_go_on() {
    let fixture = Fixture::new();
    let damaged = accept(&fixture.queue, b"one\r\n").await.unwrap();
    let sound = accept(&fixture.queue, b"two\r\n").await.unwrap();
    fixture.feeder.abort();
    let _ = fixture.feeder.await;
    drop(fixture.queue);
    fixture.thread.join();
    rusqlite::Connection::open(store::path(fixture.directory.path()))
        .unwrap()
        .execute("UPDATE content SET octets = 'oNe' WHERE id = ?", [damaged.to_i64()])
        .unwrap();

    let fixture = Fixture::open(fixture.directory);
    let claim = fixture.queue.claim().await;
    assert_eq!(claim.entry().id, sound);
    let listed = loop {
        let listed = fixture.queue.get(damaged).await.unwrap().unwrap();
        // Its record is sound, so that people see whose it is.
        if listed.entry.as_ref().is_some_and(|entry| entry.held.as_deref() == Some(DAMAGED)) {
            break listed;
        }
        tokio::task::yield_now().await;
    };
    assert!(!listed.claimed);
    assert_eq!(fixture.queue.depth().await.unwrap().held, 1);
    fixture.queue.act(damaged, Action::Delete, "").await.unwrap();
    assert!(fixture.queue.get(damaged).await.unwrap().is_none());
}

#[tokio::test]
async fn operators_hold_release_retry_and_delete() {
    let fixture = Fixture::new();
    let queue = &fixture.queue;
    let id = accept(queue, b"x\r\n").await.unwrap();
    queue.act(id, Action::Hold, "by operator").await.unwrap();
    assert!(queue.try_claim().is_none());
    assert_eq!(queue.depth().await.unwrap().held, 1);
    queue.act(id, Action::Release, "").await.unwrap();
    let claim = queue.claim().await;
    assert_eq!(queue.act(id, Action::Delete, "").await, Err(ActionError::Busy));
    let far = Clock::System.now().after(Duration::from_secs(3_600));
    queue.settle(claim, Next::Retry(far), Vec::new()).durable().await.unwrap();
    queue.act(id, Action::Retry, "").await.unwrap();
    drop(queue.claim().await);
    queue.act(id, Action::Delete, "").await.unwrap();
    assert_eq!(queue.act(id, Action::Delete, "").await, Err(ActionError::NoSuchEntry));
    assert!(queue.try_claim().is_none());
}

#[tokio::test]
async fn what_is_not_held_is_not_released_and_what_has_a_time_of_its_own_waits_for_it_when_it_is() {
    let fixture = Fixture::new();
    let queue = &fixture.queue;
    let far = Clock::System.now().after(Duration::from_secs(3_600));
    let id = accept(queue, b"x\r\n").await.unwrap();
    let mut claim = queue.claim().await;
    claim.entry_mut().handling.hold_until = Some(far);
    claim.entry_mut().recipients[0].due = Some(far);
    queue.settle(claim, Next::Retry(far), Vec::new()).durable().await.unwrap();
    assert_eq!(queue.act(id, Action::Release, "").await, Ok(false));
    let listed = queue.get(id).await.unwrap().unwrap();
    assert_eq!((listed.due, listed.entry.unwrap().recipients[0].due), (far, Some(far)), "as it was");

    assert_eq!(queue.act(id, Action::Hold, "by operator").await, Ok(true));
    assert_eq!(queue.act(id, Action::Release, "").await, Ok(true));
    let listed = queue.get(id).await.unwrap().unwrap();
    assert_eq!((listed.due, listed.entry.unwrap().held), (far, None));
    assert!(queue.try_claim().is_none());
    // That it is tried now all the same is another word.
    queue.act(id, Action::Retry, "").await.unwrap();
    assert_eq!(queue.claim().await.entry().id, id);
}

#[tokio::test]
async fn an_entry_whose_worker_panics_is_held_and_not_tried_for_ever() {
    let fixture = Fixture::new();
    accept(&fixture.queue, b"x\r\n").await.unwrap();
    let claim = fixture.queue.claim().await;
    let worker = tokio::spawn(async move {
        let _claim = claim;
        panic!("as a fault of ours would");
    });
    assert!(worker.await.is_err());
    while fixture.queue.depth().await.unwrap().held == 0 {
        tokio::task::yield_now().await;
    }
    assert!(fixture.queue.try_claim().is_none());
}

#[tokio::test]
async fn what_was_given_up_and_held_is_tried_again_when_it_is_released() {
    let fixture = Fixture::new();
    let id = accept(&fixture.queue, b"x\r\n").await.unwrap();
    let mut claim = fixture.queue.claim().await;
    claim.entry_mut().recipients[0].state = entry::RecipientState::Bounced;
    claim.entry_mut().held = Some("nobody to tell".to_owned());
    fixture.queue.settle(claim, Next::Hold, Vec::new()).durable().await.unwrap();
    fixture.queue.act(id, Action::Release, "").await.unwrap();
    assert_eq!(fixture.queue.claim().await.entry().pending().count(), 1);
}

#[tokio::test]
async fn an_operator_who_leaves_midway_leaves_the_entry_as_it_was() {
    let fixture = Fixture::new();
    let id = accept(&fixture.queue, b"x\r\n").await.unwrap();
    {
        // Whoever acts must read the entry first, and no reader is to be had: it can't get further.
        let _readers = fixture.queue.shared.readers.lock().unwrap();
        let asked = std::pin::pin!(fixture.queue.act(id, Action::Hold, ""));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(asked.poll(&mut context).is_pending());
    }
    let claim = tokio::time::timeout(Duration::from_secs(10), fixture.queue.claim()).await;
    assert_eq!(claim.expect("it goes on").entry().id, id);
}

#[tokio::test]
async fn no_id_is_given_out_twice_though_the_queue_was_empty_and_the_clock_went_back() {
    let fixture = Fixture::new();
    let first = accept(&fixture.queue, b"x\r\n").await.unwrap();
    fixture.queue.act(first, Action::Delete, "").await.unwrap();
    let fixture = fixture.restart().await;
    assert!(fixture.queue.shared.ids.next(Timestamp(1)) > first);
}

#[tokio::test]
async fn bounds_on_the_queue_are_a_fault_of_ours_and_end_by_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let bounded = QueueSettings { max_messages: Some(1), ..settings(directory.path()) };
    let (queue, _thread) = Queue::open(&bounded, Clock::System).unwrap();
    let id = accept(&queue, b"x\r\n").await.unwrap();
    assert_eq!(accept(&queue, b"y\r\n").await, Err(Fault::Full));
    assert!(queue.trouble().is_some());
    queue.act(id, Action::Delete, "").await.unwrap();
    accept(&queue, b"y\r\n").await.unwrap();
}

#[tokio::test]
async fn a_long_queue_is_delivered_whole_each_once_through_a_small_window() {
    let fixture = Fixture::new();
    let mut accepting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let queue = fixture.queue.clone();
        accepting.spawn(async move {
            let mut ids = Vec::new();
            for _ in 0..400 {
                ids.push(accept(&queue, b"x\r\n").await.unwrap());
            }
            ids
        });
    }
    let mut accepted: Vec<_> = accepting.join_all().await.concat();
    let fixture = fixture.restart().await;
    let mut delivered = Vec::new();
    while delivered.len() < accepted.len() {
        assert!(fixture.queue.waiting() <= 1_500);
        let claim = fixture.queue.claim().await;
        delivered.push(claim.entry().id);
        // New mail arrives meanwhile, and nothing waits for its outcome to be durable.
        if delivered.len() % 10 == 0 && accepted.len() < 3_400 {
            accepted.push(accept(&fixture.queue, b"y\r\n").await.unwrap());
        }
        drop(fixture.queue.settle(claim, Next::Done, Vec::new()));
    }
    accepted.sort_unstable();
    delivered.sort_unstable();
    assert_eq!(delivered, accepted);
    assert!(fixture.queue.try_claim().is_none());
}

#[tokio::test]
async fn a_broken_history_fails_and_delays_no_mail() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("history.sqlite")).unwrap();
    let fixture = Fixture::open(directory);
    fixture.queue.record(None, b"received".to_vec());
    let id = accept(&fixture.queue, b"x\r\n").await.unwrap();
    let claim = fixture.queue.claim().await;
    fixture.queue.record(Some(id), b"delivered".to_vec());
    fixture.queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
    assert_eq!(fixture.queue.trouble(), None);
    assert_eq!(fixture.queue.depth().await.unwrap().messages, 0);
}

#[tokio::test]
async fn what_was_told_before_a_settlement_is_in_the_file_once_that_is_durable() {
    let fixture = Fixture::new();
    let id = accept(&fixture.queue, b"x\r\n").await.unwrap();
    let claim = fixture.queue.claim().await;
    fixture.queue.record(Some(id), b"delivered".to_vec());
    fixture.queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
    // As another process sees it, with nobody asked to write.
    let span = history::Span { id: Some(id), after: 0, before: i64::MAX, newest: false, limit: 10 };
    let found = history::Reader::open(fixture.directory.path()).unwrap().events(&span).unwrap();
    assert_eq!(found.len(), 1);
}

#[tokio::test]
async fn what_its_sender_wants_held_back_is_not_tried_before() {
    let fixture = Fixture::new();
    let soon = Clock::System.now().after(Duration::from_secs(1));
    let mut incoming = fixture.queue.begin().unwrap();
    incoming.push(b"Subject: x\r\n\r\nx\r\n");
    let facts = incoming.facts().unwrap();
    let handling = Handling { hold_until: Some(soon), ..Handling::default() };
    let envelope = Envelope { handling, ..envelope() };
    let receipt = incoming.commit(envelope, Origin::default(), facts).await.unwrap();
    assert!(fixture.queue.try_claim().is_none());
    let now = accept(&fixture.queue, b"Subject: y\r\n\r\ny\r\n").await.unwrap();
    let other = fixture.queue.claim().await;
    assert_eq!(other.entry().id, now, "others do not wait for it");
    let later = tokio::time::timeout(Duration::from_secs(10), fixture.queue.claim()).await;
    let later = later.expect("its time comes");
    assert_eq!(later.entry().id, receipt.id());
    assert!(Clock::System.now() >= soon);
}

/// A copy of the store of format 1 in `tests/formats/1`. See the page there.
pub(super) fn format_1() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/1");
    std::fs::create_dir(directory.path().join("spool")).unwrap();
    std::fs::copy(from.join("queue.sqlite"), store::path(directory.path())).unwrap();
    for file in std::fs::read_dir(from.join("spool")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), directory.path().join("spool").join(file.file_name())).unwrap();
    }
    directory
}

#[tokio::test]
async fn a_queue_of_format_1_is_taken_over_whole_and_works() {
    #[derive(serde::Deserialize)]
    struct Expected {
        id: QueueId,
        state: i64,
        due: u64,
        size: u64,
        crc32c: u32,
        entry: Option<Entry>,
    }
    let lines = include_str!("../../tests/formats/1/expected.jsonl").lines();
    let expected: Vec<Expected> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let directory = format_1();
    let (queue, thread) = Queue::open(&settings(directory.path()), Clock::System).unwrap();
    // Nothing runs yet that would claim or move any.
    assert!(queue.list(None, 0).await.unwrap().is_empty(), "none were asked for");
    let listed = queue.list(None, 100).await.unwrap();
    assert_eq!(listed.len(), expected.len());
    for (listed, expected) in listed.iter().zip(&expected) {
        let found = (listed.id, listed.due.0, listed.size, &listed.entry);
        assert_eq!(found, (expected.id, expected.due, expected.size, &expected.entry));
        let content = queue.content(listed.id).await.unwrap();
        let crc32c = content.map(|content| crc32c::crc32c(&read(&content)));
        assert_eq!(crc32c, expected.entry.as_ref().map(|_| expected.crc32c));
    }
    let depth = queue.depth().await.unwrap();
    let octets = expected.iter().map(|expected| expected.size).sum();
    let held = expected.iter().filter(|expected| expected.state > 0).count() as u64;
    assert_eq!((depth.messages, depth.octets, depth.held), (expected.len() as u64, octets, held));

    let feeding = queue.clone();
    let feeder = tokio::spawn(async move { feeding.feed().await });
    let now = Clock::System.now().0;
    let due = expected.iter().filter(|one| one.state == 0 && one.entry.is_some() && one.due <= now);
    let mut due: Vec<QueueId> = due.map(|one| one.id).collect();
    assert!(due.len() >= 4);
    let urgent = expected.iter().find(|one| one.entry.as_ref().is_some_and(|e| e.handling.priority > 0));
    let mut claimed = Vec::new();
    while claimed.len() < due.len() {
        let claim = tokio::time::timeout(Duration::from_secs(10), queue.claim()).await.unwrap();
        claimed.push(claim.entry().id);
        queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
    }
    assert_eq!(claimed.first(), urgent.map(|one| &one.id), "whose turn it is was found out, too");
    claimed.sort_unstable();
    due.sort_unstable();
    assert_eq!(claimed, due);
    // The one whose record is damaged was found, and is set aside.
    while queue.depth().await.unwrap().held == held {
        tokio::task::yield_now().await;
    }
    feeder.abort();
    let _ = feeder.await;
    drop(queue);
    thread.join();
    // And once more, as one that was never anything else.
    let fixture = Fixture::open(directory);
    accept(&fixture.queue, b"x\r\n").await.unwrap();
    let depth = fixture.queue.depth().await.unwrap();
    assert_eq!(depth.messages, expected.len() as u64 - due.len() as u64 + 1);
    assert_eq!(depth.held, held + 1);
}

/// A message of a sender; `user` logged in, unless it is empty.
async fn accept_from(queue: &Queue, user: &str, sender: &str, recipients: &[&str], priority: i8) -> QueueId {
    let mut incoming = queue.begin().unwrap();
    incoming.push(b"Subject: x\r\n\r\nx\r\n");
    let facts = incoming.facts().unwrap();
    let sender = if sender.is_empty() { ReversePath::NULL } else { Mailbox::parse(sender).unwrap().into() };
    let envelope = Envelope {
        reverse_path: sender,
        recipients: recipients.iter().map(|text| Mailbox::parse(text).unwrap().into()).collect(),
        handling: Handling { priority, ..Handling::default() },
    };
    let user = (!user.is_empty()).then(|| user.to_owned());
    incoming.commit(envelope, Origin { user, ..Origin::default() }, facts).await.unwrap().id()
}

#[tokio::test]
async fn whoever_looks_finds_all_that_is_meant_and_nothing_else() {
    let fixture = Fixture::new();
    let queue = &fixture.queue;
    let senders = ["App@Sender.example", "shop@sender.example", "app@other.example", ""];
    let recipients: [&[&str]; 3] =
        [&["one@rcpt.example"], &["ONE@RCPT.example", "two@else.example"], &["three@sub.rcpt.example"]];
    let mut all = Vec::new();
    for number in 0..120 {
        let (sender, to) = (senders[number % 4], recipients[number / 4 % 3]);
        all.push((accept_from(queue, "", sender, to, 0).await, sender, to));
    }
    fixture.queue.act(all[7].0, Action::Hold, "for the test").await.unwrap();
    fixture.queue.act(all[8].0, Action::Hold, "for the test").await.unwrap();
    // One is deferred, one under way though it was deferred.
    let now = Clock::System.now();
    let far = now.after(Duration::from_secs(3_600));
    let mut deferred = Vec::new();
    for _ in 0..2 {
        let claim = queue.claim().await;
        deferred.push(claim.entry().id);
        queue.settle(claim, Next::Retry(far), Vec::new()).durable().await.unwrap();
    }
    let (claim, _) = queue.claim_by_id(deferred[1]).await.unwrap();
    let wanted =
        [None, Some("app@SENDER.example"), Some("@sender.example"), Some("<>"), Some("nobody@x.example")];
    let for_whom = [None, Some("one@rcpt.example"), Some("@RCPT.example"), Some("@else.example"), Some("<>")];
    let standings = [
        Standing::Any,
        Standing::Held,
        Standing::Queued,
        Standing::Due(now.after(Duration::from_secs(60))),
        Standing::Later(now.after(Duration::from_secs(60))),
        Standing::Claimed,
    ];
    for (sender, recipient) in wanted.iter().flat_map(|one| for_whom.iter().map(move |two| (*one, *two))) {
        for standing in standings {
            let is_meant_here = |(id, from, to): &&(QueueId, &str, &[&str])| {
                let held = *id == all[7].0 || *id == all[8].0;
                let later = deferred.contains(id);
                let claimed = *id == deferred[1];
                sender.is_none_or(|wanted| is_meant(wanted, from))
                    && recipient.is_none_or(|wanted| to.iter().any(|to| is_meant(wanted, to)))
                    && match standing {
                        Standing::Any => true,
                        Standing::Held => held,
                        Standing::Queued => !held,
                        Standing::Due(_) => !held && !later || claimed,
                        Standing::Later(_) => later,
                        Standing::Claimed => claimed,
                    }
            };
            let expected: Vec<_> = all.iter().filter(is_meant_here).map(|(id, ..)| *id).collect();
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let (sender, recipient) = (sender.map(str::to_owned), recipient.map(str::to_owned));
                let search = Search { sender, recipient, standing, before: None };
                let page = queue.search(search, after, 7).await.unwrap();
                found.extend(page.iter().map(|listed| listed.id));
                after = page.last().map(|listed| listed.id);
                if page.len() < 7 {
                    break;
                }
            }
            assert_eq!(found, expected, "{sender:?} {recipient:?} {standing:?}");
        }
    }
    let before = Search { before: Some(Timestamp(1_000)), ..Search::default() };
    assert!(queue.search(before, None, 7).await.unwrap().is_empty());
    drop(claim);
}

#[tokio::test]
async fn a_quiet_sender_does_not_wait_behind_anothers_backlog() {
    let fixture = Fixture::new();
    let backlog = async |queue: &Queue, count: usize| {
        let mut accepting = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let queue = queue.clone();
            accepting.spawn(async move {
                for _ in 0..count / 20 {
                    accept_from(&queue, "newsletter", "n@sender.example", &["r@rcpt.example"], 0).await;
                }
            });
        }
        accepting.join_all().await;
    };
    // Far more than the window holds.
    backlog(&fixture.queue, 3_000).await;
    let turn_of = async |fixture: &Fixture, id: QueueId| {
        for turn in 1..=20 {
            let claim = fixture.queue.claim().await;
            let found = claim.entry().id == id;
            fixture.queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
            if found {
                return turn;
            }
        }
        panic!("it waits behind the backlog")
    };
    let shop = async |queue: &Queue, user: &str, priority| {
        accept_from(queue, user, "s@sender.example", &["r@rcpt.example"], priority).await
    };
    let quiet = shop(&fixture.queue, "shop", 0).await;
    assert!(turn_of(&fixture, quiet).await <= 3);
    let urgent = shop(&fixture.queue, "newsletter", 4).await;
    assert!(turn_of(&fixture, urgent).await <= 2, "even one of the same sender");
    // The same from the disk; and what is low does not wait for ever either.
    let quiet = shop(&fixture.queue, "shop", 0).await;
    let low = shop(&fixture.queue, "shop", -4).await;
    let fixture = fixture.restart().await;
    let are_in = || {
        let schedule = fixture.queue.shared.schedule();
        schedule.is_taken(quiet) && schedule.is_taken(low)
    };
    while fixture.queue.waiting() < 100 || !are_in() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(turn_of(&fixture, quiet).await <= 3);
    assert!(turn_of(&fixture, low).await <= 20);
    // What was deferred comes into a window that is full of the others'.
    let quiet = shop(&fixture.queue, "shop", 0).await;
    let claim = loop {
        let claim = fixture.queue.claim().await;
        if claim.entry().id == quiet {
            break claim;
        }
        fixture.queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
    };
    backlog(&fixture.queue, 1_000).await;
    let due = Clock::System.now().after(Duration::from_millis(100));
    fixture.queue.settle(claim, Next::Retry(due), Vec::new()).durable().await.unwrap();
    let is_in = async || fixture.queue.shared.schedule().is_taken(quiet);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !is_in().await {
        assert!(tokio::time::Instant::now() < deadline, "it never comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(fixture.queue.waiting() <= 1_000, "the window stays bounded");
    assert!(turn_of(&fixture, quiet).await <= 3);
}

/// The leaves of a table, in the order of its rows.
fn leaves(file: &[u8], path: &Path, table: &str) -> Vec<usize> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let query = "SELECT rootpage FROM sqlite_schema WHERE name = ?";
    let root = connection.query_row(query, [table], |row| row.get::<_, u32>(0)).unwrap() as usize;
    let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let mut leaves = Vec::new();
    let mut todo = vec![root];
    while let Some(page) = todo.pop() {
        let at = (page - 1) * 4096;
        match file[at] {
            // An interior page of a table: its last child, and a cell for each of the others.
            5 => {
                todo.push(number(at + 8));
                let cells = usize::from(u16::from_be_bytes([file[at + 3], file[at + 4]]));
                for cell in (0..cells).rev() {
                    let pointer = at + 12 + 2 * cell;
                    let offset = usize::from(u16::from_be_bytes([file[pointer], file[pointer + 1]]));
                    todo.push(number(at + offset));
                }
            }
            13 => leaves.push(page),
            other => panic!("page {page} of {table} is of type {other}"),
        }
    }
    leaves
}

#[tokio::test]
async fn a_page_that_cannot_be_read_costs_the_messages_on_it_and_no_others() {
    for table in ["content", "record", "message"] {
        let fixture = Fixture::new();
        let mut accepted = Vec::new();
        for _ in 0..300 {
            accepted.push(accept(&fixture.queue, b"Subject: x\r\n\r\nx\r\n").await.unwrap());
        }
        fixture.feeder.abort();
        let _ = fixture.feeder.await;
        drop(fixture.queue);
        fixture.thread.join();
        let path = store::path(fixture.directory.path());
        let mut file = std::fs::read(&path).unwrap();
        let leaves = leaves(&file, &path, table);
        assert!(leaves.len() > 2, "{table}");
        file[(leaves[1] - 1) * 4096..][..4096].fill(0);
        std::fs::write(&path, file).unwrap();

        let fixture = Fixture::open(fixture.directory);
        let queue = &fixture.queue;
        let mut delivered = Vec::new();
        while let Ok(claim) = tokio::time::timeout(Duration::from_secs(2), queue.claim()).await {
            delivered.push(claim.entry().id);
            queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
        }
        delivered.sort_unstable();
        delivered.dedup();
        let left: Vec<_> =
            accepted.iter().filter(|id| delivered.binary_search(id).is_err()).copied().collect();
        assert!(!left.is_empty() && left.len() < 150, "{table}: {} are lost", left.len());
        // Those that are left are seen, and counted; and perhaps some that could not be removed.
        let listed: Vec<_> = queue.list(None, 1_000).await.unwrap();
        let is_set_aside = |one: &Listed| one.entry.as_ref().is_none_or(|entry| entry.held.is_some());
        assert!(listed.iter().all(is_set_aside), "{table}");
        let listed: Vec<_> = listed.iter().map(|one| one.id).collect();
        assert!(left.iter().all(|id| listed.contains(id)), "{table}: {listed:?}");
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.messages, depth.held), (listed.len() as u64, listed.len() as u64), "{table}");
        // New mail comes and goes, and nothing is red.
        let id = accept(queue, b"y\r\n").await.unwrap();
        let claim = queue.claim().await;
        assert_eq!(claim.entry().id, id);
        queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
        assert_eq!(queue.trouble(), None, "{table}");
        if table != "message" {
            for id in left {
                queue.act(id, Action::Delete, "").await.unwrap();
            }
            assert_eq!(queue.depth().await.unwrap().messages, 0, "{table}");
        }
    }
}

#[tokio::test]
async fn a_damaged_store_that_does_not_open_says_what_to_do() {
    let fixture = Fixture::new();
    fixture.feeder.abort();
    let _ = fixture.feeder.await;
    drop(fixture.queue);
    fixture.thread.join();
    let path = store::path(fixture.directory.path());
    let mut file = std::fs::read(&path).unwrap();
    file[..100].fill(0xFF);
    std::fs::write(&path, file).unwrap();
    let error = Queue::open(&settings(fixture.directory.path()), Clock::System).unwrap_err().to_string();
    for word in ["queue.sqlite", "outpost queue check", "backup"] {
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn space_goes_back_to_the_disk_soon_though_mail_trickles_on() {
    use std::os::unix::fs::MetadataExt as _;
    let fixture = Fixture::new();
    let content = b"x".repeat(20_000);
    let mut accepting = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (queue, content) = (fixture.queue.clone(), content.clone());
        accepting.spawn(async move {
            for _ in 0..40 {
                accept(&queue, &content).await.unwrap();
            }
        });
    }
    accepting.join_all().await;
    let used = || {
        let path = store::path(fixture.directory.path());
        let files = [path.clone(), path.with_file_name("queue.sqlite-wal")];
        files
            .iter()
            .filter_map(|file| std::fs::metadata(file).ok())
            .map(|file| file.blocks() * 512)
            .sum::<u64>()
    };
    let full = used();
    assert!(full > 35_000_000, "{full}");
    for _ in 0..2_000 {
        drop(fixture.queue.settle(fixture.queue.claim().await, Next::Done, Vec::new()));
    }
    let drained = std::time::Instant::now();
    // 16 MiB are kept while mail flows, and what the WAL holds between two checkpoints.
    while used() > 16 * 1024 * 1024 + 10_000_000 {
        assert!(drained.elapsed() < Duration::from_secs(60), "{} of {full}", used());
        accept(&fixture.queue, b"x\r\n").await.unwrap();
        drop(fixture.queue.settle(fixture.queue.claim().await, Next::Done, Vec::new()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while used() > 3_000_000 {
        assert!(drained.elapsed() < Duration::from_secs(90), "{} of {full}", used());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// While the database is being told, and though somebody keeps it from that, mail goes on in the journal: it is
/// accepted, settled, delivered once.
#[tokio::test]
async fn nobody_waits_for_the_database_and_each_message_is_tried_when_it_is_due() {
    let fixture = Fixture::new();
    let queue = &fixture.queue;
    let blocker = rusqlite::Connection::open(store::path(fixture.directory.path())).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let blocked = std::time::Instant::now();
    let mut ids = HashSet::new();
    // The first ones are being told of when they are settled. All at once, for few syncs on a slow disk.
    let mut accepting = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let queue = queue.clone();
        accepting.spawn(async move { accept(&queue, b"x\r\n").await.unwrap() });
    }
    ids.extend(accepting.join_all().await);
    let soon = Clock::System.now().after(Duration::from_secs(3));
    let mut claims: Vec<Claim> = std::iter::from_fn(|| queue.try_claim()).collect();
    assert_eq!(claims.len(), 200);
    let delivered: HashSet<QueueId> = claims
        .drain(..100)
        .map(|claim| {
            let id = claim.entry().id;
            drop(queue.settle(claim, Next::Done, Vec::new()));
            id
        })
        .collect();
    let settled: Vec<_> =
        claims.into_iter().map(|claim| queue.settle(claim, Next::Retry(soon), Vec::new())).collect();
    for settled in settled {
        settled.durable().await.unwrap();
    }
    for _ in 0..10 {
        ids.insert(accept(queue, b"y\r\n").await.unwrap());
    }
    // That long a lock is waited for.
    assert!(queue.shared.behind.load(Ordering::Acquire) && blocked.elapsed() < Duration::from_secs(5));
    blocker.execute_batch("ROLLBACK").unwrap();

    let left: HashSet<QueueId> = ids.difference(&delivered).copied().collect();
    let listed = queue.list(None, 1_000).await.unwrap();
    assert_eq!(listed.iter().map(|listed| listed.id).collect::<HashSet<_>>(), left);
    assert_eq!(queue.depth().await.unwrap().messages, 110);
    let mut tried = HashSet::new();
    while tried.len() < left.len() {
        let claim = queue.claim().await;
        let id = claim.entry().id;
        assert!(read(claim.content()) == b"y\r\n" || Clock::System.now() >= soon, "before its time");
        assert!(tried.insert(id) && left.contains(&id), "{id} is tried again");
        queue.settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
    }
    assert_eq!(queue.depth().await.unwrap().messages, 0);
    let fixture = fixture.restart().await;
    assert!(fixture.queue.list(None, 10).await.unwrap().is_empty());
}
