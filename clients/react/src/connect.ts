/** A socket that stays: a client of graphql-ws with the settings that this server is made for. */

import { type Client, type ClientOptions, createClient } from "graphql-ws";

import { isClosing, pauseMs, remedyOfClosing } from "./trouble.js";

/** After so long without a message the server is asked whether it is there. */
const PING_EVERY_MS = 15_000;
/** After so long without an answer to that it is not. */
const PONG_WITHIN_MS = 5_000;
/** So long may the server take to greet. */
const GREETING_WITHIN_MS = 10_000;

export interface ConnectOptions {
  /** `wss://…/graphql` */
  readonly url: ClientOptions["url"];
  /** An API key or a token, asked for at each connection; null or none: no credential. */
  readonly credential?: () => string | null | Promise<string | null>;
  /** How often a credential that ends is renewed over the open socket. Without it, it is not. */
  readonly renewEveryMs?: number;
  /** So long the socket stays open when nothing is subscribed any more, for what comes next. Without it, not at all. */
  readonly closeAfterMs?: number;
  /** The class of the socket, where none is built in. */
  readonly webSocketImpl?: unknown;
}

/** A client of graphql-ws that can renew its credential. Apollo's and urql's links take it, too. */
export interface Connection extends Client {
  /** Renew the credential of the open socket, if there is one; rejects when the new one is refused. */
  renew(): Promise<void>;
}

/** Connect when something is subscribed, and again for as long as something is. */
export function connect({ url, credential, renewEveryMs, closeAfterMs = 0, webSocketImpl }: ConnectOptions): Connection {
  let socket: WebSocket | null = null;
  let pongDue: ReturnType<typeof setTimeout> | undefined;
  let renewals: ReturnType<typeof setInterval> | undefined;
  let renewal: { settle: (refusal: Error | null) => void } | null = null;

  const authorization = async (): Promise<{ authorization: string } | undefined> => {
    const held = await credential?.();
    return held ? { authorization: `Bearer ${held}` } : undefined;
  };

  const client = createClient({
    url,
    webSocketImpl,
    connectionParams: authorization,
    connectionAckWaitTimeout: GREETING_WITHIN_MS,
    lazyCloseTimeout: closeAfterMs,
    keepAlive: PING_EVERY_MS,
    retryAttempts: Infinity,
    retryWait: (attempt) => new Promise((resolve) => setTimeout(resolve, pauseMs(attempt))),
    // Also when nothing listens for a while, as during a restart.
    shouldRetry: (problem) => !isClosing(problem) || remedyOfClosing(problem.code) === "retry",
    on: {
      connected(opened) {
        socket = opened as WebSocket;
        clearInterval(renewals);
        // One that fails is not the end: the subscriptions hear of it when their credential ends.
        if (renewEveryMs) renewals = setInterval(() => void renew().catch(() => undefined), renewEveryMs);
      },
      ping(received) {
        // A network that went away does not say so.
        if (!received) pongDue = setTimeout(() => { client.terminate(); }, PONG_WITHIN_MS);
      },
      pong(received, payload) {
        if (!received) return;
        clearTimeout(pongDue);
        if (payload?.["authorization"] === "accepted") renewal?.settle(null);
        if (payload?.["authorization"] === "refused") renewal?.settle(new Error(messageOf(payload["error"])));
      },
      closed() {
        socket = null;
        clearTimeout(pongDue);
        clearInterval(renewals);
        // The next connection brings a new one.
        renewal?.settle(null);
      },
    },
  });

  async function renew(): Promise<void> {
    const payload = await authorization();
    const open = socket;
    if (!payload || open?.readyState !== 1) return;
    renewal?.settle(null);
    await new Promise<void>((resolve, reject) => {
      renewal = {
        settle(refusal) {
          renewal = null;
          if (refusal) reject(refusal);
          else resolve();
        },
      };
      open.send(JSON.stringify({ type: "ping", payload }));
    });
  }

  return { ...client, renew };
}

function messageOf(error: unknown): string {
  const message = typeof error === "object" && error !== null && "message" in error ? error.message : undefined;
  return typeof message === "string" ? message : "The new credential was refused.";
}
