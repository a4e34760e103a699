import { type KeyboardEvent, useEffect, useLayoutEffect, useRef, useState, useSyncExternalStore } from "react";
import { useShortcut } from "../app/shortcuts";
import { count } from "../format/format";
import { Up } from "../ui/icons";
import { focusRow } from "../ui/focusRow";
import { useMedia } from "../ui/useMedia";
import { ROWS_MAX } from "./store";
import { TaskRow } from "./TaskRow";
import { useAnchoredRows } from "./useAnchoredRows";
import type { KeptList } from "./useList";

const ROW = 44;
const ROW_NARROW = 84;
// The next page is read when so many rows are left below.
const AHEAD = 40;

/** The rows: as many of them as fit on the screen exist. */
export function TaskTable({ kept }: { kept: KeptList }) {
  const { feed } = kept;
  const { ids, hasMore } = useSyncExternalStore(feed.list.onView, feed.list.view);
  const height = useMedia("(max-width: 48rem)") ? ROW_NARROW : ROW;
  const box = useRef<HTMLDivElement>(null);
  const { rows, margin } = useAnchoredRows(box, ids, height);
  const shown = rows.getVirtualItems();
  const last = shown.at(-1)?.index ?? 0;

  useEffect(() => {
    if (hasMore && last >= ids.length - AHEAD && ids.length < ROWS_MAX) void feed.readMore();
  }, [feed, hasMore, last, ids]);

  // Back from a task, the list is where it was.
  useLayoutEffect(() => {
    window.scrollTo(0, kept.scrollY);
    const scrolled = (): void => {
      kept.scrollY = window.scrollY;
    };
    window.addEventListener("scroll", scrolled, { passive: true });
    return () => window.removeEventListener("scroll", scrolled);
  }, [kept]);

  function focus(index: number): void {
    const to = Math.max(0, Math.min(ids.length - 1, index));
    focusRow(box.current, `[data-index="${to}"] a`, () => rows.scrollToIndex(to, { align: "auto" }));
  }
  function current(): number | null {
    const row = document.activeElement?.closest<HTMLElement>("[data-index]");
    return row && box.current?.contains(row) ? Number(row.dataset.index) : null;
  }
  function firstSeen(): number {
    return Math.max(0, Math.ceil((window.scrollY - margin) / height));
  }
  function step(by: number): void {
    const at = current();
    focus(at === null ? firstSeen() : at + by);
  }
  function pressed(event: KeyboardEvent): void {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    step(by);
  }
  useShortcut("j", () => step(1));
  useShortcut("k", () => step(-1));

  return (
    <>
      <NewAbove ids={ids} margin={margin} />
      {/* The arrows are a shortcut; each row has a link of its own. */}
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-element-interactions */}
      <div role="table" aria-label="Tasks" className="table" aria-rowcount={hasMore ? -1 : ids.length + 1} onKeyDown={pressed}>
        <div role="rowgroup" className="table-head">
          <div role="row" className="row head" aria-rowindex={1}>
            {["Status", "Task", "Progress", "Last event", "Queue", "Updated"].map((name) => (
              <span key={name} role="columnheader" className={`cell-${HEADS[name]}`}>
                {name}
              </span>
            ))}
          </div>
        </div>
        <div role="rowgroup" ref={box} className="rows" style={{ height: rows.getTotalSize() }}>
          {shown.map(({ key, index, start }) => (
            <TaskRow
              key={key}
              list={feed.list}
              id={ids[index] ?? ""}
              index={index}
              top={start - margin}
              height={height}
            />
          ))}
        </div>
      </div>
      <p className="table-foot" role="status">
        {hasMore
          ? ids.length < ROWS_MAX
            ? "Older tasks are read as you scroll."
            : `${count(ids.length)} tasks are loaded, which is as many as this page holds. Narrow the list with the filters to see older ones.`
          : `${count(ids.length)} ${ids.length === 1 ? "task" : "tasks"}, all of them.`}
      </p>
    </>
  );
}

const HEADS: Record<string, string> = {
  Status: "status",
  Task: "task",
  Progress: "progress",
  "Last event": "event",
  Queue: "queue",
  Updated: "age",
};

/** How many tasks came in above what is being read, and a way up to them. */
function NewAbove({ ids, margin }: { ids: readonly string[]; margin: number }) {
  const [top, setTop] = useState<string | null>(null);
  useEffect(() => {
    const scrolled = (): void => setTop((known) => (window.scrollY <= margin ? null : (known ?? ids[0] ?? null)));
    window.addEventListener("scroll", scrolled, { passive: true });
    return () => window.removeEventListener("scroll", scrolled);
  }, [ids, margin]);
  if (top === null) return null;
  const above = ids.indexOf(top);
  return (
    <div className="new-above">
      <button
        type="button"
        className="button primary"
        onClick={() => window.scrollTo({ top: 0 })}
      >
        <Up />
        {above > 0 ? `${count(above)} new` : "To the top"}
      </button>
    </div>
  );
}
