import { stringifyDocument } from "@urql/core";
import type { Api } from "../api/client";
import { TASKS, TASKS_UPDATED, type TaskSummary, type TaskSummaryUpdate } from "../api/documents";
import { type Problem, problemOf, problemOfEnd } from "../api/errors";
import { type ListFilter, filterToInput } from "./filter";
import { type Batch, type Page, TaskList } from "./store";

/** What the feed is doing. */
export interface FeedState {
  /** Why the last reading failed, or why there are no live changes. */
  problem: Problem | null;
  /** Whether a page is being read. */
  reading: boolean;
}

const PAGE = 100;
// As many as the server gives at once.
const PAGE_MAX = 1_000;
// Four times a second is often enough to look live, and seldom enough that 500 changes a second cost little.
const FLUSH_MS = 250;
// However seldom a hidden page is let run.
const WAITING_MAX = 5_000;
const RETRY_MS = 3_000;
// A subscription has reached the server by then; what is read afterwards has all that it will not tell.
const SUBSCRIBED_MS = 100;
const LIVE_DOCUMENT = stringifyDocument(TASKS_UPDATED);

/** Reads pages into a list and keeps what was read live. It does so while it is started. */
export class ListFeed {
  readonly list: TaskList;
  readonly #api: Api;
  readonly #filter: ListFilter;
  readonly #listeners = new Set<() => void>();
  readonly #onBatch: (batch: Batch) => void;
  #state: FeedState = { problem: null, reading: false };
  #timer: ReturnType<typeof setTimeout> | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #waiting = 0;
  #flushed = 0;
  // Answers that come after a stop, or after a later reading from the top, are for nobody.
  #reading = 0;

  constructor(api: Api, filter: ListFilter, onBatch: (batch: Batch) => void) {
    this.#api = api;
    this.#filter = filter;
    this.#onBatch = onBatch;
    this.list = new TaskList(filter);
  }

  /** What the feed is doing. */
  state = (): FeedState => this.#state;

  /** Calls back when that changes; returns what ends that. */
  onState = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** Reads the list and follows it, until the returned function is called. */
  start(): () => void {
    const { client } = this.#api.live;
    let unsubscribe = this.#subscribe();
    // What changed while there was no subscription is read again, once there is one.
    const readSoon = (): void => {
      this.#api.live.lag(true);
      clearTimeout(this.#retry);
      this.#retry = setTimeout(() => void this.readTop(), SUBSCRIBED_MS);
    };
    const forget = client.on("connected", readSoon);
    this.#resubscribe = () => {
      unsubscribe();
      unsubscribe = this.#subscribe();
      readSoon();
    };
    if (this.list.view().loaded) readSoon();
    else void this.readTop();
    return () => {
      forget();
      this.#api.live.lag(false);
      unsubscribe();
      clearTimeout(this.#timer);
      clearTimeout(this.#retry);
      this.#timer = undefined;
      this.#reading += 1;
      this.#resubscribe = () => undefined;
      this.#become({ reading: false });
    };
  }

  /** Reads as much as there is already, anew, from the top. */
  async readTop(): Promise<void> {
    const first = Math.min(PAGE_MAX, Math.max(PAGE, this.list.view().ids.length));
    let above: TaskSummary | null = null;
    let after: string | null = null;
    for (;;) {
      const page = await this.#read(first, after);
      if (!page) return;
      this.list.refresh(page, above);
      const last = page.edges.at(-1);
      if (!last || !page.pageInfo.hasNextPage || !this.list.reachesBelow(last.node)) break;
      above = last.node;
      after = last.cursor;
    }
    this.#api.live.lag(false);
  }

  /** Reads the next page. */
  async readMore(): Promise<void> {
    if (this.#state.reading || !this.list.view().hasMore) return;
    const page = await this.#read(PAGE * 2, this.list.cursor);
    if (page) this.list.append(page);
  }

  #resubscribe: () => void = () => undefined;

  async #read(first: number, after: string | null): Promise<Page | null> {
    const mine = ++this.#reading;
    clearTimeout(this.#retry);
    this.#become({ reading: true });
    const { data, error } = await this.#api.query
      .query(TASKS, { first, after, filter: filterToInput(this.#filter) })
      .toPromise();
    if (mine !== this.#reading) return null;
    const problem = error ? problemOf(error) : null;
    this.#become({ reading: false, problem });
    if (problem?.kind === "unreachable" || problem?.kind === "failed") {
      this.#retry = setTimeout(() => void this.readTop(), RETRY_MS);
    }
    return data && !problem ? data.tasks : null;
  }

  #subscribe(): () => void {
    return this.#api.live.client.subscribe<{ tasksUpdated: TaskSummaryUpdate }>(
      { query: LIVE_DOCUMENT, variables: { filter: filterToInput(this.#filter) } },
      {
        next: ({ data, errors }) => {
          if (data) this.#take(data.tasksUpdated);
          else this.#end(errors);
        },
        error: (error) => this.#end(error),
        complete: () => undefined,
      },
    );
  }

  #end(error: unknown): void {
    const problem = problemOfEnd(error);
    this.#api.live.lag(true);
    if (problem.kind === "unauthenticated" || problem.kind === "forbidden") {
      this.#become({ problem });
      return;
    }
    // More changed than could wait for this page, or the server has trouble: begin anew.
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#resubscribe(), problem.kind === "outdated" ? SUBSCRIBED_MS : RETRY_MS);
  }

  #take(update: TaskSummaryUpdate): void {
    this.list.push(update);
    this.#waiting += 1;
    if (this.#waiting >= WAITING_MAX) this.#flush();
    else this.#timer ??= setTimeout(() => this.#flush(), Math.max(0, this.#flushed + FLUSH_MS - Date.now()));
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#waiting = 0;
    this.#flushed = Date.now();
    this.#onBatch(this.list.flush());
  }

  #become(change: Partial<FeedState>): void {
    this.#state = { ...this.#state, ...change };
    for (const listener of this.#listeners) listener();
  }
}
