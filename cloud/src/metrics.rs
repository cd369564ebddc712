//! What the daemon counts, as Prometheus reads it.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Bounds of the histogram of requests, seconds: the figures that are promised lie on them.
const SECONDS: [f64; 10] = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0];

/// A fixed word that says why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

/// How an attempt at a delivery ended: sent, failed (there will be another), dead or skipped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeliveryEnd {
    pub channel: &'static str,
    pub outcome: &'static str,
}

/// What was asked for, and how it ended. The route is the pattern, not the path; what is no route of ours is `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestEnd {
    pub method: &'static str,
    pub route: String,
    pub status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Route {
    pub method: &'static str,
    pub route: String,
}

/// All counters of the daemon.
pub struct Metrics {
    registry: Registry,
    /// Frames that were authenticated and read.
    pub frames: Counter,
    pub frames_refused: Family<Reason, Counter>,
    /// Records that are in the database.
    pub records: Counter,
    /// Rows of summaries, and sensors in them.
    pub summaries: Counter,
    pub sensor_summaries: Counter,
    /// Summaries whose machine and start were there.
    pub summaries_known: Counter,
    pub records_refused: Family<Reason, Counter>,
    /// Records that came again.
    pub records_again: Counter,
    /// Batches that were not taken since something before them is missing.
    pub batches_early: Counter,
    /// Batches of a gateway that has other records than are stored under their numbers.
    pub batches_diverged: Counter,
    /// Records that wait until their machine's catalog is sent.
    pub catalogs_wanted: Counter,
    pub gaps: Counter,
    /// Answers to gateways that could not be sent on at once.
    pub answers_dropped: Counter,
    pub transactions: Counter,
    pub transactions_failed: Counter,
    /// 1 while the database takes what intake has.
    pub storing: Gauge,
    pub mqtt_connections: Gauge,
    pub mqtt_denied: Family<Reason, Counter>,
    pub enrolments: Counter,
    pub enrolments_refused: Family<Reason, Counter>,
    pub deliveries: Family<DeliveryEnd, Counter>,
    /// To be sent, or to be tried again.
    pub deliveries_waiting: Gauge,
    /// Given up, and still to be looked at.
    pub deliveries_dead: Gauge,
    pub requests: Family<RequestEnd, Counter>,
    /// Until an answer begins: a stream takes as long as its client does.
    pub request_seconds: Family<Route, Histogram, fn() -> Histogram>,
    pub requests_under_way: Gauge,
    /// Clients of the live stream.
    pub live_clients: Gauge,
    /// Connections of the pool in use, and the most there may be.
    pub database_connections: Gauge,
    pub database_connections_max: Gauge,
    /// Requests and jobs that wait for a connection.
    pub database_waiting: Gauge,
    /// What gateways sent and intake has not looked at.
    pub intake_waiting: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("gemba_cloud"),
            frames: Counter::default(),
            frames_refused: Family::default(),
            records: Counter::default(),
            summaries: Counter::default(),
            sensor_summaries: Counter::default(),
            summaries_known: Counter::default(),
            records_refused: Family::default(),
            records_again: Counter::default(),
            batches_early: Counter::default(),
            batches_diverged: Counter::default(),
            catalogs_wanted: Counter::default(),
            gaps: Counter::default(),
            answers_dropped: Counter::default(),
            transactions: Counter::default(),
            transactions_failed: Counter::default(),
            storing: Gauge::default(),
            mqtt_connections: Gauge::default(),
            mqtt_denied: Family::default(),
            enrolments: Counter::default(),
            enrolments_refused: Family::default(),
            deliveries: Family::default(),
            deliveries_waiting: Gauge::default(),
            deliveries_dead: Gauge::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            requests_under_way: Gauge::default(),
            live_clients: Gauge::default(),
            database_connections: Gauge::default(),
            database_connections_max: Gauge::default(),
            database_waiting: Gauge::default(),
            intake_waiting: Gauge::default(),
        };
        metrics.register();
        metrics.register_serving();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("frames", "Frames that were authenticated and read", self.frames.clone());
        r.register("frames_refused", "Frames that were not, by reason", self.frames_refused.clone());
        r.register("records", "Records taken", self.records.clone());
        r.register("summaries", "Summaries stored, one a machine and interval", self.summaries.clone());
        r.register("sensor_summaries", "Sensors in the summaries stored", self.sensor_summaries.clone());
        r.register("summaries_known", "Summaries whose machine and start were there", self.summaries_known.clone());
        r.register("records_refused", "Records refused for good, by reason", self.records_refused.clone());
        r.register("records_again", "Records that came again", self.records_again.clone());
        r.register("batches_early", "Batches before which something is missing", self.batches_early.clone());
        r.register(
            "batches_diverged",
            "Batches of gateways that have other records than are stored",
            self.batches_diverged.clone(),
        );
        r.register("catalogs_wanted", "Times that a catalog was asked for", self.catalogs_wanted.clone());
        r.register("gaps", "Ranges of records that will never come", self.gaps.clone());
        r.register("answers_dropped", "Answers to gateways that were not sent", self.answers_dropped.clone());
        r.register("transactions", "Transactions of intake", self.transactions.clone());
        r.register("transactions_failed", "Transactions of intake that failed", self.transactions_failed.clone());
        r.register("storing", "1 while the database takes what comes", self.storing.clone());
        r.register("mqtt_connections", "Open MQTT connections", self.mqtt_connections.clone());
        r.register("mqtt_denied", "MQTT clients that were not let in, by reason", self.mqtt_denied.clone());
        r.register("enrolments", "Gateways enrolled", self.enrolments.clone());
        r.register("enrolments_refused", "Enrolments refused, by reason", self.enrolments_refused.clone());
        r.register("deliveries", "Attempts to deliver notifications, by channel and outcome", self.deliveries.clone());
        r.register("deliveries_waiting", "Deliveries to be sent or tried again", self.deliveries_waiting.clone());
        r.register("deliveries_dead", "Deliveries that were given up", self.deliveries_dead.clone());
    }

    fn register_serving(&mut self) {
        let r = &mut self.registry;
        r.register("http_requests", "Requests, by route and status", self.requests.clone());
        let (help, seconds) = ("Time until an answer began, by route", self.request_seconds.clone());
        r.register_with_unit("http_request", help, Unit::Seconds, seconds);
        r.register("http_requests_under_way", "Requests under way", self.requests_under_way.clone());
        r.register("live_clients", "Clients of the live stream", self.live_clients.clone());
        r.register("database_connections", "Database connections in use", self.database_connections.clone());
        r.register(
            "database_connections_max",
            "Database connections there may be",
            self.database_connections_max.clone(),
        );
        r.register("database_waiting", "What waits for a database connection", self.database_waiting.clone());
        r.register("intake_waiting", "Deliveries of gateways that wait for intake", self.intake_waiting.clone());
    }

    /// The page for Prometheus.
    #[must_use]
    pub fn page(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        encode(&mut text, &self.registry).ok();
        text
    }

    /// Counts one of `family` for `reason`.
    pub fn count(family: &Family<Reason, Counter>, reason: &'static str) {
        family.get_or_create(&Reason { reason }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tells_reasons() {
        let metrics = Metrics::default();
        Metrics::count(&metrics.frames_refused, "signature");
        let page = metrics.page();
        assert!(page.contains("gemba_cloud_frames_refused_total{reason=\"signature\"} 1"), "{page}");
        assert!(page.ends_with("# EOF\n"));
    }
}
