// What is told in tables and bars: policies, tiers, tenants, workers.

import { badge, card, el, empty, show, table } from "./dom.js";
import { TIER_NAMES, age, byteRate, bytes, count, micros, percent, plural, rate, words } from "./units.js";

const HEALTH = { ok: "good", degraded: "warn", failed: "bad" };

export class Policies {
  constructor() {
    this.card = card({ id: "policies", title: "Policies compared", width: "w6", sub: "what each would have hit in DRAM, on a sample of the same requests" });
  }

  set(store) {
    const policies = [...(store?.policies ?? [])].sort((one, other) => other.hit_rate - one.hit_rate);
    if (policies.length === 0) {
      show(this.card.body, empty(store ? "No comparison yet: the ghosts need more requests than DRAM has room for." : "The store is away."));
      return;
    }
    const own = store.tiers.find(({ tier }) => tier === "dram")?.policy;
    const rows = policies.flatMap(({ policy, hit_rate: hits }) => {
      const mine = policy === own ? "mine" : null;
      return [
        el("span", { class: mine }, words(policy)),
        el("span", { class: "track" }, el("span", { style: { width: `${hits * 100}%`, background: mine ? "var(--c1)" : "var(--c2)" } })),
        el("span", { class: `value ${mine ?? ""}` }, percent(hits)),
      ];
    });
    const best = policies[0];
    const now = policies.find(({ policy }) => policy === own);
    const gain = now ? (best.hit_rate - now.hit_rate) * 100 : 0;
    const verdict = now === undefined ? `DRAM goes by ${words(own)}.`
      : gain < 0.1 ? `DRAM goes by ${words(own)}, and none does better.`
        : `DRAM goes by ${words(own)}; ${words(best.policy)} would hit ${gain.toFixed(1)} points more.`;
    show(this.card.body, el("div", { class: "bars" }, rows), el("p", { class: "note", style: { marginTop: "8px" } }, verdict));
  }
}

export class Tiers {
  constructor() {
    this.card = card({ id: "tiers", title: "Tiers", sub: "fill, throughput, latency" });
  }

  set(store, history, moves = []) {
    if (!store) {
      show(this.card.body, empty("The store is away: nothing is known of its tiers."));
      return;
    }
    show(this.card.body, el("div", { class: "tiers" }, store.tiers.map((tier) => this.#tier(tier, history, store, moves))));
  }

  #tier(stats, history, store, moves) {
    const { tier, capacity_bytes: capacity, used_bytes: used } = stats;
    const share = capacity > 0 ? used / capacity : null;
    const facts = [];
    const fact = (name, value) => facts.push(el("dt", {}, name), el("dd", {}, value));
    fact("blocks", count(stats.blocks));
    if (tier === "dram") {
      const sum = (way) => ["shm", "tcp", "grpc"].reduce((total, via) => total + (history.perSecond(`${via}.${way}`) ?? 0), 0);
      fact("read by clients", byteRate(sum("read")));
      fact("written by clients", byteRate(sum("written")));
      fact("leases", `${count(store.read_leases)} read, ${count(store.write_leases)} write`);
      fact("pinned", `${bytes(store.pins.bytes)} in ${plural(store.pins.soft + store.pins.hard, "pin", "pins")}`);
      fact("evictions", `${rate(history.perSecond("dram.evictions"), "blocks")}`);
    } else {
      fact("read", `${byteRate(history.perSecond(`${tier}.read`))}, ${rate(history.perSecond(`${tier}.reads`), "reads")}`);
      fact("written", `${byteRate(history.perSecond(`${tier}.written`))}, ${rate(history.perSecond(`${tier}.writes`), "writes")}`);
      fact("a read of 1 MiB", stats.mebibyte_read_us > 0 ? micros(stats.mebibyte_read_us) : "not measured yet");
      for (const { from, to, count: n, p50_us: p50, p99_us: p99 } of moves.filter((move) => move.from === tier || move.to === tier)) {
        if (n > 0) fact(`${TIER_NAMES[from]} → ${TIER_NAMES[to]}, p50 · p99`, `${micros(p50)} · ${micros(p99)}`);
      }
      fact("waiting", plural(stats.queued, "transfer", "transfers"));
      fact("offloaded here, onboarded", `${count(stats.offloaded_blocks)}, ${count(stats.onboarded_blocks)} blocks`);
      fact("evicted", `${count(stats.evictions)} blocks`);
      fact("errors, timeouts, damaged", `${count(stats.errors)}, ${count(stats.timeouts)}, ${count(stats.damaged_blocks)}`);
    }
    const size = capacity > 0 ? `${bytes(used)} of ${bytes(capacity)} · ${percent(share)}` : `${bytes(used)}, without a bound`;
    return el("div", { class: "tier" },
      el("h3", {}, el("span", { class: "key", style: { background: `var(--${tier})` } }), TIER_NAMES[tier] ?? tier,
        badge(stats.health, HEALTH[stats.health]), stats.policy ? el("span", { class: "quiet" }, words(stats.policy)) : null),
      el("div", { class: "fill", role: "img", "aria-label": `${TIER_NAMES[tier]}: ${size}` },
        el("span", { style: { width: `${(share ?? 0) * 100}%`, background: `var(--${tier})` } })),
      el("p", { class: "note" }, size),
      el("dl", { class: "facts" }, facts));
  }
}

// Of the tokens asked for, by where they were.
function split(hits, requested) {
  const parts = ["hbm", "dram", "nvme", "object"].filter((tier) => hits[tier] > 0);
  const said = parts.map((tier) => `${TIER_NAMES[tier]} ${percent(hits[tier] / requested)}`).join(", ");
  return el("div", { class: "split", role: "img", "aria-label": said || "no hits", title: said || "no hits" },
    parts.map((tier) => el("span", { style: { width: `${(100 * hits[tier]) / requested}%`, background: `var(--${tier})` } })));
}

export class Tenants {
  constructor() {
    this.card = card({ id: "tenants", title: "Tenants and namespaces", sub: "since the store's start" });
  }

  set(store) {
    const namespaces = [...(store?.namespaces ?? [])].sort((one, other) => other.bytes - one.bytes);
    if (namespaces.length === 0) {
      show(this.card.body, empty(store ? "No namespace yet: an engine opens one when it connects." : "The store is away."));
      return;
    }
    const all = namespaces.reduce((sum, { bytes: size }) => sum + size, 0);
    const columns = [
      { title: "Tenant", long: true, cell: ({ tenant }) => tenant },
      { title: "Model", long: true, cell: ({ model }) => model },
      { title: "Namespace", cell: ({ id }) => el("code", { title: id }, `${id.slice(0, 8)}…`) },
      { title: "Sessions", n: true, cell: ({ sessions }) => count(sessions) },
      { title: "Blocks", n: true, cell: ({ blocks }) => count(blocks) },
      { title: "Stored", n: true, cell: ({ bytes: size }) => bytes(size) },
      { title: "of all", n: true, cell: ({ bytes: size }) => percent(all > 0 ? size / all : null) },
      { title: "Tokens asked for", n: true, cell: ({ requested_tokens: asked }) => count(asked) },
      { title: "Hit rate", n: true, cell: ({ requested_tokens: asked, hit_tokens: hit }) => percent(asked > 0 ? hit / asked : null) },
      { title: "Hits by tier", cell: ({ hits, requested_tokens: asked }) => split(hits, asked) },
    ];
    show(this.card.body, table(columns, namespaces, "Tenants and namespaces"));
  }
}

const STATES = { ready: "good", starting: "warn", lost: "bad", refused: "bad" };

export class Workers {
  constructor() {
    this.card = card({ id: "workers", title: "Nodes and workers" });
  }

  set(router, store) {
    const nodes = [];
    if (router.store !== "none") {
      const [text, kind] = store ? ["connected", "good"] : ["away", "bad"];
      const up = store ? `, up ${age(store.uptime_ms)}, ${plural(store.sessions, "session", "sessions")}` : "";
      nodes.push(el("p", { class: "note" }, "Store: ", badge(text, kind), up));
    }
    for (const { url, used_by, known, why, blocks, namespaces } of router.stores ?? []) {
      const state = why ? badge("away", "bad") : badge(known, known === "exact" ? "good" : "warn");
      const has = why ? `: ${why}` : `, ${plural(blocks, "block", "blocks")} of ${plural(namespaces, "namespace", "namespaces")} known`;
      nodes.push(el("p", { class: "note" }, `Store of ${used_by} `, el("code", {}, url), ": ", state, has));
    }
    const rows = [
      ...router.workers.map((worker) => ({ ...worker, what: worker.role ?? "worker", where: worker.endpoint })),
      ...(router.backends ?? []).map((backend) => ({
        ...backend, what: "backend", name: backend.models.join(", ") || backend.url, where: backend.url, running: backend.in_flight,
        pending_prompt_tokens: backend.queued_tokens, prefill_tokens_per_second: backend.tokens_per_second,
      })),
    ];
    if (rows.length === 0) {
      show(this.card.body, nodes, empty("No worker and no backend is known."));
      return;
    }
    const columns = [
      { title: "Name", long: true, cell: ({ name }) => name },
      { title: "Role", cell: ({ what }) => what },
      { title: "State", cell: ({ state, why, circuit }) => el("span", { title: why }, badge(state, STATES[state]), circuit && circuit !== "closed" ? badge(`circuit ${circuit}`, "warn") : "") },
      { title: "Running", n: true, cell: ({ running, slots }) => (slots ? `${count(running)} of ${count(slots)}` : count(running)) },
      { title: "Waiting", n: true, cell: ({ waiting }) => count(waiting) },
      { title: "Prompt tokens to do", n: true, cell: ({ pending_prompt_tokens: pending }) => count(pending) },
      { title: "Prefill", n: true, cell: ({ prefill_tokens_per_second: speed }) => (speed > 0 ? rate(Math.round(speed), "tokens") : "–") },
      { title: "Cache known by", cell: ({ cache }) => cache ?? (router.store === "none" ? "–" : "store") },
      { title: "Address", long: true, cell: ({ where }) => where },
    ];
    show(this.card.body, nodes, table(columns, rows, "Workers"));
  }
}
