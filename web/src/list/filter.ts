import type { TaskFilterInput, TaskStatus, TaskSummary } from "../api/documents";

/** Every status, in the order in which a task may pass through them. */
export const STATUSES = ["PENDING", "IN_PROGRESS", "SUCCESS", "FAILED", "CANCELED"] as const satisfies TaskStatus[];

/** Which tasks the list shows. Empty fields do not matter. */
export interface ListFilter {
  status: readonly TaskStatus[];
  tags: readonly string[];
  queue: string;
  prefix: string;
}

/** Shows every task. */
export const EVERYTHING: ListFilter = { status: [], tags: [], queue: "", prefix: "" };

/** Reads a filter from the query of a URL; words that mean nothing are left aside. */
export function filterFromQuery(query: string): ListFilter {
  const params = new URLSearchParams(query);
  const wanted = new Set(params.getAll("status"));
  return {
    status: STATUSES.filter((status) => wanted.has(status)),
    tags: [...new Set(params.getAll("tag").filter(Boolean))],
    queue: params.get("queue") ?? "",
    prefix: params.get("id") ?? "",
  };
}

/** Writes a filter as the query of a URL, without the question mark. */
export function filterToQuery(filter: ListFilter): string {
  const params = new URLSearchParams();
  for (const status of filter.status) params.append("status", status);
  for (const tag of filter.tags) params.append("tag", tag);
  if (filter.queue) params.set("queue", filter.queue);
  if (filter.prefix) params.set("id", filter.prefix);
  return params.toString();
}

/** The filter as the API takes it. */
export function filterToInput(filter: ListFilter): TaskFilterInput {
  return {
    ...(filter.status.length > 0 && { status: [...filter.status] }),
    ...(filter.tags.length > 0 && { tags: [...filter.tags] }),
    ...(filter.queue && { queue: filter.queue }),
    ...(filter.prefix && { taskIdPrefix: filter.prefix }),
  };
}

/** Whether the filter means a task; the server says the same. */
export function matches(filter: ListFilter, task: TaskSummary): boolean {
  return (
    (filter.status.length === 0 || filter.status.includes(task.status)) &&
    filter.tags.every((tag) => task.tags.includes(tag)) &&
    (!filter.queue || task.queue === filter.queue) &&
    task.taskId.startsWith(filter.prefix)
  );
}

/** Whether the filter leaves anything out. */
export function isNarrow(filter: ListFilter): boolean {
  return filterToQuery(filter) !== "";
}
