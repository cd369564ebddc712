//! `gemba-edge status`: asks the running daemon and prints what it says.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::Context as _;

use crate::health::{Report, duration_text};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the state of the daemon that answers at `http`.
///
/// # Errors
/// If none answers there.
pub fn status(http: SocketAddr, json: bool) -> anyhow::Result<()> {
    let text = get(http, "status")?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{text}")?;
        return Ok(());
    }
    out.write_all(readable(&parse(http, &text)?).as_bytes())?;
    Ok(())
}

/// What the daemon that answers at `http` says of itself.
///
/// # Errors
/// If none answers there.
pub fn report(http: SocketAddr) -> anyhow::Result<Report> {
    parse(http, &get(http, "status")?)
}

/// The text at a path of the daemon.
///
/// # Errors
/// If none answers there.
pub fn get(http: SocketAddr, path: &str) -> anyhow::Result<String> {
    let url = format!("http://{http}/{path}");
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
    ureq::Agent::from(config)
        .get(&url)
        .call()
        .with_context(|| format!("no gemba-edge answers at {url}; is it running (`systemctl status gemba-edge`)?"))?
        .body_mut()
        .read_to_string()
        .with_context(|| format!("what {url} says cannot be read"))
}

fn parse(http: SocketAddr, text: &str) -> anyhow::Result<Report> {
    serde_json::from_str(text).with_context(|| format!("what answers at {http} is no gemba-edge"))
}

/// A report as people read it.
#[must_use]
pub fn readable(report: &Report) -> String {
    let mut lines = vec![format!("gemba-edge {}, up {}", report.version, duration_text(report.uptime_s))];
    for fault in &report.unhealthy {
        lines.push(format!("  NOT HEALTHY  {fault}"));
    }
    for fault in &report.unready {
        lines.push(format!("  not ready    {fault}"));
    }
    if report.unhealthy.is_empty() && report.unready.is_empty() {
        lines.push("  healthy and ready".to_owned());
    }
    for (what, fact) in &report.facts {
        lines.push(format!("  {what:<14} {fact}"));
    }
    for figure in &report.figures {
        for (reason, value) in &figure.values {
            match reason {
                // What never came up would only hide what did; `--json` has it all.
                _ if *value == 0.0 => {}
                None => lines.push(format!("  {:<34} {value}", figure.name)),
                Some(reason) => lines.push(format!("  {:<34} {value}", format!("{} ({reason})", figure.name))),
            }
        }
    }
    for machine in &report.machines {
        lines.push(format!("  {:<14} {}", machine.machine, machine.text));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Figure, MachineReport, ReloadReport};

    #[test]
    fn a_report_reads_as_a_text() {
        let report = Report {
            version: "1.0.0".into(),
            pid: 1,
            uptime_s: 3_700,
            unhealthy: Vec::new(),
            unready: vec!["no listener".into()],
            facts: vec![("cloud".into(), "away".into())],
            figures: vec![
                Figure::counter("readings", "", 5),
                Figure::by_reason("rejected", "", [("not_json", 2), ("too_large", 0)]),
            ],
            machines: vec![MachineReport {
                machine: "pump-3".into(),
                out_of_service: false,
                labelled: 2,
                real: 1,
                limits_width: 1.0,
                text: "1 of 2 labelled anomalies were real (50 %); limits as learnt".into(),
            }],
            reload: ReloadReport::default(),
        };
        let expected = "gemba-edge 1.0.0, up 1 h 1 min\n  not ready    no listener\n  cloud          away\n  readings                           5\n  rejected (not_json)                2\n  pump-3         1 of 2 labelled anomalies were real (50 %); limits as learnt\n";
        assert_eq!(readable(&report), expected);
    }
}
