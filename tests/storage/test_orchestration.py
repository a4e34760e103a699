"""Everything at once in two processes, on one database: whatever happens in whatever order, nothing is left hanging."""

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from storage import (
    BadInput,
    Cancel,
    Command,
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
    UpdateProgress,
    open_storage,
)
from storage.task import FINAL
from tests.postgres import session
from tests.storage.helpers import submit
from tests.storage.linked import processes

# What nobody should find when all is over.
WAITS_FOR_WHAT_IS_OVER = """
    SELECT count(*) FROM tasks AS waiting, unnest(waiting.blocked_by) AS other_id
    LEFT JOIN tasks AS other ON other.task_id = other_id
    WHERE waiting.status IN ('PENDING', 'IN_PROGRESS')
    AND (other.task_id IS NULL OR other.status IN ('SUCCESS', 'FAILED', 'CANCELED'))
"""
OPEN = "status IN ('PENDING', 'IN_PROGRESS')"
HOLES = """
    SELECT count(*) FROM tasks WHERE seq <> (SELECT count(*) FROM task_events e WHERE e.task_id = tasks.task_id)
    OR seq <> (SELECT max(seq) FROM task_events e WHERE e.task_id = tasks.task_id)
"""
STRAY_EVENTS = "SELECT count(*) FROM task_events e WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.task_id = e.task_id)"
TIMED_WRONGLY = "SELECT count(*) FROM tasks WHERE due_at < now() - interval '1 min' OR (ready AND due_at < now())"


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_nobody_waits_for_what_is_over(database: str, seed: int) -> None:
    random = Random(seed)
    holders: defaultdict[str, set[str]] = defaultdict(set)

    def options(names: list[str]) -> Options:
        soon = datetime.now(UTC) + timedelta(milliseconds=random.randrange(1500))
        return Options(
            queue="q",
            priority=random.randrange(3),
            depends_on=random.sample(names, min(len(names), random.randrange(4))),
            on_dependency_failure=random.choice(list(OnDependencyFailure)),
            retry=Retry(max_attempts=random.randint(1, 3), initial_s=0),
            start_at=soon if random.random() < 0.2 else None,
            expires_at=soon + timedelta(seconds=2) if random.random() < 0.2 else None,
        )

    async def ask(storage: Storage, name: str, others: list[str]) -> None:
        # Those that are asked at once are in one group, or in one of either process.
        task_id = random.choice(others)
        command = random.choice(
            [
                Complete(task_id=task_id),
                Fail(task_id=task_id, error="e"),
                Cancel(task_id=task_id),
                Delete(task_id=task_id),
                UpdateProgress(task_id=task_id, progress=50),
            ]
        )
        many = (Create(task_id=f"{name}-a", options=options([f"{name}-b", *others])), Create(task_id=f"{name}-b"))
        await asyncio.gather(
            storage.writer.submit(Create(task_id=name, options=options(others))),
            storage.writer.submit(command),
            storage.writer.create_many(CreateMany(tasks=many)),
            return_exceptions=True,
        )

    async def work(storage: Storage, worker: str) -> None:
        for claim in await storage.claimer.claim("q", worker, limit=3, lease_s=1):
            holders[claim.task.task_id].add(claim.token)
            shown: Any = {"task_id": claim.task.task_id, "token": claim.token}
            command = random.choice(
                [
                    Complete(**shown),
                    Fail(**shown, error="e"),
                    Release(**shown),
                    Heartbeat(**shown, lease_s=1),
                    None,
                ]
            )
            if command is not None:
                await asyncio.gather(storage.writer.submit(command), return_exceptions=True)

    async with processes(database, database, 2) as storages, open_storage(database, upgrade=False, timers=True):
        names = ["first"]
        await storages[0].writer.submit(Create(task_id="first"))
        for turn in range(40):
            doing = []
            for place, storage in enumerate(storages):
                name = f"T{turn}-{place}"
                doing += [ask(storage, name, list(names[-12:])), work(storage, f"w{place}")]
                names += [name, f"{name}-a", f"{name}-b"]
            await asyncio.gather(*doing)
        # All that still can be done is done: whoever is ready is claimed and succeeds, until there is nobody.
        async with session(database) as other:
            async with asyncio.timeout(30):
                while await other.fetchval(f"SELECT count(*) FROM tasks WHERE {OPEN}"):
                    # Nobody claims those, or has.
                    rows = await other.fetch(
                        f"SELECT task_id FROM tasks WHERE {OPEN} AND lease_expires_at IS NULL"
                        " AND (max_attempts IS NULL OR status = 'IN_PROGRESS')"
                    )
                    ends: list[Complete] = [Complete(task_id=row[0]) for row in rows]
                    for claim in await storages[1].claimer.claim("q", "last", limit=100):
                        ends.append(Complete(task_id=claim.task.task_id, token=claim.token))
                    await submit(storages[0], *ends)
                    await asyncio.sleep(0.02)
                while await other.fetchval("SELECT count(*) FROM task_dependencies WHERE outcome IS NOT NULL"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            for query in (WAITS_FOR_WHAT_IS_OVER, HOLES, STRAY_EVENTS, TIMED_WRONGLY):
                assert await other.fetchval(query) == 0, query
            assert await other.fetchval("SELECT count(*) FROM tasks") > 40
            rows = await other.fetch(
                "SELECT task_id, status, attempt, max_attempts FROM tasks WHERE attempt IS NOT NULL"
            )
            assert all(row["status"] in FINAL and row["attempt"] <= row["max_attempts"] for row in rows)
        assert len(holders) > 10


async def test_the_one_who_waits_and_the_one_who_ends_meet_however_long_each_takes(database: str) -> None:
    """The lock is held at each of its ends in turn, by somebody who takes his time."""
    async with processes(database, database, 2) as (one, two), session(database) as other:
        for number in range(10):
            a, d = f"a{number}", f"D{number}"
            await one.writer.submit(Create(task_id=a))
            transaction = other.transaction()
            await transaction.start()
            await other.execute("SELECT 1 FROM tasks WHERE task_id = $1 FOR UPDATE", a)
            commands: list[Command] = [
                Create(task_id=d, options=Options(queue="q", depends_on=[a])),
                Complete(task_id=a),
            ]
            asked = list(zip((two, one), commands, strict=True))
            (storage, command), (storage_2, command_2) = asked if number % 2 else asked[::-1]
            pending = [asyncio.create_task(storage.writer.submit(command))]
            for _ in range(number):
                await asyncio.sleep(0)
            pending.append(asyncio.create_task(storage_2.writer.submit(command_2)))
            for _ in range(number):
                await asyncio.sleep(0)
            await transaction.rollback()
            await asyncio.gather(*pending)
            await one.writer.messenger.brought()
            await two.writer.messenger.brought()
            task = await two.reader.task(d)
            assert task is not None
            assert task.plan is not None
            assert task.plan.ready


async def test_a_dependency_that_is_deleted_before_the_dependent_is_made_is_unknown(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        outcomes = await asyncio.gather(
            storage.writer.submit(Create(task_id="a")),
            storage.writer.submit(Delete(task_id="a")),
            storage.writer.submit(Create(task_id="D", options=Options(depends_on=["a"]))),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes[1:]] == [type(None), BadInput]
