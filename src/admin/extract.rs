//! What a request says, taken apart; what can't be understood is refused in the API's own form.

use axum::{
    extract::{self, FromRequestParts},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::Refusal;

/// The query string.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let read = extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|extract::Query(value)| Self(value)).map_err(|wrong| Refusal::bad_request(wrong.body_text()))
    }
}

/// What stands in the path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let read = extract::Path::<T>::from_request_parts(parts, state).await;
        read.map(|extract::Path(value)| Self(value)).map_err(|wrong| Refusal::bad_request(wrong.body_text()))
    }
}

/// How long a page of a list may be.
pub(super) fn limit(asked: Option<usize>, usual: usize, most: usize) -> Result<usize, Refusal> {
    match asked {
        None => Ok(usual),
        Some(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit.min(most)),
        Some(_) => Err(Refusal::bad_request(format!("limit is from 1 to {LIMIT_MAX}"))),
    }
}

/// What `?limit=` takes.
const LIMIT_MAX: usize = 1_000;
