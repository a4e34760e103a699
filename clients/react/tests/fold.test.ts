import assert from "node:assert/strict";
import test from "node:test";

import { fold, type Known } from "../src/fold.js";
import type { Task, TaskEvent, TaskUpdate } from "../src/task.js";

const BORN = "2026-11-01T00:00:00Z";
const AGAIN = "2026-11-02T00:00:00Z";

function event(seq: number): TaskEvent {
  return {
    id: `T:${seq}`,
    seq,
    eventType: "LOG",
    message: `m${seq}`,
    progress: null,
    metadata: null,
    timestamp: BORN,
    actor: null,
  };
}

function update(seq: number, numbers: readonly number[], changed: Partial<Task & { type: TaskUpdate["type"] }> = {}): TaskUpdate {
  const { type = "EVENT", ...task } = changed;
  return {
    type,
    task: { id: "T", taskId: "T", status: "IN_PROGRESS", progress: 0, seq, createdAt: BORN, updatedAt: BORN, ...task },
    events: numbers.map(event),
  };
}

function knowing(seq: number | undefined, task: Task | null = null): Known<unknown> {
  return { task, events: [], seq, deleted: false };
}

const numbersOf = (events: readonly TaskEvent[]): number[] => events.map(({ seq }) => seq);

await test("events are taken once and in order, however often they are delivered", () => {
  let known = knowing(0);
  const fresh: number[] = [];
  for (const numbers of [[1, 2], [1, 2, 3], [3], [], [4, 5]]) {
    const folded = fold(known, update(5, numbers), 10);
    assert.equal(folded.hole, false);
    known = folded.known;
    fresh.push(...numbersOf(folded.fresh));
  }
  assert.deepEqual(fresh, [1, 2, 3, 4, 5]);
  assert.deepEqual(numbersOf(known.events), fresh);
  assert.equal(known.seq, 5);
});

await test("at most so many events are kept, and all are given out", () => {
  const exactly = fold(knowing(0), update(3, [1, 2, 3]), 3);
  assert.deepEqual(numbersOf(exactly.known.events), [1, 2, 3]);
  const more = fold(exactly.known, update(4, [4]), 3);
  assert.deepEqual(numbersOf(more.known.events), [2, 3, 4]);
  assert.deepEqual(numbersOf(more.fresh), [4]);
});

await test("a hole is found, and nothing behind it is taken", () => {
  const folded = fold(knowing(2), update(5, [4, 5]), 10);
  assert.equal(folded.hole, true);
  assert.equal(folded.known.seq, 2);
  assert.deepEqual(folded.fresh, []);
});

await test("who asks for what is to come begins at the number of the snapshot", () => {
  const { known } = fold(knowing(undefined), update(7, []), 10);
  assert.equal(known.seq, 7);
  assert.deepEqual(numbersOf(fold(known, update(8, [8]), 10).fresh), [8]);
});

await test("a task that was created again is another one", () => {
  const { known } = fold(knowing(0), update(3, [1, 2, 3]), 10);
  // It has less to tell than the one before, or as much, or more.
  const again = fold(known, update(2, [1, 2], { createdAt: AGAIN }), 10);
  assert.equal(again.startedOver, true);
  assert.deepEqual(numbersOf(again.fresh), [1, 2]);
  assert.deepEqual(numbersOf(again.known.events), [1, 2]);
  for (const numbers of [[], [4, 5]]) {
    const lacking = fold(known, update(5, numbers, { createdAt: AGAIN }), 10);
    assert.equal(lacking.hole, true);
    assert.equal(lacking.known.seq, 0);
    assert.deepEqual(lacking.known.events, []);
    // What is asked for then brings all of it, once.
    assert.deepEqual(numbersOf(fold(lacking.known, update(5, [1, 2, 3, 4, 5], { createdAt: AGAIN }), 10).fresh), [1, 2, 3, 4, 5]);
  }
});

await test("a number that is larger than the task's was another task's", () => {
  const folded = fold(knowing(9), update(2, [1, 2]), 10);
  assert.equal(folded.startedOver, true);
  assert.deepEqual(numbersOf(folded.fresh), [1, 2]);
});

await test("a deletion is told", () => {
  assert.equal(fold(knowing(0), update(1, [1], { type: "DELETE" }), 10).known.deleted, true);
});
