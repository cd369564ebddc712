//! Faults on demand: a Unix socket on which a running simulation hears `fault MACHINE KIND AFTER_US LASTS_US`, a line
//! for each, and answers with a line: `ok …` or `error …`.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use gemba_shared::ids::MachineId;
use jiff::SignedDuration;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::broadcast,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::plant::FaultKind;

const LINE_BYTES_MAX: u64 = 1_024;
const PATIENCE: Duration = Duration::from_secs(5);

/// A fault that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub machine: MachineId,
    pub kind: FaultKind,
    /// From now, or from where history ends; negative: it began before.
    pub after: SignedDuration,
    pub lasts: Option<Duration>,
}

impl Order {
    fn to_line(&self) -> String {
        let lasts_us = self.lasts.map_or(0, |lasts| lasts.as_micros());
        format!("fault {} {} {} {lasts_us}\n", self.machine, self.kind, self.after.as_micros())
    }

    fn from_line(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [command, machine, kind, after_us, lasts_us] = words[..] else {
            return Err("`fault MACHINE KIND AFTER_US LASTS_US` is needed".into());
        };
        if command != "fault" {
            return Err(format!("there is no command {command:?}"));
        }
        let microseconds = |text: &str| -> Result<i64, String> {
            text.parse().map_err(|_| format!("{text:?} is no number of microseconds"))
        };
        let lasts = Duration::from_micros(microseconds(lasts_us)?.max(0).unsigned_abs());
        Ok(Self {
            machine: machine.parse().map_err(|error| format!("machine {machine:?}: {error}"))?,
            kind: kind.parse()?,
            after: SignedDuration::from_micros(microseconds(after_us)?),
            lasts: (!lasts.is_zero()).then_some(lasts),
        })
    }
}

/// The socket of a running simulation. Its file goes when this does.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens at `path`; takes over the file that a simulation left which is gone.
    ///
    /// # Errors
    /// If another simulation listens there, or the file cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let name = || format!("--control {}", path.display());
        let listener = match UnixListener::bind(path) {
            Ok(listener) => listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    bail!("{}: another simulation listens there", name());
                }
                std::fs::remove_file(path).with_context(name)?;
                UnixListener::bind(path).with_context(name)?
            }
            Err(error) => return Err(error).with_context(name),
        };
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Hears orders for machines that `knows` knows, until cancelled.
    pub async fn run(
        self,
        orders: broadcast::Sender<Order>,
        knows: impl Fn(&MachineId) -> bool,
        cancel: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            // One order at a time is plenty.
            let served = match accepted {
                Ok((stream, _)) => timeout(PATIENCE, serve(stream, &orders, &knows)).await,
                Err(error) => Ok(Err(error)),
            };
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "an order on the control socket failed"),
                Err(_) => warn!("an order on the control socket took too long"),
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(%error, path = %self.path.display(), "the control socket's file stays behind");
        }
    }
}

async fn serve(
    mut stream: UnixStream,
    orders: &broadcast::Sender<Order>,
    knows: &impl Fn(&MachineId) -> bool,
) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let answer = match Order::from_line(&line) {
        Err(message) => format!("error {message}\n"),
        Ok(order) if !knows(&order.machine) => format!("error there is no machine {:?}\n", order.machine),
        Ok(order) => {
            let answer = format!("ok {} at {} in {} s\n", order.kind, order.machine, order.after.as_secs());
            if orders.send(order).is_ok() { answer } else { "error the simulation is ending\n".into() }
        }
    };
    writer.write_all(answer.as_bytes()).await
}

/// Sends an order to the simulation that listens at `path`, and gives its answer.
///
/// # Errors
/// If there is none, or it refuses.
pub async fn send(path: &Path, order: &Order) -> anyhow::Result<String> {
    let name = path.display();
    let exchange = async {
        let mut stream = UnixStream::connect(path)
            .await
            .with_context(|| format!("--control {name}: no simulation listens there"))?;
        stream.write_all(order.to_line().as_bytes()).await?;
        let mut answer = String::new();
        stream.take(LINE_BYTES_MAX).read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(PATIENCE, exchange).await.with_context(|| format!("--control {name}: no answer"))??;
    match answer.trim().split_once(' ') {
        Some(("ok", done)) => Ok(done.to_owned()),
        Some(("error", message)) => bail!("{message}"),
        _ => bail!("--control {name}: {answer:?} is no answer of a simulation"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(machine: &str) -> Order {
        let (after, lasts) = (SignedDuration::from_secs(3), Some(Duration::from_mins(1)));
        Order { machine: MachineId::new(machine).unwrap(), kind: FaultKind::Valve, after, lasts }
    }

    #[test]
    fn orders_are_read_as_they_are_written() {
        let order = order("pump-3");
        assert_eq!(Order::from_line(&order.to_line()), Ok(order));
        for (line, expected) in [
            ("", "`fault MACHINE KIND AFTER_US LASTS_US` is needed"),
            ("stop pump-1 valve 0 0", "there is no command \"stop\""),
            ("fault pump/1 valve 0 0", "machine \"pump/1\": it may hold"),
            ("fault pump-1 fire 0 0", "there is no fault \"fire\""),
            ("fault pump-1 valve x 0", "\"x\" is no number"),
        ] {
            let error = Order::from_line(line).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn an_order_reaches_the_simulation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let cancel = CancellationToken::new();
        let (sender, mut orders) = broadcast::channel(8);
        let known = |machine: &MachineId| machine.as_str() == "pump-3";
        let control = Control::bind(&path).unwrap();
        assert!(Control::bind(&path).unwrap_err().to_string().contains("another simulation listens there"));
        let running = tokio::spawn(control.run(sender, known, cancel.clone()));
        assert_eq!(send(&path, &order("pump-3")).await.unwrap(), "valve at pump-3 in 3 s");
        assert_eq!(orders.recv().await.unwrap(), order("pump-3"));
        assert!(send(&path, &order("pump-4")).await.unwrap_err().to_string().contains("no machine"));
        cancel.cancel();
        running.await.unwrap();
        assert!(!path.exists());
        assert!(send(&path, &order("pump-3")).await.unwrap_err().to_string().contains("no simulation listens there"));
    }

    #[tokio::test]
    async fn a_file_that_was_left_behind_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Control::bind(&path).unwrap();
    }
}
