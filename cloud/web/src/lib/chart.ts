/**
 * uPlot set up for one quantity over time: a band from minimum to maximum, a line for the mean, shaded stretches for
 * anomalies, a cursor shared by all charts of a page. Colours are read from the style sheet when drawn.
 */

import uPlot from "uplot";
import type { Columns } from "./series";
import { axisLabels } from "./time";
import { value } from "./number";

export interface Period {
  from_ms: number;
  to_ms: number;
  /** This chart's sensor is one of those that drove the anomaly. */
  leads: boolean;
}

export interface ChartSetup {
  width: number;
  height: number;
  sync: string;
  /** A line across, such as the detector's threshold. */
  threshold: number | null;
  /** Limits that the axis always shows; more when the data needs it. */
  y: { min: number | null; max: number | null };
  now(): number;
  periods(): Period[];
  range(): { from_ms: number; to_ms: number };
  zoomed(from_ms: number, to_ms: number): void;
  /** The index under the cursor, or `null`. */
  pointed(index: number | null): void;
}

const AXIS_FONT = "12px ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
/** A drag shorter than this many pixels is a click. */
const DRAG_MIN = 6;

export function css(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function asData(columns: Columns): uPlot.AlignedData {
  return [columns.x, columns.max, columns.min, columns.mean];
}

export function createChart(setup: ChartSetup, columns: Columns, target: HTMLElement): uPlot {
  const chart = new uPlot(options(setup), asData(columns), target);
  chart.over.addEventListener("mouseleave", () => setup.pointed(null));
  return chart;
}

function options(setup: ChartSetup): uPlot.Options {
  const axis: uPlot.Axis = {
    stroke: () => css("--ink-3"),
    font: AXIS_FONT,
    grid: { stroke: () => css("--grid"), width: 1 },
    ticks: { show: false },
  };
  return {
    width: setup.width,
    height: setup.height,
    padding: [8, 20, 0, 0],
    legend: { show: false },
    scales: {
      x: { time: true, range: () => [setup.range().from_ms / 1000, setup.range().to_ms / 1000] },
      y: { range: (_, low, high) => yRange(setup, low, high) },
    },
    axes: [
      { ...axis, space: 64, size: (_, labels) => (labels?.some((label) => label?.includes("\n")) ? 36 : 22), gap: 5, lineGap: 1.15, values: (_, ticks) => axisLabels(ticks, setup.now()) },
      { ...axis, space: 26, size: 52, gap: 6, values: (_, ticks) => ticks.map(axisValue) },
    ],
    series: [
      {},
      { stroke: "transparent", width: 0, points: { show: false } },
      { stroke: "transparent", width: 0, points: { show: false } },
      { stroke: () => css("--trend"), width: 1.6, points: { show: false } },
    ],
    bands: [{ series: [1, 2], fill: () => css("--trend-band") }],
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false },
      points: { size: 7, fill: () => css("--trend"), stroke: () => css("--panel"), width: 1.5, show: (_, index) => pointElement(index) },
      // The drag belongs to one chart: the page moves all of them.
      sync: { key: setup.sync, setSeries: false, scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave", sub: () => true } },
      bind: { dblclick: () => null },
    },
    hooks: {
      drawClear: [(u) => shade(u, setup)],
      draw: [(u) => threshold(u, setup)],
      setCursor: [(u) => setup.pointed(u.cursor.left !== undefined && u.cursor.left >= 0 ? (u.cursor.idx ?? null) : null)],
      setSelect: [
        (u) => {
          if (u.select.width < DRAG_MIN) return;
          const from = u.posToVal(u.select.left, "x") * 1000;
          const to = u.posToVal(u.select.left + u.select.width, "x") * 1000;
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          setup.zoomed(from, to);
        },
      ],
    },
  };
}

/** The cursor's point stands on the mean; those of the band's edges stay away. */
function pointElement(index: number): HTMLElement {
  const element = document.createElement("div");
  element.style.visibility = index === 3 ? "" : "hidden";
  return element;
}

/** A little air above and below, and never a range of nothing: a flat line stands in the middle. */
function yRange(setup: ChartSetup, low: number | null, high: number | null): [number, number] {
  let min = low ?? setup.y.min ?? 0;
  let max = high ?? setup.y.max ?? 1;
  const flat = Math.max(Math.abs(max) * 0.01, 1e-6);
  if (max - min < flat) {
    min -= flat / 2;
    max += flat / 2;
  }
  const air = (max - min) * 0.08;
  min -= air;
  max += air;
  if (setup.y.min !== null) min = low === null || low >= setup.y.min ? setup.y.min : min;
  if (setup.y.max !== null) max = high === null || high <= setup.y.max ? setup.y.max : max;
  return [min, max];
}

function axisValue(v: number): string {
  return Math.abs(v) >= 1000 ? value(v) : String(Number(v.toPrecision(6))).replace("-", "−");
}

function shade(u: uPlot, setup: ChartSetup) {
  const { ctx, bbox } = u;
  const { from_ms, to_ms } = setup.range();
  ctx.save();
  for (const period of setup.periods()) {
    if (period.to_ms < from_ms || period.from_ms > to_ms) continue;
    const left = Math.max(bbox.left, u.valToPos(period.from_ms / 1000, "x", true));
    const right = Math.min(bbox.left + bbox.width, u.valToPos(period.to_ms / 1000, "x", true));
    // However short it was, it can be seen.
    const width = Math.max(right - left, 2 * devicePixelRatio);
    ctx.fillStyle = css(period.leads ? "--anomaly-lead" : "--anomaly-fill");
    ctx.fillRect(left, bbox.top, width, bbox.height);
    if (period.from_ms >= from_ms) {
      ctx.fillStyle = css("--anomaly-edge");
      ctx.fillRect(left, bbox.top, 1.5 * devicePixelRatio, bbox.height);
    }
  }
  ctx.restore();
}

function threshold(u: uPlot, setup: ChartSetup) {
  if (setup.threshold === null) return;
  const { ctx, bbox } = u;
  const y = Math.round(u.valToPos(setup.threshold, "y", true)) + 0.5;
  if (y < bbox.top || y > bbox.top + bbox.height) return;
  ctx.save();
  ctx.strokeStyle = css("--threshold");
  ctx.lineWidth = 1.2 * devicePixelRatio;
  ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}
