// Puts the page together, and keeps it up to date.

import { get, keepToken, token } from "./api.js";
import { TimeChart } from "./charts.js";
import { Curve } from "./curve.js";
import { by, card, el } from "./dom.js";
import { Flame } from "./flame.js";
import { History } from "./history.js";
import { Requests } from "./requests.js";
import { Policies, Tenants, Tiers, Workers } from "./tables.js";
import { watchTheme } from "./theme.js";
import { TIER_NAMES, age, byteRate, bytes, count, percent, plural, rate, words } from "./units.js";

const TIERS = ["hbm", "dram", "nvme", "object"];
const REASONS = ["never_stored", "evicted", "admission_refused", "too_late", "expired", "quota", "quarantined", "abandoned", "other_namespace", "removed", "tier_failed", "lost_at_restart"];

const history = new History();
const parts = {};
const charts = {};
let latest = null;

// A router without a store knows what engines say of their own caches, and nothing of tiers.
const hasStore = ({ kind, router }) => kind === "store" || router.store !== "none";

function build(now) {
  const { kind } = now;
  by("kind").textContent = kind;
  const title = hasStore(now) ? "Token hit rate by tier" : "Token hit rate";
  const hit = card({ id: "hits", title, width: "w6", sub: hasStore(now) ? "share of the prompt tokens asked for, by where they were" : "share of the prompt tokens that engines had, as they say" });
  charts.hits = new TimeChart(hit.body, {
    label: title, stacked: true, max: 100, none: "No request in this range.",
    format: (value) => (value === null ? "–" : `${value.toFixed(value < 10 && value % 1 ? 1 : 0)} %`),
    series: hasStore(now) ? TIERS.map((tier) => ({ label: TIER_NAMES[tier], colour: tier })) : [{ label: "cached", colour: "dram" }],
  });
  if (hasStore(now)) buildStore(kind);
  if (kind === "router") {
    const tokens = card({ id: "tokens", title: "Tokens through the router", width: "w6", sub: "of prompts, of them cached, and generated" });
    charts.tokens = new TimeChart(tokens.body, {
      label: "Tokens through the router", none: "No request in this range.", format: (value) => rate(value, "tokens"),
      series: [{ label: "prompt", colour: "c3" }, { label: "cached", colour: "c1" }, { label: "generated", colour: "c2" }],
    });
    const flight = card({ id: "flight", title: "Requests in flight", width: hasStore(now) ? "w6" : "" });
    charts.flight = new TimeChart(flight.body, {
      label: "Requests in flight", areWhole: true, none: "Nothing is known yet.", format: (value) => (value === null ? "–" : plural(value, "request", "requests")),
      series: [{ label: "in flight", colour: "c3" }],
    });
    parts.workers = new Workers();
  }
  parts.requests = new Requests();
  if (hasStore(now)) parts.tenants = new Tenants();
}

function buildStore(kind) {
  const miss = card({ id: "misses", title: "Miss reasons", width: "w6", sub: "blocks that were asked for and not found, by why" });
  charts.misses = new TimeChart(miss.body, {
    label: "Misses by reason", stacked: true, none: "No miss in this range.", format: (value) => rate(value, "blocks"),
    series: REASONS.map((reason, at) => ({ label: words(reason), colour: `m${at + 1}` })),
  });
  parts.curve = new Curve();
  parts.policies = new Policies();
  if (kind === "store") parts.flame = new Flame();
  parts.tiers = new Tiers();
  const moved = card({ id: "moved", title: "Throughput", width: "w6", sub: "payload between clients and the store, and between its tiers" });
  charts.moved = new TimeChart(moved.body, {
    label: "Throughput", none: "Nothing moved in this range.", format: byteRate, areBytes: true,
    series: [
      { label: "clients read", colour: "dram" }, { label: "clients wrote", colour: "c4" },
      { label: "NVMe read", colour: "nvme" }, { label: "NVMe written", colour: "c5" },
      { label: "S3 read", colour: "object" }, { label: "S3 written", colour: "c6" },
    ],
  });
  const fill = card({ id: "fill", title: "Fill", width: "w6", sub: "bytes of blocks in each tier" });
  charts.fill = new TimeChart(fill.body, {
    label: "Fill", none: "Nothing is stored.", format: bytes, areBytes: true,
    series: ["dram", "nvme", "object"].map((tier) => ({ label: TIER_NAMES[tier], colour: tier })),
  });
}

// Counters of the tokens asked for, and of those that were there.
const tokensOf = (now) => (hasStore(now) ? ["requested", TIERS.map((tier) => `hit.${tier}`)] : ["router.prompt", ["router.cached"]]);

function drawCharts(now) {
  const { times, change, last, bucketSeconds } = history.steps();
  const [all, hits] = tokensOf(now);
  const asked = change(all);
  const share = (hit) => hit.map((value, at) => (asked[at] > 0 ? (100 * (value ?? 0)) / asked[at] : null));
  const isAway = hasStore(now) && !now.store;
  charts.hits.none = isAway ? "The store is away." : "No request in this range.";
  charts.hits.set(times, hits.map((name) => share(change(name))));
  const perSecond = (name) => change(name).map((value) => (value === null ? null : value / bucketSeconds));
  charts.tokens?.set(times, ["router.prompt", "router.cached", "router.generated"].map(perSecond));
  charts.flight?.set(times, [last("router.in_flight")]);
  if (!hasStore(now)) return;
  for (const [name, none] of [["misses", "No miss in this range."], ["moved", "Nothing moved in this range."], ["fill", "Nothing is stored."]]) {
    charts[name].none = isAway ? "The store is away." : none;
  }
  const misses = REASONS.map((reason) => perSecond(`miss.${reason}`));
  const any = misses.some((column) => column.some((value) => value > 0));
  charts.misses.set(times, any ? misses : misses.map((column) => column.map(() => null)));
  const together = (names) => {
    const columns = names.map(perSecond);
    return times.map((_, at) => (columns.every((column) => column[at] === null) ? null : columns.reduce((sum, column) => sum + (column[at] ?? 0), 0)));
  };
  const moved = [["shm.read", "tcp.read", "grpc.read"], ["shm.written", "tcp.written", "grpc.written"], ["nvme.read"], ["nvme.written"], ["object.read"], ["object.written"]];
  charts.moved.set(times, moved.map(together));
  charts.fill.set(times, ["dram", "nvme", "object"].map((tier) => last(`${tier}.used`)));
}

function tile(name, value, unit, more) {
  return el("div", { class: "tile" }, el("p", { class: "name" }, name),
    el("p", { class: "value" }, value, unit ? el("small", {}, ` ${unit}`) : null), el("p", { class: "more", title: more }, more));
}

// "12.3 MiB" as a number and its unit.
function apart(text) {
  const at = text.indexOf(" ");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

function drawTiles(now) {
  const { kind, store, router } = now;
  const MINUTE = 60;
  const [requested, names] = tokensOf(now);
  const asked = history.recent(requested, MINUTE).change;
  const hit = names.reduce((sum, name) => sum + (history.recent(name, MINUTE).change ?? 0), 0);
  const tiles = [];
  const [share, sign] = apart(percent(asked > 0 ? hit / asked : null));
  const all = hasStore(now)
    ? (store?.namespaces ?? []).reduce((sum, { requested_tokens: a, hit_tokens: h }) => [sum[0] + a, sum[1] + h], [0, 0])
    : [history.newest("router.prompt") ?? 0, history.newest("router.cached") ?? 0];
  const ever = all[0] > 0 ? `${percent(all[1] / all[0])} since the start` : hasStore(now) && !store ? "the store is away" : "nothing was asked for yet";
  tiles.push(tile("Token hit rate, last minute", share, sign, ever));
  const [tokens, tokensUnit] = apart(rate(history.perSecond(requested), "tokens"));
  tiles.push(tile("Asked for", tokens, tokensUnit, `${count(all[0])} since the start`));
  if (kind === "router") {
    const [generated, unit] = apart(rate(history.perSecond("router.generated"), "tokens"));
    tiles.push(tile("Generated", generated, unit, plural(router.requests_in_flight, "request in flight", "requests in flight")));
    const ready = router.workers.filter(({ state }) => state === "ready").length + (router.backends ?? []).filter(({ state }) => state === "ready").length;
    const known = router.workers.length + (router.backends ?? []).length;
    tiles.push(tile("Workers ready", `${ready} of ${known}`, "", router.status));
  }
  for (const { tier, used_bytes: used, capacity_bytes: capacity } of store?.tiers ?? []) {
    const [size, unit] = apart(bytes(used));
    tiles.push(tile(TIER_NAMES[tier], size, unit, capacity > 0 ? `${percent(used / capacity)} of ${bytes(capacity)}` : "no bound"));
  }
  if (kind === "store") {
    const [evicted, unit] = apart(rate(history.perSecond("dram.evictions"), "blocks"));
    tiles.push(tile("Evictions from DRAM", evicted, unit, `${count(store.tiers[0]?.evictions ?? 0)} since the start`));
    tiles.push(tile("Sessions", count(store.sessions), "", `${count(store.read_leases)} read, ${count(store.write_leases)} write leases`));
  } else if (!store) {
    const [state, more] = hasStore(now) ? ["away", "its figures are not known"] : ["none", "what engines cache is their own"];
    tiles.push(tile("Store", state, "", more));
  }
  by("tiles").replaceChildren(...tiles);
}

function live(state, text) {
  by("live").dataset.state = state;
  if (by("live-text").textContent !== text) by("live-text").textContent = text;
}

async function look(round) {
  const now = await get("now");
  latest = now;
  if (!parts.requests) build(now);
  await history.poll();
  drawTiles(now);
  drawCharts(now);
  parts.policies?.set(now.store);
  parts.tiers?.set(now.store, history, now.moves);
  parts.tenants?.set(now.store);
  parts.workers?.set(now.router, now.store);
  if (parts.flame) {
    parts.flame.mayChange = now.may_change;
    parts.flame.setNamespaces([...now.store.namespaces].sort((one, other) => other.bytes - one.bytes));
    by("token").hidden = !now.may_change;
    by("token").textContent = token() ? "Token given" : "Token";
  }
  if (round % 2 === 0) await parts.requests.poll();
  if (round % 5 === 0) await Promise.all([parts.curve?.poll(!now.store), parts.flame?.poll()]);
  const model = now.router?.model ?? now.store?.namespaces[0]?.model;
  document.title = model ? `Kelvin ${now.kind} · ${model}` : `Kelvin ${now.kind}`;
  by("kind").textContent = model ? `${now.kind} · ${model}` : now.kind;
  const kept = `History: ${bytes(now.history_memory_bytes)} of at most ${bytes(now.history_memory_bytes_max)} of memory; an hour by the second, a day by the minute.`;
  const link = now.store_page ? [" ", el("a", { href: now.store_page }, "The store's own page"), " has the prefix tree and its actions."] : [];
  by("foot").replaceChildren(`Kelvin ${now.version}${now.store ? `, store up ${age(now.store.uptime_ms)}` : ""}. ${kept} Prompts are known here by hashes alone. `, el("a", { href: "/metrics" }, "/metrics"), ...link);
  live("live", "live, every second");
}

async function run() {
  for (let round = 0; ; round += 1) {
    try {
      if (!document.hidden) await look(round);
    } catch (error) {
      console.warn(error);
      live("away", "no answer; trying again");
    }
    document.body.dataset.rounds = String(round + 1);
    await new Promise((done) => setTimeout(done, 1000));
  }
}

watchTheme(() => {
  Object.values(charts).forEach((chart) => chart.redraw());
  parts.curve?.redraw();
});
by("range").addEventListener("change", async () => {
  history.seconds = Number(by("range").value);
  await history.poll();
  if (latest) drawCharts(latest);
});
by("token").addEventListener("click", () => {
  by("token-input").value = "";
  by("token-dialog").showModal();
});
by("token-dialog").addEventListener("close", () => {
  const { returnValue } = by("token-dialog");
  if (returnValue === "save") keepToken(by("token-input").value.trim());
  if (returnValue === "forget") keepToken("");
  by("token-input").value = "";
  by("token").textContent = token() ? "Token given" : "Token";
  parts.flame?.poll();
});
run();
