//! Alarms and their acknowledgement.

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Body, Items, Params, Path, written},
    problem::ApiError,
};
use crate::{
    live::Change,
    store::{
        alarms_read::{self, Acknowledged, Filter},
        scoped,
    },
    views::{Alarm, AlarmState, word},
};

const COMMENT_CHARS_MAX: usize = 2_000;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Acknowledgement {
    #[serde(default)]
    #[schema(max_length = 2000)]
    comment: Option<String>,
}

/// Alarms, the newest first.
#[utoipa::path(get, path = "/alarms", tag = "alarms",
    params(("state" = Option<String>, Query, description = "`open` (the default: all but `normal`), `all`, or one of the states."),
        ("machine" = Option<Uuid>, Query),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Alarm>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Alarm>>, ApiError> {
    let states =
        params.one("state", "open, all, unacknowledged, acknowledged, returned_unacknowledged or normal", states);
    let filter = Filter { states: states.unwrap_or_else(open), machine: params.id("machine") };
    let page = params.page::<(Timestamp, Uuid)>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = alarms_read::list(&transaction, &filter, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.raised_at, last.id))))
}

/// Acknowledge an alarm; once more changes nothing.
#[utoipa::path(post, path = "/alarms/{id}/acknowledge", tag = "alarms", params(("id" = Uuid, Path)),
    request_body = Option<Acknowledgement>,
    responses((status = 200, body = Alarm), (status = 404), (status = 409, description = "`not_acknowledgeable`")))]
pub async fn acknowledge(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    body: Option<Body<Acknowledgement>>,
) -> Result<Json<Alarm>, ApiError> {
    let comment = body.and_then(|Body(body)| body.comment);
    let comment = comment.map(|text| written("comment", &text, COMMENT_CHARS_MAX, true)).transpose()?;
    let comment = comment.as_deref().filter(|text| !text.is_empty());
    let user = &caller.user;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let done = match alarms_read::acknowledge(&transaction, id, user.id, comment, &caller.by(), state.now()).await? {
        Acknowledged::NoSuchAlarm => return Err(ApiError::not_found("alarm")),
        Acknowledged::NotPossible => {
            return Err(ApiError::conflict("not_acknowledgeable", "the alarm is over: nothing is left to acknowledge"));
        }
        done @ (Acknowledged::Already | Acknowledged::Done) => done == Acknowledged::Done,
    };
    let found = alarms_read::by_ids(&transaction, &[id]).await?.pop();
    transaction.commit().await?;
    if done {
        tracing::info!(alarm = %id, user = user.name, "alarm acknowledged");
        state.tell(Change::Alarm(id));
    }
    found.map(Json).ok_or_else(|| ApiError::not_found("alarm"))
}

fn open() -> Vec<AlarmState> {
    vec![AlarmState::Unacknowledged, AlarmState::Acknowledged, AlarmState::ReturnedUnacknowledged]
}

fn states(text: &str) -> Option<Vec<AlarmState>> {
    match text {
        "open" => Some(open()),
        "all" => Some(Vec::new()),
        one => word("state", one).ok().map(|state| vec![state]),
    }
}
