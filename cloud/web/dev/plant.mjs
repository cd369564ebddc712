// A made-up plant for working on the page: every number is a function of machine, sensor and time, so that any
// stretch of time can be asked for again and looks the same.

const SENSORS = [
  { name: "motor_current", unit: "A", base: 12.4, swing: 0.8, noise: 0.25 },
  { name: "pressure", unit: "bar", base: 4.2, swing: 0.15, noise: 0.05 },
  { name: "flow", unit: "L/min", base: 128, swing: 6, noise: 1.8 },
  { name: "acceleration_de", unit: "[g]", base: 0.42, swing: 0.03, noise: 0.05 },
  { name: "acceleration_nde", unit: "[g]", base: 0.31, swing: 0.02, noise: 0.04 },
  { name: "temperature_motor", unit: "Cel", base: 61, swing: 3, noise: 0.2 },
  { name: "temperature_fluid", unit: "Cel", base: 24.5, swing: 1.2, noise: 0.1 },
  { name: "power", unit: "kW", base: 5.6, swing: 0.4, noise: 0.12 },
];
export const STEP_MS = 1_000;
export const INTERVAL_MS = 10_000;
const MIN = 60_000;

/** What each machine shows; `fault` has the sensors that drive it, and how it grows. */
const CAST = [
  ["pump-1", "Feed pump north", "hall-a", {}],
  ["pump-2", "Feed pump south", "hall-a", {}],
  ["pump-3", null, "hall-a", { fault: { every: 45 * MIN, length: 9 * MIN, drive: { flow: -0.34, pressure: 0.4, motor_current: 0.11 } } }],
  ["pump-4", null, "hall-a", {}],
  ["compressor-1", "Compressor, air", "hall-a", {}],
  ["compressor-2", null, "hall-a", { calibrating: true }],
  ["mixer-1", "Mixer resin", "hall-a", { fault: { every: 170 * MIN, length: 22 * MIN, drive: { acceleration_de: 1.6, temperature_motor: 0.2 } } }],
  ["fan-7", null, "hall-a", { silent: true }],
  ["line2-conveyor", null, "hall-b", {}],
  ["line2-press", "Press 80 t", "hall-b", { blind: true }],
  ["line2-saw", null, "hall-b", {}],
  ["line2-robot-cell", null, "hall-b", {}],
  ["chiller-1", "Chiller roof", "utilities", { offline: true }],
  ["chiller-2", null, "utilities", { offline: true }],
  ["test-rig", null, "hall-b", { ignored: true }],
];

// For a look at a large plant: MACHINES=250.
for (let n = CAST.length; n < Number(process.env.MACHINES ?? 0); n++) CAST.push([`cell-${n}`, null, n % 2 ? "hall-a" : "hall-b", {}]);

const id = (kind, n) => `0193f000-0000-7000-${kind}000-${String(n).padStart(12, "0")}`;

export const gateways = ["hall-a", "hall-b", "utilities"].map((name, n) => ({
  id: id("8", n + 1), name, state: name === "utilities" ? "offline" : "online", last_seen_at: null, version: "0.1.0",
  backlog_records: name === "utilities" ? 18_240 : 12, backlog_bytes: name === "utilities" ? 9_338_880 : 6_144,
  clock_trusted: name !== "hall-b", machines: CAST.filter((c) => c[2] === name).length,
  drops: name === "hall-b" ? [{ reason: "payload_not_json", count: 214 }, { reason: "value_not_finite", count: 31 }] : [],
}));

export const machines = CAST.map(([name, display_name, gateway, traits], n) => ({
  id: id("9", n + 1), n, name, display_name, gateway, traits, ignored: traits.ignored ?? false, merged_into: null,
  sensors: SENSORS.map((s, position) => ({ ...s, position, display_name: null, ignored: false })),
}));

/** In [-1, 1), the same for the same arguments. */
function noise(a, b, c) {
  let h = (a * 374761393 + b * 668265263 + c * 2147483647) | 0;
  h = Math.imul(h ^ (h >>> 13), 1274126177);
  h = Math.imul(h ^ (h >>> 16), 2246822519);
  return ((h ^ (h >>> 15)) >>> 0) / 2 ** 31 - 1;
}

/** How far the fault is, 0 to 1. The first machine's fault begins a minute after the start. */
function faultLevel(machine, t, started) {
  const fault = machine.traits.fault;
  if (!fault) return 0;
  const phase = (t - started - MIN) % fault.every;
  const into = phase < 0 ? phase + fault.every : phase;
  return into > fault.length ? 0 : Math.min(1, into / (fault.length * 0.35));
}

export function lastReading(machine, now, started) {
  if (machine.traits.silent) return started - 3.4 * MIN;
  if (machine.traits.offline) return started - 47 * MIN;
  return Math.floor(now / STEP_MS) * STEP_MS;
}

export function valueAt(machine, sensor, t, started) {
  const step = Math.floor(t / STEP_MS);
  const slow = Math.sin(t / (17 * MIN) + machine.n) * 0.6 + Math.sin(t / (240 * MIN) + sensor.position) * 0.4;
  const drive = (machine.traits.fault?.drive[sensor.name] ?? 0) * faultLevel(machine, t, started);
  return sensor.base * (1 + drive) * (1 + machine.n * 0.011) + sensor.swing * slow + sensor.noise * noise(step, machine.n + 1, sensor.position + 1);
}

export function scoreAt(machine, t, started) {
  return Math.max(0, 0.34 + 0.16 * noise(Math.floor(t / 5_000), machine.n + 1, 77) + 2.6 * faultLevel(machine, t, started));
}

export function healthAt(machine, t, started) {
  return Math.max(0, 97 - (machine.n % 5) + noise(Math.floor(t / 20_000), machine.n, 5) - 62 * faultLevel(machine, t, started));
}

/** The anomalies of a machine between two moments, oldest first. */
export function anomaliesOf(machine, from, to, now, started) {
  const fault = machine.traits.fault;
  if (!fault) return [];
  const drive = Object.entries(fault.drive).map(([sensor, d]) => ({ sensor, share: Math.abs(d) }));
  const rest = SENSORS.filter((s) => !fault.drive[s.name]).map((s) => ({ sensor: s.name, share: 0.012 }));
  const all = [...drive, ...rest];
  const sum = all.reduce((total, s) => total + s.share, 0);
  const shares = all.map((s) => ({ ...s, share: s.share / sum })).sort((a, b) => b.share - a.share);
  const found = [];
  const delay = fault.length * 0.1;
  const first = Math.floor((from - started - MIN) / fault.every) - 1;
  for (let k = first; k * fault.every + started + MIN < to; k++) {
    const opened = started + MIN + k * fault.every + delay;
    const closed = opened - delay + fault.length;
    if (opened > Math.min(to, now) || closed < from) continue;
    found.push({
      id: id("a", machine.n * 1_000_000 + ((k % 900_000) + 900_000) % 900_000), machine_id: machine.id, machine_name: machine.display_name ?? machine.name,
      opened_at: iso(opened), closed_at: closed < now ? iso(closed) : null, score: scoreAt(machine, Math.min(now, closed - 1), started),
      score_max: 2.94, threshold: 1, model: "kernel-regression-1", shares,
    });
  }
  return found;
}

/** A minute and a half of raw values around an anomaly's start. */
export function windowAround(anomaly, started) {
  const machine = machines.find((m) => m.id === anomaly.machine_id);
  const first = Math.floor((Date.parse(anomaly.opened_at) - 60_000) / STEP_MS) * STEP_MS;
  const values = Array.from({ length: 90 }, (_, step) => machine.sensors.map((s) => valueAt(machine, s, first + step * STEP_MS, started)));
  return { step_ms: STEP_MS, first: iso(first), sensors: machine.sensors.map((s) => s.name), values };
}

export const iso = (t) => new Date(t).toISOString();
export { SENSORS, id };
