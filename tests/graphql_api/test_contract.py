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

    type Query {
      task(taskId: ID!): Task
      tasks(first: Int = 50, after: String, filter: TaskFilter): TaskConnection!
      viewer: Viewer!
    }

    type Mutation {
      create(taskId: ID!, status: TaskStatus = PENDING, progress: Int = 0, metadata: JSON): Task!
      addEvent(taskId: ID!, event: EventInput!, idempotencyKey: String): Task!
      updateProgress(taskId: ID!, progress: Int!, idempotencyKey: String): Task!
      complete(taskId: ID!, metadata: JSON, idempotencyKey: String): Task!
      fail(taskId: ID!, error: String!, metadata: JSON, idempotencyKey: String): Task!
      cancel(taskId: ID!, metadata: JSON, idempotencyKey: String): Task!
      delete(taskId: ID!): ID!
      createTaskToken(taskId: ID!, scope: TokenScope!, expiresInSeconds: Int = 3600): TaskToken!
    }

    type Subscription {
      taskUpdates(taskId: ID!, afterSeq: Int): TaskUpdate!
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
    input TaskFilter { status: [TaskStatus!] }
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
