//! Octets out and replies in: every wait with its deadline, every buffer with its bound.

use std::{io::ErrorKind, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use super::{Ahead, Client, Form};
use crate::{
    delivery::{
        Head,
        lost::{Lost, Why},
        phase::Phase,
        source::Source,
    },
    smtp::{command::Command, reply::Reply},
};

/// Content up to this size is copied behind one another with its dot, so that both leave at once.
const ONE_WRITE: usize = 16 * 1024;
/// What is read of a spool file at once.
const READ_CONTENT: usize = 64 * 1024;
const READ_REPLIES: usize = 4 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Writes content and its end. False if it is damaged; then the end was not written.
    /// `behind` follows it.
    pub(super) async fn content(
        &mut self,
        source: Source<'_>,
        head: Option<&Head>,
        mut form: Form,
        behind: Option<Ahead>,
    ) -> Result<bool, Lost> {
        let mut skip = 0;
        if let Some(head) = head {
            self.write_content(&mut form, &head.octets).await?;
            skip = head.replaces;
        }
        match source {
            Source::Memory(octets) => {
                self.write_content(&mut form, &octets[skip.min(octets.len())..]).await?
            }
            Source::File { mut file, size, crc32c } => {
                file.set_max_buf_size(READ_CONTENT);
                let (mut read, mut crc, mut buffer) = (0, 0, BytesMut::new());
                // The last piece waits until the checksum is known: of a chunk, it is the end.
                let mut held = Bytes::new();
                loop {
                    buffer.reserve(READ_CONTENT);
                    match file.read_buf(&mut buffer).await {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(error) => return Err(Lost::new(Phase::Content, Why::Spool(error))),
                    }
                    let piece: Bytes = buffer.split().freeze();
                    read += piece.len() as u64;
                    crc = crc32c::crc32c_append(crc, &piece);
                    if read > size {
                        return Ok(false);
                    }
                    let skipped = skip.min(piece.len());
                    skip -= skipped;
                    let before = std::mem::replace(&mut held, piece.slice(skipped..));
                    self.write_content(&mut form, &before).await?;
                }
                if (read, crc) != (size, crc32c) {
                    return Ok(false);
                }
                self.write_content(&mut form, &held).await?;
            }
        }
        if let Form::Lines(writer) = form {
            self.output.extend_from_slice(writer.end());
        }
        let Some(ahead) = behind else { return self.flush(Phase::Content).await.map(|()| true) };
        self.output.extend_from_slice(&ahead.0);
        self.ahead = Some(ahead);
        // The dot may have left before the write failed, and then the message may have been taken.
        let flushed = self.flush(Phase::Content).await;
        flushed.map(|()| true).map_err(|lost| Lost { phase: Phase::FinalReply, ..lost })
    }

    async fn write_content(&mut self, form: &mut Form, octets: &[u8]) -> Result<(), Lost> {
        let mut pieces = Vec::new();
        match form {
            Form::Lines(writer) if octets.len() <= ONE_WRITE => {
                let output = &mut self.output;
                writer.write(octets, |piece| output.extend_from_slice(piece));
                return Ok(());
            }
            Form::Lines(writer) => writer.write(octets, |piece| pieces.push(piece)),
            Form::Chunk => pieces.push(octets),
        }
        self.flush(Phase::Content).await?;
        for piece in pieces {
            self.write(Phase::Content, piece).await?;
        }
        Ok(())
    }

    pub(super) async fn command(&mut self, phase: Phase, command: &Command) -> Result<Reply, Lost> {
        command.write_to(&mut self.output);
        self.flush(phase).await?;
        self.read(phase).await
    }

    pub(super) async fn flush(&mut self, phase: Phase) -> Result<(), Lost> {
        let output = std::mem::take(&mut self.output);
        let result = self.write(phase, &output).await;
        self.output = output;
        self.output.clear();
        result
    }

    async fn write(&mut self, phase: Phase, octets: &[u8]) -> Result<(), Lost> {
        if octets.is_empty() {
            return Ok(());
        }
        let write = async {
            self.stream.write_all(octets).await?;
            self.stream.flush().await
        };
        let why = match timeout(phase.deadline(self.upstream.timeout), write).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => Why::Broken(error),
            Err(_) => Why::Silent,
        };
        self.broken = true;
        let mut lost = Lost::new(phase, why);
        // An upstream that closes in our midst has often said why.
        if let Ok(Ok(reply)) = timeout(std::time::Duration::from_millis(200), self.read(phase)).await {
            lost.reply = Some(reply).filter(|reply| !reply.is_success());
        }
        Err(lost)
    }

    pub(super) async fn read(&mut self, phase: Phase) -> Result<Reply, Lost> {
        let limit = phase.deadline(self.upstream.timeout);
        let reply = match timeout(limit, self.read_unbounded()).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(why)) => why,
            Err(_) => Why::Silent,
        };
        self.broken = true;
        Err(Lost::new(phase, reply))
    }

    /// A reply that has come already, if there is one and nothing else.
    pub(super) fn next_at_hand(&mut self) -> Option<Reply> {
        let mut rest = &self.input[..];
        let found = self.replies.read(&mut rest).ok().flatten();
        let used = self.input.len() - rest.len();
        self.input.advance(used);
        self.broken |= found.is_some();
        found
    }

    /// Looks whether the upstream has left, or has said something that nobody asked for.
    pub(super) async fn look(&mut self) -> Result<(), Lost> {
        self.input.reserve(READ_REPLIES);
        match timeout(Duration::ZERO, self.stream.read_buf(&mut self.input)).await {
            Err(_) => Ok(()),
            Ok(_) => Err(Lost::new(Phase::Mail, Why::Closed)),
        }
    }

    async fn read_unbounded(&mut self) -> Result<Reply, Why> {
        loop {
            let mut rest = &self.input[..];
            let found = self.replies.read(&mut rest).map_err(|error| Why::Garbage(error.to_string()))?;
            let used = self.input.len() - rest.len();
            self.input.advance(used);
            if let Some(reply) = found {
                return Ok(reply);
            }
            self.input.reserve(READ_REPLIES);
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err(Why::Closed),
                Ok(_) => self.heard = Instant::now(),
                // In TLS without a word of farewell: many close so.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(Why::Closed),
                Err(error) => return Err(Why::Broken(error)),
            }
        }
    }
}
