//! `outpost queue import`: messages out of an archive, a few with each request; a large one alone, as a
//! stream. What is told as imported is on the relay's disk.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use clap::Args;
use hyper::body::Frame;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};

use super::super::{
    client::{Client, with_query},
    exit::{Exit, Failure},
    output::{self, Bar},
};
use crate::{
    admin::{
        Body,
        archive::{ArchiveError, END, Half, Member, Members, padding},
        import::{Imported, NO_CONTENT, NO_MESSAGE, NO_RECORD, RECORD_TOO_LONG, Stopped, Wishes},
        people,
    },
    queue::{QueueId, archive::RECORD_MAX},
};

/// Content that doesn't travel with that of others.
const LARGE: u64 = 256 * 1024;
/// Behind so many octets a request is sent.
const BATCH: usize = 1024 * 1024;
/// Read at once of the archive.
const PIECE: usize = 64 * 1024;
/// Refused members that are named; all are counted.
const NAMED: usize = 50;

#[derive(Debug, Args)]
pub(in crate::cli) struct Import {
    /// The archive; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Hold all of them, until they are released
    #[arg(long)]
    hold: bool,
    /// Only say what would be imported
    #[arg(long)]
    dry_run: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Import {
    pub(super) fn run(self, client: &Client) -> Result<(), Failure> {
        let (body, size) = client.block_on(open(&self.file))?;
        let wishes = Wishes { hold: self.hold, dry_run: self.dry_run };
        let mut reader = Reader {
            client,
            path: with_query("/api/v1/queue/import", &wishes),
            members: Members::new(body),
            record: None,
            batch: BytesMut::new(),
            outcome: Imported::default(),
            bar: Bar::octets(size),
        };
        let broken = client.block_on(reader.run()).err();
        let Reader { outcome, bar, .. } = reader;
        drop(bar);
        self.tell(&outcome);
        self.end(outcome, broken)
    }

    fn tell(&self, outcome: &Imported) {
        if self.json {
            output::json(outcome);
            return;
        }
        let would = if self.dry_run { " would be" } else { "" };
        let number = people::count(outcome.imported, "message");
        let mut words = vec![format!("{number}{would} imported ({})", people::size(outcome.bytes))];
        for (number, what) in [
            (outcome.queued, "queued here already"),
            (outcome.left, "left this queue already"),
            (outcome.refused, "refused"),
        ] {
            if number > 0 {
                words.push(format!("{number} {what}"));
            }
        }
        output::say(words.join(", "));
        for failed in outcome.failed.iter().take(NAMED) {
            output::complain(&format!("{}: {}", people::printable(&failed.id), failed.error));
        }
    }

    fn end(&self, outcome: Imported, broken: Option<Failure>) -> Result<(), Failure> {
        if let Some(Failure { exit, words }) = broken {
            let words = format!(
                "{words}\n  help: what was imported stays; import the same file again, and the rest comes"
            );
            return Err(Failure::new(exit, words));
        }
        match outcome.stopped {
            Some(Stopped { reason, damaged: true }) => {
                let words = format!(
                    "{reason}\n  help: what is whole before that was imported; with a better copy, import it again: nothing comes twice"
                );
                Err(Failure::new(Exit::DATA, words))
            }
            Some(Stopped { reason, damaged: false }) => {
                let words = format!(
                    "stopped: {reason}\n  help: what was imported stays; make room or look at smtp_queue_min_free, smtp_queue_max_messages and smtp_queue_max_bytes, then import the same file again"
                );
                Err(Failure::new(Exit::TRY_AGAIN, words))
            }
            None if outcome.refused > 0 => {
                let number = people::count(outcome.refused, "entry").replace("entrys", "entries");
                Err(Failure::new(Exit::DATA, format!("{number} of the archive refused")))
            }
            None => Ok(()),
        }
    }
}

/// The archive, and its size if that is known.
async fn open(path: &Path) -> Result<(Body, u64), Failure> {
    if path == Path::new("-") {
        return Ok((Body::new(Input(tokio::io::stdin())), 0));
    }
    let unreadable = |error: io::Error| Failure::new(Exit::NO_INPUT, format!("{}: {error}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let size = file.metadata().await.map_err(unreadable)?.len();
    Ok((Body::new(Input(file)), size))
}

/// Octets piece by piece.
struct Input<R>(R);

impl<R: AsyncRead + Unpin> hyper::body::Body for Input<R> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut piece = vec![0; PIECE];
        let mut buffer = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        let read = buffer.filled().len();
        piece.truncate(read);
        Poll::Ready((read > 0).then(|| Ok(Frame::data(piece.into()))))
    }
}

/// A body that is made while it is sent.
struct Relayed(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Relayed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Reads the archive and hands it on.
struct Reader<'a> {
    client: &'a Client,
    path: String,
    members: Members,
    /// The record of a message whose content comes next, as a member.
    record: Option<(QueueId, Bytes)>,
    /// Members that wait to be sent.
    batch: BytesMut,
    outcome: Imported,
    bar: Bar,
}

impl Reader<'_> {
    /// Until the end of the archive, or until there is a reason to stop.
    async fn run(&mut self) -> Result<(), Failure> {
        while self.outcome.stopped.is_none() {
            match self.members.next().await {
                Ok(Some(member)) => match self.take(member).await {
                    Ok(()) => {}
                    Err(Broken::Archive(error)) => return self.stop(error).await,
                    Err(Broken::Relay(failure)) => return Err(failure),
                },
                Ok(None) => break,
                Err(error) => return self.stop(error).await,
            }
            self.bar.set(self.members.position());
        }
        self.without_content();
        self.flush().await
    }

    /// What came before the fault is whole.
    async fn stop(&mut self, error: ArchiveError) -> Result<(), Failure> {
        let at = self.record.take().map_or(String::new(), |(id, _)| format!(" ({id} is not whole)"));
        self.flush().await?;
        let stopped = Stopped { reason: format!("{error}{at}"), damaged: true };
        self.outcome.stopped.get_or_insert(stopped);
        Ok(())
    }

    async fn take(&mut self, member: Member) -> Result<(), Broken> {
        match member.half {
            Some((id, Half::Record)) => {
                self.without_content();
                if member.size > RECORD_MAX {
                    self.outcome.refuse(member.name, RECORD_TOO_LONG);
                    return Ok(());
                }
                let mut octets = BytesMut::from(&member.header[..]);
                // Kept while it is read: if the archive ends here, it is the one that is not whole.
                self.record = Some((id, Bytes::new()));
                octets.extend_from_slice(&self.members.all(RECORD_MAX).await?.unwrap_or_default());
                octets.extend_from_slice(&padding(member.size));
                self.record = Some((id, octets.freeze()));
            }
            Some((id, Half::Content)) => {
                let Some((_, record)) = self.record.clone().filter(|(of, _)| *of == id) else {
                    self.outcome.refuse(member.name, NO_RECORD);
                    return Ok(());
                };
                if member.size > LARGE {
                    self.flush().await?;
                    self.stream(record, &member).await?;
                } else {
                    let content = self.members.all(LARGE).await?.unwrap_or_default();
                    for octets in [&record, &member.header, &content, &padding(member.size)] {
                        self.batch.extend_from_slice(octets);
                    }
                }
                self.record = None;
                if self.batch.len() >= BATCH {
                    self.flush().await?;
                }
            }
            None if member.is_note => {}
            None => self.outcome.refuse(member.name, NO_MESSAGE),
        }
        Ok(())
    }

    fn without_content(&mut self) {
        if let Some((id, _)) = self.record.take()
            && self.outcome.stopped.is_none()
        {
            self.outcome.refuse(id.to_string(), NO_CONTENT);
        }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if self.batch.is_empty() || self.outcome.stopped.is_some() {
            return Ok(());
        }
        self.batch.extend_from_slice(&END);
        let body = Body::from(self.batch.split().freeze());
        let outcome = self.client.hand_over(&self.path, body).await?;
        self.outcome.add(outcome);
        Ok(())
    }

    /// Sends a message while it is read.
    async fn stream(&mut self, record: Bytes, member: &Member) -> Result<(), Broken> {
        if self.outcome.stopped.is_some() {
            return Ok(());
        }
        let (pieces, body) = mpsc::channel(4);
        let sending = self.client.hand_over(&self.path, Body::new(Relayed(body)));
        let members = &mut self.members;
        let reading = async move {
            let mut wanted = pieces.send(record).await.is_ok();
            wanted &= pieces.send(member.header.clone()).await.is_ok();
            while let Some(piece) = members.piece().await? {
                // If nobody wants it any more the answer says why.
                wanted = wanted && pieces.send(piece).await.is_ok();
            }
            for end in [padding(member.size), Bytes::from_static(&END)] {
                let _ = pieces.send(end).await;
            }
            Ok(())
        };
        let (sent, read): (_, Result<(), ArchiveError>) = tokio::join!(sending, reading);
        // A message whose end is missing was not taken.
        read?;
        self.outcome.add(sent?);
        Ok(())
    }
}

/// Why reading stops at once.
enum Broken {
    Archive(ArchiveError),
    Relay(Failure),
}

impl From<ArchiveError> for Broken {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Relay(failure)
    }
}
