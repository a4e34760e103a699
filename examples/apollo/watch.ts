/** A screen that shows what the cache has, while the subscription feeds the cache. */

import { connect } from "@spectral-notify/react/core";

import { TaskDocument, TaskUpdatesDocument } from "../generated/graphql.js";
import { credential, socketUrl, taskId, url } from "../node.js";
import { apolloClient } from "./client.js";

const client = apolloClient(url, connect({ url: socketUrl, credential }), credential);

client.watchQuery({ query: TaskDocument, variables: { taskId } }).subscribe(({ data }) => {
  if (data?.task) console.log("task", data.task.status, data.task.progress, data.task.history?.length);
});

client.subscribe({ query: TaskUpdatesDocument, variables: { taskId, afterSeq: 0 } }).subscribe({
  next({ data, error }) {
    if (!data) {
      console.error("refused", error);
      process.exitCode = 1;
      return;
    }
    const { type, task, events } = data.taskUpdates;
    for (const event of events) console.log("event", event.seq, event.message);
    if (type === "DELETE") {
      client.cache.evict({ id: client.cache.identify({ __typename: "Task", id: task.id }) });
      return;
    }
    // The task itself is in the cache by now, because it has an `id`. Its history is a list, which only we can extend.
    client.cache.updateQuery({ query: TaskDocument, variables: { taskId } }, (data) => {
      if (!data?.task) return undefined;
      const shown = new Set(data.task.history.map((line) => line.seq));
      const history = [...data.task.history, ...events.filter((line) => !shown.has(line.seq))];
      return { ...data, task: { ...data.task, history } };
    });
  },
  complete() {
    console.log("ended");
  },
});
