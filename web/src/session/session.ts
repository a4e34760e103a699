// The credential lives in sessionStorage: it ends with the tab, and no other tab sees it but a duplicate.
const KEY = "spectral.credential";
const listeners = new Set<() => void>();

/** The credential that this tab was given, or null. */
export function credential(): string | null {
  return sessionStorage.getItem(KEY);
}

/** Signs in with a key or a token. */
export function signIn(value: string): void {
  sessionStorage.setItem(KEY, value);
  tell();
}

/** Forgets the credential. */
export function signOut(): void {
  sessionStorage.removeItem(KEY);
  tell();
}

/** Calls back when the credential changes; returns what ends that. */
export function onSessionChange(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(): void {
  for (const listener of listeners) listener();
}
