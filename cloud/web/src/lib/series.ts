/**
 * From the server's buckets to what a chart draws: gaps stay gaps, and what has arrived live since the last answer
 * is the tail of every line.
 */

import type { RawWindow, Series, SensorSeries } from "./contract";

/** The most live points kept for a machine. */
export const TAIL_POINTS_MAX = 600;
/** A line is cut where the next point is this many steps away. */
const GAP_STEPS = 3.5;

/** Parallel columns; `x` in seconds, rising. */
export interface Columns {
  x: number[];
  min: (number | null)[];
  max: (number | null)[];
  mean: (number | null)[];
}

/** One live state of a machine. */
export interface TailPoint {
  time_ms: number;
  values: (number | null)[];
  score: number | null;
  health_percent: number | null;
}

/** Adds a point at the end; what is not newer than the last is dropped. */
export function appendTail(tail: TailPoint[], point: TailPoint): TailPoint[] {
  const last = tail.at(-1);
  if (last && point.time_ms <= last.time_ms) return tail;
  return [...tail.slice(-(TAIL_POINTS_MAX - 1)), point];
}

/** A sensor's line: the server's buckets, then the tail. */
export function sensorColumns(series: SensorSeries | undefined, position: number, tail: TailPoint[], frame: Frame): Columns {
  const { time_ms = [], min = [], max = [], mean = [] } = series ?? {};
  return columns(time_ms, min, max, mean, frame, tail, (point) => point.values[position] ?? null);
}

export function scoreColumns(series: Series | null, tail: TailPoint[], frame: Frame): Columns {
  const { time_ms = [], max = [] } = series?.score ?? {};
  return columns(time_ms, [], [], max, frame, tail, (point) => point.score);
}

export function healthColumns(series: Series | null, tail: TailPoint[], frame: Frame): Columns {
  const { time_ms = [], min = [] } = series?.health ?? {};
  return columns(time_ms, [], [], min, frame, tail, (point) => point.health_percent);
}

type Column = readonly (number | null)[];

function columns(times: number[], min: Column, max: Column, line: Column, frame: Frame, tail: TailPoint[], pick: Pick): Columns {
  const made: Columns = { x: [], min: [], max: [], mean: [] };
  // Empty buckets in between are holes; those at the end are what has not been summed up yet.
  let end = times.length;
  while (end > 0 && (line[end - 1] ?? null) === null) end -= 1;
  for (let i = 0; i < end; i++) push(made, frame, times[i] ?? 0, min[i] ?? null, max[i] ?? null, line[i] ?? null);
  addTail(made, tail, frame, pick);
  return made;
}

type Pick = (point: TailPoint) => number | null;

export interface Frame {
  from_ms: number;
  to_ms: number;
  /** How far apart two neighbouring points are when nothing is missing. */
  step_ms: number;
}

function push(columns: Columns, frame: Frame, time_ms: number, min: number | null, max: number | null, mean: number | null) {
  const x = time_ms / 1000;
  const last = columns.x.at(-1);
  if (last !== undefined && x - last > (frame.step_ms / 1000) * GAP_STEPS) {
    columns.x.push((x + last) / 2);
    columns.min.push(null);
    columns.max.push(null);
    columns.mean.push(null);
  }
  columns.x.push(x);
  columns.min.push(min);
  columns.max.push(max);
  columns.mean.push(mean);
}

/** The tail in steps like the server's, so that the line does not change its look where it becomes live. */
function addTail(columns: Columns, tail: TailPoint[], frame: Frame, pick: Pick) {
  const end = columns.x.at(-1);
  // The last bucket covers up to a step after its start.
  const after = end === undefined ? frame.from_ms : end * 1000 + frame.step_ms;
  let step: { number: number; values: number[]; time_ms: number } | null = null;
  const finish = () => {
    if (step === null) return;
    const mean = step.values.reduce((sum, v) => sum + v, 0) / step.values.length;
    push(columns, frame, step.time_ms, Math.min(...step.values), Math.max(...step.values), mean);
  };
  for (const point of tail) {
    if (point.time_ms < after || point.time_ms > frame.to_ms) continue;
    const v = pick(point);
    if (v === null) continue;
    const number = Math.floor((point.time_ms - after) / frame.step_ms);
    if (step !== null && step.number === number) {
      step.values.push(v);
      step.time_ms = point.time_ms;
      continue;
    }
    finish();
    step = { number, values: [v], time_ms: point.time_ms };
  }
  finish();
}

/** A sensor's raw values around an anomaly. */
export function windowColumns(window: RawWindow, sensor: string): Columns {
  const column = window.sensors.indexOf(sensor);
  const first = Date.parse(window.first);
  const mean = window.values.map((row) => row[column] ?? null);
  const none = mean.map(() => null);
  return { x: mean.map((_, step) => (first + step * window.step_ms) / 1000), min: none, max: none, mean };
}

/** The last value of a column. */
export function lastKnown(column: readonly (number | null)[]): number | null {
  for (let i = column.length - 1; i >= 0; i--) {
    const v = column[i];
    if (v !== null && v !== undefined) return v;
  }
  return null;
}
