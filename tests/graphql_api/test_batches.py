"""Many tasks by one mutation: all or none, each by itself, or all that a filter finds."""

import asyncio
import logging
from typing import Any, Final

import pytest

from storage import Create, CreateMany, Permission
from tests.graphql_api.clients import TRANSPORTS, Answer, Api, Transport, code, data, error
from tests.graphql_api.conftest import Serving
from tests.graphql_api.test_task_tokens import CREATE_TOKEN

CREATE_MANY: Final = """
    mutation($tasks: [NewTask!]!) { createMany(tasks: $tasks) { taskId status progress metadata blockedBy createdBy } }
"""
REPORT: Final = """
    mutation($reports: [TaskReport!]!) {
      report(reports: $reports) {
        taskId task { status seq progress lastEvent { message metadata } } error { code message }
      }
    }
"""
DELETE_MANY: Final = "mutation($filter: TaskFilter!) { deleteMany(filter: $filter) }"


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spectral.audit")


def audited(caplog: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    """The records, each with what it says of many tasks."""
    found = [record for record in caplog.records if record.name == "spectral.audit"]
    caplog.clear()
    facts = ("actor", "outcome", "filter", "tasks")
    return [(one.getMessage(), *(vars(one)[name] for name in facts if name in vars(one))) for one in found]


async def made(api: Api, count: int, **options: Any) -> list[str]:
    many = tuple(Create(task_id=f"T{n:04}", **options) for n in range(count))
    for start in range(0, count, 1_000):
        await api.storage.writer.create_many(CreateMany(tasks=many[start : start + 1_000]))
    return [task.task_id for task in many]


async def all_ids(api: Api) -> list[str]:
    answer = data(await api.ask("{ tasks(first: 1000) { nodes { taskId } } }"))
    return sorted(task["taskId"] for task in answer["tasks"]["nodes"])


# Created together.


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_tasks_are_created_together_in_any_order(
    serving: Serving, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api, api.over(transport) as ask:
        tasks = [
            {"taskId": "last", "options": {"dependsOn": ["first"], "queue": "q"}},
            {"taskId": "first", "metadata": {"n": 1}},
            {"taskId": "done", "status": "SUCCESS", "progress": 3},
            {"taskId": "nulls", "status": None, "progress": None, "metadata": None, "options": None},
        ]
        created = data(await ask(CREATE_MANY, {"tasks": tasks}))["createMany"]
        rest: Answer = {"createdBy": "admin", "metadata": None, "blockedBy": []}
        assert created == [
            {**rest, "taskId": "last", "status": "PENDING", "progress": 0, "blockedBy": ["first"]},
            {**rest, "taskId": "first", "status": "PENDING", "progress": 0, "metadata": {"n": 1}},
            {**rest, "taskId": "done", "status": "SUCCESS", "progress": 100},
            {**rest, "taskId": "nulls", "status": "PENDING", "progress": 0},
        ]
        assert audited(caplog) == [("task.create_many", "admin", "done", "4")]
        assert data(await ask(CREATE_MANY, {"tasks": []})) == {"createMany": []}


GOOD: Final = {"taskId": "good"}
BAD: Final[dict[str, tuple[list[Answer], str, str, int]]] = {
    "a bad ID": ([GOOD, {"taskId": ""}], "BAD_USER_INPUT", "1: taskId must have 1 to 255 characters, got 0.", 1),
    "bad progress": ([{"taskId": "T", "progress": 101}], "BAD_USER_INPUT", "0: progress must be 0 to 100", 0),
    "a bad option": (
        [GOOD, {"taskId": "T", "options": {"tags": [""]}}],
        "BAD_USER_INPUT",
        "1: tag must have 1 to 64 characters",
        1,
    ),
    "one that is there": ([GOOD, {"taskId": "there"}], "TASK_ALREADY_EXISTS", '1: Task "there" exists already.', 1),
    "one twice": ([GOOD, GOOD], "BAD_USER_INPUT", '1: Task "good" is named twice.', 1),
    "an unknown one": (
        [GOOD, {"taskId": "T", "options": {"dependsOn": ["nobody"]}}],
        "BAD_USER_INPUT",
        'there is no task "nobody"',
        1,
    ),
    "large metadata": ([GOOD, {"taskId": "T", "metadata": "m" * 262_143}], "TOO_LARGE", "1: metadata must have", 1),
}


@pytest.mark.parametrize("name", BAD)
async def test_one_bad_task_is_named_and_none_is_created(
    serving: Serving, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, expected, words, index = BAD[name]
    async with serving() as api:
        await api.create("there")
        caplog.clear()
        answer = await api.ask(CREATE_MANY, {"tasks": tasks})
        assert error(answer)["extensions"] == {"code": expected, "index": index}
        assert words in error(answer)["message"]
        assert await all_ids(api) == ["there"]
        assert audited(caplog) == [("task.create_many", "admin", expected, str(len(tasks)))]


async def test_a_circle_is_refused(serving: Serving) -> None:
    async with serving() as api:
        tasks = [{"taskId": a, "options": {"dependsOn": [b]}} for a, b in ("ab", "bc", "ca")]
        answer = await api.ask(CREATE_MANY, {"tasks": tasks})
        assert code(answer) == "BAD_USER_INPUT"
        assert "wait for each other in a circle" in error(answer)["message"]
        assert await all_ids(api) == []


async def test_a_thousand_are_taken_and_no_more(serving: Serving) -> None:
    async with serving() as api:
        tasks = [{"taskId": f"{n}"} for n in range(1_001)]
        for query, variables, name in (
            (CREATE_MANY, {"tasks": tasks}, "tasks"),
            (REPORT, {"reports": [{**task, "progress": 1} for task in tasks]}, "reports"),
        ):
            answer = await api.ask(query, variables)
            assert code(answer) == "BAD_USER_INPUT"
            assert error(answer)["message"] == f"${name} must have at most 1000 items, got 1001."
        assert await all_ids(api) == []
        assert len(data(await api.ask(CREATE_MANY, {"tasks": tasks[:1_000]}))["createMany"]) == 1_000
        reports = [{**task, "progress": 1} for task in tasks[:1_000]]
        results = data(await api.ask(REPORT, {"reports": reports}))["report"]
        assert {result["task"]["seq"] for result in results} == {2}


async def test_what_is_made_of_a_list_is_paid_for(serving: Serving) -> None:
    deep = "mutation($tasks: [NewTask!]!) { createMany(tasks: $tasks) { history(first: 1000) { seq message } } }"
    tasks = [{"taskId": f"{n}"} for n in range(30)]
    async with serving() as api:
        answer = (await api.post({"query": deep, "variables": {"tasks": tasks}}, key=api.admin_key)).json()
        assert code(answer) == "TOO_LARGE"
        # One for the mutation; for each of 30 tasks one for its history, and 1,000 events of two fields.
        assert "this one costs 60031" in error(answer)["message"]
        listed = ", ".join(f'{{ taskId: "{n}" }}' for n in range(30))
        written = f"mutation {{ createMany(tasks: [{listed}]) {{ history(first: 1000) {{ seq message }} }} }}"
        assert code((await api.post({"query": written}, key=api.admin_key)).json()) == "TOO_LARGE"
        claims = 'mutation { claim(worker: "w", limit: 30) { task { history(first: 1000) { seq message } } } }'
        assert code((await api.post({"query": claims}, key=api.admin_key)).json()) == "TOO_LARGE"
        one = 'mutation { claim(worker: "w") { task { history(first: 1000) { seq message } } } }'
        assert data(await api.ask(one)) == {"claim": []}
        assert await all_ids(api) == []


# Reported on, each by itself.


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_each_report_has_its_own_outcome(serving: Serving, transport: Transport) -> None:
    async with serving() as api, api.over(transport) as ask:
        await made(api, 6)
        reports: list[Answer] = [
            {"taskId": "T0000", "progress": 7},
            {"taskId": "T0001", "event": {"eventType": "LOG", "message": "note", "metadata": [1]}},
            {"taskId": "T0002", "complete": True, "metadata": {"a": 1}},
            {"taskId": "T0003", "fail": "broken", "complete": False},
            {"taskId": "T0004", "cancel": True, "progress": None},
            {"taskId": "nobody", "progress": 1},
            {"taskId": "T0002", "progress": 1},
            {"taskId": "T0000", "progress": 8},
            {"taskId": "T0000", "progress": 101},
            {"taskId": "T0005", "progress": 1, "token": "no lease"},
            {"taskId": "T0000"},
            {"taskId": "T0000", "complete": False, "cancel": False},
            {"taskId": "T0000", "complete": True, "fail": "e"},
            {"taskId": "T0000", "progress": 1, "metadata": 1},
            {"taskId": "T0000", "event": {"eventType": "LOG", "message": "m"}, "metadata": 1},
        ]
        results = data(await ask(REPORT, {"reports": reports}))["report"]
        assert [result["taskId"] for result in results] == [report["taskId"] for report in reports]
        assert [result["error"] and result["error"]["code"] for result in results] == [
            *[None] * 5,
            "TASK_NOT_FOUND",
            "TASK_FINISHED",
            None,
            "BAD_USER_INPUT",
            "LEASE_LOST",
            *["BAD_USER_INPUT"] * 5,
        ]
        assert [result["task"] and result["task"]["status"] for result in results[:8]] == [
            *("IN_PROGRESS", "PENDING", "SUCCESS", "FAILED", "CANCELED"),
            *(None, None, "IN_PROGRESS"),
        ]
        assert results[1]["task"]["lastEvent"] == {"message": "note", "metadata": [1]}
        assert results[2]["task"]["lastEvent"]["metadata"] == {"a": 1}
        # Those on one task are done in their order.
        assert (results[0]["task"]["progress"], results[7]["task"]["progress"]) == (7, 8)
        kinds = "event, progress, complete, fail, cancel"
        assert results[10]["error"]["message"] == f"A report must hold exactly one of {kinds}, got none."
        assert results[12]["error"]["message"].endswith("got complete and fail.")
        assert results[13]["error"]["message"] == "metadata goes with complete, fail or cancel; an event has its own."
        assert data(await ask(REPORT, {"reports": []})) == {"report": []}


async def test_a_progress_of_nothing_is_a_report(serving: Serving) -> None:
    async with serving() as api:
        await made(api, 1)
        report = {"taskId": "T0000", "progress": 0, "complete": False}
        (result,) = data(await api.ask(REPORT, {"reports": [report]}))["report"]
        assert result["error"] is None
        assert (result["task"]["status"], result["task"]["progress"], result["task"]["seq"]) == ("IN_PROGRESS", 0, 2)


async def test_reports_that_are_sent_again_are_written_once(serving: Serving) -> None:
    async with serving() as api:
        await made(api, 2)
        reports = [
            {"taskId": task_id, "progress": number, "idempotencyKey": f"{number}"}
            for task_id in ("T0000", "T0001")
            for number in (1, 2)
        ]
        first = data(await api.ask(REPORT, {"reports": reports}))
        again = data(await api.ask(REPORT, {"reports": reports}))
        assert [result["task"]["seq"] for result in first["report"]] == [2, 3, 2, 3]
        assert [result["task"]["seq"] for result in again["report"]] == [3, 3, 3, 3]
        other = [{**reports[0], "progress": 5}]
        (result,) = data(await api.ask(REPORT, {"reports": other}))["report"]
        assert result["error"]["code"] == "IDEMPOTENCY_CONFLICT"


async def test_reports_are_committed_together(serving: Serving) -> None:
    async with serving() as api:
        task_ids = await made(api, 300)
        gauge = api.storage.writer.gauges.group_commands
        before = gauge.count
        data(await api.ask(REPORT, {"reports": [{"taskId": task_id, "progress": 1} for task_id in task_ids]}))
        assert gauge.count - before == 1


async def test_each_report_needs_the_permission_for_its_task(serving: Serving) -> None:
    async with serving(access="closed") as api:
        await made(api, 2)
        reports = [{"taskId": task_id, "progress": 1} for task_id in ("T0000", "T0001")]
        key = await api.storage.keys.create("reader", [Permission.READ])
        results = data(await api.ask(REPORT, {"reports": reports}, key=key))["report"]
        assert [result["error"]["code"] for result in results] == ["FORBIDDEN"] * 2
        token = data(await api.ask(CREATE_TOKEN, {"id": "T0000", "scope": "REPORT"}))["createTaskToken"]["token"]
        results = data(await api.ask(REPORT, {"reports": reports}, key=token))["report"]
        assert [result["error"] and result["error"]["code"] for result in results] == [None, "FORBIDDEN"]
        anybody = (await api.post({"query": REPORT, "variables": {"reports": reports}})).json()
        assert [result["error"]["code"] for result in data(anybody)["report"]] == ["UNAUTHENTICATED"] * 2


async def test_a_fault_is_masked_and_its_report_alone(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        await made(api, 2)
        submit_each = api.storage.writer.submit_each

        async def break_one(commands: Any) -> list[Any]:
            return [RuntimeError("secret"), *(await submit_each(commands))[1:]]

        monkeypatch.setattr(type(api.storage.writer), "submit_each", lambda _, commands: break_one(commands))
        reports = [{"taskId": task_id, "progress": 1} for task_id in ("T0000", "T0001")]
        first, second = data(await api.ask(REPORT, {"reports": reports}))["report"]
        assert first["error"]["code"] == "INTERNAL_SERVER_ERROR"
        assert "secret" not in first["error"]["message"]
        assert "secret" in caplog.text
        assert second["error"] is None


async def test_what_there_is_no_room_for_is_refused_and_the_rest_is_done(serving: Serving) -> None:
    async with serving(waiting_commands_max=5) as api:
        await made(api, 9)
        reports = [{"taskId": f"T000{n}", "progress": 1} for n in range(9)]
        results = data(await api.ask(REPORT, {"reports": reports}))["report"]
        codes = [result["error"] and result["error"]["code"] for result in results]
        assert codes == [None] * 5 + ["UNAVAILABLE"] * 4


# Deleted by a filter.


async def test_what_a_filter_finds_is_deleted(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("graphql_api.batches.DELETED_TOGETHER", 3)
    async with serving() as api:
        task_ids = await made(api, 10)
        for task_id in task_ids[:7]:
            await api.complete(task_id)
        assert audited(caplog) == []
        with api.storage.feed.subscribe(task_ids[0]) as subscriber:
            assert data(await api.ask(DELETE_MANY, {"filter": {"status": ["SUCCESS", "FAILED"]}})) == {"deleteMany": 7}
            updates = await subscriber.take()
        assert updates is not None
        assert [update.type for update in updates] == ["DELETE"]
        assert audited(caplog) == [("task.delete_many", "admin", "done", "status: SUCCESS FAILED", "7")]
        assert await all_ids(api) == task_ids[7:]
        assert data(await api.ask(DELETE_MANY, {"filter": {"status": ["SUCCESS"]}})) == {"deleteMany": 0}


async def test_one_call_deletes_so_many_at_most(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphql_api.batches.DELETED_TOGETHER", 3)
    monkeypatch.setattr("graphql_api.batches.DELETED_MAX", 7)
    async with serving() as api:
        await made(api, 10)
        everything = {"filter": {"status": ["PENDING"]}}
        assert data(await api.ask(DELETE_MANY, everything)) == {"deleteMany": 7}
        assert data(await api.ask(DELETE_MANY, everything)) == {"deleteMany": 3}


@pytest.mark.parametrize("empty", [{}, {"status": None}])
async def test_a_filter_that_names_nothing_deletes_nothing(serving: Serving, empty: Answer) -> None:
    async with serving() as api:
        await made(api, 1)
        answer = await api.ask(DELETE_MANY, {"filter": empty})
        assert code(answer) == "BAD_USER_INPUT"
        assert error(answer)["message"] == "filter must name something: an empty one would delete every task."
        assert await all_ids(api) == ["T0000"]


async def test_what_others_delete_meanwhile_is_gone_as_was_wanted(serving: Serving) -> None:
    async with serving() as api:
        await made(api, 300)
        everything = {"filter": {"status": ["PENDING"]}}
        answers = await asyncio.gather(*(api.ask(DELETE_MANY, everything) for _ in range(3)))
        assert sum(data(answer)["deleteMany"] for answer in answers) == 300
        assert await all_ids(api) == []


async def test_who_may_do_it(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as api:
        await made(api, 1)
        key = await api.storage.keys.create("reporter", [Permission.REPORT])
        everything = {"filter": {"status": ["PENDING"]}}
        assert code(await api.ask(DELETE_MANY, everything, key=key)) == "FORBIDDEN"
        assert code(await api.ask(CREATE_MANY, {"tasks": [{"taskId": "U"}]}, key=key)) == "FORBIDDEN"
        assert audited(caplog) == [
            ("task.delete_many", "reporter", "FORBIDDEN", "status: PENDING"),
            ("task.create_many", "reporter", "FORBIDDEN", "1"),
        ]
        for query, variables in ((DELETE_MANY, everything), (CREATE_MANY, {"tasks": [{"taskId": "U"}]})):
            assert code((await api.post({"query": query, "variables": variables})).json()) == "UNAUTHENTICATED"
        assert audited(caplog) == []
        assert await all_ids(api) == ["T0000"]
