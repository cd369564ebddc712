//! The thread that owns the line from deliveries to the outbox.
//!
//! It takes all deliveries that wait, decodes them, and hands them to the pipeline in one batch: one sync makes all
//! of them safe, and while the disk works the next batch gathers. Between batches it closes what is due.
//! While the disk fails, the batch is tried again and nothing is acknowledged: the gate stops reading.

use std::{
    io, mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gemba_mqtt::delivery::Delivery;
use gemba_shared::message::{LiveMachine, Outcome};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::Config,
    ingest::Decoder,
    pipeline::{Pipeline, PipelineCounters, PipelineError, PipelineSettings, Told},
    reading::Reading,
    uplink::Order,
};

/// Deliveries in one batch.
const BATCH_MAX: usize = 256;
/// Beyond this many, the memory of a batch's readings is given back.
const READINGS_KEPT: usize = 16_384;
const TICK_EVERY: Duration = Duration::from_millis(100);
const LIVE_EVERY: Duration = Duration::from_secs(1);
/// After a failure of the disk.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Another configuration for the line; `done` is told when it was taken.
pub(super) struct Change {
    pub(super) config: Arc<Config>,
    pub(super) pipeline: PipelineSettings,
    pub(super) done: oneshot::Sender<()>,
}

/// What the line tells of itself.
#[derive(Debug, Default)]
pub(super) struct LineState {
    /// When it last went round, in microseconds of the monotonic clock.
    pub(super) progress_us: AtomicI64,
    pub(super) machines: AtomicU64,
    /// Intervals that hold readings and are not in a summary yet.
    pub(super) open_intervals: AtomicU64,
    pub(super) disk_failures: AtomicU64,
    /// What the disk says since it began to fail, and since when; empty while it works.
    pub(super) disk: Mutex<Option<(i64, String)>>,
    pub(super) counters: Mutex<PipelineCounters>,
    /// What people told of machines.
    pub(super) told: Mutex<Vec<Told>>,
}

impl LineState {
    /// In microseconds of the monotonic clock.
    pub(super) fn disk_failing_since_us(&self) -> Option<i64> {
        lock(&self.disk).as_ref().map(|(since, _)| *since)
    }
}

/// The line with everything it works with.
pub(super) struct Line {
    pub(super) pipeline: Pipeline,
    pub(super) decoder: Decoder,
    pub(super) clock: Arc<Clock>,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) changes: mpsc::Receiver<Change>,
    /// Woken when something was appended to the outbox.
    pub(super) appended: Arc<Notify>,
    pub(super) live: watch::Sender<Arc<Vec<LiveMachine>>>,
    pub(super) state: Arc<LineState>,
    /// Whether the last tick could store what it closed: what is only journalled meanwhile does not make the disk well.
    pub(super) outbox_takes: bool,
    /// The daemon stops: a disk that fails is not waited for any longer.
    pub(super) stop: CancellationToken,
}

impl Line {
    /// Runs it on a thread of its own, until nobody delivers any more; `ended` is cancelled then, also by a panic.
    pub(super) fn spawn(self, runtime: Handle, ended: CancellationToken) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("line".into());
        thread.spawn(move || {
            let _ended = ended.drop_guard();
            self.run(&runtime);
        })?;
        Ok(())
    }

    fn run(mut self, runtime: &Handle) {
        let mut batch: Vec<Delivery> = Vec::new();
        let mut readings: Vec<Reading> = Vec::new();
        let mut tick_at = Instant::now();
        let mut live_at = tick_at;
        let mut change = None;
        loop {
            let received =
                runtime.block_on(async { timeout_at(tick_at, self.deliveries.recv_many(&mut batch, BATCH_MAX)).await });
            let ended = received == Ok(0);
            if !batch.is_empty() && !self.take(&mut batch, &mut readings, runtime) {
                return;
            }
            let instant = Instant::now();
            if instant >= tick_at || ended {
                tick_at = instant + TICK_EVERY;
                self.tick();
                self.obey();
                self.change(&mut change);
            }
            if instant >= live_at {
                live_at = instant + LIVE_EVERY;
                self.live.send_replace(Arc::new(self.pipeline.live(self.clock.now())));
                *lock(&self.state.told) = self.pipeline.told();
            }
            self.state.progress_us.store(self.clock.now().mono_us, Relaxed);
            if ended {
                return;
            }
        }
    }

    /// Makes a batch safe. False where the daemon stops while the disk fails.
    fn take(&mut self, batch: &mut Vec<Delivery>, readings: &mut Vec<Reading>, runtime: &Handle) -> bool {
        let now = self.clock.now();
        let registry = self.pipeline.registry();
        for delivery in batch.iter() {
            for publish in &delivery.messages {
                // What is rejected is counted and logged there, and acknowledged like the rest: it would only come again.
                match self.decoder.decode(publish, &delivery.publisher, now, registry, readings) {
                    Ok(()) | Err(_) => {}
                }
            }
        }
        // While the disk fails, time stands still for the windows: what waits behind this batch is not late for it.
        while let Err(error) = self.pipeline.ingest(readings, batch, now, self.clock.now()) {
            self.failed(&error);
            if self.stop.is_cancelled() {
                return false;
            }
            // A timer is made inside the runtime or not at all.
            runtime.block_on(async { sleep(RETRY_AFTER).await });
            self.state.progress_us.store(self.clock.now().mono_us, Relaxed);
        }
        if self.outbox_takes {
            self.works();
        }
        // How many they are is counted at the next tick; that there are some is seen at once.
        self.state.open_intervals.fetch_max(u64::from(!readings.is_empty()), Relaxed);
        readings.clear();
        if readings.capacity() > READINGS_KEPT {
            *readings = Vec::new();
        }
        true
    }

    fn tick(&mut self) {
        let ticked = self.pipeline.tick(self.clock.now());
        self.outbox_takes = ticked.is_ok();
        match ticked {
            Ok(()) => self.works(),
            Err(error) => self.failed(&error),
        }
        let counters = self.pipeline.counters();
        let before = mem::replace(&mut *lock(&self.state.counters), counters);
        self.state.machines.store(self.pipeline.registry().len() as u64, Relaxed);
        self.state.open_intervals.store(self.pipeline.open_intervals() as u64, Relaxed);
        if before.summaries != counters.summaries || before.events != counters.events {
            self.appended.notify_one();
        }
    }

    /// Carries out what the cloud commanded.
    fn obey(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            let (kind, answer) = match order {
                Order::Command { kind, answer } => (kind, answer),
                Order::Catalog { machine, answer } => {
                    if answer.send(self.pipeline.catalog(&machine).cloned()).is_err() {
                        tracing::debug!("nobody waits for the catalog");
                    }
                    continue;
                }
            };
            let put_right = |clock, at| self.clock.put_right(clock, at);
            let outcome = self.pipeline.command(&kind, self.clock.now(), put_right).unwrap_or_else(|error| {
                self.failed(&error);
                Outcome::Failed("the gateway's disk failed".into())
            });
            self.appended.notify_one();
            if answer.send(outcome).is_err() {
                tracing::debug!("nobody waits for the command's outcome");
            }
        }
    }

    /// Takes another configuration, between two batches: no reading is read by half of it. While the disk fails it waits.
    fn change(&mut self, waiting: &mut Option<Change>) {
        while let Ok(change) = self.changes.try_recv() {
            *waiting = Some(change);
        }
        let Some(Change { config, pipeline, done }) = waiting.take() else { return };
        if let Err(error) = self.pipeline.reconfigure(pipeline.clone(), self.clock.now()) {
            self.failed(&error);
            *waiting = Some(Change { config, pipeline, done });
            return;
        }
        self.pipeline.registry().set_limits(config.limits.machines_max, config.limits.sensors_max);
        self.decoder.reconfigure(&config);
        if done.send(()).is_err() {
            tracing::info!("the new configuration was taken late");
        }
    }

    fn failed(&self, error: &PipelineError) {
        let text = format!("{:#}", anyhow::Error::msg(error.to_string()));
        self.state.disk_failures.fetch_add(1, Relaxed);
        let mut disk = lock(&self.state.disk);
        let since = disk.as_ref().map(|(since, _)| *since);
        *disk = Some((since.unwrap_or_else(|| self.clock.now().mono_us), text.clone()));
        if since.is_none() {
            tracing::error!(error = text, "the disk does not take data: what is not acknowledged, devices keep");
        }
    }

    fn works(&self) {
        if lock(&self.state.disk).take().is_some() {
            tracing::info!("the disk takes data again");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gemba_mqtt::delivery::{Progress, Publish};

    use super::*;
    use crate::{
        config::{ClockTrust, Config},
        generations::GenerationSettings,
        journal::JournalSettings,
        outbox::{Outbox, OutboxSettings},
        pipeline::PipelineSettings,
        reading::Registry,
    };

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A line with such a journal and outbox, and where its deliveries go in.
    fn line(
        dir: &Path,
        journal: JournalSettings,
        outbox: OutboxSettings,
        stop: &CancellationToken,
    ) -> (Line, mpsc::Sender<Delivery>, Arc<LineState>) {
        let clock = Arc::new(Clock::new(ClockTrust::Trusted, dir.join("clock")));
        let (outbox, opened) = Outbox::open(&dir.join("outbox"), outbox).unwrap();
        let settings = PipelineSettings { journal, ..PipelineSettings::default() };
        let outbox = Arc::new(Mutex::new(outbox));
        let registry = Registry::new(10, 10);
        let pipeline =
            Pipeline::open(settings, &dir.join("journal"), outbox, opened.states, registry, clock.now()).unwrap();
        let (deliver, deliveries) = mpsc::channel(4);
        let (_, orders) = mpsc::channel(1);
        let state = Arc::new(LineState::default());
        let line = Line {
            pipeline,
            decoder: Decoder::new(&Config::parse("", Path::new("/")).unwrap(), false),
            clock,
            deliveries,
            orders,
            changes: mpsc::channel(1).1,
            appended: Arc::default(),
            live: watch::channel(Arc::default()).0,
            state: Arc::clone(&state),
            outbox_takes: true,
            stop: stop.clone(),
        };
        (line, deliver, state)
    }

    fn delivery(payload: &str, progress: &Arc<Progress>, number: u64) -> Delivery {
        let message = Publish {
            topic: "plant/p1/t".as_bytes().into(),
            payload: payload.as_bytes().to_vec().into(),
            retain: false,
            dup: false,
        };
        Delivery::new("test".into(), vec![message], Arc::clone(progress), number)
    }

    #[tokio::test]
    async fn what_is_only_journalled_does_not_make_the_disk_well() {
        let dir = tempfile::tempdir().unwrap();
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let outbox = OutboxSettings { disk_free_min: u64::MAX, ..OutboxSettings::default() };
        let (line, deliver, state) = line(dir.path(), JournalSettings::default(), outbox, &stop);
        let minute_ago = jiff::Timestamp::from_microsecond(line.clock.now().wall.plus_us(-60_000_000).0).unwrap();
        line.spawn(Handle::current(), ended.clone()).unwrap();
        let progress = Arc::new(Progress::default());
        // An interval that is over, for the machine has gone on: the next tick wants to store it.
        let old = format!("{{\"value\": 1, \"time\": \"{minute_ago}\"}}");
        deliver.send(delivery(&old, &progress, 1)).await.unwrap();
        deliver.send(delivery("2", &progress, 2)).await.unwrap();
        let failing = || lock(&state.disk).as_ref().map(|(_, fault)| fault.clone());
        let fails = async {
            while failing().is_none() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout_at(Instant::now() + DEADLINE, fails).await.expect("the outbox takes nothing");
        assert!(failing().unwrap().contains("outbox.disk_free_min"), "{:?}", failing());
        for number in 3..20 {
            deliver.send(delivery("2", &progress, number)).await.unwrap();
            let safe = async {
                while progress.safe_through() < number {
                    assert!(failing().is_some(), "{number}");
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout_at(Instant::now() + DEADLINE, safe).await.expect("the journal takes it");
        }
        drop(deliver);
        timeout_at(Instant::now() + DEADLINE, ended.cancelled()).await.expect("it ends");
    }

    #[tokio::test]
    async fn a_disk_that_is_full_is_waited_for_and_a_stop_ends_that() {
        let dir = tempfile::tempdir().unwrap();
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let generations = GenerationSettings { generation_bytes: 1, cache_bytes: 1 << 20 };
        let full = JournalSettings { generations, budget_bytes: 0, ..JournalSettings::default() };
        let (line, deliver, state) = line(dir.path(), full, OutboxSettings::default(), &stop);
        line.spawn(Handle::current(), ended.clone()).unwrap();
        let progress = Arc::new(Progress::default());
        deliver.send(delivery("1.5", &progress, 1)).await.unwrap();
        let tried_again = async {
            while state.disk_failures.load(Relaxed) < 2 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout_at(Instant::now() + DEADLINE, tried_again).await.expect("it tries again");
        assert!(!ended.is_cancelled());
        assert!(lock(&state.disk).as_ref().is_some_and(|(_, fault)| fault.contains("budget")));
        stop.cancel();
        timeout_at(Instant::now() + DEADLINE, ended.cancelled()).await.expect("it stops");
        assert_eq!(progress.safe_through(), 0, "nothing was acknowledged");
    }
}
