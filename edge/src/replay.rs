//! Publishes recordings over MQTT, as the machines did that they are of.
//!
//! Each file is a machine with a connection of its own. By default a recording is shifted in time so that it ends
//! when its replay ends; with its own times it is history.

use std::{
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use gemba_shared::{
    ids::{MachineId, NAME_BYTES_MAX, SensorId},
    telemetry::Timestamp,
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use crate::{
    publisher::{
        PublishError, Publisher, Settings, WINDOW_MAX, WallClock,
        feed::{Feed, Format, Message, ledger},
        report::Report,
        target::{Target, TargetArgs},
    },
    recording::{Recording, RecordingArgs, RecordingError, Row, Skipped, Span},
};

const FILES_MAX: usize = 256;
const FIRST_CONNECT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
/// Rows are read ahead in batches of this size, this many of them.
const BATCH_ROWS: usize = 256;
const BATCHES: usize = 4;
const SECOND_US: i64 = 1_000_000;

/// `gemba-edge replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// CSV files: the first line names the columns, one of them is the time
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    recording: RecordingArgs,
    /// The machine's name; the file's by default
    #[arg(long, value_name = "NAME")]
    machine: Option<MachineId>,
    #[arg(long, default_value = "plant/{machine}/{sensor}")]
    topic: String,
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// How much faster than it was recorded, or `max`
    #[arg(long, default_value = "1")]
    speed: Speed,
    /// Keep the recording's own times; by default it is shifted so that it ends now
    #[arg(long)]
    own_times: bool,
    /// The most unacknowledged messages of a connection
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=WINDOW_MAX as i64))]
    window: u32,
    /// Write what was acknowledged, as CSV (`machine,sensor,time_us,value`)
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Speed {
    Times(f64),
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Self::Max),
            Ok(times) if (0.001..=1e6).contains(&times) => Ok(Self::Times(times)),
            _ => Err(format!("{text:?}: 0.001 to 1000000, or `max`, is needed")),
        }
    }
}

/// Where a recording's times go.
#[derive(Debug, Clone, Copy)]
struct Timing {
    shift_us: i64,
    first: Timestamp,
    started: Timestamp,
    speed: Speed,
}

impl Timing {
    fn new(span: &Span, args: &ReplayArgs, started: Timestamp) -> Self {
        let lasts_us = match args.speed {
            Speed::Max => 0.0,
            Speed::Times(times) => span.last.us_since(span.first) as f64 / times,
        };
        let end = started.plus_us(lasts_us as i64);
        // By whole seconds, so that what was sampled at full seconds still is.
        let shift_us = if args.own_times { 0 } else { end.us_since(span.last).div_euclid(SECOND_US) * SECOND_US };
        Self { shift_us, first: span.first, started, speed: args.speed }
    }

    /// What the wall clock must show for a row of this (own) time; `None`: it need not wait.
    fn due(&self, at: Timestamp) -> Option<Timestamp> {
        match self.speed {
            Speed::Max => None,
            Speed::Times(times) => Some(self.started.plus_us((at.us_since(self.first) as f64 / times) as i64)),
        }
    }
}

/// A recording that is about to be replayed.
struct Track {
    path: PathBuf,
    machine: MachineId,
    sensors: Vec<SensorId>,
    first_sensor: u32,
    timing: Timing,
}

struct Replayed {
    report: Report,
    rows: u64,
    skipped: Skipped,
}

/// Replays all files at once and prints figures to `out`.
///
/// # Errors
/// If a file is no recording, the broker refuses, or something stays unacknowledged.
pub async fn run(
    args: ReplayArgs,
    wall: WallClock,
    cancel: CancellationToken,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    if args.format == Format::Number && args.own_times {
        bail!("--format number: it carries no time; --own-times needs json");
    }
    let target = Target::new(&args.target)?;
    let tracks = tracks(&args, wall).await?;
    let named =
        tracks.iter().flat_map(|track| track.sensors.iter().map(|sensor| (track.machine.clone(), sensor.clone())));
    let feed = Feed::new(&args.topic, args.format, named).map_err(anyhow::Error::msg)?;
    let (ledger, ledger_done) = match &args.ledger {
        Some(path) => ledger(path, feed.clone()).map(|(sender, done)| (Some(sender), Some(done)))?,
        None => (None, None),
    };

    let started = Instant::now();
    let mut playing = JoinSet::new();
    for track in tracks {
        let settings = Settings {
            client_id: format!("replay-{}", track.machine),
            at_least_once: true,
            window: args.window as usize,
            first_connect: FIRST_CONNECT,
        };
        let (target, feed, ledger, cancel) = (target.clone(), feed.clone(), ledger.clone(), cancel.clone());
        let recording = args.recording.clone();
        playing.spawn(async move {
            let publisher = Publisher::connect(target, settings, feed, ledger, cancel).await?;
            track.play(recording, publisher, wall).await
        });
    }
    drop(ledger);

    let (mut report, mut rows, mut failed) = (Report::default(), 0, None);
    while let Some(ended) = playing.join_next().await {
        match ended.context("a replay's task failed")? {
            Ok(replayed) => {
                report.add(&replayed.report);
                rows += replayed.rows;
                if replayed.skipped != Skipped::default() {
                    tracing::warn!(summary = %replayed.skipped.summary(), "not all of a recording could be read");
                }
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let Some(done) = ledger_done {
        done.await.context("the ledger's task failed")??;
    }
    let figures = report.print(started.elapsed(), args.json);
    if args.json {
        writeln!(out, "{figures}")?;
    } else {
        writeln!(out, "{rows} rows: {figures}")?;
    }
    match failed {
        Some(error) => Err(error),
        None if cancel.is_cancelled() => bail!("stopped before the end"),
        None if report.unacknowledged > 0 => bail!("{} messages were not acknowledged", report.unacknowledged),
        None => Ok(()),
    }
}

/// Reads each file once, so that whatever is wrong with one shows before anything is published.
async fn tracks(args: &ReplayArgs, wall: WallClock) -> anyhow::Result<Vec<Track>> {
    if args.files.len() > FILES_MAX {
        bail!("{} files: {FILES_MAX} at once are possible", args.files.len());
    }
    if args.files.len() > 1 && args.machine.is_some() {
        bail!("--machine names one machine, and there are {} files: give one", args.files.len());
    }
    let mut spans = Vec::new();
    for path in &args.files {
        let (path, recording) = (path.clone(), args.recording.clone());
        let read = move || {
            let sensors = Recording::open(&path, &recording)?.sensors().to_vec();
            Ok::<_, RecordingError>((sensors, Recording::span(&path, &recording)?))
        };
        spans.push(spawn_blocking(read).await.context("a recording's reader failed")??);
    }
    let (started, mut first_sensor) = (wall(), 0);
    let mut tracks: Vec<Track> = Vec::new();
    for (path, (sensors, span)) in args.files.iter().zip(spans) {
        let machine = match &args.machine {
            Some(machine) => machine.clone(),
            None => machine_of(path)?,
        };
        if let Some(other) = tracks.iter().find(|other| other.machine == machine) {
            bail!("{} and {} would both be the machine {machine:?}", other.path.display(), path.display());
        }
        let count = u32::try_from(sensors.len())?;
        let timing = Timing::new(&span, args, started);
        tracks.push(Track { path: path.clone(), machine, sensors, first_sensor, timing });
        first_sensor += count;
    }
    Ok(tracks)
}

/// The machine that a file is named after.
fn machine_of(path: &Path) -> anyhow::Result<MachineId> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let fitting = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    let name: String = stem.chars().map(fitting).take(NAME_BYTES_MAX).collect();
    MachineId::new(name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()))
        .with_context(|| format!("{}: no machine can be named after it: use --machine", path.display()))
}

impl Track {
    async fn play(self, args: RecordingArgs, mut publisher: Publisher, wall: WallClock) -> anyhow::Result<Replayed> {
        let (sender, mut batches) = mpsc::channel(BATCHES);
        let path = self.path.clone();
        let reader = spawn_blocking(move || read_ahead(&path, &args, &sender));
        let (mut rows, mut done) = (0, Ok(()));
        while let Some(batch) = batches.recv().await {
            rows += batch.len() as u64;
            done = self.publish(batch, &mut publisher, wall).await;
            if done.is_err() {
                break;
            }
        }
        // Without its receiver the reader ends.
        drop(batches);
        if done.is_ok() {
            done = publisher.settle().await;
        }
        let report = publisher.close(PATIENCE).await;
        let skipped = reader.await.context("a recording's reader failed")??;
        match done {
            Ok(()) | Err(PublishError::Cancelled) => Ok(Replayed { report, rows, skipped }),
            Err(error) => Err(error.into()),
        }
    }

    async fn publish(&self, rows: Vec<Row>, publisher: &mut Publisher, wall: WallClock) -> Result<(), PublishError> {
        for row in rows {
            if let Some(due) = self.timing.due(row.at) {
                let early_us = due.us_since(wall());
                if early_us > 0 {
                    publisher.idle_until(Instant::now() + Duration::from_micros(early_us.unsigned_abs())).await?;
                }
            }
            let at = row.at.plus_us(self.timing.shift_us);
            for (sensor, value) in (self.first_sensor..).zip(row.values) {
                if let Some(value) = value {
                    publisher.publish(Message { sensor, at, value }).await?;
                }
            }
        }
        Ok(())
    }
}

/// Reads rows until the end, or until nobody wants more.
fn read_ahead(path: &Path, args: &RecordingArgs, sender: &mpsc::Sender<Vec<Row>>) -> Result<Skipped, RecordingError> {
    let mut recording = Recording::open(path, args)?;
    loop {
        let mut batch = Vec::with_capacity(BATCH_ROWS);
        while batch.len() < BATCH_ROWS
            && let Some(row) = recording.next_row()?
        {
            batch.push(row);
        }
        if batch.is_empty() || sender.blocking_send(batch).is_err() {
            return Ok(recording.skipped().clone());
        }
    }
}

#[cfg(test)]
mod tests;
