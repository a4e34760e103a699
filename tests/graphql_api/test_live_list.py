"""A list that is watched: the latest state of each task that changes, of tasks that leave it too, and nothing stale."""

import asyncio
import json
from typing import Any

import pytest

from graphql_api import vigil as vigil_module
from graphql_api.execution.plan import Plan, Plans
from storage import Create, Permission, UpdateProgress, live_watch
from tests.graphql_api.clients import WAIT_S, Answer, Api, Socket, code, data, error, until
from tests.graphql_api.conftest import Serving

LIST = """
    subscription($filter: TaskFilter) {
      tasksUpdated(filter: $filter) { type task { id status progress seq } events { seq message } }
    }
"""
READ = "{ tasks(first: 1000) { nodes { id status progress seq } } }"
# A task of its own, of which every list is told that asks for everything.
LAST = "last"


async def watch(socket: Socket, wanted: Answer | None = None, query: str = LIST) -> str:
    """Begin to watch a list; return when it has begun."""
    watching = await socket.subscribe(query, {"filter": wanted})
    # What is asked after it on the same socket is answered after it has begun.
    data(await socket.ask("{ viewer { name } }"))
    return watching


async def told(socket: Socket, watching: str) -> Answer:
    """The next update."""
    update = data(await socket.following(watching))["tasksUpdated"]
    assert isinstance(update, dict)
    return update


async def short(socket: Socket, watching: str) -> tuple[str, str, str]:
    """The next update: its type, and which task is in which status."""
    update = await told(socket, watching)
    return update["type"], update["task"]["id"], update["task"]["status"]


async def test_every_change_of_every_task_is_told(serving: Serving) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        watching = await watch(socket)
        await api.create("A")
        assert await told(socket, watching) == {
            "type": "EVENT",
            "task": {"id": "A", "status": "PENDING", "progress": 0, "seq": 1},
            "events": [{"seq": 1, "message": "Task created"}],
        }
        await api.create("B")
        assert (await told(socket, watching))["task"]["id"] == "B"
        await api.report("A", 40)
        update = await told(socket, watching)
        assert (update["type"], update["task"]["progress"], update["events"][0]["seq"]) == ("PROGRESS", 40, 2)
        await api.complete("A")
        assert (await told(socket, watching))["type"] == "COMPLETE"
        await api.ask('mutation { delete(taskId: "B") }')
        update = await told(socket, watching)
        assert (update["type"], update["task"]["id"], update["events"]) == ("DELETE", "B", [])


async def test_a_task_that_starts_or_stops_to_match_is_told_and_one_that_does_not_match_is_not(
    serving: Serving,
) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        watching = await watch(socket, {"status": ["IN_PROGRESS"]})
        await api.create("T")
        await api.report("T", 1)
        assert await short(socket, watching) == ("PROGRESS", "T", "IN_PROGRESS")
        await api.complete("T")
        # It has left the list, which is seen by its status.
        assert await short(socket, watching) == ("COMPLETE", "T", "SUCCESS")
        await api.create("canceled")
        await api.ask('mutation { cancel(taskId: "canceled") { id } }')
        await api.create(LAST, status="IN_PROGRESS")
        assert await short(socket, watching) == ("EVENT", LAST, "IN_PROGRESS")
        await api.ask('mutation { delete(taskId: "T") }')
        assert await short(socket, watching) == ("DELETE", "T", "SUCCESS")


async def test_a_task_that_was_not_heard_of_before_is_told_once_if_it_may_have_matched(serving: Serving) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        for task_id in ("A", "B"):
            await api.create(task_id, status="IN_PROGRESS")
        pending = await watch(socket, {"status": ["PENDING"]})
        await api.report("A", 1)
        # For all that this process knows it was PENDING just before.
        assert await short(socket, pending) == ("PROGRESS", "A", "IN_PROGRESS")
        await api.report("A", 2)
        await api.complete("A")
        await api.create(LAST)
        assert await short(socket, pending) == ("EVENT", LAST, "PENDING")
        # Of those that have ended it knows better: they did not before.
        await socket.say({"type": "complete", "id": pending})
        ended = await watch(socket, {"status": ["FAILED", "SUCCESS"]})
        await api.report("B", 1)
        await api.ask(f'mutation {{ cancel(taskId: "{LAST}") {{ id }} }}')
        await api.complete("B")
        assert await short(socket, ended) == ("COMPLETE", "B", "SUCCESS")


async def test_what_never_changes_is_asked_of_each_change(serving: Serving) -> None:
    create = (
        "mutation($id: ID!, $metadata: JSON, $options: TaskOptions)"
        "{ create(taskId: $id, metadata: $metadata, options: $options) { id } }"
    )
    async with serving() as api, api.socket(key=api.admin_key) as one, api.socket(key=api.admin_key) as other:
        filters: list[tuple[Socket, Answer]] = [
            (one, {"metadata": {"team": {"name": "red"}}, "taskIdPrefix": "a"}),
            (other, {"tags": ["x", "y"], "queue": "q", "createdBy": "admin"}),
        ]
        watching = [(socket, await watch(socket, wanted)) for socket, wanted in filters]
        await api.ask(create, {"id": "a-1", "metadata": {"team": {"name": "red", "size": 3}}})
        await api.ask(create, {"id": "b-1", "metadata": {"team": {"name": "red", "size": 3}}})
        await api.ask(create, {"id": "a-2", "metadata": {"team": {"name": "blue"}}})
        await api.ask(create, {"id": "b-2", "options": {"tags": ["y", "x", "z"], "queue": "q"}})
        await api.ask(create, {"id": "b-3", "options": {"tags": ["y"], "queue": "q"}})
        for task_id in ("a-2", "b-1", "b-3", "a-1", "b-2"):
            await api.complete(task_id)
        for socket, operation_id in watching:
            task_id = "a-1" if socket is one else "b-2"
            seen = [await short(socket, operation_id)]
            # They may have come in one round.
            while seen[-1][0] != "COMPLETE":
                seen.append(await short(socket, operation_id))
            assert {found for _, found, _ in seen} == {task_id}


async def test_a_lease_that_runs_out_is_told_when_it_is_taken_away(serving: Serving) -> None:
    async with serving(timers=True) as api, api.socket(key=api.admin_key) as socket:
        await api.ask(
            'mutation { create(taskId: "T", options: {queue: "q", retry: {maxAttempts: 2}}) { id } }',
        )
        working = await watch(socket, {"status": ["IN_PROGRESS"]})
        await api.ask('mutation { claim(queue: "q", worker: "w", leaseSeconds: 1) { token } }')
        assert await short(socket, working) == ("EVENT", "T", "IN_PROGRESS")
        assert await short(socket, working) == ("EVENT", "T", "PENDING")


async def test_a_list_is_for_those_who_may_list(serving: Serving) -> None:
    async with serving() as api:
        key = await api.storage.keys.create("reader", [Permission.READ])
        for credential, expected in ((None, "UNAUTHENTICATED"), (key, "FORBIDDEN")):
            async with api.socket(key=credential) as socket:
                await socket.subscribe(LIST)
                message = await socket.take()
                assert (message["type"], message["payload"][0]["extensions"]["code"]) == ("error", expected)
        async with api.socket(key=api.admin_key) as socket:
            for wanted in ({"metadata": [1]}, {"tags": ["t"] * 10 + [""]}, {"taskIdPrefix": ""}):
                await socket.subscribe(LIST, {"filter": wanted})
                message = await socket.take()
                assert (message["type"], message["payload"][0]["extensions"]["code"]) == ("error", "BAD_USER_INPUT")
        assert api.storage.live.subscribers == api.storage.live.filters == 0


async def test_what_is_asked_after_a_subscription_is_answered_after_it_has_begun(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = asyncio.Event()
    plan = Plans.plan

    async def slow(plans: Plans, query: str, operation_name: str | None, sha256: str | None) -> Plan:
        if query == LIST:
            await prepared.wait()
        return await plan(plans, query, operation_name, sha256)

    monkeypatch.setattr(Plans, "plan", slow)
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        watching = await socket.subscribe(LIST)
        creating = await socket.subscribe('mutation { create(taskId: "T") { id } }')
        await socket.say({"type": "ping"})
        assert await socket.take() == {"type": "pong"}
        # Whoever asks elsewhere has not to wait, and was later.
        await api.create("other")
        assert await api.storage.reader.task("T") is None
        prepared.set()
        told_of = {message["id"] for message in [await socket.take() for _ in range(3)] if message["type"] == "next"}
        assert told_of == {watching, creating}
        # One that comes to nothing holds nobody up, nor does one that is given up.
        prepared.clear()
        await socket.subscribe("subscription { nothing }")
        gone = await socket.subscribe(LIST)
        asked = await socket.subscribe("{ viewer { name } }")
        await socket.say({"type": "complete", "id": gone})
        while (message := await socket.take())["id"] != asked:
            assert message["type"] == "error"
        assert message["type"] == "next"


async def test_a_client_that_does_not_read_is_told_the_latest_state_of_each_task(serving: Serving) -> None:
    tasks, changes = 40, 100
    async with serving() as api, api.narrow_socket() as slow, api.socket(key=api.admin_key) as quick:
        await slow.send(json.dumps({"type": "ping", "payload": {"authorization": f"Bearer {api.admin_key}"}}))
        assert (await slow.take())["payload"]["authorization"] == "accepted"
        for number in range(tasks):
            await api.create(f"T-{number}", metadata={"m": "m" * 2_000})
        slow_list = await watch(slow, query=LIST.replace("progress seq", "progress seq metadata"))
        quick_list = await watch(quick)
        slow.wire.transport.pause_reading()
        for progress in range(changes):
            commands = [UpdateProgress(task_id=f"T-{number}", progress=progress) for number in range(tasks)]
            await asyncio.gather(*map(api.storage.writer.submit, commands))
            update = await told(quick, quick_list)
        slow.wire.transport.resume_reading()
        await api.create(LAST)
        wanted = {task["id"]: task for task in data(await api.ask(READ))["tasks"]["nodes"]}
        for socket, operation_id in ((slow, slow_list), (quick, quick_list)):
            shown: dict[str, Answer] = {}
            messages = 0
            while shown != wanted:
                update = await told(socket, operation_id)
                update["task"].pop("metadata", None)
                older = shown.get(update["task"]["id"], {"seq": 0})
                assert update["task"]["seq"] > older["seq"]
                assert len(update["events"]) == 1
                shown[update["task"]["id"]] = update["task"]
                messages += 1
            if socket is slow:
                assert messages < tasks * changes / 2
        assert api.storage.live.gauges.coalesced > 0


async def test_one_task_that_changes_all_the_time_is_told_ten_times_a_second(serving: Serving) -> None:
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        await api.create("T")
        watching = await watch(socket)
        began = asyncio.get_running_loop().time()
        for progress in range(300):
            await api.storage.writer.submit(UpdateProgress(task_id="T", progress=progress % 100))
        took_s = asyncio.get_running_loop().time() - began
        messages = 0
        while (await told(socket, watching))["task"]["seq"] < 301:
            messages += 1
        assert messages <= 2 + 10 * took_s


@pytest.mark.parametrize("waiting", [20, 21])
async def test_more_tasks_than_can_wait_end_the_list_and_say_so(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    monkeypatch.setattr(live_watch, "WAITING_TASKS_MAX", 20)
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        watching = await watch(socket)
        # In one turn of the loop, so that no round is between.
        await asyncio.gather(*(api.storage.writer.submit(Create(task_id=f"T-{number}")) for number in range(waiting)))
        message = await socket.take()
        if waiting == 20:
            assert message["type"] == "next"
            for _ in range(19):
                await told(socket, watching)
            return
        (shown,) = message["payload"]
        assert (message["id"], message["type"]) == (watching, "error")
        assert shown["extensions"] == {"code": "LIST_OUTDATED", "retryable": True}
        assert shown["path"] == ["tasksUpdated"]
        assert api.storage.live.gauges.outdated == 1
        # The socket goes on, and so may the client.
        again = await watch(socket)
        await api.create(LAST)
        assert await short(socket, again) == ("EVENT", LAST, "PENDING")


async def test_a_selection_that_must_ask_the_database_is_told_as_well(serving: Serving) -> None:
    query = "subscription { tasksUpdated { task { seq history(last: 2) { seq } } } }"
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        watching = await watch(socket, query=query)
        await api.create("T")
        assert (await told(socket, watching))["task"] == {"seq": 1, "history": [{"seq": 1}]}
        await api.report("T", 1)
        assert (await told(socket, watching))["task"] == {"seq": 2, "history": [{"seq": 1}, {"seq": 2}]}


async def test_a_list_ends_with_the_credential_by_which_it_was_asked_for(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vigil_module, "LOOKS_APART_S", 0.01)
    async with serving() as api:
        key = await api.storage.keys.create("dashboard", [Permission.LIST])
        async with api.socket(key=key) as socket:
            watching = await watch(socket)
            await api.storage.keys.revoke("dashboard")
            message = await socket.take()
            assert (message["id"], message["type"]) == (watching, "error")
            assert message["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
            await until(lambda: api.storage.live.subscribers == 0)


@pytest.mark.parametrize("content_type", ["text/event-stream", "multipart/mixed"])
async def test_a_list_is_told_over_http(serving: Serving, content_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_watch, "WAITING_TASKS_MAX", 3)
    async with serving() as api:
        request: dict[str, Any] = {
            "json": {"query": LIST},
            "headers": {"Accept": content_type, "Authorization": f"Bearer {api.admin_key}"},
        }
        async with asyncio.timeout(WAIT_S), api.http.stream("POST", "/graphql", **request) as response:
            await until(lambda: api.storage.live.subscribers == 1)
            await api.create("T")
            parts = response.aiter_text()
            text = ""
            while '"T"' not in text:
                text += await anext(parts)
            await asyncio.gather(*(api.storage.writer.submit(Create(task_id=f"T-{number}")) for number in range(4)))
            while "LIST_OUTDATED" not in text:
                text += await anext(parts)
        await until(lambda: api.storage.live.subscribers == 0)


async def test_ten_who_watch_500_changes_a_second_all_see_what_the_table_has(serving: Serving) -> None:
    async with serving() as api, asyncio.TaskGroup() as group:
        for number in range(50):
            await api.create(f"T-{number}")
        begun = [asyncio.Event() for _ in range(10)]
        seen = [group.create_task(follow(api, event)) for event in begun]
        for event in begun:
            await event.wait()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(1_000):
            change = UpdateProgress(task_id=f"T-{number * 7 % 50}", progress=number // 10)
            await api.storage.writer.submit(change)
            await asyncio.sleep(max(0.0, began + number / 500 - loop.time()))
        await api.create(LAST)
        wanted = {task["id"]: task for task in data(await api.ask(READ))["tasks"]["nodes"]}
        assert all([await one == wanted for one in seen])


async def follow(api: Api, begun: asyncio.Event) -> dict[str, Answer]:
    """What a dashboard shows when it has been told of the last task: subscribed, then read, then told."""
    async with api.socket(key=api.admin_key) as socket:
        watching = await socket.subscribe(LIST)
        reading = await socket.subscribe(READ)
        shown: dict[str, Answer] = {}
        while True:
            message = await socket.take()
            if message["type"] == "complete":
                begun.set()
                continue
            answer = data(message["payload"])
            tasks = [answer["tasksUpdated"]["task"]] if message["id"] == watching else answer["tasks"]["nodes"]
            assert message["id"] in (watching, reading)
            for task in tasks:
                if task["seq"] > shown.get(task["id"], {"seq": 0})["seq"]:
                    shown[task["id"]] = task
            # It changed last, so it is told last.
            if LAST in shown:
                return shown


async def test_no_more_different_lists_are_watched_than_each_change_can_be_held_against(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.live.FILTERS_MAX", 2)
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        for wanted in ({"queue": "a"}, {"queue": "b"}, {"queue": "a"}):
            await watch(socket, wanted)
        refused = await socket.subscribe(LIST, {"filter": {"queue": "c"}})
        message = await socket.take()
        assert (message["id"], code({"errors": message["payload"]})) == (refused, "UNAVAILABLE")
        assert error({"errors": message["payload"]})["extensions"]["retryable"] is True


@pytest.mark.parametrize("field", ["lastEvent { seq eventType message timestamp }", "history { seq }"])
async def test_the_log_of_a_task_that_is_deleted_ends_no_stream(serving: Serving, field: str) -> None:
    query = f"subscription {{ tasksUpdated {{ type task {{ id seq updatedAt {field} }} events {{ seq }} }} }}"
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        await api.create("T")
        watching = await watch(socket, query=query)
        await api.ask('mutation { delete(taskId: "T") }')
        update = await told(socket, watching)
        task = update["task"]
        assert (update["type"], task["id"], task["seq"], update["events"]) == ("DELETE", "T", 1, [])
        if "history" in task:
            assert task["history"] == []
        else:
            gone = {"seq": 1, "eventType": "LOG", "message": "The task was deleted, and its log with it."}
            assert task["lastEvent"] == {**gone, "timestamp": task["updatedAt"]}
        # The stream goes on, and another task of that ID is another.
        await api.create("T")
        update = await told(socket, watching)
        assert (update["type"], update["task"]["id"]) == ("EVENT", "T")


async def test_an_update_says_nothing_of_the_task_that_came_after_its_own(serving: Serving) -> None:
    query = "subscription { tasksUpdated { type task { id seq lastEvent { message } history { message } } } }"
    async with serving() as api, api.socket(key=api.admin_key) as socket:
        await api.create("T")
        watching = await watch(socket, query=query)
        # In one request: both are told in the same round, when the new task is there.
        await api.ask('mutation { delete(taskId: "T") create(taskId: "T", metadata: 1) { id } }')
        while (update := await told(socket, watching))["type"] == "DELETE":
            assert update["task"]["history"] == []
        assert [event["message"] for event in update["task"]["history"]] == ["Task created"]
