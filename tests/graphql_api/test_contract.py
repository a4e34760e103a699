"""The names, arguments, defaults and nullability that clients were promised. The schema may hold more, never less."""

from pathlib import Path
from typing import Any, Final

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    build_schema,
    is_specified_scalar_type,
    print_ast,
)
from graphql.type import is_introspection_type

from graphql_api.schema import sdl

SCHEMA_FILE: Final = Path(__file__).parents[2] / "schema.graphql"

# This is written by hand and changes only when a promise is added.
PROMISED: Final = build_schema("""
    scalar DateTime
    scalar JSON

    enum TaskStatus { PENDING IN_PROGRESS SUCCESS FAILED CANCELED }
    enum EventType { LOG PROGRESS ERROR SUCCESS }
    enum TaskUpdateType { SNAPSHOT EVENT PROGRESS COMPLETE FAIL CANCEL DELETE }
    enum TokenScope { READ REPORT }
    enum Permission { READ REPORT CREATE LIST DELETE ADMIN }
    enum OnDependencyFailure { CANCEL IGNORE }

    type Query {
      task(taskId: ID!): Task
      tasks(first: Int = 50, after: String, filter: TaskFilter): TaskConnection!
      stats(filter: TaskFilter): TaskStats!
      viewer: Viewer!
    }

    type Mutation {
      create(taskId: ID!, status: TaskStatus = PENDING, progress: Int = 0, metadata: JSON, options: TaskOptions): Task!
      addEvent(taskId: ID!, event: EventInput!, idempotencyKey: String, token: String): Task!
      updateProgress(taskId: ID!, progress: Int!, idempotencyKey: String, token: String): Task!
      complete(taskId: ID!, metadata: JSON, idempotencyKey: String, token: String): Task!
      fail(taskId: ID!, error: String!, metadata: JSON, idempotencyKey: String, token: String): Task!
      cancel(taskId: ID!, metadata: JSON, idempotencyKey: String, token: String): Task!
      delete(taskId: ID!): ID!
      createMany(tasks: [NewTask!]!): [Task!]!
      report(reports: [TaskReport!]!): [ReportResult!]!
      deleteMany(filter: TaskFilter!): Int!
      claim(queue: String = "default", worker: String!, limit: Int = 1, leaseSeconds: Int = 60): [Claim!]!
      heartbeat(taskId: ID!, token: String!, leaseSeconds: Int = 60): Claim!
      release(taskId: ID!, token: String!): Task!
      createTaskToken(taskId: ID!, scope: TokenScope!, expiresInSeconds: Int = 3600): TaskToken!
    }

    type Subscription {
      taskUpdates(taskId: ID!, afterSeq: Int): TaskUpdate!
      queueReady(queue: String = "default"): QueueReady!
    }

    type Task {
      id: ID!
      taskId: ID!
      status: TaskStatus!
      progress: Int!
      metadata: JSON
      seq: Int!
      lastEvent: TaskEvent!
      history(first: Int, last: Int, after: Int, before: Int): [TaskEvent!]!
      createdBy: String
      createdAt: DateTime!
      updatedAt: DateTime!
      startedAt: DateTime
      completedAt: DateTime
      failedAt: DateTime
      canceledAt: DateTime
      tags: [String!]!
      queue: String
      priority: Int!
      startAt: DateTime
      dependsOn: [ID!]!
      blockedBy: [ID!]!
      attempt: Int!
      maxAttempts: Int!
      nextAttemptAt: DateTime
      worker: String
      leaseExpiresAt: DateTime
      stale: Boolean!
      expiresAt: DateTime
      deleteAt: DateTime
    }

    type TaskToken {
      token: String!
      expiresAt: DateTime!
    }

    type TaskEvent {
      id: ID!
      seq: Int!
      eventType: EventType!
      message: String!
      progress: Int
      metadata: JSON
      timestamp: DateTime!
      actor: String
    }

    input EventInput { eventType: EventType! message: String! progress: Int metadata: JSON }
    type TaskUpdate { type: TaskUpdateType! task: Task! events: [TaskEvent!]! }

    type TaskConnection { edges: [TaskEdge!]! nodes: [Task!]! pageInfo: PageInfo! totalCount: Int! }
    type TaskEdge { cursor: String! node: Task! }
    type PageInfo { hasNextPage: Boolean! hasPreviousPage: Boolean! startCursor: String endCursor: String }
    input TaskFilter {
      status: [TaskStatus!]
      createdBy: String
      tags: [String!]
      queue: String
      taskIdPrefix: String
      metadata: JSON
      createdAfter: DateTime
      createdBefore: DateTime
      updatedAfter: DateTime
      stale: Boolean
    }
    type TaskStats { total: Int! pending: Int! inProgress: Int! success: Int! failed: Int! canceled: Int! }
    input TaskOptions {
      tags: [String!]
      queue: String
      priority: Int
      startAt: DateTime
      dependsOn: [ID!]
      onDependencyFailure: OnDependencyFailure = CANCEL
      retry: RetryInput
      expiresAt: DateTime
      keepForSeconds: Int
    }
    input RetryInput { maxAttempts: Int! initialDelaySeconds: Int = 10 maxDelaySeconds: Int = 3600 factor: Float = 2 }
    input NewTask { taskId: ID! status: TaskStatus progress: Int metadata: JSON options: TaskOptions }
    input TaskReport {
      taskId: ID!
      event: EventInput
      progress: Int
      complete: Boolean
      fail: String
      cancel: Boolean
      metadata: JSON
      idempotencyKey: String
      token: String
    }
    type ReportResult { taskId: ID! task: Task error: ReportError }
    type ReportError { code: String! message: String! }
    type Claim { task: Task! token: String! attempt: Int! expiresAt: DateTime! }
    type QueueReady { queue: String! ready: Int! }
    type Viewer { name: String authenticated: Boolean! permissions: [Permission!]! }
""")

KEPT: Final = build_schema(SCHEMA_FILE.read_text())


def own_types(schema: GraphQLSchema) -> dict[str, GraphQLNamedType]:
    """The types that a schema brings along, beside those that every schema has."""
    return {
        name: kind
        for name, kind in schema.type_map.items()
        if not is_introspection_type(kind) and not is_specified_scalar_type(kind)
    }


def members(kind: GraphQLNamedType) -> dict[str, Any]:
    """What a type is made of: fields, input fields or values, by name."""
    match kind:
        case GraphQLObjectType() | GraphQLInputObjectType():
            return dict(kind.fields)
        case GraphQLEnumType():
            return dict(kind.values)
        case _:
            assert isinstance(kind, GraphQLScalarType)
            return {}


def shape(value: Any) -> tuple[str, str | None]:
    """The type of an argument or an input field, and its default as it is written."""
    default = value.ast_node.default_value
    return str(value.type), None if default is None else print_ast(default)


@pytest.mark.parametrize("name", own_types(PROMISED))
def test_the_schema_keeps_what_was_promised_of(name: str) -> None:
    promised, kept = PROMISED.type_map[name], KEPT.type_map[name]
    assert type(kept) is type(promised)
    for member_name, member in members(promised).items():
        found = members(kept).get(member_name)
        assert found is not None, f"{name}.{member_name} is gone"
        if isinstance(promised, GraphQLObjectType):
            assert str(found.type) == str(member.type), f"{name}.{member_name}"
            for argument_name, argument in member.args.items():
                assert argument_name in found.args, f"{name}.{member_name}({argument_name}) is gone"
                assert shape(found.args[argument_name]) == shape(argument), f"{name}.{member_name}({argument_name})"
        elif isinstance(promised, GraphQLInputObjectType):
            assert shape(found) == shape(member), f"{name}.{member_name}"


def test_nothing_that_was_added_is_required_of_clients() -> None:
    def required(value: Any) -> bool:
        return str(value.type).endswith("!") and value.ast_node.default_value is None

    for name, promised in own_types(PROMISED).items():
        for member_name, member in members(promised).items():
            kept = members(KEPT.type_map[name])[member_name]
            added = kept.args.keys() - member.args.keys() if isinstance(promised, GraphQLObjectType) else set()
            assert not [argument for argument in added if required(kept.args[argument])], f"{name}.{member_name}"
        if isinstance(promised, GraphQLInputObjectType):
            fields = members(KEPT.type_map[name])
            assert not [field for field in fields.keys() - members(promised).keys() if required(fields[field])], name


def test_everything_in_the_schema_is_described() -> None:
    silent: list[str] = []
    for name, kind in own_types(KEPT).items():
        if not kind.description:
            silent.append(name)
        for member_name, member in members(kind).items():
            if not member.description:
                silent.append(f"{name}.{member_name}")
            if isinstance(kind, GraphQLObjectType):
                silent += [
                    f"{name}.{member_name}({argument_name})"
                    for argument_name, argument in member.args.items()
                    if not argument.description
                ]
    assert silent == []


def test_the_kept_schema_is_the_one_that_is_served() -> None:
    assert SCHEMA_FILE.read_text() == sdl()
