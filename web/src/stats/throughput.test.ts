import { expect, test } from "vitest";
import { STEP_MS, STEPS, Throughput } from "./throughput";

const START = 1_000 * STEP_MS;

test("a rate is what happened in a step, by its seconds", () => {
  const seen = new Throughput(START);
  seen.add({ events: 6, succeeded: 2, failed: 1 }, START);
  seen.add({ events: 4, succeeded: 0, failed: 0 }, START + STEP_MS - 1);
  const [, changes, succeeded, failed] = seen.columns(START + STEP_MS);
  expect([changes.at(-1), succeeded.at(-1), failed.at(-1)]).toEqual([5, 1, 0.5]);
});

test("where the page was not live there is a gap, and where nothing happened there is zero", () => {
  const seen = new Throughput(START);
  seen.alive(START);
  seen.alive(START + 2 * STEP_MS);
  const [times, changes] = seen.columns(START + 3 * STEP_MS);
  expect(changes.slice(-3)).toEqual([0, null, 0]);
  expect(changes.slice(0, -3).every((rate) => rate === null)).toBe(true);
  // A minute at least, and no more than is remembered.
  expect(times).toHaveLength(30);
  expect(seen.columns(START + 2 * STEPS * STEP_MS)[0]).toHaveLength(STEPS);
});

test("a step that is not over is not drawn", () => {
  const seen = new Throughput(START);
  seen.add({ events: 6, succeeded: 0, failed: 0 }, START);
  expect(seen.columns(START)[1].at(-1)).toBeNull();
});
