"""Two processes that write to one database: two storages, which know nothing of each other."""

import asyncio
from itertools import chain
from typing import Any

import pytest

from storage import (
    Create,
    Storage,
    Task,
    TaskAlreadyExists,
    open_storage,
)
from tests.postgres import session, set_for_database
from tests.storage.helpers import (
    CREATED,
    messages,
    note,
    row_locked,
    submit,
    until_blocked,
)


async def test_two_processes_write_the_same_tasks_in_opposite_orders(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [f"T{n:02}" for n in range(40)]
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:

        async def work(storage: Storage, order: list[str]) -> list[Any]:
            outcomes = await submit(storage, *(Create(task_id=task_id) for task_id in order))
            for turn in range(25):
                # One report has the same key in both processes.
                keyed = (note(task_id, "both", idempotency_key=f"{turn}") for task_id in order)
                outcomes += await submit(storage, *(note(task_id) for task_id in order), *keyed)
            return outcomes

        outcomes = chain(*await asyncio.gather(work(one, ids), work(two, ids[::-1])))
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        # Each task was created once, and reports never failed: neither a deadlock nor a number that was given twice.
        assert [type(refusal) for refusal in refused] == [TaskAlreadyExists] * len(ids)
        assert caplog.records == []
        for task_id in ids:
            assert sorted(await messages(one, task_id)) == sorted([CREATED] + ["m"] * 50 + ["both"] * 25)


async def test_two_processes_create_the_same_tasks_in_the_same_order(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    creations = [Create(task_id=task_id) for task_id in "abc"]
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        async with session(database) as other:
            # Both stop at "b", each with what it has inserted before. Were that "a" for one and "c" for the other, then
            # each would wait for the other afterwards.
            transaction = other.transaction()
            await transaction.start()
            await other.execute("INSERT INTO tasks VALUES ('b', 'PENDING', 0, null, 1, null, now(), now())")
            both = asyncio.gather(submit(one, *creations), submit(two, *creations[::-1]))
            await until_blocked(database, sessions=2)
            await transaction.rollback()
            outcomes = chain(*await both)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Task"] * 3 + ["TaskAlreadyExists"] * 3
    assert caplog.records == []


async def test_two_processes_lock_the_same_tasks_in_the_same_order(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    reports = [note(task_id) for task_id in "abc"]
    # One finds the rows as they lie in the table, the other by their IDs.
    await only_scan_by(database, "seqscan")
    async with open_storage(database, upgrade=False) as one:
        for task_id in "cba":
            await submit(one, Create(task_id=task_id))
        await only_scan_by(database, "indexscan")
        async with open_storage(database, upgrade=False) as two:
            async with row_locked(database, "b"):
                both = asyncio.gather(submit(one, *reports), submit(two, *reports[::-1]))
                await until_blocked(database, sessions=2)
            outcomes = chain(*await both)
    assert [type(outcome) for outcome in outcomes] == [Task] * 6
    assert caplog.records == []


async def only_scan_by(database: str, way: str) -> None:
    """Have those who connect from now on find rows in one way."""
    for one in ("seqscan", "indexscan", "bitmapscan"):
        await set_for_database(database, f"enable_{one} = {'on' if one == way else 'off'}")


async def test_two_processes_work_whatever_the_servers_default_isolation_is(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    await set_for_database(database, "default_transaction_isolation = serializable")
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"))
        async with row_locked(database):
            both = [asyncio.create_task(submit(storage, note())) for storage in (one, two)]
            await until_blocked(database, sessions=2)
        assert sorted(task.seq for (task,) in await asyncio.gather(*both)) == [2, 3]
    assert caplog.records == []
