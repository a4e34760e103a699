import type { TaskEvent } from "../api/documents";

/** Reads the events after one number and before another. */
export type ReadEvents = (after: number, before: number) => Promise<readonly TaskEvent[]>;

/** How many events a page of the history has. */
export const PAGE = 200;
// At once; whoever scrolls past 100,000 events does not ask for all of them.
const READINGS_MAX = 2;

/**
 * The history of one task, as far as somebody has looked at it.
 *
 * Numbers have no gaps, so the place of every event is known before it is read: a scrollbar over 100,000 events is
 * right from the start, and only the pages that come into view are read. Live events are put in as they come.
 */
export class EventLog {
  readonly #read: ReadEvents;
  readonly #events = new Map<number, TaskEvent>();
  readonly #pages = new Map<number, "reading" | "failed">();
  readonly #listeners = new Set<() => void>();
  #readings = 0;
  #version = 0;
  #size: number;

  constructor(size: number, read: ReadEvents) {
    this.#size = size;
    this.#read = read;
  }

  /** Grows with each change. */
  version = (): number => this.#version;

  /** The number of the latest event. */
  get size(): number {
    return this.#size;
  }

  /** Calls back at each change; returns what ends that. */
  onChange = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** The event with a number, if it was read. */
  at(seq: number): TaskEvent | undefined {
    return this.#events.get(seq);
  }

  /** Whether a page could not be read; `want` with `again` tries anew. */
  failed(seq: number): boolean {
    return this.#pages.get(pageOf(seq)) === "failed";
  }

  /** Puts live events in. */
  put(events: readonly TaskEvent[]): void {
    for (const event of events) {
      this.#events.set(event.seq, event);
      this.#size = Math.max(this.#size, event.seq);
    }
    this.#tell();
  }

  /** Says that there are more, which were not sent. */
  grow(size: number): void {
    if (size <= this.#size) return;
    this.#size = size;
    this.#tell();
  }

  /**
   * Reads what is missing between two numbers, both inclusive; what there is no room for is to be asked for at the next
   * change, by when somebody who scrolls may look at other events.
   */
  want(first: number, last: number, again = false): void {
    for (let page = pageOf(first); page <= pageOf(Math.min(last, this.#size)); page++) {
      const known = this.#pages.get(page);
      if (known === "reading" || (known === "failed" && !again)) continue;
      const from = Math.max(first, page * PAGE + 1);
      const to = Math.min(last, this.#size, (page + 1) * PAGE);
      if ((again || this.#readings < READINGS_MAX) && this.#lacks(from, to)) void this.#readPage(page);
    }
  }

  #lacks(from: number, to: number): boolean {
    for (let seq = from; seq <= to; seq++) if (!this.#events.has(seq)) return true;
    return false;
  }

  async #readPage(page: number): Promise<void> {
    this.#readings += 1;
    this.#pages.set(page, "reading");
    const end = Math.min(this.#size, (page + 1) * PAGE);
    try {
      const events = await this.#read(page * PAGE, end + 1);
      for (const event of events) this.#events.set(event.seq, event);
      // A page without what was asked for would be asked for again and again.
      if (this.#lacks(page * PAGE + 1, end)) this.#pages.set(page, "failed");
      else this.#pages.delete(page);
    } catch {
      this.#pages.set(page, "failed");
    }
    this.#readings -= 1;
    this.#tell();
  }

  #tell(): void {
    this.#version += 1;
    for (const listener of this.#listeners) listener();
  }
}

function pageOf(seq: number): number {
  return Math.floor((seq - 1) / PAGE);
}
