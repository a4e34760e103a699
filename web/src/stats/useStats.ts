import { useEffect, useState } from "react";
import type { Api } from "../api/client";
import { STATS } from "../api/documents";
import { type ListFilter, filterToInput } from "../list/filter";

/** How many tasks there are in each status. */
export type Counts = Record<"PENDING" | "IN_PROGRESS" | "SUCCESS" | "FAILED" | "CANCELED", number>;

const EVERY_MS = 3_000;
// However long counting takes, the server does something else for most of the time.
const REST = 20;

/** The counts of all that the filter means, whatever its status, asked for again every few seconds. */
export function useStats(api: Api, filter: ListFilter): Counts | null {
  const [counts, setCounts] = useState<Counts | null>(null);
  const wanted = JSON.stringify(filterToInput({ ...filter, status: [] }));
  useEffect(() => {
    let over = false;
    let timer: ReturnType<typeof setTimeout>;
    async function ask(): Promise<void> {
      const began = performance.now();
      if (!document.hidden) {
        const { data } = await api.query.query(STATS, { filter: JSON.parse(wanted) as object }).toPromise();
        if (over) return;
        if (data) {
          const { pending, inProgress, success, failed, canceled } = data.stats;
          setCounts({
            PENDING: pending,
            IN_PROGRESS: inProgress,
            SUCCESS: success,
            FAILED: failed,
            CANCELED: canceled,
          });
        }
      }
      timer = setTimeout(() => void ask(), Math.max(EVERY_MS, REST * (performance.now() - began)));
    }
    void ask();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [api, wanted]);
  return counts;
}
