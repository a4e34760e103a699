import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { useDark } from "../theme/theme";
import type { Columns } from "./throughput";

const HEIGHT = 120;
// Labels are this far apart, in seconds; the narrowest for which there is room.
const LABELS = [15, 30, 60, 120];
const ROOM = 72;
const time = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" } as const;
const minute = new Intl.DateTimeFormat(undefined, time);
const second = new Intl.DateTimeFormat(undefined, { ...time, second: "2-digit" });

/** Draws the columns. What it shows is said in words beside it. */
export default function Chart({ columns }: { columns: Columns }) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(null);
  const latest = useRef(columns);
  const dark = useDark();

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const made = new uPlot(optionsFor(element), latest.current, element);
    plot.current = made;
    const resize = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    resize.observe(element);
    return () => {
      resize.disconnect();
      made.destroy();
      plot.current = null;
    };
    // The colours are read when the chart is made.
  }, [dark]);

  useEffect(() => {
    latest.current = columns;
    plot.current?.setData(columns);
  }, [columns]);

  return <div ref={box} role="img" aria-label="Changes, successes and failures per second since this page was opened, in the last five minutes" />;
}

function optionsFor(element: HTMLElement): uPlot.Options {
  const colour = (name: string): string => {
    // A canvas does not know `light-dark()`; a computed colour it does.
    element.style.color = `var(${name})`;
    const value = getComputedStyle(element).color;
    element.style.color = "";
    return value;
  };
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
  const line = { width: 1.5, points: { show: false }, spanGaps: false };
  return {
    width: element.clientWidth,
    height: HEIGHT,
    cursor: { show: false },
    legend: { show: false },
    padding: [8, 8, 0, 0],
    scales: { y: { range: (_, __, max) => [0, Math.max(1, max * 1.15)] } },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 24,
        incrs: LABELS,
        space: ROOM,
        values: (_, times, __, ___, step) => times.map((at) => (step < 60 ? second : minute).format(at * 1_000)),
      },
      { ...axis, grid, size: 40, space: 32 },
    ],
    series: [
      {},
      { ...line, stroke: colour("--accent"), fill: colour("--accent-wash") },
      { ...line, stroke: colour("--success") },
      { ...line, stroke: colour("--failed") },
    ],
  };
}
