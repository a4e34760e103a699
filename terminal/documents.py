"""All that the command line ever says to the server.

A server that runs certain operations only (`SPECTRAL_OPERATIONS`) is given these.
"""

from typing import Final

_EVENT: Final = "seq eventType message progress metadata timestamp actor"
_STATE: Final = """
    taskId status progress metadata seq createdBy createdAt updatedAt startedAt completedAt failedAt canceledAt
    tags queue priority startAt dependsOn blockedBy attempt maxAttempts nextAttemptAt worker leaseExpiresAt stale
    expiresAt deleteAt
"""
_TASK: Final = f"{_STATE} lastEvent {{ {_EVENT} }}"

CREATE: Final = f"""
mutation TerminalCreate($taskId: ID!, $metadata: JSON, $options: TaskOptions) {{
  create(taskId: $taskId, metadata: $metadata, options: $options) {{ {_TASK} }}
}}"""
ADD_EVENT: Final = f"""
mutation TerminalAddEvent($taskId: ID!, $event: EventInput!, $idempotencyKey: String) {{
  addEvent(taskId: $taskId, event: $event, idempotencyKey: $idempotencyKey) {{ {_TASK} }}
}}"""
UPDATE_PROGRESS: Final = f"""
mutation TerminalUpdateProgress($taskId: ID!, $progress: Int!, $idempotencyKey: String) {{
  updateProgress(taskId: $taskId, progress: $progress, idempotencyKey: $idempotencyKey) {{ {_TASK} }}
}}"""
COMPLETE: Final = f"""
mutation TerminalComplete($taskId: ID!, $metadata: JSON, $idempotencyKey: String) {{
  complete(taskId: $taskId, metadata: $metadata, idempotencyKey: $idempotencyKey) {{ {_TASK} }}
}}"""
FAIL: Final = f"""
mutation TerminalFail($taskId: ID!, $error: String!, $metadata: JSON, $idempotencyKey: String) {{
  fail(taskId: $taskId, error: $error, metadata: $metadata, idempotencyKey: $idempotencyKey) {{ {_TASK} }}
}}"""
CANCEL: Final = f"""
mutation TerminalCancel($taskId: ID!, $metadata: JSON, $idempotencyKey: String) {{
  cancel(taskId: $taskId, metadata: $metadata, idempotencyKey: $idempotencyKey) {{ {_TASK} }}
}}"""
DELETE: Final = "mutation TerminalDelete($taskId: ID!) { delete(taskId: $taskId) }"
CREATE_MANY: Final = "mutation TerminalCreateMany($tasks: [NewTask!]!) { createMany(tasks: $tasks) { taskId } }"
TASK: Final = f"query TerminalTask($taskId: ID!) {{ task(taskId: $taskId) {{ {_TASK} }} }}"
SHOW: Final = f"""
query TerminalShow($taskId: ID!, $last: Int!) {{
  task(taskId: $taskId) {{ {_TASK} history(last: $last) {{ {_EVENT} }} }}
}}"""
TASKS: Final = f"""
query TerminalTasks($first: Int!, $after: String, $filter: TaskFilter) {{
  tasks(first: $first, after: $after, filter: $filter) {{
    nodes {{ {_TASK} }}
    pageInfo {{ hasNextPage endCursor }}
  }}
}}"""
# What a table shows: no metadata, which may be long.
ROWS: Final = """
query TerminalRows($first: Int!, $after: String, $filter: TaskFilter) {
  tasks(first: $first, after: $after, filter: $filter) {
    nodes {
      taskId status progress createdAt updatedAt tags queue attempt maxAttempts stale lastEvent { eventType message }
    }
    pageInfo { hasNextPage endCursor }
  }
}"""
IDS: Final = """
query TerminalIds($first: Int!, $filter: TaskFilter) {
  tasks(first: $first, filter: $filter) { nodes { taskId status } }
}"""
TASK_UPDATES: Final = f"""
subscription TerminalTaskUpdates($taskId: ID!, $afterSeq: Int) {{
  taskUpdates(taskId: $taskId, afterSeq: $afterSeq) {{ type task {{ {_TASK} }} events {{ {_EVENT} }} }}
}}"""
TASKS_UPDATED: Final = f"""
subscription TerminalTasksUpdated($filter: TaskFilter) {{
  tasksUpdated(filter: $filter) {{ type task {{ {_STATE} }} events {{ {_EVENT} }} }}
}}"""
REPORT: Final = """
mutation TerminalReport($reports: [TaskReport!]!) {
  report(reports: $reports) { taskId error { code message } }
}"""
