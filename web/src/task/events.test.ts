import { expect, test, vi } from "vitest";
import type { TaskEvent } from "../api/documents";
import { EventLog, PAGE } from "./events";

function event(seq: number): TaskEvent {
  return {
    id: `e${seq}`,
    seq,
    eventType: "LOG",
    message: `event ${seq}`,
    progress: null,
    metadata: null,
    timestamp: "2026-11-20T09:30:00.000000Z",
    actor: null,
  };
}

function events(after: number, before: number): TaskEvent[] {
  return Array.from({ length: before - after - 1 }, (_, at) => event(after + 1 + at));
}

function reader() {
  return vi.fn((after: number, before: number) => Promise.resolve(events(after, before)));
}

async function settled(log: EventLog): Promise<void> {
  await new Promise<void>((resolve) => log.onChange(resolve));
}

test("only the pages that somebody looks at are read, each once", async () => {
  const read = reader();
  const log = new EventLog(100_000, read);
  log.want(50_000, 50_020);
  log.want(50_000, 50_020);
  await vi.waitFor(() => expect([log.at(50_000), log.at(50_020)]).not.toContain(undefined));
  log.want(50_000, 50_020);
  expect(read.mock.calls).toEqual([
    [49_800, 50_001],
    [50_000, 50_201],
  ]);
  expect(log.at(50_020)?.message).toBe("event 50020");
  expect(log.at(1)).toBeUndefined();
});

test("what somebody scrolls past while two pages are read, is not read", async () => {
  const read = reader();
  const log = new EventLog(100_000, read);
  log.want(1, 10);
  log.want(1_001, 1_010);
  log.want(2_001, 2_010);
  await settled(log);
  log.want(3_001, 3_010);
  await vi.waitFor(() => expect(log.at(3_001)).toBeDefined());
  expect(read.mock.calls.map(([after]) => after)).toEqual([0, 1_000, 3_000]);
});

test("live events make it longer, and are not read again", () => {
  const read = reader();
  const log = new EventLog(0, read);
  log.put(events(0, 4));
  log.want(1, 3);
  expect(log.size).toBe(3);
  expect(read).not.toHaveBeenCalled();
});

test("a page that had grown is read to its new end", async () => {
  const read = reader();
  const log = new EventLog(3, read);
  log.want(1, 3);
  await settled(log);
  log.grow(5);
  log.want(4, 5);
  await settled(log);
  expect(read.mock.calls).toEqual([
    [0, 4],
    [0, 6],
  ]);
  expect(log.at(5)?.seq).toBe(5);
});

test("a page that cannot be read is said to be so, and read when asked again", async () => {
  const read = reader();
  read.mockRejectedValueOnce(new Error("gone"));
  const log = new EventLog(PAGE, read);
  log.want(1, 10);
  await settled(log);
  expect(log.failed(1)).toBe(true);
  log.want(1, 10);
  expect(read).toHaveBeenCalledTimes(1);
  log.want(1, 10, true);
  await settled(log);
  expect(log.failed(1)).toBe(false);
});

test("an answer that lacks events is a failure, not a reason to ask for ever", async () => {
  const read = vi.fn(() => Promise.resolve([event(1)]));
  const log = new EventLog(3, read);
  log.want(1, 3);
  await settled(log);
  log.want(1, 3);
  expect(log.failed(2)).toBe(true);
  expect(read).toHaveBeenCalledTimes(1);
});
