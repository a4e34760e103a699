import { stringifyDocument } from "@urql/core";
import type { Api } from "../api/client";
import { type TaskPageVariables, TASKS, TASKS_UPDATED, type TaskSummary, type TaskSummaryUpdate } from "../api/documents";
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
// Whoever could not keep up does not come back at once.
const OUTDATED_MS = 100;
const LIVE_DOCUMENT = stringifyDocument(TASKS_UPDATED);
const PAGE_DOCUMENT = stringifyDocument(TASKS);

/** What came of asking for a page: one of the two, or nothing when nobody waits for it any more. */
interface Answer {
  page?: Page | undefined;
  problem?: Problem | undefined;
}

/** A way to ask for a page. */
type Ask = (variables: TaskPageVariables) => Promise<Answer>;

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
  #forgetAsked: () => void = () => undefined;

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
    const forget = client.on("connected", () => this.#catchUp());
    this.#resubscribe = () => {
      unsubscribe();
      unsubscribe = this.#subscribe();
      this.#catchUp();
    };
    if (this.#api.live.isOpen()) this.#catchUp();
    // A page by a request of its own is here before a socket is open.
    else if (!this.list.view().loaded) void this.readTop();
    return () => {
      forget();
      this.#api.live.lag(false);
      unsubscribe();
      clearTimeout(this.#timer);
      clearTimeout(this.#retry);
      this.#timer = undefined;
      this.#reading += 1;
      this.#forgetAsked();
      this.list.expect(false);
      this.#resubscribe = () => undefined;
      this.#become({ reading: false });
    };
  }

  /** Reads as much as there is already, anew, from the top. */
  readTop(): Promise<void> {
    return this.#readTop(this.#byRequest);
  }

  /**
   * Reads anew what may have changed while nothing was told. Operations of a socket begin in the order in which they are
   * sent, so the subscription has begun when the first page is answered that was asked for after it.
   */
  #catchUp(): void {
    this.#api.live.lag(true);
    void this.#readTop(this.#bySocket);
  }

  async #readTop(way: Ask): Promise<void> {
    let ask = way;
    const first = Math.min(PAGE_MAX, Math.max(PAGE, this.list.view().ids.length));
    let above: TaskSummary | null = null;
    let after: string | null = null;
    for (;;) {
      const page = await this.#read(ask, first, after);
      if (!page) return;
      this.list.refresh(page, above);
      const last = page.edges.at(-1);
      if (!last || !page.pageInfo.hasNextPage || !this.list.reachesBelow(last.node)) break;
      above = last.node;
      after = last.cursor;
      ask = this.#byRequest;
    }
    this.#api.live.lag(false);
  }

  /** Reads the next page. */
  async readMore(): Promise<void> {
    if (this.#state.reading || !this.list.view().hasMore) return;
    const page = await this.#read(this.#byRequest, PAGE * 2, this.list.cursor);
    if (page) this.list.append(page);
  }

  #resubscribe: () => void = () => undefined;

  async #read(ask: Ask, first: number, after: string | null): Promise<Page | null> {
    const mine = ++this.#reading;
    clearTimeout(this.#retry);
    this.#forgetAsked();
    this.list.expect(true);
    this.#become({ reading: true });
    const { page, problem } = await ask({ first, after, filter: filterToInput(this.#filter) });
    if (mine !== this.#reading) {
      // A socket was faster than the first page: that is still something to see until the socket's own page is here.
      if (page) this.list.begin(page);
      return null;
    }
    this.#become({ reading: false, problem: problem ?? null });
    if (page) return page;
    this.list.expect(false);
    if (problem?.kind === "unreachable" || problem?.kind === "failed") {
      this.#retry = setTimeout(() => void this.readTop(), RETRY_MS);
    }
    return null;
  }

  #byRequest: Ask = async (variables) => {
    const { data, error } = await this.#api.query.query(TASKS, variables).toPromise();
    return error ? { problem: problemOf(error) } : { page: data?.tasks };
  };

  #bySocket: Ask = (variables) =>
    new Promise((resolve) => {
      this.#forgetAsked = this.#api.live.client.subscribe<{ tasks: Page }>(
        { query: PAGE_DOCUMENT, variables },
        {
          next: ({ data, errors }) => resolve(data ? { page: data.tasks } : { problem: problemOfEnd(errors) }),
          error: (error) => resolve({ problem: problemOfEnd(error) }),
          complete: () => resolve({}),
        },
      );
    });

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
    this.#retry = setTimeout(() => this.#resubscribe(), problem.kind === "outdated" ? OUTDATED_MS : RETRY_MS);
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
