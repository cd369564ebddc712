/** A real Chromium, signed in as a person would be, that notes everything that goes wrong. */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { type Browser, type Page, chromium } from "playwright-core";

const ADDRESS = needed("GEMBA_URL", "taken from BASE_URL: the address of the running gemba-cloud, such as http://127.0.0.1:8080");
const USER = needed("E2E_USER", "the name of a user who may acknowledge alarms");
let password = needed("E2E_PASSWORD", "that user's password, one-time or not");
const SCREENSHOT_DIR = process.env.SCREENSHOT_DIR ?? "";
const PATIENCE_MS = 30_000;

function needed(name: string, what: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: it is ${what}`);
  return value;
}

export function launch(): Promise<Browser> {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
    ],
  });
}

export interface Visit {
  page: Page;
  /** Console errors, exceptions, failed requests and refusals, in order. */
  troubles: string[];
  close(): Promise<void>;
}

export async function visit(browser: Browser, options: Parameters<Browser["newContext"]>[0] = {}): Promise<Visit> {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const troubles: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") troubles.push(`console ${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => troubles.push(`exception: ${error.message}`));
  page.on("requestfailed", (request) => {
    const why = request.failure()?.errorText ?? "";
    // The page gives up a request itself when its answer is no longer wanted.
    if (why !== "net::ERR_ABORTED") troubles.push(`request failed: ${request.method()} ${request.url()} ${why}`);
  });
  page.on("response", (response) => {
    if (response.status() >= 400) troubles.push(`answered ${response.status()}: ${response.url()}`);
  });
  await page.goto(ADDRESS);
  return { page, troubles, close: () => context.close() };
}

export async function enter(page: Page, name: string, secret: string): Promise<void> {
  await page.getByLabel("Name").fill(name);
  await page.getByLabel("Password").fill(secret);
  await page.getByRole("button", { name: "Sign in" }).click();
}

/** Signs in, and replaces a one-time password when asked to. */
export async function signIn(page: Page): Promise<void> {
  await enter(page, USER, password);
  const inside = page.getByRole("heading", { name: "Machines", level: 1 });
  const choose = page.getByRole("heading", { name: "Choose your password" });
  await inside.or(choose).waitFor();
  if (await choose.isVisible()) {
    const next = process.env.E2E_NEW_PASSWORD ?? `${password}-and-my-own`;
    await page.getByLabel("One-time password").fill(password);
    await page.getByLabel("New password", { exact: true }).fill(next);
    await page.getByLabel("New password, again").fill(next);
    await page.getByRole("button", { name: "Save and go on" }).click();
    await inside.waitFor();
    password = next;
  }
}

export function userName(): string {
  return USER;
}

export async function picture(page: Page, name: string): Promise<void> {
  if (SCREENSHOT_DIR === "") return;
  mkdirSync(SCREENSHOT_DIR, { recursive: true });
  await page.screenshot({ path: join(SCREENSHOT_DIR, `${name}.png`) });
}

/** How many pixels of a chart's canvas have the colour of its line, and how many that of an anomaly's shade. */
export function drawnPixels(page: Page, chart: string): Promise<{ line: number; shade: number }> {
  return page.locator(`[data-chart="${chart}"] canvas`).evaluate((element) => {
    const canvas = element as HTMLCanvasElement;
    const style = getComputedStyle(document.documentElement);
    const scratch = document.createElement("canvas");
    Object.assign(scratch, { width: canvas.width, height: canvas.height });
    const probe = scratch.getContext("2d", { willReadFrequently: true });
    if (probe === null) return { line: 0, shade: 0 };
    const colour = (name: string) => {
      probe.clearRect(0, 0, 1, 1);
      probe.fillStyle = style.getPropertyValue(name);
      probe.fillRect(0, 0, 1, 1);
      return [...probe.getImageData(0, 0, 1, 1).data];
    };
    const colours = new Map(["--trend", "--anomaly-fill", "--anomaly-lead"].map((name) => [name, colour(name)]));
    probe.clearRect(0, 0, 1, 1);
    probe.drawImage(canvas, 0, 0);
    const pixels = probe.getImageData(0, 0, canvas.width, canvas.height).data;
    const count = (name: string) => {
      const wanted = colours.get(name) ?? [];
      let found = 0;
      for (let i = 0; i < pixels.length; i += 4) {
        if (wanted.every((part, channel) => Math.abs((pixels[i + channel] ?? 0) - part) <= 12)) found += 1;
      }
      return found;
    };
    return { line: count("--trend"), shade: count("--anomaly-fill") + count("--anomaly-lead") };
  });
}
