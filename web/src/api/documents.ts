import type { ResultOf, VariablesOf } from "gql.tada";
import { graphql } from "./graphql";

const summary = graphql(`
  fragment Summary on Task @_unmask {
    id
    taskId
    status
    progress
    seq
    tags
    queue
    attempt
    maxAttempts
    stale
    createdAt
    updatedAt
    lastEvent {
      eventType
      message
    }
  }
`);

const detail = graphql(`
  fragment Detail on Task @_unmask {
    id
    taskId
    status
    progress
    metadata
    seq
    createdBy
    createdAt
    updatedAt
    startedAt
    completedAt
    failedAt
    canceledAt
    tags
    queue
    priority
    startAt
    dependsOn
    blockedBy
    attempt
    maxAttempts
    nextAttemptAt
    worker
    leaseExpiresAt
    stale
    expiresAt
    deleteAt
  }
`);

const event = graphql(`
  fragment Event on TaskEvent @_unmask {
    id
    seq
    eventType
    message
    progress
    metadata
    timestamp
    actor
  }
`);

/** Who the credential belongs to, and what it allows. */
export const VIEWER = graphql(`
  query Viewer {
    viewer {
      name
      authenticated
      permissions
      taskId
    }
  }
`);

/** A page of the list, newest first. */
export const TASKS = graphql(
  `
    query Tasks($first: Int!, $after: String, $filter: TaskFilter) {
      tasks(first: $first, after: $after, filter: $filter) {
        edges {
          cursor
          node {
            ...Summary
          }
        }
        pageInfo {
          hasNextPage
        }
      }
    }
  `,
  [summary],
);

/** Every change of the tasks that the list is about. */
export const TASKS_UPDATED = graphql(
  `
    subscription TasksUpdated($filter: TaskFilter) {
      tasksUpdated(filter: $filter) {
        type
        task {
          ...Summary
        }
      }
    }
  `,
  [summary],
);

/** How many tasks are in each status. */
export const STATS = graphql(`
  query Stats($filter: TaskFilter) {
    stats(filter: $filter) {
      pending
      inProgress
      success
      failed
      canceled
    }
  }
`);

/** One task, with all that its page shows. */
export const TASK = graphql(
  `
    query Task($taskId: ID!) {
      task(taskId: $taskId) {
        ...Detail
      }
    }
  `,
  [detail],
);

/** Part of a task's history: the events after one number and before another. */
export const HISTORY = graphql(
  `
    query History($taskId: ID!, $first: Int!, $after: Int!, $before: Int!) {
      task(taskId: $taskId) {
        createdAt
        history(first: $first, after: $after, before: $before) {
          ...Event
        }
      }
    }
  `,
  [event],
);

/** The fields that a task's page shows beside those that are always there, for its subscription. */
export const DETAIL_FIELDS = `metadata createdBy startedAt completedAt failedAt canceledAt tags queue priority startAt
  dependsOn blockedBy attempt maxAttempts nextAttemptAt worker leaseExpiresAt stale expiresAt deleteAt`;

/** Creates a task. */
export const CREATE = graphql(`
  mutation Create($taskId: ID!, $metadata: JSON, $options: TaskOptions) {
    create(taskId: $taskId, metadata: $metadata, options: $options) {
      id
    }
  }
`);

/** Ends a task that nobody wants any more. */
export const CANCEL = graphql(`
  mutation Cancel($taskId: ID!, $idempotencyKey: String!) {
    cancel(taskId: $taskId, idempotencyKey: $idempotencyKey) {
      id
      status
      seq
    }
  }
`);

/** Removes a task with its history. */
export const DELETE = graphql(`
  mutation Delete($taskId: ID!) {
    delete(taskId: $taskId)
  }
`);

/** A task as the list shows it. */
export type TaskSummary = ResultOf<typeof TASKS>["tasks"]["edges"][number]["node"];
/** A message of the live list. */
export type TaskSummaryUpdate = ResultOf<typeof TASKS_UPDATED>["tasksUpdated"];
/** A task as its page shows it. */
export type TaskDetail = NonNullable<ResultOf<typeof TASK>["task"]>;
/** A line of a task's history. */
export type TaskEvent = NonNullable<ResultOf<typeof HISTORY>["task"]>["history"][number];
/** Where a task is in its life. */
export type TaskStatus = TaskSummary["status"];
/** What an event says about the work. */
export type EventType = TaskEvent["eventType"];
/** Who is looking. */
export type Viewer = ResultOf<typeof VIEWER>["viewer"];
/** What a caller may do. */
export type Permission = Viewer["permissions"][number];
/** Which tasks of a list are meant, as the API takes it. */
export type TaskFilterInput = NonNullable<VariablesOf<typeof TASKS>["filter"]>;
/** What a page of the list is asked for with. */
export type TaskPageVariables = VariablesOf<typeof TASKS>;
/** What a new task is asked for. */
export type TaskOptionsInput = NonNullable<VariablesOf<typeof CREATE>["options"]>;
