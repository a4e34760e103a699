import { expect, test } from "vitest";
import { EVERYTHING, filterFromQuery, filterToInput, filterToQuery, isNarrow, matches } from "./filter";
import { task } from "./task.fixture";

const NARROW = { status: ["FAILED", "PENDING"], tags: ["a b", "ü"], queue: "mail", prefix: "x/" } as const;

test("a filter survives the address", () => {
  expect(filterFromQuery(filterToQuery(NARROW))).toEqual({ ...NARROW, status: ["PENDING", "FAILED"] });
  expect(filterToQuery(EVERYTHING)).toBe("");
});

test("what an address says that is no filter is left aside", () => {
  expect(filterFromQuery("?status=DONE&status=FAILED&tag=&tag=x&tag=x&page=7")).toEqual({
    ...EVERYTHING,
    status: ["FAILED"],
    tags: ["x"],
  });
});

test("the API is asked for what is given, and for nothing else", () => {
  expect(filterToInput(EVERYTHING)).toEqual({});
  expect(filterToInput({ ...EVERYTHING, prefix: "x" })).toEqual({ taskIdPrefix: "x" });
});

test("a filter means a task of which all of it is true", () => {
  const one = task({ taskId: "x-1", status: "FAILED", tags: ["a", "b"], queue: "mail" });
  expect(matches(EVERYTHING, one)).toBe(true);
  expect(matches({ status: ["FAILED"], tags: ["b"], queue: "mail", prefix: "x-" }, one)).toBe(true);
  expect(matches({ ...EVERYTHING, status: ["SUCCESS"] }, one)).toBe(false);
  expect(matches({ ...EVERYTHING, tags: ["a", "c"] }, one)).toBe(false);
  expect(matches({ ...EVERYTHING, queue: "video" }, one)).toBe(false);
  expect(matches({ ...EVERYTHING, prefix: "X-" }, one)).toBe(false);
});

test("a filter is narrow as soon as it leaves something out", () => {
  expect(isNarrow(EVERYTHING)).toBe(false);
  expect(isNarrow({ ...EVERYTHING, queue: "mail" })).toBe(true);
});
