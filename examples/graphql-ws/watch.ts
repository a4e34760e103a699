/** Watch a task over the socket, with nothing but graphql-ws. */

import { print } from "graphql";
import { createClient } from "graphql-ws";

import { TaskUpdatesDocument, type TaskUpdatesSubscription } from "../generated/graphql.js";
import { credential, socketUrl, taskId } from "../node.js";

const client = createClient({
  url: socketUrl,
  // Asked for at each attempt to connect.
  connectionParams: () => ({ authorization: credential() && `Bearer ${credential() ?? ""}` }),
  retryAttempts: Infinity,
  // Also when nothing listens for a while, as during a restart. What cannot be mended is never tried again.
  shouldRetry: () => true,
});

let seen = 0;
client.subscribe<TaskUpdatesSubscription>(
  {
    query: print(TaskUpdatesDocument),
    // A getter: the client asks again after each reconnect, and then for what came after the last event seen.
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
