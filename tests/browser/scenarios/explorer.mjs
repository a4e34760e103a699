// The explorer at /graphql: GraphiQL, all of it from the server.
import assert from "node:assert/strict";

/** @typedef {import("../run.mjs").Stage} Stage */

const EXECUTE = /execute query/i;

/** @param {import("playwright-core").Page} page */
async function open(page) {
  await page.goto("/graphql");
  await page.getByRole("button", { name: EXECUTE }).waitFor();
  // The editor is there when its threads are.
  await page.getByRole("region", { name: "Operation Editor" }).getByRole("textbox").waitFor();
}

/** @param {import("playwright-core").Page} page @param {RegExp} text */
async function answered(page, text) {
  const result = page.getByRole("region", { name: "Result Window" });
  await result.locator(".view-line").filter({ hasText: text }).first().waitFor();
}

/**
 * Give the tab these headers, as somebody who pastes them.
 * @param {import("playwright-core").Page} page @param {object} headers
 */
async function send(page, headers) {
  await page.getByRole("region", { name: "Headers" }).locator(".graphiql-editor:not(.hidden) .view-lines").click();
  await page.keyboard.press("ControlOrMeta+A");
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.evaluate((text) => navigator.clipboard.writeText(text), JSON.stringify(headers));
  await page.keyboard.press("ControlOrMeta+V");
}

/**
 * Run one of the several operations of a tab.
 * @param {import("playwright-core").Page} page @param {string} name
 */
async function choose(page, name) {
  // The button has a menu when the editor has read what it shows.
  await page.getByRole("button", { name: EXECUTE, expanded: false }).click();
  await page.getByRole("menuitem", { name }).click();
}

/** @param {Stage} stage */
export async function runs_a_query(stage) {
  const { page, graphql } = stage;
  await graphql('mutation { create(taskId: "example") { id } }');
  await open(page);
  assert.match(await page.title(), /Explorer/);
  await page.getByRole("button", { name: EXECUTE }).click();
  await answered(page, /"PENDING"/);
}

/** @param {Stage} stage */
export async function creates_and_reports_with_the_credential_in_its_headers(stage) {
  const { page, given, graphql } = stage;
  await open(page);
  await page.getByRole("tab", { name: "Create" }).click();
  await choose(page, "Create");
  await answered(page, /UNAUTHENTICATED/);

  await send(page, { Authorization: `Bearer ${given.key}` });
  for (const [name, status] of /** @type {const} */ ([
    ["Create", "PENDING"],
    ["Report", "IN_PROGRESS"],
    ["Complete", "SUCCESS"],
  ])) {
    await choose(page, name);
    await answered(page, new RegExp(`"${status}"`));
  }
  assert.equal((await graphql('{ task(taskId: "example") { status } }')).task.status, "SUCCESS");
  // What the browser keeps for good has no credential.
  assert.ok(!(await page.evaluate(() => JSON.stringify(localStorage))).includes(given.key));
}

/** @param {Stage} stage */
export async function watches_a_task_over_a_socket_that_greets_with_the_credential(stage) {
  const { page, given, graphql } = stage;
  await graphql('mutation { create(taskId: "example") { id } }');
  /** @type {string[]} */
  const sent = [];
  page.on("websocket", (socket) => socket.on("framesent", ({ payload }) => sent.push(String(payload))));
  await open(page);
  await page.getByRole("tab", { name: "Watch" }).click();
  await send(page, { Authorization: `Bearer ${given.key}` });
  await page.getByRole("button", { name: EXECUTE }).click();
  await answered(page, /"SNAPSHOT"/);
  assert.deepEqual(JSON.parse(sent[0] ?? ""), {
    type: "connection_init",
    payload: { Authorization: `Bearer ${given.key}` },
  });
  await graphql('mutation { updateProgress(taskId: "example", progress: 50) { id } }');
  await answered(page, /updated.to.50%/);
  await graphql('mutation { complete(taskId: "example") { id } }');
  await answered(page, /"COMPLETE"/);
  await page.getByRole("button", { name: EXECUTE }).waitFor();
}

/** @param {Stage} stage */
export async function explains_the_schema(stage) {
  const { page } = stage;
  await open(page);
  await page.getByRole("button", { name: "Show Documentation Explorer" }).click();
  await page.getByRole("link", { name: "Query" }).first().waitFor();
  assert.equal(await page.getByRole("status").count(), 0);
}

/** @param {Stage} stage */
export async function says_why_nothing_is_explained(stage) {
  const { page } = stage;
  await open(page);
  await page.getByRole("status").getByText("This server does not tell its schema").waitFor();
  await page.getByRole("button", { name: EXECUTE }).click();
  await answered(page, /"viewer"/);
}

/** @param {Stage} stage */
export async function takes_the_credential_of_the_dashboard(stage) {
  const { page, given } = stage;
  await page.addInitScript((key) => sessionStorage.setItem("spectral.credential", key), given.key);
  await open(page);
  await page.getByRole("button", { name: EXECUTE }).click();
  await answered(page, /"ADMIN"/);
}

/** @param {Stage} stage */
export async function says_that_a_socket_does_not_take_the_credential(stage) {
  const { page } = stage;
  await page.addInitScript(() => sessionStorage.setItem("spectral.credential", "spn_wrong"));
  await open(page);
  await page.getByRole("tab", { name: "Watch" }).click();
  await page.getByRole("button", { name: EXECUTE }).click();
  await answered(page, /closed.with.4403/);
}

/** @param {Stage} stage */
export async function runs_what_a_tab_shows_as_soon_as_it_is_chosen(stage) {
  const { page, graphql } = stage;
  await graphql('mutation { create(taskId: "example") { id } }');
  await open(page);
  // Faster than the editor reads what it shows.
  await page.evaluate(() => {
    const press = (/** @type {string} */ selector, /** @type {RegExp} */ name) =>
      [.../** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(selector))]
        .find((button) => name.test(button.getAttribute("aria-label") ?? button.textContent ?? ""))
        ?.click();
    press("[role=tab] button", /^Watch$/);
    press("button", /execute query/i);
  });
  await page.getByRole("button", { name: /stop query/i }).waitFor();
  await answered(page, /"SNAPSHOT"/);
}

/** @param {Stage} stage */
export async function has_the_colours_that_were_chosen_and_a_way_back(stage) {
  const { page } = stage;
  await page.emulateMedia({ colorScheme: "light" });
  await page.addInitScript(() => localStorage.setItem("spectral.theme", "dark"));
  await open(page);
  await page.locator("body.graphiql-dark").waitFor();
  await page.getByRole("link", { name: "Tasks", exact: true }).click();
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
}
