/**
 * A supervisor's whole way through the page, against the real daemon: sign in, see the machines, meet an alarm, look
 * at the machine, acknowledge. The environment says where and who: BASE_URL, E2E_USER, E2E_PASSWORD; an anomaly has to
 * come within E2E_ALARM_WAIT_S (default 240). Pictures go to SCREENSHOT_DIR. With E2E_CONTROL, a command that takes
 * `stop` or `start` as its last word and does that to the cloud, the loss of the server is tested as well.
 */

import { execSync } from "node:child_process";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { drawnPixels, enter, launch, picture, signIn, userName, visit } from "./browser";

const ALARM_WAIT_MS = Number(process.env.E2E_ALARM_WAIT_S ?? 240) * 1_000;
const CONTROL = process.env.E2E_CONTROL ?? "";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

/** Widens the stretch of time until the anomaly stands in it: a recording may be replayed faster than its time. */
async function findAnomaly(page: Page): Promise<void> {
  const score = page.locator('[data-chart="Anomaly score"]');
  for (const preset of ["15 min", "1 h", "6 h", "24 h", "7 d"]) {
    await page.getByRole("button", { name: preset, exact: true }).click();
    const marked = page.locator('[data-chart="Anomaly score"]:not([data-periods="0"]):not([data-points="0"])');
    if (await marked.waitFor({ timeout: 8_000 }).then(() => true, () => false)) return;
  }
  throw new Error(`no anomaly is marked in the last 7 days; the chart has ${await score.getAttribute("data-points")} points`);
}

async function until(what: string, check: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!(await check())) {
    if (Date.now() > deadline) throw new Error(`not within 20 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

describe("the page", () => {
  test("says so when the name or the password is wrong", async () => {
    const { page, troubles, close } = await visit(browser);
    await enter(page, "nobody-of-that-name", "not the password");
    await page.getByRole("alert").getByText("The name or the password is not right.").waitFor();
    expect(await page.getByLabel("Password").inputValue()).toBe("");
    await picture(page, "sign-in-refused");
    // The refusal itself, and nothing else.
    expect(troubles.filter((trouble) => !trouble.includes("401"))).toEqual([]);
    await close();
  });

  test("leads from sign-in to an acknowledged alarm", async () => {
    const { page, troubles, close } = await visit(browser);
    await signIn(page);
    await page.getByTestId("link").getByText("Live", { exact: true }).waitFor();
    await page.locator("[data-machine]").first().waitFor({ timeout: 60_000 });
    await picture(page, "machines");

    await page.getByRole("navigation").getByRole("link", { name: "Alarms" }).click();
    const waiting = page.locator('[data-condition="anomaly"][data-state="unacknowledged"], [data-condition="anomaly"][data-state="returned_unacknowledged"]');
    await waiting.first().waitFor({ timeout: ALARM_WAIT_MS });
    const alarm = await waiting.first().getAttribute("data-alarm");
    const row = page.locator(`[data-alarm="${alarm}"]`);
    expect(await page.title()).not.toBe("Gemba");
    await picture(page, "alarms");

    await row.getByRole("link").first().click();
    await page.getByTestId("anomalies").waitFor();
    await findAnomaly(page);
    const chart = '[data-chart="Anomaly score"]';
    await until("a line and a shaded anomaly in the score chart", async () => {
      const { line, shade } = await drawnPixels(page, "Anomaly score");
      return line > 50 && shade > 50;
    });
    const sensors = page.locator('[id^="sensor-"]');
    await sensors.first().waitFor();
    const drawn = await drawnPixels(page, (await sensors.first().getAttribute("data-chart")) ?? "");
    expect(drawn.line).toBeGreaterThan(50);
    expect(await page.getByTestId("anomalies").getByRole("list", { name: "Sensors that drove it" }).first().getByRole("listitem").count()).toBeGreaterThan(0);
    await page.locator(chart).scrollIntoViewIfNeeded();
    await picture(page, "machine");

    await page.getByRole("navigation").getByRole("link", { name: "Alarms" }).click();
    await row.getByRole("button", { name: "Acknowledge" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Comment").fill("Seen in the end-to-end test");
    await picture(page, "acknowledge");
    await dialog.getByRole("button", { name: "Acknowledge" }).click();
    await dialog.waitFor({ state: "detached" });
    // Acknowledged, or normal at once if it had returned.
    await page.getByRole("link", { name: "All", exact: true }).click();
    await page.locator(`[data-alarm="${alarm}"][data-state="acknowledged"], [data-alarm="${alarm}"][data-state="normal"]`).waitFor();
    await row.getByText(`by ${userName()}`).waitFor();
    await row.getByText("Seen in the end-to-end test").waitFor();
    await picture(page, "acknowledged");

    await page.getByRole("navigation").getByRole("link", { name: "Gateways" }).click();
    await page.locator("[data-gateway]").first().waitFor();
    await picture(page, "gateways");
    expect(troubles).toEqual([]);
    await close();
  });

  test("fits a phone, in the dark", async () => {
    const { page, troubles, close } = await visit(browser, { viewport: { width: 390, height: 844 }, colorScheme: "dark", isMobile: true, hasTouch: true });
    await signIn(page);
    await page.locator("[data-machine]").first().waitFor();
    await picture(page, "phone-machines");
    await page.locator("[data-machine] a").first().click();
    await page.locator("[data-chart] canvas").first().waitFor();
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    expect(overflow).toBe(0);
    await picture(page, "phone-machine");
    expect(troubles).toEqual([]);
    await close();
  });

  test("keeps the session over a reload and forgets it on sign-out", async () => {
    const { page, troubles, close } = await visit(browser);
    const live = page.getByTestId("link").getByText("Live", { exact: true });
    await signIn(page);
    await live.waitFor();
    await page.reload();
    await live.waitFor();
    await page.locator("[data-machine]").first().waitFor();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    await page.reload();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    expect(troubles).toEqual([]);
    await close();
  });

  test.skipIf(CONTROL === "")("says that the server is gone, and comes back by itself", async () => {
    const { page, close } = await visit(browser);
    await signIn(page);
    await page.getByTestId("link").getByText("Live", { exact: true }).waitFor();
    await page.locator("[data-machine]").first().waitFor();
    execSync(`${CONTROL} stop`, { stdio: "inherit" });
    await page.getByTestId("link").getByText("Reconnecting…").waitFor();
    await page.getByTestId("stale").waitFor();
    await page.getByTestId("link").getByText("Offline since").waitFor();
    expect(await page.locator("[data-machine]").count()).toBeGreaterThan(0);
    await picture(page, "offline");
    execSync(`${CONTROL} start`, { stdio: "inherit" });
    await page.getByTestId("link").getByText("Live", { exact: true }).waitFor({ timeout: 60_000 });
    await page.getByTestId("stale").waitFor({ state: "detached" });
    await close();
  });
});
