// How the explorer asks: queries and mutations by POST, subscriptions by a socket that speaks graphql-transport-ws. The
// headers of the tab go with both; a socket takes them in its greeting, because a browser lets a page set no others.
import { Kind, OperationTypeNode, parse, type OperationDefinitionNode } from "graphql";
import { createClient } from "graphql-ws";
import { withoutBlankCredential } from "./credential";

/** What GraphiQL asks for. */
export interface Asked {
  query: string;
  operationName?: string | null | undefined;
  variables?: unknown;
}

/** What it knows beside. */
export interface Known {
  headers?: Record<string, unknown> | undefined;
}

const PATH = "/graphql";
const FORBIDDEN = 4403;

/** The answer to a query or a mutation, or the answers to a subscription for as long as they are wanted. */
export function ask(asked: Asked, known: Known = {}) {
  const headers = withoutBlankCredential(known.headers ?? {});
  const operation = meant(asked);
  const named = { ...asked, operationName: operation?.name?.value };
  return operation?.operation === OperationTypeNode.SUBSCRIPTION ? watch(named, headers) : post(named, headers);
}

/**
 * The operation that is asked for: the only one there is, or the one of that name. For a moment after another tab is
 * chosen, what GraphiQL knows of the document, and the name that it asks for, are still of the tab before.
 */
function meant({ query, operationName }: Asked): OperationDefinitionNode | undefined {
  const operations = operationsOf(query);
  if (operations.length === 1) return operations[0];
  return operations.find(({ name }) => name && name.value === operationName);
}

function operationsOf(query: string): OperationDefinitionNode[] {
  try {
    return parse(query).definitions.filter((definition) => definition.kind === Kind.OPERATION_DEFINITION);
  } catch {
    // The server says what is wrong with it.
    return [];
  }
}

async function post(asked: Asked, headers: Record<string, string>): Promise<unknown> {
  const response = await fetch(PATH, {
    method: "POST",
    headers: { Accept: "application/json", "Content-Type": "application/json", ...headers },
    body: JSON.stringify(asked),
  });
  // Refusals are JSON too, with a message that says what was wrong.
  const isJson = response.headers.get("Content-Type")?.includes("json") ?? false;
  return isJson ? response.json() : { errors: [{ message: `The server answered ${response.status}.` }] };
}

async function* watch(asked: Asked, headers: Record<string, string>): AsyncGenerator {
  // A socket for each subscription: it is greeted with the headers that its tab has now.
  const client = createClient({
    url: `${location.protocol.replace("http", "ws")}//${location.host}${PATH}`,
    connectionParams: headers,
    retryAttempts: Infinity,
    // A credential that is refused is refused again.
    shouldRetry: (problem) => !(problem instanceof CloseEvent && problem.code === FORBIDDEN),
  });
  try {
    const { query, operationName, variables } = asked;
    yield* client.iterate({ query, operationName, variables: variables as Record<string, unknown> });
  } catch (error) {
    if (!(error instanceof CloseEvent)) throw error;
    yield { errors: [{ message: `The socket was closed with ${error.code}: ${error.reason || "no reason was given"}.` }] };
  } finally {
    void client.dispose();
  }
}
