"""What becomes of plans is counted once, when it is committed, and how late it was."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage import (
    BadInput,
    Cancel,
    Complete,
    Create,
    CreateMany,
    Delete,
    Fail,
    Heartbeat,
    OnDependencyFailure,
    Options,
    Release,
    Retry,
    Storage,
    Unavailable,
    UpdateProgress,
    open_storage,
)
from storage.commands import Tick
from storage.timers import Timers
from storage.turns import Turn
from tests.storage.helpers import note, submit

T0 = datetime.now(UTC)


def counted(storage: Storage) -> dict[Turn, int]:
    """The turns that there were."""
    return {turn: count for turn, count in storage.writer.aftermath.gauges.turns.items() if count}


def lags(storage: Storage) -> tuple[int, float]:
    found = storage.writer.aftermath.gauges.lag_s
    return found.count, found.sum


class Clock:
    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> datetime:
        return self.now


async def claimed(storage: Storage, task_id: str = "T", **options: Any) -> str:
    """A task that is claimed; the token of its lease."""
    await submit(storage, Create(task_id=task_id, options=Options(queue="q", **options)))
    (claim,) = await storage.claimer.claim("q", "worker", lease_s=10)
    return claim.token


async def test_what_clients_do_is_counted(database: str) -> None:
    async with open_storage(database) as storage:
        token = await claimed(storage, retry=Retry(max_attempts=2, initial_s=1, max_s=1, factor=1.0))
        assert counted(storage) == {}
        await submit(storage, Heartbeat(task_id="T", token=token, lease_s=20))
        assert counted(storage) == {Turn.HEARTBEAT: 1}
        await submit(storage, UpdateProgress(task_id="T", progress=5, token=token))
        await submit(storage, Release(task_id="T", token=token))
        assert counted(storage) == {Turn.HEARTBEAT: 1, Turn.RELEASED: 1}
        await submit(storage, Fail(task_id="T", error="e"))
        assert counted(storage)[Turn.RETRIED] == 1
        await submit(storage, Fail(task_id="T", error="e"))
        assert counted(storage) == {Turn.HEARTBEAT: 1, Turn.RELEASED: 1, Turn.RETRIED: 1, Turn.SPENT: 1}
        # Who deletes, cancels and completes ends something, and none of it is a turn.
        await submit(storage, Create(task_id="C", options=Options()), Create(task_id="D", options=Options()))
        await submit(storage, Cancel(task_id="C"), Complete(task_id="D"), Delete(task_id="T"))
        assert sum(counted(storage).values()) == 4
        assert lags(storage) == (0, 0.0)


async def test_tasks_without_a_plan_turn_nothing(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
        await submit(storage, note(), Fail(task_id="T", error="e"))
        await submit(storage, Delete(task_id="T"))
        assert counted(storage) == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [Turn.LEASE_RAN_OUT, Turn.SPENT]),
        ({"retry": Retry(max_attempts=2)}, [Turn.LEASE_RAN_OUT, Turn.RETRIED]),
        ({"expires_at": T0 + timedelta(seconds=15)}, [Turn.EXPIRED]),
    ],
)
async def test_what_time_does_to_a_claimed_task_is_counted(
    database: str, options: dict[str, Any], expected: Sequence[Turn]
) -> None:
    clock = Clock()
    async with open_storage(database) as storage:
        writer = storage.writer
        storage.claimer._clock = clock
        for committer in writer._idle:
            committer._clock = clock
        await claimed(storage, **options)
        clock.now = T0 + timedelta(seconds=9)
        await writer.submit(Tick(task_id="T"))
        assert counted(storage) == {}
        clock.now = T0 + timedelta(seconds=40)
        await writer.submit(Tick(task_id="T"))
        assert counted(storage) == dict.fromkeys(expected, 1)
        # The lease ran for ten seconds.
        assert lags(storage) == (1, 30.0)
        # Once only.
        await writer.submit(Tick(task_id="T"))
        assert counted(storage) == dict.fromkeys(expected, 1)
        assert lags(storage) == (1, 30.0)


async def test_what_falls_due_is_counted_with_the_looks_that_found_it(database: str) -> None:
    clock = Clock()
    async with open_storage(database) as storage:
        for committer in storage.writer._idle:
            committer._clock = clock
        at = T0 + timedelta(seconds=60)
        await submit(storage, *(Create(task_id=f"T{n}", options=Options(queue="q", start_at=at)) for n in range(3)))
        await submit(storage, Create(task_id="K", options=Options(keep_for_s=100)), Complete(task_id="K"))
        timers = Timers(storage.pool, storage.writer, clock=clock)
        assert await timers.look() == 0
        assert timers.gauges.found.count == 0
        clock.now = at + timedelta(seconds=2)
        assert await timers.look() == 3
        assert (timers.gauges.found.count, timers.gauges.found.sum) == (1, 3)
        assert counted(storage) == {Turn.STARTED: 3}
        assert lags(storage) == (3, 6.0)
        clock.now = T0 + timedelta(seconds=200)
        assert await timers.look() == 0
        assert await timers.remove() == 1
        assert timers.gauges.found.count == 2
        assert counted(storage) == {Turn.STARTED: 3, Turn.REMOVED: 1}
        assert lags(storage)[0] == 4


async def test_a_plain_task_that_was_kept_long_enough_is_counted_too(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"), Complete(task_id="T"))
        await storage.writer.submit(Tick(task_id="T", keep_finished_s=0))
        assert counted(storage) == {Turn.REMOVED: 1}
        # It was not due at a time of its own.
        assert lags(storage) == (0, 0.0)


@pytest.mark.parametrize("policy", OnDependencyFailure)
async def test_dependencies_that_are_settled_are_counted(database: str, policy: OnDependencyFailure) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="A"))
        waiting = Options(depends_on=("A",), on_dependency_failure=policy)
        await submit(storage, Create(task_id="B", options=waiting), Create(task_id="C", options=waiting))
        await submit(storage, Fail(task_id="A", error="e"))
        await storage.writer.messenger.brought()
        assert counted(storage) == {Turn.SETTLED: 2}


async def test_what_is_not_done_is_not_counted(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="A"), Fail(task_id="A", error="e"))
        # The first of them is settled at once, and gone with the second.
        tasks = (
            Create(task_id="B", options=Options(depends_on=("A",))),
            Create(task_id="C", options=Options(depends_on=("nobody",))),
        )
        with pytest.raises(BadInput):
            await storage.writer.create_many(CreateMany(tasks=tasks))
        assert counted(storage) == {}
        await storage.writer.create_many(CreateMany(tasks=tasks[:1]))
        assert counted(storage) == {Turn.SETTLED: 1}


async def test_claims_are_counted_and_how_long_tasks_waited(database: str) -> None:
    async with open_storage(database) as storage:
        clock = Clock()
        storage.claimer._clock = clock
        gauges = storage.claimer.gauges
        assert await storage.claimer.claim("q", "worker") == []
        assert (gauges.taken, gauges.empty, gauges.wait_s.count) == (0, 1, 0)
        options = Options(queue="q")
        created = [await storage.writer.submit(Create(task_id=f"T{n}", options=options)) for n in range(3)]
        assert created[0] is not None
        clock.now = created[0].created_at + timedelta(seconds=100)
        assert len(await storage.claimer.claim("q", "worker", limit=2)) == 2
        assert (gauges.taken, gauges.empty, gauges.wait_s.count) == (2, 1, 2)
        assert 190 < gauges.wait_s.sum <= 200
        # By a clock that is behind, nothing has waited for less than no time.
        clock.now = T0 - timedelta(days=1)
        assert len(await storage.claimer.claim("q", "worker", limit=2)) == 1
        assert (gauges.taken, gauges.empty, gauges.wait_s.count) == (3, 1, 3)
        assert gauges.wait_s.sum <= 200
        with pytest.raises(Unavailable):
            await storage.claimer.close()
            await storage.claimer.claim("q", "worker")
        assert (gauges.taken, gauges.empty) == (3, 1)
