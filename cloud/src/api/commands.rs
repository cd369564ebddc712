//! What gateways are told to do, and what they answered.

use axum::{Json, extract::State, http::StatusCode};
use deadpool_postgres::Transaction;
use gemba_shared::{ids::MachineId, message::CommandKind};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Body, Items, Params, Path},
    problem::ApiError,
};
use crate::{
    live::Change,
    store::{
        commands::{self, Given},
        labels, scoped,
    },
    views::{CommandWord, GatewayCommand},
};

const VALID_FOR_S: u32 = 3_600;
const VALID_FOR_S_MAX: u32 = 7 * 24 * 3_600;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCommand {
    kind: CommandWord,
    /// For `recalibrate`, `accept_new_normal` and `out_of_service`.
    machine: Option<Uuid>,
    /// For `label_anomaly`.
    anomaly: Option<Uuid>,
    /// For `label_anomaly`: whether it was one.
    real: Option<bool>,
    /// For `out_of_service`: out of it, or back in it.
    out: Option<bool>,
    /// Seconds after which a gateway does not begin it any more: up to a week, an hour if not given.
    #[schema(minimum = 1, maximum = 604_800)]
    valid_for_s: Option<u32>,
}

/// A gateway's commands, the newest first.
#[utoipa::path(get, path = "/gateways/{id}/commands", tag = "gateways",
    params(("id" = Uuid, Path),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<GatewayCommand>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Path(gateway): Path<Uuid>,
    mut params: Params,
) -> Result<Json<Items<GatewayCommand>>, ApiError> {
    let page = params.page::<i64>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = commands::list(&transaction, gateway, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.number)))
}

/// Tell a gateway to do something. It is sent as soon as the gateway is there, and carried out at most once.
#[utoipa::path(post, path = "/gateways/{id}/commands", tag = "gateways", params(("id" = Uuid, Path)),
    request_body = NewCommand,
    responses((status = 201, body = GatewayCommand), (status = 404),
        (status = 409, description = "`not_enrolled` or `too_many_commands`")))]
pub async fn give(
    State(state): State<ApiState>,
    caller: Caller,
    Path(gateway): Path<Uuid>,
    Body(body): Body<NewCommand>,
) -> Result<(StatusCode, Json<GatewayCommand>), ApiError> {
    let valid_for_s = body.valid_for_s.unwrap_or(VALID_FOR_S);
    if !(1..=VALID_FOR_S_MAX).contains(&valid_for_s) {
        return Err(ApiError::field("valid_for_s", format_args!("is from 1 to {VALID_FOR_S_MAX}")));
    }
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let expires_at = now.saturating_add(SignedDuration::from_secs(i64::from(valid_for_s))).unwrap_or(now);
    let number = match hand(&transaction, gateway, &body, &caller, (now, expires_at)).await? {
        Given::Number(number) => number,
        Given::NoSuchGateway => return Err(ApiError::not_found("gateway")),
        Given::NotEnrolled => return Err(ApiError::conflict("not_enrolled", "the gateway is not enrolled")),
        Given::TooMany => {
            return Err(ApiError::conflict(
                "too_many_commands",
                "the gateway has not answered those before; wait for it",
            ));
        }
    };
    let given = commands::list(&transaction, gateway, number.checked_add(1), 1).await?.pop();
    transaction.commit().await?;
    tracing::info!(%gateway, number, kind = ?body.kind, user = caller.user.name, "command given");
    state.tell(Change::Gateway(gateway));
    if let (CommandWord::LabelAnomaly, Some(anomaly)) = (body.kind, body.anomaly) {
        state.tell(Change::Anomaly(anomaly));
    }
    given.map(|given| (StatusCode::CREATED, Json(given))).ok_or_else(|| ApiError::not_found("command"))
}

/// Gives the command, in the gateway's words.
async fn hand(
    transaction: &Transaction<'_>,
    gateway: Uuid,
    body: &NewCommand,
    caller: &Caller,
    (now, expires_at): (Timestamp, Timestamp),
) -> Result<Given, ApiError> {
    let (by, user) = (caller.by(), caller.user.id);
    let kind = match body.kind {
        CommandWord::Recalibrate => CommandKind::Recalibrate { machine: machine(transaction, gateway, body).await? },
        CommandWord::AcceptNewNormal => {
            CommandKind::AcceptNewNormal { machine: machine(transaction, gateway, body).await? }
        }
        CommandWord::OutOfService => CommandKind::OutOfService {
            out: body.out.ok_or_else(|| ApiError::field("out", "is needed: true or false"))?,
            machine: machine(transaction, gateway, body).await?,
        },
        // It is written of the anomaly as well.
        CommandWord::LabelAnomaly => {
            let real = body.real.ok_or_else(|| ApiError::field("real", "is needed: true or false"))?;
            let anomaly = body.anomaly.ok_or_else(|| ApiError::field("anomaly", "is needed: an anomaly's id"))?;
            let answer = labels::Answer { real, user, now, expires_at };
            let given = labels::one(transaction, gateway, anomaly, answer, &by).await?;
            return given.ok_or_else(|| ApiError::field("anomaly", "is none of this gateway"));
        }
        CommandWord::Reload => CommandKind::Reload,
        CommandWord::SendDiagnostics => CommandKind::SendDiagnostics,
    };
    Ok(commands::give(transaction, &commands::NewCommand { gateway, kind, by: user, now, expires_at }, &by).await?)
}

async fn machine(transaction: &Transaction<'_>, gateway: Uuid, body: &NewCommand) -> Result<MachineId, ApiError> {
    let id = body.machine.ok_or_else(|| ApiError::field("machine", "is needed: a machine's id"))?;
    let name = commands::machine(transaction, gateway, id).await?;
    named(&name.ok_or_else(|| ApiError::field("machine", "is none of this gateway"))?)
}

fn named(name: &str) -> Result<MachineId, ApiError> {
    MachineId::new(name).map_err(|_| ApiError::field("machine", "has a name that gateways do not use"))
}
