//! A plausible pump: what its eight sensors show, healthy and failing.
//!
//! A centrifugal pump (a curve that falls with the square of the flow, the affinity laws for its speed) works
//! against a static head and a pipe with a valve. Motor current and power follow from the hydraulic power and the
//! efficiency, temperatures follow slowly, vibration grows away from the best point. Every value passes through a
//! sensor with noise and a resolution.
//!
//! Pure: the same seed, faults and times give the same values. Not a design tool: the constants are those of a
//! 7.5 kW pump, rounded.

use std::{fmt, str::FromStr, time::Duration};

use gemba_shared::telemetry::Timestamp;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// A sensor of the pump: its name, its unit (UCUM), its noise (standard deviation) and its resolution.
#[derive(Debug, Clone, Copy)]
pub struct Sensor {
    pub name: &'static str,
    pub unit: &'static str,
    noise: f64,
    resolution: f64,
}

const fn sensor(name: &'static str, unit: &'static str, noise: f64, resolution: f64) -> Sensor {
    Sensor { name, unit, noise, resolution }
}

pub const SENSORS: [Sensor; 8] = [
    sensor("motor_current", "A", 0.05, 0.01),
    sensor("discharge_pressure", "bar", 0.015, 0.005),
    sensor("flow", "m3/h", 0.25, 0.05),
    sensor("vibration_de", "mm/s", 0.06, 0.01),
    sensor("vibration_nde", "mm/s", 0.05, 0.01),
    sensor("bearing_temperature", "Cel", 0.2, 0.1),
    sensor("motor_temperature", "Cel", 0.2, 0.1),
    sensor("power", "kW", 0.03, 0.01),
];

const PRESSURE: usize = 1;
const FLOW: usize = 2;

/// How long a fault takes from its first sign to its full extent.
const DEVELOPMENT_S: f64 = 60.0;
/// How long the pump takes to stand when it is switched off.
const COAST_S: f64 = 4.0;
/// How long the pump takes to be healthy again when a fault ends, and to run when it is switched on.
const RECOVERY_S: f64 = 5.0;

/// Pressure without flow, bar; what the pump loses at the square of the flow, bar/(m3/h)².
const SHUTOFF_BAR: f64 = 6.0;
const PUMP_SLOPE: f64 = 1.5 / 2_500.0;
/// What the plant asks for without flow, bar; what pipe and open valve take, bar/(m3/h)².
const STATIC_BAR: f64 = 1.5;
const PIPE_SLOPE: f64 = 2.0 / 2_500.0;
const VALVE_SLOPE: f64 = 0.64 / 2_500.0;
const VALVE_OPEN: f64 = 0.8;
/// The best point's flow, m3/h, and the efficiencies there.
const BEST_FLOW: f64 = 50.0;
const PUMP_EFFICIENCY: f64 = 0.74;
const MOTOR_EFFICIENCY: f64 = 0.9;
/// √3 · 400 V · power factor, in kW per A.
const KW_PER_A: f64 = 1.732 * 0.4 * 0.85;
const AMBIENT_CEL: f64 = 24.0;
/// Correlation time and spread of the demand that the pump's speed follows.
const DEMAND_S: f64 = 8.0;
const DEMAND_SD: f64 = 0.008;
const BEARING_LAG_S: f64 = 60.0;
const MOTOR_LAG_S: f64 = 100.0;

/// What can happen to a pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A bearing at the drive end wears: vibration, heat, a little friction.
    Bearing,
    /// The discharge valve closes: pressure up; flow, current and power down.
    Valve,
    /// The suction runs short: pressure and flow drop and flutter, vibration everywhere.
    Cavitation,
    /// The pressure sensor shows the same value for ever.
    Frozen,
    /// The flow sensor shows more and more.
    Drift,
    /// Nothing is wrong: the pump is switched off, and on again when this ends.
    Stop,
}

impl FaultKind {
    pub const ALL: [Self; 6] = [Self::Bearing, Self::Valve, Self::Cavitation, Self::Frozen, Self::Drift, Self::Stop];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bearing => "bearing",
            Self::Valve => "valve",
            Self::Cavitation => "cavitation",
            Self::Frozen => "frozen",
            Self::Drift => "drift",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.into_iter().map(Self::as_str).collect();
            format!("there is no fault {text:?}; there are {}", known.join(", "))
        })
    }
}

/// A fault of one pump, in event time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    pub kind: FaultKind,
    pub from: Timestamp,
    /// `None`: it stays.
    pub lasts: Option<Duration>,
}

impl Fault {
    /// From 0 (none) to 1 (fully developed).
    fn severity(&self, at: Timestamp) -> f64 {
        let age_s = seconds(at.us_since(self.from));
        if age_s < 0.0 {
            return 0.0;
        }
        let development_s = if self.kind == FaultKind::Stop { COAST_S } else { DEVELOPMENT_S };
        let developed = |age_s: f64| (age_s / development_s).min(1.0);
        match self.lasts {
            Some(lasts) if age_s >= lasts.as_secs_f64() => {
                let over_s = age_s - lasts.as_secs_f64();
                (developed(lasts.as_secs_f64()) * (1.0 - over_s / RECOVERY_S)).max(0.0)
            }
            _ => developed(age_s),
        }
    }
}

/// One pump.
#[derive(Debug)]
pub struct Pump {
    rng: Xoshiro256PlusPlus,
    faults: Vec<Fault>,
    last: Option<Timestamp>,
    /// The demand's departure from its mean, as a share.
    demand: f64,
    bearing_cel: f64,
    motor_cel: f64,
    /// This pump's own place among its sisters, about 1.
    build: f64,
    frozen_bar: Option<f64>,
}

/// How much of each fault there is at a moment.
#[derive(Default)]
struct Severity {
    bearing: f64,
    valve: f64,
    cavitation: f64,
    frozen: f64,
    drift: f64,
    stop: f64,
}

impl Pump {
    /// The pump number `index` of the plant with this seed.
    #[must_use]
    pub fn new(seed: u64, index: u64) -> Self {
        let mut rng =
            Xoshiro256PlusPlus::seed_from_u64(seed ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let build = 1.0 + 0.03 * normal(&mut rng);
        Self {
            rng,
            faults: Vec::new(),
            last: None,
            demand: 0.0,
            bearing_cel: 0.0,
            motor_cel: 0.0,
            build,
            frozen_bar: None,
        }
    }

    pub fn fail(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// What the sensors show at `at`, which comes after the last one. In the order of [`SENSORS`].
    pub fn step(&mut self, at: Timestamp) -> [f64; SENSORS.len()] {
        let dt_s = self.last.map_or(0.0, |last| seconds(at.us_since(last)).max(0.0));
        let first = self.last.replace(at).is_none();
        self.faults.retain(|fault| fault.severity(at) > 0.0 || at <= fault.from);
        let severity = self.severity(at);

        // An Ornstein-Uhlenbeck process, exact for any step.
        let kept = (-dt_s / DEMAND_S).exp();
        let fresh = if first { 1.0 } else { (1.0 - kept * kept).sqrt() };
        self.demand = self.demand * kept + DEMAND_SD * fresh * normal(&mut self.rng);
        let turns = 1.0 - severity.stop;
        let speed = (1.0 + self.demand) * turns;

        let flutter = 1.0 - severity.cavitation * (0.10 + 0.05 * normal(&mut self.rng).abs());
        let valve = VALVE_OPEN * (1.0 - 0.6 * severity.valve);
        let head = SHUTOFF_BAR * self.build * speed * speed * flutter;
        let resistance = PUMP_SLOPE + PIPE_SLOPE + VALVE_SLOPE / (valve * valve);
        let flow = ((head - STATIC_BAR).max(0.0) / resistance).sqrt();
        let pressure = head - PUMP_SLOPE * flow * flow;

        // Away from the best point the efficiency falls and the vibration grows.
        let off_best = if turns > 0.0 { flow / (BEST_FLOW * speed) - 1.0 } else { 0.0 };
        let efficiency = PUMP_EFFICIENCY * (1.0 - 0.5 * off_best * off_best) * (1.0 - 0.05 * severity.cavitation);
        let shaft_kw = pressure * flow / 36.0 / efficiency + 0.4 * speed + 0.35 * severity.bearing;
        let power_kw = shaft_kw / MOTOR_EFFICIENCY;
        let current_a = power_kw / KW_PER_A;
        let rough = turns * (1.0 + severity.cavitation * 0.3 * normal(&mut self.rng).abs());
        let vibration_de =
            (1.6 * self.build + 3.0 * off_best * off_best + 4.5 * severity.bearing + 2.5 * severity.cavitation) * rough;
        let vibration_nde =
            (1.2 * self.build + 2.0 * off_best * off_best + 0.9 * severity.bearing + 2.5 * severity.cavitation) * rough;

        let bearing_target = AMBIENT_CEL + 2.6 * shaft_kw * speed + 30.0 * severity.bearing;
        let motor_target = AMBIENT_CEL + 0.17 * current_a * current_a;
        let towards = |lag_s: f64| if first { 1.0 } else { 1.0 - (-dt_s / lag_s).exp() };
        self.bearing_cel += (bearing_target - self.bearing_cel) * towards(BEARING_LAG_S);
        self.motor_cel += (motor_target - self.motor_cel) * towards(MOTOR_LAG_S);

        let true_values =
            [current_a, pressure, flow, vibration_de, vibration_nde, self.bearing_cel, self.motor_cel, power_kw];
        self.measure(true_values, &severity)
    }

    fn severity(&self, at: Timestamp) -> Severity {
        let mut severity = Severity::default();
        for fault in &self.faults {
            let slot = match fault.kind {
                FaultKind::Bearing => &mut severity.bearing,
                FaultKind::Valve => &mut severity.valve,
                FaultKind::Cavitation => &mut severity.cavitation,
                FaultKind::Frozen => &mut severity.frozen,
                FaultKind::Drift => &mut severity.drift,
                FaultKind::Stop => &mut severity.stop,
            };
            *slot = slot.max(fault.severity(at));
        }
        severity
    }

    fn measure(&mut self, true_values: [f64; SENSORS.len()], severity: &Severity) -> [f64; SENSORS.len()] {
        let mut shown = true_values;
        shown[FLOW] *= 1.0 + 0.25 * severity.drift;
        for (value, sensor) in shown.iter_mut().zip(SENSORS) {
            let noisy = (*value + sensor.noise * normal(&mut self.rng)).max(0.0);
            // Divided by a whole number, so that the shortest text of the value is short.
            let per_unit = (1.0 / sensor.resolution).round();
            *value = (noisy * per_unit).round() / per_unit;
        }
        if severity.frozen > 0.0 {
            shown[PRESSURE] = *self.frozen_bar.get_or_insert(shown[PRESSURE]);
        } else {
            self.frozen_bar = None;
        }
        shown
    }
}

fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

/// A draw from the standard normal distribution (Box and Muller, 1958).
fn normal(rng: &mut Xoshiro256PlusPlus) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the same inputs give the same bits")]
mod tests {
    use super::*;

    const STEPS: i64 = 600;
    const FAULT_AT: i64 = 300;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + s * 1_000)
    }

    fn run(seed: u64, index: u64, fault: Option<(FaultKind, Option<Duration>)>) -> Vec<[f64; SENSORS.len()]> {
        let mut pump = Pump::new(seed, index);
        if let Some((kind, lasts)) = fault {
            pump.fail(Fault { kind, from: at(FAULT_AT), lasts });
        }
        (0..STEPS).map(|s| pump.step(at(s))).collect()
    }

    /// The change of a sensor from before the fault to the third minute of it, in standard deviations of the healthy pump.
    fn change(rows: &[[f64; SENSORS.len()]], sensor: usize) -> f64 {
        let column = |from: usize, to: usize| rows[from..to].iter().map(move |row| row[sensor]);
        let mean = |from, to| column(from, to).sum::<f64>() / (to - from) as f64;
        let healthy = mean(0, 300);
        let sd = (column(0, 300).map(|v| (v - healthy).powi(2)).sum::<f64>() / 300.0).sqrt();
        (mean(420, 480) - healthy) / sd
    }

    #[test]
    fn the_same_seed_gives_the_same_plant() {
        assert_eq!(run(7, 2, None), run(7, 2, None));
        assert_ne!(run(7, 2, None), run(7, 3, None));
        assert_ne!(run(7, 2, None), run(8, 2, None));
    }

    #[test]
    fn a_healthy_pump_stays_where_it_is() {
        for index in 0..20 {
            let rows = run(1, index, None);
            let nominal = [16.5, 4.6, 49.0, 1.6, 1.2, 48.0, 70.0, 9.6];
            for (sensor, nominal) in nominal.into_iter().enumerate() {
                let name = SENSORS[sensor].name;
                for row in &rows {
                    assert!((row[sensor] / nominal - 1.0).abs() < 0.4, "{name} of pump {index} is {}", row[sensor]);
                }
            }
        }
    }

    #[test]
    fn faults_move_the_right_sensors_the_right_way() {
        // Names, and how many standard deviations they move at least (the sign says where).
        let table: [(FaultKind, &[(&str, f64)]); 4] = [
            (
                FaultKind::Bearing,
                &[("vibration_de", 20.0), ("vibration_nde", 5.0), ("bearing_temperature", 5.0), ("power", 0.5)],
            ),
            (
                FaultKind::Valve,
                &[("flow", -4.0), ("discharge_pressure", 2.0), ("power", -1.5), ("motor_current", -1.5)],
            ),
            (
                FaultKind::Cavitation,
                &[("flow", -2.0), ("discharge_pressure", -2.0), ("vibration_de", 15.0), ("vibration_nde", 15.0)],
            ),
            (FaultKind::Drift, &[("flow", 5.0)]),
        ];
        for (kind, expected) in table {
            let rows = run(3, 1, Some((kind, None)));
            for &(name, least) in expected {
                let sensor = SENSORS.iter().position(|sensor| sensor.name == name).unwrap();
                let found = change(&rows, sensor);
                assert!(found * least.signum() >= least.abs(), "{kind}: {name} moves {found:.1}, not {least}");
            }
        }
    }

    #[test]
    fn a_frozen_sensor_repeats_itself_and_the_others_go_on() {
        let rows = run(3, 1, Some((FaultKind::Frozen, None)));
        let frozen = &rows[301..];
        assert!(frozen.iter().all(|row| row[PRESSURE] == frozen[0][PRESSURE]));
        assert!(frozen.windows(20).all(|rows| rows.iter().any(|row| row[FLOW] != rows[0][FLOW])));
    }

    #[test]
    fn a_pump_that_is_switched_off_stands_and_cools_and_comes_back() {
        let rows = run(3, 1, Some((FaultKind::Stop, Some(Duration::from_secs(150)))));
        let healthy = run(3, 1, None);
        for sensor in ["motor_current", "discharge_pressure", "flow", "vibration_de", "vibration_nde", "power"] {
            let sensor = SENSORS.iter().position(|known| known.name == sensor).unwrap();
            assert!(rows[310][sensor] < 0.1 * healthy[310][sensor], "{}", SENSORS[sensor].name);
            assert_eq!(rows[460][sensor], healthy[460][sensor], "{}", SENSORS[sensor].name);
        }
        let motor = SENSORS.iter().position(|sensor| sensor.name == "motor_temperature").unwrap();
        assert!(rows[310][motor] > 0.8 * healthy[310][motor] && rows[450][motor] < 0.6 * healthy[450][motor]);
        assert!(rows[599][motor] > rows[460][motor] + 10.0, "{} {}", rows[599][motor], rows[460][motor]);
    }

    #[test]
    fn drift_moves_nothing_but_its_sensor() {
        let (healthy, drifting) = (run(3, 1, None), run(3, 1, Some((FaultKind::Drift, None))));
        for (healthy, drifting) in healthy.iter().zip(&drifting) {
            for sensor in (0..SENSORS.len()).filter(|&sensor| sensor != FLOW) {
                assert_eq!(healthy[sensor], drifting[sensor]);
            }
        }
    }

    #[test]
    fn a_fault_that_ends_leaves_a_healthy_pump() {
        let rows = run(3, 1, Some((FaultKind::Valve, Some(Duration::from_secs(90)))));
        let healthy = run(3, 1, None);
        assert!(rows[380][FLOW] < 0.9 * healthy[380][FLOW]);
        assert_eq!(rows[500][FLOW], healthy[500][FLOW]);
    }

    #[test]
    fn kinds_are_read_by_their_names() {
        for kind in FaultKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!(
            "fire".parse::<FaultKind>().unwrap_err(),
            "there is no fault \"fire\"; there are bearing, valve, cavitation, frozen, drift, stop"
        );
    }
}
