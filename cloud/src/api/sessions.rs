//! Sessions: which there are, and their end.

use axum::{Json, extract::State, http::StatusCode};
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Items, Params, Path},
    problem::ApiError,
};
use crate::store::{
    audit::{self, Change},
    scoped,
    sessions::{self, Ended, Session},
    users_admin,
};

/// One's own sessions, the newest first.
#[utoipa::path(get, path = "/sessions", tag = "session",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Session>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Items<Session>>, ApiError> {
    caller.session()?;
    page(&state, &caller, caller.user.id, params).await
}

/// End one of one's own sessions.
#[utoipa::path(delete, path = "/sessions/{id}", tag = "session", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404)))]
pub async fn end(State(state): State<ApiState>, caller: Caller, Path(id): Path<Uuid>) -> Result<StatusCode, ApiError> {
    caller.session()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    if !sessions::end(&transaction, id, Some(caller.user.id), Ended::Logout, state.now()).await? {
        return Err(ApiError::not_found("session"));
    }
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A user's sessions, the newest first.
#[utoipa::path(get, path = "/users/{id}/sessions", tag = "users",
    params(("id" = Uuid, Path), ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Session>), (status = 404)))]
pub async fn of_user(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    params: Params,
) -> Result<Json<Items<Session>>, ApiError> {
    page(&state, &caller, id, params).await
}

/// End all sessions of a user. Their API keys are not touched.
#[utoipa::path(delete, path = "/users/{id}/sessions", tag = "users", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404)))]
pub async fn end_of_user(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    users_admin::one(&transaction, id, false).await?.ok_or_else(|| ApiError::not_found("user"))?;
    let ended = sessions::end_all(&transaction, id, Ended::Admin, now).await?;
    let change = Change {
        action: "user.end_sessions",
        object: "user",
        id: &id.to_string(),
        site: None,
        before: serde_json::Value::Null,
        after: serde_json::json!({"ended": ended}),
    };
    audit::write(&transaction, &caller.by(), &change, now).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn page(
    state: &ApiState,
    caller: &Caller,
    user: Uuid,
    mut params: Params,
) -> Result<Json<Items<Session>>, ApiError> {
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    users_admin::one(&transaction, user, false).await?.ok_or_else(|| ApiError::not_found("user"))?;
    let rows = sessions::list(&transaction, user, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}
