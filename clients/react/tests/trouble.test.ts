import assert from "node:assert/strict";
import test from "node:test";

import { pauseMs, remedyOfClosing, troubleOf } from "../src/trouble.js";

await test("each closing has its remedy", () => {
  for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4408, 4410, 4499, 4504]) {
    assert.equal(remedyOfClosing(code), "retry", String(code));
  }
  for (const code of [4401, 4403]) assert.equal(remedyOfClosing(code), "renew", String(code));
  for (const code of [4400, 4406, 4409, 4429]) assert.equal(remedyOfClosing(code), "refuse", String(code));
});

await test("an error of the server has the remedy that its code and `retryable` say", () => {
  const trouble = (extensions: object): [string, string] => {
    const { remedy, error } = troubleOf([{ message: "m", extensions }]);
    return [remedy, error.code];
  };
  assert.deepEqual(trouble({ code: "UNAUTHENTICATED" }), ["renew", "UNAUTHENTICATED"]);
  assert.deepEqual(trouble({ code: "UNAVAILABLE", retryable: true }), ["retry", "UNAVAILABLE"]);
  assert.deepEqual(trouble({ code: "UNAVAILABLE", retryable: false }), ["refuse", "UNAVAILABLE"]);
  assert.deepEqual(trouble({ code: "FORBIDDEN" }), ["refuse", "FORBIDDEN"]);
  assert.deepEqual(trouble({ code: "INTERNAL_SERVER_ERROR" }), ["doubt", "INTERNAL_SERVER_ERROR"]);
  assert.deepEqual(trouble({}), ["doubt", "INTERNAL_SERVER_ERROR"]);
  const limited = troubleOf([{ message: "m", extensions: { code: "RATE_LIMITED", retryable: true, retryAfterMs: 700 } }]);
  assert.equal(limited.afterMs, 700);
});

await test("what the network throws is tried again", () => {
  assert.equal(troubleOf(new Error("connect ECONNREFUSED")).remedy, "retry");
  assert.equal(troubleOf({}).remedy, "retry");
  assert.deepEqual(troubleOf([]).remedy, "doubt");
});

await test("pauses grow, up to ten seconds", () => {
  for (let attempt = 0; attempt < 2_000; attempt++) {
    const most = Math.min(10_000, 250 * 2 ** attempt);
    const pause = pauseMs(attempt);
    assert.ok(pause >= most / 2 && pause <= most, `${attempt}: ${pause}`);
  }
});
