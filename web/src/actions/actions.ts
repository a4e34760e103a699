import type { AnyVariables, DocumentInput } from "@urql/core";
import type { Api } from "../api/client";
import { CANCEL, CREATE, DELETE, type TaskOptionsInput } from "../api/documents";
import { type Problem, problemOf } from "../api/errors";

const UNREACHED = "The server cannot be reached, so nobody knows whether it was done. Try again.";

/** What a test task begins with. */
export interface NewTask {
  taskId: string;
  metadata: unknown;
  options: TaskOptionsInput;
}

/** Creates a task; answers why not, if not. */
export function createTask(api: Api, task: NewTask): Promise<Problem | null> {
  return run(api, CREATE, { ...task });
}

/** Cancels a task. A second press of the button, or a retry of the network, cancels nothing else. */
export function cancelTask(api: Api, taskId: string, seq: number): Promise<Problem | null> {
  return run(api, CANCEL, { taskId, idempotencyKey: `dashboard-cancel-${seq}` });
}

/** Deletes a task with its history. */
export function deleteTask(api: Api, taskId: string): Promise<Problem | null> {
  return run(api, DELETE, { taskId });
}

async function run<Data, Variables extends AnyVariables>(
  api: Api,
  document: DocumentInput<Data, Variables>,
  variables: Variables,
): Promise<Problem | null> {
  const { error } = await api.query.mutation(document, variables).toPromise();
  const problem = error ? problemOf(error) : null;
  // Nobody repeats it but whoever asked for it.
  return problem?.kind === "unreachable" ? { ...problem, message: UNREACHED } : problem;
}
