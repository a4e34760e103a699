"""Plans that are kept, and updates that are rendered once."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from graphql_api.auth import Viewer
from graphql_api.context import Context
from graphql_api.execution import plan as plans_module
from graphql_api.execution.executor import Executor
from graphql_api.execution.plan import PLANS_MAX, PROVEN_PLANS_MAX, Plans, RequestRefused
from graphql_api.execution.rendering import KEPT_MAX, Renderings
from graphql_api.schema import schema
from storage import Create, Permission, Update, UpdateType
from storage.lifecycle import decide
from tests.graphql_api.clients import Api, Socket, numbers
from tests.graphql_api.conftest import Serving


def document(number: int) -> str:
    return f"{{ n{number}: viewer {{ name }} }}"


async def test_a_document_is_prepared_once_for_each_operation_name() -> None:
    plans = Plans(schema)
    text = "query A { viewer { name } } query B { viewer { name } }"
    assert await plans.plan(text, "A") is await plans.plan(text, "A")
    assert await plans.plan(text, "A") is not await plans.plan(text, "B")
    assert await plans.plan(document(1), None) is not await plans.plan(document(1) + " ", None)


async def test_a_document_that_is_refused_is_not_kept() -> None:
    plans = Plans(schema)
    for _ in range(2):
        with pytest.raises(RequestRefused):
            await plans.plan("{ nothing }", None)
    assert plans.kept == 0


async def test_a_flood_of_documents_that_are_sent_once_does_not_push_out_those_that_come_again() -> None:
    plans = Plans(schema)
    hot = [await plans.plan(document(number), None) for number in range(20)]
    assert [await plans.plan(document(number), None) for number in range(20)] == hot
    for number in range(20, 20 + 2 * PLANS_MAX):
        await plans.plan(document(number), None)
        assert plans.kept <= PLANS_MAX
    assert [await plans.plan(document(number), None) for number in range(20)] == hot
    # Nor can those that come twice take everything from those that come for the first time.
    for number in range(10_000, 10_000 + PLANS_MAX):
        await plans.plan(document(number), None)
        await plans.plan(document(number), None)
    plan = await plans.plan("{ viewer { authenticated } }", None)
    for number in range(20_000, 20_000 + PLANS_MAX - PROVEN_PLANS_MAX - 1):
        await plans.plan(document(number), None)
    assert await plans.plan("{ viewer { authenticated } }", None) is plan


async def test_what_is_kept_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = Plans(schema)
    one = await plans.plan(document(1), None)
    monkeypatch.setattr(plans_module, "PLANNED_BYTES_MAX", 10 * one.bytes)
    for number in range(20, 60):
        await plans.plan(document(number), None)
        assert plans.kept <= 10
    # Each combination of what is included is compiled when it is asked for, and counts then.
    flags = "query($a: Boolean!, $b: Boolean!) { viewer { name @include(if: $a) authenticated @include(if: $b) } }"
    plan = await plans.plan(flags, None)
    sizes = []
    for a in (True, False):
        for b in (True, False):
            plan.executor.execute(plan.executor.coerce({"a": a, "b": b}), None)
            await plans.plan(flags, None)
            sizes.append(plan.bytes)
    assert sizes == sorted(set(sizes))


async def test_a_plan_that_was_dropped_while_it_was_made_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans_module, "PLANS_MAX", 2)
    plans = Plans(schema)
    made = [asyncio.create_task(plans.plan(document(1), None))]
    # It waits for its turn of the loop; then there is no room for it.
    await asyncio.sleep(0)
    plans._new.clear()
    plans._bytes = 0
    await asyncio.gather(*made)
    assert (plans.kept, plans._bytes) == (0, 0)
    for number in range(10):
        await plans.plan(document(number), None)
    assert plans._bytes == sum(plan.bytes for plan in (*plans._new.values(), *plans._proven.values()))


async def test_documents_that_come_at_once_are_prepared_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, turns = Plans(schema), 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    made = await asyncio.gather(*(plans.plan(document(number % 10), None) for number in range(20)))
    counting.cancel()
    assert len(set(map(id, made))) == plans.kept == 10
    assert turns >= 9


def watching(fields: str) -> str:
    return f"subscription($id: ID!) {{ taskUpdates(taskId: $id) {{ {fields} events {{ seq }} }} }}"


async def watch(socket: Socket, query: str, **variables: Any) -> str:
    """Begin to watch, and see the snapshot."""
    operation_id = await socket.subscribe(query, {"id": "T", **variables})
    await socket.update(operation_id)
    return operation_id


async def rendered(api: Api, monkeypatch: pytest.MonkeyPatch, sockets: list[Socket], updates: int) -> Counter[Executor]:
    """How often each operation is executed while every watcher is sent so many updates."""
    counted: Counter[Executor] = Counter()
    execute = Executor.execute

    def count(executor: Executor, variables: Any, context: Any, root_value: Any = None) -> Any:
        if root_value is not None:
            counted[executor] += 1
        return execute(executor, variables, context, root_value)

    monkeypatch.setattr(Executor, "execute", count)
    for number in range(updates):
        await api.report("T", number)
        for socket in sockets:
            message = await socket.take()
            assert message["type"] == "next", message
            assert numbers([message["payload"]["data"]["taskUpdates"]]) == [number + 2]
    return counted


@pytest.mark.parametrize(
    "fields",
    [
        "type task { seq status metadata updatedAt }",
        # What is read from the log must be waited for, and is waited for once.
        "type task { seq history(last: 2) { seq message } lastEvent { id } }",
    ],
)
async def test_an_update_is_rendered_once_for_all_who_asked_alike(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    async with serving() as api:
        await api.create("T")
        key = await api.storage.keys.create("reader", [Permission.READ])
        async with api.socket() as one, api.socket() as two, api.socket(key=key) as keyed:
            sockets = [one, two]
            for socket in (one, two):
                for _ in range(4):
                    await watch(socket, watching(fields))
                    sockets.append(socket)
            sockets = sockets[2:]
            # Others: another selection, another viewer.
            await watch(one, watching("type"))
            await watch(keyed, watching(fields))
            counted = await rendered(api, monkeypatch, [*sockets, one, keyed], 5)
    assert sorted(counted.values()) == [5, 10]


async def test_variables_that_mean_the_same_are_rendered_once_and_others_apart(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = (
        "subscription($id: ID!, $all: Boolean!) "
        "{ taskUpdates(taskId: $id) { events { seq message @include(if: $all) } } }"
    )
    async with serving() as api, api.socket() as socket:
        await api.create("T")
        # What the operation does not declare makes no difference.
        for others in ({"all": True}, {"all": True, "x": 1}, {"x": 2, "all": True}, {"all": False}):
            await watch(socket, query, **others)
        counted = await rendered(api, monkeypatch, [socket] * 4, 3)
    assert list(counted.values()) == [6]


async def test_a_subscriber_that_leaves_while_an_update_is_made_takes_nothing_from_the_others(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T")
        query = watching("task { history(last: 1) { seq } }")
        leaving, staying = [await watch(socket, query) for _ in range(2)]
        asked, go_on = asyncio.Event(), asyncio.Event()
        events = api.storage.reader.events

        async def slow(*arguments: Any) -> Any:
            asked.set()
            await go_on.wait()
            return await events(*arguments)

        # The first read of the log is the update's.
        monkeypatch.setattr(type(api.storage.reader), "events", staticmethod(slow))
        await api.report("T", 1)
        await asked.wait()
        for operation_id in (leaving, staying):
            await socket.say({"type": "complete", "id": operation_id})
            await socket.say({"type": "ping"})
            assert await socket.take() == {"type": "pong"}
            if operation_id is leaving:
                go_on.set()
                assert numbers([await socket.update(staying)]) == [2]


def published(size: int) -> Update:
    """An update as the feed hands it over, or, without a size, as the log does."""
    task = decide(None, Create(task_id="T"), datetime.now(UTC))
    assert task is not None
    assert task.last_event is not None
    return Update(UpdateType.EVENT, task, (task.last_event,), size)


async def test_only_what_was_published_is_kept_with_a_bound_on_all_that_it_holds(serving: Serving) -> None:
    plans = Plans(schema)
    plan = await plans.plan(watching("type"), None)
    variables = {"id": "T"}
    async with serving() as api:
        viewer = Viewer(None, authenticated=False, permissions=frozenset({Permission.READ}))
        stream = await plans.open(plan, variables, Context(api.storage, viewer))
        rendering, renderings = stream.rendering, plans.renderings
        assert rendering.now(published(0)) == rendering.now(published(0))
        assert renderings._kept == {}
        large = [published(1024 * 1024) for _ in range(100)]
        for update in large:
            assert rendering.now(update) is rendering.now(update)
        assert 0 < len(renderings._kept) < 16
        for _ in range(1_000):
            rendering.now(published(1))
        assert len(renderings._kept) == KEPT_MAX


async def test_what_nobody_waits_for_is_not_rendered_to_its_end() -> None:
    renderings, update = Renderings(), published(1)
    begun, canceled = asyncio.Event(), asyncio.Event()

    async def make() -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            canceled.set()
            raise
        return b""

    rendering: Any = object()
    waiting = [asyncio.create_task(renderings.once(rendering, update, make())) for _ in range(3)]
    await begun.wait()
    for task in waiting[:2]:
        task.cancel()
    await asyncio.wait(waiting[:2])
    assert not canceled.is_set()
    waiting[2].cancel()
    await canceled.wait()
