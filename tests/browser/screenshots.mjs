// The pictures of docs/screenshots: each page in light, dark, and on a phone, of tasks that live while they are taken.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { liveMark, row, signedIn } from "./steps.mjs";

/** @typedef {import("./run.mjs").Stage} Stage @typedef {import("playwright-core").Page} Page */

const LOOKS = {
  light: { colorScheme: /** @type {const} */ ("light"), viewport: { width: 1200, height: 750 } },
  dark: { colorScheme: /** @type {const} */ ("dark"), viewport: { width: 1200, height: 750 } },
  phone: { colorScheme: /** @type {const} */ ("light"), viewport: { width: 390, height: 780 }, isMobile: true, hasTouch: true },
};
const FILM = "film-7f3a91c4";
const KINDS = [
  ["report", "reports", ["nightly"]],
  ["film", "video", ["4k", "customer-81"]],
  ["import", null, ["csv"]],
  ["index", "search", []],
];

/**
 * Takes all of them.
 * @param {Stage} stage
 */
export async function screenshots(stage) {
  const { given, newContext } = stage;
  rmSync(given.pictures, { recursive: true, force: true });
  mkdirSync(given.pictures, { recursive: true });
  await live(stage);
  for (const [look, options] of Object.entries(LOOKS)) {
    const context = await newContext(options);
    /** @param {string} name @param {Page} page */
    const take = (name, page) => page.screenshot({ path: join(given.pictures, `${name}-${look}.png`) });

    const stranger = await context.newPage();
    await stranger.goto("/");
    await stranger.getByRole("heading", { name: "Sign in" }).waitFor();
    await take("sign-in", stranger);

    const list = await context.newPage();
    await signedIn(stage, list);
    await list.goto("/");
    await row(list, FILM).waitFor();
    const task = await context.newPage();
    await signedIn(stage, task);
    await task.goto(`/tasks/${FILM}`);
    await liveMark(task, "Live");
    // Some seconds of life, for the chart and the history.
    await report(stage, 8_000);
    await take("list", list);
    await take("task", task);

    const explorer = await context.newPage();
    await explorer.goto("/graphql");
    // The editor shows the tab that is chosen once it is there.
    await explorer.getByRole("region", { name: "Operation Editor" }).getByRole("textbox").waitFor();
    await explorer.getByRole("tab", { name: "Watch" }).click();
    await explorer.getByRole("button", { name: /execute query/i }).click();
    await explorer.getByRole("button", { name: /stop query/i }).waitFor();
    await report(stage, 2_000);
    await take("explorer", explorer);
    await context.close();
  }
  return smaller(given.pictures);
}

/**
 * Tasks in every status.
 * @param {Stage} stage
 */
async function live({ graphql }) {
  const tasks = Array.from({ length: 40 }, (_, number) => {
    const [kind, queue, tags] = /** @type {[string, string | null, string[]]} */ (KINDS[number % KINDS.length]);
    const taskId = `${kind}-${((number + 17) * 2654435761 % 4294967296).toString(16).padStart(8, "0")}`;
    return { taskId, metadata: { number }, options: { tags, ...(queue && { queue }) } };
  });
  for (const task of tasks) await graphql("mutation ($tasks: [NewTask!]!) { createMany(tasks: $tasks) { id } }", { tasks: [task] });
  for (const [number, { taskId }] of tasks.entries()) {
    const outcome = ["complete: true", 'fail: "The disk is full"', "cancel: true", null, null][number % 5];
    const reports = [`{taskId: "${taskId}", progress: ${(number * 23) % 90}}`];
    if (outcome) reports.push(`{taskId: "${taskId}", ${outcome}}`);
    if (number % 7) await graphql(`mutation { report(reports: [${reports.join(", ")}]) { taskId } }`);
  }
  await graphql(
    `mutation ($id: ID!) {
      film: create(taskId: $id, metadata: {title: "Night train", frames: 4800, customer: {id: 81}}, options: {tags: ["4k", "customer-81"], queue: "video", retry: {maxAttempts: 3}}) { id }
      begun: addEvent(taskId: $id, event: {eventType: LOG, message: "Decoding with 8 threads", metadata: {codec: "av1", threads: 8}}) { id }
      started: updateProgress(taskId: $id, progress: 31) { id }
      example: create(taskId: "example", metadata: {pages: 12}) { id }
      half: updateProgress(taskId: "example", progress: 30) { id }
    }`,
    { id: FILM },
  );
}

/** Reports on the film and others for a while. @param {Stage} stage @param {number} ms */
async function report({ graphql }, ms) {
  const until = Date.now() + ms;
  const { tasks } = await graphql("{ tasks(first: 20, filter: {status: [IN_PROGRESS]}) { nodes { taskId progress } } }");
  for (let turn = 0; Date.now() < until; turn += 1) {
    const { taskId, progress } = tasks.nodes[turn % tasks.nodes.length];
    const next = Math.min(99, progress + 1 + Math.floor(turn / tasks.nodes.length));
    await graphql("mutation ($id: ID!, $progress: Int!) { updateProgress(taskId: $id, progress: $progress) { id } }", {
      id: taskId,
      progress: next,
    });
    if (turn % 12 === 0) {
      await graphql(
        `mutation ($id: ID!, $message: String!) { addEvent(taskId: $id, event: {eventType: LOG, message: $message}) { id } }`,
        { id: FILM, message: `Scene ${1 + turn / 12} is encoded` },
      );
    }
    await new Promise((done) => setTimeout(done, 60));
  }
}

/** Fewer colours make smaller files; without pngquant they stay as they are. @param {string} folder */
function smaller(folder) {
  return readdirSync(folder).map((name) => {
    const path = join(folder, name);
    try {
      execFileSync("pngquant", ["--force", "--skip-if-larger", "--strip", "--output", path, "128", path]);
    } catch {
      // Larger, and as good.
    }
    return `${String(Math.round(statSync(path).size / 1_000)).padStart(6)} kB  ${name}`;
  });
}
