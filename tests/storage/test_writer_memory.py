"""Reports on tasks that the process remembers: one statement, and the same outcomes as by the long way."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import asyncpg
import pytest

from storage import (
    Complete,
    Create,
    Delete,
    Storage,
    Task,
    TaskFinished,
    TaskNotFound,
    UpdateProgress,
    open_storage,
)
from storage import remembered as remembered_module
from storage.errors import OutcomeUnknown
from storage.pool import Connection
from storage.remembered import Remembered
from tests.storage.helpers import COMMITS, CREATED, at_commit, messages, note, numbers, spied, submit, task_and_log

AT_ONCE = COMMITS[1:]


@contextmanager
def answers_lost(lose: Callable[[], bool]) -> Iterator[None]:
    """Let statements that commit by themselves run, and their answers be lost."""
    run = Connection.run

    async def run_and_lose(connection: Connection, statement: str, *arguments: Any) -> list[Any]:
        rows = await run(connection, statement, *arguments)
        if statement in AT_ONCE and lose():
            connection.interrupted = True
            raise ConnectionResetError
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "run", run_and_lose)
        yield


async def test_a_report_on_a_task_that_is_remembered_is_one_statement(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in "abc"))
        with spied(storage) as spy:
            await submit(storage, note("a"))
            await submit(storage, note("a"), note("b"), UpdateProgress(task_id="a", progress=7), note("c"))
            await submit(storage, Complete(task_id="b"))
        assert len(spy.statements) == spy.commits == 3
        task, log = await task_and_log(storage, "a")
        assert task is not None
        assert (task.seq, task.progress, task.status) == (4, 7, "IN_PROGRESS")
        assert [event.message for event in log] == [CREATED, "m", "m", "Progress updated to 7%"]
        assert [event.seq for event in log] == [1, 2, 3, 4]
        task, log = await task_and_log(storage, "b")
        assert task is not None
        assert (task.status, task.completed_at, len(log)) == ("SUCCESS", log[-1].timestamp, 3)


async def test_what_is_no_longer_as_it_was_remembered_goes_the_long_way(database: str) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, *(Create(task_id=task_id) for task_id in "abc"))
        await submit(two, note("b", "elsewhere"), note("c", "elsewhere"))
        outcomes = await submit(one, note("a"), note("b"), note("b"), note("c"))
        assert [(task.task_id, task.seq) for task in outcomes] == [("a", 2), ("b", 3), ("b", 4), ("c", 3)]
        assert await messages(one, "b") == [CREATED, "elsewhere", "m", "m"]
        # What was found out is remembered.
        with spied(one) as spy:
            await submit(one, note("b"))
        assert len(spy.statements) == 1


async def test_a_refusal_is_never_from_memory(database: str) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"))
        await submit(one, Complete(task_id="T"))
        await submit(two, Delete(task_id="T"), Create(task_id="T"))
        # As far as this process knows it has ended.
        (task,) = await submit(one, note())
        assert isinstance(task, Task)
        assert task.seq == 2
        await submit(two, Complete(task_id="T"))
        (refused,) = await submit(one, note())
        assert isinstance(refused, TaskFinished)
        await submit(two, Delete(task_id="T"))
        (refused,) = await submit(one, note())
        assert isinstance(refused, TaskNotFound)


async def test_a_task_that_was_born_again_with_the_same_number_is_another(database: str) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T", metadata="first"))
        await submit(two, Delete(task_id="T"))
        await submit(two, Create(task_id="T", metadata="second"))
        (task,) = await submit(one, note())
        assert (task.seq, task.metadata) == (2, '"second"')


async def test_commands_on_one_task_stay_in_order_whichever_way_they_go(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        outcomes = await submit(
            storage, note(message="1"), note(message="2", idempotency_key="k"), note("other"), note(message="3")
        )
        assert [task.seq for task in outcomes] == [2, 3, 2, 4]
        assert await messages(storage) == [CREATED, "1", "2", "3"]
        outcomes = await submit(storage, note(), Delete(task_id="T"), note(), Create(task_id="T"), note())
        assert [type(outcome) for outcome in outcomes] == [Task, type(None), TaskNotFound, Task, Task]
        assert await messages(storage) == [CREATED, "m"]


async def test_a_report_whose_answer_was_lost_is_not_written_twice_and_subscribers_see_it(database: str) -> None:
    lose = True
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            with answers_lost(lambda: lose):
                outcomes = await submit(storage, note(), note("other"))
                assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
                assert numbers([await anext(updates)]) == [2]
                lose = False
                assert [task.seq for task in await submit(storage, note(), note("other"))] == [3, 3]
        assert await messages(storage) == await messages(storage, "other") == [CREATED, "m", "m"]


@pytest.mark.parametrize("error", [asyncpg.InternalClientError("another operation is in progress"), BrokenPipeError()])
async def test_a_report_whose_connection_is_of_no_use_is_written_by_another(database: str, error: Exception) -> None:
    errors = [error]

    async def fail_once(_: Any) -> None:
        if errors:
            raise errors.pop()

    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with at_commit(storage, fail_once):
            assert [task.seq for task in await submit(storage, note(), note())] == [2, 3]
        assert await messages(storage) == [CREATED, "m", "m"]


async def test_every_report_is_written_once_or_of_unknown_outcome_while_processes_race_and_answers_are_lost(
    database: str,
) -> None:
    chance = random.Random(3)
    acknowledged: dict[str, list[str]] = {"a": [], "b": []}
    unknown: set[str] = set()

    async def work(storage: Storage, name: str) -> None:
        for number in range(60):
            task_id, message = chance.choice("ab"), f"{name} {number}"
            (outcome,) = await submit(storage, note(task_id, message))
            if isinstance(outcome, Task):
                acknowledged[task_id].append(message)
            else:
                assert isinstance(outcome, OutcomeUnknown)
                unknown.add(message)

    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="a"), Create(task_id="b"))
        with answers_lost(lambda: chance.random() < 0.05):
            await asyncio.gather(
                *(work(storage, f"{place} {worker}") for place, storage in enumerate((one, two)) for worker in range(5))
            )
        for task_id, wanted in acknowledged.items():
            written = (await messages(one, task_id))[1:]
            assert len(set(written)) == len(written)
            assert set(wanted) <= set(written)
            assert set(written) - set(wanted) <= unknown
    assert unknown


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from storage.lifecycle import decide
    from tests.storage.test_lifecycle import NOW

    monkeypatch.setattr(remembered_module, "REMEMBERED_TASKS_MAX", 3)
    remembered = Remembered()

    def keep(task_id: str, metadata: str | None = None) -> None:
        task = decide(None, Create(task_id=task_id, metadata=metadata), NOW)
        assert task is not None
        remembered.keep(task)

    for task_id in "abca":
        keep(task_id)
    keep("d")
    assert [task_id for task_id in "abcd" if remembered.get(task_id)] == ["a", "c", "d"]
    monkeypatch.setattr(remembered_module, "REMEMBERED_BYTES_MAX", 350_000)
    # Metadata counts twice: the task has it, and so has its first event.
    keep("e", "m" * 100_000)
    keep("f", "m" * 100_000)
    assert [task_id for task_id in "acdef" if remembered.get(task_id)] == ["f"]
    remembered.forget("f")
    remembered.forget("nothing")
    assert len(remembered) == 0
    assert remembered._bytes == 0
