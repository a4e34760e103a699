"""The same key with the same report: one event, whenever and however often it comes."""

from dataclasses import replace
from typing import Final

import pytest

from storage import (
    Cancel,
    Command,
    Complete,
    Create,
    Delete,
    EventType,
    Fail,
    IdempotencyConflict,
    Status,
    TaskNotFound,
    UpdateProgress,
    open_storage,
)
from tests.storage.helpers import (
    CREATED,
    messages,
    note,
    submit,
    task_and_log,
)

KEYED: Final = note(message="keyed", metadata=[1], idempotency_key="k")


async def test_a_key_that_comes_twice_in_one_group_adds_one_event(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        outcomes = await submit(storage, KEYED, KEYED, note())
        assert [outcome.seq for outcome in outcomes] == [2, 2, 3]
        assert await messages(storage) == [CREATED, "keyed", "m"]
    # It did not take the index's refusal to find out.
    assert caplog.records == []


async def test_a_key_that_comes_again_returns_the_task_as_it_is_now(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        await submit(storage, KEYED)
        assert [task.seq for task in await submit(storage, KEYED)] == [2]
        await submit(storage, Complete(task_id="T", idempotency_key="end"))
        for command in (KEYED, Complete(task_id="T", idempotency_key="end")):
            (again,) = await submit(storage, command)
            assert (again.seq, again.status) == (3, Status.SUCCESS)
    async with open_storage(database, upgrade=False) as restarted:
        (again,) = await submit(restarted, KEYED)
        assert (again.seq, again.status) == (3, Status.SUCCESS)
        assert await messages(restarted) == [CREATED, "keyed", "Task completed successfully"]


@pytest.mark.parametrize(
    "other",
    [
        replace(KEYED, message="other"),
        replace(KEYED, event_type=EventType.ERROR),
        replace(KEYED, progress=0),
        replace(KEYED, metadata=[2]),
        UpdateProgress(task_id="T", progress=1, idempotency_key="k"),
        Complete(task_id="T", metadata=[1], idempotency_key="k"),
        Fail(task_id="T", error="keyed", metadata=[1], idempotency_key="k"),
        Cancel(task_id="T", metadata=[1], idempotency_key="k"),
    ],
)
async def test_a_key_that_comes_with_something_else_is_a_conflict_and_changes_nothing(
    database: str, other: Command
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        taken, conflict = await submit(storage, KEYED, other)
        assert taken.seq == 2
        assert isinstance(conflict, IdempotencyConflict)
        assert (conflict.task_id, conflict.idempotency_key) == ("T", "k")
        before = await task_and_log(storage)
        # In a group of its own, too.
        (conflict,) = await submit(storage, other)
        assert isinstance(conflict, IdempotencyConflict)
        assert await task_and_log(storage) == before
        assert await messages(storage) == [CREATED, "keyed"]


async def test_a_key_belongs_to_its_task(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        await submit(storage, KEYED)
        elsewhere = replace(KEYED, task_id="other", message="elsewhere")
        assert [task.seq for task in await submit(storage, elsewhere)] == [2]
        assert await messages(storage, "other") == [CREATED, "elsewhere"]


@pytest.mark.parametrize("in_one_group", [True, False])
async def test_a_key_is_free_when_the_task_was_deleted_and_created_again(database: str, in_one_group: bool) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), KEYED)
        commands = (Delete(task_id="T"), Create(task_id="T"), replace(KEYED, message="new"))
        for group in [commands] if in_one_group else [[command] for command in commands]:
            outcomes = await submit(storage, *group)
        assert outcomes[-1].seq == 2
        assert await messages(storage) == [CREATED, "new"]


async def test_a_key_of_a_report_that_was_refused_stays_free(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        refused, _, taken = await submit(storage, KEYED, Create(task_id="T"), replace(KEYED, message="new"))
        assert isinstance(refused, TaskNotFound)
        assert taken.seq == 2
