/** Watch a task as an event stream, where sockets do not get through. */

import { print } from "graphql";
import { createClient } from "graphql-sse";

import { TaskUpdatesDocument, type TaskUpdatesSubscription } from "../generated/graphql.js";
import { credential, taskId, url } from "../node.js";

const client = createClient({
  url,
  headers: (): Record<string, string> => {
    const held = credential();
    return held ? { authorization: `Bearer ${held}` } : {};
  },
  retryAttempts: Infinity,
  retry: (attempt) => new Promise((resolve) => setTimeout(resolve, Math.min(10_000, 250 * 2 ** attempt))),
});

let seen = 0;
client.subscribe<TaskUpdatesSubscription>(
  {
    query: print(TaskUpdatesDocument),
    // A getter, as with graphql-ws: each attempt sends the last number seen.
    variables: {
      taskId,
      get afterSeq() {
        return seen;
      },
    },
  },
  {
    next({ data, errors }) {
      if (!data) {
        console.error(errors);
        return;
      }
      const { task, events } = data.taskUpdates;
      for (const event of events) console.log("event", event.seq, event.message);
      seen = events.at(-1)?.seq ?? seen;
      console.log("task", task.status, task.progress);
    },
    error(problem) {
      console.error("refused", problem);
      process.exitCode = 1;
    },
    complete() {
      console.log("ended");
    },
  },
);
