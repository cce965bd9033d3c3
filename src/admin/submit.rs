//! HTTP submission: a message comes as RFC 5322 has it, with its envelope in the query, or as parts in
//! JSON. The listener takes it as it takes any other; 202 means what 250 means.
//!
//! Whoever may use the rest of the API may hand in mail; so may an app with its login for SMTP, held to
//! the senders and limits of that login.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Access, Admin, Answer, Refusal,
    access::{self, Peer},
    compose::Draft,
    events::Wanted,
    extract::Query,
    once::{Busy, Known, LIFETIME, Mark, Turn},
};
use crate::{
    listener::{
        handin::{HandIn, Refused},
        policy::Client,
    },
    queue::QueueId,
    smtp::reply::{Enhanced, Reply, Severity},
};

/// Octets of a message in parts: it is held in memory whole, several times.
const JSON_MAX: usize = 10 * 1024 * 1024;
/// Messages in parts that are read or written at once.
const JSON_AT_ONCE: usize = 4;
/// For a message in parts to arrive, from the moment that it has its place.
const JSON_WITHIN: Duration = Duration::from_secs(30);
/// Octets of an idempotency key.
const KEY_MAX: usize = 255;
/// When to come again after a fault of ours, in seconds.
const RETRY_AFTER: &str = "30";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What bounds submission.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(JSON_AT_ONCE)))
    }
}

/// Why a message was not taken.
#[derive(Debug)]
enum Declined {
    /// The request is at fault, or we are.
    Whole(Refusal),
    /// By the listener's word.
    Refused(Vec<Refused>),
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        Self::Whole(refusal)
    }
}

impl From<Reply> for Declined {
    fn from(reply: Reply) -> Self {
        Self::Refused(vec![Refused { recipient: None, reply }])
    }
}

impl Declined {
    fn into_response(self) -> Response {
        let refused = match self {
            Self::Whole(refusal) => return refusal.into_response(),
            Self::Refused(refused) => refused,
        };
        let Some(first) = refused.first() else {
            return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "local error; try again later")
                .into_response();
        };
        let status = status(&first.reply);
        let words: Vec<&str> = first.reply.lines().collect();
        let mut error = json!({ "error": words.join(" "), "reply": first.reply.to_string() });
        let of_recipients: Vec<_> = refused
            .iter()
            .filter_map(|refused| {
                let recipient = refused.recipient.as_ref()?;
                Some(json!({ "recipient": recipient, "reply": refused.reply.to_string() }))
            })
            .collect();
        if !of_recipients.is_empty() {
            error["recipients"] = of_recipients.into();
        }
        let mut response = (status, Json(error)).into_response();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}

/// HTTP's word for what a reply means.
fn status(reply: &Reply) -> StatusCode {
    match (reply.code(), reply.enhanced()) {
        // RFC 4954 §6, and who has to log in first.
        (530 | 535, _) => StatusCode::UNAUTHORIZED,
        (550, Some(Enhanced(5, 7, 1))) => StatusCode::FORBIDDEN,
        (552, _) => StatusCode::PAYLOAD_TOO_LARGE,
        // The limit of a login.
        (451, Some(Enhanced(4, 7, 1))) => StatusCode::TOO_MANY_REQUESTS,
        // More recipients than it may ever have at once.
        (452, Some(Enhanced(4, 5, 3))) => StatusCode::UNPROCESSABLE_ENTITY,
        _ if reply.severity() == Severity::Permanent => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Takes a message.
pub(super) async fn submit(
    State(admin): State<Admin>,
    Extension(access): Extension<Access>,
    Extension(peer): Extension<Peer>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match accept(&admin, access, peer, query, &headers, body).await {
        Ok((id, replayed)) => {
            let mut response = (StatusCode::ACCEPTED, Json(json!({ "id": id.to_string() }))).into_response();
            if replayed {
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            }
            response
        }
        Err(declined) => declined.into_response(),
    }
}

async fn accept(
    admin: &Admin,
    access: Access,
    peer: Peer,
    query: Vec<(String, String)>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(QueueId, bool), Declined> {
    let client = client(admin, access, peer, headers).await?;
    let form = Form::of(headers, query)?;
    let user = client.user.as_ref().map_or("", |user| user.user()).to_owned();
    let held = match idempotency_key(headers)? {
        Some(key) => Some(take_turn(admin, &user, &key).await?),
        None => None,
    };
    let known = held.as_ref().and_then(|(_, known)| *known);
    if known.is_none() {
        // Before it has anything that others wait for.
        admin.listener.slow_down().await;
    }
    let mut digest = Sha256::new();
    let (message, digest) = match form {
        Form::Raw { sender, recipients } => {
            for part in std::iter::once(&sender).chain(&recipients) {
                digest.update(part.as_bytes());
                digest.update([0]);
            }
            // What was handed in before is only compared.
            let message = match known {
                Some(_) => None,
                None => {
                    Some(admin.listener.hand_in(client, &sender, &recipients).map_err(Declined::Refused)?)
                }
            };
            stream(body, message, digest, admin.listener.message_size()).await?
        }
        Form::Parts => {
            let _place = admin.places.0.acquire().await;
            let octets = whole(body).await?;
            digest.update(&octets);
            let message = match known {
                Some(_) => None,
                None => Some(parts(admin, client, octets).await?),
            };
            (message, digest)
        }
    };
    let digest = Mark::of(digest);
    match (message, held) {
        (None, Some((_, Some(known)))) if known.digest == digest => Ok((known.id, true)),
        (None, _) => {
            let words = "another message was handed in with this Idempotency-Key: give each its own";
            Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, words).into())
        }
        (Some(message), held) => {
            let turn = held.map(|(turn, _)| turn);
            // To its end, though its client leaves: it may have been accepted already.
            let finishing = tokio::spawn(finish(message, turn, digest));
            finishing.await.unwrap_or_else(|_| Err(Reply::local_error().into())).map(|id| (id, false))
        }
    }
}

/// Who asks, as far as it matters for mail.
async fn client(admin: &Admin, access: Access, peer: Peer, headers: &HeaderMap) -> Result<Client, Declined> {
    let client = Client::new(peer.address, false);
    if access == Access::Tcp
        && let Some((user, password)) = access::login_of_app(&admin.settings.load(), headers)
    {
        let (listener, address) = (admin.listener.clone(), peer.address);
        let log_in = async move { listener.log_in(address, &user, &password).await };
        let user = peer.to_its_end(log_in).await.ok_or_else(Reply::local_error)??;
        return Ok(Client { user: Some(user), ..client });
    }
    // The guard has let it in.
    Ok(Client { operator: true, ..client })
}

/// The form in which a message comes.
enum Form {
    Raw { sender: String, recipients: Vec<String> },
    Parts,
}

impl Form {
    fn of(headers: &HeaderMap, query: Vec<(String, String)>) -> Answer<Self> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "message/rfc822" | "message/global" => {}
            "application/json" if query.is_empty() => return Ok(Self::Parts),
            "application/json" => {
                return Err(Refusal::bad_request("with JSON, all stands in the body: from, to, cc, bcc"));
            }
            _ => {
                let words = "the Content-Type is message/rfc822 or application/json";
                return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, words));
            }
        }
        let (mut sender, mut recipients) = (None, Vec::new());
        for (name, value) in query {
            match name.as_str() {
                "from" if sender.is_none() => sender = Some(value),
                "to" if recipients.contains(&value) => {}
                "to" => recipients.push(value),
                _ => return Err(Refusal::bad_request("the query has one from, and a to for each recipient")),
            }
        }
        match sender {
            Some(sender) if !recipients.is_empty() => Ok(Self::Raw { sender, recipients }),
            _ => Err(Refusal::bad_request(
                "the envelope is missing: ?from=ADDRESS&to=ADDRESS, with a to for each",
            )),
        }
    }
}

fn idempotency_key(headers: &HeaderMap) -> Answer<Option<String>> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let fits = |key: &&str| (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|b| (32..127).contains(&b));
    match key.to_str().ok().filter(fits) {
        Some(key) if keys.next().is_none() => Ok(Some(key.to_owned())),
        _ => Err(Refusal::bad_request(format!(
            "an Idempotency-Key is one line of 1 to {KEY_MAX} characters of ASCII"
        ))),
    }
}

/// The turn of a key, and the message that it stands for already.
async fn take_turn(admin: &Admin, user: &str, key: &str) -> Answer<(Turn, Option<Known>)> {
    let mut whose = Sha256::new_with_prefix(user);
    whose.update([0]);
    whose.update(key);
    match admin.once.begin(Mark::of(whose)) {
        Ok((turn, Some(known))) if !known.sure => {
            // We died before it was known what became of it.
            let known = if exists(admin, known.id).await? { Some(known) } else { None };
            Ok((turn, known))
        }
        Ok(taken) => Ok(taken),
        Err(Busy::UnderWay) => {
            let words = "a request with this Idempotency-Key is under way: ask again for its answer";
            Err(Refusal::new(StatusCode::CONFLICT, words))
        }
        Err(Busy::TooMany) => {
            let hours = LIFETIME.as_secs() / 3_600;
            let words = format!("too many different idempotency keys in {hours} hours; try again later");
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, words))
        }
    }
}

/// Whether a message was ever accepted under this id.
async fn exists(admin: &Admin, id: QueueId) -> Answer<bool> {
    use axum::extract::FromRef as _;
    if admin.queue.get(id).await?.is_some() {
        return Ok(true);
    }
    let desk = super::Desk::from_ref(admin);
    Ok(!desk.events(Wanted { limit: Some(1), ..Wanted::of_message(id) }).await?.items.is_empty())
}

/// Brings the body into the message, piece by piece, or only digests it.
async fn stream(
    mut body: Body,
    mut message: Option<HandIn>,
    mut digest: Sha256,
    most: u64,
) -> Result<(Option<HandIn>, Sha256), Declined> {
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::bad_request("the message did not come to its end"))?;
        let Ok(octets) = frame.into_data() else { continue };
        size += octets.len() as u64;
        digest.update(&octets);
        let goes_on = match &mut message {
            Some(message) => message.push(&octets).await,
            None => size <= most,
        };
        if !goes_on {
            break;
        }
    }
    Ok((message, digest))
}

/// A message in parts. Others wait for its place, so that a slow client may not keep it.
async fn whole(body: Body) -> Answer<Bytes> {
    let Ok(read) = timeout(JSON_WITHIN, Limited::new(body, JSON_MAX).collect()).await else {
        let seconds = JSON_WITHIN.as_secs();
        let words =
            format!("in JSON a message has to come within {seconds} s: send it as message/rfc822, or faster");
        return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, words));
    };
    read.map(|body| body.to_bytes()).map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => {
            let words = format!("in JSON a message has at most {JSON_MAX} octets: send it as message/rfc822");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, words)
        }
        false => Refusal::bad_request("the message did not come to its end"),
    })
}

/// A message of its parts, in the listener's hands.
async fn parts(admin: &Admin, client: Client, octets: Bytes) -> Result<HandIn, Declined> {
    let composing = tokio::task::spawn_blocking(move || Draft::read(&octets)?.compose());
    let composed = composing.await.map_err(|_| Reply::local_error())?;
    let composed = composed.map_err(Refusal::bad_request)?;
    let handed = admin.listener.hand_in(client, &composed.sender, &composed.recipients);
    let mut message = handed.map_err(Declined::Refused)?;
    message.push(&composed.content).await;
    Ok(message)
}

/// Makes it durable, and what its key stands for before and behind it.
async fn finish(message: HandIn, turn: Option<Turn>, digest: Mark) -> Result<QueueId, Declined> {
    let id = message.id();
    let fault = |error: std::io::Error| {
        tracing::error!(%error, "an idempotency key can't be kept, so its message is not taken");
        Reply::local_error()
    };
    if let Some(turn) = &turn {
        turn.begun(digest, id).await.map_err(fault)?;
    }
    let result = message.finish().await;
    if let Some(turn) = &turn {
        let noted = match &result {
            Ok(id) => turn.done(digest, *id).await,
            Err(_) => turn.forget(digest, id).await,
        };
        // What the queue or its history knows of the id tells it as well.
        if let Err(error) = noted {
            tracing::warn!(%error, "what became of an idempotency key can't be kept");
        }
    }
    Ok(result?)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_in_parts_comes_in_time_or_gives_up_its_place() {
        let pieces = || stream::iter([Ok::<_, Infallible>("{")]);
        let read = whole(Body::from_stream(pieces())).await.expect("it is read");
        assert_eq!(read, "{");
        let refused =
            whole(Body::from_stream(pieces().chain(stream::pending()))).await.expect_err("it hangs");
        assert_eq!(refused.0, StatusCode::REQUEST_TIMEOUT);
        assert!(refused.words().contains("within 30 s"), "{}", refused.words());
    }
}
