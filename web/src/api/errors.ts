import type { CombinedError } from "@urql/core";

/** Why something did not work, in words for the person who looks, and what kind of reason it is. */
export interface Problem {
  kind: "unreachable" | "unauthenticated" | "forbidden" | "missing" | "outdated" | "refused" | "failed";
  message: string;
}

const KINDS: Record<string, Problem["kind"]> = {
  UNAUTHENTICATED: "unauthenticated",
  FORBIDDEN: "forbidden",
  TASK_NOT_FOUND: "missing",
  LIST_OUTDATED: "outdated",
  INTERNAL_SERVER_ERROR: "failed",
  UNAVAILABLE: "failed",
  RATE_LIMITED: "failed",
};

/** Reads a problem out of an error of a query or a mutation. */
export function problemOf(error: CombinedError): Problem {
  const first = error.graphQLErrors[0];
  if (first) return problemOfGraphQL(first);
  return { kind: "unreachable", message: "The server cannot be reached. It is tried again by itself." };
}

/** Reads a problem out of what a subscription ended with. */
export function problemOfEnd(error: unknown): Problem {
  const first: unknown = Array.isArray(error) ? error[0] : undefined;
  if (isGraphQLError(first)) return problemOfGraphQL(first);
  if (typeof error === "object" && error !== null && "code" in error && error.code === 4403) {
    return { kind: "unauthenticated", message: "The credential is not accepted any more." };
  }
  return { kind: "unreachable", message: "The live connection ended." };
}

function problemOfGraphQL(error: { message: string; extensions?: Record<string, unknown> }): Problem {
  const code = error.extensions?.code;
  const kind = (typeof code === "string" ? KINDS[code] : undefined) ?? "refused";
  return { kind, message: error.message };
}

function isGraphQLError(value: unknown): value is { message: string; extensions?: Record<string, unknown> } {
  return typeof value === "object" && value !== null && "message" in value && typeof value.message === "string";
}
