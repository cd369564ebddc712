/** Times as people read them: local, with the date when it is not today; ages in the largest unit that says enough. */

const S = 1_000;
const MIN = 60 * S;
const H = 60 * MIN;
const DAY = 24 * H;

const two = (n: number) => String(n).padStart(2, "0");
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

export function sameDay(a: number, b: number): boolean {
  return new Date(a).toDateString() === new Date(b).toDateString();
}

/** 14:03:22, or 3 Nov 14:03:22, or 3 Nov 2025 14:03:22. */
export function clockTime(ms: number, now: number): string {
  const d = new Date(ms);
  const time = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  return sameDay(ms, now) ? time : `${day(ms, now)} ${time}`;
}

export function day(ms: number, now: number): string {
  const d = new Date(ms);
  const year = d.getFullYear() === new Date(now).getFullYear() ? "" : ` ${d.getFullYear()}`;
  return `${d.getDate()} ${MONTHS[d.getMonth()]}${year}`;
}

/** "8 s", "3 min", "2 h 05 min", "4 d 3 h". */
export function duration(ms: number): string {
  const t = Math.max(0, ms);
  if (t < MIN) return `${Math.floor(t / S)} s`;
  if (t < H) return `${Math.floor(t / MIN)} min`;
  if (t < DAY) return `${Math.floor(t / H)} h ${two(Math.floor((t % H) / MIN))} min`;
  const hours = Math.floor((t % DAY) / H);
  return hours === 0 ? `${Math.floor(t / DAY)} d` : `${Math.floor(t / DAY)} d ${hours} h`;
}

/** "now", "8 s ago", "in 2 min" (a gateway's clock may run ahead of this screen's). */
export function age(ms: number, now: number): string {
  const t = now - ms;
  if (t < -5 * S) return `in ${duration(-t)}`;
  return t < 2 * S ? "now" : `${duration(t)} ago`;
}

/**
 * Labels for a time axis: as fine as the ticks are apart, with the date under the first tick of each day.
 * `ticks` are seconds, as uPlot counts.
 */
export function axisLabels(ticks: readonly number[], now: number): string[] {
  const step = ticks.length > 1 ? (ticks[1] as number) - (ticks[0] as number) : 60;
  let last: number | null = null;
  return ticks.map((tick) => {
    const ms = tick * S;
    const d = new Date(ms);
    const isNewDay = last === null ? !sameDay(ms, now) : !sameDay(ms, last);
    last = ms;
    if (step >= 24 * 3600) return day(ms, now);
    const time = `${two(d.getHours())}:${two(d.getMinutes())}${step < 60 ? `:${two(d.getSeconds())}` : ""}`;
    return isNewDay ? `${time}\n${day(ms, now)}` : time;
  });
}
