import { lazy, Suspense, useEffect, useState } from "react";
import { useSocketState } from "../api/context";
import { Chevron } from "../ui/icons";
import { STEP_MS, type Throughput } from "./throughput";

// The chart library comes when somebody looks at a chart.
const Chart = lazy(() => import("./Chart"));
const KEY = "spectral.chart";

/** Throughput as this page saw it, which can be folded away. */
export function ThroughputPanel({ throughput }: { throughput: Throughput }) {
  const [open, setOpen] = useState(() => (localStorage.getItem(KEY) ?? (narrow() ? "closed" : "open")) === "open");
  const live = useSocketState() === "live";
  const [columns, setColumns] = useState(() => throughput.columns(Date.now()));

  useEffect(() => {
    const timer = setInterval(() => {
      const now = Date.now();
      if (live) throughput.alive(now);
      if (!document.hidden && open) setColumns(throughput.columns(now));
    }, STEP_MS / 2);
    return () => clearInterval(timer);
  }, [throughput, live, open]);

  function toggle(): void {
    localStorage.setItem(KEY, open ? "closed" : "open");
    setOpen(!open);
  }

  const rates = columns.slice(1).map((column) => column.at(-1));
  return (
    <section className="throughput" aria-label="Throughput">
      <button type="button" className="fold" aria-expanded={open} onClick={toggle}>
        <Chevron />
        Throughput
        <span className="fold-note">as this page saw it</span>
      </button>
      {open && (
        <>
          <dl className="legend">
            {NAMES.map((name, at) => (
              <div key={name} data-series={at}>
                <dt>{name}</dt>
                <dd>{typeof rates[at] === "number" ? `${round(rates[at])}/s` : "–"}</dd>
              </div>
            ))}
          </dl>
          <div className="chart">
            <Suspense fallback={null}>
              <Chart columns={columns} />
            </Suspense>
          </div>
        </>
      )}
    </section>
  );
}

/** A phone has its list first. */
function narrow(): boolean {
  return window.matchMedia("(max-width: 48rem)").matches;
}

const NAMES = ["Changes", "Succeeded", "Failed"];

function round(rate: number): string {
  return rate >= 100 || rate === 0 ? rate.toFixed(0) : rate.toFixed(1);
}
