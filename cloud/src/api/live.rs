//! The live stream: a WebSocket that tells what changes.
//!
//! The first message of the client is `{"token":"…"}`, within [`TOKEN_WITHIN`] (a token in the address would stand in
//! logs); another one later prolongs the stream, which ends with its token. The server answers `{"type":"hello"}` and
//! then tells changes; it pings, and leaves a client that does not answer or does not read.

use std::time::Duration;

use axum::{
    extract::{
        State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode},
    response::Response,
};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast::error::RecvError},
    time::{Instant, sleep_until, timeout},
};

use super::{ApiState, access, problem::ApiError, source::Source};
use crate::{live::hub, users::scope::Scope};

pub const TOKEN_WITHIN: Duration = Duration::from_secs(5);
pub const PING_EVERY: Duration = Duration::from_secs(20);
/// A client that said nothing for so long, not even a pong, is gone.
pub const GONE_AFTER: Duration = Duration::from_mins(1);
/// How often it is looked whether the client may still listen, and to what.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long a client may take to read one message.
const SEND_WITHIN: Duration = Duration::from_secs(10);
const MESSAGE_BYTES_MAX: usize = 8 * 1_024;
/// After a resync a client is given time to load; messages in between are not lost, the next ones follow.
const RESYNC_PAUSE: Duration = Duration::from_millis(200);

/// Why the server ends a stream (RFC 6455's range for applications).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NoToken,
    BadToken,
    PasswordChangeRequired,
    Expired,
    /// The database is away.
    Unavailable,
    ClientGone,
    ServerEnds,
}

impl End {
    const fn frame(self) -> (u16, &'static str) {
        match self {
            Self::NoToken => (4_408, "no token came"),
            Self::BadToken => (4_401, "the token is not good"),
            Self::PasswordChangeRequired => (4_403, "password_change_required"),
            Self::Expired => (4_401, "the token has expired"),
            Self::Unavailable => (1_013, "try again later"),
            Self::ClientGone => (1_001, "the client is gone"),
            Self::ServerEnds => (1_001, "the server stops"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Authentication {
    token: String,
}

/// Changes as they happen, over a WebSocket.
///
/// The first message is the client's: `{"token":"…"}`. Then come, of the sites that the caller may see, messages of the schema `LiveMessage`, `hello` first.
/// `resync` says that messages were lost: load everything again.
#[utoipa::path(get, path = "/live", tag = "live", responses((status = 101, description = "The stream begins."),
    (status = 403, description = "`foreign_origin`")), security(()))]
pub async fn open(
    State(state): State<ApiState>,
    source: Source,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    if !access::same_origin(&headers) {
        let detail = "the live stream is for pages of this server";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", detail));
    }
    let upgrade = upgrade.map_err(|_| {
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", "this route speaks WebSocket only")
    })?;
    let permit = state.0.live_clients.clone().try_acquire_owned().map_err(|_| {
        ApiError::unavailable("too_many_clients", "too many live streams are open", Duration::from_secs(30))
    })?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| stream(state, socket, source, permit)))
}

async fn stream(state: ApiState, mut socket: WebSocket, source: Source, _permit: OwnedSemaphorePermit) {
    let ending = state.0.parts.ending.clone();
    let told = async {
        match timeout(TOKEN_WITHIN, first_token(&state, source, &mut socket)).await {
            Err(_) => Some(End::NoToken),
            Ok(Err(end)) => end,
            Ok(Ok(admitted)) => relay(&state, source, &mut socket, admitted).await,
        }
    };
    let end = ending.run_until_cancelled(told).await.unwrap_or(Some(End::ServerEnds));
    // `None`: the client ended it, or cannot be written to.
    if let Some((code, reason)) = end.map(End::frame) {
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        drop(timeout(SEND_WITHIN, socket.send(close)).await);
    }
}

async fn first_token(state: &ApiState, source: Source, socket: &mut WebSocket) -> Result<Admitted, Option<End>> {
    loop {
        match socket.recv().await {
            None | Some(Err(_) | Ok(Message::Close(_))) => return Err(None),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_))) => return Err(Some(End::BadToken)),
            Some(Ok(Message::Text(text))) => return authenticate(state, source, &text).await.map_err(Some),
        }
    }
}

/// A client that may listen.
struct Admitted {
    token: String,
    /// What it is told of.
    scope: Scope,
    good_for: Duration,
}

async fn authenticate(state: &ApiState, source: Source, text: &str) -> Result<Admitted, End> {
    let Authentication { token } = serde_json::from_str(text).map_err(|_| End::BadToken)?;
    admit(state, source, token).await
}

async fn admit(state: &ApiState, source: Source, token: String) -> Result<Admitted, End> {
    let now = state.now();
    let caller = access::caller(state, &token, source, now)
        .await
        .map_err(|error| if error.status() == StatusCode::UNAUTHORIZED { End::BadToken } else { End::Unavailable })?;
    if caller.user.must_change_password {
        return Err(End::PasswordChangeRequired);
    }
    let good_for = remaining(caller.credential.expires_at(), now);
    Ok(Admitted { token, scope: caller.scope, good_for })
}

fn remaining(expires_at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(expires_at.duration_since(now)).unwrap_or_default()
}

async fn relay(state: &ApiState, source: Source, socket: &mut WebSocket, mut client: Admitted) -> Option<End> {
    let mut messages = state.feed().listen();
    send(socket, Message::Text(hub::Message::Hello.text())).await?;
    let mut expires = Instant::now() + client.good_for;
    let mut look_at = Instant::now() + LOOK_EVERY;
    let mut heard = Instant::now();
    let mut ping_at = Instant::now() + PING_EVERY;
    loop {
        tokio::select! {
            () = sleep_until(expires) => return Some(End::Expired),
            () = sleep_until(ping_at) => {
                if heard.elapsed() > GONE_AFTER {
                    return Some(End::ClientGone);
                }
                send(socket, Message::Ping(bytes::Bytes::new())).await?;
                ping_at = Instant::now() + PING_EVERY;
            }
            () = sleep_until(look_at) => {
                // Grants may have changed, or the session been ended.
                match admit(state, source, client.token.clone()).await {
                    Ok(admitted) => client = admitted,
                    Err(End::Unavailable) => {}
                    Err(end) => return Some(end),
                }
                look_at = Instant::now() + LOOK_EVERY;
            }
            message = messages.recv() => match message {
                Ok(told) if !told.is_for(&client.scope) => {}
                Ok(told) => send(socket, Message::Text(told.text)).await?,
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "live client fell behind");
                    // What is still queued is older than what the client will load now.
                    messages = state.feed().listen();
                    send(socket, Message::Text(hub::Message::Resync.text())).await?;
                    tokio::time::sleep(RESYNC_PAUSE).await;
                }
                Err(RecvError::Closed) => return Some(End::ServerEnds),
            },
            message = socket.recv() => {
                heard = Instant::now();
                match message {
                    None | Some(Err(_) | Ok(Message::Close(_))) => return None,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Binary(_))) => return Some(End::BadToken),
                    Some(Ok(Message::Text(text))) => match authenticate(state, source, &text).await {
                        Ok(admitted) => {
                            expires = Instant::now() + admitted.good_for;
                            client = admitted;
                        }
                        Err(end) => return Some(end),
                    },
                }
            }
        }
    }
}

/// `None` if the client does not read any more.
async fn send(socket: &mut WebSocket, message: Message) -> Option<()> {
    timeout(SEND_WITHIN, socket.send(message)).await.ok()?.ok()
}
