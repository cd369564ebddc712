//! `gemba-edge diag`: what support needs to see of a gateway, in one archive.
//!
//! It holds no secret by construction: of the configuration only what the daemon understood of it is written, in types that do not
//! show secrets; of the data directory only names and sizes; of logs what the daemon wrote, which has none. Each part is bounded.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use gemba_shared::telemetry::Timestamp;

use crate::{
    clock,
    config::{Config, Refused},
    status,
};

/// Of each part; of the log the latest.
const PART_BYTES_MAX: u64 = 4 << 20;
/// Files of the data directory that are listed.
const FILES_MAX: usize = 20_000;
/// What a command may take that is asked.
const COMMAND_TIMEOUT_S: &str = "15";
/// What the system says of itself.
const SYSTEM: [&str; 7] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/sys/kernel/random/boot_id",
];
const COMMANDS: [(&str, &[&str]); 5] = [
    ("log.txt", &["journalctl", "--unit", "gemba-edge", "--lines", "5000", "--no-pager", "--output", "short-iso"]),
    ("unit.txt", &["systemctl", "status", "gemba-edge", "--no-pager", "--lines", "0"]),
    ("time.txt", &["timedatectl", "show"]),
    ("disk.txt", &["df", "-h"]),
    ("ports.txt", &["ss", "-ltn"]),
];

/// Writes the archive, to a new file for its owner only, and prints where it is.
///
/// # Errors
/// If the file cannot be written. What cannot be found out is said in the archive.
pub fn diag(config: &Result<Config, Refused>, output: Option<&Path>) -> anyhow::Result<()> {
    let now = clock::wall();
    let named = || PathBuf::from(format!("gemba-edge-diag-{}.tar.gz", now.as_millis()));
    let path = output.map_or_else(named, Path::to_path_buf);
    let cannot = || format!("cannot write {}; --output names another place", path.display());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(cannot)?;
    write(file, config, now).with_context(cannot)?;
    writeln!(io::stdout().lock(), "{}", path.display())?;
    Ok(())
}

fn write(file: File, config: &Result<Config, Refused>, now: Timestamp) -> io::Result<()> {
    let mut archive = Archive { tar: tar::Builder::new(GzEncoder::new(file, Compression::default())), now };
    archive.add("version.txt", concat!("gemba-edge ", env!("CARGO_PKG_VERSION"), "\n").as_bytes())?;
    match config {
        Ok(config) => {
            archive.add("configuration.txt", format!("{config:#?}\n").as_bytes())?;
            archive.add("data.txt", listing(&config.data_dir).as_bytes())?;
            archive.add("outbox.txt", &outbox(config))?;
            for path in ["status", "metrics", "healthz", "readyz"] {
                let said = status::get(config.http, path).unwrap_or_else(|error| format!("{error:#}\n"));
                archive.add(&format!("{path}.txt"), said.as_bytes())?;
            }
        }
        // What is wrong may be a secret in the wrong place: only where it is wrong is told.
        Err(refused) => {
            let faults = refused.faults.iter().map(|fault| format!("line {}: {} is wrong\n", fault.line, fault.key));
            archive.add("configuration.txt", faults.collect::<String>().as_bytes())?;
        }
    }
    for path in SYSTEM {
        let name = format!("system/{}.txt", path.rsplit('/').next().unwrap_or(path));
        archive.add(&name, &read(Path::new(path)))?;
    }
    for (name, command) in COMMANDS {
        archive.add(&format!("system/{name}"), &output_of(command))?;
    }
    archive.tar.into_inner()?.finish()?.sync_all()
}

struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    now: Timestamp,
}

impl Archive {
    fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(self.now.as_millis() / 1_000).unwrap_or(0));
        self.tar.append_data(&mut header, format!("gemba-edge-diag/{name}"), bytes)
    }
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(PART_BYTES_MAX).read_to_end(&mut bytes)) {
        Ok(_) => bytes,
        Err(error) => format!("{}: {error}\n", path.display()).into_bytes(),
    }
}

fn output_of(command: &[&str]) -> Vec<u8> {
    match Command::new("timeout").arg(COMMAND_TIMEOUT_S).args(command).output() {
        Ok(output) => {
            let mut bytes = [output.stdout, output.stderr].concat();
            let excess = bytes.len().saturating_sub(usize::try_from(PART_BYTES_MAX).unwrap_or(usize::MAX));
            bytes.drain(..excess);
            bytes
        }
        Err(error) => format!("{}: {error}\n", command.join(" ")).into_bytes(),
    }
}

/// What `outbox inspect` says: as a program of its own, since it looks as the daemon's user. While the daemon runs it says only that.
fn outbox(config: &Config) -> Vec<u8> {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("gemba-edge"));
    let file = config.file.clone().unwrap_or_default();
    let (program, file) = (program.to_string_lossy(), file.to_string_lossy());
    let command = [&*program, "outbox", "inspect", "--config", &*file];
    output_of(if file.is_empty() { &command[..3] } else { &command })
}

/// Names, sizes and modes of what lies in the data directory; no contents.
fn listing(dir: &Path) -> String {
    let mut lines = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                lines.push(format!("{}: {error}", folder.display()));
                continue;
            }
        };
        for entry in entries.flatten() {
            let (path, Ok(found)) = (entry.path(), entry.metadata()) else { continue };
            if found.is_dir() {
                folders.push(path.clone());
            }
            let (disk, mode) = (found.blocks() * 512, found.mode() & 0o7777);
            lines.push(format!("{:>12} bytes {disk:>12} on disk {mode:04o} {}", found.len(), path.display()));
            if lines.len() >= FILES_MAX {
                lines.push("… and more".to_owned());
                return lines.join("\n") + "\n";
            }
        }
    }
    lines.sort_by(|a, b| a.rsplit(' ').next().cmp(&b.rsplit(' ').next()));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(file: &Path) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(file).unwrap()));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (name, text)
        });
        entries.collect()
    }

    #[test]
    fn holds_what_is_of_use_and_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let hash = crate::passwords::hash(b"hunter2").unwrap();
        let text = format!(
            "# hunter2 in a comment\n[gateway]\ndata_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:1\"\n[[mqtt.devices]]\nname = \"press\"\npassword_hash = \"{hash}\"\npublish = [\"plant/#\"]\n[cloud]\nusername = \"u\"\npassword_file = \"cloud.password\"\n"
        );
        let file = dir.path().join("edge.toml");
        fs::write(&file, text).unwrap();
        fs::write(dir.path().join("cloud.password"), "hunter3").unwrap();
        crate::files::write(&dir.path().join("data/identity/gateway.key"), b"hunter4").unwrap();
        let output = dir.path().join("diag.tar.gz");
        diag(&Config::load(&file), Some(&output)).unwrap();
        assert_eq!(fs::metadata(&output).unwrap().mode() & 0o777, 0o600);
        let parts = unpacked(&output);
        let part = |name: &str| &parts.iter().find(|(n, _)| *n == format!("gemba-edge-diag/{name}")).expect(name).1;
        assert!(part("version.txt").starts_with("gemba-edge "));
        assert!(part("configuration.txt").contains("press") && part("configuration.txt").contains("PasswordHash"));
        assert!(part("data.txt").contains("identity/gateway.key"));
        assert!(part("status.txt").contains("no gemba-edge answers"));
        assert!(part("system/version.txt").contains("Linux"));
        for (name, text) in &parts {
            // The log of this machine is not of this test.
            let secrets = ["hunter2", "hunter3", "hunter4", "argon2"];
            assert!(name.contains("system/") || secrets.iter().all(|secret| !text.contains(secret)), "{name}: {text}");
        }
        assert!(diag(&Config::load(&file), Some(&output)).is_err(), "it overwrites nothing");
    }

    #[test]
    fn a_configuration_that_is_wrong_is_told_by_place_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("edge.toml");
        fs::write(&file, "[cloud]\nurl = \"mqtt://user:hunter2@broker\"\n").unwrap();
        let output = dir.path().join("diag.tar.gz");
        diag(&Config::load(&file), Some(&output)).unwrap();
        let parts = unpacked(&output);
        let (_, told) = parts.iter().find(|(name, _)| name.ends_with("configuration.txt")).unwrap();
        assert_eq!(told, "line 2: cloud.url is wrong\n");
    }
}
