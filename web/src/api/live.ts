import { createClient, type Client as SocketClient } from "graphql-ws";

/** What the page's socket is doing: `idle` while nothing needs it, `refused` when the credential is not accepted. */
export type SocketState = "idle" | "connecting" | "live" | "behind" | "reconnecting" | "refused";

/** The page's one socket, and what it is doing. */
export interface LiveConnection {
  client: SocketClient;
  /** The state now. */
  state(): SocketState;
  /** Calls back at each change of the state; returns what ends that. */
  onChange(listener: () => void): () => void;
  /** Closes the socket for good. */
  dispose(): void;
}

// After these the same attempt would fail again: the page is wrong, or its credential is.
const FATAL = new Set([4400, 4401, 4403, 4406, 4409, 4429]);
const PING_MS = 10_000;
// A server that does not answer a ping within this is behind; after twice as long the socket is given up.
const PONG_MS = 4_000;
const RETRY_MS_MAX = 8_000;

/** Opens the socket when the first subscription needs it, and again for as long as one does. */
export function connectLive(url: string, credential: string | null): LiveConnection {
  const listeners = new Set<() => void>();
  let state: SocketState = "idle";
  let wasLive = false;
  let late: ReturnType<typeof setTimeout> | undefined;
  let lost: ReturnType<typeof setTimeout> | undefined;

  function become(next: SocketState): void {
    if (state === next) return;
    state = next;
    for (const listener of listeners) listener();
  }
  function unwatch(): void {
    clearTimeout(late);
    clearTimeout(lost);
  }

  const client = createClient({
    url,
    connectionParams: credential === null ? {} : { authorization: `Bearer ${credential}` },
    lazy: true,
    // Long enough to go from the list to a task on the same socket.
    lazyCloseTimeout: 2_000,
    keepAlive: PING_MS,
    retryAttempts: Infinity,
    shouldRetry: (problem) => !(isClose(problem) && FATAL.has(problem.code)),
    retryWait: async (retries) => {
      become("reconnecting");
      const pause = Math.min(RETRY_MS_MAX, 300 * 2 ** retries) * (0.5 + Math.random() / 2);
      await new Promise((resolve) => setTimeout(resolve, pause));
    },
    on: {
      connecting: () => become(wasLive ? "reconnecting" : "connecting"),
      connected: () => {
        wasLive = true;
        become("live");
      },
      ping: (received) => {
        if (received) return;
        unwatch();
        late = setTimeout(() => become("behind"), PONG_MS);
        lost = setTimeout(() => client.terminate(), 2 * PONG_MS);
      },
      pong: (received) => {
        if (!received) return;
        unwatch();
        become("live");
      },
      closed: (closing) => {
        unwatch();
        if (isClose(closing) && closing.code === 4403) become("refused");
        else if (isClose(closing) && closing.code === 1000) {
          wasLive = false;
          become("idle");
        } else become("reconnecting");
      },
    },
  });

  return {
    client,
    state: () => state,
    onChange: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    dispose: () => {
      unwatch();
      void client.dispose();
    },
  };
}

function isClose(value: unknown): value is { code: number } {
  return typeof value === "object" && value !== null && "code" in value && typeof value.code === "number";
}
