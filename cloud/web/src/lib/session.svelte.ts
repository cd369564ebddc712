/**
 * Who is signed in. The access token (15 minutes) lives in memory only; the session goes on with a refresh token in a cookie
 * that no script can read. It is renewed well before the token is over while the page is open, and after a reload.
 */

import type { Login, User } from "./contract";
import { Http, Problem, Unreachable } from "./http";

/** Says that there may be a session to go on with; no secret. */
const KNOWN = "gemba.session";
const RENEW_MS = 5 * 60_000;
const RENEW_AGAIN_MS = 20_000;
const OVER = "Your session has ended. Please sign in again.";

class Session {
  #token = $state<string | null>(null);
  user = $state.raw<User | null>(null);
  mustChangePassword = $state(false);
  /** The session of before the reload is being asked for. */
  restoring = $state(false);
  /** Why the sign-in page is shown, when it is not the beginning. */
  notice = $state("");
  #renewal: ReturnType<typeof setTimeout> | undefined;
  #renewing = false;
  #renewed_at = 0;

  readonly http = new Http({
    token: () => this.#token,
    refused: (token) => {
      // The token may just be over, after a night's sleep of the computer.
      if (token === this.#token) void this.#renew();
    },
    passwordChangeRequired: () => {
      this.mustChangePassword = true;
    },
  });

  constructor() {
    if (localStorage.getItem(KNOWN) !== null) {
      this.restoring = true;
      void this.#renew();
    }
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#token !== null && Date.now() - this.#renewed_at > RENEW_MS) this.#renewLater(0);
    });
  }

  get token(): string | null {
    return this.#token;
  }

  async signIn(name: string, password: string): Promise<void> {
    this.#take(await this.http.post<Login>("/login", { name, password, cookie: true }));
  }

  async changePassword(old: string, next: string): Promise<void> {
    const name = this.user?.name ?? "";
    await this.http.post("/password", { old, new: next });
    // All sessions have ended with the old password.
    try {
      await this.signIn(name, next);
    } catch {
      this.end("The password has been changed. Please sign in with the new one.");
    }
  }

  async signOut(): Promise<void> {
    const told = this.http.post("/logout");
    this.end();
    try {
      await told;
    } catch {
      // Nobody is signed in here any more; the server ends the session with its time.
    }
  }

  end(notice = "") {
    clearTimeout(this.#renewal);
    this.#token = null;
    this.user = null;
    this.mustChangePassword = false;
    this.restoring = false;
    this.notice = notice;
    localStorage.removeItem(KNOWN);
  }

  #take(login: Login) {
    this.#token = login.token;
    this.user = login.user;
    this.mustChangePassword = login.must_change_password;
    this.restoring = false;
    this.notice = "";
    this.#renewed_at = Date.now();
    localStorage.setItem(KNOWN, "1");
    this.#renewLater(RENEW_MS);
  }

  #renewLater(delay: number) {
    clearTimeout(this.#renewal);
    this.#renewal = setTimeout(() => void this.#renew(), delay);
  }

  async #renew(): Promise<void> {
    if (this.#renewing) return;
    this.#renewing = true;
    const before = this.#token;
    try {
      const login = await this.http.post<Login>("/refresh", undefined);
      if (this.#token !== before) return;
      if (this.user !== null && this.user.id !== login.user.id) this.end("Somebody else has signed in in this browser.");
      else this.#take(login);
    } catch (error) {
      if (this.#token !== before) return;
      const passing = error instanceof Unreachable || (error instanceof Problem && error.status >= 429);
      if (passing) this.#renewLater(RENEW_AGAIN_MS);
      else this.end(before === null ? "" : OVER);
    } finally {
      this.#renewing = false;
    }
  }
}

export const session = new Session();
export const http = session.http;
