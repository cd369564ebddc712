//! Gathers what the parts tell of themselves.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use gemba_shared::{
    ids::GatewayId,
    message::{Count, Status},
    telemetry::{Clock as Trust, Timestamp},
};
use rumqttc::MqttOptions;

use super::{intake::Intake, line::LineState, reload::Reloads, watching::DISK_PATIENCE_US};
use crate::{
    clock::Clock,
    health::{Figure, Kind, MachineReport, Report, duration_text},
    ingest::{Reject, Rejects},
    outbox::{Backlog, Outbox, OutboxCounters},
    pipeline::{PipelineCounters, Told},
    uplink::{Link, UplinkState},
};

/// After this long without going round, the line is taken for stuck.
const STUCK_AFTER_US: i64 = 10_000_000;
/// Names of the gate's counters that are no drops and no refusals.
const GATE_TRAFFIC: [&str; 5] = ["connections", "connections_accepted", "packets", "messages", "forwarded"];

/// What became of a model that the configuration names.
#[derive(Debug)]
pub(super) struct ModelState {
    pub(super) name: String,
    pub(super) refused: Option<String>,
}

/// Where everything is asked.
pub(super) struct Vitals {
    pub(super) clock: Arc<Clock>,
    pub(super) line: Arc<LineState>,
    pub(super) rejects: Arc<Rejects>,
    pub(super) intake: Intake,
    pub(super) outbox: Arc<Mutex<Outbox>>,
    pub(super) uplink: Arc<UplinkState>,
    pub(super) gateway: Mutex<Delivering>,
    pub(super) models: Mutex<Vec<ModelState>>,
    pub(super) reloads: Mutex<Reloads>,
    /// How long what was acknowledged may wait for its sync.
    pub(super) sync_interval: Option<Duration>,
}

/// Whether there is somewhere to deliver to.
#[derive(Debug, Default)]
pub(super) struct Delivering {
    gateway: Option<GatewayId>,
    broker: String,
    why_not: Option<&'static str>,
}

impl Vitals {
    pub(super) fn not_delivering(&self, why: &'static str) {
        lock(&self.gateway).why_not = Some(why);
    }

    pub(super) fn delivering(&self, gateway: GatewayId, options: &MqttOptions) {
        let (host, port) = options.broker_address();
        *lock(&self.gateway) = Delivering { gateway: Some(gateway), broker: format!("{host}:{port}"), why_not: None };
    }

    /// Whether there is a way to the cloud.
    pub(super) fn is_delivering(&self) -> bool {
        lock(&self.gateway).gateway.is_some()
    }

    /// Models that could not be used.
    pub(super) fn models_refused(&self) -> Vec<String> {
        let models = lock(&self.models);
        models.iter().filter(|model| model.refused.is_some()).map(|model| model.name.clone()).collect()
    }

    pub(super) fn set_models(&self, models: Vec<ModelState>) {
        *lock(&self.models) = models;
    }

    /// A reload ended: with why it was refused, or with the keys that wait for a restart.
    pub(super) fn reloaded(&self, refused: Option<String>, restart_needed: Option<Vec<String>>) {
        lock(&self.reloads).note(self.clock.now().mono_us, refused, restart_needed);
    }

    /// Whether the daemon does its work, so that the service manager should leave it alone.
    pub(super) fn makes_progress(&self) -> bool {
        let now_us = self.clock.now().mono_us;
        let moves = now_us - self.line.progress_us.load(Relaxed) <= STUCK_AFTER_US;
        let disk_gone = self.line.disk_failing_since_us().is_some_and(|since| now_us - since > DISK_PATIENCE_US);
        moves && !disk_gone && !self.intake.is_broker_lost()
    }

    /// What needs a person or a restart.
    pub(super) fn unhealthy(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let idle_us = self.clock.now().mono_us - self.line.progress_us.load(Relaxed);
        if idle_us > STUCK_AFTER_US {
            faults.push(format!("the line from devices to the outbox has not moved for {} s", idle_us / 1_000_000));
        }
        if let Some((_, error)) = &*lock(&self.line.disk) {
            faults.push(format!("the disk does not take data: {error}"));
        }
        if self.intake.is_broker_lost() {
            faults.push("the embedded broker does not answer".to_owned());
        }
        faults
    }

    /// What it is not ready for.
    fn unready(&self) -> Vec<String> {
        match &self.intake {
            Intake::External { counters, url } if !counters.connected.load(Relaxed) => {
                match counters.refused.load(Relaxed) {
                    0 => vec![format!("no connection to the broker {url}")],
                    _ => vec![format!("the broker {url} refuses subscriptions: check its access rules")],
                }
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn report(&self) -> Report {
        let now = self.clock.now();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.clock.uptime_s(),
            unhealthy: self.unhealthy(),
            unready: self.unready(),
            facts: self.facts(now.clock, now.mono_us),
            figures: self.figures(),
            machines: lock(&self.line.told).iter().map(machine_report).collect(),
            reload: lock(&self.reloads).report(now.mono_us),
        }
    }

    fn facts(&self, clock: Trust, mono_us: i64) -> Vec<(String, String)> {
        let mut facts = Vec::new();
        let mut tell = |what: &str, fact: String| facts.push((what.to_owned(), fact));
        match &self.intake {
            Intake::Gate { addresses, counters, .. } => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                let connected = counters.connections.load(Relaxed);
                tell("devices", format!("{connected} connected; they connect to {}", addresses.join(", ")));
            }
            Intake::External { counters, url } => {
                let state = if counters.connected.load(Relaxed) { "connected" } else { "away" };
                tell("devices", format!("through the broker {url}: {state}"));
            }
        }
        let delivering = lock(&self.gateway);
        match (delivering.why_not, delivering.gateway) {
            (Some(why), _) => tell("cloud", why.to_owned()),
            (None, gateway) => {
                tell("cloud", format!("{}: {}", delivering.broker, self.uplink.link().describe()));
                tell("gateway", gateway.map_or_else(String::new, |gateway| gateway.to_string()));
            }
        }
        drop(delivering);
        tell(
            "last receipt",
            self.uplink.last_receipt_us().map_or_else(|| "none since the start".into(), |at| ago(mono_us - at)),
        );
        let (backlog, outbox) = self.outbox();
        tell("backlog", backlog_text(&backlog, self.clock.now().wall));
        let drops: Vec<_> = self.drops(&outbox).map(|(reason, count)| format!("{count} {reason}")).collect();
        tell("dropped", if drops.is_empty() { "nothing".to_owned() } else { drops.join(", ") });
        let durability = match self.sync_interval {
            None => "what is acknowledged is on the disk".to_owned(),
            Some(every) => format!("a power cut may take what was acknowledged in the last {} ms", every.as_millis()),
        };
        tell("durability", durability);
        let clock = match clock {
            Trust::Trusted => "right",
            _ => "not set: what arrives is dated when the time is known",
        };
        tell("clock", clock.to_owned());
        for model in lock(&self.models).iter() {
            let state = model.refused.as_ref().map_or_else(|| "loaded".to_owned(), |why| format!("refused: {why}"));
            tell("model", format!("{}: {state}", model.name));
        }
        let reload = lock(&self.reloads).report(mono_us);
        if let Some(ago_s) = reload.ago_s {
            let what = match &reload.refused {
                Some(why) => format!("refused {ago_s} s ago, the configuration before it is in use: {why}"),
                None => format!("taken {ago_s} s ago"),
            };
            tell("reload", what);
        }
        if !reload.restart_needed.is_empty() {
            tell("restart needed", reload.restart_needed.join(", "));
        }
        facts
    }

    fn figures(&self) -> Vec<Figure> {
        let (backlog, outbox) = self.outbox();
        let line = *lock(&self.line.counters);
        let machines = self.line.machines.load(Relaxed);
        let open_intervals = self.line.open_intervals.load(Relaxed);
        let mut figures = vec![
            Figure::gauge("machines", "Machines known", machines as f64),
            Figure::gauge(
                "open_intervals",
                "Intervals with readings that are not in a summary yet",
                open_intervals as f64,
            ),
            Figure::gauge("backlog_records", "Records that wait for a receipt", backlog.records as f64),
            Figure::gauge("backlog_bytes", "Bytes of the records that wait for a receipt", backlog.bytes as f64),
            Figure::gauge(
                "backlog_age_seconds",
                "Age of the oldest record that waits for a receipt",
                age_us(&backlog, self.clock.now().wall).map_or(0.0, |us| us as f64 / 1e6),
            ),
            Figure::gauge(
                "restart_needed",
                "Keys of the configuration whose new values wait for a restart",
                lock(&self.reloads).report(0).restart_needed.len() as f64,
            ),
            Figure::gauge(
                "cloud_connected",
                "1 while the cloud is connected and answers",
                f64::from(u8::from(self.uplink.link() == Link::Connected)),
            ),
            link_figure(self.uplink.link()),
            Figure::by_reason("rejected", "Messages or values that were not taken", self.rejected()),
            Figure::counter("disk_failures", "Writes that the disk refused", self.line.disk_failures.load(Relaxed)),
        ];
        figures.extend(line_figures(&line));
        figures.extend(told_figures(&lock(&self.line.told)));
        figures.extend(outbox_figures(&outbox));
        match &self.intake {
            Intake::Gate { counters, .. } => {
                let read = counters.read();
                let traffic = read.iter().filter(|(name, _)| GATE_TRAFFIC.contains(name));
                figures.extend(traffic.map(|&(name, count)| match name {
                    "connections" => Figure::gauge("gate_connections", "Devices connected", count as f64),
                    name => Figure::counter(&format!("gate_{name}"), "Traffic of the gate", count),
                }));
                let refused = read.into_iter().filter(|(name, _)| !GATE_TRAFFIC.contains(name));
                figures.push(Figure::by_reason("gate_refused", "What the gate refused or dropped", refused));
            }
            Intake::External { counters, .. } => {
                figures.push(Figure::gauge(
                    "broker_connected",
                    "1 while the broker is connected and has our subscriptions",
                    f64::from(u8::from(counters.connected.load(Relaxed))),
                ));
                figures.push(Figure::counter(
                    "broker_subscriptions_refused",
                    "Subscriptions that the broker refused",
                    counters.refused.load(Relaxed),
                ));
                figures.push(Figure::counter(
                    "broker_messages",
                    "Messages of the broker",
                    counters.messages.load(Relaxed),
                ));
                figures.push(Figure::counter(
                    "broker_connections",
                    "Connections to the broker",
                    counters.connections.load(Relaxed),
                ));
            }
        }
        figures.extend(
            self.uplink.counters().into_iter().map(|(name, count)| Figure::counter(name, "Of the uplink", count)),
        );
        figures.push(Figure::by_reason(
            "frames_refused",
            "Frames of the cloud that were not taken",
            self.uplink.frames_refused(),
        ));
        figures
    }

    fn outbox(&self) -> (Backlog, OutboxCounters) {
        let mut outbox = lock(&self.outbox);
        (outbox.backlog(), outbox.counters())
    }

    fn rejected(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reject::ALL.into_iter().map(|reason| (reason.reason(), self.rejects.count(reason)))
    }

    /// What was rejected or lost, by reason, where there was any.
    fn drops(&self, outbox: &OutboxCounters) -> impl Iterator<Item = (&'static str, u64)> {
        let line = *lock(&self.line.counters);
        let others = [
            ("late", line.late),
            ("outbox_thinned", outbox.thinned),
            ("outbox_over_budget", outbox.over_budget + outbox.events_over_budget),
            ("outbox_damaged", outbox.damaged),
        ];
        self.rejected().chain(others).filter(|(_, count)| *count > 0)
    }

    /// What the cloud is told every few seconds.
    pub(super) fn status(&self) -> Status {
        let now = self.clock.now();
        let (backlog, outbox) = self.outbox();
        Status {
            at: now.wall,
            clock: now.told(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.clock.uptime_s(),
            machines: u32::try_from(self.line.machines.load(Relaxed)).unwrap_or(u32::MAX),
            backlog_records: backlog.records,
            backlog_bytes: backlog.bytes,
            drops: self.drops(&outbox).map(|(reason, count)| Count { reason: reason.to_owned(), count }).collect(),
        }
    }
}

fn age_us(backlog: &Backlog, now: Timestamp) -> Option<i64> {
    backlog.oldest_at.map(|at| now.us_since(at).max(0))
}

fn backlog_text(backlog: &Backlog, now: Timestamp) -> String {
    let age = age_us(backlog, now).map_or_else(String::new, |us| format!(", the oldest from {}", ago(us)));
    let kib = backlog.bytes.div_ceil(1_024);
    if backlog.records == 0 {
        "nothing waits".to_owned()
    } else {
        format!("{} records, {kib} KiB{age}", backlog.records)
    }
}

fn ago(us: i64) -> String {
    format!("{} ago", duration_text(u64::try_from(us / 1_000_000).unwrap_or(0)))
}

fn link_figure(now: Link) -> Figure {
    let values = Link::ALL.map(|link| (link.as_str(), u64::from(link == now)));
    Figure { kind: Kind::Gauge, ..Figure::by_reason("link", "1 for how things stand with the cloud", values) }
}

fn line_figures(line: &PipelineCounters) -> Vec<Figure> {
    vec![
        Figure::counter("readings", "Readings taken in", line.readings),
        Figure::counter("late", "Readings whose interval was closed already", line.late),
        Figure::counter("duplicates", "Readings that had come before", line.duplicates),
        Figure::counter("replayed", "Readings of the journal taken in at the start", line.replayed),
        Figure::counter("replay_refused", "Readings of the journal beyond the limits", line.replay_refused),
        Figure::counter("journal_blocks_lost", "Blocks of the journal lost to damage", line.journal_blocks_lost),
        Figure::counter("journal_syncs", "Syncs of the journal", line.journal_syncs),
        Figure::gauge("journal_bytes", "Size of the journal", line.journal_bytes as f64),
        Figure::counter("summaries", "Summaries made", line.summaries),
        Figure::counter("events", "Events made", line.events),
        Figure::counter("anomalies", "Anomalies opened", line.anomalies_opened),
        Figure::counter(
            "model_failures",
            "Steps that the baseline judged because the model failed",
            line.model_failures,
        ),
    ]
}

fn machine_report(told: &Told) -> MachineReport {
    let (machine, standing) = (told.machine.as_str(), told.standing);
    let text =
        if told.out_of_service { format!("out of service: not judged; {standing}") } else { standing.to_string() };
    MachineReport {
        machine: machine.to_owned(),
        out_of_service: told.out_of_service,
        labelled: standing.labelled,
        real: standing.real,
        limits_width: standing.width,
        text,
    }
}

/// Of all machines.
fn told_figures(told: &[Told]) -> Vec<Figure> {
    let sum = |of: fn(&Told) -> u32| told.iter().map(|told| u64::from(of(told))).sum::<u64>();
    let real = sum(|told| told.standing.real);
    let labelled = [("real", real), ("false_alarm", sum(|told| told.standing.labelled) - real)];
    let machines = |is: fn(&Told) -> bool| told.iter().filter(|told| is(told)).count() as f64;
    vec![
        Figure {
            kind: Kind::Gauge,
            ..Figure::by_reason("labelled_anomalies", "Latest anomalies with a label", labelled)
        },
        Figure::gauge(
            "machines_with_wider_limits",
            "Machines whose limits are wider than learnt because of false alarms",
            machines(|told| told.standing.width > 1.0),
        ),
        Figure::gauge("machines_out_of_service", "Machines that are not judged", machines(|told| told.out_of_service)),
    ]
}

fn outbox_figures(outbox: &OutboxCounters) -> Vec<Figure> {
    let dropped = [
        ("over_budget", outbox.over_budget),
        ("events_over_budget", outbox.events_over_budget),
        ("damaged", outbox.damaged),
        ("too_large", outbox.too_large),
    ];
    vec![
        Figure::counter("outbox_records", "Records put into the outbox", outbox.records),
        Figure::counter("outbox_released", "Records that the cloud has", outbox.released),
        Figure::counter("outbox_refused", "Records that the cloud refused for good", outbox.refused),
        Figure::counter("outbox_thinned", "Summaries that went into coarser ones for want of room", outbox.thinned),
        Figure::counter("outbox_states_too_large", "States of machines that are not kept", outbox.states_too_large),
        Figure::by_reason("outbox_dropped", "Records that will never be delivered", dropped),
    ]
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
