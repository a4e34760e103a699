// Pages for everybody: on a phone, by keyboard, in light and dark, for those who hear the page.
import assert from "node:assert/strict";
import { barriers, createTask, createTasks, liveMark, open, row, signedIn, taskPage } from "../steps.mjs";

/** @typedef {import("../run.mjs").Stage} Stage @typedef {import("playwright-core").Page} Page */

const PHONE = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true };
const LONG = "a-task-with-a-very-long-identifier-".repeat(5);

/** @param {Stage} stage */
async function someTasks({ graphql }) {
  await graphql(
    `mutation ($long: ID!) {
      done: create(taskId: "T-1", metadata: {url: "/reports/12.pdf", pages: [1, 2, 3]}, options: {tags: ["nightly"]}) { id }
      failed: create(taskId: "T-2", options: {queue: "video"}) { id }
      long: create(taskId: $long, options: {tags: ["a", "b", "c", "d"]}) { id }
      started: updateProgress(taskId: $long, progress: 40) { id }
      said: addEvent(taskId: $long, event: {eventType: LOG, message: "${"word".repeat(100)}"}) { id }
      end: complete(taskId: "T-1") { id }
      fail: fail(taskId: "T-2", error: "No paper", metadata: {printer: "laser"}) { id }
    }`,
    { long: LONG },
  );
}

/** @param {Page} page */
async function fitsItsWidth(page) {
  const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert.ok(wide !== undefined && room !== undefined && wide <= room, `the page is ${wide} wide in a window of ${room}`);
}

/** @param {Stage} stage */
export async function a_phone_needs_no_scrolling_sideways(stage) {
  await someTasks(stage);
  const page = await (await stage.newContext(PHONE)).newPage();
  await page.goto("/");
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  await fitsItsWidth(page);
  await page.getByLabel("Key or token").fill(stage.given.key);
  await page.getByRole("button", { name: "Sign in" }).tap();
  await row(page, LONG).waitFor();
  await fitsItsWidth(page);
  await row(page, LONG).getByRole("link").tap();
  await page.getByRole("heading", { level: 1, name: LONG }).waitFor();
  await taskPage(page).event(3).waitFor();
  await fitsItsWidth(page);
  await page.getByRole("button", { name: "Cancel", exact: true }).tap();
  await page.getByRole("alertdialog").waitFor();
  await fitsItsWidth(page);
}

/** @param {Stage} stage */
export async function everything_can_be_done_by_keyboard(stage) {
  const { page, given, graphql } = stage;
  await createTasks(stage, ["T-1", "T-2"]);
  await page.goto("/");
  await page.getByLabel("Key or token").waitFor();
  /** @param {RegExp} name */
  const tabTo = async (name) => {
    for (let turn = 0; turn < 60; turn += 1) {
      await page.keyboard.press("Tab");
      const focused = await page.evaluate(() => {
        const { activeElement: at } = document;
        return `${at?.getAttribute("aria-label") ?? ""} ${at?.textContent ?? ""} ${/** @type {any} */ (at)?.name ?? ""}`;
      });
      if (name.test(focused)) return;
    }
    throw new Error(`Tab leads nowhere that is called ${name}.`);
  };
  await tabTo(/credential/);
  await page.keyboard.insertText(given.key);
  await page.keyboard.press("Enter");
  await row(page, "T-2").waitFor();

  // The search, a row, the task, and back.
  await page.keyboard.press("/");
  await page.keyboard.insertText("T-1");
  await row(page, "T-2").waitFor({ state: "detached" });
  await page.keyboard.press("Escape");
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "T-1" }).waitFor();
  await liveMark(page, "Live");

  // What ends it asks first, and Escape is no.
  await tabTo(/^ ?Cancel/);
  await page.keyboard.press("Enter");
  await page.getByRole("alertdialog").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("alertdialog").waitFor({ state: "detached" });
  await page.keyboard.press("Enter");
  await tabTo(/Cancel the task/);
  await page.keyboard.press("Enter");
  await taskPage(page).status("Canceled").waitFor();
  assert.equal((await graphql('{ task(taskId: "T-1") { status } }')).task.status, "CANCELED");

  await page.keyboard.press("u");
  await row(page, "T-1").waitFor();
  await page.keyboard.press("n");
  await page.getByRole("dialog", { name: "Create a test task" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Help" }).waitFor();
}

/** @param {Stage} stage @param {"light" | "dark"} colorScheme */
async function hasNoBarriers(stage, colorScheme) {
  await someTasks(stage);
  const { page } = stage;
  await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
  /** @type {Record<string, string[]>} */
  const found = {};
  /** @param {string} where */
  const look = async (where) => {
    const there = await barriers(page);
    if (there.length > 0) found[where] = there;
  };

  await page.goto("/");
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  await look("sign-in");
  await page.getByLabel("Key or token").fill(stage.given.key);
  await page.getByRole("button", { name: "Sign in" }).click();
  await row(page, "T-1").waitFor();
  await look("list");
  await page.keyboard.press("n");
  await page.getByRole("dialog").waitFor();
  await look("create");
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await page.keyboard.press("?");
  await page.getByRole("dialog").waitFor();
  await look("help");
  await page.keyboard.press("Escape");
  await row(page, "T-2").getByRole("link").click();
  await taskPage(page).event(2).getByRole("button", { name: "Metadata" }).click();
  await look("failed task");
  await page.goto(`/tasks/${LONG}`);
  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await page.getByRole("alertdialog").waitFor();
  await look("confirm");
  await page.goto("/tasks/nothing");
  await page.getByText("There is no such task").waitFor();
  await look("no task");
  await page.goto("/?id=nothing");
  await page.getByText("No task is meant by this filter").waitFor();
  await look("empty list");
  assert.deepEqual(found, {});
}

/** @param {Stage} stage */
export async function axe_finds_no_barrier_in_light(stage) {
  await hasNoBarriers(stage, "light");
}

/** @param {Stage} stage */
export async function axe_finds_no_barrier_in_dark(stage) {
  await hasNoBarriers(stage, "dark");
}

/** @param {Stage} stage */
export async function colours_can_be_chosen_and_are_kept(stage) {
  const { page } = stage;
  await createTask(stage, "T-1");
  await page.emulateMedia({ colorScheme: "light" });
  await open(stage);
  const background = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  const light = await background();
  await page.getByRole("button", { name: "Colours" }).click();
  await page.getByRole("menuitemradio", { name: "Dark" }).click();
  assert.notEqual(await background(), light);
  await page.reload();
  await row(page, "T-1").waitFor();
  assert.notEqual(await background(), light);
}

/** @param {Stage} stage */
export async function nothing_moves_for_those_who_want_it_so(stage) {
  const { page } = stage;
  await createTask(stage, "T-1");
  await signedIn(stage, page);
  await page.emulateMedia({ reducedMotion: "reduce" });
  await page.goto("/");
  await row(page, "T-1").waitFor();
  const moving = await page.evaluate(
    () => document.getAnimations().filter((one) => Number(one.effect?.getComputedTiming().duration) > 10).length,
  );
  assert.equal(moving, 0);
}
