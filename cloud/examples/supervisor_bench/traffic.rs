//! Requests as supervisors' tools make them, at a fixed rate: each is timed from when it was due, also when it had to wait.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use gemba_cloud::clock;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::time::{Instant, sleep_until};

use super::{daemon::Daemon, quantile};

pub(crate) const REQUESTS_PER_S: u64 = 1_000;
const CONNECTIONS: u64 = 64;
const ERRORS_SHOWN: usize = 3;

/// What is asked, and how often of a hundred times.
const MIX: [(&str, u32); 5] =
    [("machine list", 30), ("machine detail", 30), ("alarms", 25), ("24 h series of a sensor", 10), ("acknowledge", 5)];

pub(crate) struct Figures {
    /// By what is asked, in milliseconds, sorted.
    times: Vec<Vec<f64>>,
    errors: Vec<String>,
    lasted: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<f64> = self.times.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        let row = |f: &mut fmt::Formatter<'_>, what: &str, times: &[f64]| {
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| quantile(times, share));
            writeln!(f, "| {what} | {} | {p50:.1} | {p95:.1} | {p99:.1} |", times.len())
        };
        writeln!(f, "| {:.0} requests/s | requests | p50 ms | p95 ms | p99 ms |", all.len() as f64 / self.lasted)?;
        writeln!(f, "|---|---|---|---|---|")?;
        row(f, "all", &all)?;
        for ((what, _), times) in MIX.iter().zip(&self.times) {
            row(f, what, times)?;
        }
        write!(f, "errors: {}", self.errors.len())?;
        for error in self.errors.iter().take(ERRORS_SHOWN) {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

struct Targets {
    host: String,
    bearer: String,
    machines: Vec<String>,
    alarms: Vec<String>,
    from: String,
    to: String,
}

impl Targets {
    fn request(&self, kind: usize, random: &mut SmallRng) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut any =
            |list: &[String]| list.get(random.random_range(0..list.len().max(1))).cloned().unwrap_or_default();
        let (method, path) = match kind {
            0 => ("GET", "/api/v1/machines?limit=50".to_owned()),
            1 => ("GET", format!("/api/v1/machines/{}", any(&self.machines))),
            2 => ("GET", "/api/v1/alarms?state=all&limit=50".to_owned()),
            3 => {
                let machine = any(&self.machines);
                let range = format!("from={}&to={}", self.from, self.to);
                ("GET", format!("/api/v1/machines/{machine}/series?sensor=sensor-3&{range}&points=500"))
            }
            _ => ("POST", format!("/api/v1/alarms/{}/acknowledge", any(&self.alarms))),
        };
        let request = Request::builder().method(method).uri(path).header("host", &self.host);
        Ok(request.header("authorization", &self.bearer).body(Full::default())?)
    }
}

pub(crate) async fn run(daemon: &Daemon, token: &str, lasts: Duration) -> anyhow::Result<Figures> {
    let ids = |path: &str| -> anyhow::Result<Vec<String>> {
        let list = daemon.get(path, token)?;
        let items = list["items"].as_array().context("items")?;
        Ok(items.iter().filter_map(|item| item["id"].as_str().map(str::to_owned)).collect())
    };
    let now = clock::now();
    let targets = Targets {
        host: daemon.http.to_string(),
        bearer: format!("Bearer {token}"),
        machines: ids("/api/v1/machines?limit=200")?,
        alarms: ids("/api/v1/alarms?state=open&condition=anomaly&limit=200")?,
        from: (now - Duration::from_hours(24)).to_string(),
        to: now.to_string(),
    };
    ensure!(!targets.machines.is_empty() && !targets.alarms.is_empty(), "machines and alarms to ask for");
    let targets = Arc::new(targets);
    let total = REQUESTS_PER_S * lasts.as_secs();
    let tickets = Arc::new(AtomicU64::new(0));
    let begin = Instant::now() + Duration::from_millis(100);
    let mut workers = tokio::task::JoinSet::new();
    for seed in 0..CONNECTIONS {
        workers.spawn(worker(Arc::clone(&targets), Arc::clone(&tickets), total, begin, seed));
    }
    let mut figures = Figures { times: vec![Vec::new(); MIX.len()], errors: Vec::new(), lasted: 0.0 };
    while let Some(done) = workers.join_next().await {
        let (times, errors) = done??;
        for (all, some) in figures.times.iter_mut().zip(times) {
            all.extend(some);
        }
        figures.errors.extend(errors);
    }
    figures.lasted = begin.elapsed().as_secs_f64();
    for times in &mut figures.times {
        times.sort_by(f64::total_cmp);
    }
    Ok(figures)
}

async fn worker(
    targets: Arc<Targets>,
    tickets: Arc<AtomicU64>,
    total: u64,
    begin: Instant,
    seed: u64,
) -> anyhow::Result<(Vec<Vec<f64>>, Vec<String>)> {
    let stream = tokio::net::TcpStream::connect(&targets.host).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut random = SmallRng::seed_from_u64(seed);
    let mut times = vec![Vec::new(); MIX.len()];
    let mut errors = Vec::new();
    loop {
        let ticket = tickets.fetch_add(1, Ordering::Relaxed);
        if ticket >= total {
            break;
        }
        let due = begin + Duration::from_micros(ticket * 1_000_000 / REQUESTS_PER_S);
        sleep_until(due).await;
        let kind = pick(random.random_range(0..100));
        let request = targets.request(kind, &mut random)?;
        let what = format!("{} {}", request.method(), request.uri());
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        times[kind].push(due.elapsed().as_secs_f64() * 1e3);
        if !status.is_success() {
            errors.push(format!("{what}: {status} {}", String::from_utf8_lossy(&body)));
        }
    }
    drop(sender);
    connection.await??;
    Ok((times, errors))
}

fn pick(of_hundred: u32) -> usize {
    let mut below = 0;
    MIX.iter()
        .position(|(_, share)| {
            below += share;
            of_hundred < below
        })
        .unwrap_or(0)
}
