/** The hook, for React on the web and React Native alike. */

import type { Client } from "graphql-ws";
import { useEffect, useMemo, useSyncExternalStore } from "react";

import { type FollowOptions, followTask, type TaskFollower, type TaskView } from "./follow.js";

/** At most so often a component is rendered for news, the first of which it gets at once. */
const RENDER_EVERY_MS = 50;

/** What is needed of React Native's `AppState`. */
export interface AppStateLike {
  readonly currentState: string;
  addEventListener(type: "change", listener: (state: string) => void): { remove(): void };
}

export interface UseTaskOptions<Extra = unknown> extends FollowOptions<Extra> {
  /** The socket: of `connect`, or any client of graphql-ws. It must be the same at each render. */
  readonly client: Client;
  /** React Native's `AppState`: in the background the task is not followed, and afterwards it goes on without loss. */
  readonly appState?: AppStateLike;
}

/** What is known of a task, live. */
export type FollowedTask<Extra = unknown> = TaskView<Extra> & Pick<TaskFollower<Extra>, "pause" | "resume">;

/** Follow a task while the component is there. */
export function useTask<Extra = unknown>(taskId: string, options: UseTaskOptions<Extra>): FollowedTask<Extra> {
  const { client, after, keep, taskFields, onEvents, onStartedOver, appState } = options;
  const follower = useMemo(
    () => followTask<Extra>(client, taskId, { after, keep, taskFields }),
    [client, taskId, after, keep, taskFields],
  );
  const listen = useMemo(() => sparingly(follower.listen), [follower]);
  const view = useSyncExternalStore(listen, follower.view, follower.view);
  useEffect(() => follower.observe({ onEvents, onStartedOver }), [follower, onEvents, onStartedOver]);
  useEffect(() => (appState ? pauseInBackground(follower, appState) : undefined), [follower, appState]);
  return useMemo(() => ({ ...view, pause: follower.pause, resume: follower.resume }), [view, follower]);
}

/** Pause a follower while the app is in the background; what somebody else has paused stays so. */
export function pauseInBackground(follower: TaskFollower, appState: AppStateLike): () => void {
  let mine = false;
  const change = (state: string): void => {
    if (state === "background" && follower.view().connection !== "paused") {
      mine = true;
      follower.pause();
    } else if (state === "active" && mine) {
      mine = false;
      follower.resume();
    }
  };
  change(appState.currentState);
  const listening = appState.addEventListener("change", change);
  return () => {
    listening.remove();
    if (mine) follower.resume();
  };
}

/** A listener that is called at once, and then at most once in a while. */
function sparingly(listen: TaskFollower["listen"]): TaskFollower["listen"] {
  return (listener) => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let news = false;
    const tell = (): void => {
      news = false;
      timer = setTimeout(() => {
        timer = undefined;
        if (news) tell();
      }, RENDER_EVERY_MS);
      listener();
    };
    const leave = listen(() => {
      if (timer === undefined) tell();
      else news = true;
    });
    return () => {
      clearTimeout(timer);
      leave();
    };
  };
}
