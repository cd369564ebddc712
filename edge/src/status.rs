//! `gemba-edge status`: asks the running daemon and prints what it says.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::Context as _;

use crate::health::{Kind, Report};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the state of the daemon that answers at `http`.
///
/// # Errors
/// If none answers there.
pub fn status(http: SocketAddr, json: bool) -> anyhow::Result<()> {
    let url = format!("http://{http}/status");
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
    let text = ureq::Agent::from(config)
        .get(&url)
        .call()
        .with_context(|| format!("no gemba-edge answers at {url}; is it running (`systemctl status gemba-edge`)?"))?
        .body_mut()
        .read_to_string()
        .with_context(|| format!("what {url} says cannot be read"))?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{text}")?;
        return Ok(());
    }
    let report: Report =
        serde_json::from_str(&text).with_context(|| format!("what answers at {url} is no gemba-edge"))?;
    out.write_all(readable(&report).as_bytes())?;
    Ok(())
}

fn readable(report: &Report) -> String {
    let mut lines = vec![format!("gemba-edge {}, up {}", report.version, duration(report.uptime_s))];
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
        lines.push(format!("  {what:<12} {fact}"));
    }
    for figure in &report.figures {
        for (reason, value) in &figure.values {
            match reason {
                None => lines.push(format!("  {:<34} {value}", figure.name)),
                // Reasons that never came up would only hide those that did.
                Some(reason) if *value > 0.0 || figure.kind == Kind::Gauge => {
                    lines.push(format!("  {:<34} {value}", format!("{} ({reason})", figure.name)));
                }
                Some(_) => {}
            }
        }
    }
    lines.join("\n") + "\n"
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min {} s", seconds % 60),
        (0, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Figure;

    #[test]
    fn a_report_reads_as_a_text() {
        let report = Report {
            version: "1.0.0".into(),
            uptime_s: 3_700,
            unhealthy: Vec::new(),
            unready: vec!["no listener".into()],
            facts: vec![("cloud".into(), "away".into())],
            figures: vec![
                Figure::counter("readings", "", 5),
                Figure::by_reason("rejected", "", [("not_json", 2), ("too_large", 0)]),
            ],
        };
        let expected = "gemba-edge 1.0.0, up 1 h 1 min\n  not ready    no listener\n  cloud        away\n  readings                           5\n  rejected (not_json)                2\n";
        assert_eq!(readable(&report), expected);
    }
}
