//! A simulated plant that publishes over MQTT as devices do, and a load generator.
//!
//! A plant runs on a schedule: each machine publishes all of its sensors once a step. With `--load` it publishes as
//! fast as the receiver acknowledges, or at a given rate. Both are pumps of [`plant`]; both end with figures.

pub mod control;
pub mod plant;
mod schedule;

use std::{
    collections::HashSet,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, value_parser};
use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::Timestamp,
};
use jiff::SignedDuration;
use tokio::{sync::broadcast, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::publisher::{
    PublishError, Publisher, Settings, WINDOW_MAX, WallClock, duration,
    feed::{Feed, Format, Message, ledger},
    report::Report,
    target::{Target, TargetArgs},
};
use control::{Control, Order};
use plant::{Fault, FaultKind, Pump, SENSORS};
use schedule::Schedule;

const MACHINES_MAX: i64 = 10_000;
const CONNECTIONS_MAX: i64 = 1_000;
/// How long the first connection may take: the daemon may start at the same time.
const FIRST_CONNECT: Duration = Duration::from_secs(10);
/// How long the end waits for what is in flight.
const PATIENCE: Duration = Duration::from_secs(10);
const ORDERS_MAX: usize = 64;

/// `gemba-edge simulate`
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct SimulateArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    plant: PlantArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a machine of a running simulation fail
    Fault(FaultArgs),
}

/// `gemba-edge simulate fault`
#[derive(Debug, Args)]
struct FaultArgs {
    /// The socket that the simulation was told to listen on
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// As `pump-3`
    machine: MachineId,
    /// bearing, valve, cavitation, frozen or drift; or stop: it is switched off
    kind: FaultKind,
    /// When it begins, in the plant's time
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    after: SignedDuration,
    /// How long it lasts; for ever by default
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    lasts: Option<Duration>,
}

#[derive(Debug, Args)]
struct PlantArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// How many pumps there are: `pump-1`, `pump-2`, …
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=MACHINES_MAX))]
    machines: u32,
    /// What the machines' names begin with
    #[arg(long, default_value = "pump")]
    prefix: String,
    #[arg(long, default_value = "plant/{machine}/{sensor}")]
    topic: String,
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// The same seed gives the same plant
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The time between two values of a sensor
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    step: Duration,
    /// A fault: MACHINE:KIND@AFTER[:LASTS], as `pump-3:valve@60s`,
    /// `pump-1:bearing@5m:10m`, or `pump-1:drift@-5m` (in the history); may be repeated
    #[arg(long, value_name = "FAULT", value_parser = fault)]
    fault: Vec<Order>,
    /// First publish so much of the past, as fast as possible
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    history: Option<Duration>,
    /// How much faster than the clock the plant's time goes; it starts in the past, so that it ends now
    #[arg(long, default_value_t = 1.0, requires = "duration")]
    speed: f64,
    /// How long it runs, in the plant's time; for ever by default
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Machines share these connections
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    connections: u32,
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(0..=1))]
    qos: u8,
    /// The most unacknowledged messages of a connection
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=WINDOW_MAX as i64))]
    window: u32,
    /// Publish as fast as it is acknowledged
    #[arg(long, conflicts_with_all = ["history", "speed", "fault"])]
    load: bool,
    /// With --load: so many messages a second, over all connections
    #[arg(long, value_name = "MESSAGES", requires = "load", value_parser = value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// With --load: end after so many messages
    #[arg(long, value_name = "COUNT", requires = "load", value_parser = value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// Write what was acknowledged, as CSV (`machine,sensor,time_us,value`)
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Listen here for `gemba-edge simulate fault`
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the plant until its time is over or `cancel`, and prints figures to `out`; or sends a fault to one that runs.
///
/// # Errors
/// If an argument cannot be, the broker refuses, or something stays unacknowledged.
pub async fn run(
    args: SimulateArgs,
    wall: WallClock,
    cancel: CancellationToken,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match args.command {
        Some(Command::Fault(fault)) => {
            let order = Order { machine: fault.machine, kind: fault.kind, after: fault.after, lasts: fault.lasts };
            writeln!(out, "{}", control::send(&fault.control, &order).await?)?;
            Ok(())
        }
        None => run_plant(args.plant, wall, cancel, out).await,
    }
}

async fn run_plant(
    args: PlantArgs,
    wall: WallClock,
    cancel: CancellationToken,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let target = Target::new(&args.target)?;
    let machines = machine_ids(&args)?;
    let feed = feed(&args, &machines)?;
    let schedule = Schedule::new(wall(), args.step, args.history.unwrap_or_default(), args.duration, args.speed)?;
    if args.format == Format::Number && (args.history.is_some() || args.speed > 1.0) {
        bail!("--format number: it carries no time; --history and --speed need json");
    }

    // What ends the socket when the plant has ended by itself.
    let stop = cancel.child_token();
    let (orders, _) = broadcast::channel(ORDERS_MAX);
    let mut control = JoinSet::new();
    if let Some(path) = &args.control {
        let known: HashSet<MachineId> = machines.iter().cloned().collect();
        let knows = move |machine: &MachineId| known.contains(machine);
        control.spawn(Control::bind(path)?.run(orders.clone(), knows, stop.clone()));
    }
    let (ledger, ledger_done) = match &args.ledger {
        Some(path) => ledger(path, feed.clone()).map(|(sender, done)| (Some(sender), Some(done)))?,
        None => (None, None),
    };

    if !args.json {
        writeln!(out, "{} machines of {} sensors publish to {target}", machines.len(), SENSORS.len())?;
        out.flush()?;
    }
    let started = Instant::now();
    let mut connections = JoinSet::new();
    for connection in 0..args.connections.min(args.machines) {
        let settings = Settings {
            client_id: format!("simulate-{}-{connection}", args.prefix),
            at_least_once: args.qos == 1,
            window: args.window as usize,
            first_connect: FIRST_CONNECT,
        };
        let job = Job {
            pumps: pumps(&args, &machines, connection, &schedule)?,
            pace: pace(&args, schedule, machines.len()),
            wall,
            orders: orders.subscribe(),
        };
        let (target, feed, ledger, cancel) = (target.clone(), feed.clone(), ledger.clone(), cancel.clone());
        connections.spawn(async move {
            let publisher = Publisher::connect(target, settings, feed, ledger, cancel).await?;
            job.run(publisher).await
        });
    }
    drop(ledger);

    let mut report = Report::default();
    let mut failed = None;
    while let Some(ended) = connections.join_next().await {
        match ended.context("a connection's task failed")? {
            Ok(connection) => report.add(&connection),
            // Cancelled while it still connected.
            Err(PublishError::Cancelled) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    stop.cancel();
    while control.join_next().await.is_some() {}
    if let Some(done) = ledger_done {
        done.await.context("the ledger's task failed")??;
    }
    writeln!(out, "{}", report.print(started.elapsed(), args.json))?;
    match failed {
        Some(error) => Err(error.into()),
        None if report.unacknowledged > 0 => bail!("{} messages were not acknowledged", report.unacknowledged),
        None => Ok(()),
    }
}

fn machine_ids(args: &PlantArgs) -> anyhow::Result<Vec<MachineId>> {
    let name = |number: u32| {
        let name = format!("{}-{number}", args.prefix);
        MachineId::new(&name).with_context(|| format!("--prefix {:?} makes the machine {name:?}", args.prefix))
    };
    let machines: Vec<_> = (1..=args.machines).map(name).collect::<Result<_, _>>()?;
    for order in &args.fault {
        if !machines.contains(&order.machine) {
            bail!(
                "--fault: there is no machine {:?}; the last one is {:?}",
                order.machine,
                machines[machines.len() - 1]
            );
        }
    }
    Ok(machines)
}

fn feed(args: &PlantArgs, machines: &[MachineId]) -> anyhow::Result<Feed> {
    let mut sensors = Vec::with_capacity(machines.len() * SENSORS.len());
    for machine in machines {
        for sensor in SENSORS {
            sensors.push((machine.clone(), SensorId::new(sensor.name)?));
        }
    }
    Feed::new(&args.topic, args.format, sensors).map_err(anyhow::Error::msg)
}

/// A pump with its name and its place in the feed.
struct Place {
    machine: MachineId,
    first_sensor: u32,
    pump: Pump,
}

impl Place {
    fn fail(&mut self, order: &Order, now: Timestamp) {
        let from = now.plus_us(i64::try_from(order.after.as_micros()).unwrap_or(i64::MAX));
        self.pump.fail(Fault { kind: order.kind, from, lasts: order.lasts });
    }
}

/// The pumps of one connection: each machine keeps to one, so that its values arrive in order.
fn pumps(args: &PlantArgs, machines: &[MachineId], connection: u32, schedule: &Schedule) -> anyhow::Result<Vec<Place>> {
    let mut places = Vec::new();
    for (index, machine) in machines.iter().enumerate().skip(connection as usize).step_by(args.connections as usize) {
        let first_sensor = u32::try_from(index * SENSORS.len())?;
        let mut place = Place { machine: machine.clone(), first_sensor, pump: Pump::new(args.seed, index as u64) };
        for order in args.fault.iter().filter(|order| order.machine == *machine) {
            place.fail(order, schedule.live);
        }
        places.push(place);
    }
    Ok(places)
}

/// When the next values are due.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// By the plant's own time. `timed`: the payload says when, so that what is late is sent all the same.
    Schedule { schedule: Schedule, timed: bool },
    /// As fast as possible, or at a rate; this connection's share of both limits.
    Load { rate: Option<f64>, messages: Option<u64>, duration: Option<Duration> },
}

fn pace(args: &PlantArgs, schedule: Schedule, machines: usize) -> Pace {
    if !args.load {
        return Pace::Schedule { schedule, timed: args.format == Format::Json };
    }
    let connections = u64::from(args.connections).min(machines as u64);
    Pace::Load {
        rate: args.rate.map(|rate| rate as f64 / connections as f64),
        messages: args.messages.map(|messages| messages.div_ceil(connections)),
        duration: args.duration,
    }
}

struct Job {
    pumps: Vec<Place>,
    pace: Pace,
    wall: WallClock,
    orders: broadcast::Receiver<Order>,
}

impl Job {
    async fn run(mut self, mut publisher: Publisher) -> Result<Report, PublishError> {
        let done = match self.pace {
            Pace::Schedule { schedule, timed } => self.keep(schedule, timed, &mut publisher).await,
            Pace::Load { rate, messages, duration } => self.load(rate, messages, duration, &mut publisher).await,
        };
        let done = match done {
            Ok(()) => publisher.settle().await,
            Err(error) => Err(error),
        };
        let report = publisher.close(PATIENCE).await;
        match done {
            Ok(()) | Err(PublishError::Cancelled) => Ok(report),
            Err(error) => Err(error),
        }
    }

    async fn keep(&mut self, schedule: Schedule, timed: bool, publisher: &mut Publisher) -> Result<(), PublishError> {
        let mut at = schedule.start;
        while schedule.end.is_none_or(|end| at < end) {
            let early_us = schedule.due(at).us_since((self.wall)());
            if early_us > 0 {
                let early = Duration::from_micros(early_us.unsigned_abs());
                publisher.idle_until(Instant::now() + early).await?;
            } else if !timed && early_us < -2 * schedule.step_us {
                // A value without a time is worth nothing later.
                at = at.plus_us(schedule.step_us);
                continue;
            }
            while let Ok(order) = self.orders.try_recv() {
                for place in self.pumps.iter_mut().filter(|place| place.machine == order.machine) {
                    place.fail(&order, at);
                }
            }
            self.publish(at, publisher).await?;
            at = at.plus_us(schedule.step_us);
        }
        Ok(())
    }

    async fn load(
        &mut self,
        rate: Option<f64>,
        messages: Option<u64>,
        duration: Option<Duration>,
        publisher: &mut Publisher,
    ) -> Result<(), PublishError> {
        let started = Instant::now();
        let mut sent = 0;
        let mut at = (self.wall)();
        while messages.is_none_or(|messages| sent < messages)
            && duration.is_none_or(|duration| started.elapsed() < duration)
        {
            // Every value of a sensor has a time of its own.
            at = (self.wall)().max(at.plus_us(1));
            self.publish(at, publisher).await?;
            sent += (self.pumps.len() * SENSORS.len()) as u64;
            if let Some(rate) = rate {
                publisher.idle_until(started + Duration::from_secs_f64(sent as f64 / rate)).await?;
            }
        }
        Ok(())
    }

    async fn publish(&mut self, at: Timestamp, publisher: &mut Publisher) -> Result<(), PublishError> {
        for place in &mut self.pumps {
            for (sensor, value) in (place.first_sensor..).zip(place.pump.step(at)) {
                publisher.publish(Message { sensor, at, value }).await?;
            }
        }
        Ok(())
    }
}

/// Reads `MACHINE:KIND@AFTER[:LASTS]`.
fn fault(text: &str) -> Result<Order, String> {
    let needed = || "MACHINE:KIND@AFTER[:LASTS] is needed, as pump-3:valve@60s".to_owned();
    let (machine, rest) = text.split_once(':').ok_or_else(needed)?;
    let (kind, when) = rest.split_once('@').ok_or_else(needed)?;
    let (after, lasts) = when.split_once(':').map_or((when, None), |(after, lasts)| (after, Some(lasts)));
    Ok(Order {
        machine: machine.parse().map_err(|error| format!("machine {machine:?}: {error}"))?,
        kind: kind.parse()?,
        after: after.parse().map_err(|_| format!("{after:?} is no duration: 60s, 5m or -10m are"))?,
        lasts: lasts.map(duration).transpose()?,
    })
}

#[cfg(test)]
mod tests;
