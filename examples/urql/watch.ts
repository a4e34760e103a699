/** A screen that shows what the cache has, while the subscription feeds the cache. */

import { connect } from "@spectral-notify/react/core";

import { TaskDocument, TaskUpdatesDocument } from "../generated/graphql.js";
import { credential, socketUrl, taskId, url } from "../node.js";
import { urqlClient } from "./client.js";

const client = urqlClient(url, connect({ url: socketUrl, credential }), credential);

client.query(TaskDocument, { taskId }).subscribe(({ data }) => {
  if (data?.task) console.log("task", data.task.status, data.task.progress, data.task.history.length);
});

// First the task as it is, then what comes after that: an answer that is late must not overwrite what is newer.
const { data } = await client.query(TaskDocument, { taskId }).toPromise();
for (const event of data?.task?.history ?? []) console.log("event", event.seq, event.message);
let seen = data?.task?.seq ?? 0;

client.subscription(TaskUpdatesDocument, { taskId, afterSeq: seen }).subscribe(({ data, error, hasNext }) => {
  if (error) {
    console.error("refused", error);
    process.exitCode = 1;
  }
  for (const event of data?.taskUpdates.events ?? []) {
    // At its end urql gives the last result once more.
    if (event.seq <= seen) continue;
    seen = event.seq;
    console.log("event", event.seq, event.message);
  }
  if (!hasNext) console.log("ended");
});
