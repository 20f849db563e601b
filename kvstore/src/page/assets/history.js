// The history of the store or router: what came since the last look, and sums over steps of a range.

import { get } from "./api.js";

const RANGES = { 300: "1s", 900: "1s", 3600: "1s", 86400: "1m" };

// Some ninety steps, whatever there is so far.
function bucketFor(spanMs, step) {
  const sizes = step === "1m" ? [60000, 300000, 900000] : [2000, 5000, 10000, 30000, 60000];
  return sizes.find((size) => spanMs / size <= 120) ?? sizes.at(-1);
}

class Rows {
  constructor(step) {
    this.step = step;
    this.clear();
  }

  clear() {
    this.next = 0;
    this.start = null;
    this.times = [];
    this.series = {};
  }

  async poll() {
    let more = await get(`history?since=${this.next}&step=${this.step}`);
    if (this.start !== null && more.start_ms !== this.start) {
      // Another process answers: its rows are other rows.
      this.clear();
      more = await get(`history?since=0&step=${this.step}`);
    }
    this.start = more.start_ms;
    this.next = more.next;
    this.times.push(...more.times_ms);
    for (const [name, { values, kind }] of Object.entries(more.series)) {
      const known = (this.series[name] ??= { kind, values: [] });
      known.values.push(...values);
    }
    const keep = this.step === "1s" ? 3600 : 1440;
    const over = this.times.length - keep;
    if (over > 0) {
      this.times.splice(0, over);
      Object.values(this.series).forEach(({ values }) => values.splice(0, over));
    }
  }
}

export class History {
  #rows = { "1s": new Rows("1s"), "1m": new Rows("1m") };
  #minutesAt = 0;
  seconds = 900;

  get #now() {
    return this.#rows[RANGES[this.seconds]];
  }

  async poll() {
    await this.#rows["1s"].poll();
    if (RANGES[this.seconds] === "1m" && Date.now() - this.#minutesAt > 20000) {
      this.#minutesAt = Date.now();
      await this.#rows["1m"].poll();
    }
  }

  has(name) {
    return (this.#now.series[name]?.values ?? []).some((value) => value !== null);
  }

  // The range in steps: their ends in seconds since 1970, and the change of counters, or the last of gauges, in each.
  steps() {
    const rows = this.#now;
    const last = rows.times.at(-1);
    if (last === undefined) return { times: [], change: () => [], last: () => [], bucketSeconds: 1 };
    // A young history fills the chart rather than leave it empty.
    const spanMs = Math.max(30000, Math.min(this.seconds * 1000, last - rows.times[0]));
    const bucketMs = bucketFor(spanMs, rows.step);
    // A step that is not over yet would look like a fall.
    const end = Math.floor(last / bucketMs) * bucketMs;
    const count = Math.ceil(spanMs / bucketMs);
    const begin = end - count * bucketMs;
    const times = Array.from({ length: count }, (_, at) => (begin + (at + 1) * bucketMs) / 1000);
    const at = rows.times.map((time) => Math.ceil((time - begin) / bucketMs) - 1);
    const change = (name) => {
      const out = new Array(count).fill(null);
      const values = rows.series[name]?.values ?? [];
      for (let row = 1; row < values.length; row += 1) {
        if (at[row] < 0 || at[row] >= count || values[row] === null || values[row - 1] === null) continue;
        // A counter that falls began anew.
        out[at[row]] = (out[at[row]] ?? 0) + Math.max(0, values[row] - values[row - 1]);
      }
      return out;
    };
    const lastOf = (name) => {
      const out = new Array(count).fill(null);
      const values = rows.series[name]?.values ?? [];
      values.forEach((value, row) => { if (at[row] >= 0 && at[row] < count && value !== null) out[at[row]] = value; });
      return out;
    };
    return { times, change, last: lastOf, bucketSeconds: bucketMs / 1000 };
  }

  // The last value that came; null if it is not known.
  newest(name) {
    return this.#rows["1s"].series[name]?.values.at(-1) ?? null;
  }

  // Change of a counter over the last so many seconds, and those that there were.
  recent(name, seconds) {
    const { times, series } = this.#rows["1s"];
    const values = series[name]?.values ?? [];
    const end = times.length - 1;
    if (end < 1 || values[end] === null) return { change: null, seconds: 0 };
    let from = end;
    while (from > 0 && times[end] - times[from - 1] <= seconds * 1000 && values[from - 1] !== null) from -= 1;
    const took = (times[end] - times[from]) / 1000;
    return { change: took > 0 ? Math.max(0, values[end] - values[from]) : null, seconds: took };
  }

  perSecond(name, seconds = 10) {
    const { change, seconds: took } = this.recent(name, seconds);
    return change === null ? null : change / took;
  }
}
