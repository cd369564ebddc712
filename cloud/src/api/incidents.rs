//! Incidents: who has them, what was said of them, and how they end.

use axum::{Json, extract::State, http::StatusCode};
use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    alarms::COMMENT_CHARS_MAX,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, Params, Path, written},
    problem::ApiError,
};
use crate::{
    incidents::{ALARMS_MAX, ESCALATION_DEFAULT, ESCALATION_STEPS_MAX, EscalationStep, NoticeReason},
    live::Change,
    store::{
        alarms_read::{self, Filter as AlarmFilter},
        audit,
        incidents::{Recipient, notice},
        incidents_read::{self, After, Assigned, Filter, Locked, Order},
        scoped, sites, tickets,
    },
    users::Role,
    views::{Incident, IncidentDetail, Severity, word},
};

const AFTER_S: std::ops::RangeInclusive<i32> = 60..=604_800;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// A user of the organisation; `null`: nobody.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    user: Option<Uuid>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewComment {
    #[schema(min_length = 1, max_length = 2000)]
    text: String,
}

/// After how long an incident that nobody takes goes to whom.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Escalation {
    /// In the order of time; none, when writing, is the default again.
    #[schema(max_items = 5)]
    steps: Vec<EscalationStep>,
}

/// Incidents, the newest first.
#[utoipa::path(get, path = "/incidents", tag = "incidents",
    params(("open" = Option<bool>, Query, description = "`true`: not closed."), ("site" = Option<Uuid>, Query), ("machine" = Option<Uuid>, Query),
        ("assigned" = Option<String>, Query, description = "`me`, `nobody`, or a user's id."),
        ("severity" = Option<Severity>, Query, description = "This grave or graver."),
        ("from" = Option<String>, Query, format = DateTime, description = "Opened at this time or later."),
        ("to" = Option<String>, Query, format = DateTime, description = "Opened before this time."),
        ("sort" = Option<String>, Query, description = "`opened_at` (the default: the newest first) or `severity` (the gravest first)."),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Incident>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Incident>>, ApiError> {
    let me = caller.user.id;
    let filter = Filter {
        open: params.flag("open"),
        site: params.id("site"),
        machine: params.id("machine"),
        assigned: params.one("assigned", "me, nobody or a user's id", |text| match text {
            "me" => Some(Assigned::To(me)),
            "nobody" => Some(Assigned::Nobody),
            id => id.parse().ok().map(Assigned::To),
        }),
        severity_min: params.one("severity", "low, medium, high or critical", |text| word("severity", text).ok()),
        from: params.time("from"),
        to: params.time("to"),
        order: params
            .one("sort", "opened_at or severity", |text| match text {
                "opened_at" => Some(Order::OpenedAt),
                "severity" => Some(Order::Severity),
                _ => None,
            })
            .unwrap_or_default(),
    };
    let page = params.page::<After>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = incidents_read::list(&transaction, &filter, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, After::of)))
}

/// An incident with its alarms, its comments, and who was told.
#[utoipa::path(get, path = "/incidents/{id}", tag = "incidents", params(("id" = Uuid, Path)),
    responses((status = 200, body = IncidentDetail), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<IncidentDetail>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    detail(&transaction, id, state.now()).await
}

/// Give an incident to somebody. That person is told; nothing is handed on any more.
#[utoipa::path(post, path = "/incidents/{id}/assign", tag = "incidents", params(("id" = Uuid, Path)),
    request_body = Assignment,
    responses((status = 200, body = IncidentDetail), (status = 404), (status = 409, description = "`closed`")))]
pub async fn assign(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(body): Body<Assignment>,
) -> Result<Json<IncidentDetail>, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let locked = open(&transaction, id).await?;
    if locked.assigned_to != body.user {
        if !incidents_read::assign(&transaction, id, body.user, now).await? {
            return Err(ApiError::field("user", "is nobody who may look at this site"));
        }
        let before = json!({"assigned_to": locked.assigned_to});
        let after = json!({"assigned_to": body.user});
        audited(&transaction, &caller, "incident.assign", id, locked.site, (before, after), now).await?;
        // Who takes it knows.
        if let Some(user) = body.user.filter(|user| *user != caller.user.id) {
            notice(&transaction, id, Recipient::User(user), NoticeReason::Assigned, now).await?;
        }
    }
    let answer = detail(&transaction, id, now).await?;
    transaction.commit().await?;
    tracing::info!(incident = %id, to = ?body.user, user = caller.user.name, "incident assigned");
    state.tell(Change::Incident(id));
    Ok(answer)
}

/// Say something about an incident.
#[utoipa::path(post, path = "/incidents/{id}/comments", tag = "incidents", params(("id" = Uuid, Path)),
    request_body = NewComment,
    responses((status = 201, body = IncidentDetail), (status = 404), (status = 409, description = "`too_many_comments`")))]
pub async fn comment(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(body): Body<NewComment>,
) -> Result<(StatusCode, Json<IncidentDetail>), ApiError> {
    let text = written("text", &body.text, COMMENT_CHARS_MAX, true)?;
    if text.is_empty() {
        return Err(ApiError::field("text", "is needed"));
    }
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let locked = incidents_read::lock(&transaction, id).await?.ok_or_else(|| ApiError::not_found("incident"))?;
    if !incidents_read::comment(&transaction, id, caller.user.id, &text, now).await? {
        let most = incidents_read::COMMENTS_MAX;
        return Err(ApiError::conflict("too_many_comments", format_args!("an incident has at most {most} comments")));
    }
    let said = (Value::Null, json!({"comment": text}));
    audited(&transaction, &caller, "incident.comment", id, locked.site, said, now).await?;
    let answer = detail(&transaction, id, now).await?;
    transaction.commit().await?;
    state.tell(Change::Incident(id));
    Ok((StatusCode::CREATED, answer))
}

/// Acknowledge all alarms of an incident that people see; once more changes nothing.
#[utoipa::path(post, path = "/incidents/{id}/acknowledge", tag = "incidents", params(("id" = Uuid, Path)),
    responses((status = 200, body = IncidentDetail), (status = 404)))]
pub async fn acknowledge(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<IncidentDetail>, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    incidents_read::lock(&transaction, id).await?.ok_or_else(|| ApiError::not_found("incident"))?;
    let mut changed = Vec::new();
    for alarm in incidents_read::open_alarms(&transaction, id).await? {
        // What is held back stays as it is.
        if let Some(Ok(true)) = alarms_read::acknowledge(&transaction, alarm, None, &caller.by(), now).await? {
            changed.push(alarm);
        }
    }
    let answer = detail(&transaction, id, now).await?;
    transaction.commit().await?;
    tracing::info!(incident = %id, alarms = changed.len(), user = caller.user.name, "incident acknowledged");
    for alarm in changed {
        state.tell(Change::Alarm(alarm));
    }
    state.tell(Change::Incident(id));
    Ok(answer)
}

/// Close an incident whose alarms are all over. By itself it closes half an hour after the last one.
#[utoipa::path(post, path = "/incidents/{id}/close", tag = "incidents", params(("id" = Uuid, Path)),
    responses((status = 200, body = IncidentDetail), (status = 404),
        (status = 409, description = "`alarms_open` or `closed`")))]
pub async fn close(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<IncidentDetail>, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let locked = open(&transaction, id).await?;
    if locked.alarms_open > 0 {
        let detail = format!("{} of its alarms are not over, or not acknowledged", locked.alarms_open);
        return Err(ApiError::conflict("alarms_open", detail));
    }
    incidents_read::close(&transaction, id, caller.user.id, now).await?;
    let closed = (json!({"closed_at": null}), json!({"closed_at": now}));
    audited(&transaction, &caller, "incident.close", id, locked.site, closed, now).await?;
    let answer = detail(&transaction, id, now).await?;
    transaction.commit().await?;
    tracing::info!(incident = %id, user = caller.user.name, "incident closed");
    state.tell(Change::Incident(id));
    Ok(answer)
}

async fn audited(
    transaction: &Transaction<'_>,
    caller: &Caller,
    action: &'static str,
    id: Uuid,
    site: Uuid,
    (before, after): (Value, Value),
    now: Timestamp,
) -> Result<(), ApiError> {
    let id = id.to_string();
    let change = audit::Change { action, object: "incident", id: &id, site: Some(site), before, after };
    Ok(audit::write(transaction, &caller.by(), &change, now).await?)
}

async fn open(transaction: &Transaction<'_>, id: Uuid) -> Result<Locked, ApiError> {
    let locked = incidents_read::lock(transaction, id).await?.ok_or_else(|| ApiError::not_found("incident"))?;
    if locked.closed { Err(ApiError::conflict("closed", "the incident is closed")) } else { Ok(locked) }
}

async fn detail(transaction: &Transaction<'_>, id: Uuid, now: Timestamp) -> Result<Json<IncidentDetail>, ApiError> {
    let incident = incidents_read::by_ids(transaction, &[id]).await?.pop();
    let incident = incident.ok_or_else(|| ApiError::not_found("incident"))?;
    let of = AlarmFilter { incident: Some(id), ..AlarmFilter::default() };
    Ok(Json(IncidentDetail {
        incident,
        items: alarms_read::list(transaction, &of, None, ALARMS_MAX, now).await?,
        thread: incidents_read::comments(transaction, id).await?,
        notices: incidents_read::notices(transaction, id).await?,
        tickets: tickets::read::of_incident(transaction, id).await?,
    }))
}

/// After how long an incident that nobody takes goes to whom.
#[utoipa::path(get, path = "/escalation", tag = "incidents", responses((status = 200, body = Escalation)))]
pub async fn escalation(State(state): State<ApiState>, caller: Caller) -> Result<Tagged<Escalation>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    Ok(Tagged::new(in_force(incidents_read::policy(&transaction, caller.user.organisation).await?)))
}

fn in_force(own: Option<Vec<EscalationStep>>) -> Escalation {
    Escalation { steps: own.unwrap_or_else(|| ESCALATION_DEFAULT.to_vec()) }
}

/// Say after how long an incident that nobody takes goes to whom.
#[utoipa::path(put, path = "/escalation", tag = "incidents", params(("If-Match" = Option<String>, Header)),
    request_body = Escalation,
    responses((status = 200, body = Escalation), (status = 412, description = "`changed_meanwhile`")))]
pub async fn set_escalation(
    State(state): State<ApiState>,
    caller: Caller,
    if_match: IfMatch,
    Body(body): Body<Escalation>,
) -> Result<Tagged<Escalation>, ApiError> {
    let steps = &body.steps;
    if steps.len() > ESCALATION_STEPS_MAX {
        return Err(ApiError::field("steps", format_args!("are at most {ESCALATION_STEPS_MAX}")));
    }
    if steps.iter().any(|step| !AFTER_S.contains(&step.after_s)) {
        return Err(ApiError::field("steps", "have an after_s from 60 to 604800"));
    }
    if steps.windows(2).any(|two| two[0].after_s >= two[1].after_s) {
        return Err(ApiError::field("steps", "stand in the order of their after_s"));
    }
    if steps.iter().any(|step| step.role == Role::Viewer) {
        return Err(ApiError::field("steps", "go to operator, supervisor or admin"));
    }
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let organisation = caller.user.organisation;
    // The lock keeps two from changing it at once.
    sites::organisation(&transaction, organisation, true).await?;
    let before = incidents_read::policy(&transaction, organisation).await?;
    if_match.check(&in_force(before.clone()))?;
    incidents_read::set_policy(&transaction, organisation, steps).await?;
    let own = incidents_read::policy(&transaction, organisation).await?;
    let change = audit::Change {
        action: "escalation.set",
        object: "organisation",
        id: &organisation.to_string(),
        site: None,
        before: json!({"steps": before}),
        after: json!({"steps": own}),
    };
    audit::write(&transaction, &caller.by(), &change, state.now()).await?;
    transaction.commit().await?;
    tracing::info!(?steps, user = caller.user.name, "escalation set");
    Ok(Tagged::new(in_force(own)))
}
