/** How long to wait before the next try: full jitter, so that screens do not come back all at once. */

const FIRST_MS = 500;
const MOST_MS = 15_000;

/** `random` in [0, 1). Never less than a quarter of a second. */
export function backoffMs(failures: number, random: number): number {
  const cap = Math.min(MOST_MS, FIRST_MS * 2 ** Math.min(failures, 10));
  return Math.max(250, Math.round(cap * random));
}
