//! `gemba-edge check --live`: looks for everything that a gateway needs around it, and says of each fault what to do.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use gemba_mqtt::client::Endpoint;
use rumqttc::{AsyncClient, ConnectReturnCode, Event, MqttOptions, Packet};

use crate::{
    clock,
    config::{Config, Mqtt, Proof},
    files, identity, run, status, uplink,
};

/// With less the daemon cannot work for long.
const DISK_FREE_MIN: u64 = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Prints a line for each thing that was looked for.
///
/// # Errors
/// If one of them is not as it should be.
pub fn live(config: &Config) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut failed = 0;
    let mut tell = |what: &str, found: anyhow::Result<String>| {
        failed += usize::from(found.is_err());
        match found {
            Ok(found) => writeln!(out, "ok      {what:<10} {found}"),
            Err(error) => writeln!(out, "FAILED  {what:<10} {error:#}"),
        }
    };
    for (what, found) in run::check_files(config) {
        tell(what, found)?;
    }
    tell("secrets", secrets(config))?;
    tell("disk", disk(config))?;
    tell("clock", clock(config))?;
    if let Ok(report) = status::report(config.http) {
        tell("daemon", Ok(format!("runs, process {}", report.pid)))?;
    } else {
        tell("daemon", Ok("does not run".to_owned()))?;
        tell("ports", ports(config))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Mqtt::External(external) = &config.mqtt {
        tell("broker", broker(config).and_then(|options| runtime.block_on(connect(options, &external.url))))?;
    }
    tell("cloud", cloud(config).and_then(|(options, url)| runtime.block_on(connect(options, &url))))?;
    if failed > 0 {
        bail!("{failed} of these are not as they should be");
    }
    Ok(())
}

/// Files with passwords and keys, which only their owner and their group should read.
fn secrets(config: &Config) -> anyhow::Result<String> {
    let files = secret_files(config);
    let open: Vec<String> = files
        .iter()
        .filter(|file| fs::metadata(file).is_ok_and(|found| found.mode() & 0o007 != 0))
        .map(|file| file.display().to_string())
        .collect();
    if open.is_empty() {
        return Ok("are readable by their owner and group only".to_owned());
    }
    bail!("everybody may read {}: `chmod o= FILE` each", open.join(", "))
}

fn secret_files(config: &Config) -> Vec<PathBuf> {
    // The configuration itself may hold hashes of passwords.
    let mut files: Vec<_> = config.file.iter().cloned().collect();
    files.push(config.data_dir.join("identity/gateway.key"));
    files.extend(config.cloud.password_file.clone());
    match &config.mqtt {
        Mqtt::Gate(gate) => {
            files.extend(gate.tls.iter().map(|tls| tls.key.clone()));
            files.extend(gate.devices.iter().filter_map(|device| match &device.proof {
                Proof::PasswordFile(file) => Some(file.clone()),
                _ => None,
            }));
        }
        Mqtt::External(external) => {
            files.extend([&external.password_file, &external.key].into_iter().flatten().cloned());
        }
    }
    files
}

fn disk(config: &Config) -> anyhow::Result<String> {
    let dir = &config.data_dir;
    let trial = dir.join("check");
    let cannot = || {
        let owner = "run this as the daemon's user, or see who owns the directory";
        format!("cannot write in {} (gateway.data_dir); {owner}", dir.display())
    };
    files::write(&trial, b"").and_then(|()| fs::remove_file(&trial)).with_context(cannot)?;
    let free = free_bytes(dir)?;
    let mib = free >> 20;
    if free < DISK_FREE_MIN {
        bail!("{mib} MiB are free in {}: make room", dir.display());
    }
    let whole = config.outbox_bytes_max.saturating_add(config.journal_bytes_max);
    let enough = if free < whole { ", less than outbox.bytes_max and journal.bytes_max together" } else { "" };
    Ok(format!("{mib} MiB are free in {}{enough}", dir.display()))
}

/// Of the file system that a directory is in, for others than root.
fn free_bytes(dir: &Path) -> anyhow::Result<u64> {
    let found = nix::sys::statvfs::statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

fn clock(config: &Config) -> anyhow::Result<String> {
    if clock::is_vouched_for(config.clock) {
        return Ok("is right, by what is known here".to_owned());
    }
    Err(anyhow!(
        "is not known to be right: have the time set (`timedatectl`), or vouch for it with gateway.clock = \"trusted\"; \
         until then readings are dated when the cloud tells the time"
    ))
}

fn ports(config: &Config) -> anyhow::Result<String> {
    let mut addresses = vec![("http.listen", config.http)];
    if let Mqtt::Gate(gate) = &config.mqtt {
        addresses.extend(gate.listen.iter().map(|address| ("mqtt.listen", *address)));
        let tls = gate.tls.iter().flat_map(|tls| &tls.listen);
        addresses.extend(tls.map(|address| ("mqtt.tls.listen", *address)));
    }
    for (key, address) in &addresses {
        TcpListener::bind(address).with_context(|| {
            format!("cannot listen on {address} ({key}); see with `ss -ltnp` who does, and choose another port")
        })?;
    }
    let addresses: Vec<_> = addresses.iter().map(|(_, address)| address.to_string()).collect();
    Ok(format!("are free: {}", addresses.join(", ")))
}

/// Our options there under another client identifier: the daemon is not thrown out.
fn broker(config: &Config) -> anyhow::Result<MqttOptions> {
    let Mqtt::External(external) = &config.mqtt else { bail!("there is none") };
    let endpoint = Endpoint { clean_session: true, ..run::endpoint(external)? };
    Ok(endpoint.options(&format!("gemba-check-{}", std::process::id()), 1 << 20)?)
}

#[expect(clippy::disallowed_methods, reason = "nothing is queued for a client that only looks")]
fn cloud(config: &Config) -> anyhow::Result<(MqttOptions, String)> {
    let identity = identity::load(&config.data_dir)?.context(
        "not enrolled: `gemba-cloud gateway add NAME` gives a token, `gemba-edge enroll --token TOKEN` takes it",
    )?;
    let url = config.cloud.url.clone().unwrap_or_else(|| identity.mqtt.url.clone());
    let mut options = uplink::options(&identity, &config.cloud)?;
    options.set_client_id(format!("{}-check", identity.gateway)).set_clean_session(true);
    Ok((options, url))
}

/// Connects and leaves again.
async fn connect(mut options: MqttOptions, url: &str) -> anyhow::Result<String> {
    options.set_keep_alive(Duration::from_secs(10));
    let (client, mut events) = AsyncClient::new(options, 4);
    let accepted = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(answer))) if answer.code == ConnectReturnCode::Success => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => return Err(anyhow!("{url}: {error}")),
            }
        }
    };
    tokio::time::timeout(CONNECT_TIMEOUT, accepted)
        .await
        .map_err(|_| anyhow!("{url} does not answer within {} s: network, firewall?", CONNECT_TIMEOUT.as_secs()))??;
    // It leaves also without this; a broker that hears it logs no broken connection.
    if client.disconnect().await.is_ok() {
        while events.poll().await.is_ok() {}
    }
    Ok(format!("{url} takes us"))
}
