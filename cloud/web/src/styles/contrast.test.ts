/** WCAG 2.1 AA: text has a contrast of at least 4.5 with its ground, marks and edges of controls at least 3. */

import { describe, expect, test } from "vitest";
import source from "./tokens.css?raw";

const [light = "", dark = ""] = source.split("@media (prefers-color-scheme: dark)");

function colours(text: string): Map<string, string> {
  return new Map([...text.matchAll(/--([\w-]+):\s*(#[0-9a-f]{6});/g)].map((m) => [m[1] ?? "", m[2] ?? ""]));
}

function luminance(hex: string): number {
  const [r = 0, g = 0, b = 0] = [1, 3, 5].map((i) => {
    const c = Number.parseInt(hex.slice(i, i + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a: string, b: string): number {
  const [high = 0, low = 0] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
}

const GROUNDS = ["ground", "panel", "raised", "sunken"];
const TEXT: [string, string[]][] = [
  ...["ink", "ink-2", "ink-3", "critical", "high", "medium", "low", "accent"].map((ink): [string, string[]] => [ink, GROUNDS]),
  ...["critical", "high", "medium", "low"].map((tone): [string, string[]] => [tone, [`${tone}-soft`]]),
  ...["critical", "high", "medium", "low"].map((tone): [string, string[]] => ["on-strong", [tone]]),
  ...["critical", "high", "medium", "low"].map((tone): [string, string[]] => ["ink-2", [`${tone}-soft`]]),
  ["accent-ink", ["accent"]],
  ["ink", ["accent-soft", "chosen"]],
];

describe.each([["light", colours(light)], ["dark", new Map([...colours(light), ...colours(dark)])]])("%s", (_, palette) => {
  test.each(TEXT.flatMap(([ink, grounds]) => grounds.map((ground): [string, string] => [ink, ground])))("%s on %s", (ink, ground) => {
    expect(contrast(palette.get(ink) ?? "", palette.get(ground) ?? "")).toBeGreaterThanOrEqual(4.5);
  });
  test.each(["trend", "anomaly-edge", "threshold"])("the chart's %s", (mark) => {
    expect(contrast(palette.get(mark) ?? "", palette.get("panel") ?? "")).toBeGreaterThanOrEqual(3);
  });
});
