//! What the daemon says of itself, to this machine only: `/healthz`, `/readyz`, `/metrics`, `/status`.
//!
//! Modules keep their own counters; the run loop gathers them into a [`Report`] whenever it is asked for, so
//! nothing here is on a hot path.

use std::{fmt, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Registry,
};
use serde::{Deserialize, Serialize};

/// Everything that there is to say at a moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    #[serde(default)]
    pub pid: u32,
    pub uptime_s: u64,
    /// What keeps the daemon from being healthy: a person or a restart is needed.
    pub unhealthy: Vec<String>,
    /// What keeps it from being ready.
    pub unready: Vec<String>,
    /// In a sentence each: the cloud, the clock, the listeners, the models.
    pub facts: Vec<(String, String)>,
    pub figures: Vec<Figure>,
    /// Machines of which people said something that counts.
    #[serde(default)]
    pub machines: Vec<MachineReport>,
    #[serde(default)]
    pub reload: ReloadReport,
}

/// What became of the latest new configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Reloads since the start.
    pub count: u64,
    /// Since the latest.
    pub ago_s: Option<u64>,
    /// Why the latest was not taken.
    pub refused: Option<String>,
    /// Keys whose new values wait for a restart.
    pub restart_needed: Vec<String>,
}

/// What people said of a machine, and what its detector makes of that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineReport {
    pub machine: String,
    /// It is not judged.
    pub out_of_service: bool,
    /// Of its latest anomalies those that people said something of, and of these those that were real.
    pub labelled: u32,
    pub real: u32,
    /// How many times as wide as they were learnt its limits are.
    pub limits_width: f32,
    /// The same for people.
    pub text: String,
}

/// A counter or a gauge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// Without the prefix `gemba_edge_` and, of a counter, the suffix `_total`.
    pub name: String,
    pub help: String,
    pub kind: Kind,
    /// The value of the label `reason`, and the figure.
    pub values: Vec<(Option<String>, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Counter,
    Gauge,
}

impl Figure {
    #[must_use]
    pub fn counter(name: &str, help: &str, value: u64) -> Self {
        Self { name: name.into(), help: help.into(), kind: Kind::Counter, values: vec![(None, value as f64)] }
    }

    #[must_use]
    pub fn gauge(name: &str, help: &str, value: f64) -> Self {
        Self { name: name.into(), help: help.into(), kind: Kind::Gauge, values: vec![(None, value)] }
    }

    #[must_use]
    pub fn by_reason(name: &str, help: &str, values: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let values = values.into_iter().map(|(reason, count)| (Some(reason.to_owned()), count as f64)).collect();
        Self { name: name.into(), help: help.into(), kind: Kind::Counter, values }
    }
}

/// A length of time as people read it, in its two largest units.
#[must_use]
pub fn duration_text(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min {} s", seconds % 60),
        (0, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Gathers a report.
pub type Gather = Arc<dyn Fn() -> Report + Send + Sync>;

/// The endpoints.
pub fn router(gather: Gather) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(gather)
}

async fn healthz(State(gather): State<Gather>) -> Response {
    verdict(&gathered(gather).await.unhealthy)
}

async fn readyz(State(gather): State<Gather>) -> Response {
    let report = gathered(gather).await;
    verdict(&[report.unhealthy, report.unready].concat())
}

async fn status(State(gather): State<Gather>) -> Json<Report> {
    Json(gathered(gather).await)
}

/// Gathering waits for locks that are held over writes to the disk.
async fn gathered(gather: Gather) -> Report {
    tokio::task::spawn_blocking(move || gather()).await.unwrap_or_default()
}

fn verdict(against: &[String]) -> Response {
    if against.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, against.join("\n") + "\n").into_response()
    }
}

async fn metrics(State(gather): State<Gather>) -> Response {
    match text(gathered(gather).await.figures) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[derive(Debug)]
struct Figures(Vec<Figure>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for figure in &self.0 {
            let kind = match figure.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(&figure.name, &figure.help, None, kind)?;
            for (reason, value) in &figure.values {
                match reason {
                    Some(reason) => {
                        encode(figure.kind, *value, &mut metric.encode_family(&[("reason", reason.as_str())])?)?;
                    }
                    None => encode(figure.kind, *value, &mut metric)?,
                }
            }
        }
        Ok(())
    }
}

fn encode(kind: Kind, value: f64, metric: &mut MetricEncoder<'_>) -> fmt::Result {
    match kind {
        Kind::Counter => metric.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        Kind::Gauge => metric.encode_gauge(&value),
    }
}

/// The figures as Prometheus reads them.
fn text(figures: Vec<Figure>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("gemba_edge");
    registry.register_collector(Box::new(Figures(figures)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_in_prometheus_text() {
        let figures = vec![
            Figure::counter("readings", "Readings taken in", 3),
            Figure::by_reason("rejected", "Messages rejected", [("not_json", 1), ("too_large", 0)]),
            Figure::gauge("backlog_records", "Records without a receipt", 7.0),
        ];
        let text = text(figures).unwrap();
        for line in [
            "gemba_edge_readings_total 3.0",
            "gemba_edge_rejected_total{reason=\"not_json\"} 1.0",
            "gemba_edge_backlog_records 7.0",
            "# TYPE gemba_edge_rejected counter",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
