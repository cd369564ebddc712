//! Alarms, their acknowledgement, and what holds a single one back.

use axum::{Json, extract::State};
use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
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
    alarms::{Action, ConditionState, Refused},
    live::Change,
    store::{
        alarms_read::{self, After, Filter, Order},
        audit,
        holds::{self, NewHold, Placed},
        scoped,
    },
    views::{Alarm, AlarmState, Hold, Severity, word},
};

pub(super) const COMMENT_CHARS_MAX: usize = 2_000;
pub(super) const REASON_CHARS_MAX: usize = 500;
/// The shortest and the longest shelving: a shelf that is longer than that is out of service.
pub const SHELVED_S_MIN: u32 = 60;
pub const SHELVED_S_MAX: u32 = 7 * 24 * 3_600;
const STATES: &str = "open, held, all, unacknowledged, acknowledged, returned_unacknowledged, shelved, suppressed, \
                      out_of_service or normal";

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Acknowledgement {
    #[serde(default)]
    #[schema(max_length = 2000)]
    comment: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shelving {
    /// Seconds until it comes back by itself: a minute to a week.
    #[schema(minimum = 60, maximum = 604_800)]
    for_s: u32,
    #[schema(max_length = 500)]
    reason: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakingOut {
    /// When it comes back by itself; without, somebody puts it back.
    #[serde(default)]
    pub(super) until: Option<Timestamp>,
    #[schema(max_length = 500)]
    pub(super) reason: String,
}

/// Alarms, the newest first.
#[utoipa::path(get, path = "/alarms", tag = "alarms",
    params(("state" = Option<String>, Query, description = "`open` (the default: what people are shown as not over), `held` \
            (shelved, suppressed or out of service), `all`, or one of the states."),
        ("site" = Option<Uuid>, Query), ("machine" = Option<Uuid>, Query), ("gateway" = Option<Uuid>, Query), ("incident" = Option<Uuid>, Query),
        ("condition" = Option<String>, Query),
        ("severity" = Option<Severity>, Query, description = "This grave or graver."),
        ("from" = Option<String>, Query, format = DateTime, description = "Raised at this time or later."),
        ("to" = Option<String>, Query, format = DateTime, description = "Raised before this time."),
        ("sort" = Option<String>, Query, description = "`raised_at` (the default: the newest first) or `severity` (the gravest first)."),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Alarm>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Alarm>>, ApiError> {
    let filter = Filter {
        states: params.one("state", STATES, states).unwrap_or_else(open),
        site: params.id("site"),
        machine: params.id("machine"),
        gateway: params.id("gateway"),
        incident: params.id("incident"),
        condition: params.one("condition", "a condition", |text| (!text.contains('\0')).then(|| text.to_owned())),
        severity_min: params.one("severity", "low, medium, high or critical", |text| word("severity", text).ok()),
        from: params.time("from"),
        to: params.time("to"),
        order: params.one("sort", "raised_at or severity", order).unwrap_or_default(),
    };
    let page = params.page::<After>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = alarms_read::list(&transaction, &filter, page.after.as_ref(), page.rows(), state.now()).await?;
    Ok(Json(Items::new(rows, &page, After::of)))
}

/// An alarm.
#[utoipa::path(get, path = "/alarms/{id}", tag = "alarms", params(("id" = Uuid, Path)),
    responses((status = 200, body = Alarm), (status = 404)))]
pub async fn one(State(state): State<ApiState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Json<Alarm>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    shown(&transaction, id, state.now()).await
}

/// Acknowledge an alarm; once more changes nothing.
#[utoipa::path(post, path = "/alarms/{id}/acknowledge", tag = "alarms", params(("id" = Uuid, Path)),
    request_body = Option<Acknowledgement>,
    responses((status = 200, body = Alarm), (status = 404), (status = 409, description = "`not_acknowledgeable` or `held`")))]
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
    match alarms_read::acknowledge(&transaction, id, comment, &caller.by(), state.now()).await? {
        None => Err(ApiError::not_found("alarm")),
        Some(Err(Refused::Over)) => {
            Err(ApiError::conflict("not_acknowledgeable", "the alarm is over: nothing is left to acknowledge"))
        }
        Some(Err(refused)) => Err(refusal(refused)),
        Some(Ok(changed)) => {
            let alarm = shown(&transaction, id, state.now()).await?;
            transaction.commit().await?;
            if changed {
                tracing::info!(alarm = %id, user = user.name, "alarm acknowledged");
                state.tell(Change::Alarm(id));
            }
            Ok(alarm)
        }
    }
}

/// Shelve an alarm: its condition is not announced until the time is over or somebody ends it.
///
/// What comes again meanwhile is shelved as well. When the shelf ends and the condition is there, it is announced anew.
#[utoipa::path(post, path = "/alarms/{id}/shelve", tag = "alarms", params(("id" = Uuid, Path)), request_body = Shelving,
    responses((status = 200, body = Alarm), (status = 404), (status = 409, description = "`over` or `already_held`")))]
pub async fn shelve(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(body): Body<Shelving>,
) -> Result<Json<Alarm>, ApiError> {
    if !(SHELVED_S_MIN..=SHELVED_S_MAX).contains(&body.for_s) {
        return Err(ApiError::field("for_s", format_args!("is from {SHELVED_S_MIN} to {SHELVED_S_MAX}")));
    }
    let now = state.now();
    let until = now.saturating_add(SignedDuration::from_secs(i64::from(body.for_s))).unwrap_or(now);
    hold(&state, &caller, id, Hold::Shelved, &body.reason, Some(until)).await
}

/// Take an alarm out of service, until it is put back.
#[utoipa::path(post, path = "/alarms/{id}/out-of-service", tag = "alarms", params(("id" = Uuid, Path)),
    request_body = TakingOut,
    responses((status = 200, body = Alarm), (status = 404), (status = 409, description = "`over` or `already_held`")))]
pub async fn take_out(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(body): Body<TakingOut>,
) -> Result<Json<Alarm>, ApiError> {
    hold(&state, &caller, id, Hold::OutOfService, &body.reason, body.until).await
}

async fn hold(
    state: &ApiState,
    caller: &Caller,
    id: Uuid,
    kind: Hold,
    reason: &str,
    until: Option<Timestamp>,
) -> Result<Json<Alarm>, ApiError> {
    let now = state.now();
    let reason = super::holds::reason(reason)?;
    super::holds::check_until(until, now)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let locked = alarms_read::lock(&transaction, id, now).await?.ok_or_else(|| ApiError::not_found("alarm"))?;
    if locked.standing.condition == ConditionState::Normal {
        return Err(refusal(Refused::Over));
    }
    locked.standing.after(Action::Place(kind)).map_err(refusal)?;
    let new = NewHold {
        subject: locked.subject.id(),
        condition: Some(&locked.condition),
        kind,
        reason: &reason,
        by: caller.user.id,
        since: now,
        until,
    };
    let changed = match holds::place(&transaction, &new, now).await? {
        Placed::Done(hold, changed) => {
            let hold = hold.to_string();
            let change = super::holds::placed(&new, &hold, locked.site);
            audit::write(&transaction, &caller.by(), &change, now).await?;
            changed
        }
        Placed::Already => return Err(refusal(Refused::AlreadyHeld)),
        Placed::NoSuchSubject => return Err(ApiError::not_found("alarm")),
    };
    let alarm = shown(&transaction, id, now).await?;
    transaction.commit().await?;
    tracing::info!(alarm = %id, kind = kind.as_str(), user = caller.user.name, "alarm held back");
    for changed in changed {
        state.tell(Change::Alarm(changed));
    }
    Ok(alarm)
}

async fn shown(transaction: &Transaction<'_>, id: Uuid, now: Timestamp) -> Result<Json<Alarm>, ApiError> {
    let found = alarms_read::by_ids(transaction, &[id], now).await?.pop();
    found.map(Json).ok_or_else(|| ApiError::not_found("alarm"))
}

/// The answer to a change that is not allowed.
pub(super) fn refusal(refused: Refused) -> ApiError {
    let code = match refused {
        Refused::Over => "over",
        Refused::Held => "held",
        Refused::AlreadyHeld => "already_held",
        Refused::NotHeld => "not_held",
    };
    ApiError::conflict(code, refused)
}

fn open() -> Vec<AlarmState> {
    vec![AlarmState::Unacknowledged, AlarmState::Acknowledged, AlarmState::ReturnedUnacknowledged]
}

fn order(text: &str) -> Option<Order> {
    match text {
        "raised_at" => Some(Order::RaisedAt),
        "severity" => Some(Order::Severity),
        _ => None,
    }
}

fn states(text: &str) -> Option<Vec<AlarmState>> {
    match text {
        "open" => Some(open()),
        "held" => Some(vec![AlarmState::Shelved, AlarmState::Suppressed, AlarmState::OutOfService]),
        "all" => Some(Vec::new()),
        one => word("state", one).ok().map(|state| vec![state]),
    }
}
