"""Lists as clients ask for them: by all that a filter can say, with their numbers."""

from typing import Any, Final

import pytest

from tests.graphql_api.clients import TRANSPORTS, Answer, Api, Transport, code, data, error
from tests.graphql_api.conftest import Serving
from tests.postgres import execute

LIST: Final = """query($filter: TaskFilter) {
  tasks(filter: $filter) { nodes { id } totalCount }
  stats(filter: $filter) { total pending inProgress success failed canceled }
}"""
DELETE: Final = "mutation($filter: TaskFilter!) { deleteMany(filter: $filter) }"
CREATE: Final = """mutation($id: ID!, $metadata: JSON, $options: TaskOptions) {
  create(taskId: $id, metadata: $metadata, options: $options) { createdAt }
}"""
CLAIM: Final = 'mutation { claim(queue: "mail", worker: "w") { task { id } } }'


async def made(api: Api) -> dict[str, str]:
    """Some tasks, no two of which are alike; return when each was created."""
    tasks: dict[str, Answer] = {
        "plain": {},
        "order-1": {"metadata": {"customer": 7, "lines": [{"sku": "a"}]}, "options": {"tags": ["paid", "eu"]}},
        "order-2": {"metadata": {"customer": 8}, "options": {"tags": ["paid"]}},
        "ORDER-3": {"metadata": {"customer": 7.0}},
        "mail": {"options": {"queue": "mail"}},
        "print": {"options": {"queue": "print", "tags": ["eu"]}},
    }
    created = {
        task_id: data(await api.ask(CREATE, {"id": task_id, **more}))["create"]["createdAt"]
        for task_id, more in tasks.items()
    }
    await api.complete("order-1")
    await api.report("order-2", 10)
    data(await api.ask(CLAIM))
    key = await api.storage.keys.create("importer", ["CREATE"])  # type: ignore[list-item]
    data(await api.ask(CREATE, {"id": "imported"}, key=key))
    await api.storage.pool.run(
        "UPDATE tasks SET lease_expires_at = created_at, due_at = created_at WHERE task_id = 'mail'"
    )
    return created


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_list_is_asked_for_by_whatever_its_tasks_have(serving: Serving, transport: Transport) -> None:
    async with serving() as api, api.over(transport) as ask:
        created = await made(api)
        everything = ["ORDER-3", "imported", "mail", "order-1", "order-2", "plain", "print"]
        expected: list[tuple[Any, list[str]]] = [
            (None, everything),
            ({}, everything),
            ({"tags": []}, everything),
            ({"status": "SUCCESS"}, ["order-1"]),
            ({"status": ["IN_PROGRESS", "SUCCESS"]}, ["mail", "order-1", "order-2"]),
            ({"createdBy": "importer"}, ["imported"]),
            ({"createdBy": "admin", "status": ["IN_PROGRESS"]}, ["mail", "order-2"]),
            ({"tags": ["paid"]}, ["order-1", "order-2"]),
            ({"tags": ["eu", "paid"]}, ["order-1"]),
            ({"tags": ["Eu"]}, []),
            ({"queue": "mail"}, ["mail"]),
            ({"queue": "mail", "status": ["PENDING"]}, []),
            ({"taskIdPrefix": "order-"}, ["order-1", "order-2"]),
            ({"taskIdPrefix": "order_"}, []),
            ({"taskIdPrefix": "%"}, []),
            ({"metadata": {"customer": 7}}, ["ORDER-3", "order-1"]),
            ({"metadata": {"lines": [{"sku": "a"}]}}, ["order-1"]),
            ({"metadata": {"customer": "7"}}, []),
            ({"metadata": {}}, ["ORDER-3", "order-1", "order-2"]),
            ({"createdAfter": created["print"]}, ["imported", "print"]),
            ({"createdBefore": created["order-1"]}, ["plain"]),
            ({"createdAfter": created["mail"], "createdBefore": created["print"]}, ["mail"]),
            ({"updatedAfter": created["print"]}, ["imported", "mail", "order-1", "order-2", "print"]),
            ({"stale": True}, ["mail"]),
            ({"stale": False, "queue": "print"}, ["print"]),
            ({"status": ["SUCCESS"], "tags": ["eu"], "metadata": {"customer": 7}, "taskIdPrefix": "o"}, ["order-1"]),
            ({"queue": "mail", "createdBy": None, "tags": None, "metadata": None, "stale": None}, ["mail"]),
        ]
        for wanted, ids in expected:
            answer = data(await ask(LIST, {"filter": wanted}))
            assert sorted(node["id"] for node in answer["tasks"]["nodes"]) == ids, wanted
            assert answer["tasks"]["totalCount"] == answer["stats"]["total"] == len(ids), wanted
            stats = answer["stats"]
            assert stats["total"] == sum(stats[name] for name in stats if name != "total")
        stats = data(await ask("{ stats { total pending inProgress success failed canceled } }"))["stats"]
        assert stats == {"total": 7, "pending": 4, "inProgress": 2, "success": 1, "failed": 0, "canceled": 0}
        stats = data(await ask('{ stats(filter: { tags: "paid" }) { pending inProgress success } }'))["stats"]
        assert stats == {"pending": 0, "inProgress": 1, "success": 1}


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({"createdBy": "importer"}, ["ORDER-3", "mail", "order-1", "order-2", "plain", "print"]),
        ({"tags": ["paid"], "status": "IN_PROGRESS"}, ["ORDER-3", "imported", "mail", "order-1", "plain", "print"]),
        ({"metadata": {"customer": 7}}, ["imported", "mail", "order-2", "plain", "print"]),
        ({"stale": False}, ["mail"]),
        ({"status": []}, ["ORDER-3", "imported", "mail", "order-1", "order-2", "plain", "print"]),
    ],
)
async def test_what_any_filter_finds_is_deleted(serving: Serving, wanted: Answer, left: list[str]) -> None:
    async with serving() as api:
        await made(api)
        assert data(await api.ask(DELETE, {"filter": wanted})) == {"deleteMany": 7 - len(left)}
        answer = data(await api.ask(LIST))
        assert sorted(node["id"] for node in answer["tasks"]["nodes"]) == left
        assert answer["stats"]["total"] == len(left)


@pytest.mark.parametrize("wanted", [{"tags": []}, {"stale": None}, {"metadata": None, "taskIdPrefix": None}])
async def test_a_filter_that_asks_for_nothing_deletes_nothing(serving: Serving, wanted: Answer) -> None:
    async with serving() as api:
        await made(api)
        assert code(await api.ask(DELETE, {"filter": wanted})) == "BAD_USER_INPUT"
        assert data(await api.ask(LIST))["stats"]["total"] == 7


async def test_a_filter_that_takes_too_long_is_too_large_and_nothing_else_is(
    serving: Serving, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing that looks through so many rows is done by then.
    monkeypatch.setattr("storage.pool._FOR_A_SEARCH", "SET LOCAL statement_timeout = 1; SET LOCAL enable_seqscan = on")
    async with serving() as api:
        await api.create("T")
        await execute(
            database,
            "INSERT INTO tasks (task_id, status, progress, seq, created_at, updated_at)"
            " SELECT n::text, 'PENDING', 0, 1, '2026-01-01', '2026-01-01' FROM generate_series(1, 50000) AS n",
        )
        for field in ("tasks(filter: $filter) { totalCount }", "stats(filter: $filter) { total }"):
            answer = await api.ask(f"query($filter: TaskFilter) {{ {field} }}", {"filter": {"stale": False}})
            assert code(answer) == "TOO_LARGE"
            assert error(answer)["message"].startswith("The tasks that the filter means are too hard to find")
        # What is known is known, and the list has an order.
        answer = await api.ask("{ stats { total } tasks(first: 1) { nodes { id } totalCount } }")
        assert data(answer) == {"stats": {"total": 1}, "tasks": {"nodes": [{"id": "T"}], "totalCount": 1}}
