//! How mail is changed for an upstream before it goes there: other senders' addresses, and signatures.
//!
//! Only the header section is made anew, in memory and within a bound; the body is the queue's, octet for
//! octet. Done at each attempt, so that settings apply to mail that was queued before they changed.

use bytes::BytesMut;
use tokio::{fs::File, io::AsyncReadExt as _};

use super::{
    Agent,
    client::Attempt,
    dkim::Signer,
    phase::Phase,
    source::{Source, SourceError},
};
use crate::{
    mail::{
        content::{Content, HEADER_MAX, header_end},
        outcome::{Evidence, Outcome, Scope, Who},
        sender,
        sign::BodyHash,
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
    /// The key does not do what it should.
    Unsigned(String),
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
        if self.upstream.sender_rewrite.is_none() && self.signers.is_empty() {
            return Ok(Dressed::default());
        }
        let map = self.upstream.sender_rewrite.as_ref();
        let sender = reverse_path.mailbox().and_then(|sender| map?.of(sender.as_str()));
        match self.head(content).await {
            Ok(head) => Ok(Dressed { reverse_path: sender.cloned().map(ReversePath::from), head }),
            Err(fault) => Err(self.not_dressed(fault, recipients)),
        }
    }

    /// The header section as this upstream gets it; `None`: as it is.
    async fn head(&self, content: &Content) -> Result<Option<Head>, Fault> {
        let (octets, rest) = beginning(content).await?;
        let end = header_end(&octets, octets.len() as u64 == content.size()).ok_or(Fault::Endless)?;
        let map = self.upstream.sender_rewrite.as_ref();
        let rewritten = map.and_then(|map| sender::rewritten(&octets[..end], map));
        let section = rewritten.as_deref().unwrap_or(&octets[..end]);
        let Some(domain) = sender::domain(section).filter(|_| !self.signers.is_empty()) else {
            return Ok(rewritten.map(|octets| Head { octets, replaces: end }));
        };
        let best = self.signers.iter().filter_map(|signer| signer.fits(&domain)).max();
        let best: Vec<&Signer> =
            self.signers.iter().filter(|signer| best.is_some() && signer.fits(&domain) == best).collect();
        if best.is_empty() {
            return Ok(rewritten.map(|octets| Head { octets, replaces: end }));
        }
        // The blank line is part of neither.
        let hash = body_hash(&octets[octets.len().min(end + 2)..], rest).await?;
        let mut signed = Vec::new();
        for signer in best {
            let field = signer.sign(section, hash.clone(), &self.upstream.replaces, self.clock.now());
            signed.extend_from_slice(field.map_err(|error| Fault::Unsigned(error.to_string()))?.as_bytes());
        }
        signed.extend_from_slice(section);
        Ok(Some(Head { octets: signed, replaces: end }))
    }

    fn not_dressed(&self, fault: Fault, recipients: usize) -> Attempt {
        let evidence = |words: String| {
            self.trouble(Phase::Content, Scope::Message, None, Some(words), Who::Sender, None).evidence
        };
        let outcome = match fault {
            Fault::Source(SourceError::Damaged) => return Attempt::Damaged,
            Fault::Source(SourceError::Unreadable(error)) => {
                let words = format!("the content can't be read from the spool now: {error}");
                let trouble =
                    self.trouble(Phase::Content, Scope::Message, None, Some(words), Who::Operator, None);
                Outcome::Deferred(trouble.evidence)
            }
            Fault::Unsigned(error) => Outcome::Deferred(
                self.trouble(
                    Phase::Content,
                    Scope::Message,
                    None,
                    Some(format!("the message can't be signed: {error}")),
                    Who::Operator,
                    Some("check the key files of smtp_dkim, then reload"),
                )
                .evidence,
            ),
            Fault::Endless => Outcome::Failed(Evidence {
                status: Some(Enhanced(5, 6, 0)),
                ..evidence(format!("its header section is longer than {HEAD_MAX} octets"))
            }),
        };
        Attempt::Done(vec![outcome; recipients])
    }
}

/// The hash of the body that begins so and goes on in the file.
async fn body_hash(begins: &[u8], rest: Option<File>) -> Result<BodyHash, SourceError> {
    let mut hash = BodyHash::default();
    hash.update(begins);
    let Some(mut file) = rest else { return Ok(hash) };
    let mut piece = BytesMut::with_capacity(READ);
    while file.read_buf(&mut piece).await.map_err(SourceError::Unreadable)? > 0 {
        hash.update(&piece);
        piece.clear();
    }
    Ok(hash)
}

/// The beginning of content, with its header section if that is within the bound, and the file in which
/// it goes on.
async fn beginning(content: &Content) -> Result<(BytesMut, Option<File>), SourceError> {
    let mut head = BytesMut::new();
    match Source::open(content).await? {
        Source::Memory(octets) => {
            head.extend_from_slice(octets);
            Ok((head, None))
        }
        Source::File { mut file, .. } => {
            file.set_max_buf_size(READ);
            while head.len() < HEAD_MAX && header_end(&head, false).is_none() {
                head.reserve(READ);
                if file.read_buf(&mut head).await.map_err(SourceError::Unreadable)? == 0 {
                    break;
                }
            }
            Ok((head, Some(file)))
        }
    }
}
