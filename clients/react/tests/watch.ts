/** Follow a task of a real server, with a task token that ends soon, and print what is seen. */

import { WebSocket } from "ws";

import { connect } from "../src/connect.js";
import { followTask } from "../src/follow.js";

const [taskId = "", tokenSeconds = "", renewEveryMs = ""] = process.argv.slice(2);
const url = process.env["SPECTRAL_URL"] ?? "";
const key = process.env["SPECTRAL_KEY"] ?? "";

/** What a page asks its backend for. */
async function freshToken(): Promise<string> {
  const query = `mutation ($id: ID!, $s: Int!) { createTaskToken(taskId: $id, scope: READ, expiresInSeconds: $s) { token } }`;
  const answer = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
    body: JSON.stringify({ query, variables: { id: taskId, s: Number(tokenSeconds) } }),
  });
  const { data } = (await answer.json()) as { data: { createTaskToken: { token: string } } };
  return data.createTaskToken.token;
}

const client = connect({
  url: url.replace("http", "ws"),
  webSocketImpl: WebSocket,
  credential: freshToken,
  renewEveryMs: Number(renewEveryMs),
});
client.on("connected", () => {
  console.log("greeted");
});
client.on("pong", (_, payload) => {
  if (payload) console.log("renewed", payload["authorization"]);
});
const follower = followTask(client, taskId, {
  keep: 10,
  onEvents: (events) => {
    for (const { seq, message } of events) console.log("event", seq, message);
  },
  onStartedOver: () => {
    console.log("started over");
  },
});
let shown = "";
follower.listen(() => {
  const { connection, error, deleted, events } = follower.view();
  if (connection !== shown) console.log("connection", connection);
  shown = connection;
  if (error) console.log("refused", error.code);
  if (connection === "ended") console.log("kept", events.length, deleted ? "deleted" : "there");
});
