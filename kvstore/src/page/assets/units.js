// Numbers as people read them. Every one comes with its unit.

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const DECIMAL = ["", "k", "M", "G", "T"];

function steps(value, base, names) {
  let step = 0;
  while (Math.abs(value) >= base * 0.9995 && step < names.length - 1) {
    value /= base;
    step += 1;
  }
  return [value, names[step]];
}

// Three digits, without zeroes that say nothing.
function short(value) {
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  const places = magnitude >= 100 ? 0 : magnitude >= 10 ? 1 : 2;
  return value.toFixed(places).replace(/\.?0+$/, (zeroes) => (zeroes.includes(".") ? "" : zeroes));
}

export const unknown = "–";
const isKnown = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function bytes(value) {
  if (!isKnown(value)) return unknown;
  const [scaled, name] = steps(value, 1024, BINARY);
  return `${short(scaled)} ${name}`;
}

export function count(value) {
  if (!isKnown(value)) return unknown;
  if (Number.isInteger(value) && Math.abs(value) < 10000) return value.toLocaleString("en");
  const [scaled, name] = steps(value, 1000, DECIMAL);
  return `${short(scaled)}${name ? ` ${name}` : ""}`;
}

export const percent = (share) => (isKnown(share) ? `${(share * 100).toFixed(1)} %` : unknown);
export const rate = (value, unit) => (isKnown(value) ? `${count(value)} ${unit}/s` : unknown);
export const byteRate = (value) => (isKnown(value) ? `${bytes(value)}/s` : unknown);

export function millis(value) {
  if (!isKnown(value)) return unknown;
  if (value < 1) return `${short(value * 1000)} µs`;
  if (value < 10000) return `${short(value)} ms`;
  return age(value);
}

export const micros = (value) => (isKnown(value) ? millis(value / 1000) : unknown);

export function age(ms) {
  if (!isKnown(ms)) return unknown;
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;
export const words = (name) => name.replaceAll("_", " ");
export const TIER_NAMES = { hbm: "HBM", dram: "DRAM", nvme: "NVMe", object: "S3" };
