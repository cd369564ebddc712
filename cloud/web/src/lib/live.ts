/**
 * The live feed: one WebSocket, opened again for ever with a growing, jittered wait. A browser does not show a
 * page the server's pings, so a silence is asked about over HTTP, and a feed that is silent for too long is
 * closed and opened anew.
 */

import { backoffMs } from "./backoff";
import type { LiveMessage } from "./contract";

/** A connection that says nothing for this long is looked after. */
const QUIET_MS = 30_000;
const OPEN_MS = 10_000;

export type LinkState =
  | { kind: "connecting" }
  | { kind: "live" }
  /** `since_ms`: when the feed was last heard. */
  | { kind: "reconnecting"; since_ms: number };

export interface LiveEvents {
  token(): string | null;
  state(state: LinkState): void;
  message(message: LiveMessage): void;
  /** Asks the server over HTTP whether it is there and takes the token; ends the session itself if not. */
  probe(): Promise<boolean>;
}

export class LiveFeed {
  readonly #events: LiveEvents;
  #socket: WebSocket | null = null;
  #failures = 0;
  #heard_ms = Date.now();
  #greeted = false;
  #closed = false;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #opening: ReturnType<typeof setTimeout> | undefined;
  readonly #watch: ReturnType<typeof setInterval>;
  readonly #online = () => this.#soon();

  constructor(events: LiveEvents) {
    this.#events = events;
    this.#watch = setInterval(() => void this.#lookAfter(), QUIET_MS / 3);
    addEventListener("online", this.#online);
    events.state({ kind: "connecting" });
    this.#open();
  }

  /** A renewed token keeps an open feed from ending with the old one. */
  prolong(token: string) {
    if (this.#greeted && this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ token }));
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#retry);
    clearTimeout(this.#opening);
    clearInterval(this.#watch);
    removeEventListener("online", this.#online);
    const socket = this.#socket;
    // Closing one that is still opening would be an error on the console.
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket?.close();
  }

  #open() {
    const token = this.#events.token();
    if (this.#closed || token === null) return;
    const address = new URL("/api/v1/live", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    this.#socket = socket;
    this.#greeted = false;
    this.#opening = setTimeout(() => socket.close(), OPEN_MS);
    socket.onopen = () => socket.send(JSON.stringify({ token }));
    socket.onmessage = (event) => {
      this.#heard_ms = Date.now();
      const message = read(event.data);
      if (message === null) return;
      if (message.type === "hello") {
        clearTimeout(this.#opening);
        this.#greeted = true;
        this.#failures = 0;
        this.#events.state({ kind: "live" });
      }
      this.#events.message(message);
    };
    socket.onclose = () => {
      if (socket === this.#socket) void this.#lost();
    };
  }

  async #lost() {
    clearTimeout(this.#opening);
    this.#socket = null;
    if (this.#closed) return;
    this.#events.state({ kind: "reconnecting", since_ms: this.#heard_ms });
    // Refused before the greeting: perhaps the token; an HTTP answer says so.
    if (!this.#greeted && this.#failures > 0) await this.#events.probe();
    if (this.#closed) return;
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#open(), backoffMs(this.#failures, Math.random()));
    this.#failures += 1;
  }

  #soon() {
    if (this.#socket !== null || this.#closed) return;
    clearTimeout(this.#retry);
    this.#open();
  }

  async #lookAfter() {
    const socket = this.#socket;
    if (socket === null || !this.#greeted || Date.now() - this.#heard_ms < QUIET_MS) return;
    if (await this.#events.probe()) {
      this.#heard_ms = Date.now();
    } else if (socket === this.#socket) {
      socket.onclose = null;
      socket.close();
      await this.#lost();
    }
  }
}

function read(data: unknown): LiveMessage | null {
  try {
    return JSON.parse(String(data)) as LiveMessage;
  } catch {
    return null;
  }
}
