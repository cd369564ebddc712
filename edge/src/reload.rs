//! `gemba-edge reload`: checks the configuration, has the running daemon take it, and tells what came of it.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{config::Config, run, status};

/// How long the daemon gets to take it.
const TIMEOUT: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(50);

/// Has the daemon take the configuration that `config` was read from; `pid` where it is known.
///
/// # Errors
/// If the configuration is of no use, no daemon runs, or it refuses the configuration: the one before stays in use then.
pub fn reload(config: &Config, pid: Option<u32>) -> anyhow::Result<()> {
    for (what, found) in run::check_files(config) {
        // A model that is missing is no reason to keep a daemon from the rest.
        if what != "model" {
            found.context(what)?;
        }
    }
    let before = status::report(config.http);
    let Some(pid) = pid.or_else(|| before.as_ref().ok().map(|report| report.pid)) else {
        bail!("no daemon answers at {} (http.listen); if it listens elsewhere, say --pid", config.http)
    };
    let pid = Pid::from_raw(i32::try_from(pid).ok().filter(|pid| *pid > 1).context("--pid is no process's number")?);
    kill(pid, Signal::SIGHUP).with_context(|| format!("cannot signal the process {pid}"))?;
    let mut out = std::io::stdout().lock();
    let Ok(before) = before else {
        writeln!(out, "told; the daemon does not answer at {}: has http.listen changed?", config.http)?;
        return Ok(());
    };
    let begun = Instant::now();
    let taken = loop {
        let report = status::report(config.http)?;
        if report.reload.count > before.reload.count {
            break report.reload;
        }
        if begun.elapsed() > TIMEOUT {
            bail!("the daemon did not say within {} s what came of it; see its log", TIMEOUT.as_secs());
        }
        std::thread::park_timeout(POLL);
    };
    if let Some(why) = taken.refused {
        bail!("the daemon refused the configuration, and goes on with the one before: {why}");
    }
    match taken.restart_needed.as_slice() {
        [] => writeln!(out, "the configuration is in use")?,
        keys => writeln!(out, "the configuration is in use, but for what needs a restart: {}", keys.join(", "))?,
    }
    Ok(())
}
