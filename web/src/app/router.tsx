import { type AnchorHTMLAttributes, type MouseEvent, type Ref, useSyncExternalStore } from "react";

// Two kinds of pages need no library: `/`, and `/tasks/` with an ID that may hold any character.
const MOVED = "spectral:moved";

/** The address of a task's page. */
export function taskPath(taskId: string): string {
  return `/tasks/${encodeURIComponent(taskId)}`;
}

/** The task whose page an address is, or null. */
export function taskOfPath(pathname: string): string | null {
  const found = /^\/tasks\/(.+)$/.exec(pathname)?.[1];
  if (found === undefined) return null;
  try {
    return decodeURIComponent(found);
  } catch {
    return found;
  }
}

/** Goes to a page of this site. */
export function navigate(to: string, { replace = false } = {}): void {
  // A task's page knows from which list it was opened, with its filter.
  const from = location.pathname === "/" ? location.pathname + location.search : listPath();
  if (replace) history.replaceState(from, "", to);
  else history.pushState(from, "", to);
  window.dispatchEvent(new Event(MOVED));
}

/** The list from which the page was opened, with its filter. */
export function listPath(): string {
  const state: unknown = history.state;
  return typeof state === "string" ? state : "/";
}

/** The path of the address now. */
export function usePathname(): string {
  return useSyncExternalStore(onMove, () => location.pathname);
}

/** What the address has after a `#`, with it. */
export function useHash(): string {
  return useSyncExternalStore(onMove, () => location.hash);
}

/** The query of the address now, with its question mark. */
export function useSearch(): string {
  return useSyncExternalStore(onMove, () => location.search);
}

interface LinkProps extends AnchorHTMLAttributes<HTMLAnchorElement> {
  href: string;
  ref?: Ref<HTMLAnchorElement>;
}

/** A link to a page of this site, which opens without loading anew. */
export function Link({ href, onClick, children, ...rest }: LinkProps) {
  function follow(event: MouseEvent<HTMLAnchorElement>): void {
    onClick?.(event);
    const other = event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button !== 0;
    if (other || event.defaultPrevented) return;
    event.preventDefault();
    navigate(href);
  }
  return (
    <a href={href} onClick={follow} {...rest}>
      {children}
    </a>
  );
}

function onMove(listener: () => void): () => void {
  window.addEventListener("popstate", listener);
  window.addEventListener(MOVED, listener);
  return () => {
    window.removeEventListener("popstate", listener);
    window.removeEventListener(MOVED, listener);
  };
}
