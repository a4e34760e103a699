"""What the contract promises works, over HTTP and over the socket alike."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from tests.graphql_api.clients import TRANSPORTS, Transport, code, data, error, numbers
from tests.graphql_api.conftest import Serving

both = pytest.mark.parametrize("transport", TRANSPORTS)

EVERYTHING: Final = """
    fragment Everything on Task {
      id taskId status progress metadata seq createdBy
      createdAt updatedAt startedAt completedAt failedAt canceledAt
      lastEvent { ...Line }
      history { ...Line }
    }
    fragment Line on TaskEvent { id seq eventType message progress metadata timestamp }
"""
TASK: Final = "query($id: ID!) { task(taskId: $id) { ...Everything } }"
# The time that each status brings along, beside the creation.
ENTERED: Final = {
    "PENDING": None,
    "IN_PROGRESS": "startedAt",
    "SUCCESS": "completedAt",
    "FAILED": "failedAt",
    "CANCELED": "canceledAt",
}
METADATA: Final = {"file": "a.csv", "rows": [1, 2.5, None, True, {"ü": "☃ 🚀"}], "big": 2**62, "": {}}


def times(task: dict[str, Any]) -> set[str]:
    """Which of the times that not every task has are set."""
    return {name for name in ("startedAt", "completedAt", "failedAt", "canceledAt") if task[name] is not None}


@both
async def test_a_task_is_created_in_any_status_with_the_time_of_that_status(
    serving: Serving, transport: Transport, subtests: pytest.Subtests
) -> None:
    create = """mutation($id: ID!, $status: TaskStatus, $metadata: JSON) {
      create(taskId: $id, status: $status, progress: 30, metadata: $metadata) { ...Everything }
    }"""
    async with serving() as api, api.over(transport) as ask:
        for status, time in ENTERED.items():
            with subtests.test(status=status):
                variables = {"id": status, "status": status, "metadata": METADATA}
                task = data(await ask(EVERYTHING + create, variables))["create"]
                born = task["createdAt"]
                event = {
                    "id": f"{status}:1",
                    "seq": 1,
                    "eventType": "LOG",
                    "message": "Task created",
                    "progress": None,
                    "metadata": METADATA,
                    "timestamp": born,
                }
                assert task == {
                    "id": status,
                    "taskId": status,
                    "status": status,
                    "progress": 100 if status == "SUCCESS" else 30,
                    "metadata": METADATA,
                    "seq": 1,
                    "createdBy": "admin",
                    "createdAt": born,
                    "updatedAt": born,
                    **dict.fromkeys(("startedAt", "completedAt", "failedAt", "canceledAt")),
                    **({time: born} if time else {}),
                    "lastEvent": event,
                    "history": [event],
                }
                assert data(await ask(EVERYTHING + TASK, {"id": status}))["task"] == task
                assert born.endswith("Z")
                assert datetime.fromisoformat(born).utcoffset() == timedelta(0)


@both
async def test_a_task_without_more_than_an_id_is_pending_at_zero(serving: Serving, transport: Transport) -> None:
    async with serving() as api, api.over(transport) as ask:
        created = data(await ask('mutation { create(taskId: "T-7") { status progress metadata seq } }'))["create"]
        # What may be left out may be null as well.
        nulls = data(
            await ask(
                'mutation { create(taskId: "T-8", status: null, progress: null, metadata: null)'
                " { status progress metadata seq } }"
            )
        )["create"]
    assert created == nulls == {"status": "PENDING", "progress": 0, "metadata": None, "seq": 1}


# What each report makes of a task that is at 10 %: status, progress, time, and the event.
REPORTS: Final[dict[str, tuple[str, int, str | None, tuple[str, str, int | None, Any]]]] = {
    'addEvent(taskId: $id, event: { eventType: LOG, message: "rows read", metadata: { n: 7 } })': (
        ("IN_PROGRESS", 10, None, ("LOG", "rows read", None, {"n": 7}))
    ),
    'addEvent(taskId: $id, event: { eventType: ERROR, message: "", progress: 20 })': (
        ("IN_PROGRESS", 20, None, ("ERROR", "", 20, None))
    ),
    'addEvent(taskId: $id, event: { eventType: SUCCESS, message: "part 1", progress: null, metadata: null })': (
        ("IN_PROGRESS", 10, None, ("SUCCESS", "part 1", None, None))
    ),
    "updateProgress(taskId: $id, progress: 5)": (
        ("IN_PROGRESS", 5, None, ("PROGRESS", "Progress updated to 5%", 5, None))
    ),
    'complete(taskId: $id, metadata: ["done"])': (
        ("SUCCESS", 100, "completedAt", ("SUCCESS", "Task completed successfully", 100, ["done"]))
    ),
    'fail(taskId: $id, error: "disk full", metadata: { free: 0 })': (
        ("FAILED", 10, "failedAt", ("ERROR", "disk full", None, {"free": 0}))
    ),
    'cancel(taskId: $id, metadata: "by hand")': (
        ("CANCELED", 10, "canceledAt", ("ERROR", "Task canceled", None, "by hand"))
    ),
}


@both
async def test_a_report_changes_the_task_and_writes_one_event(
    serving: Serving, transport: Transport, subtests: pytest.Subtests
) -> None:
    async with serving() as api, api.over(transport) as ask:
        for number, (report, (status, progress, time, event)) in enumerate(REPORTS.items()):
            with subtests.test(report=report):
                task_id = f"T-{number}"
                await api.create(task_id, metadata=METADATA)
                await api.report(task_id, 10)
                mutation = f"mutation($id: ID!) {{ told: {report} {{ ...Everything }} }}"
                task = data(await ask(EVERYTHING + mutation, {"id": task_id}))["told"]

                assert (task["status"], task["progress"], task["seq"]) == (status, progress, 3)
                assert task["metadata"] == METADATA
                assert times(task) == {"startedAt"} | ({time} if time else set())
                assert time is None or task[time] == task["updatedAt"]
                last = task["lastEvent"]
                assert (last["eventType"], last["message"], last["progress"], last["metadata"]) == event
                assert (last["id"], last["seq"], last["timestamp"]) == (f"{task_id}:3", 3, task["updatedAt"])
                assert [line["seq"] for line in task["history"]] == [1, 2, 3]
                assert task["history"][-1] == last
                assert task["createdAt"] <= task["startedAt"] <= task["updatedAt"]
                assert data(await ask(EVERYTHING + TASK, {"id": task_id}))["task"] == task


@both
async def test_a_deleted_task_is_gone_and_its_id_is_free(serving: Serving, transport: Transport) -> None:
    async with serving() as api, api.over(transport) as ask:
        await api.create("T-7")
        await api.complete("T-7")
        assert data(await ask('mutation { delete(taskId: "T-7") }')) == {"delete": "T-7"}
        assert data(await ask('{ task(taskId: "T-7") { id } }')) == {"task": None}
        assert code(await ask('mutation { delete(taskId: "T-7") }')) == "TASK_NOT_FOUND"
        again = data(await ask('mutation { create(taskId: "T-7") { status seq history { seq } } }'))["create"]
    assert again == {"status": "PENDING", "seq": 1, "history": [{"seq": 1}]}


@both
async def test_history_gives_the_events_that_its_arguments_name(serving: Serving, transport: Transport) -> None:
    expected = {
        "": range(11, 61),
        "(first: 3)": range(1, 4),
        "(last: 3)": range(58, 61),
        "(first: 1000)": range(1, 61),
        "(last: 1000)": range(1, 61),
        "(after: 50)": range(51, 61),
        "(before: 5)": range(1, 5),
        "(first: 2, after: 7)": range(8, 10),
        "(last: 2, before: 7)": range(5, 7),
        "(first: 9, after: 3, before: 6)": range(4, 6),
        "(first: 2, last: null, after: null)": range(1, 3),
        "(after: 60)": range(0),
        "(after: 2000000000)": range(0),
        "(before: 0)": range(0),
        "(after: 5, before: 6)": range(0),
    }
    fields = " ".join(f"h{number}: history{arguments} {{ seq }}" for number, arguments in enumerate(expected))
    async with serving() as api, api.over(transport) as ask:
        await api.create("T-7")
        for progress in range(59):
            await api.report("T-7", progress)
        task = data(await ask(f'{{ task(taskId: "T-7") {{ seq {fields} }} }}'))["task"]
    assert task.pop("seq") == 60
    found = [[event["seq"] for event in history] for history in task.values()]
    assert dict(zip(expected, found, strict=True)) == {name: list(seqs) for name, seqs in expected.items()}


@both
async def test_tasks_are_listed_newest_first_page_by_page(serving: Serving, transport: Transport) -> None:
    page = """query($after: String) {
      tasks(first: 3, after: $after) {
        nodes { id } edges { cursor node { id } }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
        totalCount
      }
    }"""
    async with serving() as api, api.over(transport) as ask:
        for number in range(7):
            await api.create(f"T-{number}")
        pages: list[Any] = []
        after = None
        while not pages or pages[-1]["pageInfo"]["hasNextPage"]:
            pages.append(data(await ask(page, {"after": after}))["tasks"])
            after = pages[-1]["pageInfo"]["endCursor"]
            # What is created meanwhile belongs in front of the first page, and shifts no other.
            await api.create(f"later-{len(pages)}")
        # Every edge's cursor is a place from which one can go on.
        middle = data(await ask(page, {"after": pages[0]["edges"][0]["cursor"]}))["tasks"]

    assert [[node["id"] for node in each["nodes"]] for each in pages] == [
        ["T-6", "T-5", "T-4"],
        ["T-3", "T-2", "T-1"],
        ["T-0"],
    ]
    assert [each["totalCount"] for each in pages] == [7, 8, 9]
    assert [each["pageInfo"]["hasPreviousPage"] for each in pages] == [False, True, True]
    for each in pages:
        assert [edge["node"] for edge in each["edges"]] == each["nodes"]
        assert each["edges"][0]["cursor"] == each["pageInfo"]["startCursor"]
        assert each["edges"][-1]["cursor"] == each["pageInfo"]["endCursor"]
    assert [node["id"] for node in middle["nodes"]] == ["T-5", "T-4", "T-3"]


@both
async def test_a_list_can_be_filtered_by_status(serving: Serving, transport: Transport) -> None:
    expected = {
        "": ["CANCELED", "FAILED", "SUCCESS", "IN_PROGRESS", "PENDING"],
        "(filter: {})": ["CANCELED", "FAILED", "SUCCESS", "IN_PROGRESS", "PENDING"],
        "(filter: null, first: null, after: null)": ["CANCELED", "FAILED", "SUCCESS", "IN_PROGRESS", "PENDING"],
        "(filter: { status: null })": ["CANCELED", "FAILED", "SUCCESS", "IN_PROGRESS", "PENDING"],
        "(filter: { status: FAILED })": ["FAILED"],
        "(filter: { status: [PENDING, SUCCESS, PENDING] })": ["SUCCESS", "PENDING"],
        "(filter: { status: [PENDING, SUCCESS] }, first: 1)": ["SUCCESS"],
        "(filter: { status: [] })": [],
    }
    fields = " ".join(
        f"l{number}: tasks{arguments} {{ nodes {{ status }} totalCount pageInfo {{ startCursor endCursor }} }}"
        for number, arguments in enumerate(expected)
    )
    async with serving() as api, api.over(transport) as ask:
        for status in ENTERED:
            await api.create(status, status=status)
        lists = list(data(await ask(f"{{ {fields} }}")).values())
    found = [[node["status"] for node in each["nodes"]] for each in lists]
    assert dict(zip(expected, found, strict=True)) == expected
    assert [each["totalCount"] for each in lists] == [5, 5, 5, 5, 1, 2, 2, 0]
    assert lists[-1]["pageInfo"] == {"startCursor": None, "endCursor": None}


@both
async def test_a_viewer_learns_who_it_is_and_what_it_may_do(serving: Serving, transport: Transport) -> None:
    async with serving() as api, api.over(transport) as ask:
        viewer = data(await ask("{ viewer { name authenticated permissions } }"))["viewer"]
        await api.create("T-7")
        assert data(await ask('{ task(taskId: "T-7") { createdBy } }'))["task"] == {"createdBy": "admin"}
    assert viewer == {
        "name": "admin",
        "authenticated": True,
        "permissions": ["READ", "REPORT", "CREATE", "LIST", "DELETE", "ADMIN"],
    }


KEYED: Final = {
    "addEvent": 'addEvent(taskId: $id, event: { eventType: LOG, message: "a" }, idempotencyKey: "k") { seq }',
    "updateProgress": 'updateProgress(taskId: $id, progress: 50, idempotencyKey: "k") { seq }',
    "complete": 'complete(taskId: $id, metadata: { a: 1, b: 2 }, idempotencyKey: "k") { seq }',
    "fail": 'fail(taskId: $id, error: "no", idempotencyKey: "k") { seq }',
    "cancel": 'cancel(taskId: $id, idempotencyKey: "k") { seq }',
}


@both
async def test_a_repeated_report_adds_no_second_event(
    serving: Serving, transport: Transport, subtests: pytest.Subtests
) -> None:
    async with serving() as api, api.over(transport) as ask:
        for operation, report in KEYED.items():
            with subtests.test(operation=operation):
                variables = {"id": operation}
                await api.create(operation)
                mutation = f"mutation($id: ID!) {{ told: {report} }}"
                # At the same time over HTTP; and once more when it is done, which may have ended the task.
                told = await asyncio.gather(*(api.ask(mutation, variables) for _ in range(5)))
                # Not the same text, but the same arguments.
                told.append(await ask(mutation.replace("{ a: 1, b: 2 }", "{ b: 2, a: 1 }"), variables))
                assert [data(answer)["told"]["seq"] for answer in told] == [2] * 6
                before = await api.seen(operation)
                for other in KEYED.values():
                    if other is not report:
                        refused = await ask(f"mutation($id: ID!) {{ told: {other} }}", variables)
                        assert code(refused) == "IDEMPOTENCY_CONFLICT"
                assert await api.seen(operation) == before
                assert [event["seq"] for event in before["history"]] == [1, 2]


@both
async def test_the_same_key_with_other_arguments_is_a_conflict(serving: Serving, transport: Transport) -> None:
    report = (
        'mutation($progress: Int!) { updateProgress(taskId: "T-7", progress: $progress, idempotencyKey: "k") { seq } }'
    )
    async with serving() as api, api.over(transport) as ask:
        await api.create("T-7")
        await api.create("T-8")
        data(await ask(report, {"progress": 50}))
        refused = await ask(report, {"progress": 51})
        # On another task it is another key.
        data(await ask(report.replace("T-7", "T-8"), {"progress": 51}))
        assert (await api.seen("T-7"))["progress"] == 50
    assert code(refused) == "IDEMPOTENCY_CONFLICT"
    assert '"k"' in error(refused)["message"]


@both
async def test_mutations_of_one_document_happen_in_its_order_and_refuse_each_for_itself(
    serving: Serving, transport: Transport
) -> None:
    document = """mutation {
      a: create(taskId: "T-7") { seq status }
      b: updateProgress(taskId: "T-7", progress: 50) { seq status }
      c: complete(taskId: "T-7") { seq status history { seq } }
      d: delete(taskId: "T-7")
      e: create(taskId: "T-7") { seq status }
    }"""
    async with serving() as api, api.over(transport) as ask:
        answer = data(await ask(document))
        # A field that may not be null takes the whole answer with it; what was done before it stays done.
        failing = await ask("""mutation {
          first: updateProgress(taskId: "T-7", progress: 1) { seq }
          wrong: updateProgress(taskId: "nobody", progress: 2) { seq }
          after: updateProgress(taskId: "T-7", progress: 3) { seq }
        }""")
        assert (await api.seen("T-7"))["progress"] in (1, 3)
    assert list(answer) == ["a", "b", "c", "d", "e"]
    assert answer["a"] == {"seq": 1, "status": "PENDING"}
    assert answer["b"] == {"seq": 2, "status": "IN_PROGRESS"}
    assert answer["c"] == {"seq": 3, "status": "SUCCESS", "history": [{"seq": 1}, {"seq": 2}, {"seq": 3}]}
    assert answer["d"] == "T-7"
    assert answer["e"] == {"seq": 1, "status": "PENDING"}
    assert failing["data"] is None
    assert (code(failing), error(failing)["path"]) == ("TASK_NOT_FOUND", ["wrong"])


@both
async def test_documents_may_use_all_of_the_language(serving: Serving, transport: Transport) -> None:
    document = """
      query Tasks($id: ID!, $yes: Boolean!, $no: Boolean = false) {
        mine: task(taskId: $id) {
          ...Named
          ... on Task { progress @include(if: $yes) seq @include(if: $no) }
          ... @skip(if: $yes) { status }
          __typename
        }
        other: task(taskId: "nobody") { ...Named }
        number: task(taskId: 7) { id }
        tasks(first: 1) { nodes { ...Named } }
      }
      fragment Named on Task { name: taskId, event: lastEvent { message } }
      query Unused { viewer { name } }
    """
    mine = {"name": "T-7", "event": {"message": "Task created"}}
    async with serving() as api:
        await api.create("T-7")
        variables = {"id": "T-7", "yes": True}
        if transport == "http":
            body = {"query": document, "variables": variables, "operationName": "Tasks"}
            answer = (await api.post(body, key=api.admin_key)).json()
        else:
            async with api.socket(key=api.admin_key) as socket:
                payload = {"query": document, "variables": variables, "operationName": "Tasks"}
                await socket.say({"type": "subscribe", "id": "a", "payload": payload})
                (answer,) = await socket.until_complete("a")
        schema = data(await api.ask('{ __schema { queryType { name } } __type(name: "Task") { kind } }'))
    assert data(answer) == {
        "mine": {**mine, "progress": 0, "__typename": "Task"},
        "other": None,
        "number": None,
        "tasks": {"nodes": [mine]},
    }
    assert schema == {"__schema": {"queryType": {"name": "Query"}}, "__type": {"kind": "OBJECT"}}


@both
async def test_metadata_may_be_written_in_the_document_with_variables_inside(
    serving: Serving, transport: Transport
) -> None:
    document = """mutation($name: String) {
      create(taskId: "T-7", metadata: { name: $name, list: [1, -2.5, true, null, "x", WORD], empty: {} }) { metadata }
    }"""
    async with serving() as api, api.over(transport) as ask:
        answer = data(await ask(document, {"name": "a.csv"}))
    metadata = {"name": "a.csv", "list": [1, -2.5, True, None, "x", "WORD"], "empty": {}}
    assert answer == {"create": {"metadata": metadata}}


async def test_a_subscriber_sees_a_task_from_its_snapshot_to_its_end(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        watch = await socket.watch("T-7")
        assert await socket.update(watch) == {
            "type": "SNAPSHOT",
            "task": {"seq": 1, "status": "PENDING", "progress": 0},
            "events": [],
        }
        log = 'addEvent(taskId: "T-7", event: { eventType: LOG, message: "half" })'
        for report, kind, status, progress, message in (
            (log, "EVENT", "PENDING", 0, "half"),
            ('updateProgress(taskId: "T-7", progress: 50)', "PROGRESS", "IN_PROGRESS", 50, "Progress updated to 50%"),
            ('complete(taskId: "T-7")', "COMPLETE", "SUCCESS", 100, "Task completed successfully"),
        ):
            seq = data(await api.ask(f"mutation {{ told: {report} {{ seq }} }}"))["told"]["seq"]
            assert await socket.update(watch) == {
                "type": kind,
                "task": {"seq": seq, "status": status, "progress": progress},
                "events": [{"seq": seq, "message": message}],
            }
        assert await socket.take() == {"id": watch, "type": "complete"}
        assert api.storage.feed.subscribers == 0


async def test_an_end_of_the_task_is_the_last_update(serving: Serving) -> None:
    ends = {
        'complete(taskId: "COMPLETE") { id }': "COMPLETE",
        'fail(taskId: "FAIL", error: "no") { id }': "FAIL",
        'cancel(taskId: "CANCEL") { id }': "CANCEL",
        'delete(taskId: "DELETE")': "DELETE",
    }
    async with serving() as api, api.socket() as socket:
        for report, kind in ends.items():
            await api.create(kind)
            watch = await socket.watch(kind)
            assert (await socket.update(watch))["type"] == "SNAPSHOT"
            data(await api.ask(f"mutation {{ {report} }}"))
            assert [update["type"] for update in await socket.updates(watch)] == [kind]


async def test_a_finished_task_is_a_snapshot_and_the_end(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        await api.complete("T-7")
        updates = await socket.updates(await socket.watch("T-7", 0))
    assert [(update["type"], [event["seq"] for event in update["events"]]) for update in updates] == [
        ("SNAPSHOT", [1, 2])
    ]


async def test_a_snapshot_brings_what_came_after_the_number_seen(serving: Serving) -> None:
    expected = {None: [], 0: [1, 2, 3], 1: [2, 3], 3: [], 4: [1, 2, 3], 2_000_000_000: [1, 2, 3]}
    async with serving() as api, api.socket() as socket:
        for after_seq, seqs in expected.items():
            task_id = f"after-{after_seq}"
            await api.create(task_id)
            await api.report(task_id, 1)
            await api.report(task_id, 2)
            watch = await socket.watch(task_id, after_seq)
            snapshot = await socket.update(watch)
            assert (snapshot["type"], snapshot["task"]["seq"], numbers([snapshot])) == ("SNAPSHOT", 3, seqs)
            await api.report(task_id, 3)
            assert numbers([await socket.update(watch)]) == [4]


async def test_a_stopped_subscription_says_nothing_more_and_its_id_is_free(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        for _ in range(3):
            await socket.subscribe('subscription { taskUpdates(taskId: "T-7") { type } }', operation_id="again")
            assert (await socket.following("again"))["data"]["taskUpdates"] == {"type": "SNAPSHOT"}
            await socket.say({"type": "complete", "id": "again"})
        watch = await socket.watch("T-7")
        await socket.update(watch)
        await api.complete("T-7")
        # The others would have spoken first, or in between.
        assert len(await socket.updates(watch)) == 1
        await socket.say({"type": "ping"})
        assert await socket.take() == {"type": "pong"}


async def test_a_fresh_id_may_be_used_again_as_soon_as_its_operation_has_ended(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        for _ in range(20):
            await socket.subscribe("{ viewer { authenticated } }", operation_id="1")
            assert await socket.until_complete("1") == [{"data": {"viewer": {"authenticated": False}}}]
