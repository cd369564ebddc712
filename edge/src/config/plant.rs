//! `[[sources]]`, `[defaults]` and `[[machines]]`: how messages are read, and what is known of machines.

use std::time::Duration;

use gemba_shared::ids::{MachineId, SensorId};

use super::{Limits, pattern::Pattern, reader::Section, values};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How the messages of some topics are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub topic: Pattern,
    pub names: Names,
    pub format: Format,
}

/// Names that the topic does not carry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    pub machine: Option<MachineId>,
    pub sensor: Option<SensorId>,
}

/// What a payload looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// A decimal number as text; its time is when it arrived.
    Number,
    Json(Json),
    /// JSON where the payload begins with `{` or `[`, else a number.
    Auto(Json),
}

/// Where a JSON payload has what (RFC 6901 pointers).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json {
    /// The value of the topic's sensor.
    pub value: String,
    /// An object of values by sensor, in place of `value`.
    pub values: Option<String>,
    /// The time of measuring; where it is missing in a payload, the time of arrival is taken.
    pub time: String,
    pub time_format: TimeFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeFormat {
    /// A text is RFC 3339, a number is milliseconds since 1970.
    Auto,
    Rfc3339,
    Seconds,
    Milliseconds,
    Microseconds,
}

/// How a machine's readings are cut into steps and intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// The detector's sampling period.
    pub step: Duration,
    /// The summary's period; a multiple of the step.
    pub interval: Duration,
    /// How long an interval waits for readings that are on their way.
    pub lateness: Duration,
    /// How long a last value stands for the present one.
    pub hold: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self { step: SECOND, interval: 10 * SECOND, lateness: 2 * SECOND, hold: 30 * SECOND }
    }
}

/// A machine that is declared; others appear by themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    pub id: MachineId,
    pub periods: Periods,
    /// UCUM units by sensor.
    pub units: Vec<(SensorId, String)>,
    /// The model that judges it; `None` for the built-in baseline.
    pub model: Option<String>,
    /// The sensor whose readings are electrical power; its unit is `W`, `kW` or `MW`.
    pub power: Option<SensorId>,
    pub mode: Option<ModeRule>,
}

/// When a machine is off or idle: by the value of one sensor.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeRule {
    pub sensor: SensorId,
    /// Below it the machine is off.
    pub off_below: f64,
    /// Below it the machine is idle.
    pub idle_below: f64,
}

/// The source that is meant when the file has none.
fn source_by_default() -> Source {
    let text = "plant/{machine}/{sensor}";
    Source {
        topic: Pattern::parse(text).expect("it is a pattern"),
        names: Names::default(),
        format: Format::Auto(json()),
    }
}

fn json() -> Json {
    Json { value: "/value".to_owned(), values: None, time: "/time".to_owned(), time_format: TimeFormat::Auto }
}

pub(super) fn sources(root: &mut Section<'_>) -> Vec<Source> {
    let present = root.has("sources");
    let mut sources: Vec<(Source, usize)> = Vec::new();
    for section in root.sections("sources") {
        let line = section.line_of("topic");
        let key = section.key("topic");
        let Some(source) = source(section) else { continue };
        for (other, other_line) in &sources {
            if source.topic.overlaps(&other.topic) {
                let message = format!(
                    "some topics match both {:?} and {:?} of line {other_line}; each topic must belong to one source",
                    source.topic.as_str(),
                    other.topic.as_str()
                );
                root.fault_at(line, &key, message);
            }
        }
        sources.push((source, line));
    }
    if present { sources.into_iter().map(|(source, _)| source).collect() } else { vec![source_by_default()] }
}

/// [`Format`] without its particulars.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Number,
    Json,
    Auto,
}

fn source(mut section: Section<'_>) -> Option<Source> {
    let topic = section.parsed("topic", Pattern::parse);
    if !section.has("topic") {
        section.fault("", "`topic` is missing: a pattern such as \"plant/{machine}/{sensor}\"");
    }
    let default = json();
    let names = Names {
        machine: section.parsed("machine", |text| MachineId::new(text).map_err(|error| error.to_string())),
        sensor: section.parsed("sensor", |text| SensorId::new(text).map_err(|error| error.to_string())),
    };
    let times = [
        ("auto", TimeFormat::Auto),
        ("rfc3339", TimeFormat::Rfc3339),
        ("s", TimeFormat::Seconds),
        ("ms", TimeFormat::Milliseconds),
        ("us", TimeFormat::Microseconds),
    ];
    let values = section.parsed("values", values::pointer);
    let json = Json {
        value: section.parsed("value", values::pointer).unwrap_or(default.value),
        values,
        time: section.parsed("time", values::pointer).unwrap_or(default.time),
        time_format: section.choice("time_format", &times, default.time_format),
    };
    let several = section.has("values");
    if several && section.has("value") {
        section.fault("value", "`values` is given too; a payload has either one value or an object of several");
    }
    let kinds = [("number", Kind::Number), ("json", Kind::Json), ("auto", Kind::Auto)];
    let kind = section.choice("format", &kinds, if several { Kind::Json } else { Kind::Auto });
    if kind == Kind::Number {
        for key in ["value", "values", "time", "time_format"] {
            if section.has(key) {
                section.fault(key, "a plain number has no such part; use format = \"json\" or leave it out");
            }
        }
    }
    if let Some(topic) = &topic {
        check_names(&section, topic, &names, several);
    }
    section.finish();
    let format = match kind {
        Kind::Number => Format::Number,
        Kind::Json => Format::Json(json),
        Kind::Auto => Format::Auto(json),
    };
    Some(Source { topic: topic?, names, format })
}

/// Machine and sensor must come from one place each.
fn check_names(section: &Section<'_>, topic: &Pattern, names: &Names, several: bool) {
    match (topic.has_machine(), names.machine.is_some()) {
        (false, false) => {
            section.fault("topic", "which machine? put {machine} into the topic, or a `machine` beside it");
        }
        (true, true) => section.fault("machine", "the topic has {machine} already; keep one of the two"),
        _ => {}
    }
    match (topic.has_sensor(), names.sensor.is_some(), several) {
        (false, false, false) => {
            section.fault("topic", "which sensor? put {sensor} into the topic, or a `sensor` or `values` beside it");
        }
        (true, true, _) => section.fault("sensor", "the topic has {sensor} already; keep one of the two"),
        (true, _, true) | (_, true, true) => {
            section.fault("values", "its names are the sensors; leave {sensor} and `sensor` out");
        }
        _ => {}
    }
}

pub(super) fn defaults(mut section: Section<'_>) -> Periods {
    let periods = periods(&mut section, &Periods::default());
    section.finish();
    periods
}

fn periods(section: &mut Section<'_>, default: &Periods) -> Periods {
    let periods = Periods {
        step: section.duration("step", default.step, 10 * MS..=3_600 * SECOND),
        interval: section.duration("interval", default.interval, SECOND..=86_400 * SECOND),
        lateness: section.duration("lateness", default.lateness, Duration::ZERO..=86_400 * SECOND),
        hold: section.duration("hold", default.hold, 10 * MS..=86_400 * SECOND),
    };
    if !periods.interval.as_millis().is_multiple_of(periods.step.as_millis()) {
        let key = if section.has("interval") { "interval" } else { "step" };
        let (interval, step) = (values::duration_text(periods.interval), values::duration_text(periods.step));
        section.fault(key, format!("the interval ({interval}) should be a whole number of steps ({step})"));
    }
    periods
}

pub(super) fn machines(root: &mut Section<'_>, defaults: &Periods, limits: &Limits) -> Vec<Machine> {
    let mut machines: Vec<(Machine, usize)> = Vec::new();
    for section in root.sections("machines") {
        let line = section.line_of("id");
        let key = section.key("id");
        let Some(machine) = machine(section, defaults, limits) else { continue };
        if let Some((_, first)) = machines.iter().find(|(other, _)| other.id == machine.id) {
            root.fault_at(line, &key, format!("the machine {} was declared in line {first} already", machine.id));
        }
        machines.push((machine, line));
    }
    if machines.len() > limits.machines_max {
        root.fault(
            "machines",
            format!("{} machines, but limits.machines_max is {}", machines.len(), limits.machines_max),
        );
    }
    machines.into_iter().map(|(machine, _)| machine).collect()
}

fn machine(mut section: Section<'_>, defaults: &Periods, limits: &Limits) -> Option<Machine> {
    let id = section.parsed("id", |text| MachineId::new(text).map_err(|error| error.to_string()));
    if !section.has("id") {
        section.fault("", "`id` is missing: the machine's name in topics");
    }
    let periods = periods(&mut section, defaults);
    let mut units = Vec::new();
    for (name, unit, line) in section.texts_by_name("units") {
        let key = format!("units.{name}");
        match SensorId::new(name) {
            Ok(sensor) => match values::unit(unit) {
                Ok(unit) => units.push((sensor, unit)),
                Err(message) => section.fault_at(line, &key, format!("{unit:?}: {message}")),
            },
            Err(error) => section.fault_at(line, &key, format!("{name:?} is no sensor's name: {error}")),
        }
    }
    if units.len() > limits.sensors_max {
        section.fault("units", format!("{} sensors, but limits.sensors_max is {}", units.len(), limits.sensors_max));
    }
    let model = model(&mut section, "model");
    let power = section.parsed("power", |text| SensorId::new(text).map_err(|error| error.to_string()));
    if let Some(power) = &power {
        let unit = units.iter().find(|(id, _)| id == power).map(|(_, unit)| unit.as_str());
        if unit.is_none_or(|unit| values::watts(unit).is_none()) {
            section.fault("power", format!("say its unit: units.{power} = \"W\", \"kW\" or \"MW\""));
        }
    }
    let mode = mode(section.section("mode"));
    section.finish();
    Some(Machine { id: id?, periods, units, model, power, mode })
}

/// The name of a model's folder.
pub(super) fn model(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let name = section.text(key)?;
    if MachineId::new(name).is_err() {
        section
            .fault(key, "it should be the name of a folder in `models.dir`, or be left out for the built-in baseline");
    }
    Some(name.to_owned())
}

fn mode(mut section: Section<'_>) -> Option<ModeRule> {
    let sensor = section.parsed("sensor", |text| SensorId::new(text).map_err(|error| error.to_string()));
    let off_below = section.number("off_below");
    let idle_below = section.number("idle_below");
    if section.is_present() {
        for key in ["sensor", "off_below"] {
            if !section.has(key) {
                section.fault("", format!("`{key}` is missing: off is when `sensor` is below `off_below`"));
            }
        }
    }
    if let (Some(off), Some(idle)) = (off_below, idle_below)
        && idle < off
    {
        section.fault("idle_below", "it should not be less than `off_below`");
    }
    section.finish();
    let off_below = off_below?;
    Some(ModeRule { sensor: sensor?, off_below, idle_below: idle_below.unwrap_or(off_below) })
}
