//! For probes and Prometheus.

use std::time::Duration;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use super::{ApiState, LIVE_CLIENTS_MAX, problem::ApiError};

/// How long the database may take to answer a probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "server", responses((status = 200, description = "It does.")), security(()))]
pub async fn alive() -> &'static str {
    "ok\n"
}

/// Whether requests and frames are served now.
#[utoipa::path(get, path = "/readyz", tag = "server",
    responses((status = 200, description = "They are."), (status = 503, description = "`not_ready`, with the reason.")), security(()))]
pub async fn ready(State(state): State<ApiState>) -> Result<&'static str, ApiError> {
    let not_ready = |why: &str| ApiError::unavailable("not_ready", why, Duration::from_secs(2));
    if let Some(why) = (state.0.parts.not_ready)() {
        return Err(not_ready(&why));
    }
    match tokio::time::timeout(PROBE_DEADLINE, state.store().ping()).await {
        Ok(Ok(())) => Ok("ready\n"),
        Ok(Err(_)) | Err(_) => Err(not_ready("the database is away")),
    }
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "server", responses((status = 200, description = "OpenMetrics text.")), security(()))]
pub async fn metrics(State(state): State<ApiState>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (metrics, (used, waiting, most)) = (&state.0.parts.metrics, state.store().connections());
    metrics.database_connections.set(used as i64);
    metrics.database_waiting.set(waiting as i64);
    metrics.database_connections_max.set(most as i64);
    metrics.live_clients.set((LIVE_CLIENTS_MAX - state.0.live_clients.available_permits()) as i64);
    metrics.intake_waiting.set((state.0.parts.intake_waiting)() as i64);
    ([(header::CONTENT_TYPE, kind)], metrics.page()).into_response()
}
