// The credential is a header like any other, in the editor of headers; nothing here keeps it.

/** What the editor of headers begins with. */
export const HEADERS = JSON.stringify({ Authorization: "Bearer " }, null, 2);

/** The headers as they are sent: without a credential that was not filled in, which the server would refuse. */
export function withoutBlankCredential(headers: Record<string, unknown>): Record<string, string> {
  const filled = Object.entries(headers).filter(
    ([name, value]) => !(name.toLowerCase() === "authorization" && /^\s*(Bearer)?\s*$/i.test(String(value))),
  );
  return Object.fromEntries(filled.map(([name, value]) => [name, String(value)]));
}
