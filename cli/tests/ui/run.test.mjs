// Browser tests of the built-in page on a real cluster under load: `make test-ui`.
//
// Every chart draws, the numbers are those of Stats, zoom and actions work, nothing is asked of another host, no
// error is logged, axe finds no serious fault. Screenshots go to $KELVIN_SCREENSHOTS.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { TOKEN, startCluster, startLoad, startRouter } from "./cluster.mjs";
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
        const colours = await page.evaluate(() => [...document.querySelectorAll("#misses .legend .key")].map((key) => getComputedStyle(key).backgroundColor));
        assert.deepEqual([colours.length, new Set(colours).size], [12, 12], "each reason has a colour of its own");
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

test("charts say which moment their numbers are of", async () => {
  const { page, context, wrong } = await settled("store");
  assert.equal(await page.textContent("#hits .legend time"), "now");
  await page.locator("#hits .u-over").hover({ position: { x: 60, y: 40 } });
  await page.waitForFunction(() => /^\d\d:\d\d:\d\d$/.test(document.querySelector("#hits .legend time").textContent));
  assert.match(await page.textContent("#curve .note"), /^With .*iB, as now: .* % hit\.$/);
  await page.locator("#curve .u-over").hover({ position: { x: 30, y: 40 } });
  await page.waitForFunction(() => /^With [^,]*B: .* % hit\.$/.test(document.querySelector("#curve .note").textContent));
  assert.deepEqual(wrong, []);
  await context.close();
});

test("what more memory buys is worked out by what tiers hold together", async () => {
  const { page, context } = await open(browser, `${cluster.store_admin}/ui/`);
  const found = await page.evaluate(async () => {
    const { below, buys, enough, sizes } = await import("/ui/curve.js");
    const [MIB, points] = [2 ** 20, [[2 ** 20, 0.1], [2 ** 24, 0.5], [2 ** 26, 0.9]]];
    const upTo = (...given) => sizes(...given).map((size) => size.upTo / MIB);
    return {
      inclusive: upTo({ dram: 4 * MIB, nvme: 16 * MIB, object: 0 }),
      exclusive: upTo({ dram: 4 * MIB, nvme: 16 * MIB, object: 64 * MIB }, true),
      smaller: upTo({ dram: 16 * MIB, nvme: 4 * MIB }),
      // More of a tier that is smaller than the one above it, and stays so, buys nothing.
      gains: buys(points, { dram: 16 * MIB, nvme: 4 * MIB }).map(({ tier, gain }) => [tier, gain > 0]),
      enough: [1, MIB, MIB + 1, 33 * MIB].map((size) => enough(size) / MIB),
      below: below(points, { dram: MIB }).size / MIB,
      none: below(points, { dram: MIB, nvme: MIB }),
    };
  });
  assert.deepEqual(found, {
    inclusive: [4, 16], exclusive: [4, 20, 64], smaller: [16, 16], gains: [["dram", true], ["nvme", false]],
    enough: [1, 1, 2, 64], below: 64, none: null,
  });
  await context.close();
});

test("tables stay where they were scrolled to, and keep the focus", async () => {
  const { page, context, wrong } = await settled("store", { width: 390 });
  for (const id of ["tenants", "requests"]) {
    const area = page.locator(`#${id} .scroll`);
    await area.evaluate((node) => { node.scrollLeft = 120; node.focus(); });
    await rounds(page, 3);
    assert.deepEqual(await area.evaluate((node) => [node.scrollLeft, document.activeElement === node]), [120, true], id);
  }
  await page.locator("#requests button[data-id]").first().focus();
  const id = await page.evaluate(() => document.activeElement.dataset.id);
  await rounds(page, 3);
  const still = await page.evaluate(() => document.activeElement.dataset.id);
  assert.equal(still, id);
  assert.deepEqual(wrong, []);
  await context.close();
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
  // The root of what is zoomed leads out again, however often it is chosen.
  await root.dblclick();
  await page.waitForSelector("#tree .crumbs button");
  await page.locator("#tree [role=treeitem]").first().click();
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
  // Whichever tier is shown: what is evicted goes from all of them.
  const behind = await page.evaluate(() => [...document.querySelectorAll("#tree .detail dd")].map((node) => node.textContent)[1].split(",")[0]);
  await page.getByLabel("Bytes of which tier").selectOption("dram");
  await page.getByRole("button", { name: "Evict…" }).click();
  const sure = page.getByRole("button", { name: /^Evict .* really$/ });
  assert.equal(await sure.textContent(), `Evict ${behind}, really`);
  await sure.click();
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
    await page.waitForFunction(() => /\.$/.test(document.querySelector("#requests tr.more")?.textContent ?? ""));
    const told = await page.textContent("#requests tr.more");
    const cached = await page.evaluate((column) => document.querySelector("#requests tr:has(+ tr.more)").children[column].textContent, kind === "router" ? 7 : 5);
    if (/^0\.0 %$/.test(cached)) assert.doesNotMatch(told, /Every whole block/);
    assert.doesNotMatch(told, /^First missing block \w+ stored/, "why it was missing then, not where it is now");
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

test("a router without a store shows what engines say, and no empty cards of a store", async () => {
  const router = await startRouter(cluster);
  const own = startLoad({ listen: router.listen, model: cluster.model });
  for (const width of [1440, 390]) {
    const { page, context, wrong } = await open(browser, `${router.router_admin}/ui/`, { width });
    await rounds(page, 12);
    assert.ok(await isDrawn(page, "hits"));
    for (const id of ["misses", "curve", "policies", "tiers", "moved", "fill", "tenants"]) assert.equal(await page.locator(`#${id}`).count(), 0, id);
    assert.match(await page.textContent("#tiles .tile:first-child .more"), / % since the start$/);
    await page.locator("#requests button[data-id]").first().click();
    await page.waitForFunction(() => /Another engine served it/.test(document.querySelector("#requests tr.more")?.textContent ?? ""));
    // What is explained is in sight, however wide the table is.
    assert.ok(await page.locator("#requests tr.more td > *").evaluate((node) => node.getBoundingClientRect().right <= innerWidth));
    await shoot(page, `router-alone-${width}`);
    assert.deepEqual(await overflows(page), []);
    assert.deepEqual(await faults(page), []);
    assert.deepEqual(wrong, []);
    await context.close();
  }
  await own.stop();
  await router.stop();
});

test("a store that is away is said to be", async () => {
  const router = await startRouter(cluster, "--store", "http://127.0.0.1:9");
  const { page, context, wrong } = await open(browser, `${router.router_admin}/ui/`);
  await rounds(page, 6);
  for (const id of ["hits", "misses", "curve", "policies", "tiers", "moved", "fill", "tenants"]) {
    assert.match(await page.textContent(`#${id} .empty`), /store is away/, id);
  }
  await shoot(page, "router-away-1440");
  assert.deepEqual(wrong, []);
  await context.close();
  await router.stop();
});

test("an empty store and long names are shown as well", async () => {
  const name = `organisation-with-a-long-name/${"model-of-a-long-name-".repeat(5)}instruct`;
  const empty = await startCluster("--model-name", name);
  const look = async (kind, width, what) => {
    const { page, context, wrong } = await open(browser, `${empty[`${kind}_admin`]}/ui/`, { width });
    await rounds(page, 6);
    await shoot(page, `${kind}-${what}-${width}`);
    assert.deepEqual(await overflows(page), []);
    assert.deepEqual(await faults(page), []);
    assert.deepEqual(wrong, []);
    await context.close();
  };
  for (const [kind, width] of [["store", 1440], ["store", 390], ["router", 1440]]) await look(kind, width, "empty");
  const some = startLoad({ listen: empty.listen, model: name });
  for (const [kind, width] of [["store", 1440], ["store", 390], ["router", 390]]) await look(kind, width, "long-name");
  await some.stop();
  await empty.stop();
});

test("it says so when the store has nothing, and when it is gone", async () => {
  const { page, context } = await settled("router");
  await page.route("**/ui/api/*", (route) => route.abort());
  await page.waitForFunction(() => document.getElementById("live").dataset.state === "away");
  await page.unroute("**/ui/api/*");
  await page.waitForFunction(() => document.getElementById("live").dataset.state === "live");
  await context.close();
});
