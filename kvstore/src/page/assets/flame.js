// The tree of prefixes as a flame graph: width is bytes, colour is heat, depth is the way into a prompt.
//
// Keys: arrows move among the branches, Enter zooms, Escape goes back up.

import { act, get, token } from "./api.js";
import { badge, card, el, empty, show } from "./dom.js";
import { TIER_NAMES, age, bytes, count, plural } from "./units.js";

const ROW = 22;
const ROWS_MAX = 22;
// Hot to cold, all of them light enough for dark letters.
const HEAT = [[255, 138, 92], [255, 192, 120], [255, 232, 163], [183, 228, 220], [165, 200, 240]];

// 0 is hot, 1 is cold.
function heat(share) {
  const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  const mix = HEAT[low].map((from, part) => Math.round(from + (HEAT[low + 1][part] - from) * (at - low)));
  return `rgb(${mix.join(" ")})`;
}

// A second ago is hot, a day ago is cold, by the logarithm between.
const coldness = {
  recent: ({ idle_ms: idle }) => Math.log10(Math.max(idle, 1000) / 1000) / Math.log10(86400),
  uses: ({ uses }, most) => 1 - Math.log2(uses + 1) / Math.log2(most + 2),
};

export class Flame {
  #zoom = null;
  #selected = null;
  #path = [];

  constructor() {
    const choice = (label, options, change) => el("select", { "aria-label": label, onchange: (event) => change(event.target.value) },
      options.map(([value, text]) => el("option", { value }, text)));
    this.namespace = choice("Namespace of the tree", [], (id) => { this.chosen = id; this.#zoom = null; this.poll(); });
    this.tier = "all";
    this.heat = "recent";
    const tiers = choice("Bytes of which tier", [["all", "all tiers"], ["dram", "DRAM"], ["nvme", "NVMe"], ["object", "S3"]], (tier) => { this.tier = tier; this.#render(); });
    const colours = choice("What the colour shows", [["recent", "colour: last use"], ["uses", "colour: uses"]], (kind) => { this.heat = kind; this.#render(); });
    this.card = card({
      id: "tree", title: "Prefix tree", sub: "width: bytes · a row down: further into the prompt",
      right: [this.namespace, tiers, colours],
    });
    [this.hot, this.cold] = [el("span"), el("span")];
    this.scale = el("div", { class: "scale" }, this.hot, el("i", { "aria-hidden": "true" }), this.cold, el("span", { id: "tree-say" }));
    this.crumbs = el("nav", { class: "crumbs", "aria-label": "Zoom" });
    this.holder = el("div", { class: "flame", role: "tree", "aria-label": "Prefix tree", onkeydown: (event) => this.#key(event) });
    this.blank = empty("Nothing is stored yet: the tree grows with the first prompts.");
    // Not live: the branch that is chosen has the focus, and says its figures by itself.
    this.detail = el("div", { class: "detail" });
    this.said = el("p", { class: "say", role: "status" });
    this.card.body.append(el("div", { class: "row" }, this.scale, this.crumbs), this.blank, this.holder, this.detail, this.said);
    new ResizeObserver(() => this.#render()).observe(this.card.body);
  }

  setNamespaces(namespaces) {
    const wanted = namespaces.map(({ id, model, tenant }) => [id, `${model} (${tenant})`]);
    const key = JSON.stringify(wanted);
    if (key === this.known) return;
    this.known = key;
    this.namespace.replaceChildren(...wanted.map(([value, text]) => el("option", { value }, text)));
    this.chosen = wanted.some(([id]) => id === this.chosen) ? this.chosen : wanted[0]?.[0];
    if (this.chosen) this.namespace.value = this.chosen;
    this.namespace.hidden = wanted.length < 2;
  }

  async poll() {
    const from = this.#zoom ? `&from=${this.#zoom.first}` : "";
    const namespace = this.chosen ? `namespace=${this.chosen}` : "";
    this.data = await get(`tree?${namespace}${from}`);
    if (this.#zoom && this.data.nodes.length === 0) {
      // What was zoomed into is gone.
      this.#zoom = null;
      this.#path = [];
      return this.poll();
    }
    this.#layout();
    this.#render();
  }

  #layout() {
    const { nodes } = this.data;
    nodes.forEach((node) => { node.children = []; node.depth = 0; });
    this.roots = [];
    for (const node of nodes) {
      const parent = node.parent === null ? null : nodes[node.parent];
      (parent?.children ?? this.roots).push(node);
      node.up = parent;
      node.depth = parent ? parent.depth + 1 : 0;
    }
    this.most = Math.max(1, ...nodes.map(({ uses }) => uses));
  }

  #size(node, which = "total") {
    const copies = node[which];
    const blocks = this.tier === "all" ? copies.dram + copies.nvme + copies.object : copies[this.tier];
    return blocks * this.data.block_bytes;
  }

  #everywhere({ total }) {
    return (total.dram + total.nvme + total.object) * this.data.block_bytes;
  }

  #render() {
    if (!this.data || !this.roots) return;
    const all = this.roots.reduce((sum, node) => sum + this.#size(node), 0);
    const has = all > 0;
    this.blank.style.display = has ? "none" : "";
    for (const node of [this.holder, this.scale, this.crumbs, this.detail]) node.style.display = has ? "" : "none";
    if (!has) {
      this.blank.textContent = this.tier === "all" || this.data.nodes.length === 0
        ? "Nothing is stored yet: the tree grows with the first prompts." : `Nothing of this namespace is in ${TIER_NAMES[this.tier]}.`;
      this.holder.replaceChildren();
      return;
    }
    const width = this.card.body.clientWidth;
    const focused = document.activeElement?.dataset?.hash;
    const [boxes, rests] = [[], []];
    let deepest = 0;
    const place = (nodes, left, share) => {
      let at = left;
      const small = [];
      for (const node of [...nodes].sort((one, other) => this.#size(other) - this.#size(one))) {
        const part = (this.#size(node) / all) * share;
        if (node.depth >= ROWS_MAX) continue;
        if (part * width >= 2) {
          deepest = Math.max(deepest, node.depth);
          boxes.push(this.#box(node, at, part, width));
          place(node.children, at, share);
          at += part;
        } else {
          small.push(node);
        }
      }
      // They are the last, and side by side.
      const rest = small.reduce((sum, node) => sum + (this.#size(node) / all) * share, 0);
      if (rest * width >= 1) {
        deepest = Math.max(deepest, small[0].depth);
        rests.push(this.#rest(small, at, rest, width));
      }
    };
    place(this.roots, 0, 1);
    this.holder.style.height = `${(deepest + 1) * ROW}px`;
    this.holder.replaceChildren(...boxes, ...rests);
    [this.hot.textContent, this.cold.textContent] = this.heat === "recent" ? ["used 1 s ago", "1 day ago"] : [`${plural(this.most, "use", "uses")}`, "none"];
    const boxOf = (hash) => boxes.find((box) => box.dataset.hash === hash);
    const first = boxOf(focused) ?? boxOf(this.#selected?.first) ?? boxes[0];
    // There is none if all branches are too small to be drawn.
    if (first) first.tabIndex = 0;
    if (focused) boxOf(focused)?.focus();
    const { shown, branches, is_cut: isCut } = this.data;
    const part = isCut ? "the nearest " : shown < branches ? `the largest ${count(shown)} of ` : "";
    this.scale.lastChild.textContent = `· ${bytes(all)} in ${part}${plural(branches, "branch", "branches")}`;
    this.#trail();
    this.#show();
  }

  #box(node, left, part, width) {
    const size = this.#size(node);
    const label = node.name ?? node.first.slice(0, 8);
    const tokens = node.blocks * this.data.block_tokens;
    const told = `${label}: ${bytes(size)}, ${count(tokens)} tokens, ${plural(node.uses, "use", "uses")}, last used ${age(node.idle_ms)} ago${node.pinned ? ", pinned" : ""}`;
    const wide = part * width;
    const box = el("button", {
      type: "button", role: "treeitem", tabindex: "-1", "data-hash": node.first, "aria-label": told, title: told,
      "aria-level": node.depth + 1, "aria-selected": this.#selected?.first === node.first ? "true" : "false",
      class: `${wide < 40 ? "slim" : ""} ${node.pinned ? "pinned" : ""}`.trim() || null,
      style: { left: `${left * 100}%`, width: `${part * 100}%`, top: `${node.depth * ROW}px`, background: heat(coldness[this.heat](node, this.most)) },
      onclick: (event) => this.#click(node, event.detail),
    });
    if (wide >= 40) box.textContent = wide > 120 ? `${label} · ${bytes(size)}` : label;
    return box;
  }

  // What is too narrow for a box of its own.
  #rest(nodes, left, part, width) {
    const branches = nodes.reduce((sum, { behind }) => sum + 1 + behind, 0);
    const text = `${plural(branches, "small branch", "small branches")}, ${bytes(nodes.reduce((sum, node) => sum + this.#size(node), 0))}`;
    const wide = part * width > 150;
    return el("div", {
      class: wide ? "rest" : "rest slim", "aria-hidden": "true", title: text,
      style: { left: `${left * 100}%`, width: `${part * 100}%`, top: `${nodes[0].depth * ROW}px` },
    }, wide ? el("span", {}, text) : null);
  }

  #select(node) {
    this.#selected = node;
    for (const box of this.holder.querySelectorAll("[role=treeitem]")) {
      const is = box.dataset.hash === node.first;
      box.setAttribute("aria-selected", is ? "true" : "false");
      box.tabIndex = is ? 0 : -1;
      if (is) box.focus();
    }
    this.#show();
  }

  // The second click at the same place zooms in; both of a double click do so too, and never out again.
  #click(node, times) {
    if (this.#selected?.first !== node.first) this.#select(node);
    else if (times < 2 || this.#zoom?.first !== node.first) this.#into(node);
  }

  // What is zoomed already zooms out.
  #into(node) {
    if (this.#zoom?.first === node.first) return this.#out(this.#path.length - 1);
    this.#selected = node;
    this.#zoom = node;
    this.#path.push(node);
    return this.poll();
  }

  #out(length) {
    this.#path.length = length;
    this.#zoom = this.#path.at(-1) ?? null;
    return this.poll();
  }

  #key(event) {
    const node = this.data.nodes.find(({ first }) => first === event.target.dataset.hash);
    if (!node) return;
    const siblings = (node.up?.children ?? this.roots).filter(({ first }) => this.holder.querySelector(`[data-hash="${first}"]`));
    siblings.sort((one, other) => this.#size(other) - this.#size(one));
    const at = siblings.indexOf(node);
    const children = [...node.children].sort((one, other) => this.#size(other) - this.#size(one));
    const next = { ArrowUp: node.up, ArrowDown: children[0], ArrowLeft: siblings[at - 1], ArrowRight: siblings[at + 1] }[event.key];
    if (event.key === "Escape") this.#out(Math.max(0, this.#path.length - 1));
    else if (event.key === "Enter") this.#into(node);
    else if (next) this.#select(next);
    else return;
    event.preventDefault();
  }

  #trail() {
    const link = (text, length) => el("button", { type: "button", onclick: () => this.#out(length) }, text);
    const steps = this.#path.map((node, at) => link(node.name ?? node.first.slice(0, 8), at + 1));
    this.crumbs.replaceChildren(...(steps.length ? [link("whole tree", 0), ...steps] : []));
  }

  #show() {
    const node = this.#selected && this.data.nodes.find(({ first }) => first === this.#selected.first);
    if (!node) {
      show(this.detail, el("p", { class: "note" }, "Choose a branch to see it; choose it again to zoom in. Arrow keys move, Enter zooms, Escape goes back."));
      return;
    }
    const { block_bytes: blockBytes, block_tokens: blockTokens } = this.data;
    const where = Object.entries(node.total).filter(([, blocks]) => blocks > 0).map(([tier, blocks]) => `${TIER_NAMES[tier]} ${bytes(blocks * blockBytes)}`);
    const fact = (name, value, mono) => el("div", {}, el("dt", {}, name), el("dd", { class: mono ? "mono hash" : null }, value));
    const facts = el("dl", {},
      fact("This branch", `${plural(node.blocks, "block", "blocks")}, ${count(node.blocks * blockTokens)} tokens`),
      fact("With all behind it", `${bytes(this.#size(node))}, ${plural(node.behind, "branch", "branches")} behind`),
      fact("Where", where.join(" · ") || "nowhere any more"),
      fact("Used", `${plural(node.uses, "time", "times")}, last ${age(node.idle_ms)} ago`),
      fact("First block", node.first, true), fact("Last block", node.last, true));
    const heading = el("h3", {}, node.name ?? `Prefix ${node.first.slice(0, 8)}`, " ", node.pinned ? badge("pinned", "good") : null);
    if (this.detail.contains(document.activeElement)) {
      // Who is at a button stays there.
      this.detail.querySelector("h3").replaceWith(heading);
      this.detail.querySelector("dl").replaceWith(facts);
      return;
    }
    this.detail.replaceChildren(heading, facts, this.#actions(node));
  }

  #actions(node) {
    if (!this.mayChange) {
      return el("p", { class: "note" }, "To pin, prefetch, evict and name prefixes here, start the store with KELVIN_ADMIN_TOKEN.");
    }
    if (!token()) return el("p", { class: "note" }, "Give the operator's token (above) to pin, prefetch, evict and name prefixes.");
    const run = async (verb, more, say) => {
      try {
        const done = await act({ action: verb, namespace: this.data.namespace, ...more });
        this.said.className = "say";
        this.said.textContent = say(done);
        await this.poll();
      } catch (error) {
        this.said.className = "say bad";
        this.said.textContent = `Not done: ${error.message}`;
      }
    };
    const button = (text, click, kind) => el("button", { type: "button", class: kind, onclick: click }, text);
    const name = el("input", { "aria-label": "Name of this prefix", placeholder: "name", maxlength: "64", value: node.name ?? "", size: "26" });
    const evict = button("Evict…", () => {
      if (evict.dataset.sure) {
        run("evict", { hash: node.first }, ({ blocks, bytes: gone, kept_blocks: kept }) => `Evicted ${plural(blocks, "block", "blocks")}, ${bytes(gone)}${kept ? `; ${count(kept)} stay, leased or pinned` : ""}.`);
      } else {
        evict.dataset.sure = "yes";
        // Whatever tier is looked at: it goes from all of them. There may be more of it by now than when it was chosen.
        const now = this.data.nodes.find(({ first }) => first === node.first) ?? node;
        evict.textContent = `Evict ${bytes(this.#everywhere(now))}, really`;
      }
    }, "danger");
    return el("div", { class: "row" },
      button("Zoom in", () => this.#into(node)),
      button("Pin for 1 h", () => run("pin", { hash: node.last, subtree: true, ttl_ms: 3600000 }, ({ blocks, bytes: kept }) => `Pinned ${plural(blocks, "block", "blocks")}, ${bytes(kept)}, for an hour.`)),
      button("Unpin this page's pins", () => run("unpin", {}, ({ pins }) => `Ended ${plural(pins, "pin", "pins")}.`)),
      button("Prefetch", () => run("prefetch", { hash: node.last }, ({ queued_blocks: queued, ready_blocks: ready }) => `${plural(queued, "block is", "blocks are")} being brought to DRAM; ${count(ready)} were there.`)),
      evict,
      name, button("Name it", () => run("name", { hash: node.first, name: name.value }, ({ name: given }) => (given ? `It is called ${given} now.` : "Its name is gone."))));
  }
}
