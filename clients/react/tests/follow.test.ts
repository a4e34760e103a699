import assert from "node:assert/strict";
import test from "node:test";

import { WebSocket } from "ws";

import { type ConnectOptions, connect } from "../src/connect.js";
import { type ConnectionState, type FollowOptions, followTask, type TaskFollower, type TaskView } from "../src/follow.js";
import { ScriptedServer } from "./server.js";

/** A follower, what it has told, and a way to wait for what it will tell. */
class Watching {
  readonly numbers: number[] = [];
  readonly states: ConnectionState[] = [];
  readonly follower: TaskFollower;
  readonly leave: () => void;
  #waiting: (() => void)[] = [];

  constructor(server: ScriptedServer, options: FollowOptions = {}, connection: Partial<ConnectOptions> = {}) {
    const client = connect({ url: server.url, webSocketImpl: WebSocket, ...connection });
    this.follower = followTask(client, "T", {
      ...options,
      onEvents: (events) => this.numbers.push(...events.map(({ seq }) => seq)),
    });
    this.leave = this.follower.listen(() => {
      const { connection: state } = this.follower.view();
      if (this.states.at(-1) !== state) this.states.push(state);
      for (const woken of this.#waiting.splice(0)) woken();
    });
  }

  async until(state: ConnectionState): Promise<TaskView> {
    while (this.follower.view().connection !== state) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    return this.follower.view();
  }
}

await test("a task is followed to its end", async () => {
  await using server = await ScriptedServer.start();
  const watching = new Watching(server);
  assert.equal(watching.follower.view().connection, "connecting");
  const subscribed = await server.subscribed();
  assert.equal(subscribed.afterSeq, 0);
  subscribed.next(3, [1, 2]);
  await watching.until("behind");
  subscribed.next(3, [3]);
  await watching.until("live");
  subscribed.next(4, [4], "SUCCESS");
  subscribed.complete();
  const view = await watching.until("ended");
  assert.deepEqual(watching.numbers, [1, 2, 3, 4]);
  assert.deepEqual(view.events.map(({ seq }) => seq), [1, 2, 3, 4]);
  assert.deepEqual(watching.states, ["behind", "live", "ended"]);
});

for (const code of [1001, 1011, 1012, 1013, 4408, 4410]) {
  await test(`after ${code} it connects again, and asks for what came after the last event seen`, async () => {
    await using server = await ScriptedServer.start();
    const watching = new Watching(server);
    const first = await server.subscribed();
    first.next(2, [1, 2]);
    await watching.until("live");
    first.socket.close(code);
    await watching.until("reconnecting");
    const second = await server.subscribed();
    assert.equal(second.afterSeq, 2);
    second.next(4, [2, 3, 4]);
    await watching.until("live");
    assert.deepEqual(watching.numbers, [1, 2, 3, 4]);
    watching.leave();
  });
}

for (const code of [4400, 4406, 4409, 4429]) {
  await test(`${code} says that the client is wrong, and is not tried again`, async () => {
    await using server = await ScriptedServer.start();
    const watching = new Watching(server);
    const subscribed = await server.subscribed();
    subscribed.socket.close(code, "why");
    const { error } = await watching.until("refused");
    assert.deepEqual(error, { code: "CLOSED", message: "why", closeCode: code });
    assert.equal(server.greetings.length, 1);
    // Whoever asks for it may try again.
    watching.follower.resume();
    (await server.subscribed()).next(1, [1]);
    await watching.until("live");
    assert.equal(watching.follower.view().error, null);
    watching.leave();
  });
}

for (const code of [4401, 4403]) {
  await test(`after ${code} the credential is asked for once more, and then it is refused`, async () => {
    await using server = await ScriptedServer.start();
    let asked = 0;
    server.greet = (socket) => {
      socket.close(code, "Forbidden");
    };
    const watching = new Watching(server, {}, { credential: () => `key-${++asked}` });
    const { error } = await watching.until("refused");
    assert.equal(error?.closeCode, code);
    assert.deepEqual(server.greetings, [{ authorization: "Bearer key-1" }, { authorization: "Bearer key-2" }]);
  });
}

await test("a credential that has ended is replaced, on a socket of its own", async () => {
  await using server = await ScriptedServer.start();
  let asked = 0;
  const watching = new Watching(server, {}, { credential: () => Promise.resolve(`key-${++asked}`) });
  const first = await server.subscribed();
  first.next(1, [1]);
  await watching.until("live");
  first.error({ code: "UNAUTHENTICATED" });
  const second = await server.subscribed();
  assert.equal(second.afterSeq, 1);
  assert.equal(server.greetings.length, 2);
  second.error({ code: "UNAUTHENTICATED" });
  assert.equal((await watching.until("refused")).error?.code, "UNAUTHENTICATED");
});

await test("a credential is renewed over the open socket", async () => {
  await using server = await ScriptedServer.start();
  let asked = 0;
  const client = connect({ url: server.url, webSocketImpl: WebSocket, credential: () => `key-${++asked}` });
  await client.renew();
  assert.deepEqual(server.pings, [], "there was no socket to renew it on");
  const stop = followTask(client, "T").listen(() => undefined);
  await server.subscribed();
  await client.renew();
  assert.deepEqual(server.pings, [{ authorization: `Bearer key-${asked}` }]);
  assert.equal(server.greetings.length, 1);
  stop();
});

await test("what the server puts off is tried again, not before it says", async () => {
  await using server = await ScriptedServer.start();
  const watching = new Watching(server);
  (await server.subscribed()).error({ code: "RATE_LIMITED", retryable: true, retryAfterMs: 600 });
  await watching.until("reconnecting");
  const began = performance.now();
  (await server.subscribed()).next(1, [1]);
  assert.ok(performance.now() - began > 500);
  await watching.until("live");
  watching.leave();
});

await test("a fault of the server is believed at the third time", async () => {
  await using server = await ScriptedServer.start();
  const watching = new Watching(server);
  for (let count = 0; count < 3; count++) (await server.subscribed()).error({ code: "INTERNAL_SERVER_ERROR" });
  await watching.until("refused");
});

await test("an end without a final status is a break", async () => {
  await using server = await ScriptedServer.start();
  const watching = new Watching(server);
  const first = await server.subscribed();
  first.next(1, [1]);
  first.complete();
  assert.equal((await server.subscribed()).afterSeq, 1);
  watching.leave();
});

await test("a hole is asked for", async () => {
  await using server = await ScriptedServer.start();
  const watching = new Watching(server);
  const first = await server.subscribed();
  first.next(2, [1, 2]);
  first.next(5, [5]);
  const second = await server.subscribed();
  assert.equal(second.afterSeq, 2);
  second.next(5, [3, 4, 5]);
  await watching.until("live");
  assert.deepEqual(watching.numbers, [1, 2, 3, 4, 5]);
  watching.leave();
});

await test("a task that is not there is refused, and one that was there was deleted", async () => {
  await using server = await ScriptedServer.start();
  const never = new Watching(server);
  (await server.subscribed()).error({ code: "TASK_NOT_FOUND" });
  assert.equal((await never.until("refused")).error?.code, "TASK_NOT_FOUND");
  const once = new Watching(server);
  const first = await server.subscribed();
  first.next(1, [1]);
  await once.until("live");
  first.socket.close(1012);
  (await server.subscribed()).error({ code: "TASK_NOT_FOUND" });
  assert.equal((await once.until("ended")).deleted, true);
});

await test("while it is paused nothing is subscribed, and afterwards nothing is missing", async () => {
  await using server = await ScriptedServer.start();
  const watching = new Watching(server);
  (await server.subscribed()).next(1, [1]);
  await watching.until("live");
  watching.follower.pause();
  assert.equal(watching.follower.view().connection, "paused");
  while (server.open > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  watching.follower.resume();
  const second = await server.subscribed();
  assert.equal(second.afterSeq, 1);
  second.next(3, [2, 3]);
  await watching.until("live");
  assert.deepEqual(watching.numbers, [1, 2, 3]);
  watching.leave();
  assert.equal(watching.follower.view().connection, "paused");
});

await test("the first who listens begins, the last who goes pauses", async () => {
  await using server = await ScriptedServer.start();
  const client = connect({ url: server.url, webSocketImpl: WebSocket });
  const follower = followTask(client, "T");
  const listener = (): void => undefined;
  const [one, other] = [follower.listen(listener), follower.listen(listener)];
  await server.subscribed();
  one();
  assert.notEqual(follower.view().connection, "paused");
  other();
  assert.equal(follower.view().connection, "paused");
});

await test("a socket that stays for a while is there for who comes next", async () => {
  await using server = await ScriptedServer.start();
  const client = connect({ url: server.url, webSocketImpl: WebSocket, closeAfterMs: 1_000 });
  const leaveFirst = followTask(client, "T").listen(() => undefined);
  await server.subscribed();
  leaveFirst();
  const leaveSecond = followTask(client, "U").listen(() => undefined);
  await server.subscribed();
  assert.equal(server.greetings.length, 1);
  // Or it would come back for ever.
  leaveSecond();
  client.terminate();
});

await test("what is called back may pause", async () => {
  await using server = await ScriptedServer.start();
  const watching = new Watching(server);
  watching.follower.observe({
    onEvents() {
      watching.follower.pause();
    },
  });
  (await server.subscribed()).next(2, [1, 2]);
  const { task } = await watching.until("paused");
  assert.equal(task?.seq, 2);
  assert.deepEqual(watching.numbers, [1, 2]);
});
