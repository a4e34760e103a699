/** Following tasks with React. */

export * from "./core.js";
export { type AppStateLike, type FollowedTask, useTask, type UseTaskOptions } from "./useTask.js";
