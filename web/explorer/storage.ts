// What the explorer keeps in the browser for good: tabs and history, and never their headers, which hold keys. GraphiQL's
// own setting for that forgets the history.

/** The browser's storage, for everything but headers. */
export const storage = {
  get length() {
    return localStorage.length;
  },
  getItem: (name: string) => localStorage.getItem(name),
  setItem: (name: string, value: string) => localStorage.setItem(name, withoutHeaders(value)),
  removeItem: (name: string) => localStorage.removeItem(name),
  clear: () => localStorage.clear(),
};

function withoutHeaders(value: string): string {
  try {
    const kept: unknown = JSON.parse(value, (name, part: unknown) => (name === "headers" ? undefined : part));
    return JSON.stringify(kept);
  } catch {
    // A text: a query, variables, a choice.
    return value;
  }
}
