// Recent requests: the newest, the slowest, those that missed most, and why the first block was missing.

import { get } from "./api.js";
import { badge, card, el, empty, show } from "./dom.js";
import { age, count, micros, millis, percent, plural, words } from "./units.js";

const TABS = [["slowest", "Slowest"], ["worst", "Missed most"], ["recent", "Newest"]];
const SHOWN = 12;

const share = (part, all) => (all > 0 ? percent(part / all) : "–");
const short = (text, most = 12) => (text.length > most ? el("code", { title: text }, `${text.slice(0, most)}…`) : el("code", {}, text));

const inTokens = (tokens) => plural(tokens, "token", "tokens");

// Why a router names no missing block.
const WHY = {
  all_stored: "Every whole block that was asked for was there",
  filling: "What was not stored yet was being filled just then, by another request",
  too_short: "The prompt has no whole block before its last token, so nothing was asked for",
  no_store: "This router asks no store: what of the prompt was cached is the worker's own",
  store_away: "The store was away, or did not answer in time, so nothing counted as cached",
  other_engine: "Another engine served it, which says how much it had, and not why it had no more",
};

const ROUTER = [
  ["Request", ({ id }) => short(id, 14)],
  ["Age", ({ age_ms: ms }) => age(ms), true],
  ["Status", ({ status }) => (status === null ? badge("runs") : badge(String(status), status < 400 ? "good" : status < 500 ? "warn" : "bad"))],
  ["Worker", ({ worker }) => (worker ? short(worker, 24) : "–")],
  ["Prefill", ({ mode, prefill }) => (mode === "remote" ? prefill ?? "remote" : mode ?? "–")],
  ["Prompt", ({ prompt_tokens: tokens }) => inTokens(tokens), true],
  ["Cached", ({ cached_tokens: hit, prompt_tokens: all }) => share(hit, all), true],
  ["Missed", ({ missed_tokens: missed }) => inTokens(missed), true],
  ["First token", ({ ttft_ms: ms }) => millis(ms), true],
  ["Whole", ({ duration_ms: ms }) => millis(ms), true],
];
const STORE = [
  ["Call", ({ id, verb }) => el("span", {}, el("code", {}, `#${id}`), ` ${verb}`)],
  ["Age", ({ age_ms: ms }) => age(ms), true],
  ["Model", ({ model }) => (model.length > 28 ? el("span", { title: model }, `${model.slice(0, 27)}…`) : model)],
  ["Asked", ({ tokens }) => inTokens(tokens), true],
  ["Hit", ({ hit_tokens: hit, tokens }) => share(hit, tokens), true],
  ["Missed", ({ hit_tokens: hit, tokens }) => inTokens(tokens - hit), true],
  ["Filling", ({ filling_blocks: blocks }) => (blocks > 0 ? plural(blocks, "block", "blocks") : "–"), true],
  ["Took", ({ duration_us: us }) => micros(us), true],
  ["First missing block", ({ first_missing_hash: hash }) => (hash ? short(hash, 12) : "none")],
];

export class Requests {
  #tab = "slowest";
  #open = null;
  #explained = null;

  constructor() {
    this.tabs = TABS.map(([name, text]) => el("button", {
      type: "button", "aria-pressed": name === this.#tab ? "true" : "false", onclick: () => this.#turn(name),
    }, text));
    this.card = card({ id: "requests", title: "Requests", sub: "of the last ten minutes", right: [el("div", { class: "tabs", role: "group", "aria-label": "Which requests" }, this.tabs)] });
  }

  #turn(name) {
    this.#tab = name;
    this.#open = null;
    TABS.forEach(([other], at) => this.tabs[at].setAttribute("aria-pressed", other === name ? "true" : "false"));
    this.#render();
  }

  async poll() {
    this.data = await get("requests");
    this.#render();
  }

  async #explain(row) {
    const id = row.unique ?? row.id;
    if (this.#open === id) {
      this.#open = null;
    } else {
      this.#open = id;
      this.#explained = el("p", {}, "Asking…");
      this.#render();
      try {
        const { explain, ...request } = await get(`requests/${encodeURIComponent(id)}`);
        this.#explained = this.#words(explain, request);
      } catch (error) {
        this.#explained = el("p", {}, error.message);
      }
    }
    this.#render(id);
  }

  #words(explain, request) {
    // A router expects by what the store says; what a worker took of it is what counts.
    const expected = request.matched_tokens === undefined || !request.worker ? null
      : el("p", {}, `Expected in the cache: ${inTokens(request.matched_tokens)} of ${count(request.prompt_tokens)}; taken from it: ${count(request.cached_tokens)}.`);
    if (explain) {
      return el("div", {},
        el("p", {}, "First missing block ", el("code", {}, explain.hash), " ", badge(words(explain.reason), explain.reason === "stored" ? "good" : "warn")),
        el("p", {}, explain.words), expected);
    }
    const isOfStore = request.hit_tokens !== undefined;
    const why = request.first_missing_hash ? "The store could not be asked why the first missing block is not there"
      : isOfStore ? (request.filling_blocks > 0 ? WHY.filling : WHY.all_stored)
        : WHY[request.why] ?? "No worker had it: it was refused, or still waits";
    return el("div", {}, el("p", {}, `${why}.`), expected);
  }

  #render(focus) {
    if (!this.data) return;
    const rows = this.data[this.#tab].slice(0, SHOWN);
    if (rows.length === 0) {
      const none = { slowest: "No request in the last ten minutes.", worst: "No request missed anything in the last ten minutes.", recent: "No request yet." };
      show(this.card.body, empty(none[this.#tab]));
      return;
    }
    const columns = this.data.kind === "router" ? ROUTER : STORE;
    const body = rows.flatMap((row) => {
      const id = row.unique ?? row.id;
      const open = this.#open === id;
      const button = el("button", { type: "button", "aria-expanded": open ? "true" : "false", "data-id": id, "aria-label": `Explain ${row.id}`, onclick: () => this.#explain(row) }, "Explain");
      const [first, ...cells] = columns.map(([, cell, n]) => el("td", { class: n ? "n" : null }, cell(row)));
      // Near the start, where it is seen on a narrow screen too.
      const line = el("tr", {}, first, el("td", {}, button), cells);
      return open ? [line, el("tr", { class: "more" }, el("td", { colspan: columns.length + 1 }, this.#explained))] : [line];
    });
    const [head, ...heads] = columns.map(([title, , n]) => el("th", { scope: "col", class: n ? "n" : null }, title));
    const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Requests" },
      el("table", {},
        el("thead", {}, el("tr", {}, head, el("th", { scope: "col" }, "Why"), heads)),
        el("tbody", {}, body)));
    show(this.card.body, scroll);
    if (focus) scroll.querySelector(`[data-id="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
}
