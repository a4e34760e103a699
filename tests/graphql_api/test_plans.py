"""Plans that are kept, and updates that are rendered once."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from graphql_api.execution import plan as plans_module
from graphql_api.execution.executor import Executor
from graphql_api.execution.plan import PLANS_MAX, PROVEN_PLANS_MAX, Plans, RequestRefused
from graphql_api.schema import schema
from storage import Permission
from tests.graphql_api.clients import Api, Socket, numbers
from tests.graphql_api.conftest import Serving


def document(number: int) -> str:
    return f"{{ n{number}: viewer {{ name }} }}"


def test_a_document_is_prepared_once_for_each_operation_name() -> None:
    plans = Plans(schema)
    text = "query A { viewer { name } } query B { viewer { name } }"
    assert plans.plan(text, "A") is plans.plan(text, "A")
    assert plans.plan(text, "A") is not plans.plan(text, "B")
    assert plans.plan(document(1), None) is not plans.plan(document(1) + " ", None)


def test_a_document_that_is_refused_is_not_kept() -> None:
    plans = Plans(schema)
    for _ in range(2):
        with pytest.raises(RequestRefused):
            plans.plan("{ nothing }", None)
    assert plans.kept == 0


def test_a_flood_of_documents_that_are_sent_once_does_not_push_out_those_that_come_again() -> None:
    plans = Plans(schema)
    hot = [plans.plan(document(number), None) for number in range(20)]
    assert [plans.plan(document(number), None) for number in range(20)] == hot
    for number in range(20, 20 + 2 * PLANS_MAX):
        plans.plan(document(number), None)
        assert plans.kept <= PLANS_MAX
    assert all(plans.plan(document(number), None) is plan for number, plan in enumerate(hot))
    # Nor can those that come twice take everything from those that come for the first time.
    for number in range(10_000, 10_000 + PLANS_MAX):
        plans.plan(document(number), None)
        plans.plan(document(number), None)
    plan = plans.plan("{ viewer { authenticated } }", None)
    for number in range(20_000, 20_000 + PLANS_MAX - PROVEN_PLANS_MAX - 1):
        plans.plan(document(number), None)
    assert plans.plan("{ viewer { authenticated } }", None) is plan


def test_what_is_kept_is_bounded_in_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans_module, "PLANNED_CHARACTERS_MAX", 10 * len(document(10)))
    plans = Plans(schema)
    hot = [plans.plan(document(number), None) for number in (10, 10, 11, 11)]
    for number in range(20, 60):
        plans.plan(document(number), None)
        assert plans.kept <= 10
    assert [plans.plan(document(number), None) for number in (10, 10, 11, 11)] == hot


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
