//! Rules that need no model: a limit, a rate of change, no data.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use deadpool_postgres::Transaction;
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{self, IfMatch, Tagged},
    extract::{Body, Items, Params, Path, written},
    problem::{ApiError, FieldError},
};
use crate::{
    alarms::{
        Severity,
        rules::{DELAY_S_MAX, Figure, RuleKind, Schedule},
    },
    live::Change,
    store::{
        audit,
        objects::{self, Object},
        rules_edit::{self, Filter, NewRule, RULES_MAX, Written},
        scoped,
    },
    views::AlarmRule,
};

const NAME_CHARS_MAX: usize = 100;
const SENSOR_CHARS_MAX: usize = 128;
const TIME_ZONE_BYTES_MAX: usize = 64;
/// A machine is silent for a minute before a rule may say so: less is how data come.
const SILENCE_S_MIN: i32 = 60;

/// A rule as it is written.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleBody {
    /// A rule stays with its machine.
    machine: Uuid,
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// The sensor's id on its gateway; without, the whole machine (`no_data` only, of at least a minute).
    #[serde(default)]
    sensor: Option<String>,
    kind: RuleKind,
    /// Which figure of an interval is looked at; the mean, if not given.
    #[serde(default)]
    figure: Figure,
    /// In the sensor's unit; for a rate, in it a minute. Not for `no_data`.
    #[serde(default)]
    threshold: Option<f64>,
    /// How far behind the threshold a value must be to count as clear.
    #[serde(default)]
    #[schema(minimum = 0)]
    dead_band: f64,
    /// How long it must be so before an alarm is raised, seconds.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 604_800)]
    on_delay_s: i32,
    /// How long it must be clear before the alarm returns, seconds.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 604_800)]
    off_delay_s: i32,
    severity: Severity,
    /// By the clocks of the site; without, always.
    #[serde(default)]
    schedule: Option<Schedule>,
    /// Judge only while the machine runs.
    #[serde(default)]
    only_running: bool,
    #[serde(default = "yes")]
    enabled: bool,
}

const fn yes() -> bool {
    true
}

impl RuleBody {
    fn check(self) -> Result<NewRule, ApiError> {
        let name = written("name", &self.name, NAME_CHARS_MAX, false)?;
        let sensor = self.sensor.map(|text| written("sensor", &text, SENSOR_CHARS_MAX, false)).transpose()?;
        let mut errors = Vec::new();
        let mut wrong = |wrong: bool, field: &str, message: &str| {
            if wrong {
                errors.push(FieldError { field: field.to_owned(), message: message.to_owned() });
            }
        };
        let no_data = self.kind == RuleKind::NoData;
        wrong(name.is_empty(), "name", "is needed");
        wrong(!no_data && sensor.is_none(), "sensor", "is needed, except for no_data");
        wrong(no_data != self.threshold.is_none(), "threshold", "is needed, except for no_data");
        wrong(self.threshold.is_some_and(|t| !t.is_finite()), "threshold", "is a finite number");
        let rate = self.kind == RuleKind::Rate;
        wrong(rate && self.threshold.is_some_and(|t| t <= 0.0), "threshold", "of a rate is more than 0");
        let band = self.dead_band;
        wrong(!band.is_finite() || band < 0.0, "dead_band", "is 0 or more");
        wrong(rate && self.threshold.is_some_and(|t| band >= t), "dead_band", "of a rate is less than its threshold");
        let delays = 0..=DELAY_S_MAX;
        wrong(!delays.contains(&self.on_delay_s), "on_delay_s", "is from 0 to 604800");
        wrong(!delays.contains(&self.off_delay_s), "off_delay_s", "is from 0 to 604800");
        let silence = no_data && sensor.is_none();
        wrong(silence && self.on_delay_s < SILENCE_S_MIN, "on_delay_s", "of a machine's silence is 60 or more");
        if let Some(Schedule { days, from_min, to_min }) = self.schedule {
            wrong(!(1..=127).contains(&days), "schedule.days", "is from 1 to 127");
            wrong(!(0..1_440).contains(&from_min), "schedule.from_min", "is from 0 to 1439");
            wrong(!(1..=1_440).contains(&to_min), "schedule.to_min", "is from 1 to 1440");
        }
        if !errors.is_empty() {
            return Err(ApiError::fields("invalid_fields", "a field is not as it should be", errors));
        }
        Ok(NewRule {
            name,
            sensor,
            kind: self.kind,
            figure: self.figure,
            threshold: self.threshold,
            dead_band: band,
            on_delay_s: self.on_delay_s,
            off_delay_s: self.off_delay_s,
            severity: self.severity,
            schedule: self.schedule,
            only_running: self.only_running,
            enabled: self.enabled,
        })
    }
}

/// By whose clocks a site's schedules go.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteTimeZone {
    /// A name of the IANA time zone database, like `Europe/Berlin`.
    #[schema(max_length = 64)]
    time_zone: String,
}

/// By whose clocks a site's schedules go.
#[utoipa::path(get, path = "/sites/{id}/time-zone", tag = "alarms", params(("id" = Uuid, Path)),
    responses((status = 200, body = SiteTimeZone), (status = 404)))]
pub async fn time_zone(
    State(state): State<ApiState>,
    caller: Caller,
    Path(site): Path<Uuid>,
) -> Result<Tagged<SiteTimeZone>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let time_zone = rules_edit::time_zone(&transaction, site, false).await?;
    let time_zone = time_zone.ok_or_else(|| ApiError::not_found("site"))?;
    Ok(Tagged::new(SiteTimeZone { time_zone }))
}

/// Say by whose clocks a site's schedules go.
#[utoipa::path(put, path = "/sites/{id}/time-zone", tag = "alarms",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = SiteTimeZone,
    responses((status = 200, body = SiteTimeZone), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn set_time_zone(
    State(state): State<ApiState>,
    caller: Caller,
    Path(site): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<SiteTimeZone>,
) -> Result<Tagged<SiteTimeZone>, ApiError> {
    let known = body.time_zone.len() <= TIME_ZONE_BYTES_MAX && TimeZone::get(&body.time_zone).is_ok();
    if !known {
        return Err(ApiError::field("time_zone", "is no name of the time zone database, like Europe/Berlin"));
    }
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = rules_edit::time_zone(&transaction, site, true).await?;
    let before = SiteTimeZone { time_zone: before.ok_or_else(|| ApiError::not_found("site"))? };
    if_match.check(&before)?;
    rules_edit::set_time_zone(&transaction, site, &body.time_zone).await?;
    let change = audit::Change {
        action: "site.time_zone",
        object: "site",
        id: &site.to_string(),
        site: Some(site),
        before: json!(before),
        after: json!(body),
    };
    audit::write(&transaction, &caller.by(), &change, state.now()).await?;
    transaction.commit().await?;
    Ok(Tagged::new(body))
}

/// Rules, the newest first.
#[utoipa::path(get, path = "/alarm-rules", tag = "alarms",
    params(("machine" = Option<Uuid>, Query), ("enabled" = Option<bool>, Query),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<AlarmRule>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<AlarmRule>>, ApiError> {
    let filter = Filter { machine: params.id("machine"), enabled: params.flag("enabled") };
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = rules_edit::list(&transaction, &filter, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// A rule, and where it stands.
#[utoipa::path(get, path = "/alarm-rules/{id}", tag = "alarms", params(("id" = Uuid, Path)),
    responses((status = 200, body = AlarmRule), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<AlarmRule>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    rules_edit::one(&transaction, id, false).await?.map(tagged).ok_or_else(missing)
}

/// Add a rule to a machine. It is judged from the next interval on.
#[utoipa::path(post, path = "/alarm-rules", tag = "alarms", request_body = RuleBody,
    responses((status = 201, body = AlarmRule), (status = 409, description = "`too_many_rules`")))]
pub async fn add(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<RuleBody>,
) -> Result<Response, ApiError> {
    let machine = body.machine;
    let new = body.check()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let id = done(rules_edit::add(&transaction, machine, &new, caller.user.id, state.now()).await?)?;
    let rule = rules_edit::one(&transaction, id, false).await?.ok_or_else(missing)?;
    audited(&transaction, &caller, "rule.add", None, Some(&rule), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(rule = %id, %machine, user = caller.user.name, "alarm rule added");
    Ok((StatusCode::CREATED, tagged(rule)).into_response())
}

/// Write a rule anew. What it has raised returns, and delays that are under way begin again.
#[utoipa::path(put, path = "/alarm-rules/{id}", tag = "alarms", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = RuleBody,
    responses((status = 200, body = AlarmRule), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn replace(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<RuleBody>,
) -> Result<Tagged<AlarmRule>, ApiError> {
    let machine = body.machine;
    let new = body.check()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let known = rules_edit::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&editable(&known))?;
    if known.machine_id != machine {
        return Err(ApiError::field("machine", "stays what it was"));
    }
    let replaced = rules_edit::replace(&transaction, id, &new, state.now()).await?;
    let (written, ended) = replaced.ok_or_else(missing)?;
    done(written)?;
    let rule = rules_edit::one(&transaction, id, false).await?.ok_or_else(missing)?;
    audited(&transaction, &caller, "rule.change", Some(&known), Some(&rule), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(rule = %id, user = caller.user.name, "alarm rule changed");
    if let Some(alarm) = ended {
        state.tell(Change::Alarm(alarm));
    }
    Ok(tagged(rule))
}

/// Take a rule away. What it has raised returns.
#[utoipa::path(delete, path = "/alarm-rules/{id}", tag = "alarms", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let known = rules_edit::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&editable(&known))?;
    audited(&transaction, &caller, "rule.remove", Some(&known), None, state.now()).await?;
    let ended = rules_edit::remove(&transaction, id, state.now()).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    tracing::info!(rule = %id, user = caller.user.name, "alarm rule taken away");
    if let Some(alarm) = ended {
        state.tell(Change::Alarm(alarm));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What a change is of: where a rule stands changes by itself.
fn editable(rule: &AlarmRule) -> impl Serialize + use<'_> {
    let judged = (rule.kind, rule.figure, rule.threshold, rule.dead_band, rule.on_delay_s, rule.off_delay_s);
    (&rule.name, &rule.sensor, judged, rule.severity, rule.schedule, rule.only_running, rule.enabled)
}

fn tagged(rule: AlarmRule) -> Tagged<AlarmRule> {
    let tag = etag::of(&editable(&rule));
    Tagged::with(rule, tag)
}

fn missing() -> ApiError {
    ApiError::not_found("rule")
}

async fn audited(
    transaction: &Transaction<'_>,
    caller: &Caller,
    action: &'static str,
    before: Option<&AlarmRule>,
    after: Option<&AlarmRule>,
    now: Timestamp,
) -> Result<(), ApiError> {
    let Some(rule) = after.or(before) else { return Ok(()) };
    let site = objects::sites(transaction, Object::Machine, &[rule.machine_id]).await?.remove(&rule.machine_id);
    let written = |rule: Option<&AlarmRule>| rule.map_or(Value::Null, |rule| json!(rule));
    let id = rule.id.to_string();
    let change =
        audit::Change { action, object: "rule", id: &id, site, before: written(before), after: written(after) };
    Ok(audit::write(transaction, &caller.by(), &change, now).await?)
}

fn done(written: Written) -> Result<Uuid, ApiError> {
    match written {
        Written::Done(id) => Ok(id),
        Written::NoSuchMachine => Err(ApiError::field("machine", "is no machine that is shown by itself")),
        Written::NoSuchSensor => Err(ApiError::field("sensor", "is no sensor of this machine")),
        Written::TooMany => {
            Err(ApiError::conflict("too_many_rules", format_args!("a machine has at most {RULES_MAX} rules")))
        }
    }
}
