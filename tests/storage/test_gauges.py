"""What is counted: where it is counted, once, and no more kinds of it than there may be."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from storage import Command, Create, CreateMany, Unavailable, Update, UpdateProgress, open_storage
from storage.feed import BUFFERED_UPDATES_MAX, age_s
from storage.gauges import Histogram
from storage.lifecycle import decide
from storage.pool import open_pool
from storage.task import update_of
from tests.storage.helpers import note, submit

_whose: ContextVar[str | None] = ContextVar("whose", default=None)


def test_a_value_is_counted_below_the_first_bound_that_it_does_not_exceed() -> None:
    histogram = Histogram((1, 10))
    for value in (0, 1, 1.5, 10, 11):
        histogram.observe(value)
    histogram.observe(5, times=3)
    assert histogram.counts == [2, 5, 1]
    assert (histogram.count, histogram.sum) == (8, 38.5)


async def test_groups_waits_and_commits_are_counted(database: str) -> None:
    async with open_storage(database) as storage:
        gauges = storage.writer.gauges
        await submit(storage, Create(task_id="A"), Create(task_id="B"), Create(task_id="C"))
        assert (gauges.group_commands.count, gauges.group_commands.sum) == (1, 3)
        assert gauges.queue_wait_s.count == 3
        assert (gauges.locked_s.count, gauges.remembered_s.count) == (1, 0)
        assert gauges.locked_s.sum > 0
        await submit(storage, note("A"))
        assert (gauges.locked_s.count, gauges.remembered_s.count) == (1, 1)
        assert (gauges.taken_apart, gauges.unknown, gauges.unavailable, gauges.turned_away) == (0, 0, 0, 0)
        assert storage.writer.waiting == (0, 0)


async def test_commands_that_wait_and_those_that_are_turned_away_are_counted(database: str) -> None:
    async with open_storage(database, waiting_commands_max=2) as storage:
        first = [asyncio.ensure_future(storage.writer.submit(Create(task_id=f"T{number}"))) for number in range(2)]
        await asyncio.sleep(0)
        commands, size = storage.writer.waiting
        assert (commands, size > 0) == (2, True)
        with pytest.raises(Unavailable):
            await storage.writer.submit(Create(task_id="T3"))
        assert storage.writer.gauges.turned_away == 1
        await asyncio.gather(*first)


async def test_delivery_is_counted_once_for_each_subscriber_and_by_its_way(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
        gauges = storage.feed.gauges
        listeners = [_Listener(), _Listener(), _Listener()]
        watches = [storage.watch("T") for _ in listeners]
        for watch, listener in zip(watches, listeners, strict=True):
            await watch.fetch()
            watch.listen(listener)
        async with aclosing(storage.watch("T")) as reading:
            await anext(reading)
            await submit(storage, note())
            assert gauges.direct_s.count == 3
            # It has its news, and nobody knows yet that it came through.
            await anext(reading)
            assert gauges.buffered_s.count == 0
            await submit(storage, note())
            await anext(reading)
            assert gauges.buffered_s.count == 1
        assert (gauges.direct_s.count, gauges.followed_s.count) == (6, 0)
        for watch in watches:
            watch.close()


async def test_what_another_process_commits_is_counted_from_the_time_of_its_event(database: str) -> None:
    async with open_storage(database, feed_url=database) as here, open_storage(database, feed_url=database) as there:
        await submit(there, Create(task_id="T"))
        listener = _Listener()
        watch = here.watch("T")
        await watch.fetch()
        while not watch.caught_up:
            # That the task was created is told meanwhile.
            await watch.fetch()
        watch.listen(listener)
        await submit(there, note())
        await listener.heard.wait()
        # Counted when all have been told.
        await asyncio.sleep(0)
        gauges = here.feed.gauges
        assert (gauges.direct_s.count, gauges.followed_s.count) == (0, 1)
        assert 0 <= gauges.followed_s.sum < 10
        watch.close()


async def test_overruns_holes_and_catch_ups_are_counted(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
        gauges = storage.feed.gauges
        async with aclosing(storage.watch("T")) as watch:
            await anext(watch)
            for _ in range(BUFFERED_UPDATES_MAX):
                await submit(storage, note())
            assert gauges.overruns == 0
            await submit(storage, note())
            assert (gauges.overruns, gauges.catch_ups) == (1, 0)
            await anext(watch)
            assert gauges.catch_ups == 1
        async with aclosing(storage.watch("T")) as watch:
            await anext(watch)
            topic = storage.feed.topic("T")
            assert topic is not None
            topic.seq -= 1
            await submit(storage, note())
            assert gauges.holes == 1


async def test_waits_for_connections_are_counted(database: str) -> None:
    pool = open_pool(database, connections_max=2, pool_wait_s=0.05, statement_timeout_ms=10_000, lock_timeout_ms=10_000)
    try:
        first, second = await pool.acquire(), await pool.acquire()
        assert pool.connections == (2, 2, 2)
        assert (pool.gauges.made, pool.gauges.wait_s.count) == (2, 0)
        with pytest.raises(Unavailable):
            await pool.acquire()
        assert (pool.gauges.failed, pool.gauges.wait_s.count) == (1, 1)
        assert pool.gauges.wait_s.sum >= 0.04
        pool.release(first)
        pool.release(second)
        assert pool.connections == (2, 0, 2)
    finally:
        await pool.close()


async def test_a_tracer_is_told_of_changes_groups_and_deliveries(database: str) -> None:
    async with open_storage(database) as storage:
        storage.writer.tracer = storage.feed.tracer = tracer = _Tracer()
        await submit(storage, Create(task_id="A"), Create(task_id="B"))
        async with aclosing(storage.watch("A")) as watch:
            await anext(watch)
            await submit(storage, UpdateProgress(task_id="A", progress=1))
        assert tracer.told == [
            "change A",
            "change B",
            "group [('A', 1), ('B', 2)]",
            "end of group",
            "change A",
            "group [('A', 3)]",
            "delivery A to 1",
            "end of delivery",
            "end of group",
        ]


async def test_the_writer_has_nothing_bound_of_whoever_woke_it(database: str) -> None:
    seen: list[str | None] = []

    class Looking(_Tracer):
        @contextmanager
        def group(self, changes: Sequence[tuple[str, Any]]) -> Iterator[None]:
            seen.append(_whose.get())
            yield

    async with open_storage(database) as storage:
        storage.writer.tracer = Looking()
        _whose.set("a caller's")
        await submit(storage, Create(task_id="T"))
    assert seen == [None]


def test_an_event_from_a_clock_that_is_ahead_has_no_age() -> None:
    task = decide(None, Create(task_id="T"), datetime.now(UTC) + timedelta(seconds=60))
    assert task is not None
    assert task.last_event is not None
    assert age_s(update_of(task, (task.last_event,))) == 0


class _Listener:
    def __init__(self) -> None:
        self.heard: Final = asyncio.Event()

    def hear(self, update: Update) -> bool:
        self.heard.set()
        return True

    def wake(self) -> None:
        raise AssertionError("there is nothing to wait for")


class _Tracer:
    def __init__(self) -> None:
        self.told: list[str] = []
        self._changes = 0

    def change(self, command: Command | CreateMany, outcome: asyncio.Future[Any]) -> int:
        self.told.append(f"change {' '.join(command.task_ids)}")
        self._changes += 1
        return self._changes

    @contextmanager
    def group(self, changes: Sequence[tuple[str, Any]]) -> Iterator[None]:
        self.told.append(f"group {list(changes)}")
        yield
        self.told.append("end of group")

    def delivery(self, update: Update, subscribers: int) -> Callable[[], None]:
        self.told.append(f"delivery {update.task.task_id} to {subscribers}")
        return lambda: self.told.append("end of delivery")
