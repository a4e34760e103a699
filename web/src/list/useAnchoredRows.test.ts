import { expect, test } from "vitest";
import { shiftOf } from "./useAnchoredRows";

test("rows that come in above shift what is read by as many", () => {
  expect(shiftOf(["a", "b", "c"], ["y", "x", "a", "b", "c"], 1)).toBe(2);
});

test("rows that come in below shift nothing", () => {
  expect(shiftOf(["a", "b"], ["a", "b", "c"], 1)).toBe(0);
});

test("for a row that has gone the next one stands", () => {
  expect(shiftOf(["a", "b", "c"], ["x", "a", "c"], 1)).toBe(0);
  expect(shiftOf(["a", "b", "c"], ["c"], 0)).toBe(-2);
});

test("of a list that is another nothing can be said", () => {
  expect(shiftOf(["a", "b"], ["x", "y"], 0)).toBe(0);
});
