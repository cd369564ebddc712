/**
 * The plant as this page knows it: machines, open alarms and gateways, loaded over HTTP and kept current by the
 * live feed. Live messages are collected and applied a few times a second, so that a fleet that talks all the time
 * does not redraw the page all the time.
 */

import { SvelteMap, SvelteSet } from "svelte/reactivity";
import type { Alarm, Anomaly, Gateway, Incident, LiveMachine, LiveMessage, Machine } from "./contract";
import { explain, wasAborted } from "./http";
import { type LinkState, LiveFeed } from "./live";
import { http, session } from "./session.svelte";
import { alarmSource, isOpen, worstAlarm } from "./words";

const APPLY_MS = 250;
/** Something unknown was named: read the lists again, but not at once for each. */
const RELOAD_MS = 1_500;
const RETRY_MS = 5_000;
const FEED_WAIT_MS = 1_200;
const HIGHLIGHT_MS = 20_000;

export type Loading = "loading" | "ready" | "failed";

class Plant {
  readonly machines = new SvelteMap<string, Machine>();
  readonly alarms = new SvelteMap<string, Alarm>();
  readonly incidents = new SvelteMap<string, Incident>();
  readonly gateways = new SvelteMap<string, Gateway>();
  /** Alarms that came while the page was open. */
  readonly fresh = new SvelteSet<string>();
  loading = $state<Loading>("loading");
  error = $state("");
  link = $state.raw<LinkState>({ kind: "connecting" });
  /** The alarm that came last, until it has been looked at. */
  newest = $state.raw<Alarm | null>(null);

  #feed: LiveFeed | null = null;
  #pending = new Map<string, LiveMachine>();
  #held: LiveMessage[] | null = null;
  #apply: ReturnType<typeof setTimeout> | undefined;
  #reload: ReturnType<typeof setTimeout> | undefined;
  #request: AbortController | null = null;
  #again = false;
  #listeners = new Set<Listener>();

  readonly openAlarms = $derived([...this.alarms.values()].filter((alarm) => isOpen(alarm.state)));
  readonly openIncidents = $derived([...this.incidents.values()].filter((incident) => incident.closed_at === null));
  readonly waiting = $derived(
    this.openAlarms.filter((a) => a.state === "unacknowledged" || a.state === "returned_unacknowledged").length,
  );
  /** The alarm to show for each machine. */
  readonly alarmOf = $derived.by(() => {
    const grouped = Map.groupBy(this.openAlarms, (alarm) => alarm.machine_id ?? "");
    return new Map([...grouped].map(([id, alarms]) => [id, worstAlarm(alarms)]));
  });

  start() {
    this.loading = "loading";
    this.#feed = new LiveFeed({
      token: () => session.token,
      state: (state) => {
        this.link = state;
      },
      message: (message) => this.#take(message),
      probe: () => http.get("/me").then(() => true, () => false),
    });
    // The feed's greeting starts the load, so that nothing falls between the two; without a feed there is still HTTP.
    this.#reloadLater(FEED_WAIT_MS);
  }

  prolong(token: string) {
    this.#feed?.prolong(token);
  }

  stop() {
    this.#feed?.close();
    this.#feed = null;
    this.#request?.abort();
    this.#request = null;
    this.#again = false;
    clearTimeout(this.#apply);
    clearTimeout(this.#reload);
    this.#apply = this.#reload = undefined;
    this.#pending.clear();
    this.#held = null;
    for (const map of [this.machines, this.alarms, this.incidents, this.gateways, this.fresh]) map.clear();
    this.newest = null;
    this.link = { kind: "connecting" };
  }

  /** For what is not a state but a stream: trends and anomalies. Returns the way to stop. */
  listen(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Reads everything anew; what arrives live meanwhile is applied after. */
  async reload(): Promise<void> {
    if (this.#request !== null) {
      this.#again = true;
      return;
    }
    const request = new AbortController();
    this.#request = request;
    clearTimeout(this.#reload);
    this.#reload = undefined;
    this.#held ??= [];
    try {
      const [machines, alarms, incidents, gateways] = await Promise.all([
        http.list<Machine>("/machines", { include_ignored: true }, request.signal),
        http.list<Alarm>("/alarms", { state: "open" }, request.signal),
        http.list<Incident>("/incidents", { open: true }, request.signal),
        http.list<Gateway>("/gateways", {}, request.signal),
      ]);
      if (request.signal.aborted) return;
      replace(this.machines, machines);
      replace(this.alarms, alarms);
      replace(this.incidents, incidents);
      replace(this.gateways, gateways);
      this.loading = "ready";
      this.error = "";
    } catch (error) {
      if (request.signal.aborted || wasAborted(error)) return;
      this.error = explain(error);
      if (this.loading === "loading") this.loading = "failed";
      if (session.token !== null) this.#reloadLater(RETRY_MS);
    }
    this.#request = null;
    if (this.#again) {
      this.#again = false;
      void this.reload();
      return;
    }
    const held = this.#held ?? [];
    this.#held = null;
    for (const message of held) this.#take(message);
  }

  /** A machine as the server has just answered it. */
  putMachine(machine: Machine) {
    this.machines.set(machine.id, { ...this.machines.get(machine.id), ...machine });
  }

  putIncident(incident: Incident) {
    this.incidents.set(incident.id, incident);
  }

  putAlarm(alarm: Alarm) {
    this.alarms.set(alarm.id, alarm);
  }

  #take(message: LiveMessage) {
    if (message.type === "hello" || message.type === "resync") {
      void this.reload();
      for (const listener of this.#listeners) listener.resync?.();
      return;
    }
    if (message.type === "machine") for (const listener of this.#listeners) listener.machine?.(message.machine);
    if (this.#held !== null) {
      this.#held.push(message);
      return;
    }
    switch (message.type) {
      case "machine":
        this.#pending.set(message.machine.id, message.machine);
        this.#apply ??= setTimeout(() => this.#applyPending(), APPLY_MS);
        break;
      case "alarm":
        this.#takeAlarm(message.alarm);
        break;
      case "incident":
        this.incidents.set(message.incident.id, message.incident);
        break;
      case "anomaly":
        for (const listener of this.#listeners) listener.anomaly?.(message.anomaly);
        break;
      case "gateway":
        this.gateways.set(message.gateway.id, message.gateway);
        break;
    }
  }

  #applyPending() {
    this.#apply = undefined;
    for (const [id, live] of this.#pending) {
      const known = this.machines.get(id);
      if (!known) {
        this.#reloadLater(RELOAD_MS);
        continue;
      }
      const { values: _, ...status } = live;
      this.machines.set(id, { ...known, ...status });
    }
    this.#pending.clear();
  }

  #takeAlarm(alarm: Alarm) {
    const isNew = !this.alarms.has(alarm.id) && alarm.state === "unacknowledged" && !alarm.late;
    this.alarms.set(alarm.id, alarm);
    if (alarm.machine_id !== null && !this.machines.has(alarm.machine_id)) this.#reloadLater(RELOAD_MS);
    if (isNew) {
      this.fresh.add(alarm.id);
      this.newest = alarm;
      setTimeout(() => {
        if (this.newest?.id === alarm.id) this.newest = null;
      }, HIGHLIGHT_MS);
    } else if (alarm.state !== "unacknowledged" && this.newest?.id === alarm.id) {
      this.newest = null;
    }
  }

  #reloadLater(delay: number) {
    this.#reload ??= setTimeout(() => void this.reload(), delay);
  }
}

export interface Listener {
  machine?(machine: LiveMachine): void;
  anomaly?(anomaly: Anomaly): void;
  resync?(): void;
}

function replace<T extends { id: string }>(map: SvelteMap<string, T>, items: T[]) {
  const ids = new Set(items.map((item) => item.id));
  for (const id of [...map.keys()]) if (!ids.has(id)) map.delete(id);
  for (const item of items) map.set(item.id, item);
}

export function announcement(alarm: Alarm): string {
  return `New ${alarm.severity} alarm: ${alarmSource(alarm)}. ${alarm.message}`;
}

export const plant = new Plant();
