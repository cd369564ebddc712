/** What stretch of time the trends show: following the latest reading, or fixed. */

export const PRESETS = [
  { name: "15m", label: "15 min", ms: 15 * 60_000 },
  { name: "1h", label: "1 h", ms: 3_600_000 },
  { name: "6h", label: "6 h", ms: 6 * 3_600_000 },
  { name: "24h", label: "24 h", ms: 24 * 3_600_000 },
  { name: "7d", label: "7 d", ms: 7 * 24 * 3_600_000 },
] as const;

export type PresetName = (typeof PRESETS)[number]["name"];
export type Range = { kind: "follow"; preset: PresetName } | { kind: "fixed"; from_ms: number; to_ms: number };

const SHORTEST_MS = 10_000;
const LONGEST_MS = 366 * 24 * 3_600_000;

export function presetMs(name: PresetName): number {
  return PRESETS.find((p) => p.name === name)?.ms ?? PRESETS[0].ms;
}

/** The moments of a range; `anchor_ms` is the latest reading. */
export function bounds(range: Range, anchor_ms: number): { from_ms: number; to_ms: number } {
  if (range.kind === "fixed") return { from_ms: range.from_ms, to_ms: range.to_ms };
  return { from_ms: anchor_ms - presetMs(range.preset), to_ms: anchor_ms };
}

export function zoom(current: { from_ms: number; to_ms: number }, factor: number): Range {
  const middle = (current.from_ms + current.to_ms) / 2;
  const half = ((current.to_ms - current.from_ms) / 2) * factor;
  return fixed(middle - half, middle + half);
}

export function shift(current: { from_ms: number; to_ms: number }, part: number): Range {
  const by = (current.to_ms - current.from_ms) * part;
  return fixed(current.from_ms + by, current.to_ms + by);
}

export function fixed(from_ms: number, to_ms: number): Range {
  const length = Math.min(Math.max(to_ms - from_ms, SHORTEST_MS), LONGEST_MS);
  const middle = (from_ms + to_ms) / 2;
  return { kind: "fixed", from_ms: Math.round(middle - length / 2), to_ms: Math.round(middle + length / 2) };
}
