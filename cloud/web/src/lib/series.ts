/**
 * From the server's buckets to what a chart draws: gaps stay gaps, and what has arrived live since the last answer
 * is the tail of every line.
 */

import type { Series, SensorSeries } from "./contract";

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
  const columns: Columns = { x: [], min: [], max: [], mean: [] };
  if (series) {
    series.time_ms.forEach((time, i) => {
      push(columns, frame, time, series.min[i] ?? null, series.max[i] ?? null, series.mean[i] ?? null);
    });
  }
  addTail(columns, tail, frame, (point) => point.values[position] ?? null);
  return columns;
}

export function scoreColumns(series: Series | null, tail: TailPoint[], frame: Frame): Columns {
  const columns: Columns = { x: [], min: [], max: [], mean: [] };
  series?.score.time_ms.forEach((time, i) => push(columns, frame, time, null, null, series.score.max[i] ?? null));
  addTail(columns, tail, frame, (point) => point.score);
  return columns;
}

export function healthColumns(series: Series | null, tail: TailPoint[], frame: Frame): Columns {
  const columns: Columns = { x: [], min: [], max: [], mean: [] };
  series?.health.time_ms.forEach((time, i) => push(columns, frame, time, null, null, series.health.min[i] ?? null));
  addTail(columns, tail, frame, (point) => point.health_percent);
  return columns;
}

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
function addTail(columns: Columns, tail: TailPoint[], frame: Frame, pick: (point: TailPoint) => number | null) {
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

/** The last value of a column. */
export function lastKnown(column: readonly (number | null)[]): number | null {
  for (let i = column.length - 1; i >= 0; i--) {
    const v = column[i];
    if (v !== null && v !== undefined) return v;
  }
  return null;
}
