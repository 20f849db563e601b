// Browser tests of the built-in page on a real cluster under load: `make test-ui`.
//
// Every chart draws, the numbers are those of Stats, zoom and actions work, nothing is asked of another host, no
// error is logged, axe finds no serious fault. Screenshots go to $KELVIN_SCREENSHOTS.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { TOKEN, startCluster, startLoad } from "./cluster.mjs";
import { faults, isDrawn, open, overflows, rounds, shoot, startBrowser } from "./page.mjs";

let cluster;
let load;
let browser;

before(async () => {
  cluster = await startCluster();
  load = startLoad(cluster);
  browser = await startBrowser();
  // Enough history for the charts, and enough requests for curves and ghosts.
  const page = await open(browser, `${cluster.store_admin}/ui/`);
  await page.page.waitForFunction(() => Number(document.body.dataset.rounds) >= 25, null, { timeout: 120000 });
  await page.context.close();
});

after(async () => {
  await load?.stop();
  await browser?.close();
  await cluster?.stop();
});

const stats = () => JSON.parse(execFileSync(process.env.KELVIN_BIN, ["stats", "--store", cluster.store, "--json"], { encoding: "utf8" }));
const api = async (base, path) => (await fetch(`${base}/ui/api/${path}`)).json();

async function settled(kind, options) {
  const opened = await open(browser, `${cluster[`${kind}_admin`]}/ui/`, options);
  await rounds(opened.page, 8);
  return opened;
}

for (const [kind, cards] of [["store", ["hits", "misses", "curve", "moved", "fill"]], ["router", ["hits", "misses", "curve", "moved", "fill", "tokens", "flight"]]]) {
  test(`the ${kind}'s charts draw, at both widths and in both themes`, async () => {
    for (const width of [1440, 390]) {
      for (const colorScheme of ["light", "dark"]) {
        const { page, context, wrong } = await settled(kind, { width, colorScheme });
        for (const card of cards) assert.ok(await isDrawn(page, card), `${card} is not drawn at ${width} in ${colorScheme}`);
        await shoot(page, `${kind}-${width}-${colorScheme}`);
        assert.deepEqual(await overflows(page), []);
        assert.deepEqual(await faults(page), []);
        assert.deepEqual(wrong, []);
        await context.close();
      }
    }
  });
}

test("its numbers are those of Stats", async () => {
  const before = stats();
  const { store } = await api(cluster.store_admin, "now");
  const behind = stats();
  const between = (name, low, value, high) => assert.ok(low <= value && value <= high, `${name}: ${low} <= ${value} <= ${high}`);
  const tokens = ({ namespaces }, field) => namespaces.reduce((sum, of) => sum + of[field] * of.block_tokens, 0);
  const shown = (field) => store.namespaces.reduce((sum, of) => sum + of[field], 0);
  between("requested", tokens(before, "match_blocks"), shown("requested_tokens"), tokens(behind, "match_blocks"));
  between("hits", tokens(before, "hit_blocks"), shown("hit_tokens"), tokens(behind, "hit_blocks"));
  between("evictions", before.tiers[0].evictions, store.tiers[0].evictions, behind.tiers[0].evictions);
  assert.equal(store.tiers[0].capacity_bytes, behind.tiers[0].capacity_bytes);

  // What is on the screen is the history's last minute; with the load stopped all of it stands still.
  await load.stop();
  const { page, context, wrong } = await settled("store");
  const still = stats();
  const told = await page.textContent("#tiles .tile:first-child .more");
  const share = tokens(still, "hit_blocks") / tokens(still, "match_blocks");
  assert.equal(told, `${(share * 100).toFixed(1)} % since the start`);
  const { series } = await api(cluster.store_admin, "history?since=0");
  assert.equal(series.requested.values.at(-1), tokens(still, "match_blocks"));
  assert.deepEqual(wrong, []);
  await context.close();
  load = startLoad(cluster);
});

test("the tree zooms by mouse and by keys", async () => {
  const { page, context, wrong } = await settled("store");
  const boxes = () => page.locator("#tree [role=treeitem]").count();
  assert.ok((await boxes()) > 3);
  const root = page.locator("#tree [role=treeitem]").first();
  await root.click();
  await page.waitForSelector("#tree .detail dl");
  assert.match(await page.textContent("#tree .detail"), /tokens.*used|Used/s);
  await root.focus();
  await page.keyboard.press("ArrowDown");
  const child = await page.evaluate(() => document.activeElement.dataset.hash);
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-level")), "2");
  await page.keyboard.press("Enter");
  await page.waitForFunction((hash) => document.querySelector("#tree [role=treeitem]")?.dataset.hash === hash, child);
  await page.waitForSelector("#tree .crumbs button");
  await shoot(page, "store-zoomed");
  await page.getByRole("button", { name: "whole tree" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#tree .crumbs button").length === 0);
  assert.deepEqual(wrong, []);
  await context.close();
});

test("actions want a token, and work with it", async () => {
  // Nothing is evicted meanwhile by others.
  await load.stop();
  const { page, context } = await settled("store");
  const named = () => page.locator("#tree .detail");
  // The last is a small one: not all of the memory may be pinned.
  await page.locator("#tree [role=treeitem]").last().click();
  await page.waitForSelector("#tree .detail dl");
  assert.match(await named().textContent(), /operator's token/);
  const give = async (token) => {
    await page.locator("#token").click();
    await page.locator("#token-input").fill(token);
    await page.getByRole("button", { name: "Use it" }).click();
  };
  const say = async (pattern) => page.waitForFunction((text) => new RegExp(text).test(document.querySelector("#tree .say").textContent), pattern);
  await give("wrong");
  await page.locator("#tree .detail").getByRole("button", { name: "Prefetch" }).click();
  await say("^Not done: the bearer token");
  await give(TOKEN);
  await page.getByRole("button", { name: "Pin for 1 h" }).click();
  await say("^Pinned .* for an hour");
  assert.ok(stats().pins.soft >= 1);
  await page.getByRole("button", { name: "Unpin this page's pins" }).click();
  await say("^Ended 1 pin");
  await page.getByRole("button", { name: "Prefetch" }).click();
  await say("brought to DRAM");
  await page.getByLabel("Name of this prefix").fill("everything about caches");
  await page.getByRole("button", { name: "Name it" }).click();
  await say("^It is called everything about caches");
  await page.waitForFunction(() => document.querySelector("#tree .detail h3").textContent.startsWith("everything about caches"));
  await shoot(page, "store-acting");
  await page.getByRole("button", { name: "Evict…" }).click();
  await page.getByRole("button", { name: /^Evict .* really$/ }).click();
  await say("^Evicted ");
  await context.close();
  load = startLoad(cluster);
});

test("changes from elsewhere are refused", async () => {
  const { store } = await api(cluster.store_admin, "now");
  const namespace = store.namespaces[0].id;
  const post = async (headers, host = cluster.store_admin) => {
    const body = JSON.stringify({ action: "unpin", namespace });
    return (await fetch(`${host}/ui/api/act`, { method: "POST", headers, body })).status;
  };
  const authorization = `Bearer ${TOKEN}`;
  assert.equal(await post({ authorization }), 200);
  assert.equal(await post({}), 401);
  assert.equal(await post({ authorization: "Bearer wrong" }), 401);
  assert.equal(await post({ authorization, origin: "http://elsewhere.example" }), 403);
  assert.equal(await post({ authorization }, cluster.router_admin), 403);
  assert.equal((await fetch(`${cluster.store_admin}/ui/api/act`)).status, 405);
});

test("requests are explained, and no word of a prompt is anywhere", async () => {
  for (const kind of ["store", "router"]) {
    const { page, context, wrong } = await settled(kind);
    await page.getByRole("button", { name: "Missed most" }).click();
    const explain = page.locator("#requests button[data-id]").first();
    await explain.click();
    await page.waitForFunction(() => /block|whole/.test(document.querySelector("#requests tr.more")?.textContent ?? ""));
    await shoot(page, `${kind}-explained`);
    assert.deepEqual(wrong, []);
    const all = await Promise.all(["now", "requests", "mrc", "history?since=0"].map((path) => api(cluster[`${kind}_admin`], path)));
    assert.doesNotMatch(JSON.stringify(all), /orchards|glaciers|Conversation/);
    await context.close();
  }
  const { recent } = await api(cluster.router_admin, "requests");
  const one = recent.find(({ done }) => done);
  for (const id of [one.id, one.unique, `cmpl-${one.unique}`]) {
    assert.equal((await api(cluster.router_admin, `requests/${id}`)).prompt_tokens, one.prompt_tokens);
  }
});

test("it says so when the store has nothing, and when it is gone", async () => {
  const { page, context } = await settled("router");
  await page.route("**/ui/api/*", (route) => route.abort());
  await page.waitForFunction(() => document.getElementById("live").dataset.state === "away");
  await page.unroute("**/ui/api/*");
  await page.waitForFunction(() => document.getElementById("live").dataset.state === "live");
  await context.close();
});
