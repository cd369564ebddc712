/** Numbers as people read them: about four figures, thin spaces between thousands, a dash for what is not known. */

export const UNKNOWN = "–";
const THIN = "\u2009";

export function value(v: number | null | undefined): string {
  if (v === null || v === undefined || !Number.isFinite(v)) return UNKNOWN;
  const size = Math.abs(v);
  if (size === 0) return "0";
  if (size >= 1e7 || size < 1e-4) return v.toExponential(2).replace("-", "−");
  const decimals = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : 4;
  return group(v.toFixed(decimals));
}

export function whole(v: number | null | undefined): string {
  if (v === null || v === undefined || !Number.isFinite(v)) return UNKNOWN;
  return group(String(Math.round(v)));
}

/** A detector's score: 1 is the threshold. */
export function score(v: number | null | undefined): string {
  if (v === null || v === undefined || !Number.isFinite(v)) return UNKNOWN;
  return v >= 100 ? ">99" : v.toFixed(2);
}

export function percent(v: number | null | undefined): string {
  if (v === null || v === undefined || !Number.isFinite(v)) return UNKNOWN;
  return `${Math.round(v)}${THIN}%`;
}

export function bytes(v: number | null | undefined): string {
  if (v === null || v === undefined) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB"];
  let n = v;
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

function group(text: string): string {
  const [int = "", fraction] = text.replace("-", "").split(".");
  const sign = text.startsWith("-") ? "−" : "";
  const grouped = int.length > 4 ? int.replace(/\B(?=(\d{3})+$)/g, THIN) : int;
  return sign + grouped + (fraction === undefined ? "" : `.${fraction}`);
}
