import { useWindowVirtualizer } from "@tanstack/react-virtual";
import { type RefObject, useCallback, useEffect, useLayoutEffect, useRef, useState } from "react";

/** Rows of one height in a window that scrolls, which stay where they are while others come and go above them. */
export function useAnchoredRows(box: RefObject<HTMLElement | null>, ids: readonly string[], height: number) {
  const [margin, setMargin] = useState(0);
  const before = useRef(ids);
  const rows = useWindowVirtualizer({
    count: ids.length,
    estimateSize: () => height,
    overscan: 6,
    scrollMargin: margin,
    // What sticks to the top covers nothing that was scrolled to.
    scrollPaddingStart: 96,
    // The same function while nothing has changed: with another one all heights are added up anew.
    getItemKey: useCallback((index: number) => ids[index] ?? index, [ids]),
  });

  // What is above the rows may change its height, as when a chart is folded away.
  useLayoutEffect(() => {
    function measure(): void {
      if (box.current) setMargin(box.current.getBoundingClientRect().top + window.scrollY);
    }
    measure();
    const resize = new ResizeObserver(measure);
    resize.observe(document.body);
    return () => resize.disconnect();
  }, [box]);

  useEffect(() => rows.measure(), [rows, height]);

  useLayoutEffect(() => {
    const previous = before.current;
    before.current = ids;
    const scrolled = window.scrollY - margin;
    if (previous === ids || scrolled <= 0) return;
    const shift = shiftOf(previous, ids, Math.floor(scrolled / height));
    if (shift !== 0) window.scrollBy(0, shift * height);
  }, [ids, height, margin]);

  return { rows, margin };
}

/** By how many places the row at an index has moved; a row that has gone stands for by the next that is there. */
export function shiftOf(before: readonly string[], after: readonly string[], index: number): number {
  for (let at = index; at < Math.min(before.length, index + 50); at++) {
    const id = before[at];
    const now = id === undefined ? -1 : after.indexOf(id);
    if (now >= 0) return now - at;
  }
  return 0;
}
