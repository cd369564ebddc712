/** Requests to `/api/v1`. Every failure is a `Problem` (the server said no) or an `Unreachable` (nobody answered). */

import type { Page, ProblemBody } from "./contract";

const TIMEOUT_MS = 20_000;
/** The most pages of a list that are read: 2,000 items. */
const PAGES_MAX = 10;

export class Problem extends Error {
  readonly status: number;
  readonly code: string;
  readonly fields: { field: string; message: string }[];

  constructor(status: number, body: ProblemBody) {
    super(body.detail ?? body.title ?? `The server answered ${status}.`);
    this.status = status;
    this.code = body.code ?? "";
    this.fields = body.errors ?? [];
  }
}

export class Unreachable extends Error {
  constructor() {
    super("The server cannot be reached. Check the network; this page tries again by itself.");
  }
}

/** The words for a person. */
export function explain(error: unknown): string {
  if (error instanceof Problem && error.fields.length > 0) {
    return error.fields.map((f) => `${f.field.replaceAll("_", " ")}: ${f.message}`).join("; ");
  }
  return error instanceof Error ? error.message : String(error);
}

export interface Credentials {
  token(): string | null;
  /** A token that was sent is no longer taken. */
  refused(token: string): void;
  passwordChangeRequired(): void;
}

export class Http {
  readonly #credentials: Credentials;

  constructor(credentials: Credentials) {
    this.#credentials = credentials;
  }

  get<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T> {
    return this.#send<T>("GET", path + queryText(query), undefined, signal);
  }

  post<T>(path: string, body?: unknown): Promise<T> {
    return this.#send<T>("POST", path, body);
  }

  patch<T>(path: string, body: unknown): Promise<T> {
    return this.#send<T>("PATCH", path, body);
  }

  /** All pages of a list, up to a bound. */
  async list<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | null = null;
    for (let page = 0; page < PAGES_MAX; page++) {
      const answer: Page<T> = await this.get<Page<T>>(path, { limit: 200, ...query, cursor }, signal);
      items.push(...answer.items);
      cursor = answer.next_cursor;
      if (cursor === null) break;
    }
    return items;
  }

  async #send<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
    const token = this.#credentials.token();
    const headers: Record<string, string> = { Accept: "application/json" };
    if (token !== null) headers.Authorization = `Bearer ${token}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const timeout = AbortSignal.timeout(TIMEOUT_MS);
    let response: Response;
    try {
      response = await fetch(`/api/v1${path}`, {
        method,
        headers,
        body: body === undefined ? null : JSON.stringify(body),
        signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
        cache: "no-store",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Unreachable();
    }
    if (response.ok) return (response.status === 204 ? undefined : await response.json()) as T;
    const problem = new Problem(response.status, await problemBody(response));
    if (response.status === 401 && token !== null && path !== "/refresh") this.#credentials.refused(token);
    if (problem.code === "password_change_required") this.#credentials.passwordChangeRequired();
    throw problem;
  }
}

export type Query = Record<string, string | number | boolean | null | undefined | readonly string[]>;

export function queryText(query: Query): string {
  const params = new URLSearchParams();
  for (const [key, v] of Object.entries(query)) {
    if (v === null || v === undefined || v === "") continue;
    if (Array.isArray(v)) for (const one of v) params.append(key, one);
    else params.set(key, String(v));
  }
  return params.size > 0 ? `?${params}` : "";
}

async function problemBody(response: Response): Promise<ProblemBody> {
  try {
    return (await response.json()) as ProblemBody;
  } catch {
    return { title: response.statusText ? `The server answered ${response.status} ${response.statusText}.` : undefined } as ProblemBody;
  }
}

export function wasAborted(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
