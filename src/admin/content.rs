//! Content on its way to a person: raw as a download, or a piece of it to look at.

use std::{
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
        Content::File { path, .. } => Body::new(FileBody(File::open(path).await.map_err(|_| gone())?)),
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

/// A file, piece by piece, so that no download takes more memory than one piece.
struct FileBody(File);

impl hyper::body::Body for FileBody {
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
