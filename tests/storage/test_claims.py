"""Claims on a real PostgreSQL: each task to one worker, and what becomes of it when the worker does not end it."""

import asyncio
from collections import Counter
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from storage import (
    BadInput,
    Cancel,
    Claim,
    Complete,
    Create,
    CreateMany,
    Fail,
    Heartbeat,
    LeaseLost,
    Options,
    Release,
    Retry,
    Status,
    Storage,
    TaskFinished,
    Unavailable,
    UpdateProgress,
    open_storage,
)
from storage.commands import Tick
from tests.postgres import execute, session
from tests.storage.helpers import at_commit, kill_connections, messages, note, row_locked, spied, submit, task_and_log
from tests.storage.linked import processes

QUEUED: Final = Options(queue="q")
# How many updates of tasks there were, and how many of them touched no index.
_UPDATED: Final = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'tasks'"


async def queued(storage: Storage, count: int, **options: Any) -> list[str]:
    """Make so many tasks that can be claimed."""
    many = [Create(task_id=f"T{n:05}", options=Options(queue="q", **options)) for n in range(count)]
    for start in range(0, count, 500):
        await storage.writer.create_many(CreateMany(tasks=tuple(many[start : start + 500])))
    return [task.task_id for task in many]


def ids(claims: list[Claim]) -> list[str]:
    return [claim.task.task_id for claim in claims]


async def test_higher_priority_goes_first_and_then_the_oldest(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)):
            await submit(storage, Create(task_id=name, options=Options(queue="q", priority=priority)))
        await submit(storage, Create(task_id="elsewhere", options=Options(queue="other")), Create(task_id="plain"))
        assert ids(await storage.claimer.claim("q", "w", limit=2)) == ["b", "d"]
        assert ids(await storage.claimer.claim("q", "w", limit=100)) == ["a", "c", "e"]
        assert await storage.claimer.claim("q", "w") == []


async def test_the_tasks_that_are_ready_can_be_counted_up_to_a_bound(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        assert await storage.reader.ready("q") == 0
        await queued(storage, 7)
        await storage.claimer.claim("q", "w")
        assert await storage.reader.ready("q") == 6
        monkeypatch.setattr("storage.reader.READY_COUNTED_MAX", 5)
        assert await storage.reader.ready("q") == 5
        with pytest.raises(BadInput):
            await storage.reader.ready("")


async def test_a_claim_is_an_event_that_subscribers_see(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 1)
        with storage.feed.subscribe("T00000") as subscriber:
            (claim,) = await storage.claimer.claim("q", "w", lease_s=30, actor="me")
            updates = await subscriber.take()
        assert updates is not None
        assert [update.task for update in updates] == [claim.task]
        assert claim.attempt == 1
        assert claim.expires_at == claim.task.updated_at + timedelta(seconds=30)
        stored, log = await task_and_log(storage, "T00000")
        assert stored == claim.task._replace(last_event=None)
        assert (log[-1].message, log[-1].actor) == ('Claimed by "w", attempt 1 of 1', "me")


async def test_the_claims_of_one_turn_are_one_transaction_and_each_gets_its_own(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 10)
        with spied(storage) as spy:
            claims = await asyncio.gather(*(storage.claimer.claim("q", f"w{n}", limit=3) for n in range(5)))
        assert spy.commits == 1
        assert [len(mine) for mine in claims] == [3, 3, 3, 1, 0]
        assert sorted(task_id for mine in claims for task_id in ids(mine)) == [f"T{n:05}" for n in range(10)]
        for number, mine in enumerate(claims):
            assert {claim.task.plan.worker for claim in mine if claim.task.plan} <= {f"w{number}"}


async def test_many_claimers_in_several_processes_drain_a_queue_and_no_task_goes_to_two(database: str) -> None:
    held: Counter[str] = Counter()

    async def work(storage: Storage, name: str) -> None:
        while claims := await storage.claimer.claim("q", name, limit=3):
            for claim in claims:
                task_id = claim.task.task_id
                held[task_id] += 1
                await submit(storage, UpdateProgress(task_id=task_id, progress=50, token=claim.token))
                done = await storage.writer.submit(Complete(task_id=task_id, token=claim.token))
                assert done is not None
                assert done.seq == 4

    async with processes(database, database, 2) as storages:
        task_ids = await queued(storages[0], 2_000)
        workers = [work(storages[number % 2], f"w{number}") for number in range(32)]
        await asyncio.gather(*workers)
        assert held == Counter(task_ids)
        async with session(database) as other:
            assert await other.fetchval("SELECT count(*) FROM tasks WHERE status = 'SUCCESS' AND attempt = 1") == 2_000
            assert await other.fetchval("SELECT count(*) FROM tasks WHERE ready OR due_at IS NOT NULL") == 0


async def test_a_task_that_somebody_has_locked_is_left_out_and_nobody_waits(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 3)
        async with row_locked(database, "T00001"):
            assert ids(await storage.claimer.claim("q", "w", limit=3)) == ["T00000", "T00002"]
        assert ids(await storage.claimer.claim("q", "w", limit=3)) == ["T00001"]


async def test_reports_and_claims_at_once_leave_each_task_with_one_story(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        task_ids = await queued(storage, 200)

        async def report() -> None:
            for start in range(0, 200, 20):
                await submit(storage, *(note(task_id) for task_id in task_ids[start : start + 20]))

        await asyncio.gather(
            storage.claimer.claim("q", "w", limit=100),
            *(report() for _ in range(3)),
            storage.claimer.claim("q", "v", limit=100),
        )
        # Those that were locked by reports were left out.
        await storage.claimer.claim("q", "w", limit=100)
        await storage.claimer.claim("q", "w", limit=100)
        for task_id in task_ids:
            assert len(await messages(storage, task_id)) == 5


async def test_what_is_lost_is_refused_and_changes_nothing(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 2)
        mine, other = await storage.claimer.claim("q", "w", limit=2)
        task_id = mine.task.task_id
        for command in (
            UpdateProgress(task_id=task_id, progress=5, token=other.token),
            Complete(task_id=task_id, token="stale"),
            Heartbeat(task_id=task_id, token=other.token, lease_s=5),
            Release(task_id=task_id, token=other.token),
            Heartbeat(task_id=task_id, token="stale", lease_s=5),
        ):
            with pytest.raises(LeaseLost):
                await storage.writer.submit(command)
        assert await storage.reader.task(task_id) == mine.task._replace(last_event=None)


async def test_a_repetition_of_the_report_that_ended_the_lease_is_answered(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 1, retry=Retry(max_attempts=2))
        (claim,) = await storage.claimer.claim("q", "w")
        for end in (Fail(task_id="T00000", error="e", token=claim.token, idempotency_key="k"),):
            first = await storage.writer.submit(end)
            assert await storage.writer.submit(end) == first._replace(last_event=None)  # type: ignore[union-attr]
            with pytest.raises(LeaseLost):
                await storage.writer.submit(Fail(task_id="T00000", error="e", token=claim.token))


async def test_a_heartbeat_keeps_the_lease_and_another_process_says_so_too(database: str) -> None:
    async with processes(database, database, 2) as (one, two):
        await queued(one, 1)
        (claim,) = await one.claimer.claim("q", "w", lease_s=5)
        kept = await two.writer.submit(Heartbeat(task_id="T00000", token=claim.token, lease_s=500))
        assert kept is not None
        assert kept.plan is not None
        assert kept.seq == claim.task.seq
        # The first remembers the task as it was claimed; what it says of the lease is true nevertheless.
        with spied(one) as spy:
            task = await one.writer.submit(UpdateProgress(task_id="T00000", progress=5, token=claim.token))
        assert len(spy.statements) == 1
        assert task is not None
        assert task.plan is not None
        assert task.plan.lease_expires_at == kept.plan.lease_expires_at


async def test_subscribers_see_a_claim_of_which_nobody_knows_whether_it_was_made(database: str) -> None:
    async def commit_and_break(connection: Any) -> None:
        await connection.execute("COMMIT")
        raise ConnectionResetError

    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 1)
        async with aclosing(storage.watch("T00000")) as updates:
            await anext(updates)
            with at_commit(storage, commit_and_break), pytest.raises(Unavailable):
                await storage.claimer.claim("q", "w")
            update = await anext(updates)
        assert (update.task.status, [event.seq for event in update.events]) == (Status.IN_PROGRESS, [2])


async def test_heartbeats_touch_no_index(empty_database: str) -> None:
    # In a database of its own: what was counted stays with one that is used again.
    async with open_storage(empty_database) as storage:
        await queued(storage, 1)
        (claim,) = await storage.claimer.claim("q", "w")
        for _ in range(20):
            await storage.writer.submit(Heartbeat(task_id="T00000", token=claim.token, lease_s=600))
    async with session(empty_database) as connection:
        # PostgreSQL tells what a session did some time after it has ended.
        while (counted := await connection.fetchrow(_UPDATED))["n_tup_upd"] < 21:
            await connection.execute("SELECT pg_sleep(0.01)")
    # The claim did.
    assert counted["n_tup_upd"] - counted["n_tup_hot_upd"] == 1


async def test_a_worker_hears_of_a_cancel_by_its_heartbeat(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 1)
        (claim,) = await storage.claimer.claim("q", "w")
        await submit(storage, Cancel(task_id="T00000"))
        beaten = await storage.writer.submit(Heartbeat(task_id="T00000", token=claim.token, lease_s=5))
        assert beaten is not None
        assert beaten.status is Status.CANCELED
        with pytest.raises(TaskFinished):
            await storage.writer.submit(Complete(task_id="T00000", token=claim.token))


async def test_what_is_given_back_is_claimed_again(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 1)
        (claim,) = await storage.claimer.claim("q", "w")
        await storage.writer.submit(Release(task_id="T00000", token=claim.token))
        (again,) = await storage.claimer.claim("q", "v")
        assert (again.attempt, again.token != claim.token) == (1, True)


async def test_what_somebody_claimed_who_has_gone_is_given_back(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        (task_id,) = await queued(storage, 1)
        going = asyncio.create_task(storage.claimer.claim("q", "w"))

        async def go(_: Any) -> None:
            going.cancel()

        with at_commit(storage, go), pytest.raises(asyncio.CancelledError):
            await going
        await storage.claimer.close()
        task = await storage.reader.task(task_id)
        assert task is not None
        assert task.plan is not None
        assert (task.status, task.plan.ready, task.plan.attempt) == (Status.PENDING, True, 0)
        assert (await messages(storage, task_id))[-1] == 'Given back by "w"'


async def test_a_lease_that_ran_out_makes_the_task_claimable_and_at_last_fails_it(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 1, retry=Retry(max_attempts=2))
        for attempt in (1, 2):
            (claim,) = await storage.claimer.claim("q", "w", lease_s=1)
            assert claim.attempt == attempt
            await lapse(database)
            await submit(storage, Tick(task_id="T00000"))
        task = await storage.reader.task("T00000")
        assert task is not None
        assert task.status is Status.FAILED


async def lapse(database: str) -> None:
    """Let all leases be over."""
    await execute(database, "UPDATE tasks SET lease_expires_at = '2020-01-01', due_at = '2020-01-01'")


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        ("", {}),
        ("q" * 65, {}),
        ("q", {"limit": 0}),
        ("q", {"limit": 101}),
        ("q", {"lease_s": 0}),
        ("q", {"lease_s": 24 * 3600 + 1}),
        ("q", {"actor": ""}),
    ],
)
async def test_a_bad_claim_is_refused(database: str, queue: str, arguments: dict[str, Any]) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with pytest.raises(BadInput):
            await storage.claimer.claim(queue, "w", **arguments)
        with pytest.raises(BadInput):
            await storage.claimer.claim("q", "")
        assert await storage.claimer.claim("q" * 64, "w" * 255, limit=100, lease_s=24 * 3600) == []


async def test_too_many_waiting_claims_are_refused(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.claimer.WAITING_CLAIMS_MAX", 3)
    async with open_storage(database, upgrade=False) as storage:
        outcomes = await asyncio.gather(*(storage.claimer.claim("q", "w") for _ in range(4)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [list, list, list, Unavailable]


async def test_a_claim_survives_a_connection_that_died_while_it_lay_idle(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await queued(storage, 2)
        assert len(await storage.claimer.claim("q", "w")) == 1
        await kill_connections(database)
        assert len(await storage.claimer.claim("q", "w")) == 1


async def test_after_the_end_no_claim_is_taken(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await storage.claimer.close()
        with pytest.raises(Unavailable, match="shutting down"):
            await storage.claimer.claim("q", "w")


async def test_times_and_lists_of_a_plan_come_back_as_they_were_given(database: str) -> None:
    options = Options(
        tags=["a,b", 'c"d', "e\\f", "{g}", "NULL", "é", " "],
        queue="q",
        priority=-7,
        start_at=datetime(2100, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        expires_at=datetime(2100, 1, 2, 3, 4, 6, tzinfo=UTC),
        keep_for_s=9,
        retry=Retry(max_attempts=3, initial_s=4, max_s=5, factor=1.1),
    )
    async with open_storage(database, upgrade=False) as storage:
        for task_id, others in (("T", [Create(task_id="plain")]), ("U", [])):
            created, *_ = await submit(storage, Create(task_id=task_id, options=options), *others)
            assert await storage.reader.task(task_id) == created._replace(last_event=None)
        page = await storage.reader.page(10, None)
        assert {task.task_id: task.plan is None for task in page.tasks} == {"T": False, "U": False, "plain": True}
