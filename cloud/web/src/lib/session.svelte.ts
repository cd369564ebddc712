/**
 * Who is signed in. The token lives in memory and in `sessionStorage` (this tab only), is renewed well before its
 * 15 minutes are over while the page is open, and is forgotten when the server refuses it.
 */

import type { Login, User } from "./contract";
import { Http, Problem, Unreachable } from "./http";

const STORED = "gemba.session";
const RENEW_MS = 5 * 60_000;
const RENEW_AGAIN_MS = 20_000;

interface Stored {
  token: string;
  user: User;
  must_change_password: boolean;
}

class Session {
  #token = $state<string | null>(null);
  user = $state.raw<User | null>(null);
  mustChangePassword = $state(false);
  /** Why the sign-in page is shown, when it is not the beginning. */
  notice = $state("");
  #renewal: ReturnType<typeof setTimeout> | undefined;
  #renewed_at = 0;

  readonly http = new Http({
    token: () => this.#token,
    refused: (token) => {
      if (token === this.#token) this.end("Your session has ended. Please sign in again.");
    },
    passwordChangeRequired: () => {
      this.mustChangePassword = true;
    },
  });

  constructor() {
    const stored = read();
    if (stored) {
      this.#token = stored.token;
      this.user = stored.user;
      this.mustChangePassword = stored.must_change_password;
      this.#renewLater(0);
    }
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#token !== null && Date.now() - this.#renewed_at > RENEW_MS) this.#renewLater(0);
    });
  }

  get token(): string | null {
    return this.#token;
  }

  async signIn(name: string, password: string): Promise<void> {
    this.#take(await this.http.post<Login>("/login", { name, password }));
  }

  async changePassword(old: string, next: string): Promise<void> {
    const name = this.user?.name ?? "";
    await this.http.post("/password", { old, new: next });
    // Tokens made before the change may no longer be taken.
    try {
      await this.signIn(name, next);
    } catch {
      this.end("The password has been changed. Please sign in with the new one.");
    }
  }

  end(notice = "") {
    clearTimeout(this.#renewal);
    this.#token = null;
    this.user = null;
    this.mustChangePassword = false;
    this.notice = notice;
    sessionStorage.removeItem(STORED);
  }

  #take(login: Login) {
    this.#token = login.token;
    this.user = login.user;
    this.mustChangePassword = login.must_change_password;
    this.notice = "";
    this.#renewed_at = Date.now();
    const stored: Stored = { token: login.token, user: login.user, must_change_password: login.must_change_password };
    sessionStorage.setItem(STORED, JSON.stringify(stored));
    this.#renewLater(RENEW_MS);
  }

  #renewLater(delay: number) {
    clearTimeout(this.#renewal);
    this.#renewal = setTimeout(() => void this.#renew(), delay);
  }

  async #renew(): Promise<void> {
    const token = this.#token;
    if (token === null || this.mustChangePassword) return;
    try {
      const login = await this.http.post<Login>("/token");
      if (this.#token === token) this.#take(login);
    } catch (error) {
      const passing = error instanceof Unreachable || (error instanceof Problem && error.status >= 429);
      if (this.#token === token && passing) this.#renewLater(RENEW_AGAIN_MS);
    }
  }
}

function read(): Stored | null {
  try {
    const stored = JSON.parse(sessionStorage.getItem(STORED) ?? "null") as Stored | null;
    return stored && typeof stored.token === "string" && typeof stored.user?.name === "string" ? stored : null;
  } catch {
    return null;
  }
}

export const session = new Session();
export const http = session.http;
