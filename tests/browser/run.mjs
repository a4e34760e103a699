// Runs one scenario in a fresh browser: node run.mjs SCRIPT NAME JSON. What it was given, and what the scenario may use,
// is its stage. Beside what the scenario itself expects, no page may ask another origin for anything, break its content
// security policy, or throw.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

// As root there is no sandbox, and nothing is to be fetched or reported by the browser itself.
const FLAGS = [
  ..."--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split(" "),
  ..."--disable-component-update --disable-sync --disable-dev-shm-usage --force-color-profile=srgb".split(" "),
];
const WAIT_MS = 20_000;

/**
 * @typedef {{origin: string, key: string, chromium: string, profile: string, [more: string]: any}} Given
 * @typedef {{
 *   given: Given,
 *   page: import("playwright-core").Page,
 *   context: import("playwright-core").BrowserContext,
 *   newContext: (options?: import("playwright-core").BrowserContextOptions) => Promise<import("playwright-core").BrowserContext>,
 *   ask: (what: "stop" | "start") => Promise<void>,
 *   graphql: (query: string, variables?: object, key?: string | null) => Promise<any>,
 *   expected: (pattern: RegExp) => void,
 * }} Stage
 */

const [script = "", name = "", told = "{}"] = process.argv.slice(2);
/** @type {Given} */
const given = JSON.parse(told);
const replies = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
/** @type {string[]} */
const wrong = [];
/** @type {RegExp[]} */
const excused = [];

/** @param {object} scenario */
const say = (scenario) => process.stdout.write(`${JSON.stringify({ scenario })}\n`);

/** @param {"stop" | "start"} what */
async function ask(what) {
  say({ ask: what });
  await replies.next();
}

/**
 * Asks the API directly, as a worker or a backend does.
 * @param {string} query
 * @param {object} [variables]
 * @param {string | null} [key]
 */
async function graphql(query, variables = {}, key = given.key) {
  const response = await fetch(`${given.origin}/graphql`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(key === null ? {} : { Authorization: `Bearer ${key}` }) },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = /** @type {any} */ (await response.json());
  if (errors) throw new Error(JSON.stringify(errors));
  return data;
}

/** @param {import("playwright-core").BrowserContext} context */
function watch(context) {
  const host = new URL(given.origin).host;
  context.setDefaultTimeout(WAIT_MS);
  context.on("request", (request) => {
    const url = new URL(request.url());
    if (!["data:", "blob:"].includes(url.protocol) && url.host !== host) wrong.push(`asked ${url} for something`);
  });
  context.on("weberror", (error) => wrong.push(`threw ${error.error().stack ?? error.error()}`));
  context.on("console", (message) => {
    if (/content security policy/i.test(message.text())) wrong.push(`broke the policy: ${message.text()}`);
    else if (message.type() === "error") wrong.push(`complained: ${message.text()} (${message.location().url})`);
  });
}

const browser = await chromium.launch({ executablePath: given.chromium, args: FLAGS });
try {
  const newContext = async (/** @type {any} */ options = {}) => {
    const context = await browser.newContext({ baseURL: given.origin, reducedMotion: "reduce", ...options });
    watch(context);
    return context;
  };
  const context = await newContext();
  const page = await context.newPage();
  const scenarios = await import(pathToFileURL(script).href);
  const expected = (/** @type {RegExp} */ pattern) => void excused.push(pattern);
  /** @type {Stage} */
  const stage = { given, page, context, newContext, ask, graphql, expected };
  let result;
  try {
    result = await scenarios[name](stage);
  } catch (error) {
    // Where a picture of it is wanted, it lies beside the others of the run.
    if (process.env.TEST_PICTURES) await page.screenshot({ path: `${process.env.TEST_PICTURES}/${name}.png` });
    throw new Error(`${error instanceof Error ? error.stack : error}\n\nThe page then:\n${await seen(page)}`);
  }
  const inexcusable = wrong.filter((each) => !excused.some((pattern) => pattern.test(each)));
  if (inexcusable.length > 0) throw new Error(`The page ${inexcusable.join("\nand ")}`);
  say({ ended: result ?? null });
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  for (const each of wrong) console.error(`The page ${each}`);
  process.exitCode = 1;
} finally {
  await browser.close();
  process.stdin.destroy();
}

/** @param {import("playwright-core").Page} page */
async function seen(page) {
  try {
    return await page.locator("body").ariaSnapshot({ timeout: 2_000 });
  } catch {
    return "(gone)";
  }
}
