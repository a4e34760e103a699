/** What goes over the wire with persisted queries: the hash, and the document only to a server that does not know it. */

import type { ApolloClient } from "@apollo/client";
import type { Client } from "@urql/core";
import { connect } from "@spectral-notify/react/core";

import { apolloClient } from "./apollo/client.js";
import { TaskDocument } from "./generated/graphql.js";
import { credential, socketUrl, taskId, url } from "./node.js";
import { urqlClient } from "./urql/client.js";

const fetched = globalThis.fetch;
globalThis.fetch = (resource, request) => {
  const { query, extensions } = JSON.parse(request?.body as string) as { query?: string; extensions?: object };
  const said = [extensions && "persistedQuery" in extensions && "hash", query && "document"];
  console.log("sent", ...said.filter(Boolean));
  return fetched(resource, request);
};
const socket = connect({ url: socketUrl, credential });

async function byApollo(client: ApolloClient): Promise<void> {
  const { data } = await client.query({ query: TaskDocument, variables: { taskId }, fetchPolicy: "network-only" });
  console.log("apollo", data?.task?.status);
}
async function byUrql(client: Client): Promise<void> {
  const { data } = await client.query(TaskDocument, { taskId }, { requestPolicy: "network-only" }).toPromise();
  console.log("urql", data?.task?.status);
}

const apollo = apolloClient(url, socket, credential);
const urql = urqlClient(url, socket, credential);
for (let time = 0; time < 2; time++) {
  await byApollo(apollo);
  await byUrql(urql);
}
