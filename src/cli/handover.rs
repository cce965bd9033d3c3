//! A session with the relay, for a command that brings mail: hands messages over, an outcome for each
//! recipient.

use std::io;

use tokio::{io::AsyncWriteExt as _, net::TcpStream, runtime::Runtime};

use super::exit::{Exit, Failure};
use crate::{
    admin::people,
    delivery::{
        Forward, Message,
        client::{Attempt, Client},
    },
    mail::{
        content::Content,
        envelope::{Addressee, Envelope},
        outcome::{Evidence, Outcome, Scope},
    },
};

/// What was seen, in words. The client that is used speaks of upstreams: here that is the relay.
pub(super) fn words(evidence: &Evidence) -> String {
    let ours = evidence.explanation.as_ref().map(|words| words.replace("the upstream", "the relay"));
    Evidence { explanation: ours, ..evidence.clone() }.to_string()
}

/// A connection to the relay, logged in where that was possible.
pub(super) struct Session {
    /// What the relay calls itself.
    name: String,
    runtime: Runtime,
    client: Client<TcpStream>,
}

impl Session {
    /// A session on an open connection to the relay that calls itself `name`.
    pub(super) fn new(name: String, runtime: Runtime, client: Client<TcpStream>) -> Self {
        Self { name, runtime, client }
    }

    /// Hands over one message; an outcome for each recipient, in their order.
    pub(super) fn hand_over(
        &mut self,
        envelope: &Envelope,
        content: &Content,
    ) -> Result<Vec<Outcome>, Failure> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; envelope.recipients.len()];
        loop {
            let open: Vec<usize> = (0..outcomes.len()).filter(|i| !is_final(&outcomes[*i])).collect();
            let recipients = open.iter().map(|i| &envelope.recipients[*i]).map(|to| Forward {
                mailbox: &to.mailbox,
                notify: to.notify,
                original: to.original.as_ref(),
            });
            let message = Message {
                reverse_path: &envelope.reverse_path,
                recipients: recipients.collect(),
                handling: &envelope.handling,
                content,
                head: None,
            };
            let told = match self.runtime.block_on(self.client.attempt(&message, None, async {})) {
                Attempt::Done(told) | Attempt::Lost(told) => told,
                Attempt::Stale => break,
                Attempt::Damaged => {
                    let words =
                        "the mail was not sent: its copy in the temporary directory was changed meanwhile";
                    return Err(Failure::new(Exit::TRY_AGAIN, words));
                }
            };
            let taken = told.iter().any(|outcome| matches!(outcome, Outcome::Delivered(_)));
            for (i, outcome) in open.into_iter().zip(told) {
                outcomes[i] = Some(outcome);
            }
            // RFC 5321 §4.5.3.1.10: what one transaction can't take goes in another.
            if !taken || !self.client.is_usable() || outcomes.iter().all(is_final) {
                break;
            }
        }
        let silent =
            || Failure::new(Exit::TRY_AGAIN, "the relay closed the connection; the mail was not sent");
        outcomes.into_iter().map(|outcome| outcome.ok_or_else(silent)).collect()
    }

    /// Joins standard input and output to the connection until the relay has ended it, which it does
    /// in answer to QUIT, or to the end of the input.
    pub(super) fn join(self) -> Result<(), Failure> {
        let greeting = format!("220 {} ESMTP ready\r\n", self.name);
        let (mut from_relay, mut to_relay) = tokio::io::split(self.client.into_stream());
        let joined = self.runtime.block_on(async {
            let mut output = tokio::io::stdout();
            output.write_all(greeting.as_bytes()).await?;
            output.flush().await?;
            let input = async {
                tokio::io::copy(&mut tokio::io::stdin(), &mut to_relay).await?;
                to_relay.shutdown().await?;
                std::future::pending::<io::Result<u64>>().await
            };
            tokio::select! {
                ended = tokio::io::copy(&mut from_relay, &mut output) => ended,
                broken = input => broken,
            }
        });
        // Somebody may still hold standard input open: nobody reads it any more.
        self.runtime.shutdown_background();
        match joined {
            // RFC 8446 §6.1: not every peer says goodbye in TLS.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(Failure::new(Exit::TRY_AGAIN, format!("the session broke off: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Says goodbye.
    pub(super) fn close(self) {
        self.runtime.block_on(self.client.quit());
    }
}

/// Whether another transaction can't change it: all but "too many recipients".
fn is_final(outcome: &Option<Outcome>) -> bool {
    match outcome {
        None => false,
        Some(Outcome::Deferred(evidence)) => evidence.scope != Scope::Transaction,
        Some(_) => true,
    }
}

/// The queue id that the relay gave the message, once it is to reach every recipient.
///
/// # Errors
/// Who is not reached, and why; the first of them decides the exit code.
pub(super) fn queue_id(recipients: &[Addressee], outcomes: &[Outcome]) -> Result<String, Failure> {
    let is_taken = |outcome: &&Outcome| matches!(outcome, Outcome::Delivered(_));
    let id = outcomes.iter().find(is_taken).map(|outcome| {
        let line =
            outcome.evidence().reply.as_ref().and_then(|reply| reply.lines().next()).unwrap_or_default();
        people::printable(line.strip_prefix("queued as ").unwrap_or(line))
    });
    let refused: Vec<_> = recipients.iter().zip(outcomes).filter(|(_, outcome)| !is_taken(outcome)).collect();
    let Some((_, first)) = refused.first() else {
        return id.ok_or_else(|| Failure::new(Exit::DATA, "the mail was not sent: it is for nobody"));
    };
    let mut lines: Vec<String> = Vec::new();
    match id {
        None if refused.iter().all(|(_, other)| other.evidence() == first.evidence()) => {
            lines.push(format!("{}: {}", sentence(first.evidence()), words(first.evidence())));
        }
        _ => {
            let line = |(to, outcome): &(&Addressee, &Outcome)| {
                let evidence = outcome.evidence();
                format!("{} to {}: {}", sentence(evidence), to.mailbox, words(evidence))
            };
            lines.extend(refused.iter().map(line));
        }
    }
    if let Some(id) = id {
        lines.push(format!("for the other {} it is queued as {id}", recipients.len() - refused.len()));
    }
    let lines: Vec<String> = lines.iter().map(|line| people::printable(line)).collect();
    Err(Failure::new(exit(first), lines.join("\n  ")))
}

fn sentence(evidence: &Evidence) -> &'static str {
    if evidence.uncertain { "it is not known whether the mail was sent" } else { "the mail was not sent" }
}

/// How to end for somebody who is not reached.
fn exit(outcome: &Outcome) -> Exit {
    let evidence = outcome.evidence();
    let (code, status) = match &evidence.reply {
        Some(reply) => (reply.code(), reply.enhanced()),
        // Ours: what the relay said in advance that it would not take.
        None if matches!(outcome, Outcome::Failed(_)) => return Exit::DATA,
        None => return Exit::TRY_AGAIN,
    };
    match (code, status.map(|status| (status.1, status.2))) {
        (..500, _) => Exit::TRY_AGAIN,
        (530 | 534 | 535 | 538, _) | (_, Some((7, _))) => Exit::NOT_PERMITTED,
        (_, Some((1, _))) if evidence.phase == "RCPT" => Exit::NO_USER,
        (552, _) | (_, Some((6, _) | (3, 4))) => Exit::DATA,
        _ => Exit::UNAVAILABLE,
    }
}
