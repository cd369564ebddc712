/** The words, marks and order of states: one place, so that two screens never call one thing by two names. */

import type { Alarm, AlarmState, Criticality, GatewayState, HoldKind, Incident, NoticeReason, Role, Machine, MachineState, MachineStatus, Mode, Remaining, Severity } from "./contract";
import { duration } from "./time";

/** `calm` is grey: colour is for what is abnormal. */
export type Tone = "calm" | "muted" | "low" | "medium" | "high" | "critical";
export type Icon =
  | "ok" | "anomalous" | "calibrating" | "blind" | "silent" | "unlinked"
  | "low" | "medium" | "high" | "critical" | "bell" | "late" | "check" | "returned" | "search" | "back" | "shelf" | "wrench";

export const SEVERITIES: readonly Severity[] = ["critical", "high", "medium", "low"];

export const SEVERITY_WORD: Record<Severity, string> = {
  critical: "Critical",
  high: "High",
  medium: "Medium",
  low: "Low",
};

/** The states of ISA-18.2, in its words. */
export const ALARM_STATE_WORD: Record<AlarmState, string> = {
  unacknowledged: "Unacknowledged",
  acknowledged: "Acknowledged",
  returned_unacknowledged: "Returned, unacknowledged",
  shelved: "Shelved",
  suppressed: "Under maintenance",
  out_of_service: "Out of service",
  normal: "Normal",
};

export const CRITICALITY_WORD: Record<Criticality, string> = { low: "Low", medium: "Medium", high: "High" };

/** What ends a hold. */
export const RELEASE_WORD: Record<HoldKind, string> = { shelved: "Unshelve", suppressed: "End maintenance", out_of_service: "Put back in service" };

/** "Operators were told", "Anna was told: nobody had taken it". */
export function noticeWord(notice: { reason: NoticeReason; role: Role | null; user: string | null }): string {
  const who = notice.user === null ? `${notice.role ?? "user"}s were told` : `${notice.user} was told`;
  const why: Record<NoticeReason, string> = { opened: "it began", severity_rose: "it got graver", escalated: "nobody had taken it", assigned: "it was given to them" };
  return `${who.charAt(0).toUpperCase()}${who.slice(1)}: ${why[notice.reason]}`;
}

/** Shown as not over: not held back, and not history. */
export function isOpen(state: AlarmState): boolean {
  return state === "unacknowledged" || state === "acknowledged" || state === "returned_unacknowledged";
}

export function isHeld(state: AlarmState): boolean {
  return state === "shelved" || state === "suppressed" || state === "out_of_service";
}

export const GATEWAY_STATE_WORD: Record<GatewayState, string> = {
  pending: "Waiting for enrolment",
  online: "Online",
  offline: "Offline",
  revoked: "Revoked",
};

export const MODE_WORD: Record<Mode, string> = { unknown: "Unknown", off: "Off", idle: "Idle", running: "Running" };

export const STATES: readonly MachineState[] = ["anomalous", "silent", "blind", "uncalibrated", "gateway_offline", "calibrating", "ok"];

export const STATE_WORD: Record<MachineState, string> = {
  ok: "OK",
  anomalous: "Anomalous",
  calibrating: "Calibrating",
  blind: "Blind",
  uncalibrated: "Not calibrated",
  silent: "Silent",
  gateway_offline: "Gateway offline",
};

export const STATE_MEANING: Record<MachineState, string> = {
  ok: "Readings arrive and look normal.",
  anomalous: "The readings do not look like this machine when it is healthy.",
  calibrating: "Learning what is normal for this machine; nothing is judged yet.",
  blind: "Readings arrive, but too few good sensors to judge the machine.",
  uncalibrated: "What the machine showed is of no use to learn from; nothing is judged yet.",
  silent: "The gateway is online, but this machine sends no readings.",
  gateway_offline: "The gateway cannot be reached. The machine may be running: nobody here can tell.",
};

export const STATE_ICON: Record<MachineState, Icon> = {
  ok: "ok",
  anomalous: "anomalous",
  calibrating: "calibrating",
  blind: "blind",
  uncalibrated: "blind",
  silent: "silent",
  gateway_offline: "unlinked",
};

/** The word of a state with the number that belongs to it. */
export function stateWord(machine: MachineStatus, now: number): string {
  switch (machine.state) {
    case "calibrating":
      return machine.calibration_percent === null ? "Calibrating" : `Calibrating ${machine.calibration_percent} %`;
    case "silent":
      return machine.last_reading_at === null
        ? "Never heard"
        : `Silent ${duration(now - Date.parse(machine.last_reading_at))}`;
    default:
      return STATE_WORD[machine.state];
  }
}

export function stateTone(state: MachineState, severity: Severity | null): Tone {
  switch (state) {
    case "anomalous":
      return severity ?? "high";
    case "silent":
    case "blind":
    case "uncalibrated":
      return "medium";
    case "gateway_offline":
    case "calibrating":
      return "muted";
    case "ok":
      return "calm";
  }
}

/** Colour only when the number is bad: a grey bar says "nothing to do". */
export function healthTone(percent: number | null): Tone {
  if (percent === null) return "muted";
  if (percent < 40) return "critical";
  if (percent < 60) return "high";
  if (percent < 80) return "medium";
  return "calm";
}

/** "about 12 days (8 to 20)", of seconds until the health is gone. */
export function remainingWord(remaining: Remaining | null): string | null {
  if (remaining === null) return null;
  const { likely_s, low_s, high_s } = remaining;
  const [unit, word] = likely_s >= 2 * 86_400 ? [86_400, "days"] : likely_s >= 2 * 3_600 ? [3_600, "hours"] : [60, "minutes"];
  const number = (seconds: number) => String(Math.round(seconds / unit));
  return `about ${number(likely_s)} ${word} (${number(low_s)} to ${number(high_s)})`;
}

export function machineTitle(machine: { name: string; display_name: string | null }): string {
  return machine.display_name ?? machine.name;
}

/** "Anomaly", "Sensor fault: pressure", "Gateway offline". */
export function conditionWord(condition: string): string {
  const [kind = "", sensor] = condition.split(":", 2);
  // A rule's name stands in its message.
  if (kind === "rule") return "Rule";
  const words = kind.replaceAll("_", " ");
  const first = words.charAt(0).toUpperCase() + words.slice(1);
  return sensor ? `${first}: ${sensor}` : first;
}

/** What an alarm is about. */
export function alarmSource(alarm: Alarm): string {
  return alarm.machine_name ?? `Gateway ${alarm.gateway_name}`;
}

export function incidentSource(incident: Incident): string {
  const first = incident.machine_name ?? `Gateway ${incident.gateway_name}`;
  return incident.machines > 1 ? `${first} and ${incident.machines - 1} more` : first;
}

export function needsAcknowledgement(state: AlarmState): boolean {
  return state === "unacknowledged" || state === "returned_unacknowledged";
}

/** The alarm that says most about a machine: of its open ones the most severe, unacknowledged ones first. */
export function worstAlarm(alarms: readonly Alarm[]): Alarm | null {
  let worst: Alarm | null = null;
  for (const alarm of alarms) {
    if (!isOpen(alarm.state)) continue;
    if (worst === null || alarmRank(alarm) < alarmRank(worst)) worst = alarm;
  }
  return worst;
}

function alarmRank(alarm: Alarm): number {
  return SEVERITIES.indexOf(alarm.severity) * 2 + (needsAcknowledgement(alarm.state) ? 0 : 1);
}

export function machineMatches(machine: Machine, query: string): boolean {
  const text = `${machine.name} ${machine.display_name ?? ""} ${machine.gateway_name}`.toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}
