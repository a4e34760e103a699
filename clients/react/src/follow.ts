/**
 * Follow a task to its end: each event once and in order, whatever the connection does.
 *
 * A follower holds no subscription while nobody listens to it, or while it is paused. When it goes on it asks for what
 * came after the last event seen, so nothing is lost by that, and nothing comes twice.
 */

import type { Client } from "graphql-ws";

import { fold, type Known } from "./fold.js";
import { hasEnded, type Task, type TaskEvent, type TaskUpdate, taskUpdates } from "./task.js";
import { pauseMs, type TaskError, troubleOf } from "./trouble.js";

/**
 * - `connecting`: nothing was heard yet.
 * - `behind`: events that are known to exist are still on their way.
 * - `live`: all that the server has told is here.
 * - `reconnecting`: the connection broke, or the server asked for patience; it is tried again.
 * - `paused`: by `pause()`, or because nobody listens.
 * - `ended`: the task has a final status, or was deleted. There is no more to come.
 * - `refused`: `error` says why. `resume()` tries again.
 */
export type ConnectionState = "connecting" | "behind" | "live" | "reconnecting" | "paused" | "ended" | "refused";

/** What is known of a task at a moment. It never changes; there is a new one for each change. */
export interface TaskView<Extra = unknown> {
  /** Null before the first message. */
  readonly task: (Task & Extra) | null;
  /** The newest events, oldest first; at most `keep`. */
  readonly events: readonly TaskEvent[];
  readonly connection: ConnectionState;
  /** Why it was refused. */
  readonly error: TaskError | null;
  readonly deleted: boolean;
}

/** Who is told more than that there is a change. */
export interface TaskObserver<Extra = unknown> {
  /** Called with each event exactly once, in order. */
  readonly onEvents?: (events: readonly TaskEvent[], task: Task & Extra) => void;
  /** The task was deleted and created again: what was collected is of another one. `onEvents` begins at 1. */
  readonly onStartedOver?: () => void;
}

export interface FollowOptions<Extra = unknown> extends TaskObserver<Extra> {
  /** The number of the last event that is known already: 0 for all (the default), `"now"` for those to come. */
  readonly after?: number | "now";
  /** How many events the view keeps; 1,000 when nothing is said. `onEvents` is given all of them. */
  readonly keep?: number;
  /** More fields of the task, as GraphQL: `"metadata tags"`. */
  readonly taskFields?: string;
}

export interface TaskFollower<Extra = unknown> {
  /** What is known now. */
  readonly view: () => TaskView<Extra>;
  /** Be called after each change. The first who listens begins, the last who goes pauses. */
  readonly listen: (listener: () => void) => () => void;
  /** Be told of events, too, while somebody listens. */
  readonly observe: (observer: TaskObserver<Extra>) => () => void;
  /** Give the subscription back, and keep what is known: for apps in the background. */
  readonly pause: () => void;
  /** Go on after `pause()`, or try again after a refusal. */
  readonly resume: () => void;
}

const KEEP = 1_000;
/** So often a fault of the server is met before it is believed. */
const DOUBTS_MAX = 2;
/** How often each client was made to connect again for a new credential. */
const renewals = new WeakMap<Client, number>();

/** A follower of a task. It begins when somebody listens. */
export function followTask<Extra = unknown>(
  client: Client,
  taskId: string,
  options: FollowOptions<Extra> = {},
): TaskFollower<Extra> {
  const { after = 0, keep = KEEP } = options;
  const query = taskUpdates(options.taskFields);
  const listeners = new Set<() => void>();
  const observers = new Set<TaskObserver<Extra>>([options]);
  let known: Known<Extra> = { task: null, events: [], seq: after === "now" ? undefined : after, deleted: false };
  let view: TaskView<Extra> = { ...seen(known), connection: "connecting", error: null };
  let paused = false;
  // Gives back what is under way: a subscription, or a pause before the next.
  let halt: (() => void) | null = null;
  // Whose messages count.
  let current: object | null = null;
  // Since the last message.
  let failures = 0;
  let refusals = 0;

  function show(connection: ConnectionState, error: TaskError | null = null): void {
    if (view.connection === connection && view.error === error && view.task === known.task) return;
    view = { ...seen(known), connection, error };
    for (const listener of [...listeners]) safely(listener);
  }

  function begin(): void {
    const attempt = {};
    current = attempt;
    const began = renewals.get(client) ?? 0;
    const mine = (): boolean => current === attempt;
    const forgetClosed = client.on("closed", () => {
      if (mine()) show("reconnecting");
    });
    const unsubscribe = client.subscribe<{ taskUpdates: TaskUpdate<Extra> }>(
      {
        query,
        // A getter: the client asks again after each reconnect, and then for what came after the last event seen.
        variables: {
          taskId,
          get afterSeq() {
            return known.seq;
          },
        },
      },
      {
        next({ data, errors }) {
          if (!mine()) return;
          if (data) take(data.taskUpdates);
          else fail(errors ?? [], began);
        },
        error(problem) {
          if (mine()) fail(problem, began);
        },
        complete() {
          if (!mine()) return;
          stop();
          // Only a final status or a deletion is an end; all others are breaks.
          if (view.deleted || (view.task && hasEnded(view.task))) show("ended");
          else retry();
        },
      },
    );
    halt = () => {
      forgetClosed();
      unsubscribe();
    };
  }

  function stop(): void {
    const held = halt;
    current = null;
    halt = null;
    held?.();
  }

  function retry(afterMs = 0): void {
    stop();
    show("reconnecting");
    const timer = setTimeout(begin, Math.max(afterMs, pauseMs(failures++)));
    halt = () => {
      clearTimeout(timer);
    };
  }

  function take(update: TaskUpdate<Extra>): void {
    const folded = fold(known, update, keep);
    known = folded.known;
    const heard = current;
    for (const observer of [...observers]) {
      if (folded.startedOver) safely(() => observer.onStartedOver?.());
      if (folded.fresh.length > 0) safely(() => observer.onEvents?.(folded.fresh, update.task));
    }
    // Whoever was called may have paused.
    if (current !== heard) {
      show(view.connection, view.error);
    } else if (folded.hole) {
      retry();
    } else {
      failures = refusals = 0;
      show(known.seq !== undefined && known.seq < update.task.seq ? "behind" : "live");
    }
  }

  function fail(problem: unknown, began: number): void {
    const { remedy, error, afterMs } = troubleOf(problem);
    if (remedy === "retry" || (remedy === "doubt" && refusals++ < DOUBTS_MAX)) {
      retry(afterMs);
    } else if (remedy === "renew" && refusals++ === 0) {
      retry();
      // A socket keeps its credential. Whoever hears of it first closes it for all who use it.
      if (error.closeCode === undefined && (renewals.get(client) ?? 0) === began) {
        renewals.set(client, began + 1);
        client.terminate();
      }
    } else {
      stop();
      // It was there once, so it was deleted.
      if (error.code === "TASK_NOT_FOUND" && known.task) {
        known = { ...known, deleted: true };
        show("ended");
      } else {
        show("refused", error);
      }
    }
  }

  function start(): void {
    if (paused || listeners.size === 0 || halt || view.connection === "ended" || view.connection === "refused") return;
    show(known.task ? "reconnecting" : "connecting");
    begin();
  }

  function rest(): void {
    stop();
    if (view.connection !== "ended" && view.connection !== "refused") show("paused");
  }

  return {
    view: () => view,
    listen(listener) {
      // One of its own for each call, so that a function that listens twice can leave twice.
      const own = (): void => {
        listener();
      };
      listeners.add(own);
      start();
      return () => {
        listeners.delete(own);
        if (listeners.size === 0) rest();
      };
    },
    observe(observer) {
      const own = { ...observer };
      observers.add(own);
      return () => {
        observers.delete(own);
      };
    },
    pause() {
      paused = true;
      rest();
    },
    resume() {
      paused = false;
      if (view.connection === "refused") {
        failures = refusals = 0;
        show("connecting");
      }
      start();
    },
  };
}

function seen<Extra>({ task, events, deleted }: Known<Extra>): Pick<TaskView<Extra>, "task" | "events" | "deleted"> {
  return { task, events, deleted };
}

/** Call what is not ours. What it throws is nobody's here, and must not be taken for a fault of the socket. */
function safely(call: () => void): void {
  try {
    call();
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}
