//! How mail is changed for an upstream before it goes there: other senders' addresses.
//!
//! Only the header section is made anew, in memory and within a bound; the body is the queue's, octet for
//! octet. Done at each attempt, so that settings apply to mail that was queued before they changed.

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use super::{
    Agent,
    client::Attempt,
    phase::Phase,
    source::{Source, SourceError},
};
use crate::{
    mail::{
        content::{Content, HEADER_MAX, header_end},
        outcome::{Evidence, Outcome, Scope, Who},
        sender,
    },
    smtp::{address::ReversePath, reply::Enhanced},
};

/// What is read of content to find the end of its header section: as much as is ever accepted, and what
/// relays put on top of it.
const HEAD_MAX: usize = 2 * HEADER_MAX;
const READ: usize = 64 * 1024;

/// A message as this upstream gets it, as far as that differs from how it is queued.
#[derive(Debug, Default)]
pub struct Dressed {
    /// In the place of its reverse-path.
    pub reverse_path: Option<ReversePath>,
    /// In the place of its first octets.
    pub head: Option<Head>,
}

/// What goes out in the place of content's first octets.
#[derive(Debug)]
pub struct Head {
    /// This.
    pub octets: Vec<u8>,
    /// In the place of so many.
    pub replaces: usize,
}

enum Fault {
    Source(SourceError),
    /// The header section does not end within the bound.
    Endless,
}

impl From<SourceError> for Fault {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl Agent {
    /// The message as this upstream gets it, for so many recipients.
    ///
    /// # Errors
    /// It can't be made so: how the attempt ended with that.
    pub async fn dress(
        &self,
        reverse_path: &ReversePath,
        content: &Content,
        recipients: usize,
    ) -> Result<Dressed, Attempt> {
        let Some(map) = &self.upstream.sender_rewrite else { return Ok(Dressed::default()) };
        let sender = reverse_path.mailbox().and_then(|sender| map.of(sender.as_str()));
        let head = async {
            let octets = head(content).await?;
            let end = header_end(&octets, octets.len() as u64 == content.size()).ok_or(Fault::Endless)?;
            let rewritten = sender::rewritten(&octets[..end], map);
            Ok(rewritten.map(|octets| Head { octets, replaces: end }))
        };
        match head.await {
            Ok(head) => Ok(Dressed { reverse_path: sender.cloned().map(ReversePath::from), head }),
            Err(fault) => Err(self.not_dressed(fault, recipients)),
        }
    }

    fn not_dressed(&self, fault: Fault, recipients: usize) -> Attempt {
        let evidence = |words: String| {
            self.trouble(Phase::Content, Scope::Message, None, Some(words), Who::Sender, None).evidence
        };
        let outcome = match fault {
            Fault::Source(SourceError::Damaged) => return Attempt::Damaged,
            Fault::Source(SourceError::Unreadable(error)) => Outcome::Deferred(Evidence {
                advice: None,
                ..evidence(format!("the content can't be read from the spool now: {error}"))
            }),
            Fault::Endless => Outcome::Failed(Evidence {
                status: Some(Enhanced(5, 6, 0)),
                ..evidence(format!("its header section is longer than {HEAD_MAX} octets"))
            }),
        };
        Attempt::Done(vec![outcome; recipients])
    }
}

/// The beginning of content, with its header section if that is within the bound.
async fn head(content: &Content) -> Result<BytesMut, SourceError> {
    let mut head = BytesMut::new();
    match Source::open(content).await? {
        Source::Memory(octets) => head.extend_from_slice(&octets[..octets.len().min(HEAD_MAX)]),
        Source::File { mut file, .. } => {
            file.set_max_buf_size(READ);
            while head.len() < HEAD_MAX && header_end(&head, false).is_none() {
                head.reserve(READ);
                if file.read_buf(&mut head).await.map_err(SourceError::Unreadable)? == 0 {
                    break;
                }
            }
        }
    }
    Ok(head)
}
