/** What the cloud's `/api/v1` says: times are RFC 3339 in UTC, ids are UUIDv7 text. */

export type Role = "admin" | "supervisor" | "operator" | "viewer";

export interface User {
  id: string;
  name: string;
  /** The greatest role anywhere; null for who is granted nothing. */
  role: Role | null;
}

export interface Login {
  token: string;
  expires_at: string;
  user: User;
  must_change_password: boolean;
}

export interface Page<T> {
  items: T[];
  next_cursor: string | null;
}

export interface Drop {
  reason: string;
  count: number;
}

export type GatewayState = "pending" | "online" | "offline" | "revoked";

export interface Gateway {
  id: string;
  name: string;
  state: GatewayState;
  last_seen_at: string | null;
  version: string | null;
  backlog_records: number | null;
  backlog_bytes: number | null;
  clock_trusted: boolean | null;
  drops: Drop[];
  machines: number;
}

export type Severity = "low" | "medium" | "high" | "critical";
export type ConditionState = "unacknowledged" | "acknowledged" | "returned_unacknowledged" | "normal";
export type HoldKind = "shelved" | "suppressed" | "out_of_service";
export type AlarmState = ConditionState | HoldKind;
export type Criticality = "low" | "medium" | "high";
export type MachineState = "ok" | "anomalous" | "calibrating" | "uncalibrated" | "blind" | "silent" | "gateway_offline";
export type Detector = "calibrating" | "watching" | "anomalous" | "blind" | "uncalibrated";
export type Mode = "unknown" | "off" | "idle" | "running";
export type Connection = "live" | "silent" | "gateway_offline";

/** Seconds until the machine's health is gone; four times out of five between `low_s` and `high_s`. */
export interface Remaining {
  likely_s: number;
  low_s: number;
  high_s: number;
}

/** What a live message repeats of a machine. */
export interface MachineStatus {
  id: string;
  health_percent: number | null;
  score: number | null;
  detector: Detector;
  calibration_percent: number | null;
  detector_note: string | null;
  remaining: Remaining | null;
  mode: Mode;
  last_reading_at: string | null;
  connection: Connection;
  state: MachineState;
}

export interface Machine extends MachineStatus {
  gateway_id: string;
  gateway_name: string;
  name: string;
  display_name: string | null;
  sensors_count: number;
  ignored: boolean;
  merged_into: string | null;
  criticality: Criticality;
  alarm: { id: string; severity: Severity; state: AlarmState } | null;
  model: string;
}

export interface Sensor {
  name: string;
  display_name: string | null;
  unit: string | null;
  position: number;
  ignored: boolean;
  last_value: number | null;
}

export interface MachineDetail extends Machine {
  step_ms: number;
  interval_ms: number;
  sensors: Sensor[];
  merged: { id: string; name: string }[];
}

export interface LiveMachine extends MachineStatus {
  /** By the sensors' positions. */
  values: (number | null)[];
}

export interface SensorSeries {
  sensor: string;
  unit: string | null;
  time_ms: number[];
  min: (number | null)[];
  max: (number | null)[];
  mean: (number | null)[];
}

export interface Series {
  from: string;
  to: string;
  bucket_ms: number;
  series: SensorSeries[];
  score: { time_ms: number[]; max: (number | null)[] };
  health: { time_ms: number[]; min: (number | null)[] };
}

export interface Share {
  sensor: string;
  share: number;
}

export interface Anomaly {
  id: string;
  machine_id: string;
  machine_name: string;
  opened_at: string;
  closed_at: string | null;
  score: number;
  score_max: number;
  threshold: number;
  model: string;
  shares: Share[];
}

export interface RawWindow {
  step_ms: number;
  first: string;
  sensors: string[];
  /** A row for each step. */
  values: (number | null)[][];
}

export interface AnomalyDetail extends Anomaly {
  window: RawWindow | null;
}

export interface Alarm {
  id: string;
  machine_id: string | null;
  machine_name: string | null;
  gateway_id: string;
  gateway_name: string;
  condition: string;
  state: AlarmState;
  /** Whether the condition is there, whatever holds the alarm back. */
  condition_state: ConditionState;
  held: Held | null;
  severity: Severity;
  message: string;
  raised_at: string;
  arrived_at: string;
  late: boolean;
  returned_at: string | null;
  acknowledged_at: string | null;
  acknowledged_by: string | null;
  comment: string | null;
  anomaly_id: string | null;
  incident_id: string | null;
  annunciated_at: string | null;
  repeats: number;
  chattering: boolean;
  lead_sensors: Share[];
}

export interface Held {
  id: string;
  kind: HoldKind;
  reason: string;
  by: string;
  since: string;
  until: string | null;
}

export interface AlarmHold {
  id: string;
  subject_id: string;
  machine_name: string | null;
  condition: string | null;
  kind: HoldKind;
  reason: string;
  created_at: string;
  created_by: string;
  since: string;
  until: string | null;
  ended_at: string | null;
  ended_by: string | null;
}

export interface Incident {
  id: string;
  site_id: string;
  gateway_id: string;
  gateway_name: string;
  machine_id: string | null;
  machine_name: string | null;
  severity: Severity;
  message: string;
  opened_at: string;
  last_alarm_at: string;
  closed_at: string | null;
  closed_by: string | null;
  assigned_to_id: string | null;
  assigned_to: string | null;
  assigned_at: string | null;
  paged: boolean;
  escalated: number;
  alarms: number;
  alarms_open: number;
  alarms_unacknowledged: number;
  machines: number;
  comments: number;
}

export interface IncidentDetail extends Incident {
  items: Alarm[];
  thread: { id: string; author: string; written_at: string; text: string }[];
  notices: { id: string; reason: NoticeReason; severity: Severity; role: Role | null; user: string | null; created_at: string }[];
}

export type NoticeReason = "opened" | "severity_rose" | "escalated" | "assigned";

export type LiveMessage =
  | { type: "hello" }
  | { type: "machine"; machine: LiveMachine }
  | { type: "alarm"; alarm: Alarm }
  | { type: "incident"; incident: Incident }
  | { type: "anomaly"; anomaly: Anomaly }
  | { type: "gateway"; gateway: Gateway }
  | { type: "resync" };

/** `application/problem+json`. */
export interface ProblemBody {
  title?: string;
  status?: number;
  detail?: string;
  code?: string;
  errors?: { field: string; message: string }[];
}

/** May rename, ignore and merge. */
export function mayConfigure(role: Role | null): boolean {
  return role === "supervisor" || role === "admin";
}

/** May acknowledge an alarm. */
export function mayOperate(role: Role | null): boolean {
  return role !== null && role !== "viewer";
}
