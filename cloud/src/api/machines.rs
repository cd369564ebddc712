//! Machines, and what people say of them.

use axum::{Json, extract::State};
use deadpool_postgres::Transaction;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{self, IfMatch, Tagged},
    extract::{Body, Items, OTHER_ORDER, Params, Path, present, written},
    problem::ApiError,
};
use crate::{
    live::Change,
    store::{
        machines::{self, After, Filter, Order},
        machines_label::{self, Labels},
        scoped,
    },
    views::{Criticality, Machine, MachineDetail, machine::MergeRefused},
};

const DISPLAY_NAME_CHARS_MAX: usize = 100;

/// What is left out stays as it is.
#[allow(clippy::option_option, reason = "`null` and absence are two things")]
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelsBody {
    /// `null` takes the name away.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, max_length = 100)]
    display_name: Option<Option<String>>,
    #[serde(default)]
    ignored: Option<bool>,
}

/// What is left out stays as it is.
#[allow(clippy::option_option, reason = "`null` and absence are two things")]
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineLabels {
    /// `null` takes the name away.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, max_length = 100)]
    display_name: Option<Option<String>>,
    #[serde(default)]
    ignored: Option<bool>,
    /// The area that it stands in; `null` takes it out.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Uuid>)]
    area: Option<Option<Uuid>>,
    /// How much the plant depends on it: its alarms are a step less grave, as they are, or a step graver.
    #[serde(default)]
    criticality: Option<Criticality>,
}

impl LabelsBody {
    fn check(self) -> Result<Labels, ApiError> {
        let display_name = match self.display_name {
            Some(Some(name)) => {
                let name = written("display_name", &name, DISPLAY_NAME_CHARS_MAX, false)?;
                Some(Some(name).filter(|name| !name.is_empty()))
            }
            other => other,
        };
        Ok(Labels { display_name, ignored: self.ignored, ..Labels::default() })
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// The machine to be shown as a part of; `null` undoes.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    into: Option<Uuid>,
}

/// Machines, by the name they are shown with, or as `sort` says.
#[utoipa::path(get, path = "/machines", tag = "machines",
    params(("gateway" = Option<Uuid>, Query), ("site" = Option<Uuid>, Query),
        ("area" = Option<Uuid>, Query, description = "With all that is a part of it."), ("include_ignored" = Option<bool>, Query),
        ("sort" = Option<String>, Query, description = "`name` (the default), `health_percent` (the worst first), `last_reading_at` \
            (what was heard last, first) or `criticality` (what the plant depends on most, first). What is not known comes last."),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Machine>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Machine>>, ApiError> {
    let filter = Filter {
        gateway: params.id("gateway"),
        site: params.id("site"),
        area: params.id("area"),
        include_ignored: params.flag("include_ignored").unwrap_or(false),
        order: params
            .one("sort", "name, health_percent, last_reading_at or criticality", |text| match text {
                "name" => Some(Order::Name),
                "health_percent" => Some(Order::Health),
                "last_reading_at" => Some(Order::LastReadingAt),
                "criticality" => Some(Order::Criticality),
                _ => None,
            })
            .unwrap_or_default(),
    };
    let page = params.page::<After>();
    if page.after.as_ref().is_some_and(|after| after.order() != filter.order) {
        params.refuse("cursor", OTHER_ORDER);
    }
    params.finish()?;
    let (now, patience) = (state.now(), state.patience());
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = machines::list(&transaction, &filter, page.after.as_ref(), page.rows(), now, patience).await?;
    Ok(Json(Items::new(rows, &page, |last| After::of(filter.order, last))))
}

/// A machine with its sensors.
#[utoipa::path(get, path = "/machines/{id}", tag = "machines", params(("id" = Uuid, Path)),
    responses((status = 200, body = MachineDetail), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<MachineDetail>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    detail(&state, &transaction, id).await
}

/// Rename a machine, ignore it, say where it stands, or how critical it is.
#[utoipa::path(patch, path = "/machines/{id}", tag = "machines", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = MachineLabels,
    responses((status = 200, body = MachineDetail), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn label(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<MachineLabels>,
) -> Result<Tagged<MachineDetail>, ApiError> {
    let MachineLabels { display_name, ignored, area, criticality } = body;
    let labels = Labels { area, criticality, ..LabelsBody { display_name, ignored }.check()? };
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    check(&state, &transaction, id, &if_match).await?;
    if let Some(Some(area)) = labels.area
        && !machines_label::may_stand_in(&transaction, id, area).await?
    {
        return Err(ApiError::field("area", "is none of the machine's site"));
    }
    if !machines_label::label(&transaction, id, &labels, &caller.by(), state.now()).await? {
        return Err(ApiError::not_found("machine"));
    }
    let found = detail(&state, &transaction, id).await?;
    transaction.commit().await?;
    tracing::info!(machine = %id, ?labels, user = caller.user.name, "machine labelled");
    state.tell(Change::Machine(id));
    Ok(found)
}

/// Rename a sensor, or ignore it.
#[utoipa::path(patch, path = "/machines/{id}/sensors/{name}", tag = "machines",
    params(("id" = Uuid, Path), ("name" = String, Path, description = "The sensor's id on its gateway."),
        ("If-Match" = Option<String>, Header)),
    request_body = LabelsBody,
    responses((status = 200, body = MachineDetail), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn label_sensor(
    State(state): State<ApiState>,
    caller: Caller,
    Path((id, sensor)): Path<(Uuid, String)>,
    if_match: IfMatch,
    Body(body): Body<LabelsBody>,
) -> Result<Tagged<MachineDetail>, ApiError> {
    let labels = body.check()?;
    let missing = || ApiError::not_found("sensor");
    if sensor.contains('\0') {
        return Err(missing());
    }
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    check(&state, &transaction, id, &if_match).await?;
    if !machines_label::label_sensor(&transaction, id, &sensor, &labels, &caller.by(), state.now()).await? {
        return Err(missing());
    }
    let found = detail(&state, &transaction, id).await?;
    transaction.commit().await?;
    tracing::info!(machine = %id, sensor, ?labels, user = caller.user.name, "sensor labelled");
    state.tell(Change::Machine(id));
    Ok(found)
}

/// Show a machine as a part of another.
///
/// Its rows stay its own, so that this can be undone with `null`.
#[utoipa::path(post, path = "/machines/{id}/merge", tag = "machines", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = Merge,
    responses((status = 200, body = MachineDetail), (status = 404), (status = 409, description = "`not_mergeable`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn merge(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<Merge>,
) -> Result<Tagged<MachineDetail>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    check(&state, &transaction, id, &if_match).await?;
    match machines_label::merge(&transaction, id, body.into, &caller.by(), state.now()).await? {
        None => return Err(ApiError::not_found("machine")),
        Some(Err(refused @ MergeRefused::NoTarget)) => return Err(ApiError::field("into", refused)),
        Some(Err(refused)) => return Err(ApiError::conflict("not_mergeable", refused)),
        Some(Ok(())) => {}
    }
    let found = detail(&state, &transaction, id).await?;
    transaction.commit().await?;
    tracing::info!(machine = %id, into = ?body.into, user = caller.user.name, "machine merged");
    state.tell(Change::Machine(id));
    Ok(found)
}

async fn detail(state: &ApiState, transaction: &Transaction<'_>, id: Uuid) -> Result<Tagged<MachineDetail>, ApiError> {
    let found = machines::detail(transaction, id, state.now(), state.patience()).await?;
    found.map(tagged).ok_or_else(|| ApiError::not_found("machine"))
}

/// What people say of a machine: its values change by themselves.
fn editable(detail: &MachineDetail) -> impl Serialize + use<'_> {
    let machine = &detail.machine;
    let sensors: Vec<_> = detail.sensors.iter().map(|s| (&s.name, &s.display_name, s.ignored)).collect();
    (&machine.display_name, machine.ignored, machine.criticality, machine.area_id, machine.merged_into, sensors)
}

fn tagged(detail: MachineDetail) -> Tagged<MachineDetail> {
    let tag = etag::of(&editable(&detail));
    Tagged::with(detail, tag)
}

/// Refuses a change of a machine that is another by now, and lets no other change in before this one.
async fn check(state: &ApiState, transaction: &Transaction<'_>, id: Uuid, if_match: &IfMatch) -> Result<(), ApiError> {
    if !if_match.is_given() {
        return Ok(());
    }
    machines_label::lock(transaction, id).await?;
    let found = machines::detail(transaction, id, state.now(), state.patience()).await?;
    if_match.check(&editable(&found.ok_or_else(|| ApiError::not_found("machine"))?))
}
