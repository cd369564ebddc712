//! Commands of the cloud: each is begun at most once, also across a restart.
//!
//! The number of a command is on the disk before it is begun, and its answer when it is done. A command that comes again gets
//! the answer that it got; one whose answer was lost with a crash is answered as failed, since nobody knows.

use std::{collections::VecDeque, path::PathBuf};

use gemba_shared::{
    ids::MachineId,
    message::{Command, CommandKind, CommandResult, Outcome, REPORT_BYTES_MAX, TEXT_BYTES_MAX},
    telemetry::{Catalog, Clock},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{files, reading::Now};

/// Commands that wait for the one before.
const WAITING_MAX: usize = 64;

/// What the cloud wants, on its way to whoever can do it.
#[derive(Debug)]
pub enum Order {
    Command {
        kind: CommandKind,
        answer: oneshot::Sender<Outcome>,
    },
    /// What the positions of a machine's sensors mean; `None` where there is no such machine.
    Catalog {
        machine: MachineId,
        answer: oneshot::Sender<Option<Catalog>>,
    },
}

/// What is on the disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// The highest number that was begun.
    begun: u64,
    last: Option<CommandResult>,
}

#[derive(Debug)]
pub(super) struct Commands {
    file: PathBuf,
    /// To the line.
    orders: mpsc::Sender<Order>,
    /// To the daemon: what is not about a machine.
    daemon: mpsc::Sender<Order>,
    kept: Kept,
    running: Option<(u64, oneshot::Receiver<Outcome>)>,
    waiting: VecDeque<Command>,
}

impl Commands {
    pub(super) fn load(file: PathBuf, orders: mpsc::Sender<Order>, daemon: mpsc::Sender<Order>) -> Self {
        let kept = match std::fs::read(&file).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::error!(%error, file = %file.display(), "what was commanded before cannot be read: a command may be done again");
                Kept::default()
            }
            Err(_) => Kept::default(),
        };
        Self { file, orders, daemon, kept, running: None, waiting: VecDeque::new() }
    }

    /// Takes a command; answers at once where there is nothing to wait for.
    pub(super) async fn take(&mut self, command: Command, now: Now) -> Option<CommandResult> {
        let answer = |outcome| Some(CommandResult { id: command.id, at: now.wall, outcome });
        if command.id <= self.kept.begun {
            let running = self.running.as_ref().is_some_and(|(id, _)| *id == command.id);
            return match &self.kept.last {
                _ if running => None,
                Some(last) if last.id == command.id => Some(last.clone()),
                _ if command.id == self.kept.begun => answer(Outcome::Failed(
                    "the gateway started again meanwhile; whether it was done is not known".into(),
                )),
                _ => answer(Outcome::Failed(
                    "a later command was begun before; whether this one was done is not known any more".into(),
                )),
            };
        }
        if self.running.is_some() {
            if self.waiting.len() < WAITING_MAX && self.waiting.iter().all(|waiting| waiting.id != command.id) {
                self.waiting.push_back(command);
            }
            return None;
        }
        self.begin(command, now).await
    }

    async fn begin(&mut self, command: Command, now: Now) -> Option<CommandResult> {
        let Command { id, expires, kind } = command;
        let answer = |outcome| Some(CommandResult { id, at: now.wall, outcome });
        if now.clock == Clock::Trusted && now.wall > expires {
            return answer(Outcome::Expired);
        }
        self.kept = Kept { begun: id, last: None };
        if !self.write().await {
            tracing::error!(id, "command not begun: its number cannot be written to the disk");
            return self.keep(answer(Outcome::Failed("the gateway's disk cannot be written".into()))).await;
        }
        let (sender, receiver) = oneshot::channel();
        let to = match &kind {
            CommandKind::Reload | CommandKind::SendDiagnostics => &self.daemon,
            _ => &self.orders,
        };
        if to.try_send(Order::Command { kind, answer: sender }).is_err() {
            return self.keep(answer(Outcome::Failed("the gateway is busy or stopping".into()))).await;
        }
        tracing::info!(id, "command begun");
        self.running = Some((id, receiver));
        None
    }

    /// Waits for the running command; for ever where there is none.
    pub(super) async fn finished(&mut self) -> Outcome {
        match &mut self.running {
            Some((_, receiver)) => {
                receiver.await.unwrap_or_else(|_| Outcome::Failed("the gateway stopped meanwhile".into()))
            }
            None => std::future::pending().await,
        }
    }

    /// The answer to the command that has finished.
    pub(super) async fn result(&mut self, outcome: Outcome, now: Now) -> CommandResult {
        let id = self.running.take().map_or(self.kept.begun, |(id, _)| id);
        let result = CommandResult { id, at: now.wall, outcome: bounded(outcome) };
        self.keep(Some(result.clone())).await;
        result
    }

    /// Keeps an answer, for when it is asked for again.
    async fn keep(&mut self, result: Option<CommandResult>) -> Option<CommandResult> {
        self.kept.last.clone_from(&result);
        if !self.write().await {
            tracing::warn!("a command's answer cannot be written to the disk: it is lost with the next start");
        }
        result
    }

    async fn write(&self) -> bool {
        let (file, kept) = (self.file.clone(), serde_json::to_vec(&self.kept).unwrap_or_default());
        matches!(spawn_blocking(move || files::write(&file, &kept)).await, Ok(Ok(())))
    }

    /// The next command that waited for the one before.
    pub(super) async fn next(&mut self, now: Now) -> Option<CommandResult> {
        if self.running.is_some() {
            return None;
        }
        let command = self.waiting.pop_front()?;
        self.begin(command, now).await
    }
}

/// The outcome, as long as a message may be.
fn bounded(mut outcome: Outcome) -> Outcome {
    let (text, bytes_max) = match &mut outcome {
        Outcome::Failed(text) => (text, TEXT_BYTES_MAX),
        Outcome::Told(text) => (text, REPORT_BYTES_MAX),
        Outcome::Done | Outcome::Expired | Outcome::Unknown => return outcome,
    };
    text.truncate(text.floor_char_boundary(bytes_max));
    outcome
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gemba_shared::telemetry::Timestamp;

    use super::*;

    const NOW: Now = Now { wall: Timestamp(1_000), mono_us: 0, clock: Clock::Trusted };

    fn command(id: u64, expires: i64) -> Command {
        let kind = CommandKind::Recalibrate { machine: MachineId::new("p").unwrap() };
        Command { id, expires: Timestamp(expires), kind }
    }

    #[tokio::test]
    async fn each_is_begun_once_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (orders, mut taken) = mpsc::channel(4);
        let mut commands = Commands::load(directory.path().join("commands"), orders.clone(), orders.clone());
        assert_eq!(commands.take(command(1, 2_000), NOW).await, None);
        assert_eq!(commands.take(command(1, 2_000), NOW).await, None, "it runs");
        assert_eq!(commands.take(command(2, 2_000), NOW).await, None, "it waits");
        let Ok(Order::Command { answer, .. }) = taken.try_recv() else { panic!("a command was begun") };
        answer.send(Outcome::Done).unwrap();
        assert!(taken.try_recv().is_err());
        let outcome = commands.finished().await;
        assert_eq!(commands.result(outcome, NOW).await.outcome, Outcome::Done);
        assert_eq!(commands.take(command(1, 2_000), NOW).await.unwrap().outcome, Outcome::Done);
        assert_eq!(commands.next(NOW).await, None);
        assert!(taken.try_recv().is_ok());

        // The answer of one that ended is there after a restart.
        let Ok(outcome) = tokio::time::timeout(Duration::from_millis(1), commands.finished()).await else {
            panic!("the order was dropped")
        };
        let done = commands.result(outcome, NOW).await;
        let mut again = Commands::load(directory.path().join("commands"), orders.clone(), orders.clone());
        assert_eq!(again.take(command(2, 2_000), NOW).await, Some(done));
        assert_eq!(again.take(command(4, 2_000), NOW).await, None, "it is begun");

        let mut again = Commands::load(directory.path().join("commands"), orders.clone(), orders);
        assert!(matches!(again.take(command(4, 2_000), NOW).await.unwrap().outcome, Outcome::Failed(_)));
        assert!(matches!(again.take(command(1, 2_000), NOW).await.unwrap().outcome, Outcome::Failed(_)));
        assert!(taken.try_recv().is_ok() && taken.try_recv().is_err(), "nothing was begun twice");
        assert_eq!(again.take(command(5, 999), NOW).await.unwrap().outcome, Outcome::Expired);
    }
}
