/** The order of lists. Every comparison ends with something unique, so that rows never change places without a cause. */

import type { Alarm, Incident, Machine } from "./contract";
import { SEVERITIES, STATES, machineTitle } from "./words";

export type MachineColumn = "state" | "name" | "health" | "score" | "reading" | "gateway";

const names = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/** Falling for numbers that are bad when high; the first click on a column shows the worst on top. */
export function compareMachines(column: MachineColumn, reversed: boolean): (a: Machine, b: Machine) => number {
  const by = COLUMNS[column];
  return (a, b) => {
    const ignored = Number(a.ignored) - Number(b.ignored);
    if (ignored !== 0) return ignored;
    return (reversed ? -by(a, b) : by(a, b)) || byName(a, b) || (a.id < b.id ? -1 : 1);
  };
}

const byName = (a: Machine, b: Machine) => names.compare(machineTitle(a), machineTitle(b));

const COLUMNS: Record<MachineColumn, (a: Machine, b: Machine) => number> = {
  // The finer order within a state is by whole tens of health: a tenth of a percent moves no row.
  state: (a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state) || tens(a.health_percent) - tens(b.health_percent),
  name: byName,
  health: (a, b) => (a.health_percent ?? 101) - (b.health_percent ?? 101),
  score: (a, b) => (b.score ?? -1) - (a.score ?? -1),
  reading: (a, b) => readingTime(a) - readingTime(b),
  gateway: (a, b) => names.compare(a.gateway_name, b.gateway_name),
};

const tens = (percent: number | null) => (percent === null ? 11 : Math.floor(percent / 10));
const readingTime = (machine: Machine) => (machine.last_reading_at === null ? 0 : Date.parse(machine.last_reading_at));

/** Open ones first; then by severity; then the newest. */
export function sortIncidents(incidents: readonly Incident[]): Incident[] {
  return [...incidents].sort(
    (a, b) =>
      Number(a.closed_at !== null) - Number(b.closed_at !== null) ||
      (a.closed_at === null ? SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity) : 0) ||
      Date.parse(b.opened_at) - Date.parse(a.opened_at) ||
      (a.id < b.id ? 1 : -1),
  );
}

/** Those that came while the page was open and wait for an answer first; then by severity; then the newest. */
export function sortAlarms(alarms: readonly Alarm[], fresh: ReadonlySet<string>): Alarm[] {
  const first = (alarm: Alarm) => (fresh.has(alarm.id) && alarm.state === "unacknowledged" ? 0 : 1);
  return [...alarms].sort(
    (a, b) =>
      first(a) - first(b) ||
      Number(a.state === "normal") - Number(b.state === "normal") ||
      SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity) ||
      Date.parse(b.raised_at) - Date.parse(a.raised_at) ||
      (a.id < b.id ? 1 : -1),
  );
}
