/** What ends a subscription before the task does, and what helps. */

/** Why a task is not followed. */
export interface TaskError {
  /** The `extensions.code` of the server's error; `CLOSED` when it closed the socket instead. */
  readonly code: string;
  readonly message: string;
  /** The code with which the socket was closed, when that was it. */
  readonly closeCode?: number;
}

/**
 * `retry`: the same again later. `renew`: with another credential. `doubt`: once or twice more, then give up. `refuse`:
 * the same request gets the same answer.
 */
export type Remedy = "retry" | "renew" | "doubt" | "refuse";

export interface Trouble {
  readonly remedy: Remedy;
  readonly error: TaskError;
  /** How long to wait at least, if the server said so. */
  readonly afterMs?: number;
}

/** The closings that say that the client is wrong. All others are the network's, or a server's that comes back. */
const WRONG: ReadonlySet<number> = new Set([
  1002, 1003, 1007, 1009, 1010, // broken frames, or too large ones
  4004, // the client did not understand the server
  4400, // a message that is none of the protocol
  4406, // another protocol
  4409, // two operations with one ID
  4429, // two greetings
]);
/** Not greeted yet, and a wrong credential. */
const CREDENTIAL: ReadonlySet<number> = new Set([4401, 4403]);

/** Whether to connect again after a socket was closed so. */
export function remedyOfClosing(code: number): Remedy {
  if (CREDENTIAL.has(code)) return "renew";
  return WRONG.has(code) ? "refuse" : "retry";
}

/** What is to be made of the error of a subscription: GraphQL errors, a close event, or whatever the network throws. */
export function troubleOf(problem: unknown): Trouble {
  if (Array.isArray(problem)) return troubleOfErrors(problem);
  if (isClosing(problem)) {
    const { code, reason } = problem;
    const message = reason || `The socket was closed with ${String(code)}.`;
    return { remedy: remedyOfClosing(code), error: { code: "CLOSED", message, closeCode: code } };
  }
  const message = problem instanceof Error && problem.message ? problem.message : "The server cannot be reached.";
  return { remedy: "retry", error: { code: "CLOSED", message } };
}

/** Whether it is a close event, as far as anybody can tell across implementations. */
export function isClosing(problem: unknown): problem is { code: number; reason: string } {
  return isObject(problem) && typeof problem["code"] === "number" && "reason" in problem;
}

/** How long to wait before an attempt, from 0: a quarter of a second, doubling up to ten, less up to a half by chance. */
export function pauseMs(attempt: number): number {
  return Math.min(10_000, 250 * 2 ** attempt) * (1 - Math.random() / 2);
}

function troubleOfErrors(errors: readonly unknown[]): Trouble {
  const first = isObject(errors[0]) ? errors[0] : {};
  const extensions = isObject(first["extensions"]) ? first["extensions"] : {};
  const code = text(extensions["code"]) ?? "INTERNAL_SERVER_ERROR";
  const error = { code, message: text(first["message"]) ?? "The server gave no reason." };
  if (code === "UNAUTHENTICATED") return { remedy: "renew", error };
  if (code === "INTERNAL_SERVER_ERROR") return { remedy: "doubt", error };
  if (extensions["retryable"] !== true) return { remedy: "refuse", error };
  const afterMs = extensions["retryAfterMs"];
  return typeof afterMs === "number" ? { remedy: "retry", error, afterMs } : { remedy: "retry", error };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function text(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}
