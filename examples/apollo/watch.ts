/** A screen that shows what the cache has, while the subscription feeds the cache. */

import { connect } from "@spectral-notify/react/core";

import { TaskDocument, TaskUpdatesDocument } from "../generated/graphql.js";
import { credential, socketUrl, taskId, url } from "../node.js";
import { apolloClient } from "./client.js";

const client = apolloClient(url, connect({ url: socketUrl, credential }), credential);

const variables = { taskId };
client.watchQuery({ query: TaskDocument, variables }).subscribe(({ data }) => {
  const task = data?.task;
  if (task?.history) console.log("task", task.status, task.progress, task.history.length);
});

// First the task as it is, then what comes after that: an answer that is late must not overwrite what is newer.
const { data } = await client.query({ query: TaskDocument, variables });
for (const event of data?.task?.history ?? []) console.log("event", event.seq, event.message);
const afterSeq = data?.task?.seq ?? 0;

client.subscribe({ query: TaskUpdatesDocument, variables: { taskId, afterSeq } }).subscribe({
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
    client.cache.updateQuery({ query: TaskDocument, variables }, (data) => {
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
