// The calls of this page, all to its own origin.

const KEY = "kelvin-token";

export async function get(path) {
  const answer = await fetch(`./api/${path}`, { cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? `answered ${answer.status}`);
  return body;
}

export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keepToken(text) {
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

export async function act(action) {
  const headers = { "content-type": "application/json" };
  if (token()) headers.authorization = `Bearer ${token()}`;
  const answer = await fetch("./api/act", { method: "POST", headers, body: JSON.stringify(action) });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? `answered ${answer.status}`);
  return body;
}
