//! Content on its way to a person: raw as a download, or a piece of it to look at.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::{
    fs::File,
    io::{AsyncRead as _, AsyncReadExt as _, ReadBuf},
};

use super::Refusal;
use crate::{
    mail::content::Content,
    queue::{Queue, QueueId},
};

/// Read at once from a file.
const PIECE: usize = 64 * 1024;

/// The raw content as a download. Never as anything that a browser would show: the content is its
/// sender's.
pub(super) async fn download(queue: &Queue, id: QueueId) -> Result<Response, Refusal> {
    let content = queue.content(id).await?.ok_or_else(gone)?;
    let size = content.size();
    let body = match content {
        Content::Memory(octets) => Body::from(octets),
        Content::File { path, .. } => {
            let file = File::open(path).await.map_err(|_| gone())?;
            Body::new(Parts([Part::File(file, size)].into()))
        }
    };
    let headers = [
        (header::CONTENT_TYPE, "text/plain".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{id}.eml\"")),
        (header::CONTENT_LENGTH, size.to_string()),
    ];
    Ok((headers, body).into_response())
}

/// The first octets of the content.
pub(super) async fn start(queue: &Queue, id: QueueId, most: usize) -> Result<Bytes, Refusal> {
    match queue.content(id).await?.ok_or_else(gone)? {
        Content::Memory(octets) => Ok(octets.slice(..octets.len().min(most))),
        Content::File { path, .. } => {
            let mut octets = Vec::new();
            let file = File::open(path).await.map_err(|_| gone())?;
            file.take(most as u64).read_to_end(&mut octets).await.map_err(|_| gone())?;
            Ok(octets.into())
        }
    }
}

fn gone() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is no such message, or its content is damaged")
}

/// A part of an answer.
pub(super) enum Part {
    /// At hand.
    Octets(Bytes),
    /// So many octets of a file, read piece by piece.
    File(File, u64),
}

/// An answer in parts, of which no file takes more memory than one piece.
pub(super) struct Parts(pub(super) VecDeque<Part>);

impl hyper::body::Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            match self.0.front_mut() {
                None => return Poll::Ready(None),
                Some(Part::Octets(octets)) => {
                    let octets = std::mem::take(octets);
                    self.0.pop_front();
                    if !octets.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(octets))));
                    }
                }
                Some(Part::File(_, 0)) => drop(self.0.pop_front()),
                Some(Part::File(file, left)) => {
                    let mut piece = vec![0; PIECE.min(usize::try_from(*left).unwrap_or(PIECE))];
                    let mut buffer = ReadBuf::new(&mut piece);
                    ready!(Pin::new(file).poll_read(context, &mut buffer))?;
                    let read = buffer.filled().len();
                    if read == 0 {
                        return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                    }
                    *left -= read as u64;
                    piece.truncate(read);
                    return Poll::Ready(Some(Ok(Frame::data(piece.into()))));
                }
            }
        }
    }
}
