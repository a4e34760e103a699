"""Many who watch one task, fast and slow: each sees every event once and in order, and nobody pays for another."""

import asyncio
import random
from typing import Any, Final

import pytest

from storage import AddEvent, Complete, EventType, Task
from tests.graphql_api.clients import WATCH, Api, numbers, until
from tests.graphql_api.conftest import Serving

# What the server may hold of what a client has not taken yet: one chunk of the log.
UNSENT_BYTES_MAX: Final = 10 * 1024 * 1024


async def test_two_subscribers_are_sent_the_same(serving: Serving) -> None:
    async with serving() as api, api.socket() as one, api.socket() as other:
        await api.create("T-7")
        watches = [(client, await client.watch("T-7", 0)) for client in (one, other)]
        first = [await client.update(watch) for client, watch in watches]
        await asyncio.gather(*(api.report("T-7", progress) for progress in range(20)))
        await api.complete("T-7")
        rest = [await client.updates(watch) for client, watch in watches]
    assert first[0] == first[1]
    assert rest[0] == rest[1]
    assert numbers(first[:1] + rest[0]) == list(range(1, 23))


async def test_what_is_committed_while_the_snapshot_is_read_is_not_missed(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        read = api.storage.reader.task

        async def read_just_before_the_end(task_id: str) -> Task | None:
            task = await read(task_id)
            await api.storage.writer.submit(Complete(task_id=task_id))
            return task

        monkeypatch.setattr(api.storage.reader, "task", read_just_before_the_end)
        updates = await socket.updates(await socket.watch("T-7"))
    assert [(update["type"], update["task"]["seq"]) for update in updates] == [("SNAPSHOT", 1), ("COMPLETE", 2)]


async def test_subscriptions_of_one_socket_are_told_apart(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        for task_id in ("A", "B"):
            await api.create(task_id)
        watches = {await socket.watch(task_id): task_id for task_id in ("A", "B", "A")}
        for _ in watches:
            assert (await socket.take())["payload"]["data"]["taskUpdates"]["type"] == "SNAPSHOT"
        await api.complete("B")
        await api.complete("A")
        messages = [await socket.take() for _ in range(2 * len(watches))]
    told = [(watches[message["id"]], message["type"]) for message in messages]
    assert told[:2] == [("B", "next"), ("B", "complete")]
    assert sorted(told[2:]) == [("A", "complete")] * 2 + [("A", "next")] * 2


async def test_a_long_history_comes_in_snapshots_of_at_most_500_events(serving: Serving) -> None:
    async with serving() as api, api.socket() as socket:
        await api.create("T-7")
        await add_events(api, 1_201)
        watch = await socket.watch("T-7", 1)
        snapshots = [await socket.update(watch) for _ in range(3)]
        await api.complete("T-7")
        rest = await socket.updates(watch)
    assert [(update["type"], len(update["events"])) for update in snapshots] == [
        ("SNAPSHOT", 500),
        ("SNAPSHOT", 500),
        ("SNAPSHOT", 201),
    ]
    assert numbers(snapshots + rest) == list(range(2, 1_204))


async def add_events(api: Api, count: int, metadata: Any = None) -> None:
    """Write events, many in each commit."""
    commands = [
        AddEvent(task_id="T-7", event_type=EventType.LOG, message=str(number), metadata=metadata)
        for number in range(count)
    ]
    for start in range(0, count, 250):
        await asyncio.gather(*map(api.storage.writer.submit, commands[start : start + 250]))


async def test_a_subscriber_that_does_not_read_costs_little_delays_nobody_and_misses_nothing(serving: Serving) -> None:
    count, metadata = 5_000, ["m" * 4_000]
    query = WATCH.replace("{ seq message }", "{ seq message metadata }")
    async with serving() as api, api.narrow_socket() as slow, api.socket() as quick:
        await api.create("T-7")
        slow_watch = await slow.subscribe(query, {"id": "T-7", "afterSeq": 1})
        await slow.update(slow_watch)
        slow.wire.transport.pause_reading()
        quick_watch = await quick.watch("T-7", 1)
        await quick.update(quick_watch)

        most = 0
        for _ in range(count // 250):
            await add_events(api, 250, metadata)
            # The quick one has all of it while the slow one has read none.
            seen: list[int] = []
            while len(seen) < 250:
                seen += numbers([await quick.update(quick_watch)])
                most = max(most, unsent_bytes(api))
        assert 0 < most < UNSENT_BYTES_MAX

        slow.wire.transport.resume_reading()
        await api.complete("T-7")
        updates = await slow.updates(slow_watch)
    assert numbers(updates) == list(range(2, count + 3))
    assert updates[-1]["type"] == "COMPLETE"


def unsent_bytes(api: Api) -> int:
    """What the server holds in memory for sockets that are slower than it is."""
    connections: Any = api.server.server_state.connections
    return sum(connection.transport.get_write_buffer_size() for connection in connections)


# Twenty callers with eight reports each, after the creation.
CALLERS, REPORTS, WATCHERS = 20, 8, 200
LAST: Final = 1 + CALLERS * REPORTS


async def test_whoever_joins_and_leaves_while_many_report_sees_each_event_after_its_snapshot_once_in_order(
    serving: Serving,
) -> None:
    async with serving() as api:
        await api.create("T-7")
        async with asyncio.TaskGroup() as group:
            for number in range(WATCHERS):
                group.create_task(join_and_leave(api, number))
            for _ in range(CALLERS):
                group.create_task(report_often(api))
        assert (await api.seen("T-7"))["seq"] == LAST
        await until(lambda: api.storage.feed.subscribers == 0)


async def report_often(api: Api) -> None:
    for progress in range(REPORTS):
        await api.report("T-7", progress)


async def join_and_leave(api: Api, number: int) -> None:
    """Watch from some moment on, for some messages or to the end; see that nothing is missing or told twice."""
    # The same choices each time.
    choice = random.Random(number)
    begin, messages = choice.randrange(LAST), choice.choice([1, 3, 10, LAST])
    after_seq = choice.choice([None, 0, begin])
    await reached(api, begin)
    async with api.socket() as socket:
        watch = await socket.watch("T-7", after_seq)
        update = await socket.update(watch)
        assert update["type"] == "SNAPSHOT"
        seen = after_seq
        if seen is None:
            assert update["events"] == []
            seen = int(update["task"]["seq"])
        while True:
            count = len(update["events"])
            assert numbers([update]) == list(range(seen + 1, seen + count + 1))
            seen += count
            assert update["task"]["seq"] >= seen
            messages -= 1
            if messages == 0 or seen == LAST:
                return
            update = await socket.update(watch)
            assert update["type"] == "PROGRESS"


async def reached(api: Api, seq: int) -> None:
    """Wait until the task has so many events."""
    with api.storage.feed.subscribe("T-7") as subscriber:
        while (task := await api.storage.reader.task("T-7")) is not None and task.seq < seq:
            await subscriber.take()
