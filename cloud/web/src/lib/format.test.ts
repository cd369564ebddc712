import { describe, expect, test } from "vitest";
import { backoffMs } from "./backoff";
import { queryText } from "./http";
import { bytes, percent, score, value, whole } from "./number";
import { bounds, fixed, shift, zoom } from "./range";
import { format, parse } from "./route";
import { unitSymbol } from "./unit";
import { age, axisLabels, clockTime, duration } from "./time";

const T = "\u2009";
const at = (text: string) => new Date(text).getTime();

describe("numbers", () => {
  test.each<[number | null, string]>([
    [null, "–"], [Number.NaN, "–"], [0, "0"], [4.2, "4.20"], [-4.25, "−4.25"], [130.06, "130.1"], [0.3981, "0.398"], [0.01234, "0.0123"],
    [1234, "1234"], [18240, `18${T}240`], [1234567, `1${T}234${T}567`], [2.5e9, "2.50e+9"], [0.00001, "1.00e−5"],
  ])("%s reads %s", (v, text) => expect(value(v)).toBe(text));

  test("others", () => {
    expect([whole(18240), whole(null), percent(94.6), percent(null)]).toEqual([`18${T}240`, "–", `95${T}%`, "–"]);
    expect([score(0.344), score(1), score(1e6), score(null)]).toEqual(["0.34", "1.00", ">99", "–"]);
    expect([bytes(0), bytes(900), bytes(6144), bytes(9338880), bytes(null)]).toEqual(["0 B", "900 B", "6.0 KiB", "8.9 MiB", "–"]);
  });
});

describe("units", () => {
  test.each<[string | null, string]>([
    [null, ""], ["Cel", "°C"], ["bar", "bar"], ["L/min", "L/min"], ["m3/h", "m³/h"], ["mm/s2", "mm/s²"], ["um", "µm"], ["kOhm", "kΩ"], ["[g]", "g"],
    ["1/min", "min⁻¹"], ["kW.h", "kW·h"], ["%", "%"], ["°C", "°C"], ["l/min", "l/min"],
  ])("%s reads %s", (code, text) => expect(unitSymbol(code)).toBe(text));
});

describe("times", () => {
  const now = at("2026-03-01T14:00:00");

  test.each([
    [0, "0 s"], [59_999, "59 s"], [60_000, "1 min"], [3_599_000, "59 min"], [7_500_000, "2 h 05 min"], [86_400_000, "1 d"], [4.125 * 86_400_000, "4 d 3 h"], [-5, "0 s"],
  ])("%d ms last %s", (ms, text) => expect(duration(ms)).toBe(text));

  test("a time has its date when it is not today's", () => {
    expect(clockTime(at("2026-03-01T09:05:07"), now)).toBe("09:05:07");
    expect(clockTime(at("2026-02-28T09:05:07"), now)).toBe("28 Feb 09:05:07");
    expect(clockTime(at("2025-02-28T09:05:07"), now)).toBe("28 Feb 2025 09:05:07");
  });

  test("an age may lie in the future when clocks differ", () => {
    expect([age(now - 500, now), age(now - 8_000, now), age(now + 1_000, now), age(now + 130_000, now)]).toEqual(["now", "8 s ago", "now", "in 2 min"]);
  });

  test("an axis names the day where it begins", () => {
    const ticks = ["2026-02-28T23:30:00", "2026-03-01T00:00:00", "2026-03-01T00:30:00"].map((t) => at(t) / 1000);
    expect(axisLabels(ticks, now)).toEqual(["23:30\n28 Feb", "00:00\n1 Mar", "00:30"]);
    expect(axisLabels([now / 1000, now / 1000 + 15], now)).toEqual(["14:00:00", "14:00:15"]);
    expect(axisLabels([now / 1000, now / 1000 + 86_400], now)).toEqual(["1 Mar", "2 Mar"]);
  });
});

describe("ranges", () => {
  test("following ends at the latest reading", () => {
    expect(bounds({ kind: "follow", preset: "1h" }, 10_000_000)).toEqual({ from_ms: 6_400_000, to_ms: 10_000_000 });
  });
  test("zoom keeps the middle, shift the length", () => {
    expect(zoom({ from_ms: 0, to_ms: 100_000 }, 0.5)).toEqual({ kind: "fixed", from_ms: 25_000, to_ms: 75_000 });
    expect(shift({ from_ms: 0, to_ms: 100_000 }, -0.5)).toEqual({ kind: "fixed", from_ms: -50_000, to_ms: 50_000 });
  });
  test("nothing is shorter than ten seconds", () => {
    expect(fixed(50_000, 50_001)).toEqual({ kind: "fixed", from_ms: 45_001, to_ms: 55_001 });
  });
});

describe("addresses", () => {
  test.each([
    "#/machines", "#/machines?q=pump&state=silent", "#/machines/0193f000", "#/machines/0193f000?range=24h",
    "#/machines/0193f000?from=2026-03-01T12:00:00.000Z&to=2026-03-01T13:00:00.000Z", "#/alarms", "#/alarms?show=all", "#/gateways",
  ])("%s comes back as it was", (hash) => expect(format(parse(hash))).toBe(hash));

  test.each(["", "#", "#/", "#/nonsense", "#/machines?state="])("%s is the list of machines", (hash) => expect(format(parse(hash))).toBe("#/machines"));

  test("a range that is no range is the default", () => {
    for (const search of ["from=x&to=y", "from=2026-03-01T13:00:00Z&to=2026-03-01T12:00:00Z", "range=8h"]) {
      expect(format(parse(`#/machines/a?${search}`))).toBe("#/machines/a");
    }
  });

  test("a query leaves out what is not said and repeats lists", () => {
    expect(queryText({ a: 1, b: null, c: undefined, d: "", sensor: ["x", "y z"] })).toBe("?a=1&sensor=x&sensor=y+z");
    expect(queryText({})).toBe("");
  });
});

test("the wait before the next try grows, is jittered and has bounds", () => {
  expect([0, 1, 2, 5, 9, 99].map((n) => backoffMs(n, 0.999_99))).toEqual([500, 1000, 2000, 15_000, 15_000, 15_000]);
  expect(backoffMs(9, 0)).toBe(250);
});
