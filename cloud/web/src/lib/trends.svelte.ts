/** One machine's page: its details, trends and anomalies, and what arrives live while it is open. */

import type { Anomaly, LiveMachine, MachineDetail, Series } from "./contract";
import { explain, wasAborted } from "./http";
import { plant } from "./plant.svelte";
import { type Range, bounds } from "./range";
import { type Frame, type TailPoint, appendTail } from "./series";
import { http } from "./session.svelte";

/** While following, the server's buckets are read again this often. */
const REFRESH_MIN_MS = 10_000;
const REFRESH_MAX_MS = 60_000;
/** An anomaly that is over lasted less than this. */
const ANOMALY_MS = 48 * 3_600_000;

export class Trends {
  detail = $state.raw<MachineDetail | null>(null);
  series = $state.raw<Series | null>(null);
  #known = $state.raw<Anomaly[]>([]);
  tail = $state.raw<TailPoint[]>([]);
  error = $state("");
  missing = $state(false);
  busy = $state(false);
  #range = $state.raw<Range>({ kind: "follow", preset: "15m" });
  /** The latest reading that is known; what "now" means for the trends of this machine. */
  anchor_ms = $state(Date.now());

  readonly #id: string;
  readonly #points: number;
  #request: AbortController | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #unlisten: () => void;
  #closed = false;

  readonly bounds = $derived(bounds(this.#range, this.anchor_ms));
  /** Those that reach into the picture, the newest first. */
  readonly anomalies = $derived(
    this.#known
      .filter((a) => Date.parse(a.opened_at) <= this.bounds.to_ms && (a.closed_at === null || Date.parse(a.closed_at) >= this.bounds.from_ms))
      .sort((a, b) => Date.parse(b.opened_at) - Date.parse(a.opened_at)),
  );
  readonly frame: Frame = $derived({
    ...this.bounds,
    step_ms: Math.max(this.series?.bucket_ms ?? 0, this.detail?.interval_ms ?? 10_000),
  });

  constructor(id: string, range: Range, points: number) {
    this.#id = id;
    this.#range = range;
    this.#points = points;
    this.#unlisten = plant.listen({
      machine: (live) => this.#live(live),
      anomaly: (anomaly) => this.#anomaly(anomaly),
      resync: () => void this.load(),
    });
    void this.load();
  }

  close() {
    this.#closed = true;
    this.#unlisten();
    this.#request?.abort();
    clearTimeout(this.#timer);
  }

  setRange(range: Range) {
    if (JSON.stringify(range) === JSON.stringify(this.#range)) return;
    this.#range = range;
    void this.load();
  }

  async load(): Promise<void> {
    if (this.#closed) return;
    clearTimeout(this.#timer);
    this.#request?.abort();
    const request = new AbortController();
    this.#request = request;
    this.busy = true;
    try {
      this.detail = await http.get<MachineDetail>(`/machines/${this.#id}`, {}, request.signal);
      const last = this.detail.last_reading_at;
      if (last !== null) this.anchor_ms = Math.max(Date.parse(last), this.tail.at(-1)?.time_ms ?? 0);
      const { from_ms, to_ms } = this.bounds;
      const span = { from: new Date(from_ms).toISOString(), to: new Date(to_ms).toISOString() };
      // The list goes by when an anomaly opened: those that reach into the picture opened before it.
      const opened = { from: new Date(from_ms - ANOMALY_MS).toISOString(), to: new Date(to_ms + 1).toISOString() };
      const [series, recent, open] = await Promise.all([
        http.get<Series>(`/machines/${this.#id}/series`, { ...span, points: this.#points }, request.signal),
        http.list<Anomaly>("/anomalies", { machine: this.#id, ...opened }, request.signal),
        http.list<Anomaly>("/anomalies", { machine: this.#id, open: true }, request.signal),
      ]);
      this.series = series;
      this.#known = [...new Map([...open, ...recent].map((anomaly) => [anomaly.id, anomaly])).values()];
      this.error = "";
      this.missing = false;
    } catch (error) {
      if (request.signal.aborted || wasAborted(error)) return;
      this.error = explain(error);
      this.missing = error instanceof Error && "status" in error && error.status === 404;
    }
    this.busy = false;
    if (this.#range.kind === "follow" && !this.missing) {
      const wait = Math.min(Math.max(this.series?.bucket_ms ?? 0, REFRESH_MIN_MS), REFRESH_MAX_MS);
      this.#timer = setTimeout(() => void this.load(), wait);
    }
  }

  /** After a change by hand. */
  put(detail: MachineDetail) {
    this.detail = detail;
    plant.putMachine(detail);
  }

  #live(live: LiveMachine) {
    if (live.id !== this.#id || live.last_reading_at === null) return;
    const time_ms = Date.parse(live.last_reading_at);
    this.tail = appendTail(this.tail, {
      time_ms,
      values: live.values,
      score: live.score,
      health_percent: live.health_percent,
    });
    if (time_ms > this.anchor_ms) this.anchor_ms = time_ms;
  }

  #anomaly(anomaly: Anomaly) {
    if (anomaly.machine_id !== this.#id) return;
    this.#known = [anomaly, ...this.#known.filter((other) => other.id !== anomaly.id)];
  }
}
