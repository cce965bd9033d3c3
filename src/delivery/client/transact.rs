//! One transaction: MAIL, RCPT…, content, and an outcome for each recipient.

use std::{future::Future, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Carried, Client, Form};
use crate::{
    delivery::{
        Message,
        lost::{Lost, Why},
        needs,
        phase::Phase,
        source::Source,
        transaction::Transaction,
    },
    mail::outcome::{Outcome, Scope},
    smtp::{
        command::Command,
        framing::ContentWriter,
        parameter::Body,
        reply::{Reply, Severity},
    },
};

/// Recipients of one pipelined group. RFC 2920 §3.1 warns of both sides waiting for the other to
/// read: so many commands and their replies fit every buffer between us.
const GROUP_MAX: usize = 100;
/// Content up to this size is worth sending before it is known whether anybody is accepted.
const AT_ONCE: usize = 64 * 1024;
/// An upstream that answered so recently is taken to be still there.
const WARM: Duration = Duration::from_secs(1);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// One transaction, whichever way the content travels.
    pub(super) async fn transact(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        source: Source<'_>,
        behind: Option<Ahead>,
        before_content: impl Future<Output = ()>,
    ) -> Result<Carried, Lost> {
        if self.ahead.is_none() && self.has_more() {
            return Err(Lost::new(Phase::Mail, Why::Closed));
        }
        let places: Vec<usize> = transaction.open().collect();
        let carried = match self.way(transaction.message, &source) {
            Way::Data => self.by_data(transaction, source, behind, before_content).await,
            Way::Chunk => self.by_chunk(transaction, source, before_content).await,
            Way::ChunkAtOnce(octets) => {
                before_content.await;
                self.at_once(transaction, octets).await.map(|()| Carried::Judged)
            }
        };
        if carried.as_ref().is_err_and(Lost::makes_void) {
            places.iter().for_each(|place| transaction.outcomes[*place] = None);
        }
        carried
    }

    /// How the content of a message travels to this upstream.
    fn way<'m>(&self, message: &Message<'_>, source: &Source<'m>) -> Way<'m> {
        if message.handling.body != Body::Binary && !self.capabilities.chunking {
            return Way::Data;
        }
        match source {
            // On a connection that has been silent the upstream may have left, and nobody could tell
            // whether it had taken the message before.
            Source::Memory(octets)
                if self.capabilities.pipelining
                    && octets.len() <= AT_ONCE
                    && message.recipients.len() <= GROUP_MAX
                    && self.heard.elapsed() < WARM =>
            {
                Way::ChunkAtOnce(octets)
            }
            _ => Way::Chunk,
        }
    }

    /// Envelope with DATA, then content: RFC 5321 §3.3.
    async fn by_data(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        source: Source<'_>,
        behind: Option<Ahead>,
        before_content: impl Future<Output = ()>,
    ) -> Result<Carried, Lost> {
        let data = self.envelope(transaction, true).await?;
        let accepted = transaction.open().count();
        if let Some(data) = data.filter(|data| data.code() != 354) {
            // A yes to DATA says nothing about content that was never sent, and behind a no there is nothing
            // more to say, but goodbye.
            let fits = matches!(data.severity(), Severity::Transient | Severity::Permanent);
            if !fits || self.says_more() {
                let words = format!("an answer that does not fit ({data})");
                return Err(Lost::new(Phase::Data, Why::OutOfStep(words)));
            }
            self.reset = true;
            self.judge(transaction, Phase::Data, &data);
            return Ok(Carried::Judged);
        }
        // RFC 5321 §4.3.2: behind 354 the server has nothing to say until the dot.
        if self.has_more() {
            return Err(Lost::new(Phase::Data, Why::OutOfStep("a reply too many".to_owned())));
        }
        if accepted == 0 {
            // RFC 2920 §3.1: DATA was let through although nobody was accepted. An empty message
            // to nobody ends it.
            self.output.extend_from_slice(b".\r\n");
            self.flush(Phase::Content).await?;
            self.read(Phase::FinalReply).await?;
            return Ok(Carried::Judged);
        }
        before_content.await;
        if !self
            .content(source, transaction.message.head, Form::Lines(ContentWriter::default()), behind)
            .await?
        {
            return Ok(Carried::Damaged);
        }
        self.final_reply(transaction).await?;
        // Another reply behind the last one answers nothing we asked.
        self.broken |= self.ahead.is_none() && self.has_more();
        Ok(Carried::Judged)
    }

    /// Envelope, then content in one chunk: RFC 3030 §2.
    async fn by_chunk(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        source: Source<'_>,
        before_content: impl Future<Output = ()>,
    ) -> Result<Carried, Lost> {
        self.envelope(transaction, false).await?;
        if transaction.open().next().is_none() {
            self.reset = true;
            return Ok(Carried::Judged);
        }
        if self.has_more() {
            return Err(Lost::new(Phase::Rcpt, Why::OutOfStep("a reply too many".to_owned())));
        }
        before_content.await;
        Command::Bdat(transaction.message.size(), true).write_to(&mut self.output);
        if !self.content(source, transaction.message.head, Form::Chunk, None).await? {
            return Ok(Carried::Damaged);
        }
        // RFC 3030 §2: behind a chunk that was refused only RSET is certain to be understood.
        self.reset = !self.final_reply(transaction).await?.is_success();
        self.broken |= self.has_more();
        Ok(Carried::Judged)
    }

    /// Envelope and content in one flight (RFC 3030 §4.2): one round trip. Whoever is refused, the
    /// upstream reads the chunk to its end (RFC 3030 §2), and if it refuses all, refuses that too.
    async fn at_once(&mut self, transaction: &mut Transaction<'_, '_>, octets: &[u8]) -> Result<(), Lost> {
        self.look().await?;
        let places: Vec<usize> = transaction.open().collect();
        let mut commands = self.first_group(transaction, &places, false);
        commands.push((Phase::FinalReply, Command::Bdat(transaction.message.size(), true)));
        for (_, command) in &commands {
            command.write_to(&mut self.output);
        }
        let (head, skip) =
            transaction.message.head.map_or((&[][..], 0), |head| (&head.octets[..], head.replaces));
        self.output.extend_from_slice(head);
        self.output.extend_from_slice(&octets[skip.min(octets.len())..]);
        // A write that fails leaves the chunk incomplete, which nobody can take for a message.
        self.flush(Phase::Mail).await?;
        transaction.content_sent = true;
        let mut replies = Vec::with_capacity(commands.len());
        let mut answered = Ok(());
        for (phase, _) in &commands {
            match self.answer(*phase).await {
                Ok(reply) => replies.push(reply),
                Err(lost) => {
                    answered = Err(lost);
                    break;
                }
            }
        }
        // Whoever was answered before the end has an answer.
        let refused_sender = self.note(transaction, &places, &commands, &replies);
        if let Some(refusal) = &refused_sender {
            places.iter().for_each(|place| transaction.note(*place, refusal.clone()));
        }
        answered?;
        let last = replies.last().cloned().expect("because a chunk was sent");
        self.reset = !last.is_success();
        let nobody = transaction.open().next().is_none();
        // Anything that does not fit means that replies and commands are out of step.
        if self.says_more() || (nobody && last.is_success()) {
            return Err(Lost::new(Phase::FinalReply, Why::OutOfStep("replies that do not fit".to_owned())));
        }
        if !nobody {
            self.judge(transaction, Phase::FinalReply, &last);
        }
        Ok(())
    }

    /// Whether something came that was not asked for, other than a goodbye.
    fn says_more(&mut self) -> bool {
        self.next_at_hand().is_some_and(|reply| reply.code() != 421) || self.has_more()
    }

    /// The reply that decides, and what it means for all who were accepted.
    async fn final_reply(&mut self, transaction: &mut Transaction<'_, '_>) -> Result<Reply, Lost> {
        let reply = self.answer(Phase::FinalReply).await?;
        self.judge(transaction, Phase::FinalReply, &reply);
        Ok(reply)
    }

    /// What can be said of a message behind the end of the one before: its whole envelope, with DATA.
    ///
    /// RFC 2920 §3.1 lets content be the first of a group and DATA the last. `None` where there is
    /// nothing to say, or to gain.
    pub fn ahead(&self, message: &Message<'_>) -> Option<Ahead> {
        let known = &self.capabilities;
        let plain = message.handling.body != Body::Binary && known.pipelining && !known.chunking;
        // What is left of a time is less when it is compared with what was sent.
        let timeless = message.handling.deliver_by.is_none();
        if !plain || !timeless || self.lack(message).is_some() {
            return None;
        }
        let transaction = self.begin(message);
        let places: Vec<usize> = transaction.open().collect();
        if places.is_empty() || places.len() > GROUP_MAX {
            return None;
        }
        let mut octets = Vec::new();
        for (_, command) in self.commands(message, &places, true, false) {
            command.write_to(&mut octets);
        }
        Some(Ahead(octets))
    }

    /// What the upstream lacks for a message as a whole, if anything.
    pub(super) fn lack(&self, message: &Message<'_>) -> Option<needs::Lack> {
        let (known, documented) = (&self.capabilities, self.upstream.message_size);
        needs::of_message(message, known, documented, self.is_verified(), self.clock.now())
    }

    /// A transaction in which only those are judged whom the upstream said in advance that it can't reach.
    pub(super) fn begin<'t, 'm>(&self, message: &'t Message<'m>) -> Transaction<'t, 'm> {
        let mut transaction = Transaction::new(message);
        transaction.outcomes.extend(message.recipients.iter().enumerate().map(|(place, to)| {
            let lack = needs::of_recipient(place, to.mailbox, &self.capabilities);
            lack.map(|lack| self.lacking(lack))
        }));
        transaction
    }

    fn commands(
        &self,
        message: &Message<'_>,
        places: &[usize],
        data: bool,
        reset: bool,
    ) -> Vec<(Phase, Command)> {
        let rcpt = |place: &usize| needs::rcpt(&message.recipients[*place], &self.capabilities);
        let mut commands = Vec::with_capacity(places.len() + 3);
        commands.extend(reset.then_some((Phase::Mail, Command::Rset)));
        commands.push((Phase::Mail, needs::mail(message, &self.capabilities, self.clock.now())));
        commands.extend(places.iter().map(|place| (Phase::Rcpt, rcpt(place))));
        commands.extend(data.then_some((Phase::Data, Command::Data)));
        commands
    }

    fn first_group(
        &self,
        transaction: &Transaction<'_, '_>,
        places: &[usize],
        data: bool,
    ) -> Vec<(Phase, Command)> {
        self.commands(transaction.message, places, data, self.reset)
    }

    /// MAIL, RCPT…, and DATA where it is wanted. Notes the outcome of every recipient that is not
    /// accepted, and returns DATA's reply, or the one that took its place.
    async fn envelope(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        data: bool,
    ) -> Result<Option<Reply>, Lost> {
        let places: Vec<usize> = transaction.open().collect();
        let mut groups = places.chunks(GROUP_MAX).peekable();
        let mut refused_sender = None;
        let mut is_first = true;
        while let Some(group) = groups.next() {
            let data = data && groups.peek().is_none();
            let mut commands = self.first_group(transaction, group, data);
            if !std::mem::take(&mut is_first) {
                commands.retain(|(phase, _)| *phase != Phase::Mail);
            }
            let mut replies = Vec::with_capacity(commands.len());
            let answered = self.group(&commands, &mut replies).await;
            // Whoever was answered before the connection ended has an answer.
            refused_sender = refused_sender.or(self.note(transaction, group, &commands, &replies));
            if let Some(refusal) = &refused_sender {
                places.iter().for_each(|place| transaction.note(*place, refusal.clone()));
            }
            answered?;
            if data {
                self.reset = false;
                return Ok(replies.last().cloned());
            }
        }
        self.reset = false;
        Ok(None)
    }

    /// What became of the recipients of one group; returns the refusal of the sender, which is theirs too.
    fn note(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        places: &[usize],
        commands: &[(Phase, Command)],
        replies: &[Reply],
    ) -> Option<Outcome> {
        let mut refused_sender = None;
        let mut places = places.iter();
        for ((phase, command), reply) in commands.iter().zip(replies) {
            match command {
                Command::Mail(..) if !reply.is_success() => {
                    let refusal = self.verdict(Phase::Mail, reply, false);
                    transaction.used_up |= refusal.evidence().scope == Scope::Transaction;
                    self.broken |= transaction.used_up;
                    refused_sender = Some(refusal);
                }
                Command::Rcpt(..) => {
                    let place = *places.next().expect("because each RCPT was made of a place");
                    if let Some(refusal) = &refused_sender {
                        transaction.note(place, refusal.clone());
                    } else if !reply.is_success() {
                        let accepted = transaction.outcomes[..place].iter().any(Option::is_none);
                        let refusal = self.verdict(*phase, reply, accepted);
                        // With nobody accepted yet it can't be the transaction that is full.
                        let used_up = !accepted && refusal.evidence().scope == Scope::Transaction;
                        transaction.used_up |= used_up;
                        self.broken |= used_up;
                        transaction.note(place, refusal);
                    }
                }
                _ => {}
            }
        }
        refused_sender
    }

    /// Sends commands together where the upstream can take them so, and reads a reply to each into `replies`: those
    /// that came before an error, too.
    async fn group(&mut self, commands: &[(Phase, Command)], replies: &mut Vec<Reply>) -> Result<(), Lost> {
        if self.capabilities.pipelining {
            let mut octets = Vec::new();
            commands.iter().for_each(|(_, command)| command.write_to(&mut octets));
            match self.ahead.take() {
                // They were sent behind the message before.
                Some(Ahead(sent)) if sent == octets => {}
                // Another message was announced, and the upstream waits for that one's content.
                Some(_) => return Err(Lost::new(Phase::Mail, Why::Closed)),
                None => {
                    self.output.extend_from_slice(&octets);
                    self.flush(commands.first().map_or(Phase::Mail, |(phase, _)| *phase)).await?;
                }
            }
        }
        for (phase, command) in commands {
            if !self.capabilities.pipelining {
                command.write_to(&mut self.output);
                self.flush(*phase).await?;
            }
            let reply = self.answer(*phase).await?;
            let refused = !reply.is_success() && !self.capabilities.pipelining;
            let stop = refused && matches!(command, Command::Mail(..));
            replies.push(reply);
            if stop {
                // One at a time there is no need to go on; the others share the answer.
                let last = replies.last().cloned();
                replies.extend(std::iter::repeat_n(last, commands.len() - replies.len()).flatten());
                self.reset = true;
                break;
            }
        }
        Ok(())
    }

    /// A reply to a command. RFC 5321 §3.8: 421 may answer anything, and means that nothing more will be.
    async fn answer(&mut self, phase: Phase) -> Result<Reply, Lost> {
        let reply = self.read(phase).await?;
        if reply.code() == 421 {
            return Err(Lost { reply: Some(reply), ..Lost::new(phase, Why::Closed) });
        }
        Ok(reply)
    }
}

/// How content travels.
enum Way<'m> {
    /// By DATA.
    Data,
    /// By BDAT, behind the answers to the envelope.
    Chunk,
    /// By BDAT, in one flight with the envelope.
    ChunkAtOnce(&'m [u8]),
}

/// What was said of the next message behind the end of one, and waits to be answered.
#[derive(Debug)]
pub struct Ahead(pub(super) Vec<u8>);
