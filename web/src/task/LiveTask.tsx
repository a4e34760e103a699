import { useTask } from "@spectral-notify/react";
import { useCallback, useEffect, useMemo, useSyncExternalStore } from "react";
import { cancelTask, deleteTask } from "../actions/actions";
import { may, useScope } from "../api/context";
import { DETAIL_FIELDS, HISTORY, type TaskDetail } from "../api/documents";
import { listPath, navigate } from "../app/router";
import { count, visible } from "../format/format";
import { Confirm } from "../ui/Confirm";
import { Json } from "../ui/Json";
import { ConnectionMark, CopyButton, Notice, ProgressBar, StatusMark, Strip } from "../ui/parts";
import { say } from "../ui/toast";
import { EventLog } from "./events";
import { Facts } from "./Facts";
import { Timeline } from "./Timeline";

const FINAL = new Set(["SUCCESS", "FAILED", "CANCELED"]);

interface LiveTaskProps {
  /** The task as it was read, before it is followed. */
  first: TaskDetail;
  /** The ID belongs to another task by now. */
  onOther: () => void;
}

/** A task that exists, followed from the number on at which it was read. */
export function LiveTask({ first, onOther }: LiveTaskProps) {
  const { api, viewer } = useScope();
  const { taskId } = first;
  const log = useMemo(() => new EventLog(first.seq, readerOf(api, first)), [api, first]);
  const onEvents = useCallback<EventLog["put"]>((events) => log.put(events), [log]);
  const live = useTask<TaskDetail>(taskId, {
    client: api.live.client,
    after: first.seq,
    // The log keeps them.
    keep: 1,
    taskFields: DETAIL_FIELDS,
    onEvents,
    onStartedOver: onOther,
  });
  const task = live.task ?? first;
  const over = FINAL.has(task.status);

  useEffect(() => log.grow(task.seq), [log, task.seq]);

  async function remove() {
    const problem = await deleteTask(api, taskId);
    if (problem) return problem;
    say(`Deleted ${visible(taskId)}`);
    navigate(listPath());
    return null;
  }

  return (
    <>
      <div className="task-head">
        <div className="task-title">
          <h1 className="mono">{visible(taskId)}</h1>
          <CopyButton text={taskId} what="the task ID" />
        </div>
        <div className="task-marks">
          <StatusMark status={task.status} />
          <ConnectionMark state={live.connection === "paused" ? "connecting" : live.connection} />
          {task.tags.map((tag) => (
            <span key={tag} className="tag">
              {tag}
            </span>
          ))}
        </div>
        {!live.deleted && (
          <div className="task-actions">
            {may(viewer, "REPORT") && !over && (
              <Confirm
                label="Cancel"
                title="Cancel this task?"
                verb="Cancel the task"
                act={() => cancelTask(api, taskId, task.seq)}
              >
                <code>{visible(taskId)}</code> ends as canceled, for good. A worker that has it is told.
              </Confirm>
            )}
            {may(viewer, "DELETE") && !viewer.taskId && (
              <Confirm label="Delete" title="Delete this task?" verb="Delete the task" act={remove}>
                <code>{visible(taskId)}</code> and the {count(task.seq)} {task.seq === 1 ? "event" : "events"} of its history
                are removed, for good.
              </Confirm>
            )}
          </div>
        )}
      </div>
      {live.deleted && (
        <Notice title="This task was deleted">What is below is what this page had read of it before.</Notice>
      )}
      {live.connection === "refused" && (
        <Strip
          action={
            <button type="button" className="button" onClick={live.resume}>
              Try again
            </button>
          }
        >
          This page does not follow the task. {live.error?.message}
        </Strip>
      )}
      <section className="card task-progress" aria-label="Progress">
        <ProgressBar value={task.progress} status={task.status} />
        {task.status === "FAILED" && <Reason log={log} seq={task.seq} />}
      </section>
      <div className="task-columns">
        <div className="task-side">
          <Facts task={task} />
          {task.metadata !== null && (
            <section className="card" aria-labelledby="metadata">
              <h2 id="metadata">Metadata</h2>
              <Json value={task.metadata} />
            </section>
          )}
        </div>
        <Timeline log={log} status={task.status} />
      </div>
    </>
  );
}

/** Why the task failed, where the history is far below. */
function Reason({ log, seq }: { log: EventLog; seq: number }) {
  useSyncExternalStore(log.onChange, log.version);
  return <p className="task-reason">{log.at(seq)?.message}</p>;
}

function readerOf(api: ReturnType<typeof useScope>["api"], task: TaskDetail) {
  return async (after: number, before: number) => {
    const { data, error } = await api.query
      .query(HISTORY, { taskId: task.taskId, after, before, first: before - after - 1 })
      .toPromise();
    if (error) throw error;
    // A task that was created again has another history.
    return data?.task?.createdAt === task.createdAt ? data.task.history : [];
  };
}
