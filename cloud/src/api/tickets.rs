//! Tickets (work orders): their list, one of them, and what is written of it.

pub mod files;
pub mod steps;
pub mod work;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use deadpool_postgres::Transaction;
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::{Caller, forbidden},
    etag::{IfMatch, Tagged, of},
    extract::{Body, Items, Params, Path, YEARS, present, written},
    problem::ApiError,
};
use crate::{
    live::Change,
    store::{
        objects::{self, Object},
        scoped,
        tickets::{
            self, Cause, Fields,
            read::{self, After, Assigned, Filter, Order},
        },
    },
    tickets::{
        DESCRIPTION_CHARS_MAX, ITEMS_MAX, Kind, LINE_CHARS_MAX, Priority, State as TicketState, TITLE_CHARS_MAX,
        costs::{AMOUNT_MAX, ESTIMATE_MINUTES_MAX},
    },
    users::Role,
    views::{Ticket, TicketDetail, word},
};

const TEXT_CHARS_MAX: usize = 100;

/// A ticket as it is made: of an incident, a machine, an area, or a site as a whole. What is named stands at one site.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTicket {
    /// What it is made from. It gives the machine, the title and the priority, where these are left out.
    #[serde(default)]
    incident: Option<Uuid>,
    #[serde(default)]
    machine: Option<Uuid>,
    #[serde(default)]
    area: Option<Uuid>,
    #[serde(default)]
    site: Option<Uuid>,
    #[serde(default)]
    kind: Kind,
    /// `medium`, if not given and not an incident's.
    #[serde(default)]
    priority: Option<Priority>,
    /// Needed, except of an incident.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    title: Option<String>,
    #[serde(default)]
    #[schema(max_length = 10000)]
    description: String,
    #[serde(default)]
    due_at: Option<Timestamp>,
    /// Somebody who may look at the site. Supervisors only.
    #[serde(default)]
    assignee: Option<Uuid>,
    #[serde(default)]
    #[schema(minimum = 0, maximum = 527_040)]
    estimate_minutes: Option<i32>,
    /// In the minor unit (cents) of the organisation's currency.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    estimate_minor: Option<i64>,
    /// Each of 1 to 500 characters.
    #[serde(default)]
    #[schema(max_items = 100)]
    checklist: Vec<String>,
}

/// What is left out stays as it is.
#[allow(clippy::option_option, reason = "`null` and absence are two things")]
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketChange {
    /// At the same site. Not of a ticket that stems from an incident.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Uuid>)]
    machine: Option<Option<Uuid>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Uuid>)]
    area: Option<Option<Uuid>>,
    #[serde(default)]
    kind: Option<Kind>,
    #[serde(default)]
    priority: Option<Priority>,
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    title: Option<String>,
    #[serde(default)]
    #[schema(max_length = 10000)]
    description: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Timestamp>)]
    due_at: Option<Option<Timestamp>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 527_040)]
    estimate_minutes: Option<Option<i32>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000_000_i64)]
    estimate_minor: Option<Option<i64>>,
}

/// Tickets, the newest first.
#[utoipa::path(get, path = "/tickets", tag = "tickets",
    params(("state" = Option<Vec<TicketState>>, Query, description = "May be repeated: one of these."),
        ("open" = Option<bool>, Query, description = "`true`: something is still to be done."),
        ("overdue" = Option<bool>, Query), ("priority" = Option<Priority>, Query), ("kind" = Option<Kind>, Query),
        ("site" = Option<Uuid>, Query), ("area" = Option<Uuid>, Query), ("machine" = Option<Uuid>, Query),
        ("incident" = Option<Uuid>, Query), ("plan" = Option<Uuid>, Query, description = "Made by this plan."),
        ("assignee" = Option<String>, Query, description = "`me`, `nobody`, or a user's id."),
        ("q" = Option<String>, Query, max_length = 100, description = "Words of title or description, or a number (`12`, `#12`)."),
        ("from" = Option<String>, Query, format = DateTime, description = "Made at this time or later."),
        ("to" = Option<String>, Query, format = DateTime, description = "Made before this time."),
        ("sort" = Option<String>, Query, description = "`created_at` (the default: the newest first), `due_at` (what is due first, \
            first) or `priority` (the most urgent first)."),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Ticket>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Ticket>>, ApiError> {
    let me = caller.user.id;
    let states = params.each("state", "a state of tickets", |text| word("state", text).ok());
    let filter = Filter {
        states,
        open: params.flag("open"),
        overdue: params.flag("overdue"),
        priority: params.one("priority", "low, medium, high or urgent", |text| word("priority", text).ok()),
        kind: params.one("kind", "corrective, preventive or inspection", |text| word("kind", text).ok()),
        site: params.id("site"),
        area: params.id("area"),
        machine: params.id("machine"),
        incident: params.id("incident"),
        plan: params.id("plan"),
        assigned: params.one("assignee", "me, nobody or a user's id", |text| match text {
            "me" => Some(Assigned::To(me)),
            "nobody" => Some(Assigned::Nobody),
            id => id.parse().ok().map(Assigned::To),
        }),
        text: params.one("q", "words of at most 100 characters", |text| written("q", text, TEXT_CHARS_MAX, false).ok()),
        from: params.time("from"),
        to: params.time("to"),
        order: params
            .one("sort", "created_at, due_at or priority", |text| match text {
                "created_at" => Some(Order::CreatedAt),
                "due_at" => Some(Order::DueAt),
                "priority" => Some(Order::Priority),
                _ => None,
            })
            .unwrap_or_default(),
    };
    let page = params.page::<After>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = read::list(&transaction, &filter, page.after.as_ref(), page.rows(), state.now()).await?;
    Ok(Json(Items::new(rows, &page, After::of)))
}

/// A ticket with its checklist, comments, files, costs and history.
#[utoipa::path(get, path = "/tickets/{id}", tag = "tickets", params(("id" = Uuid, Path)),
    responses((status = 200, body = TicketDetail), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    shown(&transaction, id, state.now()).await
}

/// Make a ticket, by hand or from an incident. An incident has one, unless that was cancelled.
#[utoipa::path(post, path = "/tickets", tag = "tickets", request_body = NewTicket,
    responses((status = 201, body = TicketDetail),
        (status = 403, description = "Operators assign nobody."),
        (status = 409, description = "`incident_has_ticket`; `existing_id` says which")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<NewTicket>,
) -> Result<Response, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let (site, cause) = place(&transaction, &body).await?;
    if let Some(user) = body.assignee {
        if caller.scope.at(site) < Some(Role::Supervisor) {
            return Err(forbidden());
        }
        reaches(&transaction, "assignee", user, site).await?;
    }
    let new = tickets::NewTicket {
        site,
        incident: body.incident,
        assignee: body.assignee,
        checklist: checklist(&body.checklist)?,
        fields: fields(body, cause.as_ref())?,
    };
    let id = tickets::make(&transaction, &new, &caller.by(), now).await?;
    tell(&transaction, &caller, id, new.fields.priority, new.assignee, now).await?;
    let answer = shown(&transaction, id, now).await?;
    transaction.commit().await?;
    tracing::info!(ticket = %id, incident = ?new.incident, user = caller.user.name, "ticket made");
    state.tell(Change::Ticket(id));
    Ok((StatusCode::CREATED, answer).into_response())
}

/// Change what is written of a ticket. One that is closed or cancelled is reopened first.
#[utoipa::path(patch, path = "/tickets/{id}", tag = "tickets", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = TicketChange,
    responses((status = 200, body = TicketDetail), (status = 404), (status = 409, description = "`closed`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<TicketChange>,
) -> Result<Tagged<TicketDetail>, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    unfinished(&ticket)?;
    let known = Fields::of(&ticket);
    let after = Fields {
        machine: body.machine.unwrap_or(known.machine),
        area: body.area.unwrap_or(known.area),
        kind: body.kind.unwrap_or(known.kind),
        priority: body.priority.unwrap_or(known.priority),
        title: body.title.map(|text| title(&text)).transpose()?.unwrap_or_else(|| known.title.clone()),
        description: body
            .description
            .map(|text| written("description", &text, DESCRIPTION_CHARS_MAX, true))
            .transpose()?
            .unwrap_or_else(|| known.description.clone()),
        due_at: body.due_at.map_or(Ok(known.due_at), due)?,
        estimate_minutes: body.estimate_minutes.map_or(Ok(known.estimate_minutes), minutes)?,
        estimate_minor: body
            .estimate_minor
            .map_or(Ok(known.estimate_minor), |amount| money("estimate_minor", amount))?,
    };
    if after.machine != known.machine {
        if ticket.incident_id.is_some() {
            return Err(ApiError::field("machine", "stays that of the incident"));
        }
        if let Some(machine) = after.machine {
            at_site("machine", tickets::site_of_machine(&transaction, machine).await?, ticket.site_id)?;
        }
    }
    if let Some(area) = after.area.filter(|_| after.area != known.area) {
        at_site("area", objects::sites(&transaction, Object::Area, &[area]).await?.remove(&area), ticket.site_id)?;
    }
    tickets::change(&transaction, &ticket, &after, &caller.by(), now).await?;
    let answer = shown(&transaction, id, now).await?;
    transaction.commit().await?;
    tracing::info!(ticket = %id, user = caller.user.name, "ticket changed");
    state.tell(Change::Ticket(id));
    Ok(answer)
}

/// What a change is of.
fn editable(ticket: &Ticket) -> impl Serialize + use<> {
    let said = (ticket.failure_mode, ticket.cause.clone(), ticket.remedy.clone(), ticket.alarm_correct);
    (Fields::of(ticket), ticket.state, ticket.assignee_id, said)
}

/// Has somebody told that a ticket is theirs. Who takes it knows.
async fn tell(
    transaction: &Transaction<'_>,
    caller: &Caller,
    ticket: Uuid,
    priority: Priority,
    assignee: Option<Uuid>,
    now: Timestamp,
) -> Result<(), ApiError> {
    if let Some(user) = assignee.filter(|user| *user != caller.user.id) {
        tickets::notice(transaction, ticket, priority, user, now).await?;
    }
    Ok(())
}

/// A ticket that somebody is about to change.
async fn locked(
    transaction: &Transaction<'_>,
    id: Uuid,
    if_match: &IfMatch,
    now: Timestamp,
) -> Result<Ticket, ApiError> {
    let ticket = read::lock(transaction, id, now).await?.ok_or_else(|| ApiError::not_found("ticket"))?;
    if_match.check(&editable(&ticket))?;
    Ok(ticket)
}

async fn shown(transaction: &Transaction<'_>, id: Uuid, now: Timestamp) -> Result<Tagged<TicketDetail>, ApiError> {
    let detail = read::detail(transaction, id, now).await?.ok_or_else(|| ApiError::not_found("ticket"))?;
    let tag = of(&editable(&detail.ticket));
    Ok(Tagged::with(detail, tag))
}

fn unfinished(ticket: &Ticket) -> Result<(), ApiError> {
    if ticket.state.is_final() {
        let detail = format_args!("the ticket is {}: reopen it first", ticket.state.as_str());
        return Err(ApiError::conflict("closed", detail));
    }
    Ok(())
}

/// The site of what a new ticket is of, and what it is made from.
async fn place(transaction: &Transaction<'_>, body: &NewTicket) -> Result<(Uuid, Option<Cause>), ApiError> {
    let mut cause = None;
    if let Some(incident) = body.incident {
        let found = tickets::cause(transaction, incident).await?;
        let found = found.ok_or_else(|| ApiError::field("incident", "is none of your sites"))?;
        if let Some(ticket) = found.ticket {
            let error = ApiError::conflict("incident_has_ticket", "the incident has a ticket that was not cancelled");
            return Err(error.existing(ticket));
        }
        cause = Some(found);
    }
    let mut site = cause.as_ref().map(|cause| cause.site);
    let mut named = Vec::new();
    if let Some(machine) = body.machine {
        named.push(("machine", tickets::site_of_machine(transaction, machine).await?));
    }
    if let Some(area) = body.area {
        named.push(("area", objects::sites(transaction, Object::Area, &[area]).await?.remove(&area)));
    }
    if let Some(id) = body.site {
        named.push(("site", objects::sites(transaction, Object::Site, &[id]).await?.remove(&id)));
    }
    for (field, found) in named {
        match site {
            None => site = Some(found.ok_or_else(|| nowhere(field))?),
            Some(site) => at_site(field, found, site)?,
        }
    }
    let site = site.ok_or_else(|| ApiError::field("machine", "is needed, or an incident, an area or a site"))?;
    Ok((site, cause))
}

fn nowhere(field: &str) -> ApiError {
    ApiError::field(field, "is none of your sites, or is shown as a part of another")
}

fn at_site(field: &str, found: Option<Uuid>, site: Uuid) -> Result<(), ApiError> {
    match found {
        None => Err(nowhere(field)),
        Some(found) if found != site => Err(ApiError::field(field, "stands at another site than the rest")),
        Some(_) => Ok(()),
    }
}

async fn reaches(transaction: &Transaction<'_>, field: &str, user: Uuid, site: Uuid) -> Result<(), ApiError> {
    if tickets::reaches(transaction, user, site).await? {
        return Ok(());
    }
    Err(ApiError::field(field, "is nobody who may look at this site"))
}

fn fields(body: NewTicket, cause: Option<&Cause>) -> Result<Fields, ApiError> {
    let title = match (body.title, cause) {
        (Some(text), _) => title(&text)?,
        (None, Some(cause)) if !cause.message.is_empty() => cause.message.chars().take(TITLE_CHARS_MAX).collect(),
        (None, Some(_)) => "Alarm".to_owned(),
        (None, None) => return Err(ApiError::field("title", "is needed")),
    };
    let of_cause = cause.map(|cause| Priority::of(cause.severity));
    Ok(Fields {
        machine: body.machine.or_else(|| cause.and_then(|cause| cause.machine)),
        area: body.area,
        kind: body.kind,
        priority: body.priority.or(of_cause).unwrap_or_default(),
        title,
        description: written("description", &body.description, DESCRIPTION_CHARS_MAX, true)?,
        due_at: due(body.due_at)?,
        estimate_minutes: minutes(body.estimate_minutes)?,
        estimate_minor: money("estimate_minor", body.estimate_minor)?,
    })
}

fn title(text: &str) -> Result<String, ApiError> {
    needed("title", text, TITLE_CHARS_MAX, false)
}

/// A text that is not empty.
fn needed(field: &str, text: &str, chars_max: usize, lines: bool) -> Result<String, ApiError> {
    let text = written(field, text, chars_max, lines)?;
    if text.is_empty() { Err(ApiError::field(field, "is needed")) } else { Ok(text) }
}

fn checklist(items: &[String]) -> Result<Vec<String>, ApiError> {
    if items.len() > ITEMS_MAX {
        return Err(ApiError::field("checklist", format_args!("has at most {ITEMS_MAX} items")));
    }
    items.iter().map(|text| needed("checklist", text, LINE_CHARS_MAX, false)).collect()
}

fn due(at: Option<Timestamp>) -> Result<Option<Timestamp>, ApiError> {
    if at.is_some_and(|at| !YEARS.contains(&at.to_zoned(TimeZone::UTC).year())) {
        return Err(ApiError::field("due_at", "is a time from 1970 to 2199"));
    }
    Ok(at)
}

fn minutes(minutes: Option<i32>) -> Result<Option<i32>, ApiError> {
    if minutes.is_some_and(|minutes| !(0..=ESTIMATE_MINUTES_MAX).contains(&minutes)) {
        return Err(ApiError::field("estimate_minutes", format_args!("is from 0 to {ESTIMATE_MINUTES_MAX}")));
    }
    Ok(minutes)
}

fn money(field: &str, amount: Option<i64>) -> Result<Option<i64>, ApiError> {
    if amount.is_some_and(|amount| !(0..=AMOUNT_MAX).contains(&amount)) {
        return Err(ApiError::field(field, format_args!("is from 0 to {AMOUNT_MAX}")));
    }
    Ok(amount)
}
