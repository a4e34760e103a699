import { expect, test } from "vitest";
import { ago, compact, duration, relative, visible } from "./format";

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

test("what cannot be seen of an ID is written out", () => {
  expect(visible("a\u200bb\u202ec\n")).toBe("a\u27e8U+200B\u27e9b\u27e8U+202E\u27e9c\u27e8U+000A\u27e9");
  expect(visible(" a  b c ")).toBe("\u2423a\u2423\u2423b c\u2423");
});

test("what is written so in its language stays", () => {
  for (const id of ["report 12/\u00fc", "\u0645\u0647\u0645\u0629-\u0663\u0664", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u{1f469}\u200d\u{1f467}"]) expect(visible(id)).toBe(id);
});

test("where there is little room, the greatest unit is enough", () => {
  expect(ago("2026-11-20T07:25:00.000000Z", NOW)).toBe("2 h ago");
  expect(ago("2026-11-20T08:31:00.000000Z", NOW)).toBe("59 min ago");
});
