"""Reports on tasks that the process remembers: one statement, and the same outcomes as by the long way."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url

from storage import (
    Complete,
    Create,
    Delete,
    Storage,
    Task,
    TaskFinished,
    TaskNotFound,
    Unavailable,
    UpdateProgress,
    open_storage,
)
from storage import remembered as remembered_module
from storage.commands import Command
from storage.errors import NotConnected, OutcomeUnknown
from storage.group import decide_from_memory
from storage.lifecycle import decide
from storage.pool import Connection
from storage.remembered import Remembered
from tests.postgres import execute, session, set_for_database
from tests.storage.helpers import (
    COMMITS,
    CREATED,
    at_commit,
    kill_connections,
    messages,
    note,
    numbers,
    spied,
    submit,
    task_and_log,
)
from tests.storage.test_lifecycle import NOW

AT_ONCE = COMMITS[1:]


@contextmanager
def answers_lost(lose: Callable[[], bool], error: type[Exception] = ConnectionResetError) -> Iterator[None]:
    """Let statements that commit by themselves run, and their answers be lost."""
    run = Connection.run

    async def run_and_lose(connection: Connection, statement: str, *arguments: Any) -> list[Any]:
        rows = await run(connection, statement, *arguments)
        if statement in AT_ONCE and lose():
            connection.interrupted = True
            raise error
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "run", run_and_lose)
        yield


def once(error: Exception) -> Callable[[Any], Awaitable[None]]:
    """Raise this the first time."""
    errors = [error]

    async def act(_: Any) -> None:
        if errors:
            raise errors.pop()

    return act


@contextmanager
def instead_of_at_once(storage: Storage, act: Callable[[Connection], Awaitable[None]]) -> Iterator[None]:
    """Do something instead of a statement that commits by itself."""
    run = Connection.run

    async def run_or_act(connection: Connection, statement: str, *arguments: Any) -> list[Any]:
        if statement in AT_ONCE and connection in storage.pool:
            await act(connection)
        return await run(connection, statement, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "run", run_or_act)
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


@pytest.mark.parametrize("error", [TimeoutError, RuntimeError, asyncpg.InternalClientError, asyncpg.AdminShutdownError])
@pytest.mark.parametrize("reports", [1, 2])
async def test_what_may_have_been_done_is_not_done_again_whatever_became_of_the_answer(
    database: str, error: type[Exception], reports: int
) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with answers_lost(lambda: True, error):
            outcomes = await submit(storage, *[note()] * reports)
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * reports
        # And it is not remembered as it was before.
        with spied(storage) as spy:
            assert [task.seq for task in await submit(storage, note())] == [2 + reports]
        assert len(spy.statements) > 1
        assert await messages(storage) == [CREATED, *["m"] * (reports + 1)]


@pytest.mark.parametrize("then", [Delete(task_id="T"), Complete(task_id="T")])
async def test_what_may_have_been_done_is_unknown_also_when_the_task_has_ended_since(
    database: str, then: Command
) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"))

        async def end(connection: Connection) -> None:
            if not connection.interrupted:
                connection.interrupted = True
                await submit(two, then)
                raise ConnectionResetError

        with instead_of_at_once(one, end):
            (outcome,) = await submit(one, note())
        assert isinstance(outcome, OutcomeUnknown)


async def test_what_may_have_been_done_is_unknown_also_when_the_task_was_born_again(database: str) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"))

        async def replace(connection: Connection) -> None:
            connection.interrupted = True
            await submit(two, Delete(task_id="T"), Create(task_id="T"))
            raise ConnectionResetError

        with instead_of_at_once(one, replace):
            (outcome,) = await submit(one, note())
        assert isinstance(outcome, OutcomeUnknown)
        assert await messages(one) == [CREATED]


@pytest.mark.parametrize("error", [asyncpg.InternalClientError("another operation is in progress"), BrokenPipeError()])
async def test_a_report_whose_connection_is_of_no_use_is_written_by_another(database: str, error: Exception) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with at_commit(storage, once(error)):
            assert [task.seq for task in await submit(storage, note(), note())] == [2, 3]
        assert await messages(storage) == [CREATED, "m", "m"]


async def test_what_was_not_sent_is_not_of_unknown_outcome(database: str) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"), Create(task_id="other"))
        with at_commit(one, once(TimeoutError())):
            outcomes = await submit(one, note(), Create(task_id="new"), note("other", idempotency_key="k"))
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, Unavailable, Unavailable]
        # What this process remembers of T is wrong, and what it will do with it was not sent.
        await submit(one, note())
        await submit(two, Delete(task_id="T"))
        with at_commit(one, once(BrokenPipeError())):
            outcomes = await submit(one, note("other"), Create(task_id="T"), note())
        assert [task.seq for task in outcomes] == [2, 1, 2]
        assert await messages(one) == [CREATED, "m"]
        with at_commit(one, once(BrokenPipeError())):
            outcomes = await submit(one, note("other"), Delete(task_id="T"), Create(task_id="T"), note())
        assert [outcome and outcome.seq for outcome in outcomes] == [3, None, 1, 2]
        assert await messages(one) == [CREATED, "m"]


async def test_a_server_that_only_reads_has_done_nothing(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        await set_for_database(database, "default_transaction_read_only = on")
        await kill_connections(database)
        (outcome,) = await submit(storage, note())
        assert type(outcome) is Unavailable
        async with session(database) as other:
            await other.execute("SET default_transaction_read_only = off")
            name = await other.fetchval("SELECT current_database()")
            await other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        assert [task.seq for task in await submit(storage, note())] == [2]


async def test_a_number_that_was_lost_by_the_server_and_given_again_is_not_taken_for_the_same(database: str) -> None:
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, Create(task_id="T"), Create(task_id="behind"))
        await submit(one, note(), note("behind"))
        # As after a failover to a server that had not got the latest events.
        await execute(database, "DELETE FROM task_events WHERE seq = 2")
        await execute(database, "UPDATE tasks SET seq = 1")
        await submit(two, Complete(task_id="T"))
        (outcome, behind) = await submit(one, UpdateProgress(task_id="T", progress=5), note("behind"))
        assert isinstance(outcome, TaskFinished)
        assert behind.seq == 2
        assert len(await messages(one)) == len(await messages(one, "behind")) == 2


def test_tasks_are_sent_in_the_order_in_which_their_rows_are_to_be_locked() -> None:
    remembered = Remembered()
    for task_id in "abc":
        task = decide(None, Create(task_id=task_id), NOW)
        assert task is not None
        remembered.keep(task)
    decided = decide_from_memory([note("c"), note("a"), note("b"), note("a")], NOW, remembered)
    assert [(task.task_id, task.seq) for task in decided.changed] == [("a", 3), ("b", 2), ("c", 2)]
    sent = decided.sent(moved=False)
    assert [(row["task_id"], row["seq"]) for row in sent] == [("a", 2), ("a", 3), ("b", 2), ("c", 2)]
    # How a task is left is said once, with its last event.
    assert [row.get("seen_seq") for row in sent] == [None, 1, 1, 1]


AWKWARD = [
    "\"quoted\" and 'quoted'",
    "back\\slashes \\n \\u0041 \\\\",
    "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028\ufeff",
    '{a,NULL,"b"} [1] null',
    "Zoë \N{SNOWMAN} \U0001d11e \uffff",
]


@pytest.mark.parametrize("remembered", [True, False])
async def test_texts_come_back_as_they_were_sent(database: str, remembered: bool) -> None:
    task_ids = [f"T {text}" for text in AWKWARD] if remembered else list("ABCDE")
    async with open_storage(database, upgrade=False) as one, open_storage(database, upgrade=False) as two:
        await submit(one, *(Create(task_id=task_id) for task_id in task_ids))
        # Both are groups of several; the one with keys is decided under the lock.
        storage, keys = (one, [None] * len(AWKWARD)) if remembered else (two, AWKWARD)
        reports = [
            note(task_id, text, metadata={text: [text, 1e308, -0.5, 2**53]}, idempotency_key=key, actor=text)
            for task_id, text, key in zip(task_ids, AWKWARD, keys, strict=True)
        ]
        with spied(storage) as spy:
            outcomes = await submit(storage, *reports)
        assert any(statement in AT_ONCE for statement in spy.statements) is remembered
        for outcome, text in zip(outcomes, AWKWARD, strict=True):
            (event,) = await two.reader.events(outcome.task_id, 2, 2)
            assert (event.message, event.actor, event.timestamp) == (text, text, outcome.updated_at)
            assert event.metadata is not None
            assert event.metadata.value() == {text: [text, 1e308, -0.5, 2**53]}
        if not remembered:
            # What a key stands for is found again.
            assert await submit(storage, *reports) == [outcome._replace(last_event=None) for outcome in outcomes]


async def test_a_task_that_was_deleted_is_not_remembered(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        await submit(storage, Delete(task_id="T"))
        with spied(storage) as spy:
            (outcome,) = await submit(storage, note())
        assert isinstance(outcome, TaskNotFound)
        # Nothing was tried from memory.
        assert not any(statement in AT_ONCE for statement in spy.statements)


async def test_an_update_from_memory_has_its_size(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with storage.feed.subscribe("T") as subscriber:
            await submit(storage, note(message="m" * 1_000))
            updates = subscriber.take_now()
        assert updates is not None
        assert updates[0].size >= 1_000


async def test_who_waits_for_a_connection_in_vain_is_told_that_nothing_was_done(database: str) -> None:
    async with open_storage(database, upgrade=False, pool_wait_s=0.1) as storage:
        await submit(storage, Create(task_id="T"))
        await kill_connections(database)
        name = make_url(database).database
        async with session(make_url(database).set(database="postgres").render_as_string(hide_password=False)) as other:
            await other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            try:
                (outcome,) = await submit(storage, note())
            finally:
                await other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert type(outcome) is NotConnected
        assert [task.seq for task in await submit(storage, note())] == [2]


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
