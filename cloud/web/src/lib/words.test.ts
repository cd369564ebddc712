import { describe, expect, test } from "vitest";
import type { Alarm, Incident, Machine, MachineState, Severity } from "./contract";
import { compareMachines, sortAlarms, sortIncidents } from "./order";
import { conditionWord, healthTone, incidentSource, machineMatches, noticeWord, remainingWord, stateTone, stateWord, worstAlarm } from "./words";

const NOW = Date.parse("2026-03-01T12:00:00Z");

function machine(over: Partial<Machine>): Machine {
  return {
    id: over.name ?? "m", gateway_id: "g", gateway_name: "hall-a", name: "m", display_name: null, state: "ok", health_percent: 95, score: 0.3,
    detector: "watching", calibration_percent: null, detector_note: null, remaining: null, mode: "running", last_reading_at: "2026-03-01T11:59:59Z", connection: "live",
    sensors_count: 1, ignored: false, merged_into: null, criticality: "medium", alarm: null, model: "", ...over,
  };
}

function alarm(id: string, severity: Severity, over: Partial<Alarm> = {}): Alarm {
  return {
    id, machine_id: "m", machine_name: "m", gateway_id: "g", gateway_name: "hall-a", condition: "anomaly", state: "unacknowledged", condition_state: "unacknowledged", held: null, severity,
    message: "", raised_at: "2026-03-01T11:00:00Z", arrived_at: "2026-03-01T11:00:00Z", late: false, returned_at: null,
    acknowledged_at: null, acknowledged_by: null, comment: null, anomaly_id: null, incident_id: null, annunciated_at: null, repeats: 1, chattering: false, lead_sensors: [], ...over,
  };
}

test.each([
  [null, null],
  [{ likely_s: 12 * 86_400, low_s: 8 * 86_400, high_s: 20 * 86_400 }, "about 12 days (8 to 20)"],
  [{ likely_s: 30_000, low_s: 20_000, high_s: 90_000 }, "about 8 hours (6 to 25)"],
  [{ likely_s: 600, low_s: 0, high_s: 3_600 }, "about 10 minutes (0 to 60)"],
])("%o is what is left: %s", (remaining, word) => expect(remainingWord(remaining)).toBe(word));

describe("the word of a state", () => {
  test.each<[Partial<Machine>, string]>([
    [{ state: "ok" }, "OK"],
    [{ state: "anomalous" }, "Anomalous"],
    [{ state: "calibrating", calibration_percent: 62 }, "Calibrating 62 %"],
    [{ state: "calibrating" }, "Calibrating"],
    [{ state: "silent", last_reading_at: "2026-03-01T11:56:30Z" }, "Silent 3 min"],
    [{ state: "silent", last_reading_at: null }, "Never heard"],
    // Its last reading is old as well, but nobody knows whether the machine is silent.
    [{ state: "gateway_offline", last_reading_at: "2026-03-01T11:56:30Z" }, "Gateway offline"],
  ])("%o is %s", (over, word) => expect(stateWord(machine(over), NOW)).toBe(word));

  test.each<[MachineState, Severity | null, string]>([
    ["ok", null, "calm"],
    ["anomalous", null, "high"],
    ["anomalous", "critical", "critical"],
    ["silent", null, "medium"],
    ["gateway_offline", null, "muted"],
  ])("%s with an alarm of severity %s has the tone %s", (state, severity, tone) => expect(stateTone(state, severity)).toBe(tone));

  test("health has colour only when it is bad", () => {
    expect([95, 80, 79, 59, 39, null].map(healthTone)).toEqual(["calm", "calm", "medium", "high", "critical", "muted"]);
  });

  test("conditions are said in words", () => {
    expect(["anomaly", "sensor_fault:pressure", "gateway_offline", "rule:0197-a"].map(conditionWord)).toEqual(["Anomaly", "Sensor fault: pressure", "Gateway offline", "Rule"]);
  });
});

describe("the order of machines", () => {
  const names = (machines: Machine[]) => machines.map((m) => m.name).join(" ");
  const list = [
    machine({ name: "pump-10" }),
    machine({ name: "pump-2" }),
    machine({ name: "calibrating", state: "calibrating", health_percent: null }),
    machine({ name: "offline", state: "gateway_offline" }),
    machine({ name: "silent", state: "silent" }),
    machine({ name: "worse", state: "anomalous", health_percent: 20, score: 4 }),
    machine({ name: "bad", state: "anomalous", health_percent: 55, score: 2 }),
    machine({ name: "unwatched", state: "anomalous", health_percent: 1, ignored: true }),
  ];

  test("is the worst first, names in the order of their numbers, ignored ones last", () => {
    expect(names(list.toSorted(compareMachines("state", false)))).toBe("worse bad silent offline calibrating pump-2 pump-10 unwatched");
  });

  test("can be by score and turned round", () => {
    expect(names(list.toSorted(compareMachines("score", false)))).toMatch(/^worse bad/);
    expect(names(list.toSorted(compareMachines("score", true)))).toMatch(/bad worse unwatched$/);
  });

  test("does not change with a tenth of a percent", () => {
    const a = [machine({ name: "a", health_percent: 95.2 }), machine({ name: "b", health_percent: 95.1 })];
    expect(names(a.toSorted(compareMachines("state", false)))).toBe("a b");
  });

  test("a search takes every word, in name, display name or gateway", () => {
    const m = machine({ name: "pump-3", display_name: "Feed pump" });
    expect(["feed", "PUMP hall", "pump-3", "feed hall-b", ""].map((q) => machineMatches(m, q))).toEqual([true, true, true, false, true]);
  });
});

describe("incidents", () => {
  const incident = (id: string, over: Partial<Incident> = {}): Incident => ({
    id, site_id: "s", gateway_id: "g", gateway_name: "hall-a", machine_id: "m", machine_name: "pump-1", severity: "low", message: "", opened_at: "2026-03-01T11:00:00Z",
    last_alarm_at: "2026-03-01T11:00:00Z", closed_at: null, closed_by: null, assigned_to_id: null, assigned_to: null, assigned_at: null, paged: true, escalated: 0,
    alarms: 1, alarms_open: 1, alarms_unacknowledged: 1, machines: 1, comments: 0, ...over,
  });

  test("stand open ones first, the gravest on top; closed ones by their time", () => {
    const list = [
      incident("closed", { severity: "critical", closed_at: "2026-03-01T11:30:00Z" }),
      incident("low"),
      incident("high", { severity: "high" }),
      incident("newer", { opened_at: "2026-03-01T11:59:00Z" }),
    ];
    expect(sortIncidents(list).map((i) => i.id).join(" ")).toBe("high newer low closed");
  });

  test("say where they are, and who was told why", () => {
    expect(incidentSource(incident("a"))).toBe("pump-1");
    expect(incidentSource(incident("a", { machines: 3 }))).toBe("pump-1 and 2 more");
    expect(incidentSource(incident("a", { machine_name: null, machine_id: null, machines: 0 }))).toBe("Gateway hall-a");
    expect(noticeWord({ reason: "escalated", role: "supervisor", user: null })).toBe("Supervisors were told: nobody had taken it");
    expect(noticeWord({ reason: "assigned", role: null, user: "anna" })).toBe("Anna was told: it was given to them");
  });
});

describe("the order of alarms", () => {
  const ids = (alarms: Alarm[]) => alarms.map((a) => a.id).join(" ");
  const list = [
    alarm("low", "low"),
    alarm("over", "critical", { state: "normal" }),
    alarm("old", "high", { raised_at: "2026-03-01T10:00:00Z" }),
    alarm("new", "high"),
    alarm("critical", "critical", { state: "acknowledged" }),
  ];

  test("is by severity, then the newest; what is over comes last", () => {
    expect(ids(sortAlarms(list, new Set()))).toBe("critical new old low over");
  });

  test("an alarm that has just come stands on top until it is answered", () => {
    expect(ids(sortAlarms(list, new Set(["low"])))).toBe("low critical new old over");
    const answered = list.map((a) => (a.id === "low" ? { ...a, state: "acknowledged" as const } : a));
    expect(ids(sortAlarms(answered, new Set(["low"])))).toBe("critical new old low over");
  });

  test("a machine shows its worst open alarm, unanswered before answered", () => {
    expect(worstAlarm(list)?.id).toBe("critical");
    expect(worstAlarm([alarm("a", "high", { state: "acknowledged" }), alarm("b", "high")])?.id).toBe("b");
    expect(worstAlarm([alarm("a", "high", { state: "normal" })])).toBeNull();
    expect(worstAlarm([alarm("a", "critical", { state: "shelved" }), alarm("b", "low")])?.id).toBe("b");
  });
});
