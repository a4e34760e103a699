/** urql with graphcache: queries and mutations by POST, subscriptions by the socket, and both kept in one cache. */

import { Client, fetchExchange, subscriptionExchange } from "@urql/core";
import { cacheExchange } from "@urql/exchange-graphcache";
import { persistedExchange } from "@urql/exchange-persisted";
import { retryExchange } from "@urql/exchange-retry";
import type { Client as Socket } from "graphql-ws";

import type { TaskUpdatesSubscription } from "../generated/graphql.js";
import { TaskDocument } from "../generated/graphql.js";

export function urqlClient(url: string, socket: Socket, credential: () => string | null): Client {
  return new Client({
    url,
    preferGetMethod: false,
    fetchOptions: () => {
      const held = credential();
      return { headers: { ...(held && { authorization: `Bearer ${held}` }) } };
    },
    exchanges: [
      cacheExchange({
        // An update is no thing of its own; the task in it is, and so are its events.
        keys: { TaskUpdate: () => null },
        updates: {
          Subscription: {
            taskUpdates(result, _, cache) {
              const { type, task, events } = (result as TaskUpdatesSubscription).taskUpdates;
              if (type === "DELETE") {
                cache.invalidate({ __typename: "Task", id: task.id });
                return;
              }
              // The task is in the cache by now. Its history is a list, which only we can extend.
              cache.updateQuery({ query: TaskDocument, variables: { taskId: task.id } }, (data) => {
                if (!data?.task) return data;
                const shown = new Set(data.task.history.map((line) => line.seq));
                const history = [...data.task.history, ...events.filter((line) => !shown.has(line.seq))];
                return { ...data, task: { ...data.task, history } };
              });
            },
          },
        },
      }),
      // Sends hashes instead of documents that the server knows.
      persistedExchange({ preferGetForPersistedQueries: false, enableForMutation: true, enableForSubscriptions: true }),
      retryExchange({ initialDelayMs: 300, maxDelayMs: 10_000, maxNumberAttempts: 8 }),
      fetchExchange,
      subscriptionExchange({
        forwardSubscription({ query, variables, extensions }) {
          const { afterSeq, ...others } = variables ?? {};
          let seen = afterSeq as number | undefined;
          return {
            subscribe(sink) {
              const unsubscribe = socket.subscribe<TaskUpdatesSubscription>(
                {
                  query: query ?? "",
                  extensions,
                  // After each reconnect graphql-ws asks again: then for what came after the last event seen.
                  variables: {
                    ...others,
                    get afterSeq() {
                      return seen;
                    },
                  },
                },
                {
                  next(result) {
                    seen = result.data?.taskUpdates.events.at(-1)?.seq ?? seen;
                    sink.next(result as Parameters<typeof sink.next>[0]);
                  },
                  error: (problem) => {
                    sink.error(problem);
                  },
                  complete: () => {
                    sink.complete();
                  },
                },
              );
              return { unsubscribe };
            },
          };
        },
      }),
    ],
  });
}
