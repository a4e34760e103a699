"""All that this library ever says to the server: one document for each operation.

A server that runs certain operations only (`SPECTRAL_OPERATIONS`) is given these.
"""

from typing import Final

CLAIM: Final = """
mutation Claim($queue: String!, $worker: String!, $limit: Int!, $leaseSeconds: Int!) {
  claim(queue: $queue, worker: $worker, limit: $limit, leaseSeconds: $leaseSeconds) {
    token
    attempt
    task { taskId metadata maxAttempts tags }
  }
}"""
HEARTBEAT: Final = """
mutation Heartbeat($taskId: ID!, $token: String!, $leaseSeconds: Int!) {
  heartbeat(taskId: $taskId, token: $token, leaseSeconds: $leaseSeconds) { task { status } }
}"""
RELEASE: Final = """
mutation Release($taskId: ID!, $token: String!) {
  release(taskId: $taskId, token: $token) { status }
}"""
UPDATE_PROGRESS: Final = """
mutation UpdateProgress($taskId: ID!, $progress: Int!, $token: String, $idempotencyKey: String) {
  updateProgress(taskId: $taskId, progress: $progress, token: $token, idempotencyKey: $idempotencyKey) { status }
}"""
ADD_EVENT: Final = """
mutation AddEvent($taskId: ID!, $event: EventInput!, $token: String, $idempotencyKey: String) {
  addEvent(taskId: $taskId, event: $event, token: $token, idempotencyKey: $idempotencyKey) { status }
}"""
COMPLETE: Final = """
mutation Complete($taskId: ID!, $metadata: JSON, $token: String, $idempotencyKey: String) {
  complete(taskId: $taskId, metadata: $metadata, token: $token, idempotencyKey: $idempotencyKey) { status }
}"""
FAIL: Final = """
mutation Fail($taskId: ID!, $error: String!, $retry: Boolean!, $token: String, $idempotencyKey: String) {
  fail(taskId: $taskId, error: $error, retry: $retry, token: $token, idempotencyKey: $idempotencyKey) { status }
}"""
QUEUE_READY: Final = """
subscription QueueReady($queue: String!) {
  queueReady(queue: $queue) { ready }
}"""
