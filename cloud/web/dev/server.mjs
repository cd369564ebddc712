// A stand-in for gemba-cloud while the page is worked on: the API of `/api/v1` and the live feed, from the made-up
// plant of plant.mjs. It stores nothing and is no part of any test.
//
//   npm run dev:server          in one terminal (PORT, default 8087)
//   npm run dev                 in another: Vite with reload, which sends /api here
//
// It also serves dist/ with the security headers of the real daemon. Sign in as anna / gemba-gemba (supervisor),
// vic / gemba-gemba (viewer), or new / one-time (must choose a password). SIGUSR1 drops all live connections. A
// fault begins after a minute; HEAD_START_S says how long the plant has been running already.

import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { WebSocketServer } from "ws";
import * as plant from "./plant.mjs";

const PORT = Number(process.env.PORT ?? 8087);
const DIST = new URL("../dist/", import.meta.url).pathname;
const STARTED = Date.now() - Number(process.env.HEAD_START_S ?? 0) * 1_000;
const CSP = "default-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:; frame-ancestors 'none'";
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

const users = new Map([
  ["anna", { id: plant.id("b", 1), name: "anna", role: "supervisor", password: "gemba-gemba", change: false }],
  ["vic", { id: plant.id("b", 2), name: "vic", role: "viewer", password: "gemba-gemba", change: false }],
  ["new", { id: plant.id("b", 3), name: "new", role: "operator", password: "one-time", change: true }],
]);
const alarms = new Map();

class Refusal extends Error {
  constructor(status, code, title, errors = []) {
    super(title);
    const detail = title;
    Object.assign(this, { status, body: { type: "about:blank", title, status, detail, code, errors } });
  }
}

const bearer = (token) => users.get(String(token).split(".")[0]);

function login(user) {
  // Good after a restart of this server as well.
  const token = `${user.name}.${randomUUID()}`;
  const { id, name, role } = user;
  return { token, expires_at: plant.iso(Date.now() + 900_000), user: { id, name, role }, must_change_password: user.change };
}

// What a machine is now.

function stateOf(machine, now) {
  const { traits } = machine;
  const anomaly = plant.anomaliesOf(machine, now - 1, now, now, STARTED).find((a) => a.closed_at === null);
  const detector = traits.calibrating ? "calibrating" : traits.blind ? "blind" : anomaly ? "anomalous" : "watching";
  const connection = traits.offline ? "gateway_offline" : traits.silent ? "silent" : "live";
  const last = plant.lastReading(machine, now, STARTED);
  const judged = !traits.calibrating && !traits.blind;
  return {
    id: machine.id, health_percent: judged ? plant.healthAt(machine, last, STARTED) : null, score: judged ? plant.scoreAt(machine, last, STARTED) : null,
    detector, calibration_percent: traits.calibrating ? Math.min(99, 62 + Math.floor((now - STARTED) / 20_000)) : null, detector_note: null, remaining: null, mode: traits.silent ? "unknown" : "running",
    last_reading_at: plant.iso(last), connection,
    state: connection !== "live" ? connection : detector === "watching" ? "ok" : detector,
  };
}

function machineOf(machine, now) {
  const gateway = plant.gateways.find((g) => g.name === machine.gateway);
  const alarm = [...alarms.values()].find((a) => a.machine_id === machine.id && a.state !== "normal");
  return {
    ...stateOf(machine, now), gateway_id: gateway.id, gateway_name: gateway.name, name: machine.name, display_name: machine.display_name,
    sensors_count: machine.sensors.length, ignored: machine.ignored, merged_into: machine.merged_into, criticality: "medium",
    alarm: alarm ? { id: alarm.id, severity: alarm.severity, state: alarm.state } : null, model: machine.n % 3 ? "" : "kernel-regression-1",
  };
}

function detailOf(machine, now) {
  const last = plant.lastReading(machine, now, STARTED);
  const sensors = machine.sensors.map(({ name, display_name, unit, position, ignored }, i) => ({
    name, display_name, unit, position, ignored, last_value: plant.valueAt(machine, machine.sensors[i], last, STARTED),
  }));
  const merged = plant.machines.filter((m) => m.merged_into === machine.id).map(({ id, name }) => ({ id, name }));
  return { ...machineOf(machine, now), step_ms: plant.STEP_MS, interval_ms: plant.INTERVAL_MS, sensors, merged };
}

function seriesOf(machine, query, now) {
  const last = plant.lastReading(machine, now, STARTED);
  const to = Date.parse(query.get("to") ?? "") || last;
  const from = Date.parse(query.get("from") ?? "") || to - 900_000;
  const points = Math.min(5_000, Math.max(10, Number(query.get("points") ?? 500)));
  const bucket = Math.max(plant.INTERVAL_MS, Math.ceil((to - from) / points / plant.INTERVAL_MS) * plant.INTERVAL_MS);
  const wanted = query.getAll("sensor");
  const times = [];
  // A hole of three minutes, two hours ago, as a lost link would leave it.
  const hole = [STARTED - 123 * 60_000, STARTED - 120 * 60_000];
  for (let t = Math.floor(from / bucket) * bucket; t <= Math.min(to, last); t += bucket) if (t < hole[0] || t > hole[1]) times.push(t);
  const samples = (t, f) => Array.from({ length: 8 }, (_, i) => f(Math.min(t + (bucket * i) / 8, last)));
  const series = machine.sensors.filter((s) => wanted.length === 0 || wanted.includes(s.name)).map((sensor) => {
    const rows = times.map((t) => samples(t, (at) => plant.valueAt(machine, sensor, at, STARTED)));
    return {
      sensor: sensor.name, unit: sensor.unit, time_ms: times, min: rows.map((r) => Math.min(...r)), max: rows.map((r) => Math.max(...r)),
      mean: rows.map((r) => r.reduce((a, b) => a + b, 0) / r.length),
    };
  });
  return {
    from: plant.iso(from), to: plant.iso(to), bucket_ms: bucket, series,
    score: { time_ms: times, max: times.map((t) => Math.max(...samples(t, (at) => plant.scoreAt(machine, at, STARTED)))) },
    health: { time_ms: times, min: times.map((t) => Math.min(...samples(t, (at) => plant.healthAt(machine, at, STARTED)))) },
  };
}

function anomalies(query, now) {
  const from = Date.parse(query.get("from") ?? "") || now - 86_400_000;
  const to = Date.parse(query.get("to") ?? "") || now;
  const machine = query.get("machine");
  return plant.machines.filter((m) => !machine || m.id === machine).flatMap((m) => plant.anomaliesOf(m, from, to, now, STARTED))
    .filter((a) => query.get("open") !== "true" || a.closed_at === null)
    .sort((a, b) => b.opened_at.localeCompare(a.opened_at));
}

// Alarms follow the anomalies.

function raise(anomaly, now) {
  const machine = plant.machines.find((m) => m.id === anomaly.machine_id);
  const lead = anomaly.shares.slice(0, 3);
  return {
    id: anomaly.id.replace("-a000-", "-c000-"), machine_id: machine.id, machine_name: anomaly.machine_name, gateway_id: machineOf(machine, now).gateway_id,
    gateway_name: machine.gateway, condition: "anomaly", state: "unacknowledged", condition_state: "unacknowledged", held: null, incident_id: null, annunciated_at: anomaly.opened_at, repeats: 1, chattering: false, severity: machine.n === 2 ? "high" : "medium",
    message: `Unlike its healthy self, mostly ${lead[0].sensor} and ${lead[1].sensor}`, raised_at: anomaly.opened_at, arrived_at: anomaly.opened_at, late: false,
    returned_at: null, acknowledged_at: null, acknowledged_by: null, comment: null, anomaly_id: anomaly.id, lead_sensors: lead,
  };
}

function followAnomalies(now) {
  const changed = [];
  for (const anomaly of anomalies(new URLSearchParams({ from: plant.iso(now - 4 * 3_600_000) }), now)) {
    const alarm = alarms.get(anomaly.id) ?? raise(anomaly, now);
    const isNew = !alarms.has(anomaly.id);
    const back = anomaly.closed_at !== null && alarm.returned_at === null;
    if (back) {
      alarm.returned_at = anomaly.closed_at;
      alarm.state = isNew || alarm.state === "acknowledged" ? "normal" : "returned_unacknowledged";
    }
    alarms.set(anomaly.id, alarm);
    if (isNew || back) changed.push({ type: "anomaly", anomaly }, { type: "alarm", alarm });
  }
  return changed;
}

function addHistory() {
  const at = (min) => plant.iso(STARTED - min * 60_000);
  const base = { condition_state: "unacknowledged", held: null, incident_id: null, annunciated_at: null, repeats: 1, chattering: false, returned_at: null, acknowledged_at: null, acknowledged_by: null, comment: null, anomaly_id: null, lead_sensors: [], late: false, machine_id: null, machine_name: null };
  const [, hallB, utilities] = plant.gateways;
  const press = plant.machines.find((m) => m.name === "line2-press");
  for (const alarm of [
    { ...base, id: plant.id("c", 900), gateway_id: utilities.id, gateway_name: utilities.name, condition: "gateway_offline", state: "acknowledged", severity: "high", message: "The gateway has not been heard for 2 min", raised_at: at(45), arrived_at: at(45), acknowledged_at: at(40), acknowledged_by: "anna", comment: "Switch in the roof cabinet is being replaced" },
    { ...base, id: plant.id("c", 901), machine_id: press.id, machine_name: press.display_name, gateway_id: hallB.id, gateway_name: hallB.name, condition: "sensor_fault:pressure", state: "returned_unacknowledged", severity: "low", message: "The sensor pressure is frozen at 4.18 bar", raised_at: at(190), arrived_at: at(131), returned_at: at(128), late: true },
  ]) alarms.set(alarm.id, alarm);
}

// Incidents gather the alarms of a machine; holds keep an alarm back.

const said = new Map();
const incidentId = (alarm) => plant.id("d", Number.parseInt((alarm.machine_id ?? alarm.gateway_id).slice(-4), 16));

function incidentsNow() {
  const grouped = new Map();
  for (const alarm of alarms.values()) if (!alarm.late) grouped.set(incidentId(alarm), [...(grouped.get(incidentId(alarm)) ?? []), alarm]);
  return [...grouped].map(([id, items]) => {
    const rank = (a) => ["low", "medium", "high", "critical"].indexOf(a.severity);
    const sorted = items.toSorted((a, b) => b.raised_at.localeCompare(a.raised_at));
    const first = sorted.at(-1);
    for (const alarm of items) alarm.incident_id = id;
    const notes = said.get(id) ?? { thread: [], assigned: null, closed: null };
    said.set(id, notes);
    const opened = sorted.filter((a) => a.condition_state !== "normal" && a.state !== "normal");
    return {
      id, site_id: plant.id("e", 1), gateway_id: first.gateway_id, gateway_name: first.gateway_name, machine_id: first.machine_id, machine_name: first.machine_name,
      severity: items.toSorted((a, b) => rank(b) - rank(a))[0].severity, message: first.message, opened_at: first.raised_at, last_alarm_at: sorted[0].raised_at,
      closed_at: notes.closed?.at ?? null, closed_by: notes.closed?.by ?? null, assigned_to_id: notes.assigned?.id ?? null, assigned_to: notes.assigned?.name ?? null, assigned_at: null,
      paged: true, escalated: 0, alarms: items.length, alarms_open: opened.length, alarms_unacknowledged: opened.filter((a) => a.state.endsWith("unacknowledged")).length,
      machines: first.machine_id ? 1 : 0, comments: notes.thread.length,
      detail: { items: sorted, thread: notes.thread, notices: [{ id: plant.id("f", 1), reason: "opened", severity: first.severity, role: "operator", user: null, created_at: first.raised_at }] },
    };
  });
}

function incidentOf(id) {
  const { detail, ...incident } = incidentsNow().find((i) => i.id === id) ?? fail404();
  return { ...incident, ...detail };
}

function changeIncident(id, user, what, body, now) {
  need(user, ["operator", "supervisor", "admin"]);
  const notes = incidentOf(id) && said.get(id);
  if (what === "assign") notes.assigned = body.user === null ? null : user;
  if (what === "comments") notes.thread.push({ id: randomUUID(), author: user.name, written_at: plant.iso(now), text: body.text });
  if (what === "close") notes.closed = { at: plant.iso(now), by: user.name };
  if (what === "acknowledge") for (const alarm of incidentOf(id).items) if (alarm.state === "unacknowledged") Object.assign(alarm, { state: "acknowledged", acknowledged_at: plant.iso(now), acknowledged_by: user.name });
  const { items: _i, thread: _t, notices: _n, ...incident } = incidentOf(id);
  broadcast([{ type: "incident", incident }]);
  return incidentOf(id);
}

function holdAlarm(id, user, kind, reason, until, now) {
  need(user, kind === "shelved" ? ["operator", "supervisor", "admin"] : ["supervisor", "admin"]);
  const alarm = [...alarms.values()].find((a) => a.id === id) ?? fail404();
  if (alarm.state === "normal") throw new Refusal(409, "over", "The alarm is over");
  alarm.condition_state = alarm.state;
  Object.assign(alarm, { state: kind, held: { id: randomUUID(), kind, reason, by: user.name, since: plant.iso(now), until } });
  broadcast([{ type: "alarm", alarm }]);
  return alarm;
}

function releaseAlarm(hold) {
  const alarm = [...alarms.values()].find((a) => a.held?.id === hold) ?? fail404();
  Object.assign(alarm, { state: "unacknowledged", held: null });
  broadcast([{ type: "alarm", alarm }]);
  return { id: hold };
}

// HTTP.

const page = (items) => ({ items, next_cursor: null });
const find = (id) => plant.machines.find((m) => m.id === id) ?? fail404();
function fail404() { throw new Refusal(404, "not_found", "There is no such thing"); }
function need(user, roles) { if (!roles.includes(user.role)) throw new Refusal(403, "forbidden", "Your role may not do this"); }

function answer(method, path, query, body, user) {
  const now = Date.now();
  const at = path.split("/").filter(Boolean);
  const route = `${method} ${at.map((part, i) => (i === 1 || (i === 3 && at[2] === "sensors") ? "*" : part)).join("/")}`;
  switch (route) {
    case "POST login": {
      const found = users.get(body.name);
      if (!found || found.password !== body.password) throw new Refusal(401, "bad_credentials", "Name or password is wrong");
      return login(found);
    }
    // Nobody is remembered over a reload.
    case "POST refresh": throw new Refusal(401, "session_over", "Sign in again");
  }
  if (!user) throw new Refusal(401, "unauthorized", "Sign in first");
  if (route === "POST password") {
    if (user.password !== body.old) throw new Refusal(422, "invalid_fields", "A field is not as it should be", [{ field: "old", message: "is not your password" }]);
    Object.assign(user, { password: body.new, change: false });
    return null;
  }
  if (user.change) throw new Refusal(403, "password_change_required", "Change your one-time password first");
  switch (route) {
    case "POST logout": return null;
    case "GET me": return { id: user.id, name: user.name, role: user.role };
    case "GET gateways": return page(plant.gateways.map((g) => ({ ...g, last_seen_at: plant.iso(g.state === "online" ? now : STARTED - 47 * 60_000) })));
    case "GET machines": return page(plant.machines.filter((m) => query.get("include_ignored") === "true" || !m.ignored).map((m) => machineOf(m, now)));
    case "GET machines/*": return detailOf(find(at[1]), now);
    case "GET machines/*/series": return seriesOf(find(at[1]), query, now);
    case "GET incidents": return page(incidentsNow().map(({ detail: _, ...incident }) => incident).filter((i) => query.get("open") !== "true" || i.closed_at === null));
    case "GET incidents/*": return incidentOf(at[1]);
    case "POST incidents/*/assign": case "POST incidents/*/comments": case "POST incidents/*/acknowledge": case "POST incidents/*/close":
      return changeIncident(at[1], user, at[2], body, now);
    case "POST alarms/*/shelve": return holdAlarm(at[1], user, "shelved", body.reason, plant.iso(now + body.for_s * 1_000), now);
    case "POST alarms/*/out-of-service": return holdAlarm(at[1], user, "out_of_service", body.reason, body.until ?? null, now);
    case "POST alarm-holds/*/end": return releaseAlarm(at[1]);
    case "GET alarm-holds": return page([]);
    case "GET anomalies": return page(anomalies(query, now));
    case "GET anomalies/*": {
      const found = anomalies(new URLSearchParams({ from: plant.iso(now - 7 * 86_400_000) }), now).find((a) => a.id === at[1]) ?? fail404();
      return { ...found, window: plant.windowAround(found, STARTED) };
    }
    case "GET alarms": {
      const state = query.get("state") ?? "open";
      const held = (a) => a.held !== null;
      const fits = (a) => state === "all" || (state === "open" ? a.state !== "normal" && !held(a) : state === "held" ? held(a) : a.state === state);
      return page([...alarms.values()].filter(fits).sort((a, b) => b.raised_at.localeCompare(a.raised_at)).slice(0, 200));
    }
    case "PATCH machines/*": {
      need(user, ["supervisor", "admin"]);
      Object.assign(find(at[1]), body);
      return detailOf(find(at[1]), now);
    }
    case "PATCH machines/*/sensors/*": {
      need(user, ["supervisor", "admin"]);
      Object.assign(find(at[1]).sensors.find((s) => s.name === decodeURIComponent(at[3])) ?? fail404(), body);
      return detailOf(find(at[1]), now);
    }
    case "POST machines/*/merge": {
      need(user, ["supervisor", "admin"]);
      find(at[1]).merged_into = body.into;
      return detailOf(find(at[1]), now);
    }
    case "POST alarms/*/acknowledge": {
      need(user, ["operator", "supervisor", "admin"]);
      const alarm = [...alarms.values()].find((a) => a.id === at[1]) ?? fail404();
      if (alarm.state === "normal") throw new Refusal(409, "not_acknowledgeable", "The alarm is over");
      if (alarm.acknowledged_at === null) {
        Object.assign(alarm, { acknowledged_at: plant.iso(now), acknowledged_by: user.name, comment: body.comment ?? null, state: alarm.state === "returned_unacknowledged" ? "normal" : "acknowledged" });
        broadcast([{ type: "alarm", alarm }]);
      }
      return alarm;
    }
  }
  return fail404();
}

async function readBody(request) {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text ? JSON.parse(text) : {};
}

async function sendFile(path, response) {
  const name = normalize(path).replace(/^(\.\.[/\\])+/, "");
  const file = join(DIST, extname(name) ? name : "index.html");
  try {
    const data = await readFile(file);
    response.writeHead(200, { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer" });
    response.end(data);
  } catch {
    response.writeHead(404).end("not found; npm run build makes dist/\n");
  }
}

const server = createServer(async (request, response) => {
  const url = new URL(request.url ?? "/", "http://localhost");
  if (!url.pathname.startsWith("/api/v1/")) return sendFile(url.pathname, response);
  const token = request.headers.authorization?.replace("Bearer ", "");
  try {
    const body = await readBody(request);
    const result = answer(request.method, url.pathname.slice(8), url.searchParams, body, bearer(token));
    response.writeHead(result === null ? 204 : 200, { "Content-Type": "application/json" });
    response.end(result === null ? undefined : JSON.stringify(result));
  } catch (error) {
    const refusal = error instanceof Refusal ? error : new Refusal(500, "internal", String(error));
    response.writeHead(refusal.status, { "Content-Type": "application/problem+json" }).end(JSON.stringify(refusal.body));
  }
});

// The live feed.

const sockets = new WebSocketServer({ server, path: "/api/v1/live" });
const greeted = new Set();

function broadcast(messages) {
  for (const socket of greeted) for (const message of messages) socket.send(JSON.stringify(message));
}

sockets.on("connection", (socket) => {
  const late = setTimeout(() => socket.close(), 5_000);
  socket.once("message", (data) => {
    clearTimeout(late);
    if (!bearer(JSON.parse(String(data)).token)) return socket.close(4401, "sign in first");
    greeted.add(socket);
    socket.send(JSON.stringify({ type: "hello" }));
  });
  socket.on("close", () => greeted.delete(socket));
});
process.on("SIGUSR1", () => {
  for (const socket of sockets.clients) socket.terminate();
});

addHistory();
followAnomalies(STARTED);
setInterval(() => {
  const now = Date.now();
  const live = plant.machines.filter((m) => !m.traits.offline && !m.traits.silent).map((m) => {
    const status = stateOf(m, now);
    return { type: "machine", machine: { ...status, values: m.sensors.map((s) => plant.valueAt(m, s, Date.parse(status.last_reading_at), STARTED)) } };
  });
  broadcast([...live, ...followAnomalies(now)]);
}, 1_000);

server.listen(PORT, "127.0.0.1", () => process.stdout.write(`http://127.0.0.1:${PORT}\n`));
