import { useEffect, useEffectEvent } from "react";

/** What the keys do, for the help. */
export const SHORTCUTS: readonly { keys: readonly string[]; what: string }[] = [
  { keys: ["/"], what: "Search by task ID" },
  { keys: ["j"], what: "Next task or event" },
  { keys: ["k"], what: "Previous task or event" },
  { keys: ["Enter"], what: "Open the task" },
  { keys: ["n"], what: "Create a test task" },
  { keys: ["u"], what: "From a task back to the list" },
  { keys: ["?"], what: "This help" },
  { keys: ["Esc"], what: "Close what is open" },
];

/** Calls an action for a key, unless somebody is writing or a dialog is open. */
export function useShortcut(key: string, action: () => void): void {
  const act = useEffectEvent(action);
  useEffect(() => {
    function pressed(event: KeyboardEvent): void {
      if (event.key !== key || event.metaKey || event.ctrlKey || event.altKey || event.defaultPrevented) return;
      if (isBusy(event.target)) return;
      event.preventDefault();
      act();
    }
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, [key]);
}

function isBusy(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  return target.matches("input, textarea, select, [contenteditable]") || target.closest("[role$=dialog], [role=menu]") !== null;
}
