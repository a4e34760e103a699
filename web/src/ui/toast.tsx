import { useSyncExternalStore } from "react";

// One line at a time: what was just done. It goes by itself, and a screen reader reads it.
let line = "";
let timer: ReturnType<typeof setTimeout> | undefined;
const listeners = new Set<() => void>();

/** Says what was done. */
export function say(what: string): void {
  set(what);
  clearTimeout(timer);
  timer = setTimeout(() => set(""), 5_000);
}

/** Where it is said. */
export function Toast() {
  const text = useSyncExternalStore(onChange, () => line);
  return (
    <div className="toast" role="status" aria-live="polite" data-shown={text !== ""}>
      {text}
    </div>
  );
}

function set(next: string): void {
  line = next;
  for (const listener of listeners) listener();
}

function onChange(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
