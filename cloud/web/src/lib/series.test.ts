import { expect, test } from "vitest";
import type { SensorSeries } from "./contract";
import { TAIL_POINTS_MAX, type TailPoint, appendTail, lastKnown, sensorColumns, windowColumns } from "./series";

const frame = { from_ms: 0, to_ms: 1_000_000, step_ms: 10_000 };
const point = (time_ms: number, v: number | null): TailPoint => ({ time_ms, values: [v], score: null, health_percent: null });
const series = (times: number[]): SensorSeries => ({
  sensor: "a", unit: null, time_ms: times, min: times.map(() => 1), max: times.map(() => 3), mean: times.map(() => 2),
});

test("buckets become columns in seconds", () => {
  expect(sensorColumns(series([0, 10_000]), 0, [], frame)).toEqual({ x: [0, 10], min: [1, 1], max: [3, 3], mean: [2, 2] });
});

test("a hole stays a hole", () => {
  const { x, mean } = sensorColumns(series([0, 10_000, 60_000]), 0, [], frame);
  expect(x).toEqual([0, 10, 35, 60]);
  expect(mean).toEqual([2, 2, null, 2]);
});

test("an empty bucket is a hole, but not at the end", () => {
  const holed = { ...series([0, 10_000, 20_000, 30_000]), mean: [2, null, 2, null], min: [1, null, 1, null], max: [3, null, 3, null] };
  expect(sensorColumns(holed, 0, [point(30_000, 5)], frame)).toEqual({ x: [0, 10, 20, 30], min: [1, null, 1, 5], max: [3, null, 3, 5], mean: [2, null, 2, 5] });
});

test("the tail begins after the last bucket and is gathered in its steps", () => {
  const tail = [point(15_000, 9), point(20_000, 4), point(25_000, 8), point(30_000, 5)];
  expect(sensorColumns(series([0, 10_000]), 0, tail, frame)).toEqual({
    x: [0, 10, 25, 30], min: [1, 1, 4, 5], max: [3, 3, 8, 5], mean: [2, 2, 6, 5],
  });
});

test("a sensor that the server does not know yet has the tail only; a missing value is no point", () => {
  expect(sensorColumns(undefined, 0, [point(5_000, 7), point(6_000, null)], frame).mean).toEqual([7]);
  expect(sensorColumns(undefined, 3, [point(5_000, 7)], frame).x).toEqual([]);
});

test("what is after a fixed stretch of time is not drawn", () => {
  expect(sensorColumns(undefined, 0, [point(5_000, 7), point(2_000_000, 8)], frame).mean).toEqual([7]);
});

test("the tail is bounded and takes nothing twice or out of order", () => {
  let tail: TailPoint[] = [];
  for (let i = 0; i < TAIL_POINTS_MAX + 50; i++) tail = appendTail(tail, point(i, i));
  expect(tail.length).toBe(TAIL_POINTS_MAX);
  expect(tail.at(-1)?.time_ms).toBe(TAIL_POINTS_MAX + 49);
  expect(appendTail(tail, point(3, 3))).toBe(tail);
});

test("a raw window is a row for each step", () => {
  const window = { step_ms: 500, first: "1970-01-01T00:00:10Z", sensors: ["a", "b"], values: [[1, 2], [3, null], [5, 6]] };
  expect(windowColumns(window, "b")).toEqual({ x: [10, 10.5, 11], min: [null, null, null], max: [null, null, null], mean: [2, null, 6] });
});

test("the last known value skips gaps", () => {
  expect([lastKnown([1, 2, null]), lastKnown([]), lastKnown([null])]).toEqual([2, null, null]);
});
