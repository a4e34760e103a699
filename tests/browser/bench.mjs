// What the dashboard costs a browser: the first visit, a list at 500 changes a second, a history of 100,000 events.
import { createTasks, liveMark, open } from "./steps.mjs";

/** @typedef {import("./run.mjs").Stage} Stage @typedef {import("playwright-core").Page} Page */

const CHANGES_PER_S = 500;
const ROUNDS_PER_S = 10;
const SECONDS = 20;
const EVENTS = 100_000;
const REPORTS_MAX = 1_000;

/**
 * All of it, as lines to print.
 * @param {Stage} stage
 */
export async function bench(stage) {
  return [...(await firstVisit(stage)), ...(await busyList(stage)), ...(await longHistory(stage))];
}

/** @param {Stage} stage */
async function firstVisit({ newContext }) {
  const page = await (await newContext()).newPage();
  await page.goto("/");
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  const { bytes, ms } = await page.evaluate(() => {
    const loaded = /** @type {PerformanceResourceTiming[]} */ ([
      ...performance.getEntriesByType("navigation"),
      ...performance.getEntriesByType("resource"),
    ]);
    const files = loaded.filter(({ name }) => !name.endsWith("/graphql"));
    return {
      bytes: files.reduce((sum, { transferSize }) => sum + transferSize, 0),
      ms: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? NaN,
    };
  });
  return [`first visit: ${(bytes / 1_000).toFixed(0)} kB over the wire, something to see after ${ms.toFixed(0)} ms`];
}

/** @param {Stage} stage */
async function busyList(stage) {
  const { page, graphql } = stage;
  const ids = Array.from({ length: 300 }, (_, number) => `T-${String(number).padStart(3, "0")}`);
  await createTasks(stage, ids);
  await open(stage);
  await liveMark(page, "Live");
  const measured = await measuring(page);
  const from = Date.now();
  let sent = 0;
  for (let round = 0; round < SECONDS * ROUNDS_PER_S; round += 1) {
    const reports = Array.from({ length: CHANGES_PER_S / ROUNDS_PER_S }, (_, at) => ({
      taskId: ids[(sent + at) % ids.length],
      progress: Math.floor((round / SECONDS / ROUNDS_PER_S) * 100),
    }));
    sent += reports.length;
    await graphql("mutation ($reports: [TaskReport!]!) { report(reports: $reports) { taskId } }", { reports });
    const due = from + ((round + 1) * 1_000) / ROUNDS_PER_S;
    await new Promise((done) => setTimeout(done, Math.max(0, due - Date.now())));
  }
  const rate = sent / ((Date.now() - from) / 1_000);
  return [`list at ${rate.toFixed(0)} changes/s: ${await measured()}`];
}

/** @param {Stage} stage */
async function longHistory({ page, graphql }) {
  await graphql('mutation { create(taskId: "long") { id } }');
  for (let sent = 0; sent < EVENTS; sent += REPORTS_MAX) {
    const reports = Array.from({ length: REPORTS_MAX }, (_, at) => ({
      taskId: "long",
      event: { eventType: "LOG", message: `Line ${sent + at} of what the task has to say` },
    }));
    await graphql("mutation ($reports: [TaskReport!]!) { report(reports: $reports) { taskId } }", { reports });
  }
  await page.goto("/tasks/long");
  await liveMark(page, "Live");
  const measured = await measuring(page);
  await page.evaluate(async (seconds) => {
    const until = performance.now() + seconds * 1_000;
    const step = document.body.scrollHeight / (seconds * 60);
    while (performance.now() < until) {
      window.scrollBy(0, step);
      await new Promise(requestAnimationFrame);
    }
    window.scrollTo(0, document.body.scrollHeight);
  }, SECONDS / 2);
  await page.getByRole("article", { name: "Event 1", exact: true }).getByText("Task created").waitFor();
  return [`history of ${EVENTS} events, scrolled from end to end: ${await measured()}`];
}

/**
 * Measures from now until the returned function is called.
 * @param {Page} page
 */
async function measuring(page) {
  const devtools = await page.context().newCDPSession(page);
  await devtools.send("Performance.enable");
  const busy = async () => {
    const { metrics } = await devtools.send("Performance.getMetrics");
    const of = (/** @type {string} */ name) => metrics.find((metric) => metric.name === name)?.value ?? NaN;
    return { task: of("TaskDuration"), heap: of("JSHeapUsedSize") };
  };
  await page.evaluate(() => {
    /** @type {number[]} */
    const long = [];
    Object.assign(window, { long });
    new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => long.push(duration))).observe({
      type: "longtask",
    });
  });
  const from = Date.now();
  const { task: before } = await busy();
  return async () => {
    const { task, heap } = await busy();
    const long = await page.evaluate(() => /** @type {number[]} */ (/** @type {any} */ (window).long));
    const share = (100 * (task - before)) / ((Date.now() - from) / 1_000);
    const longest = long.length > 0 ? `${Math.max(...long).toFixed(0)} ms` : "under 50 ms";
    return `${share.toFixed(0)} % of a core, longest task ${longest}, ${long.filter((ms) => ms > 100).length} over 100 ms, heap ${(heap / 1e6).toFixed(0)} MB`;
  };
}
