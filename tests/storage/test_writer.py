"""Groups of commands: what they share, and what they must not."""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, permutations
from typing import Any, Final

import pytest
from sqlalchemy.exc import DBAPIError

from storage import (
    AddEvent,
    Cancel,
    Command,
    Complete,
    Create,
    Delete,
    EventType,
    Fail,
    IdempotencyConflict,
    Refusal,
    Status,
    Storage,
    Task,
    TaskAlreadyExists,
    TaskFinished,
    TaskNotFound,
    Unavailable,
    Update,
    UpdateProgress,
    UpdateType,
    open_storage,
)
from storage.commands import size_of
from storage.errors import OutcomeUnknown
from storage.lifecycle import decide
from storage.writer import Writer
from tests.postgres import execute, session, set_for_database
from tests.storage.helpers import (
    at_commit,
    kill_connections,
    messages,
    note,
    row_locked,
    spied,
    submit,
    task_and_log,
    until_blocked,
)

CREATED: Final = "Task created"


async def test_fifty_callers_of_one_task_get_each_number_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))

        async def report(caller: int) -> list[tuple[int, str]]:
            told = []
            for turn in range(20):
                task = await storage.writer.submit(note(message=f"{caller} {turn}"))
                assert task is not None
                told.append((task.seq, f"{caller} {turn}"))
            return told

        with spied(storage) as spy:
            told = await asyncio.gather(*map(report, range(50)))
        # What the callers were told is what the log holds.
        assert dict(chain([(1, CREATED)], *told)) == dict(enumerate(await messages(storage), 1))
        assert all(seqs == sorted(seqs) for seqs in told)
        assert spy.commits <= 100


async def test_commands_that_arrive_in_the_same_turn_are_one_transaction(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with spied(storage) as spy:
            await submit(storage, *(Create(task_id=f"T{n}") for n in range(200)), *(note(f"T{n}") for n in range(200)))
        assert spy.commits == 1


async def test_while_one_group_commits_the_next_one_gathers(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with spied(storage) as spy:
            async with row_locked(database):
                first = asyncio.create_task(submit(storage, note()))
                await until_blocked(database)
                others = [asyncio.create_task(submit(storage, note())) for _ in range(300)]
            await asyncio.gather(first, *others)
        assert spy.commits == 2
        assert len(await messages(storage)) == 302


async def test_a_group_holds_at_most_its_number_of_commands(database: str) -> None:
    async with open_storage(database, upgrade=False, group_commands_max=10) as storage:
        await submit(storage, Create(task_id="T"))
        with spied(storage) as spy:
            await submit(storage, *[note()] * 25)
        assert spy.commits == 3


async def test_a_group_holds_at_most_its_bytes_but_at_least_one_command(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.writer.GROUP_BYTES_MAX", 3 * size_of(note()))
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with spied(storage) as spy:
            await submit(storage, note(message="m" * 10_000), *[note()] * 6)
        assert spy.commits == 3


async def test_a_refusal_concerns_its_own_command_alone(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="done", status=Status.SUCCESS))
        with spied(storage) as spy:
            outcomes = await submit(
                storage,
                Create(task_id="T"),
                Create(task_id="T", progress=9),
                note("unknown"),
                Delete(task_id="unknown"),
                note("done"),
                UpdateProgress(task_id="T", progress=50),
                Complete(task_id="T"),
                Cancel(task_id="T"),
                Create(task_id="other"),
            )
        assert [type(outcome) for outcome in outcomes] == [
            Task,
            TaskAlreadyExists,
            TaskNotFound,
            TaskNotFound,
            TaskFinished,
            Task,
            Task,
            TaskFinished,
            Task,
        ]
        assert spy.commits == 1
        task, events = await task_and_log(storage)
        assert task == replace(outcomes[6], last_event=None)
        assert [outcomes[index].last_event for index in (0, 5, 6)] == events
        assert await messages(storage, "done") == [CREATED]
        assert await messages(storage, "other") == [CREATED]


def unchecked(message: str) -> AddEvent:
    """A report that the checks should not have let through."""
    report = note(message="")
    object.__setattr__(report, "message", message)
    return report


# Nothing that the checks let through is refused by the tables; so the tables are made to refuse 13.
NO_THIRTEEN: Final = "ALTER TABLE tasks ADD CHECK (progress <> 13)"


@pytest.mark.parametrize(
    "culprit",
    [
        UpdateProgress(task_id="T", progress=13),
        UpdateProgress(task_id="culprit", progress=13),
        Create(task_id="new", progress=13),
        unchecked("\ud800"),
        unchecked("\0"),
    ],
    ids=["same task", "other task", "creation", "refused by the driver", "refused by the server"],
)
async def test_when_the_database_refuses_a_group_only_the_culprit_fails(
    database: str, culprit: Command, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(database, NO_THIRTEEN)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="culprit"))
        with storage.feed.subscribe("T") as subscriber:
            good, bad, after = await submit(storage, note(message="before"), culprit, note(message="after"))
            assert (good.seq, after.seq) == (2, 3)
            # It is none of the refusals: something is wrong with the program.
            assert isinstance(bad, DBAPIError)
            assert await messages(storage) == [CREATED, "before", "after"]
            # And heard of once.
            updates = await subscriber.take()
            assert updates is not None
            assert [event.seq for update in updates for event in update.events] == [2, 3]
        assert await messages(storage, "culprit") == [CREATED]
        assert await storage.reader.task("new") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_writer_whom_the_database_refuses_keeps_its_connection(database: str) -> None:
    await execute(database, NO_THIRTEEN)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with spied(storage) as spy:
            await submit(storage, UpdateProgress(task_id="T", progress=13), note())
        assert spy.connections == 0
        assert await messages(storage) == [CREATED, "m"]


async def test_what_clients_sent_stays_out_of_the_log(database: str, caplog: pytest.LogCaptureFixture) -> None:
    await execute(database, "ALTER TABLE task_events ADD CHECK (seq < 3)")
    caplog.set_level(logging.DEBUG)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        outcomes = await submit(storage, note(), note(message="my secret", metadata="my secret"))
        assert isinstance(outcomes[1], DBAPIError)
        assert "my secret" not in str(outcomes[1])
    assert "seq" in caplog.text
    assert "my secret" not in caplog.text


async def test_each_command_of_a_group_that_the_database_refuses_is_tried_alone_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with session(database) as other:
            await other.execute(
                "CREATE SEQUENCE tries; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                # A sequence counts what is rolled back, too.
                " PERFORM nextval('tries'); IF NEW.message = 'bad' THEN RAISE 'no'; END IF; RETURN NEW; END $$;"
                " CREATE TRIGGER refuse BEFORE INSERT ON task_events FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            outcomes = await submit(storage, note(message="bad"), note(message="a"), note(message="b"))
            assert [isinstance(outcome, DBAPIError) for outcome in outcomes] == [True, False, False]
            # One in the group, which ends there; then each of the three alone.
            assert await other.fetchval("SELECT last_value FROM tries") == 4
        assert await messages(storage) == [CREATED, "a", "b"]


async def test_a_row_that_somebody_else_holds_is_unavailable_and_the_others_go_through(database: str) -> None:
    async with open_storage(database, upgrade=False, lock_timeout_ms=100) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="free"))
        with spied(storage) as spy:
            async with row_locked(database):
                outcomes = await submit(storage, note(), note("free"), note(), note("free"), note())
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Task, Unavailable, Task, Unavailable]
        assert outcomes[0].extensions == {"retryable": True}
        # The group, one of the three that want the row, and two others: nobody waits for the same row twice.
        assert spy.count("FOR UPDATE") == 4
        # And those who have waited as a group hardly wait again.
        assert spy.count("SET LOCAL lock_timeout") == 3
        assert await messages(storage) == [CREATED]
        assert await messages(storage, "free") == [CREATED, "m", "m"]
        assert [outcome.seq for outcome in await submit(storage, note())] == [2]


async def test_a_caller_who_goes_away_cancels_nothing(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with row_locked(database):
            in_group = [asyncio.create_task(storage.writer.submit(note(message=f"{n}"))) for n in range(3)]
            await until_blocked(database)
            in_queue = [asyncio.create_task(storage.writer.submit(note(message=f"{n}"))) for n in range(3, 6)]
            await asyncio.sleep(0)
            in_group[1].cancel()
            in_queue[1].cancel()
        outcomes = await asyncio.gather(*in_group, *in_queue, return_exceptions=True)
        assert [getattr(outcome, "seq", type(outcome)) for outcome in outcomes] == [
            2,
            asyncio.CancelledError,
            4,
            5,
            asyncio.CancelledError,
            7,
        ]
        assert await messages(storage) == [CREATED, *"012345"]


async def test_a_full_queue_refuses_at_once_and_finishes_what_it_took(database: str) -> None:
    async with open_storage(database, upgrade=False, waiting_commands_max=3) as storage:
        await submit(storage, Create(task_id="T"))
        async with row_locked(database):
            writing = asyncio.create_task(storage.writer.submit(note()))
            await until_blocked(database)
            waiting = [asyncio.create_task(storage.writer.submit(note())) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match=r"Too many changes are waiting to be written \(3\)") as refused:
                await storage.writer.submit(note())
            assert refused.value.extensions == {"retryable": True}
            assert not writing.done()
        assert [task and task.seq for task in await asyncio.gather(writing, *waiting)] == [2, 3, 4, 5]


async def test_a_queue_is_full_when_its_bytes_are(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.writer.WAITING_BYTES_MAX", 2 * size_of(note()))
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        for _ in range(2):
            outcomes = await submit(storage, note(), note(), note())
            assert [type(outcome) for outcome in outcomes] == [Task, Task, Unavailable]


LIFE: Final = (
    Create(task_id="T", progress=1),
    UpdateProgress(task_id="T", progress=50),
    Complete(task_id="T"),
    Delete(task_id="T"),
    Create(task_id="T", progress=2),
)


@pytest.mark.parametrize("existing", [None, Status.PENDING, Status.FAILED])
async def test_one_group_does_to_a_task_what_its_commands_do_one_by_one(database: str, existing: Status | None) -> None:
    orders = {f"T{n}": order for n, order in enumerate(permutations(LIFE))}
    async with open_storage(database, upgrade=False, group_commands_max=1_000) as storage:
        if existing is not None:
            await submit(storage, *(Create(task_id=task_id, status=existing) for task_id in orders))
        before = {task_id: await task_and_log(storage, task_id) for task_id in orders}
        commands = [replace(command, task_id=task_id) for task_id, order in orders.items() for command in order]
        with spied(storage) as spy:
            outcomes = iter(await submit(storage, *commands))
        assert spy.commits == 1
        for task_id, order in orders.items():
            expected, log = before[task_id]
            for command in order:
                outcome = next(outcomes)
                try:
                    expected = decide(expected, replace(command, task_id=task_id), datetime.now(UTC))
                except Refusal as refusal:
                    assert type(outcome) is type(refusal)
                    continue
                assert without_times(outcome) == without_times(expected)
                if expected is None:
                    log = []
                else:
                    log.append(outcome.last_event)
                    assert outcome.seq == len(log)
            task, events = await task_and_log(storage, task_id)
            assert without_times(task) == without_times(expected)
            assert events == log
        async with session(database) as other:
            assert await other.fetchval("SELECT count(*) FROM task_events") == await other.fetchval(
                "SELECT sum(seq) FROM tasks"
            )


def without_times(task: Task | None) -> Any:
    return task and (task.task_id, task.status, task.progress, task.seq)


async def test_a_task_that_replaces_another_in_the_same_group_has_another_time_of_birth(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        outcomes = await submit(storage, *[Create(task_id="T"), note(), Delete(task_id="T")] * 3, Create(task_id="T"))
        births = [outcomes[index].created_at for index in (0, 3, 6, 9)]
        assert births == sorted(set(births))
        assert await task_and_log(storage) == (replace(outcomes[9], last_event=None), [outcomes[9].last_event])


async def test_times_do_not_run_backwards_when_the_clock_does(database: str) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    clock = iter([noon, noon - timedelta(hours=1), noon + timedelta(hours=1)])
    async with open_storage(database, upgrade=False) as storage:
        writer = Writer(
            storage.engine,
            storage.feed,
            group_commands_max=10,
            waiting_commands_max=10,
            clock=lambda: next(clock),
        )
        for command in (Create(task_id="T"), note(), note()):
            await writer.submit(command)
        await writer.close()
        task, events = await task_and_log(storage)
        assert [event.timestamp for event in events] == [noon, noon, noon + timedelta(hours=1)]
        assert task is not None
        assert (task.created_at, task.updated_at) == (noon, noon + timedelta(hours=1))


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


async def test_what_is_acknowledged_is_on_disk_whatever_the_servers_default_is(database: str) -> None:
    await set_for_database(database, "synchronous_commit = off")
    async with session(database) as other:
        await other.execute(
            "CREATE TABLE seen (setting text); CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;"
            " CREATE TRIGGER look AFTER INSERT ON tasks EXECUTE FUNCTION look()"
        )
        async with open_storage(database, upgrade=False) as storage:
            await submit(storage, Create(task_id="T"))
        assert await other.fetchval("SELECT string_agg(setting, ' ') FROM seen") == "on"


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


async def test_a_connection_that_died_while_it_lay_idle_disturbs_nobody(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        assert await kill_connections(database) >= 1
        assert [task.seq for task in await submit(storage, note(), note())] == [2, 3]


async def test_a_group_whose_connection_dies_is_written_again_once(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with row_locked(database):
            writing = asyncio.create_task(submit(storage, note("other"), note(), note("unknown")))
            await until_blocked(database)
            await kill_connections(database)
            await until_blocked(database)
        other, task, refused = await writing
        assert (other.seq, task.seq, type(refused)) == (2, 2, TaskNotFound)
        assert await messages(storage) == await messages(storage, "other") == [CREATED, "m"]


async def test_a_group_whose_connection_dies_twice_is_unavailable_and_nothing_is_written(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with row_locked(database):
            writing = asyncio.create_task(submit(storage, note("other"), note()))
            for _ in range(2):
                await until_blocked(database)
                await kill_connections(database)
            outcomes = await writing
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
        assert outcomes[0].extensions == {"retryable": True}
        assert storage.writer.alive
        assert [task.seq for task in await submit(storage, note(), note("other"))] == [2, 2]


async def test_a_connection_that_dies_before_its_commit_leaves_the_outcome_unknown(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            hearing = asyncio.create_task(anext(updates))
            with spied(storage) as spy, at_commit(storage, lambda _: kill_connections(database)):
                outcomes = await submit(storage, note(message="lost"), note("other"))
            # Nobody tries again by himself: it might be done twice.
            assert spy.commits == 1
            assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
            assert (outcomes[0].code, outcomes[0].extensions) == ("UNAVAILABLE", {"retryable": True})
            await submit(storage, note(message="next"))
            # What was not committed was not heard of either.
            assert [event.message for event in (await hearing).events] == ["next"]
        assert await messages(storage) == [CREATED, "next"]


async def commit_and_break(connection: Any) -> None:
    """Commit, and let the answer be lost."""
    await connection.execute("COMMIT")
    raise ConnectionResetError


async def test_a_change_whose_answer_was_lost_is_not_made_again_under_its_key(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        with at_commit(storage, commit_and_break):
            assert [type(outcome) for outcome in await submit(storage, KEYED)] == [OutcomeUnknown]
        assert [task.seq for task in await submit(storage, KEYED)] == [2]
        assert await messages(storage) == [CREATED, "keyed"]


async def test_subscribers_see_a_change_whose_answer_was_lost(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            with at_commit(storage, commit_and_break):
                await submit(storage, note())
            assert [event.seq for event in (await anext(updates)).events] == [2]


async def test_subscribers_see_a_change_that_was_made_alone_and_whose_answer_was_lost(database: str) -> None:
    await execute(database, NO_THIRTEEN)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="culprit"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            with at_commit(storage, commit_and_break):
                await submit(storage, UpdateProgress(task_id="culprit", progress=13), note())
            assert [event.seq for event in (await anext(updates)).events] == [2]


async def test_the_writer_goes_on_after_a_fault_of_its_own(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Update) -> None:
        raise ZeroDivisionError

    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with aclosing(storage.watch("T")) as updates:
            await anext(updates)
            with monkeypatch.context() as patch:
                patch.setattr(storage.feed, "publish", broken)
                outcomes = await submit(storage, note(), note())
            # It was committed; but nobody may rely on that.
            assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
            assert [event.seq for event in (await anext(updates)).events] == [2, 3]
        assert storage.writer.alive
        assert [task.seq for task in await submit(storage, note())] == [4]
    assert "ZeroDivisionError" in caplog.text


async def test_subscribers_look_again_for_a_change_that_takes_long_to_commit(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.writer.LOOK_AFTER_S", (0, 0.01, 0.02))
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="other"))
        with storage.feed.subscribe("T") as subscriber, storage.feed.subscribe("other") as other:
            with at_commit(storage, lambda _: kill_connections(database)):
                await submit(storage, note())
            for _ in range(3):
                assert await subscriber.take() is None
            # Who watches something else has nothing to look for.
            await submit(storage, note("other"))
            assert await other.take() is not None


async def test_the_feed_hears_of_a_group_as_one_update_for_each_task(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        with storage.feed.subscribe("T") as subscriber:
            outcomes = await submit(
                storage,
                Create(task_id="T"),
                note(),
                note("T", progress=5),
                Delete(task_id="T"),
                Create(task_id="T"),
                UpdateProgress(task_id="T", progress=1),
            )
            updates = await subscriber.take()
            assert updates is not None
            assert [(update.type, update.task) for update in updates] == [
                (UpdateType.DELETE, outcomes[2]),
                (UpdateType.PROGRESS, outcomes[5]),
            ]
            assert [[event.seq for event in update.events] for update in updates] == [[1, 2, 3], [1, 2]]


async def test_closing_finishes_what_was_accepted_and_takes_no_more(database: str) -> None:
    async with open_storage(database, upgrade=False, group_commands_max=2) as storage:
        await submit(storage, Create(task_id="T"))
        accepted = [asyncio.create_task(storage.writer.submit(note())) for _ in range(7)]
        await asyncio.sleep(0)
    assert [task and task.seq for task in await asyncio.gather(*accepted)] == [2, 3, 4, 5, 6, 7, 8]
    assert not storage.writer.alive
    with pytest.raises(Unavailable, match="shutting down"):
        await storage.writer.submit(note())


async def test_closing_goes_on_when_whoever_waits_for_it_gives_up(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with row_locked(database):
            accepted = asyncio.create_task(storage.writer.submit(note()))
            await until_blocked(database)
            closing = asyncio.create_task(storage.writer.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
        task = await accepted
        assert task is not None
        assert task.seq == 2
