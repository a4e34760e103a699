import type { Batch } from "../list/store";

/** How wide a step of the chart is. */
export const STEP_MS = 2_000;
/** How many steps the chart remembers: five minutes. */
export const STEPS = 150;

// A page that was just opened draws this many, rather than five minutes of nothing.
const STEPS_MIN = 30;

/** The chart's columns: times in seconds, then rates per second. Null where the page was not live. */
export type Columns = [number[], (number | null)[], (number | null)[], (number | null)[]];

interface Step extends Batch {
  live: boolean;
}

/** What this page saw happen, in steps of two seconds. */
export class Throughput {
  #steps = new Map<number, Step>();
  readonly #since: number;

  constructor(now: number) {
    this.#since = Math.floor(now / STEP_MS);
  }

  /** Adds what a batch of live messages amounted to. */
  add(batch: Batch, now: number): void {
    const step = this.#at(now);
    step.live = true;
    step.events += batch.events;
    step.succeeded += batch.succeeded;
    step.failed += batch.failed;
  }

  /** Notes that the page is live, though nothing happens. */
  alive(now: number): void {
    this.#at(now).live = true;
  }

  /** What to draw: the time since the page was opened, of the last five minutes, without the step that is not over. */
  columns(now: number): Columns {
    const last = Math.floor(now / STEP_MS) - 1;
    const columns: Columns = [[], [], [], []];
    const from = Math.max(last - STEPS + 1, Math.min(this.#since, last - STEPS_MIN + 1));
    for (let at = from; at <= last; at++) {
      const step = at < this.#since ? undefined : this.#steps.get(at);
      const seen = step?.live ? step : undefined;
      columns[0].push((at * STEP_MS) / 1_000);
      columns[1].push(rate(seen?.events));
      columns[2].push(rate(seen?.succeeded));
      columns[3].push(rate(seen?.failed));
    }
    for (const at of this.#steps.keys()) if (at <= last - STEPS) this.#steps.delete(at);
    return columns;
  }

  #at(now: number): Step {
    const at = Math.floor(now / STEP_MS);
    const step = this.#steps.get(at) ?? { live: false, events: 0, succeeded: 0, failed: 0 };
    this.#steps.set(at, step);
    return step;
  }
}

function rate(value: number | undefined): number | null {
  return value === undefined ? null : (value * 1_000) / STEP_MS;
}
