import { type ReactNode, useState } from "react";
import type { TaskDetail } from "../api/documents";
import { Link, taskPath } from "../app/router";
import { count, shortDateTime, visible } from "../format/format";
import { useNow } from "../format/now";
import { Ago } from "../ui/parts";

// A task may depend on a hundred.
const TASKS = 5;

/** What else is known of a task. What does not matter to it is left out. */
export function Facts({ task }: { task: TaskDetail }) {
  const isOpen = task.status === "PENDING" || task.status === "IN_PROGRESS";
  return (
    <section className="card" aria-labelledby="facts">
      <h2 id="facts">About</h2>
      <dl className="facts">
        <Time name="Created" at={task.createdAt} />
        <Fact name="Created by">{task.createdBy}</Fact>
        <Time name="Started" at={task.startedAt} />
        <Time name="Updated" at={task.updatedAt} />
        <Time name="Succeeded" at={task.completedAt} />
        <Time name="Failed" at={task.failedAt} />
        <Time name="Canceled" at={task.canceledAt} />
        <Fact name="Events">{count(task.seq)}</Fact>
        <Fact name="Queue">{task.queue}</Fact>
        <Fact name="Priority">{task.priority !== 0 && count(task.priority)}</Fact>
        <Fact name="Attempt">
          {(task.attempt > 1 || task.maxAttempts > 1) && `${task.attempt} of ${task.maxAttempts}`}
        </Fact>
        <Fact name="Worker">{task.worker}</Fact>
        <Time name={task.stale ? "Lease ran out" : "Lease until"} at={task.leaseExpiresAt} bad={task.stale} />
        {isOpen && (
          <>
            <Time name="Not before" at={task.startAt} />
            <Time name="Next attempt" at={task.nextAttemptAt} />
            <Time name="Must end by" at={task.expiresAt} />
          </>
        )}
        <Time name="Deleted at" at={task.deleteAt} />
        <Tasks name={isOpen ? "Waits for" : "Blocked by"} ids={task.blockedBy} />
        <Tasks name="Waited for" ids={task.dependsOn.filter((id) => !task.blockedBy.includes(id))} />
      </dl>
    </section>
  );
}

function Fact({ name, children }: { name: string; children: ReactNode }) {
  if (children === null || children === false) return null;
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function Time({ name, at, bad = false }: { name: string; at: string | null; bad?: boolean }) {
  const now = useNow();
  if (at === null) return null;
  return (
    <div data-bad={bad}>
      <dt>{name}</dt>
      <dd>
        {shortDateTime(at, now)}{" "}
        <span className="muted">
          (<Ago time={at} />)
        </span>
      </dd>
    </div>
  );
}

function Tasks({ name, ids }: { name: string; ids: readonly string[] }) {
  const [all, setAll] = useState(false);
  if (ids.length === 0) return null;
  return (
    <div>
      <dt>{name}</dt>
      <dd className="fact-tasks">
        {ids.slice(0, all ? ids.length : TASKS).map((id) => (
          <Link key={id} href={taskPath(id)} className="mono">
            {visible(id)}
          </Link>
        ))}
        {!all && ids.length > TASKS && (
          <button type="button" className="more" onClick={() => setAll(true)}>
            Show all {count(ids.length)}
          </button>
        )}
      </dd>
    </div>
  );
}
