/** The arithmetic of a task that is followed: no clock, no socket. */

import type { Task, TaskEvent, TaskUpdate } from "./task.js";

/** What a client knows of a task. */
export interface Known<Extra> {
  /** As new as the last message. */
  readonly task: (Task & Extra) | null;
  /** The newest events, oldest first. */
  readonly events: readonly TaskEvent[];
  /** The number of the last event that was seen; undefined: those before the first message are not asked for. */
  readonly seq: number | undefined;
  readonly deleted: boolean;
}

/** What a message makes of that. */
export interface Folded<Extra> {
  readonly known: Known<Extra>;
  /** The events that were not seen before. */
  readonly fresh: readonly TaskEvent[];
  /** The task was deleted and created again meanwhile; what was known is of the one before. */
  readonly startedOver: boolean;
  /** Events are missing before those of this message: ask for them, by the number in `known`. */
  readonly hole: boolean;
}

/** Fold a message into what is known, which keeps at most so many events. */
export function fold<Extra>(known: Known<Extra>, update: TaskUpdate<Extra>, keep: number): Folded<Extra> {
  const { task } = update;
  const deleted = update.type === "DELETE";
  if (known.seq === undefined) {
    return { known: { task, events: [], seq: task.seq, deleted }, fresh: [], startedOver: false, hole: false };
  }
  // The creation tells two tasks of one ID apart. Before the first message only the number can.
  const startedOver = task.seq < known.seq || (known.task !== null && known.task.createdAt !== task.createdAt);
  const seen = startedOver ? 0 : known.seq;
  const fresh = update.events.filter((event) => event.seq > seen);
  const first = fresh[0];
  const hole = first ? first.seq !== seen + 1 : startedOver && task.seq > 0;
  const before = startedOver ? [] : known.events;
  if (hole) {
    return { known: { task, events: before, seq: seen, deleted }, fresh: [], startedOver, hole };
  }
  return {
    known: {
      task,
      events: fresh.length > 0 || startedOver ? newest([...before, ...fresh], keep) : before,
      seq: fresh.at(-1)?.seq ?? seen,
      deleted,
    },
    fresh,
    startedOver,
    hole,
  };
}

function newest(events: readonly TaskEvent[], keep: number): readonly TaskEvent[] {
  return events.length > keep ? events.slice(events.length - keep) : events;
}
