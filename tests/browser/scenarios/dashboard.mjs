// The dashboard: the list and a task's page, as somebody uses them.
import assert from "node:assert/strict";
import { createTask, createTasks, liveMark, open, row, signedIn, taskPage } from "../steps.mjs";

/** @typedef {import("../run.mjs").Stage} Stage */

/** @param {Stage} stage */
export async function signs_in_and_out(stage) {
  const { page, given, expected } = stage;
  expected(/status of 401/);
  await createTask(stage, "T-1");
  await page.goto("/");
  await page.getByRole("heading", { name: "Sign in" }).waitFor();

  // A wrong credential is told so, and not kept.
  await page.getByLabel("Key or token").fill("spn_wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();

  // A whole header is taken for what is meant.
  await page.getByLabel("Key or token").fill(`Authorization: Bearer ${given.key}`);
  await page.getByRole("button", { name: "Sign in" }).click();
  await row(page, "T-1").waitFor();

  // It is kept while the tab is open, and nowhere else.
  await page.reload();
  await row(page, "T-1").waitFor();
  assert.ok(!(await page.evaluate(() => JSON.stringify(localStorage) + document.cookie)).includes(given.key));
  const other = await (await stage.newContext()).newPage();
  await other.goto("/");
  await other.getByRole("heading", { name: "Sign in" }).waitFor();

  await page.getByRole("button", { name: /^Signed in as/ }).click();
  await page.getByRole("menuitem", { name: "Sign out" }).click();
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  assert.ok(!(await page.evaluate(() => JSON.stringify(sessionStorage))).includes(given.key));
}

/** @param {Stage} stage */
export async function the_list_is_live(stage) {
  const { page, graphql } = stage;
  await createTask(stage, "T-1");
  await open(stage);
  await row(page, "T-1").getByText("Pending").waitFor();

  await graphql('mutation { updateProgress(taskId: "T-1", progress: 42) { id } }');
  await row(page, "T-1").getByText("In progress").waitFor();
  await row(page, "T-1").getByText("42%", { exact: true }).waitFor();
  await graphql('mutation { addEvent(taskId: "T-1", event: {eventType: LOG, message: "Page 5 is done"}) { id } }');
  await row(page, "T-1").getByText("Page 5 is done").waitFor();

  await createTask(stage, "T-2");
  await row(page, "T-2").waitFor();
  // The newest is on top.
  const first = page.getByRole("table", { name: "Tasks" }).getByRole("row").nth(1);
  await first.getByRole("link", { name: "T-2" }).waitFor();

  await graphql('mutation { fail(taskId: "T-1", error: "No paper") { id } }');
  await row(page, "T-1").getByText("Failed").waitFor();
  await graphql('mutation { delete(taskId: "T-2") }');
  await row(page, "T-2").waitFor({ state: "detached" });
}

/** @param {Stage} stage */
export async function the_list_is_filtered(stage) {
  const { page, graphql } = stage;
  await createTasks(stage, ["a-1", "a-2", "b-1"]);
  await graphql('mutation { create(taskId: "a-3", options: {tags: ["nightly"], queue: "video"}) { id } }');
  await graphql('mutation { fail(taskId: "b-1", error: "No paper") { id } }');
  await open(stage);
  await row(page, "b-1").waitFor();

  const failed = page.getByRole("group", { name: "Status" }).getByRole("button", { name: /^Failed/ });
  await failed.click();
  await row(page, "a-1").waitFor({ state: "detached" });
  await row(page, "b-1").waitFor();
  // What comes to be meant appears, live.
  await graphql('mutation { fail(taskId: "a-1", error: "No ink") { id } }');
  await row(page, "a-1").waitFor();

  // The address holds the filter.
  await page.reload();
  await row(page, "a-1").waitFor();
  assert.equal(await failed.getAttribute("aria-pressed"), "true");
  await failed.click();
  await row(page, "a-2").waitFor();

  await page.getByRole("searchbox", { name: /beginning of the task ID/ }).fill("b-");
  await row(page, "a-2").waitFor({ state: "detached" });
  await row(page, "b-1").waitFor();
  await page.getByRole("button", { name: "Clear all" }).click();
  await row(page, "a-2").waitFor();

  await page.getByLabel(/Filter by tag/).fill("nightly");
  await page.keyboard.press("Enter");
  await row(page, "a-2").waitFor({ state: "detached" });
  await row(page, "a-3").waitFor();

  await page.getByRole("searchbox", { name: /beginning of the task ID/ }).fill("nothing-begins-so");
  await page.getByText("No task is meant by this filter").waitFor();
  await page.getByRole("button", { name: "Show all tasks" }).click();
  await row(page, "a-2").waitFor();
}

/** @param {Stage} stage */
export async function older_tasks_are_read_as_one_scrolls(stage) {
  const { page } = stage;
  const ids = Array.from({ length: 1_500 }, (_, number) => `T-${String(number).padStart(4, "0")}`);
  await createTasks(stage, ids);
  await open(stage);
  await page.getByText("Older tasks are read as you scroll.").waitFor();
  // Far fewer rows exist than tasks are known.
  const rows = page.getByRole("table", { name: "Tasks" }).getByRole("row");
  assert.ok((await rows.count()) < 100);
  const end = page.getByText("1,500 tasks, all of them.");
  for (let turn = 0; turn < 60 && (await end.count()) === 0; turn += 1) {
    await page.evaluate(() => window.scrollTo(0, document.body.scrollHeight));
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100))));
  }
  await end.waitFor();
  // All that were made are a thousand at a time, in the order of their making.
  await page.evaluate(() => window.scrollTo(0, document.body.scrollHeight));
  await row(page, "T-0000").waitFor();
  assert.ok((await rows.count()) < 100);
}

/** @param {Stage} stage */
export async function a_task_is_followed_to_its_end(stage) {
  const { page, graphql } = stage;
  await graphql('mutation { create(taskId: "T-1", metadata: {pages: 12}) { id } }');
  await open(stage);
  await row(page, "T-1").getByRole("link").click();
  const { event, status } = taskPage(page);
  await page.getByRole("heading", { level: 1, name: "T-1" }).waitFor();
  await liveMark(page, "Live");
  await page.getByText("pages").waitFor();
  await status("Pending").waitFor();

  await graphql('mutation { updateProgress(taskId: "T-1", progress: 50) { id } }');
  await status("In progress").waitFor();
  await event(2).getByText("Progress updated to 50%").waitFor();
  await graphql(
    'mutation { addEvent(taskId: "T-1", event: {eventType: LOG, message: "Printed", metadata: {printer: "laser"}}) { id } }',
  );
  await event(3).getByText("Printed").waitFor();
  await event(3).getByRole("button", { name: "Metadata" }).click();
  await event(3).getByText("laser").waitFor();

  await graphql('mutation { complete(taskId: "T-1") { id } }');
  await status("Success").waitFor();
  await event(4).waitFor();
  await liveMark(page, "Ended");
  assert.equal(await page.getByRole("button", { name: "Cancel", exact: true }).count(), 0);
}

/** @param {Stage} stage */
export async function a_restart_leaves_no_gap_and_no_duplicate(stage) {
  const { page, graphql, ask, expected } = stage;
  expected(/ERR_CONNECTION_REFUSED|WebSocket connection|status of 503|Failed to load resource/);
  const report = (/** @type {number} */ number) =>
    graphql(
      `mutation { addEvent(taskId: "T-1", event: {eventType: LOG, message: "Number ${number}"}) { id } }`,
    );
  await createTask(stage, "T-1");
  const list = await stage.context.newPage();
  await signedIn(stage, list);
  await list.goto("/");
  await row(list, "T-1").waitFor();
  await open(stage, "/tasks/T-1");
  await liveMark(page, "Live");
  for (let number = 2; number <= 5; number += 1) await report(number);
  await taskPage(page).event(5).waitFor();

  await ask("stop");
  await liveMark(page, "Reconnecting");
  await ask("start");
  // What happens before the page is back, and after.
  for (let number = 6; number <= 9; number += 1) await report(number);
  await liveMark(page, "Live");
  await report(10);
  await taskPage(page).event(10).getByText("Number 10").waitFor();
  await row(list, "T-1").getByText("Number 10").waitFor();

  const events = page.getByRole("feed", { name: "Events" }).getByRole("article");
  const messages = await events.locator(".event-message").allTextContents();
  assert.equal(messages.length, 10);
  assert.deepEqual(messages.slice(0, 9), [10, 9, 8, 7, 6, 5, 4, 3, 2].map((number) => `Number ${number}`));
}

/** @param {Stage} stage */
export async function what_changes_before_the_subscription_has_begun_is_read(stage) {
  const { page, graphql } = stage;
  await createTask(stage, "T-1");
  // A slow way to the server: what is subscribed to has not arrived yet.
  await page.addInitScript(() => {
    const { send } = WebSocket.prototype;
    /** @type {any} */
    const slow = { held: [], holds: true };
    WebSocket.prototype.send = function (/** @type {any} */ message) {
      if (!slow.holds || JSON.parse(String(message)).type !== "subscribe") send.call(this, message);
      else slow.held.push(() => send.call(this, message));
    };
    Object.assign(window, { slow });
  });
  await open(stage);
  // The subscription, and the page that is asked for behind it.
  await page.waitForFunction(() => /** @type {any} */ (window).slow.held.length === 2);
  await row(page, "T-1").getByText("Pending").waitFor();
  await liveMark(page, "Behind");
  await graphql('mutation { updateProgress(taskId: "T-1", progress: 42) { id } }');
  await page.evaluate(() => {
    const { slow } = /** @type {any} */ (window);
    slow.holds = false;
    slow.held.forEach((/** @type {() => void} */ sends) => sends());
  });
  await row(page, "T-1").getByText("42%", { exact: true }).waitFor();
  await liveMark(page, "Live");
}

/** @param {Stage} stage */
export async function one_socket_serves_the_list_and_its_tasks(stage) {
  const { page, graphql } = stage;
  await createTask(stage, "T-1");
  let sockets = 0;
  page.on("websocket", () => (sockets += 1));
  await open(stage);
  await row(page, "T-1").getByRole("link").click();
  await liveMark(page, "Live");
  await page.getByRole("link", { name: "All tasks", exact: true }).click();
  await row(page, "T-1").waitFor();
  await graphql('mutation { updateProgress(taskId: "T-1", progress: 42) { id } }');
  await row(page, "T-1").getByText("42%", { exact: true }).waitFor();
  assert.equal(sockets, 1);
}

/** @param {Stage} stage */
export async function tasks_are_created_canceled_and_deleted(stage) {
  const { page, graphql } = stage;
  await open(stage);
  await page.getByText("There are no tasks yet").waitFor();
  await page.getByRole("button", { name: "Create a test task" }).click();
  const dialog = page.getByRole("dialog", { name: "Create a test task" });
  await dialog.getByLabel("Task ID").fill("T/1 ü");
  await dialog.getByLabel("Metadata, as JSON").fill("{");
  await dialog.getByRole("button", { name: "Create" }).click();
  await dialog.getByRole("alert").getByText("not valid JSON").waitFor();
  await dialog.getByLabel("Metadata, as JSON").fill('{"pages": 12}');
  await dialog.getByLabel("Tags").fill("a, b");
  await dialog.getByRole("button", { name: "Create" }).click();
  await page.getByRole("heading", { level: 1, name: "T/1 ü" }).waitFor();
  const made = (await graphql('{ task(taskId: "T/1 ü") { metadata tags } }')).task;
  assert.deepEqual(made, { metadata: { pages: 12 }, tags: ["a", "b"] });
  // Its address can be opened by itself.
  await page.reload();
  await page.getByRole("heading", { level: 1, name: "T/1 ü" }).waitFor();

  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  const asked = page.getByRole("alertdialog", { name: "Cancel this task?" });
  await asked.getByRole("button", { name: "Keep it" }).click();
  assert.equal((await graphql('{ task(taskId: "T/1 ü") { status } }')).task.status, "PENDING");
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  await asked.getByRole("button", { name: "Cancel the task" }).click();
  await taskPage(page).status("Canceled").waitFor();

  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await page.getByRole("alertdialog").getByRole("button", { name: "Delete the task" }).click();
  await page.getByText("There are no tasks yet").waitFor();
  assert.equal((await graphql('{ task(taskId: "T/1 ü") { status } }')).task, null);
}

/** @param {Stage} stage */
export async function what_one_may_not_do_is_said_and_not_offered(stage) {
  const { page, given } = stage;
  await createTask(stage, "T-1");
  await signedIn(stage, page, given.reader);
  await page.goto("/");
  await page.getByText("This credential does not list tasks").waitFor();
  await page.goto("/tasks/T-1");
  await page.getByRole("heading", { level: 1, name: "T-1" }).waitFor();
  assert.equal(await page.getByRole("button", { name: "Delete", exact: true }).count(), 0);
  await page.goto("/tasks/T-2");
  await page.getByText("There is no such task").waitFor();
}

/** @param {Stage} stage */
export async function a_task_token_opens_its_task_alone(stage) {
  const { page, graphql } = stage;
  await createTask(stage, "T-1");
  const { token } = (await graphql('mutation { createTaskToken(taskId: "T-1", scope: READ) { token } }')).createTaskToken;
  await page.goto("/");
  await page.getByLabel("Key or token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { level: 1, name: "T-1" }).waitFor();
}
