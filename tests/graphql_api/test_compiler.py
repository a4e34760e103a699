"""What the compiler does, by example. That it answers as graphql-core does is proven in ``test_executors.py``."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable
from inspect import isawaitable
from typing import Any

import pytest
import strawberry
from graphql import (
    ExecutionResult,
    GraphQLError,
    GraphQLObjectType,
    OperationDefinitionNode,
    OperationType,
    get_named_type,
    parse,
    validate,
)

from graphql_api.execution.executor import COMBINATIONS_MAX, Executor, VariablesRefused
from graphql_api.execution.selection import CALLS_MAX
from graphql_api.schema import schema
from storage import Permission
from tests.graphql_api.stand_ins import StandIn, context


class Log(list[str]):
    """The context of these tests: what happened, in order."""


@strawberry.interface
class Named:
    name: str


@strawberry.type
class Person(Named):
    age: int


@strawberry.type
class Item:
    name: str
    price: int | None = None

    @strawberry.field
    async def label(self, info: strawberry.Info) -> str:
        info.context.append(f"label {self.name}")
        await asyncio.sleep(0)
        info.context.append(f"labeled {self.name}")
        return self.name.upper()


@strawberry.type
class Query:
    @strawberry.field
    def item(self, info: strawberry.Info, name: str = "a") -> Item | None:
        info.context.append(f"item {name}")
        return Item(name=name)

    @strawberry.field
    async def slow(self, info: strawberry.Info, name: str) -> Item | None:
        info.context.append(f"slow {name}")
        await asyncio.sleep(0)
        info.context.append(f"slowed {name}")
        if name == "broken":
            raise ValueError("broken")
        return Item(name=name)

    @strawberry.field
    def items(self) -> list[Item]:
        return [Item(name="a"), Item(name="b")]

    @strawberry.field
    def named(self) -> Named | None:
        return Person(name="p", age=3)

    @strawberry.field
    def spoiled(self) -> Item:
        return Item(name="spoiled", price=2**40)


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def write(self, info: strawberry.Info, text: str) -> Item | None:
        info.context.append(f"write {text}")
        await asyncio.sleep(0)
        info.context.append(f"written {text}")
        if text == "broken":
            raise ValueError("broken")
        return Item(name=text)

    @strawberry.mutation
    def write_now(self, info: strawberry.Info, text: str) -> Item | None:
        info.context.append(f"now {text}")
        return Item(name=text, price=2**40 if text == "dear" else 1)


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def ticks(self, info: strawberry.Info, count: int) -> AsyncGenerator[Item, None]:
        for number in range(count):
            yield Item(name=str(number))


SCHEMA = strawberry.Schema(Query, Mutation, Subscription, types=[Person])


def executor(text: str, *, on: strawberry.Schema = SCHEMA, compiled: bool = True) -> Executor:
    document = parse(text)
    assert not validate(on._schema, document)
    operation = document.definitions[0]
    assert isinstance(operation, OperationDefinitionNode)
    return Executor(on._schema, document, operation, compiled=compiled)


async def answered(found: Executor, log: Any = None, /, **variables: Any) -> ExecutionResult:
    result = found.execute(found.coerce(variables), Log() if log is None else log)
    return await result if isawaitable(result) else result


def test_plain_fields_are_read_without_a_call() -> None:
    (source,) = executor("{ items { name price } }").sources()
    body = source[source.index("for ") :]
    assert "name_4 = item_3.name" in body
    assert "if type(name_4) is not str: name_4 = leaf_name_4(name_4)" in body
    assert "items_3.append({'name': name_4, 'price': price_5})" in body


def test_nothing_that_a_client_chose_becomes_text_of_the_source_but_names() -> None:
    (source,) = executor('{ x: item(name: "\'); import os #") { __typename } y: item(name: "z") { name } }').sources()
    assert "import" not in source
    assert re.search(r"name=argument_name_of_item_\d", source)


def test_an_operation_in_which_nothing_waits_is_answered_at_once() -> None:
    found = executor("{ item { name } items { name } }")
    result = found.execute(found.coerce(None), Log())
    assert isinstance(result, ExecutionResult)
    assert result.data == {"item": {"name": "a"}, "items": [{"name": "a"}, {"name": "b"}]}


async def test_siblings_are_called_before_any_is_awaited() -> None:
    log = Log()
    result = await answered(executor('{ a: slow(name: "a") { name } b: slow(name: "b") { name } }'), log)
    assert result.data == {"a": {"name": "a"}, "b": {"name": "b"}}
    assert log == ["slow a", "slow b", "slowed a", "slowed b"]


async def test_items_of_a_list_wait_together() -> None:
    log = Log()
    await answered(executor("{ items { label } }"), log)
    assert log == ["label a", "label b", "labeled a", "labeled b"]


async def test_fields_that_wait_keep_their_place_in_the_answer() -> None:
    result = await answered(executor('{ slow(name: "x") { name label price } items { name } __typename }'))
    assert list(result.data or {}) == ["slow", "items", "__typename"]
    assert list((result.data or {})["slow"]) == ["name", "label", "price"]


async def test_mutations_run_one_after_the_other() -> None:
    log = Log()
    await answered(executor('mutation { a: write(text: "a") { label } b: write(text: "b") { name } }'), log)
    assert log == ["write a", "written a", "label a", "labeled a", "write b", "written b"]


@pytest.mark.parametrize("field", ["write", "writeNow"])
async def test_no_mutation_runs_twice_when_a_later_field_fails(field: str) -> None:
    log = Log()
    found = executor(
        f'mutation {{ a: {field}(text: "a") {{ name }} write(text: "broken") {{ name }}'
        f' c: {field}(text: "c") {{ name }} }}'
    )
    result = await answered(found, log)
    assert found.reruns == 1
    assert result.data == {"a": {"name": "a"}, "write": None, "c": {"name": "c"}}
    assert [error.path for error in result.errors or ()] == [["write"]]
    assert len(log) == len(set(log))
    assert sum(entry.startswith(("write", "now")) and not entry.startswith("written") for entry in log) == 3


async def test_no_mutation_runs_twice_when_its_value_does_not_fit() -> None:
    log = Log()
    result = await answered(executor('mutation { writeNow(text: "dear") { price } }'), log)
    assert log == ["now dear"]
    assert result.errors is not None
    assert result.errors[0].path == ["writeNow", "price"]
    assert "32-bit" in result.errors[0].message


async def test_when_one_sibling_fails_the_others_end_and_none_is_called_again() -> None:
    log = Log()
    result = await answered(executor('{ a: slow(name: "broken") { name } b: slow(name: "b") { label } }'), log)
    assert result.data == {"a": None, "b": {"label": "B"}}
    assert log == ["slow broken", "slow b", "slowed broken", "slowed b", "label b", "labeled b"]


async def test_who_is_canceled_cancels_what_is_under_way() -> None:
    begun, ended = asyncio.Event(), []

    @strawberry.type
    class Waiting:
        @strawberry.field
        async def forever(self, number: int) -> int:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(number)
            return number

    found = executor("{ a: forever(number: 1) b: forever(number: 2) }", on=strawberry.Schema(Waiting))
    running = asyncio.ensure_future(answered(found))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(ended) == [1, 2]
    assert found.reruns == 0


async def test_a_resolver_may_return_what_is_to_be_awaited() -> None:
    @strawberry.type
    class Loading:
        @strawberry.field(graphql_type=int)  # type: ignore[untyped-decorator]
        def loaded(self, info: strawberry.Info) -> Awaitable[int]:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            future.get_loop().call_soon(future.set_result, 7)
            return future

    found = executor("{ a: loaded b: loaded }", on=strawberry.Schema(Loading))
    assert (await answered(found)).data == {"a": 7, "b": 7}
    assert found.reruns == 0


async def test_each_combination_of_flags_is_compiled_when_it_first_comes() -> None:
    found = executor("query ($x: Boolean!) { item { name price @include(if: $x) } }")
    assert found.sources() == []
    assert (await answered(found, x=False)).data == {"item": {"name": "a"}}
    assert (await answered(found, x=False)).data == {"item": {"name": "a"}}
    assert len(found.sources()) == 1
    assert (await answered(found, x=True)).data == {"item": {"name": "a", "price": None}}
    assert len(found.sources()) == 2


async def test_so_many_combinations_are_kept_and_graphql_core_runs_the_others() -> None:
    names = [f"f{number}" for number in range(6)]
    declared = ", ".join(f"${name}: Boolean!" for name in names)
    fields = " ".join(f"{name}: name @include(if: ${name})" for name in names)
    found = executor(f"query ({declared}) {{ item {{ name {fields} }} }}")
    for bits in range(2 ** len(names)):
        flags = {name: bool(bits >> place & 1) for place, name in enumerate(names)}
        expected = {"name": "a", **{name: "a" for name in names if flags[name]}}
        assert (await answered(found, **flags)).data == {"item": expected}
    assert len(found.sources()) == COMBINATIONS_MAX


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{ __schema { queryType { name } } }", "Introspection"),
        ('{ __type(name: "Item") { name } }', "Introspection"),
        ("{ named { name } }", "an interface or a union"),
        ("{ items { name } named @skip(if: true) { name } }", "an interface or a union"),
        ("{" + " ".join(f"i{number}: item {{ name }}" for number in range(CALLS_MAX + 1)) + "}", "resolvers"),
    ],
)
async def test_what_is_declined_is_answered_all_the_same(text: str, why: str) -> None:
    found = executor(text)
    assert not found.compiled
    assert why in (found.declined or "")
    result = await answered(found)
    assert result.data
    assert not result.errors


async def test_graphql_core_can_be_asked_for() -> None:
    found = executor("{ item { name } }", compiled=False)
    assert not found.compiled
    assert (await answered(found)).data == {"item": {"name": "a"}}


def test_variables_that_do_not_fit_are_refused_before_anything_runs() -> None:
    found = executor("query ($name: String!) { item(name: $name) { name } }")
    with pytest.raises(VariablesRefused, match="name' has invalid value"):
        found.coerce({"name": 7})
    with pytest.raises(VariablesRefused):
        found.coerce(None)


def test_variables_that_are_not_declared_are_not_kept() -> None:
    found = executor("query ($name: String!) { item(name: $name) { name } }")
    assert found.coerce({"name": "a", "large": "x" * 1000}).given == {"name": "a"}


async def test_an_event_needs_no_waiting_when_only_plain_fields_are_selected() -> None:
    plain = executor("subscription ($n: Int!) { ticks(count: $n) { name } }")
    waiting = executor("subscription ($n: Int!) { ticks(count: $n) { label } }")
    assert (plain.immediate, waiting.immediate) == (True, False)
    variables = plain.coerce({"n": 2})
    source = plain.source(variables, Log())
    events = [event async for event in (await source if isawaitable(source) else source)]
    results = [plain.execute(variables, Log(), event) for event in events]
    assert [result.data for result in results if isinstance(result, ExecutionResult)] == [
        {"ticks": {"name": "0"}},
        {"ticks": {"name": "1"}},
    ]


async def test_a_subscription_that_cannot_begin_says_where() -> None:
    found = executor('subscription { taskUpdates(taskId: "T-1") { type } }', on=schema)
    source = found.source(found.coerce(None), context(StandIn("s"), [Permission.READ]))
    assert not isawaitable(source)
    async for update in source:
        assert isinstance(found.execute(found.coerce(None), None, update), ExecutionResult)
    # An argument that its type does not take is graphql-core's to refuse.
    bad = executor("subscription ($n: Int = 1) { ticks(count: $n) { name } }")
    with pytest.raises(GraphQLError) as caught:
        refused = bad.source(bad.coerce({"n": None}), Log())
        await refused if isawaitable(refused) else None
    assert caught.value.path == ["ticks"]


def test_all_of_our_schema_can_be_compiled() -> None:
    """No field of ours needs graphql-core, so that one which does is noticed."""
    core = schema._schema

    def selected(of: Any, depth: int = 0) -> str:
        """Every field of a type, down to a depth at which ours repeat themselves."""
        named = get_named_type(of)
        if not isinstance(named, GraphQLObjectType):
            return ""
        fields = [
            name + selected(field.type, depth + 1)
            for name, field in named.fields.items()
            if depth < 3 or not isinstance(get_named_type(field.type), GraphQLObjectType)
        ]
        return "{" + " ".join(fields) + "}"

    count = 0
    for kind in OperationType:
        root = core.get_root_type(kind)
        assert root is not None
        for name, field in root.fields.items():
            declared = [f"${argument}: {of.type}" for argument, of in field.args.items()]
            passed = [f"{argument}: ${argument}" for argument in field.args]
            head, arguments = (f"({', '.join(words)})" if words else "" for words in (declared, passed))
            found = executor(f"{kind.value}{head} {{ {name}{arguments} {selected(field.type)} }}", on=schema)
            assert found.declined is None, f"{name}: {found.declined}"
            count += 1
    assert count == 21
