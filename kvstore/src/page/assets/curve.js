// The miss-ratio curve: the hit rate that other sizes would have, and in words what more memory would buy.

import uPlot from "./vendor/uPlot.esm.js";
import { get } from "./api.js";
import { card, el, empty, show } from "./dom.js";
import { colour } from "./theme.js";
import { TIER_NAMES, bytes, count, percent } from "./units.js";

const HEIGHT = 230;

// The hit rate at a size: between two points along the logarithm.
export function hitAt(points, size) {
  if (points.length === 0 || size <= 0) return 0;
  if (size <= points[0][0]) return (points[0][1] * size) / points[0][0];
  for (let at = 1; at < points.length; at += 1) {
    const [[x0, y0], [x1, y1]] = [points[at - 1], points[at]];
    if (size <= x1) return y0 + ((y1 - y0) * Math.log(size / x0)) / Math.log(x1 / x0);
  }
  return points.at(-1)[1];
}

const MIB = 2 ** 20;

// A round amount near half of what there is.
function amount(size) {
  return 2 ** Math.round(Math.log2(Math.max(size / 2, MIB)));
}

// The least round amount that holds so much.
export function enough(size) {
  return 2 ** Math.ceil(Math.log2(Math.max(size, MIB)));
}

// What tiers hold together. A colder one keeps what is brought up from it, so that it has what those above have as
// well; only an exclusive one (NVMe of a store that was started so) adds to them.
export function sizes(capacities, exclusive = false) {
  const found = [];
  let upTo = 0;
  for (const tier of ["dram", "nvme", "object"]) {
    const capacity = capacities[tier];
    if (!capacity) continue;
    upTo = exclusive && tier === "nvme" ? upTo + capacity : Math.max(upTo, capacity);
    found.push({ tier, capacity, upTo });
  }
  return found;
}

// What more of each tier would buy.
export function buys(points, capacities, exclusive = false) {
  return sizes(capacities, exclusive).map(({ tier, capacity, upTo }, at) => {
    const more = amount(capacity);
    const larger = sizes({ ...capacities, [tier]: capacity + more }, exclusive)[at].upTo;
    const [now, then] = [hitAt(points, upTo), hitAt(points, larger)];
    return { tier, more, now, then, gain: (then - now) * 100, step: nextStep(points, upTo) };
  });
}

// The NVMe that would hold all that repeats, below memory that has no tier below it; null if it buys nothing.
export function below(points, { dram = 0, nvme, object }) {
  const [size, hits] = points.at(-1);
  const gain = (hits - hitAt(points, dram)) * 100;
  return nvme || object || gain < 0.05 ? null : { size: enough(size), gain, hits };
}

// The least size at which more would be hit than at this one; null if none.
export function nextStep(points, size) {
  const now = hitAt(points, size);
  return points.find(([larger, share]) => larger > size && share > now + 0.01)?.[0] ?? null;
}

export class Curve {
  #plot = null;
  #chosen = null;

  constructor() {
    this.select = el("select", { "aria-label": "Namespace of the curve", onchange: () => { this.#chosen = this.select.value; this.#render(); } });
    this.card = card({
      id: "curve", title: "What more memory would buy", width: "w6",
      sub: "hit rate by size, estimated on a sample of what was asked", right: [this.select],
    });
    this.holder = el("div", { class: "plot", role: "img", "aria-label": "Hit rate by size" });
    this.readout = el("p", { class: "note" });
    this.said = el("ul", { class: "buys" });
    this.blank = empty("No curve yet: it needs some requests with repeated prefixes.");
    this.card.body.append(this.blank, this.holder, this.readout, this.said);
    new ResizeObserver(() => {
      const width = Math.floor(this.holder.clientWidth);
      if (this.#plot && width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
    }).observe(this.holder);
  }

  async poll(isAway = false) {
    this.blank.textContent = isAway ? "The store is away." : "No curve yet: it needs some requests with repeated prefixes.";
    this.data = await get("mrc");
    this.data.namespaces.sort((one, other) => other.requested_tokens - one.requested_tokens);
    const options = this.data.namespaces.map(({ id, model, tenant }) => el("option", { value: id }, `${model} (${tenant})`));
    const ids = this.data.namespaces.map(({ id }) => id);
    const known = [...ids].sort().join();
    if (known !== this.known) {
      this.known = known;
      this.select.replaceChildren(...options);
    }
    if (!ids.includes(this.#chosen)) this.#chosen = ids[0] ?? null;
    if (this.#chosen) this.select.value = this.#chosen;
    this.select.hidden = options.length < 2;
    this.#render();
  }

  redraw() {
    this.#plot?.destroy();
    this.#plot = null;
    this.#render();
  }

  #render() {
    const { namespaces = [], capacities = {}, exclusive = false } = this.data ?? {};
    const namespace = namespaces.find(({ id }) => id === this.#chosen) ?? namespaces[0];
    const points = (namespace?.points ?? []).filter(([size]) => size > 0);
    const hasData = points.length > 1 && namespace.requested_tokens > 0;
    this.blank.style.display = hasData ? "none" : "";
    for (const node of [this.holder, this.readout, this.said]) node.style.display = hasData ? "" : "none";
    if (!hasData) {
      this.#plot?.destroy();
      this.#plot = null;
      return;
    }
    // Past the last point more room would not help; the marks must be on the chart all the same.
    this.marks = sizes(capacities, exclusive);
    const far = Math.max(points.at(-1)[0], ...this.marks.map(({ upTo }) => upTo * 2));
    const drawn = points.at(-1)[0] < far ? [...points, [far, points.at(-1)[1]]] : points;
    Object.assign(this, { capacities, exclusive, points, shared: namespaces.length > 1 });
    const data = [drawn.map(([size]) => size), drawn.map(([, share]) => share * 100)];
    if (this.#plot) this.#plot.setData(data);
    else if (this.holder.clientWidth > 0) this.#plot = this.#make(data);
    this.#read(this.#plot?.cursor.left >= 0 ? this.#plot.cursor.left : null);
    this.#say();
  }

  #make(data) {
    const common = { font: '11px system-ui, "DejaVu Sans", sans-serif', stroke: () => colour("quiet"), grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false } };
    const powers = (plot) => {
      const [low, high] = [Math.log2(plot.scales.x.min), Math.log2(plot.scales.x.max)];
      const step = Math.max(1, Math.ceil((high - low) / Math.max(2, Math.floor(plot.width / 90))));
      const out = [];
      for (let power = Math.ceil(low); power <= high; power += step) out.push(2 ** power);
      return out;
    };
    return new uPlot({
      width: Math.floor(this.holder.clientWidth),
      height: HEIGHT,
      padding: [18, 34, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false, distr: 3, log: 2 }, y: { range: [0, 100] } },
      axes: [
        { ...common, size: 30, gap: 8, splits: powers, values: (_, ticks) => ticks.map(bytes), filter: (_, ticks) => ticks },
        { ...common, size: 52, gap: 6, values: (_, ticks) => ticks.map((tick) => `${tick} %`) },
      ],
      series: [{}, { label: "hit rate", stroke: colour("accent"), width: 2, fill: `${colour("accent")}22`, points: { show: false } }],
      hooks: { draw: [(plot) => this.#mark(plot)], setCursor: [(plot) => this.#read(plot.cursor.left >= 0 ? plot.cursor.left : null)] },
    }, data, this.holder);
  }

  // The curve under the cursor, or at the first size that there is.
  #read(left) {
    const size = left === null || !this.#plot ? this.marks[0]?.upTo : this.#plot.posToVal(left, "x");
    this.readout.textContent = size ? `With ${bytes(size)}${left === null ? ", as now" : ""}: ${percent(hitAt(this.points, size))} hit.` : "";
  }

  #mark(plot) {
    const { ctx } = plot;
    const dots = devicePixelRatio || 1;
    ctx.save();
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.font = `${11 * dots}px system-ui, "DejaVu Sans", sans-serif`;
    let lastRight = -Infinity;
    this.marks.forEach(({ tier, upTo }, which) => {
      const x = plot.valToPos(upTo, "x", true);
      const y = plot.valToPos(hitAt(this.points, upTo) * 100, "y", true);
      ctx.strokeStyle = ctx.fillStyle = colour(tier);
      ctx.lineWidth = 1.5 * dots;
      ctx.setLineDash([4 * dots, 3 * dots]);
      ctx.beginPath();
      ctx.moveTo(x, plot.bbox.top);
      ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.beginPath();
      ctx.arc(x, y, 4 * dots, 0, 7);
      ctx.fill();
      const text = which === 0 ? `${TIER_NAMES[tier]} now` : `+ ${TIER_NAMES[tier]}`;
      const wide = ctx.measureText(text).width;
      const left = Math.min(Math.max(x - wide / 2, plot.bbox.left), plot.bbox.left + plot.bbox.width - wide);
      if (left < lastRight + 6 * dots) return;
      lastRight = left + wide;
      ctx.fillStyle = colour("text");
      ctx.fillText(text, left, plot.bbox.top - 5 * dots);
    });
    ctx.restore();
  }

  #say() {
    const lines = buys(this.points, this.capacities, this.exclusive).map(({ tier, more, now, then, gain, step }) => {
      const whose = tier === "dram" ? "hits in DRAM" : tier === "nvme" ? "hits in DRAM or NVMe" : "hits in any tier";
      const result = gain < 0.05
        ? [step === null ? "buys nothing: what repeats is there already " : `buys nothing: the curve is flat up to about ${bytes(step)} `, `(${whose} ${percent(now)}).`]
        : ["buys ", el("b", {}, `${gain.toFixed(1)} points`), `: ${whose} from ${percent(now)} to ${percent(then)}.`];
      return el("li", {}, el("b", {}, `+${bytes(more)} ${TIER_NAMES[tier]} `), result);
    });
    const all = below(this.points, this.capacities);
    if (all) {
      lines.push(el("li", {}, el("b", {}, `+${bytes(all.size)} NVMe `), "below it would hold all that repeats: ", el("b", {}, `${all.gain.toFixed(1)} points`), ` more, ${percent(all.hits)} in all.`));
    }
    if (this.shared) lines.push(el("li", { class: "quiet" }, "Each namespace as if it had the memory to itself: what the others take is not in its curve."));
    const points = this.points;
    const said = lines.map((line) => line.textContent).join(" ");
    this.holder.setAttribute("aria-label", `Hit rate by size, from ${percent(points[0][1])} at ${bytes(points[0][0])} to ${percent(points.at(-1)[1])} at ${bytes(points.at(-1)[0])}. ${said}`);
    show(this.said, lines);
  }
}
