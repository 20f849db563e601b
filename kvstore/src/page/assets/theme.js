// Light, dark, or as the system has it.

import { by } from "./dom.js";

const KEY = "kelvin-theme";
const NEXT = { system: "light", light: "dark", dark: "system" };

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export function watchTheme(changed) {
  const button = by("theme");
  let theme = localStorage.getItem(KEY) ?? "system";
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  apply();
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    localStorage.setItem(KEY, theme);
    apply();
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
