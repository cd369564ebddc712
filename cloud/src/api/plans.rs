//! Plans of preventive maintenance.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, Params, Path, YEARS, written},
    problem::{ApiError, FieldError},
};
use crate::{
    plans::{Calendar, EVERY_H_MAX, EVERY_MAX, HEALTH_FOR_S_MAX, Health, LEAD_H_MAX, PLANS_MAX, Running},
    store::{
        plans_edit::{self, Filter, Written},
        scoped,
    },
    tickets::{DESCRIPTION_CHARS_MAX, ITEMS_MAX, LINE_CHARS_MAX, Priority, TITLE_CHARS_MAX},
    views::{Plan, PlanText},
};

/// Estimates are of less than a year's work.
const ESTIMATE_MINUTES_MAX: i32 = 525_600;

/// A plan as it is written. Exactly one of `calendar`, `running` and `health` makes it due.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanBody {
    /// A plan stays with its machine.
    machine: Uuid,
    /// Of its tickets.
    #[schema(min_length = 1, max_length = 200)]
    title: String,
    #[serde(default)]
    #[schema(max_length = 10_000)]
    description: String,
    #[serde(default)]
    priority: Priority,
    /// Items that its tickets have.
    #[serde(default)]
    #[schema(max_items = 100)]
    checklist: Vec<String>,
    #[serde(default)]
    #[schema(minimum = 0, maximum = 525_600)]
    estimate_minutes: Option<i32>,
    /// Whose its tickets are: somebody who may look at the machine.
    #[serde(default)]
    assignee: Option<Uuid>,
    /// By dates.
    #[serde(default)]
    calendar: Option<Calendar>,
    /// By hours that the machine ran.
    #[serde(default)]
    running: Option<Running>,
    /// By health that is too low for a time.
    #[serde(default)]
    health: Option<Health>,
    /// How long before it is due its ticket is made: hours, of the calendar or of running. Not for `health`.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 8_784)]
    lead_h: i32,
    #[serde(default = "yes")]
    enabled: bool,
}

const fn yes() -> bool {
    true
}

impl PlanBody {
    /// Hours of running count from `now` on, unless it is said from when.
    fn check(self, now: Timestamp) -> Result<PlanText, ApiError> {
        let title = written("title", &self.title, TITLE_CHARS_MAX, false)?;
        let description = written("description", &self.description, DESCRIPTION_CHARS_MAX, true)?;
        let item = |(i, text): (usize, &String)| {
            let field = format!("checklist.{i}");
            let text = written(&field, text, LINE_CHARS_MAX, false)?;
            if text.is_empty() { Err(ApiError::field(&field, "is needed")) } else { Ok(text) }
        };
        if self.checklist.len() > ITEMS_MAX {
            return Err(ApiError::field("checklist", format_args!("has at most {ITEMS_MAX} items")));
        }
        let checklist = self.checklist.iter().enumerate().map(item).collect::<Result<_, _>>()?;
        let running =
            self.running.map(|running| Running { counted_from: running.counted_from.or(Some(now)), ..running });
        let text = PlanText {
            machine: self.machine,
            title,
            description,
            priority: self.priority,
            checklist,
            estimate_minutes: self.estimate_minutes,
            assignee: self.assignee,
            calendar: self.calendar,
            running,
            health: self.health,
            lead_h: self.lead_h,
            enabled: self.enabled,
        };
        let errors = errors(&text, now);
        if errors.is_empty() {
            Ok(text)
        } else {
            Err(ApiError::fields("invalid_fields", "a field is not as it should be", errors))
        }
    }
}

fn errors(text: &PlanText, now: Timestamp) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut wrong = |wrong: bool, field: &str, message: &str| {
        if wrong {
            errors.push(FieldError { field: field.to_owned(), message: message.to_owned() });
        }
    };
    let PlanText { calendar, running, health, .. } = text;
    wrong(text.title.is_empty(), "title", "is needed");
    let minutes = 0..=ESTIMATE_MINUTES_MAX;
    wrong(text.estimate_minutes.is_some_and(|m| !minutes.contains(&m)), "estimate_minutes", "is from 0 to 525600");
    wrong(!(0..=LEAD_H_MAX).contains(&text.lead_h), "lead_h", "is from 0 to 8784");
    let given = [calendar.is_some(), running.is_some(), health.is_some()].into_iter().filter(|given| *given).count();
    wrong(given != 1, "calendar", "or running or health is needed: exactly one of them");
    if let Some(calendar) = calendar {
        wrong(!(1..=EVERY_MAX).contains(&calendar.every), "calendar.every", "is from 1 to 1000");
        wrong(!YEARS.contains(&calendar.starts_on.year()), "calendar.starts_on", "lies in the years 1970 to 2199");
        wrong(!(0..1_440).contains(&calendar.at_min), "calendar.at_min", "is from 0 to 1439");
    }
    if let Some(running) = running {
        wrong(!(1..=EVERY_H_MAX).contains(&running.every_h), "running.every_h", "is from 1 to 100000");
        let ahead = running.counted_from.is_some_and(|from| from > now || from.as_second() < 0);
        wrong(ahead, "running.counted_from", "lies in the past, after 1970");
        wrong(text.lead_h >= running.every_h, "lead_h", "is less than running.every_h");
    }
    if let Some(health) = health {
        wrong(!(health.below > 0.0 && health.below <= 100.0), "health.below", "is more than 0, up to 100");
        wrong(!(0..=HEALTH_FOR_S_MAX).contains(&health.for_s), "health.for_s", "is from 0 to 2592000");
        wrong(text.lead_h != 0, "lead_h", "is 0 with health, which cannot be foreseen");
    }
    errors
}

/// Plans, the newest first.
#[utoipa::path(get, path = "/plans", tag = "tickets",
    params(("site" = Option<Uuid>, Query), ("machine" = Option<Uuid>, Query), ("enabled" = Option<bool>, Query),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Plan>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Plan>>, ApiError> {
    let filter = Filter { site: params.id("site"), machine: params.id("machine"), enabled: params.flag("enabled") };
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = plans_edit::list(&transaction, &filter, page.after, page.rows(), state.now()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// A plan, where it stands, and when it is due next.
#[utoipa::path(get, path = "/plans/{id}", tag = "tickets", params(("id" = Uuid, Path)),
    responses((status = 200, body = Plan), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Plan>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    plans_edit::one(&transaction, id, false, state.now()).await?.map(tagged).ok_or_else(missing)
}

/// Add a plan to a machine.
///
/// It makes a ticket (preventive) when it is due, `lead_h` ahead, and no other while that one is under way.
///
/// - **Calendar**: every so many days, weeks or months, counted from `starts_on`, at a time of the day by the clocks of the site; or,
///   with `from_completion`, from the day on which the ticket before was done. What falls due while a ticket is under way is done
///   with it.
/// - **Running**: after so many hours in which the machine ran since the ticket before was done.
/// - **Health**: when the machine's health was below a value for a time, without a break.
#[utoipa::path(post, path = "/plans", tag = "tickets", request_body = PlanBody,
    responses((status = 201, body = Plan), (status = 409, description = "`too_many_plans`")))]
pub async fn add(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<PlanBody>,
) -> Result<Response, ApiError> {
    let now = state.now();
    let text = body.check(now)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let id = done(plans_edit::add(&transaction, &text, caller.user.id, &caller.by(), now).await?)?;
    let plan = plans_edit::one(&transaction, id, false, now).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    tracing::info!(plan = %id, machine = %text.machine, user = caller.user.name, "plan added");
    Ok((StatusCode::CREATED, tagged(plan)).into_response())
}

/// Write a plan anew. The ticket that it made stays as it is.
#[utoipa::path(put, path = "/plans/{id}", tag = "tickets", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = PlanBody, responses((status = 200, body = Plan), (status = 404),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn replace(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<PlanBody>,
) -> Result<Tagged<Plan>, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = plans_edit::one(&transaction, id, true, now).await?.ok_or_else(missing)?;
    if_match.check(&before.text)?;
    // Hours that count go on counting.
    let counts_from = before.text.running.and_then(|running| running.counted_from);
    let keeps = body.running.is_some_and(|running| running.counted_from.is_none());
    let mut text = body.check(now)?;
    if let (Some(running), Some(from), true) = (&mut text.running, counts_from, keeps) {
        running.counted_from = Some(from);
    }
    if text.machine != before.text.machine {
        return Err(ApiError::field("machine", "stays what it was"));
    }
    done(plans_edit::replace(&transaction, &before, &text, &caller.by(), now).await?)?;
    let after = plans_edit::one(&transaction, id, false, now).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    tracing::info!(plan = %id, user = caller.user.name, "plan changed");
    Ok(tagged(after))
}

/// Take a plan away. The tickets that it made stay.
#[utoipa::path(delete, path = "/plans/{id}", tag = "tickets", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = plans_edit::one(&transaction, id, true, now).await?.ok_or_else(missing)?;
    if_match.check(&before.text)?;
    plans_edit::remove(&transaction, &before, &caller.by(), now).await?;
    transaction.commit().await?;
    tracing::info!(plan = %id, user = caller.user.name, "plan taken away");
    Ok(StatusCode::NO_CONTENT)
}

fn tagged(plan: Plan) -> Tagged<Plan> {
    let text = plan.text.clone();
    Tagged::by(plan, &text)
}

fn missing() -> ApiError {
    ApiError::not_found("plan")
}

fn done(written: Written) -> Result<Uuid, ApiError> {
    match written {
        Written::Done(id) => Ok(id),
        Written::NoSuchMachine => Err(ApiError::field("machine", "is no machine that is shown by itself")),
        Written::NoSuchAssignee => Err(ApiError::field("assignee", "is nobody who may look at the machine")),
        Written::TooMany => {
            Err(ApiError::conflict("too_many_plans", format_args!("a machine has at most {PLANS_MAX} plans")))
        }
    }
}
