//! What holds the alarms of a machine back: planned maintenance, out of service; and the list of all holds.

use axum::{Json, extract::State, http::StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    alarms::{REASON_CHARS_MAX, TakingOut, refusal},
    extract::{Body, Items, Params, Path, written},
    problem::ApiError,
};
use crate::{
    alarms::Refused,
    live::Change,
    store::{
        audit,
        holds::{self, Ended, Filter, NewHold, Placed},
        objects::{self, Object},
        scoped,
    },
    users::Role,
    views::{AlarmHold, Hold, word},
};

/// The longest time that can be planned.
const PLANNED_MAX: SignedDuration = SignedDuration::from_hours(24 * 366);

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    from: Timestamp,
    to: Timestamp,
    #[schema(max_length = 500)]
    reason: String,
}

/// What holds alarms back, the newest first.
#[utoipa::path(get, path = "/alarm-holds", tag = "alarms",
    params(("machine" = Option<Uuid>, Query, description = "A machine, or a gateway for its own alarms."),
        ("kind" = Option<Hold>, Query),
        ("open" = Option<bool>, Query, description = "`true`: in effect or still to come."),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<AlarmHold>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<AlarmHold>>, ApiError> {
    let filter = Filter {
        subject: params.id("machine"),
        kind: params.one("kind", "shelved, suppressed or out_of_service", |text| word("kind", text).ok()),
        open: params.flag("open"),
    };
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = holds::list(&transaction, &filter, page.after, page.rows(), state.now()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// Take a machine out of service: none of its alarms is announced until it is put back.
#[utoipa::path(post, path = "/machines/{id}/out-of-service", tag = "alarms", params(("id" = Uuid, Path)),
    request_body = TakingOut,
    responses((status = 201, body = AlarmHold), (status = 404), (status = 409, description = "`already_held`")))]
pub async fn take_out(
    State(state): State<ApiState>,
    caller: Caller,
    Path(machine): Path<Uuid>,
    Body(body): Body<TakingOut>,
) -> Result<(StatusCode, Json<AlarmHold>), ApiError> {
    let (now, reason) = (state.now(), reason(&body.reason)?);
    check_until(body.until, now)?;
    let new = NewHold {
        subject: machine,
        condition: None,
        kind: Hold::OutOfService,
        reason: &reason,
        by: caller.user.id,
        since: now,
        until: body.until,
    };
    place(&state, &caller, &new, now).await
}

/// Plan maintenance of a machine: from then to then none of its alarms is announced.
///
/// A condition that is still there at the end is announced then.
#[utoipa::path(post, path = "/machines/{id}/maintenance", tag = "alarms", params(("id" = Uuid, Path)),
    request_body = Maintenance, responses((status = 201, body = AlarmHold), (status = 404)))]
pub async fn plan(
    State(state): State<ApiState>,
    caller: Caller,
    Path(machine): Path<Uuid>,
    Body(body): Body<Maintenance>,
) -> Result<(StatusCode, Json<AlarmHold>), ApiError> {
    let (now, reason) = (state.now(), reason(&body.reason)?);
    if body.to <= body.from {
        return Err(ApiError::field("to", "lies behind `from`"));
    }
    if body.from < now.saturating_sub(SignedDuration::from_hours(24)).unwrap_or(now) {
        return Err(ApiError::field("from", "lies at most a day back"));
    }
    check_until(Some(body.to), now).map_err(|_| ApiError::field("to", "lies in the future, at most a year"))?;
    let new = NewHold {
        subject: machine,
        condition: None,
        kind: Hold::Suppressed,
        reason: &reason,
        by: caller.user.id,
        since: body.from,
        until: Some(body.to),
    };
    place(&state, &caller, &new, now).await
}

async fn place(
    state: &ApiState,
    caller: &Caller,
    new: &NewHold<'_>,
    now: Timestamp,
) -> Result<(StatusCode, Json<AlarmHold>), ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let missing = || ApiError::not_found("machine");
    let site = objects::sites(&transaction, Object::Machine, &[new.subject]).await?.remove(&new.subject);
    let site = site.ok_or_else(missing)?;
    let (id, changed) = match holds::place(&transaction, new, now).await? {
        Placed::Done(id, changed) => (id, changed),
        Placed::Already => return Err(refusal(Refused::AlreadyHeld)),
        Placed::NoSuchSubject => return Err(missing()),
    };
    let name = id.to_string();
    audit::write(&transaction, &caller.by(), &placed(new, &name, site), now).await?;
    let shown = holds::one(&transaction, id, now).await?.ok_or_else(|| ApiError::not_found("hold"))?;
    transaction.commit().await?;
    tracing::info!(machine = %new.subject, kind = new.kind.as_str(), user = caller.user.name, "machine's alarms held back");
    tell(state, changed);
    Ok((StatusCode::CREATED, Json(shown)))
}

/// End a hold: unshelve, put back in service, cancel or end planned maintenance.
#[utoipa::path(post, path = "/alarm-holds/{id}/end", tag = "alarms", params(("id" = Uuid, Path)),
    responses((status = 200, body = AlarmHold), (status = 403, description = "Operators end shelves only."), (status = 404),
        (status = 409, description = "`not_held`")))]
pub async fn end(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<AlarmHold>, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let (kind, site) = holds::lock(&transaction, id).await?.ok_or_else(|| ApiError::not_found("hold"))?;
    if kind != Hold::Shelved && caller.scope.at(site) < Some(Role::Supervisor) {
        return Err(super::access::forbidden());
    }
    let changed = match holds::end(&transaction, id, caller.user.id, now).await? {
        Ended::Done(changed) => changed,
        Ended::Already => return Err(refusal(Refused::NotHeld)),
    };
    let change = audit::Change {
        action: "hold.end",
        object: "hold",
        id: &id.to_string(),
        site: Some(site),
        before: json!({"kind": kind, "ended_at": null}),
        after: json!({"kind": kind, "ended_at": now}),
    };
    audit::write(&transaction, &caller.by(), &change, now).await?;
    let ended = holds::one(&transaction, id, now).await?.ok_or_else(|| ApiError::not_found("hold"))?;
    transaction.commit().await?;
    tracing::info!(hold = %id, kind = kind.as_str(), user = caller.user.name, "hold ended");
    tell(&state, changed);
    Ok(Json(ended))
}

/// For the audit.
pub(super) fn placed<'a>(new: &NewHold<'_>, id: &'a str, site: Uuid) -> audit::Change<'a> {
    let after = json!({
        "subject": new.subject, "condition": new.condition, "kind": new.kind, "reason": new.reason, "since": new.since,
        "until": new.until,
    });
    audit::Change { action: "hold.place", object: "hold", id, site: Some(site), before: Value::Null, after }
}

fn tell(state: &ApiState, alarms: Vec<Uuid>) {
    for alarm in alarms {
        state.tell(Change::Alarm(alarm));
    }
}

/// Why somebody holds alarms back: it must be said.
pub(super) fn reason(text: &str) -> Result<String, ApiError> {
    let reason = written("reason", text, REASON_CHARS_MAX, true)?;
    if reason.is_empty() { Err(ApiError::field("reason", "is needed")) } else { Ok(reason) }
}

/// An end that is given lies ahead, and not too far.
pub(super) fn check_until(until: Option<Timestamp>, now: Timestamp) -> Result<(), ApiError> {
    let fits = |until: Timestamp| until > now && until.duration_since(now) <= PLANNED_MAX;
    if until.is_none_or(fits) { Ok(()) } else { Err(ApiError::field("until", "lies in the future, at most a year")) }
}
