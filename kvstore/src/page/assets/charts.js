// Time charts over uPlot, with a legend that has the numbers in it.

import uPlot from "./vendor/uPlot.esm.js";
import { el, empty } from "./dom.js";
import { colour } from "./theme.js";

// Wide enough for its labels, whatever they are.
function axisWidth(plot, values, axis, cycle) {
  if (cycle > 1) return plot.axes[axis]._size;
  const longest = (values ?? []).reduce((most, text) => Math.max(most, text.length), 0);
  return Math.ceil(longest * 6.6 + 14);
}

const FONT = '11px system-ui, "DejaVu Sans", sans-serif';

// Ticks of what is counted at whole numbers, of bytes at powers of two.
const WHOLE_STEPS = Array.from({ length: 30 }, (_, step) => [1, 2, 5][step % 3] * 10 ** Math.floor(step / 3));
const BYTE_STEPS = Array.from({ length: 60 }, (_, power) => 2 ** power);
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const CLOCK_SECONDS = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

// Seconds only where ticks are closer than a minute.
function clock(_, ticks) {
  const format = ticks.length > 1 && ticks[1] - ticks[0] < 60 ? CLOCK_SECONDS : CLOCK;
  return ticks.map((tick) => format.format(new Date(tick * 1000)));
}

function axes(format, steps) {
  const common = () => ({
    font: FONT, stroke: () => colour("quiet"), grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false },
  });
  return [
    { ...common(), space: 70, size: 30, gap: 8, values: clock },
    { ...common(), values: (_, ticks) => ticks.map(format), size: axisWidth, gap: 6, space: 34, ...(steps ? { incrs: steps } : {}) },
  ];
}

// series: [{name, label, colour}], bottom first when stacked; format: number to text with its unit.
export class TimeChart {
  #plot = null;
  #columns = [];

  constructor(parent, { series, format, stacked = false, max = null, height = 190, areBytes = false, areWhole = false, label, none }) {
    const steps = areBytes ? BYTE_STEPS : areWhole ? WHOLE_STEPS : null;
    Object.assign(this, { series, format, stacked, max, height, steps, label });
    this.holder = el("div", { class: "plot", role: "img", "aria-label": label });
    this.when = el("time");
    this.legend = el("ul", { class: "legend" }, el("li", { class: "when" }, this.when));
    this.blank = empty(none);
    this.items = series.map(({ label: text, colour: name }) => {
      const value = el("b");
      const item = el("li", {}, el("span", { class: "key", style: { background: `var(--${name})` } }), `${text} `, value);
      this.legend.append(item);
      return { item, value };
    });
    parent.append(this.blank, this.holder, this.legend);
    new ResizeObserver(() => this.#resize()).observe(this.holder);
    this.#toggle(false);
  }

  #toggle(hasData) {
    this.blank.hidden = hasData;
    this.blank.style.display = hasData ? "none" : "";
    this.holder.style.display = hasData ? "" : "none";
    this.legend.style.display = hasData ? "" : "none";
  }

  #resize() {
    const width = Math.floor(this.holder.clientWidth);
    if (this.#plot && width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: this.height });
  }

  // Colours are read anew when the theme changes.
  redraw() {
    this.#plot?.destroy();
    this.#plot = null;
    this.#draw();
  }

  #draw() {
    if (!this.data || this.holder.clientWidth === 0) return;
    if (this.#plot) return this.#plot.setData(this.data);
    const order = this.stacked ? [...this.series].reverse() : this.series;
    const lines = order.map(({ label, colour: name }) => ({
      label,
      stroke: colour(name),
      width: this.stacked ? 1 : 1.75,
      fill: this.stacked ? colour(name) : undefined,
      points: { show: false },
      spanGaps: false,
    }));
    const show = this.max;
    this.#plot = new uPlot({
      width: Math.floor(this.holder.clientWidth),
      height: this.height,
      padding: [8, 28, 0, 0],
      cursor: { y: false, points: { show: !this.stacked }, drag: { x: false, y: false } },
      legend: { show: false },
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, show ?? Math.max(high * 1.08, 1)] } },
      axes: axes(this.format, this.steps),
      series: [{}, ...lines],
      hooks: { setCursor: [(plot) => this.#point(plot.cursor.idx ?? null)] },
    }, this.data, this.holder);
  }

  // The numbers under the cursor, or the last ones.
  #point(at) {
    const index = at ?? this.#lastKnown();
    this.items.forEach(({ value }, which) => { value.textContent = this.format(this.#columns[which]?.[index] ?? null); });
    const time = index >= 0 ? CLOCK_SECONDS.format(new Date(this.data[0][index] * 1000)) : "";
    this.when.textContent = at === null ? "now" : time;
  }

  // What is said in place of a chart without data.
  set none(text) {
    if (this.blank) this.blank.textContent = text;
  }

  #lastKnown() {
    let index = (this.data?.[0].length ?? 0) - 1;
    while (index > 0 && this.#columns.every((column) => column[index] === null)) index -= 1;
    return index;
  }

  set(times, columns) {
    this.#columns = columns;
    const hasData = columns.some((column) => column.some((value) => value !== null));
    this.#toggle(hasData);
    if (!hasData) {
      this.#plot?.destroy();
      this.#plot = null;
      this.data = null;
      return;
    }
    let drawn = columns;
    if (this.stacked) {
      const sums = new Array(times.length).fill(0);
      const sum = (column) => column.map((value, at) => (value === null ? null : (sums[at] += value)));
      drawn = columns.map(sum).reverse();
    }
    this.data = [times, ...drawn];
    // Of many series only those that are something; if none is, all of them say so.
    const isSome = columns.map((column) => column.some((value) => value));
    const isKnown = columns.map((column) => column.some((value) => value !== null));
    this.items.forEach(({ item }, which) => { item.style.display = (isSome.includes(true) ? isSome : isKnown)[which] ? "" : "none"; });
    this.#draw();
    this.#point(this.#plot?.cursor.idx ?? null);
    const at = this.#lastKnown();
    const said = this.series.map(({ label }, which) => `${label} ${this.format(columns[which][at])}`);
    this.holder.setAttribute("aria-label", `${this.label}. Now: ${said.join(", ")}.`);
  }
}
