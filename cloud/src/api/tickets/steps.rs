//! From state to state: who has a ticket, what becomes of it, and what it was.

use axum::{Json, extract::State};
use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    super::{
        ApiState,
        access::{Caller, forbidden},
        etag::{IfMatch, Tagged},
        extract::{Body, Path, written},
        problem::ApiError,
    },
    locked, needed, reaches, shown, tell, unfinished,
};
use crate::{
    live::Change,
    store::{
        labels::{self, Answer},
        scoped,
        tickets::{self, Closing, Step},
    },
    tickets::{
        AlarmCorrect, FINDING_CHARS_MAX, Mover, REASON_CHARS_MAX, STEPS_MAX, State as TicketState,
        failure::FailureMode, next, step,
    },
    users::Role,
    views::{Ticket, TicketDetail},
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketAssignment {
    /// Somebody who may look at the site; `null`: nobody, and the ticket is open again.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    user: Option<Uuid>,
    #[serde(default)]
    #[schema(max_length = 500)]
    reason: String,
}

/// Where whoever has a ticket may take it.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Moved {
    InProgress,
    OnHold,
    Done,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketMove {
    to: Moved,
    /// What it waits for; needed to put it on hold.
    #[serde(default)]
    #[schema(max_length = 500)]
    reason: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketReason {
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketClosing {
    /// How it failed; without, nothing did.
    #[serde(default)]
    failure_mode: Option<FailureMode>,
    #[serde(default)]
    #[schema(max_length = 2000)]
    cause: String,
    #[serde(default)]
    #[schema(max_length = 2000)]
    remedy: String,
    /// Was the alarm right? Needed for a ticket that stems from an incident, and only for such a one.
    #[serde(default)]
    alarm_correct: Option<AlarmCorrect>,
}

/// What a code of a failure mode means.
#[derive(Debug, Serialize, ToSchema)]
pub struct FailureModeMeaning {
    code: FailureMode,
    meaning: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct FailureModes {
    modes: Vec<FailureModeMeaning>,
}

/// How equipment fails: the codes that closing a ticket takes (those of ISO 14224:2016, annex B).
#[utoipa::path(get, path = "/failure-modes", tag = "tickets", responses((status = 200, body = FailureModes)))]
pub async fn failure_modes(_: Caller) -> Json<FailureModes> {
    let meaning = |code: FailureMode| FailureModeMeaning { code, meaning: code.meaning() };
    Json(FailureModes { modes: FailureMode::ALL.into_iter().map(meaning).collect() })
}

/// Give a ticket to somebody, or take it back from whoever has it.
#[utoipa::path(post, path = "/tickets/{id}/assign", tag = "tickets",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = TicketAssignment,
    responses((status = 200, body = TicketDetail), (status = 404), (status = 409, description = "`closed` or `no_such_step`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn assign(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<TicketAssignment>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let (now, reason) = (state.now(), written("reason", &body.reason, REASON_CHARS_MAX, true)?);
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    unfinished(&ticket)?;
    let to = match body.user {
        None => TicketState::Open,
        // Whoever gets it goes on where it is.
        Some(_) if ticket.state.is_live() && ticket.state != TicketState::Open => ticket.state,
        Some(_) => TicketState::Assigned,
    };
    if body.user != ticket.assignee_id || to != ticket.state {
        if let Some(user) = body.user {
            reaches(&transaction, "user", user, ticket.site_id).await?;
        }
        let taken = Step { action: "ticket.assign", to, assignee: body.user, reason, closing: None };
        take(&transaction, &caller, &ticket, &taken, now).await?;
        tell(&transaction, &caller, id, ticket.priority, body.user, now).await?;
    }
    done(&state, &caller, transaction, &ticket, now).await
}

/// Begin a ticket's work, put it on hold, go on with it, or say that it is done: by whoever it is assigned to, or a supervisor.
#[utoipa::path(post, path = "/tickets/{id}/move", tag = "tickets",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = TicketMove,
    responses((status = 200, body = TicketDetail), (status = 403, description = "It is somebody else's."), (status = 404),
        (status = 409, description = "`no_such_step`"), (status = 412, description = "`changed_meanwhile`")))]
pub async fn advance(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<TicketMove>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let to = match body.to {
        Moved::InProgress => TicketState::InProgress,
        Moved::OnHold => TicketState::OnHold,
        Moved::Done => TicketState::Done,
    };
    let reason = match to {
        TicketState::OnHold => needed("reason", &body.reason, REASON_CHARS_MAX, true)?,
        _ => written("reason", &body.reason, REASON_CHARS_MAX, true)?,
    };
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    let taken = Step { action: "ticket.move", to, assignee: ticket.assignee_id, reason, closing: None };
    take(&transaction, &caller, &ticket, &taken, now).await?;
    done(&state, &caller, transaction, &ticket, now).await
}

/// Close a ticket that is done. Whether the alarm was right labels the anomalies behind it, and their gateways are told.
#[utoipa::path(post, path = "/tickets/{id}/close", tag = "tickets",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = TicketClosing,
    responses((status = 200, body = TicketDetail), (status = 404), (status = 409, description = "`no_such_step`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn close(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<TicketClosing>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let closing = Closing {
        failure_mode: body.failure_mode,
        cause: written("cause", &body.cause, FINDING_CHARS_MAX, true)?,
        remedy: written("remedy", &body.remedy, FINDING_CHARS_MAX, true)?,
        alarm_correct: body.alarm_correct,
    };
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    if ticket.incident_id.is_some() != body.alarm_correct.is_some() {
        let detail = "is needed for a ticket that stems from an incident, and only for such a one";
        return Err(ApiError::field("alarm_correct", detail));
    }
    let taken = Step {
        action: "ticket.close",
        to: TicketState::Closed,
        assignee: ticket.assignee_id,
        reason: String::new(),
        closing: Some(closing),
    };
    take(&transaction, &caller, &ticket, &taken, now).await?;
    let mut labelled = Vec::new();
    if let (Some(incident), Some(real)) = (ticket.incident_id, body.alarm_correct.and_then(AlarmCorrect::real)) {
        let expires_at = now.saturating_add(labels::VALID_FOR).unwrap_or(now);
        let answer = Answer { real, user: caller.user.id, now, expires_at };
        labelled = labels::of_incident(&transaction, incident, answer, &caller.by()).await?;
    }
    let answer = done(&state, &caller, transaction, &ticket, now).await?;
    for (anomaly, gateway) in labelled {
        state.tell(Change::Anomaly(anomaly));
        state.tell(Change::Gateway(gateway));
    }
    Ok(answer)
}

/// Cancel a ticket: nothing is to be done about it.
#[utoipa::path(post, path = "/tickets/{id}/cancel", tag = "tickets",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = TicketReason,
    responses((status = 200, body = TicketDetail), (status = 404), (status = 409, description = "`no_such_step`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<TicketReason>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let (now, reason) = (state.now(), needed("reason", &body.reason, REASON_CHARS_MAX, true)?);
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    let to = TicketState::Cancelled;
    let taken = Step { action: "ticket.cancel", to, assignee: ticket.assignee_id, reason, closing: None };
    take(&transaction, &caller, &ticket, &taken, now).await?;
    done(&state, &caller, transaction, &ticket, now).await
}

/// Take up a ticket again that was closed or cancelled. It goes to whoever had it, if they may still look at the site.
#[utoipa::path(post, path = "/tickets/{id}/reopen", tag = "tickets",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = TicketReason,
    responses((status = 200, body = TicketDetail), (status = 404),
        (status = 409, description = "`no_such_step`, or `incident_has_ticket`: another took its place; `existing_id` says which"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn reopen(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<TicketReason>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let (now, reason) = (state.now(), needed("reason", &body.reason, REASON_CHARS_MAX, true)?);
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    if let (TicketState::Cancelled, Some(incident)) = (ticket.state, ticket.incident_id) {
        let other = tickets::cause(&transaction, incident).await?.and_then(|cause| cause.ticket);
        if let Some(other) = other {
            let error = ApiError::conflict("incident_has_ticket", "the incident has another ticket by now");
            return Err(error.existing(other));
        }
    }
    let mut assignee = None;
    if let Some(user) = ticket.assignee_id
        && tickets::reaches(&transaction, user, ticket.site_id).await?
    {
        assignee = Some(user);
    }
    let to = match assignee {
        // What is still under way is refused.
        _ if !ticket.state.is_final() => return Err(refused(&ticket, TicketState::Open)),
        Some(_) => TicketState::Assigned,
        None => TicketState::Open,
    };
    let taken = Step { action: "ticket.reopen", to, assignee, reason, closing: None };
    take(&transaction, &caller, &ticket, &taken, now).await?;
    tell(&transaction, &caller, id, ticket.priority, assignee, now).await?;
    done(&state, &caller, transaction, &ticket, now).await
}

/// Takes a step that there is, by somebody who may; the same state is another assignee's, which only [`assign`] asks for.
async fn take(
    transaction: &Transaction<'_>,
    caller: &Caller,
    ticket: &Ticket,
    taken: &Step,
    now: Timestamp,
) -> Result<(), ApiError> {
    let again = taken.to == ticket.state && taken.assignee != ticket.assignee_id;
    let mover = if again {
        Mover::Supervisor
    } else {
        step(ticket.state, taken.to).ok_or_else(|| refused(ticket, taken.to))?
    };
    let supervisor = caller.scope.at(ticket.site_id) >= Some(Role::Supervisor);
    let own = mover == Mover::Assignee && ticket.assignee_id == Some(caller.user.id);
    if !supervisor && !own {
        return Err(forbidden());
    }
    if !tickets::take(transaction, ticket, taken, &caller.by(), now).await? {
        let detail = format_args!("the ticket went through {STEPS_MAX} states: make another one");
        return Err(ApiError::conflict("too_many_steps", detail));
    }
    Ok(())
}

async fn done(
    state: &ApiState,
    caller: &Caller,
    transaction: Transaction<'_>,
    ticket: &Ticket,
    now: Timestamp,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let answer = shown(&transaction, ticket.id, now).await?;
    transaction.commit().await?;
    tracing::info!(ticket = %ticket.id, from = ticket.state.as_str(), user = caller.user.name, "ticket moved");
    state.tell(Change::Ticket(ticket.id));
    Ok(answer)
}

fn refused(ticket: &Ticket, to: TicketState) -> ApiError {
    let may: Vec<&str> = next(ticket.state).map(TicketState::as_str).collect();
    let (from, to) = (ticket.state.as_str(), to.as_str());
    let detail = format!("a ticket that is {from} cannot become {to}; it can become {}", may.join(", "));
    ApiError::conflict("no_such_step", detail)
}
