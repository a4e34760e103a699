import { createContext, use, useSyncExternalStore } from "react";
import type { Api } from "./client";
import type { Permission, Viewer } from "./documents";
import type { SocketState } from "./live";

/** The clients of whoever is signed in, and who that is. */
export interface Scope {
  api: Api;
  viewer: Viewer;
}

/** Gives the scope to all that is shown with it. */
export const ScopeContext = createContext<Scope | null>(null);

/** The clients, and who looks. */
export function useScope(): Scope {
  const scope = use(ScopeContext);
  if (!scope) throw new Error("There is no scope above this component.");
  return scope;
}

/** Whether the viewer may do something. */
export function may(viewer: Viewer, permission: Permission): boolean {
  return viewer.permissions.includes(permission) || viewer.permissions.includes("ADMIN");
}

/** What the page's socket is doing. */
export function useSocketState(): SocketState {
  const { live } = useScope().api;
  return useSyncExternalStore(live.onChange, live.state);
}
