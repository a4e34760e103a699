import { expect, test } from "vitest";
import { compact, duration, relative } from "./format";

const NOW = Date.parse("2026-11-20T09:30:00.000000Z");

test("a length of time is said in its greatest units", () => {
  expect(duration(45_999)).toBe("45 s");
  expect(duration(59 * 60_000)).toBe("59 min");
  expect(duration(2 * 3_600_000)).toBe("2 h");
  expect(duration(2 * 3_600_000 + 5 * 60_000)).toBe("2 h 5 min");
  expect(duration(49 * 3_600_000)).toBe("2 d");
});

test("a time is said from now, both ways, and clocks may differ a little", () => {
  expect(relative("2026-11-20T09:29:15.000000Z", NOW)).toBe("45 s ago");
  expect(relative("2026-11-20T09:33:00.000000Z", NOW)).toBe("in 3 min");
  expect(relative("2026-11-20T09:30:01.900000Z", NOW)).toBe("now");
});

test("a great number takes little room", () => {
  expect(compact(9_999)).toBe((9_999).toLocaleString());
  expect(compact(1_234_567)).toMatch(/^1[.,]2/);
});
