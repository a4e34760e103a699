/** What is known of a task, and the document that asks for it. */

export type TaskStatus = "PENDING" | "IN_PROGRESS" | "SUCCESS" | "FAILED" | "CANCELED";
export type EventType = "LOG" | "PROGRESS" | "ERROR" | "SUCCESS";
export type UpdateType = "SNAPSHOT" | "EVENT" | "PROGRESS" | "COMPLETE" | "FAIL" | "CANCEL" | "DELETE";

/** The fields of a task that are always there. */
export interface Task {
  readonly id: string;
  readonly taskId: string;
  readonly status: TaskStatus;
  /** 0 to 100. */
  readonly progress: number;
  /** The number of its latest event. */
  readonly seq: number;
  readonly createdAt: string;
  readonly updatedAt: string;
}

/** One line of a task's log. It never changes. */
export interface TaskEvent {
  /** Unique among the events of all tasks. */
  readonly id: string;
  /** 1, 2, 3 … per task, without a gap. */
  readonly seq: number;
  readonly eventType: EventType;
  readonly message: string;
  readonly progress: number | null;
  readonly metadata: unknown;
  readonly timestamp: string;
  readonly actor: string | null;
}

/** A message of the subscription. */
export interface TaskUpdate<Extra = unknown> {
  readonly type: UpdateType;
  readonly task: Task & Extra;
  readonly events: readonly TaskEvent[];
}

/** The subscription, with more fields of the task than those that are always there: `"metadata tags"`. */
export function taskUpdates(taskFields = ""): string {
  return `subscription TaskUpdates($taskId: ID!, $afterSeq: Int) {
  taskUpdates(taskId: $taskId, afterSeq: $afterSeq) {
    type
    task { ${`id taskId status progress seq createdAt updatedAt ${taskFields}`.trim()} }
    events { id seq eventType message progress metadata timestamp actor }
  }
}`;
}

/** Whether a task takes no more reports. */
export function hasEnded(task: Pick<Task, "status">): boolean {
  return task.status === "SUCCESS" || task.status === "FAILED" || task.status === "CANCELED";
}
