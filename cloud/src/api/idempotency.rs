//! `Idempotency-Key`: a POST that is sent again, since its answer did not come, is not done again.
//!
//! The key is the caller's own word, for one request of one user, for a day. The first request with it is carried out, also when
//! its client goes away meanwhile; later ones get its answer, from whichever replica. A server that is killed between doing and
//! noting leaves a key without an answer: then nobody says what became of it, and the caller has to look.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use jiff::SignedDuration;
use sha2::{Digest as _, Sha256};

use super::{ApiState, BODY_BYTES_MAX, DEADLINE, access::Caller, problem::ApiError};
use crate::store::idempotency::{self, Answer, Begun, Keyed};

pub const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_CHARS_MAX: usize = 255;
/// The largest answer that is kept.
const ANSWER_BYTES_MAX: usize = 1_024 * 1_024;

/// Stands in the extensions of an answer that holds a secret: it is not kept.
#[derive(Debug, Clone, Copy)]
pub struct Secret;

/// Carries a request out, unless its key says that this was done.
pub async fn run(state: &ApiState, caller: &Caller, request: Request, next: Next) -> Response {
    match keyed(caller, request).await {
        Ok((keyed, request)) => match claim(state, &keyed).await {
            Ok(None) => carry_out(state.clone(), keyed, request, next).await,
            Ok(Some(answer)) => replay(answer),
            Err(error) => error.into_response(),
        },
        Err(error) => error.into_response(),
    }
}

async fn keyed(caller: &Caller, request: Request) -> Result<(Keyed, Request), ApiError> {
    let key = request.headers().get(KEY).and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned();
    if key.is_empty() || key.len() > KEY_CHARS_MAX {
        let detail = format!("Idempotency-Key has 1 to {KEY_CHARS_MAX} printable ASCII characters");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_header", detail));
    }
    let route = format!("{} {}", request.method(), request.uri());
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        let detail = format!("a request with an Idempotency-Key has at most {BODY_BYTES_MAX} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
    })?;
    let keyed = Keyed { user: caller.user.id, key, route, body_hash: Sha256::digest(&body).into() };
    Ok((keyed, Request::from_parts(parts, Body::from(body))))
}

/// `None`: carry it out.
async fn claim(state: &ApiState, keyed: &Keyed) -> Result<Option<Answer>, ApiError> {
    let now = state.now();
    match idempotency::begin(state.store(), keyed, now).await? {
        Begun::First => Ok(None),
        Begun::Answered(answer) if answer.body.is_none() => {
            let detail = "this was done; its answer held a secret, which is shown once";
            Err(ApiError::conflict("answer_not_kept", detail))
        }
        Begun::Answered(answer) => Ok(Some(answer)),
        Begun::Other => {
            let detail = "this Idempotency-Key was used for another request";
            Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail))
        }
        Begun::UnderWay(since) => {
            let long = SignedDuration::try_from(2 * DEADLINE).unwrap_or_default();
            if now.duration_since(since) > long {
                let detail =
                    "the first request with this key has no answer: look whether it was done, then use another key";
                return Err(ApiError::conflict("outcome_unknown", detail));
            }
            let detail = "the first request with this key is under way";
            Err(ApiError::conflict("request_under_way", detail).retry_after(Duration::from_secs(1)))
        }
    }
}

/// In a task of its own: a client that goes away does not end it half-way.
async fn carry_out(state: ApiState, keyed: Keyed, request: Request, next: Next) -> Response {
    let task = tokio::spawn(async move {
        let (parts, body) = next.run(request).await.into_parts();
        let Ok(body) = to_bytes(body, ANSWER_BYTES_MAX).await else { return ApiError::internal().into_response() };
        let passing = parts.status.is_server_error() || parts.status == StatusCode::TOO_MANY_REQUESTS;
        let noted = if passing {
            idempotency::give_up(state.store(), &keyed).await
        } else {
            let etag = parts.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(ToOwned::to_owned);
            let kept = parts.extensions.get::<Secret>().is_none().then(|| body.to_vec());
            let answer = Answer { status: parts.status.as_u16(), body: kept, etag };
            idempotency::answered(state.store(), &keyed, &answer).await
        };
        if let Err(error) = noted {
            tracing::warn!(error = &error as &dyn std::error::Error, "the answer to a request with a key was not kept");
        }
        Response::from_parts(parts, Body::from(body))
    });
    task.await.unwrap_or_else(|_| ApiError::internal().into_response())
}

fn replay(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, answer.body.unwrap_or_default()).into_response();
    let problem = status.is_client_error();
    let kind = if problem { "application/problem+json" } else { "application/json" };
    let headers = response.headers_mut();
    if status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_TYPE);
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if let Some(tag) = answer.etag.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
        headers.insert(header::ETAG, tag);
    }
    response
}
