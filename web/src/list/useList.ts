import { useEffect, useState } from "react";
import type { Api } from "../api/client";
import { Throughput } from "../stats/throughput";
import { filterFromQuery } from "./filter";
import { ListFeed } from "./feed";

/** A list with its feed, and where its page was scrolled to. */
export interface KeptList {
  api: Api;
  query: string;
  feed: ListFeed;
  throughput: Throughput;
  scrollY: number;
}

// The last list stays, so that whoever comes back from a task finds it where it was.
let kept: KeptList | null = null;

/** The list for a query of the URL, followed while the component is there. */
export function useList(api: Api, query: string): KeptList {
  // Made anew by the key of the component when the query changes.
  const [list] = useState(() => {
    if (kept?.api !== api || kept.query !== query) kept = make(api, query);
    return kept;
  });
  useEffect(() => list.feed.start(), [list]);
  return list;
}

function make(api: Api, query: string): KeptList {
  const throughput = new Throughput(Date.now());
  const feed = new ListFeed(api, filterFromQuery(query), (batch) => throughput.add(batch, Date.now()));
  return { api, query, feed, throughput, scrollY: 0 };
}
