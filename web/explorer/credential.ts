// The credential is a header like any other, in the editor of headers, and the explorer keeps none of them.

// Where the dashboard has it; it ends with the tab.
const SIGNED_IN = "spectral.credential";

/** What the editor of headers begins with: the credential of the dashboard, where this tab has signed in. */
export const HEADERS = JSON.stringify({ Authorization: `Bearer ${sessionStorage.getItem(SIGNED_IN) ?? ""}` }, null, 2);

/** The headers as they are sent: without a credential that was not filled in, which the server would refuse. */
export function withoutBlankCredential(headers: Record<string, unknown>): Record<string, string> {
  const filled = Object.entries(headers).filter(
    ([name, value]) => !(name.toLowerCase() === "authorization" && /^\s*(Bearer)?\s*$/i.test(String(value))),
  );
  return Object.fromEntries(filled.map(([name, value]) => [name, String(value)]));
}
