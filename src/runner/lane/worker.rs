//! A worker: one connection to the upstream, and message after message over it.
//!
//! It opens its connection through the gate, once, at its birth; when the connection ends, so does the worker.

use std::{pin::pin, sync::atomic::Ordering, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::{Instant, timeout},
};

use super::{Job, Lane, Work, lock};
use crate::{
    clock::Timestamp,
    config::Waits,
    delivery::{
        Agent, Trouble,
        client::{Ahead, Attempt, Client},
        phase::Phase,
    },
    limits::{account::Spent, gate::Pass},
    mail::outcome::{Evidence, Outcome, Scope, Slower, Who},
    observe::UpstreamLabels,
    queue::{DAMAGED, Settled},
    runner::{Orders, Runner, ready::Ready, settle::given_up},
    smtp::extension::Capabilities,
};

/// A kept connection without mail is given back to the upstream after so long.
const IDLE: Duration = Duration::from_secs(20);
/// Behind longer content a message would wait too long for its turn.
const SHORT: u64 = 64 * 1024;
/// A message whose envelope was sent behind another's content waits so long for the other's final reply,
/// and then goes by another connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the attempt at one message ended, for the worker.
struct Carried {
    settled: Option<Settled>,
    /// No more on this connection for now.
    stop: bool,
}

impl Runner {
    /// A worker's life.
    pub(super) async fn work(
        &self,
        lane: &Lane,
        job: Job,
        permit: OwnedSemaphorePermit,
        pass: Pass,
        shutdown: watch::Receiver<bool>,
    ) {
        let agent = lane.agent();
        let job = match self.admit(lane, job) {
            Ok(job) => job,
            // A connection would be opened in vain.
            Err(_held) => return,
        };
        // It was given before there was a message to carry, and the gate may have closed since.
        if !pass.begin() {
            return;
        }
        let begun = Instant::now();
        let client = match agent.open(|step| tracing::debug!(what = step.what, "{}", step.detail)).await {
            Ok(client) => client,
            Err(trouble) => {
                if trouble.evidence.slower() == Some(Slower::Connections) {
                    // As many as are open it does take.
                    lane.pace.fewer(begun, lane.connections());
                }
                return self.closed(lane, &agent, job, pass, *trouble);
            }
        };
        // Before the pass ends: whoever counts those that are open and those being opened must not miss it.
        let counted = Counted::begin(lane);
        if pass.succeeded() {
            tracing::info!(upstream = agent.upstream().name, "the upstream takes mail again");
        }
        // While it was being opened, another connection learned that no mail is wanted now, or we were told to end:
        // who waits for that does not wait for another final reply.
        if lane.gate.stops_all() || lane.is_retired() || *shutdown.borrow() {
            drop((counted, job));
            return client.quit().await;
        }
        self.show(&agent, lane.connections());
        self.carry(lane, &agent, client, (job, permit), shutdown).await;
        drop(counted);
        self.show(&agent, lane.connections());
    }

    /// Carries message after message over one connection.
    async fn carry(
        &self,
        lane: &Lane,
        agent: &Agent,
        mut client: Client<TcpStream>,
        (job, permit): Work,
        shutdown: watch::Receiver<bool>,
    ) {
        let (mut permit, mut settled) = (permit, None);
        let most = agent.upstream().messages.unwrap_or(u64::MAX);
        let mut next = self.prepare(lane, job, &mut settled).await;
        loop {
            let mut stop = false;
            if let Some(ready) = next.take() {
                let follows = !*shutdown.borrow() && client.carried() + 1 < most;
                let behind = if follows { self.behind(lane, &client, &ready).await } else { None };
                let carried;
                (carried, next) = self.carry_one(lane, agent, &mut client, ready, behind, settled).await;
                (settled, stop) = (carried.settled, carried.stop);
            }
            let changed = !agent.is_same(&lane.agent.load()) || lane.is_retired();
            let stop = stop || lane.gate.stops_all() || changed || *shutdown.borrow();
            if !client.is_usable() || client.carried() >= most || stop {
                break;
            }
            if let Some(ready) = next.take() {
                // What the one before showed may have stopped this one.
                next = self.readmit(lane, ready, &mut settled);
                if next.is_none() {
                    break;
                }
                continue;
            }
            let more = client.is_free() && lane.account.blocked().is_none() && lane.pace.is_ready();
            let job = match more.then(|| self.try_draw(lane)).flatten() {
                Some(job) => job,
                None if !client.is_free() => break,
                None => {
                    drop(permit);
                    let Some(work) = self.wait_for_work(lane).await else { break };
                    let job;
                    (job, permit) = work;
                    job
                }
            };
            next = self.prepare(lane, job, &mut settled).await;
        }
        if let Some(ready) = next {
            ready.give_back();
        }
        if let Some(settled) = settled {
            let _ = settled.durable().await;
        }
        client.quit().await;
    }

    /// Waits among the idle; `None` when it waited too long, or is told to go.
    async fn wait_for_work(&self, lane: &Lane) -> Option<Work> {
        let name = lane.names.fetch_add(1, Ordering::Relaxed);
        let (sender, mut work) = mpsc::channel(1);
        lock(&lane.idle).push((name, sender));
        lane.idled.notify_one();
        if let Ok(work) = timeout(IDLE, work.recv()).await {
            return work;
        }
        let was_there = {
            let mut idle = lock(&lane.idle);
            let before = idle.len();
            idle.retain(|(other, _)| *other != name);
            idle.len() < before
        };
        // Not there any more: the dispatcher has just chosen us.
        if was_there { None } else { work.recv().await }
    }

    /// Takes a message's share of the limits. One that may not be tried is held, which is noted in
    /// `settled`; one for which nothing is left goes back as it was, and waits with the others.
    async fn prepare(&self, lane: &Lane, job: Job, settled: &mut Option<Settled>) -> Option<Ready> {
        let mut job = match self.admit(lane, job) {
            Ok(job) => job,
            Err(held) => {
                *settled = Some(held);
                return None;
            }
        };
        let paced = lane.pace.begin()?;
        // The others follow at once, in another transaction.
        job.places.truncate(lane.agent.load().upstream().recipients.unwrap_or(usize::MAX));
        let leave = lane.account.take(job.places.len()).await?;
        job.places.truncate(leave.recipients());
        let (agent, entry) = (lane.agent(), job.claim.entry());
        // By the settings of now, which an open connection need not know.
        let dressed = agent.dress(&entry.reverse_path, job.claim.content(), job.places.len()).await;
        match dressed {
            Ok(dressed) => Some(Ready { job, leave, paced, dressed }),
            Err(undressed) => {
                leave.spent(Spent::Nothing);
                *settled = self.conclude(lane, &agent, None, (job, paced), undressed).settled;
                None
            }
        }
    }

    /// The same message, if it still may be tried.
    fn readmit(&self, lane: &Lane, ready: Ready, settled: &mut Option<Settled>) -> Option<Ready> {
        let Ready { job, leave, paced, dressed } = ready;
        match self.admit(lane, job) {
            Ok(job) => Some(Ready { job, leave, paced, dressed }),
            Err(held) => {
                leave.spent(Spent::Nothing);
                *settled = Some(held);
                None
            }
        }
    }

    /// The message to announce behind this one's content, if one is at hand, nobody else is free to take
    /// it, and it would not have to wait for long.
    async fn behind(&self, lane: &Lane, client: &Client<TcpStream>, ready: &Ready) -> Option<(Ready, Ahead)> {
        let short = ready.job.claim.content().size() <= SHORT && !lane.one_at_a_time.load(Ordering::Relaxed);
        let open = lane.is_open() && lane.pace.is_ready() && !lane.gate.stops_all() && !lane.is_retired();
        if !client.can_go_ahead() || !short || !open || !lock(&lane.idle).is_empty() {
            return None;
        }
        let job = self.try_draw(lane)?;
        let next = self.prepare(lane, job, &mut None).await?;
        match client.ahead(&next.message()) {
            Some(ahead) => Some((next, ahead)),
            None => {
                next.give_back();
                None
            }
        }
    }

    /// One attempt at one message. `before` is the settlement of the message before it; `behind` is
    /// announced with it, and returned, unless it had to wait too long.
    async fn carry_one(
        &self,
        lane: &Lane,
        agent: &Agent,
        client: &mut Client<TcpStream>,
        ready: Ready,
        behind: Option<(Ready, Ahead)>,
        before: Option<Settled>,
    ) -> (Carried, Option<Ready>) {
        let (mut next, ahead) = behind.unzip();
        let message = ready.message();
        let (announced, begun) = (!client.is_free(), Instant::now());
        let recorded = async {
            if let Some(before) = before {
                // If it can't be recorded the queue goes on trying, and keeps the entry to itself.
                let _ = before.durable().await;
            }
        };
        let attempt = {
            let mut attempt = pin!(client.attempt(&message, ahead, recorded));
            match timeout(PATIENCE, &mut attempt).await {
                Ok(attempt) => attempt,
                Err(_) => {
                    next.take().into_iter().for_each(Ready::give_back);
                    attempt.await
                }
            }
        };
        if announced && matches!(attempt, Attempt::Stale) && begun.elapsed() >= PATIENCE {
            tracing::warn!("the upstream does not answer what follows content, so nothing will");
            lane.one_at_a_time.store(true, Ordering::Relaxed);
        }
        let Ready { job, leave, paced, .. } = ready;
        match &attempt {
            Attempt::Done(outcomes) | Attempt::Lost(outcomes) => leave.spent(spent(outcomes)),
            // Nothing was said of it.
            Attempt::Stale => leave.spent(Spent::Nothing),
            // Some of it may have left before that was seen.
            Attempt::Damaged => drop(leave),
        }
        (self.conclude(lane, agent, Some(client.capabilities()), (job, paced), attempt), next)
    }

    /// What follows from an attempt: for the message, and the lane.
    fn conclude(
        &self,
        lane: &Lane,
        agent: &Agent,
        upstream: Option<&Capabilities>,
        (job, paced): (Job, Instant),
        attempt: Attempt,
    ) -> Carried {
        let orders = self.orders();
        let is_lost = matches!(attempt, Attempt::Lost(_));
        match attempt {
            Attempt::Done(outcomes) | Attempt::Lost(outcomes) => {
                let outcomes = given_up(outcomes, job.claim.entry(), &job.places);
                if let Some(reason) = self.judged(&orders, lane, job.claim.entry(), &outcomes) {
                    let settled = self.settle_held(job.claim, &job.places, outcomes, &reason);
                    return Carried { settled: Some(settled), stop: false };
                }
                match outcomes.iter().find_map(|outcome| outcome.evidence().slower()) {
                    Some(Slower::Rate) => lane.pace.slower(paced),
                    Some(Slower::Connections) => lane.pace.fewer(paced, lane.connections() / 2),
                    None => {}
                }
                if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Delivered(_)))
                    && lane.gate.delivered()
                {
                    // There is room for other connections.
                    lane.idled.notify_one();
                }
                let pauses = if is_lost { &[] } else { &outcomes[..] };
                let until = self.pause(&orders, lane, agent, pauses);
                let settled = self.settle(&orders, job.claim, &job.places, outcomes, upstream, until);
                Carried { settled: Some(settled), stop: until.is_some() }
            }
            // It goes back as it was.
            Attempt::Stale => Carried { settled: None, stop: false },
            Attempt::Damaged => Carried { settled: Some(self.hold(job.claim, DAMAGED)), stop: false },
        }
    }

    /// Closes the gate if the upstream said of one message what concerns them all: a login that it
    /// wants, a limit of the account. Returns when it will be asked again.
    fn pause(&self, orders: &Orders, lane: &Lane, agent: &Agent, outcomes: &[Outcome]) -> Option<Timestamp> {
        let (evidence, waits) = outcomes.iter().find_map(|outcome| {
            let evidence = outcome.evidence();
            match evidence.scope {
                // What it did not say itself is about this message.
                _ if evidence.reply.is_none() => None,
                Scope::Credential => Some((evidence, agent.upstream().auth_retry)),
                Scope::Account | Scope::Upstream => {
                    Some((evidence, retry_after(orders.queue.retry, evidence)))
                }
                _ => None,
            }
        })?;
        let until = lane.gate.close(waits, evidence.clone());
        // The idle ones go too: they would only hear the same.
        lane.send_idle_home();
        lane.empty_tray();
        tracing::warn!(upstream = evidence.upstream, next_try = %until, "the upstream is left alone: {evidence}");
        Some(until)
    }

    /// No connection: the gate closes, and the message that was tried remembers why, unless another
    /// upstream can take it.
    fn closed(&self, lane: &Lane, agent: &Agent, job: Job, pass: Pass, trouble: Trouble) {
        let orders = self.orders();
        let Trouble { evidence } = trouble;
        let waits = match evidence.scope {
            Scope::Credential => agent.upstream().auth_retry,
            Scope::Account => retry_after(orders.queue.retry, &evidence),
            // Asking whether it is back costs an upstream nothing, so it is asked soon at first.
            _ => Waits {
                first: orders.queue.retry.first.min(Duration::from_secs(5)),
                longest: orders.queue.retry.longest.min(Duration::from_secs(300)),
            },
        };
        let until = pass.failed(waits, evidence.clone());
        lane.empty_tray();
        tracing::warn!(
            upstream = evidence.upstream,
            phase = evidence.phase,
            who_must_act = evidence.who().map(Who::name),
            next_try = %until,
            help = evidence.help(),
            "no mail can be sent: {evidence}"
        );
        if !self.can_go_elsewhere(&job) {
            self.defer(&orders, job, &evidence, until);
        }
        // Others whose time is over have had this attempt too: it would have been theirs.
        while let Some(job) = self.try_draw(lane) {
            let over = self.has_waited_in_vain(&orders, job.claim.entry(), evidence.at);
            if self.can_go_elsewhere(&job) || !over {
                break;
            }
            self.defer(&orders, job, &evidence, until);
        }
    }

    pub(in crate::runner) fn defer(&self, orders: &Orders, job: Job, evidence: &Evidence, until: Timestamp) {
        let outcomes = vec![Outcome::Deferred(evidence.clone()); job.places.len()];
        drop(self.settle(orders, job.claim, &job.places, outcomes, None, Some(until)));
    }

    fn show(&self, agent: &Agent, open: usize) {
        let upstream = agent.upstream().name.clone();
        self.observer()
            .metrics()
            .upstream_connections
            .get_or_create(&UpstreamLabels { upstream })
            .set(open as i64);
    }
}

/// A connection that counts as open until this is dropped, also where what it does panics.
struct Counted<'l>(&'l Lane);

impl<'l> Counted<'l> {
    fn begin(lane: &'l Lane) -> Self {
        lane.connections.fetch_add(1, Ordering::Relaxed);
        Self(lane)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        // There is room for another connection.
        self.0.idled.notify_one();
    }
}

/// What the upstream may have counted: recipients for whom content was sent, be it in one flight with an
/// envelope that was never answered. Who is refused before costs it nothing, and so does content that we could not
/// even open.
fn spent(outcomes: &[Outcome]) -> Spent {
    let content = [Phase::Content.name(), Phase::FinalReply.name()];
    let is_ours = |evidence: &Evidence| evidence.reply.is_none() && evidence.scope == Scope::Message;
    let counts = |evidence: &Evidence| {
        evidence.uncertain || content.contains(&evidence.phase.as_str()) && !is_ours(evidence)
    };
    Spent::For(outcomes.iter().filter(|outcome| counts(outcome.evidence())).count() as u64)
}

fn retry_after(waits: Waits, evidence: &Evidence) -> Waits {
    // A limit of seconds must not grow into one of an hour.
    let Some(told) = evidence.not_before().map(|at| at.since(evidence.at)) else { return waits };
    Waits { first: waits.first.min(told), longest: waits.longest.min(told) }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        clock::Clock,
        config::{Upstream, parse_limit},
        limits::gate::Memory,
        mail::{
            content::{Facts, HEADER_MAX},
            envelope::{Envelope, Handling, Origin},
        },
        runner::tests::Fixture,
        smtp::{
            address::{Mailbox, ReversePath},
            pattern::AddressMap,
        },
    };

    /// Has the lane go by an upstream that differs from the fixture's.
    fn change(fixture: &Fixture, lane: &Lane, change: impl FnOnce(&mut Upstream)) {
        let mut upstream = fixture.orders(|_| ()).agents[0].upstream().clone();
        change(&mut upstream);
        let agent = Agent::new(upstream, "relay.example", Clock::System).expect("no certificate is needed");
        lane.change(agent, Memory::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_waits_in_vain_is_given_back() {
        let fixture = Fixture::new();
        let lane = fixture.lane();
        let begun = Instant::now();
        assert!(fixture.runner().wait_for_work(&lane).await.is_none());
        assert_eq!(begun.elapsed(), IDLE);
        assert!(lock(&lane.idle).is_empty(), "nobody hands it work any more");
        // Chosen in the last moment, it does what it was chosen for.
        let waiting = async {
            tokio::join!(fixture.runner().wait_for_work(&lane), async {
                tokio::time::sleep(IDLE - Duration::from_millis(1)).await;
                let (_, chosen) = lock(&lane.idle).pop().expect("it waits");
                tokio::time::sleep(Duration::from_millis(2)).await;
                chosen.try_send(fixture.work().await).expect("it listens");
            })
        };
        assert!(waiting.await.0.is_some());
    }

    #[tokio::test]
    async fn a_worker_whose_pass_is_from_before_the_gate_closed_gives_its_message_back() {
        let fixture = Fixture::new();
        let lane = fixture.lane();
        lane.gate.pass().await.succeeded();
        let pass = lane.gate.pass().await;
        lane.gate.pass().await.failed(lane.agent().upstream().auth_retry, seen(Phase::Auth, false));
        let (job, permit) = fixture.work().await;
        fixture.runner().work(&lane, job, permit, pass, watch::channel(false).1).await;
        assert_eq!((lane.gate.opening(), lane.connections()), (0, 0));
        assert_eq!(fixture.entries().await[0].recipients[0].attempts, 0);
    }

    /// An upstream that says yes to all, for one connection: its port, and what it was asked.
    async fn agreeable() -> (u16, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let asked = tokio::spawn(async move {
            let (mut stream, mut asked) = (BufReader::new(listener.accept().await.unwrap().0), Vec::new());
            stream.get_mut().write_all(b"220 up.example\r\n").await.unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
                asked.extend(line.split_whitespace().next().map(str::to_owned));
                stream.get_mut().write_all(b"250 up.example\r\n").await.unwrap();
                line.clear();
            }
            asked
        });
        (port, asked)
    }

    #[tokio::test]
    async fn told_to_end_while_it_connects_a_worker_begins_no_message() {
        for retires in [true, false] {
            let fixture = Fixture::new();
            let lane = fixture.lane();
            let (port, asked) = agreeable().await;
            change(&fixture, &lane, |upstream| {
                (upstream.server, upstream.port) = ("127.0.0.1".to_owned(), port);
            });
            let pass = lane.gate.pass().await;
            let (job, permit) = fixture.work().await;
            if retires {
                lane.retire();
            }
            let shutdown = watch::channel(!retires).1;
            fixture.runner().work(&lane, job, permit, pass, shutdown).await;
            assert_eq!(asked.await.unwrap(), ["EHLO", "QUIT"]);
            assert_eq!(lane.connections(), 0);
            assert_eq!(fixture.entries().await[0].recipients[0].attempts, 0);
        }
    }

    fn seen(phase: Phase, uncertain: bool) -> Evidence {
        Evidence {
            at: Timestamp(0),
            upstream: "up".into(),
            phase: phase.name().to_owned(),
            scope: Scope::Upstream,
            reply: None,
            explanation: None,
            status: None,
            advice: None,
            uncertain,
            tls: None,
        }
    }

    #[test]
    fn what_the_upstream_may_have_counted_is_not_given_back() {
        let count = |outcomes: &[Outcome]| match spent(outcomes) {
            Spent::For(count) => count,
            Spent::Nothing => 0,
        };
        let refused = Outcome::Failed(seen(Phase::Rcpt, false));
        let taken = Outcome::Delivered(seen(Phase::FinalReply, false));
        let cut_off = Outcome::Deferred(seen(Phase::Content, false));
        assert_eq!(count(&[refused.clone(), taken, cut_off, refused]), 2);
        // Envelope and content left together, and not a word came back.
        let lost = Outcome::Deferred(seen(Phase::Mail, true));
        assert_eq!(count(&[lost.clone(), lost]), 2);
        assert_eq!(count(&[Outcome::Deferred(seen(Phase::Mail, false))]), 0);
        // It was not even opened.
        let unread = Evidence { scope: Scope::Message, ..seen(Phase::Content, false) };
        assert_eq!(count(&[Outcome::Deferred(unread)]), 0);
    }

    /// Its header section has no end, so that no other sender can be put into it.
    #[tokio::test]
    async fn a_message_of_which_nothing_was_said_uses_up_no_limit() {
        let fixture = Fixture::new();
        let lane = fixture.lane();
        change(&fixture, &lane, |upstream| {
            upstream.sender_rewrite = Mailbox::parse("relay@x.example").ok().map(AddressMap::all);
            upstream.limits = vec![parse_limit("5 recipients/day").expect("a limit")];
        });
        let queue = fixture.runner().queue();
        let mut incoming = queue.begin().unwrap();
        incoming.push(&b"X: y\r\n".repeat(HEADER_MAX / 2));
        incoming.flush().await.unwrap();
        let recipients = vec![Mailbox::parse("b@y.example").unwrap().into()];
        let envelope =
            Envelope { reverse_path: ReversePath::NULL, recipients, handling: Handling::default() };
        let receipt = incoming.commit(envelope, Origin::default(), Facts::default()).await.unwrap();
        let (claim, _) = queue.claim_by_id(receipt.id()).await.unwrap();
        let mut settled = None;
        let ready = fixture.runner().prepare(&lane, Job { claim, places: vec![0] }, &mut settled).await;
        assert!(ready.is_none());
        settled.expect("it was refused").durable().await.unwrap();
        assert_eq!(lane.account.usage()[0].used, 0);
    }
}
