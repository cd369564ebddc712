//! What supervisors wait for while a plant delivers: `cargo run --release -p gemba-cloud --example supervisor_bench -- [hours] [seconds]`.
//!
//! The daemon runs as a process with a PostgreSQL of its own. Gateways enrol and deliver signed frames over MQTT with TLS: first the
//! past (`hours`, 24 by default) as fast as it is taken, then [`LIVE_ROWS_PER_S`] sensor summaries a second for `seconds` (60), while
//! [`traffic::REQUESTS_PER_S`] requests a second come in whether or not the earlier ones were answered. Then [`viewers::CLIENTS`] live
//! streams wait for alarms. All of it shares this machine's cores.

use std::{io::Write as _, time::Duration};

use anyhow::Context as _;

mod daemon;
mod gateway;
mod traffic;
mod viewers;

use daemon::Daemon;
use gateway::{Gateway, Plant};

const GATEWAYS: usize = 5;
const MACHINES: usize = 250;
/// Sensor summaries a second beside the requests.
const LIVE_ROWS_PER_S: usize = 5_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let hours = arguments.next().unwrap_or(24);
    let seconds = arguments.next().unwrap_or(60);
    let daemon = Daemon::start().await?;
    let token = daemon.sign_in()?;
    let plant = Plant::new(hours, MACHINES / GATEWAYS);
    let mut gateways = Vec::new();
    for index in 0..GATEWAYS {
        let enrolment = daemon.enrolment_token(index)?;
        gateways.push(Gateway::enrol(&daemon, index, &enrolment, plant).await?);
    }

    let began = std::time::Instant::now();
    let mut filling = tokio::task::JoinSet::new();
    for gateway in gateways {
        filling.spawn(gateway.deliver_past());
    }
    let mut gateways = Vec::new();
    while let Some(filled) = filling.join_next().await {
        gateways.push(filled??.raise_alarms().await?);
    }
    let took = began.elapsed().as_secs_f64();
    let rows = plant.past_records() * GATEWAYS as u64;
    say(&format!(
        "filled: {hours} h of {MACHINES} machines x {} sensors over MQTT: {rows} rows in {took:.0} s, {:.0} sensor summaries/s",
        gateway::SENSORS,
        rows as f64 * gateway::SENSORS as f64 / took,
    ))?;
    let began = std::time::Instant::now();
    daemon.settle().await?;
    say(&format!("packed, vacuumed and written to disk in {:.0} s", began.elapsed().as_secs_f64()))?;

    let mut live = tokio::task::JoinSet::new();
    let rate = LIVE_ROWS_PER_S as f64 / gateway::SENSORS as f64 / GATEWAYS as f64;
    for gateway in gateways {
        live.spawn(gateway.deliver_live(rate, Duration::from_secs(seconds + 2)));
    }
    let before = daemon.cpu_s()?;
    let figures = traffic::run(&daemon, &token, Duration::from_secs(seconds)).await?;
    let cpu = daemon.cpu_s()? - before;
    let (mut sent, mut gateways) = (0, Vec::new());
    while let Some(done) = live.join_next().await {
        let (gateway, count) = done??;
        sent += count;
        gateways.push(gateway);
    }
    say(&figures.to_string())?;
    say(&format!(
        "beside it: {:.0} sensor summaries/s stored; the daemon took {:.2} cores, resident {:.0} MiB (peak {:.0})",
        sent as f64 * gateway::SENSORS as f64 / (seconds + 2) as f64,
        cpu / seconds as f64,
        daemon.resident_mib("VmRSS:")?,
        daemon.resident_mib("VmHWM:")?,
    ))?;

    let gateway = gateways.pop().context("a gateway")?;
    say(&viewers::run(&daemon, &token, gateway).await?)?;
    say(&format!("resident with them {:.0} MiB", daemon.resident_mib("VmRSS:")?))?;
    daemon.stop()
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// The value below which this share of the sorted values lies.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}
