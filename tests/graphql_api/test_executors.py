"""The proof of the compiler: whatever is asked, and whatever goes wrong, both executors give the same answer.

Operations are made up over our schema and over one with everything that an executor can meet (``worlds.py``), and so
are the values behind them, with nulls, exceptions and wrong types. Each operation runs by graphql-core as its
``execute`` and ``subscribe`` do it, and by our executor. The answers must be the same byte for byte, and the same
resolvers must be called, each once, and be told the same.

``make fuzz`` runs ten times as many; FUZZ_OPERATIONS says how many it shall be.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from inspect import isawaitable
from random import Random
from typing import Any

import orjson
import pytest
import strawberry
from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    execute,
    located_error,
    parse,
    subscribe,
    validate,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from graphql_api.execution.executor import Executor, VariablesRefused
from graphql_api.schema import schema
from storage import Permission
from tests.graphql_api.generated import Documents, Generated, described
from tests.graphql_api.stand_ins import StandIn, context
from tests.graphql_api.worlds import SCHEMA, World

# Half over each schema.
OPERATIONS = int(os.environ.get("FUZZ_OPERATIONS", "2000"))
# How many operations must have gone each way, of a hundred, for the run to have proven something.
SHARES_MIN = {"compiled": 20, "irregular": 15, "refused": 2, "declined": 1}

# graphql-core forgets coroutines of resolvers when it cancels their tasks before they begin. We must not forget ours.
_FORGOTTEN = r"coroutine {}(?!_Run\.|_Replay\.|Executor\._finish)"
pytestmark = [
    pytest.mark.filterwarnings("ignore:" + _FORGOTTEN.format("'")),
    # The same, where the warning itself failed: collected within the constructor of a named tuple, it cannot import.
    pytest.mark.filterwarnings(
        f"ignore:Exception ignored in. <{_FORGOTTEN.format('object ')}:pytest.PytestUnraisableExceptionWarning"
    ),
]

fuzz = settings(
    max_examples=OPERATIONS // 2,
    deadline=None,
    derandomize="FUZZ_OPERATIONS" not in os.environ,
    database=None,
    # What fails comes from a seed, which has no smaller one.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def text_of(result: ExecutionResult) -> str:
    """An answer as it is sent, errors with their place and path."""
    answer = {"data": result.data, "errors": [shown(error) for error in result.errors or ()]}
    return orjson.dumps(answer, default=repr, option=orjson.OPT_NON_STR_KEYS).decode(errors="replace")


def shown(error: GraphQLError) -> dict[str, Any]:
    return {
        "message": error.message.encode(errors="replace").decode(),
        "locations": [(place.line, place.column) for place in error.locations or ()],
        "path": error.path,
        "original": repr(error.original_error),
    }


async def by_core(
    on: strawberry.Schema, document: DocumentNode, variables: dict[str, Any], told: Any
) -> list[ExecutionResult]:
    """What graphql-core answers, the way it is meant to be used."""
    operation = document.definitions[0]
    assert isinstance(operation, OperationDefinitionNode)
    if operation.operation is not OperationType.SUBSCRIPTION:
        result = execute(
            on._schema,
            document,
            context_value=told,
            variable_values=variables,
            executor_class=StrawberryGraphQLCoreExecutionContext,
        )
        return [await result if isawaitable(result) else result]
    started = subscribe(
        on._schema,
        document,
        context_value=told,
        variable_values=variables,
        executor_class=StrawberryGraphQLCoreExecutionContext,
    )
    stream = await started if isawaitable(started) else started
    if isinstance(stream, ExecutionResult):
        return [stream]
    return await gathered(stream, lambda result: result)


async def by_us(executor: Executor, variables: dict[str, Any], told: Any) -> list[ExecutionResult]:
    try:
        coerced = executor.coerce(variables)
    except VariablesRefused as refused:
        return [ExecutionResult(None, refused.errors)]
    if executor._operation.operation is not OperationType.SUBSCRIPTION:
        result = executor.execute(coerced, told)
        return [await result if isawaitable(result) else result]
    try:
        source = executor.source(coerced, told)
        stream = await source if isawaitable(source) else source
    except GraphQLError as error:
        return [ExecutionResult(None, [error])]
    return await gathered(stream, lambda event: executor.execute(coerced, told, event))


async def gathered(stream: Any, answer: Callable[[Any], Any]) -> list[ExecutionResult]:
    results: list[ExecutionResult] = []
    events: AsyncIterator[Any] = aiter(stream)
    try:
        async for event in events:
            result = answer(event)
            results.append(await result if isawaitable(result) else result)
    except Exception as error:  # noqa: BLE001 - whatever a source raises ends its stream
        results.append(ExecutionResult(None, [located_error(error)]))
    return results


def nulled_above(result: ExecutionResult) -> bool:
    """Whether an error made null more than its own field, so that what ran beside it was canceled."""
    for error in result.errors or ():
        data: Any = result.data
        for key in (error.path or [])[:-1]:
            if data is None:
                break
            data = data[key]
        if data is None:
            return True
    return False


async def compare(
    on: strawberry.Schema, made: Generated, told: Callable[[], Any], turns: bool, seen: Counter[str]
) -> None:
    document = parse(made.text)
    assert not validate(on._schema, document), made.text
    operation = document.definitions[0]
    assert isinstance(operation, OperationDefinitionNode)
    executor = Executor(on._schema, document, operation)
    core, us = told(), told()
    # Resolvers may change what they are given.
    expected = await by_core(on, document, deepcopy(made.variables), core)
    await background_ended()
    got = await by_us(executor, deepcopy(made.variables), us)
    await background_ended()

    refused = len(expected) == 1 and expected[0].data is None and all(not e.path for e in expected[0].errors or ())
    way = (
        "refused"
        if refused
        else "declined"
        if not executor.compiled
        else "irregular"
        if executor.reruns
        else "compiled"
    )
    seen[way] += 1
    seen["operations"] += 1

    canceled = any(map(nulled_above, expected))
    if turns:
        # The order of errors is the order in which resolvers end, and graphql-core cancels those that it needs no more.
        assert [text_of(ExecutionResult(result.data)) for result in got] == [
            text_of(ExecutionResult(result.data)) for result in expected
        ], described(made)
        if not canceled:
            assert list(map(errors_sorted, got)) == list(map(errors_sorted, expected)), described(made)
    else:
        assert list(map(text_of, got)) == list(map(text_of, expected)), described(made)

    if operation.operation is OperationType.MUTATION:
        assert effects(us) == effects(core), described(made)
    calls, expected_calls = Counter(calls_of(us)), Counter(calls_of(core))
    if canceled and turns:
        # How far graphql-core comes before it cancels is a matter of time. No place is come to twice.
        assert not isinstance(us, World) or max(calls.values(), default=1) == 1, described(made)
    elif canceled:
        # What graphql-core cancels is let to end here, so it may come to more.
        assert not expected_calls - calls, described(made)
    else:
        assert calls == expected_calls, described(made)


def effects(told: Any) -> list[str]:
    """Which root fields were at work, in order; of a mutation, each must have ended before the next began."""
    if isinstance(told, World):
        roots = [str(call[0][0]) for call in told.calls]
        return [root for root, before in zip(roots, [None, *roots], strict=False) if root != before]
    return [repr(call) for call in told.storage.calls if call[0] == "submit"]


def errors_sorted(result: ExecutionResult) -> list[str]:
    return sorted(repr(shown(error)) for error in result.errors or ())


def calls_of(told: Any) -> list[str]:
    return [repr(call) for call in (told.calls if isinstance(told, World) else told.storage.calls)]


async def background_ended() -> None:
    """Wait for what graphql-core left to end by itself."""
    for _ in range(1_000):
        if len(asyncio.all_tasks()) == 1:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"left behind: {asyncio.all_tasks()}")


def check_shares(seen: Counter[str]) -> None:
    print(seen)  # noqa: T201 - shown by pytest -s
    for way, share in SHARES_MIN.items():
        assert seen[way] * 100 >= share * seen["operations"], seen


rates = st.sampled_from([0.02, 0.0, 0.005, 0.1, 0.3])
kinds = st.sampled_from(list(OperationType))


def test_both_executors_answer_the_same_over_a_schema_with_everything() -> None:
    seen: Counter[str] = Counter()

    @fuzz
    @given(st.randoms(use_true_random=True), kinds, rates, st.sampled_from([0, 0, 2]))
    def same(random: Random, kind: OperationType, faults: float, turns_max: int) -> None:
        seed = str(random.random())
        made = Documents(SCHEMA._schema, random, bad=random.choice([0, 0, 0.05])).operation(kind)
        asyncio.run(compare(SCHEMA, made, lambda: World(seed, faults, turns_max), turns_max > 0, seen))

    same()
    check_shares(seen)


def test_both_executors_answer_the_same_over_our_schema() -> None:
    seen: Counter[str] = Counter()
    everything = list(Permission)

    @fuzz
    @given(
        st.randoms(use_true_random=True),
        kinds,
        rates,
        st.sampled_from([0, 0, 2]),
        st.sampled_from([everything, everything, everything, [Permission.READ]]),
    )
    def same(random: Random, kind: OperationType, faults: float, turns_max: int, permissions: list[Permission]) -> None:
        seed = str(random.random())
        made = Documents(schema._schema, random, bad=random.choice([0, 0, 0.05])).operation(kind)
        asyncio.run(
            compare(
                schema,
                made,
                lambda: context(StandIn(seed, faults, turns_max), permissions),
                turns_max > 0,
                seen,
            )
        )

    same()
    check_shares(seen)
