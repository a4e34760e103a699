import type { TaskSummary, TaskSummaryUpdate } from "../api/documents";
import { type ListFilter, matches } from "./filter";

/** A page as the server gave it. */
export interface Page {
  edges: readonly { cursor: string; node: TaskSummary }[];
  pageInfo: { hasNextPage: boolean };
}

/** The order of the list; made anew only when tasks come, go or move, not when one changes in its place. */
export interface ListView {
  /** The IDs, newest first. */
  ids: readonly string[];
  /** Whether the server has older ones. */
  hasMore: boolean;
  /** Whether a page was read yet; what is told before is not all there is. */
  loaded: boolean;
}

/** What a batch of live messages amounted to. */
export interface Batch {
  /** How many events were written, as far as their numbers tell. */
  events: number;
  /** How many tasks succeeded. */
  succeeded: number;
  /** How many tasks failed. */
  failed: number;
}

/** At this many rows the list is as long as it gets; older tasks are for a narrower filter. */
export const ROWS_MAX = 50_000;
// New tasks come in at the top for as long as the page is open: then the rows at the bottom go, and are read again
// when somebody scrolls there.
const TRIM_TO = 40_000;

interface Row {
  task: TaskSummary;
  /** Where the next page would begin; rows that came live have none. */
  cursor: string | null;
}

/**
 * The rows of the list: pages from the server, and live messages on top of them.
 *
 * Messages wait in a map, the latest of each task, until `flush`: a thousand changes of one task cost one row one
 * rendering. Whoever shows a row listens to that row alone; whoever shows the list hears only of a new order.
 */
export class TaskList {
  readonly #filter: ListFilter;
  readonly #rows = new Map<string, Row>();
  readonly #waiting = new Map<string, TaskSummaryUpdate>();
  readonly #rowListeners = new Map<string, Set<() => void>>();
  readonly #viewListeners = new Set<() => void>();
  // What was told while a page is on its way, which may be from before. Null when none is.
  #told: Map<string, TaskSummaryUpdate> | null = null;
  #order: string[] = [];
  #view: ListView = { ids: [], hasMore: false, loaded: false };

  constructor(filter: ListFilter) {
    this.#filter = filter;
  }

  /** The list as it is. */
  view = (): ListView => this.#view;

  /** A task of the list. */
  task = (id: string): TaskSummary | undefined => this.#rows.get(id)?.task;

  /** Calls back when the order changes; returns what ends that. */
  onView = (listener: () => void): (() => void) => {
    this.#viewListeners.add(listener);
    return () => this.#viewListeners.delete(listener);
  };

  /** Calls back when one task changes; returns what ends that. */
  onTask(id: string, listener: () => void): () => void {
    const known = this.#rowListeners.get(id) ?? new Set();
    this.#rowListeners.set(id, known.add(listener));
    return () => {
      known.delete(listener);
      if (known.size === 0) this.#rowListeners.delete(id);
    };
  }

  /** Where the next page begins: after the last row that has a place. */
  get cursor(): string | null {
    for (let at = this.#order.length - 1; at >= 0; at--) {
      const cursor = this.#rows.get(this.#order[at] ?? "")?.cursor;
      if (cursor) return cursor;
    }
    return null;
  }

  /** Says that a page is asked for, or that it will not come: what is told until it comes, is newer than it. */
  expect(page: boolean): void {
    this.#told = page ? new Map() : null;
  }

  /** Adds a page at the end. */
  append(page: Page): void {
    this.#add(page, page.pageInfo.hasNextPage);
    this.#told = null;
  }

  /** Takes the first page of a list that waits for a newer one: something to see until that is here. */
  begin(page: Page): void {
    if (!this.#view.loaded) this.#add(page, page.pageInfo.hasNextPage);
  }

  /** Takes a page that was read anew, below a task or at the top: what it does not hold, though it should, is gone. */
  refresh(page: Page, above: TaskSummary | null): void {
    const present = new Set(page.edges.map(({ node }) => node.id));
    const last = page.pageInfo.hasNextPage ? page.edges.at(-1)?.node : undefined;
    for (const [id, { task }] of this.#rows) {
      const covered = (!above || isBefore(above, task)) && (!last || isBefore(task, last));
      if (covered && !present.has(id) && !this.#waiting.has(id) && !this.#told?.has(id)) this.#rows.delete(id);
    }
    this.#add(page, last && this.reachesBelow(last) ? this.#view.hasMore : last !== undefined);
    this.#told = null;
  }

  /** Whether there are rows below a task. */
  reachesBelow(task: TaskSummary): boolean {
    const end = this.#rows.get(this.#order.at(-1) ?? "")?.task;
    return end !== undefined && isBefore(task, end);
  }

  /** Keeps a live message until the next `flush`. */
  push(update: TaskSummaryUpdate): void {
    const before = this.#waiting.get(update.task.id);
    if (!before || isNewer(update.task, before.task) || update.type === "DELETE") {
      this.#waiting.set(update.task.id, update);
    }
  }

  /** Takes all that waits into the rows, and says what it was. */
  flush(): Batch {
    const batch: Batch = { events: 0, succeeded: 0, failed: 0 };
    let moved = false;
    for (const [id, update] of this.#waiting) {
      if (update.type !== "DELETE") count(batch, update.task, this.#rows.get(id)?.task);
      this.#told?.set(id, update);
      moved = this.#take(update) || moved;
    }
    this.#waiting.clear();
    if (moved) this.#arrange(this.#view.hasMore, this.#view.loaded);
    return batch;
  }

  /** Takes a message into the rows; answers whether that changes their order. */
  #take({ type, task }: TaskSummaryUpdate): boolean {
    const row = this.#rows.get(task.id);
    if (type === "DELETE" || !matches(this.#filter, task)) {
      const goes = row && (type === "DELETE" ? row.task.createdAt <= task.createdAt : isNewer(task, row.task));
      return goes ? this.#rows.delete(task.id) : false;
    }
    if (!row) {
      if (!this.#belongs(task)) return false;
      this.#rows.set(task.id, { task, cursor: null });
      return true;
    }
    if (!isNewer(task, row.task)) return false;
    const moved = task.createdAt !== row.task.createdAt;
    row.task = task;
    this.#tell(task.id);
    return moved;
  }

  /** Takes a page, and once more what was told while it was on its way. */
  #add({ edges }: Page, hasMore: boolean): void {
    for (const { node, cursor } of edges) this.#put(node, cursor);
    this.#arrange(hasMore);
    let moved = false;
    for (const update of this.#told?.values() ?? []) moved = this.#take(update) || moved;
    if (moved) this.#arrange(this.#view.hasMore);
  }

  #put(task: TaskSummary, cursor: string): void {
    const row = this.#rows.get(task.id);
    if (!row) {
      this.#rows.set(task.id, { task, cursor });
      return;
    }
    row.cursor = cursor;
    if (!isNewer(task, row.task)) return;
    row.task = task;
    this.#tell(task.id);
  }

  /** Whether a task that no page held lies in the part of the list that was read. */
  #belongs(task: TaskSummary): boolean {
    const last = this.#rows.get(this.#order.at(-1) ?? "")?.task;
    return !this.#view.hasMore || !last || isBefore(task, last);
  }

  #arrange(hasMore: boolean, loaded = true): void {
    const rows = [...this.#rows.values()].map((row) => row.task).sort((a, b) => (isBefore(a, b) ? -1 : 1));
    if (rows.length > ROWS_MAX) {
      for (const { id } of rows.splice(TRIM_TO)) this.#rows.delete(id);
      hasMore = true;
    }
    this.#order = rows.map((task) => task.id);
    this.#view = { ids: this.#order, hasMore, loaded };
    for (const listener of this.#viewListeners) listener();
  }

  #tell(id: string): void {
    for (const listener of this.#rowListeners.get(id) ?? []) listener();
  }
}

function count(batch: Batch, task: TaskSummary, known: TaskSummary | undefined): void {
  const same = known?.createdAt === task.createdAt;
  batch.events += same ? Math.max(0, task.seq - known.seq) : 1;
  if (same && known.status === task.status) return;
  if (task.status === "SUCCESS") batch.succeeded += 1;
  if (task.status === "FAILED") batch.failed += 1;
}

/** Whether one task says something newer than another of the same ID, which may have been created again. */
function isNewer(task: TaskSummary, known: TaskSummary): boolean {
  return task.createdAt === known.createdAt ? task.seq > known.seq : task.createdAt > known.createdAt;
}

/** Whether one task stands above another: newest first, and the greater ID first where times are equal. */
function isBefore(one: TaskSummary, other: TaskSummary): boolean {
  return one.createdAt === other.createdAt ? one.taskId > other.taskId : one.createdAt > other.createdAt;
}
