"""How many tasks there are in each status, known without counting: it must be what counting would say."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import (
    Cancel,
    Command,
    Complete,
    Create,
    CreateMany,
    Delete,
    Fail,
    Options,
    Release,
    Retry,
    Status,
    Storage,
    UpdateProgress,
    open_storage,
    upgrade_database,
)
from storage.commands import Settle, Tick
from storage.counts import ADD, FOLD, Counts, counts_of, difference, recount
from storage.migrate import config
from storage.task import Outcome
from storage.timers import Timers
from tests.postgres import execute, session
from tests.storage.helpers import note, opened, spied, submit, until
from tests.storage.test_migrations import engine_of

IDS: Final = ("a", "b", "c", "d")


async def check(storage: Storage, database: str) -> Counts:
    """See that what is known is what there is."""
    known = await storage.reader.counts()
    async with session(database) as other:
        rows = await other.fetch("SELECT status, count(*) FROM tasks GROUP BY status")
    assert known == counts_of(rows)
    assert await storage.reader.count() == known.total
    return known


def options(**wishes: Any) -> Options:
    return Options(queue="q", retry=Retry(max_attempts=2, initial_s=0), **wishes)


_id = st.sampled_from(IDS)
_status = st.sampled_from(Status)
_creation = st.builds(
    Create,
    task_id=_id,
    status=_status,
    options=st.sampled_from([None, options(), options(expires_at=datetime(2020, 1, 1, tzinfo=UTC))]),
)
_command: st.SearchStrategy[Command] = st.one_of(
    _creation,
    st.builds(Delete, task_id=_id),
    st.builds(UpdateProgress, task_id=_id, progress=st.just(50)),
    st.builds(note, _id),
    st.builds(Complete, task_id=_id),
    st.builds(Fail, task_id=_id, error=st.just("e")),
    st.builds(Cancel, task_id=_id),
    st.builds(Cancel, task_id=_id, idempotency_key=st.just("k")),
    st.builds(Tick, task_id=_id, keep_finished_s=st.sampled_from([None, 0])),
    st.builds(Settle, task_id=_id, on=_id, outcome=st.sampled_from(Outcome)),
)
_many = st.lists(_creation, min_size=1, max_size=3, unique_by=lambda creation: creation.task_id).map(
    lambda creations: CreateMany(tasks=tuple(creations))
)
_turn = st.one_of(st.lists(_command, min_size=1, max_size=6), st.lists(_many, min_size=1, max_size=1), st.just("claim"))


def test_whatever_is_asked_the_counts_are_what_there_is(database: str) -> None:
    with opened(database) as (storage, run):

        async def try_all(turns: Sequence[Any]) -> None:
            await execute(database, "TRUNCATE tasks, task_events, task_counts, task_dependencies")
            for turn in turns:
                if turn == "claim":
                    for claim in await storage.claimer.claim("q", "w", limit=2):
                        if claim.task.task_id < "c":
                            release = Release(task_id=claim.task.task_id, token=claim.token)
                            await storage.writer.submit(release)
                elif isinstance(turn[0], CreateMany):
                    await asyncio.gather(storage.writer.create_many(turn[0]), return_exceptions=True)
                else:
                    await submit(storage, *turn)
                await check(storage, database)
                # Put together, they are the same.
                await storage.pool.run(FOLD, 10)
                await check(storage, database)

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(_turn, max_size=8))
        def holds(turns: Sequence[Any]) -> None:
            run(try_all(turns))

        holds()


async def test_two_processes_and_one_that_puts_together_count_each_task_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        done = asyncio.Event()

        async def work(storage: Storage, seed: int) -> None:
            chance = random.Random(seed)
            for turn in range(60):
                ids = [f"T{chance.randrange(60)}" for _ in range(10)]
                kinds: Any = [Create, Delete, Complete, Cancel]
                commands = [chance.choice(kinds)(task_id=task_id) for task_id in ids]
                await submit(storage, *commands, *(UpdateProgress(task_id=task_id, progress=1) for task_id in ids))
                if turn % 20 == seed:
                    await recount(storage.pool)

        async def fold() -> None:
            while not done.is_set():
                await asyncio.gather(one.pool.run(FOLD, 7), two.pool.run(FOLD, 7))
                # Nobody ever sees them in the middle of it.
                assert min(await one.reader.counts()) >= 0

        folding = asyncio.create_task(fold())
        await asyncio.gather(work(one, 1), work(two, 2))
        done.set()
        await folding
        known = await check(one, database)
        assert known.total > 0
        assert await two.reader.counts() == known


async def test_what_changes_no_status_writes_no_counts(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
        await submit(storage, *(UpdateProgress(task_id=task_id, progress=1) for task_id in IDS))
        with spied(storage) as spy:
            await submit(storage, *(UpdateProgress(task_id=task_id, progress=2) for task_id in IDS))
            await submit(storage, note("a"))
            await submit(storage, note("a", idempotency_key="k"))
            # Refused, each under the lock.
            await submit(storage, Create(task_id="a"), Complete(task_id="z"))
        assert spy.count("task_counts") == 0
        with spied(storage) as spy:
            await submit(storage, Complete(task_id="a"))
            await submit(storage, Complete(task_id="b"), Complete(task_id="c"))
        assert spy.count("task_counts") == len(spy.statements) == 2
        assert await check(storage, database) == Counts(in_progress=1, success=3)


async def test_a_deletion_alone_counts(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="a"))
        with spied(storage) as spy:
            await submit(storage, Delete(task_id="a"))
        assert ADD in spy.statements
        assert await check(storage, database) == Counts()


async def test_the_timers_put_rows_together_and_leave_one_alone(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        for number in range(5):
            await submit(storage, Create(task_id=f"T{number}"))
        timers = Timers(storage.pool, storage.writer)
        async with session(database) as other:
            rows = "SELECT count(*), max(id) FROM task_counts"
            assert (await other.fetchrow(rows))[0] == 5
            await timers.sweep()
            number, newest = await other.fetchrow(rows)
            assert number == 1
            await timers.sweep()
            # Nothing was written for nothing.
            assert await other.fetchrow(rows) == (1, newest)
        assert await check(storage, database) == Counts(pending=5)


async def test_no_more_rows_are_put_together_than_one_may(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        for number in range(5):
            await submit(storage, Create(task_id=f"T{number}"))
        await storage.pool.run(FOLD, 3)
        async with session(database) as other:
            assert await other.fetchval("SELECT count(*) FROM task_counts") == 3
        assert await check(storage, database) == Counts(pending=5)


async def test_rows_that_somebody_puts_together_are_not_waited_for(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        await submit(storage, Create(task_id="a"))
        await submit(storage, Create(task_id="b"))
        async with other.transaction():
            await other.execute(FOLD.replace("$1", "10"))
            await submit(storage, Create(task_id="c"))
            await storage.pool.run(FOLD, 10)
            assert await check(storage, database) == Counts(pending=3)
        assert await check(storage, database) == Counts(pending=3)


async def test_counting_anew_mends_what_was_changed_by_hand_while_others_go_on(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in IDS))
        await execute(database, "DELETE FROM tasks WHERE task_id = 'a'")
        assert (await storage.reader.counts()).pending == 4
        async with session(database) as other, other.transaction():
            # Somebody is in the middle of a change, which is not seen yet and will have been counted by itself.
            await other.execute(
                "INSERT INTO tasks (task_id, status, progress, seq, created_at, updated_at)"
                " VALUES ('e', 'PENDING', 0, 1, now(), now());"
                "INSERT INTO task_counts (pending, in_progress, success, failed, canceled) VALUES (1, 0, 0, 0, 0)"
            )
            await recount(storage.pool)
            assert await check(storage, database) == Counts(pending=3)
        assert await check(storage, database) == Counts(pending=4)


async def test_counting_anew_begins_again_when_rows_were_put_together_meanwhile(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        await submit(storage, Create(task_id="a"))
        await submit(storage, Create(task_id="b"))
        # As if they had come after the lock.
        monkeypatch.setattr("storage.counts._LOCK", "SELECT 1")
        transaction = other.transaction()
        await transaction.start()
        await other.execute(FOLD.replace("$1", "10"))
        counting = asyncio.create_task(recount(storage.pool))
        waiting = (
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with session(database) as third:
            await until(lambda: third.fetchval(waiting))
        await transaction.commit()
        await counting
        assert await check(storage, database) == Counts(pending=2)


async def test_a_crash_after_a_change_loses_neither_it_nor_its_count(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage, session(database) as other:
        transaction = other.transaction()
        await transaction.start()
        await submit(storage, Create(task_id="a"))
        await transaction.rollback()
        assert await check(storage, database) == Counts(pending=1)


@pytest.mark.parametrize("prepared", [False, True])
async def test_tasks_from_before_are_counted_when_the_schema_is_brought_up_to_date(
    empty_database: str, prepared: bool
) -> None:
    async with engine_of(empty_database).begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(config(sync), "0004"))
    await execute(
        empty_database,
        "INSERT INTO tasks (task_id, status, progress, seq, created_at, updated_at, failed_at)"
        " SELECT n::text, CASE WHEN n % 3 = 0 THEN 'FAILED' ELSE 'PENDING' END, 0, 1, now(), now(),"
        " CASE WHEN n % 3 = 0 THEN now() END FROM generate_series(1, 100) AS n",
    )
    if prepared:
        # As operations.md has it for large tables.
        await execute(
            empty_database,
            "CREATE INDEX CONCURRENTLY tasks_created_by ON tasks"
            ' (created_by, status, created_at, task_id COLLATE "POSIX") WHERE created_by IS NOT NULL',
        )
    await upgrade_database(empty_database)
    async with open_storage(empty_database, upgrade=False) as storage:
        assert await check(storage, empty_database) == Counts(pending=67, failed=33)


async def test_progress_touches_no_index(database: str) -> None:
    updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'tasks'"
    async with session(database) as other:
        # Other tests may have had this database before.
        before, hot_before = await other.fetchrow(updates)
        async with open_storage(database, upgrade=False) as storage:
            wishes = Options(queue="q", tags=("t",))
            await submit(storage, Create(task_id="T", metadata={"a": 1}, created_by="me", options=wishes))
            for progress in range(30):
                await submit(storage, UpdateProgress(task_id="T", progress=progress))
        # A session tells what it did when it ends.
        await until(lambda: other.fetchval(f"SELECT n_tup_upd = {before + 30} FROM ({updates}) AS told"))
        # All but the first, which changes the status.
        assert await other.fetchrow(updates) == (before + 30, hot_before + 29)


def test_the_difference_of_changes() -> None:
    assert difference([]) == ()
    assert difference([(Status.PENDING, Status.PENDING), (None, None)]) == ()
    assert difference([(Status.PENDING, Status.FAILED), (Status.FAILED, Status.PENDING)]) == ()
    assert difference([(None, Status.PENDING), (Status.FAILED, None), (Status.PENDING, Status.SUCCESS)]) == [
        *(0, 0, 1, -1, 0)
    ]
    assert Counts(1, 2, 3, 4, 5).total == 15
    assert Counts(1, 2, 3, 4, 5).of([Status.FAILED, Status.PENDING]) == Counts(pending=1, failed=4)
