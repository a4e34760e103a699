// What a first visitor finds: one task, made and reported on in one tab, watched in another, looked at in the third.
import { HEADERS } from "./credential";

const LOOK = `# One task with its history. The list of
# all, tasks, needs a credential with LIST.
query Look {
  viewer {
    name
    permissions
  }
  task(taskId: "example") {
    status
    progress
    history(last: 10) {
      seq
      eventType
      message
      timestamp
    }
  }
}
`;

const CHANGE = `# The play button asks which of the three.
# To create needs a key: see Headers, below.
mutation Create {
  create(taskId: "example", metadata: { pages: 12 }) {
    taskId
    status
  }
}

mutation Report {
  updateProgress(taskId: "example", progress: 50) {
    status
    progress
    seq
  }
}

mutation Complete {
  complete(taskId: "example", metadata: { url: "/reports/12.pdf" }) {
    status
    completedAt
  }
}
`;

const WATCH = `# First the task as it is, with all events,
# then each change, until its end.
subscription Watch {
  taskUpdates(taskId: "example", afterSeq: 0) {
    type
    task {
      status
      progress
    }
    events {
      seq
      message
      timestamp
    }
  }
}
`;

/** The tabs that are open at first. */
export const EXAMPLES = [LOOK, CHANGE, WATCH].map((query) => ({ query, headers: HEADERS }));
