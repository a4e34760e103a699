"""Groups of commands: what they share, and what they must not."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, permutations
from typing import Any, Final

import pytest

from storage import (
    Cancel,
    Complete,
    Create,
    Delete,
    Refusal,
    Status,
    Task,
    TaskAlreadyExists,
    TaskFinished,
    TaskNotFound,
    Unavailable,
    UpdateProgress,
    UpdateType,
    open_storage,
)
from storage.commands import size_of
from storage.lifecycle import decide
from storage.writer import BESIDE_COMMANDS_MIN, Writer
from tests.postgres import session
from tests.storage.helpers import (
    CREATED,
    messages,
    note,
    row_locked,
    spied,
    submit,
    task_and_log,
    until_blocked,
)


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


async def test_a_group_that_waits_for_a_lock_keeps_no_single_command_waiting(database: str) -> None:
    async with open_storage(database, upgrade=False, lock_timeout_ms=30_000) as storage:
        await submit(storage, Create(task_id="T"), Create(task_id="U"))
        async with row_locked(database):
            stuck = asyncio.create_task(storage.writer.submit(note("T")))
            await until_blocked(database)
            for _ in range(3):
                await storage.writer.submit(note("U"))
            assert not stuck.done()
        await stuck
        assert len(await messages(storage, "U")) == 4


async def test_a_group_goes_beside_one_that_waits_with_commands_on_other_tasks(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long that one takes.
    monkeypatch.setattr("storage.writer.BESIDE_AFTER_S", 600.0)
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"), *(Create(task_id=f"T{n}") for n in range(BESIDE_COMMANDS_MIN)))
        with spied(storage) as spy:
            async with row_locked(database):
                first = asyncio.create_task(submit(storage, note(message="0")))
                await until_blocked(database)
                held = asyncio.create_task(submit(storage, note(message="1"), note(message="2")))
                beside = await submit(storage, *(note(f"T{n}") for n in range(BESIDE_COMMANDS_MIN)))
                assert {outcome.seq for outcome in beside} == {2}
                held_later = asyncio.create_task(submit(storage, note(message="3")))
                # Too few to go beside: they are next, together with those that were held.
                few = asyncio.create_task(submit(storage, note("T1"), note("T2")))
                await asyncio.sleep(0)
                assert not any(task.done() for task in (first, held, held_later, few))
            await asyncio.gather(first, held, held_later, few)
        # The first, the one beside it, and one with all that was left.
        assert spy.commits == 3
        assert await messages(storage) == [CREATED, *"0123"]


async def test_what_a_full_group_has_left_is_begun_beside_it(database: str) -> None:
    async with open_storage(database, upgrade=False, group_commands_max=BESIDE_COMMANDS_MIN) as storage:
        beside = [f"T{n}" for n in range(BESIDE_COMMANDS_MIN)]
        await submit(storage, Create(task_id="T"), *(Create(task_id=task_id) for task_id in beside))
        async with row_locked(database):
            # All come at once; nobody comes later and begins something.
            full = asyncio.create_task(submit(storage, *[note()] * BESIDE_COMMANDS_MIN))
            left = asyncio.create_task(submit(storage, *map(note, beside)))
            async with asyncio.timeout(10):
                assert {outcome.seq for outcome in await left} == {2}
            assert not full.done()
        assert {outcome.seq for outcome in await full} == set(range(2, 2 + BESIDE_COMMANDS_MIN))


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
        assert task == outcomes[6]._replace(last_event=None)
        assert [outcomes[index].last_event for index in (0, 5, 6)] == events
        assert await messages(storage, "done") == [CREATED]
        assert await messages(storage, "other") == [CREATED]


@pytest.mark.parametrize("at_once", [1, 3])
async def test_each_event_keeps_who_reported_it_however_it_was_written(database: str, at_once: int) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T", created_by="maker"))
        # From memory, under the lock for the sake of a key, and with a deletion and a creation before it.
        for key in (None, "k"):
            await submit(
                storage, *(note(actor=f"{n}", idempotency_key=key and f"{key}{n}") for n in range(at_once)), note("U")
            )
        _, events = await task_and_log(storage)
        expected = ["maker", *map(str, range(at_once)), *map(str, range(at_once))]
        assert [event.actor for event in events] == expected
        await submit(storage, Delete(task_id="T"), Create(task_id="T"), note(actor="last"))
        _, events = await task_and_log(storage)
        assert [event.actor for event in events] == [None, "last"]
        assert [event.actor for event in await storage.reader.events("T", 2, 2)] == ["last"]


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
        assert await task_and_log(storage) == (outcomes[9]._replace(last_event=None), [outcomes[9].last_event])


async def test_times_do_not_run_backwards_when_the_clock_does(database: str) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    clock = iter([noon, noon - timedelta(hours=1), noon + timedelta(hours=1)])
    async with open_storage(database, upgrade=False) as storage:
        writer = Writer(
            storage.pool,
            storage.feed,
            storage.queues,
            groups_max=1,
            group_commands_max=10,
            waiting_commands_max=10,
            wait_s=5.0,
            clock=lambda: next(clock),
        )
        for command in (Create(task_id="T"), note(), note()):
            await writer.submit(command)
        await writer.close()
        task, events = await task_and_log(storage)
        assert [event.timestamp for event in events] == [noon, noon, noon + timedelta(hours=1)]
        assert task is not None
        assert (task.created_at, task.updated_at) == (noon, noon + timedelta(hours=1))


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


async def test_commands_that_come_together_are_one_group_with_an_outcome_each(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="A"), Create(task_id="B"))
        with spied(storage) as spy:
            outcomes = await storage.writer.submit_each(
                [note("A"), Complete(task_id="B"), note("B"), note("nobody"), Delete(task_id="A")]
            )
        assert spy.commits == 1
        assert [type(outcome) for outcome in outcomes] == [Task, Task, TaskFinished, TaskNotFound, type(None)]
        assert await storage.writer.submit_each([]) == []


async def test_of_commands_that_come_together_those_without_room_are_refused(database: str) -> None:
    async with open_storage(database, upgrade=False, waiting_commands_max=2) as storage:
        outcomes = await storage.writer.submit_each([Create(task_id=task_id) for task_id in "ABCD"])
        assert [type(outcome) for outcome in outcomes] == [Task, Task, Unavailable, Unavailable]
        assert storage.writer.waiting == (0, 0)


async def test_who_asked_for_several_things_and_went_away_has_canceled_nothing(database: str) -> None:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, Create(task_id="T"))
        async with row_locked(database):
            asking = asyncio.create_task(storage.writer.submit_each([note(), note("nobody")]))
            async with asyncio.timeout(10):
                await until_blocked(database)
            asking.cancel()
            await asyncio.wait({asking})
        assert (await storage.writer.submit(note(message="after"))) is not None
        assert await messages(storage) == [CREATED, "m", "after"]
