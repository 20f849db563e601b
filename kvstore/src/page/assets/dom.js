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

// Replaces the children, unless somebody is at one of them: a table must not jump under the keyboard.
export function show(node, ...children) {
  if (node.contains(document.activeElement) && node.dataset.busy === "focus") return;
  node.replaceChildren(...children.flat());
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
