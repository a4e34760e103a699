import { useSyncExternalStore } from "react";

/** What the viewer chose; `system` follows the machine. */
export type Theme = "system" | "light" | "dark";

/** The choices, in the order in which the menu has them. */
export const THEMES: readonly Theme[] = ["system", "light", "dark"];

const KEY = "spectral.theme";
const listeners = new Set<() => void>();
const machine = window.matchMedia("(prefers-color-scheme: dark)");

/** Puts the choice on the page; called before anything is shown. */
export function applyTheme(): void {
  const theme = chosen();
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Chooses, for this browser. */
export function chooseTheme(theme: Theme): void {
  localStorage.setItem(KEY, theme);
  applyTheme();
  for (const listener of listeners) listener();
}

/** The choice. */
export function useTheme(): Theme {
  return useSyncExternalStore(onChange, chosen);
}

/** Whether what is shown is dark. */
export function useDark(): boolean {
  return useSyncExternalStore(onChange, () => chosen() === "dark" || (chosen() === "system" && machine.matches));
}

/** The choice now. */
export function chosen(): Theme {
  const kept = localStorage.getItem(KEY);
  return THEMES.find((theme) => theme === kept) ?? "system";
}

function onChange(listener: () => void): () => void {
  listeners.add(listener);
  machine.addEventListener("change", listener);
  return () => {
    listeners.delete(listener);
    machine.removeEventListener("change", listener);
  };
}
