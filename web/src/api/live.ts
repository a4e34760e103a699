import type { Client as SocketClient } from "graphql-ws";
import { connect } from "@spectral-notify/react";

/** What the page's socket is doing: `idle` while nothing needs it, `refused` when the credential is not accepted. */
export type SocketState = "idle" | "connecting" | "live" | "behind" | "reconnecting" | "refused";

/** The page's one socket, and what it is doing. */
export interface LiveConnection {
  client: SocketClient;
  /** The state now. */
  state: () => SocketState;
  /** Says whether something that is followed over the socket has more to come than was read. */
  lag: (lags: boolean) => void;
  /** Calls back at each change of the state; returns what ends that. */
  onChange: (listener: () => void) => () => void;
}

// A server that has not answered a ping within this is behind. The client gives the socket up soon after.
const BEHIND_MS = 2_500;
const GOING_AWAY = 1000;
const FORBIDDEN = 4403;

/** Opens the socket when the first subscription needs it, and again for as long as one does. */
export function connectLive(url: string, credential: string | null): LiveConnection {
  const client = connect({ url, credential: () => credential });
  const listeners = new Set<() => void>();
  let state: SocketState = "idle";
  let lags = false;
  let late: ReturnType<typeof setTimeout> | undefined;

  function become(next: SocketState): void {
    if (state === next) return;
    state = next;
    for (const listener of listeners) listener();
  }

  client.on("connecting", () => {
    if (state === "idle" || state === "refused") become("connecting");
  });
  client.on("connected", () => become("live"));
  client.on("ping", (received) => {
    if (!received) late = setTimeout(() => become("behind"), BEHIND_MS);
  });
  client.on("pong", (received) => {
    if (!received) return;
    clearTimeout(late);
    become("live");
  });
  client.on("closed", (closing) => {
    clearTimeout(late);
    const code = codeOf(closing);
    become(code === FORBIDDEN ? "refused" : code === GOING_AWAY ? "idle" : "reconnecting");
  });

  return {
    client,
    state: () => (state === "live" && lags ? "behind" : state),
    lag: (now) => {
      if (now === lags) return;
      lags = now;
      for (const listener of listeners) listener();
    },
    onChange: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

function codeOf(closing: unknown): number | undefined {
  const hasCode = typeof closing === "object" && closing !== null && "code" in closing;
  return hasCode && typeof closing.code === "number" ? closing.code : undefined;
}
