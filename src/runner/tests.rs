//! Settlements on a real queue: who is told of what, for every wish and every fate.

use std::{collections::BTreeSet, path::Path, time::Duration};

use super::{late::Walk, *};
use crate::{
    clock::Timestamp,
    config::{HistorySettings, Replies, Serves, TlsVersion, Upstream, UpstreamTls, Waits},
    mail::{
        content::{Content, Facts},
        envelope::{Addressee, DeliverBy, Envelope, Handling, Origin},
        outcome::{Advice, Evidence, Outcome, Scope, Who},
    },
    queue::{Entry, Next, WriterThread, entry::RecipientState, id::QueueId},
    smtp::{
        address::ReversePath,
        extension::Capabilities,
        parameter::{Notify as Wish, OriginalRecipient, Ret},
        reply::{Enhanced, Reply},
    },
};

const DAY: Duration = Duration::from_secs(86_400);
const WAITS: Waits = Waits { first: Duration::from_secs(60), longest: Duration::from_secs(3_600) };

fn orders(directory: &Path) -> Orders {
    let upstream = Upstream {
        name: "up.example".into(),
        server: "up.example".into(),
        port: 25,
        tls: UpstreamTls::None,
        tls_min_version: TlsVersion::Tls12,
        ca: None,
        fingerprint: None,
        published: Vec::new(),
        login: None,
        allow_insecure_auth: false,
        connections: 1,
        timeout: None,
        auth_retry: WAITS,
        identity: None,
        recipients: None,
        messages: None,
        source: Vec::new(),
        proxy: None,
        pipelining: true,
        chunking: true,
        message_size: None,
        provider: None,
        replies: Replies::default(),
        limits: Vec::new(),
        sender_rewrite: None,
        replaces: Vec::new(),
        serves: Serves::default(),
    };
    Orders {
        agents: vec![Agent::new(upstream, "relay.example", Clock::System).expect("no certificate is needed")],
        data: directory.to_owned(),
        breaker_bounces: 10,
        queue: QueueSettings {
            directory: directory.to_owned(),
            lifetime: 5 * DAY,
            delay_warning: None,
            retry: WAITS,
            max_messages: None,
            max_bytes: None,
            min_free: 0,
            history: HistorySettings::default(),
        },
        hostname: "relay.example".into(),
        postmaster: None,
    }
}

/// A runner that sends nothing: the tests say what was seen.
pub(super) struct Fixture {
    directory: tempfile::TempDir,
    runner: Runner,
    thread: WriterThread,
    feeder: tokio::task::JoinHandle<()>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    pub(super) fn runner(&self) -> &Runner {
        &self.runner
    }

    pub(super) fn lane(&self) -> Arc<Lane> {
        Arc::clone(&self.runner.lanes()[0])
    }

    /// A message for a worker.
    pub(super) async fn work(&self) -> (lane::Job, tokio::sync::OwnedSemaphorePermit) {
        let id = self.accept(Some("a@x.example"), vec![to("b@y.example", None)], Handling::default()).await;
        let (claim, _) = self.queue().claim_by_id(id).await.unwrap();
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        (lane::Job { claim, places: vec![0] }, permit)
    }

    fn open(directory: tempfile::TempDir) -> Self {
        let orders = orders(directory.path());
        let (queue, thread) = Queue::open(&orders.queue, Clock::System).unwrap();
        let feeding = queue.clone();
        let feeder = tokio::spawn(async move { feeding.feed().await });
        let runner = Runner::new(orders, queue, Observer::default(), Clock::System);
        Self { directory, runner, thread, feeder }
    }

    async fn restart(self) -> Self {
        self.feeder.abort();
        let _ = self.feeder.await;
        drop(self.runner);
        self.thread.join();
        Self::open(self.directory)
    }

    fn queue(&self) -> &Queue {
        &self.runner.0.queue
    }

    pub(super) fn orders(&self, change: impl FnOnce(&mut Orders)) -> Orders {
        let mut orders = orders(self.directory.path());
        change(&mut orders);
        orders
    }

    async fn accept(&self, sender: Option<&str>, recipients: Vec<Addressee>, handling: Handling) -> QueueId {
        let mut incoming = self.queue().begin().unwrap();
        incoming.push(b"Subject: hello\r\n\r\nthe body\r\n");
        let reverse_path = sender.map_or(ReversePath::NULL, |sender| Mailbox::parse(sender).unwrap().into());
        let envelope = Envelope { reverse_path, recipients, handling };
        incoming.commit(envelope, Origin::default(), Facts::default()).await.unwrap().id()
    }

    /// Settles what is claimed next with one outcome for all.
    async fn settle(&self, orders: &Orders, id: QueueId, outcome: &Outcome, upstream: &Capabilities) {
        let (claim, _) = self.queue().claim_by_id(id).await.unwrap();
        let pending: Vec<usize> = claim.entry().pending().map(|(place, _)| place).collect();
        let outcomes = vec![outcome.clone(); pending.len()];
        let settled = self.runner.settle(orders, claim, &pending, outcomes, Some(upstream), None);
        settled.durable().await.unwrap();
    }

    pub(super) async fn entries(&self) -> Vec<Entry> {
        let listed = self.queue().list(None, 10_000).await.unwrap();
        listed.into_iter().map(|listed| listed.entry.expect("none is damaged")).collect()
    }

    /// All reports that are queued, and whom they are for; they are taken out.
    async fn reports(&self) -> Vec<(String, String)> {
        let mut reports = Vec::new();
        for entry in self.entries().await.into_iter().filter(|entry| entry.origin.client == "report") {
            assert_eq!(entry.reverse_path, ReversePath::NULL);
            let (claim, _) = self.queue().claim_by_id(entry.id).await.unwrap();
            let Content::Memory(octets) = claim.content().clone() else { panic!("a report is small") };
            reports.push((
                entry.recipients[0].address.to_string(),
                String::from_utf8(octets.to_vec()).expect("a report is text"),
            ));
            self.queue().settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
        }
        reports
    }
}

fn to(address: &str, notify: Option<Wish>) -> Addressee {
    Addressee { notify, ..Mailbox::parse(address).unwrap().into() }
}

fn evidence(code: u16, enhanced: Enhanced) -> Evidence {
    Evidence {
        at: Clock::System.now(),
        upstream: "up.example".into(),
        phase: "RCPT".into(),
        scope: Scope::Recipient,
        reply: Some(Reply::new(code, Some(enhanced), "says the test")),
        explanation: None,
        status: None,
        uncertain: false,
        advice: None,
        tls: None,
    }
}

fn taken() -> Outcome {
    Outcome::Delivered(evidence(250, Enhanced(2, 0, 0)))
}

fn refused() -> Outcome {
    Outcome::Failed(evidence(550, Enhanced(5, 1, 1)))
}

fn not_now() -> Outcome {
    Outcome::Deferred(evidence(451, Enhanced(4, 3, 0)))
}

fn values<'a>(report: &'a str, field: &str) -> BTreeSet<&'a str> {
    report.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(": ")).collect()
}

/// For each NOTIFY: taken, refused, given up, late, by an upstream with DSN and by one without; the
/// same for mail from the null sender. R F D: reported as relayed, failed, delayed; H: held for the
/// operator; -: nobody is told, and it is as it should be.
const WISHES: &str = "
    NOTIFY                 sender/DSN  sender/none  null/DSN  null/none
    (absent)               -FFD        -FFD         -HH-      -HH-
    NEVER                  ----        ----         ----      ----
    SUCCESS                ----        R---         ----      ----
    FAILURE                -FF-        -FF-         -HH-      -HH-
    DELAY                  ---D        ---D         ----      ----
    SUCCESS,FAILURE        -FF-        RFF-         -HH-      -HH-
    SUCCESS,DELAY          ---D        R--D         ----      ----
    FAILURE,DELAY          -FFD        -FFD         -HH-      -HH-
    SUCCESS,FAILURE,DELAY  -FFD        RFFD         -HH-      -HH-
";

#[tokio::test]
async fn every_wish_is_met_whatever_happens_wherever() {
    let fixture = Fixture::new();
    let patient = fixture.orders(|_| ());
    let impatient = fixture.orders(|orders| orders.queue.lifetime = Duration::ZERO);
    let worried = fixture.orders(|orders| orders.queue.delay_warning = Some(Duration::ZERO));
    let fates = [(taken(), &patient), (refused(), &patient), (not_now(), &impatient), (not_now(), &worried)];
    let mut cases = 0;
    for row in WISHES.trim().lines().skip(1) {
        let words: Vec<&str> = row.split_whitespace().collect();
        let notify = Wish::parse(words[0]);
        for (group, letters) in words[1..].iter().enumerate() {
            let sender = (group < 2).then_some("app@sender.example");
            let upstream = Capabilities { dsn: group % 2 == 0, ..Capabilities::default() };
            for ((outcome, orders), letter) in fates.iter().zip(letters.chars()) {
                let recipient = vec![to("user@x.example", notify)];
                let id = fixture.accept(sender, recipient, Handling::default()).await;
                fixture.settle(orders, id, outcome, &upstream).await;
                let reports = fixture.reports().await;
                let left = fixture.entries().await;
                let seen = match (&reports[..], left.first().and_then(|entry| entry.held.as_ref())) {
                    ([], None) => '-',
                    ([], Some(_)) => 'H',
                    ([(to, report)], None) => {
                        assert_eq!(to, "app@sender.example");
                        assert_eq!(values(report, "Final-Recipient"), ["rfc822; user@x.example"].into());
                        let action = values(report, "Action").pop_first().expect("an action");
                        action.chars().next().expect("a word").to_ascii_uppercase()
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(seen, letter, "{outcome:?}, {} in {row}", words[0]);
                for entry in left {
                    fixture.queue().act(entry.id, crate::queue::Action::Delete, "").await.unwrap();
                }
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 144);
}

#[tokio::test]
async fn recipients_of_one_message_have_their_own_wishes_and_share_a_report() {
    let fixture = Fixture::new();
    let wish = |words: &str| Wish::parse(words);
    let mut first = to("a@x.example", None);
    first.original = Some(OriginalRecipient { kind: "rfc822".into(), address: "anna@old.example".into() });
    let recipients = vec![
        first,
        to("b@x.example", wish("NEVER")),
        to("c@x.example", wish("SUCCESS,FAILURE")),
        to("d@x.example", wish("SUCCESS")),
        to("e@x.example", wish("SUCCESS")),
        to("f@x.example", None),
    ];
    let handling = Handling { envid: Some("QQ1".into()), ret: Some(Ret::Full), ..Handling::default() };
    let id = fixture.accept(Some("app@sender.example"), recipients, handling).await;
    let (claim, _) = fixture.queue().claim_by_id(id).await.unwrap();
    let outcomes = vec![refused(), refused(), refused(), taken(), taken(), not_now()];
    let orders = fixture.orders(|_| ());
    let upstream = Capabilities::default();
    let settled = fixture.runner.settle(&orders, claim, &[0, 1, 2, 3, 4, 5], outcomes, Some(&upstream), None);
    settled.durable().await.unwrap();

    let reports = fixture.reports().await;
    assert_eq!(reports.len(), 2);
    let of = |action: &str| {
        let found = reports.iter().find(|(_, report)| values(report, "Action") == [action].into());
        found.unwrap_or_else(|| panic!("{action} is not in {reports:#?}")).1.as_str()
    };
    let (failed, relayed) = (of("failed"), of("relayed"));
    let both = ["rfc822; a@x.example", "rfc822; c@x.example"];
    assert_eq!(values(failed, "Final-Recipient"), both.into());
    assert_eq!(values(failed, "Original-Recipient"), ["rfc822; anna@old.example"].into());
    assert_eq!(values(failed, "Original-Envelope-Id"), ["QQ1"].into());
    assert!(failed.contains("message/rfc822") && failed.contains("the body"), "RET=FULL: {failed}");
    let both = ["rfc822; d@x.example", "rfc822; e@x.example"];
    assert_eq!(values(relayed, "Final-Recipient"), both.into());
    assert!(relayed.contains("text/rfc822-headers") && !relayed.contains("the body"), "{relayed}");

    let entries = fixture.entries().await;
    let states: Vec<_> = entries[0].recipients.iter().map(|recipient| recipient.state).collect();
    use RecipientState::{Bounced, Delivered, Pending};
    assert_eq!(states, [Bounced, Bounced, Bounced, Delivered, Delivered, Pending]);
}

#[tokio::test]
async fn what_the_null_sender_can_not_be_told_the_postmaster_is_and_no_report_on_that() {
    let fixture = Fixture::new();
    let orders = fixture.orders(|orders| orders.postmaster = Mailbox::parse("root@sender.example").ok());
    let upstream = Capabilities::default();
    let recipients = vec![to("a@x.example", None), to("b@x.example", Wish::parse("NEVER"))];
    let id = fixture.accept(None, recipients, Handling::default()).await;
    fixture.settle(&orders, id, &refused(), &upstream).await;
    let reports = fixture.reports().await;
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].0, "root@sender.example");
    assert_eq!(values(&reports[0].1, "Final-Recipient"), ["rfc822; a@x.example"].into());
    assert!(fixture.entries().await.is_empty());

    let id = fixture.accept(None, vec![to("root@sender.example", None)], Handling::default()).await;
    fixture.settle(&orders, id, &refused(), &upstream).await;
    let entries = fixture.entries().await;
    assert_eq!((entries.len(), entries[0].id), (1, id));
    assert!(entries[0].held.is_some(), "kept and shown, rather than lost");
}

#[tokio::test]
async fn a_sender_is_warned_once_also_over_a_restart() {
    let fixture = Fixture::new();
    let worried =
        |fixture: &Fixture| fixture.orders(|orders| orders.queue.delay_warning = Some(Duration::ZERO));
    let recipients = vec![to("a@x.example", None), to("b@x.example", Wish::parse("FAILURE"))];
    let id = fixture.accept(Some("app@sender.example"), recipients, Handling::default()).await;
    let upstream = Capabilities::default();
    fixture.settle(&fixture.orders(|_| ()), id, &not_now(), &upstream).await;
    assert!(fixture.reports().await.is_empty(), "never, if never is wished");
    fixture.settle(&worried(&fixture), id, &not_now(), &upstream).await;
    let reports = fixture.reports().await;
    assert_eq!(reports.len(), 1);
    let (_, report) = &reports[0];
    assert_eq!(values(report, "Final-Recipient"), ["rfc822; a@x.example"].into());
    assert_eq!((values(report, "Action"), values(report, "Status")), (["delayed"].into(), ["4.3.0"].into()));
    assert_eq!(values(report, "Will-Retry-Until").len(), 1);

    let fixture = fixture.restart().await;
    fixture.settle(&worried(&fixture), id, &not_now(), &upstream).await;
    assert!(fixture.reports().await.is_empty());
}

#[tokio::test]
async fn mail_that_waits_before_a_closed_gate_is_told_to_be_late_and_goes_on_waiting() {
    let fixture = Fixture::new();
    let orders = fixture.orders(|_| ());
    // More than a page, and than what is written at once.
    for _ in 0..250 {
        fixture.accept(Some("app@sender.example"), vec![to("a@x.example", None)], Handling::default()).await;
    }
    for (sender, notify) in [(None, None), (Some("app@sender.example"), Wish::parse("NEVER"))] {
        fixture.accept(sender, vec![to("a@x.example", notify)], Handling::default()).await;
    }
    let trouble = Evidence {
        explanation: Some("nobody answers".into()),
        reply: None,
        ..evidence(0, Enhanced(4, 4, 1))
    };
    fixture.runner.lanes()[0].gate.pass().await.failed(WAITS, trouble);
    let due = |listed: &crate::queue::Listed| (listed.id, listed.due);
    let before: Vec<_> = fixture.queue().list(None, 1_000).await.unwrap().iter().map(due).collect();
    let busy = fixture.queue().claim().await;

    let mut walk = Walk::default();
    fixture.runner.walk(&orders, &mut walk, DAY).await.unwrap();
    assert!(fixture.reports().await.is_empty(), "nothing is a day old");
    let mut held = fixture.entries().await.remove(0);
    let (late, warning) = (DAY, fixture.orders(|orders| orders.queue.delay_warning = Some(DAY)));
    let now = held.received.after(late);
    assert!(super::settle::is_late(&warning, &held, now));
    held.handling.hold_until = Some(held.received.after(late));
    assert!(!super::settle::is_late(&warning, &held, now), "until then its sender wants it to wait");
    assert!(super::settle::is_late(&warning, &held, now.after(late)));
    let orders = fixture.orders(|orders| orders.queue.delay_warning = Some(Duration::ZERO));
    fixture.runner.walk(&orders, &mut walk, Duration::ZERO).await.unwrap();
    let reports = fixture.reports().await;
    assert_eq!(reports.len(), 249, "all but the one that is being tried");
    assert!(reports[0].1.contains("Diagnostic-Code: X-Outpost; nobody answers"), "{}", reports[0].1);
    drop(busy);
    fixture.runner.walk(&orders, &mut walk, Duration::ZERO).await.unwrap();
    assert_eq!(fixture.reports().await.len(), 1);
    fixture.runner.walk(&orders, &mut Walk::default(), Duration::ZERO).await.unwrap();
    assert!(fixture.reports().await.is_empty(), "told once, also where a new walk begins");
    let after: Vec<_> = fixture.queue().list(None, 1_000).await.unwrap().iter().map(due).collect();
    assert_eq!(before, after, "each keeps its place");
    for _ in 0..252 {
        let claim =
            tokio::time::timeout(Duration::from_secs(20), fixture.queue().claim()).await.expect("due");
        fixture.queue().settle(claim, Next::Done, Vec::new()).durable().await.unwrap();
    }
    assert!(fixture.entries().await.is_empty());
}

#[tokio::test]
async fn mail_that_was_on_hold_is_told_to_be_late_when_it_has_waited_since() {
    let fixture = Fixture::new();
    let soon = fixture.runner.clock().now().after(Duration::from_millis(400));
    let handling = Handling { hold_until: Some(soon), ..Handling::default() };
    fixture.accept(Some("app@sender.example"), vec![to("a@x.example", None)], handling).await;
    let delay = Duration::from_millis(200);
    let orders = fixture.orders(|orders| orders.queue.delay_warning = Some(delay));
    let mut walk = Walk::default();
    tokio::time::sleep(Duration::from_millis(300)).await;
    fixture.runner.walk(&orders, &mut walk, delay).await.unwrap();
    let early = fixture.reports().await.len();
    assert!(early == 0 || fixture.runner.clock().now() >= soon.after(delay));
    tokio::time::sleep(Duration::from_millis(500)).await;
    fixture.runner.walk(&orders, &mut walk, delay).await.unwrap();
    assert_eq!(early + fixture.reports().await.len(), 1);
}

#[tokio::test]
async fn a_message_with_a_time_is_returned_at_it_or_its_sender_told() {
    let fixture = Fixture::new();
    let orders = fixture.orders(|_| ());
    let upstream = Capabilities { dsn: true, ..Capabilities::default() };
    let now = Clock::System.now();
    let by = |time, or_return, trace| Handling {
        deliver_by: Some(DeliverBy { time, or_return, trace }),
        ..Handling::default()
    };
    let cases = [
        (by(now, true, false), not_now(), Some("failed")),
        (by(now, false, false), not_now(), Some("delayed")),
        (by(now.after(DAY), true, false), not_now(), None),
        (by(now.after(DAY), false, true), taken(), Some("relayed")),
        (by(now.after(DAY), false, false), taken(), None),
    ];
    for (handling, outcome, wanted) in cases {
        let id =
            fixture.accept(Some("app@sender.example"), vec![to("a@x.example", None)], handling.clone()).await;
        fixture.settle(&orders, id, &outcome, &upstream).await;
        let reports = fixture.reports().await;
        let action = reports.first().and_then(|(_, report)| values(report, "Action").pop_first());
        assert_eq!(action, wanted, "{handling:?}");
    }
    // The last try is at the time itself, although the next would be later.
    let soon = now.after(Duration::from_secs(20));
    let id = fixture
        .accept(Some("app@sender.example"), vec![to("a@x.example", None)], by(soon, true, false))
        .await;
    fixture.settle(&orders, id, &not_now(), &upstream).await;
    let listed = fixture.queue().get(id).await.unwrap().expect("it waits");
    assert_eq!(listed.due, soon);
}

/// Some of a transaction are taken, one is asked to come later, and for the others there was no room.
#[tokio::test]
async fn recipients_wait_each_for_itself_and_to_be_the_next_is_no_attempt() {
    let fixture = Fixture::new();
    let orders = fixture.orders(|_| ());
    let recipients = ["a", "b", "c", "d"].map(|name| to(&format!("{name}@x.example"), None));
    let id = fixture
        .accept(Some("app@sender.example"), recipients.into_iter().collect(), Handling::default())
        .await;
    let settle = async |places: Vec<usize>, outcomes: Vec<Outcome>| {
        let (claim, _) = fixture.queue().claim_by_id(id).await.unwrap();
        let upstream = Capabilities::default();
        let settled = fixture.runner.settle(&orders, claim, &places, outcomes, Some(&upstream), None);
        settled.durable().await.unwrap();
        fixture.entries().await.remove(0).recipients
    };
    let seen = evidence(450, Enhanced(4, 2, 0));
    let not_before = Some(seen.at.after(Duration::from_secs(300)));
    let advice = Advice { who: Who::Nobody, help: None, not_before, tries: None, slower: None };
    let later = Outcome::Deferred(Evidence { advice: Some(Box::new(advice)), ..seen });
    let no_room =
        Outcome::Deferred(Evidence { scope: Scope::Transaction, ..evidence(452, Enhanced(4, 5, 3)) });

    let begin = Clock::System.now();
    let after = |seconds| Some(begin.after(Duration::from_secs(seconds)));
    let all = settle(vec![0, 1, 2, 3], vec![taken(), later, no_room.clone(), no_room.clone()]).await;
    assert!(all[1].due >= after(300), "it goes when the upstream said");
    let of_later = all[1].due;
    let now = Some(Clock::System.now());
    assert!(all[2].due <= now && all[3].due <= now, "they go at once");
    assert_eq!(all.iter().map(|recipient| recipient.attempts).collect::<Vec<_>>(), [1, 1, 0, 0]);
    // One more has its answer, so that fewer are left.
    let all = settle(vec![2, 3], vec![not_now(), no_room.clone()]).await;
    assert!(all[2].due >= after(48) && all[3].due <= Some(Clock::System.now()));
    assert_eq!((all[2].attempts, all[3].attempts, all[1].due), (1, 0, of_later));
    // Nobody has: the same at once would bring the same.
    let all = settle(vec![3], vec![no_room]).await;
    assert!(all[3].due >= after(48) && all[3].attempts == 1);
}

/// No message expires, and none counts a try, for what was said of its sender before its time was over.
#[tokio::test]
async fn mail_of_a_paused_sender_waits_untried_and_expires_only_behind_a_refusal_of_its_time() {
    let fixture = Fixture::new();
    let lane = fixture.lane();
    let id = fixture.accept(Some("busy@x.example"), vec![to("a@b.example", None)], Handling::default()).await;
    let admit = async || {
        let (claim, _) = fixture.queue().claim_by_id(id).await.unwrap();
        let places = claim.entry().pending().map(|(place, _)| place).collect();
        let settled = fixture.runner.admit(&lane, lane::Job { claim, places }).expect_err("it is paused");
        settled.durable().await.unwrap();
        let listed = fixture.queue().get(id).await.unwrap();
        listed.map(|listed| (listed.due, listed.entry.expect("none is damaged").recipients.remove(0)))
    };
    let until = Clock::System.now().after(Duration::from_secs(3_600));
    let advice = Advice { who: Who::Nobody, help: None, not_before: Some(until), tries: None, slower: None };
    let said =
        Evidence { scope: Scope::Sender, advice: Some(Box::new(advice)), ..evidence(550, Enhanced(5, 4, 5)) };
    lane.breaker.sender_paused("busy@x.example", &said);
    for _ in 0..3 {
        let (due, recipient) = admit().await.expect("it stays");
        assert_eq!((due, recipient.due, recipient.attempts), (until, Some(until), 0));
        assert_eq!((recipient.state, recipient.last), (RecipientState::Pending, Some(said.clone())));
    }
    // Its time is over, and the pause is from before: it is tried once more, when that may be.
    let short = |orders: &mut Orders| orders.queue.lifetime = Duration::from_millis(1);
    let earlier = Evidence { at: Timestamp(0), ..said.clone() };
    tokio::time::sleep(Duration::from_millis(5)).await;
    fixture.runner.0.orders.store(Arc::new(fixture.orders(short)));
    lane.breaker.sender_paused("busy@x.example", &earlier);
    assert_eq!(admit().await.expect("it stays").1.attempts, 0);
    lane.breaker.sender_paused("busy@x.example", &Evidence { at: Clock::System.now(), ..said });
    assert!(admit().await.is_none(), "it is given up");
    assert_eq!(fixture.reports().await.len(), 1);
}
