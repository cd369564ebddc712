//! A machine: its window and its detector, and the records that come of them.
//!
//! Readings go in, [`Machine::advance`] closes what is due, and records come out: a catalog before anything that needs it (in both lanes:
//! each must stand by itself), events, a summary for each interval. [`Machine::save`] gives the state as it is at that moment; what is
//! saved in one batch with the records makes that none of them comes twice. No I/O and no clock.

use std::{collections::BTreeMap, sync::Arc};

use gemba_shared::{
    ids::{MachineId, SensorId},
    message::Lane,
    telemetry::{Catalog, Clock, Event, EventKind, Mode, Quality, Record, Sensor, Summary, Timestamp, Verdict},
};

use crate::{
    config::watts,
    detect::{DetectSettings, Detector, model::Model},
    reading::{Now, SensorIx},
    window::{Interval, Periods, Step, Taken, Window},
};

mod commands;
mod state;
mod told;

pub use state::Mark;
use told::Told;

/// When a machine is off or idle: by the value of one sensor. Without it, the detector finds off where it can.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeRule {
    pub sensor: SensorId,
    /// Below it the machine is off.
    pub off_below: f64,
    /// Below it the machine is idle.
    pub idle_below: f64,
}

/// What is known of a machine beforehand.
#[derive(Debug, Clone, Default)]
pub struct MachineSettings {
    pub periods: Periods,
    /// UCUM units by sensor.
    pub units: BTreeMap<SensorId, String>,
    /// The sensor whose readings are electrical power, in W, kW or MW by its unit (W where it has none).
    pub power: Option<SensorId>,
    pub mode: Option<ModeRule>,
    /// Steps that calibration takes.
    pub calibration_steps: Option<u32>,
    pub model: Option<Arc<Model>>,
}

/// A model is the same where its name and version are.
impl PartialEq for MachineSettings {
    fn eq(&self, other: &Self) -> bool {
        let model = |settings: &Self| settings.model.as_ref().map(ToString::to_string);
        self.periods == other.periods
            && self.units == other.units
            && self.power == other.power
            && self.mode == other.mode
            && self.calibration_steps == other.calibration_steps
            && model(self) == model(other)
    }
}

#[derive(Debug)]
pub struct Machine {
    id: MachineId,
    settings: Arc<MachineSettings>,
    window: Window,
    detector: Detector,
    catalog: Catalog,
    catalog_changed: bool,
    /// Of the catalog that was last written out.
    saved_revision: Option<u32>,
    mode_sensor: Option<usize>,
    mode: Mode,
    /// By which clock its event times count: [`Clock::Trusted`] or [`Clock::SinceBoot`].
    timeline: Clock,
    told: Told,
    /// The latest time that a device gave while nobody knew the time, with the start of the gateway and the time since then.
    device_time: Option<(Clock, Timestamp, i64)>,
}

impl Machine {
    #[must_use]
    pub fn new(id: MachineId, settings: Arc<MachineSettings>) -> Self {
        let detector = Detector::new(detect_settings(&settings), settings.periods.step_us);
        let catalog = Catalog {
            machine: id.clone(),
            revision: 0,
            step_ms: millis(settings.periods.step_us),
            interval_ms: millis(settings.periods.interval_us),
            sensors: Vec::new(),
            model: detector.judge_name(),
        };
        Self {
            id,
            window: Window::new(settings.periods),
            settings,
            detector,
            catalog,
            catalog_changed: false,
            saved_revision: None,
            mode_sensor: None,
            mode: Mode::Unknown,
            timeline: Clock::Trusted,
            told: Told::default(),
            device_time: None,
        }
    }

    #[must_use]
    pub fn id(&self) -> &MachineId {
        &self.id
    }

    /// The sensors that have been told to the cloud, by position.
    #[must_use]
    pub fn sensors(&self) -> &[Sensor] {
        &self.catalog.sensors
    }

    /// What the positions of the machine's sensors mean.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Tells the catalog again before the next record: nobody may know it.
    pub fn tell_catalog(&mut self) {
        self.catalog_changed = true;
    }

    /// The machine has these sensors now (positions never change their meaning).
    pub fn set_sensors(&mut self, sensors: &[SensorId]) {
        for id in &sensors[self.catalog.sensors.len().min(sensors.len())..] {
            let unit = self.settings.units.get(id).cloned();
            self.catalog.sensors.push(Sensor { id: id.clone(), unit });
            self.catalog_changed = true;
        }
        self.find_special_sensors();
    }

    fn find_special_sensors(&mut self) {
        let position = |id: &SensorId| self.catalog.sensors.iter().position(|sensor| sensor.id == *id);
        self.mode_sensor = self.settings.mode.as_ref().and_then(|rule| position(&rule.sensor));
        let power = self.settings.power.as_ref().and_then(|id| {
            let ix = position(id)?;
            let watts = self.catalog.sensors[ix].unit.as_deref().map_or(Some(1.0), watts)?;
            Some((SensorIx(u16::try_from(ix).ok()?), watts))
        });
        self.window.set_power(power);
    }

    /// Takes a reading that stands at `place` in the journal. `timed` says that its time is the source's own.
    pub fn push(
        &mut self,
        sensor: SensorIx,
        at: Timestamp,
        value: f64,
        timed: bool,
        mono_us: i64,
        place: u64,
    ) -> Taken {
        self.window.push(sensor, at, value, timed, mono_us, place)
    }

    /// Takes note of a reading that is in the state already, to know it if it comes again.
    pub fn remember(&mut self, sensor: SensorIx, at: Timestamp, value: f64, timed: bool, place: u64) {
        self.window.remember(sensor, at, value, timed, place);
    }

    /// From which place on the journal must be kept, to know what open intervals have counted.
    #[must_use]
    pub fn open_from(&self) -> Option<u64> {
        self.window.open_from()
    }

    /// The time of the latest reading.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.window.latest()
    }

    /// By which clock the machine's event times count.
    #[must_use]
    pub fn timeline(&self) -> Clock {
        self.timeline
    }

    /// By which clock a reading's time counts, and its time there. While nobody knows the time, the time since the start stands for it;
    /// but where a device of the machine has a clock of its own, all go by that one.
    pub fn place_in_time(&mut self, at: Timestamp, timed: bool, arrived: Now) -> (Clock, Timestamp) {
        if !matches!(arrived.clock, Clock::SinceBoot { .. }) {
            return (Clock::Trusted, at);
        }
        let device = self.device_time.filter(|(boot, ..)| *boot == arrived.clock);
        if timed {
            let latest = device.is_none_or(|(_, latest, _)| at >= latest);
            if latest {
                self.device_time = Some((arrived.clock, at, arrived.mono_us));
            }
            return (Clock::Trusted, at);
        }
        match device {
            Some((_, latest, mono_us)) => (Clock::Trusted, latest.plus_us((arrived.mono_us - mono_us).max(0))),
            None => (arrived.clock, at),
        }
    }

    /// Time is counted anew, by this clock: what is open is closed first, and nothing is forgotten.
    pub fn change_time(&mut self, to: Clock, records: &mut Vec<(Lane, Record)>) {
        let mut events = Vec::new();
        let clock = self.timeline;
        while let Some((step, interval)) = self.window.close_next_of_all() {
            self.close(step, interval, clock, &mut events, records);
        }
        self.detector.change_time(to, &mut events);
        if let Some(at) = self.window.latest() {
            for kind in events {
                self.tell_event(kind, at, clock, records);
            }
        }
        self.window.restart();
        self.told.begin(to);
        self.timeline = to;
    }

    /// Whether [`Machine::advance`] would give something.
    #[must_use]
    pub fn is_due(&self, mono_us: i64) -> bool {
        self.window.is_due(mono_us)
    }

    /// Closes what is due and appends the records that come of it.
    pub fn advance(&mut self, now: Now, records: &mut Vec<(Lane, Record)>) {
        self.advance_steps(now, records, |_, _| {});
    }

    /// The steps that are due, judged one by one, for a look at each: (step, verdict). For backtests.
    pub fn advance_steps(&mut self, now: Now, records: &mut Vec<(Lane, Record)>, mut each: impl FnMut(&Step, Verdict)) {
        let mut events = Vec::new();
        let clock = self.clock(now);
        while let Some((step, interval)) = self.window.close_next(now.mono_us) {
            let step = self.close(step, interval, clock, &mut events, records);
            if let Some(step) = step {
                each(&step, self.detector.present(self.mode));
            }
        }
    }

    /// What records of now say of their times.
    fn clock(&self, now: Now) -> Clock {
        match (self.timeline, now.clock) {
            (Clock::Trusted, Clock::SinceBoot { .. }) => Clock::Untrusted,
            (Clock::Trusted, clock) => clock,
            (timeline, _) => timeline,
        }
    }

    fn close(
        &mut self,
        step: Option<Step>,
        interval: Option<Interval>,
        clock: Clock,
        events: &mut Vec<EventKind>,
        records: &mut Vec<(Lane, Record)>,
    ) -> Option<Step> {
        if let Some(step) = &step {
            self.judge(step, clock, events, records);
        }
        if let Some(interval) = interval {
            let summary = self.summary(interval, clock);
            self.tell(Lane::Summaries, Record::Summary(summary), records);
        }
        step
    }

    fn judge(&mut self, step: &Step, clock: Clock, events: &mut Vec<EventKind>, records: &mut Vec<(Lane, Record)>) {
        let told = self.mode_in(step);
        self.detector.step(step, told, events);
        self.mode = if told == Mode::Unknown && self.detector.is_off() { Mode::Off } else { told };
        let at = step.start.plus_us(self.settings.periods.step_us);
        for kind in events.drain(..) {
            self.tell_event(kind, at, clock, records);
        }
    }

    fn tell_event(&mut self, kind: EventKind, at: Timestamp, clock: Clock, records: &mut Vec<(Lane, Record)>) {
        let catalog_revision = self.revision();
        let event = Event { machine: self.id.clone(), at, catalog_revision, clock, kind };
        self.tell(Lane::Events, Record::Event(event), records);
    }

    fn mode_in(&self, step: &Step) -> Mode {
        let Some((rule, ix)) = self.settings.mode.as_ref().zip(self.mode_sensor) else { return Mode::Unknown };
        match step.values.get(ix).copied().map(f64::from) {
            Some(value) if value < rule.off_below => Mode::Off,
            Some(value) if value < rule.idle_below => Mode::Idle,
            Some(value) if !value.is_nan() => Mode::Running,
            _ => Mode::Unknown,
        }
    }

    /// The revision that the next record speaks of.
    fn revision(&self) -> u32 {
        self.catalog.revision + u32::from(self.catalog_is_due())
    }

    fn catalog_is_due(&self) -> bool {
        self.catalog_changed || self.catalog.revision == 0 || self.catalog.model != self.detector.judge_name()
    }

    fn tell(&mut self, lane: Lane, record: Record, records: &mut Vec<(Lane, Record)>) {
        if self.catalog_is_due() {
            self.catalog.revision += 1;
            self.catalog.model = self.detector.judge_name();
            self.catalog_changed = false;
            for lane in Lane::ALL {
                records.push((lane, Record::Catalog(self.catalog.clone())));
            }
        }
        records.push((lane, record));
    }

    fn summary(&mut self, interval: Interval, clock: Clock) -> Summary {
        let mut sensors = interval.sensors;
        for (ix, sensor) in sensors.iter_mut().enumerate() {
            if let Some(sensor) = sensor
                && sensor.quality == Quality::Good
                && self.detector.is_faulty(ix)
            {
                sensor.quality = Quality::Faulty;
            }
        }
        Summary {
            machine: self.id.clone(),
            start: self.told.start(self.timeline, interval.start),
            interval_ms: self.catalog.interval_ms,
            catalog_revision: self.revision(),
            sensors,
            verdict: self.detector.verdict(self.mode),
            energy_wh: interval.energy_wh,
            clock,
        }
    }

    /// Goes on under other settings, as after a restart with them, and without forgetting a reading.
    pub fn reconfigure(&mut self, settings: Arc<MachineSettings>, now: Now, records: &mut Vec<(Lane, Record)>) {
        let periods = settings.periods;
        let at = self.window.latest().unwrap_or(now.wall);
        let mut events = Vec::new();
        self.detector.reconfigure(detect_settings(&settings), periods.step_us, at, &mut events);
        for kind in events {
            self.tell_event(kind, at, now.clock, records);
        }
        self.settings = settings;
        let window = std::mem::replace(&mut self.window, Window::new(periods));
        self.window = window.with_periods(periods);
        (self.catalog.step_ms, self.catalog.interval_ms) = (millis(periods.step_us), millis(periods.interval_us));
        for sensor in &mut self.catalog.sensors {
            sensor.unit = self.settings.units.get(&sensor.id).cloned();
        }
        self.catalog_changed = true;
        self.find_special_sensors();
    }

    /// Intervals that hold readings and are not in a summary yet.
    #[must_use]
    pub fn open_intervals(&self) -> usize {
        self.window.open_intervals()
    }

    /// The time of the latest reading, the last values by position, and how the detector sees it; `None` before the first reading.
    #[must_use]
    pub fn present(&self, now: Now) -> Option<(Timestamp, Vec<Option<f64>>, Verdict)> {
        let latest = self.window.latest()?;
        let at = match self.timeline {
            Clock::SinceBoot { .. } => now.wall.plus_us(latest.0 - now.mono_us),
            _ => latest,
        };
        Some((at, self.window.values(), self.detector.present(self.mode)))
    }

    /// The revision of the catalog that was told last; 0 before the first.
    #[must_use]
    pub fn catalog_revision(&self) -> u32 {
        self.catalog.revision
    }

    /// Steps that the model could not judge.
    #[must_use]
    pub fn model_failures(&self) -> u64 {
        self.detector.model_failures()
    }
}

fn detect_settings(settings: &MachineSettings) -> DetectSettings {
    let default = DetectSettings::default();
    DetectSettings {
        calibration_steps: settings.calibration_steps.unwrap_or(default.calibration_steps),
        model: settings.model.clone(),
    }
}

fn millis(us: i64) -> u32 {
    u32::try_from(us / 1_000).unwrap_or(u32::MAX)
}
