/** Apollo Client 4: queries and mutations by POST, subscriptions by the socket, and both kept in one cache. */

import { ApolloClient, ApolloLink, HttpLink, InMemoryCache } from "@apollo/client";
import { SetContextLink } from "@apollo/client/link/context";
import { PersistedQueryLink } from "@apollo/client/link/persisted-queries";
import { RetryLink } from "@apollo/client/link/retry";
import { GraphQLWsLink } from "@apollo/client/link/subscriptions";
import { OperationTypeNode } from "graphql";
import type { Client } from "graphql-ws";
import { tap } from "rxjs";

import type { TaskUpdatesSubscription, TaskUpdatesSubscriptionVariables } from "../generated/graphql.js";

/** After each reconnect graphql-ws asks again: then for what came after the last event seen. */
const resume = new ApolloLink((operation, forward) => {
  const { afterSeq, ...others } = operation.variables as TaskUpdatesSubscriptionVariables;
  let seen = afterSeq;
  // Here rather than where it is subscribed, because the client copies variables.
  operation.variables = {
    ...others,
    get afterSeq() {
      return seen;
    },
  };
  return forward(operation).pipe(
    tap(({ data }) => {
      seen = (data as TaskUpdatesSubscription | null | undefined)?.taskUpdates.events.at(-1)?.seq ?? seen;
    }),
  );
});

/** Sends hashes instead of documents that the server knows. */
const persisted = new PersistedQueryLink({
  sha256: async (text) => {
    const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
    return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  },
});

/** Try again what the network lost, and what the server put off. Reports need an `idempotencyKey` for that. */
const retry = new RetryLink({ delay: { initial: 300, max: 10_000, jitter: true }, attempts: { max: 8 } });

export function apolloClient(url: string, socket: Client, credential: () => string | null): ApolloClient {
  const authorize = new SetContextLink(({ headers }) => {
    const held = credential();
    return { headers: { ...(headers as object), ...(held && { authorization: `Bearer ${held}` }) } };
  });
  return new ApolloClient({
    cache: new InMemoryCache(),
    link: ApolloLink.split(
      ({ operationType }) => operationType === OperationTypeNode.SUBSCRIPTION,
      ApolloLink.from([resume, new GraphQLWsLink(socket)]),
      ApolloLink.from([persisted, retry, authorize, new HttpLink({ uri: url })]),
    ),
  });
}
