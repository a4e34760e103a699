/** A screen that shows what the cache has, while the subscription feeds the cache. */

import { connect } from "@spectral-notify/react/core";

import { TaskDocument, TaskUpdatesDocument } from "../generated/graphql.js";
import { credential, socketUrl, taskId, url } from "../node.js";
import { urqlClient } from "./client.js";

const client = urqlClient(url, connect({ url: socketUrl, credential }), credential);

const screen = client.query(TaskDocument, { taskId }).subscribe(({ data }) => {
  if (data?.task) console.log("task", data.task.status, data.task.progress, data.task.history.length);
});

const updates = client.subscription(TaskUpdatesDocument, { taskId, afterSeq: 0 }).subscribe(({ data, error, hasNext }) => {
  if (error) {
    console.error("refused", error);
    process.exitCode = 1;
  }
  for (const event of data?.taskUpdates.events ?? []) console.log("event", event.seq, event.message);
  if (!hasNext) {
    screen.unsubscribe();
    updates.unsubscribe();
    console.log("ended");
  }
});
