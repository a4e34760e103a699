import { memo, useCallback, useSyncExternalStore } from "react";
import type { TaskSummary } from "../api/documents";
import { Link, taskPath } from "../app/router";
import { visible } from "../format/format";
import { Ago, ProgressBar, StatusMark } from "../ui/parts";
import type { TaskList } from "./store";

const TAGS = 3;

interface TaskRowProps {
  list: TaskList;
  id: string;
  index: number;
  top: number;
  height: number;
}

/** A task of the list. It listens to that task alone. */
export const TaskRow = memo(function TaskRow({ list, id, index, top, height }: TaskRowProps) {
  const listen = useCallback((listener: () => void) => list.onTask(id, listener), [list, id]);
  const task = useSyncExternalStore(listen, () => list.task(id));
  if (!task) return null;
  return (
    <div
      className="row"
      role="row"
      aria-rowindex={index + 2}
      data-index={index}
      data-status={task.status}
      data-task-id={task.taskId}
      style={{ transform: `translateY(${top}px)`, height }}
    >
      <span role="cell" className="cell-status">
        <StatusMark status={task.status} />
      </span>
      <span role="cell" className="cell-task">
        <Link href={taskPath(task.taskId)} className="row-link mono" title={task.taskId}>
          {visible(task.taskId)}
        </Link>
        {task.tags.length > 0 && (
          <span className="tags" title={task.tags.join(", ")}>
            {task.tags.slice(0, TAGS).map((tag) => (
              <span key={tag} className="tag">
                {tag}
              </span>
            ))}
            {task.tags.length > TAGS && <span className="tag tag-more">+{task.tags.length - TAGS}</span>}
          </span>
        )}
      </span>
      <span role="cell" className="cell-progress">
        <ProgressBar value={task.progress} status={task.status} />
      </span>
      <span role="cell" className="cell-event" data-type={task.lastEvent.eventType} title={task.lastEvent.message}>
        {task.lastEvent.message.slice(0, 300)}
      </span>
      <span role="cell" className="cell-queue">
        <Queue task={task} />
      </span>
      <span role="cell" className="cell-age">
        <Ago time={task.updatedAt} brief />
      </span>
    </div>
  );
});

function Queue({ task }: { task: TaskSummary }) {
  const tries = task.maxAttempts > 1 || task.attempt > 1;
  return (
    <>
      {task.queue !== null && <span className="queue">{task.queue}</span>}
      {tries && (
        <span className="tries" title={`Attempt ${task.attempt} of ${task.maxAttempts}`}>
          {task.attempt}/{task.maxAttempts}
        </span>
      )}
      {task.stale && <span className="stale">stale</span>}
    </>
  );
}
