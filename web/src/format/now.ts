import { useSyncExternalStore } from "react";
import { dayOf } from "./format";

// One clock for all ages on the page, which stands still while nobody can see it.
const listeners = new Set<() => void>();
let now = Date.now();
let timer: ReturnType<typeof setInterval> | undefined;

/** The time, to the second. */
export function useNow(): number {
  return useSyncExternalStore(onTick, () => now);
}

/** The day of now, as `dayOf` writes it. */
export function useToday(): string {
  return useSyncExternalStore(onTick, () => dayOf(now));
}

function onTick(listener: () => void): () => void {
  listeners.add(listener);
  if (timer === undefined) {
    now = Date.now();
    timer = setInterval(tick, 1_000);
  }
  return () => {
    listeners.delete(listener);
    if (listeners.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };
}

function tick(): void {
  if (document.hidden) return;
  now = Date.now();
  for (const listener of listeners) listener();
}
