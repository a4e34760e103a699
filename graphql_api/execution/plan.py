"""Plans: a document parsed, checked, validated and compiled once, however often it is sent.

Both kinds of endpoint run operations through here, so that an operation means the same on each.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any, Final

import strawberry
from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    get_named_type,
    get_nullable_type,
    is_input_object_type,
    is_list_type,
    located_error,
    parse,
    type_from_ast,
    validate,
)

from graphql_api.context import Context
from graphql_api.errors import ParseFailed, ValidationFailed, code_of, present, refusal
from graphql_api.execution import persisted
from graphql_api.execution.complexity import Complexity
from graphql_api.execution.deadlines import TimeLimit
from graphql_api.execution.documents import TOKENS_MAX, check_document, check_size
from graphql_api.execution.executor import Executor, Variables, VariablesRefused
from graphql_api.execution.gauges import OperationGauges, PlanGauges
from graphql_api.execution.operations import Operations
from graphql_api.execution.rendering import Rendering, Renderings, body
from storage import BadInput, Refusal

# Plans that are kept, and roughly their bytes.
PLANS_MAX: Final = 500
PLANNED_BYTES_MAX: Final = 64 * 1024 * 1024
# A parsed document is so many times as large as its text, and a compiled operation as its source.
_DOCUMENT_TIMES: Final = 50
_SOURCE_TIMES: Final = 6
# Of these, so many may be plans that were asked for more than once, whatever new ones come.
PROVEN_PLANS_MAX: Final = 375
# Documents that have so many are prepared beside the loop.
LONG_DOCUMENT_CHARACTERS: Final = 1_000
# Things to do that one list may hold.
LIST_ITEMS_MAX: Final = 1_000
# Enough to mend a document by; finding all would take long in one that is made to have many.
VALIDATION_ERRORS_MAX: Final = 10


@dataclass(eq=False, slots=True)
class Plan:
    """An operation that can be run."""

    executor: Executor
    operation_type: OperationType
    # The one field of a subscription, when it stands in the operation itself.
    root_field: FieldNode | None
    # The name that its document gives it, and what is counted under that name.
    name: str | None
    gauges: OperationGauges
    # What it costs, if that depends on its variables.
    complexity: Complexity | None = None
    # Its variables that are lists of things to do.
    lists: tuple[str, ...] = ()
    # What it is thought to take in memory, all in all and for what was compiled.
    bytes: int = 0
    source_bytes: int = 0
    # The hash by which clients name its document, if they do.
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """A subscription that has begun: where its events come from, and what they become."""

    events: AsyncIterator[Any]
    rendering: Rendering
    # The one field of the operation, when it stands in the operation itself.
    root_field: FieldNode | None

    def broken_off(self, error: Exception) -> "RequestRefused":
        """What a subscriber is told of an error in the source: it has no place but the one root field."""
        field = self.root_field
        place = [(field.alias or field.name).value] if field else []
        return RequestRefused([present(located_error(error, [field] if field else None, place))])


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client asks for."""

    query: str
    variables: dict[str, Any] | None
    operation_name: str | None
    # The hash under which the document is to be kept.
    sha256: str | None = None


def read_operation(request: Any, operations: Operations | None, known: Mapping[str, str]) -> Operation:
    """The operation that a decoded request is; BadInput says what it should have been.

    Where there are only certain operations, it must be one of them; elsewhere it may be one of those known by hashes.
    """
    if isinstance(request, list):
        raise BadInput("Batches are not served; send one operation in each request.")
    if not isinstance(request, dict):
        raise BadInput(f"A request must be a JSON object with a query, got {_kind(request)}.")
    for name, expected in _MEMBERS.items():
        value = request.get(name)
        if value is not None and not isinstance(value, expected):
            raise BadInput(f"{name} must be {_KINDS[expected]}, got {_kind(value)}.")
    query, sha256 = request.get("query"), None
    if operations is not None:
        query = operations.find(request)
    elif extensions := request.get("extensions"):
        query, sha256 = persisted.find(query, extensions, known)
    if not query:
        raise BadInput("query must hold a GraphQL document, got nothing.")
    return Operation(query, request.get("variables"), request.get("operationName"), sha256)


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

    def __init__(
        self,
        schema: strawberry.Schema,
        *,
        compiled: bool = True,
        introspection: bool = True,
        operations: Operations | None = None,
        complexity_max: int = 50_000,
        query_timeout_s: float = 0.0,
    ) -> None:
        """Without introspection nobody is told either what a misspelled name may have meant."""
        self._schema = schema._schema
        self._compiled = compiled
        self._introspection = introspection
        self._operations = operations
        self._complexity_max = complexity_max
        self._queries = TimeLimit(query_timeout_s)
        # Those that were asked for once, and those that were asked for again; least recently used first. A flood of
        # documents that are sent once pushes out its own kind only.
        self._new: OrderedDict[tuple[str, str | None], Plan] = OrderedDict()
        self._proven: OrderedDict[tuple[str, str | None], Plan] = OrderedDict()
        # The documents that clients name by their hashes. Each is that of a plan, and goes with it.
        self._by_hash: dict[str, str] = {}
        self._bytes = 0
        self._reruns_of_dropped = 0
        self._making = asyncio.Lock()
        # One thread: whoever goes away while a plan is made for him does not have two made at a time.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="plans")
        self.renderings = Renderings()
        self.gauges = PlanGauges()

    def read(self, request: Any) -> Operation:
        """The operation that a decoded request is."""
        return read_operation(request, self._operations, self._by_hash)

    async def plan(self, query: str, operation_name: str | None, sha256: str | None = None) -> Plan:
        """The plan for an operation of a document; RequestRefused when there can be none.

        From then on the document is known by its hash, if that is given.
        """
        key = (query, operation_name)
        plan = self._find(key)
        if plan is None:
            # One after the other, each in a turn of the loop of its own: it may take some milliseconds.
            async with self._making:
                plan = self._find(key)
                if plan is None:
                    began = time.perf_counter()
                    try:
                        plan = self._new[key] = await self._make(query, operation_name)
                    finally:
                        self.gauges.made_s.observe(time.perf_counter() - began)
                    self._charge(plan, _DOCUMENT_TIMES * len(query))
                    await asyncio.sleep(0)
        # Another combination of @skip and @include may have been compiled since; and the plan may have been dropped.
        source_bytes = _SOURCE_TIMES * plan.executor.source_characters
        if source_bytes != plan.source_bytes and plan in (self._new.get(key), self._proven.get(key)):
            self._charge(plan, source_bytes - plan.source_bytes)
            plan.source_bytes = source_bytes
        if sha256 is not None and plan in (self._new.get(key), self._proven.get(key)):
            plan.sha256 = sha256
            self._by_hash[sha256] = query
        return plan

    def _find(self, key: tuple[str, str | None]) -> Plan | None:
        plan = self._proven.get(key)
        if plan is not None:
            self._proven.move_to_end(key)
            return plan
        plan = self._new.pop(key, None)
        if plan is not None:
            self._proven[key] = plan
        return plan

    def _charge(self, plan: Plan, size: int) -> None:
        """Count what a plan keeps, and drop plans that are too many."""
        plan.bytes += size
        self._bytes += size
        while self.kept > PLANS_MAX or (self._bytes > PLANNED_BYTES_MAX and self.kept > 1):
            # The proven ones keep three quarters.
            crowded = self._new if len(self._new) > 1 and len(self._proven) <= PROVEN_PLANS_MAX else self._proven
            _, oldest = (crowded or self._new).popitem(last=False)
            self._bytes -= oldest.bytes
            if oldest.sha256 is not None:
                self._by_hash.pop(oldest.sha256, None)
            self._reruns_of_dropped += oldest.executor.reruns

    @property
    def kept_bytes(self) -> int:
        """Roughly what they take in memory."""
        return self._bytes

    @property
    def reruns(self) -> int:
        """How often a compiled operation met something irregular, and graphql-core ran it again."""
        kept = (*self._new.values(), *self._proven.values())
        return self._reruns_of_dropped + sum(plan.executor.reruns for plan in kept)

    @property
    def kept(self) -> int:
        """How many plans are kept."""
        return len(self._new) + len(self._proven)

    async def _make(self, query: str, operation_name: str | None) -> Plan:
        if len(query) < LONG_DOCUMENT_CHARACTERS:
            operation, executor, complexity = self._prepare(query, operation_name)
        else:
            # It may take some twenty milliseconds, which others would wait for.
            prepare = partial(self._prepare, query, operation_name)
            operation, executor, complexity = await asyncio.get_running_loop().run_in_executor(self._beside, prepare)
        self.gauges.compiled += executor.compiled
        self.gauges.declined += not executor.compiled
        root_field = operation.selection_set.selections[0]
        name = operation.name.value if operation.name else None
        return Plan(
            executor,
            operation.operation,
            root_field if isinstance(root_field, FieldNode) else None,
            name,
            self.gauges.operation(operation.operation.value, name),
            complexity if complexity.depends else None,
            self._lists(operation),
        )

    def _prepare(self, query: str, operation_name: str | None) -> tuple[OperationDefinitionNode, Executor, Complexity]:
        document = self._valid(query)
        operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
        operation = _choose(operations, operation_name)
        fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
        try:
            complexity = Complexity(self._schema, operation, fragments, self._complexity_max)
        except Refusal as error:
            raise RequestRefused([refusal(error)]) from None
        return operation, Executor(self._schema, document, operation, compiled=self._compiled), complexity

    def _lists(self, operation: OperationDefinitionNode) -> tuple[str, ...]:
        """The variables that are lists of input objects."""
        types: dict[str, Any] = {
            node.variable.name.value: type_from_ast(self._schema, node.type)
            for node in operation.variable_definitions or ()
        }
        return tuple(
            name
            for name, type_ in types.items()
            if is_list_type(get_nullable_type(type_)) and is_input_object_type(get_named_type(type_))
        )

    def _valid(self, query: str) -> DocumentNode:
        """The document, which keeps its bounds and fits the schema."""
        try:
            check_size(query)
            document = parse(query, max_tokens=TOKENS_MAX)
            check_document(document, introspection=self._introspection)
            errors = validate(self._schema, document, max_errors=VALIDATION_ERRORS_MAX)
        except GraphQLError as error:
            raise RequestRefused([self._present(error)]) from None
        except RecursionError:
            raise RequestRefused([refusal(ParseFailed("The document is nested too deep."))]) from None
        except Refusal as error:
            raise RequestRefused([refusal(error)]) from None
        if errors:
            raise RequestRefused([self._present(error, ValidationFailed.code) for error in errors])
        return document

    def _present(self, error: GraphQLError, own_code: str = BadInput.code) -> dict[str, Any]:
        return present(error, own_code, suggestions=self._introspection)

    async def run(self, plan: Plan, variables: dict[str, Any] | None, context: Context) -> bytes:
        """Run a query or a mutation; its answer as JSON. Unavailable when a query takes too long."""
        began = time.perf_counter()
        result = plan.executor.execute(self._coerced(plan, variables), context)
        if not isinstance(result, ExecutionResult):
            # A change is made or refused within the times of the writer; if it were given up, nobody knew which.
            query = plan.operation_type is OperationType.QUERY
            try:
                result = await (self._queries.keep(result) if query else result)
            except Refusal as error:
                plan.gauges.ended(began, error.code)
                raise
        answer = body(result, suggestions=self._introspection)
        plan.gauges.ended(began, code_of(result.errors[0]) if result.errors else None)
        return answer

    async def open(self, plan: Plan, variables: dict[str, Any] | None, context: Context) -> Stream:
        """Begin a subscription; RequestRefused says why it cannot."""
        began = time.perf_counter()
        coerced = self._coerced(plan, variables)
        try:
            events = plan.executor.source(coerced, context)
            if isawaitable(events):
                events = await events
        except GraphQLError as error:
            plan.gauges.ended(began, code_of(error))
            raise RequestRefused([self._present(error)]) from error
        plan.gauges.ended(began, None)
        return Stream(aiter(events), self.renderings.shared(plan.executor, coerced, context), plan.root_field)

    async def stream(
        self, plan: Plan, variables: dict[str, Any] | None, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Run any operation: many answers for a subscription, one for the others.

        RequestRefused ends a stream that cannot begin or go on; close it with ``aclosing``.
        """
        if plan.operation_type is not OperationType.SUBSCRIPTION:
            yield await self.run(plan, variables, context)
            return
        stream = await self.open(plan, variables, context)
        async with aclosing(stream.events):  # type: ignore[type-var]
            try:
                async for event in stream.events:
                    yield await stream.rendering.get(event)
            except Exception as error:
                raise stream.broken_off(error) from error

    def _coerced(self, plan: Plan, variables: dict[str, Any] | None) -> Variables:
        try:
            for name in plan.lists:
                # Before they are looked at, one after the other.
                items = (variables or {}).get(name)
                if isinstance(items, list) and len(items) > LIST_ITEMS_MAX:
                    raise BadInput(f"${name} must have at most {LIST_ITEMS_MAX} items, got {len(items)}.")
            coerced = plan.executor.coerce(variables)
            if plan.complexity is not None:
                plan.complexity.check(coerced.coerced)
        except VariablesRefused as refused:
            plan.gauges.outcomes[BadInput.code] += 1
            raise RequestRefused([self._present(error) for error in refused.errors]) from None
        except Refusal as error:
            plan.gauges.outcomes[error.code] += 1
            raise RequestRefused([refusal(error)]) from None
        return coerced


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
