//! Commands of the cloud: each is begun at most once, also across a restart.
//!
//! The number of a command is on the disk before it is begun. A command that comes again gets the answer that
//! it got; one whose answer was lost with a crash is answered as failed, since nobody knows.

use std::{collections::VecDeque, path::PathBuf};

use gemba_shared::{
    message::{Command, CommandKind, CommandResult, Outcome},
    telemetry::Clock,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{files, reading::Now};

/// Commands that wait for the one before.
const WAITING_MAX: usize = 64;

/// A command on its way to the pipeline.
#[derive(Debug)]
pub struct Order {
    pub kind: CommandKind,
    pub answer: oneshot::Sender<Outcome>,
}

#[derive(Debug)]
pub(super) struct Commands {
    file: PathBuf,
    orders: mpsc::Sender<Order>,
    /// The highest number that was begun.
    begun: u64,
    last: Option<CommandResult>,
    running: Option<(u64, oneshot::Receiver<Outcome>)>,
    waiting: VecDeque<Command>,
}

impl Commands {
    pub(super) fn load(file: PathBuf, orders: mpsc::Sender<Order>) -> Self {
        let begun = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self { file, orders, begun, last: None, running: None, waiting: VecDeque::new() }
    }

    /// Takes a command; answers at once where there is nothing to wait for.
    pub(super) async fn take(&mut self, command: Command, now: Now) -> Option<CommandResult> {
        let answer = |outcome| Some(CommandResult { id: command.id, at: now.wall, outcome });
        if command.id <= self.begun {
            let running = self.running.as_ref().is_some_and(|(id, _)| *id == command.id);
            return match &self.last {
                _ if running => None,
                Some(last) if last.id == command.id => Some(last.clone()),
                _ if command.id == self.begun => answer(Outcome::Failed(
                    "the gateway started again meanwhile; whether it was done is not known".into(),
                )),
                _ => None,
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
        let mut answer = |outcome| {
            let result = CommandResult { id, at: now.wall, outcome };
            self.last = Some(result.clone());
            Some(result)
        };
        let file = self.file.clone();
        let kept = spawn_blocking(move || files::write(&file, id.to_string().as_bytes())).await;
        if !matches!(kept, Ok(Ok(()))) {
            tracing::error!(id, "command not begun: its number cannot be written to the disk");
            return answer(Outcome::Failed("the gateway's disk cannot be written".into()));
        }
        self.begun = id;
        if now.clock == Clock::Trusted && now.wall > expires {
            return answer(Outcome::Expired);
        }
        let (sender, receiver) = oneshot::channel();
        if self.orders.try_send(Order { kind, answer: sender }).is_err() {
            return answer(Outcome::Failed("the gateway is busy or stopping".into()));
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
    pub(super) fn result(&mut self, outcome: Outcome, now: Now) -> CommandResult {
        let id = self.running.take().map_or(self.begun, |(id, _)| id);
        let result = CommandResult { id, at: now.wall, outcome };
        self.last = Some(result.clone());
        result
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

#[cfg(test)]
mod tests {
    use gemba_shared::{ids::MachineId, telemetry::Timestamp};

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
        let mut commands = Commands::load(directory.path().join("commands"), orders.clone());
        assert_eq!(commands.take(command(1, 2_000), NOW).await, None);
        assert_eq!(commands.take(command(1, 2_000), NOW).await, None, "it runs");
        assert_eq!(commands.take(command(2, 2_000), NOW).await, None, "it waits");
        taken.try_recv().unwrap().answer.send(Outcome::Done).unwrap();
        assert!(taken.try_recv().is_err());
        let outcome = commands.finished().await;
        assert_eq!(commands.result(outcome, NOW).outcome, Outcome::Done);
        assert_eq!(commands.take(command(1, 2_000), NOW).await.unwrap().outcome, Outcome::Done);
        assert_eq!(commands.next(NOW).await, None);
        assert!(taken.try_recv().is_ok());

        let mut again = Commands::load(directory.path().join("commands"), orders);
        assert!(matches!(again.take(command(2, 2_000), NOW).await.unwrap().outcome, Outcome::Failed(_)));
        assert_eq!(again.take(command(1, 2_000), NOW).await, None);
        assert!(taken.try_recv().is_err(), "nothing was begun twice");
        assert_eq!(again.take(command(3, 999), NOW).await.unwrap().outcome, Outcome::Expired);
    }
}
