//! What people do on a ticket: comments, its checklist, what it cost.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    super::{
        ApiState,
        access::{Caller, forbidden},
        etag::{IfMatch, Tagged},
        extract::{Body, Path, written},
        problem::{ApiError, FieldError},
    },
    locked, money, needed, reaches, shown, unfinished,
};
use crate::{
    live::Change,
    store::{
        scoped, sites,
        tickets::{
            read,
            work::{self, NewCost},
        },
    },
    tickets::{
        COMMENT_CHARS_MAX, COMMENTS_MAX, COSTS_MAX, ITEMS_MAX, LINE_CHARS_MAX,
        costs::{CostKind, MINUTES_MAX, labour},
        may_take_away,
    },
    users::Role,
    views::{Ticket, TicketDetail},
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTicketComment {
    #[schema(min_length = 1, max_length = 5000)]
    text: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTicketItem {
    #[schema(min_length = 1, max_length = 500)]
    text: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketTick {
    done: bool,
}

/// Labour (minutes, and perhaps who and a rate), or a part or something else (what, and its price).
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTicketCost {
    kind: CostKind,
    /// Who worked; the caller, if not given. Of labour only.
    #[serde(default)]
    user: Option<Uuid>,
    /// Needed of labour, and only of it.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 10_080)]
    minutes: Option<i32>,
    /// What an hour costs, in the ticket's currency; the organisation's rate, if not given. Of labour only, and needed of it where the
    /// organisation has changed its currency since the ticket was made.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    rate_minor: Option<i64>,
    /// What it was; of labour it may be left out.
    #[serde(default)]
    #[schema(max_length = 500)]
    text: String,
    /// Needed of what is no labour, and only of that.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    amount_minor: Option<i64>,
}

/// Say something about a ticket.
#[utoipa::path(post, path = "/tickets/{id}/comments", tag = "tickets", params(("id" = Uuid, Path)), request_body = NewTicketComment,
    responses((status = 201, body = TicketDetail), (status = 404), (status = 409, description = "`too_many_comments`")))]
pub async fn comment(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(body): Body<NewTicketComment>,
) -> Result<Response, ApiError> {
    let (now, text) = (state.now(), needed("text", &body.text, COMMENT_CHARS_MAX, true)?);
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = read::lock(&transaction, id, now).await?.ok_or_else(missing)?;
    if !work::comment(&transaction, &ticket, caller.user.id, &text, &caller.by(), now).await? {
        return Err(too_many("too_many_comments", COMMENTS_MAX, "comments"));
    }
    let answer = shown(&transaction, id, now).await?;
    transaction.commit().await?;
    state.tell(Change::Ticket(id));
    Ok((StatusCode::CREATED, answer).into_response())
}

/// Add an item to a ticket's checklist.
#[utoipa::path(post, path = "/tickets/{id}/items", tag = "tickets", params(("id" = Uuid, Path)), request_body = NewTicketItem,
    responses((status = 201, body = TicketDetail), (status = 404), (status = 409, description = "`closed` or `too_many_items`")))]
pub async fn add_item(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(body): Body<NewTicketItem>,
) -> Result<Response, ApiError> {
    let (now, text) = (state.now(), needed("text", &body.text, LINE_CHARS_MAX, false)?);
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = read::lock(&transaction, id, now).await?.ok_or_else(missing)?;
    unfinished(&ticket)?;
    if !work::add_item(&transaction, &ticket, &text, &caller.by(), now).await? {
        return Err(too_many("too_many_items", ITEMS_MAX, "items"));
    }
    let answer = shown(&transaction, id, now).await?;
    transaction.commit().await?;
    state.tell(Change::Ticket(id));
    Ok((StatusCode::CREATED, answer).into_response())
}

/// Tick an item of the checklist off, or take that back. `If-Match` is of the ticket.
#[utoipa::path(put, path = "/tickets/{id}/items/{item}", tag = "tickets",
    params(("id" = Uuid, Path), ("item" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = TicketTick,
    responses((status = 200, body = TicketDetail), (status = 404), (status = 409, description = "`closed`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn tick(
    State(state): State<ApiState>,
    caller: Caller,
    Path((id, item)): Path<(Uuid, Uuid)>,
    if_match: IfMatch,
    Body(body): Body<TicketTick>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    unfinished(&ticket)?;
    if !work::tick(&transaction, &ticket, item, body.done, caller.user.id, &caller.by(), now).await? {
        return Err(ApiError::not_found("item"));
    }
    let answer = shown(&transaction, id, now).await?;
    transaction.commit().await?;
    state.tell(Change::Ticket(id));
    Ok(answer)
}

/// Take an item off the checklist. `If-Match` is of the ticket.
#[utoipa::path(delete, path = "/tickets/{id}/items/{item}", tag = "tickets",
    params(("id" = Uuid, Path), ("item" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404), (status = 409, description = "`closed`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn remove_item(
    State(state): State<ApiState>,
    caller: Caller,
    Path((id, item)): Path<(Uuid, Uuid)>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    unfinished(&ticket)?;
    if !work::remove_item(&transaction, &ticket, item, &caller.by(), now).await? {
        return Err(ApiError::not_found("item"));
    }
    transaction.commit().await?;
    state.tell(Change::Ticket(id));
    Ok(StatusCode::NO_CONTENT)
}

/// Write down what a ticket cost: somebody's work, a part, something else. Bills may come after it was closed.
#[utoipa::path(post, path = "/tickets/{id}/costs", tag = "tickets", params(("id" = Uuid, Path)), request_body = NewTicketCost,
    responses((status = 201, body = TicketDetail), (status = 404), (status = 409, description = "`too_many_costs`")))]
pub async fn add_cost(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Body(body): Body<NewTicketCost>,
) -> Result<Response, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = read::lock(&transaction, id, now).await?.ok_or_else(missing)?;
    let basis = sites::cost_basis(&transaction, caller.user.organisation).await?;
    // A ticket's amounts stay in the currency in which it began.
    let rate = (basis.currency == ticket.currency).then_some(basis.labour_rate_minor);
    let new = checked(&body, caller.user.id, rate)?;
    if let Some(user) = new.user {
        reaches(&transaction, "user", user, ticket.site_id).await?;
    }
    if !work::add_cost(&transaction, &ticket, &new, caller.user.id, &caller.by(), now).await? {
        return Err(too_many("too_many_costs", COSTS_MAX, "lines of cost"));
    }
    let answer = shown(&transaction, id, now).await?;
    transaction.commit().await?;
    state.tell(Change::Ticket(id));
    Ok((StatusCode::CREATED, answer).into_response())
}

/// Take a line of cost away that was wrong: one's own, until the ticket is closed, or (supervisors) any. `If-Match` is of the ticket.
#[utoipa::path(delete, path = "/tickets/{id}/costs/{cost}", tag = "tickets",
    params(("id" = Uuid, Path), ("cost" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 403), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn remove_cost(
    State(state): State<ApiState>,
    caller: Caller,
    Path((id, cost)): Path<(Uuid, Uuid)>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    let missing = || ApiError::not_found("line of cost");
    let author = work::cost_author(&transaction, &ticket, cost).await?.ok_or_else(missing)?;
    take_away(&caller, &ticket, author)?;
    if !work::remove_cost(&transaction, &ticket, cost, &caller.by(), now).await? {
        return Err(missing());
    }
    transaction.commit().await?;
    state.tell(Change::Ticket(id));
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses who may not take away what this author added to a ticket.
pub(super) fn take_away(caller: &Caller, ticket: &Ticket, author: Uuid) -> Result<(), ApiError> {
    let supervisor = caller.scope.at(ticket.site_id) >= Some(Role::Supervisor);
    let may = may_take_away(ticket.state, author == caller.user.id, supervisor);
    if may { Ok(()) } else { Err(forbidden()) }
}

/// A line of cost by `me`, in an organisation where an hour costs `rate`, if that is in the ticket's currency.
fn checked(body: &NewTicketCost, me: Uuid, rate: Option<i64>) -> Result<NewCost, ApiError> {
    let text = written("text", &body.text, LINE_CHARS_MAX, false)?;
    let (given, own) = (money("rate_minor", body.rate_minor)?, money("amount_minor", body.amount_minor)?);
    let is_labour = body.kind == CostKind::Labour;
    let mut errors = Vec::new();
    let mut wrong = |wrong: bool, field: &str, message: &str| {
        if wrong {
            errors.push(FieldError { field: field.to_owned(), message: message.to_owned() });
        }
    };
    wrong(body.minutes.is_some_and(|minutes| !(1..=MINUTES_MAX).contains(&minutes)), "minutes", "is from 1 to 10080");
    wrong(is_labour != body.minutes.is_some(), "minutes", "is needed of labour, and only of it");
    wrong(!is_labour && given.is_some(), "rate_minor", "is of labour only");
    let foreign = is_labour && given.or(rate).is_none();
    wrong(foreign, "rate_minor", "is needed: the organisation's rate is in another currency than the ticket");
    wrong(!is_labour && body.user.is_some(), "user", "is of labour only");
    wrong(is_labour == own.is_some(), "amount_minor", "is needed of what is no labour, and only of that");
    wrong(!is_labour && text.is_empty(), "text", "is needed: what it was");
    if !errors.is_empty() {
        return Err(ApiError::fields("invalid_fields", "a field is not as it should be", errors));
    }
    let Some(minutes) = body.minutes else {
        let amount_minor = own.unwrap_or_default();
        return Ok(NewCost { kind: body.kind, user: None, minutes: None, rate_minor: None, text, amount_minor });
    };
    let rate = given.or(rate).unwrap_or_default();
    let amount_minor =
        labour(minutes, rate).ok_or_else(|| ApiError::field("minutes", "cost more than can be counted"))?;
    let user = Some(body.user.unwrap_or(me));
    Ok(NewCost { kind: body.kind, user, minutes: Some(minutes), rate_minor: Some(rate), text, amount_minor })
}

fn missing() -> ApiError {
    ApiError::not_found("ticket")
}

fn too_many(code: &'static str, most: usize, what: &str) -> ApiError {
    ApiError::conflict(code, format_args!("a ticket has at most {most} {what}"))
}
