// What scenarios have in common: tasks made by the API, and the places of the dashboard by their roles and names.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

/** @typedef {import("./run.mjs").Stage} Stage @typedef {import("playwright-core").Page} Page */

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const BATCH = 500;

/**
 * Has a tab signed in before its page is loaded.
 * @param {Stage} stage @param {Page} page
 */
export async function signedIn(stage, page, key = stage.given.key) {
  await page.addInitScript((value) => sessionStorage.setItem("spectral.credential", value), key);
}

/**
 * Opens a page, signed in.
 * @param {Stage} stage
 */
export async function open(stage, path = "/") {
  await signedIn(stage, stage.page);
  await stage.page.goto(path);
  await stage.page.getByRole("heading", { level: 1 }).waitFor();
}

/** @param {Stage} stage @param {string} taskId */
export async function createTask(stage, taskId) {
  await stage.graphql("mutation ($taskId: ID!) { create(taskId: $taskId) { id } }", { taskId });
}

/**
 * Makes tasks, the last of which is the newest.
 * @param {Stage} stage @param {string[]} taskIds
 */
export async function createTasks(stage, taskIds) {
  for (let at = 0; at < taskIds.length; at += BATCH) {
    const tasks = taskIds.slice(at, at + BATCH).map((taskId) => ({ taskId }));
    await stage.graphql("mutation ($tasks: [NewTask!]!) { createMany(tasks: $tasks) { id } }", { tasks });
  }
}

/** The row of a task in the list. @param {Page} page @param {string} taskId */
export function row(page, taskId) {
  return page.getByRole("row").filter({ has: page.getByRole("link", { name: taskId, exact: true }) });
}

/** Waits until the page says this of its connection. @param {Page} page @param {string} word */
export async function liveMark(page, word) {
  await page.getByRole("status", { name: "Live connection" }).getByText(word, { exact: true }).waitFor();
}

/** The places of a task's page. @param {Page} page */
export function taskPage(page) {
  return {
    /** @param {string} word */
    status: (word) => page.locator(".task-marks .status").getByText(word, { exact: true }),
    /** @param {number} seq */
    event: (seq) => page.getByRole("article", { name: `Event ${seq}`, exact: true }),
  };
}

/**
 * What axe finds on a page that keeps somebody from using it, as sentences.
 * @param {Page} page
 * @returns {Promise<string[]>}
 */
export async function barriers(page) {
  await page.evaluate(AXE);
  return page.evaluate(async () => {
    const axe = /** @type {typeof import("axe-core")} */ (/** @type {any} */ (window).axe);
    const { violations } = await axe.run(document);
    return violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .flatMap(({ id, help, nodes }) => nodes.map(({ target }) => `${id}: ${help} (${target.join(" ")})`));
  });
}
