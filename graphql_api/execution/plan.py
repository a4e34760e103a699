"""Plans: a document parsed, checked and validated once, however often it is sent.

Running a plan is graphql-core's work, with the execution context that Strawberry gives it. Both kinds of endpoint run
operations through here, so that an operation means the same on each.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, cast

import strawberry
from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    execute,
    located_error,
    parse,
    subscribe,
    validate,
)
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from graphql_api.context import Context
from graphql_api.errors import ParseFailed, ValidationFailed, present, refusal
from graphql_api.execution.documents import TOKENS_MAX, check_document, check_size
from storage import BadInput, Refusal

# Plans that are kept. A plan keeps a parsed document, which is some fifty times as large as its text.
PLANS_MAX: Final = 500
PLANNED_CHARACTERS_MAX: Final = 1_000_000
# Enough to mend a document by; finding all would take long in one that is made to have many.
VALIDATION_ERRORS_MAX: Final = 10

Answer = dict[str, Any]
"""A response in the shape that GraphQL has it: `data`, `errors`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An operation that can be run."""

    document: DocumentNode
    operation_name: str | None
    operation_type: OperationType
    # The variables that the operation declares; others are not kept.
    variables: frozenset[str]
    # The one field of a subscription, when it stands in the operation itself.
    root_field: FieldNode | None

    def declared(self, variables: dict[str, Any] | None) -> dict[str, Any]:
        """The variables that matter; a stream keeps them for as long as it lasts."""
        return {name: value for name, value in (variables or {}).items() if name in self.variables}


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client asks for."""

    query: str
    variables: dict[str, Any] | None
    operation_name: str | None


def read_operation(request: Any) -> Operation:
    """The operation that a decoded request is; BadInput says what it should have been."""
    if isinstance(request, list):
        raise BadInput("Batches are not served; send one operation in each request.")
    if not isinstance(request, dict):
        raise BadInput(f"A request must be a JSON object with a query, got {_kind(request)}.")
    for name, expected in _MEMBERS.items():
        value = request.get(name)
        if value is not None and not isinstance(value, expected):
            raise BadInput(f"{name} must be {_KINDS[expected]}, got {_kind(value)}.")
    query = request.get("query")
    if not query:
        raise BadInput("query must hold a GraphQL document, got nothing.")
    return Operation(query, request.get("variables"), request.get("operationName"))


_MEMBERS: Final[dict[str, type]] = {"query": str, "variables": dict, "operationName": str, "extensions": dict}
_KINDS: Final[dict[type, str]] = {
    str: "a string",
    dict: "an object",
    list: "a list",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _KINDS[type(value)]


class RequestRefused(Exception):
    """The document cannot be run; nothing was. The errors are as the client sees them."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors


class Plans:
    """Makes plans, and keeps those that are used."""

    def __init__(self, schema: strawberry.Schema) -> None:
        self._schema = schema._schema
        # Least recently used first.
        self._plans: OrderedDict[tuple[str, str | None], Plan] = OrderedDict()
        self._characters = 0

    def plan(self, query: str, operation_name: str | None) -> Plan:
        """The plan for an operation of a document; RequestRefused when there can be none."""
        key = (query, operation_name)
        plan = self._plans.get(key)
        if plan is not None:
            self._plans.move_to_end(key)
            return plan
        plan = self._make(query, operation_name)
        self._plans[key] = plan
        self._characters += len(query)
        while len(self._plans) > PLANS_MAX or self._characters > PLANNED_CHARACTERS_MAX:
            (oldest, _), _ = self._plans.popitem(last=False)
            self._characters -= len(oldest)
        return plan

    def _make(self, query: str, operation_name: str | None) -> Plan:
        try:
            check_size(query)
            document = parse(query, max_tokens=TOKENS_MAX)
            check_document(document)
            errors = validate(self._schema, document, max_errors=VALIDATION_ERRORS_MAX)
        except GraphQLError as error:
            raise RequestRefused([present(error)]) from None
        except RecursionError:
            raise RequestRefused([refusal(ParseFailed("The document is nested too deep."))]) from None
        except Refusal as error:
            raise RequestRefused([refusal(error)]) from None
        if errors:
            raise RequestRefused(
                [{**present(error), "extensions": {"code": ValidationFailed.code}} for error in errors]
            )
        operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
        operation = _choose(operations, operation_name)
        root_field = operation.selection_set.selections[0]
        return Plan(
            document,
            operation_name,
            operation.operation,
            frozenset(node.variable.name.value for node in operation.variable_definitions or ()),
            root_field if isinstance(root_field, FieldNode) else None,
        )

    async def run(self, plan: Plan, variables: dict[str, Any] | None, context: Context) -> Answer:
        """Run a query or a mutation."""
        result = execute(
            self._schema,
            plan.document,
            variable_values=variables,
            operation_name=plan.operation_name,
            context_value=context,
            executor_class=StrawberryGraphQLCoreExecutionContext,
        )
        return _answer(await result if isawaitable(result) else result)

    async def stream(
        self, plan: Plan, variables: dict[str, Any] | None, context: Context
    ) -> AsyncGenerator[Answer, None]:
        """Run any operation: many answers for a subscription, one for the others.

        RequestRefused ends a stream that cannot begin or go on; close it with ``aclosing``.
        """
        if plan.operation_type is not OperationType.SUBSCRIPTION:
            yield await self.run(plan, variables, context)
            return
        source = subscribe(
            self._schema,
            plan.document,
            variable_values=variables,
            operation_name=plan.operation_name,
            context_value=context,
            executor_class=StrawberryGraphQLCoreExecutionContext,
        )
        results = await source if isawaitable(source) else source
        if isinstance(results, ExecutionResult):
            raise RequestRefused(list(map(present, results.errors or ())))
        async with aclosing(cast("AsyncGenerator[ExecutionResult, None]", results)):
            try:
                async for result in results:
                    yield _answer(result)
            except Exception as error:
                # What the source of a stream raises has no place yet: it is the one root field's.
                place = [plan.root_field.alias or plan.root_field.name] if plan.root_field else []
                located = located_error(error, [plan.root_field] if plan.root_field else None, [n.value for n in place])
                raise RequestRefused([present(located)]) from error


def _choose(operations: list[OperationDefinitionNode], name: str | None) -> OperationDefinitionNode:
    names = ", ".join(node.name.value for node in operations if node.name) or "none with a name"
    if name is not None:
        for node in operations:
            if node.name and node.name.value == name:
                return node
        error = BadInput(f'There is no operation named "{name}" in the document; it has {names}.')
    elif len(operations) == 1:
        return operations[0]
    elif operations:
        error = BadInput(f"operationName must say which operation is meant; the document has {names}.")
    else:
        error = BadInput("The document holds no operation.")
    raise RequestRefused([refusal(error)])


def _answer(result: ExecutionResult) -> Answer:
    errors = [present(error) for error in result.errors or ()]
    if result.data is None and all(error.path is None for error in result.errors or ()):
        # A variable was refused, so nothing was run.
        raise RequestRefused(errors)
    return {"errors": errors, "data": result.data} if errors else {"data": result.data}
