/** Focuses what a row has to focus, at once if it exists, or when scrolling has brought it into being. */
export function focusRow(box: HTMLElement | null, selector: string, bring: () => void): void {
  const there = box?.querySelector<HTMLElement>(selector);
  bring();
  if (there) {
    there.focus({ preventScroll: true });
    return;
  }
  requestAnimationFrame(() => requestAnimationFrame(() => box?.querySelector<HTMLElement>(selector)?.focus()));
}
