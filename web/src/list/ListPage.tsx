import { useEffect, useState, useSyncExternalStore } from "react";
import { CreateTask } from "../actions/CreateTask";
import { may, useScope, useSocketState } from "../api/context";
import type { Problem } from "../api/errors";
import { navigate, useSearch } from "../app/router";
import { useShortcut } from "../app/shortcuts";
import { signOut } from "../session/session";
import { ThroughputPanel } from "../stats/ThroughputPanel";
import { useStats } from "../stats/useStats";
import { Plus } from "../ui/icons";
import { ConnectionMark, Notice, Skeleton, Strip } from "../ui/parts";
import { FilterBar } from "./FilterBar";
import { EVERYTHING, filterFromQuery, filterToQuery, isNarrow, type ListFilter } from "./filter";
import { TaskTable } from "./TaskTable";
import { useList } from "./useList";

/** All tasks, live. */
export function ListPage() {
  const { api, viewer } = useScope();
  const filter = filterFromQuery(useSearch());
  const query = filterToQuery(filter);
  const counts = useStats(api, filter);
  const socket = useSocketState();
  const [creating, setCreating] = useState(false);
  const mayCreate = may(viewer, "CREATE");
  useShortcut("n", () => setCreating(mayCreate));
  useEffect(() => {
    document.title = "Tasks – spectral-notify";
  }, []);

  function change(next: ListFilter): void {
    const wanted = filterToQuery(next);
    navigate(wanted ? `/?${wanted}` : "/", { replace: next.prefix !== filter.prefix });
  }

  return (
    <main id="main" className="page" tabIndex={-1}>
      <div className="page-head">
        <h1>Tasks</h1>
        <ConnectionMark state={socket} />
        {mayCreate && (
          <button type="button" className="button" onClick={() => setCreating(true)}>
            <Plus />
            New test task
          </button>
        )}
      </div>
      <FilterBar filter={filter} counts={counts} onChange={change} />
      <Rows key={query} query={query} filter={filter} onChange={change} onCreate={() => setCreating(true)} />
      <CreateTask open={creating} onOpenChange={setCreating} />
    </main>
  );
}

interface RowsProps {
  query: string;
  filter: ListFilter;
  onChange: (filter: ListFilter) => void;
  onCreate: () => void;
}

function Rows({ query, filter, onChange, onCreate }: RowsProps) {
  const { api, viewer } = useScope();
  const kept = useList(api, query);
  const { feed, throughput } = kept;
  const { problem } = useSyncExternalStore(feed.onState, feed.state);
  const { ids, loaded } = useSyncExternalStore(feed.list.onView, feed.list.view);
  const tryNow = (
    <button type="button" className="button" onClick={() => void feed.readTop()}>
      Try now
    </button>
  );

  if (!loaded) {
    return problem ? <Refused problem={problem} tryNow={tryNow} /> : <Skeleton rows={10} />;
  }
  return (
    <>
      {problem && <Strip action={tryNow}>What is shown may be old. {problem.message}</Strip>}
      {ids.length > 0 && (
        <>
          <ThroughputPanel throughput={throughput} />
          <TaskTable kept={kept} />
        </>
      )}
      {ids.length === 0 && isNarrow(filter) && (
        <Notice
          title="No task is meant by this filter"
          action={
            <button type="button" className="button" onClick={() => onChange(EVERYTHING)}>
              Show all tasks
            </button>
          }
        >
          One that comes to be appears here by itself.
        </Notice>
      )}
      {ids.length === 0 && !isNarrow(filter) && (
        <Notice
          title="There are no tasks yet"
          action={
            may(viewer, "CREATE") && (
              <button type="button" className="button primary" onClick={onCreate}>
                <Plus />
                Create a test task
              </button>
            )
          }
        >
          The first one appears here by itself, as soon as a backend creates it.
        </Notice>
      )}
    </>
  );
}

function Refused({ problem, tryNow }: { problem: Problem; tryNow: React.ReactNode }) {
  const again = problem.kind === "unauthenticated" || problem.kind === "forbidden";
  return (
    <Notice
      tone="bad"
      title={again ? "This credential is not accepted" : "The list cannot be read"}
      action={
        again ? (
          <button type="button" className="button" onClick={signOut}>
            Sign in again
          </button>
        ) : (
          tryNow
        )
      }
    >
      {problem.message}
    </Notice>
  );
}
