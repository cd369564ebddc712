//! `gemba-edge outbox inspect | verify | export | repair`: what lies in the outbox, for people and support.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;

use crate::{
    clock,
    config::Config,
    outbox::{
        Outbox, OutboxSettings,
        inspection::{Inspection, Missing},
    },
};

/// What is asked of the outbox
#[derive(Debug, Clone, Subcommand)]
pub enum OutboxCommand {
    /// Says what lies in it: generations, numbers, bytes, ages
    Inspect {
        #[arg(long)]
        json: bool,
    },
    /// Reads all of it, and says what is damaged; fails if anything is
    Verify {
        #[arg(long)]
        json: bool,
    },
    /// Writes its records as lines of JSON
    Export {
        /// Where to; without it to standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Sets aside what cannot be read, and says what is missing
    Repair {
        #[arg(long)]
        json: bool,
    },
}

/// Does it to the outbox of this configuration. The daemon must not be running.
///
/// # Errors
/// If the daemon runs, the disk fails, or, for `verify`, anything is damaged.
pub fn run(command: &OutboxCommand, config: &Config) -> anyhow::Result<()> {
    let dir = config.data_dir.join("outbox");
    ensure!(dir.is_dir(), "there is no outbox in {}", dir.display());
    let out = &mut io::stdout().lock();
    match command {
        OutboxCommand::Inspect { json } => {
            let (mut outbox, _) = open(&dir, false)?;
            let inspection = outbox.inspect();
            if *json {
                writeln!(out, "{}", serde_json::to_string_pretty(&inspection)?)?;
            } else {
                inspected(&inspection, clock::wall().as_millis() / 1_000, out)?;
            }
        }
        OutboxCommand::Verify { json } => {
            let (mut outbox, opened) = open(&dir, false)?;
            let (missing, unreadable) = outbox.verify()?;
            let aside = opened.quarantined;
            if *json {
                let told = serde_json::json!({ "missing": missing, "unreadable": unreadable, "cannot_be_opened": aside, "states_lost": opened.states_lost });
                writeln!(out, "{told:#}")?;
            } else {
                tell_missing(&missing, out)?;
            }
            if opened.states_lost {
                writeln!(io::stderr().lock(), "the latest states of machines are lost")?;
            }
            let faults = missing.len() + unreadable.len() + aside.len() + usize::from(opened.states_lost);
            ensure!(faults == 0, "the outbox is damaged; `gemba-edge outbox repair` sets aside what cannot be read");
        }
        OutboxCommand::Export { output } => {
            let (mut outbox, _) = open(&dir, false)?;
            let count = match output {
                Some(file) => {
                    let made = File::create_new(file).with_context(|| format!("cannot make {}", file.display()))?;
                    export(&mut outbox, &mut BufWriter::new(made))?
                }
                None => export(&mut outbox, out)?,
            };
            writeln!(io::stderr().lock(), "{count} records")?;
        }
        OutboxCommand::Repair { json } => {
            let (mut outbox, opened) = open(&dir, true)?;
            let (missing, mut aside) = outbox.repair()?;
            aside.extend(opened.quarantined);
            if *json {
                writeln!(out, "{:#}", serde_json::json!({ "missing": missing, "set_aside": aside }))?;
            } else {
                aside.iter().try_for_each(|path| writeln!(out, "set aside: {}", path.display()))?;
                tell_missing(&missing, out)?;
            }
        }
    }
    Ok(())
}

fn open(dir: &Path, mends: bool) -> anyhow::Result<(Outbox, crate::outbox::Opened)> {
    let open = if mends { Outbox::open } else { Outbox::open_to_look };
    match open(dir, OutboxSettings::default()) {
        Ok(opened) => Ok(opened),
        Err(error) if error.is_locked() => bail!("{error} (for the service: `systemctl stop gemba-edge`)"),
        Err(error) => Err(error).with_context(|| format!("the outbox {}", dir.display())),
    }
}

fn export(outbox: &mut Outbox, out: &mut impl Write) -> anyhow::Result<u64> {
    let count = outbox.export(|lane, number, record| {
        let line = serde_json::json!({ "lane": lane.as_str(), "number": number, "record": record });
        Ok(writeln!(out, "{line}")?)
    })?;
    out.flush()?;
    Ok(count)
}

fn inspected(inspection: &Inspection, now_s: i64, out: &mut impl Write) -> io::Result<()> {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    writeln!(out, "epochs       {}", inspection.epochs.join(", "))?;
    for lane in &inspection.lanes {
        writeln!(out, "{:<12} {} held, from number {}", lane.lane, lane.next - lane.oldest, lane.oldest)?;
    }
    let (records, bytes) = (inspection.backlog_records, mb(inspection.backlog_bytes));
    writeln!(out, "backlog      {records} records, {bytes:.1} MB; {:.1} MB on the disk", mb(inspection.disk_bytes))?;
    if let Some(at) = inspection.oldest_at_s {
        writeln!(out, "oldest       {:.1} hours ago", (now_s - at) as f64 / 3_600.0)?;
    }
    for generation in &inspection.generations {
        writeln!(
            out,
            "generation {:>6}  {:>7.1} MB  {:>7} events  {:>8} summaries  {}",
            generation.ordinal,
            mb(generation.disk_bytes),
            generation.events,
            generation.summaries,
            generation.level
        )?;
    }
    Ok(())
}

fn tell_missing(missing: &[Missing], out: &mut impl Write) -> io::Result<()> {
    if missing.is_empty() {
        return writeln!(out, "no record is missing");
    }
    for Missing { lane, first, last } in missing {
        writeln!(out, "missing: {lane} {first} to {last} ({} records)", last - first + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _};

    use gemba_shared::{
        message::Lane,
        telemetry::{Gap, GapReason, Record},
    };

    use super::*;
    use crate::outbox::Write as Append;

    fn record(n: u64) -> (Lane, Record) {
        (Lane::Events, Record::Gap(Gap { first: n, last: n, count: n, reason: GapReason::DiskFull }))
    }

    fn all(json: bool, file: &Path) -> [OutboxCommand; 4] {
        let output = Some(file.to_owned());
        [
            OutboxCommand::Inspect { json },
            OutboxCommand::Verify { json },
            OutboxCommand::Export { output },
            OutboxCommand::Repair { json },
        ]
    }

    #[test]
    fn it_tells_exports_and_repairs_but_not_while_the_daemon_runs() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse(&format!("[gateway]\ndata_dir = {:?}", dir.path()), Path::new("/")).unwrap();
        let place = dir.path().join("outbox");
        assert!(run(&OutboxCommand::Inspect { json: false }, &config).unwrap_err().to_string().contains("no outbox"));

        let (mut outbox, _) = Outbox::open(&place, OutboxSettings::default()).unwrap();
        outbox.append(&Append { records: (1..1_001).map(record).collect(), states: vec![] }).unwrap();
        let file = dir.path().join("records.jsonl");
        for command in all(false, &file) {
            let refused = run(&command, &config).unwrap_err().to_string();
            assert!(
                refused.contains("systemctl stop") && refused.contains(&std::process::id().to_string()),
                "{refused}"
            );
        }
        drop(outbox);
        for command in all(true, &file) {
            run(&command, &config).unwrap();
        }
        let lines = fs::read_to_string(&file).unwrap();
        assert_eq!(lines.lines().count(), 1_000);
        assert!(lines.starts_with("{\"lane\":\"events\",\"number\":1,\"record\":{\"Gap\":{"), "{lines:.100}");

        // A part of the records' database is gone.
        let database = place.join("generations/00000000000000000001/db");
        let length = fs::metadata(&database).unwrap().len();
        let before = fs::read(&database).unwrap();
        fs::OpenOptions::new()
            .write(true)
            .open(&database)
            .unwrap()
            .write_all_at(&vec![0; length as usize / 2], 0)
            .unwrap();
        let hurt = fs::read(&database).unwrap();
        assert!(before != hurt);
        let damaged = run(&OutboxCommand::Verify { json: false }, &config).unwrap_err().to_string();
        assert!(damaged.contains("repair"), "{damaged}");
        assert!(fs::read(&database).unwrap() == hurt, "looking changes nothing");
        run(&OutboxCommand::Repair { json: false }, &config).unwrap();
        assert!(Outbox::open(&place, OutboxSettings::default()).is_ok());
    }
}
