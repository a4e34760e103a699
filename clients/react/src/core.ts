/** Following tasks without React. */

export { connect, type Connection, type ConnectOptions } from "./connect.js";
export {
  type ConnectionState,
  type FollowOptions,
  followTask,
  type TaskFollower,
  type TaskObserver,
  type TaskView,
} from "./follow.js";
export {
  type EventType,
  hasEnded,
  type Task,
  type TaskEvent,
  type TaskStatus,
  type TaskUpdate,
  taskUpdates,
  type UpdateType,
} from "./task.js";
export type { TaskError } from "./trouble.js";
