//! How many `QoS` 1 publishes a second pass the gate, with a consumer that acknowledges at once, and what an idle
//! connection costs. `cargo run --release -p gemba-mqtt --example gate_bench [connections] [messages]`
//!
//! The load runs in a process of its own (this program again), so that the gate's time is the gate's.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use gemba_mqtt::{
    broker::{Broker, BrokerSettings},
    gate::{Authenticate, Filter, Gate, Grant, Limits, Listener},
};
use gemba_shared::gate::packet::{Connect, Packet, Publish, QoS};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Publishes that a connection sends ahead of their answers.
const WINDOW: u16 = 512;
const SENSORS: usize = 200;
const IDLE_CONNECTIONS: usize = 1_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("load") {
        let [address, connection, messages] = [(); 3].map(|()| arguments.next().unwrap_or_default());
        return load(address.parse()?, connection.parse()?, messages.parse()?);
    }
    let connections = first.map_or(Ok(10), |text| text.parse())?;
    let messages = arguments.next().map_or(Ok(20_000_000), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bench(connections, messages))
}

async fn bench(connections: usize, messages: usize) -> Result<()> {
    let broker = Broker::start(BrokerSettings::default())?;
    let listener = Listener { address: ([127, 0, 0, 1], 0).into(), tls: None };
    let limits = Limits { connections_max: 4_096, connections_per_address_max: 4_096, ..Limits::default() };
    let gate = Arc::new(Gate::bind(vec![listener], limits, broker).await?);
    let address = gate.addresses()[0];
    let everything = vec![Filter::new("plant/#")?];
    let grant = Arc::new(Grant { name: "bench".into(), publish: everything.clone(), subscribe: everything });
    let authenticate: Authenticate = Arc::new(move |_| {
        let grant = grant.clone();
        Box::pin(async move { Ok(grant) })
    });
    let (sender, mut deliveries) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    tokio::spawn({
        let (gate, cancel) = (gate.clone(), cancel.clone());
        async move { gate.run(authenticate, sender, cancel).await }
    });
    let consumer = tokio::spawn(async move {
        let (mut batches, mut count) = (0_u64, 0_u64);
        while let Some(delivery) = deliveries.recv().await {
            batches += 1;
            count += delivery.messages.len() as u64;
            delivery.acknowledge();
        }
        (batches, count)
    });

    let (begin, cpu) = (Instant::now(), cpu_seconds()?);
    let program = std::env::current_exe()?;
    let mut loads = Vec::new();
    for connection in 0..connections {
        let each = (messages / connections).to_string();
        let arguments = ["load".into(), address.to_string(), connection.to_string(), each];
        loads.push(Command::new(&program).args(arguments).stdout(Stdio::inherit()).spawn()?);
    }
    for mut load in loads {
        let status = tokio::task::spawn_blocking(move || load.wait()).await??;
        if !status.success() {
            bail!("a load process failed: {status}");
        }
    }
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    let sent = messages / connections * connections;
    let all = sent as f64;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{connections} connections, {all} publishes at QoS 1 of 64 bytes, one thread for gate and consumer")?;
    writeln!(out, "{:.0} messages/s, {:.2} CPU-seconds a million (gate's process)", all / wall, cpu / all * 1e6)?;
    writeln!(out, "{:.0} messages for each CPU-second of the gate", all / cpu)?;

    let before = resident_kib()?;
    let idle = tokio::task::spawn_blocking(move || {
        (0..IDLE_CONNECTIONS).map(|i| idle(address, i)).collect::<Result<Vec<_>>>()
    })
    .await??;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = resident_kib()?;
    let each = after.saturating_sub(before) as f64 / IDLE_CONNECTIONS as f64;
    writeln!(
        out,
        "{IDLE_CONNECTIONS} idle connections, one message each: {each:.1} KiB each, {after} KiB resident in all"
    )?;
    drop(idle);
    cancel.cancel();
    let (batches, count) = consumer.await?;
    writeln!(out, "{:.1} messages a delivery", count as f64 / batches as f64)?;
    if count != (sent + IDLE_CONNECTIONS) as u64 {
        bail!("{count} messages were delivered, {sent} and {IDLE_CONNECTIONS} were sent");
    }
    Ok(())
}

fn connected(address: SocketAddr, client_id: String) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let connect =
        Connect { clean_session: true, keep_alive_s: 60, client_id, will: None, username: None, password: None };
    let mut bytes = BytesMut::new();
    Packet::Connect(Box::new(connect)).write(&mut bytes);
    stream.write_all(&bytes)?;
    stream.read_exact(&mut [0; 4]).context("no CONNACK")?;
    Ok(stream)
}

fn publish(sensor: usize, id: u16, bytes: &mut BytesMut) {
    let topic = Bytes::from(format!("plant/machine-{}/sensor-{}", sensor / 8, sensor % 8));
    let payload = Bytes::from_static(&[b'7'; 64]);
    Publish { dup: false, qos: QoS::AtLeastOnce, retain: false, topic, id, payload }.write(bytes);
}

fn idle(address: SocketAddr, number: usize) -> Result<TcpStream> {
    let mut stream = connected(address, format!("idle-{number}"))?;
    let mut bytes = BytesMut::new();
    publish(number % SENSORS, 1, &mut bytes);
    stream.write_all(&bytes)?;
    stream.read_exact(&mut [0; 4])?;
    Ok(stream)
}

/// Keeps a window of publishes under way until all are answered.
fn load(address: SocketAddr, connection: usize, messages: usize) -> Result<()> {
    let mut stream = connected(address, format!("load-{connection}"))?;
    // All that is ever sent, made before: a window after the other, each with its identifiers.
    let mut window = BytesMut::new();
    let mut ends = vec![0];
    for id in 1..=WINDOW {
        publish((connection + usize::from(id)) % SENSORS, id, &mut window);
        ends.push(window.len());
    }
    let (mut sent, mut answered) = (0, 0);
    let mut answers = [0; 4 * WINDOW as usize];
    let mut partial = 0;
    while answered < messages {
        let ahead = sent - answered;
        let free = (usize::from(WINDOW) - ahead).min(messages - sent);
        if free >= usize::from(WINDOW) / 4 || sent + free == messages && free > 0 {
            let from = sent % usize::from(WINDOW);
            let count = free.min(usize::from(WINDOW) - from);
            stream.write_all(&window[ends[from]..ends[from + count]])?;
            sent += count;
            continue;
        }
        let count = stream.read(&mut answers)?;
        if count == 0 {
            bail!("the gate closed the connection after {answered} answers");
        }
        partial += count;
        answered += partial / 4;
        partial %= 4;
    }
    Ok(())
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').context("no stat")?.1;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
