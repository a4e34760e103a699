import { useWindowVirtualizer } from "@tanstack/react-virtual";
import { useCallback, useEffect, useLayoutEffect, useRef, useState, useSyncExternalStore } from "react";
import type { TaskStatus } from "../api/documents";
import { useShortcut } from "../app/shortcuts";
import { count } from "../format/format";
import { useToday } from "../format/now";
import { focusRow } from "../ui/focusRow";
import { EventRow } from "./EventRow";
import type { EventLog } from "./events";

// Browsers do not make a page higher than some 17 million pixels.
const EVENTS_MAX = 250_000;
const ROW = 48;

type Order = "newest" | "oldest";

/** The history of a task: as high as all of it, with as many rows as fit on the screen. */
export function Timeline({ log, status }: { log: EventLog; status: TaskStatus }) {
  const version = useSyncExternalStore(log.onChange, log.version);
  const today = useToday();
  const [order, setOrder] = useState<Order>("newest");
  const [open, setOpen] = useState<ReadonlySet<number>>(new Set());
  const [margin, setMargin] = useState(0);
  const box = useRef<HTMLDivElement>(null);
  const size = log.size;
  const length = Math.min(size, EVENTS_MAX);
  // The same function while nothing has changed: with another one all heights are added up anew.
  const seqAt = useCallback((index: number) => (order === "newest" ? size - index : index + 1), [order, size]);
  const rows = useWindowVirtualizer({
    count: length,
    estimateSize: () => ROW,
    overscan: 6,
    scrollMargin: margin,
    scrollPaddingStart: 64,
    getItemKey: seqAt,
  });
  const shown = rows.getVirtualItems();
  const first = shown[0]?.index ?? 0;
  const last = shown.at(-1)?.index ?? 0;

  useEffect(() => {
    const [low, high] = order === "newest" ? [size - last, size - first] : [first + 1, last + 1];
    if (size > 0) log.want(Math.max(1, low), high);
  }, [log, order, size, first, last, version]);

  useLayoutEffect(() => {
    function measure(): void {
      if (box.current) setMargin(box.current.getBoundingClientRect().top + window.scrollY);
    }
    measure();
    const resize = new ResizeObserver(measure);
    resize.observe(document.body);
    return () => resize.disconnect();
  }, []);

  // New events come in above; what is being read stays where it is.
  const before = useRef({ size, order });
  useLayoutEffect(() => {
    const grown = before.current.order === order ? size - before.current.size : 0;
    before.current = { size, order };
    if (order === "newest" && grown > 0 && window.scrollY > margin) window.scrollBy(0, grown * ROW);
  }, [size, order, margin]);

  const toggle = useCallback((seq: number) => {
    setOpen((known) => {
      const next = new Set(known);
      if (!next.delete(seq)) next.add(seq);
      return next;
    });
  }, []);
  const again = useCallback((seq: number) => log.want(seq, seq, true), [log]);
  function step(by: number): void {
    const focused = document.activeElement?.closest<HTMLElement>("[data-index]");
    const at = focused && box.current?.contains(focused) ? Number(focused.dataset.index) + by : first;
    const to = Math.max(0, Math.min(length - 1, at));
    focusRow(box.current, `[data-index="${to}"]`, () => rows.scrollToIndex(to, { align: "auto" }));
  }
  useShortcut("j", () => step(1));
  useShortcut("k", () => step(-1));

  return (
    <section className="card timeline" aria-labelledby="timeline">
      <div className="timeline-head">
        <h2 id="timeline">
          History <span className="muted">{count(size)}</span>
        </h2>
        <label className="field-inline">
          <span className="visually-hidden">Order</span>
          <select className="input" value={order} onChange={(event) => setOrder(event.target.value as Order)}>
            <option value="newest">Newest first</option>
            <option value="oldest">Oldest first</option>
          </select>
        </label>
      </div>
      <div ref={box} className="events" role="feed" aria-label="Events" style={{ height: rows.getTotalSize() }}>
        {shown.map(({ index, start }) => {
          const seq = seqAt(index);
          return (
            <EventRow
              key={seq}
              ref={rows.measureElement}
              seq={seq}
              event={log.at(seq)}
              failed={log.failed(seq)}
              canceled={status === "CANCELED" && seq === size}
              index={index}
              total={size}
              top={start - margin}
              open={open.has(seq)}
              today={today}
              onToggle={toggle}
              onAgain={again}
            />
          );
        })}
      </div>
      {size > EVENTS_MAX && (
        <p className="table-foot">
          {count(EVENTS_MAX)} of {count(size)} events are shown here. The others are at the other end: change the order.
        </p>
      )}
    </section>
  );
}
