/** Places in the page as `#/…` addresses: they can be shared and survive a reload. */

import { PRESETS, type Range, fixed } from "./range";

export type AlarmFilter = "open" | "unacknowledged" | "held" | "all";
export type IncidentFilter = "open" | "mine" | "all";
export type Route =
  | { page: "machines"; query: string; state: string }
  | { page: "machine"; id: string; range: Range }
  | { page: "alarms"; filter: AlarmFilter }
  | { page: "incidents"; filter: IncidentFilter }
  | { page: "incident"; id: string }
  | { page: "gateways" }
  /** With a link's secret. */
  | { page: "password"; secret: string };

const DEFAULT_RANGE: Range = { kind: "follow", preset: "15m" };

export function parse(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const params = new URLSearchParams(search);
  const [page, id] = path.split("/");
  if (page === "machines" && id) return { page: "machine", id: decodeURIComponent(id), range: parseRange(params) };
  if (page === "alarms") {
    const filter = params.get("show");
    return { page: "alarms", filter: filter === "all" || filter === "unacknowledged" || filter === "held" ? filter : "open" };
  }
  if (page === "incidents" && id) return { page: "incident", id: decodeURIComponent(id) };
  if (page === "incidents") {
    const filter = params.get("show");
    return { page: "incidents", filter: filter === "all" || filter === "mine" ? filter : "open" };
  }
  if (page === "password" && id) return { page: "password", secret: id };
  if (page === "gateways") return { page: "gateways" };
  return { page: "machines", query: params.get("q") ?? "", state: params.get("state") ?? "" };
}

export function format(route: Route): string {
  switch (route.page) {
    case "machines": {
      const params = new URLSearchParams();
      if (route.query) params.set("q", route.query);
      if (route.state) params.set("state", route.state);
      return `#/machines${params.size > 0 ? `?${params}` : ""}`;
    }
    case "machine": {
      const range = formatRange(route.range);
      return `#/machines/${encodeURIComponent(route.id)}${range ? `?${range}` : ""}`;
    }
    case "alarms":
      return route.filter === "open" ? "#/alarms" : `#/alarms?show=${route.filter}`;
    case "incidents":
      return route.filter === "open" ? "#/incidents" : `#/incidents?show=${route.filter}`;
    case "incident":
      return `#/incidents/${encodeURIComponent(route.id)}`;
    case "gateways":
      return "#/gateways";
    case "password":
      return `#/password/${route.secret}`;
  }
}

export function incidentHref(id: string): string {
  return format({ page: "incident", id });
}

export function machineHref(id: string): string {
  return format({ page: "machine", id, range: DEFAULT_RANGE });
}

function parseRange(params: URLSearchParams): Range {
  const from = Date.parse(params.get("from") ?? "");
  const to = Date.parse(params.get("to") ?? "");
  if (Number.isFinite(from) && Number.isFinite(to) && from < to) return fixed(from, to);
  const preset = PRESETS.find((p) => p.name === params.get("range"));
  return preset ? { kind: "follow", preset: preset.name } : DEFAULT_RANGE;
}

function formatRange(range: Range): string {
  if (range.kind === "fixed") {
    return `from=${new Date(range.from_ms).toISOString()}&to=${new Date(range.to_ms).toISOString()}`;
  }
  return range.preset === "15m" ? "" : `range=${range.preset}`;
}
