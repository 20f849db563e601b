// The page in a browser, and what must hold of it wherever it is opened.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

// The packages are outside the checkout, where cli/setup.sh put them.
const packages = createRequire(join(process.env.KELVIN_UI_PACKAGES, "package.json"));
const { chromium } = packages("playwright-core");
const AXE = readFileSync(packages.resolve("axe-core/axe.min.js"), "utf8");

const SHOTS = process.env.KELVIN_SCREENSHOTS ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "kelvin", "screenshots");

export async function startBrowser() {
  return chromium.launch({
    executablePath: process.env.KELVIN_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
  });
}

// Opens a page and notes everything that it must not do.
export async function open(browser, url, { width = 1440, height = 900, colorScheme = "light" } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, reducedMotion: "reduce" });
  const page = await context.newPage();
  const wrong = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) wrong.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => wrong.push(`error: ${error.message}`));
  page.on("request", (request) => {
    if (new URL(request.url()).host !== new URL(url).host) wrong.push(`request: ${request.url()}`);
  });
  page.on("response", (response) => {
    if (response.status() >= 400) wrong.push(`${response.status()}: ${response.url()}`);
  });
  await page.goto(url);
  return { page, context, wrong };
}

// Waits until the page has looked so many times more.
export async function rounds(page, more) {
  const now = Number((await page.evaluate(() => document.body.dataset.rounds)) ?? 0);
  await page.waitForFunction((until) => Number(document.body.dataset.rounds ?? 0) >= until, now + more, { timeout: 60000 });
}

// Serious faults that axe finds, by rule and element.
export async function faults(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  return serious.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target.join(" ")}: ${node.failureSummary}`));
}

// Whether something is drawn on each canvas of a card.
export async function isDrawn(page, id) {
  return page.evaluate((card) => {
    const canvases = [...document.querySelectorAll(`#${card} canvas`)];
    return canvases.length > 0 && canvases.every((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const seen = new Set();
      for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] > 0) seen.add((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
      }
      return seen.size > 8;
    });
  }, id);
}

// Elements that stick out of the window, or text that is cut where it should not be.
export async function overflows(page) {
  return page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const out = [...document.querySelectorAll("main *")].filter((node) => node.getBoundingClientRect().right > width + 1 && !node.closest(".scroll, .flame"));
    return ["the page scrolls sideways", ...out.slice(0, 5).map((node) => `${node.tagName}.${node.className}`)];
  });
}

export async function shoot(page, name) {
  mkdirSync(SHOTS, { recursive: true });
  // The head stays at the top of the window, and would be in the midst of a picture of all of the page.
  await page.evaluate(() => globalThis.scrollTo(0, 0));
  await page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
}
