import { Client, fetchExchange } from "@urql/core";
import { connectLive, type LiveConnection } from "./live";

/** All that the page needs to talk to the server with one credential. */
export interface Api {
  /** Queries and mutations. */
  query: Client;
  /** Subscriptions. They go past urql, so that each message costs the page as little as it can. */
  live: LiveConnection;
}

/** Makes the clients for a credential, or for nobody's. */
export function createApi(credential: string | null, origin = window.location.origin): Api {
  const url = new URL("/graphql", origin);
  const query = new Client({
    url: url.href,
    // No cache: what the page shows is what the server says now, and live messages keep it so.
    exchanges: [fetchExchange],
    requestPolicy: "network-only",
    preferGetMethod: false,
    fetchOptions: credential === null ? {} : { headers: { authorization: `Bearer ${credential}` } },
  });
  const socket = new URL(url);
  socket.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return { query, live: connectLive(socket.href, credential) };
}
