// Elements, without strings of HTML: nothing that comes from a store is ever read as markup.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") Object.assign(node.style, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const by = (id) => document.getElementById(id);

export function card({ id, title, sub, width = "", right = [] }) {
  const body = el("div", { class: "body" });
  const subtitle = el("span", { class: "sub" }, sub ?? "");
  const node = el("section", { class: `card ${width}`, id, "aria-labelledby": `${id}-title` },
    el("div", { class: "head" }, el("h2", { id: `${id}-title` }, title), subtitle, el("div", { class: "right" }, right)),
    body);
  by("cards").append(node);
  return { node, body, say: (text) => { subtitle.textContent = text; } };
}

export const empty = (text) => el("p", { class: "empty" }, text);
export const badge = (text, kind = "") => el("span", { class: `badge ${kind}` }, text);

// Replaces the children. Tables stay scrolled as they were, and who is at one, or at a button in it, stays there.
export function show(node, ...children) {
  const areas = () => [...node.querySelectorAll(".scroll")];
  const before = areas();
  const scrolled = before.map(({ scrollLeft }) => scrollLeft);
  const active = node.contains(document.activeElement) ? document.activeElement : null;
  const [id, at] = [active?.dataset.id, before.indexOf(active)];
  node.replaceChildren(...children.flat());
  const now = areas();
  now.forEach((area, which) => { area.scrollLeft = scrolled[which] ?? 0; });
  const back = id ? node.querySelector(`[data-id="${CSS.escape(id)}"]`) : now[at];
  back?.focus({ preventScroll: true });
}

export function table(columns, rows, caption) {
  const head = columns.map(({ title, n, hint }) => el("th", { scope: "col", class: n ? "n" : "", title: hint }, title));
  const body = rows.map((row) => el("tr", {}, columns.map(({ cell, n, long }) => {
    const value = cell(row);
    const tip = long && typeof value === "string" ? value : null;
    return el("td", { class: `${n ? "n" : ""} ${long ? "long" : ""}`.trim() || null, title: tip }, value);
  })));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}
