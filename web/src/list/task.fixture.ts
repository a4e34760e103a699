import type { TaskSummary } from "../api/documents";

/** A task for a test, created in the given second. */
export function task(given: Partial<TaskSummary> & { taskId: string }, second = 0): TaskSummary {
  const at = `2026-11-20T09:30:${String(second).padStart(2, "0")}.000000Z`;
  return {
    id: given.taskId,
    status: "PENDING",
    progress: 0,
    seq: 1,
    tags: [],
    queue: null,
    attempt: 0,
    maxAttempts: 1,
    stale: false,
    createdAt: at,
    updatedAt: at,
    lastEvent: { eventType: "LOG", message: "Task created" },
    ...given,
  };
}
